"""Sessions of the exchanges, by dates anyone can look up: half days, holidays, clock changes."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from environments.data.exchange import choose_sessions, exchange_sessions, fit, keep_sessions
from environments.data.quality import count_gaps
from environments.data.resample import resample_bars
from environments.data.source import load_bars, make_bars
from environments.data.store import load_dataset, save_dataset
from environments.errors import InputError
from environments.market import Market, bars_per_year
from environments.timeframe import Timeframe

FIVE, THIRTY, HOUR, DAILY = (Timeframe.parse(t) for t in ("5m", "30m", "1h", "1d"))
DATA = Path(__file__).resolve().parents[3] / "shared" / "data"


def ns(text):
    return pd.Timestamp(text).value


def bars_at(stamps, symbol="AAPL"):
    """Bar i opens at 10 + i, closes at 10.5 + i and has the volume 1 + i."""
    i = np.arange(len(stamps), dtype=float)
    columns = {"open": 10 + i, "high": 11 + i, "low": 9 + i, "close": 10.5 + i, "volume": 1 + i}
    index = pd.DatetimeIndex(stamps).as_unit("ns").tz_localize("UTC")
    return pd.DataFrame({"timestamp": index, "symbol": symbol, **columns})


def new_york(date, opens="09:30", closes="16:00", minutes=5):
    """UTC times of the bars of one day, by New York's clock."""
    first, last = (pd.Timestamp(f"{date} {t}", tz="America/New_York") for t in (opens, closes))
    local = pd.date_range(first, last, freq=f"{minutes}min", inclusive="left")
    return local.tz_convert("UTC").tz_localize(None)


def days(*dates, **clock):
    return np.concatenate([new_york(date, **clock).to_numpy() for date in dates]).astype("datetime64[ns]")


def times(frame):
    return [t.strftime("%m-%d %H:%M") for t in frame["timestamp"]]


def test_sessions_of_new_york_in_2024():
    nyse = exchange_sessions("XNYS", 2024, 2024)
    assert nyse.dates.size == 252 and nyse.per_year == 252 and nyse.zone == "America/New_York"
    at = {str(np.datetime64(int(d), "ns").astype("datetime64[D]")): i for i, d in enumerate(nyse.dates)}
    assert not {"2024-01-01", "2024-03-29", "2024-07-04", "2024-11-28"} & set(at)  # holidays
    for date, opens, closes in (
        ("2024-03-08", "14:30", "21:00"),  # winter time
        ("2024-03-11", "13:30", "20:00"),  # clocks went forward on the 10th
        ("2024-07-03", "13:30", "17:00"),  # closes at 13:00
        ("2024-11-29", "14:30", "18:00"),
    ):
        assert nyse.opens[at[date]] == ns(f"{date} {opens}") and nyse.closes[at[date]] == ns(f"{date} {closes}"), date
    # 2024-07-03 in half hours: the bars that have a part in 13:30 to 17:00 UTC.
    stamps = np.array([ns(f"2024-07-03 {t}") for t in ("13:00", "13:29", "13:30", "16:55", "17:00", "19:00")])
    assert (nyse.containing(stamps, FIVE.nanoseconds) >= 0).tolist() == [False, True, True, True, False, False]


def test_a_half_day_resampled_by_hand():
    """09:30 to 13:00 is three bars of an hour and one of half an hour; Thursday is a holiday."""
    stamps = days("2024-07-02", closes="16:00")
    stamps = np.concatenate([stamps, days("2024-07-03", closes="13:00"), days("2024-07-05")])
    sessions = exchange_sessions("XNYS", 2024, 2024)
    out = resample_bars(bars_at(stamps), FIVE, HOUR, "stock", "x", sessions)
    assert times(out)[7:11] == ["07-03 13:30", "07-03 14:30", "07-03 15:30", "07-03 16:30"]
    assert len(out) == 7 + 4 + 7
    assert out.loc[10, ["open", "high", "low", "close"]].tolist() == [10.0 + 114, 11.0 + 119, 9.0 + 114, 10.5 + 119]
    assert out.loc[10, "volume"] == sum(range(115, 121))
    daily = resample_bars(bars_at(stamps), FIVE, DAILY, "stock", "x", sessions)
    assert times(daily) == ["07-02 00:00", "07-03 00:00", "07-05 00:00"]
    assert daily["volume"].tolist() == [sum(range(1, 79)), sum(range(79, 121)), sum(range(121, 199))]


