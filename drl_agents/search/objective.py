"""The objective: how good a configuration is on bars it was not trained on.

Each fold of the combinatorial purged cross-validation trains an agent from scratch and walks its test windows. Folds,
seeds and trials that share the network's shape are trained side by side: one population over one market.

    objective = mean over seeds and folds of the annualised Sharpe ratio of the fold's test returns, after all costs
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from drl_agents.agents.base import AgentBase
from drl_agents.evaluation.backtest import walk_returns
from drl_agents.evaluation.metrics import sharpe_ratio
from drl_agents.evaluation.splits import Fold
from drl_agents.search.config import TrialConfig, derived_seed
from drl_agents.search.members import check_common, env_options, population_agent, spread_scheme
from drl_agents.training.trainer import Budget, TrainingDiverged, TrainResult, train
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
    timesteps: environment steps of each fold's agent. folds_per_batch: folds trained side by side. n_seeds: agents
    trained on each fold, with different random numbers. agent: options of every trial's agent that are not searched.
    """

    market: Market
    folds: tuple[Fold, ...]
    env_name: str
    n_envs: int
    timesteps: int
    folds_per_batch: int
    n_seeds: int = 1
    agent: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TrialOutcome:
    """sharpes: (n_folds,) of each fold's test returns, annualised, the mean over seeds. returns: (B,) per bar, the
    mean over the seeds and the folds that test it, NaN where none does. train_steps: of all its agents together;
    train_seconds: its equal share of what it was trained with."""

    sharpes: np.ndarray
    returns: np.ndarray
    train_steps: int
    train_seconds: float

    @property
    def value(self) -> float:
        return float(self.sharpes.mean())


@dataclass(frozen=True)
class TrialPruned:
    """A trial that was ended early. step: folds it had done."""

    step: int


@dataclass(frozen=True)
class TrialFailed:
    """A trial without a result. error: `SplitFailed` or `TrainingDiverged`, as the trial alone raises it."""

    error: SplitFailed | TrainingDiverged


def market_env(name: str, market: Market, n_envs: int, **options) -> MarketVecEnv:
    """`build_env`, refusing environments that do not walk ranges of a market."""
    env = build_env(name, market, n_envs, **options)
    if not isinstance(env, MarketVecEnv):
        raise InputError(f"environment {name} cannot be cross-validated: it is not a MarketVecEnv")
    return env


def train_members(
    workload: Workload,
    config: TrialConfig | Sequence[TrialConfig],
    segments: Sequence[Sequence[tuple[int, int]]],
    seeds: Sequence[int],
    rounds: int = 1,
) -> tuple[AgentBase, TrainResult]:
    """Train one member per entry of `segments`, each on its own segments with its own seed, side by side.

    The result of a member does not depend on which others it is trained with.

    Args:
        config: of all members, or one per member; then they may differ in what `search.members` names.
        rounds: how often a population of this shape is trained; what is compiled for one serves the others.

    Raises:
        TrainingDiverged: of any member.
        InputError: the configurations cannot be one population.
    """
    market, members = workload.market, len(segments)
    configs = [own.with_agent(**workload.agent) for own in _each(config, members)]
    env = market_env(
        workload.env_name,
        market,
        workload.n_envs * members,
        n_members=members,
        segments=[list(own) for own in segments],
        seed=list(seeds),
        **env_options(configs),
    )
    spread_scheme(env, configs)
    agent = population_agent(env, configs, seeds, market.device)
    agent.policy.fit_normalizer(env)
    agent.compiler.plan(rounds * workload.timesteps * members)
    return agent, train(agent, env, Budget(timesteps=workload.timesteps))


def walk_folds(
    workload: Workload, config: TrialConfig | Sequence[TrialConfig], folds: Sequence[Fold], agent: AgentBase
) -> np.ndarray:
    """(len(folds), B) test returns of each fold's member, NaN outside its test windows. config: as `train_members`."""
    market = workload.market
    # Where a group's edge lies beside a pause of the market, one bar is left alone: there is nothing to walk.
    tests = [[(a, b) for a, b in fold.test if b - a >= 2] for fold in folds]
    windows = max(len(own) for own in tests)
    configs = _each(config, len(folds))
    env = market_env(
        workload.env_name,
        market,
        windows * len(folds),
        n_members=len(folds),
        segments=tests,
        random_start=False,
        **{**env_options(configs), "episode_length": None, "clock_groups": None},
    )
    spread_scheme(env, configs)
    start = env.bar.cpu().numpy().copy()
    walks = walk_returns(env, agent)
    result = np.full((len(folds), market.n_bars), np.nan)
    for row, own in enumerate(tests):
        for j, (_, stop) in enumerate(own):
            walk, first = walks[row * windows + j], start[row * windows + j] + 1
            result[row, first:stop] = 0.0  # a walk that ended in ruin earns nothing more
            result[row, first : first + walk.size] = walk
    return result


def _each(config: TrialConfig | Sequence[TrialConfig], members: int) -> list[TrialConfig]:
    configs = [config] * members if isinstance(config, TrialConfig) else list(config)
    check_common(configs)
    return configs


def fold_seed(seed: int, fold: int, run: int = 0) -> int:
    """The seed of the agent of a trial's fold; `run` counts the trial's seeds."""
    return derived_seed(seed, fold) if run == 0 else derived_seed(seed, fold, "run", run)


