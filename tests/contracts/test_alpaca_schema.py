"""The local venue's answers against what Alpaca publishes of its own: names, types and values of every field.

Orders, positions, accounts and assets are read off the OpenAPI description of the Trading API
(https://docs.alpaca.markets/openapi, version 2.0.1), the rest off alpaca-py's models; in a notation of our own: a kind,
with ? where null is accepted.
"""

from __future__ import annotations

import re
from datetime import datetime
from typing import Any
from uuid import UUID

import pytest
import requests

from environments.alpaca_env import VectorizedCryptoEnvAlpaca, VectorizedStockEnvAlpaca
from environments.live.alpaca_local.server import LocalAlpaca

pytestmark = pytest.mark.usefixtures("one_thread")

BAR = (100.0, 110.0, 90.0, 100.0, 1e6)
KEYS = {"APCA-API-KEY-ID": "local", "APCA-API-SECRET-KEY": "local"}
STATUSES = (
    "new partially_filled filled done_for_day canceled expired replaced pending_cancel pending_replace accepted "
    "pending_new accepted_for_bidding stopped rejected suspended calculated"
)
ORDER = {
    "id": "uuid", "client_order_id": "text", "created_at": "time", "updated_at": "time?", "submitted_at": "time?",
    "filled_at": "time?", "expired_at": "time?", "canceled_at": "time?", "failed_at": "time?", "replaced_at": "time?",
    "replaced_by": "uuid?", "replaces": "uuid?", "asset_id": "uuid", "symbol": "text",
    "asset_class": "us_equity|crypto", "notional": "decimal?", "qty": "decimal?", "filled_qty": "decimal",
    "filled_avg_price": "decimal?",
    "order_class": "|simple", "order_type": "market|limit|stop|stop_limit|trailing_stop",
    "type": "market|limit|stop|stop_limit|trailing_stop", "side": "buy|sell", "time_in_force": "day|gtc|ioc|fok",
    "limit_price": "decimal?", "stop_price": "decimal?", "status": STATUSES.replace(" ", "|"), "extended_hours": "flag",
    "legs": "nothing", "trail_percent": "decimal?", "trail_price": "decimal?", "hwm": "decimal?",
    "position_intent": "buy_to_open|buy_to_close|sell_to_open|sell_to_close",
}  # fmt: skip
POSITION = {
    "asset_id": "uuid", "symbol": "text", "exchange": "AMEX|ARCA|BATS|NYSE|NASDAQ|NYSEARCA|OTC|CRYPTO",
    "asset_class": "us_equity|crypto", "avg_entry_price": "decimal", "qty": "decimal", "qty_available": "decimal",
    "side": "long|short", "market_value": "decimal", "cost_basis": "decimal", "unrealized_pl": "decimal",
    "unrealized_plpc": "decimal", "unrealized_intraday_pl": "decimal", "unrealized_intraday_plpc": "decimal",
    "current_price": "decimal", "lastday_price": "decimal", "change_today": "decimal", "asset_marginable": "flag",
}  # fmt: skip
ACCOUNT = {
    "id": "uuid", "account_number": "text", "status": "ACTIVE", "currency": "text", "cash": "decimal",
    "portfolio_value": "decimal", "non_marginable_buying_power": "decimal", "accrued_fees": "decimal",
    "pending_transfer_in": "decimal", "trade_suspended_by_user": "flag", "trading_blocked": "flag",
    "transfers_blocked": "flag", "account_blocked": "flag", "created_at": "time", "shorting_enabled": "flag",
    "long_market_value": "decimal", "short_market_value": "decimal", "equity": "decimal", "last_equity": "decimal",
    "multiplier": "decimal", "buying_power": "decimal", "initial_margin": "decimal", "maintenance_margin": "decimal",
    "sma": "decimal", "last_maintenance_margin": "decimal", "regt_buying_power": "decimal",
}  # fmt: skip
ASSET = {
    "id": "uuid", "class": "us_equity|crypto", "exchange": "AMEX|ARCA|BATS|NYSE|NASDAQ|NYSEARCA|OTC|CRYPTO",
    "symbol": "text", "name": "text", "status": "active|inactive", "tradable": "flag", "marginable": "flag",
    "shortable": "flag", "easy_to_borrow": "flag", "fractionable": "flag", "maintenance_margin_requirement": "number",
    "attributes": "list",
}  # fmt: skip
FILL = {
    "id": "activity", "activity_type": "FILL", "transaction_time": "time", "type": "fill|partial_fill",
    "price": "decimal", "qty": "decimal", "side": "buy|sell", "symbol": "text", "leaves_qty": "decimal",
    "order_id": "uuid", "cum_qty": "decimal", "order_status": "filled|partially_filled",
}  # fmt: skip
CHARGE = {
    "id": "activity", "activity_type": "INT|CFEE|FEE", "date": "day", "net_amount": "decimal", "description": "text",
    "status": "executed|correct|canceled",
}  # fmt: skip
CLOCK = {"timestamp": "time", "is_open": "flag", "next_open": "time", "next_close": "time"}
DAY = {"date": "day", "open": "hour", "close": "hour"}
BAR_FIELDS = {"t": "time", "o": "number", "h": "number", "l": "number", "c": "number", "v": "number", "n": "whole",
              "vw": "number"}  # fmt: skip