@pytest.mark.parametrize(
    ("last", "hours", "whole_day"),
    [("12:55", 3, False), ("13:00", 4, True)],  # the bar of 12:55 is the half day's last
)
def test_data_that_end_on_a_half_day_are_complete_with_its_close(last, hours, whole_day):
    """Known from the calendar: without one, the day before would make this session look half done."""
    stamps = np.concatenate([days("2024-07-02"), days("2024-07-03", closes=last)])
    sessions = exchange_sessions("XNYS", 2024, 2024)
    assert len(resample_bars(bars_at(stamps), FIVE, HOUR, "stock", "x", sessions)) == 7 + hours
    assert len(resample_bars(bars_at(stamps), FIVE, DAILY, "stock", "x", sessions)) == 1 + whole_day
    assert len(resample_bars(bars_at(stamps), FIVE, DAILY, "stock", "x")) == 1


def test_bars_are_counted_from_the_open_even_where_the_first_ones_are_missing():
    """A stock first traded at 09:50 on the second day; on the first the file begins at 10:45."""
    first = new_york("2024-03-07", opens="10:45")
    second = new_york("2024-03-08", opens="09:50")
    frame = bars_at(np.concatenate([first, second]))
    out = resample_bars(frame, FIVE, HOUR, "stock", "x", exchange_sessions("XNYS", 2024, 2024))
    # 10:30 to 11:30 of the first day begins before the data and is not shown.
    assert times(out)[0] == "03-07 16:30" and times(out)[5:7] == ["03-08 14:30", "03-08 15:30"]
    assert out.loc[5, "open"] == 10.0 + len(first) and out.loc[5, "volume"] == sum(len(first) + 1 + i for i in range(8))


def test_the_clock_change_moves_bars_in_utc_and_not_in_the_session():
    sessions = exchange_sessions("XNYS", 2024, 2024)
    frame = bars_at(days("2024-03-08", "2024-03-11"))
    out = resample_bars(frame, FIVE, Timeframe.parse("2h"), "stock", "x", sessions)
    assert times(out) == [f"03-08 {h}:30" for h in (14, 16, 18, 20)] + [f"03-11 {h}:30" for h in (13, 15, 17, 19)]
    assert count_gaps(frame, FIVE, "stock", sessions) == ()


def test_full_hour_bars_of_a_session_that_opens_at_half_past():
    """The bar of 09:00 holds the opening: it stays, and days begin with it."""
    stamps = days("2024-07-02", "2024-07-03", "2024-07-05", opens="07:00", closes="20:00", minutes=60)
    sessions = exchange_sessions("XNYS", 2024, 2024)
    kept, (note,) = keep_sessions(bars_at(stamps), sessions, HOUR)
    assert len(kept) == 7 + 4 + 7 and times(kept)[0] == "07-02 13:00"
    # 07:00, 08:00 and 16:00 to 19:00 of three days; 13:00, 14:00 and 15:00 of the half day.
    assert "21 of 39 bars lie outside the sessions of XNYS and were dropped" in note
    assert "18 before or after the regular hours, 3 after an early close, 0 on other days" in note
    assert count_gaps(kept, HOUR, "stock", sessions) == ()
    daily = resample_bars(kept, HOUR, DAILY, "stock", "x", sessions)
    assert daily["open"].tolist() == kept["open"].iloc[[0, 7, 11]].tolist()


