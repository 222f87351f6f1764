"""Normalisers: part of the policy, so that whoever runs the policy runs them too."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from environments.observation import market_window

LIMIT = 10.0
MAX_TABLE = 2**28  # numbers in a table made once per bar; beyond, a gigabyte, they are made again as they are read


class FixedNormalizer(nn.Module):
    """(x - mean) / std within +-limit, unknown (NaN) -> 0, the mean. Statistics (P, D), set once from training data."""

    limit: float = LIMIT

    def __init__(self, n_members: int, size: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(n_members, size))
        self.register_buffer("std", torch.ones(n_members, size))

    def set(self, mean: Tensor, std: Tensor) -> None:
        self.mean.copy_(mean)
        self.std.copy_(std)

    def forward(self, x: Tensor) -> Tensor:
        """(P, n, k * D) -> the same: the statistics serve k rows laid side by side."""
        mean, std = self.mean.unsqueeze(1), self.std.unsqueeze(1)
        if (repeats := x.shape[-1] // mean.shape[-1]) > 1:
            mean, std = mean.repeat(1, 1, repeats), std.repeat(1, 1, repeats)
        return torch.nan_to_num((x - mean) / std, nan=0.0).clamp(-self.limit, self.limit)


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


class PlainNormalizer(FixedNormalizer):
    """x as it is, unknown (NaN) -> 0, without a limit; nothing is learned."""

    limit = math.inf

    def forward(self, x: Tensor) -> Tensor:
        """(P, n, D) -> the same."""
        return torch.where(x.isnan(), 0.0, x)

    def update(self, x: Tensor) -> None:
        """As `RunningNormalizer.update`; there is nothing to take in."""


def state_normalizer(kind: str, n_members: int, size: int) -> FixedNormalizer:
    """Of the `size` numbers observed outside a market; kind: `PolicySpec.normalizer`."""
    return (PlainNormalizer if kind == "none" else RunningNormalizer)(n_members, size)


class MarketWindows:
    """What the networks read of a market: rows (B, R) normalised by each member's statistics, once per bar.

    Members with the same statistics, such as those of one fold in every trial and with every seed, share their rows.

    Args:
        rows: (B, R), NaN where unknown. lookback: L. normalizer: (P, n, k * R) -> the same, unknown -> 0.

    Attributes:
        table: (kinds of statistics, B, R) normalised rows, None where that is too large. kind: (P, 1) each member's.
    """

    def __init__(self, rows: Tensor, lookback: int, normalizer: nn.Module, n_members: int) -> None:
        self.rows, self.lookback, self.normalizer = rows, lookback, normalizer
        self.table = None
        statistics = torch.cat([own.flatten(1) for own in normalizer.buffers()], dim=1)
        kinds, kind = statistics.unique(dim=0, return_inverse=True)
        self.kind = kind.view(n_members, 1)
        if len(kinds) * rows.numel() <= MAX_TABLE:
            # The first member of each kind.
            first = torch.full((len(kinds),), n_members, device=rows.device)
            first.scatter_reduce_(0, kind, torch.arange(n_members, device=rows.device), "amin")
            own = {name: value[first] for name, value in normalizer.named_buffers()}
            with torch.no_grad():
                self.table = torch.func.functional_call(normalizer, own, (rows.expand(len(kinds), -1, -1),))

    def at(self, bar: Tensor) -> Tensor:
        """(P, m, L * R) the windows that end with each member's bars (P, m), oldest first."""
        if self.table is None:
            return self.normalizer(market_window(self.rows, bar, self.lookback))
        if self.lookback == 1:
            return self.table[self.kind, bar]
        index = bar.unsqueeze(-1) + torch.arange(1 - self.lookback, 1, device=bar.device)
        window = self.table[self.kind.unsqueeze(-1), index.clamp(min=0)]
        return (window * (index >= 0).unsqueeze(-1)).flatten(-2)