QUOTE = {"t": "time", "ap": "number", "as": "number", "bp": "number", "bs": "number"}
TRADE = {"t": "time", "p": "number", "s": "number", "i": "whole"}
ERROR = {"code": "whole", "message": "text"}

PATTERNS = {
    "decimal": r"-?(0|[1-9][0-9]*)(\.[0-9]+)?",
    "time": r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,9})?(Z|[+-][0-9]{2}:[0-9]{2})",
    "day": r"[0-9]{4}-[0-9]{2}-[0-9]{2}",
    "hour": r"[0-2][0-9]:[0-5][0-9]",
    "activity": r"[0-9]{17}::[0-9a-f-]{36}",
    "text": r"(?s).+",
}


def fits(value: Any, kind: str) -> bool:
    if kind.endswith("?"):
        return value is None or fits(value, kind[:-1])
    if kind == "nothing":
        return value is None
    if kind in ("flag", "list"):
        return isinstance(value, {"flag": bool, "list": list}[kind])
    if kind in ("number", "whole"):
        return isinstance(value, int if kind == "whole" else (int, float)) and not isinstance(value, bool)
    if not isinstance(value, str):
        return False
    if kind == "uuid":
        return str(UUID(value)) == value
    if kind in PATTERNS:
        return re.fullmatch(PATTERNS[kind], value) is not None and (
            kind != "time" or bool(datetime.fromisoformat(value))
        )
    return value in kind.split("|")


def check(content: dict[str, Any], schema: dict[str, str]) -> None:
    missing = sorted(set(schema) - set(content))
    wrong = {name: content[name] for name, kind in schema.items() if name in content and not fits(content[name], kind)}
    assert not missing and not wrong, (missing, wrong)


@pytest.mark.parametrize(
    ("value", "kind", "good"),
    [
        ("1.5", "decimal", True), ("1e-9", "decimal", False), (1.5, "decimal", False), ("01", "decimal", False),
        (None, "decimal", False), (None, "decimal?", True), ("2021-03-01T00:00:00Z", "time", True),
        ("2021-03-01", "time", False), ("buy", "buy|sell", True), ("hold", "buy|sell", False), (True, "number", False),
    ],
)  # fmt: skip
def test_the_checker_checks(value, kind, good):
    assert fits(value, kind) is good


