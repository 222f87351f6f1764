"""Sizes of a search: those that were given are not drawn, and the trials side by side fit the memory budget."""

from __future__ import annotations

from dataclasses import replace

import optuna
import pytest

from drl_agents.deployment.job_plan import JobSettings
from drl_agents.deployment.main_job import within_memory
from drl_agents.evaluation.splits import combinatorial_purged
from drl_agents.search.config import TrialConfig
from drl_agents.search.memory import largest_config, plan_population, population_peak
from drl_agents.search.objective import Workload
from drl_agents.search.space import MAX_LOOKBACK, suggest
from drl_agents.training.device import MemoryOptions
from environments.data.source import load_bars
from environments.errors import InputError
from environments.market import Market

pytestmark = pytest.mark.usefixtures("one_thread")
CONFIG = TrialConfig(
    env={"lookback": 4, "episode_length": 40},
    network={"hidden": (64, 64)},
    agent={"horizon_len": 16, "num_minibatches": 2},
)


@pytest.fixture(scope="module")
def workload() -> Workload:
    options = {"kind": "momentum", "n_bars": 420, "n_assets": 2, "sigma": 0.02}
    market = Market.from_bars(load_bars("synthetic", options=options, seed=4))
    folds = combinatorial_purged([(40, 420)], 4, 2, MAX_LOOKBACK + 1, 3, min_length=32)
    return Workload(market, tuple(folds), "VectorizedCryptoEnvAlpaca", n_envs=4, timesteps=256, folds_per_batch=3)


def test_the_plan_fits_and_one_trial_more_would_not(workload):
    """Predicted from 2 and 4 members; measured are 9 and 12."""
    three, four = (population_peak(workload, CONFIG, 3 * k) for k in (3, 4))
    plan = plan_population(workload, CONFIG, 8, (1.1 * (three + four) / 2, "a test"))
    assert (plan.population, plan.amp) == (3, "off")
    assert plan.predicted == pytest.approx(three, rel=0.1)
    assert "planned 3 trials of 3 agents side by side, float32" in plan.reason and "(a test); one more" in plan.reason
    assert plan_population(workload, CONFIG, 2, (1e12, "a test")).population == 2


def test_what_does_not_fit_is_told(workload):
    with pytest.raises(InputError, match=r"one trial of 3 agents takes up to .* the budget is 0.00954 MiB \(a test\)"):
        plan_population(workload, CONFIG, 2, (1e4, "a test"))


def test_the_largest_trial_is_of_the_space(workload):
    config = largest_config("ppo", {"action": "weights", "horizon_len": 512})
    assert config.network["hidden"] == (128, 128) and config.env["lookback"] == MAX_LOOKBACK
    assert (config.hyper.horizon_len, config.hyper.num_minibatches) == (512, 2)
    assert config.env["action"] == "weights" and "sharpness" in config.env and "max_trade" not in config.env


def test_a_population_that_was_asked_for_must_fit(workload):
    budget = MemoryOptions(max_vram="0.01")
    settings = JobSettings("s", population=8, memory=budget, n_steps=16, batch_size=32, n_envs=4)
    fixed = settings.fixed()
    with pytest.raises(InputError, match="--population 8 does not fit: planned"):
        within_memory(settings, workload, fixed, 8)
    planned, load, most = within_memory(replace(settings, population=None), workload, fixed, 1)
    assert most == 1 and (planned.amp, load.agent["amp"]) == ("off", "off")


def test_sizes_that_are_given_are_not_drawn():
    settings = JobSettings("s", n_envs=12, n_steps=40, batch_size=96, network="gru", env_options={"action": "trades"})
    fixed = settings.fixed()
    trial = optuna.create_study().ask()
    config = suggest(trial, fixed)
    assert not {"horizon_len", "num_minibatches"} & set(trial.params) and "update_epochs" in trial.params
    assert (config.hyper.horizon_len, config.hyper.num_minibatches) == (40, 5)
    assert config.network["network"] == "gru" and set(config.network) > {"hidden", "activation"}
    assert not {"horizon_len", "network"} & set(config.env) and config.env["action"] == "trades"


@pytest.mark.parametrize(
    ("settings", "minibatches"),
    [
        ({"network": "gru"}, 1),  # one environment, one sequence
        ({"network": "gru", "n_envs": 12, "env_options": {"clock_groups": 6}}, 4),
        ({"network": "gru", "n_envs": 8}, None),
        ({"n_steps": 8}, 4),
        ({"n_steps": 16}, None),
        ({}, None),
        ({"agent": "sac"}, None),
    ],
)
def test_minibatches_are_those_a_rollout_has(settings, minibatches):
    """What the space would draw and the smallest rollout cannot be shared out into is not drawn."""
    assert JobSettings("s", **settings).fixed().get("num_minibatches") == minibatches


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 96}, "give --n-steps too"),
        ({"n_steps": 40, "batch_size": 97}, "divisors of n_envs \\* n_steps = 480"),
        ({"n_steps": 40, "batch_size": 10, "env_options": {"clock_groups": 3}}, "multiples of the 4 environments"),
        ({"agent": "shac", "n_steps": 40, "batch_size": 96}, "--batch-size is accepted with agents .*shac has none"),
        ({"agent": "sac", "timesteps": 500}, "--timesteps 500: sac acts at random for its first 1000 steps"),
        ({"agent": "shac", "memory": MemoryOptions(low_vram=True)}, "a memory budget is accepted with agents"),
        ({"n_steps": 40, "batch_size": 20, "network": "gru"}, "makes 24 minibatches: a rollout's sequences make 12"),
        ({"n_steps": 40, "batch_size": 4, "env_options": {"clock_groups": 3}, "network": "gru"}, "sequences make 3"),
    ],
)
def test_sizes_that_cannot_be_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        JobSettings("s", n_envs=12, **settings).fixed()
