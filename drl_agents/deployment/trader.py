"""PaperTrader: a bundle trading through a broker, one decision per closed bar.

    new bar -> fills -> books -> reconciled -> model -> risk limits -> journal (on disk) -> orders

The model's part is `Decider`, the books are `Ledger`; both are the functions training used. The trader keeps its own
books from the fills it is told of, and stops when they differ from the broker's.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from drl_agents.deployment.activities import apply
from drl_agents.deployment.bookkeeper import Bookkeeper
from drl_agents.deployment.bundle import Bundle
from drl_agents.deployment.decider import Decider
from drl_agents.deployment.journal import NEVER_SENT, Journal
from drl_agents.deployment.ledger import Ledger, Unreconciled
from drl_agents.deployment.outbox import sendable, used_before, write_down
from drl_agents.deployment.quiet import collected_when_told
from drl_agents.deployment.reconcile import look_around
from drl_agents.deployment.resume import CLOSED, KEPT, resume
from drl_agents.deployment.takeover import Hook, take_over
from drl_agents.deployment.trading_record import TradingRecord, iso, state_facts
from environments.errors import InputError
from environments.live.broker import Bar, Broker, BrokerUnavailable, Feed, NoBarYet, Order, OrderResult
from environments.live.risk import HALTED, RiskLimits, RiskMonitor
from environments.live.schedule import Schedule
from environments.live.view import MarketView
from environments.timeframe import Timeframe

__all__ = ["Hook", "PaperResult", "PaperTrader", "Unreconciled", "VenueClock"]

WAIT = 1.0  # seconds between looks at the clock while no bar closes

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PaperResult:
    """timestamps (T + 1,) int64 ns of the bars, equity (T + 1,) at their closes; orders sent, orders with a fill."""

    timestamps: np.ndarray
    equity: np.ndarray
    n_orders: int
    n_fills: int


class VenueClock(Protocol):
    """now: the venue's time, UTC nanoseconds. skew: seconds it is ahead of ours."""

    def now(self) -> int: ...

    def skew(self) -> float: ...


