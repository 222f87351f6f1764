"""alpaca-py, unchanged, against the local venue: what its models accept is Alpaca's schema."""

from __future__ import annotations

import asyncio
import json
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from types import SimpleNamespace

import pytest
import requests
from alpaca.common.exceptions import APIError
from alpaca.data.historical.crypto import CryptoHistoricalDataClient
from alpaca.data.historical.stock import StockHistoricalDataClient
from alpaca.data.live.crypto import CryptoDataStream
from alpaca.data.live.stock import StockDataStream
from alpaca.data.requests import (
    CryptoBarsRequest,
    CryptoLatestBarRequest,
    CryptoLatestQuoteRequest,
    CryptoLatestTradeRequest,
    StockBarsRequest,
    StockLatestBarRequest,
    StockLatestQuoteRequest,
)
from alpaca.data.timeframe import TimeFrame, TimeFrameUnit
from alpaca.trading.client import TradingClient
from alpaca.trading.models import NonTradeActivity, TradeActivity
from alpaca.trading.requests import (
    ClosePositionRequest,
    GetAssetsRequest,
    GetCalendarRequest,
    GetOrdersRequest,
    LimitOrderRequest,
    MarketOrderRequest,
    ReplaceOrderRequest,
    StopLimitOrderRequest,
    StopOrderRequest,
    TrailingStopOrderRequest,
)
from alpaca.trading.stream import TradingStream
from websockets.sync.client import connect

from environments.alpaca_env import VectorizedCryptoEnvAlpaca, VectorizedStockEnvAlpaca
from environments.live.alpaca_local.server import LocalAlpaca
from environments.live.alpaca_local.wire import wire_symbol
from environments.live.broker import Order
from environments.live.local import LocalBroker

pytestmark = pytest.mark.usefixtures("one_thread")

BAR = (100.0, 110.0, 90.0, 100.0, 1e6)
BTC = {"symbol": "BTC/USD", "time_in_force": "gtc"}
SPY = {"symbol": "SPY", "time_in_force": "day"}
OWING = {"margin": 2.0, "margin_rate_bps": 800.0, "spread_bps": 0.0, "slippage_bps": 0.0, "impact_coef": 0.0}


@pytest.fixture(scope="module")
def coins(make_market):
    market = make_market({"BTC/USD": [BAR] * 12, "ETHUSDT": [None] * 3 + [BAR] * 9})
    return VectorizedCryptoEnvAlpaca(market, 1, features=["range"])


@pytest.fixture(scope="module")
def shares(make_market):
    market = make_market({"SPY": [BAR] * 12, "AAPL": [BAR] * 12}, asset_class="stock", timeframe="1d")
    return VectorizedStockEnvAlpaca(market, 1, features=["range"], **OWING)


@pytest.fixture(scope="module")
def server(coins) -> Iterator[LocalAlpaca]:
    with LocalAlpaca(coins, 2, 12) as served:
        yield served


@pytest.fixture
def crypto(server, coins) -> LocalAlpaca:
    server.reset(coins, 2, 12, partial_fill_share=0.0)
    return server


@pytest.fixture
def stock(server, shares) -> LocalAlpaca:
    server.reset(shares, 2, 12, partial_fill_share=0.0)
    return server


def trading(venue: LocalAlpaca) -> TradingClient:
    return TradingClient("local", "local", paper=True, url_override=venue.url)


