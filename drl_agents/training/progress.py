"""Progress of a training run: how long its phases take, and the line that shows it."""

from __future__ import annotations

import logging
import time
from types import TracebackType

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Column

from drl_agents.training.device import GIB, memory_stats

logger = logging.getLogger(__name__)

LOG_EVERY_S = 10.0  # where there is no terminal


class PhaseClock:
    """Seconds of each phase of an iteration, without waiting for the device.

    On CUDA and ROCm the moments are events in the device's own queue (torch.cuda.Event), read once the iteration's
    figures have arrived, when they all lie in the past. Elsewhere they are the host's clock.

        clock.mark("rollout"); ...; clock.mark("update"); ...; clock.stop(); fetch the figures; clock.read()
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._events = device.type == "cuda"
        self._marks: list[tuple[str, torch.cuda.Event | float]] = []
        self._began = 0.0

    def mark(self, phase: str) -> None:
        """`phase` begins here, and the one before it ends."""
        if not self._marks:
            self._began = time.perf_counter()
        self._marks.append((phase, self._now()))

    def stop(self) -> None:
        """The last phase ends here."""
        self._marks.append(("", self._now()))

    def read(self) -> dict[str, float]:
        """{"seconds": since the first mark, "rollout_seconds": ..., ...}; the next iteration may begin."""
        result = {"seconds": time.perf_counter() - self._began}
        for (phase, begin), (_, end) in zip(self._marks, self._marks[1:], strict=False):
            spent = begin.elapsed_time(end) / 1000 if self._events else end - begin
            result[f"{phase}_seconds"] = spent
        self._marks = []
        return result

    def _now(self) -> torch.cuda.Event | float:
        if not self._events:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event


class TrainProgress:
    """One live line for a run: phase, iterations, steps/s, time to go, reward, KL divergence, explained variance.

    Without a terminal the same goes to the log, at most every ten seconds.

    Args:
        console: the terminal; None shows nothing there.
        device: on CUDA its reserved memory is shown as well.
    """

    def __init__(self, console: Console | None, device: torch.device) -> None:
        self.device, self._console = device, console
        self._wide = console is None or console.width >= 110
        self._bar = Progress(
            TextColumn("[bold]{task.description:<8}", table_column=Column(no_wrap=True, min_width=8)),
            BarColumn(bar_width=10 if self._wide else 5, table_column=Column(min_width=5)),
            TextColumn("{task.fields[rest]}", table_column=Column(no_wrap=True)),
            console=console, disable=console is None, refresh_per_second=4,
        )  # fmt: skip
        self._task = self._bar.add_task("starting", total=1.0, rest="")
        # Of this run alone, since a resumed one began at some share of its budget; compiling is left out.
        self._seconds, self._first_share = 0.0, 0.0
        self._logged = time.monotonic()
        self._compiled = False

    def __enter__(self) -> TrainProgress:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.stop()

    def begin(self, share: float) -> None:
        """share: the part of the budget that an earlier run has spent."""
        self._first_share = share

    def phase(self, name: str) -> None:
        """A phase begins; for `train(on_phase=)`."""
        self._bar.update(self._task, description=name)

    def iteration(self, done: int, limit: int | None, figures: dict[str, float]) -> None:
        """An iteration ended; for `train(on_iteration=)`."""
        compiling = figures.get("compile_seconds", 0.0)
        if compiling and not self._compiled:
            self._compiled = True
            logger.info("compiled in %.0f s, partly cached for the next run", compiling)
        self._seconds += figures["seconds"] - compiling
        text = f"{done}/{limit or '?'}  {self._text(figures)}"
        self._bar.update(self._task, completed=figures["share"], rest=text)
        if self._console is None and time.monotonic() - self._logged >= LOG_EVERY_S:
            self._logged = time.monotonic()
            logger.info("iteration %s", text)

    def eta(self, share: float) -> float | None:
        """Seconds to go when `share` of the budget is spent; None while that cannot be told."""
        spent = share - self._first_share
        return self._seconds * (1 - share) / spent if spent > 0 else None

    def _text(self, figures: dict[str, float]) -> str:
        parts = [f"{figures['steps_per_second']:,.0f} steps/s"]
        if (left := self.eta(figures["share"])) is not None:
            parts.append(f"ETA {span(left)}")
        fitting = "explained variance" if self._wide else "EV"
        for label, name in (("reward", "reward"), ("KL", "approx_kl"), (fitting, "explained_variance")):
            if name in figures:
                parts.append(f"{label} {figures[name]:.2g}")
        if self.device.type == "cuda":
            parts.append(f"{memory_stats(self.device).reserved / GIB:.1f} GiB reserved")
        return "  ".join(parts)


def span(seconds: float) -> str:
    """A length of time in words: 45s, 3m05s, 2h07m."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"
