"""Action distributions, with the random numbers handed in: what is drawn is a function of the noise.

Noise is made once per rollout by each member's own generator, so the actions of a member are the same alone and
inside a population, on any device.
"""

from __future__ import annotations

import math
from typing import Protocol

import gymnasium
import numpy as np
import torch
from torch import Tensor

from drl_agents.networks.squashed import SquashedGaussian, TanhPoint
from environments.errors import InputError


class ActionDistribution(Protocol):
    """A distribution over actions given the network's output; all shapes (..., head size) -> (...)."""

    head_size: int
    has_log_std: bool

    def noise(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Noise for `sample`, of the shape (*shape, noise size)."""

    def sample(self, head: Tensor, log_std: Tensor | None, noise: Tensor) -> tuple[Tensor, Tensor]:
        """(action, log probability)."""

    def mode(self, head: Tensor) -> Tensor:
        """The most likely action, what a policy that is judged plays."""

    def log_prob_entropy(self, head: Tensor, log_std: Tensor | None, action: Tensor) -> tuple[Tensor, Tensor]:
        """(log probability of `action`, entropy), in nats."""


class DiagonalGaussian:
    """Independent normals; log p = sum_i [-(a_i - m_i)^2 / (2 s_i^2) - ln s_i - ln(2 pi) / 2]."""

    has_log_std = True

    def __init__(self, size: int) -> None:
        self.head_size = size

    def noise(self, shape, generator):
        return torch.randn(*shape, self.head_size, generator=generator, device=generator.device)

    def sample(self, head, log_std, noise):
        action = head + noise * log_std.exp()
        return action, (-0.5 * noise.square() - log_std).sum(-1) - 0.5 * math.log(2 * math.pi) * self.head_size

    def mode(self, head):
        return head

    def log_prob_entropy(self, head, log_std, action):
        scaled = (action - head) * torch.exp(-log_std)
        constant = 0.5 * math.log(2 * math.pi) * self.head_size
        log_prob = (-0.5 * scaled.square() - log_std).sum(-1) - constant
        # One number for all components, or one for each.
        entropy = log_std.expand(*log_std.shape[:-1], self.head_size).sum(-1) + constant + 0.5 * self.head_size
        return log_prob, entropy.expand_as(log_prob)


class Categorical:
    """One of n actions; log p = logit_a - logsumexp(logits). Drawn by the Gumbel trick (Gumbel, 1954)."""

    has_log_std = False

    def __init__(self, size: int) -> None:
        self.head_size = size

    def noise(self, shape, generator):
        uniform = torch.rand(*shape, self.head_size, generator=generator, device=generator.device)
        return -torch.log(-torch.log(uniform.clamp(1e-20, 1 - 1e-7)))

    def sample(self, head, log_std, noise):
        action = (head + noise).argmax(-1)
        return action, self.log_prob_entropy(head, None, action)[0]

    def mode(self, head):
        return head.argmax(-1)

    def log_prob_entropy(self, head, log_std, action):
        logs = torch.log_softmax(head, dim=-1)
        chosen = logs.gather(-1, action.unsqueeze(-1)).squeeze(-1)
        return chosen, -(logs.exp() * logs).sum(-1)


BOX = {"normal": DiagonalGaussian, "squashed": SquashedGaussian, "tanh": TanhPoint}


def distribution_for(space: gymnasium.Space, box: str = "normal") -> ActionDistribution:
    """The distribution for a Discrete action space, or of the kind `box` for a Box; other spaces are refused."""
    if box not in BOX:
        raise InputError(f"distribution={box!r}: accepted are {', '.join(BOX)}")
    if isinstance(space, gymnasium.spaces.Box) and len(space.shape) == 1:
        return BOX[box](int(np.prod(space.shape)))
    if isinstance(space, gymnasium.spaces.Discrete):
        return Categorical(int(space.n))
    raise InputError(f"action space {space}: accepted are one-dimensional Box and Discrete")
