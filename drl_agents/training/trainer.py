"""The training loop: explore, update, log, checkpoint."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from drl_agents.agents.ppo import AgentPPO
from drl_agents.training.checkpoint import load_checkpoint, restore, save_checkpoint
from drl_agents.training.record import RunRecord
from environments.errors import InputError
from environments.vec_env import VecEnv


class TrainingDiverged(RuntimeError):
    """A figure or a parameter became NaN or infinite."""


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
    """What a training run came to. figures: the last iteration's, as lists over members."""

    iterations: int
    timesteps: int
    episodes: int
    seconds: float
    interrupted: bool
    figures: dict[str, list[float]]

    @property
    def steps_per_second(self) -> float:
        return self.timesteps / max(self.seconds, 1e-9)


def train(
    agent: AgentPPO,
    env: VecEnv,
    budget: Budget,
    *,
    record: RunRecord | None = None,
    checkpoint: str | Path | None = None,
    checkpoint_every: int = 50,
    resume: bool = False,
    facts: dict[str, Any] | None = None,
    stop: Callable[[], bool] = lambda: False,
    on_iteration: Callable[[int, int | None, dict[str, float]], None] | None = None,
) -> TrainResult:
    """Train until the budget is spent or `stop()` says so.

    Args:
        record: written to after every iteration.
        checkpoint: file that is written every `checkpoint_every` iterations and at the end.
        resume: begin from `checkpoint` if it is there. The run then ends as it would have without the break.
        facts: what the run is made of, kept in the checkpoint; a resumed run must have the same.
        on_iteration: called with (iterations done, iterations in all or None, figures averaged over members).

    Raises:
        TrainingDiverged: a figure is NaN or infinite, or every update of an iteration was skipped for gradients
            that were.
        InputError: the checkpoint is damaged or belongs to another run.
    """
    # As they will be read back; what JSON cannot hold is refused now and not when the run is resumed.
    facts = json.loads(json.dumps(facts))
    horizon = agent.config.horizon_len
    per_member = horizon * env.n_envs // env.n_members
    limit = budget.limit(per_member)
    done_iterations, episodes = 0, 0
    if resume and checkpoint is not None and Path(checkpoint).exists():
        saved = load_checkpoint(checkpoint)
        _same_facts(saved["record"].get("facts"), facts)
        done_iterations = restore(saved, agent, env)
        episodes = int(saved["record"]["episodes"])
    figures: dict[str, list[float]] = {}
    started, first = time.perf_counter(), done_iterations

    def finished() -> bool:
        spent = done_iterations >= limit if limit is not None else episodes >= budget.episodes
        return spent

    def save() -> None:
        if checkpoint is not None:
            save_checkpoint(checkpoint, agent, env, done_iterations, {"facts": facts, "episodes": episodes})

    interrupted = False
    while not finished():
        if stop():
            interrupted = True
            break
        agent.progress = done_iterations / limit if limit is not None else min(1.0, episodes / budget.episodes)
        rollout = agent.explore_env(env, horizon)
        figures = _to_host(agent.update(rollout))
        ended = rollout.by_member(rollout.terminated | rollout.truncated).sum(1)
        episodes += int(ended.min())
        done_iterations += 1
        _check_finite(figures, done_iterations)
        line = {name: sum(values) / len(values) for name, values in figures.items()}
        if record is not None:
            record.write({"iteration": done_iterations, "timesteps": done_iterations * per_member, **figures})
        if on_iteration is not None:
            on_iteration(done_iterations, limit, line)
        if done_iterations % checkpoint_every == 0 and not finished():
            save()
    save()
    seconds = time.perf_counter() - started
    steps = (done_iterations - first) * per_member * env.n_members
    return TrainResult(done_iterations, steps, episodes, seconds, interrupted, figures)


def _to_host(figures: dict[str, torch.Tensor]) -> dict[str, list[float]]:
    # One transfer for all figures: each transfer by itself waits for the device.
    stacked = torch.stack(list(figures.values())).tolist()
    return dict(zip(figures, stacked, strict=True))


def _check_finite(figures: dict[str, list[float]], iteration: int) -> None:
    for name, values in figures.items():
        for member, value in enumerate(values):
            if name == "grad_norm":
                continue  # a gradient that is not finite skips its update, and is counted
            if not math.isfinite(value):
                raise TrainingDiverged(f"iteration {iteration}, member {member}: {name} is {value}")
            if name == "skipped_updates" and value >= 1:
                raise TrainingDiverged(f"iteration {iteration}, member {member}: every gradient was NaN or infinite")


def _same_facts(saved: dict[str, Any] | None, own: dict[str, Any] | None) -> None:
    saved, own = saved or {}, own or {}
    for name in sorted(set(saved) | set(own)):
        if saved.get(name) != own.get(name):
            raise InputError(
                f"checkpoint belongs to another run: {name} is {saved.get(name)!r} there and {own.get(name)!r} here"
            )
