"""What is known of a study: one class per file or part of a file that it writes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


def derived(factory: Callable[[], Any]) -> Any:
    """A field that is worked out here, not read from the file."""
    return field(default_factory=factory, metadata={"derived": True})


def optional(factory: Callable[[], Any]) -> Any:
    """A field that a file may lack: not every writer, or not every version of it, has something to say there."""
    return field(default_factory=factory, metadata={"optional": True})


def unknown() -> None:
    """The default of a number that may not be known."""
    return None


@dataclass
class Worker:
    """A process that runs trials, told apart from a later one with the same pid by when it started.

    `state` is "alive", "gone" or "unknown" (another host); `trials` are those it runs.
    """

    host: str = ""
    pid: int | None = None
    process_started: float | None = None
    state: str = derived(lambda: "unknown")
    trials: list[int] = derived(list)


@dataclass
class Trial:
    """One trial of the search. `value` is in the objective's unit; `seconds` is its duration; `worker` runs it;
    `reason` is why it failed."""

    number: int | None = None
    state: str = ""
    value: float | None = None
    started: str = ""
    seconds: float | None = None
    params: dict = field(default_factory=dict)
    reason: str | None = optional(unknown)
    worker: Worker | None = optional(unknown)


@dataclass
class Best:
    """The best trial so far."""

    number: int | None = None
    value: float | None = None
    params: dict = field(default_factory=dict)


@dataclass
class Objective:
    """What the search optimises; `direction` is "maximize" or "minimize"."""

    name: str = ""
    unit: str = ""
    direction: str = "maximize"


@dataclass
class Data:
    """The market data a study was given."""

    source: str = ""
    symbols: list[str] = field(default_factory=list)
    timeframe: str = ""
    bars: int | None = None
    fingerprint: str = ""


@dataclass
class Counts:
    """Trials by state."""

    complete: int = 0
    pruned: int = 0
    failed: int = 0
    running: int = 0


@dataclass
class Gate:
    """Whether the study's model may be deployed, and why."""

    passed: bool | None = None
    reasons: list[str] = field(default_factory=list)


@dataclass
class StudySnapshot:
    """`logs/studies/<study>/progress.json` and what follows from it.

    `state` is the file's, or "dead" where it says running and its process is gone. `process` is "alive",
    "gone" or "unknown" (another host). `age_seconds` is the time since the file was last written.
    `best_so_far` is the running best over complete trials by number, at most `CURVE_POINTS` of them.
    `importances` are the parameters' shares of what separates good trials from the rest, they sum to one; empty
    while too few trials are complete. `workers` are the processes that run trials now. `optuna` is the command
    that opens Optuna's own dashboard.
    """

    study: str = ""
    state: str = ""
    phase: str = ""
    pid: int | None = None
    process_started: float | None = None
    host: str = ""
    started: str = ""
    updated: str = ""
    n_trials: int | None = None
    synthetic: bool | None = None
    objective: Objective = field(default_factory=Objective)
    data: Data = field(default_factory=Data)
    counts: Counts = field(default_factory=Counts)
    trials_per_hour: float | None = None
    eta_seconds: float | None = None
    best: Best | None = None
    trials: list[Trial] = field(default_factory=list)
    report: str | None = None
    bundle: str | None = None
    gate: Gate | None = None
    process: str = derived(lambda: "unknown")
    age_seconds: float | None = derived(unknown)
    stale: bool = derived(bool)
    best_so_far: list[float] = derived(list)
    importances: dict = derived(dict)
    workers: list[Worker] = derived(list)
    optuna: str = derived(str)
