"""The local venue's books against numbers worked out by hand, and against LocalBroker's."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest

from environments.alpaca_env import VectorizedCryptoEnvAlpaca, VectorizedStockEnvAlpaca
from environments.errors import InputError
from environments.live.alpaca_local.refusal import Refused
from environments.live.alpaca_local.venue import Venue
from environments.live.broker import Order
from environments.live.local import LocalBroker
from environments.market_env import MarketVecEnv

FREE = {"spread_bps": 0.0, "slippage_bps": 0.0, "impact_coef": 0.0}
KEEP = {"commission_bps": 0.0, "fee_in": "quote"}

pytestmark = pytest.mark.usefixtures("one_thread")


class Told:
    """A venue, and everything it said of its orders."""

    def __init__(self, env: MarketVecEnv, start: int = 1, stop: int | None = None, partial: float = 0.0) -> None:
        self.events: list[dict] = []
        self.venue = Venue(env, start, stop or env.market.n_bars, partial, 0, self.events.append)

    def send(self, side: str, qty: float, symbol: str = "S0", **terms) -> str:
        force = "gtc" if self.venue.names.asset_class == "crypto" else "day"
        body = {"symbol": symbol, "side": side, "qty": qty, "type": "market", "time_in_force": force, **terms}
        return self.venue.submit(body)["id"]

    def get(self, order_id: str) -> dict:
        return self.venue.order(order_id).to_json(self.venue.names)

    def status(self, order_id: str) -> str:
        return self.get(order_id)["status"]

    def said(self, order_id: str) -> list[str]:
        return [event["event"] for event in self.events if event["order"]["id"] == order_id]


@pytest.fixture
def crypto(make_market) -> Callable[..., MarketVecEnv]:
    """An environment over bars of S0 given as (open, high, low, close); its first bar is 100 all over."""

    def make(*bars: tuple[float, float, float, float], **options) -> MarketVecEnv:
        flat = (100.0, 100.0, 100.0, 100.0)
        market = make_market({"S0": [(*bar, 1e6) for bar in (flat, flat, *bars)]})
        return VectorizedCryptoEnvAlpaca(market, 1, features=["range"], **options)

    return make


@pytest.fixture
def stock(make_market) -> Callable[..., MarketVecEnv]:
    def make(*bars: tuple[float, float, float, float], timeframe: str = "1d", **options) -> MarketVecEnv:
        flat = (100.0, 100.0, 100.0, 100.0)
        bars_of = {"S0": [(*bar, 1e6) for bar in (flat, flat, *bars)]}
        market = make_market(bars_of, asset_class="stock", timeframe=timeframe)
        return VectorizedStockEnvAlpaca(market, 1, features=["range"], **options)

    return make


def test_the_crypto_fee_is_taken_from_what_is_received(crypto):
    """25 bps: who buys 0.1 holds 0.09975; who sells that at 200 receives 0.09975 * 200 * 0.9975 = 19.900125."""
    told = Told(crypto((20_000, 20_000, 20_000, 20_000), (200, 200, 200, 200), **FREE))
    bought = told.send("buy", 0.1)
    told.venue.advance()
    assert told.get(bought) | {"filled_at": None} == told.get(bought) | {
        "status": "filled", "filled_qty": "0.1", "filled_avg_price": "20000", "filled_at": None,
    }  # fmt: skip
    assert told.venue.books.units == [0.09975] and told.venue.books.cash == 98_000.0
    told.send("sell", 0.09975)
    told.venue.advance()
    assert told.venue.books.units == [0.0] and told.venue.books.cash == pytest.approx(98_019.900125, rel=1e-14)


def test_slippage_and_spread_are_in_the_price(crypto):
    """Spread 10 bps and nothing else: a buy at 100 pays 100.1, a sale receives 99.9; the commission comes on top."""
    told = Told(crypto((100,) * 4, (100,) * 4, spread_bps=10.0, slippage_bps=0.0, impact_coef=0.0))
    bought = told.send("buy", 10.0)
    told.venue.advance()
    assert float(told.get(bought)["filled_avg_price"]) == pytest.approx(100.1, rel=1e-12)
    assert told.venue.books.cash == pytest.approx(100_000 - 1_001, rel=1e-12)
    sold = told.send("sell", 9.975)
    told.venue.advance()
    # 9.975 * 100 less 25 bps and 10 bps of it, as one price of which the fee is a 25 bps share.
    assert float(told.get(sold)["filled_avg_price"]) == pytest.approx(100 * 0.9965 / 0.9975, rel=1e-12)
    assert told.venue.books.cash == pytest.approx(98_999 + 997.5 * 0.9965, rel=1e-12)


def test_a_fee_in_currency(crypto):
    """25 bps in currency: 10 at 100 cost 1002.5 and are 10."""
    told = Told(crypto((100,) * 4, (100,) * 4, fee_in="quote", **FREE))
    bought = told.send("buy", 10.0)
    told.venue.advance()
    assert told.venue.books.units == [10.0] and told.venue.books.cash == pytest.approx(98_997.5, rel=1e-14)
    assert float(told.get(bought)["filled_avg_price"]) == pytest.approx(100.0, rel=1e-12)


def test_what_the_cash_does_not_suffice_for_lapses(crypto):
    """The price doubles over night: an order for all the cash is filled by half, and the rest of it is canceled."""
    told = Told(crypto((200,) * 4, **FREE, **KEEP))
    order = told.send("buy", 1_000.0)
    told.venue.advance()
    assert told.said(order) == ["new", "partial_fill", "canceled"]
    # The books round down to increments, here 1e-9.
    assert float(told.get(order)["filled_qty"]) == pytest.approx(500, abs=2e-9)
    assert told.venue.books.cash == pytest.approx(0.0, abs=1e-6)


def test_a_market_order_lapses_with_a_bar_that_does_not_trade(make_market):
    bars = [(100.0, 100.0, 100.0, 100.0, v) for v in (1e6, 1e6, 0.0, 1e6)]
    told = Told(VectorizedCryptoEnvAlpaca(make_market({"S0": bars}), 1, features=["range"]))
    order = told.send("buy", 1.0)
    told.venue.advance()
    assert told.said(order) == ["new", "canceled"] and told.get(order)["filled_qty"] == "0"


def test_limit_orders(crypto):
    """Bars of open 100, high 110, low 90: reached limits fill at the limit, better opens at the open."""
    told = Told(crypto((100, 110, 90, 105), (100, 110, 90, 105), **FREE, **KEEP))
    sent = {
        "reached": told.send("buy", 1.0, type="limit", limit_price=95.0),
        "touched": told.send("buy", 1.0, type="limit", limit_price=90.0),
        "open is better": told.send("buy", 1.0, type="limit", limit_price=103.0),
        "out of reach": told.send("buy", 1.0, type="limit", limit_price=89.99),
        "ioc at the open": told.send("buy", 1.0, type="limit", limit_price=100.0, time_in_force="ioc"),
        "ioc too low": told.send("buy", 1.0, type="limit", limit_price=99.0, time_in_force="ioc"),
    }
    told.venue.advance()
    prices = {name: told.get(order)["filled_avg_price"] for name, order in sent.items()}
    assert prices == {
        "reached": "95", "touched": "90", "open is better": "100", "out of reach": None, "ioc at the open": "100",
        "ioc too low": None,
    }  # fmt: skip
    assert told.status(sent["out of reach"]) == "new" and told.status(sent["ioc too low"]) == "canceled"
    assert told.venue.books.cash == pytest.approx(100_000 - 95 - 90 - 100 - 100)
    told.venue.cancel(sent["out of reach"])
    sold = told.send("sell", 2.0, type="limit", limit_price=108.0)
    told.venue.advance()
    assert told.get(sold)["filled_avg_price"] == "108" and told.venue.books.units == [2.0]


def test_a_limit_costs_the_commission_alone(crypto):
    told = Told(crypto((100, 110, 90, 105)))
    order = told.send("buy", 10.0, type="limit", limit_price=95.0)
    told.venue.advance()
    assert float(told.get(order)["filled_avg_price"]) == pytest.approx(95, rel=1e-14)
    assert told.venue.books.units == pytest.approx([9.975], rel=1e-14)
    assert told.venue.books.cash == pytest.approx(100_000 - 950, rel=1e-14)


def test_stop_orders(stock):
    """A stop is a market order where it is reached, or at an open beyond it."""
    told = Told(stock((100, 104, 96, 100), (90, 95, 85, 92), (92, 92, 92, 92), **FREE))
    told.send("buy", 100.0)
    told.venue.advance()
    stops = [
        told.send("sell", 10.0, type="stop", stop_price=price, time_in_force="gtc") for price in (95.0, 88.0, 84.0)
    ]
    told.venue.advance()
    assert [told.get(order)["filled_avg_price"] for order in stops] == ["90", "88", None]
    told.venue.cancel(stops[2])
    entries = [
        told.send("buy", 1.0, type="stop", stop_price=92.0, time_in_force="gtc"),
        told.send("buy", 1.0, type="stop", stop_price=92.5, time_in_force="gtc"),
    ]
    told.venue.advance()
    assert [told.status(order) for order in entries] == ["filled", "new"]


def test_stop_limit_orders(crypto):
    """Reached at 105: within the limit it fills there; beyond it it rests, and fills when a later bar comes back."""
    told = Told(crypto((100, 106, 99, 105), (110, 112, 108, 110), (109, 110, 104, 105), **FREE, **KEEP))
    at_once = told.send("buy", 1.0, type="stop_limit", stop_price=105.0, limit_price=105.5)
    gapped = told.send("buy", 1.0, type="stop_limit", stop_price=107.0, limit_price=107.5)
    told.venue.advance()
    assert told.get(at_once)["filled_avg_price"] == "105" and told.status(gapped) == "new"
    told.venue.advance()
    assert told.status(gapped) == "new", "the open, 110, is beyond its limit"
    told.venue.advance()
    assert told.get(gapped)["filled_avg_price"] == "107.5"


def test_trailing_stops(stock):
    """Trail 5 from the best high: 100 at first, then 120, so it is reached at 115."""
    told = Told(stock((100,) * 4, (100, 120, 99, 118), (118, 119, 114, 116), **FREE))
    told.send("buy", 10.0)
    told.venue.advance()
    order = told.send("sell", 10.0, type="trailing_stop", trail_price=5.0, time_in_force="gtc")
    assert told.get(order)["hwm"] == "100" and told.get(order)["stop_price"] == "95"
    told.venue.advance()
    assert told.status(order) == "new" and told.get(order)["stop_price"] == "115"
    told.venue.advance()
    assert told.get(order)["filled_avg_price"] == "115"


def test_day_orders_end_with_their_session(stock):
    """Bars of 6 hours from 00:00: the session is a day of them; what is not reached by then has expired."""
    told = Told(stock(*[(100,) * 4] * 6, timeframe="6h", **FREE))
    day = told.send("buy", 1.0, type="limit", limit_price=50.0)
    good = told.send("buy", 1.0, type="limit", limit_price=50.0, time_in_force="gtc")
    told.venue.advance()
    assert told.status(day) in ("new", "accepted")
    told.venue.advance()
    assert told.said(day)[-1] == "expired" and told.status(good) in ("new", "accepted")


def test_orders_by_value(crypto):
    """1000 at a price of 80 are 12.5."""
    told = Told(crypto((80,) * 4, **FREE, **KEEP))
    body = {"symbol": "S0/USD", "side": "buy", "notional": "1000", "type": "market", "time_in_force": "gtc"}
    order = told.venue.submit(body)["id"]
    told.venue.advance()
    shown = told.get(order)
    assert (shown["status"], shown["qty"], shown["notional"], shown["filled_qty"]) == ("filled", None, "1000", "12.5")


def test_two_orders_of_a_symbol_share_one_fill(crypto):
    """1300 asked for at 200 with 200 000: the first has its 600, the second 400 of 700."""
    told = Told(crypto((200,) * 4, initial_cash=200_000.0, **FREE, **KEEP))
    first, second = told.send("buy", 600.0), told.send("buy", 700.0)
    told.venue.advance()
    assert told.get(first)["filled_qty"] == "600" and told.status(first) == "filled"
    assert float(told.get(second)["filled_qty"]) == pytest.approx(400, abs=2e-9) and told.said(second) == [
        "new",
        "partial_fill",
        "canceled",
    ]


def test_fills_in_two_parts(crypto):
    """Same price, and together what one fill would be; the same orders whatever else is sent."""
    whole, parts = (Told(crypto((100,) * 4, (100,) * 4), partial=share) for share in (0.0, 1.0))
    for told in (whole, parts):
        order = told.send("buy", 10.0, client_order_id="mine")
        told.venue.advance()
        assert told.get(order)["filled_qty"] == "10"
    assert [e["event"] for e in parts.events] == ["new", "partial_fill", "fill"]
    fills = [e for e in parts.events if e["event"] in ("partial_fill", "fill")]
    assert sum(float(e["qty"]) for e in fills) == pytest.approx(10.0, rel=1e-12)
    assert float(fills[0]["price"]) == pytest.approx(float(fills[1]["price"]), rel=1e-12)
    assert fills[0]["order"]["status"] == "partially_filled" and fills[1]["order"]["status"] == "filled"
    assert float(fills[0]["order"]["filled_qty"]) == float(fills[0]["qty"])
    assert parts.venue.books.cash == whole.venue.books.cash and parts.venue.books.units == whole.venue.books.units


def test_the_share_of_fills_in_two_parts(crypto):
    env = crypto(*[(100,) * 4] * 400)
    told = Told(env, partial=0.1)
    for n in range(400):
        told.send("buy", 1.0, client_order_id=f"order {n}")
        told.venue.advance()
    share = sum(event["event"] == "partial_fill" for event in told.events) / 400
    assert 0.06 < share < 0.14


def test_forced_close_of_a_margin_account(stock):
    """Long 3800 of value on 1000 of equity and the price falls by a fifth: 240 left for 3040, under a quarter."""
    env = stock((100,) * 4, (80,) * 4, margin=4.0, initial_cash=1_000.0, ruin=0.0, **FREE)
    told = Told(env)
    told.send("buy", 38.0)
    told.venue.advance()
    assert told.venue.books.units == [38.0] and told.venue.books.cash == -2_800.0
    told.venue.advance()
    assert told.venue.books.units == [0.0] and told.venue.books.cash == pytest.approx(240.0)
    forced = list(told.venue.orders.values())[-1]
    assert forced.client_order_id.startswith("forced-") and forced.terms.side == "sell" and forced.filled == 38.0


RULES = ({}, {"participation": 1e-4, "impact_reference": "volume"}, {"fill_at": "close"}, {"fee_in": "quote"})


@pytest.mark.parametrize("options", RULES, ids=str)
def test_random_orders_keep_local_brokers_books(make_market, random_bars, options):
    market = make_market(
        {
            "BTCUSDT": random_bars(1, 320, price=30_000.0, missing=0.03),
            "DOGEUSDT": random_bars(2, 320, price=0.1, sigma=0.03, idle=0.05),
            "AVAXUSDT": random_bars(3, 320, price=20.0, missing=0.05, idle=0.03),
        }
    )
    env = VectorizedCryptoEnvAlpaca(market, 1, features=["range"], **options)
    check_against_local_broker(env, 300, seed=1)


@pytest.mark.parametrize("options", [{}, {"margin": 2.0, "shorting": True, "margin_rate_bps": 800.0}], ids=str)
def test_random_stock_orders_keep_local_brokers_books(make_market, random_bars, options):
    bars = {f"S{n}": random_bars(n, 320, sigma=0.02, missing=0.02) for n in range(3)}
    market = make_market(bars, asset_class="stock", timeframe="1d")
    env = VectorizedStockEnvAlpaca(market, 1, features=["range"], **options)
    check_against_local_broker(env, 300, seed=2)


def check_against_local_broker(env: MarketVecEnv, bars: int, seed: int) -> None:
    """The same market orders to both: cash and units stay the same, and follow from what the orders say."""
    told, broker = Told(env, 10, 10 + bars, partial=0.1), LocalBroker(env, 10, 10 + bars)
    draw, names, cash, sent = random.Random(seed), told.venue.names, env.initial_cash, 0
    units = dict.fromkeys(env.market.symbols, 0.0)
    fee = env.frictions.commission_bps * 1e-4
    owing = not env.margin.cash_account
    while broker.next_bar() is not None:
        told.venue.advance()
        assert not told.venue.open_orders()
        for event in told.events:
            if event["event"] in ("fill", "partial_fill"):
                buy, qty, price = event["order"]["side"] == "buy", float(event["qty"]), float(event["price"])
                symbol = env.market.symbols[names.find(event["order"]["symbol"])]
                kept = buy and env.frictions.fee_in == "received"
                units[symbol] += qty * (1 - fee) if kept else qty if buy else -qty
                cash += -qty * price * (1 if kept else 1 + fee) if buy else qty * price * (1 - fee)
        told.events.clear()
        cash -= told.venue.books.interest
        assert told.venue.books.cash == pytest.approx(broker.cash(), rel=1e-12, abs=1e-9)
        assert told.venue.books.units == pytest.approx([broker.positions().get(s, 0.0) for s in units], rel=1e-12)
        assert cash == pytest.approx(broker.cash(), rel=1e-9, abs=1e-6 if owing else 1e-7)
        assert list(units.values()) == pytest.approx(told.venue.books.units, rel=1e-9, abs=1e-9)
        for asset in draw.sample(range(3), 2):
            mark, held = told.venue.books.marks[asset], told.venue.books.units[asset]
            if not mark:
                continue
            increment = float(env.rules.increment[asset])
            side = draw.choice(("buy", "sell"))
            size = held * draw.choice((0.5, 1.0)) if side == "sell" and not owing else 20_000 * draw.random() / mark
            quantity = size if size == held else np.floor(size / increment) * increment
            try:
                order_id = told.send(side, quantity, env.market.symbols[asset])
            except Refused:
                continue
            sent += 1
            broker.submit([Order(order_id, env.market.symbols[asset], side, quantity)])
    assert sent > 150, "too few orders to show anything"


def test_bars_that_are_not_there(crypto):
    env = crypto((100,) * 4)
    for window in ((-1, 2), (1, 2), (0, 4)):
        with pytest.raises(InputError, match="the market has 3"):
            Venue(env, *window, 0.0, 0, print)
    with pytest.raises(InputError, match="partial_fill_share=2"):
        Venue(env, 0, 3, 2.0, 0, print)
