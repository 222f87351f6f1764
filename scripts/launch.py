"""Start the vectorised training search, one run at a time; --detach runs it in the background.

usage: python scripts/launch.py [--detach] [option of scripts/optimize.py ...]

An earlier run of this folder that is alive is asked to finish its trial and save, and is waited for.
Defaults: --n-envs 12, --data-source sample, --study-name <source>_vectorized; for the sample also
--n-trials 12 --timesteps 10000, which takes two cores a few minutes.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType

from drl_agents.training.runlock import RunLock, stop_run
from environments.errors import InputError

ROOT = Path(__file__).resolve().parents[1]
OPTIMIZE = ROOT / "scripts" / "optimize.py"
LOCK = ROOT / "logs" / "launcher.lock"
LOG = ROOT / "logs" / "worker_vectorized.log"
PATH_OPTIONS = ("--data", "--data-dir", "--log-file")
SURVIVAL_S = 2.0
REPEAT_S = 0.2


def option(arguments: list[str], name: str) -> str | None:
    """The last value of `--name value` or `--name=value` (underscores count as dashes), else None."""
    value = None
    for index, argument in enumerate(arguments):
        key, equals, attached = argument.partition("=")
        if key.startswith("--") and key.replace("_", "-") == name:
            value = attached if equals else " ".join(arguments[index + 1 : index + 2])
    return value


def with_defaults(arguments: list[str]) -> list[str]:
    """`arguments` and the vectorised job's defaults for what they do not name."""
    added = []
    source = option(arguments, "--data-source")
    if source is None:
        if option(arguments, "--data") is None and option(arguments, "--data-dir") is None:
            source = "sample"
            added += ["--data-source", source]
        else:
            source = "files"
    if option(arguments, "--study-name") is None:
        added += ["--study-name", f"{source}_vectorized"]
    if option(arguments, "--n-envs") is None:
        added += ["--n-envs", "12"]
    if source == "sample":
        for name, value in (("--n-trials", "12"), ("--timesteps", "10000")):
            if option(arguments, name) is None:
                added += [name, value]
    return [*arguments, *added]


def with_absolute_paths(arguments: list[str]) -> list[str]:
    """`arguments` with the values of PATH_OPTIONS absolute: the search runs in the project's folder.

    A file to read that does not exist stays as it was typed, for the message that will say so.
    """
    result, name = [], ""
    for argument in arguments:
        value, prefix = argument, ""
        if argument.startswith("--"):
            name, equals, value = argument.partition("=")
            prefix = name + equals
            name = name.replace("_", "-")
        if value and name in PATH_OPTIONS and (name == "--log-file" or os.path.exists(value)):
            value = os.path.abspath(value)
        result.append(prefix + value)
    return result


def exit_status(returncode: int) -> int:
    """What a shell reports: the status, or 128 plus the signal that ended the process."""
    return returncode if returncode >= 0 else 128 - returncode


def run_attached(command: list[str], lock: RunLock) -> int:
    """Run `command` in this terminal until it ends; signals that reach us are passed on, once each."""
    child: subprocess.Popen | None = None
    early: list[int] = []
    last: dict[int, float] = {}

    def forward(signum: int, frame: FrameType | None) -> None:
        # Wrappers such as timeout(1) signal us and then our process group: that is one press, not two.
        now = time.monotonic()
        if now - last.get(signum, -REPEAT_S) < REPEAT_S:
            return
        last[signum] = now
        if child is None:
            early.append(signum)
        else:
            # A terminal that closes should not cost the trial: SIGTERM is the request to finish it.
            child.send_signal(signal.SIGTERM if signum == signal.SIGHUP else signum)

    def suspend(signum: int, frame: FrameType | None) -> None:
        if child is not None:
            child.send_signal(signal.SIGSTOP)
            os.kill(os.getpid(), signal.SIGSTOP)
            child.send_signal(signal.SIGCONT)

    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, forward)
    signal.signal(signal.SIGTSTP, suspend)
    # A process group of its own: the terminal sends Ctrl-C to all of the foreground group, and with the one
    # that we pass on the child would count two. A background group that writes to a terminal set to
    # `stty tostop` is suspended unless it ignores SIGTTOU, which a child inherits; and it has no keyboard.
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, process_group=0, cwd=ROOT)
    # The child's pid, so that a later launcher finds the run even when this one has been killed.
    lock.transfer(child.pid)
    for signum in early:
        child.send_signal(signum)
    return exit_status(child.wait())


def run_detached(command: list[str], lock: RunLock, log: Path) -> int:
    """Start `command` in a session of its own, writing to `log`, and see it through its first seconds."""
    log.parent.mkdir(parents=True, exist_ok=True)
    begin = log.stat().st_size if log.exists() else 0
    with log.open("ab") as output:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
    lock.transfer(child.pid)
    try:
        status = exit_status(child.wait(SURVIVAL_S))
    except subprocess.TimeoutExpired:
        print(f"Running in the background: pid {child.pid}, log {log}")
        print(f"  watch it:  tail -f {log}")
        print(f"  stop it:   kill -INT {child.pid}    (finishes its trial and saves; twice stops at once)")
        return 0
    with log.open("rb") as written:
        written.seek(begin)
        sys.stderr.write(written.read().decode(errors="replace"))
    lock.release()
    print(f"error: the run ended at once with status {status}; its output is above", file=sys.stderr)
    return status


def main(arguments: list[str]) -> int:
    """Stop an earlier run, take the lock and run scripts/optimize.py; returns the exit status."""
    if "--help" in arguments or "-h" in arguments:
        print(__doc__, flush=True)
        return subprocess.call([sys.executable, str(OPTIMIZE), "--help"])
    detach = "--detach" in arguments
    arguments = [argument for argument in arguments if argument != "--detach"]
    arguments = with_absolute_paths(with_defaults(arguments))
    named = option(arguments, "--log-file")
    log = Path(named) if named else LOG
    # Detached, standard output already goes to the log, and every line would be there twice.
    if not named and not detach:
        arguments += ["--log-file", str(log)]
    command = [sys.executable, str(OPTIMIZE), *arguments]

    lock = RunLock(LOCK)
    earlier = lock.holder()
    if earlier is not None:
        who = f"pid {earlier.pid}, started {earlier.started}"
        print(f"An earlier run ({who}) is alive: stopping it", flush=True)
        stop_run(earlier)
    lock.acquire()
    if detach:
        return run_detached(command, lock, log)
    try:
        return run_attached(command, lock)
    finally:
        lock.release()


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
