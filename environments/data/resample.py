"""From fine bars to coarse ones: no bar crosses a session, and no bar is shown before it is complete."""

from __future__ import annotations

import numpy as np
import pandas as pd

from environments.data.exchange import Sessions
from environments.data.sessions import DAY, session_dates
from environments.data.tidy import nanoseconds, symbol_codes
from environments.errors import InputError
from environments.timeframe import Timeframe

NEVER = np.iinfo(np.int64).max


def resample_bars(
    frame: pd.DataFrame,
    have: Timeframe,
    want: Timeframe,
    asset_class: str,
    origin: str,
    sessions: Sessions | None = None,
) -> pd.DataFrame:
    """Bars of length `want` from bars of length `have`.

    open is the first, high the maximum, low the minimum, close the last, volume the sum, further columns the
    last of the bars inside; the timestamp is the start of the coarse bar.

    Crypto: bars start at whole multiples of `want` since 1970 UTC. Stocks: at the session's open, so a session of 6.5
    hours gives six 1h bars and one of 30 minutes that ends with the session, a half day of 3.5 hours three and one;
    "1d" is one bar per session, labelled 00:00 UTC of its date.

    Each symbol's last bar is dropped unless its data reach the bar's end (the session's close, if earlier), and so is
    a first one whose beginning lies before the data (of that symbol for crypto, of all together for stocks).

    Without `sessions`, stock sessions are read off the bars (see `session_dates`): they open with their first bar, of
    any symbol, and when the last one closes is taken from the median length of the others; with one session alone its
    short last bar is dropped.

    frame: sorted by symbol, then timestamp, and checked by `check_bars`. Nothing is filled: a coarse bar
    without a fine one inside is absent.
    sessions: of the exchange, for stocks; every bar must have a part in one (see `exchange.keep_sessions`).

    Raises:
        InputError: `want` is finer than `have`, not a whole multiple of it, or, for stocks, longer
            than a day.
    """
    if want == have:
        return frame
    asked = f"timeframe {want} asked for, but {origin} holds {have} bars"
    if want.minutes < have.minutes:
        raise InputError(f"{asked}: {have} or a whole multiple of it is accepted")
    if want.minutes % have.minutes:
        raise InputError(f"{asked}: {want} is not a whole multiple of {have}")
    if asset_class != "crypto" and want.nanoseconds > DAY:
        raise InputError(f"{asked}: stock bars are resampled to 1d at most")

    codes, _ = symbol_codes(frame)
    stamps = nanoseconds(frame)
    if asset_class == "crypto":
        begin = stamps // want.nanoseconds * want.nanoseconds
        label, end = begin, begin + want.nanoseconds
    elif sessions is None:
        label, begin, end = _read_off_bins(stamps, have.nanoseconds, want.nanoseconds)
    else:
        label, begin, end = _session_bins(stamps, have.nanoseconds, want.nanoseconds, sessions)

    starts = np.flatnonzero(_changes(codes) | _changes(label))
    stops = np.append(starts[1:], stamps.size)
    keep = np.ones(starts.size, dtype=bool)
    is_first = _changes(codes[starts])
    is_last = np.append(is_first[1:], True)
    reaches_end = stamps[stops - 1] + have.nanoseconds >= end[starts]
    keep &= ~is_last | reaches_end
    data_begin = stamps[starts] if asset_class == "crypto" else stamps.min()
    keep &= ~is_first | (begin[starts] >= data_begin)

    def values(name: str) -> np.ndarray:
        return frame[name].to_numpy(dtype=np.float64)

    out: dict[str, object] = {
        "timestamp": pd.DatetimeIndex(label[starts].astype("datetime64[ns]"), tz="UTC"),
        "symbol": frame["symbol"].array.take(starts),
        "open": values("open")[starts],
        "high": np.maximum.reduceat(values("high"), starts),
        "low": np.minimum.reduceat(values("low"), starts),
        "close": values("close")[stops - 1],
        "volume": np.add.reduceat(values("volume"), starts),
    }
    for name in frame.columns:
        if name not in out:
            out[name] = values(name)[stops - 1]
    return pd.DataFrame(out).loc[keep].reset_index(drop=True)


def _read_off_bins(stamps: np.ndarray, have: int, want: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Per row, (rows,) int64: label, beginning and end of its coarse bar; sessions as the bars show them."""
    clock, row = np.unique(stamps, return_inverse=True)
    dates = session_dates(clock)
    starts = np.flatnonzero(_changes(dates))
    opened = clock[starts]
    closed = clock[np.append(starts[1:], clock.size) - 1] + have
    # Whether the last session is over cannot be seen in it, only told from how long the others lasted.
    usual = int(np.median(closed[:-1] - opened[:-1])) if starts.size > 1 else NEVER - int(opened[-1])
    closed[-1] = max(int(closed[-1]), int(opened[-1]) + usual)
    session = (np.cumsum(_changes(dates)) - 1)[row]
    return _counted_from(opened[session], closed[session], dates[row], stamps, want)


def _session_bins(
    stamps: np.ndarray, have: int, want: int, sessions: Sessions
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The same with the exchange's own opens and closes."""
    session = sessions.containing(stamps, have)
    begins = sessions.begins(stamps, have)
    return _counted_from(begins[session], sessions.closes[session], sessions.dates[session], stamps, want)


def _counted_from(
    opened: np.ndarray, closed: np.ndarray, dates: np.ndarray, stamps: np.ndarray, want: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Label, beginning and end of bars counted from `opened` that end with `closed`; all (rows,) int64."""
    if want == DAY:
        return dates, opened, closed
    begin = opened + (stamps - opened) // want * want
    return begin, begin, np.minimum(begin + want, closed)


def _changes(values: np.ndarray) -> np.ndarray:
    """(n,) bool: True at the first element and wherever the value differs from the one before."""
    return np.append(True, values[1:] != values[:-1])
