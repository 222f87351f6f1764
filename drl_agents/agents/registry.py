"""From an agent's name to its class and its hyper-parameters; imported when they are asked for.

A name is a built-in one, an entry point of the group "drl_agents.agents", or "package.module:Class". What an installed
package adds is the agent's class, whose attribute `config_class` is the dataclass of its hyper-parameters.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
from collections.abc import Mapping, Sequence
from importlib.metadata import entry_points
from typing import Any

import torch

from drl_agents.agents.base import AgentBase
from drl_agents.networks.policy import PolicySpec
from environments.errors import InputError

ENTRY_POINTS = "drl_agents.agents"
BUILT_IN = {
    "ppo": ("drl_agents.agents.ppo", "AgentPPO", "PPOConfig"),
    "shac": ("drl_agents.agents.shac", "AgentSHAC", "SHACConfig"),
    "a2c": ("drl_agents.agents.a2c", "AgentA2C", "A2CConfig"),
    "sac": ("drl_agents.agents.sac", "AgentSAC", "SACConfig"),
    "td3": ("drl_agents.agents.td3", "AgentTD3", "TD3Config"),
    "ddpg": ("drl_agents.agents.ddpg", "AgentDDPG", "DDPGConfig"),
    "dqn": ("drl_agents.agents.dqn", "AgentDQN", "DQNConfig"),
}


def agent_names() -> list[str]:
    """The built-in names, then those that installed packages add."""
    return [*BUILT_IN, *(point.name for point in entry_points(group=ENTRY_POINTS) if point.name not in BUILT_IN)]


def find_agent(name: str) -> tuple[type[AgentBase], type]:
    """(agent class, class of its hyper-parameters).

    Raises:
        InputError: nothing has that name (the message lists what does), or what has it is no agent.
    """
    if name in BUILT_IN:
        module, agent, config = BUILT_IN[name]
        found = importlib.import_module(module)
        return getattr(found, agent), getattr(found, config)
    installed = {point.name: point for point in entry_points(group=ENTRY_POINTS)}
    if name in installed:
        return _with_config(name, installed[name].load())
    if ":" in name:
        module, _, attribute = name.partition(":")
        try:
            return _with_config(name, getattr(importlib.import_module(module), attribute))
        except (ImportError, AttributeError) as error:
            raise InputError(f"agent {name!r}: {error}") from error
    raise InputError(f"agent {name!r}: accepted are {', '.join(agent_names())}, package.module:Class")


def agent_config(name: str, values: Mapping[str, Any] | None = None) -> Any:
    """The hyper-parameters of agent `name`: `values` over its defaults.

    Raises:
        InputError: unknown agent; a field it does not have (the message lists those it has); a value out of range.
    """
    return _config(name, find_agent(name)[1], values or {})


def build_agent(
    name: str,
    spec: PolicySpec,
    config: Mapping[str, Any] | None = None,
    seeds: Sequence[int] = (0,),
    device: torch.device | str = "cpu",
) -> AgentBase:
    """Agent `name` for the policy `spec`, one member for each of `seeds`; config: as for `agent_config`.

    Raises:
        InputError: see `agent_config`; an action space the agent cannot play.
    """
    agent, config_class = find_agent(name)
    return agent(spec, _config(name, config_class, config or {}), tuple(seeds), device)


def _with_config(name: str, agent: Any) -> tuple[type[AgentBase], type]:
    if not (isinstance(agent, type) and issubclass(agent, AgentBase)):
        raise InputError(f"agent {name!r}: {agent!r} is not a subclass of AgentBase")
    if not dataclasses.is_dataclass(getattr(agent, "config_class", None)):
        raise InputError(f"agent {name!r}: {agent.__name__}.config_class must be the dataclass of its hyper-parameters")
    return agent, agent.config_class


def _config(name: str, config_class: type, values: Mapping[str, Any]) -> Any:
    known = {item.name: item.default for item in dataclasses.fields(config_class)}
    accepted = list(known)
    for unknown in sorted(set(values) - set(accepted)):
        close = difflib.get_close_matches(unknown, accepted, n=1)
        meant = f" (did you mean {close[0]}?)" if close else ""
        raise InputError(f"agent {name} has no field {unknown}{meant}: accepted are {', '.join(accepted)}")
    return config_class(**{key: _typed(name, key, value, known[key]) for key, value in values.items()})


def _typed(agent: str, name: str, value: Any, default: Any) -> Any:
    """`value` as a field with this default takes it; a whole number may be 8.0, as it is read from YAML."""

    def number(one: Any) -> bool:
        return isinstance(one, int | float) and not isinstance(one, bool)

    if isinstance(default, bool | str):
        kind, sound = type(default).__name__, isinstance(value, type(default))
    elif isinstance(default, int):
        kind, sound = "a whole number", number(value) and value == int(value)
        value = int(value) if sound else value
    else:
        several = isinstance(value, list | tuple)
        kind, sound = "a number, or one for each member", all(map(number, value if several else [value]))
        sound = sound or (value is None and default is None)
    if not sound:
        raise InputError(f"agent {agent}: {name}={value!r}: accepted is {kind}")
    return value
