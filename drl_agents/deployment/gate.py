"""The gate: which model may be deployed. Judged on bars its study never used, after all costs.

Every check has a number and a limit, in the objective's own unit where it is about return, and an undefined number
fails. All must pass.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from drl_agents.evaluation.metrics import max_drawdown, sharpe_ratio, total_return
from drl_agents.evaluation.overfitting import deflated_sharpe_of_returns
from drl_agents.evaluation.result import BacktestResult
from environments.errors import InputError


@dataclass(frozen=True)
class GateLimits:
    """min_deflated_sharpe: probability that the true Sharpe ratio is above zero, given how many were tried.
    max_pbo: probability of back-test overfitting. max_drawdown: fraction of the highest equity so far.
    min_trades: filled orders on the held-out bars."""

    min_deflated_sharpe: float = 0.95
    max_pbo: float = 0.5
    max_drawdown: float = 0.5
    min_trades: int = 20

    def __post_init__(self) -> None:
        for name in ("min_deflated_sharpe", "max_pbo", "max_drawdown"):
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


def judge(
    candidate: BacktestResult,
    seeds: Sequence[BacktestResult],
    equal_weight: BacktestResult,
    trial_sharpes: Sequence[float],
    pbo: float,
    champion: BacktestResult | None,
    limits: GateLimits,
) -> Verdict:
    """Judge a candidate on the held-out bars.

    Args:
        candidate: the model that would be deployed, back-tested on the held-out bars.
        seeds: the same configuration trained with several seeds, the candidate's among them, on the same bars.
        equal_weight: the equal-weight holder on the same bars.
        trial_sharpes: per-bar (not annualised) out-of-sample Sharpe ratio of every trial of the study, NaN where
            undefined.
        pbo: of all trials of the study.
        champion: the model deployed now, on the same bars; None where there is none.
    """
    unit = f"annualised Sharpe ratio, sqrt({candidate.bars_per_year:.10g} bars)"

    def sharpe(result: BacktestResult) -> float:
        return sharpe_ratio(result.returns, result.bars_per_year)

    held = sharpe(equal_weight)
    own = sharpe(candidate)
    deflated = deflated_sharpe_of_returns(candidate.returns, trial_sharpes)
    checks = [
        Check("Sharpe ratio against holding equal weight", own, ">", held, unit),
        Check("total return against holding cash", total_return(candidate.returns), ">", 0.0, "fraction"),
        Check("median Sharpe ratio over seeds against equal weight", _median(seeds, sharpe), ">", held, unit),
        Check("deflated Sharpe ratio", deflated, ">=", limits.min_deflated_sharpe, "probability"),
        Check("probability of back-test overfitting", pbo, "<=", limits.max_pbo, "probability"),
        Check("maximum drawdown", max_drawdown(candidate.equity), "<=", limits.max_drawdown, "fraction"),
        Check("trades", candidate.n_trades, ">=", limits.min_trades, "filled orders"),
    ]
    if champion is not None:
        checks.append(Check("Sharpe ratio against the champion", own, ">", sharpe(champion), unit))
    return Verdict(tuple(checks))


def _median(results: Sequence[BacktestResult], measure: Any) -> float:
    values = [measure(result) for result in results]
    return float(np.median(values)) if values and not any(math.isnan(v) for v in values) else math.nan
