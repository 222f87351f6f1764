"""The terminal view of a snapshot: paper trader, training, deployment, machine.

Every panel is given a number of rows and fills them with its most important lines first, so that one screen
holds everything from 80x24 up. From 120 columns on, the trader and the training stand side by side.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Sequence

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from drl_agents.monitoring.gpu import DeviceSnapshot
from drl_agents.monitoring.records import DeploymentSnapshot, Order, StudySnapshot, TraderSnapshot
from drl_agents.monitoring.snapshot import Snapshot
from drl_agents.monitoring.typed_json import parse_time

WIDE = 120  # columns from which two panels stand side by side
UNLIMITED = 1000  # rows of a panel where no screen limits them
LAST_TRIALS = 8
START = "./start_vectorized_training.sh"
BLOCKS = "▁▂▃▄▅▆▇█"
STYLES = {
    "running": "green",
    "alive": "green",
    "active": "bold green",
    "complete": "green",
    "filled": "green",
    "finished": "cyan",
    "interrupted": "yellow",
    "reducing": "bold yellow",
    "pruned": "yellow",
    "dead": "bold red",
    "failed": "bold red",
    "fail": "bold red",
    "halted": "bold red",
    "rejected": "red",
}
LOUD = "bold black on yellow"
Line = tuple[int, RenderableType]  # (priority, one row): where room is short the highest numbers go first


def number(value: float | None, digits: int = 4) -> str:
    """A number in `digits` significant digits, thousands separated: 12345.6 -> "12,346", None -> "–"."""
    if value is None:
        return "–"
    size = abs(value)
    if size >= 1e15 or 0 < size < 1e-3:
        return f"{value:.{digits}g}"
    decimals = max(0, digits - 1 - math.floor(math.log10(size))) if size else 0
    text = f"{value:,.{decimals}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def money(value: float | None, sign: bool = False) -> str:
    """An amount in the account's currency: 1234.5 -> "$1,234.50", with `sign` "+$1,234.50"."""
    if value is None:
        return "–"
    mark = "-" if value < 0 else "+" if sign else ""
    size = abs(value)
    # A coin's price can be far below a cent: four significant digits there.
    decimals = 2 if size >= 1 or not size else min(16, 3 - math.floor(math.log10(size)))
    return f"{mark}${size:,.{decimals}f}"


def percent(fraction: float | None, sign: bool = False) -> str:
    """A fraction as percent: 0.0123 -> "1.23 %"."""
    return "–" if fraction is None else f"{100 * fraction:{'+' if sign else ''},.2f} %"


