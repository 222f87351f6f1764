"""What is known of a study, a paper trader and the deployments: one class per file or part of a file they write."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


def derived(factory: Callable[[], Any]) -> Any:
    """A field that is worked out here, not read from the file."""
    return field(default_factory=factory, metadata={"derived": True})


def unknown() -> None:
    """The default of a derived number."""
    return None


@dataclass
class Trial:
    """One trial of the search. `value` is in the objective's unit; `seconds` is its duration."""

    number: int | None = None
    state: str = ""
    value: float | None = None
    started: str = ""
    seconds: float | None = None
    params: dict = field(default_factory=dict)


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


@dataclass
class Position:
    """Shares held, at `price`; `weight` is the value as a fraction of equity."""

    symbol: str = ""
    shares: float | None = None
    price: float | None = None
    value: float | None = None
    weight: float | None = None


@dataclass
class Order:
    """One order and how far it was filled."""

    id: str = ""
    bar: str = ""
    symbol: str = ""
    side: str = ""
    quantity: float | None = None
    status: str = ""
    filled_quantity: float | None = None
    filled_price: float | None = None


@dataclass
class Process:
    """A process, told apart from a later one with the same pid by when it started (seconds since 1970)."""

    pid: int | None = None
    process_started: float | None = None


@dataclass
class TraderSnapshot:
    """`logs/paper/<name>/state.json` with `equity.csv`, and what follows from them.

    `state` is the file's, or "dead" where it says ACTIVE or REDUCING and its process is gone;
    `process_state` is "alive", "gone" or "unknown". Money is in the account's currency, `drawdown` and
    `max_drawdown` are fractions, profit = equity - initial_equity and
    profit_fraction = profit / initial_equity. `equity_curve` is the equity at bar closes from `curve_start`
    on, at most `CURVE_POINTS` evenly spaced bars of the last `TAIL_BYTES`.
    """

    name: str = ""
    model: str = ""
    study: str = ""
    trial: int | None = None
    broker: str = ""
    state: str = ""
    synthetic: bool | None = None
    timeframe: str = ""
    symbols: list[str] = field(default_factory=list)
    started: str = ""
    updated: str = ""
    bar: str = ""
    bars_done: int | None = None
    initial_equity: float | None = None
    equity: float | None = None
    cash: float | None = None
    drawdown: float | None = None
    max_drawdown: float | None = None
    fees: float | None = None
    n_orders: int | None = None
    n_fills: int | None = None
    positions: list[Position] = field(default_factory=list)
    orders: list[Order] = field(default_factory=list)
    process: Process = field(default_factory=Process)
    host: str = ""
    process_state: str = derived(lambda: "unknown")
    age_seconds: float | None = derived(unknown)
    stale: bool = derived(bool)
    profit: float | None = derived(unknown)
    profit_fraction: float | None = derived(unknown)
    equity_curve: list[float] = derived(list)
    curve_start: str = derived(str)


@dataclass
class Champion:
    """The deployed bundle; `sharpe` is the one it was promoted with."""

    bundle: str = ""
    path: str = ""
    study: str = ""
    trial: int | None = None
    promoted: str = ""
    sharpe: float | None = None


@dataclass
class AuditEvent:
    """One line of the deployment's audit trail; keys beyond these are in `details`."""

    time: str = ""
    event: str = ""
    bundle: str = ""
    study: str = ""
    reasons: list[str] = field(default_factory=list)
    details: dict = derived(dict)


@dataclass
class DeploymentSnapshot:
    """The bundle deployed last (`champions/<slot>.json`) and the last lines of `audit.jsonl`, oldest first."""

    champion: Champion | None = None
    audit: list[AuditEvent] = field(default_factory=list)