class PaperTrader:
    """One model, one account.

    Args:
        folder: where state.json, equity.csv and orders.jsonl are written; what an earlier run left is replaced, or gone
            on with where a journal is given that has bars.
        feed: where bars come from; None: the broker replays them itself.
        journal: written before every order, so that the trader may be killed at any moment. None: the venue lives in
            this process and dies with it, nothing can be gone on with, and a replay of 25,000 bars need not wait for
            the disk 50,000 times.
        limits: None leaves all of them off.
        hook: see `Hook`.
        clock: the venue's; None: it is the close of the newest bar.
        schedule: when bars close; None: one follows the other without a pause.

    Attributes:
        bundle, symbols, folder, name, view. bar: the newest. state: "ACTIVE", "REDUCING", "HALTED" or "FINISHED".
        stale: no bar for two bar lengths. reconciled: were the books equal when they were last compared, at this bar?
        equity: currency. open_orders: orders at the venue that are not known to have ended. flow_factor: what payments
        in and out have multiplied the equity by, see `activities.apply`.
    """

    def __init__(
        self,
        bundle: Bundle,
        broker: Broker,
        folder: str | Path,
        name: str,
        *,
        feed: Feed | None = None,
        journal: Journal | None = None,
        limits: RiskLimits | None = None,
        hook: Hook | None = None,
        clock: VenueClock | None = None,
        schedule: Schedule | None = None,
    ) -> None:
        self.broker, self.folder, self.name = broker, Path(folder), name
        self.feed: Feed = broker if feed is None else feed  # type: ignore[assignment]
        self.journal, self.hook, self.clock = journal, hook, clock
        self.decider = Decider(bundle)
        self.timeframe = Timeframe.parse(bundle.manifest["market"]["timeframe"]).nanoseconds
        self.risk = RiskMonitor(limits or RiskLimits.off(), self.timeframe)
        self._schedule = schedule
        self.record = TradingRecord(folder, name)
        self.books = Bookkeeper(broker, Ledger(self.symbols, self.decider.margin, 0.0), self.record, journal)
        self.initial = self.peak = math.nan
        self.flow_factor = 1.0
        self.worst = 0.0
        self.held_back: deque[list[Order]] = deque()
        self.n_orders = self.bars_done = 0
        self._before: dict[str, float] = {}
        self.flatten, self._ended, self.skipped = False, "", 0
        self._received = 0.0

    # ------------------------------------------------------------------------------------- what it shows

    @property
    def bundle(self) -> Bundle:
        return self.decider.bundle

    @property
    def symbols(self) -> list[str]:
        return self.decider.symbols

    @property
    def scheme(self) -> Any:
        return self.decider.scheme

    @property
    def view(self) -> MarketView:
        return self.decider.view

    @property
    def state(self) -> str:
        return self._ended or self.risk.state

    @property
    def ledger(self) -> Ledger:
        return self.books.ledger

    @property
    def equity(self) -> float:
        return self.ledger.equity(self.view.mark)

    @property
    def reconciled(self) -> bool:
        return self.books.reconciled

    @property
    def open_orders(self) -> int:
        return len(self.books.in_flight)

    @property
    def stale(self) -> bool:
        return self._now() - self._silent_since() > 2 * self.timeframe

    def _silent_since(self) -> int:
        """From when on the next bar is awaited, UTC nanoseconds."""
        newest = self.view.timestamp
        return newest + self.timeframe if self._schedule is None else self._schedule.silent_since(newest)

    def _now(self) -> int:
        return self._silent_since() if self.clock is None else self.clock.now()

    def _assess(self, value: float) -> None:
        skew = 0.0 if self.clock is None else self.clock.skew()
        self.risk.assess(self._now(), value, self._silent_since(), skew, self.ledger.adopted)

    # ------------------------------------------------------------------------------------------ the loop

    def run(self, stop: Callable[[], bool] = lambda: False) -> PaperResult:
        """Trade until the feed has no more bars, `stop()`, or a forced close, which leaves the state HALTED.

        Raises:
            Unreconciled: the books differ; the state is then HALTED.
            BrokerUnavailable: the venue does not answer at the start; later it is waited for.
        """
        history = self.feed.history()
        if not history:
            raise InputError(f"no closed bars of {', '.join(self.symbols)}: a trader needs history to begin with")
        begun = None if self.journal is None else self.journal.last_bar()
        curve = [] if begun is None else self.journal.curve()
        sent = () if begun is None else self.journal.sent_orders()
        with self.record.open(curve[1:], sent), collected_when_told() as collect:
            try:
                curve += self._begin(history[-1], history) if begun is None else resume(self, begun, history)
                while not stop():
                    try:
                        bar = self.feed.next_bar(WAIT)
                    except NoBarYet:
                        collect()
                        self._wait()
                        continue
                    if bar is None:
                        break
                    self.start_watch()
                    self.see(bar)
                    row = self.trade(bar)
                    curve += row
                    if self._ended:
                        break
                    collect()
                    if self.journal is not None:
                        self.journal.tidy()
                    if self.record.due():
                        self.record.flush()
                        self.write_state()
            except (Unreconciled, BrokerUnavailable, InputError):
                if not math.isnan(self.initial):  # else nothing is known of the account yet
                    self._ended = HALTED
                    self.write_state()
                raise
            if not self._ended and self.risk.state != HALTED:
                self._ended = "FINISHED"
            self.write_state()
        stamps, values = zip(*((timestamp, value) for timestamp, value, *_ in curve), strict=True)
        return PaperResult(np.array(stamps), np.array(values), self.n_orders, self.books.n_fills)

    def see(self, bar: Bar) -> None:
        """Take in a bar that has closed."""
        self._before, self.bar = self.decider.marks(), bar
        self.view.append(bar)

    def adjust_marks(self, splits: Mapping[str, float]) -> None:
        """Have the closes before the newest bar in shares of after `splits`: new units per old one, by symbol."""
        self._before = {symbol: mark / splits.get(symbol, 1.0) for symbol, mark in self._before.items()}

    def see_history(self, bars: Sequence[Bar]) -> None:
        """Take in the bars before the first that is traded on, and that one."""
        self.bar = bars[-1]
        self.decider.see(bars)

    def trade(self, bar: Bar) -> list[tuple[int, float, float]]:
        """Everything between one bar's close and the orders after it. Returns the bar's row of the curve, none where
        the venue did not answer: then nothing is sent, and the bar is booked with the next one."""
        try:
            told, closed = self.books.settle(
                bar.timestamp, self.view.mark, self.decider.fill_price(bar), 1 + self.skipped
            )
        except BrokerUnavailable as problem:
            self.skip(bar, str(problem))
            return []
        self.skipped = 0
        if self.books.booked is not None:
            apply(self.books.booked, self)
        value = self.equity
        self._mark(value)
        self.record.bar(bar.timestamp, value, self.ledger.cash)
        if closed:
            self._ended = HALTED
            with self._on_disk():
                self._keep(bar, told, value)
                if self.journal is not None:
                    self.journal.remember(CLOSED, iso(bar.timestamp))
        else:
            self.decide(bar, told)
        return [(bar.timestamp, value, self.ledger.cash)]

    def decide(self, bar: Bar, told: Sequence[OrderResult] = (), begins: bool = False) -> None:
        """Assess, let the hook act, decide, and send. begins: it is the first time with this account."""
        value = self.equity
        self._assess(value)
        if self.hook is not None:
            try:
                self.hook.at_boundary(self, bar)
            except BrokerUnavailable as problem:
                logger.warning("the model stays as it is: %s", problem)
        decided = self.decider.closing_orders(self.ledger.positions) if self.flatten else None
        flattening = decided is not None
        if decided is None:
            decided = self.decider.orders(self.ledger.account)
        self.held_back.append(decided)
        # What closes a position for another model has waited long enough.
        due = self.held_back.popleft() if flattening or len(self.held_back) >= self.decider.lag else []
        due = sendable(due, self.decider, self.broker, self.ledger)
        allowed, blocked = self.risk.screen(
            due, self._now(), value, self.ledger.positions, self.decider.marks(), self._before
        )
        if begins and self.journal is not None and (used := used_before(self.broker, allowed)):
            blocked += used
            allowed = [order for order in allowed if order not in [refused.order for refused in used]]
        self.n_orders += len(allowed)
        with self._on_disk():
            self._keep(bar, told, value)
            if self.journal is not None:
                write_down(self.journal, bar.timestamp, decided, due, blocked, self.held_back, self.decider.lag)
                if flattening:
                    self.journal.remember("flatten", False)
        self.flatten = False
        self.send(bar, allowed)
        for refused in blocked:
            logger.warning("order %s not sent: %s", refused.order.client_order_id, refused.reason)
        if self.hook is not None:
            self.hook.after_orders(self, bar)

    def send(self, bar: Bar, orders: Sequence[Order], again: bool = False) -> None:
        """Hand in orders that are in the journal. again: they were meant to be sent before we were interrupted."""
        if not orders:
            return
        if not again:
            self.record.latency(time.perf_counter() - self._received - self.books.waited)
        self.books.send(orders, None if again else bar.timestamp)

    def start_watch(self) -> None:
        """A bar was received: the time until its orders are sent counts, but for the broker's own answers."""
        self._received, self.books.waited = time.perf_counter(), 0.0

    # ------------------------------------------------------------------------------------------ the books

    def _mark(self, value: float) -> None:
        self.bars_done += 1
        self.peak = max(self.peak, value)
        self.worst = max(self.worst, 1 - value / self.peak)

    def skip(self, bar: Bar, problem: str) -> None:
        """A bar that nothing can be decided on: it is booked with the next one."""
        self.books.reconciled = False
        self.skipped += 1
        self.held_back.append([])
        if len(self.held_back) >= self.decider.lag:
            for order in self.held_back.popleft():
                if self.journal is not None:
                    self.journal.mark(order.client_order_id, NEVER_SENT, problem, ended=True)
        logger.warning("bar %s: %s", iso(bar.timestamp), problem)
        if self.journal is not None:
            self.journal.event("skipped", problem, bar.timestamp)
        self.write_state()

    # -------------------------------------------------------------------------------- starting, going on

    def _begin(self, bar: Bar, history: Sequence[Bar]) -> list[tuple[int, float, float]]:
        """A new account: what it holds of the model's symbols is taken over."""
        self.see_history(history)
        cash, positions = self.broker.cash(), self.broker.positions()
        if foreign := sorted(set(positions) - set(self.symbols)):
            raise InputError(
                f"the account holds {', '.join(foreign)}, which the model does not trade: close them, or use another "
                "account"
            )
        self.books.ledger = Ledger(self.symbols, self.decider.margin, cash)
        self.ledger.take_over(positions, self.view.mark)
        self.books.compare(cash, positions, self.view.mark)
        if not self.equity > 0:
            raise InputError(f"the account is worth {self.equity:g}: there is nothing to trade with")
        self.initial = self.peak = self.equity
        self.start_watch()
        if self.journal is not None:
            self.journal.remember("bundle", self.bundle.id)
            look_around(self.broker, self.journal, bar.timestamp)
        self.decide(bar, begins=True)
        return [(bar.timestamp, self.initial, cash)]

    # ------------------------------------------------------------------------------- changing the model

    def replace_model(self, bundle: Bundle, positions: str = "inherit") -> None:
        """Trade with another model from this boundary on; for a `Hook`. See `takeover.take_over`."""
        take_over(self, bundle, positions)

    def drop_held_back(self, why: str) -> None:
        for order in (order for orders in self.held_back for order in orders):
            if self.journal is not None:
                self.journal.mark(order.client_order_id, NEVER_SENT, why, ended=True)
        self.held_back.clear()

    # ------------------------------------------------------------------------------------------ on disk

    def _on_disk(self) -> Any:
        return contextlib.nullcontext() if self.journal is None else self.journal.transaction()

    def _keep(self, bar: Bar, told: Sequence[OrderResult], value: float) -> None:
        if self.journal is None:
            return
        for result in told:
            self.journal.result(result, bar.timestamp)
        books = {"ledger": self.ledger.to_dict(), "risk": self.risk.memory(), "n_fills": self.books.n_fills}
        books |= {name: getattr(self, name) for name in KEPT}
        books |= {"memory": self.decider.memory(), "memory_of": self.bundle.id}
        self.journal.bar(bar.timestamp, value, self.ledger.cash, books, decided=True)
        self.books.keep_booked(bar.timestamp)

    def _wait(self) -> None:
        """No bar has closed: look at the clock, show that we live."""
        self._assess(self.equity)
        self.write_state()

    def write_state(self) -> None:
        """Write state.json."""
        self.record.state(state_facts(self))
