"""The training loop: explore, update, log, checkpoint."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from drl_agents.agents.base import AgentBase
from drl_agents.training.checkpoint import load_checkpoint, restore, save_checkpoint
from drl_agents.training.progress import PhaseClock
from drl_agents.training.record import RunRecord
from environments.errors import InputError
from environments.vec_env import VecEnv


class TrainingDiverged(RuntimeError):
    """A figure or a parameter became NaN or infinite.

    members: all members it happened to in that iteration; the message names the first.
    """

    def __init__(self, message: str, members: tuple[int, ...] = ()) -> None:
        super().__init__(message)
        self.members = members


@dataclass(frozen=True)
class Budget:
    """How long to train: exactly one of the three is given.

    timesteps: environment steps of each member, all its environments together. episodes: ended episodes of each
    member, at least. iterations: rollouts with their update.
    """

    timesteps: int | None = None
    episodes: int | None = None
    iterations: int | None = None

    def __post_init__(self) -> None:
        given = {name: value for name, value in vars(self).items() if value is not None}
        if len(given) != 1:
            raise InputError(f"give exactly one of timesteps, episodes, iterations, not {given or 'none'}")
        if next(iter(given.values())) < 1:
            raise InputError(f"{next(iter(given))}={next(iter(given.values()))}: at least 1 is needed")

    def limit(self, steps_per_iteration: int) -> int | None:
        """Iterations, where they are known beforehand."""
        if self.timesteps is not None:
            return math.ceil(self.timesteps / steps_per_iteration)
        return self.iterations


@dataclass(frozen=True)
class TrainResult:
    """What a training run came to.

    figures: the last iteration's, as lists over members. seconds: of all iterations, `compile_seconds` of them
    compiling. checkpoint: the file written last, None if none was.
    """

    iterations: int
    timesteps: int
    episodes: int
    seconds: float
    interrupted: bool
    figures: dict[str, list[float]]
    compile_seconds: float = 0.0
    checkpoint: Path | None = None

    @property
    def steps_per_second(self) -> float:
        """Environment steps of all members per second, compiling left out."""
        return self.timesteps / max(self.seconds - self.compile_seconds, 1e-9)


def train(
    agent: AgentBase,
    env: VecEnv,
    budget: Budget,
    *,
    record: RunRecord | None = None,
    checkpoint: str | Path | None = None,
    checkpoint_every: int = 50,
    resume: bool = False,
    start: tuple[int, int] = (0, 0),
    facts: dict[str, Any] | None = None,
    stop: Callable[[], bool] = lambda: False,
    interrupted_checkpoint: Callable[[int], Path] | None = None,
    on_iteration: Callable[[int, int | None, dict[str, float]], None] | None = None,
    on_phase: Callable[[str], None] | None = None,
    before_writing: Callable[[], None] = lambda: None,
) -> TrainResult:
    """Train until the budget is spent or `stop()` says so.

    An iteration waits for the device once, when its figures are fetched; its timing included.

    Args:
        record: written to after every iteration: figures as lists over members, then wall-clock seconds.
        checkpoint: file that is written every `checkpoint_every` iterations and at the end.
        resume: begin from `checkpoint` if it is there. The run then ends as it would have without the break.
        start: (iterations, episodes) done before, as `continue_from` gave them; `resume` overrides it.
        facts: what the run is made of, kept in the checkpoint; a resumed run must have the same.
        interrupted_checkpoint: the file, given the iterations done, that is written in place of `checkpoint` when
            `stop()` ended the run.
        on_iteration: called with (iterations done, iterations in all or None, figures): the agent's, averaged over
            members, the seconds of `PhaseClock.read`, steps_per_second (all members), compile_seconds, and
            share, the part of the budget that is spent.
        on_phase: called with "rollout", "update", and "critic" where it learns apart, when they begin.
        before_writing: called once, before the first file is written: what is wrong with an agent in its environment
            shows in the first iteration at the latest.

    Raises:
        TrainingDiverged: a figure is NaN or infinite, or every update of an iteration was skipped for gradients
            that were.
        InputError: the checkpoint is damaged or belongs to another run; learning would start when the budget is spent.
    """
    # As they will be read back; what JSON cannot hold is refused now and not when the run is resumed.
    facts = json.loads(json.dumps(facts))
    horizon = agent.config.horizon_len
    per_member = horizon * env.n_envs // env.n_members
    limit = budget.limit(per_member)
    done_iterations, episodes = start
    if resume and checkpoint is not None and Path(checkpoint).exists():
        done_iterations, episodes = continue_from(load_checkpoint(checkpoint), agent, env, facts)
    if limit is not None:
        if limit * per_member < (starts := getattr(agent.config, "learning_starts", 0)):
            raise InputError(f"learning_starts={starts}: accepted is at most the budget, {limit * per_member} steps")
        # Of the whole budget, not of what is left of it: a resumed run must compute as the unbroken one.
        agent.compiler.plan(limit * per_member * env.n_members)
    figures: dict[str, list[float]] = {}
    clock, first, compiled = PhaseClock(agent.device), done_iterations, agent.compiler.seconds
    started = time.perf_counter()
    saved: Path | None = None

    def share() -> float:
        return done_iterations / limit if limit is not None else min(1.0, episodes / budget.episodes)

    def finished() -> bool:
        return done_iterations >= limit if limit is not None else episodes >= budget.episodes

    prepare = cache(before_writing)

    def save(path: str | Path | None) -> Path | None:
        if path is not None:
            prepare()
            save_checkpoint(path, agent, env, done_iterations, {"facts": facts, "episodes": episodes})
        return None if path is None else Path(path)

    def phase(name: str) -> None:
        clock.mark(name)
        if on_phase is not None:
            on_phase(name)

    interrupted = False
    while not finished():
        if stop():
            interrupted = True
            break
        agent.progress = share()
        compiled_before = agent.compiler.seconds
        phase("rollout")
        rollout = agent.explore_env(env, horizon)
        phase("update")
        agent.on_phase = phase
        on_device = agent.update(rollout)
        del agent.on_phase  # who updates it by hand afterwards marks nothing here
        ended = rollout.by_member(rollout.terminated | rollout.truncated).sum(1)
        clock.stop()
        figures = _to_host({**on_device, "ended": ended.float()})
        seconds = clock.read()
        episodes += int(min(figures.pop("ended")))
        done_iterations += 1
        _check_finite(figures, done_iterations)
        compiling = agent.compiler.seconds - compiled_before
        seconds["steps_per_second"] = per_member * env.n_members / max(seconds["seconds"] - compiling, 1e-9)
        if compiling:
            seconds["compile_seconds"] = compiling
        if record is not None:
            prepare()
            record.write(
                {"iteration": done_iterations, "timesteps": done_iterations * per_member, **figures, **seconds}
            )
        if on_iteration is not None:
            line = {name: sum(values) / len(values) for name, values in figures.items()}
            on_iteration(done_iterations, limit, {**line, **seconds, "share": share()})
        if done_iterations % checkpoint_every == 0 and not finished():
            saved = save(checkpoint)
    saved = save(interrupted_checkpoint(done_iterations) if interrupted and interrupted_checkpoint else checkpoint)
    return TrainResult(
        iterations=done_iterations,
        timesteps=(done_iterations - first) * per_member * env.n_members,
        episodes=episodes,
        seconds=time.perf_counter() - started,
        interrupted=interrupted,
        figures=figures,
        compile_seconds=agent.compiler.seconds - compiled,
        checkpoint=saved,
    )


def continue_from(
    state: dict[str, Any], agent: AgentBase, env: VecEnv, facts: dict[str, Any] | None
) -> tuple[int, int]:
    """Put a loaded checkpoint back; returns (iterations, episodes) done.

    Raises:
        InputError: it is of other facts or another architecture; the message names the first difference. Nothing has
            been touched then.
    """
    check_facts(state["record"].get("facts"), json.loads(json.dumps(facts)))
    return restore(state, agent, env), int(state["record"]["episodes"])


def check_facts(saved: dict[str, Any] | None, own: dict[str, Any] | None) -> None:
    """Raises InputError naming the first fact in which a checkpoint's run differs from this one; which agent it is goes
    before that agent's hyper-parameters."""
    there, here = _flat(saved or {}), _flat(own or {})
    for name in sorted(set(there) | set(here), key=lambda name: (name != "agent_name", name)):
        if there.get(name) != here.get(name):
            raise InputError(
                f"checkpoint belongs to another run: {name} is {there.get(name)!r} there and {here.get(name)!r} here"
            )


def _flat(facts: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in facts.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


def _to_host(figures: dict[str, torch.Tensor]) -> dict[str, list[float]]:
    # One transfer for all figures: each transfer by itself waits for the device.
    stacked = torch.stack(list(figures.values())).tolist()
    return dict(zip(figures, stacked, strict=True))


def _check_finite(figures: dict[str, list[float]], iteration: int) -> None:
    diverged: dict[int, str] = {}
    for name, values in figures.items():
        for member, value in enumerate(values):
            if name == "grad_norm":
                continue  # a gradient that is not finite skips its update, and is counted
            if not math.isfinite(value):
                diverged.setdefault(member, f"{name} is {value}")
            elif name == "skipped_updates" and value >= 1:
                diverged.setdefault(member, "every gradient was NaN or infinite")
    if diverged:
        member, what = next(iter(diverged.items()))
        raise TrainingDiverged(f"iteration {iteration}, member {member}: {what}", tuple(sorted(diverged)))
