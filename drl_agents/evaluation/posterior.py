"""Posterior analysis: how far the held-out figures of a model would stray by chance, and where they come from.

The bars of the held-out window are resampled by the stationary bootstrap, the model's and holding's together, so that
what moves both stays in both. An interval is the central share `level` of the resamples; a group's (a month, a
regime of volatility, an hour) is that of its bars in the same resamples.

    mean return of a group, annualised = mean of its bars' simple returns * bars per year

Source: Politis and Romano, "The Stationary Bootstrap", JASA, 1994; the mean length of blocks after Politis and White,
2004, of the model's returns.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from drl_agents.evaluation.bootstrap import RESAMPLES, block_length, resampled_bars
from drl_agents.evaluation.metrics import max_drawdown, sharpe_ratio, total_return
from drl_agents.evaluation.result import BacktestResult
from environments.errors import InputError

MEASURES = {
    "total_return": "fraction of starting equity",
    "sharpe": "annualised Sharpe ratio",
    "max_drawdown": "fraction below the highest equity so far",
    "turnover": "times equity per year, buys plus sells",
}
VOLATILITY_BARS = 20
REGIMES = ("calm", "usual", "wild")
Series = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A figure on the bars as they were, and the interval of its resamples; NaN where undefined."""

    value: float
    low: float
    high: float

    def to_dict(self) -> dict[str, float | None]:
        return {name: value if math.isfinite(value) else None for name, value in vars(self).items()}


@dataclass(frozen=True)
class Comparison:
    """model, holding, and the model less holding. probability: share of the resamples in which the difference is above
    zero. bars: how many the figures are of."""

    label: str
    bars: int
    model: Estimate
    holding: Estimate
    difference: Estimate
    probability: float

    def to_dict(self) -> dict[str, Any]:
        pair = {name: getattr(self, name).to_dict() for name in ("model", "holding", "difference")}
        probability = self.probability if math.isfinite(self.probability) else None
        return {"label": self.label, "bars": self.bars, **pair, "probability": probability}


@dataclass(frozen=True)
class Posterior:
    """measures: of the whole window, by the names of `MEASURES`. groups: mean annualised returns by "month",
    "volatility" and, where bars are shorter than a day, "hour" (UTC)."""

    level: float
    n_resamples: int
    block_length: float
    measures: dict[str, Comparison]
    groups: dict[str, list[Comparison]]

    def to_dict(self) -> dict[str, Any]:
        return {
            "level": self.level,
            "n_resamples": self.n_resamples,
            "block_length": self.block_length,
            "measures": {name: {"unit": MEASURES[name], **c.to_dict()} for name, c in self.measures.items()},
            "groups": {
                name: {"unit": "mean return, fraction per year", "of": [c.to_dict() for c in found]}
                for name, found in self.groups.items()
            },
        }


