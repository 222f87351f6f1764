"""A model's figures beside holding, and its composite score with its parts, as a table for the terminal."""

from __future__ import annotations

import math

from rich.console import Group
from rich.table import Column, Table
from rich.text import Text

from drl_agents.evaluation.result import BacktestResult
from drl_agents.evaluation.score import Score

SHOWN = ("total_return", "annual_return", "sharpe", "max_drawdown", "turnover", "n_trades", "time_in_cash")
_PERCENT = ("total_return", "annual_return", "max_drawdown", "time_in_cash")


def score_table(model: BacktestResult, holding: BacktestResult, score: Score) -> Group:
    """Above, the figures of both; below, the score: green above +20, red below 0."""
    figures = Table("held-out days", *(_right(name) for name in ("model", "equal weight")), box=None, pad_edge=False)
    both = model.figures(), holding.figures()
    for name in SHOWN:
        figures.add_row(name.replace("_", " "), *(_figure(name, own[name]["value"]) for own in both))
    parts = Table("score", _right("value"), _right("points"), box=None, pad_edge=False)
    for part in score.parts:
        value = "undefined" if math.isnan(part.value) else f"{part.value:.1f}"
        parts.add_row(f"{part.weight:+.0%} {part.name}", value, f"{part.points:+.1f}")
    parts.add_row("composite score", "", Text(f"{score.total:+.1f}", style=f"bold {score.colour}"))
    note = Text("The score is a display. What selects a model is a study's objective.", style="dim")
    return Group(figures, "", parts, note)


def _right(name: str) -> Column:
    return Column(name, justify="right")


def _figure(name: str, value: float | int | str | None) -> str:
    if value is None:
        return "undefined"
    return f"{value:.2%}" if name in _PERCENT else f"{value:.4g}"
