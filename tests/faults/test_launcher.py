"""The launcher, its lock and Ctrl-C, with real processes and real signals.

`scripts/launch.py` runs here from a folder of its own, beside a short worker in the place of the search:
what is tested is who gets which signal when, not training.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import psutil
import pytest

from drl_agents.training.runlock import RunInfo, RunLock, is_alive, run_info, stop_run

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 20.0

# Works until it is asked to stop; then `finish` seconds more, as a trial that is being completed would.
WORKER = """
import argparse, json, os, sys, time
from pathlib import Path
from drl_agents.training.interrupt import Interrupt

parser = argparse.ArgumentParser()
parser.add_argument("--finish", type=float, default=0.0)
parser.add_argument("--exit", type=int)
options, rest = parser.parse_known_args()
here = Path(__file__).resolve().parent
if options.exit is not None:
    print("refused", file=sys.stderr)
    sys.exit(options.exit)
with Interrupt() as interrupt:
    (here / f"arguments-{os.getpid()}.json").write_text(json.dumps([os.getcwd(), *rest]))
    print("ready", flush=True)
    while not interrupt.requested:
        time.sleep(0.01)
    time.sleep(options.finish)
    (here / f"saved-{os.getpid()}").touch()
"""

# Hears no SIGINT at all.
DEAF = """
import signal, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
print("ready", flush=True)
time.sleep(60)
"""


def environment():
    return {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}


@pytest.fixture
def project(tmp_path):
    """A folder with the real launcher and the worker; whatever still runs from it is killed at the end."""
    scripts = tmp_path / "scripts"
    scripts.mkdir()
    shutil.copy(ROOT / "scripts" / "launch.py", scripts)
    (scripts / "optimize.py").write_text(WORKER)
    yield tmp_path
    holder = RunLock(tmp_path / "logs" / "launcher.lock").holder()
    if holder is not None:
        psutil.Process(holder.pid).kill()


@pytest.fixture
def spawn():
    """Start a command whose output is read through pipes; killed at the end if it still runs."""
    started = []

    def start(*command, **options):
        child = subprocess.Popen(
            [sys.executable, *map(str, command)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(),
            **options,
        )
        started.append(child)
        return child

    yield start
    for child in started:
        child.kill()
        child.communicate()


def wait_for(condition, what):
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen in {PATIENCE_S:g} s"
        time.sleep(0.02)


def launch(spawn, project, *arguments, **options):
    return spawn(project / "scripts" / "launch.py", *arguments, **options)


def ready(child):
    assert child.stdout.readline() == "ready\n"


def working(launcher, project):
    """Wait until the launcher's worker works and is the process in the lock; returns its RunInfo."""
    ready(launcher)
    wait_for(lambda: lock_of(project).holder().pid != launcher.pid, "the lock naming the worker")
    return lock_of(project).holder()


def saved(project):
    return {int(path.name.split("-")[1]) for path in (project / "scripts").glob("saved-*")}


def worker_arguments(project):
    (path,) = (project / "scripts").glob("arguments-*.json")
    folder, *arguments = json.loads(path.read_text())
    assert folder == str(project), "data/ and logs/ are the project's, wherever the launcher is called"
    return arguments


def lock_of(project):
    return RunLock(project / "logs" / "launcher.lock")


def test_ctrl_c_finishes_the_trial_and_releases_the_lock(spawn, project):
    launcher = launch(spawn, project, "--seed", "3")
    worker = working(launcher, project).pid
    launcher.send_signal(signal.SIGINT)
    _, error = launcher.communicate(timeout=PATIENCE_S)
    assert launcher.returncode == 0
    assert error.count("finishing the trials that are running") == 1
    assert saved(project) == {worker}
    assert not lock_of(project).path.exists()
    log = project / "logs" / "worker_vectorized.log"
    assert worker_arguments(project) == [
        *("--seed", "3", "--data-source", "sample", "--study-name", "sample_vectorized"),
        *("--n-envs", "12", "--n-trials", "12", "--timesteps", "10000", "--log-file", str(log)),
    ]


