"""Coarse bars against hand-computed ones; no bar crosses a session or is shown before it is complete."""

import numpy as np
import pandas as pd
import pytest

from environments.data.resample import resample_bars
from environments.errors import InputError
from environments.timeframe import Timeframe

FIVE, FIFTEEN, HOUR, DAY = (Timeframe.parse(t) for t in ("5m", "15m", "1h", "1d"))


def ramp(stamps, symbol="BTCUSDT"):
    """Bar i opens at 10 + i and closes at 10.5 + i, so every resampled price says which bar it came from."""
    i = np.arange(len(stamps), dtype=float)
    return pd.DataFrame(
        {
            "timestamp": pd.DatetimeIndex(stamps).as_unit("ns").tz_localize("UTC"),
            "symbol": symbol,
            "open": 10 + i,
            "high": 11 + i,
            "low": 9 + i,
            "close": 10.5 + i,
            "volume": 1 + i,
            "signal": -i,
        }
    )


def times(frame):
    return [t.strftime("%d %H:%M") for t in frame["timestamp"]]


def test_each_column_is_aggregated_by_its_rule():
    out = resample_bars(ramp(pd.date_range("2024-01-01", periods=6, freq="5min")), FIVE, FIFTEEN, "crypto", "x")
    assert times(out) == ["01 00:00", "01 00:15"]
    assert out[["open", "high", "low", "close", "volume", "signal"]].to_numpy().tolist() == [
        [10.0, 13.0, 9.0, 12.5, 6.0, -2.0],
        [13.0, 16.0, 12.0, 15.5, 15.0, -5.0],
    ]


def test_partial_ends_are_dropped_and_a_hole_inside_is_not_filled():
    stamps = pd.date_range("2024-01-01 00:05", periods=12, freq="5min")  # 00:05 to 01:00
    bars = ramp(stamps).drop(index=[3, 4, 5, 7]).reset_index(drop=True)  # no 00:20, 00:25, 00:30, 00:40
    out = resample_bars(bars, FIVE, FIFTEEN, "crypto", "x")
    # 00:00 lacks its first bar and 01:00 its last two; 00:15 and 00:30 keep the bars they have.
    assert times(out) == ["01 00:15", "01 00:30", "01 00:45"]
    assert out["volume"].tolist() == [3.0, 7.0, 9.0 + 10.0 + 11.0]


def test_symbols_do_not_mix_and_each_ends_on_its_own():
    stamps = pd.date_range("2024-01-01", periods=6, freq="5min")
    both = pd.concat([ramp(stamps, "A"), ramp(stamps[:5], "B")], ignore_index=True)
    out = resample_bars(both, FIVE, FIFTEEN, "crypto", "x")
    assert list(zip(out["symbol"], times(out), strict=True)) == [
        ("A", "01 00:00"),
        ("A", "01 00:15"),
        ("B", "01 00:00"),
    ]


def sessions(*days, opens="14:30", bars=78):
    return np.concatenate([pd.date_range(f"{d} {opens}", periods=bars, freq="5min").to_numpy() for d in days])


def test_stock_hours_start_at_the_sessions_first_bar_and_end_with_it():
    out = resample_bars(ramp(sessions("2024-03-08", "2024-03-11"), "AAPL"), FIVE, HOUR, "stock", "x")
    assert times(out)[:7] == [f"08 {h}:30" for h in range(14, 21)]
    assert len(out) == 14
    # The seventh bar holds the last six of the session's 78 and nothing of the next session.
    assert out.loc[6, ["open", "close"]].tolist() == [10.0 + 72, 10.5 + 77]
    assert out.loc[7, "open"] == 10.0 + 78


def test_an_unfinished_last_session_shows_complete_bars_only():
    stamps = sessions("2024-03-08", "2024-03-11")[: 78 + 15]  # second session: an hour and a quarter
    hourly = resample_bars(ramp(stamps, "AAPL"), FIVE, HOUR, "stock", "x")
    assert times(hourly)[7:] == ["11 14:30"]
    daily = resample_bars(ramp(stamps, "AAPL"), FIVE, DAY, "stock", "x")
    assert times(daily) == ["08 00:00"]
    assert daily.loc[0, ["open", "high", "low", "close"]].tolist() == [10.0, 88.0, 9.0, 87.5]
    assert daily.loc[0, "volume"] == 78 * 79 / 2
    # With one session alone it is unknown when it closes.
    alone = resample_bars(ramp(stamps[:78], "AAPL"), FIVE, HOUR, "stock", "x")
    assert times(alone) == [f"08 {h}:30" for h in range(14, 20)]


def test_later_bars_never_change_earlier_coarse_ones():
    stamps = sessions("2024-03-06", "2024-03-07", "2024-03-08")
    whole = resample_bars(ramp(stamps, "AAPL"), FIVE, HOUR, "stock", "x")
    for cut in range(2 * 78, len(stamps), 7):
        known = resample_bars(ramp(stamps[:cut], "AAPL"), FIVE, HOUR, "stock", "x")
        pd.testing.assert_frame_equal(known, whole.iloc[: len(known)])


def test_a_half_day_inside_the_data_is_a_complete_session():
    stamps = np.concatenate([sessions("2024-07-02"), sessions("2024-07-03", bars=42), sessions("2024-07-05")])
    daily = resample_bars(ramp(stamps, "AAPL"), FIVE, DAY, "stock", "x")
    assert times(daily) == ["02 00:00", "03 00:00", "05 00:00"]
    assert daily.loc[1, "volume"] == sum(range(79, 79 + 42))


def test_what_cannot_be_made_is_refused():
    bars = ramp(pd.date_range("2024-01-01", periods=6, freq="5min"))
    assert resample_bars(bars, FIVE, FIVE, "crypto", "x") is bars
    with pytest.raises(InputError, match=r"timeframe 1m asked for, but x.csv holds 5m bars"):
        resample_bars(bars, FIVE, Timeframe(1), "crypto", "x.csv")
    with pytest.raises(InputError, match="7m is not a whole multiple of 5m"):
        resample_bars(bars, FIVE, Timeframe(7), "crypto", "x")
    with pytest.raises(InputError, match="1d at most"):
        resample_bars(bars, FIVE, Timeframe(2 * 1440), "stock", "x")
