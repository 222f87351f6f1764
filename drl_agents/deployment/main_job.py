"""The main job: search, refit, judge, report, deploy, paper-trade; resumable by the study's name."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from drl_agents.deployment.bundle import WEIGHTS
from drl_agents.deployment.candidate import (
    Candidate,
    holdout_looks,
    pass_gate,
    refit,
    walking_env,
)
from drl_agents.deployment.gate import GateLimits, Verdict
from drl_agents.deployment.registry import Registry, slot_of
from drl_agents.deployment.trader import PaperResult, PaperTrader
from drl_agents.evaluation.report import ReportPaths, write_report
from drl_agents.evaluation.splits import Fold, combinatorial_purged, split_holdout
from drl_agents.search.config import TrialConfig
from drl_agents.search.objective import OBJECTIVE_NAME, OBJECTIVE_UNIT, Workload
from drl_agents.search.progress import StudyProgress
from drl_agents.search.results import best_trial
from drl_agents.search.space import MAX_LOOKBACK
from drl_agents.search.study import Study, StudyPlace, auto_population, kept_population, open_study, run_study
from drl_agents.training.record import plain, versions
from environments.alpaca_env import default_env
from environments.errors import InputError
from environments.features import compute_features, ready_from
from environments.live.local import LocalBroker
from environments.market import Market

logger = logging.getLogger(__name__)

MAX_FOLDS = 500  # each trains an agent in every trial
MIN_SEGMENT = 32  # bars; a shorter training range is more seam than market


@dataclass(frozen=True)
class JobSettings:
    """What the main job is asked to do; see `scripts/optimize.py` for what each means to a user.

    holdout_bars: None takes a fifth of the bars. embargo: None takes 1% of the search bars. env_options: environment
    options that are not searched. seeds: agents trained on each fold of a trial. population: trials trained side by
    side; None keeps what the study began with, or chooses (`search.study.auto_population`). amp, compile: of every
    agent, see `PPOConfig`.
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


@dataclass(frozen=True)
class JobResult:
    """What came of it; None for the steps an interrupted job did not reach."""

    complete: bool
    candidate: Candidate | None = None
    verdict: Verdict | None = None
    report: ReportPaths | None = None
    deployed: Path | None = None
    paper: PaperResult | None = None
    paper_difference: float | None = None


@dataclass(frozen=True)
class Plan:
    """How the bars are divided. holdout: the held-out window; search: the ranges the study may use; folds: its
    splits."""

    holdout: tuple[int, int]
    search: list[tuple[int, int]]
    folds: list[Fold]


def plan_bars(market: Market, settings: JobSettings) -> Plan:
    """Divide the bars: the last for the judgement, the rest into CPCV folds, purged and embargoed.

    Purged are as many bars as the longest lookback of the search space plus the decision lag: a training
    observation reaches that far back, and its order that far ahead.

    Raises:
        InputError: too few bars for what is asked; says how many there are.
    """
    table = compute_features(market, _names(settings))
    first = ready_from(table)
    segments = [(max(a, first), b) for a, b in market.segments() if b - max(a, first) >= 2]
    bars = sum(b - a for a, b in segments)
    holdout = settings.holdout_bars if settings.holdout_bars is not None else bars // 5
    purge = MAX_LOOKBACK + int(settings.env_options.get("decision_lag", 1))
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
        "folds": [[f.train[0][0], f.train[-1][1], len(f.train), len(f.test)] for f in plan.folds],
        "seed": settings.seed,
    }


