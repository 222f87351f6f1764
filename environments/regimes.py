"""Twelve portfolios defined by factors, so that the same twelve choices serve 3 symbols or 300.

    0  HOLD           leave everything as it is
    1  FULL_CASH      100% cash
    2  DEFENSIVE      50% cash, 50% equal weight
    3  LIGHT_CASH     25% cash, 75% equal weight
    4  EQUAL_WEIGHT   100% equal weight
    5  MOMENTUM       tilted to the top half by momentum
    6  LOW_VOL        tilted to the half of the lowest volatility
    7  QUALITY        tilted to the top half by Sharpe ratio
    8  SIZE_SMALL     tilted to the smaller half
    9  SAFE_MOMENTUM  30% cash, 70% MOMENTUM
    10 SAFE_QUALITY   30% cash, 70% QUALITY
    11 RISK_ON        the top 30% by momentum alone, equally weighted, no cash

*Tilted* to a half: each asset of that half has twice the weight of each of the rest. A half of r assets is
ceil(r / 2) of them, 30% is ceil(0.3 r). Ties go to the symbol that comes first.

The weights depend on the market alone and are causal: those of bar t use closes up to t. Only assets that can
be judged at the bar have weight. One that can be judged but whose factor is not known yet (fewer than 21 bars of
its own, no market capitalisation) is never in the favoured part, and does not count in r; where no factor is
known (r = 0) the tilted portfolios and RISK_ON are equal weight. Where nothing can be judged all is cash.

Few symbols follow from that. One: every portfolio holds it alone, with its cash share. Two: tilts are 2/3 and
1/3, RISK_ON holds the one of the higher momentum. Three: tilts are 2/5, 2/5 and 1/5, RISK_ON holds one.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from environments.features import Bars

REGIMES = (
    "HOLD", "FULL_CASH", "DEFENSIVE", "LIGHT_CASH", "EQUAL_WEIGHT", "MOMENTUM", "LOW_VOL", "QUALITY",
    "SIZE_SMALL", "SAFE_MOMENTUM", "SAFE_QUALITY", "RISK_ON",
)  # fmt: skip
HOLD = REGIMES.index("HOLD")
WINDOW = 20  # bars of momentum, volatility and Sharpe ratio
N_FACTORS = 4
SIZE_COLUMN = "marketcap"
# Under this a volatility is the rounding of prices that grow evenly, and a ratio over it says nothing.
_LEAST_VOLATILITY = 1e-12


def asset_factors(bars: Bars, extra: Mapping[str, np.ndarray]) -> np.ndarray:
    """(T, 4) float64 factors of one asset's own bars, each the higher the better; NaN where not known yet.

        momentum    C_t / C_{t-20} - 1
        stability   -s_t, where s_t is the standard deviation of the last 20 simple one-bar returns
        quality     m_t / s_t, m_t their mean: a Sharpe ratio per bar, without a risk-free rate
        smallness   -(market capitalisation) from the extra column "marketcap", else -C_t

    The price stands in for the size where no capitalisation is known: no other measure of it is in the bars.

    Args:
        bars: one asset's bars, oldest first, T >= 1.
        extra: its further columns, (T,) each.
    """
    close = bars.close
    factors = np.full((close.size, N_FACTORS), np.nan)
    size = extra.get(SIZE_COLUMN, close)
    factors[:, 3] = np.where(size > 0, -size, np.nan)
    if close.size <= WINDOW:
        return factors
    change = close[1:] / close[:-1] - 1
    # Summed in the order of the window, term by term: the last row is the same, bit for bit, whether it
    # is computed among a million bars or from the last 21. Ranks hang on every bit.
    last = change.size - WINDOW + 1
    windows = [change[lag : lag + last] for lag in range(WINDOW)]
    mean = sum(windows) / WINDOW
    spread = np.sqrt(sum((own - mean) ** 2 for own in windows) / WINDOW)
    factors[WINDOW:, 0] = close[WINDOW:] / close[:-WINDOW] - 1
    factors[WINDOW:, 1] = -spread
    factors[WINDOW:, 2] = mean / np.maximum(spread, _LEAST_VOLATILITY)
    return factors


def target_weights(factors: Tensor, judged: Tensor) -> Tensor:
    """(B, 12, A) weights of the twelve portfolios at B bars; what a row leaves of 1 is cash. HOLD's row is 0.

    Args:
        factors: (B, A, 4) of `asset_factors`, NaN where unknown.
        judged: (B, A) bool.
    """
    momentum, stability, quality, smallness = factors.unbind(-1)
    equal = _shares(judged.to(factors.dtype))
    nothing = torch.zeros_like(equal)
    by_momentum, by_quality = (_tilted(judged, _best(score, judged, 5)) for score in (momentum, quality))
    favourites = _best(momentum, judged, 3)
    risk_on = torch.where(favourites.any(-1, keepdim=True), _shares(favourites.to(factors.dtype)), equal)
    weights = {
        "HOLD": nothing,
        "FULL_CASH": nothing,
        "DEFENSIVE": 0.5 * equal,
        "LIGHT_CASH": 0.75 * equal,
        "EQUAL_WEIGHT": equal,
        "MOMENTUM": by_momentum,
        "LOW_VOL": _tilted(judged, _best(stability, judged, 5)),
        "QUALITY": by_quality,
        "SIZE_SMALL": _tilted(judged, _best(smallness, judged, 5)),
        "SAFE_MOMENTUM": 0.7 * by_momentum,
        "SAFE_QUALITY": 0.7 * by_quality,
        "RISK_ON": risk_on,
    }
    return torch.stack([weights[name] for name in REGIMES], dim=1)


def _best(score: Tensor, judged: Tensor, tenths: int) -> Tensor:
    """(B, A) bool: the ceil(tenths / 10 * r) assets of the highest score among the r judged ones that have one."""
    known = judged & score.isfinite()
    # Ascending and stable, so that ties keep the order of the symbols.
    order = torch.argsort((-score).masked_fill(~known, torch.inf), dim=-1, stable=True)
    rank = torch.argsort(order, dim=-1)
    count = (tenths * known.sum(-1, keepdim=True) + 9) // 10
    return known & (rank < count)


def _tilted(judged: Tensor, favoured: Tensor) -> Tensor:
    return _shares(judged.to(torch.float64) + favoured.to(torch.float64))


def _shares(units: Tensor) -> Tensor:
    """Units as shares of their sum; 0 where there are none."""
    return units / units.sum(-1, keepdim=True).clamp(min=1)
