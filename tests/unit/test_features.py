"""Features against TA-Lib itself, against hand numbers, and the promise that live sees what training saw."""

from __future__ import annotations

import math

import numpy as np
import pytest
import talib
import torch

from environments.data.source import make_bars
from environments.errors import InputError
from environments.features import (
    FEATURES,
    MEMORY,
    Bars,
    asset_features,
    compute_features,
    newest_features,
    ready_from,
)
from environments.market import Market

NAMES = tuple(FEATURES)


def columns(bars) -> Bars:
    """The present bars as arrays."""
    return Bars(*np.array([b for b in bars if b is not None], dtype=np.float64).T.copy())


def column(market: Market, name: str, asset: int = 0) -> np.ndarray:
    table = compute_features(market)
    return table.values[:, asset, table.names.index(name)].numpy()


def test_indicators_are_talibs(make_market, random_bars):
    bars = random_bars(1, 200, price=50.0, sigma=0.02)
    market, own = make_market({"A/USD": bars}), columns(bars)
    macd, signal, hist = talib.MACD(own.close, fastperiod=12, slowperiod=26, signalperiod=9)
    expected = {
        "macd": macd / own.close,
        "macd_signal": signal / own.close,
        "macd_hist": hist / own.close,
        "rsi": talib.RSI(own.close, timeperiod=14) / 50 - 1,
        "cci": talib.CCI(own.high, own.low, own.close, timeperiod=14) / 100,
        "dx": talib.DX(own.high, own.low, own.close, timeperiod=14) / 100,
    }
    for name, values in expected.items():
        # Rows are given whole or not at all: 33 bars pass before MACD's signal is there.
        assert np.isnan(column(market, name)[:33]).all()
        assert np.array_equal(column(market, name)[33:], values[33:].astype(np.float32)), name


def test_returns_and_range_by_hand(make_market):
    closes = [100.0 * 1.01**t for t in range(60)]
    bars = [(c, c * 1.02, c * 0.99, c, 10.0) for c in closes]
    market = make_market({"A/USD": bars})
    for name, expected in (
        ("return_1", math.log(1.01)), ("return_5", 5 * math.log(1.01)), ("return_20", 20 * math.log(1.01)),
        ("range", math.log(1.02 / 0.99)), ("rsi", 1.0), ("volume_score", 0.0),
    ):  # fmt: skip
        assert column(market, name)[40:] == pytest.approx(expected, rel=1e-6, abs=1e-7), name


def test_volume_score_by_hand(make_market, random_bars):
    """log(1 + volume) is 1 nineteen times and then 2: mean 1.05, deviation sqrt(19) / 20, score sqrt(19)."""
    bars = [(*b[:4], math.e - 1) for b in random_bars(2, 80)]
    bars[60] = (*bars[60][:4], math.e**2 - 1)
    bars[61] = (*bars[61][:4], 1e300)
    score = column(make_market({"A/USD": bars}), "volume_score")
    assert score[60] == pytest.approx(0.95 / (math.sqrt(19) / 20), rel=1e-6)
    assert score[59] == pytest.approx(0.0, abs=1e-6) and -5 <= score[61] <= 5


@pytest.mark.parametrize("scale", [1e-7, 1e-3, 1e5])
def test_features_do_not_know_the_price_level(scale, random_bars):
    """The same market quoted in another unit: 0.00001 and 10,000,000 have the same features."""
    own = columns(random_bars(3, 300, price=100.0, sigma=0.01))
    other = Bars(own.open * scale, own.high * scale, own.low * scale, own.close * scale, own.volume)
    a, b = asset_features(own, {}, NAMES), asset_features(other, {}, NAMES)
    assert np.array_equal(np.isnan(a), np.isnan(b))
    assert np.nan_to_num(a) == pytest.approx(np.nan_to_num(b), rel=1e-6, abs=1e-8)


def test_gaps_and_late_listings_shift_nothing(make_market, random_bars):
    """An asset among others, with holes, has the features of its own bars in a row."""
    steady = random_bars(4, 260)
    broken = random_bars(5, 260, missing=0.2, idle=0.1, listed=70)
    table = compute_features(make_market({"A/USD": steady, "B/USD": broken}))
    there = torch.tensor([b is not None for b in broken])
    alone = compute_features(make_market({"B/USD": [b for b in broken if b is not None]}))
    assert torch.equal(table.values[there, 1].nan_to_num(9.0), alone.values[:, 0].nan_to_num(9.0))
    assert table.values[~there, 1].isnan().all() and not table.ready[~there, 1].any()
    assert torch.equal(table.ready[there, 1], alone.ready[:, 0]) and table.ready[:, 1].sum() > 50
    only = compute_features(make_market({"A/USD": steady}))
    assert torch.equal(table.values[:, :1].nan_to_num(9.0), only.values.nan_to_num(9.0))


