"""Downloads that meet trouble: busy and broken servers, hangs, cut connections, kills, Ctrl-C, wrong keys."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from email.utils import format_datetime
from pathlib import Path

import pandas as pd
import pytest
import requests

from drl_agents.training.commandline import run
from environments.data import alpaca as alpaca_module
from environments.data.alpaca import AlpacaSource
from environments.data.credentials import KEY_NAMES
from environments.data.download import EXPANDED, Download, download
from environments.data.http import PatientSession
from environments.data.source import BarRequest, SourceUnavailable, load_bars
from environments.data.store import load_dataset
from environments.errors import InputError
from scripts.download import Options, main
from tests.reference.data_api import KEYS, DataApi, Fault, bars_of

ROOT = Path(__file__).resolve().parents[2]
NOW = pd.Timestamp("2024-03-01T10:00", tz="UTC")
CRYPTO = {"symbols": "BTC/USD", "timeframe": "1h", "start": "2024-01-01", "end": "2024-01-06"}
SECRETS = (KEYS[0], KEYS[1], "hunter2")


@pytest.fixture(autouse=True)
def bare(monkeypatch, tmp_path):
    for name in [name for names in KEY_NAMES for name in names] + ["DATABASE_URL"]:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def api(monkeypatch):
    """120 hourly bars of BTC/USD in pages of 30."""
    with DataApi(page=30) as served:
        served.bars = {("BTC/USD", "1Hour"): bars_of("2024-01-01", 120, 60)}
        monkeypatch.setenv(alpaca_module.URL_VARIABLE, served.url)
        yield served


def load(folder, waits=None, now=NOW, request=None, **options):
    waits = [] if waits is None else waits
    session = lambda: PatientSession("Alpaca", sleep=waits.append, clock=lambda: 1_000_000.0, **options)  # noqa: E731
    return AlpacaSource(session, lambda: now).load(BarRequest(**(request or CRYPTO), path=folder))


def command(*arguments):
    return subprocess.Popen(
        [sys.executable, str(ROOT / "scripts" / "download.py"), *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


@pytest.fixture
def call(capfd):
    """`call(*arguments)` runs the command line in this process: (exit status, all it showed)."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level

    def run_here(*arguments):
        with pytest.raises(SystemExit) as ended:
            run(Options, main, [str(part) for part in arguments])
        for handler in root.handlers:
            handler.close()
        return ended.value.code, "".join(capfd.readouterr())

    yield run_here
    root.handlers[:], root.level = handlers, level


def arguments_of(request, out):
    return [part for name, value in request.items() for part in (f"--{name}", value)] + ["--out", out]


def wait_for(condition, seconds=30.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.01)


def test_a_busy_server_is_waited_for_as_it_asks(api, tmp_path):
    moment = format_datetime(pd.Timestamp(1_000_007, unit="s", tz="UTC").to_pydatetime(), usegmt=True)
    api.faults.extend([
        Fault(429, {"Retry-After": "3"}),
        None,
        Fault(429, {"Retry-After": moment}),
        Fault(429, {"X-RateLimit-Reset": "1000011"}),
        Fault(503),
    ])  # fmt: skip
    waits = []
    bars = load(tmp_path / "set", waits)
    assert len(bars.frame) == 120 and bars.frame["open"].tolist() == [100.0 + i for i in range(120)]
    assert waits[:3] == [3.0, 7.0, 11.0] and 2.0 <= waits[3] <= 4.0 and len(waits) == 4
    assert len(api.asked) == 4 + 4


def test_retries_end(api, tmp_path):
    api.faults.extend([Fault(500)] * 10)
    waits = []
    with pytest.raises(SourceUnavailable, match=r"^Alpaca: HTTP 500, 4 times; ask again later$"):
        load(tmp_path / "set", waits, attempts=4)
    assert len(api.asked) == 4 and len(waits) == 3
    assert all(2**k / 2 <= wait <= 2**k for k, wait in enumerate(waits))
    api.faults.clear()
    api.faults.append(Fault(429, {"Retry-After": "3600"}))
    with pytest.raises(SourceUnavailable, match=r"asks to wait 3600 s"):
        load(tmp_path / "set", waits)
    assert len(waits) == 3


