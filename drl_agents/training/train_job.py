"""Training one agent without a study."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress, TextColumn, TimeElapsedColumn

from drl_agents.agents.ppo import AgentPPO, PPOConfig
from drl_agents.networks.policy import PolicySpec
from drl_agents.training.record import RunRecord, plain
from drl_agents.training.trainer import Budget, TrainResult, train
from environments.market import Market
from environments.plugin import build_env

logger = logging.getLogger(__name__)

CHECKPOINT = "checkpoint.pt"


@dataclass(frozen=True)
class TrainSettings:
    """folder: where checkpoint and run record go. env_options, network: as for a trial of a search."""

    env: str
    n_envs: int
    budget: Budget
    folder: Path
    seed: int = 0
    agent: PPOConfig = field(default_factory=PPOConfig)
    network: Mapping[str, Any] = field(default_factory=dict)
    env_options: Mapping[str, Any] = field(default_factory=dict)
    checkpoint_every: int = 50
    resume: bool = False


def run_training(
    market: Market | None,
    settings: TrainSettings,
    stop: Callable[[], bool] = lambda: False,
    console: Console | None = None,
) -> tuple[AgentPPO, TrainResult]:
    """Train, log to `run.jsonl`, checkpoint; with `resume`, from the checkpoint of an earlier run of the same facts.

    Raises:
        InputError: options the environment or the agent does not have, a checkpoint of another run.
    """
    env = build_env(settings.env, market, settings.n_envs, seed=settings.seed, **settings.env_options)
    device = env.device
    agent = AgentPPO(PolicySpec.of(env, **settings.network), settings.agent, (settings.seed,), device)
    agent.policy.fit_normalizer(env)
    # The budget is left out: a run may be resumed to go on for longer.
    facts = {
        "env": settings.env,
        "env_options": dict(settings.env_options),
        "n_envs": settings.n_envs,
        "seed": settings.seed,
        "agent": vars(settings.agent),
        "network": dict(settings.network),
        "fingerprint": None if market is None else market.fingerprint,
    }
    facts = plain(facts)
    record = RunRecord(settings.folder, facts)
    bar = Progress(
        *Progress.get_default_columns(), TimeElapsedColumn(), TextColumn("{task.fields[rest]}"),
        console=console, disable=console is None,
    )  # fmt: skip
    with bar:
        task = bar.add_task("training", total=settings.budget.limit(settings.agent.horizon_len * env.n_envs), rest="")

        def shown(done: int, limit: int | None, figures: dict[str, float]) -> None:
            names = ("reward", "approx_kl", "explained_variance")
            rest = "  ".join(f"{name} {figures[name]:.4g}" for name in names)
            bar.update(task, completed=done, rest=rest)
            logger.debug("iteration %d of %s: %s", done, limit or "?", rest)

        result = train(
            agent,
            env,
            settings.budget,
            record=record,
            checkpoint=settings.folder / CHECKPOINT,
            checkpoint_every=settings.checkpoint_every,
            resume=settings.resume,
            facts=facts,
            stop=stop,
            on_iteration=shown,
        )
    env.close()
    return agent, result
