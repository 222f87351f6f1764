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
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

import psutil

from drl_agents.monitoring.gpu import DeviceSnapshot, take_device_snapshot
from drl_agents.monitoring.records import (
    AuditEvent,
    Champion,
    DeploymentSnapshot,
    StudySnapshot,
    TraderSnapshot,
    Trial,
)
from drl_agents.monitoring.typed_json import fill, label, parse_json, parse_time, read_json, shown, tail_lines
from environments.errors import InputError

STUDY_STALE_SECONDS = 600.0  # or three trials at the study's own pace, whichever is longer
TRADER_STALE_SECONDS = 300.0  # or two bars, whichever is longer
CURVE_POINTS = 240  # more than any terminal is wide
AUDIT_EVENTS = 20


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
    raw = read_json(path, problems)
    if raw is None:
        return None
    study = fill(StudySnapshot, raw, label(path), problems)
    study.study = study.study or folder.name
    study.process = process_state(study.pid, study.process_started, study.host)
    if study.state == "running" and study.process == "gone":
        study.state = "dead"
    study.age_seconds = _age(study.updated, now, label(path), problems)
    pace = 3 * 3600 / study.trials_per_hour if study.trials_per_hour and study.trials_per_hour > 0 else 0.0
    study.stale = study.state == "running" and (study.age_seconds or 0) > max(STUDY_STALE_SECONDS, pace)
    study.best_so_far = thin(best_so_far(study.trials, study.objective.direction))
    return study


def read_trader(folder: Path, now: datetime, problems: list[str]) -> TraderSnapshot | None:
    """Read one paper trader's folder; None, with a problem noted, where its state.json cannot be read."""
    path = folder / "state.json"
    raw = read_json(path, problems)
    if raw is None:
        return None
    trader = fill(TraderSnapshot, raw, label(path), problems)
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
    trader.age_seconds = _age(trader.updated, now, label(path), problems)
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
    for line in tail_lines(path, problems):
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
        problems.append(f"{label(path)}: {broken} lines are not timestamp,equity,cash and were left out")
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
    if champion is not None and (raw := read_json(champion, problems)) is not None:
        deployment.champion = fill(Champion, raw, label(champion), problems)
    known, broken = {item.name for item in fields(AuditEvent)}, 0
    for line in tail_lines(audit, problems)[-AUDIT_EVENTS:]:
        try:
            raw = parse_json(line)
        except (ValueError, RecursionError):
            broken += 1
            continue
        event = fill(AuditEvent, raw, label(audit), problems, optional=("bundle", "study", "reasons"))
        if isinstance(raw, dict):
            event.details = {key: value for key, value in raw.items() if key not in known}
        deployment.audit.append(event)
    if broken:
        problems.append(f"{label(audit)}: {broken} lines are not JSON and were left out")
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


def _age(updated: str, now: datetime, where: str, problems: list[str]) -> float | None:
    time = parse_time(updated)
    if time is None:
        problems.append(f"{where}: 'updated' should be an ISO 8601 time, not {shown(updated)}")
        return None
    age = (now - time).total_seconds()
    if age < -60:
        problems.append(f"{where}: 'updated' is {-age:.0f} s in the future; the clocks differ")
    return max(0.0, age)
