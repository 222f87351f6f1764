"""How much of a good back-test is luck: probabilistic and deflated Sharpe ratio, probability of overfitting.

Sharpe ratios here are *per bar* (mean / std, not annualised): the standard error of a Sharpe ratio depends on
how many bars it was measured on, so annualising first gives wrong probabilities. What cannot be computed is
NaN, never 0; `PBOResult.reason` says why.

Sources: Bailey and Lopez de Prado, "The Sharpe Ratio Efficient Frontier", Journal of Risk, 2012 [SREF];
Bailey and Lopez de Prado, "The Deflated Sharpe Ratio", Journal of Portfolio Management, 2014 [DSR];
Bailey, Borwein, Lopez de Prado and Zhu, "The Probability of Backtest Overfitting", SSRN 2326253, 2015, and
Journal of Computational Finance, 2017 [PBO].
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, combinations, islice
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

from drl_agents.evaluation.metrics import ABSOLUTE_NOISE, as_vector, sharpe_ratio
from environments.errors import InputError

EULER_MASCHERONI = 0.57721566490153286
MAX_BLOCKS = 20  # C(20, 10) = 184,756 combinations; 22 blocks are 705,432 and say nothing more
COMBINATIONS_AT_ONCE = 1024  # bounds memory: 1024 x 500 trials of float64 are 4 MB per array
# Sums of squares lose about 1e-16 of their size per operation; a variance this small against the mean square
# around the full-sample mean is that loss, not a spread.
CANCELLATION = 1e-13


@dataclass(frozen=True)
class SharpeMoments:
    """What the Sharpe ratio's sampling error depends on, per bar.

    sharpe: mean / std (ddof=1). n_observations: bars. skewness: third standardised moment (0 for a normal).
    kurtosis: fourth standardised moment, not the excess (3 for a normal).
    """

    sharpe: float
    n_observations: int
    skewness: float = 0.0
    kurtosis: float = 3.0


def sharpe_moments(returns: ArrayLike) -> SharpeMoments:
    """Moments of per-bar simple returns (T,); skewness and kurtosis are the sample's own (ddof=0).

    All NaN, with the number of returns kept, where the Sharpe ratio is undefined.
    """
    returns = as_vector(returns, "returns")
    sharpe = sharpe_ratio(returns, bars_per_year=1.0)
    if math.isnan(sharpe):
        return SharpeMoments(math.nan, len(returns), math.nan, math.nan)
    z = (returns - returns.mean()) / returns.std()
    return SharpeMoments(sharpe, len(returns), float(np.mean(z**3)), float(np.mean(z**4)))


def probabilistic_sharpe_ratio(returns: ArrayLike | SharpeMoments, benchmark: float = 0.0) -> float:
    """Probability that the true per-bar Sharpe ratio exceeds the per-bar `benchmark`.

        PSR = Phi( (SR - SR*) sqrt(T - 1) / sqrt(1 - g3 SR + (g4 - 1)/4 SR^2) )

    Takes per-bar returns (T,) or their moments; g3 is the skewness, g4 the kurtosis. NaN where a moment is
    undefined, T < 2 or the moments leave no sampling variance. Source: [SREF].
    """
    moments = returns if isinstance(returns, SharpeMoments) else sharpe_moments(returns)
    spread = _sampling_variance(moments.sharpe, moments.skewness, moments.kurtosis)
    if moments.n_observations < 2 or math.isnan(benchmark) or math.isnan(spread):
        return math.nan
    z = (moments.sharpe - benchmark) * math.sqrt((moments.n_observations - 1) / spread)
    return NormalDist().cdf(z)


def minimum_track_record_length(
    sharpe: float,
    skewness: float = 0.0,
    kurtosis: float = 3.0,
    benchmark: float = 0.0,
    confidence: float = 0.95,
) -> float:
    """Bars needed before PSR(benchmark) reaches `confidence`, all Sharpe ratios per bar.

        MinTRL = 1 + (1 - g3 SR + (g4 - 1)/4 SR^2) (Phi^-1(confidence) / (SR - SR*))^2

    Infinite when the Sharpe ratio does not exceed the benchmark: no record is long enough. NaN for NaN
    moments. InputError unless confidence is between 0.5 and 1. Source: [SREF].
    """
    if not 0.5 < confidence < 1.0:
        raise InputError(f"confidence is {confidence}: a probability above 0.5 and below 1 is accepted")
    spread = _sampling_variance(sharpe, skewness, kurtosis)
    if math.isnan(spread) or math.isnan(benchmark):
        return math.nan
    if sharpe <= benchmark:
        return math.inf
    return 1.0 + spread * (NormalDist().inv_cdf(confidence) / (sharpe - benchmark)) ** 2


def _sampling_variance(sharpe: float, skewness: float, kurtosis: float) -> float:
    """T times the variance of the estimated Sharpe ratio; NaN where the moments allow none."""
    variance = 1.0 - skewness * sharpe + (kurtosis - 1.0) / 4.0 * sharpe**2
    return variance if variance > 0 and math.isfinite(variance) else math.nan


def expected_maximum_sharpe(variance_of_sharpes: float, n_trials: float) -> float:
    """Per-bar Sharpe ratio the best of `n_trials` skill-less trials is expected to show.

        SR0 = sqrt(V) ((1 - gamma) Phi^-1(1 - 1/N) + gamma Phi^-1(1 - 1/(N e)))

    V: variance of the trials' per-bar Sharpe ratios. N: independent trials (not necessarily whole: correlated
    trials count as fewer). gamma: Euler-Mascheroni. The approximation is for large N and turns negative just
    above N = 1, where the true value is 0, so it is not let below 0. NaN for a NaN or negative variance.
    InputError for n_trials < 1. Source: [DSR].
    """
    if not (math.isfinite(n_trials) and n_trials >= 1):
        raise InputError(f"n_trials is {n_trials}: a number of at least 1 is accepted")
    if n_trials == 1:  # one trial is not a selection, whatever the variance of Sharpe ratios is
        return 0.0
    if not (math.isfinite(variance_of_sharpes) and variance_of_sharpes >= 0):
        return math.nan
    quantile = NormalDist().inv_cdf
    first, second = quantile(1.0 - 1.0 / n_trials), quantile(1.0 - 1.0 / (n_trials * math.e))
    maximum = (1.0 - EULER_MASCHERONI) * first + EULER_MASCHERONI * second
    return math.sqrt(variance_of_sharpes) * max(maximum, 0.0)


def deflated_sharpe_ratio(
    sharpe: float,
    n_observations: int,
    skewness: float,
    kurtosis: float,
    sharpe_variance: float,
    n_trials: float,
) -> float:
    """Probability that the selected trial's true Sharpe ratio is above 0, given it was the best of n_trials.

        DSR = PSR(SR0),  SR0 = expected_maximum_sharpe(sharpe_variance, n_trials)

    Everything per bar; `kurtosis` is 3 for a normal. NaN where PSR or SR0 is. Source: [DSR].
    """
    moments = SharpeMoments(sharpe, n_observations, skewness, kurtosis)
    return probabilistic_sharpe_ratio(moments, expected_maximum_sharpe(sharpe_variance, n_trials))


def deflated_sharpe_of_returns(returns: ArrayLike, trial_sharpes: ArrayLike, n_trials: float | None = None) -> float:
    """Deflated Sharpe ratio of the selected trial's per-bar returns (T,), given every trial's per-bar Sharpe.

    trial_sharpes (N,): all trials that were looked at, the selected one included. One that is not finite (a
    failed or flat trial) cannot enter the variance but was still tried, so it counts. `n_trials` replaces the
    count where an estimate of the independent trials exists. NaN with more than one trial but fewer than two
    finite Sharpe ratios, and wherever the Sharpe ratio of `returns` is undefined.
    """
    sharpes = as_vector(trial_sharpes, "trial_sharpes")
    finite = sharpes[np.isfinite(sharpes)]
    variance = float(finite.var(ddof=1)) if len(finite) >= 2 else math.nan
    benchmark = expected_maximum_sharpe(variance, len(sharpes) if n_trials is None else n_trials)
    return probabilistic_sharpe_ratio(returns, benchmark)


@dataclass(frozen=True)
class PBOResult:
    """What combinatorially symmetric cross-validation says about picking the best of K trials.

    pbo: share of combinations whose in-sample best ranks at or below the median out of sample, or NaN.
    logits: (n_combinations,) ln(omega / (1 - omega)) of that rank; positive is above the median.
    n_combinations: combinations that could be judged. performance_degradation: least-squares slope of the
    selected trial's out-of-sample per-bar Sharpe on its in-sample one. probability_of_loss: share of
    combinations in which the selected trial's out-of-sample Sharpe is negative.
    n_trials: trials compared. n_excluded: trials left out (a non-finite return, or constant returns).
    n_undefined: combinations left out, because a flat half left nothing to select or to rank against.
    reason: why pbo is NaN, or None.
    """

    pbo: float
    logits: NDArray[np.float64]
    n_combinations: int
    performance_degradation: float
    probability_of_loss: float
    n_trials: int
    n_excluded: int
    n_undefined: int
    reason: str | None


def probability_of_backtest_overfitting(returns: ArrayLike, n_blocks: int = 16) -> PBOResult:
    """Probability of back-test overfitting of K trials' per-bar returns (T, K), by CSCV.

    The T bars are cut into `n_blocks` consecutive blocks (sizes differ by at most one bar). Each choice of
    half of them is in-sample (IS), the other half out-of-sample (OOS). The trial with the best IS Sharpe
    ratio gets its OOS rank among the K trials (1 worst, ties the average rank), and

        omega = rank / (K + 1),   logit = ln(omega / (1 - omega)),   PBO = share of logits <= 0.

    Only each block's (n, sum r, sum r^2) is kept: a half's Sharpe ratio is a sum of blocks, so the cost is
    two passes over the bars plus C(n_blocks, n_blocks / 2) x K numbers. Of equal IS bests the first is
    selected. A trial that is flat over one half has no Sharpe ratio there: it is neither selected nor ranked
    there. A trial with a non-finite return, or with constant returns, is left out and counted.
    NaN with a reason when fewer than two trials are left or a block has fewer than 2 bars. InputError when
    returns is not (T, K) or n_blocks is odd or outside 2 .. 20. Source: [PBO].
    """
    returns = np.asarray(returns)
    if returns.ndim != 2:
        raise InputError(f"returns has shape {returns.shape}: (bars, trials) is accepted")
    if n_blocks % 2 or not 2 <= n_blocks <= MAX_BLOCKS:
        raise InputError(f"n_blocks is {n_blocks}: an even number from 2 to {MAX_BLOCKS} is accepted")
    n_bars, n_columns = returns.shape
    if n_bars < 2 * n_blocks:
        reason = f"{n_bars} bars are too few for {n_blocks} blocks of at least 2 bars"
        return _undefined(reason, n_columns, 0, 0)
    sums = _block_sums(returns, n_blocks)
    n_trials = sums.mean.shape[0]
    n_excluded = n_columns - n_trials
    if n_trials < 2:
        reason = f"{n_trials} of {n_columns} trials can be compared: at least 2 are needed"
        return _undefined(reason, n_trials, n_excluded, 0)

    logits, selected_in, selected_out, n_undefined = [], [], [], 0
    choices = combinations(range(n_blocks), n_blocks // 2)
    for chosen in _membership(choices, n_blocks):
        inside, outside = _half_sharpes(sums, chosen), _half_sharpes(sums, 1.0 - chosen)
        best, best_in = _select(inside)
        best_out = outside[np.arange(len(best)), best]
        rank, ranked = _average_rank(outside, best_out)
        valid = np.isfinite(best_in) & np.isfinite(best_out) & (ranked >= 2)
        omega = rank[valid] / (ranked[valid] + 1.0)
        logits.append(np.log(omega / (1.0 - omega)))
        selected_in.append(best_in[valid])
        selected_out.append(best_out[valid])
        n_undefined += int((~valid).sum())
    logit, x, y = (np.concatenate(parts) for parts in (logits, selected_in, selected_out))
    if len(logit) == 0:
        reason = "in every combination a flat half leaves nothing to select or fewer than 2 trials to rank"
        return _undefined(reason, n_trials, n_excluded, n_undefined)
    return PBOResult(
        pbo=float(np.mean(logit <= 0.0)),
        logits=logit,
        n_combinations=len(logit),
        performance_degradation=_slope(x, y),
        probability_of_loss=float(np.mean(y < 0.0)),
        n_trials=n_trials,
        n_excluded=n_excluded,
        n_undefined=n_undefined,
        reason=None,
    )


@dataclass(frozen=True)
class _BlockSums:
    """Per block of bars: count (S,), sum and sum of squares (S, K) of returns less each trial's mean (K,)."""

    count: NDArray[np.float64]
    total: NDArray[np.float64]
    square: NDArray[np.float64]
    mean: NDArray[np.float64]


