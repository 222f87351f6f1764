"""One bar's columns for N environments, out of a table made once: a step gathers once and copies nothing."""

from __future__ import annotations

import torch
from torch import Tensor

from environments.market import Market


class BarRow:
    """Columns of one bar for N environments, views of a single gather.

    price, mark, slip: (N, A) currency, currency, uniform in [0, 1) (None without slippage). fillable, judged:
    (N, A) bool.
    """

    def __init__(self, packed: Tensor, n_assets: int) -> None:
        columns = packed.split(n_assets, dim=-1)
        self.price, self.mark = columns[0], columns[1]
        self.fillable, self.judged = columns[2] > 0, columns[3] > 0
        self.slip = columns[4] if len(columns) > 4 else None


def bar_table(market: Market, judged: Tensor, fill_at: str, slip: Tensor | None) -> Tensor:
    """(B, 4A or 5A): fill price, mark, fillable, judged[, slip] side by side.

    Args:
        judged: (B, A) bool. fill_at: "open" or "close". slip: (B, A), see `Frictions.cost`.
    """
    quote = market.open if fill_at == "open" else market.close
    fillable = market.tradable & quote.isfinite()
    price = torch.where(fillable, quote, market.mark)
    flags = (fillable.to(market.dtype), judged.to(market.dtype))
    return torch.cat([price, market.mark, *flags, *([] if slip is None else [slip])], dim=1)
