"""A worker of a study as a process of its own, which trains nothing: how trials are shared out is in question.

Run as a script with one JSON argument, the keywords of `start`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from drl_agents.search import claims, place, study
from drl_agents.search.objective import TrialOutcome

ROOT = Path(__file__).resolve().parents[2]


def scored(workload, configs, seeds, report) -> list[TrialOutcome]:
    """A trial is worth its learning rate, and its returns are that and its seed."""
    values = [config.hyper.learning_rate for config in configs]
    return [TrialOutcome(np.array([v]), np.array([v, s]), 1, 1.0) for v, s in zip(values, seeds, strict=True)]


def start(
    folder: Path,
    *,
    size: int,
    n_trials: int,
    storage: str | None = None,
    host: str | None = None,
    hangs_at: int | None = None,
) -> subprocess.Popen:
    """A worker that says "ready", waits for a line, and says what `run_study` returned.

    Args:
        host: the name it gives its host. hangs_at: in the batch with this ordinal it says "hangs" and does no more.
    """
    keywords = {
        "folder": str(folder), "size": size, "n_trials": n_trials, "storage": storage, "host": host,
        "hangs_at": hangs_at,
    }  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, __file__, json.dumps(keywords)], env=environment, **pipes)


def let_go(*workers: subprocess.Popen) -> None:
    """Start them at once."""
    for worker in workers:
        assert worker.stdout.readline() == "ready\n", worker.stderr.read()
    for worker in workers:
        worker.stdin.write("go\n")
        worker.stdin.flush()


def finish(*workers: subprocess.Popen) -> None:
    """Wait for each to find the study complete."""
    for worker in workers:
        out, err = worker.communicate(timeout=100)
        assert (worker.returncode, out) == (0, "True\n"), err


def main(keywords: dict[str, Any]) -> None:
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
    sys.stdin.readline()
    done = study.run_study(opened, where, None, n_trials=keywords["n_trials"], seed=7, population=keywords["size"])
    print(done, flush=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