@pytest.mark.parametrize("price", [1e-5, 100.0, 60_000.0])
def test_the_last_bars_are_enough(price, random_bars):
    """A live trader keeps MEMORY bars; it must see, to the bit, what training saw with all of history."""
    own = columns(random_bars(6, 5_000, price=price, sigma=0.01, idle=0.02))
    full = asset_features(own, {}, NAMES).astype(np.float32)
    for end in [*range(MEMORY + 1, 5_000, 97), 5_000]:
        recent = Bars(*(getattr(own, n)[end - MEMORY : end] for n in ("open", "high", "low", "close", "volume")))
        live = asset_features(recent, {}, NAMES).astype(np.float32)
        # The widest lookback reads 256 rows; the oldest of them has only MEMORY - 255 bars behind it.
        for row in (-1, -2, -17, -256):
            assert live[row].tobytes() == full[end + row].tobytes(), (end, row, live[row] - full[end + row])


@pytest.mark.parametrize("kind", ["at rest", "no volume", "rest then move", "one tick", "huge"])
def test_no_infinities(kind, make_market, random_bars):
    rest = [(0.1, 0.1, 0.1, 0.1, 5.0)] * 120
    bars = {
        "at rest": rest,
        "no volume": [(*b[:4], 0.0) for b in random_bars(7, 120)],
        "rest then move": rest + random_bars(8, 120, price=0.1),
        "one tick": [(0.1, 0.1 + 1e-12 * (t % 2), 0.1, 0.1, 1.0) for t in range(120)],
        "huge": random_bars(9, 120, price=1e9, sigma=0.5, jump=0.3),
    }[kind]
    table = compute_features(make_market({"A/USD": bars}))
    assert not table.values.isinf().any()
    assert table.ready[40:].float().mean() > 0.7
    assert (table.values.isfinite().all(-1) == table.ready).all() and (
        table.values.isnan().all(-1) == ~table.ready
    ).all()


def test_further_columns_and_chosen_names(make_market, random_bars):
    market = make_market({"A/USD": random_bars(10, 60)})
    table = compute_features(market, ("range", "return_5"))
    assert table.names == ("range", "return_5") and table.values.shape == (60, 1, 2)
    assert ready_from(table) == 5 and compute_features(market, ("range", "return_5")) is table
    with pytest.raises(InputError, match="return_20"):
        compute_features(market, ("vwap",))
    with pytest.raises(InputError, match="none"):
        compute_features(market, ())
    short = make_market({"A/USD": random_bars(10, 30)})
    with pytest.raises(InputError, match="30 bars"):
        ready_from(compute_features(short))


def test_extra_columns_become_features(make_market, random_bars):
    """A further column of the source is a feature as it is."""
    import pandas as pd

    own = columns(random_bars(11, 60))
    frame = pd.DataFrame(
        {
            "symbol": "A/USD",
            "timestamp": pd.date_range("2021-03-01", periods=60, freq="h", tz="UTC", unit="ns"),
            "open": own.open, "high": own.high, "low": own.low, "close": own.close, "volume": own.volume,
            "sentiment": np.linspace(-1, 1, 60),
        }
    )  # fmt: skip
    timeframe = make_market({"A/USD": random_bars(11, 3)}).timeframe
    bars = make_bars(frame, source="memory", origin="test bars", timeframe=timeframe, asset_class="crypto")
    market = Market.from_bars(bars)
    table = compute_features(market)
    assert market.extra_names == ("sentiment",) and table.names == (*NAMES, "sentiment")
    assert table.values[40:, 0, -1].tolist() == pytest.approx(np.linspace(-1, 1, 60)[40:].tolist(), rel=1e-6)


def test_the_newest_row_is_the_batchs_bit_for_bit(random_bars):
    """Of assets side by side, of whatever length, from the first bar on: what live computes is what training saw."""
    owns = [
        columns(random_bars(20, 400, price=60_000.0, sigma=0.01)),
        columns(random_bars(21, 380, price=1e-5, sigma=0.03, idle=0.2)),
        columns(random_bars(22, 330, price=1.0, jump=0.05)),
        columns([(0.1, 0.1, 0.1, 0.1, 0.0)] * 340),
    ]
    tables = [np.array([b.open, b.high, b.low, b.close, b.volume, np.linspace(-1, 1, b.close.size)]) for b in owns]
    names = (*NAMES[:4], "sentiment", *NAMES[4:])
    full = [asset_features(b, {"sentiment": table[5]}, names) for b, table in zip(owns, tables, strict=True)]
    full = [rows.astype(np.float32) for rows in full]
    for first in range(1, 391):  # bars of the first asset; the others come 60 bars later
        ends = [first, *[first - 60] * 3] if first > 60 else [first]
        histories = [table[:, :end] for table, end in zip(tables, ends, strict=False)]
        newest = newest_features(histories, ("sentiment",), names).astype(np.float32)
        for rows, end, row in zip(full, ends, newest, strict=False):
            assert np.array_equal(row, rows[end - 1], equal_nan=True), (end, row - rows[end - 1])
