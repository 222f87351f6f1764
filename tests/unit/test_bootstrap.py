"""The stationary bootstrap: against distributions that are known, and blind to what it must be blind to."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest

from drl_agents.evaluation.bootstrap import block_length, growth_paths, paired_sharpe_test
from drl_agents.evaluation.metrics import sharpe_ratio
from environments.errors import InputError

YEAR = 252.0


def draws(seed: int, mean: float = 0.0, bars: int = 500) -> np.ndarray:
    return np.random.default_rng(seed).normal(mean, 0.01, bars)


def test_the_difference_is_of_annualised_sharpe_ratios():
    first, second = draws(1, 0.001), draws(2)
    test = paired_sharpe_test(first, second, YEAR)
    assert test.difference == sharpe_ratio(first, YEAR) - sharpe_ratio(second, YEAR)
    assert test == paired_sharpe_test(first, second, YEAR)  # the seed fixes the resamples
    assert test.p_value != paired_sharpe_test(first, second, YEAR, seed=1).p_value


def test_the_p_value_is_that_of_normal_returns():
    """Independent normal returns: the difference of per-bar Sharpe ratios has variance (2 + small) / T."""
    first, second = draws(3, 0.0005), draws(4)
    test = paired_sharpe_test(first, second, YEAR)
    z = test.difference / math.sqrt(YEAR) / math.sqrt(2 / first.size)
    expected = 0.5 * math.erfc(z / math.sqrt(2))
    assert 0.02 < expected < 0.9 and test.p_value == pytest.approx(expected, abs=0.05)


def test_false_alarms_come_as_often_as_asked_for():
    """Strategies that share most of their returns and differ by nothing: about 1 in 10 has p <= 0.1."""
    p_values = []
    for seed in range(80):
        common = draws(seed)
        first, second = (common + 0.3 * draws(10_000 + 2 * seed + i) for i in (0, 1))
        p_values.append(paired_sharpe_test(first, second, YEAR, n_resamples=199).p_value)
    assert 0.02 <= np.mean(np.array(p_values) <= 0.1) <= 0.2
    assert 0.35 < np.mean(p_values) < 0.65


def test_a_real_difference_between_alike_strategies_is_found():
    """Paired: what moves both of them alike does not hide what sets them apart."""
    common = draws(5)
    first, second = common + 0.001 + 0.1 * draws(6), common + 0.1 * draws(7)
    assert paired_sharpe_test(first, second, YEAR).p_value <= 0.01
    assert paired_sharpe_test(second, first, YEAR).p_value >= 0.99


@pytest.mark.parametrize("other", [np.zeros(500), np.full(500, np.nan), draws(8)], ids=["flat", "nan", "the same"])
def test_what_cannot_be_compared_is_undefined(other):
    assert math.isnan(paired_sharpe_test(draws(8), other, YEAR).p_value)


def test_other_bars_are_refused():
    with pytest.raises(InputError, match="first has 500 bars, second 400"):
        paired_sharpe_test(draws(1), draws(2, bars=400), YEAR)


def test_blocks_are_as_long_as_the_dependence():
    rng = np.random.default_rng(9)
    slow = np.zeros(2_000)
    for t in range(1, slow.size):
        slow[t] = 0.9 * slow[t - 1] + rng.standard_normal()
    assert block_length(rng.standard_normal(2_000)) < 4 < 15 < block_length(slow) <= slow.size / 3
    assert block_length([1.0, 2.0]) == 1.0 and block_length(np.ones(50)) == 1.0


def test_paths_of_independent_returns_are_a_random_walk():
    """After h bars: mean h m, variance h s^2 of the log returns; the median path is the sample's own growth."""
    returns = draws(10, 0.001, 2_000)
    logs = np.log1p(returns)
    paths = growth_paths(returns, 100)
    assert paths.shape == (999, 100)
    for h in (1, 25, 100):
        spread = logs.std() * math.sqrt(h)
        assert paths[:, h - 1].mean() == pytest.approx(h * logs.mean(), abs=5 * spread / math.sqrt(999))
        assert paths[:, h - 1].std() == pytest.approx(spread, rel=0.1)


def test_paths_keep_the_dependence_of_the_returns():
    """A first-order autoregression of 0.8: sums of 50 bars spread sqrt((1 + 0.8) / (1 - 0.8)) = 3 times as far as those
    of independent ones, a little less over so few bars and in blocks that end."""
    rng, logs = np.random.default_rng(11), np.zeros(20_000)
    noise = rng.normal(0.0, 0.001, logs.size)
    for t in range(1, logs.size):
        logs[t] = 0.8 * logs[t - 1] + noise[t]
    paths = growth_paths(np.expm1(logs), 50)
    own = logs[: logs.size // 50 * 50].reshape(-1, 50).sum(1).std()
    assert own == pytest.approx(2.8 * logs.std() * math.sqrt(50), rel=0.1)
    assert paths[:, -1].std() == pytest.approx(own, rel=0.15)


def test_a_long_sample_costs_no_more_than_a_short_one():
    """A trader waits for the paths at a bar boundary."""
    growth_paths(draws(1), 100)  # loads what it needs

    def seconds() -> float:
        began = time.thread_time()
        growth_paths(draws(12, bars=100_000), 100)
        return time.thread_time() - began

    assert min(seconds() for _ in range(3)) < 1.0


def test_a_horizon_longer_than_the_sample():
    paths = growth_paths(np.full(10, 0.01), 25, n_resamples=3)
    assert paths == pytest.approx(np.log(1.01) * np.arange(1, 26) * np.ones((3, 1)))


@pytest.mark.parametrize("returns", [[0.1], [0.1, -1.0], [0.1, np.nan]])
def test_returns_that_cannot_be_resampled(returns):
    with pytest.raises(InputError, match="at least 2, finite and above -1"):
        growth_paths(returns, 5)
    with pytest.raises(InputError, match="horizon is 0"):
        growth_paths([0.1, 0.2], 0)
