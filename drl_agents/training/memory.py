"""How much memory a run takes, measured on small ones, and the sizes that fit a budget.

An iteration has phases (building, rollout, advantages, learning), and its peak is the largest of theirs. The peak of a
phase is, with N environments on C clocks, T steps and minibatches of m samples,

    a + b N + c N T + d m  (+ e T C + f m C / N where environments share clocks)

whose coefficients are fitted to the peaks of a few small iterations of the actual environment and agent.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from drl_agents.agents.base import AgentBase
from drl_agents.agents.off_policy import AgentOffPolicy
from drl_agents.training.device import size_text
from environments.errors import InputError
from environments.vec_env import VecEnv

HEADROOM = 1.1  # a prediction may be off by a tenth, and the budget must hold
MAX_ENVS = 2**16
MIN_ITERATIONS = 10  # fewer updates than this are no training, whatever fits
MIN_HORIZON, MIN_BATCH = 16, 256
_PROBE_ENVS = {"cuda": 512}
_FEW_ENVS = 32


@dataclass(frozen=True)
class Sizes:
    """What memory depends on. n_envs: N, all members together. amp: as in `PPOConfig`."""

    n_envs: int
    horizon_len: int
    num_minibatches: int
    amp: str = "off"

    @property
    def samples(self) -> int:
        return self.n_envs * self.horizon_len

    @property
    def batch_size(self) -> float:
        """Samples of a minibatch."""
        return self.samples / self.num_minibatches


Build = Callable[[Sizes], tuple[AgentBase, VecEnv]]


class Meter:
    """Peak bytes of torch's memory on a device, phase by phase.

    On CUDA: of the allocator (torch.cuda.max_memory_allocated), all it holds. Elsewhere: every allocation and release
    that torch's profiler reports, from the first phase on; what was there before is not in it.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.peaks: dict[str, int] = {}
        self._phase: str | None = None
        self._live = 0
        # The tracer prints lines of its own to standard error unless it is told to be silent before its first use.
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")

    def phase(self, name: str) -> None:
        """The phase `name` begins, and the one before it ends."""
        self.stop()
        self._phase = name
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            self._profile = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
            self._profile.start()

    def stop(self) -> None:
        """The last phase ends."""
        if self._phase is None:
            return
        if self.device.type == "cuda":
            self.peaks[self._phase] = torch.cuda.max_memory_allocated(self.device)
        else:
            self._profile.stop()
            events = [e for e in self._profile.profiler.kineto_results.events() if e.name() == "[memory]"]
            changes = np.array([e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())], dtype=np.int64)
            levels = self._live + np.concatenate([[0], changes.cumsum()])
            self.peaks[self._phase], self._live = int(levels.max()), int(levels[-1])
        self._phase = None


def measure(build: Build, sizes: Sizes, device: torch.device) -> dict[str, int]:
    """Peak bytes of each phase of a iteration: building, rollout, advantages (of agents that have them), learning.

    The replay of an off-policy agent is made, whole, and learnt from in the last. On CUDA also "reserved": what the
    allocator held for all of it and gives back only when told to (torch.cuda.memory_reserved).
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    meter = Meter(device)
    meter.phase("building")
    agent, env = build(sizes)

    def metered(rollout):
        meter.phase("advantages")
        found = type(agent).advantages(agent, rollout)
        meter.phase("learning")
        return found

    meter.phase("rollout")
    rollout = agent.explore_env(env, sizes.horizon_len)
    if isinstance(agent, AgentOffPolicy):
        agent.timesteps = agent.config.learning_starts
    if hasattr(agent, "advantages"):
        agent.advantages = metered
    else:
        meter.phase("learning")
    agent.update(rollout)
    meter.stop()
    env.close()
    peaks = dict(meter.peaks)
    if device.type == "cuda":
        peaks["reserved"] = torch.cuda.memory_reserved(device)
    return peaks


@dataclass(frozen=True)
class MemoryModel:
    """The fitted formula of each phase. factor: what the allocator holds for each byte of tensors."""

    coefficients: dict[str, np.ndarray]
    clock_groups: int | None
    factor: float = 1.0

    @classmethod
    def fit(cls, measured: Sequence[tuple[Sizes, dict[str, int]]], clock_groups: int | None) -> MemoryModel:
        """Least squares over measured sizes; six in general position determine it."""
        columns = np.array([_columns(sizes, clock_groups) for sizes, _ in measured])
        scale = columns.max(0)
        found = {}
        for phase in measured[0][1]:
            if phase != "reserved":
                peaks = np.array([own[phase] for _, own in measured], dtype=np.float64)
                found[phase] = np.linalg.lstsq(columns / scale, peaks, rcond=None)[0] / scale
        largest = max((own for _, own in measured), key=lambda own: max(own.values()))
        tensors = max(value for phase, value in largest.items() if phase != "reserved")
        return cls(found, clock_groups, max(1.0, largest.get("reserved", tensors) / tensors))

    def phases(self, sizes: Sizes) -> dict[str, float]:
        """Bytes of each phase's peak."""
        columns = np.array(_columns(sizes, self.clock_groups))
        return {phase: self.factor * float(own @ columns) for phase, own in self.coefficients.items()}

    def peak(self, sizes: Sizes) -> float:
        """Bytes of the largest."""
        return max(self.phases(sizes).values())


