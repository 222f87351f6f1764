"""AlpacaBroker against the local venue and its faults: what is known, what is not, and nothing sent twice."""

from __future__ import annotations

import logging
import time

import pytest
import requests
from alpaca.common.exceptions import APIError

from environments.alpaca_env import VectorizedCryptoEnvAlpaca, VectorizedStockEnvAlpaca
from environments.data.credentials import Secret
from environments.errors import InputError
from environments.live import alpaca_broker, alpaca_session
from environments.live.alpaca_broker import AlpacaBroker
from environments.live.alpaca_local.server import LocalAlpaca
from environments.live.alpaca_session import paper_url
from environments.live.broker import Accepted, Ambiguous, BrokerUnavailable, NotSent, Order, Rejected

KEYS = (Secret("key-of-this-test"), Secret("secret-of-this-test"))
ORDERS = "/v2/orders"
BY_ID = "/v2/orders:by_client_order_id"


@pytest.fixture(scope="module")
def env(make_market, random_bars):
    bars = {"BTCUSDT": random_bars(1, 80, price=100.0), "DOGEUSDT": random_bars(2, 80, price=0.1)}
    return VectorizedCryptoEnvAlpaca(make_market(bars), 1)


@pytest.fixture(scope="module")
def server(env):
    with LocalAlpaca(env, 50, 80, *(key.reveal() for key in KEYS)) as server:
        yield server


@pytest.fixture
def venue(server, env):
    server.reset(env, 50, 80, partial_fill_share=0.0)
    return server


def made(venue, **options) -> AlpacaBroker:
    options = {"commission_bps": 25.0, "fee_in": "received", "lock_step": True, "sleep": lambda _: None} | options
    return AlpacaBroker(["BTCUSDT", "DOGEUSDT"], "crypto", KEYS, url=venue.url, **options)


def buy(name: str, quantity: float = 2.0) -> Order:
    return Order(name, "BTCUSDT", "buy", quantity)


def test_an_order_from_end_to_end(venue):
    broker = made(venue)
    assert (broker.cash(), broker.positions()) == (100_000.0, {})
    (outcome,) = broker.submit([buy("a")])
    assert isinstance(outcome, Accepted) and outcome.broker_id == venue.orders[0]["id"]
    (open_order,) = broker.results([buy("a")])
    assert (open_order.status, open_order.ended, open_order.filled_quantity) == ("new", False, 0.0)
    venue.advance()
    (done,) = broker.results([buy("a")])
    assert done.ended and done.filled_quantity == pytest.approx(2.0 * 0.9975)  # the fee is taken from what is bought
    assert broker.positions() == {"BTCUSDT": pytest.approx(1.995)} == venue.positions
    paid = done.filled_value + done.fees
    assert broker.cash() == pytest.approx(100_000.0 - paid, rel=1e-12) and broker.cash() == venue.cash
    sell = Order("b", "BTCUSDT", "sell", 1.0)
    broker.submit([sell])
    venue.advance()
    (sold,) = broker.results([sell])
    assert broker.cash() == pytest.approx(100_000.0 - paid + sold.filled_value - sold.fees, rel=1e-12)


def test_orders_go_in_the_order_given(venue):
    broker = made(venue)
    broker.submit([buy("a")])
    venue.advance()
    outcomes = broker.submit([Order("y", "BTCUSDT", "sell", 1.0), Order("x", "DOGEUSDT", "buy", 900_000.0)])
    assert [order["client_order_id"] for order in venue.orders] == ["a", "y", "x"]
    assert [outcome.broker_id for outcome in outcomes] == [order["id"] for order in venue.orders[1:]]


def test_a_refusal_is_told_with_its_code(venue):
    broker = made(venue)
    outcome = broker.submit([Order("a", "BTCUSDT", "sell", 1.0)])[0]
    assert isinstance(outcome, Rejected) and outcome.code == 40310000 and "insufficient balance" in outcome.message
    assert broker.results([Order("a", "BTCUSDT", "sell", 1.0)]) == []
    assert broker.lookup(buy("nobody knows")) is None


@pytest.mark.parametrize("fault", ["drop_request", "drop_reply", "500", "503", "504", "missing_field"])
@pytest.mark.parametrize("after", [False, True])
def test_what_was_not_answered_is_looked_up(venue, fault, after):
    details = {"after": after} if fault.isdigit() else {"field": "id"} if fault == "missing_field" else {}
    venue.faults.next(fault, ORDERS, "POST", **details)
    outcome = made(venue).submit([buy("a")])[0]
    assert isinstance(outcome, Accepted) and outcome.broker_id == venue.orders[0]["id"]
    assert len(venue.orders) == 1 and venue.faults.waiting == 0