class _Trial:
    """A trial in evaluation: what its folds gave so far. end: how it ended, None while it goes on."""

    def __init__(self, index: int, config: TrialConfig, seed: int, workload: Workload) -> None:
        self.index, self.config, self.seed, self.workload = index, config, seed, workload
        self.sharpes = np.full((workload.n_seeds, len(workload.folds)), np.nan)
        self.total, self.count = np.zeros(workload.market.n_bars), np.zeros(workload.market.n_bars, dtype=np.int64)
        self.steps, self.seconds = 0, 0.0
        self.end: TrialOutcome | TrialPruned | TrialFailed | None = None

    def members(self, folds: Sequence[Fold]) -> list[tuple[TrialConfig, Fold, int]]:
        """(configuration, fold, seed) of each of its members on these folds: seed by seed, fold by fold."""
        runs = range(self.workload.n_seeds)
        return [(self.config, fold, fold_seed(self.seed, fold.index, run)) for run in runs for fold in folds]

    def take(self, first: int, folds: Sequence[Fold], rows: np.ndarray, steps: int, seconds: float) -> None:
        """Note the test returns of its members, (n_seeds * len(folds), B), of the folds from number `first` on."""
        self.steps, self.seconds = self.steps + steps, self.seconds + seconds
        for row, member in zip(rows, np.ndindex(self.workload.n_seeds, len(folds)), strict=True):
            known = np.isfinite(row)
            self.total += np.where(known, row, 0.0)
            self.count += known
            sharpe = sharpe_ratio(row[known], self.workload.market.bars_per_year)
            self.sharpes[member[0], first + member[1]] = sharpe
            if self.end is None and not np.isfinite(sharpe):
                which = f"fold {folds[member[1]].index}" + (f", seed {member[0]}" if self.workload.n_seeds > 1 else "")
                reason = f"{which}: the Sharpe ratio of {known.sum()} test bars is undefined (no trades)"
                self.end = TrialFailed(SplitFailed(reason))

    def value(self, done: int) -> float:
        """The objective over its first `done` folds."""
        return float(self.sharpes.mean(0)[:done].mean())

    def outcome(self) -> TrialOutcome:
        mean = np.where(self.count > 0, self.total / np.maximum(self.count, 1), np.nan)
        return TrialOutcome(self.sharpes.mean(0), mean, self.steps, self.seconds)


def _train_and_walk(workload: Workload, trials: Sequence[_Trial], first: int, folds: Sequence[Fold]) -> None:
    """Train the trials' members on these folds as one population, and walk their test windows.

    When a member diverges, the halves of the batch are trained apart, and so on: what diverges alone fails alone, with
    the error it has alone, and the others come to what they would have come to.
    """
    configs, own, seeds = zip(*(member for trial in trials for member in trial.members(folds)), strict=True)
    try:
        rounds = -(-len(workload.folds) // workload.folds_per_batch)
        agent, result = train_members(workload, configs, [fold.train for fold in own], seeds, rounds)
    except TrainingDiverged as error:
        if len(trials) == 1:
            trials[0].end = TrialFailed(error)
            return
        half = len(trials) // 2
        for part in (trials[:half], trials[half:]):
            _train_and_walk(workload, part, first, folds)
        return
    rows = np.split(walk_folds(workload, configs, own, agent), len(trials))
    for trial, its in zip(trials, rows, strict=True):
        trial.take(first, folds, its, result.timesteps // len(trials), result.seconds / len(trials))


def evaluate_batch(
    workload: Workload,
    configs: Sequence[TrialConfig],
    seeds: Sequence[int],
    report: Callable[[int, int, float], bool] = lambda trial, step, value: False,
) -> list[TrialOutcome | TrialPruned | TrialFailed]:
    """Train and judge several configurations on every fold, side by side; each comes to what it comes to alone.

    Trials x seeds x `folds_per_batch` members are one population. A trial that fails or is pruned leaves it at the end
    of its batch of folds.

    Args:
        configs: one per trial; they may differ in what `search.members` names.
        seeds: one per trial; agent s of fold i uses `fold_seed(seed, i, s)`.
        report: called with (index of the trial, folds done, mean Sharpe of them) after every batch of folds but the
            last; True prunes the trial.

    Raises:
        InputError: the configurations cannot be one population.
    """
    check_common(configs)
    trials = [_Trial(i, *own, workload) for i, own in enumerate(zip(configs, seeds, strict=True))]
    folds, size = workload.folds, workload.folds_per_batch
    for first in range(0, len(folds), size):
        batch = folds[first : first + size]
        done = first + len(batch)
        live = [trial for trial in trials if trial.end is None]
        if live:
            _train_and_walk(workload, live, first, batch)
        if done < len(folds):
            for trial in live:
                if trial.end is None and report(trial.index, done, trial.value(done)):
                    trial.end = TrialPruned(done)
    return [trial.outcome() if trial.end is None else trial.end for trial in trials]


def evaluate(
    workload: Workload,
    config: TrialConfig,
    seed: int,
    report: Callable[[int, float], None] = lambda step, value: None,
) -> TrialOutcome:
    """Train and judge one configuration on every fold: `evaluate_batch` of one.

    Args:
        report: called with (folds done, mean Sharpe of them) after every batch of folds but the last; may
            raise to end the trial.

    Raises:
        SplitFailed: a fold's Sharpe ratio is undefined (it never traded).
        TrainingDiverged: a member's figures or gradients became NaN or infinite.
    """

    def told(trial: int, step: int, value: float) -> bool:
        report(step, value)
        return False

    (end,) = evaluate_batch(workload, [config], [seed], told)
    if isinstance(end, TrialFailed):
        raise end.error
    assert isinstance(end, TrialOutcome)
    return end
