"""Overfitting statistics against the papers' published numbers and cases worked out on paper."""

import math
from itertools import combinations

import numpy as np
import pytest

from drl_agents.evaluation.overfitting import (
    SharpeMoments,
    deflated_sharpe_of_returns,
    deflated_sharpe_ratio,
    expected_maximum_sharpe,
    minimum_track_record_length,
    probabilistic_sharpe_ratio,
    probability_of_backtest_overfitting,
    sharpe_moments,
)
from environments.errors import InputError

NAN = math.nan


def test_deflated_sharpe_ratio_of_the_paper():
    # Annualised Sharpe 2.5 over 5 years of 250 days, skewness -3, kurtosis 10, trial variance 1/2 annualised.
    daily, variance = 2.5 / math.sqrt(250), 0.5 / 250
    assert expected_maximum_sharpe(variance, 100) == pytest.approx(0.1132, abs=5e-5)
    assert deflated_sharpe_ratio(daily, 1250, -3, 10, variance, 100) == pytest.approx(0.9004, abs=5e-5)
    assert deflated_sharpe_ratio(daily, 1250, -3, 10, variance, 46) == pytest.approx(0.9505, abs=5e-5)


def test_probabilistic_sharpe_ratio_of_the_paper():
    # Two years of monthly returns with Sharpe 0.458: 0.982 if normal, 0.913 with their skewness and kurtosis.
    normal, observed = SharpeMoments(0.458, 24), SharpeMoments(0.458, 24, -2.448, 10.164)
    assert probabilistic_sharpe_ratio(normal) == pytest.approx(0.982, abs=5e-4)
    assert probabilistic_sharpe_ratio(observed) == pytest.approx(0.913, abs=5e-4)


@pytest.mark.parametrize(
    ("per_year", "skewness", "kurtosis", "years"),
    [(252, 0, 3, 2.73), (52, 0, 3, 2.83), (12, 0, 3, 3.24), (12, -0.72, 5.78, 4.99)],
)
def test_minimum_track_record_length_of_the_paper(per_year, skewness, kurtosis, years):
    # Annualised Sharpe 2 against 1 at 95%: years of daily, weekly and monthly returns.
    root = math.sqrt(per_year)
    bars = minimum_track_record_length(2 / root, skewness, kurtosis, benchmark=1 / root, confidence=0.95)
    assert bars / per_year == pytest.approx(years, abs=5e-3)


def test_minimum_track_record_length_is_where_psr_reaches_the_confidence():
    bars = minimum_track_record_length(0.1, -1.0, 6.0, benchmark=0.02, confidence=0.9)
    assert bars == pytest.approx(1 + (1 + 0.1 + 1.25 * 0.01) * (1.2815515655 / 0.08) ** 2)
    assert probabilistic_sharpe_ratio(SharpeMoments(0.1, math.ceil(bars), -1.0, 6.0), 0.02) >= 0.9
    assert probabilistic_sharpe_ratio(SharpeMoments(0.1, math.floor(bars), -1.0, 6.0), 0.02) < 0.9
    assert minimum_track_record_length(0.1, benchmark=0.1) == math.inf


def test_moments_by_hand():
    # -1, -1, -1, 3 around a mean of 0: m2 = 3, m3 = 6, m4 = 21.
    moments = sharpe_moments(np.array([-1.0, -1.0, -1.0, 3.0]) + 2.0)
    assert moments.sharpe == pytest.approx(2 / math.sqrt(12 / 3))
    assert moments.skewness == pytest.approx(6 / 3**1.5)
    assert moments.kurtosis == pytest.approx(21 / 9)
    assert moments.n_observations == 4


def test_expected_maximum_agrees_with_simulation():
    draws = np.random.default_rng(0).normal(0.0, 0.05, (20_000, 50))
    # The approximation of extreme value theory is good to about 1% at 50 trials.
    assert expected_maximum_sharpe(0.05**2, 50) == pytest.approx(draws.max(axis=1).mean(), rel=0.015)


def test_one_trial_is_not_deflated():
    assert expected_maximum_sharpe(NAN, 1) == 0.0
    assert expected_maximum_sharpe(0.01, 1.05) == 0.0
    returns = np.random.default_rng(0).normal(1e-3, 1e-2, 300)
    assert deflated_sharpe_of_returns(returns, [0.1]) == probabilistic_sharpe_ratio(returns)


def test_deflating_a_series_counts_failed_trials():
    returns = np.random.default_rng(1).normal(1e-3, 1e-2, 500)
    moments = sharpe_moments(returns)
    sharpes = [0.01, 0.03, -0.02, NAN]
    expected = deflated_sharpe_ratio(
        moments.sharpe, 500, moments.skewness, moments.kurtosis, np.var(sharpes[:3], ddof=1), 4
    )
    assert deflated_sharpe_of_returns(returns, sharpes) == pytest.approx(expected, rel=1e-12)
    assert deflated_sharpe_of_returns(returns, sharpes, n_trials=2) > expected
    assert math.isnan(deflated_sharpe_of_returns(returns, [0.1, NAN]))
    assert math.isnan(deflated_sharpe_of_returns(np.zeros(500), sharpes))


