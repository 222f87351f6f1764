"""Stationary bootstrap: is one strategy better than another on the same bars, and what may a strategy earn from here?

Returns depend on their past (volatility clusters, positions last), so blocks of bars are drawn, not bars: each of
random, geometrically distributed length, wrapped around the end. Two strategies are resampled with the same blocks,
which keeps what moves both of them.

Sources: Politis and Romano, "The Stationary Bootstrap", JASA, 1994; Politis and White, "Automatic Block-Length
Selection for the Dependent Bootstrap", Econometric Reviews, 2004, corrected with Patton, 2009; the comparison of
Sharpe ratios after Ledoit and Wolf, "Robust Performance Hypothesis Testing with the Sharpe Ratio", Journal of Empirical
Finance, 2008, without their studentisation. Block length and most drawing are arch's
(https://arch.readthedocs.io/en/latest/bootstrap/bootstrap.html), which is imported when first used: it takes a second.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from drl_agents.evaluation.metrics import as_vector, sharpe_ratio, standard_deviation
from environments.errors import InputError

RESAMPLES = 999  # the smallest p-value is 1 / (RESAMPLES + 1)


@dataclass(frozen=True)
class PairedTest:
    """difference: of the annualised Sharpe ratios, first less second. p_value: one-sided, of a true difference of 0 or
    less; NaN where a Sharpe ratio is undefined or the two series are the same. block_length: mean, in bars."""

    difference: float
    p_value: float
    block_length: float


def paired_sharpe_test(
    first: ArrayLike, second: ArrayLike, bars_per_year: float, n_resamples: int = RESAMPLES, seed: int = 0
) -> PairedTest:
    """Has `first` a higher Sharpe ratio than `second`, both (T,) simple returns of the same bars?

        D = SR(first) - SR(second),   p = (1 + #{b: D_b - D >= D}) / (n_resamples + 1)

    D_b is the difference on resample b: centred on D, the resamples show how far a difference strays by chance.

    Raises:
        InputError: the series differ in length.
    """
    first, second = as_vector(first, "first"), as_vector(second, "second")
    if first.size != second.size:
        raise InputError(f"first has {first.size} bars, second {second.size}: the same bars are accepted")
    difference = sharpe_ratio(first, bars_per_year) - sharpe_ratio(second, bars_per_year)
    if math.isnan(difference) or not standard_deviation(first - second) > 0:
        return PairedTest(difference, math.nan, math.nan)
    length = block_length(first - second)
    scale = math.sqrt(bars_per_year)

    def of_resample(pair: NDArray[np.float64]) -> NDArray[np.float64]:
        mean, deviation = pair.mean(0), pair.std(0, ddof=1)
        # A resample in which one of them never moved says nothing for the first: it counts against it.
        ratio = mean / np.where(deviation > 0, deviation, math.nan) * scale
        return np.array([ratio[0] - ratio[1]])

    drawn = _bootstrap(length, np.stack([first, second], axis=1), seed).apply(of_resample, n_resamples)[:, 0]
    further = ~(drawn - difference < difference)
    return PairedTest(difference, (1 + int(further.sum())) / (n_resamples + 1), length)


def growth_paths(returns: ArrayLike, horizon: int, n_resamples: int = RESAMPLES, seed: int = 0) -> NDArray[np.float64]:
    """What may come: cumulative log returns after 1, ..., `horizon` bars, (n_resamples, horizon).

    Each path adds up a resample of the log returns ln(1 + r) of `returns` (T,).

    Raises:
        InputError: returns of -1 or less, or not finite ones; fewer than 2; a horizon below 1.
    """
    returns = as_vector(returns, "returns")
    if returns.size < 2 or not np.isfinite(returns).all() or (returns <= -1).any():
        raise InputError(f"{returns.size} returns: at least 2, finite and above -1, are accepted")
    if horizon < 1:
        raise InputError(f"horizon is {horizon}: at least 1 bar is accepted")
    logs = np.log1p(returns)
    length = block_length(logs) if standard_deviation(logs) > 0 else 1.0
    # As many bars as the horizon has are drawn, not, as arch does, as many as the sample has: a trader waits for this
    # at a bar boundary, and a year of five-minute bars would take it ten seconds.
    rng = np.random.default_rng(seed)
    drawn = rng.integers(logs.size, size=(n_resamples, horizon))  # the bar a block begins at, where one does
    goes_on = rng.random((n_resamples, horizon)) >= 1 / length
    for t in range(1, horizon):
        drawn[:, t] = np.where(goes_on[:, t], (drawn[:, t - 1] + 1) % logs.size, drawn[:, t])
    return np.cumsum(logs[drawn], axis=1)


def block_length(values: ArrayLike) -> float:
    """The mean block length, in bars, that suits the dependence of `values` (T,): at least 1, at most T / 3.

    Source: Politis and White, 2004, as corrected in 2009, for the stationary bootstrap.
    """
    from arch.bootstrap import optimal_block_length

    values = as_vector(values, "values")
    if values.size < 8:  # too few to see a dependence in
        return 1.0
    with np.errstate(all="ignore"):
        found = float(optimal_block_length(values)["stationary"].iloc[0])
    return float(np.clip(found, 1.0, values.size / 3)) if math.isfinite(found) else 1.0


def _bootstrap(length: float, values: NDArray[np.float64], seed: int):
    from arch.bootstrap import StationaryBootstrap

    return StationaryBootstrap(length, values, seed=np.random.default_rng(seed))


def resampled_bars(n_bars: int, length: float, n_resamples: int, seed: int = 0) -> Iterator[NDArray[np.intp]]:
    """Which bars each of `n_resamples` resamples of `n_bars` bars is made of: (n_bars,) indices each, in blocks of
    mean length `length`. For figures that need more than one series of the same bars."""
    draws = _bootstrap(length, np.zeros(n_bars), seed)
    for _ in range(n_resamples):
        yield draws.update_indices()
