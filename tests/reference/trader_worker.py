"""A paper trader as a process that can be killed anywhere, forked from one that has everything imported.

`Traders` starts one parent process; each `run` forks a child from it that trades against a local venue until the
replay ends, or until it kills itself (SIGKILL) at a boundary: one of the moments around everything that leaves the
process, counted in order. Boundaries are before every statement of the journal and after every commit, before and after
every request, and around every rename of a file.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import requests
import torch

from drl_agents.deployment.bundle import load_bundle
from drl_agents.deployment.venues import replaying
from environments import files
from environments.data.credentials import Secret

ROOT = Path(__file__).resolve().parents[2]


class Traders:
    """The parent process; a context manager."""

    def __enter__(self) -> Traders:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self

    def __exit__(self, *error: object) -> None:
        self._process.stdin.close()
        self._process.wait(30)
        self._process.stdout.close()

    def run(self, **task: Any) -> dict[str, Any]:
        """One trader. task: bundle, url, folder; kill_at: a boundary's number, or none; timeout: of its requests.

        Returns:
            status ("done", "killed", "failed"), boundaries passed (of one that was not killed), error.
        """
        print(json.dumps(task), file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        assert line, "the parent of the traders is gone"
        return json.loads(line)


class Boundaries:
    """Counts the moments; at the chosen one the process is gone."""

    def __init__(self, kill_at: int | None) -> None:
        self.kill_at, self.passed, self.names = kill_at, 0, []

    def __call__(self, name: str) -> None:
        self.passed += 1
        self.names.append(name)
        if self.passed == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)


class WatchedConnection:
    """A SQLite connection that tells of every statement."""

    def __init__(self, connection: Any, boundary: Boundaries) -> None:
        self._connection, self._boundary = connection, boundary

    def execute(self, statement: str, *values: Any) -> Any:
        word = statement.split(maxsplit=1)[0]
        if word == "SELECT":
            return self._connection.execute(statement, *values)
        self._boundary(f"before {word}")
        result = self._connection.execute(statement, *values)
        if word == "COMMIT":
            self._boundary("after COMMIT")
        return result

    def close(self) -> None:
        self._connection.close()


def trade(task: dict[str, Any], bundle: Any) -> dict[str, Any]:
    """The child's life."""
    boundary = Boundaries(task.get("kill_at"))
    send, swap = requests.Session.send, os.replace

    def watched_send(session: Any, request: Any, **options: Any) -> Any:
        boundary(f"before {request.method}")
        answer = send(session, request, **options)
        boundary(f"after {request.method}")
        return answer

    def watched_swap(*names: Any) -> None:
        boundary("before rename")
        swap(*names)
        boundary("after rename")

    requests.Session.send = watched_send
    files.os.replace = watched_swap
    options = {"timeout": tuple(task["timeout"])} if "timeout" in task else {}
    options["sleep"] = lambda seconds: time.sleep(min(seconds, 0.002))
    with replaying(bundle, task["url"], (Secret("local"), Secret("local")), task["folder"], "t", **options) as trader:
        trader.journal._db = WatchedConnection(trader.journal._db, boundary)
        result = trader.run()
        return {"status": "done", "boundaries": boundary.passed, "names": boundary.names,
                "equity": result.equity.tolist(),
                "timestamps": result.timestamps.tolist(), "state": trader.state}  # fmt: skip


def forked(task: dict[str, Any], bundle: Any) -> dict[str, Any]:
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        try:
            answer = trade(task, bundle)
        except BaseException:
            answer = {"status": "failed", "error": traceback.format_exc()[-2_000:]}
        with os.fdopen(writer, "w") as pipe:
            pipe.write(json.dumps(answer))
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        text = pipe.read()
    _, status = os.waitpid(child, 0)
    return {"status": "killed"} if os.WIFSIGNALED(status) else json.loads(text)


def main() -> None:
    torch.set_num_threads(1)
    gc.disable()  # a collection in a child would copy every page it looks at
    gc.freeze()
    bundles: dict[str, Any] = {}
    for line in sys.stdin:
        task = json.loads(line)
        if task["bundle"] not in bundles:
            bundles[task["bundle"]] = load_bundle(task["bundle"])
        print(json.dumps(forked(task, bundles[task["bundle"]])), flush=True)


if __name__ == "__main__":
    main()
