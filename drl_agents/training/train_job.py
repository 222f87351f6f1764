"""Training one agent without a study: its run's folder, sizes, checkpoints and record."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from drl_agents.agents.base import AgentBase
from drl_agents.agents.ppo import PPOConfig
from drl_agents.agents.registry import find_agent
from drl_agents.networks.policy import PolicySpec
from drl_agents.training.checkpoint import (
    CHECKPOINT,
    checkpoints_in,
    interrupted_path,
    load_checkpoint,
    newest_checkpoint,
    set_aside,
)  # fmt: skip
from drl_agents.training.device import MemoryOptions, memory_stats, size_text
from drl_agents.training.memory import Footprint, Sizes
from drl_agents.training.memory_plan import MIN_ITERATIONS, Plan, plan_sizes
from drl_agents.training.progress import TrainProgress
from drl_agents.training.record import RUN_RECORD, RunRecord, plain
from drl_agents.training.runlock import RunLock
from drl_agents.training.trainer import Budget, TrainResult, continue_from, train
from environments.errors import InputError
from environments.market import Market
from environments.plugin import build_env
from environments.vec_env import VecEnv

logger = logging.getLogger(__name__)

DEFAULT_ENVS = 12
LOCK = "run.lock"
JUDGED = ("bundle", "report")  # folders that a finished run leaves, see `deployment.run_job`


@dataclass(frozen=True)
class TrainSettings:
    """What to train, and where.

    n_envs: None for what the checkpoint has, the memory plan says, or 12. agent_name: of `agents.registry`; agent: its
    hyper-parameters. batch_size: samples of a minibatch of a rollout; `agent.num_minibatches` then follows. folder:
    where checkpoints and run record go. env_options, network: as for a trial of a search. segments: the bars to train
    on, in ranges; None for all. preprocess: normalise market features by the training bars. resume: go on from the
    folder's newest checkpoint. checkpoint: go on from this file. fresh: begin anew in a folder that has been used.
    memory: budget to plan sizes for; those in `given` (horizon_len, num_minibatches, amp) are kept, and those that
    differ from the agent's defaults.
    """

    env: str
    n_envs: int | None
    budget: Budget
    folder: Path
    seed: int = 0
    agent_name: str = "ppo"
    agent: Any = field(default_factory=PPOConfig)
    segments: tuple[tuple[int, int], ...] | None = None
    preprocess: bool = True
    network: Mapping[str, Any] = field(default_factory=dict)
    env_options: Mapping[str, Any] = field(default_factory=dict)
    batch_size: int | None = None
    checkpoint_every: int = 50
    resume: bool = False
    checkpoint: Path | None = None
    fresh: bool = False
    memory: MemoryOptions = field(default_factory=MemoryOptions)
    given: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        if self.fresh and (self.resume or self.checkpoint is not None):
            raise InputError("--fresh begins anew: give it without --resume and --checkpoint")
        if self.resume and self.checkpoint is not None:
            raise InputError("--resume takes the run's newest checkpoint: give it without --checkpoint")
        if self.checkpoint_every < 1:
            raise InputError(f"--checkpoint-every {self.checkpoint_every}: at least 1 is needed")


@dataclass(frozen=True)
class TrainOutcome:
    """settings: with the sizes that were used. memory: one line, what was used at the peak, and planned."""

    settings: TrainSettings
    agent: AgentBase
    result: TrainResult
    memory: str


def run_training(
    market: Market | None,
    settings: TrainSettings,
    stop: Callable[[], bool] = lambda: False,
    console: Console | None = None,
) -> TrainOutcome:
    """Train, log to `run.jsonl`, checkpoint; stopped by `stop()`, save to `model_interrupted_<time>_<iteration>.pt`.

    What an earlier run left is set aside when this one has something to put in its place, after the first iteration:
    until then every mistake leaves it as it was.

    Raises:
        InputError: options the environment or the agent does not have, a folder with a run and neither resume,
            checkpoint nor fresh, a live run in it, a checkpoint that is damaged or of another run, too little memory.
        TrainingDiverged: see `train`.
    """
    state = _state(settings)
    settings, plan = _sized(market, settings, state)
    try:
        return _run(market, settings, plan, state, stop, console)
    except RuntimeError as error:
        # torch has a type of its own for this on GPUs alone.
        if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
            raise
        n_steps = settings.agent.horizon_len
        raise InputError(
            f"out of memory with {settings.n_envs} environments of {n_steps} steps: give fewer --n-envs or --n-steps, "
            f"a smaller --batch-size, or --low-vram to have them planned"
        ) from error


def _run(
    market: Market | None,
    settings: TrainSettings,
    plan: Plan | None,
    state: dict[str, Any] | None,
    stop: Callable[[], bool],
    console: Console | None,
) -> TrainOutcome:
    agent, env = _build(market, settings)
    # The budget is left out: a run may be resumed to go on for longer.
    facts = plain(
        {
            "env": settings.env,
            "env_options": dict(settings.env_options),
            "n_envs": settings.n_envs,
            "seed": settings.seed,
            "agent_name": settings.agent_name,
            "agent": vars(settings.agent),
            "segments": settings.segments,
            "preprocess": settings.preprocess,
            "network": dict(settings.network),
            "fingerprint": None if market is None else market.fingerprint,
        }
    )
    start = (0, 0)
    if state is not None:
        try:
            start = continue_from(state, agent, env, facts)
        except InputError as error:
            raise InputError(f"{error}; --fresh begins anew and keeps the checkpoint as *.old") from error
    folder = settings.folder
    with RunLock(folder / LOCK), TrainProgress(console, env.device) as progress:
        limit = settings.budget.limit(settings.agent.horizon_len * env.n_envs)
        progress.begin(start[0] / limit if limit is not None else min(1.0, start[1] / settings.budget.episodes))
        result = train(
            agent,
            env,
            settings.budget,
            record=RunRecord(folder, facts),
            checkpoint=folder / CHECKPOINT,
            checkpoint_every=settings.checkpoint_every,
            start=start,
            facts=facts,
            stop=stop,
            interrupted_checkpoint=lambda iteration: interrupted_path(folder, iteration),
            on_iteration=progress.iteration,
            on_phase=progress.phase,
            before_writing=lambda: _clear(settings),
        )
    env.close()
    return TrainOutcome(settings, agent, result, memory_line(env.device, plan))


def _state(settings: TrainSettings) -> dict[str, Any] | None:
    """The checkpoint to go on from, loaded; None to begin anew."""
    folder = settings.folder
    if settings.checkpoint is not None:
        return load_checkpoint(settings.checkpoint)
    if settings.resume:
        found = newest_checkpoint(folder)
        if found is None:
            logger.warning("no checkpoint in %s to resume from: beginning anew", folder)
            return None
        logger.info("going on from %s, %d iterations done", found[0], found[1]["iteration"])
        return found[1]
    if not settings.fresh and (checkpoints_in(folder) or (folder / RUN_RECORD).exists()):
        raise InputError(
            f"{folder} holds a run: --resume goes on with it, --fresh begins anew and keeps its files as *.old, "
            f"--run NAME takes another folder"
        )
    return None


def _clear(settings: TrainSettings) -> None:
    """Set aside what this run would overwrite, or what would be taken for its own later."""
    if not settings.fresh and settings.checkpoint is None:
        return
    folder, chosen = settings.folder, settings.checkpoint and settings.checkpoint.resolve()
    old = [path for path in checkpoints_in(folder) if path.resolve() != chosen]
    old += [folder / name for name in (*([RUN_RECORD] if settings.fresh else []), *JUDGED) if (folder / name).exists()]
    for path in old:
        logger.info("%s is kept as %s", path, set_aside(path).name)


def _build(market: Market | None, settings: TrainSettings) -> tuple[AgentBase, VecEnv]:
    own = {} if settings.segments is None else {"segments": [tuple(segment) for segment in settings.segments]}
    env = build_env(settings.env, market, settings.n_envs, seed=settings.seed, **own, **settings.env_options)
    agent_class, _ = find_agent(settings.agent_name)
    agent = agent_class(PolicySpec.of(env, **settings.network), settings.agent, (settings.seed,), env.device)
    agent.check_env(env)
    if settings.preprocess:
        agent.policy.fit_normalizer(env)
    return agent, env


# ------------------------------------------------------------------------------------------------- sizes


def _sized(
    market: Market | None, settings: TrainSettings, state: dict[str, Any] | None
) -> tuple[TrainSettings, Plan | None]:
    """The settings with every size in place: as given, as in the checkpoint, as planned, or by default."""
    if not hasattr(settings.agent, "num_minibatches") and (settings.memory.given or settings.batch_size is not None):
        raise InputError(
            f"agent {settings.agent_name} does not divide its rollouts into minibatches: --batch-size and a memory "
            "budget are accepted with agents that have num_minibatches"
        )
    if settings.batch_size is not None and "num_minibatches" not in _free(replace(settings, batch_size=None)):
        raise InputError("--batch-size and --num-minibatches say the same: give one of them")
    saved = (state or {}).get("record", {}).get("facts") or {}
    if state is not None and isinstance(saved.get("n_envs"), int):
        settings = replace(settings, n_envs=settings.n_envs or saved["n_envs"])
        if settings.memory.given:  # what was planned then is what the run goes on with
            same = {name: saved["agent"][name] for name in _free(settings) if name in saved.get("agent", {})}
            settings = replace(settings, agent=replace(settings.agent, **same))
    elif settings.memory.given:
        plan = _plan(market, settings)
        sizes = plan.sizes
        logger.info("%s", plan.reason)
        own = {"horizon_len": sizes.horizon_len, "num_minibatches": sizes.num_minibatches, "amp": sizes.amp}
        return replace(settings, n_envs=sizes.n_envs, agent=replace(settings.agent, **own)), plan
    settings = replace(settings, n_envs=settings.n_envs or DEFAULT_ENVS)
    if settings.batch_size is None:
        return settings, None
    return replace(settings, agent=with_batch_size(settings, settings.batch_size)), None


def with_batch_size(settings: TrainSettings, batch_size: int) -> Any:
    """The agent's configuration with as many minibatches as make `batch_size` samples each.

    Raises:
        InputError: the samples of a rollout cannot be shared out like that.
    """
    samples = settings.n_envs * settings.agent.horizon_len
    groups = settings.env_options.get("clock_groups")
    slot = settings.n_envs // groups if isinstance(groups, int) and 0 < groups <= settings.n_envs else 1
    if batch_size < 2 or samples % batch_size or batch_size % slot:
        together = f" and a multiple of the {slot} environments that share a clock" if slot > 1 else ""
        raise InputError(
            f"--batch-size {batch_size}: a divisor of n_envs * n_steps = {settings.n_envs} * "
            f"{settings.agent.horizon_len} = {samples}, at least 2{together}, is accepted"
        )
    return replace(settings.agent, num_minibatches=samples // batch_size)


def _free(settings: TrainSettings) -> frozenset[str]:
    """The names of the sizes that were left to the plan."""
    sizes = {"horizon_len", "num_minibatches", "amp"} - settings.given
    names = [name for name in sizes if getattr(settings.agent, name) == getattr(type(settings.agent), name)]
    return frozenset(names if settings.batch_size is None else set(names) - {"num_minibatches"})


def _plan(market: Market | None, settings: TrainSettings) -> Plan:
    free = set(_free(settings))
    if settings.n_envs is None and market is not None:  # without a market an environment steps one by one in Python
        free.add("n_envs")
    groups = settings.env_options.get("clock_groups")

    def build(sizes: Sizes) -> tuple[AgentBase, VecEnv]:
        clocks = {} if sizes.clock_groups is None else {"clock_groups": sizes.clock_groups}
        env_options = {**settings.env_options, **clocks}
        own = {"horizon_len": sizes.horizon_len, "num_minibatches": sizes.num_minibatches, "amp": sizes.amp}
        agent = replace(settings.agent, **own, compile="off")
        return _build(market, replace(settings, n_envs=sizes.n_envs, agent=agent, env_options=env_options))

    device = torch.device("cpu") if market is None else market.device
    agent = settings.agent
    start = Sizes(settings.n_envs or DEFAULT_ENVS, agent.horizon_len, agent.num_minibatches, agent.amp)
    bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported()
    steps = settings.budget.timesteps
    plan = plan_sizes(
        Footprint(build, device, 0 if market is None else market.n_bars, groups),
        start,
        frozenset(free),
        settings.memory.budget(device),
        max_samples=None if steps is None else max(1, steps // MIN_ITERATIONS),
        batch_size=settings.batch_size,
        reduced="bf16" if bf16 else None,
    )
    gc.collect()
    if device.type == "cuda":  # what the measurements held is not the run's
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    return plan


def memory_line(device: torch.device, plan: Plan | None) -> str:
    """What the run took at its peak; reserved is what other programs cannot have, allocated what tensors took of it."""
    stats = memory_stats(device)
    planned = "" if plan is None else size_text(plan.predicted)
    if stats.allocated is None:
        return f"Memory: peak resident set {size_text(stats.reserved)}" + (
            planned and f", planned {planned} of it for the run's tensors"
        )
    return f"Memory: reserved {size_text(stats.reserved)} (allocated {size_text(stats.allocated)})" + (
        planned and f", planned {planned}"
    )
