"""Reports of a back-test and of its stress test: a JSON file with every figure and its unit, a picture beside it.

This is the only module that touches matplotlib, and only when a picture is drawn, through its object
interface (a Figure and an Agg canvas): no display is needed and no figure or setting outlives the call.
"""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from drl_agents.evaluation.metrics import drawdown_curve
from drl_agents.evaluation.result import BacktestResult
from drl_agents.evaluation.stress import StressResult
from environments.errors import InputError
from environments.files import write_atomic, write_json

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_POINTS = 4000
TOP_ASSETS = 9
LEFT = 0.085  # left edge of the panels and of every line of text, as a fraction of the width
LOG_SCALE_FROM = 4.0  # growth curves spanning more than this are read better as ratios

INK, MUTED, GRID, CASH, OTHER, ALARM = "#1f2933", "#616e7c", "#e4e7eb", "#e9ecef", "#9aa5b1", "#c2410c"
MODEL_COLOUR = "#1d4ed8"
BASELINE_COLOURS = ("#d97706", "#059669", "#9333ea", "#64748b", "#be185d", "#0e7490")
ASSET_COLOURS = (
    "#4e79a7", "#f28e2b", "#59a14f", "#e15759", "#76b7b2", "#edc948", "#b07aa1", "#ff9da7", "#9c755f",
)  # fmt: skip


class ReportPaths(NamedTuple):
    """Where the two files of a report lie."""

    json: Path
    png: Path


