"""When the stock market is open: the answers of /v2/clock and /v2/calendar.

Read off the bars: intraday sessions last from their first bar to the end of their last, half days among them; daily
bars are sessions from 09:30 to 16:00 in New York. Beyond the bars, and where the bars are of crypto (for which Alpaca's
clock stays that of US stocks), every weekday is a session; holidays are not known there.
"""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np

from environments.data.sessions import DAY, session_dates
from environments.live.alpaca_local.wire import SECOND
from environments.market import Market

NEW_YORK = ZoneInfo("America/New_York")
OPEN, CLOSE = time(9, 30), time(16, 0)
BEYOND = 10  # days of calendar after the last bar


class SessionClock:
    """The sessions around a market's bars. opens, closes: (S,) int64 UTC nanoseconds, ascending."""

    def __init__(self, market: Market) -> None:
        stamps, length = market.timestamps.cpu().numpy(), market.timeframe.nanoseconds
        last = datetime.fromtimestamp(int(stamps[-1]) // SECOND, UTC).date()
        later = [last + timedelta(days=n) for n in range(1, BEYOND + 1)]
        if market.asset_class == "crypto":
            first = datetime.fromtimestamp(int(stamps[0]) // SECOND, UTC).date()
            days = [first + timedelta(days=n) for n in range((last - first).days + 1)] + later
            spans = [_regular(day) for day in days if day.weekday() < 5]
        else:
            if length >= DAY:
                dates = np.unique(stamps // DAY)
                spans = [_regular(date.fromordinal(date(1970, 1, 1).toordinal() + int(day))) for day in dates]
            else:
                _, starts = np.unique(session_dates(stamps), return_index=True)
                ends = np.append(starts[1:], stamps.size) - 1
                spans = [(int(stamps[a]), int(stamps[b]) + length) for a, b in zip(starts, ends, strict=True)]
            spans += [_regular(day) for day in later if day.weekday() < 5]
        self.opens, self.closes = (np.array(column, dtype=np.int64) for column in zip(*spans, strict=True))

    def is_open(self, now: int) -> bool:
        """Is `now`, UTC nanoseconds, inside a session?"""
        return bool(np.searchsorted(self.opens, now, side="right") > np.searchsorted(self.closes, now, side="right"))

    def clock(self, now: int) -> dict[str, Any]:
        """The answer of /v2/clock; times with New York's offset."""
        return {
            "timestamp": _local(now).isoformat(),
            "is_open": self.is_open(now),
            "next_open": _local(_after(self.opens, now)).isoformat(),
            "next_close": _local(_after(self.closes, now)).isoformat(),
        }

    def calendar(self, start: str | None, end: str | None) -> list[dict[str, str]]:
        """The answer of /v2/calendar: sessions of the dates from start to end, both included, ISO."""
        days = []
        for opened, closed in zip(self.opens.tolist(), self.closes.tolist(), strict=True):
            day = _local(opened).date().isoformat()
            if (start is None or day >= start[:10]) and (end is None or day <= end[:10]):
                days.append(
                    {
                        "date": day,
                        "open": f"{_local(opened):%H:%M}",
                        "close": f"{_local(closed):%H:%M}",
                        "session_open": "0400",
                        "session_close": "2000",
                    }
                )
        return days


def _regular(day: date) -> tuple[int, int]:
    opened, closed = (datetime.combine(day, hour, NEW_YORK) for hour in (OPEN, CLOSE))
    return int(opened.timestamp()) * SECOND, int(closed.timestamp()) * SECOND


def _local(nanoseconds: int) -> datetime:
    return datetime.fromtimestamp(nanoseconds / SECOND, NEW_YORK)


def _after(moments: np.ndarray, now: int) -> int:
    place = int(np.searchsorted(moments, now, side="right"))
    return int(moments[min(place, moments.size - 1)])
