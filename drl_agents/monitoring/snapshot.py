"""One reading of everything under `logs/`: the search, the paper trader, what is deployed, the machine.

The writers replace their JSON files atomically, so a reader sees a whole file or none. Whatever is missing,
broken or of the wrong type becomes a line in `Snapshot.problems`; nothing here raises because of a file.
"""

from __future__ import annotations

import json
import math
import socket
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from drl_agents.monitoring.curve import EquityCurve
from drl_agents.monitoring.deployment import read_deployment
from drl_agents.monitoring.gpu import DeviceSnapshot, take_device_snapshot
from drl_agents.monitoring.records import StudySnapshot
from drl_agents.monitoring.study import StudyReader
from drl_agents.monitoring.trader import TraderReader
from drl_agents.monitoring.trading_records import DeploymentSnapshot, TraderSnapshot
from environments.errors import InputError

DEVICE_SECONDS = 2.0  # between two questions to the machine: asking costs more than reading files


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

    def to_dict(self) -> dict[str, Any]:
        """The snapshot as plain values; None is what is not known."""
        return asdict(self)

    def to_json(self) -> str:
        """The snapshot as JSON text; undefined numbers are null."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False)


class Watcher:
    """Looks at `logs` again and again, and reads at each look only what has changed.

    Args:
        study, trader: what to look at; None: whatever was written to last.
    """

    def __init__(self, logs: str | Path = "logs", study: str | None = None, trader: str | None = None) -> None:
        self.logs, self.study, self.trader = Path(logs), study, trader
        self._studies: dict[str, StudyReader] = {}
        self._traders: dict[str, TraderReader] = {}
        self._device: tuple[float, DeviceSnapshot] | None = None
        self._curve: EquityCurve | None = None

    @property
    def curve(self) -> EquityCurve | None:
        """The equity, bar by bar, of the trader that the last snapshot shows."""
        return self._curve

    def take(self) -> Snapshot:
        """Look now."""
        logs, problems, now = self.logs, [], datetime.now(UTC)
        names: dict[str, list[str]] = {}
        for kind, find in (("study", find_studies), ("trader", find_traders)):
            try:
                names[kind] = find(logs)
            except InputError as error:
                names[kind] = []
                problems.append(str(error))
        studies, traders = names["study"], names["trader"]
        for kind, name, known in (("study", self.study, studies), ("trader", self.trader, traders)):
            if name is not None and name not in known:
                problems.append(f"{kind} {name!r} does not exist under {logs}")
        study = studies[0] if self.study is None and studies else self.study
        trader = traders[0] if self.trader is None and traders else self.trader
        seen_study = seen_trader = self._curve = None
        if study in studies:
            reader = self._studies.setdefault(study, StudyReader(logs / "studies" / study))
            seen_study = reader.read(now, problems)
        if trader in traders:
            follower = self._traders.setdefault(trader, TraderReader(logs / "paper" / trader, logs))
            seen_trader, self._curve = follower.read(now, problems), follower.curve
        return Snapshot(
            time=now.isoformat(timespec="milliseconds"),
            host=socket.gethostname(),
            logs=str(logs),
            studies=studies,
            traders=traders,
            study=seen_study,
            trader=seen_trader,
            deployment=read_deployment(logs / "deployment", problems),
            device=self._machine(),
            problems=problems,
        )

    def _machine(self) -> DeviceSnapshot:
        if self._device is None or time.monotonic() - self._device[0] > DEVICE_SECONDS:
            self._device = (time.monotonic(), take_device_snapshot())
        return self._device[1]


def take_snapshot(logs: str | Path = "logs", study: str | None = None, trader: str | None = None) -> Snapshot:
    """Read `logs` once; without a name, the study and the trader that were written to last."""
    return Watcher(logs, study, trader).take()


def find_studies(logs: str | Path) -> list[str]:
    """Names of the studies under `logs`, most recently written first; InputError where unreadable."""
    return _names(Path(logs) / "studies", "progress.json")


def find_traders(logs: str | Path) -> list[str]:
    """Names of the paper traders under `logs` that have said something of themselves, newest first."""
    folder = Path(logs) / "paper"
    return [name for name in _names(folder, "state.json") if (folder / name / "state.json").exists()]


def check_names(logs: str | Path, study: str | None = None, trader: str | None = None) -> None:
    """Raise InputError, listing what exists, where a name was asked for that does not."""
    for kind, name, find in (("study", study, find_studies), ("paper trader", trader, find_traders)):
        known = find(logs) if name is not None else []
        if name is not None and name not in known:
            listing = ", ".join(known) if known else "none yet; ./start_vectorized_training.sh makes one"
            raise InputError(f"no {kind} {name!r} under {logs}; there is: {listing}")


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
