"""A worker of a study as a process of its own, which trains nothing: how trials are shared out is in question.

Run as a script with one JSON argument, the keywords of `Workers.start`.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from drl_agents.search import claims, place, study
from drl_agents.search.objective import TrialOutcome
from tests.reference.script_forks import ForkedScript, ScriptForks

ROOT = Path(__file__).resolve().parents[2]
GO = signal.SIGUSR1


def scored(workload, configs, seeds, report) -> list[TrialOutcome]:
    """A trial is worth its learning rate, and its returns are that and its seed."""
    values = [config.hyper.learning_rate for config in configs]
    return [TrialOutcome(np.array([v]), np.array([v, s]), 1, 1.0) for v, s in zip(values, seeds, strict=True)]


class Workers:
    """Starts workers: forks of `forks`, a process that has the imports of this file."""

    def __init__(self, forks: ScriptForks) -> None:
        self.forks = forks

    def start(
        self,
        folder: Path,
        *,
        size: int,
        n_trials: int,
        storage: str | None = None,
        host: str | None = None,
        hangs_at: int | None = None,
    ) -> ForkedScript:
        """A worker that says "ready", waits to be let go, and says what `run_study` returned.

        Args:
            host: the name it gives its host. hangs_at: in the batch with this ordinal it says "hangs" and does no more.
        """
        keywords = {
            "folder": str(folder), "size": size, "n_trials": n_trials, "storage": storage, "host": host,
            "hangs_at": hangs_at,
        }  # fmt: skip
        return self.forks.start(json.dumps(keywords), cwd=ROOT)


@contextmanager
def workers_in(folder: Path) -> Iterator[Workers]:
    """folder: for what the workers say."""
    with ScriptForks("tests/reference/study_worker.py", folder, late=()) as forks:
        yield Workers(forks)


def let_go(*workers: ForkedScript) -> None:
    """Start them at once."""
    for worker in workers:
        worker.wait_for("ready")
    for worker in workers:
        worker.send_signal(GO)


def finish(*workers: ForkedScript) -> None:
    """Wait for each to find the study complete."""
    for worker in workers:
        out, err = worker.communicate(timeout=100)
        assert (worker.returncode, out) == (0, "ready\nTrue\n"), err


def main(keywords: dict[str, Any]) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, [GO])
    if keywords["host"]:
        claims.socket.gethostname = lambda: keywords["host"]
        place.BEAT_S, place.SILENCE_S = 1, 3

    def evaluated(workload, configs, seeds, report):
        time.sleep(0.02)
        opened_trials = [t for t in opened.get_trials(deepcopy=False) if t.user_attrs.get("seed") in seeds]
        if keywords["hangs_at"] in [t.user_attrs["ordinal"] for t in opened_trials]:
            print("hangs", flush=True)
            time.sleep(600)
        return scored(workload, configs, seeds, report)

    study.evaluate_batch = evaluated
    where = place.StudyPlace("s", Path(keywords["folder"]), keywords["storage"])
    opened = study.open_study(where, {"seed": 7})
    print("ready", flush=True)
    signal.sigwait([GO])
    done = study.run_study(opened, where, None, n_trials=keywords["n_trials"], seed=7, population=keywords["size"])
    print(done, flush=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
