"""Bars in a real PostgreSQL, started for these tests, and over Supabase's REST interface on the loopback."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from environments.data import postgres
from environments.data.download import Download, download
from environments.data.postgres import PostgresSource, write_bars
from environments.data.postgrest import SUPABASE_NAMES
from environments.data.source import BarRequest, SourceUnavailable, load_bars
from environments.data.store import load_dataset
from environments.errors import InputError
from tests.reference import postgres_server
from tests.reference.data_api import SERVICE_KEY, DataApi, Fault

psycopg = pytest.importorskip("psycopg", reason="psycopg is not installed (the extra `postgres`)")


@pytest.fixture(scope="module")
def server():
    """A connection URL of a PostgreSQL of our own."""
    try:
        with postgres_server.server() as url:
            yield url
    except postgres_server.Unavailable as error:
        pytest.skip(str(error))


@pytest.fixture(autouse=True)
def bare(monkeypatch, tmp_path):
    for name in (postgres.URL_VARIABLE, *SUPABASE_NAMES):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def database(server, monkeypatch):
    """The server's URL in the environment, and no table."""
    monkeypatch.setenv(postgres.URL_VARIABLE, server)
    with psycopg.connect(server) as connection:
        connection.execute("DROP TABLE IF EXISTS historical_bars, technical_indicators")
    return server


def real(bars):
    """Synthetic bars that pass for bars of another source."""
    return replace(bars, synthetic=False, planted=None)


def made(n=500, assets=2, seed=0, **options):
    return real(load_bars("synthetic", seed=seed, options={"n_bars": n, "n_assets": assets, **options}))


def load(**request):
    return load_bars("postgres", **request)


def test_a_round_trip_keeps_the_fingerprint(database, monkeypatch):
    monkeypatch.setattr(postgres, "CHUNK_ROWS", 128)
    bars = made()
    seen = []
    assert write_bars(bars, lambda *report: seen.append(report)) == 1_000
    assert seen[3] == ("SYN0", 1.0, 500) and seen[0][1] == 128 / 500
    again = load(symbols=bars.symbols, asset_class="crypto")
    assert again.fingerprint == bars.fingerprint and again.timeframe == bars.timeframe
    assert again.source == "postgres" and not again.synthetic
    backwards = load(symbols=("SYN1", "SYN0"))
    assert backwards.symbols == ("SYN1", "SYN0") and backwards.fingerprint != bars.fingerprint
    with psycopg.connect(database) as connection:
        kinds = connection.execute(
            "SELECT column_name, data_type FROM information_schema.columns WHERE table_name = 'historical_bars'"
        ).fetchall()
        row = connection.execute(
            "SELECT symbol, timeframe, timestamp, close FROM historical_bars ORDER BY symbol, timestamp LIMIT 1"
        ).fetchone()
    assert dict(kinds) == {
        "symbol": "text", "timeframe": "text", "timestamp": "timestamp with time zone",
        **dict.fromkeys(("open", "high", "low", "close", "volume"), "double precision"),
    }  # fmt: skip
    first = bars.frame.iloc[0]
    assert row == ("SYN0", "1h", first["timestamp"].to_pydatetime(), first["close"])


def test_downloaded_into_the_database(database):
    """What `--to postgres` writes is what a later `--data-source postgres` reads."""
    request = {"symbols": "MSFT,IBM", "start": "2012-01-01"}
    done = download(Download("sample", request, to="postgres"))
    assert done.rows == len(done.bars.frame) and done.folder is None
    assert load(symbols="MSFT,IBM", asset_class="stock").fingerprint == done.bars.fingerprint