def write_report(
    folder: str | Path,
    *,
    title: str,
    model: BacktestResult,
    baselines: Sequence[BacktestResult],
    facts: dict[str, Any],
    synthetic: bool,
) -> ReportPaths:
    """Write `report.json` and `report.png` into `folder` (created if missing), each atomically.

    The JSON holds the figures of `model` and of each baseline, every one with its unit, undefined ones as
    null, and `facts` unchanged (what else the reader must know: data, seed, code version, costs). The picture
    shows growth of 1 against the baselines, drawdown, and the model's weights with cash. A market that is
    `synthetic` is called SYNTHETIC in both. A model's walk that ended in ruin is shorter than its baselines', which are
    cut to its bars; the title says so. InputError when a baseline covers other bars than the model, two results share a
    name, or `facts` is not JSON (a NaN is not: write None).
    """
    if any(baseline.returns.size > model.returns.size for baseline in baselines):
        title = f"{title}, ended in ruin after {model.returns.size} bars"
        baselines = [baseline.first(model.returns.size) for baseline in baselines]
    _check_comparable(model, baselines)
    try:
        json.dumps(facts, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InputError(f"facts is not JSON ({error}): JSON values without NaN are accepted") from error
    heading = f"SYNTHETIC MARKET: {title}" if synthetic else title
    png = _picture(heading, model, baselines, synthetic)
    paths = ReportPaths(Path(folder) / "report.json", Path(folder) / "report.png")
    content = {
        "title": heading,
        "market": "SYNTHETIC" if synthetic else "historical",
        "picture": paths.png.name,
        "model": _summary(model),
        "baselines": [_summary(baseline) for baseline in baselines],
        "facts": facts,
    }
    write_atomic(paths.png, png)
    write_json(paths.json, content)
    return paths


def write_stress(folder: str | Path, *, title: str, result: StressResult, synthetic: bool) -> ReportPaths:
    """Write `stress.json` and `stress.png` into `folder` (created if missing), each atomically.

    The JSON holds every cell with all its figures and their units. The picture is a heat map of the annualised Sharpe
    ratio, one panel per decision lag, with the total return written into each cell; the environment's own cell is
    framed where the grid has it.
    """
    heading = f"SYNTHETIC MARKET: {title}" if synthetic else title
    paths = ReportPaths(Path(folder) / "stress.json", Path(folder) / "stress.png")
    content = {
        "title": heading,
        "market": "SYNTHETIC" if synthetic else "historical",
        "picture": paths.png.name,
        **result.to_dict(),
    }
    write_atomic(paths.png, _stress_picture(heading, result, synthetic))
    write_json(paths.json, content)
    return paths


def thin_extremes(values: NDArray[np.float64], max_points: int = MAX_POINTS) -> NDArray[np.intp]:
    """Indices of at most `max_points` of values (n,), in order, that keep the curve's look.

    The first and last value, and the lowest and highest of each of (max_points - 2) // 2 equal buckets of
    bars: no peak, crash or drawdown is lost, which taking every k-th value would lose. All of them when
    n <= max_points.
    """
    if len(values) <= max_points:
        return np.arange(len(values))
    bounds = np.linspace(0, len(values), (max_points - 2) // 2 + 1).astype(np.intp)
    kept = [0, len(values) - 1]
    for first, last in zip(bounds[:-1], bounds[1:], strict=True):
        bucket = values[first:last]
        kept += [first + int(np.argmin(bucket)), first + int(np.argmax(bucket))]
    return np.unique(np.array(kept, dtype=np.intp))


def thin_means(
    timestamps: NDArray[np.int64], shares: NDArray[np.float64], max_points: int = MAX_POINTS
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """At most `max_points` rows of shares (n, A): means over equal buckets, at each bucket's last timestamp.

    A mean of rows that sum to one sums to one, so a stacked area stays full. Unchanged when n <= max_points.
    """
    if len(shares) <= max_points:
        return timestamps, shares
    bounds = np.linspace(0, len(shares), max_points + 1).astype(np.intp)
    means = np.add.reduceat(shares, bounds[:-1], axis=0) / np.diff(bounds)[:, None]
    return timestamps[bounds[1:] - 1], means


def largest_weights(result: BacktestResult, top: int = TOP_ASSETS) -> tuple[list[str], NDArray[np.float64]]:
    """(names, shares (T+1, n)): the `top` assets by mean absolute weight, "other" for the rest, "cash"."""
    order = np.argsort(-np.abs(result.weights).mean(axis=0), kind="stable")
    names = [result.symbols[asset] for asset in order[:top]]
    columns = [result.weights[:, order[:top]]]
    if len(order) > top:
        names.append(f"other ({len(order) - top})")
        columns.append(result.weights[:, order[top:]].sum(axis=1, keepdims=True))
    columns.append(result.cash_weight[:, None])
    return [*names, "cash"], np.concatenate(columns, axis=1)


def _check_comparable(model: BacktestResult, baselines: Sequence[BacktestResult]) -> None:
    names = {model.name}
    for baseline in baselines:
        if baseline.name in names:
            raise InputError(f"baseline {baseline.name!r} appears twice: different names are accepted")
        names.add(baseline.name)
        if not np.array_equal(baseline.timestamps, model.timestamps):
            raise InputError(
                f"baseline {baseline.name!r} covers other bars: the timestamps of {model.name!r} are accepted"
            )


def _summary(result: BacktestResult) -> dict[str, Any]:
    start, end = (_utc(result.timestamps[end]) for end in (0, -1))
    return {
        "name": result.name,
        "symbols": list(result.symbols),
        "start": start,
        "end": end,
        "bars_per_year": result.bars_per_year,
        "decision_lag": {"value": result.decision_lag, "unit": "bars from decision to fill"},
        "figures": result.figures(),
    }


def _utc(timestamp: np.int64) -> str:
    return f"{np.datetime64(int(timestamp), 'ns').astype('datetime64[s]')}Z"


def _picture(heading: str, model: BacktestResult, baselines: Sequence[BacktestResult], synthetic: bool) -> bytes:
    """The three panels as PNG bytes."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    style = {"font.family": "DejaVu Sans", "font.size": 11, "axes.edgecolor": MUTED, "axes.labelcolor": INK,
             "xtick.color": MUTED, "ytick.color": MUTED, "text.color": INK}  # fmt: skip
    with rc_context(style):
        figure = Figure(figsize=(13, 11), dpi=120, facecolor="white")
        canvas = FigureCanvasAgg(figure)
        growth, drawdown, weights = figure.subplots(
            3, 1, sharex=True, height_ratios=(3, 1.4, 2),
            gridspec_kw={"left": LEFT, "right": 0.80, "top": 0.895, "bottom": 0.06, "hspace": 0.09},
        )  # fmt: skip
        size = min(17.0, 17.0 * 80 / len(heading or " "))  # 80 bold characters fill the width at 17 points
        figure.text(LEFT, 0.962, heading, fontsize=size, fontweight="bold", color=ALARM if synthetic else INK,
                    parse_math=False)  # fmt: skip
        figure.text(LEFT, 0.932, _headline(model), fontsize=11, color=MUTED, parse_math=False)
        _draw_growth(growth, model, baselines)
        _draw_drawdown(drawdown, model, baselines)
        _draw_weights(weights, model)
        for axes in (growth, drawdown, weights):
            axes.grid(True, color=GRID, linewidth=0.8)
            axes.set_axisbelow(True)
            axes.spines[["top", "right"]].set_visible(False)
            if synthetic:
                axes.text(0.5, 0.5, "SYNTHETIC", transform=axes.transAxes, ha="center", va="center",
                          fontsize=44, fontweight="bold", color=ALARM, alpha=0.10, zorder=0.5)  # fmt: skip
        _date_axis(weights)
        figure.align_ylabels()
        if len(model.timestamps) > MAX_POINTS:
            note = (
                f"{len(model.timestamps):,} bars drawn as at most {MAX_POINTS:,} points: "
                "lowest and highest of each bucket (lines), bucket means (weights)"
            )
            figure.text(LEFT, 0.012, note, fontsize=9, color=MUTED)
        buffer = io.BytesIO()
        canvas.print_png(buffer)
    return buffer.getvalue()


def _stress_picture(heading: str, result: StressResult, synthetic: bool) -> bytes:
    """The heat map as PNG bytes: red below a Sharpe ratio of zero, blue above, white at it, grey where undefined."""
    from matplotlib import colormaps, rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

    sharpe, returns, grid = result.table("sharpe"), result.table("total_return"), result.grid
    most = float(np.nanmax(np.abs(sharpe))) if np.isfinite(sharpe).any() else 1.0
    scale = Normalize(-max(most, 1e-9), max(most, 1e-9))
    style = {"font.family": "DejaVu Sans", "font.size": 11, "axes.edgecolor": MUTED, "axes.labelcolor": INK,
             "xtick.color": MUTED, "ytick.color": MUTED, "text.color": INK}  # fmt: skip
    with rc_context(style):
        panels = len(grid.decision_lags)
        figure = Figure(figsize=(2.2 + 3.6 * max(panels, 2), 5.4), dpi=120, facecolor="white")
        canvas = FigureCanvasAgg(figure)
        row = figure.subplots(
            1, panels, sharey=True, squeeze=False,
            gridspec_kw={"left": 0.115, "right": 0.9, "top": 0.76, "bottom": 0.13, "wspace": 0.06},
        )[0]  # fmt: skip
        size = min(15.0, 15.0 * 26 * max(panels, 2) / len(heading or " "))
        figure.text(0.02, 0.93, heading, fontsize=size, fontweight="bold", color=ALARM if synthetic else INK,
                    parse_math=False)  # fmt: skip
        figure.text(0.02, 0.865, _stress_headline(result), fontsize=10, color=MUTED, parse_math=False)
        for i, axes in enumerate(row):
            colours = colormaps["RdBu"].with_extremes(bad=GRID)
            image = axes.imshow(np.ma.masked_invalid(sharpe[i].T), cmap=colours, norm=scale, aspect="auto")
            _label_cells(axes, sharpe[i].T, returns[i].T, most)
            _frame_own(axes, result, grid.decision_lags[i])
            axes.set_title(f"decision lag {grid.decision_lags[i]}", fontsize=11, color=INK)
            axes.set_xticks(range(len(grid.slippages_bps)), [f"{s:g}" for s in grid.slippages_bps])
            axes.tick_params(length=0)
            axes.set_xlabel("slippage, bps (upper end)")
        charged = [f"x{f:g}\n{f * result.commission_bps:g} bps" for f in grid.commission_factors]
        row[0].set_yticks(range(len(charged)), charged)
        row[0].set_ylabel("commission")
        bar = figure.colorbar(image, cax=figure.add_axes((0.92, 0.13, 0.015, 0.63)))
        bar.set_label("annualised Sharpe ratio", color=INK)
        buffer = io.BytesIO()
        canvas.print_png(buffer)
    return buffer.getvalue()


def _label_cells(axes: "Axes", sharpe: NDArray[np.float64], returns: NDArray[np.float64], most: float) -> None:
    """Both figures in each cell, light on dark colours."""
    for (y, x), value in np.ndenumerate(sharpe):
        known = np.isfinite(value)
        text = f"{value:.2f}" if known else "undefined"
        colour = "white" if known and abs(value) > 0.6 * most else INK
        axes.text(x, y - 0.12, text, ha="center", va="center", fontsize=12, fontweight="bold", color=colour)
        axes.text(x, y + 0.2, _percent(returns[y, x], signed=True), ha="center", va="center", fontsize=9, color=colour)


def _frame_own(axes: "Axes", result: StressResult, lag: int) -> None:
    """Frame the cell with the environment's own lag, slippage and commission, where the grid has it."""
    from matplotlib.patches import Rectangle

    grid, (own_lag, own_slippage) = result.grid, result.own
    if lag == own_lag and _has_own(result):
        corner = (grid.slippages_bps.index(own_slippage) - 0.5, grid.commission_factors.index(1.0) - 0.5)
        axes.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor=INK, linewidth=2.5, clip_on=False, zorder=3))


def _has_own(result: StressResult) -> bool:
    grid, (lag, slippage) = result.grid, result.own
    return lag in grid.decision_lags and slippage in grid.slippages_bps and 1.0 in grid.commission_factors


def _stress_headline(result: StressResult) -> str:
    worst = result.worst()
    returns = result.table("total_return")
    total = worst.figures["total_return"]["value"]
    return (
        f"{int((returns > 0).sum())} of {returns.size} cells gain;  worst: lag {worst.decision_lag}, "
        f"slippage {worst.slippage_bps:g} bps, commission x{worst.commission_factor:g}, return "
        f"{_percent(total, signed=True)}" + (";  framed: as it is run" if _has_own(result) else "")
    )


def _draw_growth(axes: "Axes", model: BacktestResult, baselines: Sequence[BacktestResult]) -> None:
    curves = [_growth(result) for result in (model, *baselines)]
    handles, labels = [], []
    for place, (result, curve) in enumerate(zip((model, *baselines), curves, strict=True)):
        kept = thin_extremes(curve)
        colour, width = _line(place)
        (line,) = axes.plot(_dates(result.timestamps[kept]), curve[kept], color=colour, linewidth=width,
                            zorder=3 if place == 0 else 2)  # fmt: skip
        handles.append(line)
        total = result.figures()["total_return"]["value"]
        labels.append(f"{_short(result.name)}  {_percent(total, signed=True)}")
    low, high = min(np.nanmin(curve) for curve in curves), max(np.nanmax(curve) for curve in curves)
    logarithmic = low > 0 and high / low > LOG_SCALE_FROM
    if logarithmic:
        from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    axes.axhline(1.0, color=MUTED, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
    axes.set_ylabel("growth of 1 (log)" if logarithmic else "growth of 1")
    _legend(axes, handles, labels)


def _draw_drawdown(axes: "Axes", model: BacktestResult, baselines: Sequence[BacktestResult]) -> None:
    handles, labels = [], []
    for place, result in enumerate((model, *baselines)):
        depth = -drawdown_curve(result.equity)
        kept = thin_extremes(depth)
        dates, colour = _dates(result.timestamps[kept]), _line(place)[0]
        (line,) = axes.plot(dates, depth[kept], color=colour, linewidth=1.3 if place == 0 else 0.9,
                            zorder=3 if place == 0 else 2)  # fmt: skip
        if place == 0:
            axes.fill_between(dates, depth[kept], 0.0, color=colour, alpha=0.15, linewidth=0, zorder=2.5)
        handles.append(line)
        labels.append(f"{_short(result.name)}  {_percent(-np.max(-depth))}")
    from matplotlib.ticker import PercentFormatter

    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_ylim(top=0.0)
    axes.set_ylabel("drawdown")
    _legend(axes, handles, labels)


def _draw_weights(axes: "Axes", model: BacktestResult) -> None:
    """Long shares stacked up from zero, short ones and borrowed cash stacked down from it."""
    names, shares = largest_weights(model)
    average = shares.mean(axis=0)
    labels = [f"{_short(name)}  {_percent(share)}" for name, share in zip(names, average, strict=True)]
    timestamps, shares = thin_means(model.timestamps, shares)
    colours = [*ASSET_COLOURS[: min(len(model.symbols), TOP_ASSETS)]]
    colours += [OTHER] * (len(names) - len(colours) - 1) + [CASH]
    dates = _dates(timestamps)
    bands = axes.stackplot(dates, np.maximum(shares, 0.0).T, colors=colours, linewidth=0)
    if (shares < 0).any():
        axes.stackplot(dates, np.minimum(shares, 0.0).T, colors=colours, linewidth=0)
        axes.axhline(0.0, color=INK, linewidth=0.9)
    from matplotlib.ticker import PercentFormatter

    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    below, above = shares.clip(max=0.0).sum(axis=1).min(), shares.clip(min=0.0).sum(axis=1).max()
    axes.set_ylim(min(0.0, below), max(1.0, above))
    axes.set_xlim(_dates(model.timestamps[[0, -1]]))
    axes.set_ylabel("weights")
    _legend(axes, bands[::-1], labels[::-1], title=f"{_short(model.name)}, average")


def _legend(axes: "Axes", handles: Sequence[Any], labels: Sequence[str], title: str | None = None) -> None:
    """A legend in the free column right of the panel, its text shown as written ("$" starts no formula)."""
    legend = axes.legend(handles, labels, title=title, loc="upper left", bbox_to_anchor=(1.01, 1.02),
                         frameon=False, fontsize=10, alignment="left", handlelength=1.4)  # fmt: skip
    for text in (*legend.get_texts(), legend.get_title()):
        text.set_parse_math(False)


def _date_axis(axes: "Axes") -> None:
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

    locator = AutoDateLocator(minticks=5, maxticks=11)
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))
    axes.set_xlabel("UTC", loc="left", color=MUTED)  # the right end is where the axis puts its year