def test_undefined_moments_are_nan():
    assert math.isnan(probabilistic_sharpe_ratio([0.1]))
    assert math.isnan(probabilistic_sharpe_ratio([0.1, NAN, 0.2]))
    assert math.isnan(probabilistic_sharpe_ratio(SharpeMoments(0.1, 1)))
    assert math.isnan(minimum_track_record_length(NAN))
    assert math.isnan(expected_maximum_sharpe(-1.0, 10))


def blocks(*strategies):
    """(T, K) returns: each block of a strategy is two bars, its mean minus 1 and plus 1."""
    return np.stack([np.repeat(means, 2) + np.tile([-1.0, 1.0], len(means)) for means in strategies], axis=1)


def test_pbo_worked_out_on_paper():
    # Over two blocks of means p, q the 4 bars have mean (p + q)/2 and squared deviations 4 + (p - q)^2, so
    # the Sharpe ratio is sqrt(3) f(p, q) with f = (p + q) / (2 sqrt(4 + (p - q)^2)).
    #   A = (2, 2, 0, 0)   f(2,2) = 1       f(2,0) = 0.354   f(0,0) = 0
    #   B = (1, 1, 1, 1)   f(1,1) = 0.5
    #   C = (0, 0, 2, -1)  f(0,0) = 0       f(0,2) = 0.354   f(0,-1) = -0.224   f(2,-1) = 0.139
    # in-sample   best   out-of-sample A, B, C      rank   omega   logit
    # 0, 1        A      0      0.5   0.139         1      1/4     -ln 3
    # 0, 2        B      0.354  0.5  -0.224         3      3/4      ln 3
    # 0, 3        B      0.354  0.5   0.354         3      3/4      ln 3
    # 1, 2        B      0.354  0.5  -0.224         3      3/4      ln 3
    # 1, 3        B      0.354  0.5   0.354         3      3/4      ln 3
    # 2, 3        B      1      0.5   0             2      1/2      0
    returns = blocks([2, 2, 0, 0], [1, 1, 1, 1], [0, 0, 2, -1])
    result = probability_of_backtest_overfitting(returns, n_blocks=4)
    ln3 = math.log(3)
    np.testing.assert_allclose(result.logits, [-ln3, ln3, ln3, ln3, ln3, 0.0], atol=1e-12)
    assert result.pbo == pytest.approx(2 / 6)  # a logit of exactly 0 counts as overfitted
    assert result.n_combinations == 6 and result.n_trials == 3
    # In-sample 1 gives 0, in-sample 0.5 gives 0.5 five times (both times sqrt 3): the slope is -1.
    assert result.performance_degradation == pytest.approx(-1.0)
    assert result.probability_of_loss == 0.0
    assert result.reason is None


def test_pbo_is_zero_when_one_trial_truly_dominates():
    returns = np.random.default_rng(0).normal(0, 1e-2, (800, 20))
    returns[:, 7] += 1e-2
    result = probability_of_backtest_overfitting(returns, n_blocks=8)
    assert result.pbo == 0.0 and result.probability_of_loss == 0.0
    np.testing.assert_allclose(result.logits, math.log(20))  # always rank 20 of 20: omega = 20/21


def test_pbo_is_one_when_every_gain_is_given_back():
    # Block means that sum to zero: a half that gained leaves a half that lost as much. The mirror image of a
    # strategy gains where it loses, so the in-sample best is always the out-of-sample worst of the two.
    means = np.array([1.0, 2.0, 4.0, -7.0])
    result = probability_of_backtest_overfitting(blocks(means, -means), n_blocks=4)
    assert result.pbo == 1.0 and result.probability_of_loss == 1.0
    np.testing.assert_allclose(result.logits, math.log(1 / 2))


def test_pbo_of_noise_is_one_half_on_average():
    pbos = []
    for seed in range(200):
        returns = np.random.default_rng(seed).normal(0, 1, (160, 20))
        pbos.append(probability_of_backtest_overfitting(returns, n_blocks=8).pbo)
    # One PBO of noise spreads by about 0.2, the mean of 200 by about 0.015; four of those are allowed.
    assert np.mean(pbos) == pytest.approx(0.5, abs=0.06)