def test_bars_outside_sessions_are_dropped_and_counted_by_kind(tmp_path):
    """04:00 to 20:00 every weekday of a fortnight with a half day and a holiday, as extended hours come."""
    dates = pd.bdate_range("2024-06-24", "2024-07-12").strftime("%Y-%m-%d")
    stamps = days(*dates, opens="04:00", closes="20:00", minutes=30)
    bars_at(stamps).to_parquet(tmp_path / "a.parquet")
    bars = load_bars("files", path=tmp_path / "a.parquet")
    assert bars.calendar == "XNYS" and len(bars.frame) == 13 * 13 + 7 and bars.gaps == ()
    outside = len(stamps) - len(bars.frame)
    # On the half day 09:30-13:00 are inside, 13:00-16:00 after the early close; the rest is as on any other day.
    assert bars.notes == (
        f"{outside} of {len(stamps)} bars lie outside the sessions of XNYS and were dropped: "
        f"{14 * 19} before or after the regular hours, 6 after an early close, 32 on other days",
    )
    every = load_bars("files", path=tmp_path / "a.parquet", calendar="none")
    assert every.calendar is None and len(every.frame) == len(stamps) and every.notes == ()
    market = Market.from_bars(bars)
    assert market.bars_per_year == 252 * 13


def test_what_is_dropped_is_logged_when_a_market_is_made(tmp_path, caplog):
    stamps = days(*pd.bdate_range("2024-06-24", "2024-07-03").strftime("%Y-%m-%d"), opens="09:00", minutes=30)
    bars_at(stamps).to_parquet(tmp_path / "a.parquet")
    Market.from_bars(load_bars("files", path=tmp_path / "a.parquet"))
    assert "14 of 112 bars lie outside the sessions of XNYS" in caplog.text


def test_missing_sessions_openings_and_closings_are_reported(tmp_path):
    dates = [d for d in pd.bdate_range("2024-06-03", "2024-06-28").strftime("%Y-%m-%d") if d != "2024-06-19"]
    held = [d for d in dates if d not in ("2024-06-11", "2024-06-12")]
    frame = bars_at(np.concatenate([new_york(d, minutes=30).to_numpy() for d in held]))
    # The first bar of the 14th and the last of the 20th.
    gone = frame["timestamp"].isin([pd.Timestamp(t, tz="UTC") for t in ("2024-06-14 13:30", "2024-06-20 19:30")])
    frame[~gone].to_parquet(tmp_path / "a.parquet")
    bars = load_bars("files", path=tmp_path / "a.parquet")
    assert bars.notes == ("2 sessions of XNYS without a bar: 2024-06-11, 2024-06-12",)
    assert [(g.after_timestamp.strftime("%m-%d %H:%M"), g.missing_bars) for g in bars.gaps] == [
        ("06-10 19:30", 26),
        ("06-13 19:30", 1),
        ("06-20 19:00", 1),
    ]
    folder = save_dataset(bars, tmp_path / "set")
    again = load_dataset(folder)
    assert (again.calendar, again.notes, again.gaps) == ("XNYS", bars.notes, bars.gaps)
    daily = load_dataset(folder, timeframe="1d")
    assert len(daily.frame) == len(held) and daily.calendar == "XNYS" and daily.notes == bars.notes


def test_daily_bars_of_other_dates_stay_and_are_told(tmp_path):
    """A Saturday session in Mumbai (2020-02-01, the budget) and a holiday bar among sessions."""
    known = pd.DatetimeIndex(exchange_sessions("XBOM", 2020, 2020).dates)
    dates = known.union(pd.DatetimeIndex(["2020-02-01", "2020-04-02"])).difference(pd.DatetimeIndex(["2020-05-04"]))
    bars_at(dates, "SBIN").to_parquet(tmp_path / "a.parquet")
    bars = load_bars("files", path=tmp_path / "a.parquet", calendar="XBOM")
    assert len(bars.frame) == len(dates) and bars.calendar == "XBOM"
    assert "1 session of XBOM without a bar: 2020-05-04" in bars.notes
    assert bars.notes[0].endswith("(kept): 2020-02-01, 2020-04-02")
    assert [(g.after_timestamp.day, g.missing_bars) for g in bars.gaps] == [(30, 1)]  # 1 May is a holiday


