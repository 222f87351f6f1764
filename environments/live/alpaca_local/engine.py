"""The matching engine: orders against replayed bars, one bar at a time.

A market order handed in after bar t fills in bar t + 1, at the price, slippage and costs the environment has there; all
of them are matched together, sells first, as the environment does. What of it cannot be filled in that bar lapses,
whatever its time in force, as in the back-test. Then the others, in the order they came in:

    limit       at the bar's open where that is better than the limit, else at the limit if the bar's range reached it
    stop        becomes a market order at the stop, or at the open if that is beyond it
    stop_limit  becomes a limit order there; the rest of the bar does not count, as nobody knows which way it went
    trailing    a stop at the best high (a buy: low) of the bars closed since, less the trail
    ioc, fok    at the bar's open or never

A fill at a limit costs the commission alone; spread, slippage and impact are worse prices, which a limit rules out.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np

from environments.live.alpaca_local.books import Books, Execution
from environments.live.alpaca_local.orders import Terms, VenueOrder
from environments.live.alpaca_local.wire import Names

FULL = 1 - 1e-9
# event, order, and the fill where it is one
Listener = Callable[[str, VenueOrder, Execution | None], None]


class Engine:
    """Open orders and the bars they meet.

    Args:
        books: the account and its bars. names: of the assets.
        partial_fill_share: share of the fills that come in two parts, at the same price. seed: of which ones.
        listener: is told of every event of an order, in Alpaca's words.
    """

    def __init__(self, books: Books, names: Names, partial_fill_share: float, seed: int, listener: Listener) -> None:
        self.books, self.names = books, names
        self.partial_fill_share, self.seed, self.listener = partial_fill_share, seed, listener
        self.open: dict[str, VenueOrder] = {}
        market = books.market
        self._columns = {name: getattr(market, name).cpu().double().numpy() for name in ("open", "high", "low")}

    def play(self, bar: int, stamp: int, forced: Callable[[Terms], VenueOrder]) -> None:
        """The next bar opens, trades and closes. stamp: what its events are dated. forced: makes the venue's own
        order."""
        self.books.go_to(bar)
        self._stamp = stamp
        for order in self.open.values():
            if order.status == "accepted":
                self._now(order, "new")
        self._market_orders()
        for order in list(self.open.values()):
            if self.books.fillable(order.terms.asset):
                self._resting(order)
            if order.open and order.terms.time_in_force in ("ioc", "fok"):
                self._end(order, "canceled")
        held = self.books.units
        for asset, execution in enumerate(self.books.close()):
            if execution is not None:
                side = "sell" if held[asset] > 0 else "buy"
                terms = Terms(asset, side, "market", "gtc", execution.quantity)
                self._executed(forced(terms), execution, execution.quantity)
        self._trail()

    def _market_orders(self) -> None:
        waiting: dict[int, list[tuple[VenueOrder, float]]] = {}
        wanted = [0.0] * len(self.names.wire)
        for order in self.open.values():
            if order.terms.type == "market":
                asset = order.terms.asset
                asked = order.left(self.books.price(asset))
                if order.terms.qty is None:
                    asked = self.books.rounded(asset, asked)
                wanted[asset] += asked if order.buying else -asked
                waiting.setdefault(asset, []).append((order, asked))
        executions = self.books.fill_market(wanted)
        for asset, orders in waiting.items():
            self._share_out(orders, executions[asset])
            for order, _ in orders:
                if order.open:
                    self._end(order, "canceled")

    def _share_out(self, orders: list[tuple[VenueOrder, float]], execution: Execution | None) -> None:
        """One execution to several orders of an asset and side, first come first served."""
        if execution is None:
            return
        rest, price, fee = execution.quantity, execution.price, execution.fee / execution.quantity
        for i, (order, asked) in enumerate(orders):
            # What a sale takes along, see `portfolio.remnant`, is the last one's.
            part = rest if i == len(orders) - 1 else min(asked, rest)
            rest -= part
            if part > 0:
                whole = part == execution.quantity
                self._executed(order, execution if whole else Execution(part, part * price, part * fee), asked)

    def _resting(self, order: VenueOrder) -> None:
        asset, bar = order.terms.asset, self.books.bar
        first, high, low = (float(self._columns[name][bar, asset]) for name in ("open", "high", "low"))
        buying, limit = order.buying, order.terms.limit_price
        sign = 1.0 if buying else -1.0
        price, stopped, reach = None, False, low if buying else high
        if order.terms.type in ("stop", "stop_limit", "trailing_stop") and not order.triggered:
            level = order.stop_level()
            if not ((high >= level) if buying else (low <= level)):
                return
            order.triggered = True
            there = max(first, level) if buying else min(first, level)
            if limit is None:
                price, stopped = there, True
            elif sign * (there - limit) <= 0:
                price = there
            else:
                return
        elif order.terms.type != "market":
            at_once = order.terms.time_in_force in ("ioc", "fok")
            if limit is None:
                price, stopped = first, True
            elif sign * (first - limit) <= 0:
                price = first
            elif not at_once and sign * (reach - limit) <= 0:
                price = limit
        if price is None:
            return
        asked = order.left(price)
        execution = self.books.fill_at(asset, sign * asked, price, stopped, order.terms.time_in_force == "fok")
        if execution is not None:
            self._executed(order, execution, asked)

    def _executed(self, order: VenueOrder, execution: Execution, asked: float) -> None:
        """Book an execution of `asked` units on the order, and tell of it, at times in two parts."""
        if order.buying and abs(execution.quantity / asked - 1) < 1e-12:
            execution = execution._replace(quantity=asked)  # the rounding of dividing by what is credited
        full = execution.quantity >= asked * FULL
        draw = random.Random(f"{self.seed} {order.client_order_id}")  # the same whatever else is traded
        first = 0.0
        if draw.random() < self.partial_fill_share:
            first = self.books.rounded(order.terms.asset, execution.quantity * draw.uniform(0.1, 0.9))
        if 0 < first < execution.quantity:
            share = first / execution.quantity
            part = Execution(first, execution.value * share, execution.fee * share)
            self._booked(order, part, order.filled + part.quantity, order.paid + part.value, False)
            rest = Execution(execution.quantity - first, execution.value - part.value, execution.fee - part.fee)
            before = (order.filled - part.quantity, order.paid - part.value)
            self._booked(order, rest, before[0] + execution.quantity, before[1] + execution.value, full)
        else:
            self._booked(order, execution, order.filled + execution.quantity, order.paid + execution.value, full)

    def _booked(self, order: VenueOrder, execution: Execution, filled: float, paid: float, full: bool) -> None:
        order.filled, order.paid = filled, paid
        if full:
            order.filled_at = self._stamp
            self.open.pop(order.id, None)
        self._now(order, "filled" if full else "partially_filled", execution)

    def _end(self, order: VenueOrder, status: str) -> None:
        setattr(order, f"{status}_at", self._stamp)
        self.open.pop(order.id, None)
        self._now(order, status)

    def _now(self, order: VenueOrder, status: str, execution: Execution | None = None) -> None:
        order.status, order.updated = status, self._stamp
        event = {"filled": "fill", "partially_filled": "partial_fill"}.get(status, status)
        self.listener(event, order, execution)

    def expire(self, stamp: int) -> None:
        """A session is over: day orders end."""
        self._stamp = stamp
        for order in list(self.open.values()):
            if order.terms.time_in_force == "day":
                self._end(order, "expired")

    def _trail(self) -> None:
        for order in self.open.values():
            if order.terms.type == "trailing_stop":
                extreme = self._columns["low" if order.buying else "high"][self.books.bar, order.terms.asset]
                if np.isfinite(extreme):
                    order.hwm = float(min(order.hwm, extreme) if order.buying else max(order.hwm, extreme))