def test_awkward_numbers_and_names_survive(database):
    bars = made(n=4, assets=1)
    frame = bars.frame.assign(symbol="Ω/US'D%s")
    frame["volume"] = [0.0, 5e-324, 1.7976931348623157e308, 0.1 + 0.2]
    frame["timestamp"] = pd.to_datetime(
        ["1969-12-31T23:00", "1999-12-31T23:59:59.999999", "2000-01-01T00:00:00.000001", "2100-01-01"],
        utc=True, format="ISO8601",
    ).as_unit("ns")  # fmt: skip
    write_bars(replace(bars, frame=frame, symbols=("Ω/US'D%s",)))
    again = load(asset_class="crypto")
    assert again.symbols == ("Ω/US'D%s",)
    for name in ("timestamp", "open", "high", "low", "close", "volume"):
        assert np.array_equal(again.frame[name].to_numpy(), frame[name].to_numpy()), name


def test_writing_again_replaces_the_span_and_nothing_else(database):
    old = made(n=10, assets=1, seed=1)
    write_bars(old)
    new = made(n=10, assets=1, seed=2)
    part = replace(new, frame=new.frame.iloc[[4, 6]].reset_index(drop=True))
    write_bars(part)
    close = load().frame["close"].tolist()
    # Bar 5 of the old ones was inside the span that the new ones cover.
    was, now = old.frame["close"].tolist(), new.frame["close"].tolist()
    assert close == [*was[:4], now[4], now[6], *was[7:]]


def test_spans_timeframes_and_symbols(database):
    write_bars(made(n=48))
    write_bars(made(n=5, timeframe="1d"))
    with pytest.raises(InputError, match="has timeframes 1d, 1h: name one"):
        load()
    with pytest.raises(InputError, match="has no 5m bars; it has 1d, 1h"):
        load(timeframe="5m")
    with pytest.raises(InputError, match="no 1h bars of BTC/USD; it has SYN0, SYN1"):
        load(timeframe="1h", symbols="SYN0,BTC/USD")
    part = load(timeframe="1h", symbols="SYN1", start="2020-01-01T02:00", end="2020-01-01T05:00", asset_class="crypto")
    assert [t.hour for t in part.frame["timestamp"]] == [2, 3, 4]
    with pytest.raises(InputError, match="has no 1h bars of SYN0 in the span asked for"):
        load(timeframe="1h", start="2030-01-01")


def test_what_the_table_cannot_hold(database):
    with pytest.raises(InputError, match="synthetic bars are not written"):
        write_bars(load_bars("synthetic", options={"n_bars": 5}))
    bars = made(n=5)
    for name in ("id", "n" * 64):
        with pytest.raises(InputError, match=f"^column '{name}': names of up to 63 bytes other than id are accepted"):
            write_bars(replace(bars, frame=bars.frame.assign(**{name: 1.0}), extra=(name,)))
    fine = bars.frame.assign(timestamp=bars.frame["timestamp"] + pd.Timedelta(1, "ns"))
    with pytest.raises(InputError, match="to the microsecond"):
        write_bars(replace(bars, frame=fine))
    with pytest.raises(InputError, match="has no table historical_bars"):
        load()


def test_a_failed_write_leaves_nothing(database):
    write_bars(made(n=10, assets=1))
    twice = made(n=10, assets=2, seed=3)
    frame = twice.frame.copy()
    # The second symbol's bar 3 repeats bar 2: the primary key refuses it after the first symbol was copied.
    stamps = frame["timestamp"].to_list()
    stamps[13] = stamps[12]
    with pytest.raises(SourceUnavailable, match="duplicate key"):
        write_bars(replace(twice, frame=frame.assign(timestamp=stamps)))
    assert load().fingerprint == made(n=10, assets=1).fingerprint


