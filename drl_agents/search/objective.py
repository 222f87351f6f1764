"""The objective: how good a configuration is on bars it was not trained on.

Each fold of the combinatorial purged cross-validation trains an agent from scratch and walks its test windows. The
folds share the network's shape, so they are trained side by side: one population over one market.

    objective = mean over folds of the annualised Sharpe ratio of the fold's test returns, after all costs
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from drl_agents.agents.ppo import AgentPPO
from drl_agents.evaluation.backtest import walk_returns
from drl_agents.evaluation.metrics import sharpe_ratio
from drl_agents.evaluation.splits import Fold
from drl_agents.networks.policy import PolicySpec
from drl_agents.search.config import TrialConfig, derived_seed
from drl_agents.training.trainer import Budget, TrainResult, train
from environments.errors import InputError
from environments.market import Market
from environments.market_env import MarketVecEnv
from environments.plugin import build_env

OBJECTIVE_NAME = "mean over folds of the out-of-sample Sharpe ratio after costs"
OBJECTIVE_UNIT = "annualised Sharpe ratio"


class SplitFailed(RuntimeError):
    """A fold gave no defined result; its trial fails with it."""


@dataclass(frozen=True)
class Workload:
    """What every trial of a study trains on.

    env_name: a name `build_env` knows, of an environment over a market. n_envs: environments of each fold's agent.
    timesteps: environment steps of each fold's agent. folds_per_batch: folds trained side by side.
    """

    market: Market
    folds: tuple[Fold, ...]
    env_name: str
    n_envs: int
    timesteps: int
    folds_per_batch: int


@dataclass(frozen=True)
class TrialOutcome:
    """sharpes: (n_folds,) of each fold's test returns, annualised. returns: (B,) per bar, the mean over the folds
    that test it, NaN where none does. train_steps, train_seconds: of all folds together."""

    sharpes: np.ndarray
    returns: np.ndarray
    train_steps: int
    train_seconds: float

    @property
    def value(self) -> float:
        return float(self.sharpes.mean())


def market_env(name: str, market: Market, n_envs: int, **options) -> MarketVecEnv:
    """`build_env`, refusing environments that do not walk ranges of a market."""
    env = build_env(name, market, n_envs, **options)
    if not isinstance(env, MarketVecEnv):
        raise InputError(f"environment {name} cannot be cross-validated: it is not a MarketVecEnv")
    return env


def train_members(
    workload: Workload,
    config: TrialConfig,
    segments: Sequence[Sequence[tuple[int, int]]],
    seeds: Sequence[int],
) -> tuple[AgentPPO, TrainResult]:
    """Train one member per entry of `segments`, each on its own segments with its own seed, side by side.

    The result of a member does not depend on which others it is trained with.
    """
    market, members = workload.market, len(segments)
    env = market_env(
        workload.env_name,
        market,
        workload.n_envs * members,
        n_members=members,
        segments=[list(own) for own in segments],
        seed=list(seeds),
        **config.env,
    )
    agent = AgentPPO(PolicySpec.of(env, **config.network), config.ppo, seeds, market.device)
    agent.policy.fit_normalizer(env)
    return agent, train(agent, env, Budget(timesteps=workload.timesteps))


def walk_folds(workload: Workload, config: TrialConfig, folds: Sequence[Fold], agent: AgentPPO) -> np.ndarray:
    """(len(folds), B) test returns of each fold's member, NaN outside its test windows."""
    market = workload.market
    # Where a group's edge lies beside a pause of the market, one bar is left alone: there is nothing to walk.
    tests = [[(a, b) for a, b in fold.test if b - a >= 2] for fold in folds]
    windows = max(len(own) for own in tests)
    env = market_env(
        workload.env_name,
        market,
        windows * len(folds),
        n_members=len(folds),
        segments=tests,
        random_start=False,
        **{**config.env, "episode_length": None},
    )
    start = env.bar.cpu().numpy().copy()
    walks = walk_returns(env, agent.decide)
    result = np.full((len(folds), market.n_bars), np.nan)
    for row, own in enumerate(tests):
        for j, (_, stop) in enumerate(own):
            walk, first = walks[row * windows + j], start[row * windows + j] + 1
            result[row, first:stop] = 0.0  # a walk that ended in ruin earns nothing more
            result[row, first : first + walk.size] = walk
    return result


def evaluate(
    workload: Workload,
    config: TrialConfig,
    seed: int,
    report: Callable[[int, float], None] = lambda step, value: None,
) -> TrialOutcome:
    """Train and judge `config` on every fold.

    Args:
        seed: fold i uses `derived_seed(seed, i)`.
        report: called with (folds done, mean Sharpe of them) after every batch of folds but the last; may
            raise to end the trial.

    Raises:
        SplitFailed: a fold's Sharpe ratio is undefined (it never traded), or its training diverged.
    """
    folds, size = workload.folds, workload.folds_per_batch
    tests = np.full((len(folds), workload.market.n_bars), np.nan)
    sharpes = np.full(len(folds), np.nan)
    steps, seconds = 0, 0.0
    for first in range(0, len(folds), size):
        batch = folds[first : first + size]
        seeds = [derived_seed(seed, fold.index) for fold in batch]
        agent, result = train_members(workload, config, [fold.train for fold in batch], seeds)
        steps, seconds = steps + result.timesteps, seconds + result.seconds
        tests[first : first + len(batch)] = walk_folds(workload, config, batch, agent)
        for i in range(first, first + len(batch)):
            own = tests[i][np.isfinite(tests[i])]
            sharpes[i] = sharpe_ratio(own, workload.market.bars_per_year)
            if not np.isfinite(sharpes[i]):
                raise SplitFailed(
                    f"fold {folds[i].index}: the Sharpe ratio of {own.size} test bars is undefined (no trades)"
                )
        if first + len(batch) < len(folds):
            report(first + len(batch), float(sharpes[: first + len(batch)].mean()))
    known = np.isfinite(tests)
    counts = known.sum(axis=0)
    mean = np.where(counts > 0, np.where(known, tests, 0).sum(axis=0) / np.maximum(counts, 1), np.nan)
    return TrialOutcome(sharpes, mean, steps, seconds)
