"""Stress test: the same policy over the same bars, filled later and dearer than it was trained for.

What a back-test earns with its own costs says little if a bar's delay or a few basis points more would take it away.
Every combination of decision lag, slippage and commission is walked from the first bar to the last; all other costs and
rules stay what they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drl_agents.evaluation.backtest import Decide, backtest
from drl_agents.evaluation.result import BacktestResult
from environments.errors import InputError
from environments.market_env import MarketVecEnv

MakeEnv = Callable[..., MarketVecEnv]


@dataclass(frozen=True)
class StressGrid:
    """What is varied, each in rising order.

    decision_lags: bars from decision to fill. slippages_bps: upper end of the uniform slippage draw, basis points of
    traded value. commission_factors: multiples of the environment's own commission.
    """

    decision_lags: tuple[int, ...] = (1, 2, 3)
    slippages_bps: tuple[float, ...] = (0.0, 5.0, 10.0)
    commission_factors: tuple[float, ...] = (0.5, 1.0, 2.0)

    def __post_init__(self) -> None:
        for name, values in asdict(self).items():
            least = 1 if name == "decision_lags" else 0
            rising = all(a < b for a, b in zip(values, values[1:], strict=False))
            if not values or not rising or not all(math.isfinite(v) and v >= least for v in values):
                raise InputError(f"stress {name}={values}: rising numbers of at least {least} are accepted")


@dataclass(frozen=True, eq=False)
class StressCell:
    """One walk. figures: those of `BacktestResult`, None where undefined. commission_bps: what was charged."""

    decision_lag: int
    slippage_bps: float
    commission_factor: float
    commission_bps: float
    figures: dict[str, dict[str, Any]]


@dataclass(frozen=True, eq=False)
class StressResult:
    """All walks of a grid: lags slowest, then slippages, then commissions. commission_bps: the environment's own.

    own: (decision lag, slippage in bps) the environment has without any stress.
    """

    grid: StressGrid
    commission_bps: float
    own: tuple[int, float]
    cells: tuple[StressCell, ...]

    def table(self, figure: str) -> NDArray[np.float64]:
        """(lags, slippages, commissions) values of one figure, NaN where undefined.

        Raises:
            InputError: no such figure; the message lists them.
        """
        known = self.cells[0].figures
        if figure not in known:
            raise InputError(f"stress figure {figure!r}: accepted are {', '.join(known)}")
        values = [cell.figures[figure]["value"] for cell in self.cells]
        grid = self.grid
        shape = (len(grid.decision_lags), len(grid.slippages_bps), len(grid.commission_factors))
        return np.array([math.nan if v is None else v for v in values], dtype=np.float64).reshape(shape)

    def worst(self) -> StressCell:
        """The cell with the lowest total return; an undefined one is worse than any."""
        returns = self.table("total_return").ravel()
        return self.cells[int(np.argmin(np.where(np.isfinite(returns), returns, -np.inf)))]

    def to_dict(self) -> dict[str, Any]:
        """JSON-able: the grid, each cell with its figures and their units, and the share of cells that gained."""
        returns = self.table("total_return")
        return {
            "grid": {name: list(values) for name, values in asdict(self.grid).items()},
            "own": {
                "decision_lag": {"value": self.own[0], "unit": "bars from decision to fill"},
                "slippage": {"value": self.own[1], "unit": "bps of traded value, upper end of a uniform draw"},
                "commission": {"value": self.commission_bps, "unit": "bps of traded value"},
            },
            "cells_with_a_gain": {"value": float(np.mean(returns > 0)), "unit": "fraction of cells"},
            "worst": _place(self.worst()),
            "cells": [{**_place(cell), "figures": cell.figures} for cell in self.cells],
        }


def stress(make_env: MakeEnv, decide: Decide, grid: StressGrid | None = None) -> StressResult:
    """Walk every cell of `grid` (default: `StressGrid()`).

    Args:
        make_env: makes an environment of one that walks a single window (`random_start=False`,
            `episode_length=None`); called without arguments for the environment's own costs, and with decision_lag,
            slippage_bps and commission_bps for each cell.
        decide: dense observations (1, 1, D) -> actions (1, 1, ...).

    Raises:
        InputError: make_env gave more than one environment, or refuses an option.
    """
    grid = grid or StressGrid()
    own = make_env()
    if own.n_envs != 1:
        raise InputError(f"stress walks one window: 1 environment is accepted, {own.n_envs} were made")
    commission = own.frictions.commission_bps
    walked: dict[tuple[int, float, float], BacktestResult] = {}
    cells = []
    for lag, slippage, factor in product(grid.decision_lags, grid.slippages_bps, grid.commission_factors):
        place = (lag, slippage, factor * commission)
        if place not in walked:  # multiples of no commission are one and the same walk
            env = make_env(decision_lag=lag, slippage_bps=slippage, commission_bps=place[2])
            walked[place] = backtest(env, decide, [f"lag {lag}, slippage {slippage:g} bps, commission x{factor:g}"])[0]
        cells.append(StressCell(lag, slippage, factor, place[2], walked[place].figures()))
    return StressResult(grid, commission, (own.decision_lag, own.frictions.slippage_bps), tuple(cells))


def stress_lines(result: StressResult, figure: str = "sharpe") -> list[str]:
    """The values of one figure as lines of a table: a row per lag and commission, a column per slippage."""
    values, grid = result.table(figure), result.grid
    unit = result.cells[0].figures[figure]["unit"]
    heads = [f"slippage {s:g} bps" for s in grid.slippages_bps]
    lines = [f"{figure}, {unit}", _row("lag", "commission", heads)]
    for i, lag in enumerate(grid.decision_lags):
        for k, factor in enumerate(grid.commission_factors):
            charged = f"x{factor:g} = {factor * result.commission_bps:g} bps"
            shown = ["undefined" if math.isnan(v) else format(v, ".4g") for v in values[i, :, k]]
            lines.append(_row(str(lag), charged, shown))
    return lines


def _row(lag: str, commission: str, values: Sequence[str]) -> str:
    return f"{lag:>3}  {commission:>16}" + "".join(f"  {value:>16}" for value in values)


def _place(cell: StressCell) -> dict[str, float]:
    return {
        "decision_lag": cell.decision_lag,
        "slippage_bps": cell.slippage_bps,
        "commission_factor": cell.commission_factor,
        "commission_bps": cell.commission_bps,
    }
