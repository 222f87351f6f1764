"""RunLock and Interrupt within one process: what counts as held, and what is refused."""

import json
import os
import signal
import socket
import threading
from dataclasses import asdict, replace

import psutil
import pytest

from drl_agents.training.interrupt import MESSAGE, Interrupt
from drl_agents.training.runlock import LockHeldError, RunInfo, RunLock, is_alive, run_info
from environments.errors import InputError


@pytest.fixture
def lock(tmp_path):
    return RunLock(tmp_path / "logs" / "run.lock")


def put(lock, info):
    lock.path.parent.mkdir(parents=True, exist_ok=True)
    lock.path.write_text(json.dumps(asdict(info)))


def test_nobody_holds_a_lock_that_is_not_there(lock):
    assert lock.holder() is None


def test_acquire_records_this_process(lock):
    acquired = lock.acquire()
    assert acquired == RunInfo(os.getpid(), psutil.Process().create_time(), socket.gethostname())
    assert lock.holder() == acquired
    assert json.loads(lock.path.read_text()) == asdict(acquired)


def test_a_held_lock_is_refused_in_one_line_that_names_the_holder(lock):
    info = lock.acquire()
    with pytest.raises(LockHeldError, match=rf"pid {os.getpid()}, started 2\d\d\d-") as caught:
        RunLock(lock.path).acquire()
    assert caught.value.info == info
    assert "\n" not in str(caught.value)


def test_release_removes_the_lock_and_may_be_repeated(lock):
    lock.acquire()
    lock.release()
    assert not lock.path.exists()
    lock.release()


def test_context_manager_releases_after_an_error(lock):
    with pytest.raises(ZeroDivisionError), lock:
        assert lock.holder() is not None
        raise ZeroDivisionError
    assert lock.holder() is None


def test_a_pid_with_another_start_time_is_not_the_holder(lock):
    """The recycled pid: this very process lives under it, but it started later than the lock says."""
    put(lock, replace(run_info(os.getpid()), create_time=psutil.Process().create_time() - 3600))
    assert lock.holder() is None
    assert lock.acquire().pid == os.getpid()


def test_a_start_time_within_the_clock_tolerance_is_the_holder(lock):
    info = replace(run_info(os.getpid()), create_time=psutil.Process().create_time() + 1.0)
    put(lock, info)
    assert lock.holder() == info


def test_release_leaves_a_lock_that_somebody_else_took_since(lock):
    lock.acquire()
    other = replace(run_info(os.getppid()), create_time=1.0)
    put(lock, other)
    lock.release()
    assert json.loads(lock.path.read_text()) == asdict(other)


def test_transfer_names_the_process_to_signal(lock):
    lock.acquire()
    lock.transfer(os.getppid())
    assert RunLock(lock.path).holder().pid == os.getppid()
    lock.release()
    assert not lock.path.exists()


def test_transfer_needs_the_lock(lock):
    with pytest.raises(InputError, match="acquire it before"):
        lock.transfer(os.getppid())


def test_a_lock_of_another_host_is_an_error(lock):
    put(lock, RunInfo(os.getpid(), 0.0, "elsewhere.example"))
    for look in (lock.holder, lock.acquire):
        with pytest.raises(InputError, match=r"on host elsewhere\.example.*1970-01-01 00:00:00 UTC"):
            look()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": 1}', '{"pid": "x", "create_time": 1, "host": "h"}'])
def test_a_file_that_is_no_lock_is_an_error(lock, text):
    lock.path.parent.mkdir(parents=True)
    lock.path.write_text(text)
    with pytest.raises(InputError, match="not a run lock"):
        lock.holder()


def test_a_zombie_is_not_alive():
    child = os.fork()
    if child == 0:
        os._exit(0)
    info = run_info(child)
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    assert psutil.Process(child).status() == psutil.STATUS_ZOMBIE
    assert not is_alive(info)
    os.waitpid(child, 0)


def test_interrupt_restores_the_handlers_it_found():
    before = [signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)]
    with Interrupt():
        assert signal.getsignal(signal.SIGINT) not in before
    assert [signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)] == before


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_a_request_and_the_second_an_interrupt(capfd, signum):
    with Interrupt() as interrupt:
        assert not interrupt.requested
        os.kill(os.getpid(), signum)
        assert interrupt.requested
        assert capfd.readouterr().err == f"{MESSAGE}\n"
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signum)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert capfd.readouterr().err == ""


def test_outside_the_main_thread_interrupt_installs_nothing():
    before = signal.getsignal(signal.SIGINT)
    seen = []

    def work():
        with Interrupt() as interrupt:
            seen.append((signal.getsignal(signal.SIGINT), interrupt.requested))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(before, False)]
