"""The equity curve of a paper trader, followed as its file grows."""

from __future__ import annotations

import math
from pathlib import Path

from drl_agents.monitoring.tail import Tail
from drl_agents.monitoring.typed_json import label, parse_time

CURVE_BARS = 10_000  # the newest bars that are kept


class EquityCurve:
    """The newest `CURVE_BARS` lines of `equity.csv` (timestamp, equity, cash).

    Bar i of the file, counted from the first one read, is `time[i - first]` (seconds since 1970) and
    `equity[i - first]`. `version` changes when the file was begun anew: the bars of another version are not those of
    this one.
    """

    def __init__(self, path: Path) -> None:
        self._tail, self._where, self._broken = Tail(path), label(path), 0
        self.version, self.first = 0, 0
        self.time: list[float] = []
        self.equity: list[float] = []

    @property
    def end(self) -> int:
        """The number of the bar that comes next."""
        return self.first + len(self.time)

    def update(self, problems: list[str]) -> None:
        """Read what the file has gained. Lines that do not parse are left out and counted in `problems`."""
        lines, anew = self._tail.read(problems)
        if anew:
            self.version, self.first, self._broken = self.version + 1, 0, 0
            self.time, self.equity = [], []
        for line in lines:
            columns = line.split(",")
            if columns[0] == "timestamp":
                continue
            time = parse_time(columns[0])
            equity = finite(columns[1]) if len(columns) == 3 else None
            if time is None or equity is None:
                self._broken += 1
                continue
            self.time.append(time.timestamp())
            self.equity.append(equity)
        if self._broken:
            problems.append(f"{self._where}: {self._broken} lines are not timestamp,equity,cash and were left out")
        # A quarter over, so that not every new bar moves all the others.
        if len(self.time) > 1.25 * CURVE_BARS or anew:
            gone = max(0, len(self.time) - CURVE_BARS)
            self.first += gone
            for column in (self.time, self.equity):
                del column[:gone]


def finite(text: str) -> float | None:
    """The finite number `text` is, None where it is none."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
