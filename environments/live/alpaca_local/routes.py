"""The HTTP interface: trading v2, data, and /local/v1 for who drives the replay."""

from __future__ import annotations

import base64
import hmac
import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, WebSocketRoute

from environments.live.alpaca_local import account
from environments.live.alpaca_local.orders import VenueOrder
from environments.live.alpaca_local.refusal import Refused, malformed, not_found, unauthorized
from environments.live.alpaca_local.venue import Venue
from environments.live.alpaca_local.wire import decimal, nanoseconds, rfc3339

if TYPE_CHECKING:
    from environments.live.alpaca_local.server import LocalAlpaca

FEWEST, MOST = 50, 500  # orders of an answer
DATA = {"/v1beta3/crypto/us": "crypto", "/v2/stocks": "stock"}
CATEGORIES = ("trade_activity", "non_trade_activity")
Handler = Callable[[Venue, Request, Mapping[str, Any]], tuple[int, Any]]


def _list_orders(venue: Venue, request: Request, body: Mapping[str, Any]) -> tuple[int, Any]:
    query = request.query_params
    status, direction = query.get("status", "open"), query.get("direction", "desc")
    if status not in ("open", "closed", "all"):
        raise malformed(f"invalid status: {status!r}, accepted are open, closed, all", 40010001)
    limit = query.get("limit") or str(FEWEST)
    if not limit.isdigit() or not 1 <= int(limit) <= MOST:
        raise malformed(f"invalid limit: {limit!r}, accepted are 1 to {MOST}", 40010001)
    after = nanoseconds(query["after"], "after") if query.get("after") else None
    until = nanoseconds(query["until"], "until") if query.get("until") else None
    symbols = {venue.names.find(name) for name in (query.get("symbols") or "").split(",") if name}
    side = query.get("side")

    def asked(order: VenueOrder) -> bool:
        return (
            (status == "all" or order.open == (status == "open"))
            and (after is None or order.submitted > after)
            and (until is None or order.submitted < until)
            and (not symbols or order.terms.asset in symbols)
            and (not side or order.terms.side == side)
        )

    # Kept in the order they came in, oldest first.
    orders = (venue.engine.open if status == "open" else venue.orders).values()
    orders = orders if direction == "asc" else reversed(orders)
    found = []
    for order in filter(asked, orders):
        found.append(order.to_json(venue.names))
        if len(found) == int(limit):
            break
    return 200, found


def _order_by_client_id(venue: Venue, request: Request, body: Mapping[str, Any]) -> tuple[int, Any]:
    client_id = request.query_params.get("client_order_id", "")
    order = venue.by_client_id.get(client_id)
    if order is None:
        raise not_found(f"order not found for {client_id}")
    return 200, order.to_json(venue.names)


def _cancel(venue: Venue, request: Request, body: Mapping[str, Any]) -> tuple[int, Any]:
    venue.cancel(request.path_params["order_id"])
    return 204, None


def _position(venue: Venue, asset: int) -> dict[str, Any]:
    return account.position_json(asset, venue.books, venue.open_orders(), venue.names, venue.last_marks[asset])


def _positions(venue: Venue, request: Request, body: Mapping[str, Any]) -> tuple[int, Any]:
    return 200, [_position(venue, asset) for asset, units in enumerate(venue.books.units) if units]


def _close_position(venue: Venue, request: Request, body: Mapping[str, Any]) -> tuple[int, Any]:
    try:
        quantity = float(request.query_params["qty"]) if "qty" in request.query_params else None
        share = float(request.query_params.get("percentage", 100.0)) / 100
    except ValueError:
        raise malformed("qty and percentage must be numbers") from None
    if not 0 < share <= 1 or (quantity is not None and not quantity > 0):
        raise malformed("qty must be > 0, percentage must be > 0 and <= 100")
    return 200, venue.close_position(request.path_params["symbol"], share, quantity)


def _close_all(venue: Venue, request: Request, body: Mapping[str, Any]) -> tuple[int, Any]:
    if request.query_params.get("cancel_orders", "").lower() == "true":
        venue.cancel_all()
    told = []
    for asset, units in enumerate(venue.books.units):
        if units:
            name = venue.names.held[asset]
            try:
                order = venue.close_position(name)
                told.append({"symbol": name, "status": 200, "order_id": order["id"], "body": order})
            except Refused as refused:
                told.append({"symbol": name, "status": refused.status, "body": refused.body})
    return 207, told


def _asset(venue: Venue, asset: int) -> dict[str, Any]:
    names, rule = venue.names, venue.env.rule_book.rule(venue.market.symbols[asset])
    crypto, margin = names.asset_class == "crypto", venue.env.margin
    return {
        "id": names.ids[asset],
        "class": "crypto" if crypto else "us_equity",
        "exchange": "CRYPTO" if crypto else "NASDAQ",
        "symbol": names.wire[asset],
        "name": names.wire[asset],
        "status": "active",
        "tradable": True,
        "marginable": margin.margin > 1,
        "shortable": margin.shorting,
        "easy_to_borrow": margin.shorting,
        "fractionable": rule.increment < 1,
        "maintenance_margin_requirement": 100 * margin.maintenance_margin if margin.margin > 1 else 100,
        "attributes": [],
        "min_order_size": decimal(rule.min_quantity),
        "min_trade_increment": decimal(rule.increment),
        "price_increment": decimal(1e-9 if crypto else 0.01),
    }


