"""The search space: what a trial may change, and where each value goes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import optuna

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


SPACE: tuple[Parameter, ...] = (
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
MAX_LOOKBACK = max(next(p for p in SPACE if p.name == "lookback").choices)


def suggest(trial: optuna.trial.BaseTrial, fixed: Mapping[str, Any] | None = None) -> TrialConfig:
    """Draw a configuration. `fixed` holds environment options that are not searched."""
    scheme = (fixed or {}).get("action", "trades")
    return config_from(
        {p.name: p.suggest(trial) for p in SPACE if p.scheme in (None, scheme) and p.name not in (fixed or {})}, fixed
    )


def config_from(params: Mapping[str, Any], fixed: Mapping[str, Any] | None = None) -> TrialConfig:
    """The configuration that sampled `params` stand for.

    Raises:
        InputError: a parameter the space does not have (a study of another version).
    """
    known = {p.name: p for p in SPACE}
    unknown = sorted(set(params) - set(known))
    if unknown:
        raise InputError(f"parameters {', '.join(unknown)} are not of this search space: {', '.join(known)}")
    parts: dict[str, dict[str, Any]] = {"env": {}, "network": {}, "agent": {}}
    for name, value in params.items():
        parts[known[name].target][name] = value
    agent, network = parts["agent"], parts["network"]
    if "one_minus_gamma" in agent:
        agent["gamma"] = 1 - agent.pop("one_minus_gamma")
    if "hidden_dim" in network or "num_layers" in network:
        width, depth = network.pop("hidden_dim", 64), network.pop("num_layers", 2)
        network["hidden"] = (width,) * depth
    return TrialConfig({**parts["env"], **(fixed or {})}, network, agent)
