"""One reading of everything under `logs/`: the search, the paper trader, what is deployed, the machine.

The writers replace their JSON files atomically, so a reader sees a whole file or none. Whatever is missing,
broken or of the wrong type becomes a line in `Snapshot.problems`; nothing here raises because of a file.
"""

from __future__ import annotations

import json
import math
import os
import platform
import socket
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import psutil

from drl_agents.monitoring.gpu import DeviceSnapshot, take_device_snapshot
from environments.errors import InputError

STUDY_STALE_SECONDS = 600.0  # or three trials at the study's own pace, whichever is longer
TRADER_STALE_SECONDS = 300.0  # or two bars, whichever is longer
CURVE_POINTS = 240  # more than any terminal is wide
TAIL_BYTES = 1 << 18  # of a file that grows by one line per bar; about 5,000 bars
AUDIT_EVENTS = 20

Record = TypeVar("Record")


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


@dataclass
class Snapshot:
    """Everything at one moment; `studies` and `traders` are the names that exist, last written first."""

    time: str
    host: str
    logs: str
    studies: list[str]
    traders: list[str]
    study: StudySnapshot | None
    trader: TraderSnapshot | None
    deployment: DeploymentSnapshot | None
    device: DeviceSnapshot
    problems: list[str]

    @property
    def empty(self) -> bool:
        """True while nobody has written anything."""
        return not (self.study or self.trader or self.deployment or self.studies or self.traders)

    def to_json(self) -> str:
        """The snapshot as JSON text; undefined numbers are null."""
        return json.dumps(asdict(self), indent=2, allow_nan=False)


def take_snapshot(logs: str | Path = "logs", study: str | None = None, trader: str | None = None) -> Snapshot:
    """Read `logs`; without a name, the study and the trader that were written to last."""
    logs, problems, now = Path(logs), [], datetime.now(UTC)
    names: dict[str, list[str]] = {}
    for kind, find in (("study", find_studies), ("trader", find_traders)):
        try:
            names[kind] = find(logs)
        except InputError as error:
            names[kind] = []
            problems.append(str(error))
    studies, traders = names["study"], names["trader"]
    for kind, name, known in (("study", study, studies), ("trader", trader, traders)):
        if name is not None and name not in known:
            problems.append(f"{kind} {name!r} does not exist under {logs}")
    study = studies[0] if study is None and studies else study
    trader = traders[0] if trader is None and traders else trader
    return Snapshot(
        time=now.isoformat(timespec="seconds"),
        host=socket.gethostname(),
        logs=str(logs),
        studies=studies,
        traders=traders,
        study=read_study(logs / "studies" / study, now, problems) if study in studies else None,
        trader=read_trader(logs / "paper" / trader, now, problems) if trader in traders else None,
        deployment=read_deployment(logs / "deployment", problems),
        device=take_device_snapshot(),
        problems=problems,
    )


def find_studies(logs: str | Path) -> list[str]:
    """Names of the studies under `logs`, most recently written first; InputError where unreadable."""
    return _names(Path(logs) / "studies", "progress.json")


def find_traders(logs: str | Path) -> list[str]:
    """Names of the paper traders under `logs`, as `find_studies`."""
    return _names(Path(logs) / "paper", "state.json")


def check_names(logs: str | Path, study: str | None = None, trader: str | None = None) -> None:
    """Raise InputError, listing what exists, where a name was asked for that does not."""
    for kind, name, find in (("study", study, find_studies), ("paper trader", trader, find_traders)):
        known = find(logs) if name is not None else []
        if name is not None and name not in known:
            listing = ", ".join(known) if known else "none yet; ./start_vectorized_training.sh makes one"
            raise InputError(f"no {kind} {name!r} under {logs}; there is: {listing}")


def read_study(folder: Path, now: datetime, problems: list[str]) -> StudySnapshot | None:
    """Read one study's folder; None, with a problem noted, where its progress.json cannot be read."""
    path = folder / "progress.json"
    raw = _read_json(path, problems)
    if raw is None:
        return None
    study = fill(StudySnapshot, raw, _label(path), problems)
    study.study = study.study or folder.name
    study.process = process_state(study.pid, study.process_started, study.host)
    if study.state == "running" and study.process == "gone":
        study.state = "dead"
    study.age_seconds = _age(study.updated, now, _label(path), problems)
    pace = 3 * 3600 / study.trials_per_hour if study.trials_per_hour and study.trials_per_hour > 0 else 0.0
    study.stale = study.state == "running" and (study.age_seconds or 0) > max(STUDY_STALE_SECONDS, pace)
    study.best_so_far = thin(best_so_far(study.trials, study.objective.direction))
    return study


