"""The gate: each check on both sides of its limit, in numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from drl_agents.deployment.gate import Check, GateLimits, judge
from drl_agents.evaluation.metrics import sharpe_ratio
from drl_agents.evaluation.overfitting import deflated_sharpe_of_returns
from drl_agents.evaluation.result import BacktestResult
from environments.errors import InputError

BARS = 252.0
LIMITS = GateLimits(min_deflated_sharpe=0.9, max_pbo=0.5, max_drawdown=0.3, min_trades=20)
TRIALS = [0.01, 0.02, 0.03, 0.04]
NAMES = [
    "Sharpe ratio against holding equal weight",
    "total return against holding cash",
    "median Sharpe ratio over seeds against equal weight",
    "deflated Sharpe ratio",
    "probability of back-test overfitting",
    "maximum drawdown",
    "trades",
]
CHAMPION = "Sharpe ratio against the champion"


def result(mean: float, spread: float = 0.01, bars: int = 200, trades: int = 40, dip: float = 0.0) -> BacktestResult:
    """Returns mean + spread and mean - spread by turns: per bar, Sharpe = mean / (spread sqrt(n / (n - 1))).

    dip: a fall of that share in the first bar, and the way back in the second.
    """
    returns = mean + spread * np.where(np.arange(bars) % 2, -1.0, 1.0)
    if dip:
        returns[:2] = -dip, 1 / (1 - dip) - 1
    equity = 100.0 * np.concatenate([[1.0], np.cumprod(1 + returns)])
    zeros = np.zeros(bars)
    return BacktestResult(
        "x", ("A",), np.arange(bars + 1), equity, np.zeros((bars + 1, 1)), zeros, zeros, trades, BARS, 1
    )


GOOD, WEAK = result(0.004), result(0.001)


def judged(candidate=GOOD, seeds=None, held=WEAK, trials=TRIALS, pbo=0.1, champion=None, limits=LIMITS):
    return judge(candidate, [candidate] * 3 if seeds is None else seeds, held, trials, pbo, champion, limits)


def failed(verdict) -> list[str]:
    return [check.name for check in verdict.checks if not check.passed]


def test_a_good_candidate_passes_every_check():
    verdict = judged()
    assert verdict.passed and verdict.reasons == [] and [c.name for c in verdict.checks] == NAMES


def test_the_numbers_are_the_measures_by_hand():
    values = {c.name: (c.value, c.limit) for c in judged(champion=WEAK).checks}
    deviation = 0.01 * math.sqrt(200 / 199)
    own, held = 0.004 / deviation * math.sqrt(BARS), 0.001 / deviation * math.sqrt(BARS)
    assert values[NAMES[0]] == pytest.approx((own, held))
    assert values[NAMES[1]] == pytest.approx((1.014**100 * 0.994**100 - 1, 0.0))
    assert values[NAMES[2]] == pytest.approx((own, held))
    assert values[NAMES[3]] == pytest.approx((deflated_sharpe_of_returns(GOOD.returns, TRIALS), 0.9))
    assert values[NAMES[4]] == (0.1, 0.5)
    assert values[NAMES[5]] == pytest.approx((0.006, 0.3))
    assert values[NAMES[6]] == (40, 20)
    assert values[CHAMPION] == pytest.approx((own, held))


@pytest.mark.parametrize(
    ("change", "fails"),
    [
        ({"held": result(0.005)}, [NAMES[0], NAMES[2]]),
        ({"held": GOOD}, [NAMES[0], NAMES[2]]),
        ({"seeds": [GOOD, result(0.0005), result(0.0005)]}, [NAMES[2]]),
        ({"seeds": [GOOD, GOOD, result(-0.002)]}, []),
        ({"trials": [-0.5, 0.0, 0.5]}, [NAMES[3]]),
        ({"pbo": 0.51}, [NAMES[4]]),
        ({"pbo": 0.5}, []),
        ({"candidate": result(0.004, dip=0.31), "trials": [0.0]}, [NAMES[5]]),
        ({"candidate": result(0.004, dip=0.29), "trials": [0.0]}, []),
        ({"candidate": result(0.004, trades=19)}, [NAMES[6]]),
        ({"candidate": result(0.004, trades=20)}, []),
        ({"champion": WEAK}, []),
        ({"champion": GOOD}, [CHAMPION]),
        ({"champion": result(0.005)}, [CHAMPION]),
    ],
)
def test_both_sides_of_each_limit(change, fails):
    limits = GateLimits(min_deflated_sharpe=0.0 if change.get("trials") == [0.0] else 0.9, max_drawdown=0.3)
    if change.get("trials") == [0.0]:
        change = {**change, "trials": TRIALS, "held": result(-0.01)}
    verdict = judged(**change, limits=limits)
    assert failed(verdict) == fails and verdict.passed == (not fails)
    assert len(verdict.reasons) == len(fails)


def test_a_loss_fails_even_where_holding_lost_more():
    verdict = judged(candidate=result(-0.001), held=result(-0.003))
    assert NAMES[1] in failed(verdict) and NAMES[0] not in failed(verdict)


def test_the_deflated_sharpe_ratio_decides_at_its_limit():
    probability = deflated_sharpe_of_returns(GOOD.returns, TRIALS)
    assert 0.9 < probability <= 1
    harder = [-0.3, 0.1, 0.4]
    between = deflated_sharpe_of_returns(GOOD.returns, harder)
    assert 0.01 < between < 0.99
    for limit, passes in ((between - 1e-6, True), (between + 1e-6, False)):
        verdict = judged(trials=harder, limits=GateLimits(min_deflated_sharpe=limit, max_drawdown=0.3))
        assert verdict.passed == passes


def test_trials_that_failed_count_as_tried():
    """The more were tried, the higher the bar: an undefined Sharpe ratio is a try like any other."""
    few = judged(trials=[-0.1, 0.1, 0.3]).checks[3].value
    many = judged(trials=[-0.1, 0.1, 0.3] + [math.nan] * 50).checks[3].value
    assert many < few


@pytest.mark.parametrize(
    ("change", "fails"),
    [
        ({"candidate": result(0.0, spread=0.0)}, [NAMES[0], NAMES[1], NAMES[2], NAMES[3]]),
        ({"held": result(0.0, spread=0.0)}, [NAMES[0], NAMES[2]]),
        ({"seeds": [GOOD, GOOD, result(0.0, spread=0.0)]}, [NAMES[2]]),
        ({"seeds": []}, [NAMES[2]]),
        ({"pbo": math.nan}, [NAMES[4]]),
        ({"trials": [math.nan, math.nan]}, [NAMES[3]]),
        ({"champion": result(0.0, spread=0.0)}, [CHAMPION]),
    ],
    ids=["flat candidate", "flat holder", "flat seed", "no seeds", "pbo", "no trials", "flat champion"],
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
    (reason,) = judged(champion=result(0.005)).reasons
    own, other = (sharpe_ratio(r.returns, BARS) for r in (GOOD, result(0.005)))
    assert f"{own:.4g} > {other:.4g} (annualised Sharpe ratio, sqrt(252 bars))" in reason
    told = verdict.to_dict()
    assert told["passed"] is False and told["reasons"] == verdict.reasons
    assert told["checks"][-1] == {
        "name": "trades", "value": 7, "rule": ">=", "limit": 20, "unit": "filled orders", "passed": False,
    }  # fmt: skip


@pytest.mark.parametrize(
    "limits", [{"max_pbo": 1.1}, {"min_deflated_sharpe": -0.1}, {"max_drawdown": math.nan}, {"max_drawdown": 50}]
)
def test_limits_out_of_range_are_refused(limits):
    with pytest.raises(InputError, match=f"{next(iter(limits))}=.*accepted are 0 to 1"):
        GateLimits(**limits)
