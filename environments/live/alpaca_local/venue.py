"""The venue: one account, its orders, and the bar the replay has come to. Every method may be called by any thread."""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from threading import RLock
from typing import Any
from uuid import UUID

from environments.data.sessions import DAY, session_dates
from environments.errors import InputError
from environments.live.alpaca_local import checks
from environments.live.alpaca_local.activities import ActivityLog
from environments.live.alpaca_local.books import Books, Execution
from environments.live.alpaca_local.engine import Engine
from environments.live.alpaca_local.orders import Terms, VenueOrder, number, read_client_id, read_terms
from environments.live.alpaca_local.refusal import malformed, not_found
from environments.live.alpaca_local.session import SessionClock
from environments.live.alpaca_local.wire import Names, decimal, rfc3339
from environments.market_env import MarketVecEnv

KEPT = 10_000  # ended orders, and activities, that are remembered: the newest
CASH_KINDS = ("CSD", "CSW", "JNLC", "DIV", "INT", "FEE")
MICROSECOND, MILLISECOND = 10**3, 10**6
Sink = Callable[[dict[str, Any]], None]


class Venue:
    """One account on replayed bars.

    Args:
        env, start, stop: as for `LocalBroker`: the environment gives market, rules, costs and cash.
        partial_fill_share, seed: see `Engine`.
        trade_updates: is given every update of an order, as the websocket sends it.
    """

    def __init__(
        self, env: MarketVecEnv, start: int, stop: int, partial_fill_share: float, seed: int, trade_updates: Sink
    ) -> None:
        if not 0 <= start < stop - 1 < env.market.n_bars:
            raise InputError(f"bars {start} to {stop}: the market has {env.market.n_bars}, at least 2 are replayed")
        if not 0 <= partial_fill_share <= 1:
            raise InputError(f"partial_fill_share={partial_fill_share}: accepted are 0 to 1")
        self.lock = RLock()
        self.env, self.market, self.start, self.stop = env, env.market, start, stop
        self.names = Names(env.market.symbols, env.market.asset_class)
        self.books = Books(env, start)
        self.engine = Engine(self.books, self.names, partial_fill_share, seed, self._told)
        self.sessions = SessionClock(env.market)
        self.orders: dict[str, VenueOrder] = {}
        self.by_client_id: dict[str, VenueOrder] = {}
        self.activities = ActivityLog(self.names, env.frictions.fee_in, KEPT, seed)
        self._sink, self._ids = trade_updates, random.Random(f"ids {seed}")
        self._ended: deque[str] = deque()
        self._stamps: list[int] = env.market.timestamps.tolist()
        self._length = env.market.timeframe.nanoseconds
        stocks = env.market.asset_class == "stock"
        stamps = env.market.timestamps.cpu().numpy()
        # The session of each bar: day orders end with it.
        self._session = (stamps // DAY if self._length >= DAY else session_dates(stamps)) if stocks else None
        self._sent = 0
        self._cancelling: list[VenueOrder] = []
        self._rejecting: list[VenueOrder] = []
        self.later = ""  # "late_cancel", "late_reject": what the next request comes to when the next bar does
        self.last_equity = self.books.equity
        self.last_marks = list(self.books.marks)

    # ------------------------------------------------------------------------------------------ time

    @property
    def bar(self) -> int:
        """Index of the newest closed bar."""
        return self.books.bar

    @property
    def more(self) -> bool:
        """Will there be another bar?"""
        return self.bar + 1 < self.stop

    @property
    def now(self) -> int:
        """UTC nanoseconds: the moment the newest bar closed."""
        return self._stamps[self.bar] + self._length

    def advance(self) -> bool:
        """The next bar opens, orders meet it, it closes. False: there is none."""
        with self.lock:
            if not self.more:
                return False
            bar = self.bar + 1
            self.last_equity, self.last_marks = self.books.equity, list(self.books.marks)
            for order in self._rejecting:
                if order.open:
                    self._finish(order, "rejected")
            self._rejecting = []
            opened = max(self._stamps[bar], self.now) + MILLISECOND
            self.engine.play(bar, opened, self._forced)
            self._sent = 0
            for order in self._cancelling:
                if order.open:
                    self._finish(order, "canceled")
            self._cancelling = []
            if self._session is not None and (not self.more or self._session[bar] != self._session[bar + 1]):
                self.engine.expire(self.now)
            if self.books.interest:
                self.activities.interest(self.now, self.books.interest)
            return True

    # ------------------------------------------------------------------------------------------ what is no trade

    def move_cash(self, kind: str, amount: float, name: str | None = None) -> None:
        """Move currency in or out (< 0), and tell it as an activity: kind "CSD", "CSW", "DIV", "INT", "FEE", ...; name:
        of the asset it is for.

        Raises:
            Refused: 422, no such kind. 404, no such asset.
        """
        if kind not in CASH_KINDS:
            raise malformed(f"invalid activity_type: {kind!r}, accepted are {', '.join(CASH_KINDS)}, SPLIT")
        with self.lock:
            symbol = None if name is None else self.names.wire[self.names.asset(name)]
            self.books.receive(amount)
            self.activities.cash(self.now, kind, amount, symbol)

    def split(self, name: str, ratio: float) -> None:
        """Split what is held of an asset: `ratio` new units for each old one. Bars are as they are: a replay in which
        prices fall by the ratio as the next bar opens has a split there.

        Raises:
            Refused: 404, no such asset, or nothing of it is held. 422, no ratio > 0.
        """
        if not 0 < ratio < math.inf:
            raise malformed(f"invalid ratio: {ratio!r}, a number > 0 is accepted")
        with self.lock:
            asset = self.held(name)
            before = self.books.units[asset]
            self.books.split(asset, ratio)
            after, mark = self.books.units[asset], self.books.marks[asset]
            self.activities.split(self.now, self.names.wire[asset], before, after, mark)

    # ------------------------------------------------------------------------------------------ orders

    def submit(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """POST /v2/orders.

        Raises:
            Refused: 422, 403 or 404, see `read_terms` and `checks.check`.
        """
        with self.lock:
            terms, client_id = read_terms(body, self.names), read_client_id(body)
            if client_id in self.by_client_id:
                raise malformed("client_order_id must be unique", 40010001)
            self._check(terms, self.open_orders())
            order = self._accept(terms, client_id)
            if self._is_late("late_reject"):
                self._rejecting.append(order)
            return order.to_json(self.names) | {"status": "pending_new"}

    def replace(self, order_id: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """PATCH /v2/orders/{id}: a new order with a new id for the rest of the old one, at the queue's end.

        Raises:
            Refused: as `submit`, and 422 where the order has ended.
        """
        with self.lock:
            old, client_id = self.order(order_id), read_client_id(body)
            if not old.open:
                raise malformed(f'order is already in "{old.status}" state')
            if old.terms.notional is not None:
                raise malformed("notional orders cannot be replaced")
            if client_id in self.by_client_id:
                raise malformed("client_order_id must be unique", 40010001)
            names = {"qty": "qty", "limit_price": "limit_price", "stop_price": "stop_price"}
            names["trail"] = "trail_price" if old.terms.trail_price is not None else "trail_percent"
            changes = {own: number(body, name) for name, own in names.items()}
            given = {own: value for own, value in changes.items() if value is not None}
            if body.get("time_in_force"):
                given["time_in_force"] = body["time_in_force"]
            if not given and client_id is None:
                raise malformed("at least one of qty, time_in_force, limit_price, stop_price, trail must be given")
            changed = {**asdict(old.terms), **given, "symbol": self.names.wire[old.terms.asset]}
            terms = read_terms(changed, self.names)
            if terms.qty <= old.filled:
                raise malformed("qty must be > filled_qty")
            # What was filled stays with the old order: the new one asks for the rest.
            rest = replace(terms, qty=terms.qty - old.filled)
            self._check(rest, [order for order in self.open_orders() if order is not old])
            new = self._make(rest, client_id)
            new.replaces, old.replaced_by = old.id, new.id
            self._finish(old, "replaced")
            self._open(new)
            return new.to_json(self.names) | {"status": "pending_new"}

    def cancel(self, order_id: str) -> None:
        """DELETE /v2/orders/{id}.

        Raises:
            Refused: 404 no such order, 422 it has ended.
        """
        with self.lock:
            order = self.order(order_id)
            if not order.open:
                raise malformed(f'order is already in "{order.status}" state')
            if self._is_late("late_cancel"):
                self._cancelling.append(order)
                order.status, order.updated = "pending_cancel", self.now + self._sent * MICROSECOND
                self._told("pending_cancel", order, None)
            else:
                self._finish(order, "canceled")

    def cancel_all(self) -> list[dict[str, Any]]:
        """DELETE /v2/orders: what became of each."""
        with self.lock:
            orders = self.open_orders()
            for order in orders:
                self._finish(order, "canceled")
            return [{"id": order.id, "status": 200} for order in orders]

    def close_position(self, name: str, share: float = 1.0, quantity: float | None = None) -> dict[str, Any]:
        """DELETE /v2/positions/{symbol}: a market order for what is held, a share of it, or a quantity.

        Raises:
            Refused: 404 nothing is held, and as `submit`.
        """
        with self.lock:
            asset = self.held(name)
            units = self.books.units[asset]
            side, force = "sell" if units > 0 else "buy", "gtc" if self.names.asset_class == "crypto" else "day"
            terms = Terms(asset, side, "market", force, abs(units) * share if quantity is None else quantity)
            self._check(terms, self.open_orders())
            return self._accept(terms, None).to_json(self.names) | {"status": "pending_new"}

    def order(self, order_id: str) -> VenueOrder:
        """The order with that id.

        Raises:
            Refused: 404 there is none, 422 it is no id.
        """
        try:
            found = self.orders.get(str(UUID(order_id)))
        except ValueError:
            raise malformed("order_id is not a valid UUID", 40010001) from None
        if found is None:
            raise not_found(f"order not found for {order_id}")
        return found

    def open_orders(self) -> list[VenueOrder]:
        """Oldest first."""
        return list(self.engine.open.values())

    def held(self, name: str) -> int:
        """The asset of a position.

        Raises:
            Refused: 404, there is no such asset, or nothing of it is held.
        """
        asset = self.names.find(name)
        if asset is None or not self.books.units[asset]:
            raise not_found("position does not exist")
        return asset

    def _check(self, terms: Terms, orders: list[VenueOrder]) -> None:
        checks.check_wash(terms, orders)
        checks.check(terms, self.books, orders, self.names)

    def _make(self, terms: Terms, client_id: str | None) -> VenueOrder:
        order_id = str(UUID(int=self._ids.getrandbits(128), version=4))
        self._sent += 1  # a microsecond apart: submission times tell the order they came in
        stamp = self.now + self._sent * MICROSECOND
        after = checks.position_after(self.books, self.engine.open.values(), terms.asset)
        opens = after == 0 or (terms.side == "buy") == (after > 0)
        order = VenueOrder(order_id, client_id or order_id, terms, stamp, "open" if opens else "close")
        if terms.type == "trailing_stop":
            order.hwm = self.books.marks[terms.asset]
        self.orders[order.id] = self.by_client_id[order.client_order_id] = order
        return order

    def _accept(self, terms: Terms, client_id: str | None) -> VenueOrder:
        order = self._make(terms, client_id)
        self._open(order)
        return order

    def _open(self, order: VenueOrder) -> None:
        self.engine.open[order.id] = order
        closed = self._session is not None and not self.sessions.is_open(self.now)
        order.status = "accepted" if closed else "new"
        self._told(order.status, order, None)

    def _is_late(self, kind: str) -> bool:
        due, self.later = self.later == kind, ""
        return due

    def _forced(self, terms: Terms) -> VenueOrder:
        symbol = self.market.symbols[terms.asset]
        order = self._make(terms, f"forced-{self._stamps[self.bar]}-{symbol}")
        order.status = "new"
        self._told("new", order, None)
        return order

    def _finish(self, order: VenueOrder, status: str) -> None:
        order.status = status
        order.updated = self.now + self._sent * MICROSECOND
        setattr(order, "failed_at" if status == "rejected" else f"{status}_at", order.updated)
        self.engine.open.pop(order.id, None)
        self._told(status, order, None)

    # ------------------------------------------------------------------------------------------ telling

    def _told(self, event: str, order: VenueOrder, execution: Execution | None) -> None:
        if not order.open:
            self._ended.append(order.id)
            while len(self._ended) > KEPT:
                gone = self.orders.pop(self._ended.popleft())
                self.by_client_id.pop(gone.client_order_id, None)
        update = {
            "event": event,
            "timestamp": rfc3339(order.updated or order.submitted),
            "order": order.to_json(self.names),
            "execution_id": str(UUID(int=self._ids.getrandbits(128), version=4)),
        }
        if execution is not None:
            update["price"], update["qty"] = decimal(execution.price), decimal(execution.quantity)
            update["position_qty"] = decimal(self.books.units[order.terms.asset])
            self.activities.fill(order, event, execution)
        self._sink(update)