@pytest.mark.parametrize(("start", "rest"), [("2024-01-02", {}), ("2024-06-03", {"end": "2024-06-14"})])
def test_the_calendar_is_found_by_the_bars(tmp_path, start, rest):
    dates = pd.DatetimeIndex(exchange_sessions("XBOM", 2024, 2024).dates).strftime("%Y-%m-%d")
    local = [pd.date_range(f"{d} 09:15", f"{d} 15:30", freq="15min", inclusive="left") for d in dates]
    stamps = pd.DatetimeIndex(np.concatenate(local), tz="Asia/Kolkata").tz_convert("UTC").tz_localize(None)
    bars_at(stamps, "SBIN").to_parquet(tmp_path / "a.parquet")
    assert load_bars("files", path=tmp_path / "a.parquet", start=start, **rest).calendar == "XBOM"
    with pytest.raises(InputError, match="a.parquet: the bars are not of calendar XNYS: 0% of them.*XBOM fits") as told:
        load_bars("files", path=tmp_path / "a.parquet", calendar="XNYS")
    assert "\n" not in str(told.value)


def test_bars_of_no_exchange_have_no_calendar_and_keep_everything(tmp_path):
    """Weekdays round the clock in UTC; sessions an hour off; three days, too few to tell."""
    weekdays = pd.bdate_range("2024-02-01", "2024-03-01").strftime("%Y-%m-%d")
    for stamps in (
        np.concatenate([pd.date_range(day, periods=48, freq="30min").to_numpy() for day in weekdays]),
        days(*weekdays, opens="10:30", closes="17:00", minutes=30),
        days("2024-02-06", "2024-02-07", "2024-02-08", minutes=30),
    ):
        bars_at(stamps).to_parquet(tmp_path / "a.parquet")
        bars = load_bars("files", path=tmp_path / "a.parquet", asset_class="stock")
        assert bars.calendar is None and len(bars.frame) == len(stamps)
        assert bars.notes[0].startswith("the bars fit no known calendar (XNYS ")
    # Asked for by name, the same three days are New York's.
    assert load_bars("files", path=tmp_path / "a.parquet", asset_class="stock", calendar="XNYS").calendar == "XNYS"


def test_made_up_weekdays_are_no_exchanges(tmp_path):
    bars = load_bars("synthetic", timeframe="1h", asset_class="stock", options={"n_bars": 600})
    assert bars.calendar is None
    folder = save_dataset(bars, tmp_path / "set")
    assert load_dataset(folder, timeframe="1d").calendar is None
    bars.frame.to_parquet(tmp_path / "a.parquet")
    assert len(load_bars("files", path=tmp_path / "a.parquet").frame) == 600


def test_wrong_calendars_are_named_in_one_line(tmp_path):
    bars_at(pd.date_range("2024-01-01", periods=60, freq="1h")).to_parquet(tmp_path / "a.parquet")
    path = tmp_path / "a.parquet"
    for request, match in (
        ({"asset_class": "crypto", "calendar": "XNYS"}, "calendar XNYS is for stocks"),
        (
            {"asset_class": "stock", "calendar": "NASDOQ"},
            "calendar 'NASDOQ': a name of exchange_calendars such as",
        ),
        ({"calendar": " "}, "calendar ' ': a name such as XNYS, or none"),
        ({"calendar": 5}, "calendar 5: a name such as XNYS"),
    ):
        with pytest.raises(InputError, match=match) as told:
            load_bars("files", path=path, **request)
        assert "\n" not in str(told.value)
    with pytest.raises(InputError, match=r"calendar XBOM and bars of 1901 to 1901.*calendar none reads sessions off"):
        exchange_sessions("XBOM", 1901, 1901)


def test_bars_per_year_by_hand():
    clock = days(*pd.bdate_range("2023-06-26", "2023-07-07").strftime("%Y-%m-%d"), minutes=30).astype(np.int64)
    # 2023 had 250 sessions; 13 half hours each, but for 3 July and the holiday on the 4th.
    assert bars_per_year(clock, THIRTY, "stock", "XNYS") == 250 * 13
    daily = np.array([ns("2023-06-26"), ns("2024-06-26")])
    assert bars_per_year(daily, DAILY, "stock", "XNYS") == (250 + 252) / 2
    # Sydney in summer trades from 23:00 to 05:00 UTC: six hours of one local day, not one and five.
    sydney = (
        np.concatenate([pd.date_range(f"2024-01-{d:02d} 23:00", periods=6, freq="1h").to_numpy() for d in range(8, 12)])
        .astype("datetime64[ns]")
        .astype(np.int64)
    )
    assert bars_per_year(sydney, HOUR, "stock") == 252 * 6
    assert bars_per_year(sydney, HOUR, "stock", "XASX") == exchange_sessions("XASX", 2024, 2024).per_year * 6
    assert bars_per_year(sydney, HOUR, "crypto") == 365.25 * 24


