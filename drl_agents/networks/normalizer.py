"""Normalisers: part of the policy, so that whoever runs the policy runs them too."""

from __future__ import annotations

import torch
from torch import Tensor, nn

LIMIT = 10.0


class FixedNormalizer(nn.Module):
    """(x - mean) / std within +-10, unknown (NaN) -> 0, the mean. Statistics (P, D), set once from training data."""

    def __init__(self, n_members: int, size: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(n_members, size))
        self.register_buffer("std", torch.ones(n_members, size))

    def set(self, mean: Tensor, std: Tensor) -> None:
        self.mean.copy_(mean)
        self.std.copy_(std)

    def forward(self, x: Tensor) -> Tensor:
        """(P, n, k * D) -> the same: the statistics serve k rows laid side by side."""
        repeats = x.shape[-1] // self.mean.shape[-1]
        mean, std = self.mean.repeat(1, repeats).unsqueeze(1), self.std.repeat(1, repeats).unsqueeze(1)
        return torch.nan_to_num((x - mean) / std, nan=0.0).clamp(-LIMIT, LIMIT)


class RunningNormalizer(FixedNormalizer):
    """A normaliser that learns its statistics from what it is shown (Chan et al., 1983, parallel moments)."""

    def __init__(self, n_members: int, size: int) -> None:
        super().__init__(n_members, size)
        self.register_buffer("count", torch.zeros(n_members, 1))
        self.register_buffer("square", torch.zeros(n_members, size))

    @torch.no_grad()
    def update(self, x: Tensor) -> None:
        """Take in x: (P, n, D). What is not finite counts as the mean: one bad value must not spoil all to come."""
        n = x.shape[1]
        x = torch.where(x.isfinite(), x, self.mean.unsqueeze(1))
        mean = x.mean(1)
        square = (x - mean.unsqueeze(1)).square().sum(1)
        total = self.count + n
        shift = mean - self.mean
        self.square.add_(square + shift.square() * self.count * n / total)
        self.mean.add_(shift * n / total)
        self.count.copy_(total)
        std = (self.square / self.count).sqrt()
        self.std.copy_(torch.where(std > 1e-4, std, 1.0))
