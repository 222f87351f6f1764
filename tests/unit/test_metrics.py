"""Performance measures against numbers worked out by hand."""

import math

import numpy as np
import pytest

from drl_agents.evaluation import metrics
from drl_agents.evaluation.result import BacktestResult
from environments.errors import InputError

NAN, INF = math.nan, math.inf
RETURNS = [0.01, 0.03, -0.02, 0.02]  # mean 0.01; squared deviations 0, 4, 9, 1 (x 1e-4); std^2 = 14e-4 / 3


def test_sharpe_ratio_is_mean_over_sample_deviation_annualised():
    assert metrics.sharpe_ratio(RETURNS, 1) == pytest.approx(0.01 / math.sqrt(14e-4 / 3))
    assert metrics.sharpe_ratio(RETURNS, 252) == pytest.approx(0.01 / math.sqrt(14e-4 / 3) * math.sqrt(252))


def test_sortino_ratio_averages_the_downside_over_all_bars():
    # One loss of 0.02 in four bars: sqrt(4e-4 / 4) = 0.01, so mean over downside is 1.
    assert metrics.sortino_ratio(RETURNS, 252) == pytest.approx(math.sqrt(252))
    # Against 0.01 the excesses are 0, 0.02, -0.03, 0.01 with mean 0.
    assert metrics.sortino_ratio(RETURNS, 252, target=0.01) == pytest.approx(0.0, abs=1e-12)


def test_returns_compound():
    assert metrics.total_return([0.5, -0.5]) == pytest.approx(-0.25)
    assert metrics.annual_return([0.1, 0.1], 2) == pytest.approx(0.21)
    assert metrics.annual_return([0.21], 0.5) == pytest.approx(0.1)  # one bar is two years
    assert metrics.annual_volatility(RETURNS, 4) == pytest.approx(2 * math.sqrt(14e-4 / 3))


def test_losing_everything_is_minus_one_whatever_follows():
    assert metrics.annual_return([0.1, -1.0, 5.0], 252) == -1.0
    assert metrics.total_return([0.1, -1.5]) == -1.0
    assert metrics.calmar_ratio([0.1, -1.0, 5.0], 252) == -1.0


def test_drawdown_is_measured_from_the_highest_equity_so_far():
    equity = [100.0, 120.0, 90.0, 110.0, 130.0, 117.0]
    np.testing.assert_allclose(metrics.drawdown_curve(equity), [0, 0, 0.25, 10 / 120, 0, 0.1])
    assert metrics.max_drawdown(equity) == pytest.approx(0.25)
    assert metrics.max_drawdown([1.0, 2.0, 3.0]) == 0.0


def test_calmar_ratio_counts_a_fall_in_the_first_bar():
    # 1 -> 0.8 -> 1.2: total 0.2 over two bars of a two-bar year, drawdown 0.2.
    assert metrics.calmar_ratio([-0.2, 0.5], 2) == pytest.approx(1.0)


def test_turnover_weighs_trades_by_the_equity_before_them():
    assert metrics.turnover([50.0, 220.0], [100.0, 110.0, 1e9], 10) == pytest.approx((0.5 + 2.0) / 2 * 10)


@pytest.mark.parametrize(
    "returns",
    [
        np.zeros(100),
        np.full(1000, 0.1),  # the float sum of 0.1 leaves a deviation around 1e-17
        np.diff(100 * 1.01 ** np.arange(500)) / (100 * 1.01 ** np.arange(499)),
        np.diff(1 + 1e-7 * np.arange(3)),  # tiny returns whose noise is large against their mean
    ],
)
def test_a_constant_series_has_no_ratio_and_no_volatility(returns):
    assert metrics.annual_volatility(returns, 252) == 0.0
    assert math.isnan(metrics.sharpe_ratio(returns, 252))
    assert math.isnan(metrics.sortino_ratio(returns, 252))


def test_a_small_true_spread_is_not_taken_for_noise():
    returns = 1e-9 * np.array([1.0, 2.0, 3.0])
    assert metrics.sharpe_ratio(returns, 1) == pytest.approx(2.0)


@pytest.mark.parametrize("returns", [[], [0.1, NAN], [0.1, INF, 0.2], [0.1, -INF]])
@pytest.mark.parametrize(
    "measure",
    [
        metrics.sharpe_ratio,
        metrics.sortino_ratio,
        metrics.annual_return,
        metrics.annual_volatility,
        metrics.calmar_ratio,
    ],
)
def test_undefined_is_nan(measure, returns):
    assert math.isnan(measure(returns, 252))