def eventually(holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < deadline, f"{what} did not come"
        time.sleep(0.002)


@contextmanager
def running(stream) -> Iterator[None]:
    thread = threading.Thread(target=stream.run, daemon=True)
    thread.start()
    yield
    stream.stop()
    # Its loop looks at the stop once it has received something, or after 5 s: the connection ends that wait.
    asyncio.run_coroutine_threadsafe(stream.close(), stream._loop)
    thread.join(10)


def test_a_market_order_from_the_post_to_the_position(crypto):
    client = trading(crypto)
    account = client.get_account()
    assert (account.cash, account.buying_power, account.multiplier) == ("100000", "100000", "1")
    assert account.pattern_day_trader is None and account.status == "ACTIVE"
    sent = client.submit_order(MarketOrderRequest(**BTC, side="buy", qty=0.1, client_order_id="mine"))
    assert (sent.status, sent.symbol, sent.qty, sent.filled_qty) == ("pending_new", "BTC/USD", "0.1", "0")
    assert client.get_order_by_id(sent.id).status == "new" and client.get_all_positions() == []
    assert crypto.advance()
    done = client.get_order_by_client_id("mine")
    assert (done.id, done.status, done.filled_qty) == (sent.id, "filled", "0.1") and done.filled_at > sent.submitted_at
    position = client.get_open_position("BTCUSD")
    assert (position.symbol, position.qty, position.side) == ("BTCUSD", "0.09975", "long")
    assert float(position.avg_entry_price) == pytest.approx(100, rel=1e-12) and position.current_price == "100"
    assert client.get_open_position("BTC/USD") == client.get_all_positions()[0] == position
    fee, fill = client.get("/account/activities")
    assert (TradeActivity(**fill).qty, NonTradeActivity(**fee).qty) == (0.1, pytest.approx(-0.00025, rel=1e-12))
    after = client.get_account()
    assert float(after.cash) == crypto.cash < 90_000 + 10_000 and float(after.equity) == crypto.equity
    assert crypto.positions == {"BTC/USD": 0.09975} and crypto.orders[0]["id"] == str(sent.id)


def test_listing_orders(crypto):
    client = trading(crypto)
    for n in range(3):
        client.submit_order(LimitOrderRequest(**BTC, side="buy", qty=1, limit_price=80, client_order_id=f"old {n}"))
    client.cancel_order_by_id(client.get_order_by_client_id("old 1").id)
    crypto.advance()
    late = client.submit_order(
        LimitOrderRequest(symbol="ETH/USDT", time_in_force="gtc", side="buy", qty=1, limit_price=80)
    )

    def ids(**query) -> list[str]:
        return [order.client_order_id for order in client.get_orders(GetOrdersRequest(**query))]

    assert [order.client_order_id for order in client.get_orders()] == [late.client_order_id, "old 2", "old 0"]
    assert ids(status="open", direction="asc", limit=2) == ["old 0", "old 2"]
    assert ids(status="closed") == ["old 1"] and len(ids(status="all")) == 4
    assert ids(symbols=["ETH/USDT"]) == [late.client_order_id] == ids(symbols=["ETHUSDT"])
    first = client.get_order_by_client_id("old 0")
    assert ids(status="all", until=late.submitted_at, direction="asc") == ["old 0", "old 1", "old 2"]
    assert ids(status="all", after=first.submitted_at, direction="asc")[0] == "old 1"
    assert ids(side="sell") == []


def test_replacing_and_canceling(crypto):
    client = trading(crypto)
    old = client.submit_order(LimitOrderRequest(**BTC, side="buy", qty=1, limit_price=80))
    new = client.replace_order_by_id(old.id, ReplaceOrderRequest(limit_price=85.5, qty=2, client_order_id="new"))
    assert (new.replaces, new.limit_price, new.qty, new.client_order_id) == (old.id, "85.5", "2", "new")
    was = client.get_order_by_id(old.id)
    assert was.status == "replaced" and was.replaced_by == new.id
    assert client.cancel_order_by_id(new.id) is None and client.get_order_by_id(new.id).status == "canceled"
    for _ in range(2):
        client.submit_order(StopLimitOrderRequest(**BTC, side="buy", qty=1, stop_price=120, limit_price=121))
    assert [told.status for told in client.cancel_orders()] == [200, 200]
    assert requests.delete(crypto.url + "/v2/orders", headers=client._get_auth_headers()).status_code == 207


def test_errors_have_alpacas_codes(crypto):
    client = trading(crypto)

    def code(call: Callable, *arguments) -> tuple[int, int]:
        with pytest.raises(APIError) as caught:
            call(*arguments)
        assert caught.value.message
        return caught.value.status_code, caught.value.code

    def buying(qty: float, **terms) -> tuple[int, int]:
        return code(client.submit_order, MarketOrderRequest(**BTC, side="buy", qty=qty, **terms))

    assert buying(2_000) == (403, 40310000) == buying(0.01)
    assert code(client.submit_order, MarketOrderRequest(**BTC, side="sell", qty=1)) == (403, 40310000)
    client.submit_order(LimitOrderRequest(**BTC, side="buy", qty=1, limit_price=80, client_order_id="once"))
    assert buying(1, client_order_id="once") == (422, 40010001)
    assert code(client.submit_order, StopOrderRequest(**BTC, side="buy", qty=1, stop_price=120)) == (422, 42210000)
    nobody = "61e69015-8549-4bfd-b9c3-01e75843f47d"
    assert code(client.get_order_by_id, nobody) == (404, 40410000) == code(client.cancel_order_by_id, nobody)
    assert code(client.get_order_by_client_id, "never") == (404, 40410000) == code(client.get_open_position, "ETHUSDT")
    assert code(client.get_asset, "XYZ") == (404, 40410000)
    stranger = TradingClient("local", "wrong", url_override=crypto.url)
    assert code(stranger.get_account) == (401, 40110000)
    assert requests.post(crypto.url + "/v2/orders", b"{", headers=client._get_auth_headers()).status_code == 400


def test_stocks_and_what_they_cost_on_margin(stock):
    client = trading(stock)
    assert client.get_account().buying_power == "200000"
    bought = client.submit_order(MarketOrderRequest(**SPY, side="buy", qty=1_500))
    assert bought.status == "pending_new" and client.get_order_by_id(bought.id).status == "accepted", "it is night"
    stock.advance()
    orders = [
        StopOrderRequest(**SPY, side="sell", qty=10, stop_price=80),
        StopLimitOrderRequest(**SPY, side="sell", qty=10, stop_price=80, limit_price=79),
        TrailingStopOrderRequest(**SPY, side="sell", qty=10, trail_percent=30),
        LimitOrderRequest(**SPY, side="sell", qty=10, limit_price=110),
    ]
    sent = [client.submit_order(order) for order in orders]
    assert sent[2].hwm == "100" and sent[2].stop_price == "70"
    stock.advance()
    assert [client.get_order_by_id(order.id).status for order in sent] == ["expired"] * 3 + ["filled"]
    position = client.get_open_position("SPY")
    assert position.qty == "1490" and position.asset_class == "us_equity"
    told = client.get("/account/activities")
    fills = [TradeActivity(**activity) for activity in told if activity["activity_type"] == "FILL"]
    interest = [NonTradeActivity(**activity) for activity in told if activity["activity_type"] == "INT"]
    assert [fill.qty for fill in fills] == [10, 1_500] and len(interest) == 2
    a_day = 50_000 * 0.08 / stock.venue.env.margin.bars_per_year  # 150 000 were paid with 100 000
    assert interest[-1].net_amount == pytest.approx(-a_day, rel=1e-9)
    assert len(client.get("/account/activities/FILL", {"page_size": 1})) == 1


def test_closing_positions(stock):
    client = trading(stock)
    for symbol in ("SPY", "AAPL"):
        client.submit_order(MarketOrderRequest(symbol=symbol, time_in_force="day", side="buy", qty=100))
    stock.advance()
    assert client.close_position("SPY", ClosePositionRequest(percentage="50")).qty == "50"
    stock.advance()
    told = client.close_all_positions(cancel_orders=True)
    assert sorted(t.symbol for t in told) == ["AAPL", "SPY"] and {t.status for t in told} == {200}
    stock.advance()
    assert client.get_all_positions() == [] and stock.positions == {}


def test_assets_clock_calendar(stock, crypto, shares):
    coin = trading(crypto).get_asset("BTC/USD")
    assert (coin.symbol, coin.asset_class, coin.min_order_size) == ("BTC/USD", "crypto", 0.0001)
    assert coin.tradable and not coin.shortable and coin.fractionable
    crypto.reset(shares, 2, 12)
    client = trading(crypto)
    assert [a.symbol for a in client.get_all_assets(GetAssetsRequest(asset_class="us_equity"))] == ["SPY", "AAPL"]
    assert client.get_all_assets(GetAssetsRequest(asset_class="crypto")) == []
    clock = client.get_clock()
    assert clock.timestamp == datetime(2021, 3, 4, tzinfo=UTC) and not clock.is_open
    assert clock.next_open < clock.next_close
    days = client.get_calendar(GetCalendarRequest(start="2021-03-02", end="2021-03-04"))
    assert [str(day.date) for day in days] == ["2021-03-02", "2021-03-03", "2021-03-04"]


def test_crypto_bars(crypto, coins):
    client = CryptoHistoricalDataClient(url_override=crypto.url)
    hour = TimeFrame(1, TimeFrameUnit.Hour)
    crypto.advance()
    crypto.advance()

    def bars(**query) -> dict:
        return client.get_crypto_bars(CryptoBarsRequest(timeframe=hour, **query)).data

    both = bars(symbol_or_symbols=["BTC/USD", "ETH/USDT"])
    assert {symbol: len(own) for symbol, own in both.items()} == {"BTC/USD": 5, "ETH/USDT": 2}, "closed bars alone"
    assert both["ETH/USDT"][0].timestamp == datetime(2021, 3, 1, 3, tzinfo=UTC)
    first = both["BTC/USD"][0]
    assert (first.open, first.high, first.low, first.close, first.volume) == BAR
    since = datetime(2021, 3, 1, 2, tzinfo=UTC)
    assert len(bars(symbol_or_symbols="BTC/USD", start=since)["BTC/USD"]) == 3
    assert len(bars(symbol_or_symbols="BTC/USD", start=since, end=since)["BTC/USD"]) == 1
    assert bars(symbol_or_symbols="BTC/USD", sort="desc", limit=2)["BTC/USD"][0].timestamp.hour == 4
    raw = requests.get(
        crypto.url + "/v1beta3/crypto/us/bars", {"symbols": "BTC/USD,ETH/USDT", "timeframe": "1H", "limit": 3}
    )
    pages = [raw.json()]
    while pages[-1]["next_page_token"]:
        query = dict(symbols="BTC/USD,ETH/USDT", timeframe="1Hour", limit=3, page_token=pages[-1]["next_page_token"])
        pages.append(requests.get(crypto.url + "/v1beta3/crypto/us/bars", query).json())
    assert [sum(map(len, page["bars"].values())) for page in pages] == [3, 3, 1]
    assert isinstance(pages[0]["bars"]["BTC/USD"][0]["c"], float), "JSON numbers, unlike the trading API"
    symbols = {"symbol_or_symbols": ["BTC/USD", "ETH/USDT"]}
    assert client.get_crypto_latest_bar(CryptoLatestBarRequest(**symbols))["ETH/USDT"].close == 100
    assert client.get_crypto_latest_trade(CryptoLatestTradeRequest(**symbols))["BTC/USD"].price == 100
    quote = client.get_crypto_latest_quote(CryptoLatestQuoteRequest(**symbols))["BTC/USD"]
    assert quote.bid_price <= 100 <= quote.ask_price
    with pytest.raises(APIError, match="this replay has 1h bars"):
        client.get_crypto_bars(
            CryptoBarsRequest(symbol_or_symbols="BTC/USD", timeframe=TimeFrame(5, TimeFrameUnit.Minute))
        )


def test_stock_bars(stock):
    client = StockHistoricalDataClient("local", "local", url_override=stock.url)
    day = TimeFrame(1, TimeFrameUnit.Day)
    both = client.get_stock_bars(StockBarsRequest(symbol_or_symbols=["SPY", "AAPL"], timeframe=day)).data
    assert {symbol: len(own) for symbol, own in both.items()} == {"SPY": 3, "AAPL": 3}
    assert client.get_stock_latest_bar(StockLatestBarRequest(symbol_or_symbols="SPY"))["SPY"].high == 110
    assert client.get_stock_latest_quote(StockLatestQuoteRequest(symbol_or_symbols="SPY"))["SPY"].bid_price > 99
    with pytest.raises(APIError):
        StockHistoricalDataClient("local", "no", url_override=stock.url).get_stock_latest_bar(
            StockLatestBarRequest(symbol_or_symbols="SPY")
        )


def test_the_trading_stream(crypto, coins):
    crypto.reset(coins, 2, 12, partial_fill_share=1.0)
    updates = []

    async def received(update) -> None:
        updates.append(update)

    stream = TradingStream("local", "local", url_override=crypto.stream_url + "/stream")
    stream.subscribe_trade_updates(received)
    with running(stream):
        eventually(lambda: crypto.hub.connected("/stream") == 1, "the subscription")
        client = trading(crypto)
        order = client.submit_order(MarketOrderRequest(**BTC, side="buy", qty=10))
        other = client.submit_order(LimitOrderRequest(**BTC, side="buy", qty=1, limit_price=50))
        client.cancel_order_by_id(other.id)
        crypto.advance()
        eventually(lambda: len(updates) >= 5, "the fills")
    assert [u.event for u in updates] == ["new", "new", "canceled", "partial_fill", "fill"]
    assert [u.order.status for u in updates] == ["new", "new", "canceled", "partially_filled", "filled"]
    part, rest = updates[3:]
    assert part.order.id == order.id and part.qty + rest.qty == pytest.approx(10) and 0 < part.qty < 10
    assert rest.position_qty == crypto.positions["BTC/USD"] and part.execution_id != rest.execution_id
    assert part.price == pytest.approx(float(rest.order.filled_avg_price))


def test_a_stream_that_is_cut_is_taken_up_again(crypto):
    """alpaca-py connects anew by itself; what was told meanwhile is lost to it, and has to be asked for."""
    updates = []

    async def received(update) -> None:
        updates.append(update.event)

    stream = TradingStream("local", "local", url_override=crypto.stream_url + "/stream")
    stream._reconnect_min_backoff = 0.1  # seconds; 1 by default
    stream.subscribe_trade_updates(received)
    with running(stream):
        eventually(lambda: crypto.hub.connected("/stream") == 1, "the subscription")
        client = trading(crypto)
        crypto.faults.next("cut", path="/stream")
        lost = client.submit_order(MarketOrderRequest(**BTC, side="buy", qty=1))
        eventually(lambda: not crypto.hub.connected("/stream"), "the cut")
        eventually(lambda: crypto.hub.connected("/stream") == 1, "the new connection")
        crypto.advance()
        eventually(lambda: updates == ["fill"], "the fill")
    assert client.get_order_by_id(lost.id).status == "filled"


@pytest.mark.parametrize("kind", ["crypto", "stock"])
def test_the_data_streams(request, kind):
    venue = request.getfixturevalue(kind)
    received: list = []

    async def take(message) -> None:
        received.append(message)

    if kind == "crypto":
        path, symbol, stream = "/v1beta3/crypto/us", "ETH/USDT", CryptoDataStream
    else:
        path, symbol, stream = "/v2/iex", "SPY", StockDataStream
    client = stream("local", "local", url_override=venue.stream_url + path)
    client.subscribe_bars(take, symbol)
    client.subscribe_quotes(take, symbol)
    client.subscribe_trades(take, "*")
    with running(client):
        eventually(lambda: venue.hub.connected(path) == 1, "the subscription")
        venue.advance()
        venue.advance()
        eventually(lambda: len(received) >= 8, "the bars")
    names = [(type(m).__name__, m.symbol) for m in received]
    assert len(names) == 8 and names.count(("Bar", symbol)) == names.count(("Quote", symbol)) == 2
    assert sum(name == "Trade" for name, _ in names) == 4
    bars = [m for m in received if type(m).__name__ == "Bar"]
    assert [bar.timestamp for bar in bars] == [
        datetime.fromtimestamp(int(venue.venue.market.timestamps[n]) / 1e9, UTC) for n in (3, 4)
    ]
    assert (bars[0].open, bars[0].high, bars[0].low, bars[0].close, bars[0].volume) == BAR


def test_the_data_socket_in_json(crypto):
    """A client that does not ask for msgpack is spoken to in JSON, times as text; wrong keys are told so."""
    with connect(crypto.stream_url + "/v1beta3/crypto/us") as socket:

        def told(message: dict | None = None) -> dict:
            if message is not None:
                socket.send(json.dumps(message))
            return SimpleNamespace(**json.loads(socket.recv(5))[0])

        assert told().msg == "connected"
        assert told({"action": "subscribe", "bars": ["*"]}).code == 401
        assert told({"action": "auth", "key": "local", "secret": "no"}).code == 402
        assert told({"action": "auth", "key": "local", "secret": "local"}).msg == "authenticated"
        assert told({"action": "shout"}).code == 400
        assert told({"action": "subscribe", "bars": ["*"], "trades": ["BTC/USD"]}).bars == ["*"]
        assert told({"action": "unsubscribe", "trades": ["BTC/USD"]}).trades == []
        crypto.advance()
        frame = json.loads(socket.recv(5))
        assert [m["S"] for m in frame] == ["BTC/USD", "ETH/USDT"] and frame[0]["t"] == "2021-03-01T03:00:00Z"


def test_random_orders_keep_local_brokers_books(server, make_market, random_bars):
    """300 bars of market orders by HTTP; what HTTP says of cash and positions is LocalBroker's to 1e-9."""
    symbols = ("BTCUSDT", "DOGEUSDT", "AVAXUSDT")
    prices = (30_000.0, 0.1, 20.0)
    market = make_market(
        {s: random_bars(n, 312, price=p, idle=0.03) for n, (s, p) in enumerate(zip(symbols, prices, strict=True))}
    )
    env = VectorizedCryptoEnvAlpaca(market, 1, features=["range"])
    server.reset(env, 10, 311)
    broker, client, draw, accepted, refused = LocalBroker(env, 10, 311), trading(server), random.Random(4), 0, 0
    while broker.next_bar() is not None:
        assert server.advance()
        held = {position.symbol: float(position.qty) for position in client.get_all_positions()}
        assert held == pytest.approx(broker.positions(), rel=1e-9)
        assert float(client.get_account().cash) == pytest.approx(broker.cash(), rel=1e-9, abs=1e-9)
        asset = draw.randrange(3)
        symbol, side = symbols[asset], draw.choice(("buy", "sell"))
        mark, increment = server.venue.books.marks[asset], float(env.rules.increment[asset])
        quantity = held.get(symbol, 0.0) * draw.choice((0.5, 1.0)) if side == "sell" else 30_000 * draw.random() / mark
        quantity = quantity if quantity == held.get(symbol) else int(quantity / increment) * increment
        try:
            request = MarketOrderRequest(
                symbol=wire_symbol(symbol, "crypto"), side=side, qty=quantity, time_in_force="ioc"
            )
            sent = client.submit_order(request)
        except APIError as error:
            assert error.status_code in (403, 422)
            refused += 1
            continue
        accepted += 1
        broker.submit([Order(str(sent.id), symbol, side, quantity)])
    assert accepted > 100 and refused > 10 and not server.advance()


def test_driving_the_replay_over_http(crypto):
    clock = requests.get(crypto.url + "/local/v1/clock").json()
    assert clock == {"bar": 2, "now": "2021-03-01T03:00:00Z", "more": True}
    answers = [requests.post(crypto.url + "/local/v1/advance").json() for _ in range(10)]
    assert [a["more"] for a in answers] == [True] * 8 + [False, False] and answers[-1]["bar"] is None
    bar = answers[0]["bar"]
    assert (bar["index"], bar["t"], set(bar["bars"])) == (3, "2021-03-01T03:00:00Z", {"BTC/USD", "ETH/USDT"})
    assert crypto.bar == 11 and not crypto.advance()
