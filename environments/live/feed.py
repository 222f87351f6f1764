"""Feeds: where closed bars come from, one after the other, whatever the wire does.

`ReplayFeed` moves a local venue on bar by bar, in lock step with the trader. `LiveFeed` waits for bars to close: by the
websocket where it sends bars of the model's size, and over REST where it is late, mute, cut, or left something out.
"""

from __future__ import annotations

import logging
import queue
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd
import requests

from environments.errors import InputError
from environments.live.alpaca_history import PAGE_LIMIT, BarHistory, Values, as_bar, parsed
from environments.live.alpaca_session import READ_TIMEOUT, Unreadable
from environments.live.broker import Bar, BrokerUnavailable, NoBarYet
from environments.live.schedule import Schedule

GRACE = 20.0  # seconds after a close until a symbol without a bar is taken to have none
POLL = 2.0  # seconds between looks over REST for what has not come
NOT_FOUND = 404
FIRST_POLL = 1.0  # seconds after a close: bars are made from the last trade on
EXTENDED = 3  # times as many bars are asked for where the venue's day, 04:00 to 20:00, is longer than the session
SECOND = 10**9

logger = logging.getLogger(__name__)


class ReplayFeed:
    """The bars of a local venue, which moves on when the trader asks for the next one.

    Args:
        history: of the venue's market. url: the venue's. count: bars of history. pause: seconds between bars, 0 for as
        fast as it goes.
    """

    def __init__(self, history: BarHistory, url: str, count: int, pause: float = 0.0) -> None:
        self._history, self._url, self._count, self._pause = history, url, count, pause
        self._at: int | None = None  # the venue's bar, as far as we know
        self._since = time.monotonic()
        self._session = requests.Session()
        self._session.trust_env = False

    def history(self) -> list[Bar]:
        """Bars up to the one the venue is at.

        Raises:
            BrokerUnavailable: the venue is gone, or its data stays behind its clock.
            InputError: it is none that can be moved on.
        """
        for attempt in range(6):
            clock = self._local("GET", "clock")
            now = pd.Timestamp(clock["now"]).value
            bars = self._history.last(self._count)
            if bars and bars[-1].timestamp + self._history.timeframe.nanoseconds == now:
                self._at = clock["bar"] if self._at is None else self._at
                return bars
            time.sleep(0.02 * 2**attempt)
        raise BrokerUnavailable("the venue's data stay behind its clock")

    def next_bar(self, timeout: float | None = None) -> Bar | None:
        """As `Feed.next_bar`.

        Raises:
            InputError: somebody else moves the venue on, so that bars were missed.
        """
        left = self._since + self._pause - time.monotonic()
        if timeout is not None and left > timeout:
            time.sleep(timeout)
            raise NoBarYet
        time.sleep(max(left, 0.0))
        self._since = time.monotonic()
        bar = self._local("POST", "advance")["bar"]
        if bar is None:
            return None
        if self._at is not None and bar["index"] != self._at + 1:
            raise InputError(
                f"the venue is at bar {bar['index']}, this trader at {self._at}: it moves by itself, or another trader "
                "moves it; run scripts/local_alpaca.py without --speed, for one trader"
            )
        self._at = bar["index"]
        values = np.full((len(self._history.wire), 5), np.nan)
        for i, symbol in enumerate(self._history.wire):
            if symbol in bar["bars"]:
                own = bar["bars"][symbol]
                values[i] = [own[name] for name in "ohlcv"]
        return as_bar(pd.Timestamp(bar["t"]).value, values)

    def _local(self, method: str, path: str) -> dict[str, Any]:
        try:
            answer = self._session.request(method, f"{self._url}/local/v1/{path}", timeout=READ_TIMEOUT)
            if answer.status_code == NOT_FOUND:
                raise InputError(
                    f"{self._url} is no venue of scripts/local_alpaca.py, which moves on when it is told to"
                )
            answer.raise_for_status()
            return answer.json()
        except requests.exceptions.RequestException as error:
            raise BrokerUnavailable(f"the local venue {self._url}: {type(error).__name__}") from None


class Assembler:
    """Single bars of A symbols, in whatever order they come, as bars of all symbols in order.

    A bar that was given out already, or is older than one that was, is dropped and counted; told again before that, the
    newest telling counts. A bar of all is complete when every symbol has one.

    late, repeated: how many bars were dropped for being older than, or as old as, the newest given out.
    """

    def __init__(self, wire: list[str], last: int) -> None:
        self._index = {symbol: i for i, symbol in enumerate(wire)}
        self.last = last
        self.late = self.repeated = 0
        self._waiting: dict[int, np.ndarray] = {}

    def offer(self, symbol: str, stamp: int, values: Values) -> None:
        """Take in one symbol's bar; symbols nobody asked for are ignored."""
        if symbol not in self._index:
            return
        if stamp <= self.last:
            self.late += stamp < self.last
            self.repeated += stamp == self.last
            return
        if stamp not in self._waiting:
            self._waiting[stamp] = np.full((len(self._index), 5), np.nan)
        self._waiting[stamp][self._index[symbol]] = values

    def complete(self, stamp: int) -> bool:
        """Does every symbol have its bar of `stamp`?"""
        return stamp in self._waiting and bool(np.isfinite(self._waiting[stamp]).all())

    def oldest(self) -> int | None:
        """The oldest bar that waits to be given out."""
        return min(self._waiting, default=None)

    def give(self, stamp: int) -> Bar | None:
        """The bar of `stamp`, with what there is of it; None where there is nothing. Older ones are forgotten."""
        values = self._waiting.get(stamp)
        self._waiting = {own: row for own, row in self._waiting.items() if own > stamp}
        self.last = max(self.last, stamp)
        return None if values is None else as_bar(stamp, values)


