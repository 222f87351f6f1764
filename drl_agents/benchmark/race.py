"""Competitors timed in turns, each in a process of its own.

Round r of every competitor comes before round r + 1 of any, so that what else the machine does falls on all of them
alike, and ratios are taken round by round. A process each keeps their threads, compilers and memory apart; while one
runs the others wait for a message and use no core.
"""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import resource
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection

import psutil
import torch

from drl_agents.benchmark.competitors import Competitor, HardwareMissing, our_competitor
from drl_agents.benchmark.gpu_busy import busy_share
from drl_agents.benchmark.operations import iteration_operations
from drl_agents.benchmark.peers import PeerMissing, peer_competitor
from drl_agents.benchmark.work import Configuration, Work
from drl_agents.training.device import pick_device, tune
from environments.errors import InputError

MEGABYTE = 2**20
SPIN = "GOMP_SPINCOUNT"


@dataclass(frozen=True)
class Setup:
    """How to time. device: "cpu", "cuda", "cuda:1", "mps". threads: CPU threads of one operation, for every competitor.

    repeats: timings of each competitor. seconds: about how long one timing takes; it is a whole number of calls.
    spin_count: turns an OpenMP thread waits busily before it sleeps (libgomp's GOMP_SPINCOUNT). libgomp's own default,
    300,000, is the fastest on an idle machine, for every competitor alike; the package's 1,000 is for a busy one.
    limit: seconds within which a competitor must be ready, and must end each timing: one that does not has failed, so
    that a run ends within (1 + repeats) * limit seconds for each.
    """

    device: str = "cpu"
    threads: int = 1
    repeats: int = 5
    seconds: float = 3.0
    spin_count: int = 300_000
    limit: float = 600.0

    def __post_init__(self) -> None:
        if self.repeats < 1 or self.threads < 1 or self.spin_count < 0 or not (self.seconds > 0 and self.limit > 0):
            raise InputError(
                f"repeats={self.repeats}, threads={self.threads}, spin_count={self.spin_count}, "
                f"seconds={self.seconds}, limit={self.limit}: accepted are >= 1, >= 1, >= 0, > 0, > 0"
            )


@dataclass
class Timing:
    """What a competitor did.

    status: "timed", "missing" (the machine lacks a package, or instructions, that it needs) or "failed"; reason:
    why, if not timed. compiled: whether torch.compile was used, of ours with a network.
    steps: environment steps of one call. calls: calls of one timing. seconds: of each timing.
    first_call_seconds: of the call before all, compilation included. memory_mb: the highest resident memory of the
    process above what it held before anything was built; on CUDA the highest memory torch reserved on the device.
    peak_resident_mb: the highest resident memory. gpu_busy: share of a call in which a kernel ran, on CUDA.
    operations: of one call, if the configuration is counted.
    """

    name: str
    status: str
    reason: str | None = None
    compiled: bool | None = None
    steps: int = 0
    calls: int = 0
    seconds: list[float] = field(default_factory=list)
    first_call_seconds: float | None = None
    memory_mb: float | None = None
    peak_resident_mb: float | None = None
    gpu_busy: float | None = None
    operations: int | None = None

    @property
    def rates(self) -> list[float]:
        """Environment steps per second of each timing."""
        return [self.steps * self.calls / s for s in self.seconds]

    @property
    def steps_per_second(self) -> float | None:
        """The median rate; None if it was not timed."""
        return statistics.median(self.rates) if self.seconds else None


def run_race(
    configurations: Sequence[Configuration],
    work: Work,
    setup: Setup,
    tell: Callable[[str], None] = lambda line: None,
) -> list[Timing]:
    """Time every configuration `setup.repeats` times, in turns; the order of a round is the last one's backwards.

    Args:
        tell: called with a line whenever something was done.

    Returns:
        one timing per configuration, in their order. One that cannot run says why and stops no other.
    """
    # Read when the processes load libgomp; this process has done so already.
    os.environ[SPIN] = str(setup.spin_count)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    racers: list[_Racer] = []
    try:
        for configuration in configurations:
            racers.append(_Racer(context, configuration, work, setup))
            timing = racers[-1].timing
            tell(f"{timing.name}: {timing.reason or f'ready after {timing.first_call_seconds:.1f} s'}")
        for turn in range(setup.repeats):
            for racer in racers if turn % 2 == 0 else racers[::-1]:
                racer.repeat()
            tell(f"round {turn + 1} of {setup.repeats}")
        for racer in racers:
            racer.finish()
    finally:
        for racer in racers:
            racer.close()
    return [racer.timing for racer in racers]


