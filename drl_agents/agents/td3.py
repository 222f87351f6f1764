"""Twin delayed DDPG (Fujimoto et al., "Addressing Function Approximation Error in Actor-Critic Methods", ICML 2018)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from drl_agents.agents.ddpg import AgentDDPG, DDPGConfig
from drl_agents.agents.members import PerMember


@dataclass(frozen=True)
class TD3Config(DDPGConfig):
    """policy_noise: deviation of the noise that smooths the target's action. noise_clip: its bound."""

    policy_noise: PerMember = 0.2
    noise_clip: PerMember = 0.5

    RANGES = (*DDPGConfig.RANGES, ("policy_noise", 0.0, 10.0), ("noise_clip", 0.0, 10.0))


class AgentTD3(AgentDDPG):
    """DDPG with the smaller of two critics, a smoothed target and an actor that is learnt less often.

    Args: see `AgentOffPolicy`.
    """

    name, n_critics, config_class = "td3", 2, TD3Config

    @property
    def noise_size(self) -> int:
        return self.spec.action_size

    def next_action(self, head: Tensor, noise: Tensor) -> Tensor:
        """a' = clip(tanh(head) + clip(s z, -c, c), -1, 1)   (eq. 14)"""
        spread, clip = (self.hyper[name].unsqueeze(-1) for name in ("policy_noise", "noise_clip"))
        return (torch.tanh(head) + torch.minimum(torch.maximum(spread * noise, -clip), clip)).clamp(-1, 1)
