"""Distributions over Box actions that tanh keeps within [-1, 1], for the off-policy agents."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from environments.errors import InputError


class SquashedGaussian:
    """a = tanh(u), u_i ~ N(m_i, s_i), m and ln s both from the network (Haarnoja et al., 2018, appendix C).

        log p(a) = sum_i [ log N(u_i; m_i, s_i) - ln(1 - tanh(u_i)^2) ]

    head: (..., 2 A), the means, then the logarithms of the deviations, which are kept within `LOG_STD`.
    """

    has_log_std = False
    LOG_STD = (-5.0, 2.0)

    def __init__(self, size: int) -> None:
        self.size, self.head_size = size, 2 * size

    def noise(self, shape, generator):
        return torch.randn(*shape, self.size, generator=generator, device=generator.device)

    def parts(self, head: Tensor) -> tuple[Tensor, Tensor]:
        """(mean, log deviation) before squashing, each (..., A)."""
        mean, log_std = head.split(self.size, dim=-1)
        return mean, log_std.clamp(*self.LOG_STD)

    def sample(self, head, log_std, noise):
        mean, log_std = self.parts(head)
        raw = mean + noise * log_std.exp()
        # ln(1 - tanh(u)^2) = 2 (ln 2 - u - softplus(-2u)): it stays finite where tanh rounds to one.
        slope = 2 * (math.log(2) - raw - torch.nn.functional.softplus(-2 * raw))
        log_prob = (-0.5 * noise.square() - log_std - slope).sum(-1) - 0.5 * math.log(2 * math.pi) * self.size
        return torch.tanh(raw), log_prob

    def mode(self, head):
        return torch.tanh(self.parts(head)[0])

    def log_prob_entropy(self, head, log_std, action):
        raise InputError('distribution="squashed": its entropy has no closed form, accepted is "normal"')


class TanhPoint:
    """a = tanh(head), without spread: what explores adds its own noise (`noise`: standard normal, by component)."""

    has_log_std = False

    def __init__(self, size: int) -> None:
        self.head_size = size

    def noise(self, shape, generator):
        return torch.randn(*shape, self.head_size, generator=generator, device=generator.device)

    def mode(self, head):
        return torch.tanh(head)

    def sample(self, head, log_std, noise):
        raise InputError('distribution="tanh" has no spread to sample from: accepted are "normal", "squashed"')

    def log_prob_entropy(self, head, log_std, action):
        raise InputError('distribution="tanh" has no density: accepted is "normal"')