def read_trader(folder: Path, now: datetime, problems: list[str]) -> TraderSnapshot | None:
    """Read one paper trader's folder; None, with a problem noted, where its state.json cannot be read."""
    path = folder / "state.json"
    raw = _read_json(path, problems)
    if raw is None:
        return None
    trader = fill(TraderSnapshot, raw, _label(path), problems)
    trader.name = trader.name or folder.name
    trader.process_state = process_state(trader.process.pid, trader.process.process_started, trader.host)
    if trader.state in ("ACTIVE", "REDUCING") and trader.process_state == "gone":
        trader.state = "dead"
    if trader.equity is not None and trader.initial_equity is not None:
        trader.profit = trader.equity - trader.initial_equity
        trader.profit_fraction = trader.profit / trader.initial_equity if trader.initial_equity > 0 else None
    curve = read_equity(folder / "equity.csv", problems)
    trader.equity_curve = thin([equity for _, equity in curve])
    trader.curve_start = curve[0][0].isoformat() if curve else ""
    trader.age_seconds = _age(trader.updated, now, _label(path), problems)
    recent = [time.timestamp() for time, _ in curve[-50:]]
    bar = median(b - a for a, b in zip(recent, recent[1:], strict=False)) if len(recent) > 1 else 0.0
    trader.stale = trader.state in ("ACTIVE", "REDUCING") and (trader.age_seconds or 0) > max(
        TRADER_STALE_SECONDS, 2 * bar
    )
    return trader


def read_equity(path: Path, problems: list[str]) -> list[tuple[datetime, float]]:
    """(bar close, equity) of the last `TAIL_BYTES` of equity.csv; a last line without its newline is torn and
    ignored, other lines that do not parse are counted in `problems`."""
    rows, broken = [], 0
    for line in _tail_lines(path, problems):
        columns = line.split(",")
        if columns[0] == "timestamp":
            continue
        time = parse_time(columns[0])
        try:
            equity = float(columns[1])
        except (IndexError, ValueError):
            equity = math.nan
        if time is None or not math.isfinite(equity) or len(columns) != 3:
            broken += 1
        else:
            rows.append((time, equity))
    if broken:
        problems.append(f"{_label(path)}: {broken} lines are not timestamp,equity,cash and were left out")
    return rows


def read_deployment(folder: Path, problems: list[str]) -> DeploymentSnapshot | None:
    """Read the champion promoted last and the audit trail; None while neither exists. No champion is no problem."""
    audit = folder / "audit.jsonl"
    try:
        present = os.listdir(folder)
        pointers = list((folder / "champions").glob("*.json"))
        champion = max(pointers, key=lambda f: f.stat().st_mtime, default=None)
    except FileNotFoundError:
        return None
    except OSError as error:
        problems.append(f"{folder.name}: cannot be read ({error.strerror})")
        return None
    if champion is None and audit.name not in present:
        return None
    deployment = DeploymentSnapshot()
    if champion is not None and (raw := _read_json(champion, problems)) is not None:
        deployment.champion = fill(Champion, raw, _label(champion), problems)
    known, broken = {item.name for item in fields(AuditEvent)}, 0
    for line in _tail_lines(audit, problems)[-AUDIT_EVENTS:]:
        try:
            raw = _parse_json(line)
        except (ValueError, RecursionError):
            broken += 1
            continue
        event = fill(AuditEvent, raw, _label(audit), problems, optional=("bundle", "study", "reasons"))
        if isinstance(raw, dict):
            event.details = {key: value for key, value in raw.items() if key not in known}
        deployment.audit.append(event)
    if broken:
        problems.append(f"{_label(audit)}: {broken} lines are not JSON and were left out")
    return deployment


def process_state(pid: int | None, process_started: float | None, host: str) -> str:
    """ "alive", "gone", or "unknown" where the process ran on another host or may not be looked at.

    A pid is reused after its process ends, so the start time (psutil's create_time) must agree as well; two
    seconds of tolerance cover a clock that was set in between.
    """
    if pid is None or host not in (socket.gethostname(), platform.node()):
        return "unknown"
    try:
        process = psutil.Process(pid)
        same = process_started is None or abs(process.create_time() - process_started) < 2.0
        return "alive" if same and process.status() != psutil.STATUS_ZOMBIE else "gone"
    except (psutil.NoSuchProcess, ValueError, OverflowError):  # the last two: not a number a pid can have
        return "gone"
    except psutil.AccessDenied:
        return "unknown"


def best_so_far(trials: Iterable[Trial], direction: str) -> list[float]:
    """Running best of the complete trials by number: b_i = max(b_{i-1}, v_i), or min where minimised."""
    better = min if direction == "minimize" else max
    curve: list[float] = []
    for trial in sorted(trials, key=lambda trial: trial.number or 0):
        if trial.state.lower() == "complete" and trial.value is not None:
            curve.append(better(curve[-1], trial.value) if curve else trial.value)
    return curve


def thin(values: list[float], points: int = CURVE_POINTS) -> list[float]:
    """At most `points` of `values`, evenly spaced, the first and the last among them."""
    if len(values) <= points:
        return list(values)
    return [values[round(i * (len(values) - 1) / (points - 1))] for i in range(points)]


