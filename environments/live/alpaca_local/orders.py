"""Orders as the venue keeps them: reading a request, writing Alpaca's order object.

https://docs.alpaca.markets/docs/orders-at-alpaca
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from environments.live.alpaca_local.refusal import malformed
from environments.live.alpaca_local.wire import Names, decimal, rfc3339

OPEN = frozenset({"pending_new", "accepted", "new", "partially_filled", "pending_cancel", "pending_replace", "held"})
TYPES = {
    "crypto": ("market", "limit", "stop_limit"),
    "stock": ("market", "limit", "stop", "stop_limit", "trailing_stop"),
}
TIMES_IN_FORCE = {"crypto": ("gtc", "ioc"), "stock": ("day", "gtc", "ioc", "fok")}
LONGEST_CLIENT_ID = 128
# What must be there, and what must not, by type.
PRICES = {
    "market": (),
    "limit": ("limit_price",),
    "stop": ("stop_price",),
    "stop_limit": ("stop_price", "limit_price"),
    "trailing_stop": (),
}


@dataclass(frozen=True, slots=True)
class Terms:
    """What an order asks for. asset: its index; qty: units, or None where `notional` (currency) is given."""

    asset: int
    side: str
    type: str
    time_in_force: str
    qty: float | None
    notional: float | None = None
    limit_price: float | None = None
    stop_price: float | None = None
    trail_price: float | None = None
    trail_percent: float | None = None


@dataclass(slots=True, eq=False)
class VenueOrder:
    """An order and what became of it.

    intent: "open" or "close" of a position. filled: units executed; paid: currency, what they came to at their fill
    prices. hwm: of a trailing stop, the best price since it was sent. triggered: of a stop, its price was reached.
    Times: UTC nanoseconds, 0 where it has not happened.
    """

    id: str
    client_order_id: str
    terms: Terms
    submitted: int
    intent: str
    status: str = "pending_new"
    filled: float = 0.0
    paid: float = 0.0
    hwm: float | None = None
    triggered: bool = False
    updated: int = 0
    filled_at: int = 0
    canceled_at: int = 0
    expired_at: int = 0
    failed_at: int = 0
    replaced_at: int = 0
    replaced_by: str | None = None
    replaces: str | None = None

    @property
    def open(self) -> bool:
        return self.status in OPEN

    @property
    def buying(self) -> bool:
        return self.terms.side == "buy"

    def left(self, price: float) -> float:
        """Units still to be executed; of an order by value, those that its rest buys at `price`."""
        terms = self.terms
        if terms.qty is not None:
            return max(terms.qty - self.filled, 0.0)
        return max(terms.notional - self.paid, 0.0) / price if price > 0 else 0.0

    def stop_level(self) -> float:
        """The price at which the stop is reached; of a trailing one, `hwm` less (a buy: plus) the trail."""
        terms = self.terms
        if terms.type != "trailing_stop":
            return terms.stop_price
        trail = terms.trail_price if terms.trail_price is not None else self.hwm * terms.trail_percent / 100
        return self.hwm + trail if self.buying else self.hwm - trail

    def to_json(self, names: Names) -> dict[str, Any]:
        """Alpaca's order object."""
        terms = self.terms

        def written(number: float | None) -> str | None:
            return None if number is None else decimal(number)

        def moment(stamp: int) -> str | None:
            return rfc3339(stamp) if stamp else None

        trailing = terms.type == "trailing_stop"
        submitted = rfc3339(self.submitted)
        return {
            "id": self.id,
            "client_order_id": self.client_order_id,
            "created_at": submitted,
            "updated_at": rfc3339(self.updated or self.submitted),
            "submitted_at": submitted,
            "filled_at": moment(self.filled_at),
            "expired_at": moment(self.expired_at),
            "expires_at": None,
            "canceled_at": moment(self.canceled_at),
            "failed_at": moment(self.failed_at),
            "replaced_at": moment(self.replaced_at),
            "replaced_by": self.replaced_by,
            "replaces": self.replaces,
            "asset_id": names.ids[terms.asset],
            "symbol": names.wire[terms.asset],
            "asset_class": "crypto" if names.asset_class == "crypto" else "us_equity",
            "notional": written(terms.notional),
            "qty": written(terms.qty),
            "filled_qty": decimal(self.filled),
            "filled_avg_price": decimal(self.paid / self.filled) if self.filled else None,
            "order_class": "",
            "order_type": terms.type,
            "type": terms.type,
            "side": terms.side,
            "position_intent": f"{terms.side}_to_{self.intent}",
            "time_in_force": terms.time_in_force,
            "limit_price": written(terms.limit_price),
            "stop_price": written(self.stop_level() if trailing else terms.stop_price),
            "status": self.status,
            "extended_hours": False,
            "legs": None,
            "trail_percent": written(terms.trail_percent),
            "trail_price": written(terms.trail_price),
            "hwm": written(self.hwm),
            "subtag": None,
            "source": None,
        }


