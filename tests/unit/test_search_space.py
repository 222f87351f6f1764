"""Every dimension of the search space changes what it names: none is searched for nothing."""

from __future__ import annotations

import json

import optuna
import pytest
import torch

from drl_agents.agents.ppo import PPOConfig
from drl_agents.networks.policy import PolicySpec
from drl_agents.search.config import TrialConfig, derived_seed
from drl_agents.search.objective import Workload, market_env, train_members
from drl_agents.search.space import MAX_LOOKBACK, SPACE, config_from, suggest
from environments.data.source import load_bars
from environments.errors import InputError
from environments.market import Market

ENV = "VectorizedCryptoEnvAlpaca"
# Two values of each dimension inside its range, and where the value is to be found.
PAIRS = {
    "learning_rate": (3e-3, 1e-3),
    "one_minus_gamma": (0.1, 0.01),
    "gae_lambda": (0.9, 0.95),
    "clip_coef": (0.1, 0.3),
    "ent_coef": (1e-3, 1e-2),
    "vf_coef": (0.5, 1.0),
    "max_grad_norm": (0.3, 2.0),
    "target_kl": (0.1, 0.01),
    "horizon_len": (64, 128),
    "num_minibatches": (2, 4),
    "update_epochs": (4, 8),
    "hidden_dim": (32, 64),
    "num_layers": (1, 2),
    "activation": ("tanh", "relu"),
    "log_std": (-0.5, 0.0),
    "lookback": (1, 4),
    "max_trade": (0.5, 1.0),
    "reward": ("excess", "log_return"),
}
SCHEME_PAIRS = {"weights": {"sharpness": (2.0, 8.0)}, "signal_size": {"threshold": (0.0, 0.4)}}
BASE = {name: pair[0] for name, pair in PAIRS.items()}
# What must be so for a dimension to matter in so short a run: a divergence that grows until it is limited.
NEEDS = {"target_kl": {"clip_coef": 0.3}}


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def workload() -> Workload:
    bars = load_bars("synthetic", options={"kind": "momentum", "n_bars": 200, "sigma": 0.02}, seed=3)
    return Workload(Market.from_bars(bars), (), ENV, n_envs=4, timesteps=512, folds_per_batch=1)


def trained(workload: Workload, params: dict, **fixed) -> tuple[torch.Tensor, torch.Tensor]:
    """What a tiny training run ends with: all weights, and the rewards of its last rollout."""
    config = config_from(params, {"episode_length": 50, **fixed})
    agent, _ = train_members(workload, config, [[(40, 200)]], [5])
    return agent.parameters.values.clone(), agent._rollout.reward.clone()


@pytest.fixture(scope="module")
def base(workload) -> tuple[torch.Tensor, torch.Tensor]:
    return trained(workload, BASE)


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a, b)


def test_every_dimension_is_tried_here():
    everything = PAIRS | {name: pair for options in SCHEME_PAIRS.values() for name, pair in options.items()}
    assert set(everything) == {p.name for p in SPACE}
    for p in SPACE:
        for value in everything[p.name]:
            assert value in p.choices if p.choices else p.low <= value <= p.high, p.name


def test_equal_values_give_equal_training(workload, base):
    weights, rewards = trained(workload, dict(BASE))
    assert same(weights, base[0]) and same(rewards, base[1])


@pytest.mark.parametrize("name", PAIRS)
def test_a_value_reaches_what_it_names(workload, base, name):
    """Everything else is equal, the seed too."""
    needs = NEEDS.get(name, {})
    before = trained(workload, {**BASE, **needs}) if needs else base
    weights, rewards = trained(workload, {**BASE, **needs, name: PAIRS[name][1]})
    assert not same(weights, before[0]), f"{name} changed no weight"
    assert not same(rewards, before[1]), f"{name} changed no reward of the second rollout"


@pytest.mark.parametrize("scheme", SCHEME_PAIRS)
def test_a_value_of_one_scheme_reaches_it(workload, scheme):
    plain = {name: value for name, value in BASE.items() if name != "max_trade"}
    for name, pair in SCHEME_PAIRS[scheme].items():
        runs = [trained(workload, {**plain, name: value}, action=scheme) for value in (*pair, pair[1])]
        assert not same(runs[0][0], runs[1][0]) and not same(runs[0][1], runs[1][1]), name
        assert same(runs[1][0], runs[2][0]) and same(runs[1][1], runs[2][1]), name


