"""Features: what is known of each asset at the close of a bar. Causal, computed once per bar.

Indicators come from TA-Lib (https://ta-lib.org). Each asset's are computed over its own bars, in order,
so a gap or a late listing shifts nothing. The recursive ones (MACD, RSI, DX) forget: after `MEMORY` bars the
weight of what came before is under 1e-30, so a live trader that keeps `MEMORY` bars sees what training saw.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import talib
import torch
from torch import Tensor

from environments.errors import InputError
from environments.market import Market

MEMORY = 1_024


@dataclass(frozen=True)
class Bars:
    """One asset's own bars, oldest first: (T,) float64 each, no NaN."""

    open: np.ndarray
    high: np.ndarray
    low: np.ndarray
    close: np.ndarray
    volume: np.ndarray

    @cached_property
    def macd(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """MACD, its signal and their difference."""
        return talib.MACD(self.close, 12, 26, 9)


def _log_return(bars: Bars, span: int) -> np.ndarray:
    value = np.full(bars.close.size, np.nan)
    value[span:] = np.log(bars.close[span:] / bars.close[:-span])
    return value


def _volume_score(bars: Bars) -> np.ndarray:
    """Deviation of log(1 + volume) from its 20-bar mean, in its 20-bar standard deviations, within +-5."""
    level = np.log1p(bars.volume)
    value = np.full(level.size, np.nan)
    if level.size >= 20:
        # Windows rather than running sums: a running sum keeps the rounding of every bar it ever saw, and
        # a live trader that joined later would see other digits.
        window = level[None] if level.size == 20 else np.lib.stride_tricks.sliding_window_view(level, 20)
        spread = window.std(axis=1)
        value[19:] = np.clip((level[19:] - window.mean(axis=1)) / np.maximum(spread, 1e-6), -5, 5)
    return value


# Scaled to be free of the price's level: the same policy may meet 0.07 and 70,000.
FEATURES: dict[str, Callable[[Bars], np.ndarray]] = {
    "return_1": lambda b: _log_return(b, 1),
    "return_5": lambda b: _log_return(b, 5),
    "return_20": lambda b: _log_return(b, 20),
    "range": lambda b: np.log(b.high / b.low),
    "macd": lambda b: b.macd[0] / b.close,
    "macd_signal": lambda b: b.macd[1] / b.close,
    "macd_hist": lambda b: b.macd[2] / b.close,
    "rsi": lambda b: talib.RSI(b.close, 14) / 50 - 1,
    "cci": lambda b: talib.CCI(b.high, b.low, b.close, 14) / 100,
    "dx": lambda b: talib.DX(b.high, b.low, b.close, 14) / 100,
    "volume_score": _volume_score,
}

# Of those that look back a few bars: how many they read. The newest value needs no more than these.
SPANS = {"return_1": 2, "return_5": 6, "return_20": 21, "range": 1, "cci": 14, "volume_score": 20}
_LONGEST_SPAN = max(SPANS.values())


@dataclass(frozen=True, eq=False)
class FeatureTable:
    """Features of every bar.

    values: (B, A, F) float32, NaN where an asset has no bar or is warming up.
    ready: (B, A) bool, all of the asset's features are there: only then may it be traded on.
    names: the F feature names, in order.
    """

    values: Tensor
    ready: Tensor
    names: tuple[str, ...]

    @property
    def rows(self) -> Tensor:
        """(B, A * F), one row per bar."""
        return self.values.flatten(1)


def feature_names(market_extra: tuple[str, ...] = (), names: tuple[str, ...] | None = None) -> tuple[str, ...]:
    """The features to compute: `names`, or all built-ins and the market's extra columns."""
    known = (*FEATURES, *market_extra)
    chosen = known if names is None else tuple(names)
    unknown = sorted(set(chosen) - set(known))
    if unknown or not chosen:
        raise InputError(f"features {', '.join(unknown) or '(none)'}: accepted are {', '.join(known)}")
    return chosen


def compute_features(market: Market, names: tuple[str, ...] | None = None) -> FeatureTable:
    """All features of a market, once: asked again, the same table is given.

    Perturbing a bar changes no feature of an earlier bar.
    """
    chosen = feature_names(market.extra_names, names)
    return market.once(("features", chosen), lambda: _compute(market, chosen))


def _compute(market: Market, names: tuple[str, ...]) -> FeatureTable:
    columns = [c.cpu().double().numpy() for c in (market.open, market.high, market.low, market.close, market.volume)]
    extra = market.extra.cpu().double().numpy()
    present = np.isfinite(columns[3])
    values = np.full((market.n_bars, market.n_assets, len(names)), np.nan, dtype=np.float32)
    for asset in range(market.n_assets):
        own = present[:, asset]
        bars = Bars(*(np.ascontiguousarray(column[own, asset]) for column in columns))
        own_extra = {n: extra[own, asset, i] for i, n in enumerate(market.extra_names)}
        values[own, asset] = asset_features(bars, own_extra, names)
    ready = np.isfinite(values).all(axis=-1)
    values[~ready] = np.nan
    return FeatureTable(torch.as_tensor(values).to(market.device), torch.as_tensor(ready).to(market.device), names)


def asset_features(bars: Bars, extra: dict[str, np.ndarray], names: tuple[str, ...]) -> np.ndarray:
    """(T, F) features of one asset's own bars; NaN while warming up."""
    if bars.close.size < 2:  # TA-Lib refuses inputs shorter than two bars
        return np.full((bars.close.size, len(names)), np.nan)
    # A market at rest (high = low for long) divides by zero in some indicators: NaN, so not ready.
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.stack([extra[n] if n in extra else FEATURES[n](bars) for n in names], axis=-1)


def newest_features(bars: Bars, extra: dict[str, np.ndarray], names: tuple[str, ...]) -> np.ndarray:
    """(F,) the last row of `asset_features`: the same functions, over as few bars as they read."""
    if bars.close.size < 2:
        return np.full(len(names), np.nan)
    columns = (bars.open, bars.high, bars.low, bars.close, bars.volume)
    tail = Bars(*(column[-_LONGEST_SPAN:] for column in columns))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.array([extra[n][-1] if n in extra else FEATURES[n](tail if n in SPANS else bars)[-1] for n in names])


def ready_from(table: FeatureTable) -> int:
    """The first bar at which any asset can be traded.

    Raises:
        InputError: no asset ever has all features (fewer bars than the longest indicator needs).
    """
    ready = table.ready.any(dim=1)
    if not bool(ready.any()):
        raise InputError(
            f"no asset has enough bars for its features ({table.values.shape[0]} bars): at least about 40 are needed"
        )
    return int(ready.int().argmax())
