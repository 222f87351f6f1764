"""`kill -9` at any moment: the run goes on from its last checkpoint and ends as if nothing had happened."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from drl_agents.training.checkpoint import load_checkpoint
from environments.errors import InputError
from tests.reference.script_forks import ROOT, ForkedScript, ScriptForks
from tests.reference.training_worker import MOMENTS

WORKER = "tests/reference/training_worker.py"
ITERATIONS = 40


@pytest.fixture(scope="module")
def forks(tmp_path_factory) -> Iterator[ScriptForks]:
    with ScriptForks(WORKER, tmp_path_factory.mktemp("forks"), late=()) as forks:
        yield forks


def train(forks: ScriptForks, checkpoint: Path) -> ForkedScript:
    return forks.start(str(checkpoint), str(ITERATIONS), cwd=ROOT)


def test_killed_at_a_random_iteration_and_resumed(forks, tmp_path):
    """Beside a run in an interpreter of its own that nothing interrupts."""
    command = [sys.executable, WORKER, str(tmp_path / "whole.pt"), str(ITERATIONS)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as whole:
        # The first checkpoint comes after the first line.
        killed_at = random.SystemRandom().randrange(2, ITERATIONS - 5)
        victim = train(forks, tmp_path / "killed.pt")
        victim.wait_for(str(killed_at))
        victim.kill()
        victim.communicate()
        assert victim.returncode == -signal.SIGKILL
        resumed = train(forks, tmp_path / "killed.pt")
        expected, found = (run.communicate(timeout=120)[0].split("\n") for run in (whole, resumed))
    assert found[0] != "1", "the resumed run began from the start"
    assert killed_at <= int(found[0]) < ITERATIONS, killed_at
    assert found[-2] == expected[-2] and expected[-2].startswith("digest"), killed_at


def test_killed_while_saving_the_old_checkpoint_stays(forks, tmp_path):
    """Half the bytes written; all written but not yet synced; synced but not yet moved into place."""
    runs = [forks.start(str(tmp_path / moment / "c.pt"), moment, cwd=ROOT) for moment in MOMENTS]
    for moment, run in zip(MOMENTS, runs, strict=True):
        out, err = run.communicate(timeout=120)
        assert out == "saved\n", (moment, err)
        assert run.returncode == -signal.SIGKILL, moment
        assert load_checkpoint(tmp_path / moment / "c.pt")["iteration"] == 1
    # What the first left behind is half a checkpoint, and is not taken for one.
    (left,) = (tmp_path / "fdopen").glob(".c.pt.*")
    assert 0 < left.stat().st_size < (tmp_path / "fdopen" / "c.pt").stat().st_size
    with pytest.raises(InputError, match="cut short"):
        load_checkpoint(left)
