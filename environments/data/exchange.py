"""Trading sessions of stock exchanges, from exchange_calendars: which bars lie in one, and when each closes.

The library is imported when a calendar is asked for: who trades crypto never waits for it.
https://github.com/gerrymanoim/exchange_calendars
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pandas as pd

from environments.data.sessions import DAY
from environments.data.tidy import nanoseconds
from environments.errors import InputError
from environments.timeframe import Timeframe

NO_CALENDAR = "none"
US_STOCKS = "XNYS"
# Tried in turn on bars whose exchange nobody named. XBOM is Bombay's; the National Stock Exchange of India, which the
# library does not have, keeps its hours and, but for the evening of Diwali, its days.
CANDIDATES = (US_STOCKS, "XBOM")
# Bars belong to a calendar when this share of the days they trade on are sessions of it that they open with. Of ten
# days or more one may be none: exchanges hold special sessions, and a file may lack an opening.
FITS = 0.98
ENOUGH = 10
FEWEST = 3  # on fewer days, bars of anything may happen to fit
OPENING = 30 * 60 * 10**9  # thinly traded stocks may miss the very first bar of a session


@dataclass(frozen=True, eq=False)
class Sessions:
    """The sessions of one exchange over whole calendar years, in order.

    name: what exchange_calendars calls it. zone: its time zone. years: how many calendar years these are.
    dates: (S,) int64 nanoseconds, 00:00 UTC of the session's date. opens, closes: (S,) int64 UTC nanoseconds.
    """

    name: str
    zone: str
    years: int
    dates: np.ndarray
    opens: np.ndarray
    closes: np.ndarray

    @property
    def per_year(self) -> float:
        """Sessions in a year, on average over these years."""
        return self.dates.size / self.years

    def containing(self, stamps: np.ndarray, length: int) -> np.ndarray:
        """(n,) int64: the session that a bar [stamp, stamp + length) has a part in; -1 where there is none.

        stamps: (n,) int64 bar open times; daily bars belong to the session of their UTC date.
        """
        if length >= DAY:
            dates = stamps // DAY * DAY
            place = np.searchsorted(self.dates, dates)
            found = self.dates[place.clip(max=self.dates.size - 1)] == dates
        else:
            place = np.searchsorted(self.closes, stamps, side="right")
            found = (place < self.dates.size) & (self.opens[place.clip(max=self.dates.size - 1)] < stamps + length)
        return np.where(found, place, -1)

    def begins(self, stamps: np.ndarray, length: int) -> np.ndarray:
        """(S,) int64: when each session's first bar opens: at the session's open, or, for bars that are on another
        grid than it (full hours and an open at half past), at the last grid point before it."""
        return self.opens - (self.opens - int(stamps[0])) % length

    def bar_numbers(self, stamps: np.ndarray, length: int) -> np.ndarray:
        """(n,) int64: bars counted through all sessions, as if each had every bar. All must lie in a session."""
        session = self.containing(stamps, length)
        if length >= DAY:
            return session
        begins = self.begins(stamps, length)
        bars = -((begins - self.closes) // length)
        return (np.cumsum(bars) - bars)[session] + (stamps - begins[session]) // length

    def missing(self, clock: np.ndarray, length: int) -> np.ndarray:
        """Dates (int64, see `dates`) of the sessions between the first and the last of `clock` without a bar."""
        held = np.unique(self.containing(clock, length))
        held = held[held >= 0]
        if not held.size:
            return held
        return self.dates[np.setdiff1d(np.arange(held[0], held[-1] + 1), held)]


@lru_cache(maxsize=64)
def exchange_sessions(name: str, first_year: int, last_year: int) -> Sessions:
    """The sessions of the exchange `name` in these calendar years.

    Raises:
        InputError: exchange_calendars has no calendar of that name, or does not know those years.
    """
    import exchange_calendars

    start, end = pd.Timestamp(first_year, 1, 1), pd.Timestamp(last_year, 12, 31)
    otherwise = f"calendar {NO_CALENDAR} reads sessions off the bars"
    try:
        calendar = exchange_calendars.get_calendar(name, start=start, end=end)
    except exchange_calendars.errors.InvalidCalendarName:
        raise InputError(
            f"calendar {name!r}: a name of exchange_calendars such as XNYS, XLON or XBOM is accepted; {otherwise}"
        ) from None
    except ValueError as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"calendar {name} and bars of {first_year} to {last_year}: {reason}; {otherwise}") from None

    def column(values: pd.Series | pd.DatetimeIndex) -> np.ndarray:
        return pd.to_datetime(np.asarray(values, dtype="datetime64[ns]")).as_unit("ns").asi8

    schedule = calendar.schedule
    return Sessions(
        name=calendar.name,
        zone=str(calendar.tz),
        years=last_year - first_year + 1,
        dates=column(schedule.index),
        opens=column(schedule["open"]),
        closes=column(schedule["close"]),
    )


def sessions_of(name: str, clock: np.ndarray) -> Sessions:
    """The sessions of the calendar years that the ascending times `clock` (n,) int64 lie in. Raises as
    `exchange_sessions` does."""
    first, last = (pd.Timestamp(int(clock[i])).year for i in (0, -1))
    return exchange_sessions(name, first, last)


def fit(sessions: Sessions, clock: np.ndarray, length: int) -> tuple[int, int]:
    """(days, judged): of how many local dates with bars, how many are sessions and, intraday, have bars in their first
    half hour.

    The first and the last date of intraday bars are left out: data may begin and end inside a session.
    clock: (n,) int64, ascending bar open times of all symbols together.
    """
    if length >= DAY:
        return int((sessions.containing(clock, length) >= 0).sum()), clock.size
    local = pd.DatetimeIndex(clock, tz="UTC").tz_convert(sessions.zone).tz_localize(None).as_unit("ns").asi8 // DAY
    dates = np.unique(local)
    dates = dates[1:-1]
    at = np.searchsorted(clock, sessions.opens - length, side="right")
    opening = clock[at.clip(max=clock.size - 1)]
    opened = (opening > sessions.opens - length) & (opening < sessions.opens + OPENING)
    return int(np.isin(dates, sessions.dates[opened] // DAY).sum()), dates.size


def choose_sessions(
    frame: pd.DataFrame, timeframe: Timeframe, asked: str | None, origin: str
) -> tuple[Sessions | None, tuple[str, ...]]:
    """The sessions stock bars trade in, and notes to be shown; None where they are to be read off the bars.

    asked: a calendar's name; "none"; or None for the first of `CANDIDATES` that the bars fit (see `fit`).

    Raises:
        InputError: there is no such calendar, or the bars are clearly not of it: it fits fewer than half of their
            dates, and fewer than half of the bars lie in its sessions.
    """
    if asked == NO_CALENDAR:
        return None, ()
    clock, length = np.unique(nanoseconds(frame)), timeframe.nanoseconds
    if asked is None:
        told = []
        for name in CANDIDATES:
            sessions, days, judged = _candidate(name, clock, length)
            if sessions is not None:
                return sessions, ()
            told.append(f"{name} {days} of {judged} days")
        return None, (f"the bars fit no known calendar ({', '.join(told)}): sessions are read off them",)
    sessions = sessions_of(asked, clock)
    inside = float((sessions.containing(clock, length) >= 0).mean())
    days, judged = fit(sessions, clock, length)
    if inside < 0.5 and 2 * days <= judged:
        fitting = [name for name in CANDIDATES if _candidate(name, clock, length)[0] is not None]
        raise InputError(
            f"{origin}: the bars are not of calendar {asked}: {inside:.0%} of them lie in its sessions, which open at "
            f"{_opening(sessions)}; {''.join(f'{name} fits, ' for name in fitting)}calendar {NO_CALENDAR} reads "
            "sessions off the bars"
        )
    return sessions, ()


def _candidate(name: str, clock: np.ndarray, length: int) -> tuple[Sessions | None, int, int]:
    """The sessions of `name` if the bars fit them, and what `fit` says; no day where it does not know those years."""
    try:
        sessions = sessions_of(name, clock)
    except InputError:
        return None, 0, 0
    days, judged = fit(sessions, clock, length)
    others = judged - days
    fits = judged >= FEWEST and (others <= (1 - FITS) * judged or (others == 1 and judged >= ENOUGH))
    return (sessions if fits else None), days, judged


def keep_sessions(frame: pd.DataFrame, sessions: Sessions, timeframe: Timeframe) -> tuple[pd.DataFrame, list[str]]:
    """`frame` without the intraday bars that no part of a session is in, and what there is to report.

    Daily bars stay, also those of other dates: exchanges hold special sessions that no calendar knows.
    """
    stamps, length = nanoseconds(frame), timeframe.nanoseconds
    inside = sessions.containing(stamps, length) >= 0
    notes = []
    outside = int((~inside).sum())
    if outside and length >= DAY:
        notes.append(
            f"{outside:,} of {len(frame):,} daily bars are of dates without a session of {sessions.name} (kept): "
            f"{_listed(np.unique(stamps[~inside]))}"
        )
    elif outside:
        notes.append(_dropped(stamps, inside, sessions))
        frame = frame[inside].reset_index(drop=True)
    absent = sessions.missing(np.unique(stamps), length)
    if absent.size:
        noun = "session" if absent.size == 1 else "sessions"
        notes.append(f"{absent.size:,} {noun} of {sessions.name} without a bar: {_listed(absent)}")
    return frame, notes


def _dropped(stamps: np.ndarray, inside: np.ndarray, sessions: Sessions) -> str:
    """One line on the intraday bars that are dropped: before or after sessions, after early closes, on other days."""
    out = stamps[~inside]
    local = pd.DatetimeIndex(out, tz="UTC").tz_convert(sessions.zone).tz_localize(None).as_unit("ns").asi8 // DAY * DAY
    place = np.searchsorted(sessions.dates, local).clip(max=sessions.dates.size - 1)
    same_day = sessions.dates[place] == local
    opens, closes = sessions.opens[place], sessions.closes[place]
    usual = int(np.median(sessions.closes - sessions.opens))
    early = same_day & (closes - opens < usual) & (out >= closes) & (out < opens + usual)
    return (
        f"{out.size:,} of {stamps.size:,} bars lie outside the sessions of {sessions.name} and were dropped: "
        f"{int((same_day & ~early).sum()):,} before or after the regular hours, {int(early.sum()):,} after an early "
        f"close, {int((~same_day).sum()):,} on other days"
    )


def _opening(sessions: Sessions) -> str:
    at = pd.Timestamp(int(sessions.opens[-1]), tz="UTC").tz_convert(sessions.zone)
    return f"{at:%H:%M} {sessions.zone}"


def _listed(dates: np.ndarray, most: int = 5) -> str:
    shown = ", ".join(str(pd.Timestamp(int(date)).date()) for date in dates[:most])
    return shown + (f" and {dates.size - most:,} more" if dates.size > most else "")
