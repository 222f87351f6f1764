"""What the local venue accepts and refuses, and how it writes it."""

from __future__ import annotations

import pytest

from environments.alpaca_env import VectorizedCryptoEnvAlpaca, VectorizedStockEnvAlpaca
from environments.live.alpaca_local import venue as venue_module
from environments.live.alpaca_local.refusal import Refused
from environments.live.alpaca_local.session import SessionClock
from environments.live.alpaca_local.venue import Venue
from environments.live.alpaca_local.wire import Names, decimal, nanoseconds, rfc3339, wire_symbol

pytestmark = pytest.mark.usefixtures("one_thread")

BAR = (100.0, 110.0, 90.0, 100.0, 1e6)


@pytest.fixture
def crypto(make_market) -> Venue:
    market = make_market({"BTC/USD": [BAR] * 6, "ETHUSDT": [BAR] * 6})
    return Venue(VectorizedCryptoEnvAlpaca(market, 1, features=["range"]), 1, 6, 0.0, 0, lambda update: None)


@pytest.fixture
def stock(make_market) -> Venue:
    market = make_market({"SPY": [BAR] * 6}, asset_class="stock", timeframe="1d")
    return Venue(VectorizedStockEnvAlpaca(market, 1, features=["range"]), 1, 6, 0.0, 0, lambda update: None)


def order(**changes) -> dict:
    body = {"symbol": "BTC/USD", "side": "buy", "type": "market", "time_in_force": "gtc", "qty": "1"} | changes
    return {name: value for name, value in body.items() if value is not None}


def refusal(venue: Venue, **changes) -> tuple[int, int, str]:
    with pytest.raises(Refused) as caught:
        venue.submit(order(**changes))
    assert not venue.open_orders() or "client_order_id" in changes or caught.value.status == 403
    return caught.value.status, caught.value.code, caught.value.message


