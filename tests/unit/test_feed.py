"""Bars late, twice, out of order or not at all: what a feed makes of them. Clocks and wires are simulated."""

from __future__ import annotations

import queue
import time

import numpy as np
import pandas as pd
import pytest
from msgpack import Timestamp

from environments.alpaca_env import VectorizedCryptoEnvAlpaca
from environments.data.credentials import Secret
from environments.errors import InputError
from environments.live.alpaca_history import BarHistory, as_bar, parsed
from environments.live.alpaca_local.server import LocalAlpaca
from environments.live.alpaca_session import Unreadable
from environments.live.broker import BrokerUnavailable, NoBarYet
from environments.live.feed import FIRST_POLL, GRACE, SECOND, Assembler, LiveFeed, ReplayFeed, streamed
from environments.live.schedule import Schedule
from environments.timeframe import Timeframe

MINUTE = 60 * SECOND
T0 = pd.Timestamp("2024-03-01", tz="UTC").value
WIRE = ["A/USD", "B/USD"]


def values(price: float) -> tuple[float, ...]:
    return (price, price + 1, price - 1, price, 5.0)


class World:
    """A clock, what REST has by bar and symbol, and what the websocket will say when."""

    def __init__(self, n: int = 10) -> None:
        self.now = T0 + MINUTE
        self.bars = {T0 + i * MINUTE: {"A/USD": values(100 + i), "B/USD": values(200 + i)} for i in range(n)}
        self.messages: list[tuple[int, str, int, tuple]] = []
        self.down, self.asked = False, 0

    wire = WIRE
    timeframe = Timeframe(1)

    def _bars(self, first: int):
        rows = []
        for stamp, own in self.bars.items():
            if first <= stamp and stamp + MINUTE <= self.now and own:
                rows.append(as_bar(stamp, np.array([own.get(s, (np.nan,) * 5) for s in WIRE])))
        return rows

    def last(self, count: int):
        return self._bars(0)[-count:]

    def since(self, timestamp: int):
        self.asked += 1
        if self.down:
            raise BrokerUnavailable("down")
        return self._bars(timestamp + 1)

    def sleep(self, seconds: float) -> None:
        self.now += int(seconds * SECOND)

    def stream(self, seconds: float):
        due = [message for message in self.messages if message[0] <= self.now]
        if not due:
            self.sleep(seconds)
            raise queue.Empty
        self.messages.remove(due[0])
        return due[0][1:]

    def say(self, after: float, symbol: str, bar: int, price: float | None = None) -> None:
        """The websocket tells of a bar `after` seconds after its close."""
        stamp = T0 + bar * MINUTE
        price = self.bars[stamp][symbol][0] if price is None else price
        self.messages.append((stamp + MINUTE + int(after * SECOND), symbol, stamp, values(price)))

    def feed(self, stream: bool = False) -> LiveFeed:
        schedule = Schedule("crypto", self.timeframe)
        made = LiveFeed(self, schedule, 100, lambda: self.now, self.stream if stream else None, self.sleep)
        made.history()
        return made


def closes(bar) -> list[float]:
    return bar.close.tolist()


def test_history_leaves_out_the_open_bar():
    world = World()
    world.now = T0 + 2 * MINUTE + 30 * SECOND
    feed = LiveFeed(world, Schedule("crypto", Timeframe(1)), 100, lambda: world.now, None, world.sleep)
    assert [bar.timestamp for bar in feed.history()] == [T0, T0 + MINUTE]


def test_bars_come_over_rest_soon_after_they_close():
    world = World()
    feed = world.feed()
    for i in range(1, 5):
        bar = feed.next_bar()
        assert (bar.timestamp, closes(bar)) == (T0 + i * MINUTE, [100 + i, 200 + i])
        assert FIRST_POLL <= (world.now - bar.timestamp - MINUTE) / SECOND < FIRST_POLL + 0.5


def test_no_bar_within_the_time_given():
    world = World()
    feed = world.feed()
    with pytest.raises(NoBarYet):
        feed.next_bar(timeout=30.0)
    assert world.asked == 0, "nothing is asked for before a bar has closed"
    assert feed.next_bar(timeout=35.0).timestamp == T0 + MINUTE


def test_the_websocket_is_faster_and_rest_fills_what_it_left_out():
    world = World()
    world.say(0.1, "A/USD", 1), world.say(0.2, "B/USD", 1)
    world.say(0.1, "A/USD", 2)
    feed = world.feed(stream=True)
    assert closes(feed.next_bar()) == [101, 201] and world.asked == 0
    assert (world.now - T0) / SECOND == pytest.approx(120.2, abs=0.3)
    assert closes(feed.next_bar()) == [102, 202] and world.asked == 1


