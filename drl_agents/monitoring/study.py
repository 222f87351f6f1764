"""Reading a study's folder: `<logs>/studies/<study>/progress.json`, and what follows from it."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from drl_agents.monitoring.liveness import age_seconds, process_state
from drl_agents.monitoring.records import StudySnapshot, Trial, Worker
from drl_agents.monitoring.typed_json import fill, label, read_json, stamp

STALE_SECONDS = 600.0  # or three trials at the study's own pace, whichever is longer
REFRESH_SHARE = 50
CURVE_POINTS = 240  # more than any terminal is wide


class StudyReader:
    """One study, looked at again and again: its file is parsed when it was written, not at every look."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / "progress.json"
        self._seen: tuple[int, ...] | None = None
        self._read: StudySnapshot | None = None
        self._problems: list[str] = []
        self._ranked: tuple[tuple[int | None, float], ...] = ()
        self._importances: dict[str, float] = {}

    def read(self, now: datetime, problems: list[str]) -> StudySnapshot | None:
        """The study as it is at `now`; None, with a problem noted, where its file cannot be read."""
        written = stamp(self.path)
        if written is None or written != self._seen:
            self._problems = []
            self._read, self._seen = self._parse(self._problems), written
        problems += self._problems
        if self._read is None:
            return None
        study = replace(self._read)
        study.process = process_state(study.pid, study.process_started, study.host)
        if study.state == "running" and study.process == "gone":
            study.state = "dead"
        study.workers = workers(study.trials) if study.state == "running" else []
        study.age_seconds = age_seconds(study.updated, now, label(self.path), problems)
        pace = 3 * 3600 / study.trials_per_hour if study.trials_per_hour and study.trials_per_hour > 0 else 0.0
        study.stale = study.state == "running" and (study.age_seconds or 0) > max(STALE_SECONDS, pace)
        return study

    def _parse(self, problems: list[str]) -> StudySnapshot | None:
        raw = read_json(self.path, problems)
        if raw is None:
            return None
        study = fill(StudySnapshot, raw, label(self.path), problems)
        study.study = study.study or self.folder.name
        study.best_so_far = thin(best_so_far(study.trials, study.objective.direction))
        study.importances = self._importance(study, problems)
        study.optuna = optuna_command(self.folder)
        return study

    def _importance(self, study: StudySnapshot, problems: list[str]) -> dict[str, float]:
        """Worked out anew when other trials are complete, once they are a fiftieth more: it takes seconds of 5,000."""
        done = [t for t in study.trials if t.state.lower() == "complete" and t.value is not None]
        ranked = tuple((t.number, t.value) for t in done)
        grown = len(ranked) - len(self._ranked)
        if ranked != self._ranked and not 0 < grown < len(ranked) / REFRESH_SHARE:
            # Optuna takes a second to import: not before there is something to work out.
            from drl_agents.search.importance import MIN_TRIALS, parameter_importances

            self._ranked, self._importances = ranked, {}
            if len(done) >= MIN_TRIALS:
                try:
                    pairs = [(t.params, t.value) for t in done]
                    self._importances = parameter_importances(pairs, study.objective.direction)
                except (ValueError, TypeError, RuntimeError) as error:  # parameters no search has
                    problems.append(f"{label(self.path)}: no importances ({error})")
        return self._importances


def workers(trials: Iterable[Trial]) -> list[Worker]:
    """The processes that run trials now, each with the numbers of its trials, by host and pid."""
    found: dict[tuple[str, int, float], Worker] = {}
    for trial in trials:
        own = trial.worker
        if trial.state.lower() != "running" or own is None or own.pid is None:
            continue
        key = (own.host, own.pid, own.process_started or 0.0)
        if key not in found:
            found[key] = replace(own, state=process_state(own.pid, own.process_started, own.host), trials=[])
        if trial.number is not None:
            found[key].trials.append(trial.number)
    return [found[key] for key in sorted(found)]


def optuna_command(folder: Path) -> str:
    """The command that opens Optuna's own dashboard on a study (https://optuna-dashboard.readthedocs.io).

    Empty where the study has no journal file of its own: the URL of another storage may hold a password.
    """
    journal = folder / "journal.log"
    return f"optuna-dashboard {shlex.quote(str(journal))}" if journal.is_file() else ""


def best_so_far(trials: Iterable[Trial], direction: str) -> list[float]:
    """Running best of the complete trials by number: b_i = max(b_{i-1}, v_i), or min where minimised."""
    better = min if direction == "minimize" else max
    curve: list[float] = []
    for trial in sorted(trials, key=lambda trial: trial.number or 0):
        if trial.state.lower() == "complete" and trial.value is not None:
            curve.append(better(curve[-1], trial.value) if curve else trial.value)
    return curve


def thin(values: list, points: int = CURVE_POINTS) -> list:
    """At most `points` of `values`, evenly spaced, the first and the last among them."""
    if len(values) <= points:
        return list(values)
    return [values[round(i * (len(values) - 1) / (points - 1))] for i in range(points)]
