"""From a finished study to a candidate: refit its best configuration, and judge it once on the held-out bars."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drl_agents.deployment.bundle import WEIGHTS, Bundle, load_bundle, save_bundle
from drl_agents.deployment.gate import Evidence, GateLimits, Verdict, judge
from drl_agents.deployment.health import keep_heldout
from drl_agents.evaluation.backtest import backtest
from drl_agents.evaluation.baselines import hold_cash, hold_equal_weight
from drl_agents.evaluation.result import BacktestResult
from drl_agents.search.config import TrialConfig, derived_seed
from drl_agents.search.objective import Workload, market_env, train_members
from drl_agents.search.results import StudyStatistics, best_trial, study_statistics
from drl_agents.search.study import Study, StudyPlace
from drl_agents.training.record import now
from drl_agents.training.trainer import TrainingDiverged
from environments.errors import InputError
from environments.market_env import MarketVecEnv

Range = tuple[int, int]


@dataclass(frozen=True)
class Candidate:
    """A refitted configuration and its one judgement. late, late_holder: the model and equal weight with their orders
    one bar later than the model was trained with. looks: models that these held-out bars judged, this one included,
    whatever study they are of."""

    bundle: Bundle
    window: Range
    result: BacktestResult
    late: BacktestResult
    late_holder: BacktestResult
    seeds: list[BacktestResult]
    baselines: list[BacktestResult]
    statistics: StudyStatistics
    trial: int
    value: float
    looks: int = 1


def refit(
    study: Study,
    place: StudyPlace,
    workload: Workload,
    search_segments: list[Range],
    window: Range,
    *,
    n_seeds: int,
    seed: int,
    lineage: Mapping[str, Any],
    looks: Path | None = None,
) -> Candidate:
    """Train the best configuration on all search bars with several seeds, then walk the held-out window once.

    The model that may be deployed is the first seed's: chosen before anything of the held-out bars was seen.

    looks: the file in which looks at held-out bars are counted, see `holdout_looks`; None: this is the only one.

    Raises:
        InputError: no trial is complete, or the best one's training diverges on all search bars.
    """
    trial = best_trial(study)
    config = TrialConfig.from_dict(trial.user_attrs["config"])
    seeds = [derived_seed(seed, "refit", i) for i in range(n_seeds)]
    try:
        agent, result = train_members(workload, config, [search_segments] * n_seeds, seeds)
    except TrainingDiverged as error:
        raise InputError(f"trial {trial.number} diverges when refitted on all search bars: {error}") from error
    env = walking_env(workload, config, window, n_seeds)
    names = [f"seed {i}" for i in range(n_seeds)]
    facts = {
        **lineage,
        "study": study.study_name,
        "trial": trial.number,
        "value": trial.value,
        "seed": seeds[0],
        "timesteps": result.iterations * config.hyper.horizon_len * workload.n_envs,
        "config": config.to_dict(),
    }
    folder = save_bundle(place.folder / "bundle", agent.policy, 0, env, workload.env_name, facts)
    bundle = load_bundle(folder)
    # Judged through the bundle, as it will be run: one account, the weights that were written.
    judged = backtest(bundle.env(workload.market, window), bundle.decide, ["model"])[0]
    keep_heldout(bundle, judged.returns)
    later = bundle.env(workload.market, window, decision_lag=judged.decision_lag + 1)
    late = backtest(later, bundle.decide, [f"model, lag {later.decision_lag}"])[0]
    seed_results = backtest(env, agent.decide, names)
    alone = walking_env(workload, config, window, 1)
    baselines = [hold_equal_weight(alone), hold_cash(alone)]
    statistics = study_statistics(study, place)
    bars = f"{workload.market.fingerprint}:{window[0]}-{window[1]}"
    return Candidate(
        bundle, window, judged, late, hold_equal_weight(later), seed_results, baselines, statistics,
        trial.number, trial.value,
        1 if looks is None else holdout_looks(looks, bars, bundle.manifest["files"][WEIGHTS]),
    )  # fmt: skip


def walking_env(workload: Workload, config: TrialConfig, window: Range, n_members: int) -> MarketVecEnv:
    """One environment per member, each walking `window` from its first bar to its last."""
    options = {**config.env, "episode_length": None, "clock_groups": None}
    return market_env(
        workload.env_name,
        workload.market,
        n_members,
        n_members=n_members,
        segments=[window],
        random_start=False,
        **options,
    )


def pass_gate(candidate: Candidate, champion: Bundle | None, workload: Workload, limits: GateLimits) -> Verdict:
    """Judge a candidate, beside the champion on the same bars where the champion fits them.

    Raises:
        InputError: the champion trades another market: its result on these bars is undefined.
    """
    current = None
    if champion is not None and champion.id != candidate.bundle.id:
        current = backtest(champion.env(workload.market, candidate.window), champion.decide, ["champion"])[0]
    return judge(
        Evidence(
            candidate=candidate.result,
            late=candidate.late,
            seeds=candidate.seeds,
            holder=candidate.baselines[0],
            late_holder=candidate.late_holder,
            champion=current,
            trial_sharpes=candidate.statistics.trial_sharpes,
            search_bars=candidate.statistics.n_bars,
            pbo=candidate.statistics.pbo.pbo,
            looks=candidate.looks,
        ),
        limits,
    )


def holdout_looks(path: Path, bars: str, fingerprint: str) -> int:
    """How many different models were judged on these held-out bars, this one included, by whatever study.

    Each look spends some of what makes the bars held out: the gate asks the more of it.

    path: the file of looks, to which this one is added. bars: the market's fingerprint and the bars of it. fingerprint:
    of the model's weights.
    """
    seen = {look["model"] for look in read_looks(path) if look["bars"] == bars}
    if fingerprint not in seen:
        add_look(path, {"time": now(), "bars": bars, "model": fingerprint})
        seen.add(fingerprint)
    return len(seen)


def read_looks(path: Path) -> list[dict[str, Any]]:
    """The lines of a file of looks; one that a kill cut short is left out."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


def add_look(path: Path, look: Mapping[str, Any]) -> None:
    """Add a line to a file of looks; one that a kill cut short is ended first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    before = path.read_bytes() if path.exists() else b""
    torn = before != b"" and not before.endswith(b"\n")
    with path.open("a", encoding="utf-8") as file:
        file.write("\n" * torn + json.dumps(look, allow_nan=False) + "\n")
