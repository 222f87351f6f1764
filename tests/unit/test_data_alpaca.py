"""Alpaca's historical bars through the real alpaca-py, against a loopback server that speaks the API."""

from __future__ import annotations

import json
from dataclasses import replace

import pandas as pd
import pytest

from environments.data import alpaca as alpaca_module
from environments.data.alpaca import AlpacaSource, api_timeframe, make_plan
from environments.data.credentials import KEY_NAMES, Secret, alpaca_keys, find_secret, read_env_file, redact
from environments.data.http import PatientSession, require_https
from environments.data.source import BarRequest, SourceUnavailable
from environments.data.store import load_dataset
from environments.errors import InputError
from environments.timeframe import Timeframe
from tests.reference.data_api import KEYS, DataApi, Fault, bar, bars_of

NOW = pd.Timestamp("2024-03-01T10:00", tz="UTC")
CRYPTO = {"symbols": "BTC/USD", "timeframe": "1h", "start": "2024-01-01", "end": "2024-01-03"}


@pytest.fixture(autouse=True)
def bare(monkeypatch, tmp_path):
    """No keys of the machine's user, and a working directory without a .env."""
    for name in [name for names in KEY_NAMES for name in names]:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def api(monkeypatch):
    with DataApi() as served:
        monkeypatch.setenv(alpaca_module.URL_VARIABLE, served.url)
        yield served


@pytest.fixture
def keys(monkeypatch):
    for names, value in zip(KEY_NAMES, KEYS, strict=True):
        monkeypatch.setenv(names[0], value)


def source(now=NOW, waits=None, **options):
    waits = [] if waits is None else waits
    return AlpacaSource(lambda: PatientSession("Alpaca", sleep=waits.append, **options), lambda: now)


def test_crypto_needs_no_keys_and_comes_in_pages(api, tmp_path):
    api.page = 20
    api.bars = {
        ("BTC/USD", "1Hour"): bars_of("2024-01-01", 60, 60),
        ("ETH/USD", "1Hour"): bars_of("2024-01-01", 60, 60, 50),
    }
    seen = []
    made = source()
    made.on_progress = lambda *report: seen.append(report)
    bars = made.load(BarRequest(**CRYPTO | {"symbols": "ETH/USD,BTC/USD"}, path=tmp_path / "set"))
    assert bars.symbols == ("ETH/USD", "BTC/USD") and bars.asset_class == "crypto" and not bars.synthetic
    own = bars.frame[bars.frame["symbol"] == "BTC/USD"]
    assert len(own) == 48  # two days, end exclusive
    assert own["timestamp"].iloc[[0, -1]].tolist() == [
        pd.Timestamp("2024-01-01", tz="UTC"),
        pd.Timestamp("2024-01-02T23:00", tz="UTC"),
    ]
    assert own["open"].tolist() == [100.0 + i for i in range(48)] and own["close"].iloc[3] == 103.1
    assert len(api.asked) == 6 and api.tokens()[0] is None and api.tokens()[1] is not None
    assert all("apca-api-key-id" not in headers for _, _, headers in api.asked)
    assert api.asked[0][1] == {
        "symbols": "ETH/USD", "timeframe": "1Hour", "start": "2024-01-01T00:00:00Z",
        "end": "2024-01-02T23:59:59Z", "limit": "10000", "sort": "asc",
    }  # fmt: skip
    assert seen[-1] == ("BTC/USD", 1.0, 48) and 0 < seen[0][1] < 1
    assert load_dataset(tmp_path / "set").fingerprint == bars.fingerprint
    assert not (tmp_path / "set" / ".partial").exists()


