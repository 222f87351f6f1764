"""The main job: search, refit, judge, report, deploy, paper-trade; resumable by the study's name."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from drl_agents.deployment.candidate import (
    Candidate,
    pass_gate,
    refit,
    walking_env,
)
from drl_agents.deployment.gate import GateLimits, Verdict
from drl_agents.deployment.job_plan import JobSettings, Plan, data_facts, identity, plan_bars
from drl_agents.deployment.registry import Registry, slot_of
from drl_agents.deployment.trader import PaperResult, PaperTrader
from drl_agents.evaluation.report import ReportPaths, write_report
from drl_agents.search.config import TrialConfig
from drl_agents.search.members import population_agent
from drl_agents.search.memory import largest_config, plan_population
from drl_agents.search.objective import OBJECTIVE_NAME, OBJECTIVE_UNIT, Workload, market_env
from drl_agents.search.progress import StudyProgress
from drl_agents.search.results import best_trial
from drl_agents.search.study import Study, StudyPlace, auto_population, kept_population, open_study, run_study
from drl_agents.training.record import plain, versions
from drl_agents.training.runlock import RunLock
from environments.alpaca_env import default_env
from environments.errors import InputError
from environments.live.local import LocalBroker
from environments.market import Market

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class JobResult:
    """What came of it; None for the steps an interrupted job did not reach, or that another worker does."""

    complete: bool
    candidate: Candidate | None = None
    verdict: Verdict | None = None
    report: ReportPaths | None = None
    deployed: Path | None = None
    paper: PaperResult | None = None
    paper_difference: float | None = None


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
    fixed = settings.fixed()
    plan = plan_bars(market, settings)
    batch = settings.folds_per_batch or -(-len(plan.folds) // 2)
    workload = Workload(
        market, tuple(plan.folds), env_name, settings.n_envs, settings.timesteps, batch, settings.seeds,
        settings.agent_options(),
    )  # fmt: skip
    place = StudyPlace(settings.study_name, settings.logs / "studies" / settings.study_name, settings.storage)
    facts = data_facts(market, plan)
    # What trials train in is built before the study is made, and an agent, and the environment of a walk: what is wrong
    # with them is told while the name is still free.
    config = TrialConfig(settings.env_options, {"network": settings.network}, workload.agent, settings.agent)
    first = list(plan.folds[0].train)
    tried = market_env(env_name, market, settings.n_envs, segments=first, **settings.env_options)
    population_agent(tried, [config], [settings.seed], market.device).check_env(tried)
    walking_env(workload, config, plan.holdout, 1)
    most = settings.population or auto_population(workload, settings.n_trials)
    if settings.memory.given:
        settings, workload, most = within_memory(settings, workload, fixed, most)
    study = open_study(place, identity(market, plan, settings, env_name, batch))
    kept = kept_population(study, most)  # what was asked for, if it is the first to ask
    population = settings.population or kept
    if settings.memory.given and population > most:
        raise InputError(f"the study trains {population} trials side by side, and {most} fit the memory budget")
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
            fixed=fixed,
            stop=stop,
            on_change=changed,
        )
        if not complete:
            progress.state = "interrupted"
            return JobResult(complete=False)
        return _finish(study, place, workload, plan, settings, progress)


def within_memory(
    settings: JobSettings, workload: Workload, fixed: Mapping[str, Any], most: int
) -> tuple[JobSettings, Workload, int]:
    """Settings and workload in the precision, and the number of trials of a batch, that fit the memory budget.

    Raises:
        InputError: not one trial fits, or fewer than were asked for.
    """
    device = workload.market.device
    bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported()
    planned = plan_population(
        workload, largest_config(settings.agent, fixed), most, settings.memory.budget(device), "bf16" if bf16 else None
    )
    logger.info("%s", planned.reason)
    if settings.population is not None and planned.population < settings.population:
        raise InputError(f"--population {settings.population} does not fit: {planned.reason}")
    if device.type == "cuda":  # what the measurements held is not the study's
        torch.cuda.empty_cache()
    workload = replace(workload, agent={**workload.agent, "amp": planned.amp})
    return replace(settings, amp=planned.amp), workload, planned.population


def _finish(
    study: Study, place: StudyPlace, workload: Workload, plan: Plan, settings: JobSettings, progress: StudyProgress
) -> JobResult:
    """Refit, judge, deploy, report; by one of the workers that find the study complete, the others leave it at that."""
    claim = RunLock(place.folder / "refit.json")
    try:
        claim.acquire()
    except InputError as held:
        logger.info("another worker judges the study: %s", held)
        return JobResult(True)
    try:
        return _judge(study, place, workload, plan, settings, progress)
    finally:
        claim.release()


def _judge(
    study: Study, place: StudyPlace, workload: Workload, plan: Plan, settings: JobSettings, progress: StudyProgress
) -> JobResult:
    market = workload.market
    best = best_trial(study)
    progress.enter("refit", f"refitting trial {best.number} on all search bars, {settings.n_seeds} seeds")
    registry = Registry(settings.logs)
    candidate = refit(
        study, place, workload, plan.search, plan.holdout,
        n_seeds=settings.n_seeds, seed=settings.seed, lineage={"data": data_facts(market, plan)},
        looks=registry.looks,
    )  # fmt: skip
    progress.enter("judge", "judging on the held-out bars")
    verdict, deployed = judge_and_decide(registry, candidate, workload, settings.limits, settings.deploy)
    progress.enter("deploy", "deployed" if deployed else "decision recorded")
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


def judge_and_decide(
    registry: Registry,
    candidate: Candidate,
    workload: Workload,
    limits: GateLimits,
    deploy: bool,
    terms: Mapping[str, Any] | None = None,
) -> tuple[Verdict, Path | None]:
    """The gate's verdict beside the champion of the candidate's market, and `decide`.

    Judged without the registry's lock: a trader that wants to promote or to roll back must not wait for back-tests.
    Where the champion changed meanwhile, it is judged again.
    """
    slot = slot_of(candidate.bundle.manifest["market"])
    while True:
        champion = registry.champion(slot)
        verdict = pass_gate(candidate, champion, workload, limits)
        with registry.exclusive():
            if registry.champion_id(slot) == (champion and champion.id):
                return verdict, decide(registry, candidate, verdict, deploy, terms)


def decide(
    registry: Registry,
    candidate: Candidate,
    verdict: Verdict,
    deploy: bool,
    terms: Mapping[str, Any] | None = None,
) -> Path | None:
    """Promote what passed, record what did not. Returns where the promoted bundle lies.

    Where the champion is being traded, what passed runs in its shadow first, on `terms`, and None is returned.
    """
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
    if registry.quarantined(bundle):
        registry.refuse(bundle.id, study, ["it was rolled back before, and is in quarantine"], facts)
        return None
    place, champion_now = registry.put_forward(bundle, facts, terms)
    if not champion_now:
        logger.info("it runs in the champion's shadow first: %s", place)
    return place if champion_now else None


def paper_trade(candidate: Candidate, market: Market, folder: Path) -> tuple[PaperResult, float]:
    """Trade the held-out window through the local broker, deployed or not: the proof that live equals back-test.

    Returns:
        the trader's result, and the largest relative difference of its equity to the back-test's. The trader trades on
        where a back-test ends in ruin; they are compared until then.
    """
    env = candidate.bundle.env(market, candidate.window)
    broker = LocalBroker(env, int(env.bar[0]), candidate.window[1])
    paper = PaperTrader(candidate.bundle, broker, folder, folder.name).run()
    tested = candidate.result.equity
    ruined = tested[-1] <= env.ruin * env.initial_cash
    if paper.equity.size < tested.size or (paper.equity.size > tested.size and not ruined):
        raise RuntimeError(f"the trader saw {paper.equity.size} closes, the back-test {tested.size}")
    return paper, float(np.max(np.abs(paper.equity[: tested.size] / tested - 1)))


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
        "holdout_looks": candidate.looks,
        "model": {"bundle": candidate.bundle.id, "env": candidate.bundle.manifest["env"]},
        "versions": versions(),
    }