def _block_sums(returns: NDArray, n_blocks: int) -> _BlockSums:
    """Two passes, block by block, so that float32 or memory-mapped returns are never copied whole."""
    bounds = [block * len(returns) // n_blocks for block in range(n_blocks + 1)]
    blocks = [slice(first, last) for first, last in zip(bounds[:-1], bounds[1:], strict=True)]
    count = np.array([block.stop - block.start for block in blocks], dtype=np.float64)
    with np.errstate(invalid="ignore"):  # inf - inf: such a column is left out just below
        total = np.stack([returns[block].sum(axis=0, dtype=np.float64) for block in blocks])
        mean = total.sum(axis=0) / len(returns)
    kept = np.isfinite(mean)  # any NaN or infinite return makes its column's sum non-finite
    sums, squares = [], []
    for block in blocks:
        # Squares of centred returns: the variance of a small spread on a large mean keeps its digits.
        centred = returns[block][:, kept] - mean[kept]
        sums.append(centred.sum(axis=0))
        squares.append(np.einsum("tk,tk->k", centred, centred))
    total, square, mean = np.stack(sums), np.stack(squares), mean[kept]
    varies = square.sum(axis=0) / len(returns) > np.maximum(1e-12 * np.abs(mean), ABSOLUTE_NOISE) ** 2
    return _BlockSums(count, total[:, varies], square[:, varies], mean[varies])


def _membership(choices: Iterator[tuple[int, ...]], n_blocks: int) -> Iterator[NDArray[np.float64]]:
    """0/1 matrices (combinations, n_blocks), COMBINATIONS_AT_ONCE rows at a time."""
    while batch := list(islice(choices, COMBINATIONS_AT_ONCE)):
        chosen = np.zeros((len(batch), n_blocks))
        columns = np.fromiter(chain.from_iterable(batch), dtype=np.intp).reshape(len(batch), -1)
        np.put_along_axis(chosen, columns, 1.0, axis=1)
        yield chosen


def _half_sharpes(sums: _BlockSums, chosen: NDArray[np.float64]) -> NDArray[np.float64]:
    """Per-bar Sharpe ratios (combinations, K) over the chosen blocks; NaN where a trial is flat there."""
    count = (chosen @ sums.count)[:, None]
    offset = (chosen @ sums.total) / count  # mean over the half, less the full-sample mean
    square = (chosen @ sums.square) / count
    spread = square - offset**2
    variance = spread * (count / (count - 1.0))
    flat = spread <= CANCELLATION * square + ABSOLUTE_NOISE**2
    return (sums.mean + offset) / np.sqrt(np.where(flat, np.nan, variance))


def _select(sharpes: NDArray[np.float64]) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """The first column within rounding of each row's best, and the best; NaN where no column is defined."""
    comparable = np.where(np.isnan(sharpes), -np.inf, sharpes)
    best = comparable.max(axis=1)
    column = np.argmax(comparable >= (best - _tolerance(best))[:, None], axis=1)
    return column, np.where(np.isfinite(best), best, np.nan)


def _average_rank(
    sharpes: NDArray[np.float64], value: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Rank of `value` in its row (1 worst; equals share the average) and how many of the row are defined."""
    difference = sharpes - value[:, None]
    tolerance = _tolerance(value)[:, None]
    below = (difference < -tolerance).sum(axis=1)
    equal = (np.abs(difference) <= tolerance).sum(axis=1)  # counts the value itself
    return below + (equal + 1.0) / 2.0, (~np.isnan(sharpes)).sum(axis=1)


def _tolerance(value: NDArray[np.float64]) -> NDArray[np.float64]:
    """Identical trials may differ in the last digits: a matrix product may round columns differently."""
    return 1e-12 * np.maximum(np.abs(np.where(np.isfinite(value), value, 0.0)), 1.0)


def _slope(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """Least-squares slope of y on x; NaN when x does not vary."""
    centred = x - x.mean()
    square = float(centred @ centred)
    return float(centred @ y) / square if square > 1e-24 * max(float(x @ x), 1e-300) else math.nan


def _undefined(reason: str, n_trials: int, n_excluded: int, n_undefined: int) -> PBOResult:
    return PBOResult(math.nan, np.empty(0), 0, math.nan, math.nan, n_trials, n_excluded, n_undefined, reason)
