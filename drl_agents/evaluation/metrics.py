"""Performance measures of one strategy's per-bar simple returns.

Shape rule: `returns` is (T,), the simple return of each bar, `equity` is (T+1,), the account's value at
the close before the first bar and after each bar. Every scalar measure returns a float.

NaN rule: a measure that is undefined is NaN, never 0: too few values, any value that is not finite, or a
denominator of zero. Where a measure has a further rule its docstring says so.

Everything is computed in float64. Annual figures scale by `bars_per_year`, the number of bars the market
really has in a year (252 daily bars of US stocks, 105,120 five-minute bars of a market that never closes).
"""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from environments.errors import InputError

# A constant series stored in floating point still has a standard deviation of a few roundings: relative to
# its mean, and relative to 1 because a return is a ratio of two equities near 1 minus one.
RELATIVE_NOISE = 1e-12
ABSOLUTE_NOISE = 1e-14


def as_vector(values: ArrayLike, name: str) -> NDArray[np.float64]:
    """`values` as a float64 vector; InputError naming `name` when it has another number of dimensions."""
    vector = np.asarray(values, dtype=np.float64)
    if vector.ndim != 1:
        raise InputError(f"{name} has shape {vector.shape}: one dimension, one value per bar, is accepted")
    return vector


def standard_deviation(returns: ArrayLike) -> float:
    """Sample standard deviation (ddof=1) per bar of returns (T,); exactly 0.0 for a constant series.

    A spread below 1e-12 of the mean's size (or 1e-14, a few roundings of a price ratio) is rounding noise
    and counts as constant. NaN for fewer than 2 returns or any non-finite one.
    """
    returns = as_vector(returns, "returns")
    if len(returns) < 2 or not np.isfinite(returns).all():
        return math.nan
    deviation = float(returns.std(ddof=1))
    return 0.0 if deviation < noise_floor(float(returns.mean())) else deviation


def noise_floor(mean: float) -> float:
    """The size below which a deviation around `mean` (per bar) is floating-point noise."""
    return max(RELATIVE_NOISE * abs(mean), ABSOLUTE_NOISE)


def sharpe_ratio(returns: ArrayLike, bars_per_year: float) -> float:
    """Annualised Sharpe ratio of returns (T,), without a risk-free rate.

        mean(r) / std(r, ddof=1) * sqrt(bars_per_year)

    `bars_per_year=1` gives the per-bar ratio that `overfitting` works in. NaN for fewer than 2 returns, any
    non-finite one, or zero variance.
    Source: Sharpe, "The Sharpe Ratio", Journal of Portfolio Management, 1994.
    """
    returns = as_vector(returns, "returns")
    deviation = standard_deviation(returns)
    if not deviation > 0:
        return math.nan
    return float(returns.mean()) / deviation * math.sqrt(_positive(bars_per_year))


def sortino_ratio(returns: ArrayLike, bars_per_year: float, target: float = 0.0) -> float:
    """Annualised Sortino ratio of returns (T,) against a per-bar `target` return.

        mean(r - target) / sqrt(mean(min(r - target, 0)^2)) * sqrt(bars_per_year)

    The downside deviation averages over all bars, not over the losing ones. NaN for fewer than 2 returns, any
    non-finite one, or no return below the target. Source: Sortino and Price, "Performance Measurement in a
    Downside Risk Framework", Journal of Investing, 1994.
    """
    excess = as_vector(returns, "returns") - target
    if len(excess) < 2 or not np.isfinite(excess).all():
        return math.nan
    downside = math.sqrt(float(np.mean(np.minimum(excess, 0.0) ** 2)))
    mean = float(excess.mean())
    if downside < noise_floor(mean):
        return math.nan
    return mean / downside * math.sqrt(_positive(bars_per_year))


def total_return(returns: ArrayLike) -> float:
    """Compounded return of the whole series (T,) as a fraction: prod(1 + r) - 1.

    -1.0 once a bar loses everything (r <= -1: nothing is left to compound). NaN for no returns, any
    non-finite one, or a growth beyond float64.
    """
    return _growth(as_vector(returns, "returns"), 1.0)