def _headline(result: BacktestResult) -> str:
    figures = {name: entry["value"] for name, entry in result.figures().items()}
    fees = "undefined" if figures["fees"] is None else f"{figures['fees']:,.0f}"
    sharpe = "undefined" if figures["sharpe"] is None else f"{figures['sharpe']:.2f}"
    start, end = (_utc(result.timestamps[place])[:10] for place in (0, -1))
    return (
        f"{result.name}, {start} to {end}:  return {_percent(figures['total_return'], signed=True)},  "
        f"annualised Sharpe {sharpe},  max drawdown {_percent(figures['max_drawdown'])},  "
        f"fees {fees},  {figures['n_trades']:,} trades"
    )


def _percent(fraction: float | None, signed: bool = False) -> str:
    if fraction is None or not np.isfinite(fraction):
        return "undefined"
    return f"{fraction:+.1%}" if signed else f"{fraction:.1%}"


def _short(name: str, width: int = 22) -> str:
    """A name that fits the legend's column."""
    return name if len(name) <= width else f"{name[: width - 1]}\N{HORIZONTAL ELLIPSIS}"


def _growth(result: BacktestResult) -> NDArray[np.float64]:
    return result.equity / result.equity[0]


def _dates(timestamps: NDArray[np.int64]) -> NDArray[np.datetime64]:
    return timestamps.astype("datetime64[ns]")


def _line(place: int) -> tuple[str, float]:
    """Colour and width of the model's line (place 0) or of a baseline's."""
    return (MODEL_COLOUR, 1.8) if place == 0 else (BASELINE_COLOURS[(place - 1) % len(BASELINE_COLOURS)], 1.1)
