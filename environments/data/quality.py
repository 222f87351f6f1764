"""Bad bars are refused, missing bars are counted. Nothing is ever patched."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from environments.data.exchange import Sessions
from environments.data.sessions import session_dates
from environments.data.tidy import PRICES, VALUES, nanoseconds, symbol_codes
from environments.errors import InputError
from environments.timeframe import Timeframe

# Adjusting prices for splits and dividends leaves float noise in the last digits of high and low.
TOLERANCE = 1e-9


@dataclass(frozen=True)
class Gap:
    """`missing_bars` bars of `symbol` are absent after the bar that opened at `after_timestamp` (UTC)."""

    symbol: str
    after_timestamp: pd.Timestamp
    missing_bars: int


def check_bars(frame: pd.DataFrame, origin: str) -> None:
    """Refuse bars that cannot be right.

    The rules, in the order checked: the rows of a symbol ascend in time (rows of different symbols may be
    interleaved) and no timestamp repeats; every number is finite, but further columns may be NaN, which is unknown;
    prices are positive; volume is not negative; high >= max(open, close) and low <= min(open, close), both within a
    relative tolerance of 1e-9, for float noise.

    frame: columns timestamp, symbol, open, high, low, close, volume, and any further numeric ones.
    origin: the file's name, for the message.

    Raises:
        InputError: naming origin, symbol, timestamp, the rule broken, and how many more rows break it.
    """
    if frame.empty:
        raise InputError(f"{origin}: no bars")
    codes, _ = symbol_codes(frame)
    stamps = nanoseconds(frame)
    order = np.argsort(codes, kind="stable")
    same = np.diff(codes[order]) == 0
    step = np.diff(stamps[order])
    for broken, rule in (
        (same & (step < 0), "earlier than the row of that symbol above it; rows must ascend in time"),
        (same & (step == 0), "the timestamp appears twice; one row per symbol and bar is accepted"),
    ):
        if broken.any():
            _refuse(frame, origin, order[1:][broken], lambda row, rule=rule: rule)

    further = [name for name in frame.columns if name not in ("timestamp", "symbol", *VALUES)]
    columns = {name: frame[name].to_numpy(dtype=np.float64) for name in (*VALUES, *further)}

    def refuse_where(broken: np.ndarray, rule: Callable[[int], str]) -> None:
        if broken.any():
            _refuse(frame, origin, np.flatnonzero(broken), rule)

    for name, values in columns.items():
        bad = np.isinf(values) if name in further else ~np.isfinite(values)
        refuse_where(bad, lambda row, n=name, v=values: f"{n} is {v[row]}, a number is needed")
    for name in PRICES:
        values = columns[name]
        refuse_where(values <= 0, lambda row, n=name, v=values: f"{n} is {v[row]}, a positive price is needed")
    volume = columns["volume"]
    refuse_where(volume < 0, lambda row: f"volume is {volume[row]}, zero or more is needed")
    high, low = columns["high"], columns["low"]
    top = np.maximum(columns["open"], columns["close"])
    bottom = np.minimum(columns["open"], columns["close"])
    refuse_where(high < top * (1 - TOLERANCE), lambda row: f"high {high[row]} is below max(open, close) {top[row]}")
    refuse_where(low > bottom * (1 + TOLERANCE), lambda row: f"low {low[row]} is above min(open, close) {bottom[row]}")


def count_gaps(
    frame: pd.DataFrame, timeframe: Timeframe, asset_class: str, sessions: Sessions | None = None
) -> tuple[Gap, ...]:
    """Bars missing between two bars of a symbol, by symbol and time.

    missing = floor((t[i+1] - t[i]) / timeframe) - 1. Crypto trades round the clock, so every such step counts. Stocks
    with `sessions` are counted on a clock that runs in sessions only, so also missing openings, closings and whole
    sessions count; without, only steps inside one session (see `session_dates`), none between sessions or daily bars.

    frame: rows in any order, checked by `check_bars`.
    """
    if sessions is not None:
        return _gaps_on(frame, sessions, timeframe)
    if asset_class != "crypto" and timeframe.minutes >= Timeframe.parse("1d").minutes:
        return ()
    codes, names = symbol_codes(frame)
    stamps = nanoseconds(frame)
    order = np.lexsort((stamps, codes))
    codes, stamps = codes[order], stamps[order]
    missing = np.diff(stamps) // timeframe.nanoseconds - 1
    counted = (np.diff(codes) == 0) & (missing > 0)
    if asset_class != "crypto":
        clock, row = np.unique(stamps, return_inverse=True)
        counted &= np.diff(session_dates(clock)[row]) == 0
    return tuple(
        Gap(str(names[codes[i]]), pd.Timestamp(stamps[i], unit="ns", tz="UTC"), int(missing[i]))
        for i in np.flatnonzero(counted)
    )


def _gaps_on(frame: pd.DataFrame, sessions: Sessions, timeframe: Timeframe) -> tuple[Gap, ...]:
    """Gaps on the exchange's clock. Daily bars of dates without a session are passed over."""
    codes, names = symbol_codes(frame)
    stamps = nanoseconds(frame)
    held = sessions.containing(stamps, timeframe.nanoseconds) >= 0
    codes, stamps = codes[held], stamps[held]
    if not stamps.size:
        return ()
    order = np.lexsort((stamps, codes))
    codes, stamps = codes[order], stamps[order]
    missing = np.diff(sessions.bar_numbers(stamps, timeframe.nanoseconds)) - 1
    return tuple(
        Gap(str(names[codes[i]]), pd.Timestamp(stamps[i], unit="ns", tz="UTC"), int(missing[i]))
        for i in np.flatnonzero((np.diff(codes) == 0) & (missing > 0))
    )


def _refuse(frame: pd.DataFrame, origin: str, rows: np.ndarray, rule: Callable[[int], str]) -> None:
    """Raise InputError for the first of `rows`; `rule(row)` says what is wrong with it."""
    row = int(rows.min())
    stamp = pd.Timestamp(frame["timestamp"].iloc[row]).isoformat()
    more = f" ({rows.size - 1} more rows break this rule)" if rows.size > 1 else ""
    raise InputError(f"{origin}: {frame['symbol'].iloc[row]} at {stamp}: {rule(row)}{more}")