def test_a_fit_does_not_depend_on_where_data_begin_and_end_in_a_session():
    stamps = days(*pd.bdate_range("2024-02-05", "2024-02-16").strftime("%Y-%m-%d"), minutes=30)
    nyse = exchange_sessions("XNYS", 2024, 2024)
    for cut in (slice(None), slice(5, -7)):
        clock = stamps[cut].astype("datetime64[ns]").astype(np.int64)
        assert fit(nyse, clock, THIRTY.nanoseconds) == (8, 8)
    later = clock + 30 * 60 * 10**9  # every session begins half an hour late
    assert fit(nyse, later, THIRTY.nanoseconds) == (0, 8)


def test_who_trades_crypto_never_imports_the_calendars(tmp_path):
    program = (
        "import sys\nfrom environments.data.source import load_bars\nfrom environments.market import Market\n"
        "Market.from_bars(load_bars('synthetic', options={'n_bars': 50}))\n"
        f"load_bars('files', path={str(tmp_path / 'a.parquet')!r}, timeframe='4h')\n"
        "assert 'exchange_calendars' not in sys.modules\n"
        "load_bars('sample', start='2012-06-01')\nassert 'exchange_calendars' in sys.modules\n"
    )
    load_bars("synthetic", options={"n_bars": 100}).frame.to_parquet(tmp_path / "a.parquet")
    root = Path(__file__).resolve().parents[2]
    subprocess.run([sys.executable, "-c", program], cwd=root, check=True, timeout=60)


def test_datasets_from_before_there_were_calendars_still_load(tmp_path):
    bars = load_bars("sample", symbols="IBM", start="2012-01-01")
    assert bars.calendar == "XNYS" and bars.notes == ()
    folder = save_dataset(dataclasses.replace(bars), tmp_path / "set")
    manifest = json.loads((folder / "manifest.json").read_text())
    for name in ("calendar", "notes"):
        del manifest[name]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    again = load_dataset(folder)
    assert again.calendar is None and again.fingerprint == bars.fingerprint


@pytest.mark.parametrize(
    ("file", "calendar", "notes"),
    [
        ("us_5m_rth_2025.parquet", "XNYS", 0),
        ("nse_5m_2026.parquet", "XBOM", 0),
        ("us_daily_lean_1998_2021.parquet", "XNYS", 0),
        ("nse_daily_2018_2022.parquet", "XBOM", 2),
    ],
)
def test_real_bars(file, calendar, notes):
    path = DATA / file
    if not path.exists():
        pytest.skip(f"{file} is not beside the project")
    bars = load_bars("files", path=path)
    assert bars.calendar == calendar and len(bars.notes) == notes, bars.notes
    if notes:
        assert bars.notes[1] == "2 sessions of XBOM without a bar: 2019-02-13, 2019-03-29"
        # The evenings of Diwali, and a Sunday session.
        assert bars.notes[0].startswith("60 of 14,832 daily bars are of dates without a session of XBOM (kept)")


def test_a_market_of_stocks_counts_its_sessions_once(tmp_path):
    """make_bars takes the sessions it is given, so a source of one's own may have a calendar too."""
    sessions = exchange_sessions("XNYS", 2024, 2024)
    frame = bars_at(days("2024-07-02", "2024-07-03", "2024-07-05", minutes=30))
    own, notes = choose_sessions(frame, THIRTY, "XNYS", "mine")
    assert notes == () and np.array_equal(own.dates, sessions.dates)
    frame, (note,) = keep_sessions(frame, own, THIRTY)
    made = make_bars(
        frame, source="mine", origin="mine", timeframe=THIRTY, asset_class="stock", sessions=own, notes=[note]
    )
    assert made.calendar == "XNYS" and made.notes == (note,) and "6 after an early close" in note
    numbers = own.bar_numbers(made.frame["timestamp"].array.asi8, THIRTY.nanoseconds)
    assert np.diff(numbers).tolist() == [1] * 32
