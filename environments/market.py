"""Market: aligned bars of several assets as tensors on one device.

Everything here is exogenous: no agent, environment, fold or trial changes it, so one object is shared
by all of them. What can be computed from it alone is computed once and kept (`Market.once`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from environments.data.exchange import sessions_of
from environments.data.sessions import session_dates
from environments.data.source import BarSet
from environments.errors import InputError
from environments.timeframe import Timeframe

HOURS = 3_600 * 10**9
# A pause longer than this ends a segment: round-the-clock markets stop for maintenance only, while stock
# exchanges close over weekends and holidays (the longest in our bars, September 2001, was seven days). A bar
# longer than that is no pause.
MAX_PAUSE = {"crypto": 24 * HOURS, "stock": 10 * 24 * HOURS}

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Market:
    """Bars of A assets on one clock of B bars.

    open, high, low, close, volume: (B, A) float64 (float32 on devices without it); NaN where an asset
        has no bar: not listed yet, halted or missing. Nothing is filled.
    mark: (B, A) the last known close, for valuing a position through a halt; 0 before the first bar.
    tradable: (B, A) bool, an order can fill in this bar: the bar exists and something was traded in it.
    timestamps: (B,) int64 UTC nanoseconds, bar open times (the session date for daily bars).
    segment: (B,) int64, rising by one after every pause longer than `MAX_PAUSE`.
    extra: (B, A, E) float64, further columns of the source (named in `extra_names`).
    bars_per_year: bars of one year, for annualising.
    """

    symbols: tuple[str, ...]
    timeframe: Timeframe
    asset_class: str
    timestamps: Tensor
    open: Tensor
    high: Tensor
    low: Tensor
    close: Tensor
    volume: Tensor
    mark: Tensor
    tradable: Tensor
    segment: Tensor
    extra: Tensor
    extra_names: tuple[str, ...]
    bars_per_year: float
    source: str
    synthetic: bool
    fingerprint: str
    description: str
    planted: dict[str, Any] | None = None
    _computed: dict[Hashable, Any] = field(default_factory=dict, repr=False)

    @property
    def n_bars(self) -> int:
        return self.timestamps.shape[0]

    @property
    def n_assets(self) -> int:
        return len(self.symbols)

    @property
    def device(self) -> torch.device:
        return self.open.device

    @property
    def dtype(self) -> torch.dtype:
        return self.open.dtype

    def segments(self) -> list[tuple[int, int]]:
        """Half-open bar ranges (start, stop) that no pause interrupts, in time order."""
        labels = self.segment.cpu().numpy()
        edges = [0, *(np.flatnonzero(np.diff(labels)) + 1).tolist(), self.n_bars]
        return list(zip(edges[:-1], edges[1:], strict=True))

    def once(self, key: Hashable, compute: Callable[[], Any]) -> Any:
        """`compute()`, remembered under `key` for the life of this market."""
        if key not in self._computed:
            self._computed[key] = compute()
        return self._computed[key]

    @classmethod
    def from_bars(cls, bars: BarSet, device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> Market:
        """Align a `BarSet` on the union of its timestamps.

        dtype: of prices, and of every account that trades on them; None: float64, float32 where the device has none.

        Raises:
            InputError: fewer than two bars.
        """
        device = torch.device(device)
        for note in bars.notes:
            logger.warning("%s", note)
        if dtype not in (None, torch.float32, torch.float64):
            raise InputError(f"dtype={dtype}: accepted are torch.float32, torch.float64")
        dtype = dtype or (torch.float32 if device.type == "mps" else torch.float64)
        frame = bars.frame
        stamps = pd.DatetimeIndex(frame["timestamp"]).as_unit("ns").asi8
        clock, rows = np.unique(stamps, return_inverse=True)
        if clock.size < 2:
            raise InputError(f"{bars.description}: {clock.size} bars, at least 2 are needed")
        columns = frame["symbol"].map({s: i for i, s in enumerate(bars.symbols)}).to_numpy()

        def grid(name: str) -> np.ndarray:
            values = np.full((clock.size, len(bars.symbols)), np.nan)
            values[rows, columns] = frame[name].to_numpy(dtype=np.float64)
            return values

        prices = {name: grid(name) for name in ("open", "high", "low", "close", "volume")}
        names = bars.extra
        extra = np.stack([grid(name) for name in names], axis=-1) if names else np.zeros((*prices["open"].shape, 0))
        longest = max(MAX_PAUSE[bars.asset_class], bars.timeframe.nanoseconds)
        pause = np.diff(clock, prepend=clock[0]) > longest

        def tensor(values: np.ndarray) -> Tensor:
            return torch.as_tensor(values, dtype=dtype).to(device)

        return cls(
            symbols=bars.symbols,
            timeframe=bars.timeframe,
            asset_class=bars.asset_class,
            timestamps=torch.as_tensor(clock).to(device),
            **{name: tensor(values) for name, values in prices.items()},
            mark=tensor(last_known(prices["close"])),
            tradable=torch.as_tensor(prices["volume"] > 0).to(device),
            segment=torch.as_tensor(np.cumsum(pause)).to(device),
            extra=tensor(extra),
            extra_names=names,
            bars_per_year=bars_per_year(clock, bars.timeframe, bars.asset_class, bars.calendar),
            source=bars.source,
            synthetic=bars.synthetic,
            fingerprint=bars.fingerprint,
            description=bars.description,
            planted=bars.planted,
        )


def last_known(close: np.ndarray) -> np.ndarray:
    """(B, A) closes with NaN -> the last finite value above it, 0 where there is none. Causal."""
    known = np.isfinite(close)
    index = np.where(known, np.arange(close.shape[0])[:, None], 0)
    np.maximum.accumulate(index, axis=0, out=index)
    filled = np.take_along_axis(close, index, axis=0)
    return np.where(np.isfinite(filled), filled, 0.0)


def bars_per_year(clock: np.ndarray, timeframe: Timeframe, asset_class: str, calendar: str | None = None) -> float:
    """Bars in a year of this market's own trading hours.

    Round the clock: 365.25 days of bars. Stocks: the sessions of a year times the median number of bars a session has
    in the data. The sessions of a year are the calendar's own, on average over the calendar years the bars lie in;
    without a calendar 252, and sessions are told by their nights (see `session_dates`).

    clock: (B,) int64 UTC nanoseconds, ascending. calendar: see `BarSet.calendar`.
    """
    if asset_class == "crypto":
        return 365.25 * 24 * 60 / timeframe.minutes
    if calendar is None:
        sessions_per_year, session = 252.0, session_dates(clock)
    else:
        sessions = sessions_of(calendar, clock)
        sessions_per_year, session = sessions.per_year, sessions.containing(clock, timeframe.nanoseconds)
        session = session[session >= 0]
    _, bars_per_session = np.unique(session, return_counts=True)
    return sessions_per_year * float(np.median(bars_per_session))
