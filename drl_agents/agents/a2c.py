"""Advantage actor-critic (Mnih et al., "Asynchronous Methods for Deep Reinforcement Learning", ICML 2016), synchronous.

With one epoch of one minibatch the probability ratio of PPO is one wherever its gradient is taken, so its gradient is
A2C's: -A grad ln p (Huang et al., "A2C is a special case of PPO", 2022). What remains is the optimiser.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from drl_agents.agents.adam import FlatAdam
from drl_agents.agents.members import PerMember, check_ranges
from drl_agents.agents.ppo import AgentPPO, PPOConfig
from drl_agents.agents.rmsprop import FlatRMSprop
from drl_agents.networks.spec import PolicySpec
from environments.errors import InputError

_RANGES = (
    ("horizon_len", 1, 1e6), ("learning_rate", 0.0, 1.0), ("gamma", 0.0, 1.0), ("gae_lambda", 0.0, 1.0),
    ("ent_coef", 0.0, 10.0), ("vf_coef", 0.0, 100.0), ("max_grad_norm", 1e-6, 1e6), ("reward_scale", 1e-9, 1e9),
)  # fmt: skip


@dataclass(frozen=True)
class A2CConfig:
    """Hyper-parameters, those of `PPOConfig` that are left. gae_lambda: 1 for returns of up to horizon_len steps, less
    for generalised advantages. optimizer: "rmsprop" or "adam"."""

    horizon_len: int = 5
    norm_adv: bool = False
    anneal_lr: bool = False
    optimizer: str = "rmsprop"
    learning_rate: PerMember = 7e-4
    gamma: PerMember = 0.99
    gae_lambda: PerMember = 1.0
    ent_coef: PerMember = 0.0
    vf_coef: PerMember = 0.5
    max_grad_norm: PerMember = 0.5
    reward_scale: PerMember = 1.0
    amp: str = "off"
    compile: str = "auto"

    def __post_init__(self) -> None:
        check_ranges(self, _RANGES)
        if self.optimizer not in ("rmsprop", "adam"):
            raise InputError(f"optimizer={self.optimizer!r}: accepted are rmsprop, adam")

    def ppo(self) -> PPOConfig:
        """The same as PPO: one pass over the whole rollout."""
        own = {name: value for name, value in vars(self).items() if name != "optimizer"}
        return PPOConfig(num_minibatches=1, update_epochs=1, **own)


class AgentA2C(AgentPPO):
    """A2C over Box and Discrete actions; see `AgentPPO`."""

    def __init__(
        self,
        spec: PolicySpec,
        config: A2CConfig | None = None,
        seeds: Sequence[int] = (0,),
        device: torch.device | str = "cpu",
    ) -> None:
        config = config or A2CConfig()
        super().__init__(spec, config.ppo(), seeds, device)
        kind = {"rmsprop": FlatRMSprop, "adam": FlatAdam}[config.optimizer]
        self.optimizer = kind(self.parameters)
