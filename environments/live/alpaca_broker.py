"""AlpacaBroker: one account at Alpaca's paper venue, or at the local one that speaks its protocol.

    POST answered                          Accepted, or Rejected with Alpaca's code and words
    429                                    not looked at: sent again, at last NotSent
    timeout, 5xx, cut connection, gibberish  nobody knows: looked up by client_order_id; what is not there is sent again
                                           under the same id, which the venue takes only once; at last Ambiguous

https://docs.alpaca.markets/reference/postorder, https://docs.alpaca.markets/reference/getorderbyclientorderid
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any

import pandas as pd
import requests
from alpaca.common.exceptions import APIError
from alpaca.trading.client import TradingClient
from alpaca.trading.enums import OrderSide, QueryOrderStatus, TimeInForce
from alpaca.trading.requests import GetOrdersRequest, MarketOrderRequest

from environments.data.credentials import Secret
from environments.errors import InputError
from environments.live.alpaca_local.wire import wire_symbol
from environments.live.alpaca_session import (
    CONNECT_TIMEOUT,
    READ_TIMEOUT,
    TOO_MANY,
    Unreadable,
    asked_wait,
    paper_url,
    prepare,
    read,
    status_of,
    told,
)
from environments.live.broker import (
    Accepted,
    Activity,
    Ambiguous,
    BrokerUnavailable,
    NotSent,
    Order,
    OrderResult,
    Outcome,
    Rejected,
    Slack,
)

NOT_FOUND, UNPROCESSABLE, NOT_UNIQUE = 404, 422, 40010001
ENDED = frozenset({"filled", "canceled", "expired", "rejected", "replaced", "done_for_day"})
SENDS = 3  # of one order, under its one id
LISTED = 500  # the most orders one answer holds
SELLS_FILL_WITHIN = 10.0  # seconds that buys wait for the proceeds of sells
ACTIVITIES = 100  # the most that one page holds
CLOCK_EVERY = 60.0  # seconds between looks at the venue's clock
_BPS = 1e-4

logger = logging.getLogger(__name__)


class AlpacaBroker:
    """Market orders, positions and cash of one paper account.

    Args:
        symbols, asset_class: of the model's market; BTCUSDT is BTC/USDT at the venue.
        keys: key id and secret.
        url: another venue that speaks the protocol; None: Alpaca's paper venue.
        commission_bps, fee_in: what the venue keeps of a trade and where (see `Frictions`): its orders do not say.
        lock_step: the venue's time moves only when it is told to: there is no use in waiting for a fill.
        timeout: seconds to connect, and to wait for an answer. sleep: for tests.

    Raises:
        InputError: the URL trades live money.
    """

    costs_in_price = refuses_uncovered = True
    # Alpaca writes cash to the cent and positions to nine decimals; its fees depend on the month's volume.
    slack = Slack(relative=1e-9, units=2e-9, cash=0.02, of_traded=0.005)

    def __init__(
        self,
        symbols: Sequence[str],
        asset_class: str,
        keys: tuple[Secret, Secret],
        *,
        url: str | None = None,
        commission_bps: float = 0.0,
        fee_in: str = "quote",
        lock_step: bool = False,
        name: str = "alpaca-paper",
        timeout: tuple[float, float] = (CONNECT_TIMEOUT, READ_TIMEOUT),
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.name, self.asset_class, self._keys, self._sleep = name, asset_class, keys, sleep
        self.lock_step, self._commission, self._fee_in = lock_step, commission_bps * _BPS, fee_in
        self._wire = {symbol: wire_symbol(symbol, asset_class) for symbol in symbols}
        self._held = {wire.replace("/", ""): symbol for symbol, wire in self._wire.items()}
        url = paper_url(url)
        client = TradingClient(keys[0].reveal(), keys[1].reveal(), paper=True, raw_data=True, url_override=url)
        self._client = prepare(client, url, timeout)
        self._looked, self._skew = -math.inf, math.nan

    # ------------------------------------------------------------------------------------------ orders

    def submit(self, orders: Sequence[Order]) -> list[Outcome]:
        """Hand in market orders in their order; one outcome for each.

        Where the side changes, or a symbol comes again, those before are waited for: buys may need what sells bring,
        and a position is closed before its other side is opened.
        """
        outcomes: list[Outcome] = []
        for i, order in enumerate(orders):
            again = any(sent.symbol == order.symbol for sent in orders[:i])
            if i and not self.lock_step and (again or order.side != orders[i - 1].side):
                taken = [sent for sent, o in zip(orders, outcomes, strict=False) if isinstance(o, Accepted)]
                self._await(taken)
            outcomes.append(self._place(order))
        return outcomes

    def _place(self, order: Order) -> Outcome:
        outcome: Outcome = NotSent("not tried")
        unsure = False  # may an earlier sending have arrived? Then a refusal may be of the second one alone.
        for attempt in range(SENDS):
            outcome, wait = self._post(order)
            if isinstance(outcome, Accepted):
                return outcome
            if isinstance(outcome, Rejected) and outcome.code != NOT_UNIQUE and not unsure:
                return outcome
            if isinstance(outcome, NotSent):
                self._sleep(min(wait, 2.0))
                continue
            try:
                found = self.lookup(order)
            except BrokerUnavailable as problem:
                return Ambiguous(f"{problem}, after {outcome}")
            if found is not None:
                return Accepted(found.broker_id, found)
            if isinstance(outcome, Rejected):
                return outcome
            unsure = True
            # It may still be on its way; sent again under its id it cannot be taken twice.
            self._sleep(0.05 * 2**attempt)
        return outcome

    def _post(self, order: Order) -> tuple[Outcome, float]:
        """Send once. Returns the outcome, and for NotSent the seconds to wait."""
        request = MarketOrderRequest(
            symbol=self._wire[order.symbol],
            qty=order.quantity if self.lock_step else _nine_decimals(order.quantity),
            side=OrderSide(order.side),
            time_in_force=TimeInForce.GTC if self.asset_class == "crypto" else TimeInForce.DAY,
            client_order_id=order.client_order_id,
        )
        try:
            answer = self._client.submit_order(request)
            broker_id = str(answer["id"])
        except APIError as error:
            status, (code, message) = status_of(error), told(error)
            if status == TOO_MANY:
                return NotSent(f"HTTP {status}: {message}"), asked_wait(error) or 1.0
            if status >= 500 or not status:
                return Ambiguous(f"HTTP {status}: {message}"), 0.0
            return Rejected(code, message), 0.0
        except requests.exceptions.RequestException as error:
            return Ambiguous(type(error).__name__), 0.0
        except (KeyError, TypeError, ValueError) as error:
            return Ambiguous(f"an answer that cannot be read ({type(error).__name__})"), 0.0
        return Accepted(broker_id), 0.0

    def _await(self, orders: Sequence[Order]) -> None:
        """Wait a little until orders have ended; what comes after them is checked by the venue anyway."""
        deadline = time.monotonic() + SELLS_FILL_WITHIN
        while time.monotonic() < deadline:
            try:
                results = self.results(orders)
            except BrokerUnavailable:
                return
            if sum(result.ended for result in results) == len(orders):
                return
            self._sleep(0.1)

    def lookup(self, order: Order) -> OrderResult | None:
        """The order as the venue has it; None where it says that it has none.

        Raises:
            BrokerUnavailable: it does not answer.
        """

        def ask() -> OrderResult | None:
            try:
                return self._result(self._client.get_order_by_client_id(order.client_order_id), order)
            except APIError as error:
                if status_of(error) == NOT_FOUND:
                    return None
                raise

        return self._read(f"order {order.client_order_id}", ask)

    def results(self, orders: Sequence[Order]) -> list[OrderResult]:
        """What has become of `orders`; those the venue does not know are left out."""
        if not orders:
            return []
        wanted = {order.client_order_id: order for order in orders}
        # The newest orders are ours, but for a few that others sent meanwhile.
        limit = min(LISTED, len(orders) + 5)
        request = GetOrdersRequest(status=QueryOrderStatus.ALL, limit=limit, nested=False)
        found: dict[str, OrderResult] = {}
        for entry in self._read("orders", lambda: _listed(self._client.get_orders(request))):
            order = wanted.get(entry.get("client_order_id"))
            if order is not None:
                try:
                    found[order.client_order_id] = self._result(entry, order)
                except Unreadable as problem:
                    logger.info("%s: %s, looked up", order.client_order_id, problem)
        for name, order in wanted.items():
            if name not in found:
                result = self.lookup(order)
                if result is not None:
                    found[name] = result
        return [found[name] for name in wanted if name in found]

    def _result(self, entry: Any, order: Order) -> OrderResult:
        """Alpaca's order object as a result: what the fee left of a buy, at its price.

        Raises:
            Unreadable: a field that is needed is missing or no number.
        """
        status, executed = _text(entry, "status"), _number(entry, "filled_qty")
        if _text(entry, "client_order_id") != order.client_order_id:
            raise Unreadable("another order's answer")
        price = _number(entry, "filled_avg_price") if executed else 0.0
        quantity, value = executed, executed * price
        fees = value * self._commission
        if order.side == "buy" and self._fee_in == "received":
            quantity *= 1 - self._commission
            value = quantity * price
        return OrderResult(
            order, status, quantity, value, fees, ended=status in ENDED, broker_id=_text(entry, "id")
        )  # fmt: skip

    def cancel(self, orders: Sequence[OrderResult]) -> None:
        """Ask for the rest of open orders to be given up. Whether it was is told by `results`, whatever is answered."""
        for order in orders:
            try:
                self._client.cancel_order_by_id(order.broker_id)
            except (APIError, requests.exceptions.RequestException) as error:
                logger.info("cancelling %s: %s", order.order.client_order_id, type(error).__name__)

    def foreign_orders(self, known: Collection[str]) -> list[str]:
        """Ids of open orders at the venue that are not among `known`."""
        request, own = GetOrdersRequest(status=QueryOrderStatus.OPEN, limit=LISTED), set(known)
        entries = self._read("open orders", lambda: _listed(self._client.get_orders(request)))
        ids = [str(entry.get("client_order_id", "")) for entry in entries]
        return [name for name in ids if name not in own]

    def latest_orders(self) -> list[str]:
        """Ids of the newest orders at the venue, open or ended."""
        request = GetOrdersRequest(status=QueryOrderStatus.ALL, limit=LISTED, nested=False)
        entries = self._read("orders", lambda: _listed(self._client.get_orders(request)))
        return [str(entry.get("client_order_id", "")) for entry in entries]

    # ------------------------------------------------------------------------------------------ account

    def activities(self, since: int) -> list[Activity]:
        """What moved cash or units since that day but for trades, oldest first.

        alpaca-py has no method for it on its trading client, and asks for it by path. A split comes as two, one that
        takes the old units and one that gives the new ones; of a dividend `qty` is what it was paid on, and moves
        nothing.

        since: UTC nanoseconds. https://docs.alpaca.markets/reference/getaccountactivities-2
        """
        after = pd.Timestamp(since, unit="ns", tz="UTC").strftime("%Y-%m-%dT00:00:00Z")
        asked = {"category": "non_trade_activity", "after": after, "direction": "asc", "page_size": ACTIVITIES}
        found: list[Activity] = []
        while True:
            page = self._read("activities", partial(self._page, asked))
            found += page
            if len(page) < ACTIVITIES:
                return found
            asked = {**asked, "page_token": page[-1].id}

    def _page(self, asked: dict[str, Any]) -> list[Activity]:
        return [self._activity(entry) for entry in _listed(self._client.get("/account/activities", asked))]

    def _activity(self, entry: dict[str, Any]) -> Activity:
        kind, symbol = _text(entry, "activity_type"), str(entry.get("symbol") or "").replace("/", "")
        units = _number(entry, "qty") if kind == "SPLIT" else 0.0
        return Activity(
            _text(entry, "id"), kind, _number(entry, "net_amount"), self._held.get(symbol, symbol), units,
            str(entry.get("date") or ""), str(entry.get("status") or "executed"),
        )  # fmt: skip

    def cash(self) -> float:
        return self._read("account", lambda: _number(self._client.get_account(), "cash"))

    def positions(self) -> dict[str, float]:
        def ask() -> dict[str, float]:
            held = {}
            for entry in _listed(self._client.get_all_positions()):
                symbol = _text(entry, "symbol").replace("/", "")
                held[self._held.get(symbol, symbol)] = _number(entry, "qty")
            return {symbol: units for symbol, units in held.items() if units}

        return self._read("positions", ask)

    # ------------------------------------------------------------------------------------------ the clock

    def now(self) -> int:
        """The venue's time, UTC nanoseconds, as far as it is known."""
        skew = self.skew()
        return time.time_ns() + int(0 if math.isnan(skew) else skew * 1e9)

    def skew(self) -> float:
        """Seconds the venue's clock is ahead of ours, asked every minute; NaN where it does not say."""
        if time.monotonic() - self._looked > CLOCK_EVERY:
            self._looked = time.monotonic()
            try:
                self._skew = self._read("clock", self._ask_skew)
            except BrokerUnavailable as problem:
                logger.warning("%s", problem)
                self._skew = math.nan
        return self._skew

    def _ask_skew(self) -> float:
        before = time.time()
        moment = pd.Timestamp(_text(self._client.get_clock(), "timestamp"))
        return moment.timestamp() - (before + time.time()) / 2

    def _read(self, what: str, ask: Callable[[], Any]) -> Any:
        try:
            return read(what, ask, self._keys, sleep=self._sleep)
        except APIError as error:
            code, message = told(error)
            raise InputError(f"Alpaca does not accept the request for {what} ({code}: {message})") from None


def _nine_decimals(quantity: float) -> float:
    """`quantity` as Alpaca counts it, rounded down: more than is held cannot be sold. A replay carries all digits."""
    return math.floor(quantity * 1e9 + 1e-3) / 1e9


def _listed(answer: Any) -> list[dict[str, Any]]:
    if not isinstance(answer, list) or not all(isinstance(entry, dict) for entry in answer):
        raise Unreadable("no list")
    return answer


def _text(entry: Any, name: str) -> str:
    value = entry.get(name) if isinstance(entry, dict) else None
    if not isinstance(value, str):
        raise Unreadable(f"no {name}")
    return value


def _number(entry: Any, name: str) -> float:
    value = entry.get(name) if isinstance(entry, dict) else None
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise Unreadable(f"no number {name}") from None
    if not math.isfinite(number):
        raise Unreadable(f"no number {name}")
    return number