def test_hangs_and_cut_connections(api, tmp_path):
    api.faults.extend([Fault(hang=5.0), None, Fault(cut=True)])
    began = time.monotonic()
    bars = load(tmp_path / "set", timeout=(1.0, 0.2))
    assert time.monotonic() - began < 3.0
    assert len(bars.frame) == 120 and len(api.asked) == 4 + 2
    api.faults.extend([Fault(hang=5.0)] * 2)
    with pytest.raises(SourceUnavailable, match=r"no answer within 0\.2 s, 2 times"):
        load(tmp_path / "other", timeout=(1.0, 0.2), attempts=2)
    api.__exit__()
    with pytest.raises(SourceUnavailable, match="the connection failed or was cut, 2 times"):
        load(tmp_path / "other", attempts=2)
    api.__enter__()


def test_every_request_of_the_source_has_a_timeout(api, tmp_path, monkeypatch):
    timeouts = []
    send = requests.Session.send

    def sent(self, prepared, **options):
        timeouts.append(options["timeout"])
        return send(self, prepared, **options)

    monkeypatch.setattr(requests.Session, "send", sent)
    AlpacaSource().load(BarRequest(**CRYPTO, path=tmp_path / "set"))
    assert timeouts == [(10.0, 60.0)] * 4


def test_a_killed_download_does_not_ask_again_for_the_pages_it_has(api, tmp_path, call):
    whole = load(tmp_path / "whole").fingerprint
    api.asked.clear()
    # The third page never comes: the process waits for it, and is killed there.
    api.faults.extend([None, None, Fault(hang=30.0)])
    process = command(*arguments_of(CRYPTO, tmp_path / "set"))
    wait_for(lambda: len(api.asked) == 3)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL and not (tmp_path / "set" / "manifest.json").exists()
    had, third = api.tokens()[:2], api.tokens()[2]
    api.asked.clear()
    # Half a page that was being written when the power went.
    torn = tmp_path / "set" / ".partial" / "BTC%2FUSD" / "00002.json"
    torn.write_text('{"bars": [["2024-01-')
    status, shown = call(*arguments_of(CRYPTO, tmp_path / "set"))
    assert status == 0, shown
    assert api.tokens()[0] == third and not set(had) & set(api.tokens()) and len(api.asked) == 2
    assert load_dataset(tmp_path / "set").fingerprint == whole and whole in shown


def test_ctrl_c_keeps_what_there_is_and_exits_130(api, tmp_path):
    api.faults.extend([None, Fault(hang=30.0)])
    process = command(*arguments_of(CRYPTO, tmp_path / "set"))
    wait_for(lambda: len(api.asked) == 2)
    process.send_signal(signal.SIGINT)
    shown, _ = process.communicate(timeout=30)
    assert process.returncode == 130 and "Traceback" not in shown
    assert "the same command goes on from here" in shown
    api.asked.clear()
    assert len(load(tmp_path / "set").frame) == 120 and len(api.asked) == 3


def test_adjusted_prices_of_two_days_are_not_mixed(api, tmp_path, monkeypatch):
    for names, value in zip(KEY_NAMES, KEYS, strict=True):
        monkeypatch.setenv(names[0], value)
    api.bars[("AAPL", "1Day")] = bars_of("2024-01-01T05:00", 60, 1440)
    request = {"symbols": "AAPL", "timeframe": "1d", "start": "2024-01-01", "end": "2024-02-29"}

    def interrupted(folder, **options):
        api.asked.clear()
        api.faults.extend([None, Fault(500)])
        with pytest.raises(SourceUnavailable):
            load(folder, request=request | options, attempts=1)
        api.asked.clear()

    interrupted(tmp_path / "set")
    load(tmp_path / "set", request=request)
    assert len(api.asked) == 1  # the same day: only the second page was missing
    interrupted(tmp_path / "late")
    load(tmp_path / "late", request=request, now=NOW + pd.Timedelta("1D"))
    assert len(api.asked) == 2  # a split may have changed the first page overnight
    interrupted(tmp_path / "raw", options={"adjustment": "raw"})
    load(tmp_path / "raw", request=request | {"options": {"adjustment": "raw"}}, now=NOW + pd.Timedelta("1D"))
    assert len(api.asked) == 1