def test_a_finished_download_is_not_asked_for_again(api, tmp_path):
    api.bars = {("BTC/USD", "1Hour"): bars_of("2024-01-01", 48, 60)}
    first = source().load(BarRequest(**CRYPTO))
    asked = len(api.asked)
    again = source().load(BarRequest(**CRYPTO))
    assert again.fingerprint == first.fingerprint and len(api.asked) == asked
    (folder,) = (tmp_path / "data" / "alpaca").iterdir()
    assert folder.name.startswith("crypto-1h-")
    # Another request in its folder is refused, not mixed in.
    with pytest.raises(InputError, match="holds another dataset"):
        source().load(BarRequest(**CRYPTO | {"end": "2024-01-02"}, path=folder))


def test_without_an_end_the_dataset_is_made_anew_when_there_are_more_bars(api):
    api.bars = {("BTC/USD", "1Hour"): bars_of("2024-01-01", 24 * 5, 60)}
    open_end = {name: value for name, value in CRYPTO.items() if name != "end"}
    third, fourth = (pd.Timestamp(f"2024-01-0{day}T09:00", tz="UTC") for day in (3, 4))
    assert len(source(third).load(BarRequest(**open_end)).frame) == 48
    asked = len(api.asked)
    assert len(source(third).load(BarRequest(**open_end)).frame) == 48 and len(api.asked) == asked
    assert len(source(fourth).load(BarRequest(**open_end)).frame) == 72


def test_stock_sessions_regular_hours_and_hourly_bars_from_the_open(api, keys):
    # 04:00 to 20:00 in New York, winter: 09:00 to 01:00 UTC; the price counts half hours from 04:00.
    api.bars = {("AAPL", "30Min"): bars_of("2024-01-02T09:00", 32, 30) + bars_of("2024-01-03T09:00", 32, 30, 200)}
    request = {"symbols": "AAPL", "timeframe": "1h", "start": "2024-01-02", "end": "2024-01-05"}
    bars = source().load(BarRequest(**request))
    # 09:30 to 16:00 is six hours and a half: seven bars that begin at 14:30 UTC, the last of 30 minutes.
    day = bars.frame.iloc[:7]
    assert [t.strftime("%H:%M") for t in day["timestamp"]] == [f"{h}:30" for h in range(14, 21)]
    assert day["open"].tolist() == [111.0 + 2 * i for i in range(7)]
    assert day["close"].tolist() == [112.1 + 2 * i for i in range(6)] + [123.1]
    assert len(bars.frame) == 14 and "feed sip, adjustment all, regular hours" in bars.description
    query, headers = api.asked[0][1:]
    assert (query["feed"], query["adjustment"], query["timeframe"]) == ("sip", "all", "30Min")
    assert (headers["apca-api-key-id"], headers["apca-api-secret-key"]) == KEYS
    every = source().load(BarRequest(**request | {"timeframe": "30m"}, options={"hours": "all", "feed": "iex"}))
    assert len(every.frame) == 64 and api.asked[-1][1]["feed"] == "iex"


def test_daily_stock_bars_are_labelled_with_their_date(api, keys):
    # Midnight in New York is 05:00 UTC in winter and 04:00 in summer.
    stamps = [pd.Timestamp(f"2023-{day}", tz="America/New_York") for day in ("03-09", "03-10", "03-13", "03-14")]
    api.bars = {("SPY", "1Day"): [bar(stamp, 400.0) for stamp in stamps]}
    bars = source().load(BarRequest(symbols="SPY", timeframe="1d", start="2023-03-10", end="2023-03-14"))
    assert [str(t) for t in bars.frame["timestamp"]] == [
        "2023-03-10 00:00:00+00:00",
        "2023-03-13 00:00:00+00:00",
    ]