def duration(seconds: float | None) -> str:
    """Seconds for people, in the two largest units: 7500 -> "2 h 05 min"."""
    if seconds is None:
        return "–"
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes = int(seconds // 60)
    if minutes < 60:
        return f"{minutes} min {int(seconds % 60):02d} s"
    if minutes < 24 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes // 1440} d {minutes % 1440 // 60} h"


def size(bytes_used: int | None, bytes_total: int | None) -> str:
    """Memory in GiB: "3.1/8.0 GiB"."""
    used, total = (("–" if value is None else f"{value / 2**30:.1f}") for value in (bytes_used, bytes_total))
    return f"{used}/{total} GiB"


def clock(text: str) -> str:
    """An ISO time as "2025-06-01 12:05"; text that is no time stays as it is."""
    moment = parse_time(text)
    return plain(text) if moment is None else f"{moment:%Y-%m-%d %H:%M}"


def plain(value: object) -> str:
    """`value` as text without control characters and unpaired surrogates, which would steer the terminal."""
    return "".join(c if c.isprintable() else "�" for c in str(value))


def setting(value: object) -> str:
    """A hyper-parameter's value; floats in three digits, in five just below one, where discounts are."""
    if not isinstance(value, float):
        return plain(value)
    return number(value, 5 if 0.9 <= value < 1 else 3)


def sparkline(values: Sequence[float], width: int) -> str:
    """`values` as blocks from their lowest to their highest, at most `width`; the last value comes last."""
    if not values or width < 1:
        return ""
    if len(values) > width:
        values = [values[-1 - (i * (len(values) - 1)) // max(1, width - 1)] for i in reversed(range(width))]
    low, high = min(values), max(values)
    if high <= low:
        return BLOCKS[0] * len(values)
    # Halved first: the range of two finite numbers may not be finite.
    return "".join(BLOCKS[round((v / 2 - low / 2) / (high / 2 - low / 2) * (len(BLOCKS) - 1))] for v in values)


def row(*parts: str | tuple[str, str], gap: str = "  ") -> Text:
    """One line of (text, style) parts that is cut with an ellipsis, never wrapped."""
    line = Text(no_wrap=True, overflow="ellipsis")
    for part in parts:
        text, style = part if isinstance(part, tuple) else (part, "")
        if text:
            line.append(gap if line else "").append(plain(text), style)
    return line


def state(name: str) -> tuple[str, str]:
    """A state's name with its colour."""
    return name, STYLES.get(name.lower(), "")


def updated(age: float | None, stale: bool) -> tuple[str, str]:
    """How long ago a file was written, loudly where that is too long ago."""
    text = f"updated {duration(age)} ago"
    return (f" STALE: {text} ", LOUD) if stale else (text, "dim")


def fit(lines: Sequence[Line], rows: int) -> list[RenderableType]:
    """The `rows` most important lines, in the order given."""
    keep = sorted(sorted(range(len(lines)), key=lambda i: (lines[i][0], i))[: max(0, rows)])
    return [lines[i][1] for i in keep]


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]], shown: int) -> list[Table]:
    """A table of one header row and `shown` rows; a column named with a trailing ">" is aligned right, one
    with "*" takes the rest of the width. Empty where nothing would be shown."""
    if not rows or shown < 1:
        return []
    count = f" {min(shown, len(rows))}/{len(rows)}" if shown < len(rows) else ""
    grid = Table(box=None, expand=True, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    for index, name in enumerate(columns):
        rest, right = name.endswith("*"), name.endswith(">")
        grid.add_column(
            Text(f"{title}{count}" if index == 0 else name.rstrip(">*")),
            justify="right" if right else "left",
            ratio=1 if rest else None,
            no_wrap=True,
            overflow="ellipsis",
        )
    for cells in rows[:shown]:
        grid.add_row(*(cell if isinstance(cell, Text) else Text(plain(cell)) for cell in cells))
    return [grid]


def panel(title: str, synthetic: bool | None, lines: Sequence[RenderableType], rows: int | None = None) -> Panel:
    """A frame around `lines`, `rows` high inside where given; synthetic data is said in the frame itself."""
    heading = Text(f" {plain(title)} ", "bold")
    if synthetic:
        heading.append(" SYNTHETIC DATA ", LOUD).append(" ")
    return Panel(
        Group(*lines),
        title=heading,
        title_align="left",
        border_style="yellow" if synthetic else "blue",
        height=None if rows is None else rows + 2,
        padding=(0, 1),
    )


def count_rows(lines: Sequence[RenderableType]) -> int:
    """Terminal rows of a panel's content: one a line, a table's rows and its header."""
    return sum(len(line.rows) + 1 if isinstance(line, Table) else 1 for line in lines)


def training_lines(study: StudySnapshot, width: int, rows: int, now: float) -> list[RenderableType]:
    """The training panel's rows at `width` columns; `now` in seconds since 1970."""
    counts, objective = study.counts, study.objective
    begun = parse_time(study.started)
    age = study.age_seconds or 0.0
    running = study.state == "running"
    elapsed = now - begun.timestamp() if begun and running else None
    lines: list[Line] = [
        (
            0,
            row(
                state(study.state.upper() if study.state != "dead" else "DEAD (its process is gone)"),
                updated(study.age_seconds, study.stale),
                f"phase {study.phase}",
                f"for {duration(elapsed)}" if elapsed is not None else f"started {clock(study.started)}",
            ),
        )
    ]
    done, target = counts.complete + counts.pruned + counts.failed, study.n_trials or 0
    numbers = f" {done}/{target or '?'} trials"
    if running and study.phase == "search" and study.eta_seconds is not None:
        numbers += f"  ETA {duration(max(0.0, study.eta_seconds - age))}"
    bar = max(4, width - len(numbers))
    full = min(bar, round(bar * done / target)) if target > 0 else 0
    lines.append((1, row(("━" * full, "green"), ("━" * (bar - full), "bright_black"), numbers, gap="")))
    pace = f"{number(study.trials_per_hour, 3)} trials/hour" if study.trials_per_hour is not None else ""
    lines.append(
        (
            3,
            row(
                (f"{counts.complete} complete", "green"),
                (f"{counts.pruned} pruned", "yellow" if counts.pruned else "dim"),
                (f"{counts.failed} failed", "bold red" if counts.failed else "dim"),
                f"{counts.running} running",
                pace,
            ),
        )
    )
    if study.best is None:
        lines.append((2, row((f"No best yet ({objective.direction} {objective.name})", "dim"))))
    else:
        unit = objective.unit if objective.unit.lower() != objective.name.lower() else ""
        value = (f"{number(study.best.value)} {unit}".strip(), "bold")
        params = [(f"{key} {setting(value)}", "dim") for key, value in study.best.params.items()]
        crowded = rows < 6  # the parameters follow on the same line, as far as they go
        best = row("Best", value, f"{objective.name}, trial {study.best.number}", *(params if crowded else ()))
        lines.append((2, best))
        lines += [(6, text) for text in pack([] if crowded else params, width, 1 if rows < 16 else 3)]
    if curve := study.best_so_far:
        ends = f" {number(curve[0])} → {number(curve[-1])}"
        lines.append((5, row("Best so far ", (sparkline(curve, width - 12 - len(ends)), "cyan"), ends, gap="")))
    if study.gate is not None:
        verdict = ("passed", "bold green") if study.gate.passed else ("refused", "bold red")
        lines.append((4, row("Gate", verdict, "; ".join(study.gate.reasons))))
    data = study.data
    bars = "" if data.bars is None else f"{data.bars:,} bars"
    about = (data.source, data.timeframe, bars, " ".join(data.symbols), data.fingerprint[:8])
    lines.append((8, row(("Data", "dim"), *about)))
    lines += [(9, row((name, "dim"), path)) for name, path in _paths(study)]
    trials = sorted(study.trials, key=lambda trial: trial.number or 0, reverse=True)[:LAST_TRIALS]
    cells = [
        (
            f"{trial.number}",
            Text(plain(trial.state), STYLES.get(trial.state.lower(), "")),
            number(trial.value),
            duration(trial.seconds),
            "  ".join(f"{key} {setting(value)}" for key, value in trial.params.items()),
        )
        for trial in trials
    ]
    # The table is worth more than where the data and the report are, less than the rest.
    fixed = sum(priority < 8 for priority, _ in lines)
    shown = min(len(cells), rows - fixed - 1)
    body = table("Trial", ("", "state", "value>", "time>", "parameters*"), cells, shown)
    return fit(lines, rows - count_rows(body)) + body


def _paths(study: StudySnapshot) -> list[tuple[str, str]]:
    return [(name, path) for name, path in (("Report", study.report), ("Bundle", study.bundle)) if path]


def pack(parts: Sequence[str | tuple[str, str]], width: int, most: int) -> list[Text]:
    """Parts side by side in at most `most` lines of `width`; what does not fit the last line is cut there."""
    lines: list[list[str | tuple[str, str]]] = [[]]
    used = 0
    for part in parts:
        length = len(part if isinstance(part, str) else part[0])
        if lines[-1] and used + length > width and len(lines) < most:
            lines.append([])
            used = 0
        lines[-1].append(part)
        used += length + 2
    return [row(*line) for line in lines if line]


def trader_lines(trader: TraderSnapshot, width: int, rows: int) -> list[RenderableType]:
    """The paper trader panel's rows at `width` columns."""
    gain = "green" if (trader.profit or 0) >= 0 else "bold red"
    lines: list[Line] = [
        (
            0,
            row(
                state(trader.state if trader.state != "dead" else "DEAD (its process is gone)"),
                updated(trader.age_seconds, trader.stale),
                "process gone" if trader.state == "HALTED" and trader.process_state == "gone" else "",
                f"{trader.bars_done if trader.bars_done is not None else '?'} bars of {trader.timeframe}",
                f"last {clock(trader.bar)}",
            ),
        ),
    ]
    figures = (
        (f"Equity {money(trader.equity)}", "bold"),
        (f"profit {money(trader.profit, sign=True)} ({percent(trader.profit_fraction, sign=True)})", gain),
        f"drawdown {percent(trader.drawdown)} (max {percent(trader.max_drawdown)})",
        f"cash {money(trader.cash)}",
        f"fees {money(trader.fees)}",
        f"{number(trader.n_orders)} orders, {number(trader.n_fills)} fills",
        f"broker {trader.broker}",
    )
    lines += [(1, text) for text in pack(figures, width, 2 if rows < 10 else 3)]
    if curve := trader.equity_curve:
        ends = f" {money(min(curve))} to {money(max(curve))}"
        lines.append((3, row((sparkline(curve, width - len(ends)), "cyan"), (ends, "dim"), gap="")))
    origin = f"from study {trader.study}, trial {'?' if trader.trial is None else trader.trial}"
    lines.append((2, row("Model", (trader.model, "bold"), origin)))
    if not trader.positions:
        lines.append((5, row(("No positions: all in cash", "dim"))))
    positions = [
        (item.symbol, number(item.shares, 6), money(item.price), money(item.value), percent(item.weight))
        for item in sorted(trader.positions, key=lambda item: -abs(item.value or 0.0))
    ]
    orders = [
        (
            clock(item.bar),
            item.symbol,
            Text(plain(item.side), "green" if item.side.lower() == "buy" else "red"),
            number(item.quantity, 6),
            Text(plain(item.status), STYLES.get(item.status.lower(), "")),
            fills(item),
        )
        for item in reversed(trader.orders)
    ]
    room = max(0, rows - len(lines) - 2)  # a header each
    n_positions = min(len(positions), room if not orders else round(0.6 * room))
    if n_positions < min(3, len(positions)):  # too short for a table: the weights in one line
        weights = (f"{item[0]} {item[4]}" for item in positions)
        lines.append((5, row(("Positions", "dim"), *weights)))
        n_positions = 0  # the room its header had goes to that line
    n_orders = min(len(orders), room - n_positions)
    body = table("Position", ("", "shares>", "price>", "value>", "weight>"), positions, n_positions)
    body += table("Order", ("", "symbol", "side", "quantity>", "status", "filled*"), orders, n_orders)
    return fit(lines, rows - count_rows(body)) + body


def fills(order: Order) -> str:
    """At what price an order was filled, and how much of it where that is not all."""
    if not order.filled_quantity:
        return "–"
    part = "" if order.filled_quantity == order.quantity else f"{number(order.filled_quantity, 6)} at "
    return part + money(order.filled_price)


def deployment_lines(deployment: DeploymentSnapshot, rows: int) -> list[RenderableType]:
    """The deployment panel's rows: the champion, then the last decisions, newest first."""
    champion = deployment.champion
    if champion is None:
        lines = [row(("Nothing is deployed", "dim"))]
    else:
        trial = "?" if champion.trial is None else champion.trial
        lines = [
            row(
                "Champion",
                (champion.bundle, "bold"),
                f"Sharpe {number(champion.sharpe, 3)}",
                f"since {clock(champion.promoted)[:10]}",
                (f"study {champion.study}, trial {trial}", "dim"),
            )
        ]
    for event in reversed(deployment.audit):
        name = (event.event, "bold" if event.event.lower().startswith("promot") else "yellow")
        lines.append(row((clock(event.time), "dim"), name, event.bundle, "; ".join(event.reasons)))
    return lines[: max(1, rows)]


def device_line(device: DeviceSnapshot) -> Text:
    """Processor, memory and GPUs in one line."""
    cores = f"{device.cpu_count} cores" if device.cpu_count else "cores unknown"
    parts: list[str | tuple[str, str]] = []
    if device.cpu_percent is not None:
        parts.append(f"CPU {device.cpu_percent:.0f} % of {cores}")
        parts.append(f"memory {size(device.memory_used, device.memory_total)}")
    for gpu in device.gpus:
        busy = "–" if gpu.utilization is None else f"{gpu.utilization:.0f} %"
        parts.append((f"{gpu.name} {busy} {size(gpu.memory_used, gpu.memory_total)}", "green"))
    reasons = "; ".join(device.reasons)
    if reasons:
        parts.append((reasons if device.gpus else f"no GPU: {reasons}", "dim"))
    return row(*parts)


def render(snapshot: Snapshot, width: int, height: int | None = None, training: bool = False) -> Group:
    """The whole view at `width` columns, within `height` rows where given (24 hold everything that matters);
    `training` leaves the trader out."""
    study, trader = snapshot.study, None if training else snapshot.trader
    synthetic = any(part is not None and part.synthetic for part in (study, trader))
    warning = (" SYNTHETIC DATA: NOT A REAL MARKET ", LOUD) if synthetic else ""
    top: list[RenderableType] = [
        row(
            ("drl_agents", "bold"),
            (f"{snapshot.time[:19].replace('T', ' ')} UTC", "dim"),
            warning,
            snapshot.host,
        )
    ]
    problems = snapshot.problems if height is None else snapshot.problems[:2]
    more = f" (and {len(snapshot.problems) - len(problems)} more)" if len(problems) < len(snapshot.problems) else ""
    top += [row(("!", "bold red"), (problem, "red")) for problem in problems[:-1]]
    top += [row(("!", "bold red"), (problem + more, "red")) for problem in problems[-1:]]
    if study is None and trader is None:
        what = "No training has written" if training else "Nobody has written"
        top += [row(f"{what} to {snapshot.logs} yet. Start with"), row((f"  {START}", "bold green"))]
    room = UNLIMITED if height is None else height - len(top) - 1  # one for the device line
    below: list[RenderableType] = []
    if snapshot.deployment is not None and room >= 12:
        lines = deployment_lines(snapshot.deployment, 6 if room >= 36 else 3 if room >= 28 else 2)
        below.append(panel("Deployment", None, lines))
        room -= len(lines) + 2
    below.append(device_line(snapshot.device))

    side = width >= WIDE and study is not None and trader is not None
    span = (width // 2 if side else width) - 4  # inside the frame and its padding
    lower = max(7, round(0.4 * room)) if study is not None and trader is not None and not side else 0
    panels: list[tuple[str, bool | None, list[RenderableType]]] = []
    if trader is not None:
        lines = trader_lines(trader, span, room - lower - 2)
        panels.append((f"Paper trader {trader.name}", trader.synthetic, lines))
    if study is not None:
        rows = room - 2 - (count_rows(lines) + 2 if panels and not side else 0)
        now = parse_time(snapshot.time)
        lines = training_lines(study, span, rows, now.timestamp() if now else time.time())
        panels.append((f"Training {study.study}", study.synthetic, lines))
    if not side:
        return Group(*top, *(panel(*parts) for parts in panels), *below)
    grid = Table.grid(expand=True)
    grid.add_column(ratio=1)
    grid.add_column(ratio=1)
    tallest = max(count_rows(lines) for _, _, lines in panels)
    grid.add_row(*(panel(*parts, rows=tallest) for parts in panels))
    return Group(*top, grid, *below)


def watch(take: Callable[[], Snapshot], console: Console, refresh: float = 1.0, training: bool = False) -> None:
    """Show `take()` full screen every `refresh` seconds until Ctrl-C or SIGTERM; the terminal is restored."""
    in_main = threading.current_thread() is threading.main_thread()  # only there may handlers be set
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler) if in_main else None
    try:
        with Live(console=console, screen=True, auto_refresh=False) as live:
            while True:
                width, height = console.size
                live.update(render(take(), width, height, training), refresh=True)
                time.sleep(refresh)
    except KeyboardInterrupt:
        return
    finally:
        if in_main:
            signal.signal(signal.SIGTERM, previous)
