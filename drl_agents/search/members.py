"""Trials as members of one population: what they must have in common, and how each gets values of its own.

A population is one network shape over one environment, so trials trained side by side share whatever changes a shape
or which code runs. What is a number in a formula may differ: the agent's coefficients, the policy's first standard
deviation, the action scheme's strength, the weights of the reward's terms and the costs of trading.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import MISSING, asdict, fields
from typing import Any

import torch

from drl_agents.agents.base import AgentBase
from drl_agents.agents.registry import build_agent, find_agent
from drl_agents.networks.policy import PolicySpec
from drl_agents.search.config import TrialConfig
from environments.actions import build_scheme
from environments.errors import InputError
from environments.frictions import COEFFICIENTS
from environments.market_env import MarketVecEnv
from environments.rewards import parse_reward

OWN_NETWORK = ("log_std",)
OWN_SCHEME = ("max_trade", "sharpness", "threshold")  # options of the built-in action schemes
OWN_ENV = (*OWN_SCHEME, *COEFFICIENTS, "reward")


def own_agent(agent: str) -> tuple[str, ...]:
    """The hyper-parameters of an agent that may differ between members."""
    return tuple(item.name for item in fields(find_agent(agent)[1]) if "PerMember" in str(item.type))


def common(config: TrialConfig) -> str:
    """What a configuration must share with another to be trained beside it; two texts that are equal, or not.

    Left out are the members' own values. A coefficient that is None turns its rule off for all.
    """
    hyper = config.hyper
    own = own_agent(config.agent_name)
    parts = {
        "env": {name: value for name, value in config.env.items() if name not in OWN_ENV},
        "reward terms": parse_reward(config.env["reward"]).names if "reward" in config.env else "the environment's",
        "network": {name: value for name, value in config.network.items() if name not in OWN_NETWORK},
        "agent": {
            config.agent_name: {name: value for name, value in asdict(hyper).items() if name not in own},
        },
        "off": [name for name in own if getattr(hyper, name) is None],
    }
    return json.dumps(parts, sort_keys=True, default=repr)


def check_common(configs: Sequence[TrialConfig]) -> None:
    """Raises InputError where the configurations cannot be one population."""
    first = common(configs[0])
    for other in configs[1:]:
        if common(other) != first:
            raise InputError(f"trials of one population differ in more than members may: {first} and {common(other)}")


def env_options(configs: Sequence[TrialConfig]) -> dict[str, Any]:
    """The options the environment of these members is built with, as lists of one per member where they differ; those
    of the action scheme are left out then, and `spread_scheme` sets them."""
    options = dict(configs[0].env)
    for name in OWN_ENV:
        values = [config.env.get(name) for config in configs]
        if any(value != values[0] for value in values):
            options.pop(name, None)
            if name not in OWN_SCHEME:
                options[name] = values
    return options


def population_hyper(configs: Sequence[TrialConfig]) -> dict[str, Any]:
    """The hyper-parameters for all members, with a list, one value per member, where they differ."""
    own = [config.hyper for config in configs]
    merged = {}
    for item in fields(own[0]):
        values = [getattr(config, item.name) for config in own]
        alike = all(value == values[0] for value in values)
        merged[item.name] = values[0] if alike else values
    return merged


def population_agent(
    env: MarketVecEnv, configs: Sequence[TrialConfig], seeds: Sequence[int], device: torch.device
) -> AgentBase:
    """The agent whose member p has the hyper-parameters of `configs[p]` and the seed `seeds[p]`."""
    spec = PolicySpec.of(env, **configs[0].network)
    agent = build_agent(configs[0].agent_name, spec, population_hyper(configs), seeds, device)
    (name,) = OWN_NETWORK
    default = next(item.default for item in fields(PolicySpec) if item.name == name)
    assert default is not MISSING
    set_log_std(agent, [float(config.network.get(name, default)) for config in configs])
    return agent


def set_log_std(agent: AgentBase, values: Sequence[float]) -> None:
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
    chosen = [{name: c.env[name] for name in OWN_SCHEME if c.env.get(name) is not None} for c in configs]
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