def test_further_undefined_cases_are_nan():
    assert math.isnan(metrics.sharpe_ratio([0.1], 252))
    assert math.isnan(metrics.calmar_ratio([0.1, 0.1], 252))  # no drawdown
    assert math.isnan(metrics.annual_return([0.1], 105_120))  # 1.1^105120 is beyond float64
    assert math.isnan(metrics.max_drawdown([])) and math.isnan(metrics.max_drawdown([0.0, 1.0]))
    assert np.isnan(metrics.drawdown_curve([1.0, NAN, 2.0])).all()
    assert math.isnan(metrics.turnover([1.0], [0.0, 1.0], 252))


@pytest.mark.parametrize(
    ("call", "culprit"),
    [
        (lambda: metrics.sharpe_ratio([[0.1, 0.2]], 252), "returns"),
        (lambda: metrics.sharpe_ratio(RETURNS, 0), "bars_per_year"),
        (lambda: metrics.annual_return(RETURNS, NAN), "bars_per_year"),
        (lambda: metrics.turnover([1.0, 1.0], [1.0, 1.0], 252), "equity"),
    ],
)
def test_wrong_input_names_the_culprit_on_one_line(call, culprit):
    with pytest.raises(InputError, match=culprit) as error:
        call()
    assert "\n" not in str(error.value)


def test_float32_returns_are_computed_in_float64():
    returns = np.random.default_rng(0).normal(1e-4, 1e-3, 50_000).astype(np.float32)
    exact = returns.astype(np.float64)
    assert metrics.sharpe_ratio(returns, 1) == exact.mean() / exact.std(ddof=1)


def _result(**changes):
    fields = {
        "name": "policy",
        "symbols": ("A", "B"),
        "timestamps": [0, 1, 2, 3],
        "equity": [100.0, 110.0, 99.0, 99.0],
        "weights": [[0, 0], [0.5, 0.25], [0.5, -0.25], [0.00002, 0]],
        "fees": [1.0, 0.5, 0.25],
        "traded": [75.0, 55.0, 74.0],
        "n_trades": 5,
        "bars_per_year": 3,
        "decision_lag": 1,
    }
    return BacktestResult(**{**fields, **changes})


def test_result_figures_are_the_measures_with_their_units():
    figures = _result().figures()
    value = {name: entry["value"] for name, entry in figures.items()}
    # Returns 0.1, -0.1, 0: mean 0, so Sharpe and Sortino are 0; three bars are one year.
    assert value["total_return"] == pytest.approx(-0.01)
    assert value["annual_return"] == pytest.approx(-0.01)
    assert value["annual_volatility"] == pytest.approx(0.1 * math.sqrt(3))
    assert value["sharpe"] == pytest.approx(0.0, abs=1e-12)
    assert value["max_drawdown"] == pytest.approx(0.1)
    assert value["calmar"] == pytest.approx(-0.1)
    assert value["turnover"] == pytest.approx(75 / 100 + 55 / 110 + 74 / 99)
    assert (value["fees"], value["n_trades"], value["bars"]) == (1.75, 5, 3)
    assert value["time_in_cash"] == pytest.approx(1 / 3)  # only the dust of the last bar
    assert figures["sharpe"]["unit"] == "annualised Sharpe ratio, sqrt(3 bars)"
    assert all(entry["unit"] for entry in figures.values())
    np.testing.assert_allclose(_result().cash_weight, [1.0, 0.25, 0.75, 0.99998])


def test_an_undefined_figure_is_none_and_keeps_its_unit():
    figures = _result(equity=[100.0] * 4).figures()
    assert figures["sharpe"] == {"value": None, "unit": "annualised Sharpe ratio, sqrt(3 bars)"}
    assert figures["annual_volatility"]["value"] == 0.0


@pytest.mark.parametrize(
    ("changes", "culprit"),
    [
        ({"equity": [1.0, 2.0]}, "equity"),
        ({"weights": [[0.0]] * 4}, "weights"),
        ({"fees": [0.0] * 4}, "fees"),
        ({"timestamps": [0, 2, 2, 3]}, "timestamps"),
        ({"timestamps": [0]}, "timestamps"),
    ],
)
def test_result_refuses_arrays_that_do_not_fit(changes, culprit):
    with pytest.raises(InputError, match=f"policy: {culprit}"):
        _result(**changes)