def test_a_signal_to_the_whole_process_group_counts_once(spawn, project):
    """What a terminal's Ctrl-C is: twice would have stopped the worker at once."""
    launcher = launch(spawn, project, "--finish", "0.5", start_new_session=True)
    ready(launcher)
    os.killpg(launcher.pid, signal.SIGINT)
    launcher.communicate(timeout=PATIENCE_S)
    assert launcher.returncode == 0
    assert len(saved(project)) == 1


def test_the_second_ctrl_c_stops_at_once(spawn, project):
    launcher = launch(spawn, project, "--finish", "60")
    ready(launcher)
    launcher.send_signal(signal.SIGINT)
    assert "finishing" in launcher.stderr.readline()
    time.sleep(0.3)
    launcher.send_signal(signal.SIGINT)
    launcher.communicate(timeout=PATIENCE_S)
    assert launcher.returncode == 128 + signal.SIGINT
    assert saved(project) == set()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["--data-source=alpaca", "--n_envs=4"], ["--study-name", "alpaca_vectorized"]),
        (["--data", "bars.parquet"], ["--study-name", "files_vectorized", "--n-envs", "12"]),
        (
            ["--study-name", "mine"],
            ["--data-source", "sample", "--n-envs", "12", "--n-trials", "12", "--timesteps", "10000"],
        ),
    ],
)
def test_defaults_are_added_only_where_none_was_given(spawn, project, given, expected):
    launcher = launch(spawn, project, *given)
    ready(launcher)
    launcher.send_signal(signal.SIGTERM)
    launcher.communicate(timeout=PATIENCE_S)
    assert worker_arguments(project)[:-2] == [*given, *expected]


def test_paths_are_relative_to_the_callers_folder(spawn, project, tmp_path):
    caller = tmp_path / "elsewhere"
    caller.mkdir()
    (caller / "a.parquet").touch()
    given = ["--data", "a.parquet", "missing.parquet", "--symbols", "a.parquet", "--log-file=run.log"]
    launcher = launch(spawn, project, *given, cwd=caller)
    ready(launcher)
    launcher.send_signal(signal.SIGINT)
    launcher.communicate(timeout=PATIENCE_S)
    assert worker_arguments(project)[:6] == [
        *("--data", str(caller / "a.parquet"), "missing.parquet"),
        *("--symbols", "a.parquet", f"--log-file={caller / 'run.log'}"),
    ]


def test_the_exit_status_is_the_workers(spawn, project):
    launcher = launch(spawn, project, "--exit", "7")
    _, error = launcher.communicate(timeout=PATIENCE_S)
    assert (launcher.returncode, error) == (7, "refused\n")
    assert lock_of(project).holder() is None


def test_a_second_launch_stops_the_first_and_waits_for_it(spawn, project):
    first = launch(spawn, project, "--finish", "0.7")
    earlier = working(first, project)
    second = launch(spawn, project)
    told = second.stdout.readline()
    assert told == f"An earlier run (pid {earlier.pid}, started {earlier.started}) is alive: stopping it\n"
    ready(second)
    assert saved(project) == {earlier.pid}, "the second began before the first had saved"
    first.communicate(timeout=PATIENCE_S)
    assert first.returncode == 0
    holder = lock_of(project).holder()
    assert holder is not None and holder.pid != earlier.pid, "the first removed the lock of the second"


def test_the_run_is_found_after_its_launcher_was_killed(spawn, project):
    launcher = launch(spawn, project)
    orphan = working(launcher, project)
    launcher.kill()
    launcher.wait()
    assert lock_of(project).holder() == orphan
    stop_run(orphan, finish_s=PATIENCE_S)
    assert saved(project) == {orphan.pid}
    assert lock_of(project).holder() is None


def test_help_does_not_disturb_a_run(spawn, project):
    launcher = launch(spawn, project)
    ready(launcher)
    helper = launch(spawn, project, "--n-envs", "3", "--help")
    output, _ = helper.communicate(timeout=PATIENCE_S)
    assert helper.returncode == 0 and "--detach" in output and "--finish" in output
    assert launcher.poll() is None and saved(project) == set()


