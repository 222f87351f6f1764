"""One bar's columns for N environments, out of a table made once: a step gathers once and copies nothing."""

from __future__ import annotations

import torch
from torch import Tensor

from environments.market import Market


class BarRow:
    """Columns of one bar for N environments, views of a single gather.

    price, mark, slip: (N, A) currency, currency, uniform in [0, 1) (None without slippage). volume: (N, A) units, 0
    where there is no bar (None where no friction reads it). fillable, judged: (N, A) bool.
    """

    def __init__(self, packed: Tensor, n_assets: int, has_slip: bool, has_volume: bool) -> None:
        columns = packed.split(n_assets, dim=-1)
        self.price, self.mark = columns[0], columns[1]
        self.fillable, self.judged = columns[2] > 0, columns[3] > 0
        self.slip = columns[4] if has_slip else None
        self.volume = columns[-1] if has_volume else None


def bar_table(market: Market, judged: Tensor, fill_at: str, slip: Tensor | None, with_volume: bool = False) -> Tensor:
    """(B, 4A to 6A): fill price, mark, fillable, judged[, slip][, volume] side by side.

    Args:
        judged: (B, A) bool. fill_at: "open" or "close". slip: (B, A), see `Frictions.cost`.
    """
    quote = market.open if fill_at == "open" else market.close
    fillable = market.tradable & quote.isfinite()
    price = torch.where(fillable, quote, market.mark)
    flags = (fillable.to(market.dtype), judged.to(market.dtype))
    further = [] if slip is None else [slip]
    if with_volume:
        further.append(torch.nan_to_num(market.volume))
    return torch.cat([price, market.mark, *flags, *further], dim=1)


def holder_table(market: Market, judged: Tensor, cash: float) -> Tensor:
    """(B, A) units of who puts the same part of `cash` into every asset that can be judged at the bar."""
    count = judged.sum(-1, keepdim=True, dtype=market.dtype).clamp(min=1)
    value = (cash / count).expand_as(market.mark).masked_fill(~judged, 0.0)
    return value / market.mark.masked_fill(~judged, 1.0)
