"""The gate: each check on both sides of its limit, in numbers worked out by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from drl_agents.deployment.gate import Check, Evidence, GateLimits, deflated_sharpe, judge
from drl_agents.evaluation.bootstrap import paired_sharpe_test
from drl_agents.evaluation.metrics import sharpe_ratio
from drl_agents.evaluation.overfitting import deflated_sharpe_of_returns, probabilistic_sharpe_ratio
from drl_agents.evaluation.result import BacktestResult
from environments.errors import InputError

BARS = 252.0
LIMITS = GateLimits(min_deflated_sharpe=0.9, max_p_value=0.05, max_pbo=0.5, max_drawdown=0.3, min_trades=20)
TRIALS = [0.01, 0.02, 0.03, 0.04]
SEARCH = 100_000  # bars: sampling error of the trials' Sharpe ratios far below their spread
NAMES = [
    "Sharpe ratio against holding equal weight",
    "total return against holding cash",
    "median Sharpe ratio over seeds against equal weight",
    "Sharpe ratio at decision lag 2 against equal weight",
    "total return at decision lag 2",
    "deflated Sharpe ratio",
    "paired bootstrap of the Sharpe ratio against equal weight",
    "probability of back-test overfitting",
    "maximum drawdown",
    "trades",
]
RETURN, SEEDS, LATE, LATE_RETURN, DEFLATED, PAIRED, PBO, DRAWDOWN, TRADES = NAMES[1:]
CHAMPION = "Sharpe ratio against the champion"
PAIRED_CHAMPION = "paired bootstrap of the Sharpe ratio against the champion"


def result(
    mean: float, spread: float = 0.01, bars: int = 200, trades: int = 40, dip: float = 0.0, lag: int = 1
) -> BacktestResult:
    """Returns mean + spread and mean - spread by turns: per bar, Sharpe = mean / (spread sqrt(n / (n - 1))).

    dip: a fall of that share in the first bar, and the way back in the second.
    """
    returns = mean + spread * np.where(np.arange(bars) % 2, -1.0, 1.0)
    if dip:
        returns[:2] = -dip, 1 / (1 - dip) - 1
    equity = 100.0 * np.concatenate([[1.0], np.cumprod(1 + returns)])
    zeros = np.zeros(bars)
    return BacktestResult(
        "x", ("A",), np.arange(bars + 1), equity, np.zeros((bars + 1, 1)), zeros, zeros, trades, BARS, lag
    )


def walk(seed: int, mean: float, bars: int = 600, spread: float = 0.01) -> BacktestResult:
    """Normal returns."""
    returns = np.random.default_rng(seed).normal(mean, spread, bars)
    equity, zeros = 100.0 * np.concatenate([[1.0], np.cumprod(1 + returns)]), np.zeros(bars)
    return BacktestResult("x", ("A",), np.arange(bars + 1), equity, np.zeros((bars + 1, 1)), zeros, zeros, 40, BARS, 1)


GOOD, WEAK, LATE_GOOD = result(0.004), walk(1, 0.0, 200), result(0.003, lag=2)


def judged(
    candidate=GOOD, seeds=None, held=WEAK, trials=TRIALS, pbo=0.1, champion=None, limits=LIMITS, late=LATE_GOOD,
    late_held=WEAK, search=SEARCH,
):  # fmt: skip
    seeds = [candidate] * 3 if seeds is None else seeds
    return judge(Evidence(candidate, late, seeds, held, late_held, champion, trials, search, pbo), limits)


def failed(verdict) -> list[str]:
    return [check.name for check in verdict.checks if not check.passed]


def test_a_good_candidate_passes_every_check():
    verdict = judged()
    assert verdict.passed and verdict.reasons == [] and [c.name for c in verdict.checks] == NAMES
    assert [c.name for c in judged(champion=WEAK).checks] == [*NAMES[:6], PAIRED_CHAMPION, *NAMES[7:], CHAMPION]


def test_the_numbers_are_the_measures_by_hand():
    values = {c.name: (c.value, c.limit) for c in judged(champion=WEAK).checks}
    deviation = 0.01 * math.sqrt(200 / 199)
    own, late = (mean / deviation * math.sqrt(BARS) for mean in (0.004, 0.003))
    held = sharpe_ratio(WEAK.returns, BARS)
    assert values[NAMES[0]] == pytest.approx((own, held))
    assert values[RETURN] == pytest.approx((1.014**100 * 0.994**100 - 1, 0.0))
    assert values[SEEDS] == pytest.approx((own, held))
    assert values[LATE] == pytest.approx((late, held))
    assert values[LATE_RETURN] == pytest.approx((1.013**100 * 0.993**100 - 1, 0.0))
    assert values[DEFLATED] == pytest.approx((deflated_sharpe_of_returns(GOOD.returns, TRIALS), 0.9))
    assert values[PAIRED_CHAMPION] == (paired_sharpe_test(GOOD.returns, WEAK.returns, BARS).p_value, 0.05)
    assert values[PBO] == (0.1, 0.5)
    assert values[DRAWDOWN] == pytest.approx((0.006, 0.3))
    assert values[TRADES] == (40, 20)
    assert values[CHAMPION] == pytest.approx((own, held))


@pytest.mark.parametrize(
    ("change", "fails"),
    [
        ({"seeds": [GOOD, result(-0.005), result(-0.005)]}, [SEEDS]),
        ({"seeds": [GOOD, GOOD, result(-0.002)]}, []),
        ({"late_held": result(0.0031)}, [LATE]),
        ({"late": result(-0.0001, lag=2), "late_held": result(-0.001)}, [LATE_RETURN]),
        ({"trials": [-0.5, 0.0, 0.5]}, [DEFLATED]),
        ({"pbo": 0.51}, [PBO]),
        ({"pbo": 0.5}, []),
        ({"candidate": result(0.004, trades=19)}, [TRADES]),
        ({"candidate": result(0.004, trades=20)}, []),
        ({"champion": WEAK}, []),
        ({"champion": GOOD}, [PAIRED_CHAMPION, CHAMPION]),
        ({"champion": result(0.005)}, [PAIRED_CHAMPION, CHAMPION]),
    ],
)
def test_both_sides_of_each_limit(change, fails):
    verdict = judged(**change)
    assert failed(verdict) == fails and verdict.passed == (not fails)
    assert len(verdict.reasons) == len(fails)


def test_no_better_than_holding_is_refused():
    held = walk(2, 0.004, 200)
    verdict = judged(candidate=walk(3, 0.002, 200), held=held, late_held=held)
    assert {NAMES[0], SEEDS, LATE, PAIRED} <= set(failed(verdict))


@pytest.mark.parametrize(("dip", "passes"), [(0.29, True), (0.31, False)])
def test_the_drawdown_decides_at_its_limit(dip, passes):
    limits = GateLimits(min_deflated_sharpe=0.0, max_p_value=1.0, max_drawdown=0.3)
    verdict = judged(candidate=result(0.004, dip=dip), seeds=[GOOD], held=result(-0.01), limits=limits)
    assert failed(verdict) == ([] if passes else [DRAWDOWN])


def test_a_loss_fails_even_where_holding_lost_more():
    verdict = judged(candidate=result(-0.001), held=result(-0.003))
    assert RETURN in failed(verdict) and NAMES[0] not in failed(verdict)


def test_the_deflated_sharpe_ratio_decides_at_its_limit():
    probability = deflated_sharpe(GOOD.returns, TRIALS, SEARCH)
    assert 0.9 < probability <= 1
    harder = [-0.3, 0.1, 0.4]
    between = deflated_sharpe(GOOD.returns, harder, SEARCH)
    # Returns of two values vary less than normal ones; they are not taken for more certain.
    assert 0.01 < between < deflated_sharpe_of_returns(GOOD.returns, harder) < 0.99
    for limit, passes in ((between - 1e-6, True), (between + 1e-6, False)):
        verdict = judged(trials=harder, limits=GateLimits(min_deflated_sharpe=limit, max_drawdown=0.3))
        assert verdict.passed == passes


def test_trials_that_failed_count_as_tried():
    """The more were tried, the higher the bar: an undefined Sharpe ratio is a try like any other."""
    few = deflated_sharpe(GOOD.returns, [-0.1, 0.1, 0.3], SEARCH)
    many = deflated_sharpe(GOOD.returns, [-0.1, 0.1, 0.3] + [math.nan] * 50, SEARCH)
    assert many < few


def test_few_trials_that_are_alike_deflate_all_the_same():
    """Two trials whose Sharpe ratios happen to agree have no variance to speak of; sampling error says they might as
    well have differed. By hand: SR0 = sqrt(1 / 400) * 0.5772... * Phi^-1(1 - 1 / (2 e)), Phi^-1(1/2) being 0."""
    alike = [0.05, 0.0500001]
    assert deflated_sharpe_of_returns(GOOD.returns, alike) > deflated_sharpe(GOOD.returns, alike, 400)
    benchmark = 0.05 * 0.5772156649 * 0.9008
    expected = probabilistic_sharpe_ratio(WEAK.returns, benchmark)
    assert deflated_sharpe(WEAK.returns, alike, 400) == pytest.approx(expected, abs=1e-4)
    # Alone, a trial is not a selection.
    assert deflated_sharpe(WEAK.returns, [0.05], 400) == probabilistic_sharpe_ratio(WEAK.returns, 0.0)
    assert math.isnan(deflated_sharpe(GOOD.returns, [], 400)) and math.isnan(deflated_sharpe(GOOD.returns, alike, 0))


def test_a_few_lucky_bars_are_no_record():
    """600 bars, of which 24 are in the market. PSR takes the skewness to the right for certainty; as if they were
    normal: Phi(SR sqrt(599) / sqrt(1 + SR^2 / 2))."""
    returns = np.zeros(600)
    returns[::50], returns[25::50] = 0.02, -0.011
    ratio = sharpe_ratio(returns, 1.0)
    expected = 0.5 * math.erfc(-ratio * math.sqrt(599 / (1 + ratio**2 / 2)) / math.sqrt(2))
    assert deflated_sharpe(returns, [0.0], 400) == pytest.approx(expected)
    assert expected < probabilistic_sharpe_ratio(returns)
    # Skewed to the left it is less certain than normal returns, and stays so.
    left = 0.001 - returns
    assert deflated_sharpe(left, [0.0], 400) == probabilistic_sharpe_ratio(left)


def test_the_paired_bootstrap_decides_where_the_ratio_alone_would_not():
    """A candidate hardly better than its champion passes the comparison of the two ratios, not the test of it."""
    champion = walk(5, 0.0010)
    jitter = np.random.default_rng(6).normal(0.0, 0.004, 600)
    equity = 100.0 * np.concatenate([[1.0], np.cumprod(1 + champion.returns + 0.0001 + jitter - jitter.mean())])
    zeros = np.zeros(600)
    candidate = BacktestResult(
        "x", ("A",), np.arange(601), equity, np.zeros((601, 1)), zeros, zeros, 40, BARS, 1
    )  # fmt: skip
    checks = {c.name: c for c in judged(candidate=candidate, champion=champion).checks}
    assert not checks[PAIRED_CHAMPION].passed and 0.05 < checks[PAIRED_CHAMPION].value < 0.95
    better = {c.name: c for c in judged(candidate=walk(7, 0.004), champion=champion).checks}
    assert better[PAIRED_CHAMPION].passed


def test_a_ruined_walk_is_compared_on_the_bars_it_missed():
    """The champion's walk ended early: what it did not live to see it did not earn."""
    short = walk(8, -0.003, 100)
    checks = {c.name: c for c in judged(candidate=walk(7, 0.004, 200), champion=short).checks}
    assert checks[PAIRED_CHAMPION].passed