def parse_time(text: str) -> datetime | None:
    """An ISO 8601 time as an aware datetime (UTC where it names no zone), None where it is none."""
    try:
        time = datetime.fromisoformat(text.strip())
    except ValueError:
        return None
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def fill(cls: type[Record], raw: Any, where: str, problems: list[str], optional: tuple[str, ...] = ()) -> Record:
    """Make a `cls` from a JSON object by its fields' types.

    A null takes the field's default. A missing key or a value of another type does too, and is noted in
    `problems` as a line that starts with `where`, once however many records share the fault.
    """
    values: dict[str, Any] = {}
    complaints: list[str] = []
    if not isinstance(raw, dict):
        complaints.append(f"{where}: should be a JSON object, not {_shown(raw)}")
        raw = {}
    elif missing := [name for name in _schema(cls) if name not in raw and name not in optional]:
        complaints.append(f"{where}: lacks {', '.join(missing)}")
    for name, hint in _schema(cls).items():
        if raw.get(name) is None:
            continue
        try:
            values[name] = _convert(hint, raw[name], f"{where}, {name}", problems)
        except (TypeError, OverflowError):
            kind = {float: "a number", int: "a whole number", str: "text", bool: "true or false"}.get(hint)
            kind = kind or ("a list" if get_origin(hint) is list else "an object")
            complaints.append(f"{where}: {name!r} should be {kind}, not {_shown(raw[name])}")
    problems += [line for line in complaints if line not in problems]
    return cls(**values)


@cache
def _schema(cls: type) -> dict[str, Any]:
    """Field name -> type without None, for the fields that are read from files."""
    hints = get_type_hints(cls)
    names = [item.name for item in fields(cls) if "derived" not in item.metadata]
    return {
        name: next(iter(set(get_args(hints[name])) - {type(None)}))
        if type(None) in get_args(hints[name])
        else hints[name]
        for name in names
    }


def _convert(hint: Any, value: Any, where: str, problems: list[str]) -> Any:
    """`value` as `hint` says, TypeError where it is something else."""
    if is_dataclass(hint):
        return fill(hint, value, where, problems)
    if get_origin(hint) is list:
        if not isinstance(value, list):
            raise TypeError
        return [_convert(get_args(hint)[0], item, where, problems) for item in value]
    if hint in (int, float):
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise TypeError
        if hint is int and value != int(value):
            raise TypeError
        return hint(value)
    if not isinstance(value, hint):
        raise TypeError
    return value


def _parse_json(text: str) -> Any:
    """JSON in which NaN, the infinities and numbers beyond a float's range become None."""

    def finite(number: str) -> float | None:
        value = float(number)
        return value if math.isfinite(value) else None

    return json.loads(text, parse_constant=lambda _: None, parse_float=finite)


def _read_json(path: Path, problems: list[str]) -> dict | None:
    """The JSON object in a file; None, with a problem noted, where there is none."""
    try:
        raw = _parse_json(path.read_text(encoding="utf-8"))
        if isinstance(raw, dict):
            return raw
        problems.append(f"{_label(path)}: should be a JSON object, not {_shown(raw)}")
    except FileNotFoundError:
        problems.append(f"{_label(path)}: missing")
    except OSError as error:
        problems.append(f"{_label(path)}: cannot be read ({error.strerror})")
    except (ValueError, RecursionError) as error:
        problems.append(f"{_label(path)}: not JSON ({error})")
    return None


def _tail_lines(path: Path, problems: list[str]) -> list[str]:
    """The whole lines in the last `TAIL_BYTES` of a growing file."""
    try:
        with path.open("rb") as file:
            start = max(0, file.seek(0, 2) - TAIL_BYTES)
            file.seek(start)
            payload = file.read()
    except FileNotFoundError:
        problems.append(f"{_label(path)}: missing")
        return []
    except OSError as error:
        problems.append(f"{_label(path)}: cannot be read ({error.strerror})")
        return []
    lines = payload.decode("utf-8", errors="replace").split("\n")[:-1]
    return [line.rstrip("\r") for line in (lines[1:] if start else lines) if line.strip()]


def _names(folder: Path, file: str) -> list[str]:
    """Subfolders, those with the newest `file` first and those without it last."""

    def written(name: str) -> float:
        try:
            return (folder / name / file).stat().st_mtime
        except OSError:
            return -math.inf

    try:
        names = sorted(item.name for item in folder.iterdir() if item.is_dir() and item.name[0] != ".")
    except FileNotFoundError:  # nobody has written yet
        return []
    except OSError as error:
        raise InputError(f"{folder} should be a readable folder: {error.strerror}") from error
    return sorted(names, key=written, reverse=True)


def _label(path: Path) -> str:
    return f"{path.parent.name}/{path.name}"


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 30 else text[:29] + "…"


def _age(updated: str, now: datetime, where: str, problems: list[str]) -> float | None:
    time = parse_time(updated)
    if time is None:
        problems.append(f"{where}: 'updated' should be an ISO 8601 time, not {_shown(updated)}")
        return None
    age = (now - time).total_seconds()
    if age < -60:
        problems.append(f"{where}: 'updated' is {-age:.0f} s in the future; the clocks differ")
    return max(0.0, age)
