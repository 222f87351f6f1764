"""What the agent sees: the market's last bars and its own account. One function for training and live.

An observation is kept as (bar index, account vector) and made dense only where a network reads it:

    dense = [ rows of bars t-L+1 .. t, oldest first | account vector ]          L = lookback

The account vector of A assets has 1 + 3A entries, all of order one:

    cash share | weights | unrealised profit as a share of the entry price, within +-1 | log1p(bars since trade) / 5

In a margin account the cash share is below 0 where cash is owed and above 1 where assets are, a weight below 0 is
short, and the profit of what is short is what its price fell by. Shares are of |equity|: -1 is to owe all there is.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from environments.portfolio import Account

# Share of equity under which a position counts as none; the venues' smallest orders are well above it.
DUST = 1e-6


class Observation(NamedTuple):
    """bar: (...,) int64 index into the market's rows, or None outside a market. state: (..., K) float32."""

    bar: Tensor | None
    state: Tensor


def account_size(n_assets: int) -> int:
    """K, the length of the account vector."""
    return 1 + 3 * n_assets


def account_vector(account: Account, mark: Tensor, equity: Tensor) -> Tensor:
    """(N, K) float32 account vector; mark: (N, A) last known closes, equity: (N,) at those marks."""
    safe = equity.abs().clamp(min=1e-12).unsqueeze(-1)
    value = account.shares * mark
    # What a sale leaves by rounding is no position; seen as one, its profit would flicker with the last digit.
    held = value.sign() * (value.abs() > DUST * safe)
    gain = (mark / account.entry.clamp(min=1e-30) - 1) * held
    parts = (
        account.cash.unsqueeze(-1) / safe,
        value / safe,
        gain.clamp(-1, 1),
        torch.log1p(account.idle) / 5,
    )
    return torch.cat(parts, dim=-1).float()


def build_observation(rows: Tensor | None, observation: Observation, lookback: int) -> Tensor:
    """The dense observation (..., L * R + K) float32.

    Args:
        rows: (B, R) market rows, NaN where unknown (see `FeatureTable`), or None outside a market.
        observation: bars (...,) and states (..., K).
        lookback: L >= 1. Bars before the first are read as unknown (NaN).
    """
    if rows is None or observation.bar is None:
        return observation.state
    return torch.cat([market_window(rows, observation.bar, lookback), observation.state], dim=-1)


def market_window(rows: Tensor, bar: Tensor, lookback: int) -> Tensor:
    """(..., L * R): the rows of the L bars that end with `bar`, oldest first."""
    if lookback == 1:
        return rows[bar]
    index = bar.unsqueeze(-1) + torch.arange(1 - lookback, 1, device=bar.device)
    window = rows[index.clamp(min=0)]
    window = torch.where((index >= 0).unsqueeze(-1), window, torch.nan)
    return window.flatten(-2)