@pytest.fixture(scope="module", params=["crypto", "stock"])
def venue(request, make_market):
    """A venue on which a little of everything has happened."""
    if request.param == "crypto":
        env = VectorizedCryptoEnvAlpaca(make_market({"BTC/USD": [BAR] * 9}), 1, features=["range"])
    else:
        market = make_market({"SPY": [BAR] * 9}, asset_class="stock", timeframe="1d")
        terms = {"margin": 2.0, "shorting": True, "margin_rate_bps": 500.0, "borrow_bps": 100.0}
        env = VectorizedStockEnvAlpaca(market, 1, features=["range"], **terms)
    symbol, force = env.market.symbols[0], "gtc" if request.param == "crypto" else "day"
    with LocalAlpaca(env, 1, 9, partial_fill_share=0.5) as served:

        def send(**terms) -> dict:
            body = {"symbol": symbol, "side": "buy", "type": "market", "time_in_force": force, "qty": "1"} | terms
            answer = requests.post(served.url + "/v2/orders", json=body, headers=KEYS)
            check(answer.json(), ORDER)
            return answer.json()

        for n in range(4):
            send(qty=str(n + 0.5))
        served.advance()
        replaced = send(type="limit", limit_price="50.25")
        check(requests.patch(f"{served.url}/v2/orders/{replaced['id']}", json={"qty": "2"}, headers=KEYS).json(), ORDER)
        send(type="stop_limit", stop_price=150, limit_price=151)
        requests.delete(f"{served.url}/v2/orders/{send(type='limit', limit_price=50)['id']}", headers=KEYS)
        send(qty=None, notional="123.45")
        if request.param == "stock":
            send(type="trailing_stop", trail_percent="20")
            send(qty=1_800)
        served.advance()
        send(type="limit", limit_price="40")
        yield served


def get(venue: LocalAlpaca, path: str, **query) -> Any:
    return requests.get(venue.url + path, query, headers=KEYS).json()


def test_orders(venue):
    orders = get(venue, "/v2/orders", status="all", limit=500)
    crypto = venue.venue.names.asset_class == "crypto"
    for order in orders:
        check(order, ORDER)
        check(get(venue, f"/v2/orders/{order['id']}"), ORDER)
    statuses = {"filled", "canceled", "replaced", "new"} if crypto else {"filled", "expired", "canceled", "accepted"}
    assert statuses <= {order["status"] for order in orders}


def test_account_and_positions(venue):
    check(get(venue, "/v2/account"), ACCOUNT)
    positions = get(venue, "/v2/positions")
    assert len(positions) == 1 and "/" not in positions[0]["symbol"]
    check(positions[0], POSITION)
    check(get(venue, f"/v2/positions/{positions[0]['symbol']}"), POSITION)


def test_assets_clock_and_calendar(venue):
    for asset in get(venue, "/v2/assets"):
        check(asset, ASSET)
    check(get(venue, "/v2/clock"), CLOCK)
    days = get(venue, "/v2/calendar")
    assert days
    for day in days:
        check(day, DAY)


def test_activities(venue):
    activities = get(venue, "/v2/account/activities")
    assert {"fill", "partial_fill"} <= {activity.get("type") for activity in activities}
    for activity in activities:
        check(activity, FILL if activity["activity_type"] == "FILL" else CHARGE)
    kinds = {activity["activity_type"] for activity in activities}
    assert kinds == {"FILL", "INT" if venue.venue.names.asset_class == "stock" else "CFEE"}


def test_market_data(venue):
    crypto = venue.venue.names.asset_class == "crypto"
    symbol, path = ("BTC/USD", "/v1beta3/crypto/us") if crypto else ("SPY", "/v2/stocks")
    history = get(venue, f"{path}/bars", symbols=symbol, timeframe="1Hour" if crypto else "1Day")
    assert set(history) == {"bars", "next_page_token"} and len(history["bars"][symbol]) == 4
    for bar in history["bars"][symbol]:
        check(bar, BAR_FIELDS)
    for kind, schema in (("bars", BAR_FIELDS), ("quotes", QUOTE), ("trades", TRADE)):
        latest = get(venue, f"{path}/latest/{kind}" if crypto else f"{path}/{kind}/latest", symbols=symbol)
        check(latest[kind][symbol], schema)


def test_errors(venue):
    nobody = "61e69015-8549-4bfd-b9c3-01e75843f47d"
    for path in (
        "/v2/orders/x",
        f"/v2/orders/{nobody}",
        "/v2/positions/XYZ",
        "/v2/assets/XYZ",
        "/v2/orders?limit=0",
        "/v2/no",
    ):
        check(get(venue, path), ERROR)
    answer = requests.get(venue.url + "/v2/account")
    assert answer.status_code == 401
    check(answer.json(), ERROR)
