"""Synthetic markets: seeded, consistent bars, and planted edges that are there and as large as recorded."""

import math

import numpy as np
import pandas as pd
import pytest

from environments.data.source import load_bars
from environments.data.synthetic import KINDS, expected_positive_part
from environments.errors import InputError


def make(seed=0, **options):
    return load_bars("synthetic", seed=seed, options=options)


def grid(bars, column):
    """(B, A) values of one column, in the order of the symbols."""
    return bars.frame.pivot(index="timestamp", columns="symbol", values=column)[list(bars.symbols)].to_numpy()


def log_returns(bars):
    return np.diff(np.log(grid(bars, "close")), axis=0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_seed_is_one_market_and_its_bars_are_consistent(kind):
    bars = make(seed=5, kind=kind, n_bars=300, n_assets=12)
    assert bars.fingerprint == make(seed=5, kind=kind, n_bars=300, n_assets=12).fingerprint
    assert bars.fingerprint != make(seed=6, kind=kind, n_bars=300, n_assets=12).fingerprint
    assert bars.symbols == tuple(f"SYN{i}" for i in range(12))
    assert bars.synthetic and bars.description.startswith("synthetic") and bars.gaps == ()
    assert bars.planted["kind"] == kind and bars.planted["sigma"] == 0.01
    opened, high, low, close = (grid(bars, name) for name in ("open", "high", "low", "close"))
    np.testing.assert_array_equal(opened[1:], close[:-1])
    assert (high > np.maximum(opened, close)).all() and (low < np.minimum(opened, close)).all()
    assert (grid(bars, "volume") > 0).all()


def test_gbm_has_the_drift_volatility_and_correlation_asked_for():
    bars = make(seed=1, kind="gbm", n_bars=40_000, n_assets=2, sigma=0.01, drift=8.766, correlation=0.6)
    r = log_returns(bars)
    # 8.766 a year is 0.001 a bar of one hour; the mean log return is sigma^2/2 less.
    np.testing.assert_allclose(r.mean(axis=0), 0.001 - 0.00005, atol=4 * 0.01 / 200)
    np.testing.assert_allclose(r.std(axis=0), 0.01, rtol=0.02)
    assert np.corrcoef(r.T)[0, 1] == pytest.approx(0.6, abs=0.02)
    assert "optimal_log_return_per_bar" not in bars.planted


def test_regimes_alternate_between_two_volatilities():
    bars = make(seed=2, kind="regimes", n_bars=40_000, sigma=0.01, turbulence=3.0, stay=0.995, drift=0.0)
    r = log_returns(bars)[:, 0]
    share = bars.planted["turbulent_share"]
    assert 0.2 < share < 0.8
    assert r.std() == pytest.approx(0.01 * math.sqrt(1 + 8 * share), rel=0.03)
    # Volatility clusters, which a single state does not do.
    squares = r**2
    assert np.corrcoef(squares[1:], squares[:-1])[0, 1] > 0.15
    calm = log_returns(make(seed=2, kind="regimes", n_bars=40_000, turbulence=1.0, drift=0.0))[:, 0] ** 2
    assert abs(np.corrcoef(calm[1:], calm[:-1])[0, 1]) < 0.03


def test_momentum_has_its_autocorrelation_and_pays_what_is_recorded():
    bars = make(seed=3, kind="momentum", n_bars=100_000, sigma=0.01, phi=0.3)
    r = log_returns(bars)[:, 0]
    assert np.corrcoef(r[1:], r[:-1])[0, 1] == pytest.approx(0.3, abs=0.015)
    best = bars.planted["optimal_log_return_per_bar"]
    assert best == pytest.approx(0.3 * 0.01 / math.sqrt(2 * math.pi), rel=1e-12)
    assert np.where(r[:-1] > 0, r[1:], 0).mean() == pytest.approx(best, abs=4 * 0.01 / math.sqrt(2 * 100_000))


def test_the_signal_leads_the_next_open_to_close_move_and_pays_what_is_recorded():
    bars = make(seed=4, kind="signal", n_bars=100_000, n_assets=2, sigma=0.01, rho=0.9, ic=0.25)
    assert bars.extra == ("signal",)
    signal, r = grid(bars, "signal"), log_returns(bars)
    np.testing.assert_allclose(signal.std(axis=0), 1.0, atol=0.05)
    assert np.corrcoef(signal[1:, 0], signal[:-1, 0])[0, 1] == pytest.approx(0.9, abs=0.01)
    assert abs(np.corrcoef(signal.T)[0, 1]) < 0.06  # each asset has its own
    move = np.log(grid(bars, "close")[1:] / grid(bars, "open")[1:])
    for asset in range(2):
        assert np.corrcoef(signal[:-1, asset], move[:, asset])[0, 1] == pytest.approx(0.25, abs=0.015)
        # What happens in the same bar carries no more than what the signal remembers of the bar before.
        assert np.corrcoef(signal[1:, asset], move[:, asset])[0, 1] == pytest.approx(0.9 * 0.25, abs=0.015)
    best = bars.planted["optimal_log_return_per_bar"]
    assert best == pytest.approx(0.01 * 0.25 / math.sqrt(2 * math.pi), rel=1e-12)
    earned = np.where(signal[:-1] > 0, r, 0).mean()
    assert earned == pytest.approx(best, abs=4 * 0.01 / math.sqrt(2 * 200_000))


def test_expected_positive_part_by_hand():
    assert expected_positive_part(0.0, 1.0) == pytest.approx(0.3989422804014327)
    assert expected_positive_part(1.0, 1.0) == pytest.approx(1.0833154705876864)  # phi(1) + Phi(1)
    assert (expected_positive_part(2.0, 0.0), expected_positive_part(-2.0, 0.0)) == (2.0, 0.0)
    # With drift the recorded optimum is at least what always holding earns.
    assert make(kind="signal", n_bars=10, drift=50.0).planted["optimal_log_return_per_bar"] > 50 / 8766


def test_stocks_trade_on_weekdays_in_sessions():
    daily = make(n_bars=10, timeframe="1d", start="2024-01-06", asset_class="stock")
    assert daily.frame["timestamp"].dt.day_of_week.max() == 4
    assert daily.frame["timestamp"].iloc[0] == pd.Timestamp("2024-01-08", tz="UTC")
    intraday = make(n_bars=2 * 78, timeframe="5m", start="2024-01-05", asset_class="stock")
    stamps = intraday.frame["timestamp"]
    assert stamps.iloc[[0, 77, 78]].dt.strftime("%a %H:%M").tolist() == [
        "Fri 14:30",
        "Fri 20:55",
        "Mon 14:30",
    ]
    assert intraday.gaps == () and intraday.asset_class == "stock"


def test_the_request_sets_timeframe_start_and_asset_class_too():
    bars = load_bars(
        "synthetic", timeframe="15m", start="2021-05-01", symbols="SYN1", options={"n_assets": 3, "n_bars": 4}
    )
    assert (str(bars.timeframe), bars.symbols, len(bars.frame)) == ("15m", ("SYN1",), 4)
    assert bars.frame["timestamp"].iloc[-1] == pd.Timestamp("2021-05-01 00:45", tz="UTC")
    # Choosing an asset does not change its prices.
    together = load_bars("synthetic", timeframe="15m", start="2021-05-01", options={"n_assets": 3, "n_bars": 4})
    alone = together.frame[together.frame["symbol"] == "SYN1"].reset_index(drop=True)
    pd.testing.assert_frame_equal(bars.frame, alone)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"kind": "garch"}, "'garch': accepted are gbm, regimes, momentum, signal"),
        ({"kind": "gbm", "ic": 0.1}, "kind gbm has no option ic: accepted are n_bars"),
        ({"n_bars": 1}, "n_bars=1"),
        ({"n_assets": 2.0}, "n_assets=2.0"),
        ({"sigma": 0}, "sigma=0"),
        ({"sigma": "big"}, "sigma='big'"),
        ({"drift": math.nan}, "drift=nan"),
        ({"kind": "momentum", "phi": 1.0}, "phi=1.0"),
        ({"kind": "signal", "ic": 1.5}, "ic=1.5"),
        ({"timeframe": "2x"}, "timeframe '2x'"),
        ({"start": None}, "cannot be None"),
        ({"timeframe": "8h", "asset_class": "stock"}, "390 minutes or 1d"),
    ],
)
def test_wrong_options_are_refused(options, match):
    with pytest.raises(InputError, match=match):
        make(**options)


def test_a_symbol_that_is_not_made_and_an_option_given_twice_are_refused():
    with pytest.raises(InputError, match="makes no SYN7: with n_assets=2 it makes SYN0 to SYN1"):
        load_bars("synthetic", symbols="SYN7", options={"n_assets": 2})
    with pytest.raises(InputError, match="timeframe was given twice"):
        load_bars("synthetic", timeframe="5m", options={"timeframe": "1h"})
    with pytest.raises(InputError, match="takes no end"):
        load_bars("synthetic", end="2024-01-01")