def _assets(venue: Venue, request: Request, body: Mapping[str, Any]) -> tuple[int, Any]:
    assets = [_asset(venue, asset) for asset in range(len(venue.names.wire))]
    wanted = request.query_params.get("asset_class"), request.query_params.get("status")
    return 200, [a for a in assets if wanted[0] in (None, a["class"]) and wanted[1] in (None, "active")]


def _account(venue: Venue, request: Request, body: Mapping[str, Any]) -> tuple[int, Any]:
    created = int(venue.market.timestamps[0])
    return 200, account.account_json(venue.books, venue.open_orders(), created, venue.last_equity)


def _activities(venue: Venue, request: Request, body: Mapping[str, Any]) -> tuple[int, Any]:
    """Newest first unless direction=asc; page_token: the id after which a page begins; category: trade_activity or
    non_trade_activity, in place of kinds; after, until: what is dated after, or before, a time."""
    query = request.query_params
    kinds, category = request.path_params.get("kind") or query.get("activity_types"), query.get("category")
    if category is not None and (kinds or category not in CATEGORIES):
        raise malformed(f"invalid category: {category!r}, accepted without types are {', '.join(CATEGORIES)}", 40010001)
    wanted = set(kinds.split(",")) if kinds else None
    after = nanoseconds(query["after"], "after") if query.get("after") else None
    until = nanoseconds(query["until"], "until") if query.get("until") else None

    def asked(activity: Mapping[str, Any]) -> bool:
        trade, moment = activity["activity_type"] == "FILL", activity.get("transaction_time") or activity["date"]
        return (
            (wanted is None or activity["activity_type"] in wanted)
            and (category is None or trade == (category == CATEGORIES[0]))
            and (after is None or nanoseconds(moment, "date") > after)
            and (until is None or nanoseconds(moment, "date") < until)
        )

    found = [activity for activity in venue.activities if asked(activity)]
    if query.get("direction") != "asc":
        found.reverse()
    if query.get("page_token"):
        ids = [activity["id"] for activity in found]
        if query["page_token"] not in ids:
            raise malformed("invalid page_token", 40010001)
        found = found[ids.index(query["page_token"]) + 1 :]
    size = query.get("page_size") or "100"
    if not size.isdigit() or not 1 <= int(size) <= 100:
        raise malformed(f"invalid page_size: {size!r}, accepted are 1 to 100", 40010001)
    return 200, found[: int(size)]


def _clock(venue: Venue, request: Request, body: Mapping[str, Any]) -> tuple[int, Any]:
    return 200, venue.sessions.clock(venue.now + request.state.skew)


TRADING: dict[tuple[str, str], Handler] = {
    ("POST", "/v2/orders"): lambda venue, request, body: (200, venue.submit(body)),
    ("GET", "/v2/orders"): _list_orders,
    ("DELETE", "/v2/orders"): lambda venue, request, body: (207, venue.cancel_all()),
    ("GET", "/v2/orders:by_client_order_id"): _order_by_client_id,
    ("GET", "/v2/orders/{order_id}"): lambda venue, request, body: (
        200, venue.order(request.path_params["order_id"]).to_json(venue.names),
    ),
    ("PATCH", "/v2/orders/{order_id}"): lambda venue, request, body: (
        200, venue.replace(request.path_params["order_id"], body),
    ),
    ("DELETE", "/v2/orders/{order_id}"): _cancel,
    ("GET", "/v2/account"): _account,
    ("GET", "/v2/account/activities"): _activities,
    ("GET", "/v2/account/activities/{kind}"): _activities,
    ("GET", "/v2/positions"): _positions,
    ("DELETE", "/v2/positions"): _close_all,
    ("GET", "/v2/positions/{symbol:path}"): lambda venue, request, body: (
        200, _position(venue, venue.held(request.path_params["symbol"])),
    ),
    ("DELETE", "/v2/positions/{symbol:path}"): _close_position,
    ("GET", "/v2/assets"): _assets,
    ("GET", "/v2/assets/{symbol:path}"): lambda venue, request, body: (
        200, _asset(venue, venue.names.asset(request.path_params["symbol"])),
    ),
    ("GET", "/v2/clock"): _clock,
    ("GET", "/v2/calendar"): lambda venue, request, body: (
        200, venue.sessions.calendar(request.query_params.get("start"), request.query_params.get("end")),
    ),
}  # fmt: skip


def json_response(status: int, content: Any) -> Response:
    """`content` as JSON; a 204 has none."""
    body = b"" if status == 204 else json.dumps(content, separators=(",", ":"), allow_nan=False).encode()
    return Response(body, status, media_type=None if status == 204 else "application/json")