def test_only_complete_bars_old_enough_for_every_plan():
    def end(now, timeframe, asked=None):
        request = BarRequest(symbols="BTC/USD", timeframe=timeframe, start="2024-01-01", end=asked)
        return str(make_plan(request, pd.Timestamp(now, tz="UTC")).end)

    assert end("2024-03-01T00:10", "5m") == "2024-02-29 00:00:00+00:00"
    assert end("2024-03-01T00:20", "5m") == "2024-03-01 00:00:00+00:00"
    # A daily bar opens up to six hours into its day and lasts 24.
    assert end("2024-03-01T10:00", "1d") == "2024-02-29 00:00:00+00:00"
    assert end("2024-03-01T10:00", "1h", "2024-03-01T08:00") == "2024-03-01 08:00:00+00:00"
    assert end("2024-03-01T10:00", "1h", "2030-01-01") == "2024-03-01 00:00:00+00:00"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"symbols": None}, "needs symbols"),
        ({"timeframe": None}, "needs timeframe"),
        ({"start": None}, "needs start"),
        ({"symbols": "BTC/USD,AAPL"}, "symbol AAPL; crypto symbols have a slash"),
        ({"symbols": "BTCUSD", "asset_class": "crypto"}, "symbol BTCUSD; crypto symbols have a slash"),
        ({"timeframe": "90m"}, "Alpaca has 1m to 59m, 1h to 23h and 1d"),
        ({"symbols": "AAPL", "timeframe": "7m"}, "divisors and multiples of 30m"),
        ({"options": {"feed": "best"}}, "feed=best: sip, iex are accepted"),
        ({"options": {"colour": 1}}, "no option colour"),
        ({"start": "2024-02-29T23:00", "end": "2024-04-01", "timeframe": "1d"}, "complete bars end at"),
    ],
)
def test_requests_that_cannot_be_met(change, message):
    with pytest.raises(InputError, match=message):
        make_plan(BarRequest(**CRYPTO | change), NOW)


def test_timeframes_in_alpacas_notation():
    texts = {"1m": "1Min", "59m": "59Min", "1h": "1Hour", "23h": "23Hour", "1d": "1Day"}
    assert {text: api_timeframe(Timeframe.parse(text)) for text in texts} == texts
    assert make_plan(BarRequest(**CRYPTO), NOW).adjusted is False


def test_missing_and_refused_keys(api, monkeypatch):
    request = BarRequest(**CRYPTO | {"symbols": "AAPL"})
    with pytest.raises(SourceUnavailable, match=r"stock data needs .* set APCA_API_KEY_ID and APCA_API_SECRET_KEY"):
        source().load(request)
    monkeypatch.setenv("ALPACA_API_KEY", KEYS[0])
    with pytest.raises(SourceUnavailable, match=r"set APCA_API_SECRET_KEY in"):
        source().load(BarRequest(**CRYPTO))
    assert api.asked == []
    monkeypatch.setenv("ALPACA_SECRET_KEY", "a-wrong-secret")
    with pytest.raises(SourceUnavailable, match=r"HTTP 401: .*check APCA_API_KEY_ID") as refused:
        source().load(request)
    # The server repeats the keys; the message does not.
    assert "a-wrong-secret" not in str(refused.value) and KEYS[0] not in str(refused.value)
    api.bars = {("AAPL", "30Min"): []}
    monkeypatch.setenv("ALPACA_SECRET_KEY", KEYS[1])
    api.faults.append(Fault(403, message="subscription does not permit querying recent SIP data"))
    with pytest.raises(SourceUnavailable, match=r"HTTP 403: .*recent SIP data.*iex does not"):
        source().load(request)
    with pytest.raises(InputError, match="no 1h bars of AAPL from 2024-01-01 to 2024-01-03"):
        source().load(request)
    with pytest.raises(InputError, match=r"does not accept the request for XYZ.*invalid symbol"):
        source().load(replace(request, symbols=("XYZ",)))