def number(body: Mapping[str, Any], name: str) -> float | None:
    """The number in `body[name]`, given as one or as a decimal string; None where it is left out.

    Raises:
        Refused: 422, it is no number above 0.
    """
    given = body.get(name)
    if given is None or given == "":
        return None
    try:
        value = float(given) if isinstance(given, (str, int, float)) and not isinstance(given, bool) else math.nan
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise malformed(f"{name} must be a number > 0, got {given!r}")
    return value


def read_terms(body: Mapping[str, Any], names: Names) -> Terms:
    """The terms that the body of POST /v2/orders asks for.

    Raises:
        Refused: 422, what is missing, contradictory, or not traded in that way at the venue.
    """
    symbol = body.get("symbol")
    asset = names.find(symbol) if isinstance(symbol, str) else None
    if asset is None:
        raise malformed(f"asset {symbol!r} not found" if symbol else "symbol is required")
    kind, crypto = body.get("type"), names.asset_class == "crypto"
    _one_of("side", body.get("side"), ("buy", "sell"))
    _one_of("order type", kind, TYPES[names.asset_class], "invalid order type for crypto order" if crypto else "")
    time_in_force = body.get("time_in_force")
    accepted = TIMES_IN_FORCE[names.asset_class]
    _one_of("time_in_force", time_in_force, accepted, "invalid crypto time_in_force" if crypto else "")
    if body.get("order_class") not in (None, "", "simple"):
        raise malformed(
            "crypto orders not allowed for advanced order_class" if crypto else "order_class must be simple"
        )
    qty, notional = number(body, "qty"), number(body, "notional")
    if (qty is None) == (notional is None):
        raise malformed("qty or notional is required" if qty is None else "only one of qty or notional is accepted")
    if notional is not None and kind != "market":
        raise malformed("notional is accepted for market orders only")
    prices = {name: number(body, name) for name in ("limit_price", "stop_price", "trail_price", "trail_percent")}
    for name in PRICES[kind]:
        if prices[name] is None:
            raise malformed(f"{kind} orders require {name}")
    trails = sum(prices[name] is not None for name in ("trail_price", "trail_percent"))
    if kind == "trailing_stop" and trails != 1:
        raise malformed("trailing_stop orders require one of trail_price or trail_percent")
    allowed = ("trail_price", "trail_percent") if kind == "trailing_stop" else PRICES[kind]
    for name, price in prices.items():
        if price is not None and name not in allowed:
            raise malformed(f"{kind} orders do not accept {name}")
    if not crypto and time_in_force != "day" and (notional is not None or qty % 1):
        raise malformed("fractional orders must be DAY orders")
    return Terms(asset, body["side"], kind, time_in_force, qty, notional, **prices)


def read_client_id(body: Mapping[str, Any]) -> str | None:
    """The client_order_id of a body; None where the venue is to choose one.

    Raises:
        Refused: 422, it is not a text of 1 to 128 characters.
    """
    given = body.get("client_order_id")
    if given is None or given == "":
        return None
    if not isinstance(given, str) or len(given) > LONGEST_CLIENT_ID:
        raise malformed(f"client_order_id must be no more than {LONGEST_CLIENT_ID} characters", 40010001)
    return given


def _one_of(name: str, given: Any, accepted: tuple[str, ...], message: str = "") -> None:
    if given not in accepted:
        raise malformed(f"{message or f'invalid {name}'}: {given!r}, accepted are {', '.join(accepted)}")