class _Racer:
    """The parent's end of one competitor."""

    def __init__(self, context, configuration: Configuration, work: Work, setup: Setup) -> None:
        self.timing = Timing(configuration.name, "timed", steps=configuration.steps(work))
        self.pipe, theirs = context.Pipe()
        self.limit = setup.limit
        # Not a daemon: torch.compile starts processes of its own.
        self.process = context.Process(target=_serve, args=(theirs, configuration, work, setup), daemon=False)
        self.process.start()
        theirs.close()
        if (ready := self._answer()) is not None:
            self.timing.first_call_seconds, self.timing.calls, self.timing.compiled = ready

    def repeat(self) -> None:
        if (seconds := self._ask("run")) is not None:
            self.timing.seconds.append(seconds)

    def finish(self) -> None:
        if (measured := self._ask("finish")) is not None:
            self.timing.memory_mb, self.timing.peak_resident_mb, self.timing.gpu_busy = measured[:3]
            self.timing.operations = measured[3]

    def close(self) -> None:
        self.pipe.close()
        self.process.join(10)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()

    def _ask(self, question: str):
        if self.timing.status != "timed":
            return None
        with contextlib.suppress(OSError):  # it has died; how is told below
            self.pipe.send(question)
        return self._answer()

    def _answer(self):
        try:
            if not self.pipe.poll(self.limit):
                return self._fail(f"no answer within {self.limit:g} s")
            status, value = self.pipe.recv()
        except EOFError:
            self.process.join(10)
            status, value = "failed", f"its process ended with status {self.process.exitcode}"
        if status == "timed":
            return value
        self.timing.status, self.timing.reason, self.timing.seconds = status, value, []
        return None

    def _fail(self, reason: str) -> None:
        """End the competitor, and the processes it may have started to compile."""
        self.timing.status, self.timing.reason, self.timing.seconds = "failed", reason, []
        with contextlib.suppress(psutil.NoSuchProcess):  # it has just ended by itself
            for child in psutil.Process(self.process.pid).children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):
                    child.kill()
        self.process.kill()


def _serve(pipe: Connection, configuration: Configuration, work: Work, setup: Setup) -> None:
    """A competitor's process: build, warm up, then answer until the pipe is closed."""
    try:
        _answer_all(pipe, configuration, work, setup)
    except (EOFError, BrokenPipeError):
        return
    except (InputError, PeerMissing, HardwareMissing) as error:
        pipe.send(("failed" if isinstance(error, InputError) else "missing", str(error)))
    except Exception as error:
        traceback.print_exc()
        line = (str(error).strip() or "no message").splitlines()[0]
        pipe.send(("failed", f"{type(error).__name__}: {line}"))


def _answer_all(pipe: Connection, configuration: Configuration, work: Work, setup: Setup) -> None:
    device = pick_device(setup.device)
    tune(device, setup.threads)
    torch.set_num_threads(setup.threads)  # beside a GPU too, for the peers that learn on the CPU
    before = psutil.Process().memory_info().rss
    make = our_competitor if configuration.learner == "ours" else peer_competitor
    market = work.market(device)
    competitor = make(configuration, work, market)
    first = _seconds(competitor, 1, device)
    _seconds(competitor, 1, device)  # on a GPU recorded in this call, and launched from the next on
    calls = max(1, round(setup.seconds / _seconds(competitor, 1, device)))
    pipe.send(("timed", (first, calls, competitor.compiled)))
    while True:
        if pipe.recv() == "run":
            pipe.send(("timed", _seconds(competitor, calls, device)))
            continue
        competitor.check()
        peak = _peak_resident()
        memory, busy = peak - before, None
        if device.type == "cuda":
            memory, busy = torch.cuda.max_memory_reserved(device), busy_share(competitor.call, device)
        operations = iteration_operations(configuration, work, market) if configuration.counted else None
        pipe.send(("timed", (memory / MEGABYTE, peak / MEGABYTE, busy, operations)))


def _seconds(competitor: Competitor, calls: int, device: torch.device) -> float:
    gc.collect()
    wait_for(device)
    started = time.perf_counter()
    for _ in range(calls):
        competitor.call()
    wait_for(device)
    return time.perf_counter() - started


def wait_for(device: torch.device) -> None:
    """Return when the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def _peak_resident() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1_024