def test_a_null_in_a_table_of_someone_elses_making(database):
    with psycopg.connect(database) as connection:
        connection.execute(
            "CREATE TABLE historical_bars (symbol text, timeframe text, timestamp timestamptz, "
            "open numeric, high real, low int, close float8, volume bigint)"
        )
        for hour in range(2):
            values = ("A", "1h", f"2024-01-01T0{hour}:00Z", 1.5, 2, 1, 1.25, 10)
            connection.execute("INSERT INTO historical_bars VALUES (%s, %s, %s, %s, %s, %s, %s, %s)", values)
    bars = load(asset_class="crypto")
    assert bars.frame.iloc[1, 2:].tolist() == [1.5, 2.0, 1.0, 1.25, 10.0]
    with psycopg.connect(database) as connection:
        connection.execute("UPDATE historical_bars SET low = NULL WHERE timestamp > '2024-01-01T00:30Z'")
    with pytest.raises(InputError, match="a NULL in the bars of A"):
        load()


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://anna:hunter2-pass@127.0.0.1:1/db?connect_timeout=2",
        "postgresql://anna:hunter2-pass@/db?host=/nonexistent-socket-folder",
        "postgresql://anna:hunter2-pass/x@127.0.0.1/db",
        "postgresql://anna:q:hunter2-pass@127.0.0.1:port/db",
        "postgresql://anna:hunter2-pass@127.0.0.1/db?nonsense=1",
    ],
)
def test_the_password_is_in_no_message(url, monkeypatch, caplog):
    monkeypatch.setenv(postgres.URL_VARIABLE, url)
    with caplog.at_level("DEBUG"), pytest.raises(SourceUnavailable) as refused:
        load()
    assert "hunter2" not in str(refused.value) and "\n" not in str(refused.value)
    assert "hunter2" not in caplog.text


def test_urls_that_are_none(monkeypatch):
    with pytest.raises(SourceUnavailable, match="needs DATABASE_URL, or SUPABASE_URL and SUPABASE_SERVICE_ROLE_KEY"):
        load()
    with pytest.raises(SourceUnavailable, match="writing to PostgreSQL needs DATABASE_URL"):
        write_bars(made(n=5))
    monkeypatch.setenv(postgres.URL_VARIABLE, "mysql://anna:hunter2@host/db")
    with pytest.raises(InputError, match=r"^DATABASE_URL: postgresql://user:password@host:5432/database is accepted$"):
        load()


@pytest.fixture
def supabase(monkeypatch):
    with DataApi(max_rows=300) as api:
        bars = made(n=700)
        api.rows["historical_bars"] = [
            {"timeframe": "1h", **row, "timestamp": row["timestamp"].isoformat()}
            for row in bars.frame.to_dict("records")
        ]
        for name, value in zip(SUPABASE_NAMES, (api.url, SERVICE_KEY), strict=True):
            monkeypatch.setenv(name, value)
        yield api, bars


def test_supabase_is_read_in_ranges(supabase):
    api, bars = supabase
    seen = []
    source = PostgresSource()
    source.on_progress = lambda *report: seen.append(report)
    again = source.load(BarRequest(symbols=bars.symbols, timeframe="1h", asset_class="crypto"))
    assert again.fingerprint == bars.fingerprint
    # The server gives 300 rows at most where 1000 are asked for.
    assert [headers["range"] for _, _, headers in api.asked[:3]] == ["0-999", "300-1299", "600-1599"]
    assert [headers.get("prefer") for _, _, headers in api.asked[:2]] == ["count=exact", None]
    assert seen[2] == ("SYN0", 1.0, 700) and len(api.asked) == 6
    part = load(symbols="SYN1", timeframe="1h", start="2020-01-02", end="2020-01-03", asset_class="crypto")
    assert len(part.frame) == 24


