"""Trading sessions, read off the bars themselves: no exchange calendar is needed."""

from __future__ import annotations

import numpy as np

HOUR = 3_600 * 10**9
DAY = 24 * HOUR
# Lunch breaks last up to an hour and a half; the shortest night, after trading from 04:00 to 20:00, eight.
NIGHT = 4 * HOUR


def session_dates(clock: np.ndarray) -> np.ndarray:
    """The session date of every bar time.

    A pause of four hours or more ends a session. Its date is the UTC date of its midpoint, so that neither
    extended hours that run past midnight UTC nor a session that opens before it are cut in two or dated a day
    off. Stretches of more than a day without a pause (round-the-clock trading on weekdays) are cut at 00:00
    UTC.

    clock: (n,) int64 UTC nanoseconds, ascending; bar open times of all symbols together.
    Returns (n,) int64, 00:00 UTC of the session date in nanoseconds.
    """
    if clock.size == 0:
        return clock
    starts = np.flatnonzero(np.diff(clock, prepend=clock[0] - DAY) >= NIGHT)
    stops = np.append(starts[1:], clock.size)
    first, last = clock[starts], clock[stops - 1]
    middle = first + (last - first) // 2
    block = np.repeat(np.arange(starts.size), stops - starts)
    dated_by = np.where((last - first)[block] >= DAY, clock, middle[block])
    return dated_by // DAY * DAY