def test_an_interrupted_download_keeps_its_end(api, tmp_path):
    """Without an end asked for, days that passed meanwhile do not make the pages of other days."""
    api.bars[("BTC/USD", "1Hour")] = bars_of("2024-02-28", 96, 60)
    request = {"symbols": "BTC/USD", "timeframe": "1h", "start": "2024-02-28"}
    api.faults.extend([None, Fault(500)])
    with pytest.raises(SourceUnavailable):
        load(tmp_path / "set", request=request, attempts=1)
    bars = load(tmp_path / "set", request=request, now=NOW + pd.Timedelta("1D"))
    assert len(bars.frame) == 48  # to the end of February, as when it began


def test_a_server_that_turns_in_circles(api, tmp_path):
    proper = api.page_of_bars

    def circling(kind, query, headers):
        status, body, more = proper(kind, query, headers)
        return status, body | {"next_page_token": "QQ=="}, more

    api.page_of_bars = circling
    with pytest.raises(SourceUnavailable, match="is that page again"):
        load(tmp_path / "set")


def test_secrets_are_nowhere(api, tmp_path, call):
    api.bars[("AAPL", "1Day")] = bars_of("2024-01-01T05:00", 40, 1440)
    request = {"symbols": "AAPL", "timeframe": "1d", "start": "2024-01-01", "end": "2024-02-01"}
    log = tmp_path / "log.txt"
    noisy = ["--verbose", "--log-file", log]
    (tmp_path / ".env").write_text(
        f"APCA_API_KEY_ID={KEYS[0]}\nAPCA_API_SECRET_KEY={KEYS[1]}\n"
        "DATABASE_URL=postgresql://anna:hunter2@127.0.0.1:1/db\n"
    )
    api.faults.extend([Fault(429, {"Retry-After": "0"}), Fault(403, message=f"{KEYS[0]} {KEYS[1]}")])
    shown = []
    for extra, expected in (([], 2), ([], 0), (["--to", "postgres"], 2)):
        status, text = call(*arguments_of(request, tmp_path / "set"), *noisy, *extra)
        shown.append(text)
        assert status == expected, text
    assert 'HTTP 403: {"message": "*** ***"}' in shown[0] and "PostgreSQL: " in shown[2]
    files = [path for path in tmp_path.rglob("*") if path.is_file() and path.name != ".env"]
    assert {"log.txt", "manifest.json", "download.json", "bars.parquet"} <= {path.name for path in files}
    for text in [*(s.encode() for s in shown), *(path.read_bytes() for path in files)]:
        assert not [secret for secret in SECRETS if secret.encode() in text]


def test_without_data_only_a_fallback_goes_on_and_says_so(api, tmp_path, call):
    request = {"symbols": "AAPL,MSFT", "timeframe": "1h", "start": "2024-01-01", "end": "2024-02-01"}
    out = tmp_path / "data" / "stocks"
    with pytest.raises(SourceUnavailable, match="set APCA_API_KEY_ID and APCA_API_SECRET_KEY"):
        download(Download("alpaca", request, out))
    status, shown = call(*arguments_of(request, out), "--fallback", "synthetic")
    assert status == 0 and "SYNTHETIC bars (stock data needs Alpaca's keys" in shown
    assert not (out / "manifest.json").exists()
    manifest = json.loads((tmp_path / "data" / "stocks-synthetic" / "manifest.json").read_text())
    assert manifest["synthetic"] is True and manifest["source"] == "synthetic"
    assert manifest["symbols"] == ["SYN0", "SYN1"] and manifest["timeframe"] == "1h"
    assert "synthetic" in manifest["description"] and manifest["asset_class"] == "stock"
    # A mistake of the user's is not a missing source.
    with pytest.raises(InputError, match="Alpaca has 1m to 59m"):
        download(Download("alpaca", CRYPTO | {"timeframe": "90m"}, out, fallback="synthetic"))


