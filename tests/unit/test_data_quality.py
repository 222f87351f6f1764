"""Bad bars are refused by name and rule; gaps are counted on the right clock."""

import numpy as np
import pandas as pd
import pytest

from environments.data.quality import check_bars, count_gaps
from environments.data.sessions import DAY, session_dates
from environments.errors import InputError
from environments.timeframe import Timeframe

FIVE = Timeframe.parse("5m")


def frame(stamps, symbol="BTCUSDT"):
    n = len(stamps)
    index = pd.DatetimeIndex(stamps).as_unit("ns")
    return pd.DataFrame(
        {
            "timestamp": index.tz_localize("UTC") if index.tz is None else index,
            "symbol": [symbol] * n,
            "open": np.full(n, 10.0),
            "high": np.full(n, 12.0),
            "low": np.full(n, 9.0),
            "close": np.full(n, 11.0),
            "volume": np.full(n, 5.0),
        }
    )


@pytest.fixture
def bars():
    return frame(pd.date_range("2024-01-01", periods=6, freq="5min"))


@pytest.mark.parametrize(
    ("column", "value", "rule"),
    [
        ("open", np.nan, "open is nan"),
        ("volume", np.inf, "volume is inf"),
        ("close", 0.0, "close is 0.0, a positive price"),
        ("low", -1.0, "low is -1.0, a positive price"),
        ("volume", -0.5, "volume is -0.5"),
        ("high", 10.5, r"high 10.5 is below max\(open, close\) 11.0"),
        ("low", 10.2, r"low 10.2 is above min\(open, close\) 10.0"),
    ],
)
def test_every_rule_names_file_symbol_time_and_what_is_wrong(bars, column, value, rule):
    bars.loc[3, column] = value
    with pytest.raises(InputError, match=f"^x.csv: BTCUSDT at 2024-01-01T00:15:00.*{rule}") as caught:
        check_bars(bars, "x.csv")
    assert "\n" not in str(caught.value)


def test_good_bars_pass_and_float_noise_is_tolerated_up_to_one_part_in_a_billion(bars):
    check_bars(bars, "x")
    bars.loc[2, "high"] = 11.0 * (1 - 5e-10)
    check_bars(bars, "x")
    bars.loc[2, "high"] = 11.0 * (1 - 5e-9)
    with pytest.raises(InputError, match="below max"):
        check_bars(bars, "x")


def test_order_within_a_symbol_matters_between_symbols_it_does_not(bars):
    other = bars.assign(symbol="ETHUSDT")
    interleaved = pd.concat([bars, other]).sort_values(["timestamp", "symbol"], ignore_index=True)
    check_bars(interleaved, "x")
    swapped = interleaved.iloc[[0, 1, 4, 3, 2, 5, *range(6, 12)]].reset_index(drop=True)
    with pytest.raises(InputError, match=r"BTCUSDT at 2024-01-01T00:05:00.*ascend"):
        check_bars(swapped, "x")


def test_a_repeated_timestamp_is_refused_and_counted(bars):
    twice = pd.concat([bars.iloc[:2], bars.iloc[1:]], ignore_index=True)
    with pytest.raises(InputError, match=r"00:05:00.*appears twice"):
        check_bars(twice, "x")
    bars.loc[[1, 4], "volume"] = -1.0
    with pytest.raises(InputError, match=r"00:05:00.*\(1 more rows"):
        check_bars(bars, "x")


def test_further_columns_may_be_unknown_but_not_infinite(bars):
    bars["signal"] = [np.nan, 1.0, np.nan, 0.0, -1.0, np.nan]
    check_bars(bars, "x")
    bars.loc[3, "signal"] = -np.inf
    with pytest.raises(InputError, match="00:15:00.*signal is -inf"):
        check_bars(bars, "x")
    with pytest.raises(InputError, match="no bars"):
        check_bars(bars.iloc[:0], "x")


def test_crypto_gaps_count_every_missing_bar(bars):
    broken = bars.drop(index=[2, 3])
    (gap,) = count_gaps(broken, FIVE, "crypto")
    assert (gap.symbol, gap.missing_bars) == ("BTCUSDT", 2)
    assert gap.after_timestamp == pd.Timestamp("2024-01-01T00:05", tz="UTC")
    assert count_gaps(bars, FIVE, "crypto") == ()


def test_stock_gaps_count_inside_a_session_only():
    days = ["2024-01-05", "2024-01-08"]  # Friday and Monday
    stamps = pd.DatetimeIndex(np.concatenate([pd.date_range(f"{d} 14:30", periods=78, freq="5min") for d in days]))
    whole = frame(stamps, "AAPL")
    assert count_gaps(whole, FIVE, "stock") == ()
    (gap,) = count_gaps(whole.drop(index=[80, 81, 82]), FIVE, "stock")
    assert (gap.missing_bars, gap.after_timestamp) == (3, pd.Timestamp("2024-01-08 14:35", tz="UTC"))
    (weekend,) = count_gaps(whole, FIVE, "crypto")
    assert weekend.missing_bars == (2 * 1440 + 1440 - 6 * 60 - 25 - 5) // 5  # Friday 20:55 to Monday 14:30
    daily = frame(pd.DatetimeIndex(days), "AAPL")
    assert count_gaps(daily, Timeframe.parse("1d"), "stock") == ()
    assert count_gaps(daily, Timeframe.parse("1d"), "crypto")[0].missing_bars == 2


def ns(*stamps):
    return np.array(stamps, dtype="datetime64[ns]").astype(np.int64)


def dates_of(clock):
    return [str(d) for d in (session_dates(clock) // DAY).astype("datetime64[D]")]


def test_a_session_keeps_one_date_wherever_midnight_utc_falls():
    # Extended US hours run past midnight UTC; Sydney in summer opens before it.
    late = ns(
        "2024-07-02T08:00",
        "2024-07-02T11:00",
        "2024-07-02T14:00",
        "2024-07-02T17:00",
        "2024-07-02T20:00",
        "2024-07-02T23:00",
        "2024-07-03T00:30",
        "2024-07-03T08:00",
    )
    assert dates_of(late) == ["2024-07-02"] * 7 + ["2024-07-03"]
    early = ns(
        "2024-01-08T23:00",
        "2024-01-09T01:00",
        "2024-01-09T04:00",
        "2024-01-09T23:00",
        "2024-01-10T02:00",
        "2024-01-10T04:55",
    )
    assert dates_of(early) == ["2024-01-09"] * 3 + ["2024-01-10"] * 3


def test_trading_without_a_night_is_cut_at_midnight_and_daily_bars_keep_their_dates():
    hours = np.arange(60, dtype=np.int64) * (DAY // 24) + ns("2024-01-08T00:00")[0]
    assert dates_of(hours) == ["2024-01-08"] * 24 + ["2024-01-09"] * 24 + ["2024-01-10"] * 12
    assert dates_of(ns("2024-01-05", "2024-01-08")) == ["2024-01-05", "2024-01-08"]
    assert session_dates(ns()).size == 0