@pytest.mark.parametrize(
    ("change", "fails"),
    [
        ({"candidate": result(0.0, spread=0.0)}, [NAMES[0], RETURN, SEEDS, DEFLATED, PAIRED]),
        ({"held": result(0.0, spread=0.0)}, [NAMES[0], SEEDS, PAIRED]),
        ({"late": result(0.0, spread=0.0, lag=2)}, [LATE, LATE_RETURN]),
        ({"late_held": result(0.0, spread=0.0)}, [LATE]),
        ({"seeds": [GOOD, GOOD, result(0.0, spread=0.0)]}, [SEEDS]),
        ({"seeds": []}, [SEEDS]),
        ({"pbo": math.nan}, [PBO]),
        ({"trials": [math.nan, math.nan]}, [DEFLATED]),
        ({"champion": result(0.0, spread=0.0)}, [PAIRED_CHAMPION, CHAMPION]),
    ],
    ids=["candidate", "holder", "late", "late holder", "a seed", "no seeds", "pbo", "no trials", "champion"],
)
def test_what_is_undefined_fails(change, fails):
    verdict = judged(**change)
    assert failed(verdict) == fails and not verdict.passed


@pytest.mark.parametrize("rule", [">=", "<=", ">"])
@pytest.mark.parametrize(("value", "limit"), [(math.nan, 0.0), (0.0, math.nan), (math.nan, math.nan)])
def test_nan_passes_no_rule(rule, value, limit):
    assert not Check("x", value, rule, limit, "unit").passed


