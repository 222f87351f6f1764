"""When bars close: round the clock for crypto, by an exchange's sessions for stocks, half days among them."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pandas as pd

from environments.data.exchange import US_STOCKS, Sessions, exchange_sessions
from environments.data.sessions import DAY
from environments.errors import InputError
from environments.timeframe import Timeframe

HALF_HOUR = 30 * 60 * 10**9


class Schedule:
    """The bars of a market in order. Stamps are bar open times, UTC nanoseconds (00:00 UTC of the date for daily bars).

    Raises:
        InputError: stock bars that are neither daily nor divide half an hour: sessions open at half past, and the venue
            cuts longer bars at full hours.
    """

    def __init__(self, asset_class: str, timeframe: Timeframe, calendar: str = US_STOCKS) -> None:
        self.length, self.stock, self.calendar = timeframe.nanoseconds, asset_class == "stock", calendar
        if self.stock and self.length != DAY and HALF_HOUR % self.length:
            raise InputError(f"timeframe {timeframe}: live stocks are traded on bars of 1d, 30m or what divides 30m")

    @property
    def intraday(self) -> bool:
        """Are these parts of an exchange's sessions? The venue then has bars before and after them, too."""
        return self.stock and self.length != DAY

    def holds(self, stamp: int) -> bool:
        """Does the bar of `stamp` open in a session? Others, of the hours before and after, are not traded on."""
        if not self.intraday:
            return True
        sessions = self._sessions(stamp)
        place = int(np.searchsorted(sessions.closes, stamp, side="right"))
        return place < sessions.opens.size and int(sessions.opens[place]) <= stamp

    def after(self, stamp: int) -> int:
        """The bar that follows the bar of `stamp`."""
        if not self.stock:
            return stamp + self.length
        sessions = self._sessions(stamp)
        if self.length == DAY:
            return int(sessions.dates[np.searchsorted(sessions.dates, stamp, side="right")])
        following = stamp + self.length
        place = int(np.searchsorted(sessions.closes, following, side="right"))
        return max(following, int(sessions.opens[place]))

    def closes(self, stamp: int) -> int:
        """When the bar of `stamp` has closed; the session's close for daily bars and a session's last."""
        if not self.stock:
            return stamp + self.length
        sessions = self._sessions(stamp)
        if self.length == DAY:
            place = int(np.searchsorted(sessions.dates, stamp))
            if place == sessions.dates.size or sessions.dates[place] != stamp:
                return stamp + DAY
            return int(sessions.closes[place])
        place = int(np.searchsorted(sessions.closes, stamp, side="right"))
        return min(stamp + self.length, int(sessions.closes[place]))

    def silent_since(self, stamp: int) -> int:
        """From when on a bar is awaited after the bar of `stamp`: one bar length before the next one closes. Nobody is
        late while a market is closed."""
        return self.closes(self.after(stamp)) - self.length

    def _sessions(self, stamp: int) -> Sessions:
        year = pd.Timestamp(stamp, unit="ns", tz="UTC").year
        return _sessions(self.calendar, year)


@lru_cache(maxsize=4)
def _sessions(calendar: str, year: int) -> Sessions:
    # The next year's too: what follows a year's last session is in it.
    return exchange_sessions(calendar, year, year + 1)
