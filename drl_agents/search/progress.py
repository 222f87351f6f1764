"""Progress of a study: what is shown while it runs, and what the dashboard reads.

`<study folder>/progress.json` is written anew, atomically, whenever something changed.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from datetime import UTC
from pathlib import Path
from typing import Any

import optuna
import psutil
from optuna.trial import FrozenTrial, TrialState
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from drl_agents.search.objective import OBJECTIVE_NAME, OBJECTIVE_UNIT
from drl_agents.search.study import counted
from drl_agents.training.record import now, plain
from environments.files import write_json

STATES = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
}


class StudyProgress:
    """Keeps `progress.json` and a line on the terminal.

    Args:
        facts: what the study is made of (source, symbols, timeframe, bars, fingerprint), for the dashboard.
        console: where the live line goes; None shows nothing.
    """

    def __init__(
        self,
        study: optuna.Study,
        folder: Path,
        n_trials: int,
        facts: Mapping[str, Any],
        synthetic: bool,
        console: Console | None,
    ) -> None:
        self.study, self.path, self.n_trials = study, folder / "progress.json", n_trials
        self.facts, self.synthetic = dict(facts), synthetic
        self.started, self.began = now(), time.monotonic()
        self.first = len(counted(study))
        self.state, self.phase = "running", "search"
        self.outcome: dict[str, Any] = {"report": None, "bundle": None, "gate": None}
        self.bar = Progress(
            TextColumn("[bold]{task.fields[label]}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
            TextColumn("{task.fields[rest]}"), console=console, auto_refresh=False,
        )  # fmt: skip
        self.task = self.bar.add_task("", total=n_trials, completed=self.first, label="trials", rest="")
        self.live = Live(self.bar, console=console, refresh_per_second=2) if console else None

    def __enter__(self) -> StudyProgress:
        if self.live:
            self.live.start()
        self.update()
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if self.live:
            self.live.stop()
        if kind is not None:
            self.state = "interrupted" if issubclass(kind, KeyboardInterrupt) else "failed"
        self.update()

    def enter(self, phase: str, label: str) -> None:
        """Go on to the next phase: refit, judge, deploy, paper, done."""
        self.phase = phase
        if phase == "done":
            self.state = "finished"
        if self.live:
            self.live.update(Group(self.bar, Text(label, style="dim")), refresh=True)
        self.update()

    def rate(self) -> tuple[float | None, float | None]:
        """(trials per hour of this run, seconds to go); None before the first trial ended."""
        done = len(counted(self.study))
        fresh = done - self.first
        if fresh <= 0:
            return None, None
        per_second = fresh / (time.monotonic() - self.began)
        return per_second * 3600, max(self.n_trials - done, 0) / per_second

    def update(self) -> None:
        """Look at the study and write what is there now."""
        trials = counted(self.study)
        running = self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        per_hour, eta = self.rate()
        done = [t for t in trials if t.state == TrialState.COMPLETE]
        best = max(done, key=lambda t: t.value, default=None)
        counts = {name: sum(t.state == state for t in trials) for state, name in STATES.items()}
        counts["running"] = len(running)
        everything = sorted([*trials, *running], key=lambda t: t.number)
        self.bar.update(self.task, completed=len(trials), rest=self._rest(per_hour, eta, best))
        write_json(
            self.path,
            plain(
                {
                    "study": self.study.study_name,
                    "state": self.state,
                    "phase": self.phase,
                    "pid": os.getpid(),
                    "process_started": psutil.Process().create_time(),
                    "host": socket.gethostname(),
                    "started": self.started,
                    "updated": now(),
                    "n_trials": self.n_trials,
                    "synthetic": self.synthetic,
                    "objective": {"name": OBJECTIVE_NAME, "unit": OBJECTIVE_UNIT, "direction": "maximize"},
                    "data": self.facts,
                    "counts": counts,
                    "trials_per_hour": per_hour,
                    "eta_seconds": eta,
                    "best": best and {"number": best.number, "value": best.value, "params": best.params},
                    "trials": [_trial(t) for t in everything],
                    **self.outcome,
                }
            ),
        )

    def _rest(self, per_hour: float | None, eta: float | None, best: FrozenTrial | None) -> str:
        parts = []
        if per_hour is not None:
            parts.append(f"{per_hour:.0f} trials/hour")
        if eta:
            parts.append(f"{_span(eta)} left")
        if best is not None:
            parts.append(f"best {best.value:.3f} (trial {best.number})")
        return "  ".join(parts)

    def line(self) -> str:
        """The same as one line, for logs."""
        per_hour, eta = self.rate()
        done = [t for t in counted(self.study) if t.state == TrialState.COMPLETE]
        best = max(done, key=lambda t: t.value, default=None)
        return f"{len(counted(self.study))}/{self.n_trials} trials  {self._rest(per_hour, eta, best)}"


def _trial(trial: FrozenTrial) -> dict[str, Any]:
    seconds = trial.duration.total_seconds() if trial.duration else None
    # Optuna keeps local time without saying so; the dashboard is told UTC.
    started = trial.datetime_start.astimezone(UTC).isoformat(timespec="seconds") if trial.datetime_start else None
    return {
        "number": trial.number,
        "state": STATES[trial.state],
        "value": trial.value if trial.state == TrialState.COMPLETE else None,
        "started": started,
        "seconds": seconds,
        "params": trial.params,
        "reason": trial.user_attrs.get("reason"),
        "worker": _worker(trial),
    }


def _worker(trial: FrozenTrial) -> dict[str, Any] | None:
    """Who runs a trial, as it signed; None once it has ended."""
    names = ("host", "pid", "process_started")
    if trial.state != TrialState.RUNNING or "host" not in trial.user_attrs:
        return None
    return {name: trial.user_attrs.get(name) for name in names}


def _span(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{rest:02d}s"
