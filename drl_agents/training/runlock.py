"""One run at a time in a folder: who is running, and how to stop them without losing their work.

A lock file alone cannot say whether its owner is alive, and a pid alone cannot either, since the system
hands pids out again. The lock therefore records the pid together with the moment that process started.
"""

import fcntl
import json
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import psutil

from environments.errors import InputError
from environments.files import write_json

# The start time comes from the boot time plus a tick count, and the boot time moves when the clock is
# stepped. A pid is not handed out again within two seconds of its first owner's start.
START_TOLERANCE_S = 2.0
POLL_S = 0.05


@dataclass(frozen=True)
class RunInfo:
    """A process that runs or ran: its pid, its start (seconds since the epoch, UTC) and its host's name."""

    pid: int
    create_time: float
    host: str

    @property
    def started(self) -> str:
        """The start, as `2026-01-31 12:00:00 UTC`."""
        return datetime.fromtimestamp(self.create_time, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


class LockHeldError(InputError):
    """Another live run holds the lock; `info` says which."""

    def __init__(self, path: Path, info: RunInfo) -> None:
        super().__init__(
            f"{path} is held by a live run (pid {info.pid}, started {info.started}): "
            "stop it with Ctrl-C or kill -INT, or wait for it"
        )
        self.info = info


def run_info(pid: int) -> RunInfo:
    """Describe the process `pid` of this host. Raises psutil.NoSuchProcess when there is none."""
    return RunInfo(pid, psutil.Process(pid).create_time(), socket.gethostname())


def is_alive(info: RunInfo) -> bool:
    """Whether the very process `info` describes still runs on this host.

    False when the pid is gone, belongs to a process with another start time, or is a zombie: it has
    finished and only waits for its parent to notice.
    """
    try:
        process = psutil.Process(info.pid)
        recycled = abs(process.create_time() - info.create_time) > START_TOLERANCE_S
        return not recycled and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


class RunLock:
    """A lock file with the pid to signal in it. Works as a context manager.

    Args:
        path: the lock file, JSON with `pid`, `create_time` and `host`. A file beside it, with `.guard`
            appended, serialises changes among processes and stays behind, empty.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._mine: RunInfo | None = None

    def holder(self) -> RunInfo | None:
        """The live run that holds the lock, or None when there is no lock or its run is gone.

        Raises InputError when the file is not a lock, or was taken on another host: whether a process
        lives there cannot be told from here.
        """
        try:
            text = self.path.read_text()
        except FileNotFoundError:
            return None
        try:
            record = json.loads(text)
            info = RunInfo(int(record["pid"]), float(record["create_time"]), str(record["host"]))
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{self.path} is not a run lock (wanted JSON with pid, create_time, host): "
                "delete it if nothing is running"
            ) from error
        if info.host != socket.gethostname():
            raise InputError(
                f"{self.path} was taken on host {info.host} (pid {info.pid}, started {info.started}): "
                "stop that run there, or delete the file if it is over"
            )
        return info if is_alive(info) else None

    def acquire(self) -> RunInfo:
        """Take the lock for this process; a lock whose run is gone is replaced.

        Of several processes that try at once exactly one succeeds; the others get LockHeldError.
        """
        with self._guard():
            holder = self.holder()
            if holder is not None:
                raise LockHeldError(self.path, holder)
            return self._write(os.getpid())

    def transfer(self, pid: int) -> RunInfo:
        """Put another process's pid into a lock we hold: the one that others should signal.

        From then on the lock lives as long as that process does, even if this one is killed. Raises
        InputError when we do not hold the lock, psutil.NoSuchProcess when there is no such process.
        """
        with self._guard():
            if not self._is_mine():
                raise InputError(f"{self.path} is not held by this process: acquire it before a transfer")
            return self._write(pid)

    def release(self) -> None:
        """Remove the lock if it is still ours; a lock that somebody else has taken since is left alone."""
        with self._guard():
            if self._is_mine():
                self.path.unlink()
            self._mine = None

    def __enter__(self) -> "RunLock":
        self.acquire()
        return self

    def __exit__(self, *exception: object) -> None:
        self.release()

    def _write(self, pid: int) -> RunInfo:
        info = run_info(pid)
        write_json(self.path, asdict(info))
        self._mine = info
        return info

    def _is_mine(self) -> bool:
        return self._mine is not None and self.path.exists() and json.loads(self.path.read_text()) == asdict(self._mine)

    @contextmanager
    def _guard(self) -> Iterator[None]:
        # Creating the lock exclusively would not do: between reading a stale lock and removing it another
        # process may have replaced it. The system drops a flock when its owner dies, so it is never stale.
        self.path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(f"{self.path}.guard", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def stop_run(
    info: RunInfo,
    finish_s: float = 60.0,
    abort_s: float = 10.0,
    report: Callable[[str], None] = print,
) -> None:
    """Stop the run `info` as gently as it allows, and return when it is gone.

    SIGINT asks it to finish its trial and save. After `finish_s` seconds a second SIGINT makes it stop at
    once. After `abort_s` more it and its descendants are killed. Each escalation is told to `report`. A run
    that has gone already is left at that. Raises InputError when it belongs to another user.
    """
    try:
        _signal(info, signal.SIGINT)
        if _wait_until_gone(info, finish_s):
            return
        report(f"pid {info.pid} has not finished in {finish_s:g} s: asking it to stop at once")
        _signal(info, signal.SIGINT)
        if _wait_until_gone(info, abort_s):
            return
        report(f"warning: pid {info.pid} does not stop: killing it; its unsaved work is lost")
        process = psutil.Process(info.pid)
        descendants = process.children(recursive=True)
        for doomed in (process, *descendants):
            try:
                doomed.kill()
            except psutil.NoSuchProcess:
                continue
        if not _wait_until_gone(info, abort_s):
            raise InputError(f"pid {info.pid} cannot be killed: it hangs in the kernel; reboot or wait")
    except psutil.NoSuchProcess:
        return
    except psutil.AccessDenied as error:
        raise InputError(
            f"pid {info.pid} belongs to another user and may not be stopped: ask them, or use another folder"
        ) from error


def _signal(info: RunInfo, signum: signal.Signals) -> None:
    if is_alive(info):
        process = psutil.Process(info.pid)
        process.send_signal(signum)
        # A run that Ctrl-Z has suspended hears nothing before it is woken; to any other this is no event.
        process.send_signal(signal.SIGCONT)


def _wait_until_gone(info: RunInfo, timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    while is_alive(info):
        if time.monotonic() >= deadline:
            return False
        time.sleep(POLL_S)
    return True