def test_pbo_agrees_with_sharpe_ratios_computed_bar_by_bar():
    rng = np.random.default_rng(3)
    returns = (rng.normal(1e-4, 1e-2, (203, 9)) + 5e-3 * rng.normal(size=9)).astype(np.float32)
    bounds = [block * 203 // 6 for block in range(7)]  # blocks of 33 and 34 bars
    pieces = [np.arange(bounds[block], bounds[block + 1]) for block in range(6)]
    exact, logits = returns.astype(np.float64), []
    for chosen in combinations(range(6), 3):
        inside = np.concatenate([pieces[block] for block in chosen])
        outside = np.setdiff1d(np.arange(203), inside)
        halves = exact[inside], exact[outside]
        sharpe_in, sharpe_out = (half.mean(0) / half.std(0, ddof=1) for half in halves)
        rank = 1 + (sharpe_out < sharpe_out[sharpe_in.argmax()]).sum()
        logits.append(math.log(rank / (10 - rank)))
    result = probability_of_backtest_overfitting(returns, n_blocks=6)
    np.testing.assert_allclose(result.logits, logits, atol=1e-12)


def test_pbo_keeps_its_digits_on_a_small_spread_around_a_large_mean():
    rng = np.random.default_rng(4)
    noise = rng.normal(0, 1e-6, (400, 5))
    shifted = probability_of_backtest_overfitting(noise + 1.0, n_blocks=4)
    exact = (noise + 1.0).reshape(4, 100, 5)
    best_out = []
    for chosen in combinations(range(4), 2):
        rest = [block for block in range(4) if block not in chosen]
        inside, outside = (exact[list(half)].reshape(200, 5) for half in (chosen, rest))
        best = (inside.mean(0) / inside.std(0, ddof=1)).argmax()
        sharpes = outside.mean(0) / outside.std(0, ddof=1)
        rank = 1 + (sharpes < sharpes[best]).sum()
        best_out.append(math.log(rank / (6 - rank)))
    np.testing.assert_allclose(shifted.logits, best_out, atol=1e-12)


def test_tied_trials_share_the_average_rank():
    # Four copies of one strategy: rank (1 + 2 + 3 + 4) / 4 = 2.5, omega = 2.5 / 5, logit 0.
    column = np.random.default_rng(5).normal(0, 1, (96, 1))
    result = probability_of_backtest_overfitting(np.repeat(column, 4, axis=1), n_blocks=8)
    np.testing.assert_allclose(result.logits, 0.0, atol=1e-12)
    assert result.pbo == 1.0


def test_unusable_trials_are_left_out_and_counted():
    good = np.random.default_rng(6).normal(0, 1e-2, (160, 4))
    bad = good[:, :3].copy()
    bad[5, 0], bad[7, 1], bad[:, 2] = NAN, np.inf, 1e-3  # the last one is constant
    bad[9, 1] = -np.inf
    result = probability_of_backtest_overfitting(np.concatenate([bad, good], axis=1), n_blocks=8)
    alone = probability_of_backtest_overfitting(good, n_blocks=8)
    assert (result.n_trials, result.n_excluded) == (4, 3)
    np.testing.assert_array_equal(result.logits, alone.logits)


def test_a_trial_flat_over_a_half_is_not_ranked_there():
    # A trades in the first two blocks only, and best. Where one half is exactly blocks 2 and 3 A has no
    # Sharpe ratio in it: selected in sample it cannot be judged out of sample, and in the other case it is
    # not there to be selected.
    returns = blocks([3, 3, 0, 0], [1, 0, 1, 0], [-1, 0, 0, 1], [0, 1, 0, -1])
    returns[4:, 0] = 0.0
    result = probability_of_backtest_overfitting(returns, n_blocks=4)
    assert (result.n_combinations, result.n_undefined) == (5, 1)
    assert np.isfinite(result.logits).all()


@pytest.mark.parametrize(
    ("returns", "reason"),
    [
        (np.ones((31, 5)), "31 bars are too few for 16 blocks"),
        (np.random.default_rng(0).normal(size=(100, 1)), "1 of 1 trials"),
        (np.zeros((100, 3)), "0 of 3 trials"),
    ],
)
def test_undefined_pbo_is_nan_with_a_reason(returns, reason):
    result = probability_of_backtest_overfitting(returns)
    assert math.isnan(result.pbo) and math.isnan(result.performance_degradation)
    assert reason in result.reason and result.n_combinations == 0 and len(result.logits) == 0


@pytest.mark.parametrize(
    ("call", "culprit"),
    [
        (lambda: probability_of_backtest_overfitting(np.zeros(10)), "returns"),
        (lambda: probability_of_backtest_overfitting(np.zeros((100, 3)), n_blocks=5), "n_blocks is 5"),
        (lambda: probability_of_backtest_overfitting(np.zeros((100, 3)), n_blocks=22), "n_blocks is 22"),
        (lambda: expected_maximum_sharpe(0.1, 0), "n_trials is 0"),
        (lambda: minimum_track_record_length(0.1, confidence=0.5), "confidence is 0.5"),
    ],
)
def test_wrong_input_names_the_culprit(call, culprit):
    with pytest.raises(InputError, match=culprit):
        call()
