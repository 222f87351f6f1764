"""Trials as members of one population: what they must have in common, and how each gets values of its own.

A population is one network shape over one environment, so trials trained side by side share whatever changes a shape
or which code runs. What is a number in a formula may differ: PPO's coefficients, the policy's first standard
deviation, and the action scheme's strength.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import MISSING, fields
from typing import Any

import torch

from drl_agents.agents.ppo import AgentPPO, PPOConfig
from drl_agents.networks.policy import PolicySpec
from drl_agents.search.config import TrialConfig
from environments.actions import build_scheme
from environments.errors import InputError
from environments.market_env import MarketVecEnv

OWN_AGENT = tuple(item.name for item in fields(PPOConfig) if "PerMember" in str(item.type))
OWN_NETWORK = ("log_std",)
OWN_ENV = ("max_trade", "sharpness", "threshold")  # options of the built-in action schemes


def common(config: TrialConfig) -> str:
    """What a configuration must share with another to be trained beside it; two texts that are equal, or not.

    Left out are the members' own values. A coefficient that is None turns its rule off for all.
    """
    ppo = config.ppo
    parts = {
        "env": {name: value for name, value in config.env.items() if name not in OWN_ENV},
        "network": {name: value for name, value in config.network.items() if name not in OWN_NETWORK},
        "agent": {item.name: getattr(ppo, item.name) for item in fields(PPOConfig) if item.name not in OWN_AGENT},
        "off": [name for name in OWN_AGENT if getattr(ppo, name) is None],
    }
    return json.dumps(parts, sort_keys=True, default=repr)


def check_common(configs: Sequence[TrialConfig]) -> None:
    """Raises InputError where the configurations cannot be one population."""
    first = common(configs[0])
    for other in configs[1:]:
        if common(other) != first:
            raise InputError(f"trials of one population differ in more than members may: {first} and {common(other)}")


def env_options(configs: Sequence[TrialConfig]) -> dict[str, Any]:
    """The options the environment of these members is built with; `spread_scheme` then sets what they differ in."""
    first = configs[0].env
    return {k: v for k, v in first.items() if k not in OWN_ENV or all(c.env.get(k) == v for c in configs)}


def population_ppo(configs: Sequence[TrialConfig]) -> PPOConfig:
    """One `PPOConfig` for all members, with a list, one value per member, where they differ."""
    own = [config.ppo for config in configs]
    merged = {}
    for item in fields(PPOConfig):
        values = [getattr(config, item.name) for config in own]
        alike = all(value == values[0] for value in values)
        merged[item.name] = values[0] if alike else values
    return PPOConfig(**merged)


def population_agent(
    env: MarketVecEnv, configs: Sequence[TrialConfig], seeds: Sequence[int], device: torch.device
) -> AgentPPO:
    """The agent whose member p has the hyper-parameters of `configs[p]` and the seed `seeds[p]`."""
    agent = AgentPPO(PolicySpec.of(env, **configs[0].network), population_ppo(configs), seeds, device)
    (name,) = OWN_NETWORK
    default = next(item.default for item in fields(PolicySpec) if item.name == name)
    assert default is not MISSING
    set_log_std(agent, [float(config.network.get(name, default)) for config in configs])
    return agent


def set_log_std(agent: AgentPPO, values: Sequence[float]) -> None:
    """Start member p's action distribution at the log standard deviation `values[p]`, all actions alike."""
    if agent.policy.log_std is not None:  # choices have none
        for own, value in zip(agent.policy.log_std.data, values, strict=True):
            own.fill_(value)


def spread_scheme(env: MarketVecEnv, configs: Sequence[TrialConfig]) -> None:
    """Let each member's environments trade with the member's own value of the action scheme's options.

    In the scheme's formula the option becomes a tensor of one value per environment instead of a number; the
    market's precision holds for it as it does for the number.

    Raises:
        InputError: a value is out of range, or not an option of the scheme.
    """
    chosen = [{name: c.env[name] for name in OWN_ENV if c.env.get(name) is not None} for c in configs]
    if all(own == chosen[0] for own in chosen):
        return
    plain = env.scheme
    schemes = [build_scheme(plain.name, **{**plain.options, **own}) for own in chosen]
    scheme = copy.copy(plain)
    for name in sorted({name for own in chosen for name in own}):
        values = torch.tensor([getattr(s, name) for s in schemes], dtype=env.market.dtype, device=env.device)
        values = values.repeat_interleave(env.n_envs // env.n_members)
        # `max_trade` multiplies an equity (N,); the others meet actions (N, A).
        object.__setattr__(scheme, name, values if name == "max_trade" else values.unsqueeze(-1))
    env.scheme = scheme