def test_other_sources_and_wrong_options(tmp_path):
    out = tmp_path / "sample"
    seen = download(Download("sample", {"symbols": "IBM,MSFT", "start": "2010-01-01"}, out))
    assert load_dataset(out).fingerprint == seen.bars.fingerprint and seen.folder == out and seen.reason is None
    assert download(Download("sample", {"symbols": "IBM,MSFT", "start": "2010-01-01"}, out)).bars.fingerprint
    with pytest.raises(InputError, match="holds another dataset"):
        download(Download("sample", {"symbols": "IBM"}, out))
    assert load_dataset(out).fingerprint == seen.bars.fingerprint
    for job, message in (
        (Download("sample"), "out: name the dataset's folder"),
        (Download("sample", out=out, to="redis"), "files or postgres are accepted"),
        (Download("sample", out=out, fallback="random"), "synthetic is accepted"),
        (Download("sample", out=out, to="postgres", fallback="synthetic"), "not written to a database"),
        (Download("sample", to="postgres"), "needs DATABASE_URL"),
    ):
        with pytest.raises(InputError, match=message):
            download(job)


def test_the_expanded_symbols(api, tmp_path, monkeypatch, call):
    named = "SPY QQQ IWM AAPL MSFT NVDA TSLA AMZN META GOOGL AMD NFLX"
    assert " ".join(EXPANDED) == named
    for symbol in EXPANDED:
        api.bars[(symbol, "1Day")] = bars_of("2024-01-01T05:00", 20, 1440)
    for names, value in zip(KEY_NAMES, KEYS, strict=True):
        monkeypatch.setenv(names[1], value)
    span = ("--timeframe", "1d", "--start", "2024-01-01", "--end", "2024-01-21")
    status, shown = call("--expanded", *span, "--out", tmp_path / "set")
    assert status == 0, shown
    assert load_dataset(tmp_path / "set").symbols == EXPANDED and len(EXPANDED) == 12
    assert "expanded set: 12 symbols; the thirteenth, cash, is the account's own: no bars" in shown
    assert "calendar:     XNYS" in shown
    status, shown = call("--expanded", "--symbols", "SPY", "--out", tmp_path / "set")
    assert status == 2 and "error: --expanded names symbols of its own" in shown


# ------------------------------------------------------------------------------------------ a later end


def test_a_later_end_fetches_the_new_part_alone(api, tmp_path, call):
    """120 bars in pages of 30: after 72 kept ones, the last day of those and the 48 that are new."""
    first = load(tmp_path / "set", request=CRYPTO | {"end": "2024-01-04"})
    api.asked.clear()
    status, shown = call(*arguments_of(CRYPTO, tmp_path / "set"))
    assert status == 0, shown
    assert [query["start"] for _, query, _ in api.asked] == ["2024-01-03T00:00:00Z"] * 3
    whole = load(tmp_path / "whole")
    grown = load_dataset(tmp_path / "set")
    assert grown.fingerprint == whole.fingerprint != first.fingerprint and len(grown.frame) == 120
    assert grown.fingerprint in shown and not (tmp_path / "set" / ".partial").exists()
    manifest = json.loads((tmp_path / "set" / "manifest.json").read_text())
    assert manifest["rows"] == 120 and manifest["end"] == "2024-01-05T23:00:00+00:00"
    api.asked.clear()
    load(tmp_path / "set")
    assert api.asked == []
    with pytest.raises(InputError, match="it holds another dataset"):
        load(tmp_path / "set", request=CRYPTO | {"end": "2024-01-03"})


def test_an_addition_that_is_interrupted_goes_on(api, tmp_path):
    load(tmp_path / "set", request=CRYPTO | {"end": "2024-01-04"})
    api.faults.extend([None, None, Fault(500)])
    with pytest.raises(SourceUnavailable):
        load(tmp_path / "set", attempts=1)
    # What was kept is as it was until all of the addition is there.
    assert len(load_dataset(tmp_path / "set").frame) == 72
    api.asked.clear()
    load(tmp_path / "set")
    assert len(api.asked) == 1 and len(load_dataset(tmp_path / "set").frame) == 120


def test_bars_that_were_changed_since_are_all_fetched_again(api, tmp_path, caplog):
    load(tmp_path / "set", request=CRYPTO | {"end": "2024-01-04"})
    api.bars[("BTC/USD", "1Hour")][71]["v"] = 7.0
    assert load(tmp_path / "set").frame["volume"].iloc[71] == 7.0
    assert "volume of BTC/USD at 2024-01-03T23:00:00+00:00 was 57.0, now 7.0; all bars are fetched again" in caplog.text