def test_a_late_answer_is_not_taken_for_none(venue):
    """The answer comes after we gave up waiting for it: the order is looked up, or sent again under its id."""
    venue.faults.next("delay", ORDERS, "POST", seconds=0.3)
    outcome = made(venue, timeout=(1.0, 0.1)).submit([buy("a")])[0]
    assert isinstance(outcome, Accepted) and len(venue.orders) == 1


def test_too_many_requests_means_not_sent(venue):
    venue.faults.next("429", ORDERS, "POST")
    assert isinstance(made(venue).submit([buy("a")])[0], Accepted) and len(venue.orders) == 1
    for _ in range(3):
        venue.faults.next("429", ORDERS, "POST")
    assert isinstance(made(venue).submit([buy("b")])[0], NotSent) and len(venue.orders) == 1


def test_what_nobody_can_tell_stays_ambiguous(venue):
    venue.faults.next("drop_reply", ORDERS, "POST")
    for _ in range(6):
        venue.faults.next("503", BY_ID)
    outcome = made(venue).submit([buy("a")])[0]
    assert isinstance(outcome, Ambiguous) and len(venue.orders) == 1
    assert made(venue).lookup(buy("a")).status == "new"


@pytest.mark.parametrize("fault", ["drop_request", "500", "429", "503", "504"])
@pytest.mark.parametrize("path", ["/v2/account", "/v2/positions", ORDERS])
def test_a_read_is_asked_again_and_never_reads_as_empty(venue, fault, path):
    broker = made(venue)
    broker.submit([buy("a")])
    venue.advance()
    ask = {"/v2/account": broker.cash, "/v2/positions": broker.positions, ORDERS: lambda: broker.results([buy("a")])}[
        path
    ]
    expected = ask()
    assert expected
    venue.faults.next(fault, path, "GET")
    assert ask() == expected
    for _ in range(6):
        venue.faults.next(fault, path, "GET")
    with pytest.raises(BrokerUnavailable, match="6 times"):
        ask()


def test_reads_back_off_where_a_429_does_not_say_how_long(monkeypatch):
    """0.5, 1, 2, 4 and 5 s, each between half of it and all; another failure begins at a tenth of that."""

    class Refusing:
        """An answer with a status, and perhaps with how long to wait."""

        def __init__(self, status: int, **headers: str) -> None:
            self.status, self.headers = status, {name.replace("_", "-"): value for name, value in headers.items()}

        def __call__(self) -> None:
            response = requests.Response()
            response.status_code = self.status
            response.headers.update(self.headers)
            raise APIError("{}", requests.exceptions.HTTPError(response=response))

    def waits(ask: Refusing, draw: float) -> list[float]:
        waited: list[float] = []
        monkeypatch.setattr(alpaca_session.random, "uniform", lambda low, high: low + draw * (high - low))
        with pytest.raises(BrokerUnavailable, match=f"HTTP {ask.status}, 6 times"):
            alpaca_session.read("what", ask, KEYS, sleep=waited.append)
        return waited

    assert waits(Refusing(429), 1.0) == [0.5, 1.0, 2.0, 4.0, 5.0]
    assert waits(Refusing(429), 0.0) == [0.25, 0.5, 1.0, 2.0, 2.5]
    assert waits(Refusing(503), 1.0) == [0.05, 0.1, 0.2, 0.4, 0.8]
    assert waits(Refusing(429, Retry_After="3"), 0.5) == [3.0] * 5
    assert waits(Refusing(429, Retry_After="3600"), 0.5) == [5.0] * 5


@pytest.mark.parametrize("field", ["client_order_id", "filled_qty", "filled_avg_price", "status", "id"])
@pytest.mark.parametrize("kind", ["missing_field", "unknown_enum"])
def test_answers_that_lack_something_are_asked_for_again(venue, kind, field):
    broker = made(venue)
    broker.submit([buy("a")])
    venue.advance()
    expected = broker.results([buy("a")])
    venue.faults.next(kind, ORDERS, "GET", field=field)
    told = broker.results([buy("a")])
    if (kind, field) == ("unknown_enum", "status"):
        assert told[0].status == "as_yet_unknown" and not told[0].ended  # nothing is made of it
        told = broker.results([buy("a")])
    assert told == expected


@pytest.mark.parametrize("field", ["qty", "symbol"])
def test_a_position_that_lacks_something(venue, field):
    broker = made(venue)
    broker.submit([buy("a")])
    venue.advance()
    expected = broker.positions()
    venue.faults.next("missing_field", "/v2/positions", field=field)
    assert broker.positions() == expected != {}


def test_quantities_have_nine_decimals_where_time_is_real(venue, monkeypatch):
    monkeypatch.setattr(alpaca_broker, "SELLS_FILL_WITHIN", 0.0)
    orders = [buy("a", 1.23456789199), buy("b", 0.3), buy("c", 0.1 + 0.2), buy("d", 7.5235128300000005)]
    made(venue, lock_step=False).submit(orders)
    assert [order["qty"] for order in venue.orders] == ["1.234567891", "0.3", "0.3", "7.52351283"]