@pytest.mark.parametrize(
    ("rule", "below", "at", "above"), [(">=", False, True, True), ("<=", True, True, False), (">", False, False, True)]
)
def test_the_rules(rule, below, at, above):
    assert [Check("x", v, rule, 1.0, "u").passed for v in (0.9, 1.0, 1.1)] == [below, at, above]


def test_reasons_hold_the_numbers_and_the_unit():
    verdict = judged(candidate=result(0.004, trades=7), pbo=0.75)
    assert verdict.reasons == [
        "probability of back-test overfitting 0.75 <= 0.5 (probability): FAILED",
        "trades 7 >= 20 (filled orders): FAILED",
    ]
    paired, reason = judged(champion=result(0.005)).reasons
    assert paired.startswith(PAIRED_CHAMPION) and "p-value of -1.58 annualised" in paired
    own, other = (sharpe_ratio(r.returns, BARS) for r in (GOOD, result(0.005)))
    assert f"{own:.4g} > {other:.4g} (annualised Sharpe ratio, sqrt(252 bars))" in reason
    told = verdict.to_dict()
    assert told["passed"] is False and told["reasons"] == verdict.reasons
    assert told["checks"][-1] == {
        "name": "trades", "value": 7, "rule": ">=", "limit": 20, "unit": "filled orders", "passed": False,
    }  # fmt: skip


