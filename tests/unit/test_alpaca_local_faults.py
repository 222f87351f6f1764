"""Every fault of the local venue, as a client meets it."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator

import pytest
import requests
from websockets.exceptions import ConnectionClosedError
from websockets.sync.client import ClientConnection, connect

from environments.alpaca_env import VectorizedCryptoEnvAlpaca
from environments.errors import InputError
from environments.live.alpaca_local.faults import FRAME, REQUEST, FaultPlan
from environments.live.alpaca_local.server import LocalAlpaca

pytestmark = pytest.mark.usefixtures("one_thread")

KEYS = {"APCA-API-KEY-ID": "local", "APCA-API-SECRET-KEY": "local"}
BAR = (100.0, 110.0, 90.0, 100.0, 1e6)
DATA = "/v1beta3/crypto/us"


@pytest.fixture(scope="module")
def env(make_market):
    return VectorizedCryptoEnvAlpaca(make_market({"BTC/USD": [BAR] * 12}), 1, features=["range"])


@pytest.fixture(scope="module")
def server(env) -> Iterator[LocalAlpaca]:
    with LocalAlpaca(env, 2, 12) as served:
        yield served


@pytest.fixture
def venue(server, env) -> LocalAlpaca:
    server.reset(env, 2, 12, partial_fill_share=0.0)
    return server


def post(venue: LocalAlpaca, client_id: str) -> requests.Response:
    body = {"symbol": "BTC/USD", "side": "buy", "type": "market", "qty": 1, "time_in_force": "gtc"}
    return requests.post(venue.url + "/v2/orders", json=body | {"client_order_id": client_id}, headers=KEYS, timeout=5)


def get(venue: LocalAlpaca, path: str, **query) -> requests.Response:
    return requests.get(venue.url + path, query, headers=KEYS, timeout=5)


def sent(venue: LocalAlpaca) -> list[str]:
    return [order["client_order_id"] for order in venue.orders]


def test_a_dropped_reply_leaves_the_order_and_a_dropped_request_none(venue):
    venue.faults.next("drop_reply", path="/v2/orders", method="POST")
    venue.faults.next("drop_request", path="/v2/orders", method="POST")
    assert get(venue, "/v2/orders").json() == [], "another method"
    for name in ("a", "b"):
        with pytest.raises(requests.ConnectionError):
            post(venue, name)
    assert sent(venue) == ["a"] and venue.faults.waiting == 0
    assert post(venue, "b").json()["status"] == "pending_new"
    assert get(venue, "/v2/orders:by_client_order_id", client_order_id="a").json()["status"] == "new"


@pytest.mark.parametrize("status", [429, 500, 503, 504])
def test_statuses(venue, status):
    venue.faults.next(str(status), path="/v2/orders")
    answer = post(venue, "a")
    assert answer.status_code == status and answer.json()["message"] and sent(venue) == []
    assert ("retry-after" in answer.headers) == (status == 429)
    venue.faults.next(str(status), path="/v2/orders", after=True)
    assert post(venue, "a").status_code == status and sent(venue) == ["a"], "it was done all the same"


def test_a_delay(venue):
    venue.faults.next("delay", path="/v2/account", seconds=0.2)
    begun = time.monotonic()
    assert get(venue, "/v2/account").status_code == 200 and time.monotonic() - begun >= 0.2
    with pytest.raises(requests.ReadTimeout):
        venue.faults.next("delay", path="/v2/account", seconds=0.2)
        requests.get(venue.url + "/v2/account", headers=KEYS, timeout=0.05)


def test_answers_that_lack_or_invent(venue):
    post(venue, "a")
    venue.faults.next("missing_field", path="/v2/orders", field="filled_qty")
    assert "filled_qty" not in get(venue, "/v2/orders").json()[0]
    venue.faults.next("unknown_enum", path="/v2/orders", field="status")
    assert get(venue, "/v2/orders").json()[0]["status"] == "as_yet_unknown"
    venue.faults.next("unknown_enum", path="/v2/account")
    assert get(venue, "/v2/account").json()["status"] == "as_yet_unknown"
    venue.faults.next("missing_field", path="/v2/positions")
    assert get(venue, "/v2/positions").json() == [], "there is nothing to leave out"
    assert get(venue, "/v2/orders").json()[0]["filled_qty"] == "0"


def test_the_clock(venue):
    right = get(venue, "/v2/clock")
    assert right.json()["timestamp"] == "2021-02-28T22:00:00-05:00"
    assert right.headers["date"] == "Mon, 01 Mar 2021 03:00:00 GMT", "the venue's time is that of the bars"
    venue.faults.next("clock_skew", seconds=90)
    assert get(venue, "/v2/account").headers["date"] == right.headers["date"], "a skew is of the clock"
    wrong = get(venue, "/v2/clock")
    assert wrong.json()["timestamp"] == "2021-02-28T22:01:30-05:00" and "03:01:30" in wrong.headers["date"]
    venue.faults.skew = -3_600.0
    assert get(venue, "/v2/clock").json()["timestamp"] == "2021-02-28T21:00:00-05:00"
    assert "02:00:00" in get(venue, "/v2/account").headers["date"]


def test_data_that_is_behind(venue):
    def hours() -> list[str]:
        bars = get(venue, DATA + "/bars", symbols="BTC/USD", timeframe="1Hour").json()["bars"]["BTC/USD"]
        return [bar["t"][11:13] for bar in bars]

    venue.faults.next("stale_data")
    assert hours() == ["00", "01"] and hours() == ["00", "01", "02"]


def test_a_cancel_that_comes_late(venue):
    order = post(venue, "a").json()
    venue.faults.next("late_cancel")
    assert requests.delete(f"{venue.url}/v2/orders/{order['id']}", headers=KEYS).status_code == 204
    assert venue.orders[0]["status"] == "pending_cancel"
    venue.advance()
    assert venue.orders[0]["status"] == "filled"


def test_a_rejection_that_comes_late(venue):
    venue.faults.next("late_reject")
    assert post(venue, "a").json()["status"] == "pending_new" and post(venue, "b").status_code == 200
    venue.advance()
    assert [order["status"] for order in venue.orders] == ["rejected", "filled"]


class Listener:
    """A data socket in JSON that subscribes to all bars."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket
        self.read()
        for message in ({"action": "auth", "key": "local", "secret": "local"}, {"action": "subscribe", "bars": ["*"]}):
            self.socket.send(json.dumps(message))
            self.read()

    def read(self, timeout: float = 5) -> list[dict]:
        return json.loads(self.socket.recv(timeout))

    def hours(self, count: int) -> list[str]:
        return [self.read()[0]["t"][11:13] for _ in range(count)]