def _columns(sizes: Sizes, clock_groups: int | None) -> list[float]:
    own = [1.0, sizes.n_envs, sizes.samples, sizes.batch_size]
    if clock_groups is not None:
        own += [sizes.horizon_len * clock_groups, sizes.batch_size * clock_groups / sizes.n_envs]
    return own


class Footprint:
    """Bytes of a run by its sizes, from measurements made when they are first needed.

    Args:
        build: (agent, environment) of one member for given sizes, uncompiled: compiled, a run needs no more.
        n_bars: B of the market, 0 without one. The policy embeds all bars at once where a rollout sees about as many
            (`AgentBase.market_table`), which is another amount of memory: small and large runs are measured apart.
        clock_groups: of the environment; None where each has its own clock.
    """

    def __init__(self, build: Build, device: torch.device, n_bars: int = 0, clock_groups: int | None = None) -> None:
        self.build, self.device, self.n_bars, self.clock_groups = build, device, n_bars, clock_groups
        self._models: dict[tuple[bool, str], MemoryModel] = {}
        self._warm = False

    def peak(self, sizes: Sizes) -> float:
        """Predicted peak bytes: on the CPU of the tensors a run adds to the market's, on CUDA of what is reserved."""
        table = self._table(sizes)
        key = (table, sizes.amp)
        if key not in self._models:
            probes = self._probes(sizes, table)
            if not self._warm:  # what a market computes once for all its environments is no part of a run
                self.build(probes[0])[1].close()
                self._warm = True
            measured = [(own, measure(self.build, own, self.device)) for own in probes]
            self._models[key] = MemoryModel.fit(measured, self.clock_groups)
        return self._models[key].peak(sizes)

    def _table(self, sizes: Sizes) -> bool:
        clocks = self.clock_groups or sizes.n_envs
        return self.n_bars <= 2 * sizes.horizon_len * clocks

    def _probes(self, sizes: Sizes, table: bool) -> list[Sizes]:
        """Six small sizes on the same side of the choice of `market_table` as `sizes`, as far as there are any."""
        unit = self.clock_groups or 1
        horizon, parts = max(sizes.horizon_len, 4), min(sizes.num_minibatches, 4)
        n = unit * 2 ** max(0, (_PROBE_ENVS.get(self.device.type, _FEW_ENVS) // unit).bit_length() - 1)
        if self.clock_groups is None:
            while table and not self._table(Sizes(n, horizon // 2, parts)):
                n *= 2
            while not table and n > 1 and self._table(Sizes(2 * n, horizon, parts)):
                n //= 2
        grid = [Sizes(many, steps, parts, sizes.amp) for many in (n, 2 * n) for steps in (horizon // 2, horizon)]
        return [*grid, *(Sizes(many, horizon, 2 * parts, sizes.amp) for many in (n, 2 * n))]


@dataclass(frozen=True)
class Plan:
    """The sizes that were chosen. predicted: bytes at the peak; reason: one line, what was chosen and why."""

    sizes: Sizes
    predicted: float
    reason: str


def plan_sizes(
    footprint: Footprint,
    start: Sizes,
    free: frozenset[str],
    budget: tuple[float, str],
    max_samples: int | None = None,
    batch_size: int | None = None,
    reduced: str | None = None,
) -> Plan:
    """The most environments (a power of two on each clock) whose run fits the budget, a tenth kept back.

    Where not even the fewest fit: smaller minibatches, then the reduced precision, then a shorter rollout.

    Args:
        start: the sizes as given or by default.
        free: the names among n_envs, horizon_len, num_minibatches, amp that may be changed.
        budget: (bytes, where they come from), of `device.MemoryOptions.budget`.
        max_samples: N * T to stay within, so that a budget of steps makes `MIN_ITERATIONS` iterations.
        batch_size: samples of a minibatch; the number of minibatches then follows from the rest.
        reduced: a precision that takes less memory, where the device has one.

    Raises:
        InputError: nothing fits; names the least and the budget.
    """
    limit, source = budget
    unit = footprint.clock_groups or 1
    counts = [start.n_envs]
    if "n_envs" in free:
        counts = [unit * 2**k for k in range(MAX_ENVS.bit_length()) if unit * 2**k <= MAX_ENVS][::-1] or [unit]
    horizons = [start.horizon_len]
    while "horizon_len" in free and horizons[-1] // 2 >= MIN_HORIZON:
        horizons.append(horizons[-1] // 2)
    parts = [1, 2, 4, 8, 16, 32, 64] if "num_minibatches" in free and batch_size is None else [1]
    precisions = [start.amp, *([reduced] if reduced and "amp" in free and start.amp == "off" else [])]
    least: tuple[float, Sizes] | None = None
    for horizon in horizons:
        for amp in precisions:
            for part in parts:
                for n_envs in counts:
                    groups = footprint.clock_groups or n_envs
                    if "n_envs" in free and max_samples and n_envs > unit and n_envs * horizon > max_samples:
                        continue
                    number = start.num_minibatches * part
                    if batch_size is not None:
                        if n_envs * horizon % batch_size or batch_size % (n_envs // groups):
                            continue
                        number = n_envs * horizon // batch_size
                    sizes = Sizes(n_envs, horizon, number, amp)
                    # Fewer samples than this train nothing: the next choice gives up more than it saves.
                    if (part > 1 and sizes.batch_size < MIN_BATCH) or number > horizon * groups:
                        continue
                    found = footprint.peak(sizes)
                    if least is None or found < least[0]:
                        least = found, sizes
                    if found * HEADROOM <= limit:
                        return Plan(sizes, found, _reason(footprint, sizes, found, free, limit, source, max_samples))
    if least is None:
        raise InputError(
            f"--batch-size {batch_size}: no number of environments that may be planned makes n_envs * n_steps "
            f"(n_steps {start.horizon_len}) a multiple of it"
            if batch_size is not None
            else f"num_minibatches={start.num_minibatches} is too many for {start.samples} samples"
        )
    raise InputError(
        f"memory: the least that could be planned takes {size_text(least[0])} and a tenth in reserve "
        f"(n_envs {least[1].n_envs}, n_steps {least[1].horizon_len}), the budget is {size_text(limit)} ({source})"
    )


def _reason(
    footprint: Footprint, sizes: Sizes, found: float, free: frozenset[str], limit: float, source: str, most: int | None
) -> str:
    why = "n_envs as given"
    if "n_envs" in free:
        twice = replace(sizes, n_envs=2 * sizes.n_envs)
        if twice.n_envs > MAX_ENVS:
            why = f"more than {MAX_ENVS} environments are not planned"
        elif most is not None and twice.samples > most:
            why = f"with more the steps would make fewer than {MIN_ITERATIONS} iterations"
        else:
            why = f"twice the environments would take {size_text(footprint.peak(twice))}"
    precision = {"off": "float32"}.get(sizes.amp, sizes.amp)
    return (
        f"planned n_envs {sizes.n_envs}, n_steps {sizes.horizon_len}, batch size {sizes.batch_size:.0f}, {precision}: "
        f"{size_text(found)} of {size_text(limit)} ({source}); {why}"
    )
