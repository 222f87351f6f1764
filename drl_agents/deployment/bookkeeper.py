"""Bookkeeper: orders that were sent, what became of them, and the books that follow, held against the broker's."""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor

from drl_agents.deployment.activities import Booked, book
from drl_agents.deployment.journal import ACCEPTED, AMBIGUOUS, HELD, NEVER_SENT, REJECTED, Journal
from drl_agents.deployment.ledger import Books, Ledger, Unreconciled
from drl_agents.deployment.reconcile import SEEN, WINDOW, late_arrivals
from drl_agents.deployment.trading_record import TradingRecord
from drl_agents.training.record import now
from environments.live.broker import (
    Accepted,
    Ambiguous,
    Broker,
    BrokerUnavailable,
    Order,
    OrderResult,
    Outcome,
    Rejected,
)

SECOND_LOOK = 0.2  # seconds: a venue may tell of an order before its books have it
SETTLE_TRIES = 5  # readings of orders that were cancelled, until they have ended
LATE_BARS = 100  # bars for which an order that was taken for never sent may still turn up

logger = logging.getLogger(__name__)


@dataclass
class InFlight:
    """An order that was sent, and how much of it is booked."""

    order: Order
    filled: float = 0.0
    value: float = 0.0
    fees: float = 0.0


class Bookkeeper:
    """Keeps a ledger from what a broker tells.

    ledger: the books. in_flight: orders not known to have ended, by id. n_fills: orders with a fill. reconciled: were
    the books equal when they were last compared? reconciled_at: when they last were, ISO time. waited: seconds spent
    waiting for the broker's answers. booked: what was no trade and is booked since the last bar, None where nothing is.
    """

    def __init__(self, broker: Broker, ledger: Ledger, record: TradingRecord, journal: Journal | None) -> None:
        self.broker, self.ledger, self.record, self.journal = broker, ledger, record, journal
        self.in_flight: dict[str, InFlight] = {}
        self.n_fills = 0
        self.reconciled, self.reconciled_at = False, None
        self.waited = 0.0
        self.booked: Booked | None = None

    # ------------------------------------------------------------------------------------------ sending

    def send(self, orders: Sequence[Order], shown_at: int | None = None) -> None:
        """Hand orders to the broker, and write down what it says of each. shown_at: the bar they are shown under among
        those sent, None where they are shown already."""
        for order in orders:
            self.in_flight[order.client_order_id] = InFlight(order)
        outcomes = self.broker.submit(orders)
        for order in orders if shown_at is not None else ():
            self.record.order(shown_at, order)
        with contextlib.nullcontext() if self.journal is None else self.journal.transaction():
            for order, outcome in zip(orders, outcomes, strict=True):
                self._heard(order.client_order_id, outcome)

    def _heard(self, name: str, outcome: Outcome) -> None:
        if isinstance(outcome, Accepted):
            state, detail, ended = ACCEPTED, outcome.broker_id, False
        elif isinstance(outcome, Ambiguous):
            state, detail, ended = AMBIGUOUS, outcome.reason, False
        elif isinstance(outcome, Rejected):
            state, detail, ended = REJECTED, f"{outcome.code} {outcome.message}", True
        else:
            state, detail, ended = NEVER_SENT, outcome.reason, True
        if ended:
            self.in_flight.pop(name, None)
            self.record.status(name, state)
            logger.warning("order %s %s: %s", name, state, detail)
        if self.journal is not None:
            self.journal.mark(name, state, detail, ended)

    # ------------------------------------------------------------------------------------------ settling

    def settle(self, timestamp: int, mark: Tensor, price: np.ndarray, bars: int = 1) -> tuple[list[OrderResult], bool]:
        """Book what the broker did since the last bar, and hold the books against its.

        Args:
            timestamp: of the bar. mark: (1, A) closes. price: (A,) the bar's own price at the fills. bars: how many
            went by.

        Returns:
            What the broker told, and whether the account had too little left: then its positions are closed.

        Raises:
            Unreconciled: the books differ. BrokerUnavailable: it does not answer; nothing was booked.
        """
        asked = time.perf_counter()
        told = self._results()
        cash, positions = self.broker.cash(), self.broker.positions()
        self.waited += time.perf_counter() - asked
        price = price if self.broker.costs_in_price else None
        before = self._snapshot()
        closed = self.ledger.settle(self._gained(told), mark, price, bars)
        if closed and not positions and any(self.ledger.positions.values()):
            self.ledger.force_closed(cash)
        try:
            self.compare(cash, positions, mark)
        except Unreconciled:
            if self.journal is None:
                raise
            try:
                told += self._second_look(timestamp, mark, price)
            except BrokerUnavailable:
                self._put_back(before)
                raise
            if self.booked is not None and self.booked.splits:  # judged in shares of before
                closed = self.ledger.short_of_margin(mark) or any(result.forced for result in told)
        return told, closed

    def explain(self, timestamp: int, mark: Tensor, problem: Unreconciled) -> None:
        """The books differ: book what moved the account but for trades, if that is why.

        timestamp: of the bar. Raises `problem`, or what is left of it, where that is not why.
        """
        seen, last = set(self.journal.fact(SEEN) or ()), self.journal.last_bar()
        since = (timestamp if last is None else last.timestamp) - WINDOW
        new = [activity for activity in self.broker.activities(since) if activity.id not in seen]
        if not new:
            raise problem
        self.booked = book(new, self.ledger, self.broker.cash(), self.broker.positions(), self.broker.slack, mark)
        self.reconciled, self.reconciled_at = True, now()
        for activity in self.booked.taken:
            logger.warning("booked what was no trade: %s", activity)

    def keep_booked(self, timestamp: int) -> None:
        """Write down what `explain` booked, in the transaction that the books of the bar are written in."""
        if self.booked is None:
            return
        new = [activity.id for activity in self.booked.told]
        self.journal.remember(SEEN, [*(self.journal.fact(SEEN) or ()), *new])
        for activity in self.booked.taken:
            self.journal.event("activity", json.dumps(vars(activity)), timestamp)
        self.booked = None

    def compare(self, cash: float, positions: dict[str, float], mark: Tensor) -> None:
        """Hold the books against the broker's. Raises Unreconciled."""
        self.reconciled = False
        self.ledger.reconcile(cash, positions, self.broker.slack, mark)
        self.reconciled, self.reconciled_at = True, now()

    def compare_between_bars(self, timestamp: int, found: Sequence[OrderResult], mark: Tensor) -> None:
        """The same while the bar after `timestamp` is open: `found` may have been filled already, money may have been
        paid in; both are booked when the bar closes, but with them the books must be equal."""
        before = self._snapshot()
        self.ledger.settle(self._gained(found), mark, None, 0)
        try:
            self.compare(self.broker.cash(), self.broker.positions(), mark)
        except Unreconciled as problem:
            self.explain(timestamp, mark, problem)
        finally:
            self._put_back(before)

    def _snapshot(self) -> tuple[dict[str, InFlight], Books, int]:
        kept = {name: InFlight(**vars(known)) for name, known in self.in_flight.items()}
        return kept, self.ledger.snapshot(), self.n_fills

    def _put_back(self, before: tuple[dict[str, InFlight], Books, int]) -> None:
        """Undo what was booked since; orders that were found meanwhile stay in flight."""
        kept, books, self.n_fills = before
        self.in_flight, self.booked = {**self.in_flight, **kept}, None
        self.ledger.put_back(books)

    def _second_look(self, timestamp: int, mark: Tensor, price: np.ndarray | None) -> list[OrderResult]:
        """The books differ: is it an order that was taken for never sent, or a reading that has changed since?"""
        late = late_arrivals(self.broker, self.journal, LATE_BARS)
        for result in late:
            name = result.order.client_order_id
            self.in_flight.setdefault(name, InFlight(result.order))
            self.journal.mark(name, ACCEPTED, "it had arrived after all")
            self.journal.event("late order", name, timestamp)
        time.sleep(SECOND_LOOK)
        told = self._results()
        cash, positions = self.broker.cash(), self.broker.positions()
        self.ledger.settle(self._gained(told), mark, price, 0)
        try:
            self.compare(cash, positions, mark)
        except Unreconciled as problem:
            self.explain(timestamp, mark, problem)
        return told

    def _results(self) -> list[OrderResult]:
        """What the broker tells of the orders in flight; an order lives for one bar, what is open of it is given up."""
        told = list(self.broker.results([known.order for known in self.in_flight.values()]))
        for attempt in range(SETTLE_TRIES):
            still_open = [result for result in told if not result.ended]
            if not still_open:
                break
            self.broker.cancel(still_open)
            time.sleep(0.05 * attempt)
            again = {r.order.client_order_id: r for r in self.broker.results([r.order for r in still_open])}
            told = [again.get(result.order.client_order_id, result) for result in told]
        if self.journal is not None:
            self._forget_unsent({result.order.client_order_id for result in told})
        return told

    def _forget_unsent(self, told: set[str]) -> None:
        """Orders of which nobody knew whether they arrived, and of which the broker knows nothing now, did not."""
        for name in [name for name in self.in_flight if name not in told]:
            self.in_flight.pop(name)
            self.journal.mark(name, NEVER_SENT, "the broker has no such order", ended=True)
            self.record.status(name, NEVER_SENT)

    def _gained(self, told: Sequence[OrderResult]) -> list[OrderResult]:
        """What is new in `told`, as results of the new part alone."""
        gained = []
        for result in told:
            known = self.in_flight.get(result.order.client_order_id)
            if known is None:
                if result.forced:
                    self.n_fills += 1
                    gained.append(result)
                continue
            if result.filled_quantity > known.filled:
                self.n_fills += known.filled == 0
                gained.append(
                    replace(
                        result,
                        filled_quantity=result.filled_quantity - known.filled,
                        filled_value=result.filled_value - known.value,
                        fees=result.fees - known.fees,
                    )
                )
                known.filled, known.value, known.fees = result.filled_quantity, result.filled_value, result.fees
            if result.ended:
                self.in_flight.pop(result.order.client_order_id)
        self.record.told(told)
        return gained

    def restore(self, ledger: dict[str, Any], n_fills: int) -> None:
        """Go on from a journal's books; its orders that are not known to have ended are in flight."""
        self.ledger.restore(ledger)
        self.n_fills = n_fills
        self.in_flight = {
            known.order.client_order_id: InFlight(known.order, known.filled, known.value, known.fees)
            for known in self.journal.open_orders()
            if known.state != HELD
        }