def run_main_job(
    market: Market,
    settings: JobSettings,
    *,
    stop: Callable[[], bool] = lambda: False,
    console: Console | None = None,
) -> JobResult:
    """Run the whole job, or what is left of it.

    Raises:
        InputError: something asked for cannot be; one line.
    """
    env_name = settings.env or default_env(market).__name__
    plan = plan_bars(market, settings)
    batch = settings.folds_per_batch or -(-len(plan.folds) // 2)
    workload = Workload(
        market, tuple(plan.folds), env_name, settings.n_envs, settings.timesteps, batch, settings.seeds,
        {"amp": settings.amp, "compile": settings.compile},
    )  # fmt: skip
    place = StudyPlace(settings.study_name, settings.logs / "studies" / settings.study_name, settings.storage)
    facts = data_facts(market, plan)
    # One environment is built before the study is made: what is wrong with its options is told now.
    walking_env(workload, TrialConfig(env=settings.env_options), plan.holdout, 1)
    study = open_study(place, identity(market, plan, settings, env_name, batch))
    population = settings.population or kept_population(study, auto_population(workload, settings.n_trials))
    logger.info("Using Vectorized Environments: %d parallel envs", settings.n_envs)
    held = plan.holdout[1] - plan.holdout[0]
    logger.info("%s; %d folds, %d held-out bars; on %s", market.description, len(plan.folds), held, market.device)
    with StudyProgress(study, place.folder, settings.n_trials, facts, market.synthetic, console) as progress:

        def changed() -> None:
            progress.update()
            logger.info(progress.line())

        complete = run_study(
            study,
            place,
            workload,
            n_trials=settings.n_trials,
            seed=settings.seed,
            population=population,
            fixed=settings.env_options,
            stop=stop,
            on_change=changed,
        )
        if not complete:
            progress.state = "interrupted"
            return JobResult(complete=False)
        return _finish(study, place, workload, plan, settings, progress)


def _finish(
    study: Study, place: StudyPlace, workload: Workload, plan: Plan, settings: JobSettings, progress: StudyProgress
) -> JobResult:
    market = workload.market
    best = best_trial(study)
    progress.enter("refit", f"refitting trial {best.number} on all search bars, {settings.n_seeds} seeds")
    candidate = refit(
        study, place, workload, plan.search, plan.holdout,
        n_seeds=settings.n_seeds, seed=settings.seed, lineage={"data": data_facts(market, plan)},
    )  # fmt: skip
    progress.enter("judge", "judging on the held-out bars")
    registry = Registry(settings.logs)
    with registry.exclusive():
        slot = slot_of(candidate.bundle.manifest["market"])
        verdict = pass_gate(candidate, registry.champion(slot), workload, settings.limits)
        progress.enter("deploy", "deploying" if verdict.passed and settings.deploy else "recording the refusal")
        deployed = decide(registry, candidate, verdict, settings.deploy)
    progress.enter("paper", "paper-trading the held-out bars through the local broker")
    paper, difference = paper_trade(candidate, market, settings.logs / "paper" / settings.study_name)
    facts = report_facts(study, place, candidate, verdict, market, plan, settings)
    facts["paper_trade"] = {
        "orders": paper.n_orders,
        "filled": paper.n_fills,
        "largest_relative_difference_to_backtest": difference,
    }
    report = write_report(
        place.folder / "report",
        title=f"{settings.study_name}: held-out bars",
        model=candidate.result,
        baselines=candidate.baselines,
        facts=plain(facts),
        synthetic=market.synthetic,
    )
    progress.outcome = {
        "report": str(report.json),
        "bundle": str(candidate.bundle.folder),
        "gate": {"passed": verdict.passed, "reasons": verdict.reasons},
    }
    progress.enter("done", "done")
    return JobResult(True, candidate, verdict, report, deployed, paper, difference)


def decide(registry: Registry, candidate: Candidate, verdict: Verdict, deploy: bool) -> Path | None:
    """Promote what passed, record what did not. Returns where the promoted bundle lies."""
    figures = candidate.result.figures()
    facts = {
        "sharpe": figures["sharpe"]["value"],
        "unit": figures["sharpe"]["unit"],
        "checks": verdict.to_dict()["checks"],
    }
    bundle, study = candidate.bundle, candidate.bundle.manifest["lineage"]["study"]
    if not verdict.passed:
        registry.refuse(bundle.id, study, verdict.reasons, facts)
        return None
    if not deploy:
        registry.refuse(bundle.id, study, ["passed, but --no-deploy was given"], facts)
        return None
    champion = registry.champion(slot_of(bundle.manifest["market"]))
    if champion is not None and champion.id == bundle.id:
        return champion.folder
    return registry.promote(bundle, facts)


def paper_trade(candidate: Candidate, market: Market, folder: Path) -> tuple[PaperResult, float]:
    """Trade the held-out window through the local broker, deployed or not: the proof that live equals back-test.

    Returns:
        the trader's result, and the largest relative difference of its equity to the back-test's.
    """
    env = candidate.bundle.env(market, candidate.window)
    broker = LocalBroker(env, int(env.bar[0]), candidate.window[1])
    paper = PaperTrader(candidate.bundle, broker, folder, folder.name).run()
    tested = candidate.result.equity
    if paper.equity.size != tested.size:
        raise RuntimeError(f"the trader saw {paper.equity.size} closes, the back-test {tested.size}")
    return paper, float(np.max(np.abs(paper.equity / tested - 1)))


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


def report_facts(
    study: Study,
    place: StudyPlace,
    candidate: Candidate,
    verdict: Verdict,
    market: Market,
    plan: Plan,
    settings: JobSettings,
) -> dict[str, Any]:
    """Everything the report says beyond the curves."""
    pbo = candidate.statistics.pbo
    trial = best_trial(study)
    return {
        "objective": {"name": OBJECTIVE_NAME, "unit": OBJECTIVE_UNIT},
        "data": data_facts(market, plan),
        "study": {
            "name": study.study_name,
            "trials": candidate.statistics.n_trials,
            "best_trial": candidate.trial,
            "best_value": candidate.value,
            "best_fold_sharpes": trial.user_attrs["fold_sharpes"],
            "best_config": trial.user_attrs["config"],
            "folds": len(plan.folds),
            "timesteps_per_fold": settings.timesteps,
            "seeds_per_fold": settings.seeds,
            "n_envs": settings.n_envs,
            "seed": settings.seed,
        },
        "overfitting": {
            "pbo": pbo.pbo if pbo.reason is None else None,
            "pbo_unit": "probability",
            "pbo_undefined_because": pbo.reason,
            "trials_compared": pbo.n_trials,
        },
        "gate": verdict.to_dict(),
        "seeds": [
            {"seed": i, "sharpe": r.figures()["sharpe"], "total_return": r.figures()["total_return"]}
            for i, r in enumerate(candidate.seeds)
        ],
        "holdout_looks": holdout_looks(place.folder, candidate.bundle.manifest["files"][WEIGHTS]),
        "model": {"bundle": candidate.bundle.id, "env": candidate.bundle.manifest["env"]},
        "versions": versions(),
    }
