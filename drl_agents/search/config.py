"""TrialConfig: everything a trial trains with, as plain data."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from drl_agents.agents.registry import agent_config


@dataclass(frozen=True)
class TrialConfig:
    """One configuration.

    env: options of the environment. network: what `PolicySpec.of` takes. agent: hyper-parameters of the agent
    `agent_name`. Whatever is left out has the default of the thing it configures.
    """

    env: Mapping[str, Any] = field(default_factory=dict)
    network: Mapping[str, Any] = field(default_factory=dict)
    agent: Mapping[str, Any] = field(default_factory=dict)
    agent_name: str = "ppo"

    def __post_init__(self) -> None:
        agent_config(self.agent_name, self.agent)  # what the agent would refuse is refused now

    @property
    def hyper(self) -> Any:
        """The agent's hyper-parameters, such as a `PPOConfig`."""
        return agent_config(self.agent_name, self.agent)

    @property
    def lookback(self) -> int:
        return int(self.env.get("lookback", 1))

    def with_env(self, **options: Any) -> TrialConfig:
        return replace(self, env={**self.env, **options})

    def with_agent(self, **options: Any) -> TrialConfig:
        return replace(self, agent={**self.agent, **options})

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> TrialConfig:
        """What `to_dict` gave; one that names no agent is of PPO's time."""
        return cls(**value)


def derived_seed(*parts: int | str) -> int:
    """A seed below 2^31 that depends on all of `parts`, in order; stable between processes and versions."""
    text = "/".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1