def annual_return(returns: ArrayLike, bars_per_year: float) -> float:
    """Geometric annual return of returns (T,) as a fraction.

        prod(1 + r)^(bars_per_year / T) - 1

    -1.0 once a bar loses everything (r <= -1). NaN for no returns, any non-finite one, or a growth beyond
    float64, which a handful of intraday bars extrapolated to a year can reach.
    """
    returns = as_vector(returns, "returns")
    return _growth(returns, _positive(bars_per_year) / max(len(returns), 1))


def _growth(returns: NDArray[np.float64], power: float) -> float:
    """prod(1 + r)^power - 1 by logarithms, so that neither many bars nor tiny returns lose digits."""
    if len(returns) == 0 or not np.isfinite(returns).all():
        return math.nan
    if (returns <= -1.0).any():
        return -1.0
    exponent = float(np.log1p(returns).sum()) * power
    return math.expm1(exponent) if exponent < math.log(np.finfo(np.float64).max) else math.nan


def annual_volatility(returns: ArrayLike, bars_per_year: float) -> float:
    """Annualised standard deviation of returns (T,): std(r, ddof=1) * sqrt(bars_per_year).

    0.0 for a constant series. NaN for fewer than 2 returns or any non-finite one.
    """
    return standard_deviation(returns) * math.sqrt(_positive(bars_per_year))


def drawdown_curve(equity: ArrayLike) -> NDArray[np.float64]:
    """Loss since the highest equity so far, (T+1,) for equity (T+1,), as a positive fraction.

        d_t = 1 - equity_t / max(equity_0 .. equity_t)

    0 at every new high, 1 at ruin, above 1 where equity is negative. All NaN when any equity is not finite
    or the first is not positive, because then there is no peak to measure from.
    """
    equity = as_vector(equity, "equity")
    if len(equity) == 0 or not np.isfinite(equity).all() or equity[0] <= 0:
        return np.full(len(equity), np.nan)
    return 1.0 - equity / np.maximum.accumulate(equity)


def max_drawdown(equity: ArrayLike) -> float:
    """Largest drawdown of equity (T+1,) as a positive fraction; 0.0 for an account that never falls.

    NaN for no equity, any non-finite value or a first value that is not positive.
    """
    curve = drawdown_curve(equity)
    return float(curve.max()) if len(curve) else math.nan


def calmar_ratio(returns: ArrayLike, bars_per_year: float) -> float:
    """Annual return over maximum drawdown of returns (T,): annual_return / max_drawdown.

    The drawdown is that of an account of 1 compounding the returns. NaN where either is NaN, and where there
    was no drawdown. Source: Young, "Calmar Ratio: A Smoother Tool", Futures, 1991, taken over the whole
    window instead of the last 36 months.
    """
    returns = as_vector(returns, "returns")
    annual = annual_return(returns, bars_per_year)
    if math.isnan(annual):
        return math.nan
    # Ruin ends the account: what a series says after losing everything is not compounded.
    equity = np.concatenate(([1.0], np.cumprod(np.maximum(1.0 + returns, 0.0))))
    drawdown = max_drawdown(equity)
    return annual / drawdown if drawdown > ABSOLUTE_NOISE else math.nan


def turnover(traded: ArrayLike, equity: ArrayLike, bars_per_year: float) -> float:
    """Turnover per year: how many times the account's value is traded, buys and sells both counted.

        mean_t(traded_t / equity_{t-1}) * bars_per_year

    traded (T,): value of all buys plus all sells filled in each bar, in account currency, not negative.
    equity (T+1,): value at the closes, so each bar's trades are weighed by the equity before that bar.
    Selling everything for something else once a year is 2.0. NaN for no bars, any non-finite value, or an
    equity before a bar that is not positive. InputError when the lengths disagree.
    """
    traded, equity = as_vector(traded, "traded"), as_vector(equity, "equity")
    if len(equity) != len(traded) + 1:
        raise InputError(
            f"equity has {len(equity)} values for {len(traded)} bars of traded: {len(traded) + 1} is accepted"
        )
    before = equity[:-1]
    finite = np.isfinite(traded).all() and np.isfinite(equity).all()
    if len(traded) == 0 or not finite or (before <= 0).any():
        return math.nan
    return float(np.mean(traded / before)) * _positive(bars_per_year)


def _positive(bars_per_year: float) -> float:
    if not (math.isfinite(bars_per_year) and bars_per_year > 0):
        raise InputError(f"bars_per_year is {bars_per_year}: a positive number of bars in a year is accepted")
    return float(bars_per_year)
