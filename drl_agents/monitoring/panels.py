"""What a terminal shows of a snapshot, piece by piece: a heading's lines, curves, tables. Drawn by rich."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from drl_agents.monitoring.formatting import duration, plain
from drl_agents.monitoring.plot import braille

STYLES = {
    "running": "green",
    "alive": "green",
    "active": "bold green",
    "complete": "green",
    "filled": "green",
    "passed": "bold green",
    "finished": "cyan",
    "interrupted": "yellow",
    "reducing": "bold yellow",
    "pruned": "yellow",
    "partially_filled": "yellow",
    "refused": "bold red",
    "dead": "bold red",
    "gone": "bold red",
    "failed": "bold red",
    "halted": "bold red",
    "rejected": "red",
}
LOUD = "bold black on yellow"
Part = str | tuple[str, str]  # text, or (text, style)


def row(*parts: Part, gap: str = "  ") -> Text:
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


@dataclass
class Flow:
    """Parts side by side, as many in a line as its width holds."""

    parts: Sequence[Part]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        line: list[Part] = []
        used = 0
        for part in self.parts:
            length = len(part if isinstance(part, str) else part[0])
            if line and used + length > options.max_width:
                yield row(*line)
                line, used = [], 0
            line.append(part)
            used += length + 2
        if line:
            yield row(*line)


@dataclass
class Plot:
    """A curve as wide as there is room, `height` lines high, with its largest and smallest value beside it."""

    values: Sequence[float | None]
    ends: tuple[str, str]
    height: int = 6
    style: str = "cyan"

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        margin = max(map(len, self.ends)) + 1
        lines = braille([self.values], max(1, options.max_width - margin), self.height)
        for i, line in enumerate(lines):
            end = self.ends[0] if i == 0 else self.ends[1] if i == len(lines) - 1 else ""
            yield row((line, self.style), (f"{end:>{margin}}", "dim"), gap="")


@dataclass
class Bar:
    """How far something got: `share` of the width is full, `text` follows."""

    share: float
    text: str

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = max(4, options.max_width - len(self.text) - 2)
        full = min(width, max(0, round(width * self.share)))
        yield row(("━" * full, "green"), ("━" * (width - full), "bright_black"), f"  {self.text}", gap="")


def table(columns: Sequence[str], rows: Iterable[Sequence[str | Text]]) -> Table:
    """A table; a column named with a trailing ">" is aligned right, one with "*" takes the rest of the width."""
    grid = Table(box=None, expand=True, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    for name in columns:
        rest, right = name.endswith("*"), name.endswith(">")
        justify = "right" if right else "left"
        grid.add_column(
            Text(name.rstrip(">*")), justify=justify, ratio=1 if rest else None, no_wrap=True, overflow="ellipsis"
        )
    for cells in rows:
        grid.add_row(*(cell if isinstance(cell, Text) else Text(plain(cell)) for cell in cells))
    return grid


def frame(title: str, lines: Sequence[RenderableType], synthetic: bool | None = False) -> Panel:
    """A frame around `lines`; synthetic data is said in the frame itself."""
    heading = Text(f" {plain(title)} ", "bold")
    if synthetic:
        heading.append(" SYNTHETIC DATA ", LOUD).append(" ")
    style = "yellow" if synthetic else "grey42"
    return Panel(Group(*lines), title=heading, title_align="left", border_style=style, padding=(0, 1))
