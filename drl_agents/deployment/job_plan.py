"""What the main job is asked to do, and how it divides the bars."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from drl_agents.agents.registry import agent_config
from drl_agents.deployment.gate import GateLimits
from drl_agents.evaluation.splits import Fold, combinatorial_purged, split_holdout
from drl_agents.networks.spec import PolicySpec
from drl_agents.search.space import MAX_LOOKBACK, space_of
from drl_agents.training.device import MemoryOptions
from environments.errors import InputError
from environments.features import compute_features, ready_from
from environments.market import Market

MAX_FOLDS = 500  # each trains an agent in every trial
MIN_SEGMENT = 32  # bars; a shorter training range is more seam than market


@dataclass(frozen=True)
class JobSettings:
    """What the main job is asked to do; see `scripts/optimize.py` for what each means to a user.

    holdout_bars: None takes a fifth of the bars. embargo: None takes 1% of the search bars. env_options: environment
    options that are not searched. agent: by name, see `agents.registry`. seeds: agents trained on each fold of a trial.
    population: trials trained side by side; None keeps what the study began with, or chooses
    (`search.study.auto_population`). amp, compile, group_baseline: of every agent, see `PPOConfig`. n_steps:
    horizon_len of every trial; None searches it. batch_size: samples of a minibatch, in place of a searched
    num_minibatches; given with n_steps. network: of every trial's policy, see `PolicySpec`. memory: a budget that the
    population, and where it must the precision, are planned for.
    """

    study_name: str
    n_trials: int = 20
    n_envs: int = 1
    timesteps: int = 20_000
    n_splits: int = 5
    test_groups: int = 2
    embargo: int | None = None
    holdout_bars: int | None = None
    folds_per_batch: int | None = None
    seeds: int = 1
    population: int | None = None
    n_seeds: int = 3
    seed: int = 0
    env: str | None = None
    storage: str | None = None
    logs: Path = Path("logs")
    deploy: bool = True
    limits: GateLimits = field(default_factory=GateLimits)
    env_options: Mapping[str, Any] = field(default_factory=dict)
    amp: str = "off"
    compile: str = "auto"
    group_baseline: bool = False
    agent: str = "ppo"
    n_steps: int | None = None
    batch_size: int | None = None
    network: str = "mlp"
    memory: MemoryOptions = field(default_factory=MemoryOptions)

    def agent_options(self) -> dict[str, Any]:
        """Hyper-parameters of every trial's agent that are not searched.

        Raises:
            InputError: the agent has no group baseline.
        """
        if not self.group_baseline:
            return {"amp": self.amp, "compile": self.compile}
        if not hasattr(agent_config(self.agent), "group_baseline"):
            raise InputError(
                f"--group-baseline is accepted with agents that have group_baseline: {self.agent} has none"
            )
        return {"amp": self.amp, "compile": self.compile, "group_baseline": True}

    def fixed(self) -> dict[str, Any]:
        """What trials do not draw: the environment's options, and the dimensions of the space that were given.

        Raises:
            InputError: the agent's space has no such dimension, the samples of a rollout cannot be shared out, or
            learning would start when the steps are spent.
        """
        names = {p.name for p in space_of(self.agent)}
        for flag, value, name in (
            ("--n-steps", self.n_steps, "horizon_len"),
            ("--batch-size", self.batch_size, "num_minibatches"),
            ("a memory budget", self.memory.given or None, "num_minibatches"),
        ):
            if value is not None and name not in names:
                raise InputError(f"{flag} is accepted with agents that have {name}: {self.agent} has none")
        starts = getattr(agent_config(self.agent), "learning_starts", 0)
        if self.timesteps < starts:
            raise InputError(
                f"--timesteps {self.timesteps}: {self.agent} acts at random for its first {starts} steps, give more"
            )
        own: dict[str, Any] = {} if self.n_steps is None else {"horizon_len": self.n_steps}
        if self.network != PolicySpec.network:
            own["network"] = self.network
        if self.batch_size is not None:
            if self.n_steps is None:
                raise InputError("--batch-size divides the samples of a rollout, n_envs * n_steps: give --n-steps too")
            samples, groups = self.n_envs * self.n_steps, self.env_options.get("clock_groups") or self.n_envs
            slot = max(1, self.n_envs // groups)
            if self.batch_size < 2 or samples % self.batch_size or self.batch_size % slot:
                raise InputError(
                    f"--batch-size {self.batch_size}: accepted are divisors of n_envs * n_steps = {samples} that are "
                    f"multiples of the {slot} environments on a clock, at least 2"
                )
            own["num_minibatches"] = samples // self.batch_size
        if "num_minibatches" in names:
            own |= self._minibatches(own.get("num_minibatches"))
        return {**self.env_options, **own}

    def _minibatches(self, given: int | None) -> dict[str, int]:
        """A number of minibatches where the smallest rollout of the space cannot be shared out as the space would;
        `given` is what --batch-size comes to.

        A minibatch is made of whole sequences, one for each clock, where the network remembers; else of whole bars, and
        of two where a bar is one sample.

        Raises:
            InputError: the rollout has not as many parts as --batch-size asks for.
        """
        space = {p.name: p.choices for p in space_of(self.agent)}
        clocks = self.env_options.get("clock_groups") or self.n_envs
        if self.network == "gru":
            most, what = clocks, "sequences"
        else:
            bars = clocks * (self.n_steps or min(space.get("horizon_len", (1,))))
            most, what = (bars if clocks < self.n_envs else bars // 2), "bars"
        if given is not None:
            if given > most:
                raise InputError(
                    f"--batch-size {self.batch_size} makes {given} minibatches: a rollout's {what} make {most} at most"
                )
            return {}
        if max(space["num_minibatches"]) <= most:
            return {}
        return {"num_minibatches": max((n for n in space["num_minibatches"] if n <= most), default=1)}


@dataclass(frozen=True)
class Plan:
    """How the bars are divided. holdout: the held-out window; search: the ranges the study may use; folds: its
    splits."""

    holdout: tuple[int, int]
    search: list[tuple[int, int]]
    folds: list[Fold]


def plan_bars(market: Market, settings: JobSettings) -> Plan:
    """Divide the bars: the last for the judgement, the rest into CPCV folds, purged and embargoed.

    Purged are as many bars as the longest lookback, of the search space or as it was given, plus the decision lag: a
    training observation reaches that far back, and its order that far ahead.

    Raises:
        InputError: too few bars for what is asked; says how many there are.
    """
    table = compute_features(market, _names(settings))
    first = ready_from(table)
    segments = [(max(a, first), b) for a, b in market.segments() if b - max(a, first) >= 2]
    bars = sum(b - a for a, b in segments)
    holdout = settings.holdout_bars if settings.holdout_bars is not None else bars // 5
    purge = max(MAX_LOOKBACK, _count(settings, "lookback")) + _count(settings, "decision_lag")
    search, held = split_holdout(segments, holdout, purge)
    count = math.comb(max(settings.n_splits, 0), max(settings.test_groups, 0))
    if count > MAX_FOLDS:
        raise InputError(
            f"n_splits {settings.n_splits} with test_groups {settings.test_groups} make {count} folds: "
            f"at most {MAX_FOLDS} are accepted"
        )
    embargo = settings.embargo if settings.embargo is not None else sum(b - a for a, b in search) // 100
    folds = combinatorial_purged(
        search, settings.n_splits, settings.test_groups, purge, embargo, min_length=MIN_SEGMENT
    )
    return Plan((held[0][0], held[-1][1]), search, folds)


def _count(settings: JobSettings, name: str) -> int:
    """An option of the environment that is a number of bars, 1 where it is not given."""
    value = settings.env_options.get(name, 1)
    if isinstance(value, bool) or not isinstance(value, int | float) or value % 1:
        raise InputError(f"{name}={value}: accepted is a whole number of bars")
    return int(value)


def _names(settings: JobSettings) -> tuple[str, ...] | None:
    names = settings.env_options.get("features")
    return None if names is None else tuple(names)


def identity(market: Market, plan: Plan, settings: JobSettings, env_name: str, batch: int) -> dict[str, Any]:
    """What must be the same for two runs to be runs of one study."""
    return {
        "fingerprint": market.fingerprint,
        "symbols": list(market.symbols),
        "timeframe": str(market.timeframe),
        "env": env_name,
        "agent": settings.agent,
        "env_options": {k: v for k, v in sorted(settings.env_options.items())},
        "n_envs": settings.n_envs,
        "timesteps": settings.timesteps,
        "n_splits": settings.n_splits,
        "test_groups": settings.test_groups,
        "holdout": list(plan.holdout),
        "folds_per_batch": batch,
        "seeds": settings.seeds,
        "amp": settings.amp,
        "compile": settings.compile,
        "group_baseline": settings.group_baseline,
        "n_steps": settings.n_steps,
        "batch_size": settings.batch_size,
        "network": settings.network,
        "folds": [[f.train[0][0], f.train[-1][1], len(f.train), len(f.test)] for f in plan.folds],
        "seed": settings.seed,
    }


def data_facts(market: Market, plan: Plan) -> dict[str, Any]:
    stamps = market.timestamps.cpu().numpy().astype("datetime64[ns]")

    def span(window: tuple[int, int]) -> list[str]:
        return [str(stamps[window[0]])[:19], str(stamps[window[1] - 1])[:19]]

    return {
        "source": market.source,
        "symbols": list(market.symbols),
        "timeframe": str(market.timeframe),
        "bars": market.n_bars,
        "fingerprint": market.fingerprint,
        "synthetic": market.synthetic,
        "search_bars": sum(b - a for a, b in plan.search),
        "search_span": span((plan.search[0][0], plan.search[-1][1])),
        "holdout_bars": plan.holdout[1] - plan.holdout[0],
        "holdout_span": span(plan.holdout),
    }