def test_adjusted_prices_are_not_added_to(api, tmp_path, monkeypatch):
    """A split since would have changed the bars that are kept; unadjusted ones are added to."""
    for names, value in zip(KEY_NAMES, KEYS, strict=True):
        monkeypatch.setenv(names[0], value)
    api.bars[("AAPL", "1Day")] = bars_of("2024-01-01T05:00", 60, 1440)
    request = {"symbols": "AAPL", "timeframe": "1d", "start": "2024-01-01"}
    for adjustment, since in (("all", "2024-01-01T00:00:00Z"), ("raw", "2024-01-31T00:00:00Z")):
        own = request | {"options": {"adjustment": adjustment}}
        load(tmp_path / adjustment, request=own | {"end": "2024-02-01"})
        api.asked.clear()
        assert len(load(tmp_path / adjustment, request=own | {"end": "2024-02-20"}).frame) == 50
        assert api.asked[0][1]["start"] == since


def test_a_file_that_grew_goes_on_from_what_is_kept(tmp_path):
    bars = load_bars("sample", symbols="IBM,MSFT", start="2012-01-01").frame
    job = Download("files", {"path": tmp_path / "a.csv"}, tmp_path / "set")
    bars[bars["timestamp"] < "2012-09-01"].to_csv(tmp_path / "a.csv", index=False)
    first = download(job)
    bars.to_csv(tmp_path / "a.csv", index=False)
    second = download(job)
    assert len(second.bars.frame) == len(bars) > len(first.bars.frame)
    assert load_dataset(tmp_path / "set").fingerprint == second.bars.fingerprint
    bars.assign(volume=bars["volume"] + 1).to_csv(tmp_path / "a.csv", index=False)
    with pytest.raises(InputError, match=r"set: volume of IBM at 2012-01-03T00:00:00\+00:00 was .*name another folder"):
        download(job)
    assert load_dataset(tmp_path / "set").fingerprint == second.bars.fingerprint
    bars.iloc[3:].to_csv(tmp_path / "a.csv", index=False)
    with pytest.raises(InputError, match=r"the bar of IBM at 2012-01-03T00:00:00\+00:00 is gone"):
        download(job)


def test_made_up_bars_stay_marked_when_they_are_made_again(tmp_path):
    job = Download("synthetic", {"options": {"n_bars": 50, "kind": "signal"}}, tmp_path / "set")
    first, second = download(job).bars, download(job).bars
    kept = load_dataset(tmp_path / "set")
    assert kept.synthetic and second.synthetic and kept.fingerprint == first.fingerprint
    assert kept.planted == second.planted == first.planted is not None and kept.description == first.description


def test_calendar_and_columns_by_option(tmp_path, call):
    stamps = pd.date_range("2024-06-03 13:00", periods=10, freq="D").repeat(14)
    stamps = stamps + pd.to_timedelta([30 * i for i in range(14)] * 10, unit="min")
    frame = pd.DataFrame({"timestamp": stamps, "symbol": "AAPL", "marketcap": 3e12, "volume": 1.0})
    frame = frame.assign(open=1.0, high=1.0, low=1.0, close=1.0)
    frame[frame["timestamp"].dt.day_of_week < 5].to_csv(tmp_path / "a.csv", index=False)
    common = ("--source", "files", "--path", tmp_path / "a.csv", "--extra-columns", "marketcap")
    status, shown = call(*common, "--out", tmp_path / "set")
    assert status == 0, shown
    assert "8 of 112 bars lie outside the sessions of XNYS and were dropped: 8 before or after" in shown
    dataset = load_dataset(tmp_path / "set")
    assert dataset.extra == ("marketcap",) and dataset.calendar == "XNYS" and len(dataset.notes) == 1
    status, shown = call(*common, "--calendar", "none", "--out", tmp_path / "all")
    assert status == 0 and "calendar:     none, sessions are read off the bars" in shown
    assert len(load_dataset(tmp_path / "all").frame) == 112
    for extra, message in (
        (("--calendar", "XBOM"), "error: a.csv: the bars are not of calendar XBOM: 0% of them"),
        (("--calendar", "NYSEX"), "error: calendar 'NYSEX': a name of exchange_calendars"),
        (("--indicators", "all"), "error: source files takes no options"),
    ):
        status, shown = call(*common, *extra, "--out", tmp_path / "wrong")
        assert status == 2 and message in shown and shown.strip().count("\n") == 0, shown
