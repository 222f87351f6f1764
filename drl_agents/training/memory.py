"""How much memory a run takes, measured on small ones.

An iteration has phases (building, rollout, advantages and in them an encoder's part, learning), and its peak is the
largest of theirs. The peak of a phase is, with N environments on C clocks, T steps and minibatches of m samples,

    a + b N + c N T + d m  (+ e T C + f m C / N where environments share clocks)

whose coefficients are fitted to the peaks of a few small iterations of the actual environment and agent. On the CPU an
encoder embeds the bars that differ alone (`AgentPPO.seen`); the last two terms are then, with C = N where each
environment has its own clock,

    e u(T C) + f u(m C / N) + g C

u(k) the different ones among k of the bars that can be seen; probes with half as many clocks tell f from d. Where
minibatches fall into pieces (`agents.pieces`), m are the samples of a piece.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from drl_agents.agents.base import AgentBase
from drl_agents.agents.off_policy import AgentOffPolicy
from drl_agents.agents.pieces import pieces
from environments.vec_env import VecEnv

_PROBE_ENVS = {"cuda": 512}
_FEW_ENVS = 32


@dataclass(frozen=True)
class Sizes:
    """What memory depends on. n_envs: N, all members together. amp: as in `PPOConfig`. clock_groups: of a probe, clocks
    of its environment; None: as the run's has them."""

    n_envs: int
    horizon_len: int
    num_minibatches: int
    amp: str = "off"
    clock_groups: int | None = None

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
        """The phase `name` begins, or goes on, and the one before it ends."""
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
            peak = torch.cuda.max_memory_allocated(self.device)
        else:
            self._profile.stop()
            events = [e for e in self._profile.profiler.kineto_results.events() if e.name() == "[memory]"]
            changes = np.array([e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())], dtype=np.int64)
            levels = self._live + np.concatenate([[0], changes.cumsum()])
            peak, self._live = int(levels.max()), int(levels[-1])
        self.peaks[self._phase] = max(peak, self.peaks.get(self._phase, 0))
        self._phase = None


def measure(build: Build, sizes: Sizes, device: torch.device, encoded: dict[str, int] | None = None) -> dict[str, int]:
    """Peak bytes of each phase of a iteration: building, rollout, advantages (of agents that have them) and in them
    encoding (of an encoder), learning.

    The replay of an off-policy agent is made, whole, and learnt from in the last. On CUDA also "reserved": what the
    allocator held for all of it and gives back only when told to (torch.cuda.memory_reserved).

    Args:
        encoded: is filled with the most windows that an encoder was given at once, in encoding and in learning.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    meter = Meter(device)
    meter.phase("building")
    agent, env = build(sizes)

    encoder = getattr(agent.policy, "encoder", None)
    rows = {} if encoded is None else encoded
    hooks = []

    def before_encoder(module, inputs):
        name = "learning" if learning else "encoding"
        rows[name] = max(rows.get(name, 0), inputs[0].shape[1])
        if not learning:
            meter.phase("encoding")

    def after_encoder(*call):
        if not learning:
            meter.phase("advantages")

    learning = False

    def metered(rollout):
        nonlocal learning
        # What an encoder takes is gone before the heads begin, and grows by another rule: a phase of its own.
        meter.phase("advantages" if encoder is None else "encoding")
        if encoder is not None:
            hooks.extend((encoder.register_forward_pre_hook(before_encoder),
                          encoder.register_forward_hook(after_encoder)))  # fmt: skip
        found = type(agent).advantages(agent, rollout)
        learning = True
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
    for hook in hooks:
        hook.remove()
    vars(agent).pop("advantages", None)
    peaks = dict(meter.peaks)
    if device.type == "cuda":
        agent.update(agent.explore_env(env, sizes.horizon_len))  # recorded, where it is: in memory of its own
        peaks["reserved"] = torch.cuda.memory_reserved(device)
    env.close()
    return peaks


@dataclass(frozen=True)
class MemoryModel:
    """The fitted formula of each phase. seen: B of its last form, None where that does not apply. cut: minibatches fall
    into pieces. factor: what the allocator holds for each byte of tensors."""

    coefficients: dict[str, np.ndarray]
    clock_groups: int | None
    seen: int | None = None
    cut: bool = False
    factor: float = 1.0

    @classmethod
    def fit(
        cls,
        measured: Sequence[tuple[Sizes, dict[str, int], dict[str, int]]],
        clock_groups: int | None,
        seen: int | None = None,
        cut: bool = False,
    ) -> MemoryModel:
        """Least squares over measured sizes; as many in general position as there are terms determine it.

        Args:
            measured: sizes, the phases' peaks, and what an encoder was given (of `measure`): how many different bars a
                small rollout has is a matter of chance, and the formula is for what is not measured.
        """
        found = {}
        for phase in measured[0][1]:
            if phase == "reserved":
                continue
            columns = np.array([_columns(phase, sizes, clock_groups, seen, cut, rows) for sizes, _, rows in measured])
            scale = columns.max(0)
            peaks = np.array([own[phase] for _, own, _ in measured], dtype=np.float64)
            found[phase] = np.linalg.lstsq(columns / scale, peaks, rcond=None)[0] / scale
        largest = max((own for _, own, _ in measured), key=lambda own: max(own.values()))
        tensors = max(value for phase, value in largest.items() if phase != "reserved")
        return cls(found, clock_groups, seen, cut, max(1.0, largest.get("reserved", tensors) / tensors))

    def phases(self, sizes: Sizes) -> dict[str, float]:
        """Bytes of each phase's peak."""
        return {
            phase: self.factor
            * float(own @ np.array(_columns(phase, sizes, self.clock_groups, self.seen, self.cut, {})))
            for phase, own in self.coefficients.items()
        }

    def peak(self, sizes: Sizes) -> float:
        """Bytes of the largest."""
        return max(self.phases(sizes).values())


