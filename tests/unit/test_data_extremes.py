"""Real extremes pass the data's checks untouched: they are what happened. Made again by hand, and the real ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from environments.data.source import load_bars
from environments.data.store import load_dataset, save_dataset

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
HOURLY = "crypto_1h_binance_2018_2024.parquet"


def write(folder: Path, stamps, rows) -> Path:
    """A CSV file of bars (open, high, low, close, volume) of one symbol."""
    frame = pd.DataFrame(rows, columns=["open", "high", "low", "close", "volume"])
    frame.insert(0, "timestamp", pd.DatetimeIndex(stamps))
    frame.insert(1, "symbol", "XUSDT")
    frame.to_csv(folder / "a.csv", index=False)
    return folder / "a.csv"


def hours(n: int) -> pd.DatetimeIndex:
    return pd.date_range("2020-03-12", periods=n, freq="1h")


def kept(path: Path, folder: Path, **request):
    """The bars of the file, after they were saved as a dataset and read again."""
    return load_dataset(save_dataset(load_bars("files", path=path, **request), folder / "set"))


def test_a_wick_of_a_ten_thousandth_stays_in_its_bar_and_in_the_days(tmp_path):
    rows = [(2.5, 2.6, 2.4, 2.5, 10.0)] * 10 + [(2.3, 2.4, 0.0001, 2.2, 900.0)] + [(2.2, 2.3, 2.1, 2.2, 10.0)] * 13
    path = write(tmp_path, hours(24), rows)
    bars = kept(path, tmp_path, asset_class="crypto")
    assert bars.frame["low"].min() == 0.0001 and bars.gaps == () and len(bars.frame) == 24
    (day,) = load_bars("files", path=path, asset_class="crypto", timeframe="1d").frame.to_dict("records")
    assert (day["open"], day["high"], day["low"], day["close"], day["volume"]) == (2.5, 2.6, 0.0001, 2.2, 1_130.0)


def test_an_outage_is_counted_and_not_filled(tmp_path):
    """14 five-minute bars without volume at one price, then 85 minutes to the next: 16 bars are missing."""
    stamps = pd.date_range("2023-03-24 10:00", periods=48, freq="5min").to_series()
    stamps.iloc[32:] += pd.Timedelta("80min")
    rows = (
        [(28.0, 28.1, 27.9, 28.0, 5.0)] * 18
        + [(28.0, 28.0, 28.0, 28.0, 0.0)] * 14
        + [(27.0, 27.5, 26.5, 27.2, 90.0)] * 16
    )
    bars = kept(write(tmp_path, stamps, rows), tmp_path, asset_class="crypto")
    (gap,) = bars.gaps
    assert (gap.missing_bars, str(gap.after_timestamp)) == (16, "2023-03-24 12:35:00+00:00")
    assert int((bars.frame["volume"] == 0).sum()) == 14 and len(bars.frame) == 48
    quarter = load_bars("files", path=tmp_path / "a.csv", asset_class="crypto", timeframe="15m").frame
    silent = quarter[quarter["timestamp"].between("2023-03-24 11:30+00:00", "2023-03-24 12:15+00:00")]
    assert silent["volume"].tolist() == [0.0] * 4 and (silent[["open", "high", "low", "close"]] == 28.0).all(axis=None)
    pause = quarter["timestamp"].between("2023-03-24 12:45+00:00", "2023-03-24 13:45+00:00")
    assert not pause.any()


def test_a_bar_of_seventy_percent_and_an_unadjusted_split_are_no_mistakes(tmp_path):
    """The source's word stands: whether a 4:1 split was adjusted for is not guessed from the price."""
    rows = [(0.03, 0.031, 0.029, 0.03, 1e9), (0.03, 0.0512, 0.03, 0.051, 9e9), (0.051, 0.052, 0.05, 0.051, 1e9)]
    rows += [(0.051 / 4, 0.052 / 4, 0.05 / 4, 0.051 / 4, 4e9)] * 3
    bars = kept(write(tmp_path, hours(6), rows), tmp_path, asset_class="crypto")
    np.testing.assert_array_equal(bars.frame[["open", "high", "low", "close", "volume"]], rows)


def test_a_halted_day_is_a_gap_and_a_late_listing_is_none(tmp_path):
    """Of four symbols over a year of sessions one misses a day, one begins in May, one has ended by then."""
    sample = load_bars("sample", symbols="IBM,AAPL,MSFT", start="2006-01-01", end="2007-01-01").frame
    halted = (sample["symbol"] == "IBM") & (sample["timestamp"] == "2006-03-08")
    unlisted = (sample["symbol"] == "MSFT") & (sample["timestamp"] < "2006-05-01")
    ended = (sample["symbol"] == "AAPL") & (sample["timestamp"] > "2006-05-01")
    sample[~(halted | unlisted | ended)].to_parquet(tmp_path / "a.parquet")
    bars = load_bars("files", path=tmp_path / "a.parquet")
    (gap,) = bars.gaps
    assert (gap.symbol, str(gap.after_timestamp.date()), gap.missing_bars) == ("IBM", "2006-03-07", 1)
    assert bars.calendar == "XNYS" and bars.notes == ()


@pytest.mark.parametrize(
    ("file", "request_", "moment", "column", "value"),
    [
        (
            HOURLY,
            ("LINKUSDT", "2020-03-12", "2020-03-13"),
            "2020-03-12 10:00",
            "low",
            1e-4,
        ),
        (
            HOURLY,
            ("LINKUSDT", "2020-03-12", "2020-03-13", "1d"),
            "2020-03-12",
            "low",
            1e-4,
        ),
        (
            HOURLY,
            ("LINKUSDT", "2019-05-02", "2019-05-03"),
            "2019-05-02 05:00",
            "volume",
            0.0,
        ),
        ("us_daily_dow30_mega8_2004_2021.parquet", ("AAPL", "2020-08-01", "2020-10-01"), "2020-08-31", None, 1.0339),
        (
            HOURLY,
            ("DOGEUSDT", "2021-01-28", "2021-01-30"),
            "2021-01-29 03:00",
            None,
            1.70,
        ),
    ],
)
def test_the_real_ones(file, request_, moment, column, value):
    path = DATA / file
    if not path.exists():
        pytest.skip(f"{file} is not beside the project")
    symbol, start, end, *timeframe = request_
    options = {"timeframe": timeframe[0]} if timeframe else {}
    frame = load_bars("files", path=path, symbols=symbol, start=start, end=end, **options).frame
    at = int(np.flatnonzero(frame["timestamp"] == pd.Timestamp(moment, tz="UTC")).item())
    if column is None:
        assert frame["close"].iloc[at] / frame["close"].iloc[at - 1] == pytest.approx(value, abs=2e-3)
    else:
        assert frame[column].iloc[at] == value


def test_the_real_outage():
    path = DATA / "crypto_5m_binance_2022_2023.parquet"
    if not path.exists():
        pytest.skip(f"{path.name} is not beside the project")
    bars = load_bars("files", path=path, symbols="BTCUSDT", start="2023-03-24", end="2023-03-25")
    (gap,) = bars.gaps
    assert (gap.missing_bars, str(gap.after_timestamp)) == (16, "2023-03-24 12:35:00+00:00")
    silent = bars.frame[bars.frame["timestamp"].between("2023-03-24 11:30+00:00", "2023-03-24 12:35+00:00")]
    assert len(silent) == 14 and not silent["volume"].any()