def test_a_median_of_one_seed_says_that_it_is_one():
    alone = judged(seeds=[GOOD]).checks[2]
    assert alone.name.startswith("median Sharpe ratio over seeds") and "of one seed, the candidate's own" in alone.unit
    assert "of one seed" not in judged().checks[2].unit


def test_every_look_at_the_same_bars_asks_for_more():
    """Dunn's rule: a p-value must be as many times smaller as models were judged on these bars."""
    evidence = Evidence(GOOD, LATE_GOOD, [GOOD], WEAK, WEAK, None, TRIALS, 1000, 0.1)
    name = "paired bootstrap of the Sharpe ratio against equal weight"
    limits = [
        next(c for c in judge(replace(evidence, looks=looks), LIMITS).checks if c.name == name).limit
        for looks in (1, 5)
    ]
    assert limits == [0.05, pytest.approx(0.01)]


def test_without_a_search_nothing_is_said_of_overfitting_by_it():
    evidence = Evidence(GOOD, LATE_GOOD, [GOOD], WEAK, WEAK, None, TRIALS, 1000, None)
    assert PBO not in [check.name for check in judge(evidence, LIMITS).checks]


@pytest.mark.parametrize(
    "limits", [{"max_pbo": 1.1}, {"min_deflated_sharpe": -0.1}, {"max_drawdown": math.nan}, {"max_drawdown": 50}]
)
def test_limits_out_of_range_are_refused(limits):
    with pytest.raises(InputError, match=f"{next(iter(limits))}=.*accepted are 0 to 1"):
        GateLimits(**limits)
