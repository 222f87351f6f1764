"""Features: what is known of each asset at the close of a bar. Causal, computed once per bar.

Indicators come from TA-Lib (https://ta-lib.org). Each asset's are computed over its own bars, in order,
so a gap or a late listing shifts nothing. The recursive ones (MACD, RSI, DX) forget: after `MEMORY` bars the
weight of what came before is under 1e-30, so a live trader that keeps `MEMORY` bars sees what training saw.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from inspect import unwrap

import numpy as np
import talib
import torch
from torch import Tensor

from environments.errors import InputError
from environments.market import Market

MEMORY = 1_024
# As they are in C: what TA-Lib wraps them in asks of every argument whether it is a pandas Series, for as long again.
_CCI, _DX, _MACD, _RSI = (unwrap(function) for function in (talib.CCI, talib.DX, talib.MACD, talib.RSI))


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
        return _MACD(self.close, 12, 26, 9)

    @cached_property
    def rsi(self) -> np.ndarray:
        return _RSI(self.close, 14)

    @cached_property
    def cci(self) -> np.ndarray:
        return _CCI(self.high, self.low, self.close, 14)

    @cached_property
    def dx(self) -> np.ndarray:
        return _DX(self.high, self.low, self.close, 14)


def _log_return(bars: Bars, span: int) -> np.ndarray:
    value = np.full(bars.close.shape, np.nan)
    value[..., span:] = np.log(bars.close[..., span:] / bars.close[..., :-span])
    return value


def _volume_score(bars: Bars) -> np.ndarray:
    """Deviation of log(1 + volume) from its 20-bar mean, in its 20-bar standard deviations, within +-5."""
    level = np.log1p(bars.volume)
    value = np.full(level.shape, np.nan)
    if level.shape[-1] >= 20:
        # Windows rather than running sums: a running sum keeps the rounding of every bar it ever saw, and
        # a live trader that joined later would see other digits.
        window = np.lib.stride_tricks.sliding_window_view(level, 20, axis=-1)
        off = window - np.add.reduce(window, axis=-1, keepdims=True) / 20
        spread = np.sqrt(np.add.reduce(off * off, axis=-1) / 20)
        value[..., 19:] = np.clip(off[..., -1] / np.maximum(spread, 1e-6), -5, 5)
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
    "rsi": lambda b: b.rsi / 50 - 1,
    "cci": lambda b: b.cci / 100,
    "dx": lambda b: b.dx / 100,
    "volume_score": _volume_score,
}


class _Newest(Bars):
    """The last `SPAN` bars of A assets, (A, SPAN), NaN before an asset's first; indicators are those of the newest bar,
    (A, 1)."""

    SPAN = 21  # bars that the features look back, but for what the indicators remember

    def __init__(self, histories: Sequence[np.ndarray]) -> None:
        recent = np.full((len(histories), 5, self.SPAN), np.nan)
        for tail, own in zip(recent, histories, strict=True):
            last = own[:5, -self.SPAN :]
            tail[:, -last.shape[1] :] = last
        super().__init__(*recent.swapaxes(0, 1))
        # TA-Lib refuses one bar alone, but takes what is unknown before it.
        whole = [own if own.shape[1] > 1 else tail for own, tail in zip(histories, recent, strict=True)]
        self.__dict__.update(recent=recent, whole=whole)

    @cached_property
    def macd(self) -> np.ndarray:
        return np.array([[line[-1] for line in _MACD(own[3], 12, 26, 9)] for own in self.whole]).T[..., None]

    @cached_property
    def rsi(self) -> np.ndarray:
        return np.array([_RSI(own[3], 14)[-1:] for own in self.whole])

    @cached_property
    def cci(self) -> np.ndarray:
        return np.array([_CCI(own[1], own[2], own[3], 14)[-1:] for own in self.recent])

    @cached_property
    def dx(self) -> np.ndarray:
        return np.array([_DX(own[1], own[2], own[3], 14)[-1:] for own in self.whole])


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


def newest_features(histories: Sequence[np.ndarray], extra_names: Sequence[str], names: Sequence[str]) -> np.ndarray:
    """(A, F) the rows of `asset_features` at the newest bar of A assets: the same functions, over as few bars as they
    read; equal as float32.

    Args:
        histories: each asset's own bars, (5 + E, T) with a T >= 1 of its own, oldest first: open, high, low, close,
            volume and the columns `extra_names`.
    """
    values, bars = np.empty((len(histories), len(names))), _Newest(histories)
    with np.errstate(divide="ignore", invalid="ignore"):
        for column, name in zip(values.T, names, strict=True):
            if name in extra_names:
                row = 5 + extra_names.index(name)
                column[:] = [own[row, -1] for own in histories]
            else:
                column[:] = FEATURES[name](bars)[:, -1]
    return values


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
