"""What is known of a paper trader and the deployments: one class per file or part of a file they write."""

from __future__ import annotations

from dataclasses import dataclass, field

from drl_agents.monitoring.records import Data, derived, optional, unknown


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
class Risk:
    """What the trader may do: `state` is ACTIVE, REDUCING or HALTED, `reasons` say why, `limits` by name."""

    state: str = ""
    reasons: list[str] = optional(list)
    limits: dict = optional(dict)


@dataclass
class Latency:
    """From a bar's arrival to its orders' departure, in milliseconds: median and 99th percentile."""

    p50: float | None = None
    p99: float | None = None


@dataclass
class Prediction:
    """`prediction.json`: what the back-test expects of the model from the bar that closes at `start` on.

    After `bars[i]` further bars the cumulative log return lies below `q05[i]` with probability 0.05, below
    `q50[i]` with 0.5, below `q95[i]` with 0.95. `model` is whose prediction it is, `equity` what it began with.
    """

    bars: list[int] = field(default_factory=list)
    q05: list[float] = field(default_factory=list)
    q50: list[float] = field(default_factory=list)
    q95: list[float] = field(default_factory=list)
    start: str = ""
    model: str = optional(str)
    equity: float | None = optional(unknown)


@dataclass
class Outlook:
    """Where the equity stands in its prediction, `bars` bars after it began: `low` and `high` are the equity's 5 % and
    95 % quantiles, `where` is "inside", "below" or "above" them."""

    bars: int = 0
    low: float = 0.0
    high: float = 0.0
    where: str = ""


@dataclass
class Lineage:
    """Where the model comes from, as its bundle says: `fingerprint` is the data's, `value` the objective's."""

    study: str = ""
    trial: int | None = None
    value: float | None = None
    seed: int | None = None
    timesteps: int | None = None
    code_version: str = ""
    data: Data = field(default_factory=Data)


@dataclass
class TraderSnapshot:
    """`logs/paper/<name>/state.json` with `equity.csv` and `prediction.json`, and what follows from them.

    `state` is the file's, or "dead" where it says ACTIVE or REDUCING and its process is gone;
    `process_state` is "alive", "gone" or "unknown". Money is in the account's currency, `drawdown` and
    `max_drawdown` are fractions, profit = equity - initial_equity and
    profit_fraction = profit / initial_equity. `equity_curve` is the equity at bar closes from `curve_start`
    on, at most `CURVE_POINTS` evenly spaced bars of the newest `CURVE_BARS`. `reconciled` is when the trader's books
    last agreed with the broker's. `stale` says that state.json is old, `feed_stale` that the trader itself finds its
    market data old.
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
    risk: Risk | None = optional(unknown)
    reconciled: str | None = optional(unknown)
    latency_ms: Latency | None = optional(unknown)
    feed_stale: bool = derived(bool)
    prediction: Prediction | None = derived(unknown)
    outlook: Outlook | None = derived(unknown)
    lineage: Lineage | None = derived(unknown)
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
    bundle: str = optional(str)
    study: str = optional(str)
    reasons: list[str] = optional(list)
    details: dict = derived(dict)


@dataclass
class DeploymentSnapshot:
    """The bundle deployed last (`champions/<slot>.json`) and the last lines of `audit.jsonl`, oldest first."""

    champion: Champion | None = None
    audit: list[AuditEvent] = field(default_factory=list)
