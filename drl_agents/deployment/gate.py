"""The gate: which model may be deployed. Judged on bars its study never used, after all costs.

Every check has a number and a limit, in the objective's own unit where it is about return, and an undefined number
fails. All must pass. `deployment.calibration` measures how often noise passes all of them, and how often an edge does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from drl_agents.evaluation.bootstrap import paired_sharpe_test
from drl_agents.evaluation.metrics import max_drawdown, sharpe_ratio, total_return
from drl_agents.evaluation.overfitting import (
    SharpeMoments,
    expected_maximum_sharpe,
    probabilistic_sharpe_ratio,
    sharpe_moments,
)
from drl_agents.evaluation.result import BacktestResult
from environments.errors import InputError


@dataclass(frozen=True)
class GateLimits:
    """min_deflated_sharpe: probability that the true Sharpe ratio is above zero, given how many were tried.
    max_p_value: of a Sharpe ratio no higher than the champion's, or than equal weight's where there is no champion.
    max_pbo: probability of back-test overfitting. max_drawdown: fraction of the highest equity so far.
    min_trades: filled orders on the held-out bars."""

    min_deflated_sharpe: float = 0.95
    max_p_value: float = 0.05
    max_pbo: float = 0.5
    max_drawdown: float = 0.5
    min_trades: int = 20

    def __post_init__(self) -> None:
        for name in ("min_deflated_sharpe", "max_p_value", "max_pbo", "max_drawdown"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name}={getattr(self, name)}: accepted are 0 to 1")


@dataclass(frozen=True)
class Check:
    """One comparison. rule: ">=", "<=" or ">"; a value or limit that is NaN fails."""

    name: str
    value: float
    rule: str
    limit: float
    unit: str

    @property
    def passed(self) -> bool:
        if math.isnan(self.value) or math.isnan(self.limit):
            return False
        return {">=": self.value >= self.limit, "<=": self.value <= self.limit, ">": self.value > self.limit}[self.rule]

    def __str__(self) -> str:
        verdict = "passed" if self.passed else "FAILED"
        return f"{self.name} {self.value:.4g} {self.rule} {self.limit:.4g} ({self.unit}): {verdict}"


@dataclass(frozen=True)
class Verdict:
    """All checks of one candidate."""

    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        return all(check.passed for check in self.checks)

    @property
    def reasons(self) -> list[str]:
        """What failed, in numbers."""
        return [str(check) for check in self.checks if not check.passed]

    def to_dict(self) -> dict[str, Any]:
        checks = [{**asdict(c), "passed": c.passed} for c in self.checks]
        return {"passed": self.passed, "reasons": self.reasons, "checks": checks}


@dataclass(frozen=True)
class Evidence:
    """What a candidate is judged on; all back-tests are of the same held-out bars.

    candidate: the model that would be deployed. late: the same model, its orders one bar later still. seeds: the
    same configuration trained with several seeds, the candidate's among them. holder, late_holder: equal weight, as
    late as candidate and `late`. champion: the model deployed now; None where there is none. trial_sharpes: per-bar
    (not annualised) out-of-sample Sharpe ratio of every trial of the study, NaN where undefined, each of search_bars
    bars. pbo: of all trials of the study; None where nothing was searched. looks: models judged on these bars so far,
    this one included: the bootstrap's p-value must be that many times smaller (Bonferroni; Dunn, "Multiple Comparisons
    Among Means", JASA, 1961).
    """

    candidate: BacktestResult
    late: BacktestResult
    seeds: Sequence[BacktestResult]
    holder: BacktestResult
    late_holder: BacktestResult
    champion: BacktestResult | None
    trial_sharpes: Sequence[float]
    search_bars: int
    pbo: float | None
    looks: int = 1


def judge(evidence: Evidence, limits: GateLimits) -> Verdict:
    """Judge a candidate on the held-out bars."""
    own, late, champion = evidence.candidate, evidence.late, evidence.champion
    year = own.bars_per_year
    unit = f"annualised Sharpe ratio, sqrt({year:.10g} bars)"

    def sharpe(result: BacktestResult) -> float:
        return sharpe_ratio(result.returns, result.bars_per_year)

    held, lag = sharpe(evidence.holder), late.decision_lag
    rival, name = (evidence.holder, "equal weight") if champion is None else (champion, "the champion")
    paired = paired_sharpe_test(*_aligned(own, rival), year)
    deflated = deflated_sharpe(own.returns, evidence.trial_sharpes, evidence.search_bars)
    overfitting = (
        []
        if evidence.pbo is None
        else [Check("probability of back-test overfitting", evidence.pbo, "<=", limits.max_pbo, "probability")]
    )
    checks = [
        Check("Sharpe ratio against holding equal weight", sharpe(own), ">", held, unit),
        Check("total return against holding cash", total_return(own.returns), ">", 0.0, "fraction"),
        Check("median Sharpe ratio over seeds against equal weight", _median(evidence.seeds, sharpe), ">", held,
              unit if len(evidence.seeds) > 1 else f"{unit}; of one seed, the candidate's own"),
        Check(f"Sharpe ratio at decision lag {lag} against equal weight", sharpe(late), ">",
              sharpe(evidence.late_holder), unit),
        Check(f"total return at decision lag {lag}", total_return(late.returns), ">", 0.0, "fraction"),
        Check("deflated Sharpe ratio", deflated, ">=", limits.min_deflated_sharpe, "probability"),
        Check(f"paired bootstrap of the Sharpe ratio against {name}", paired.p_value, "<=",
              limits.max_p_value / evidence.looks,
              f"p-value of {paired.difference:+.3g} annualised, look {evidence.looks} at these bars"),
        *overfitting,
        Check("maximum drawdown", max_drawdown(own.equity), "<=", limits.max_drawdown, "fraction"),
        Check("trades", own.n_trades, ">=", limits.min_trades, "filled orders"),
    ]  # fmt: skip
    if champion is not None:
        checks.append(Check("Sharpe ratio against the champion", sharpe(own), ">", sharpe(champion), unit))
    return Verdict(tuple(checks))


def deflated_sharpe(returns: np.ndarray, trial_sharpes: Sequence[float], search_bars: int) -> float:
    """Probability that the true per-bar Sharpe ratio of `returns` (T,) is above what the best of N trials has by luck.

        min(PSR(SR0), PSR of normal returns(SR0)),   SR0 = expected_maximum_sharpe(max(V, 1 / search_bars), N)

    V is the variance of the N trials' Sharpe ratios, each of `search_bars` bars, those that are not finite left out of
    it but counted. A handful of trials hardly tells V, and alike ones make it vanish: trials without skill that have
    nothing in common differ by sampling alone, V = 1 / search_bars (Lo, "The Statistics of Sharpe Ratios", FAJ, 2002,
    at a true ratio of 0), so no less is taken. Nor is the record taken for more certain than one of normal returns: a
    few lucky bars among many idle ones are skewed to the right, for which PSR's large-sample variance is far too small.
    NaN with fewer than two finite Sharpe ratios among several, and where that of `returns` is undefined.
    Source: Bailey and Lopez de Prado, "The Deflated Sharpe Ratio", Journal of Portfolio Management, 2014.
    """
    sharpes = np.asarray(trial_sharpes, dtype=np.float64)
    finite = sharpes[np.isfinite(sharpes)]
    if sharpes.size == 0 or search_bars < 1 or (sharpes.size > 1 and finite.size < 2):
        return math.nan
    variance = max(float(finite.var(ddof=1)), 1 / search_bars) if finite.size > 1 else 1 / search_bars
    benchmark = expected_maximum_sharpe(variance, sharpes.size)
    own = sharpe_moments(returns)
    normal = SharpeMoments(own.sharpe, own.n_observations)
    return min(probabilistic_sharpe_ratio(moments, benchmark) for moments in (own, normal))


def _aligned(first: BacktestResult, second: BacktestResult) -> tuple[np.ndarray, np.ndarray]:
    """Returns of both on the same bars: a walk that ended in ruin earns nothing more."""
    bars = max(first.returns.size, second.returns.size)
    return tuple(np.pad(result.returns, (0, bars - result.returns.size)) for result in (first, second))


def _median(results: Sequence[BacktestResult], measure: Any) -> float:
    values = [measure(result) for result in results]
    return float(np.median(values)) if values and not any(math.isnan(v) for v in values) else math.nan