def test_orders_of_others_are_told_and_left_alone(venue):
    broker = made(venue)
    broker.submit([buy("ours"), buy("theirs")])
    assert broker.foreign_orders(["ours"]) == ["theirs"]
    assert {order["status"] for order in venue.orders} == {"new"}


def test_the_rest_of_an_order_is_given_up(venue):
    broker = made(venue)
    broker.submit([buy("a")])
    broker.cancel(broker.results([buy("a")]))
    (result,) = broker.results([buy("a")])
    assert (result.status, result.ended) == ("canceled", True)
    broker.cancel([result])  # it has ended: nothing comes of it


def test_clocks(venue):
    broker = made(venue)
    ahead = (venue.venue.now / 1e9) - time.time()
    assert broker.skew() == pytest.approx(ahead, abs=2.0)
    assert broker.now() == pytest.approx(venue.venue.now, abs=2e9)
    broker = made(venue)
    for _ in range(6):
        venue.faults.next("503", "/v2/clock")
    assert broker.skew() != broker.skew(), "not known is not zero"


def test_stocks(make_market, random_bars):
    env = VectorizedStockEnvAlpaca(make_market({"AB": random_bars(1, 80)}, asset_class="stock", timeframe="1d"), 1)
    with LocalAlpaca(env, 50, 80, *(key.reveal() for key in KEYS)) as venue:
        broker = AlpacaBroker(["AB"], "stock", KEYS, url=venue.url, lock_step=True)
        order = Order("a", "AB", "buy", 1.5)
        assert isinstance(broker.submit([order])[0], Accepted)
        venue.advance()
        (result,) = broker.results([order])
        assert result.filled_quantity == 1.5 and broker.positions() == {"AB": 1.5}


SPELLINGS_OF_LIVE = (
    "https://api.alpaca.markets",
    "https://api.alpaca.markets/v2",
    "https://api.alpaca.markets.",
    "https://API.Alpaca.Markets:443",
    "https://api%2ealpaca%2Emarkets",
    "https://api.alpaca%2emarkets%2e",
    "https://api\u3002alpaca\uff0emarkets\uff61",
    "https://\uff41pi.alpaca.markets",
    "https://user:word@api.alpaca.markets",
    "https://api.alpaca.markets\\@paper-api.alpaca.markets",
    "https://broker-api.alpaca.markets",
    "https://data.alpaca.markets",
    "https://alpaca.markets",
    "https://paper-api.alpaca.markets.api.alpaca.markets",
)


def test_live_money_has_no_way_in(venue):
    for url in SPELLINGS_OF_LIVE:
        with pytest.raises(InputError, match="only paper accounts|not a valid IDNA label"):
            AlpacaBroker(["BTCUSDT"], "crypto", KEYS, url=url)
    for url in ("https://paper-api.alpaca.markets.", "https://PAPER-API.Alpaca.Markets", "https://notalpaca.markets"):
        assert paper_url(url) == url
    with pytest.raises(InputError, match="https"):
        AlpacaBroker(["BTCUSDT"], "crypto", KEYS, url="http://example.org")
    assert AlpacaBroker(["BTCUSDT"], "crypto", KEYS)._client._base_url.value == "https://paper-api.alpaca.markets"


def test_refused_keys_are_told_in_one_line_and_never_shown(venue, caplog):
    caplog.set_level(logging.DEBUG)
    wrong = (Secret("not-the-key-at-all"), Secret("not-the-secret-at-all"))
    with pytest.raises(InputError, match="APCA_API_KEY_ID") as raised:
        AlpacaBroker(["BTCUSDT"], "crypto", wrong, url=venue.url).cash()
    assert "\n" not in str(raised.value)
    made(venue).submit([buy("a")])
    for secret in (*KEYS, *wrong):
        assert secret.reveal() not in caplog.text + str(raised.value)


def test_a_refusal_of_the_second_sending_is_not_believed(venue, monkeypatch):
    """The first was cut off and is on its way still; what it reserves is what the second is refused for."""
    broker, post, asked = made(venue), AlpacaBroker._post, []

    def slow(self, order):
        asked.append(order)
        if len(asked) == 1:
            return Ambiguous("cut off"), 0.0
        post(self, order)
        return Rejected(40310000, "insufficient balance for USD"), 0.0

    monkeypatch.setattr(AlpacaBroker, "_post", slow)
    (outcome,) = broker.submit([buy("a")])
    assert isinstance(outcome, Accepted) and outcome.broker_id == venue.orders[0]["id"] and len(asked) == 2
