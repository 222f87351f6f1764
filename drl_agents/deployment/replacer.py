"""The auto-replace-best job: takes a study's best through the gate and makes it champion, again and again."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from drl_agents.deployment.candidate import refit
from drl_agents.deployment.gate import Verdict
from drl_agents.deployment.job_plan import JobSettings, data_facts, plan_bars
from drl_agents.deployment.main_job import judge_and_decide
from drl_agents.deployment.registry import Registry, slot_of
from drl_agents.deployment.terms import Terms
from drl_agents.search.objective import Workload
from drl_agents.search.results import best_trial
from drl_agents.search.study import Study, StudyPlace, open_study
from drl_agents.training.runlock import RunLock
from environments.errors import InputError
from environments.market import Market

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Replacement:
    """One round. deployed: where the new champion lies. waits: it passed, and runs in the champion's shadow first.
    skipped: why nothing was judged, or None."""

    trial: int | None
    verdict: Verdict | None
    deployed: Path | None
    skipped: str | None = None
    waits: bool = False


def study_settings(settings: JobSettings) -> tuple[Study, JobSettings]:
    """The study, and `settings` with what the study was made with in place of the defaults.

    Raises:
        InputError: there is no such study.
    """
    place = StudyPlace(settings.study_name, settings.logs / "studies" / settings.study_name, settings.storage)
    if not place.folder.exists() and settings.storage is None:
        known = sorted(p.name for p in (settings.logs / "studies").glob("*") if p.is_dir())
        raise InputError(
            f"study {settings.study_name!r} is not in {settings.logs / 'studies'}: "
            f"there are {', '.join(known) or 'none'}"
        )
    study = open_study(place, {}, expect_existing=True)
    attrs = study.user_attrs
    names = {item.name for item in fields(JobSettings)}
    same = {name: value for name, value in attrs.items() if name in names}
    holdout = attrs["holdout"][1] - attrs["holdout"][0]
    return study, replace(settings, **same, holdout_bars=holdout)


def replace_best(
    study: Study,
    market: Market,
    settings: JobSettings,
    registry: Registry,
    last: int | None = None,
    terms: Terms | None = None,
) -> Replacement:
    """Take the study's best trial through the gate once; one process at a time, another is told so and leaves it.

    Args:
        settings: those of the study, see `study_settings`.
        last: the trial judged last; the same one is not judged again.
        terms: how a challenger is tried; None for the defaults.

    Raises:
        InputError: the market is not the study's, or no trial is complete.
    """
    attrs = study.user_attrs
    if attrs["fingerprint"] != market.fingerprint:
        raise InputError(
            f"study {study.study_name!r} was made on other bars (fingerprint {attrs['fingerprint'][:12]}, "
            f"these have {market.fingerprint[:12]}): give the bars it was made with"
        )
    trial = best_trial(study)
    if trial.number == last:
        return Replacement(trial.number, None, None, f"trial {trial.number} is still the best, and was judged")
    plan = plan_bars(market, settings)
    place = StudyPlace(settings.study_name, settings.logs / "studies" / settings.study_name, settings.storage)
    workload = Workload(
        market, tuple(plan.folds), attrs["env"], settings.n_envs, settings.timesteps, len(plan.folds),
        agent={"amp": settings.amp, "compile": settings.compile},
    )  # fmt: skip
    claim = RunLock(place.folder / "refit.json")
    try:
        claim.acquire()
    except InputError as held:  # whoever judges the study now, it is not judged twice at once
        return Replacement(None, None, None, f"trial {trial.number} is being judged by another process: {held}")
    try:
        candidate = refit(
            study, place, workload, plan.search, plan.holdout,
            n_seeds=settings.n_seeds, seed=settings.seed, lineage={"data": data_facts(market, plan)},
            looks=registry.looks,
        )  # fmt: skip
        bundle = candidate.bundle
        slot = slot_of(bundle.manifest["market"])
        if registry.champion_id(slot) == bundle.id:
            return Replacement(trial.number, None, None, f"trial {trial.number} is the champion already")
        if registry.challenger_id(slot) == bundle.id:
            return Replacement(trial.number, None, None, f"trial {trial.number} runs in the champion's shadow already")
        own = None if terms is None else asdict(terms)
        verdict, deployed = judge_and_decide(registry, candidate, workload, settings.limits, True, own)
        return Replacement(trial.number, verdict, deployed, waits=registry.challenger_id(slot) == bundle.id)
    finally:
        claim.release()


def watch(
    round_: Callable[[int | None], Replacement],
    interval: float,
    stop: Callable[[], bool],
    tell: Callable[[Replacement], Any],
) -> None:
    """Run `round_` every `interval` seconds until `stop()`; a study without a complete trial is waited for."""
    last: int | None = None
    while not stop():
        try:
            result = round_(last)
        except InputError as error:
            logger.warning("%s", error)
        else:
            last = result.trial
            tell(result)
        until = time.monotonic() + interval
        while time.monotonic() < until and not stop():
            time.sleep(min(0.5, interval))
