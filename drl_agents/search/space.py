"""The search space: what a trial may change, and where each value goes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from typing import Any

import optuna

from drl_agents.agents.registry import find_agent
from drl_agents.networks.spec import SHARED
from drl_agents.search.config import TrialConfig
from environments.errors import InputError


@dataclass(frozen=True)
class Parameter:
    """One dimension of the space.

    Choices change a shape or which code runs: the trials of a batch share them. Ranges are each trial's own.

    target: "env", "network" or "agent", the part of `TrialConfig` it belongs to. low, high: a range of
    floats, on a logarithmic scale where `log`; or choices. scheme: the one action scheme that has it, or any.
    """

    name: str
    target: str
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    choices: tuple[Any, ...] = ()
    scheme: str | None = None

    @property
    def distribution(self) -> optuna.distributions.BaseDistribution:
        """What Optuna draws it from."""
        if self.choices:
            return optuna.distributions.CategoricalDistribution(self.choices)
        return optuna.distributions.FloatDistribution(self.low, self.high, log=self.log)

    def suggest(self, trial: optuna.trial.BaseTrial) -> Any:
        if self.choices:
            return trial.suggest_categorical(self.name, self.choices)
        return trial.suggest_float(self.name, self.low, self.high, log=self.log)


_PPO: tuple[Parameter, ...] = (
    Parameter("learning_rate", "agent", 1e-4, 3e-3, log=True),
    Parameter("one_minus_gamma", "agent", 3e-3, 0.3, log=True),  # gamma itself would crowd its range near 1
    Parameter("gae_lambda", "agent", 0.8, 0.99),
    Parameter("clip_coef", "agent", 0.1, 0.3),
    Parameter("ent_coef", "agent", 1e-5, 1e-2, log=True),
    Parameter("vf_coef", "agent", 0.25, 1.0),
    Parameter("max_grad_norm", "agent", 0.3, 2.0, log=True),
    Parameter("target_kl", "agent", 0.01, 0.1, log=True),
    Parameter("horizon_len", "agent", choices=(64, 128, 256)),
    Parameter("num_minibatches", "agent", choices=(2, 4, 8)),
    Parameter("update_epochs", "agent", choices=(2, 4, 8)),
)
_SHAC: tuple[Parameter, ...] = (
    Parameter("learning_rate", "agent", 3e-4, 2e-2, log=True),
    Parameter("critic_learning_rate", "agent", 3e-4, 1e-2, log=True),
    Parameter("one_minus_gamma", "agent", 3e-3, 0.3, log=True),
    Parameter("td_lambda", "agent", 0.8, 0.99),
    Parameter("tau", "agent", 0.1, 1.0),
    Parameter("max_grad_norm", "agent", 0.3, 2.0, log=True),
    Parameter("horizon_len", "agent", choices=(16, 32, 64)),
    Parameter("critic_epochs", "agent", choices=(1, 2, 4)),
    # Its gradient needs no noise, and what noise trades is paid for: as loud as PPO's it is learned to stay in cash.
    Parameter("log_std", "network", -4.0, -0.5),
)
_OFF_POLICY: tuple[Parameter, ...] = (
    Parameter("one_minus_gamma", "agent", 3e-3, 0.3, log=True),
    Parameter("tau", "agent", 2e-3, 5e-2, log=True),
    Parameter("reward_scale", "agent", 1.0, 100.0, log=True),
    Parameter("horizon_len", "agent", choices=(8, 16)),
    Parameter("batch_size", "agent", choices=(128, 256)),
    Parameter("update_to_data", "agent", choices=(0.0625, 0.125, 0.25)),
    Parameter("n_step", "agent", choices=(1, 3, 5)),
)
_LEARNING_RATE = Parameter("learning_rate", "agent", 1e-4, 3e-3, log=True)
_SAC: tuple[Parameter, ...] = (
    Parameter("policy_lr", "agent", 1e-4, 3e-3, log=True),
    Parameter("q_lr", "agent", 1e-4, 3e-3, log=True),
    *_OFF_POLICY,
)
_DDPG: tuple[Parameter, ...] = (
    _LEARNING_RATE,
    Parameter("exploration_noise", "agent", 0.05, 0.5, log=True),
    *_OFF_POLICY,
)
_DQN: tuple[Parameter, ...] = (
    _LEARNING_RATE,
    Parameter("end_e", "agent", 0.01, 0.1, log=True),
    Parameter("target_network_frequency", "agent", choices=(1,)),  # tau alone says how slowly the target follows
    *_OFF_POLICY,
)
_AROUND: tuple[Parameter, ...] = (  # what every agent is surrounded by
    Parameter("hidden_dim", "network", choices=(32, 64, 128)),
    Parameter("num_layers", "network", choices=(1, 2)),
    Parameter("activation", "network", choices=("tanh", "relu")),
    Parameter("log_std", "network", -1.5, 0.0),
    Parameter("lookback", "env", choices=(1, 4, 8)),
    Parameter("max_trade", "env", 0.1, 1.0, log=True, scheme="trades"),
    Parameter("sharpness", "env", 1.0, 20.0, log=True, scheme="weights"),
    Parameter("threshold", "env", 0.0, 0.5, scheme="signal_size"),
    Parameter("reward", "env", choices=("excess", "log_return")),
)
MAX_LOOKBACK = max(next(p for p in _AROUND if p.name == "lookback").choices)
_OWN = {"ppo": _PPO, "shac": _SHAC, "sac": _SAC, "td3": _DDPG, "ddpg": _DDPG, "dqn": _DQN}


@cache
def space_of(agent: str) -> tuple[Parameter, ...]:
    """The dimensions that trials of an agent are drawn from: its own, which replace those of the same name around it.

    An agent without a table has what it shares with PPO's, by the names of its hyper-parameters.
    """
    own = _OWN.get(agent)
    if own is None:
        known = {item.name for item in fields(find_agent(agent)[1])}
        own = tuple(p for p in _PPO if {"one_minus_gamma": "gamma"}.get(p.name, p.name) in known)
    names = {p.name for p in own}
    return (*own, *(p for p in _AROUND if p.name not in names))


SPACE = space_of("ppo")


def suggest(trial: optuna.trial.BaseTrial, fixed: Mapping[str, Any] | None = None, agent: str = "ppo") -> TrialConfig:
    """Draw a configuration of an agent.

    fixed: what is not searched, by name: dimensions of the space, what every network has (`networks.spec.SHARED`), and
    environment options.
    """
    scheme, fixed = (fixed or {}).get("action", "trades"), fixed or {}
    searched = [p for p in space_of(agent) if p.scheme in (None, scheme) and p.name not in fixed]
    return config_from({p.name: p.suggest(trial) for p in searched}, fixed, agent)


def config_from(params: Mapping[str, Any], fixed: Mapping[str, Any] | None = None, agent: str = "ppo") -> TrialConfig:
    """The configuration that sampled `params` stand for.

    Raises:
        InputError: a parameter the space does not have (a study of another version).
    """
    known = {p.name: p for p in space_of(agent)}
    unknown = sorted(set(params) - set(known))
    if unknown:
        raise InputError(f"parameters {', '.join(unknown)} are not of this search space: {', '.join(known)}")
    parts: dict[str, dict[str, Any]] = {"env": {}, "network": {}, "agent": {}}
    for name, value in {**params, **(fixed or {})}.items():
        parts[known[name].target if name in known else "network" if name in SHARED else "env"][name] = value
    hyper, network = parts["agent"], parts["network"]
    if "one_minus_gamma" in hyper:
        hyper["gamma"] = 1 - hyper.pop("one_minus_gamma")
    if "hidden_dim" in network or "num_layers" in network:
        width, depth = network.pop("hidden_dim", 64), network.pop("num_layers", 2)
        network["hidden"] = (width,) * depth
    return TrialConfig(parts["env"], network, hyper, agent)