def posterior(
    model: BacktestResult, holding: BacktestResult, level: float = 0.95, n_resamples: int = RESAMPLES, seed: int = 0
) -> Posterior:
    """Resample a model's held-out window beside a baseline's.

    Raises:
        InputError: the two are of other bars, fewer than 2 of them, a return is not finite, or `level` is no share.
    """
    if not 0 < level < 1:
        raise InputError(f"level={level}: accepted are shares between 0 and 1")
    if not np.array_equal(model.timestamps, holding.timestamps):
        raise InputError(f"{model.name} and {holding.name} cover other bars: the same bars are accepted")
    returns = np.stack([model.returns, holding.returns])
    if returns.shape[1] < 2 or not np.isfinite(returns).all():
        raise InputError(f"{model.name}: {returns.shape[1]} returns: at least 2, all finite, are accepted")
    traded = np.stack([result.traded / result.equity[:-1] for result in (model, holding)])
    year, n_bars = model.bars_per_year, returns.shape[1]
    length = block_length(returns[0])
    groups = {name: codes for name, codes in _groupings(model, returns[1]).items() if len(codes[1]) > 1}

    def figures(bars: NDArray[np.intp]) -> tuple[Series, dict[str, Series]]:
        """(measures (4, 2), mean returns (n groups, 2) by grouping) of the model and holding on some bars."""
        own, costs = returns[:, bars], traded[:, bars]
        whole = np.array([_measures(own[i], costs[i], year) for i in (0, 1)]).T
        by = {}
        for name, (codes, labels) in groups.items():
            count = np.bincount(codes[bars], minlength=len(labels) + 1)[: len(labels)]
            sums = [np.bincount(codes[bars], weights=r, minlength=len(labels) + 1)[: len(labels)] for r in own]
            with np.errstate(invalid="ignore", divide="ignore"):
                by[name] = np.stack(sums, axis=1) / count[:, None] * year
        return whole, by

    found, found_by = figures(np.arange(n_bars))
    drawn = [figures(bars) for bars in resampled_bars(n_bars, length, n_resamples, seed)]

    def compare(label: str, bars: int, own: Series, resampled: Series) -> Comparison:
        """own (2,), resampled (R, 2)."""
        both = np.column_stack([resampled, resampled[:, 0] - resampled[:, 1]])
        known = both[np.isfinite(both).all(1)]
        edges = (1 - level) / 2, (1 + level) / 2
        low, high = np.quantile(known, edges, axis=0) if len(known) else np.full((2, 3), math.nan)
        values = [*own, own[0] - own[1]]
        estimates = [Estimate(float(v), float(a), float(b)) for v, a, b in zip(values, low, high, strict=True)]
        return Comparison(label, bars, *estimates, float((known[:, 2] > 0).mean()) if len(known) else math.nan)

    measures = {
        name: compare(name, n_bars, found[i], np.array([whole[i] for whole, _ in drawn]))
        for i, name in enumerate(MEASURES)
    }
    compared = {
        name: [
            compare(label, int((codes == k).sum()), found_by[name][k], np.array([by[name][k] for _, by in drawn]))
            for k, label in enumerate(labels)
        ]
        for name, (codes, labels) in groups.items()
    }
    return Posterior(level, n_resamples, length, measures, compared)


def _measures(returns: Series, traded: Series, bars_per_year: float) -> tuple[float, float, float, float]:
    """In the order of `MEASURES`; the drawdown is that of an account of 1 compounding the returns."""
    equity = np.concatenate([[1.0], np.cumprod(np.maximum(1 + returns, 0.0))])
    return (
        total_return(returns),
        sharpe_ratio(returns, bars_per_year),
        max_drawdown(equity),
        float(traded.mean()) * bars_per_year,
    )


def _groupings(model: BacktestResult, market: Series) -> dict[str, tuple[NDArray[np.int64], list[str]]]:
    """(code of each bar, labels) by grouping; a bar of no group has the code after the last."""
    closes = pd.DatetimeIndex(model.timestamps[1:], tz="UTC")
    months, names = pd.factorize(closes.strftime("%Y-%m"))
    groups = {"month": (months, list(names)), "volatility": (_regimes(market), list(REGIMES))}
    if np.median(np.diff(model.timestamps)) < pd.Timedelta(days=1).value:
        hours, which = pd.factorize(closes.hour, sort=True)
        groups["hour"] = hours, [f"{hour:02d}:00" for hour in which]
    return groups


def _regimes(market: Series) -> NDArray[np.int64]:
    """Thirds of the trailing volatility of holding over the 20 bars before each bar: known before the bar begins."""
    trailing = pd.Series(market).rolling(VOLATILITY_BARS).std().shift(1).to_numpy()
    known = np.isfinite(trailing)
    codes = np.full(market.size, len(REGIMES))
    if known.any():
        codes[known] = np.searchsorted(np.quantile(trailing[known], [1 / 3, 2 / 3]), trailing[known], side="right")
    return codes