def test_twice_late_and_out_of_order():
    world = World()
    world.say(0.1, "B/USD", 1), world.say(0.2, "A/USD", 1, 99.0), world.say(0.2, "B/USD", 1)
    world.say(0.3, "A/USD", 1)
    world.say(-60.0, "B/USD", 2), world.say(0.2, "A/USD", 2)  # of a clock that is a minute ahead
    world.say(0.1, "A/USD", 1, 55.0)
    world.messages.append((T0 + 3 * MINUTE + SECOND // 10, "A/USD", T0 + MINUTE, values(66.0)))  # long gone
    world.messages.append((T0 + 3 * MINUTE + SECOND // 10, "A/USD", T0, values(66.0)))
    feed = world.feed(stream=True)
    first, second = feed.next_bar(), feed.next_bar()
    assert closes(first) in ([99.0, 201.0], [101.0, 201.0]) and closes(second) == [102.0, 202.0]
    late, repeated = feed.dropped
    assert late + repeated >= 3
    third = feed.next_bar()
    assert (third.timestamp, closes(third)) == (T0 + 3 * MINUTE, [103, 203])


def test_a_symbol_without_a_bar_is_missing_after_the_grace():
    world = World()
    del world.bars[T0 + MINUTE]["B/USD"]
    feed = world.feed()
    bar = feed.next_bar()
    assert closes(bar)[0] == 101 and np.isnan(closes(bar)[1])
    assert GRACE <= (world.now - T0 - 2 * MINUTE) / SECOND < GRACE + 0.5


def test_a_bar_that_nobody_has_is_passed_over():
    world = World()
    world.bars[T0 + MINUTE] = {}
    bar = world.feed().next_bar()
    assert (bar.timestamp, closes(bar)) == (T0 + 2 * MINUTE, [102, 202])


def test_a_gap_is_filled_bar_by_bar():
    world = World()
    feed = world.feed()
    world.now = T0 + 6 * MINUTE  # asleep for five minutes
    stamps = [feed.next_bar().timestamp for _ in range(5)]
    assert stamps == [T0 + i * MINUTE for i in range(1, 6)]
    assert world.now < T0 + 6 * MINUTE + 5 * SECOND


def test_bars_are_not_missing_because_nobody_answered():
    world = World()
    feed, world.down = world.feed(), True
    with pytest.raises(NoBarYet):
        feed.next_bar(timeout=60 + 3 * GRACE)
    world.down = False
    assert closes(feed.next_bar()) == [101, 201]


@pytest.mark.parametrize("wrong", [3_600, -3_600])
@pytest.mark.parametrize("when", [30, 61, 90])
def test_a_clock_that_is_wrong_for_once_costs_no_bar(wrong, when):
    """An hour ahead for five seconds, `when` seconds on: the bars of that hour are still to come."""
    world = World()
    since, until = (T0 + MINUTE + (when + more) * SECOND for more in (0, 5))

    def now() -> int:
        return world.now + wrong * SECOND * (since <= world.now < until)

    feed = LiveFeed(world, Schedule("crypto", world.timeframe), 100, now, None, world.sleep)
    feed.history()
    for i in range(1, 5):
        bar = feed.next_bar()
        assert (bar.timestamp, closes(bar)) == (T0 + i * MINUTE, [100 + i, 200 + i])
        assert (world.now - bar.timestamp - MINUTE) / SECOND < FIRST_POLL + 5.5


def test_the_assembler_by_hand():
    bars = Assembler(WIRE, 10)
    bars.offer("A/USD", 30, values(3))
    bars.offer("A/USD", 20, values(2))
    bars.offer("X/USD", 20, values(9))
    assert not bars.complete(20)
    bars.offer("B/USD", 20, values(22))
    bars.offer("B/USD", 20, values(23))
    assert bars.complete(20) and closes(bars.give(20)) == [2, 23]
    bars.offer("B/USD", 20, values(1)), bars.offer("B/USD", 10, values(1))
    assert (bars.late, bars.repeated) == (1, 1)
    assert np.isnan(bars.give(30).close[1]) and bars.give(40) is None and bars.last == 40


def stamp(text: str) -> int:
    return pd.Timestamp(text, tz="America/New_York").value


def test_stocks_close_with_their_sessions():
    """2024-11-28 is Thanksgiving, the 29th a half day, the 30th a Saturday."""
    half_hours = Schedule("stock", Timeframe(30))
    last = stamp("2024-11-27 15:30")
    assert half_hours.closes(last) == stamp("2024-11-27 16:00")
    opening = half_hours.after(last)
    assert opening == stamp("2024-11-29 09:30") and half_hours.after(opening) == stamp("2024-11-29 10:00")
    assert half_hours.after(stamp("2024-11-29 12:30")) == stamp("2024-12-02 09:30")
    days = Schedule("stock", Timeframe(1_440))
    wednesday, friday, monday = (
        pd.Timestamp(day, tz="UTC").value for day in ("2024-11-27", "2024-11-29", "2024-12-02")
    )
    assert (days.after(wednesday), days.after(friday)) == (friday, monday)
    assert days.closes(wednesday) == stamp("2024-11-27 16:00") and days.closes(friday) == stamp("2024-11-29 13:00")
    assert days.after(pd.Timestamp("2024-12-31", tz="UTC").value) == pd.Timestamp("2025-01-02", tz="UTC").value
    with pytest.raises(InputError, match="1d, 30m or what divides"):
        Schedule("stock", Timeframe(60))


def test_nobody_is_late_while_the_market_is_closed():
    crypto = Schedule("crypto", Timeframe(60))
    assert crypto.silent_since(T0) == T0 + 60 * MINUTE  # when it closed
    half_hours = Schedule("stock", Timeframe(30))
    assert half_hours.silent_since(stamp("2024-11-27 10:00")) == stamp("2024-11-27 10:30")
    assert half_hours.silent_since(stamp("2024-11-27 15:30")) == stamp("2024-11-29 09:30")
    friday = pd.Timestamp("2024-11-29", tz="UTC").value
    assert Schedule("stock", Timeframe(1_440)).silent_since(friday) == stamp("2024-12-01 16:00")


def test_this_year_has_a_schedule():
    now = pd.Timestamp.now("UTC").normalize().value
    assert Schedule("stock", Timeframe(1_440)).after(now) > now


def test_messages_of_the_websocket():
    good = {"T": "b", "S": "A/USD", "o": 1, "h": 2.5, "l": 0.5, "c": 2, "v": 7, "t": Timestamp(T0 // SECOND, 5)}
    assert streamed(good) == ("A/USD", T0 + 5, (1.0, 2.5, 0.5, 2.0, 7.0))
    for bad in ({**good, "c": "x"}, {**good, "c": float("nan")}, {**good, "t": None}, {"T": "b"}, None):
        assert streamed(bad) is None
    with pytest.raises(Unreadable):
        parsed([{"t": "2024-01-01T00:00:00Z", "o": 1, "h": 1, "l": 1, "c": 1}])


class Extended:
    """Half hours from 04:00 to 20:00 of a Tuesday and a Wednesday, as the venue has them."""

    wire = ("A",)

    def __init__(self) -> None:
        days = (
            pd.date_range(f"2024-11-{day} 04:00", periods=32, freq="30min", tz="America/New_York") for day in (26, 27)
        )
        self.stamps = [moment.value for day in days for moment in day]

    def last(self, count: int):
        return [as_bar(own, np.ones((1, 5))) for own in self.stamps[-count:]]


def test_bars_before_and_after_the_session_are_no_history():
    """Training drops them; the session has thirteen half hours, and the venue told of thirty-two a day."""
    feed = LiveFeed(Extended(), Schedule("stock", Timeframe(30)), 20, lambda: stamp("2024-11-27 21:00"))
    stamps = [bar.timestamp for bar in feed.history()]
    assert len(stamps) == 20
    assert (stamps[0], stamps[6], stamps[7], stamps[-1]) == tuple(
        stamp(f"2024-11-{text}") for text in ("26 12:30", "26 15:30", "27 09:30", "27 15:30")
    )


@pytest.fixture(scope="module")
def replayed(make_market, random_bars):
    env = VectorizedCryptoEnvAlpaca(make_market({"BTCUSDT": random_bars(1, 80, price=100.0)}), 1)
    with LocalAlpaca(env, 50, 80) as venue:
        yield venue


def test_a_replay_that_somebody_else_moves_on(replayed):
    keys = (Secret("local"), Secret("local"))
    feed = ReplayFeed(BarHistory(["BTCUSDT"], "crypto", Timeframe(60), keys, replayed.url), replayed.url, 20)
    newest = feed.history()[-1].timestamp
    assert feed.next_bar().timestamp == newest + 60 * MINUTE
    replayed.advance()
    with pytest.raises(InputError, match="moves by itself, or another trader"):
        feed.next_bar()


def test_a_slow_replay_can_be_interrupted(replayed):
    """Between its bars the trader is asked whether to go on."""
    keys = (Secret("local"), Secret("local"))
    feed = ReplayFeed(BarHistory(["BTCUSDT"], "crypto", Timeframe(60), keys, replayed.url), replayed.url, 20, 0.3)
    feed.history()
    with pytest.raises(NoBarYet):
        feed.next_bar(0.05)
    begun = time.monotonic()
    feed.next_bar(), feed.next_bar()
    assert time.monotonic() - begun > 0.4


def test_history_of_many_pages(replayed, monkeypatch):
    """A page may hold fewer bars than were asked for."""
    keys = (Secret("local"), Secret("local"))
    history = BarHistory(["BTCUSDT"], "crypto", Timeframe(60), keys, replayed.url)
    whole, ask = history.last(30), history._ask
    monkeypatch.setattr(history, "_ask", lambda query: ask({**query, "limit": min(query.get("limit", 99), 7)}))
    assert [bar.timestamp for bar in history.last(30)] == [bar.timestamp for bar in whole] and len(whole) == 30
