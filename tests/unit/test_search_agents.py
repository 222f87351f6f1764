"""A search is for an agent by name: its space, its trials as one population, studies from before there were names."""

from __future__ import annotations

import json

import numpy as np
import optuna
import pytest

from drl_agents.agents.registry import agent_names, find_agent
from drl_agents.agents.shac import SHACConfig
from drl_agents.deployment.bundle import load_bundle
from drl_agents.deployment.job_plan import JobSettings
from drl_agents.deployment.main_job import run_main_job
from drl_agents.evaluation.splits import combinatorial_purged
from drl_agents.search.config import TrialConfig
from drl_agents.search.members import check_common, own_agent, population_hyper
from drl_agents.search.objective import Workload, evaluate, evaluate_batch
from drl_agents.search.place import StudyPlace
from drl_agents.search.space import MAX_LOOKBACK, config_from, space_of, suggest
from drl_agents.search.study import open_study
from environments.data.source import load_bars
from environments.errors import InputError
from environments.market import Market

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def market() -> Market:
    options = {"kind": "momentum", "n_bars": 420, "n_assets": 2, "sigma": 0.02}
    return Market.from_bars(load_bars("synthetic", options=options, seed=4))


def drawn(agent: str, seed: int = 0, fixed: dict | None = None) -> TrialConfig:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    return suggest(study.ask(), fixed, agent)


@pytest.mark.parametrize("agent", agent_names())
def test_every_agent_can_be_drawn(agent):
    """What a trial changes are hyper-parameters that the agent has, within what it accepts."""
    configs = [drawn(agent, seed) for seed in range(5)]
    assert all(isinstance(config.hyper, find_agent(agent)[1]) and config.agent_name == agent for config in configs)
    assert len({config.hyper.gamma for config in configs}) == 5
    assert all(TrialConfig.from_dict(json.loads(json.dumps(c.to_dict()))).hyper == c.hyper for c in configs)


def test_shac_is_searched_in_its_own_space():
    names = {p.name for p in space_of("shac")}
    assert {"critic_learning_rate", "td_lambda", "tau"} <= names and not names & {"clip_coef", "ent_coef", "target_kl"}
    config = config_from({"learning_rate": 0.01, "one_minus_gamma": 0.1, "tau": 0.25, "lookback": 4}, None, "shac")
    assert config.hyper == SHACConfig(learning_rate=0.01, gamma=0.9, tau=0.25) and config.lookback == 4
    with pytest.raises(InputError, match="clip_coef are not of this search space: learning_rate"):
        config_from({"clip_coef": 0.2}, None, "shac")
    with pytest.raises(InputError, match="agent 'shack': accepted are ppo, shac"):
        drawn("shack")


def test_a_configuration_without_a_name_is_ppos():
    assert TrialConfig.from_dict({"env": {}, "network": {}, "agent": {"clip_coef": 0.1}}).agent_name == "ppo"
    with pytest.raises(InputError, match="agent shac has no field clip_coef"):
        TrialConfig(agent={"clip_coef": 0.1}, agent_name="shac")


def test_a_study_is_of_one_agent(tmp_path):
    place = StudyPlace("old", tmp_path)
    study = open_study(place, {"seed": 0})  # as it was made before agents had names
    study.tell(study.ask(), 1.0)
    with pytest.raises(InputError, match="its agent is 'ppo', here it is 'shac'"):
        open_study(place, {"seed": 0, "agent": "shac"})
    open_study(place, {"seed": 0, "agent": "ppo"})
    new = StudyPlace("new", tmp_path / "new")
    assert open_study(new, {"agent": "shac"}).user_attrs["agent"] == "shac"
    with pytest.raises(InputError, match="its agent is 'shac', here it is 'ppo'"):
        open_study(new, {"agent": "ppo"})


def test_agents_are_not_mixed_in_a_population():
    assert "tau" in own_agent("shac") and "horizon_len" not in own_agent("shac")
    two = [TrialConfig(agent={"tau": tau}, agent_name="shac") for tau in (0.1, 0.2)]
    check_common(two)
    assert population_hyper(two)["tau"] == [0.1, 0.2] and population_hyper(two)["gamma"] == 0.99
    with pytest.raises(InputError, match="differ in more than members may"):
        check_common([TrialConfig(agent_name="shac"), TrialConfig()])


def varied(i: int) -> TrialConfig:
    agent = {
        "horizon_len": 16, "num_minibatches": 2, "learning_rate": (1e-2, 3e-3)[i], "gamma": (0.9, 0.99)[i],
        "critic_learning_rate": (1e-3, 1e-2)[i], "tau": (0.5, 0.1)[i], "td_lambda": (0.95, 0.8)[i],
    }  # fmt: skip
    env = {"episode_length": 40, "max_trade": (1.0, 0.4)[i]}
    return TrialConfig(env, {"hidden": (8,), "log_std": (-1.0, -2.0)[i]}, agent, "shac")


def test_trials_of_shac_are_one_population(market):
    """Each comes to what it comes to alone."""
    folds = tuple(combinatorial_purged([(40, 420)], 3, 1, MAX_LOOKBACK + 1, 3, min_length=32))
    load = Workload(market, folds, "VectorizedCryptoEnvAlpaca", n_envs=4, timesteps=640, folds_per_batch=3)
    configs = [varied(0), varied(1)]
    together = evaluate_batch(load, configs, [9, 21])
    for config, seed, end in zip(configs, [9, 21], together, strict=True):
        alone = evaluate(load, config, seed)
        np.testing.assert_allclose(end.returns, alone.returns, rtol=0, atol=1e-6)
    assert together[0].value != together[1].value


def test_the_main_job_with_shac(market, tmp_path):
    settings = JobSettings(
        "small", n_trials=2, n_envs=2, timesteps=200, n_splits=3, test_groups=1, n_seeds=1, agent="shac",
        logs=tmp_path, env_options={"episode_length": 60, "action": "weights"}, population=2,
    )  # fmt: skip
    result = run_main_job(market, settings)
    assert result.complete and result.paper_difference <= 1e-6
    kept = open_study(StudyPlace("small", tmp_path / "studies" / "small"), {}, expect_existing=True)
    assert kept.user_attrs["population"] == 2  # a later run that leaves it open goes on with it
    bundle = load_bundle(result.candidate.bundle.folder)
    assert bundle.manifest["lineage"]["config"]["agent_name"] == "shac"
    with pytest.raises(InputError, match="its agent is 'shac', here it is 'ppo'"):
        run_main_job(market, JobSettings(**{**vars(settings), "agent": "ppo"}))


def test_an_agent_that_cannot_train_is_refused_before_a_study_is_made(tmp_path):
    market = Market.from_bars(load_bars("synthetic", options={"n_bars": 300}, seed=1))
    settings = JobSettings("none", agent="shac", logs=tmp_path, env_options={"action": "signal_size"}, n_splits=3)
    with pytest.raises(InputError, match="agent shac cannot train here: action scheme 'signal_size' has no gradient"):
        run_main_job(market, settings)
    with pytest.raises(InputError, match="amp='fp16': gradients through the books underflow"):
        run_main_job(market, JobSettings("none", agent="shac", amp="fp16", logs=tmp_path, n_splits=3))
    assert not list(tmp_path.rglob("*.log")) and not (tmp_path / "studies").exists()