@pytest.mark.parametrize(
    ("kind", "hours"),
    [
        ("repeat_bar", ["03", "04", "04", "05"]),
        ("stale_bar", ["03", "03", "05"]),
        ("late_bar", ["03", "05", "04"]),
    ],
)
def test_bars_out_of_place(venue, kind, hours):
    with connect(venue.stream_url + DATA) as opened:
        listener = Listener(opened)
        venue.advance()
        venue.faults.next(kind)
        venue.advance()
        venue.advance()
        assert listener.hours(len(hours)) == hours
        venue.advance()
        assert listener.hours(1) == ["06"]


def test_a_websocket_is_cut(venue):
    with connect(venue.stream_url + DATA) as opened:
        listener = Listener(opened)
        venue.faults.next("cut", path=DATA)
        venue.advance()
        with pytest.raises(ConnectionClosedError):
            listener.read()
    with connect(venue.stream_url + DATA) as opened:
        again = Listener(opened)
        venue.advance()
        assert again.hours(1) == ["04"]


def test_a_websocket_falls_silent(venue):
    with connect(venue.stream_url + DATA) as opened:
        listener = Listener(opened)
        venue.faults.next("mute", path=DATA)
        venue.advance()
        venue.advance()
        with pytest.raises(TimeoutError):
            listener.read(0.1)
        with connect(venue.stream_url + DATA) as second:
            again = Listener(second)
            venue.advance()
            assert again.hours(1) == ["05"], "a new connection hears"


def test_order_updates_that_lack_or_invent(venue):
    with connect(venue.stream_url + "/stream") as stream:
        for message in (
            {"action": "authenticate", "data": {"key_id": "local", "secret_key": "local"}},
            {"action": "listen", "data": {"streams": ["trade_updates"]}},
        ):
            stream.send(json.dumps(message))
            stream.recv(5)
        venue.faults.next("unknown_enum", path="/stream", field="status")
        venue.faults.next("missing_field", path="/stream", field="filled_qty")
        post(venue, "a")
        venue.advance()
        first, second = (json.loads(stream.recv(5))["data"]["order"] for _ in range(2))
        assert first["status"] == "as_yet_unknown" and "filled_qty" not in second


def test_the_control_plane_has_no_faults(venue, env):
    venue.reset(env, 2, 12, faults=FaultPlan(0, {"500": 1.0}))
    assert get(venue, "/v2/account").status_code == 500
    assert requests.post(venue.url + "/local/v1/advance").json()["bar"]["index"] == 3
    assert requests.get(venue.url + "/local/v1/clock").json()["bar"] == 3