MALFORMED = {
    "no such symbol": {"symbol": "XYZ/USD"},
    "no symbol": {"symbol": None},
    "side": {"side": "hold"},
    "no type": {"type": None},
    "a stop": {"type": "stop", "stop_price": 90},
    "a day order": {"time_in_force": "day"},
    "no time in force": {"time_in_force": None},
    "a bracket": {"order_class": "bracket"},
    "no quantity": {"qty": None},
    "both quantities": {"notional": 100},
    "quantity 0": {"qty": 0},
    "quantity below 0": {"qty": "-1"},
    "quantity NaN": {"qty": "nan"},
    "quantity as a word": {"qty": "one"},
    "quantity true": {"qty": True},
    "limit without a price": {"type": "limit"},
    "stop_limit without a limit": {"type": "stop_limit", "stop_price": 90},
    "market with a limit": {"limit_price": 90},
    "limit by value": {"type": "limit", "limit_price": 90, "qty": None, "notional": 50},
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_orders(crypto, case):
    status, code, message = refusal(crypto, **MALFORMED[case])
    assert (status, code) == (422, 42210000) and message


def test_what_stocks_may_be(stock):
    spy = {"symbol": "SPY", "time_in_force": "day", "qty": 1}
    for changes in (
        {},
        {"qty": 0.5},
        {"type": "stop", "stop_price": 120},
        {"type": "trailing_stop", "trail_percent": 5},
        {"time_in_force": "gtc"},
        {"time_in_force": "fok", "type": "limit", "limit_price": 100},
    ):
        assert stock.submit(order(**(spy | changes)))["status"] == "pending_new"
        stock.cancel_all()
    for changes in (
        {"qty": 0.5, "time_in_force": "gtc"},
        {"type": "trailing_stop"},
        {"type": "trailing_stop", "trail_percent": 5, "trail_price": 1},
        {"order_class": "oco"},
        {"time_in_force": "opg"},
    ):
        assert refusal(stock, **(spy | changes))[:2] == (422, 42210000)


def test_client_order_ids_are_unique_also_after_the_order_ended(crypto):
    first = crypto.submit(order(client_order_id="a"))
    for _ in range(2):
        assert refusal(crypto, client_order_id="a") == (422, 40010001, "client_order_id must be unique")
        if crypto.open_orders():
            crypto.cancel(first["id"])
    assert refusal(crypto, client_order_id="x" * 129)[:2] == (422, 40010001)
    assert crypto.submit(order())["client_order_id"] != ""


def test_too_small_too_much_too_dear(crypto):
    assert refusal(crypto, qty=0.0999)[:2] == (403, 40310000)
    assert "minimal amount of order 10" in refusal(crypto, qty=0.0999)[2]
    assert crypto.submit(order(qty=0.1))["qty"] == "0.1"
    assert refusal(crypto, qty=1_000)[:2] == (403, 40310000), "10 of the 100 000 are spoken for"
    assert "insufficient balance for USD" in refusal(crypto, qty=1_000)[2]
    crypto.submit(order(qty=999.9))
    assert refusal(crypto, symbol="ETH/USDT", qty=0.2)[0] == 403
    crypto.cancel_all()
    assert crypto.submit(order(qty=1_000))["status"] == "pending_new"


def test_no_shorts_in_crypto(crypto):
    status, code, message = refusal(crypto, side="sell", qty=0.5)
    assert (status, code) == (403, 40310000)
    assert message == "insufficient balance for BTC (requested: 0.5, available: 0)"
    crypto.submit(order(qty=1))
    crypto.advance()
    crypto.submit(order(side="sell", qty=0.9, type="limit", limit_price=200))
    assert "available: 0.097" in refusal(crypto, side="sell", qty=0.5, type="limit", limit_price=200)[2]


def test_no_shorts_in_a_cash_account_of_stocks(stock):
    spy = {"symbol": "SPY", "time_in_force": "day"}
    assert refusal(stock, **spy, side="sell")[2] == "account is not allowed to short"
    stock.submit(order(**spy, qty=3))
    stock.advance()
    assert "insufficient qty available for order (requested: 4, available: 3)" in refusal(
        stock, **spy, side="sell", qty=4)[2]  # fmt: skip


def test_a_buy_may_use_what_open_market_sells_bring(crypto):
    crypto.submit(order(qty=900))
    crypto.advance()
    assert refusal(crypto, symbol="ETHUSDT", qty=500)[0] == 403
    crypto.submit(order(side="sell", qty=800, type="limit", limit_price=150))
    assert refusal(crypto, symbol="ETHUSDT", qty=500)[0] == 403, "a limit may never be reached"
    crypto.cancel_all()
    crypto.submit(order(side="sell", qty=800))
    assert crypto.submit(order(symbol="ETHUSDT", qty=500))["symbol"] == "ETH/USDT"


def test_margin_reaches_as_far_as_the_limit(make_market):
    market = make_market({"SPY": [BAR] * 6}, asset_class="stock", timeframe="1d")
    env = VectorizedStockEnvAlpaca(market, 1, features=["range"], margin=2.0, shorting=True)
    venue = Venue(env, 1, 6, 0.0, 0, lambda update: None)
    spy = {"symbol": "SPY", "time_in_force": "day"}
    assert refusal(venue, **spy, qty=2_001)[2] == "insufficient buying power"
    assert refusal(venue, **spy, side="sell", qty=2_001)[2] == "insufficient buying power"
    venue.submit(order(**spy, side="sell", qty=1_500))
    assert refusal(venue, **spy, side="sell", qty=501)[:2] == (403, 40310000)
    venue.submit(order(**spy, side="sell", qty=500))


@pytest.fixture
def lender(make_market) -> Venue:
    """Sells short, lends as much as there is."""
    market = make_market({"SPY": [BAR] * 8}, asset_class="stock", timeframe="1d")
    env = VectorizedStockEnvAlpaca(market, 1, features=["range"], margin=2.0, shorting=True)
    return Venue(env, 1, 8, 0.0, 0, lambda update: None)


SPY = {"symbol": "SPY", "time_in_force": "day"}
FRACTION = (422, 42210000, "fractional orders cannot be sold short")


def test_parts_of_a_share_are_not_sold_short(lender):
    for changes in ({"qty": 1.5}, {"qty": None, "notional": 150}, {"qty": 0.5, "type": "limit", "limit_price": 105}):
        assert refusal(lender, **SPY, side="sell", **changes) == FRACTION
    lender.submit(order(**SPY, side="sell", qty=2))
    lender.advance()
    assert refusal(lender, **SPY, side="sell", qty=0.5) == FRACTION, "nor of one that is short already"
    assert lender.books.units == [-2.0]


def test_no_order_takes_a_position_through_zero(lender):
    lender.submit(order(**SPY, qty=10.5))
    lender.advance()
    status, code, message = refusal(lender, **SPY, side="sell", qty=12)
    assert (status, code) == (403, 40310000)
    assert message == "insufficient qty available for order (requested: 12, available: 10.5)"
    assert refusal(lender, **SPY, side="sell", qty=12.5) == FRACTION
    # In two it goes: the one that closes fills first.
    close = lender.submit(order(**SPY, side="sell", qty=10.5, client_order_id="close"))
    opens = lender.submit(order(**SPY, side="sell", qty=3, client_order_id="opens"))
    assert (close["position_intent"], opens["position_intent"]) == ("sell_to_close", "sell_to_open")
    lender.advance()
    assert lender.books.units == [-3.0] and {o.status for o in lender.orders.values()} == {"filled"}
    # And back.
    assert refusal(lender, **SPY, qty=4)[2] == "insufficient qty available for order (requested: 4, available: 3)"
    lender.submit(order(**SPY, qty=3, client_order_id="cover"))
    lender.submit(order(**SPY, qty=1.25, client_order_id="long"))
    lender.advance()
    assert lender.books.units == [1.25]


def test_what_rests_is_spoken_for(lender):
    lender.submit(order(**SPY, qty=10))
    lender.advance()
    lender.submit(order(**SPY, side="sell", qty=4, type="limit", limit_price=200))
    assert "available: 6" in refusal(lender, **SPY, side="sell", qty=7, type="limit", limit_price=200)[2]


def test_wash_trades(crypto):
    crypto.submit(order(qty=2))
    crypto.advance()
    resting = crypto.submit(order(side="sell", type="limit", limit_price=105))
    with pytest.raises(Refused, match="potential wash trade") as caught:
        crypto.submit(order())
    assert caught.value.fields["existing_order_id"] == resting["id"] and caught.value.code == 40310000
    assert refusal(crypto, type="limit", limit_price=105)[0] == 403, "the two could meet"
    assert crypto.submit(order(type="limit", limit_price=104.9))
    assert crypto.submit(order(symbol="ETHUSDT")), "another symbol"


def test_replacing(crypto):
    old = crypto.submit(order(type="limit", limit_price=80, client_order_id="a"))
    with pytest.raises(Refused, match="at least one"):
        crypto.replace(old["id"], {})
    new = crypto.replace(old["id"], {"limit_price": "85", "qty": "2", "client_order_id": "b"})
    was = crypto.order(old["id"]).to_json(crypto.names)
    assert was["status"] == "replaced" and was["replaced_by"] == new["id"] and was["replaced_at"]
    assert (new["replaces"], new["limit_price"], new["qty"]) == (old["id"], "85", "2")
    assert new["id"] != old["id"] and [o.id for o in crypto.open_orders()] == [new["id"]]
    with pytest.raises(Refused, match='already in "replaced" state') as caught:
        crypto.replace(old["id"], {"qty": 3})
    assert caught.value.status == 422
    with pytest.raises(Refused, match="must be unique"):
        crypto.replace(new["id"], {"qty": 3, "client_order_id": "a"})
    with pytest.raises(Refused, match="insufficient balance") as caught:
        crypto.replace(new["id"], {"qty": 5_000})
    assert caught.value.status == 403 and crypto.order(new["id"]).open, "a refused change changes nothing"
    with pytest.raises(Refused, match="do not accept stop_price"):
        crypto.replace(new["id"], {"stop_price": 70})
    by_value = crypto.submit(order(symbol="ETHUSDT", qty=None, notional=50))
    with pytest.raises(Refused, match="notional orders cannot be replaced"):
        crypto.replace(by_value["id"], {"qty": 1})


def test_replacing_what_was_filled_in_part(make_market):
    """100 of 300 fill, a bar's whole share; the new order of 250 asks for the 150 that are left of it."""
    bars = [(100.0, 100.0, 100.0, 100.0, 1_000.0)] * 6
    env = VectorizedCryptoEnvAlpaca(make_market({"BTC/USD": bars}), 1, features=["range"], participation=0.1)
    venue = Venue(env, 1, 6, 0.0, 0, lambda update: None)
    old = venue.submit(order(qty=300, type="limit", limit_price=100))
    venue.advance()
    assert venue.order(old["id"]).status == "partially_filled" and venue.order(old["id"]).filled == 100
    with pytest.raises(Refused, match="qty must be > filled_qty"):
        venue.replace(old["id"], {"qty": 100})
    assert venue.replace(old["id"], {"qty": 250})["qty"] == "150"
    assert venue.books.units == [99.75]


def test_canceling(crypto):
    first = crypto.submit(order())
    crypto.cancel(first["id"])
    with pytest.raises(Refused, match='already in "canceled" state') as caught:
        crypto.cancel(first["id"])
    assert caught.value.status == 422
    with pytest.raises(Refused, match="order not found") as caught:
        crypto.cancel("61e69015-8549-4bfd-b9c3-01e75843f47d")
    assert (caught.value.status, caught.value.code) == (404, 40410000)
    with pytest.raises(Refused, match="not a valid UUID"):
        crypto.cancel("first")
    orders = [crypto.submit(order(qty=1)), crypto.submit(order(qty=2))]
    assert crypto.cancel_all() == [{"id": o["id"], "status": 200} for o in orders]
    crypto.advance()
    assert crypto.books.cash == 100_000


def test_a_late_cancel_may_lose(crypto):
    market, resting = crypto.submit(order()), crypto.submit(order(type="limit", limit_price=50))
    for sent in (market, resting):
        crypto.later = "late_cancel"
        crypto.cancel(sent["id"])
        assert crypto.order(sent["id"]).status == "pending_cancel"
    crypto.advance()
    assert [crypto.order(sent["id"]).status for sent in (market, resting)] == ["filled", "canceled"]


def test_an_order_may_be_rejected_after_it_was_taken(crypto):
    crypto.later = "late_reject"
    doomed, fine = crypto.submit(order(qty=2)), crypto.submit(order(qty=1))
    assert crypto.order(doomed["id"]).status == "new"
    crypto.advance()
    shown = crypto.order(doomed["id"]).to_json(crypto.names)
    assert shown["status"] == "rejected" and shown["failed_at"] and shown["filled_qty"] == "0"
    assert crypto.order(fine["id"]).status == "filled" and crypto.books.units[0] == 0.9975


def test_closing_positions(crypto):
    with pytest.raises(Refused, match="position does not exist") as caught:
        crypto.close_position("BTCUSD")
    assert caught.value.status == 404
    crypto.submit(order(qty=4))
    crypto.advance()
    half = crypto.close_position("BTCUSD", share=0.5)
    assert half["side"] == "sell" and float(half["qty"]) == 1.995
    crypto.advance()
    crypto.close_position("BTC/USD")
    crypto.advance()
    assert crypto.books.units == [0.0, 0.0]


def test_only_the_newest_ended_orders_are_kept(crypto, monkeypatch):
    monkeypatch.setattr(venue_module, "KEPT", 3)
    resting = crypto.submit(order(type="limit", limit_price=50, client_order_id="rests"))
    for n in range(5):
        crypto.cancel(crypto.submit(order(client_order_id=f"{n}"))["id"])
    assert set(crypto.by_client_id) == {"rests", "2", "3", "4"} and len(crypto.orders) == 4
    assert crypto.order(resting["id"]).open


@pytest.mark.parametrize(
    ("number", "text"),
    [(0.1, "0.1"), (12.0, "12"), (1e-9, "0.000000001"), (-2.5, "-2.5"), (1e22, "10000000000000000000000"), (0.0, "0")],
)
def test_decimals_have_no_exponent_and_read_back(number, text):
    assert decimal(number) == text and float(text) == number


def test_times():
    assert rfc3339(0) == "1970-01-01T00:00:00Z" and rfc3339(1_500_000_000) == "1970-01-01T00:00:01.5Z"
    assert nanoseconds("1970-01-02", "start") == 86_400 * 10**9
    assert nanoseconds("1970-01-01T01:00:00.5+01:00", "start") == 500_000_000
    assert nanoseconds("2021-03-01T10:00:00Z", "start") == nanoseconds("2021-03-01T10:00:00", "start")
    with pytest.raises(Refused, match="invalid start"):
        nanoseconds("soon", "start")


def test_symbols():
    assert [wire_symbol(s, "crypto") for s in ("BTCUSDT", "BTC/USD", "ETH-USDC", "DOGEUSD", "SYN0")] == [
        "BTC/USDT", "BTC/USD", "ETH/USDC", "DOGE/USD", "SYN0/USD",
    ]  # fmt: skip
    assert wire_symbol("BRK.B", "stock") == "BRK.B"
    names = Names(["BTCUSDT", "BTC/USD"], "crypto")
    assert names.held == ["BTCUSDT", "BTCUSD"] and names.find("BTC/USDT") == 0 == names.find(names.ids[0])
    assert names.find("BTCUSD") == 1 and names.find("ETH/USD") is None


def test_the_clock_of_daily_bars(stock):
    """Monday to Saturday, 1 to 6 March 2021 in the file: the clock stands at midnight after each bar."""
    clock = stock.sessions.clock(stock.now)
    assert clock["timestamp"] == "2021-03-02T19:00:00-05:00" and clock["is_open"] is False
    assert clock["next_open"] == "2021-03-03T09:30:00-05:00" and clock["next_close"] == "2021-03-03T16:00:00-05:00"
    assert stock.sessions.is_open(nanoseconds("2021-03-02T10:00:00-05:00", "now"))
    days = stock.sessions.calendar("2021-03-02", "2021-03-03")
    assert [(day["date"], day["open"], day["close"]) for day in days] == [
        ("2021-03-02", "09:30", "16:00"), ("2021-03-03", "09:30", "16:00"),
    ]  # fmt: skip


def test_a_half_day_is_read_off_the_bars(make_market):
    """Sessions of 7, 4 and 7 hourly bars from 14:30 UTC, with nights between."""
    market = make_market({"SPY": [BAR] * 18}, asset_class="stock", pauses={7: "17h", 11: "20h"})
    sessions = SessionClock(market)
    stamps, hour = market.timestamps.tolist(), 3_600 * 10**9
    assert sessions.opens[:3].tolist() == [stamps[0], stamps[7], stamps[11]]
    assert sessions.closes[:3].tolist() == [stamps[6] + hour, stamps[10] + hour, stamps[17] + hour]
    assert sessions.is_open(stamps[9]) and not sessions.is_open(stamps[10] + hour)
