"""TrialConfig: everything a trial trains with, as plain data."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from drl_agents.agents.ppo import PPOConfig
from environments.errors import InputError


@dataclass(frozen=True)
class TrialConfig:
    """One configuration.

    env: options of the environment. network: hidden, activation, log_std. agent: fields of `PPOConfig`.
    Whatever is left out has the default of the thing it configures.
    """

    env: Mapping[str, Any] = field(default_factory=dict)
    network: Mapping[str, Any] = field(default_factory=dict)
    agent: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        accepted = {item.name for item in fields(PPOConfig)}
        unknown = sorted(set(self.agent) - accepted)
        if unknown:
            raise InputError(f"agent option {', '.join(unknown)}: accepted are {', '.join(sorted(accepted))}")

    @property
    def ppo(self) -> PPOConfig:
        return PPOConfig(**self.agent)

    @property
    def lookback(self) -> int:
        return int(self.env.get("lookback", 1))

    def with_env(self, **options: Any) -> TrialConfig:
        return TrialConfig({**self.env, **options}, self.network, self.agent)

    def with_agent(self, **options: Any) -> TrialConfig:
        return TrialConfig(self.env, self.network, {**self.agent, **options})

    def to_dict(self) -> dict[str, dict[str, Any]]:
        return {name: dict(value) for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, value: Mapping[str, Mapping[str, Any]]) -> TrialConfig:
        return cls(**{name: dict(part) for name, part in value.items()})


def derived_seed(*parts: int | str) -> int:
    """A seed below 2^31 that depends on all of `parts`, in order; stable between processes and versions."""
    text = "/".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1
