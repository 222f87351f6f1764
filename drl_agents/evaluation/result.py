"""What a back-test leaves behind: the account after every bar, and every figure computed from it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from drl_agents.evaluation import metrics
from environments.errors import InputError

# Dust under a broker's minimum order cannot be sold; an account holding less than this is out of the market.
DUST_WEIGHT = 1e-4


@dataclass(frozen=True, eq=False)
class BacktestResult:
    """One walk of one policy over T bars with A assets. Arrays are converted to the dtypes below.

    name: who traded. symbols: the A assets. timestamps (T+1,): int64 nanoseconds UTC of each close, the
    first one before any trade. equity (T+1,): float64, account value at those closes, in account currency.
    weights (T+1, A): float64, share of equity in each asset at those closes (negative when short; cash is
    the rest, 1 - sum). fees (T,): paid in each bar. traded (T,): value of buys plus sells filled in each bar,
    both in account currency. n_trades: orders filled. bars_per_year: bars in a year of this market.
    decision_lag: bars between the close an order was decided on and the bar it filled in.
    InputError naming the field when a shape does not fit, timestamps do not increase or T < 1.
    """

    name: str
    symbols: tuple[str, ...]
    timestamps: NDArray[np.int64]
    equity: NDArray[np.float64]
    weights: NDArray[np.float64]
    fees: NDArray[np.float64]
    traded: NDArray[np.float64]
    n_trades: int
    bars_per_year: float
    decision_lag: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "symbols", tuple(self.symbols))
        object.__setattr__(self, "timestamps", np.asarray(self.timestamps, dtype=np.int64))
        for field in ("equity", "weights", "fees", "traded"):
            object.__setattr__(self, field, np.asarray(getattr(self, field), dtype=np.float64))
        bars, assets = self.timestamps.size - 1, len(self.symbols)
        if bars < 1:
            raise InputError(f"{self.name}: timestamps has {bars + 1} values: at least 2 are accepted")
        accepted = {
            "timestamps": (bars + 1,),
            "equity": (bars + 1,),
            "weights": (bars + 1, assets),
            "fees": (bars,),
            "traded": (bars,),
        }
        for field, shape in accepted.items():
            given = getattr(self, field).shape
            if given != shape:
                raise InputError(f"{self.name}: {field} has shape {given}: {shape} is accepted")
        if (np.diff(self.timestamps) <= 0).any():
            raise InputError(f"{self.name}: timestamps repeat or go back: increasing ones are accepted")

    @property
    def returns(self) -> NDArray[np.float64]:
        """Simple return of each bar (T,): equity_t / equity_{t-1} - 1; not finite once equity has been 0."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return self.equity[1:] / self.equity[:-1] - 1.0

    def first(self, bars: int) -> BacktestResult:
        """The first `bars` bars of the walk; all of it where it has no more. n_trades is the whole walk's."""
        if bars >= self.returns.size:
            return self
        closes = {name: getattr(self, name)[: bars + 1] for name in ("timestamps", "equity", "weights")}
        return replace(self, **closes, fees=self.fees[:bars], traded=self.traded[:bars])

    @property
    def cash_weight(self) -> NDArray[np.float64]:
        """Share of equity in cash at each close (T+1,): 1 - sum of the asset weights; negative on margin."""
        return 1.0 - self.weights.sum(axis=1)

    @property
    def time_in_cash(self) -> float:
        """Share of the T bars that closed with assets worth less than one basis point of equity, 0 to 1.

        NaN when a weight is not finite.
        """
        gross = np.abs(self.weights[1:]).sum(axis=1)
        return float(np.mean(gross < DUST_WEIGHT)) if np.isfinite(gross).all() else math.nan

    def figures(self) -> dict[str, dict[str, float | int | str | None]]:
        """Every figure as {"value": number or None where undefined, "unit": what the number counts}.

        Formulas and the rules for undefined are in `metrics`. All are after fees: they come from equity.
        """
        returns, year = self.returns, self.bars_per_year
        bars = f"{year:.10g}"
        values = {
            "total_return": (metrics.total_return(returns), "fraction of starting equity"),
            "annual_return": (
                metrics.annual_return(returns, year),
                f"fraction per year of {bars} bars, geometric",
            ),
            "annual_volatility": (
                metrics.annual_volatility(returns, year),
                f"annualised standard deviation of simple returns, sqrt({bars} bars)",
            ),
            "sharpe": (metrics.sharpe_ratio(returns, year), f"annualised Sharpe ratio, sqrt({bars} bars)"),
            "sortino": (metrics.sortino_ratio(returns, year), f"annualised Sortino ratio, sqrt({bars} bars)"),
            "calmar": (metrics.calmar_ratio(returns, year), "annual return over maximum drawdown"),
            "max_drawdown": (metrics.max_drawdown(self.equity), "fraction below the highest equity so far"),
            "turnover": (
                metrics.turnover(self.traded, self.equity, year),
                f"times equity per year of {bars} bars, buys plus sells",
            ),
            "fees": (float(self.fees.sum()), "account currency"),
            "n_trades": (int(self.n_trades), "orders filled"),
            "time_in_cash": (self.time_in_cash, "fraction of bars closed without a position"),
            "bars": (len(returns), "bars"),
        }
        return {
            name: {"value": value if math.isfinite(value) else None, "unit": unit}
            for name, (value, unit) in values.items()
        }