class LiveFeed:
    """Bars as they close.

    The bar that is waited for is the schedule's next one. It is given out as soon as all symbols have theirs; `GRACE`
    seconds after its close with those that have. A gap (we were away, or the venue was) is filled over REST, bar by
    bar in order; a bar that nobody has is passed over when a later one has come.

    Args:
        schedule: which bars there are, and when each has closed.
        stream: gives (symbol, stamp, values) of bars that came by websocket, or raises `queue.Empty`; None: none.
        now: the venue's time, UTC nanoseconds. sleep: for tests.
    """

    def __init__(
        self,
        history: BarHistory,
        schedule: Schedule,
        count: int,
        now: Callable[[], int],
        stream: Callable[[float], tuple[str, int, Values]] | None = None,
        sleep: Callable[[float], None] = time.sleep,
        grace: float = GRACE,
    ) -> None:
        self._history, self._schedule, self._count, self._now = history, schedule, count, now
        self._stream, self._sleep, self._grace = stream, sleep, grace
        self._assembler: Assembler | None = None
        self._polled = self._asked_until = 0

    def history(self) -> list[Bar]:
        """Bars that have closed; one that is still open is left out."""
        now, schedule = self._now(), self._schedule
        asked = min(PAGE_LIMIT, EXTENDED * self._count) if schedule.intraday else self._count
        bars = [bar for bar in self._history.last(asked) if schedule.holds(bar.timestamp)]
        bars = [bar for bar in bars if schedule.closes(bar.timestamp) <= now][-self._count :]
        if bars:
            last = bars[-1].timestamp
            if self._assembler is None:
                self._assembler = Assembler(self._history.wire, last)
        return bars

    @property
    def dropped(self) -> tuple[int, int]:
        """How many bars came late, and how many again."""
        return (0, 0) if self._assembler is None else (self._assembler.late, self._assembler.repeated)

    def next_bar(self, timeout: float | None = None) -> Bar | None:
        if self._assembler is None:
            raise RuntimeError("a feed begins with its history")
        waited = 0.0
        while True:
            bar = self._due()
            if bar is not None:
                return bar
            if timeout is not None and waited >= timeout:
                raise NoBarYet
            step = 0.25 if timeout is None else min(timeout - waited, 0.25)
            self._listen(step)
            waited += step

    def _due(self) -> Bar | None:
        assembler = self._assembler
        wanted = self._schedule.after(assembler.last)
        now, closes = self._now(), self._schedule.closes(wanted)
        if now < closes:
            return None
        age = (now - closes) / SECOND
        # The venue's clock may be wrong for once, and right at the next look: then it has gone back.
        if not assembler.complete(wanted) and age >= FIRST_POLL and abs(now - self._polled) >= POLL * SECOND:
            self._polled = now
            self._catch_up(now)
        # What REST was never asked for is not missing yet; nor is a bar that none came after.
        asked = closes <= self._asked_until <= now
        missing = age >= self._grace and asked and assembler.oldest() is not None
        if assembler.complete(wanted) or missing:
            bar = assembler.give(wanted)
            if bar is None:
                logger.warning("no symbol has a bar of %s", pd.Timestamp(wanted, unit="ns", tz="UTC"))
            return bar
        return None

    def _catch_up(self, now: int) -> None:
        """Offer what REST has since the last bar given out."""
        try:
            bars = self._history.since(self._assembler.last)
        except BrokerUnavailable as problem:
            logger.warning("%s", problem)
            return
        self._asked_until = now
        for bar in bars:
            if self._schedule.closes(bar.timestamp) > now:
                continue
            for i, symbol in enumerate(self._history.wire):
                if np.isfinite(bar.close[i]):
                    values = tuple(float(c[i]) for c in (bar.open, bar.high, bar.low, bar.close, bar.volume))
                    self._assembler.offer(symbol, bar.timestamp, values)

    def _listen(self, seconds: float) -> None:
        if self._stream is None:
            self._sleep(seconds)
            return
        try:
            symbol, stamp, values = self._stream(seconds)
        except queue.Empty:
            return
        # A bar that closes later than now is of a clock that is wrong: it waits, as it may be right in the end.
        self._assembler.offer(symbol, stamp, values)


def streamed(message: Mapping[str, Any]) -> tuple[str, int, Values] | None:
    """A bar of the data websocket as (symbol, stamp, values); None where it is no bar that can be read."""
    try:
        moment = message["t"]
        stamp = (
            moment.seconds * SECOND + moment.nanoseconds if hasattr(moment, "seconds") else pd.Timestamp(moment).value
        )
        if not stamp > 0:  # no time at all reads as one long ago
            return None
        own = {**message, "t": pd.Timestamp(stamp, unit="ns", tz="UTC").isoformat()}
        return str(message["S"]), stamp, parsed([own])[0][1]
    except (Unreadable, KeyError, TypeError, ValueError, AttributeError):
        return None