def test_rates_and_seeds():
    def kinds(seed: int) -> list[str]:
        plan = FaultPlan(seed, {"429": 0.1, "drop_reply": 0.1})
        return [fault.kind if (fault := plan.of_request("POST", "/v2/orders")) else "" for _ in range(2_000)]

    assert kinds(1) == kinds(1) != kinds(2)
    counted = {kind: kinds(1).count(kind) / 2_000 for kind in ("429", "drop_reply")}
    assert 0.08 < counted["429"] < 0.12 and 0.07 < counted["drop_reply"] < 0.11, "the second of what is left"
    plan = FaultPlan(3, {"500": 1.0})
    after = [plan.of_request("POST", "/v2/orders").after for _ in range(200)]
    assert 60 < sum(after) < 140 and plan.counts == {"500": 200}


def test_a_kind_meets_only_what_it_can():
    plan = FaultPlan(
        0, dict.fromkeys(("clock_skew", "stale_data", "late_cancel", "late_reject", "stale_bar", "cut"), 1.0)
    )
    assert plan.of_request("GET", "/v2/orders") is None and plan.of_request("GET", "/v2/orders/1") is None
    assert plan.of_request("POST", "/v2/orders").kind == "late_reject"
    assert plan.of_request("GET", "/v2/clock").kind == "clock_skew"
    assert plan.of_request("DELETE", "/v2/orders/1").kind == "late_cancel"
    assert plan.of_request("GET", "/v2/stocks/bars").kind == "stale_data"
    assert plan.of_frame("/stream", bars=False).kind == "cut"
    assert plan.of_frame(DATA, bars=True).kind in ("stale_bar", "cut")


def test_what_is_not_a_fault():
    with pytest.raises(InputError, match="fault 'lightning': accepted are delay, drop_request"):
        FaultPlan(0, {"lightning": 0.1})
    with pytest.raises(InputError, match="fault 500: rate 2, accepted are 0 to 1"):
        FaultPlan(0, {"500": 2})
    with pytest.raises(InputError, match="fault 'nothing'"):
        FaultPlan().next("nothing")
    for kind in (*REQUEST, *FRAME):
        FaultPlan(0, {kind: 0.5}).next(kind)


def test_many_clients_at_once(venue):
    """Orders from four threads while bars go by: each has one answer, and its own order."""
    answers: dict[str, int] = {}

    def trade(thread: int) -> None:
        with requests.Session() as session:
            session.headers.update(KEYS)
            for n in range(10):
                body = {"symbol": "BTC/USD", "side": "buy", "type": "market", "qty": 1, "time_in_force": "gtc"}
                name = f"{thread}-{n}"
                reply = session.post(venue.url + "/v2/orders", json=body | {"client_order_id": name}, timeout=10)
                answers[name] = reply.status_code

    threads = [threading.Thread(target=trade, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(5):
        venue.advance()
    for thread in threads:
        thread.join()
    venue.advance()
    assert set(answers.values()) == {200} and sorted(sent(venue)) == sorted(answers)
    assert venue.positions["BTC/USD"] == pytest.approx(40 * 0.9975, rel=1e-12)


def test_answers_do_not_wait_for_acknowledgements(venue):
    """Nagle's algorithm and delayed acknowledgements together cost 40 ms a request; an order takes one or two."""
    took = []
    with requests.Session() as session:
        session.headers.update(KEYS)
        for n in range(15):
            body = {"symbol": "BTC/USD", "side": "buy", "type": "market", "qty": 1, "time_in_force": "gtc"}
            begun = time.perf_counter()
            session.post(venue.url + "/v2/orders", json=body | {"client_order_id": f"{n}"}, timeout=5)
            took.append(time.perf_counter() - begun)
    assert sorted(took)[len(took) // 2] < 0.03


def test_ports(env, venue):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"port {port}: .*0 takes a free one"):
            LocalAlpaca(env, 2, 12, port=port).open()
    with LocalAlpaca(env, 2, 12, key="mine", secret="own") as other:
        assert other.url != venue.url and get(other, "/v2/account").status_code == 401
        assert requests.get(other.url + "/v2/account", auth=("mine", "own")).status_code == 200
    with pytest.raises(requests.ConnectionError):
        get(other, "/v2/account")


def test_nonsense_does_not_end_a_websocket(venue):
    with connect(venue.stream_url + DATA) as opened:
        opened.recv()
        opened.send(json.dumps({"action": "auth", "key": "\u00e9", "secret": "local"}))
        assert json.loads(opened.recv())[0]["code"] == 402
        opened.send(json.dumps({"action": "auth", "key": "local", "secret": "local"}))
        assert json.loads(opened.recv())[0]["msg"] == "authenticated"
        opened.send(json.dumps({"action": "subscribe", "bars": 5, "trades": [["x"], "BTC/USD"]}))
        told = json.loads(opened.recv())[0]
        assert (told["bars"], told["trades"]) == ([], ["BTC/USD"])