async def nowhere(request: Request, error: Exception) -> Response:
    """The answer where there is no such path, or none for the method."""
    refused = not_found(f"endpoint not found: {request.method} {request.url.path}")
    return json_response(refused.status, refused.body)


def routes(local: LocalAlpaca) -> list[Route | WebSocketRoute]:
    """Every route of a venue."""
    made: list[Route | WebSocketRoute] = [
        Route(path, _endpoint(local, handler, keys=True), methods=[method])
        for (method, path), handler in TRADING.items()
    ]
    for path, asset_class in DATA.items():
        keys = asset_class == "stock"  # crypto data needs none
        made.append(Route(f"{path}/bars", _endpoint(local, _history(local, asset_class), keys), methods=["GET"]))
        for kind in ("bars", "trades", "quotes"):
            own = f"{path}/latest/{kind}" if asset_class == "crypto" else f"{path}/{kind}/latest"
            made.append(Route(own, _endpoint(local, _latest(local, asset_class, kind), keys), methods=["GET"]))
    for method, path, handler in (
        ("POST", "advance", _advance(local)), ("GET", "clock", _local_clock), ("POST", "activities", _happen),
    ):  # fmt: skip
        made.append(Route(f"/local/v1/{path}", _endpoint(local, handler, keys=False), methods=[method]))
    made.append(WebSocketRoute("/stream", local.hub.trading))
    made.append(WebSocketRoute("/v1beta3/crypto/{feed}", local.hub.data))
    made.append(WebSocketRoute("/v2/{feed}", local.hub.data))
    return made


def _endpoint(local: LocalAlpaca, handler: Handler, keys: bool) -> Callable:
    async def endpoint(request: Request) -> Response:
        try:
            if keys:
                _check_keys(local, request)
            body = _read(await request.body()) if request.method in ("POST", "PATCH") else {}
            with local.venue.lock:
                return json_response(*handler(local.venue, request, body))
        except Refused as refused:
            return json_response(refused.status, refused.body)

    return endpoint


def _read(raw: bytes) -> Mapping[str, Any]:
    try:
        body = json.loads(raw or b"{}")
    except ValueError:
        body = None
    if not isinstance(body, dict):
        raise Refused(400, 40010000, "request body format is invalid")
    return body


def _check_keys(local: LocalAlpaca, request: Request) -> None:
    """Keys in Alpaca's two headers, or as Basic authorization."""
    headers = request.headers
    key, secret = headers.get("apca-api-key-id", ""), headers.get("apca-api-secret-key", "")
    scheme, _, given = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "basic":
        try:
            key, _, secret = base64.b64decode(given).decode().partition(":")
        except ValueError:
            raise unauthorized() from None
    right = hmac.compare_digest(key.encode(), local.key.encode())
    if not (hmac.compare_digest(secret.encode(), local.secret.encode()) and right):
        raise unauthorized()


def _history(local: LocalAlpaca, asset_class: str) -> Handler:
    def handler(venue: Venue, request: Request, body: Mapping[str, Any]) -> tuple[int, Any]:
        _check_market(venue, asset_class)
        return 200, local.feed.history(request.query_params, venue.bar - request.state.behind)

    return handler


def _latest(local: LocalAlpaca, asset_class: str, kind: str) -> Handler:
    def handler(venue: Venue, request: Request, body: Mapping[str, Any]) -> tuple[int, Any]:
        _check_market(venue, asset_class)
        return 200, local.feed.latest(kind, request.query_params, venue.bar - request.state.behind)

    return handler


def _check_market(venue: Venue, asset_class: str) -> None:
    if venue.names.asset_class != asset_class:
        raise Refused(400, 40010001, f"this replay has bars of {venue.names.asset_class} only")


def _advance(local: LocalAlpaca) -> Handler:
    def handler(venue: Venue, request: Request, body: Mapping[str, Any]) -> tuple[int, Any]:
        played = local.advance()
        return 200, {"bar": local.closed_bar() if played else None, "more": venue.more}

    return handler


def _happen(venue: Venue, request: Request, body: Mapping[str, Any]) -> tuple[int, Any]:
    """What is no trade: {"activity_type": "CSD", "net_amount": "500"}, or {"activity_type": "SPLIT", "symbol": "AB",
    "ratio": 2}."""
    kind, name = str(body.get("activity_type")), body.get("symbol")
    try:
        if kind == "SPLIT":
            venue.split(str(name), float(body.get("ratio", "nan")))
        else:
            venue.move_cash(kind, float(body.get("net_amount", "")), name)
    except (TypeError, ValueError):
        raise malformed("net_amount and ratio must be numbers") from None
    return 200, list(venue.activities)[-1]


def _local_clock(venue: Venue, request: Request, body: Mapping[str, Any]) -> tuple[int, Any]:
    return 200, {"bar": venue.bar, "now": rfc3339(venue.now), "more": venue.more}
