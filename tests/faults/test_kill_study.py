"""The main job as a process of its own: killed, or stopped by Ctrl-C, it goes on and ends as it would have."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path

import pytest

from tests.reference.script_forks import ForkedScript, ScriptForks

ROOT = Path(__file__).resolve().parents[2]
JOB = (
    "--study-name s --n-trials 3 --n-envs 4 --timesteps 800 --n-splits 2 --test-groups 1 --n-seeds 1 "
    "--episode-length 60 --data-source synthetic --synthetic-options kind=momentum,n_bars=320,sigma=0.02 "
    "--min-deflated-sharpe 0 --max-pbo 1"
).split()
BATCHES = "--n-trials 4 --population 2 --seeds 2 --folds-per-batch 1".split()


Start = Callable[..., ForkedScript]


def command(logs: Path, *options: str) -> subprocess.Popen:
    """The plain command, in an interpreter of its own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, str(ROOT / "scripts" / "optimize.py"), *JOB, *options, "--logs", str(logs)],
        env=environment,
        cwd=logs.parent,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> Iterator[Start]:
    """`start(logs, *options)`: the same in a fork of a process that has its imports."""
    with ScriptForks("scripts/optimize.py", tmp_path_factory.mktemp("forks")) as forks:
        yield lambda logs, *options: forks.start(*JOB, *options, "--logs", str(logs), cwd=logs.parent)


def progress(logs: Path) -> dict:
    path = logs / "studies" / "s" / "progress.json"
    return json.loads(path.read_text()) if path.exists() else {"counts": {"running": 0}, "trials": []}


def wait_for_trial(run: ForkedScript, logs: Path, number: int) -> None:
    """Until trial `number` is being trained."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        assert run.poll() is None, run.communicate()
        if any(t["number"] == number and t["state"] == "running" for t in progress(logs)["trials"]):
            time.sleep(0.15)  # past its parameters, into its training
            return
        time.sleep(0.01)
    raise AssertionError(f"trial {number} never began")


def figures(logs: Path) -> dict:
    """What the report says, without times, folders and the trial's number: one tried again has another."""
    report = json.loads((logs / "studies" / "s" / "report" / "report.json").read_text())
    facts = report["facts"]
    study = facts["study"]
    bundle = json.loads((logs / "studies" / "s" / "bundle" / "bundle.json").read_text())
    return {
        "study": {k: study[k] for k in ("trials", "best_value", "best_fold_sharpes", "best_config")},
        "params": progress(logs)["best"]["params"],
        "weights": bundle["files"],
        **{k: facts[k] for k in ("gate", "overfitting", "seeds", "paper_trade", "holdout_looks", "data")},
        **{k: report[k] for k in ("model", "baselines")},
    }


class Whole:
    """The run that nothing interrupts; it works beside the others until it is asked for."""

    def __init__(self, logs: Path, *options: str) -> None:
        logs.parent.mkdir(exist_ok=True)
        self.logs, self.run = logs, command(logs, *options)

    @cached_property
    def figures(self) -> dict:
        out, err = self.run.communicate(timeout=120)
        assert self.run.returncode == 0, err
        assert "paper trader against back-test: largest relative difference" in out
        result = figures(self.logs)
        assert len(result["study"]["best_fold_sharpes"]) == 2
        assert result["model"]["figures"]["n_trades"]["value"] > 0
        return result


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Iterator[Whole]:
    run = Whole(tmp_path_factory.mktemp("whole") / "logs")
    yield run
    if run.run.poll() is None:  # no test came to its end
        run.run.kill()
        run.run.communicate()


def finish(start: Start, logs: Path, *options: str, n_trials: int = 3) -> dict:
    run = start(logs, *options)
    _, err = run.communicate(timeout=120)
    assert run.returncode == 0, err
    done = progress(logs)
    assert done["state"] == "finished" and sum(done["counts"][k] for k in ("complete", "pruned", "failed")) == n_trials
    return figures(logs)


def test_killed_in_the_middle_of_a_trial(start, whole, tmp_path):
    logs = tmp_path / "logs"
    run = start(logs)
    wait_for_trial(run, logs, 1)
    run.send_signal(signal.SIGKILL)
    run.communicate(timeout=60)
    assert run.returncode == -signal.SIGKILL
    assert progress(logs)["counts"]["running"] == 1
    assert finish(start, logs) == whole.figures


def test_stopped_by_one_signal(start, whole, tmp_path):
    """The trial in progress ends and is kept; the exit status says that there is more to do."""
    logs = tmp_path / "logs"
    run = start(logs)
    wait_for_trial(run, logs, 1)
    run.send_signal(signal.SIGINT)
    out, err = run.communicate(timeout=60)
    assert run.returncode == 130, err
    assert "press Ctrl-C again" in err and "Traceback" not in err
    assert "the study is saved" in out
    kept = progress(logs)
    assert kept["state"] == "interrupted" and kept["counts"]["running"] == 0
    assert [t["number"] for t in kept["trials"]] == [0, 1]
    assert not (logs / "studies" / "s" / "bundle").exists()
    assert finish(start, logs) == whole.figures


def test_stopped_by_two_signals(start, whole, tmp_path):
    """At once: the trial is given up, goes back in the queue, and is the same when it is tried again."""
    logs = tmp_path / "logs"
    run = start(logs)
    wait_for_trial(run, logs, 1)
    run.send_signal(signal.SIGINT)
    time.sleep(0.05)
    run.send_signal(signal.SIGINT)
    _, err = run.communicate(timeout=60)
    assert run.returncode == 130, err
    assert err.rstrip().endswith("stopped") and "Traceback" not in err
    kept = progress(logs)
    assert kept["state"] == "interrupted" and sum(kept["counts"][k] for k in ("complete", "pruned", "failed")) == 1
    assert finish(start, logs) == whole.figures


def test_killed_in_the_middle_of_a_batch(start, tmp_path):
    """All trials of the batch go back in the queue, and the study ends as the one that nothing interrupted."""
    undisturbed = Whole(tmp_path / "whole" / "logs", *BATCHES)
    logs = tmp_path / "logs"
    try:
        run = start(logs, *BATCHES)
        wait_for_trial(run, logs, 3)
        run.send_signal(signal.SIGKILL)
        run.communicate(timeout=60)
        kept = progress(logs)
        assert [t["number"] for t in kept["trials"] if t["state"] == "running"] == [2, 3]
        assert finish(start, logs, *BATCHES, n_trials=4) == undisturbed.figures
    finally:
        undisturbed.run.kill()
        undisturbed.run.communicate()
    numbers = [t["number"] for t in progress(logs)["trials"]]
    assert numbers == [0, 1, 4, 5]  # what was lost counts for nothing