def test_what_supabase_refuses(supabase, monkeypatch):
    api, _ = supabase
    with pytest.raises(InputError, match="over https need symbols"):
        load(timeframe="1h")
    with pytest.raises(InputError, match="has no 1h bars of NONE"):
        load(symbols="NONE", timeframe="1h")
    api.faults.append(Fault(302, {"Location": "http://127.0.0.1:1/"}))
    with pytest.raises(SourceUnavailable, match="redirect"):
        load(symbols="SYN0", timeframe="1h")
    api.rows = {}
    with pytest.raises(SourceUnavailable, match="historical_bars: HTTP 404"):
        load(symbols="SYN0", timeframe="1h")
    monkeypatch.setenv(SUPABASE_NAMES[1], "eyJ-wrong-key")
    with pytest.raises(SourceUnavailable, match="check SUPABASE_SERVICE_ROLE_KEY") as refused:
        load(symbols="SYN0", timeframe="1h")
    assert "eyJ-wrong-key" not in str(refused.value)
    monkeypatch.delenv(SUPABASE_NAMES[1])
    with pytest.raises(SourceUnavailable, match="set SUPABASE_SERVICE_ROLE_KEY"):
        load(symbols="SYN0", timeframe="1h")
    monkeypatch.setenv(SUPABASE_NAMES[0], "http://project.supabase.co")
    monkeypatch.setenv(SUPABASE_NAMES[1], SERVICE_KEY)
    with pytest.raises(InputError, match="SUPABASE_URL: an https URL"):
        load(symbols="SYN0", timeframe="1h")


def test_rows_that_vanish_while_they_are_read(supabase):
    api, _ = supabase
    whole = api.range_of_rows

    def shrinking(table, query, headers):
        if len(api.asked) == 2:
            api.rows[table] = api.rows[table][:100]
        return whole(table, query, headers)

    api.range_of_rows = shrinking
    with pytest.raises(SourceUnavailable, match="300 of 700 rows of SYN0, then none"):
        load(symbols="SYN0", timeframe="1h")


# ------------------------------------------------------------------------------ further columns and indicators


def with_columns(n=40, assets=2, **columns):
    """Bars with further columns; each given as a function of the row numbers."""
    bars = made(n=n, assets=assets)
    rows = np.arange(len(bars.frame), dtype=float)
    frame = bars.frame.assign(**{name: values(rows) for name, values in columns.items()})
    return replace(bars, frame=frame, extra=tuple(columns))


def rsi(rows):
    return np.where(rows % 40 < 14, np.nan, rows)  # unknown while it warms up


def test_indicators_make_the_round_trip(database, tmp_path):
    """From a file with columns into both tables and back: what was unknown comes back unknown."""
    bars = with_columns(marketcap=lambda i: 1e9 + i, rsi=rsi, **{"mood, or 'so'": lambda i: -i})
    bars.frame.to_parquet(tmp_path / "a.parquet")
    request = {"path": tmp_path / "a.parquet", "asset_class": "crypto", "extra_columns": bars.extra}
    done = download(Download("files", request, to="postgres"))
    with psycopg.connect(database) as connection:
        kinds = connection.execute(
            "SELECT table_name, column_name FROM information_schema.columns "
            "WHERE table_name IN ('historical_bars', 'technical_indicators') ORDER BY table_name, ordinal_position"
        ).fetchall()
    keys = ["symbol", "timeframe", "timestamp"]
    assert [c for t, c in kinds if t == "technical_indicators"] == [*keys, "rsi", "mood, or 'so'"]
    assert [c for t, c in kinds if t == "historical_bars"][-1] == "marketcap"
    again = load(extra_columns="marketcap", options={"indicators": "all"}, asset_class="crypto")
    assert again.extra == ("marketcap", "rsi", "mood, or 'so'") and again.fingerprint == done.bars.fingerprint
    assert again.notes == ("technical_indicators: 28 of 80 bars have no rsi",)
    assert "with rsi, mood, or 'so' of technical_indicators" in again.description
    one = load(options={"indicators": "rsi"}, asset_class="crypto", start="2020-01-01T20:00", end="2020-01-02")
    assert one.extra == ("rsi",) and one.notes == () and one.frame["rsi"].tolist() == [*range(20, 24), *range(60, 64)]
    assert load(asset_class="crypto").extra == ()  # only who asks gets them