def test_a_fixed_option_is_not_drawn():
    trial = optuna.create_study().ask()
    config = suggest(trial, {"reward": "excess:1,turnover:0.1"})
    assert "reward" not in trial.params and config.env["reward"] == "excess:1,turnover:0.1"


@pytest.mark.parametrize("which", [0, 1])
def test_the_value_arrives_as_it_was_drawn(workload, which):
    drawn = {name: pair[which] for name, pair in PAIRS.items()}
    config = config_from(drawn)
    env = market_env(ENV, workload.market, 4, **config.env)
    spec = PolicySpec.of(env, **config.network)
    found = {
        **{name: getattr(config.hyper, name) for name in drawn if name in PPOConfig.__dataclass_fields__},
        "one_minus_gamma": pytest.approx(1 - config.hyper.gamma),
        "hidden_dim": spec.hidden[0],
        "num_layers": len(spec.hidden),
        "activation": spec.activation,
        "log_std": spec.log_std,
        "lookback": env.lookback,
        "max_trade": env.scheme.max_trade,
        "reward": env.reward_name,
    }
    assert drawn == found
    assert set(spec.hidden) == {drawn["hidden_dim"]} and spec.lookback == drawn["lookback"]


@pytest.mark.parametrize("scheme", ["trades", "weights", "signal_size", "regimes"])
def test_what_is_drawn_fits_the_action_scheme(workload, scheme):
    """max_trade belongs to trades: drawn for weights it would fail every trial."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    for _ in range(5):
        trial = study.ask()
        config = suggest(trial, {"action": scheme})
        env = market_env(ENV, workload.market, 2, **config.env)
        assert env.scheme.name == scheme and PolicySpec.of(env, **config.network).size > 0
        assert ("max_trade" in trial.params) == (scheme == "trades")
        assert {p.scheme for p in SPACE if p.name in trial.params} <= {None, scheme}


def test_drawn_values_stay_in_their_ranges():
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=2))
    for _ in range(30):
        trial = study.ask()
        config = suggest(trial)
        assert isinstance(config.hyper, PPOConfig) and config.lookback <= MAX_LOOKBACK
        for p in (p for p in SPACE if p.scheme in (None, "trades")):
            value = trial.params[p.name]
            assert value in p.choices if p.choices else p.low <= value <= p.high


def test_fixed_options_are_not_overruled():
    config = config_from(BASE, {"lookback": 8, "decision_lag": 2})
    assert config.env["lookback"] == 8 and config.env["decision_lag"] == 2 and config.env["max_trade"] == 0.5


def test_a_configuration_survives_json(workload):
    config = config_from(BASE, {"episode_length": 50})
    again = TrialConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    assert again.hyper == config.hyper and dict(again.env) == dict(config.env)
    env = market_env(ENV, workload.market, 2, **config.env)
    assert PolicySpec.of(env, **again.network) == PolicySpec.of(env, **config.network)
    assert again.to_dict() == json.loads(json.dumps(config.to_dict()))


def test_what_is_unknown_is_refused(workload):
    with pytest.raises(InputError, match="learning_rat.*learning_rate"):
        config_from({**BASE, "learning_rat": 1.0})
    with pytest.raises(InputError, match="agent ppo has no field gama .*accepted are .*gamma"):
        TrialConfig(agent={"gama": 0.9})
    config = TrialConfig(env={"lookbak": 3})
    with pytest.raises(InputError, match="no option lookbak: accepted are .*lookback"):
        train_members(workload, config, [[(40, 200)]], [5])


def test_derived_seeds_depend_on_every_part_and_on_nothing_else():
    seeds = [derived_seed(*parts) for parts in ((1, 2), (2, 1), (1, 2, 0), ("a", 1), ("a1",), (12,))]
    assert len(set(seeds)) == len(seeds) and all(0 <= s < 2**31 for s in seeds)
    # As it has been since the first study: SHA-256 of "0/trial/3", its first 32 bits, halved.
    assert derived_seed(0, "trial", 3) == 2138929252