def test_detached_run_outlives_its_launcher_and_writes_the_log(spawn, project):
    launcher = launch(spawn, project, "--detach")
    output, error = launcher.communicate(timeout=PATIENCE_S)
    assert (launcher.returncode, error) == (0, "")
    run = lock_of(project).holder()
    assert f"pid {run.pid}, log {project / 'logs' / 'worker_vectorized.log'}" in output
    assert os.getsid(run.pid) == run.pid
    assert "--detach" not in worker_arguments(project)
    stop_run(run, finish_s=PATIENCE_S)
    assert saved(project) == {run.pid}
    text = (project / "logs" / "worker_vectorized.log").read_text()
    assert text.startswith("ready\n") and "finishing the trials that are running" in text


def test_detached_run_that_dies_at_once_is_reported(spawn, project):
    launcher = launch(spawn, project, "--detach", "--exit", "5")
    output, error = launcher.communicate(timeout=PATIENCE_S)
    assert (launcher.returncode, output) == (5, "")
    assert error.startswith("refused\n") and "status 5" in error
    assert lock_of(project).holder() is None


def test_a_lock_of_another_host_is_one_line_and_status_2(spawn, project):
    (project / "logs").mkdir()
    lock_of(project).path.write_text(json.dumps(asdict(RunInfo(1, 0.0, "elsewhere.example"))))
    launcher = launch(spawn, project)
    _, error = launcher.communicate(timeout=PATIENCE_S)
    assert launcher.returncode == 2
    assert error.startswith("error: ") and "elsewhere.example" in error and error.count("\n") == 1
    lock_of(project).path.unlink()


def test_of_several_that_race_for_a_stale_lock_one_wins(spawn, tmp_path):
    path = tmp_path / "run.lock"
    path.write_text(json.dumps(asdict(replace(run_info(os.getpid()), create_time=0.0))))
    go = tmp_path / "go"
    code = (
        "import sys, time; from pathlib import Path\n"
        "from drl_agents.training.runlock import LockHeldError, RunLock\n"
        "print('ready', flush=True)\n"
        "while not Path(sys.argv[2]).exists(): pass\n"
        "try:\n    RunLock(sys.argv[1]).acquire(); print('won', flush=True); time.sleep(60)\n"
        "except LockHeldError: print('lost', flush=True)\n"
    )
    racers = [spawn("-c", code, path, go) for _ in range(4)]
    for racer in racers:
        ready(racer)
    go.touch()
    results = [racer.stdout.readline() for racer in racers]
    assert sorted(results) == ["lost\n"] * 3 + ["won\n"]
    assert RunLock(path).holder().pid == racers[results.index("won\n")].pid


def test_a_run_that_is_gone_is_replaced(spawn, tmp_path):
    child = spawn("-c", "pass")
    info = run_info(child.pid)
    child.wait()
    lock = RunLock(tmp_path / "run.lock")
    lock.path.write_text(json.dumps(asdict(info)))
    assert lock.holder() is None
    assert lock.acquire().pid == os.getpid()


def test_a_recycled_pid_is_neither_held_nor_signalled(spawn):
    bystander = spawn("-c", "print('ready', flush=True); import time; time.sleep(60)")
    ready(bystander)
    stop_run(replace(run_info(bystander.pid), create_time=0.0))
    time.sleep(0.1)
    assert bystander.poll() is None


def test_a_run_that_does_not_listen_is_killed_with_a_warning(spawn):
    child = spawn("-c", DEAF)
    ready(child)
    told = []
    stop_run(run_info(child.pid), finish_s=0.2, abort_s=0.2, report=told.append)
    assert child.wait() == -signal.SIGKILL
    assert len(told) == 2 and told[1].startswith("warning: ")


def test_a_suspended_run_is_woken_to_stop(spawn, project):
    launcher = launch(spawn, project)
    run = working(launcher, project)
    os.kill(run.pid, signal.SIGSTOP)
    wait_for(lambda: psutil.Process(run.pid).status() == psutil.STATUS_STOPPED, "the suspension")
    stop_run(run, finish_s=PATIENCE_S)
    assert saved(project) == {run.pid} and not is_alive(run)