def test_indicators_are_joined_on_the_bar_they_are_stamped_with(database):
    """A table of someone else's making: an id, a text, an integer; rows missing, of other bars and NULL."""
    bars = made(n=6, assets=1)
    write_bars(bars)
    with psycopg.connect(database) as connection:
        connection.execute("DROP TABLE technical_indicators")
        connection.execute(
            "CREATE TABLE technical_indicators (id serial, symbol text, timeframe text, timestamp timestamptz, "
            "name text, rank int, sma numeric)"
        )
        for hour, frame, rank, sma in (
            (1, "1h", 7, "1.5"), (3, "1h", None, "2.25"), (4, "5m", 9, "9"), (5, "1h", 3, None),
        ):  # fmt: skip
            row = ("SYN0", frame, f"2020-01-01T0{hour}:00Z", "x", rank, sma)
            connection.execute(
                "INSERT INTO technical_indicators (symbol, timeframe, timestamp, name, rank, sma) "
                "VALUES (%s, %s, %s, %s, %s, %s)", row,
            )  # fmt: skip
    got = load(options={"indicators": "all"}, asset_class="crypto")
    assert got.extra == ("rank", "sma")
    np.testing.assert_array_equal(got.frame["rank"], [np.nan, 7, np.nan, np.nan, np.nan, 3])
    np.testing.assert_array_equal(got.frame["sma"], [np.nan, 1.5, np.nan, 2.25, np.nan, np.nan])
    with psycopg.connect(database) as connection:
        connection.execute("INSERT INTO technical_indicators SELECT * FROM technical_indicators WHERE rank = 7")
    with pytest.raises(InputError, match="appears twice"):
        load(options={"indicators": "sma"})


def test_indicators_that_cannot_be_had(database):
    write_bars(with_columns(rsi=rsi))
    for options, match in (
        ({"indicators": "macd"}, "technical_indicators has no numeric column macd; it has rsi"),
        ({"indicators": "rsi,close"}, "indicators 'rsi,close': all, or names of columns"),
        ({"indicators": "all,rsi"}, "all, or names of columns"),
        ({"indicators": ""}, "all, or names of columns"),
        ({"indicator": "rsi"}, "source postgres has no option indicator: accepted is indicators"),
    ):
        with pytest.raises(InputError, match=match):
            load(options=options)
    with pytest.raises(InputError, match="historical_bars has no numeric column mood; it has open, high"):
        load(extra_columns="mood")
    # Unknown from end to end: these are the bars of another table.
    write_bars(replace(made(n=5, assets=1, timeframe="5m"), frame=made(n=5, assets=1, timeframe="5m").frame))
    with pytest.raises(InputError, match="technical_indicators has no rsi at any bar of SYN0"):
        load(timeframe="5m", options={"indicators": "rsi"}, asset_class="crypto")
    with psycopg.connect(database) as connection:
        connection.execute("DROP TABLE technical_indicators")
    with pytest.raises(InputError, match="the database has no table technical_indicators"):
        load(timeframe="1h", options={"indicators": "rsi"})