def _columns(
    phase: str, sizes: Sizes, clock_groups: int | None, seen: int | None, cut: bool, encoded: dict[str, int]
) -> list[float]:
    own = [1.0, sizes.n_envs, sizes.samples]
    clocks = sizes.clock_groups or clock_groups or sizes.n_envs
    bars, part = sizes.horizon_len * clocks, sizes.batch_size * clocks / sizes.n_envs
    if seen is None:
        parts = pieces(int(part), sizes.n_envs // clocks) if cut else 1
        part /= parts
        return [*own, sizes.batch_size / parts, *([] if clock_groups is None else (bars, part))]
    # An encoder's work is told from the rest by what each phase is made of: more terms would fit noise.
    own.append(clocks)
    if phase in ("encoding", "advantages"):
        own.append(encoded.get("encoding", _different(bars, seen)))
    if phase == "learning":
        own += [sizes.batch_size, encoded.get("learning", _different(part, seen))]
    return own


def _different(k: float, seen: int) -> float:
    """How many different ones there are among k of `seen` bars, drawn with the same chance: B (1 - (1 - 1 / B)^k)."""
    return -seen * float(np.expm1(k * np.log1p(-1 / seen)))


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

    def peak(self, sizes: Sizes) -> float:
        """Predicted peak bytes: on the CPU of the tensors a run adds to the market's, on CUDA of what is reserved."""
        table = self._table(sizes)
        key = (table, sizes.amp)
        if key not in self._models:
            seen = self._facts.seen  # built for before anything is measured: what a market computes once is of no run
            measured = []
            for own in self._probes(sizes, table):
                rows: dict[str, int] = {}
                measured.append((own, measure(self.build, own, self.device, rows), rows))
            self._models[key] = MemoryModel.fit(measured, self.clock_groups, seen, self._facts.cut)
        return self._models[key].peak(sizes)

    def most_minibatches(self, sizes: Sizes) -> int:
        """The most that the agent accepts of a rollout of such sizes: a minibatch is made of whole sequences, one for
        each clock, where the policy remembers, else of bars that were seen, and of two samples at least where
        advantages are normalised. 0 where environments must share clocks and would not."""
        facts, clocks = self._facts, sizes.clock_groups or self.clock_groups or sizes.n_envs
        if facts.shares and clocks == sizes.n_envs:
            return 0
        if facts.remembers:
            return clocks
        bars = clocks * sizes.horizon_len
        return bars // 2 if facts.pairs and clocks == sizes.n_envs else bars

    @cached_property
    def _facts(self) -> _Facts:
        agent, env = self.build(Sizes(2 * (self.clock_groups or 1), 4, 1))
        seen = None
        if self.device.type == "cpu" and env.rows is not None and getattr(agent.policy, "encoder", None) is not None:
            starts, stops = env.starts.starts, env.starts.stops
            seen = int(sum(stop - starts[stops == stop].min() for stop in stops.unique()))
        env.close()
        own = agent.config
        normalised, based = (getattr(own, name, False) for name in ("norm_adv", "group_baseline"))
        return _Facts(seen, getattr(agent, "cuts", False), agent.policy.memory_size > 0, normalised, based)

    def _table(self, sizes: Sizes) -> bool:
        clocks = sizes.clock_groups or self.clock_groups or sizes.n_envs
        return self.n_bars <= 2 * sizes.horizon_len * clocks

    def _probes(self, sizes: Sizes, table: bool) -> list[Sizes]:
        """Small sizes on the same side of the choice of `market_table` as `sizes`, as far as there are any."""
        unit, amp = self.clock_groups or 1, sizes.amp
        horizon, parts = max(sizes.horizon_len, 4), min(sizes.num_minibatches, 4)
        n = unit * 2 ** max(0, (_PROBE_ENVS.get(self.device.type, _FEW_ENVS) // unit).bit_length() - 1)
        halved = self.clock_groups is None and self._facts.seen is not None
        if self.clock_groups is None:
            least = 2 if halved else 1
            while table and not self._table(Sizes(n // least, horizon // 2, parts)):
                n *= 2
            while not table and n > least and self._table(Sizes(2 * n, horizon, parts)):
                n //= 2
        n = max(n, 2 * unit, 2 * parts if self._facts.remembers and self.clock_groups is None else 1)
        # Of shared clocks the length alone decides on the side.
        other = horizon // 2 if self._table(Sizes(n, horizon // 2, parts)) == table else 2 * horizon
        grid = [Sizes(many, steps, parts, amp) for many in (n, 2 * n) for steps in (other, horizon)]
        finer = [Sizes(many, horizon, 2 * parts, amp) for many in (n, 2 * n)]
        found = [*grid, *finer]
        if halved:
            fewer = [replace(own, clock_groups=own.n_envs // 2) for own in (grid[1], grid[3], finer[1])]
            found = [*grid, finer[1], *fewer]
        return [own for own in found if own.num_minibatches <= self.most_minibatches(own)]


@dataclass(frozen=True)
class _Facts:
    """What sizes mean to an agent. seen: bars that can be seen, where it embeds those that differ alone. cut: learns
    from pieces. remembers: from whole sequences. pairs: of two samples at least. shares: of environments that share
    clocks alone."""

    seen: int | None
    cut: bool
    remembers: bool
    pairs: bool
    shares: bool