def test_bad_bars_are_refused_and_asked_for_again(api, tmp_path):
    made = bars_of("2024-01-01", 48, 60)
    made[5]["h"] = made[5]["l"] - 1
    made[9]["h"] = made[9]["l"] - 1
    api.bars = {("BTC/USD", "1Hour"): made}
    request = BarRequest(**CRYPTO, path=tmp_path / "set")
    with pytest.raises(InputError, match=r"alpaca: BTC/USD at 2024-01-01T05:00:00.*high .* is below .*1 more rows"):
        source().load(request)
    assert not (tmp_path / "set" / "manifest.json").exists()
    api.bars = {("BTC/USD", "1Hour"): bars_of("2024-01-01", 48, 60)}
    assert len(source().load(request).frame) == 48


@pytest.mark.parametrize(
    "body", ['{"bars": [1]}', '{"next_page_token": null}', '{"bars": {"BTC/USD": [{"t": 1}]}}', "<html>"]
)
def test_an_answer_that_is_no_page(api, monkeypatch, body):
    def raw(handler, *ignored, **also):
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body.encode())

    monkeypatch.setattr(api, "answer", raw)
    with pytest.raises(SourceUnavailable, match="is not a page of bars"):
        source().load(BarRequest(**CRYPTO))


def test_keys_from_a_file(tmp_path, monkeypatch):
    (tmp_path / ".env").write_text(
        "# keys\n\nexport ALPACA_API_KEY='from file'\nALPACA_SECRET_KEY = \"x=y#z\"\nEMPTY=\n"
    )
    key, secret = alpaca_keys(needed_for="stock data")
    assert (key.reveal(), secret.reveal()) == ("from file", "x=y#z")
    monkeypatch.setenv("APCA_API_KEY_ID", "from environment")
    assert find_secret(*KEY_NAMES[0]).reveal() == "from environment"
    assert find_secret("EMPTY") is None
    (tmp_path / ".env").write_text("A=1\nthis is hunter2\n")
    with pytest.raises(InputError, match=r"\.env line 2: NAME=value is accepted") as refused:
        read_env_file(tmp_path / ".env")
    assert "hunter2" not in str(refused.value)


def test_secrets_do_not_show():
    secret = Secret("hunter2")
    assert "hunter2" not in f"{secret} {secret!r} {[secret]} {vars(type(secret)).get('__dict__')}"
    with pytest.raises(TypeError):
        json.dumps(secret)
    url = Secret("postgresql://anna:pa:ss@word@host/db")
    assert redact("for pa:ss@word at\n word, anna", [url, None]) == "for *** at ***, anna"


def test_keys_go_to_https_only():
    assert require_https("https://x.supabase.co/", "U") == "https://x.supabase.co"
    assert require_https("http://127.0.0.1:8000", "U") == "http://127.0.0.1:8000"
    for wrong in ("http://x.supabase.co", "x.supabase.co", "https://", "file:///etc/passwd"):
        with pytest.raises(InputError, match="U: an https URL"):
            require_https(wrong, "U")


def test_a_half_day_ends_with_its_session(api, keys):
    """2024-07-03 closes at 13:00: the half hours after it are after-hours trading, whatever the clock says."""
    api.bars = {("AAPL", "30Min"): bars_of("2024-07-02T08:00", 32, 30) + bars_of("2024-07-03T08:00", 32, 30, 200)}
    request = BarRequest(symbols="AAPL", timeframe="1h", start="2024-07-02", end="2024-07-05")
    bars = source(now=pd.Timestamp("2024-07-10", tz="UTC")).load(request)
    half = bars.frame[bars.frame["timestamp"] >= "2024-07-03"]
    assert [t.strftime("%H:%M") for t in half["timestamp"]] == ["13:30", "14:30", "15:30", "16:30"]
    # The price counts half hours from 04:00, 200 and up: 13:00 in New York is the 18th.
    assert half["open"].tolist() == [211.0, 213.0, 215.0, 217.0] and half["close"].iloc[-1] == 217.1
    assert bars.calendar == "XNYS" and len(bars.frame) == 7 + 4
    assert (
        "6 of 26 bars lie outside the sessions of XNYS" in bars.notes[0] and "6 after an early close" in bars.notes[0]
    )
