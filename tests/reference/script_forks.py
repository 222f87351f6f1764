"""Command lines run in processes forked from one that has everything imported.

A script spends seconds on its imports, which a test of what it does when it is killed need not pay for each time. A
fork is a process like any other: it has its own files, is sent real signals and leaves a real exit status. What hangs
on a new interpreter, such as the order of hashes, is for a run of the plain command beside it.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
LATE = ("arch.bootstrap", "matplotlib.backends.backend_agg", "matplotlib.pyplot")  # what scripts load at first use


class ForkedScript:
    """One running command line, with as much of `subprocess.Popen` as tests ask for.

    pid; returncode: as Popen's, None while it runs, -n if signal n ended it.
    """

    def __init__(self, pid: int, folder: Path) -> None:
        self.pid, self.folder = pid, folder
        self.returncode: int | None = None

    def poll(self) -> int | None:
        status = self.folder / "status"
        if self.returncode is None and status.exists():
            self.returncode = int(status.read_text())
        return self.returncode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        if self.poll() is None:
            self.send_signal(signal.SIGKILL)

    def communicate(self, timeout: float = 60.0) -> tuple[str, str]:
        """Wait for its end: (standard output, standard error).

        Raises:
            subprocess.TimeoutExpired: it still runs after `timeout` seconds.
        """
        until = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > until:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout)
            time.sleep(0.01)
        return (self.folder / "out").read_text(), (self.folder / "err").read_text()

    def wait_for(self, line: str, timeout: float = 60.0) -> None:
        """Until it has said this line.

        Raises:
            AssertionError: it ended, or `timeout` seconds passed, before that.
        """
        until = time.monotonic() + timeout
        while line not in (self.folder / "out").read_text().split("\n")[:-1]:
            assert self.poll() is None, self.communicate()
            assert time.monotonic() < until, f"process {self.pid} did not say {line!r} in {timeout:g} s"
            time.sleep(0.001)


class ScriptForks:
    """The process that is forked; a context manager."""

    def __init__(self, script: str, folder: Path, late: Sequence[str] = LATE) -> None:
        """script: a file of the project, whose imports it makes. folder: for what the runs say. late: imports beside
        those, of what the script loads at its first use.
        """
        self.script, self.folder, self.late = script, folder, late
        self.runs: list[ForkedScript] = []

    def __enter__(self) -> ScriptForks:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(ROOT / self.script), *self.late],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self

    def __exit__(self, *error: object) -> None:
        for run in self.runs:
            run.kill()
        self._process.stdin.close()
        self._process.wait(60)
        self._process.stdout.close()

    def start(self, *arguments: str, cwd: Path) -> ForkedScript:
        """`python <script> *arguments` in the folder `cwd`."""
        folder = self.folder / str(len(self.runs))
        folder.mkdir()
        (folder / "out").touch()
        task = {"arguments": arguments, "cwd": str(cwd), "folder": str(folder)}
        print(json.dumps(task), file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        assert line, "the process that is forked is gone"
        self.runs.append(ForkedScript(int(line), folder))
        return self.runs[-1]


def live(script: str, task: dict[str, Any]) -> None:
    """The child's life, which ends as an interpreter's does: what leaves here is its exit status."""
    for name, descriptor in (("out", 1), ("err", 2)):
        opened = os.open(Path(task["folder"]) / name, os.O_WRONLY | os.O_CREAT)
        os.dup2(opened, descriptor)
        os.close(opened)
    gc.enable()
    os.chdir(task["cwd"])
    sys.argv = [script, *task["arguments"]]
    runpy.run_path(script, run_name="__main__")


def watch(script: str, task: dict[str, Any]) -> bool:
    """Fork the child, tell its pid, wait for it and leave its status. True in the child, which is still to live."""
    child = os.fork()
    if child == 0:
        return True
    print(child, flush=True)
    _, status = os.waitpid(child, 0)
    partial = Path(task["folder"]) / "status.partial"
    partial.write_text(str(os.waitstatus_to_exitcode(status)))
    partial.replace(partial.with_suffix(""))
    return False


def main(script: str, late: Sequence[str]) -> None:
    import torch

    for module in late:
        importlib.import_module(module)

    torch.set_num_threads(1)
    runpy.run_path(script, run_name="imports alone")
    gc.disable()  # a collection in a child would copy every page it looks at
    gc.freeze()
    watchers: list[int] = []
    for line in sys.stdin:
        task = json.loads(line)
        watcher = os.fork()
        if watcher == 0:
            if not watch(script, task):
                os._exit(0)
            return live(script, task)
        watchers.append(watcher)
    for watcher in watchers:
        os.waitpid(watcher, 0)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
