"""The posterior analysis as a picture, beside its JSON."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import TYPE_CHECKING

from drl_agents.evaluation.posterior import MEASURES, Comparison, Posterior
from drl_agents.evaluation.report import (
    ALARM,
    BASELINE_COLOURS,
    GRID,
    INK,
    MODEL_COLOUR,
    MUTED,
    ReportPaths,
)
from environments.files import write_atomic, write_json

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_TITLES = {
    "total_return": "Return",
    "sharpe": "Sharpe ratio",
    "max_drawdown": "Maximum drawdown",
    "turnover": "Turnover",
}
_PERCENT = ("total_return", "max_drawdown")
_GROUPS = {"month": "month", "volatility": "volatility of the 20 bars before", "hour": "hour (UTC)"}
_HOLDING = BASELINE_COLOURS[0]
_DRAWN = (("model", MODEL_COLOUR, -0.16), ("holding", _HOLDING, 0.16))


def write_posterior(folder: str | Path, *, title: str, found: Posterior, synthetic: bool) -> ReportPaths:
    """Write `posterior.json` and `posterior.png` into `folder` (created if missing), each atomically."""
    heading = f"SYNTHETIC MARKET: {title}" if synthetic else title
    paths = ReportPaths(Path(folder) / "posterior.json", Path(folder) / "posterior.png")
    write_atomic(paths.png, _picture(heading, found, synthetic))
    market = "SYNTHETIC" if synthetic else "historical"
    write_json(paths.json, {"title": heading, "market": market, "picture": paths.png.name, **found.to_dict()})
    return paths


def _picture(heading: str, found: Posterior, synthetic: bool) -> bytes:
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    style = {"font.family": "DejaVu Sans", "font.size": 10, "axes.edgecolor": MUTED, "axes.labelcolor": INK,
             "xtick.color": MUTED, "ytick.color": MUTED, "text.color": INK, "text.parse_math": False}  # fmt: skip
    with rc_context(style):
        rows = 1 + len(found.groups)
        figure = Figure(figsize=(13, 2.2 + 2.9 * rows), dpi=110, facecolor="white", layout="constrained")
        canvas = FigureCanvasAgg(figure)
        grid = figure.add_gridspec(rows, len(MEASURES))
        for column, name in enumerate(MEASURES):
            _draw_measure(figure.add_subplot(grid[0, column]), name, found.measures[name])
        for row, (name, groups) in enumerate(found.groups.items(), start=1):
            _draw_groups(figure.add_subplot(grid[row, :]), name, groups)
        _head(figure, heading, found, synthetic)
        file = io.BytesIO()
        canvas.print_png(file)
    return file.getvalue()


def _head(figure: Figure, heading: str, found: Posterior, synthetic: bool) -> None:
    sharpe = found.measures["sharpe"]
    chance = "undefined" if math.isnan(sharpe.probability) else f"{sharpe.probability:.0%}"
    text = (
        f"{heading}\n{found.level:.0%} intervals of {found.n_resamples} resamples of {sharpe.bars} held-out bars, "
        f"blocks of {found.block_length:.1f} bars on average; the Sharpe ratio is above holding's in {chance} of them"
    )
    figure.suptitle(text, fontsize=10.5, x=0.01, ha="left", color=ALARM if synthetic else INK)
    handles = [figure.axes[0].plot([], [], "o", color=colour)[0] for _, colour, _ in _DRAWN]
    figure.legend(handles, [name for name, _, _ in _DRAWN], loc="upper right", frameon=False, ncols=2)


def _draw_measure(axes: Axes, name: str, one: Comparison) -> None:
    """Value and interval of model and holding, and of their difference."""
    scale = 100 if name in _PERCENT else 1
    for place, (kind, colour) in enumerate((("model", MODEL_COLOUR), ("holding", _HOLDING), ("difference", MUTED))):
        estimate = getattr(one, kind)
        _interval(axes, place, estimate.value * scale, estimate.low * scale, estimate.high * scale, colour)
    axes.axhline(0, color=MUTED, linewidth=0.8)
    axes.set_xticks(range(3), ["model", "holding", "difference"])
    axes.set_xlim(-0.6, 2.6)
    unit = " (%)" if name in _PERCENT else " (x equity per year)" if name == "turnover" else ""
    axes.set_title(_TITLES[name] + unit, fontsize=10, loc="left")
    _calm(axes)


def _draw_groups(axes: Axes, name: str, groups: list[Comparison]) -> None:
    """Annualised mean returns of model and holding in each group, side by side."""
    for place, group in enumerate(groups):
        for kind, colour, shift in _DRAWN:
            estimate = getattr(group, kind)
            _interval(axes, place + shift, 100 * estimate.value, 100 * estimate.low, 100 * estimate.high, colour)
    axes.axhline(0, color=MUTED, linewidth=0.8)
    every = max(1, math.ceil(len(groups) / 26))
    axes.set_xticks(range(0, len(groups), every), [group.label for group in groups][::every])
    axes.set_xlim(-0.6, len(groups) - 0.4)
    axes.set_title(f"Mean return by {_GROUPS[name]}, % per year", fontsize=10, loc="left")
    _calm(axes)


def _interval(axes: Axes, x: float, value: float, low: float, high: float, colour: str) -> None:
    if math.isfinite(low) and math.isfinite(high):
        axes.plot([x, x], [low, high], color=colour, linewidth=2.2, alpha=0.55, solid_capstyle="round")
    if math.isfinite(value):
        axes.plot([x], [value], "o", color=colour, markersize=5)


def _calm(axes: Axes) -> None:
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