def test_supabase_gives_the_same_indicators(supabase, monkeypatch):
    api, bars = supabase
    rows = bars.frame.assign(rsi=np.arange(1_400.0), marketcap=5.0)
    api.rows["historical_bars"] = [
        {"timeframe": "1h", **row, "timestamp": row["timestamp"].isoformat()} for row in rows.to_dict("records")
    ]
    api.rows["technical_indicators"] = [
        {"id": i, "symbol": row["symbol"], "timeframe": "1h", "timestamp": row["timestamp"].isoformat(),
         "name": "x", "rsi": None if i % 7 == 0 else row["rsi"], "sma": "NaN" if i < 3 else 2 * i, "empty": None}
        for i, row in enumerate(rows.to_dict("records")) if i % 5
    ]  # fmt: skip
    whole = api.range_of_rows

    def with_star(table, query, headers):
        """PostgREST gives every column for `*`."""
        if query["select"] == ["*"]:
            query = {**query, "select": [",".join(api.rows[table][0])]}
        return whole(table, query, headers)

    api.range_of_rows = with_star
    request = {"symbols": bars.symbols, "timeframe": "1h", "asset_class": "crypto"}
    got = load(**request, extra_columns="marketcap", options={"indicators": "all"})
    assert got.extra == ("marketcap", "rsi", "sma") and set(got.frame["marketcap"]) == {5.0}
    i = np.arange(1_400)
    np.testing.assert_array_equal(got.frame["rsi"], np.where((i % 5 == 0) | (i % 7 == 0), np.nan, i))
    np.testing.assert_array_equal(got.frame["sma"], np.where((i % 5 == 0) | (i < 3), np.nan, 2.0 * i))
    assert "technical_indicators: 282 of 1,400 bars have no sma" in got.notes
    one = load(**request, options={"indicators": ("rsi",)})
    assert api.asked[-1][1]["select"] == "timestamp,rsi"
    np.testing.assert_array_equal(one.frame["rsi"], got.frame["rsi"])
    with pytest.raises(InputError, match="has no numeric column name; it has none"):
        load(**request, options={"indicators": ["name"]})
    api.rows["technical_indicators"].append(dict(api.rows["technical_indicators"][0]))
    with pytest.raises(InputError, match="technical_indicators: two rows of SYN0 at 2020-01-01T01:00:00"):
        load(**request, options={"indicators": "rsi"})
    api.rows["technical_indicators"] = []
    with pytest.raises(InputError, match="technical_indicators has no 1h rows of SYN0, SYN1"):
        load(**request, options={"indicators": "rsi"})


def test_a_second_download_asks_the_database_for_the_new_part_alone(database, tmp_path, monkeypatch):
    bars = made(n=24 * 10)
    write_bars(bars)
    request = {"symbols": "SYN1,SYN0", "start": "2020-01-02", "asset_class": "crypto"}
    first = download(Download("postgres", request | {"end": "2020-01-04T06:00"}, tmp_path / "set"))
    asked = []
    read = postgres._read_symbol
    monkeypatch.setattr(
        postgres, "_read_symbol", lambda c, s, t, r, n: asked.append((s, r.start.isoformat())) or read(c, s, t, r, n)
    )
    grown = download(Download("postgres", request | {"end": "2020-01-08"}, tmp_path / "set"))
    assert asked == [("SYN1", "2020-01-04T00:00:00+00:00"), ("SYN0", "2020-01-04T00:00:00+00:00")]
    whole = download(Download("postgres", request | {"end": "2020-01-08"}, tmp_path / "whole"))
    assert grown.bars.fingerprint == whole.bars.fingerprint != first.bars.fingerprint
    kept = load_dataset(tmp_path / "set")
    assert kept.fingerprint == whole.bars.fingerprint and len(kept.frame) == 2 * 6 * 24
    assert kept.description == load_dataset(tmp_path / "whole").description
    # Again without an end: all there is; and once more: nothing new.
    for _ in range(2):
        assert len(download(Download("postgres", request, tmp_path / "set")).bars.frame) == 2 * 9 * 24
    with pytest.raises(InputError, match="it holds another dataset"):
        download(Download("postgres", request | {"end": "2020-01-05"}, tmp_path / "set"))
    with psycopg.connect(database) as connection:
        connection.execute("UPDATE historical_bars SET volume = 5 WHERE timestamp = '2020-01-10T07:00Z'")
    changed = "volume of SYN0 at 2020-01-10T07:00:00.00:00 was .*, now 5.0; name another folder, or remove this one"
    with pytest.raises(InputError, match=changed):
        download(Download("postgres", request, tmp_path / "set"))
    assert len(load_dataset(tmp_path / "set").frame) == 2 * 9 * 24
