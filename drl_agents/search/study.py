"""The study: an Optuna study over configurations that can be stopped, killed, resumed and shared.

Trials are drawn and trained in batches of K, each batch one population. What a batch draws and trains depends on (seed,
its ordinals, the results before it), never on time or on the process (`search.draw` states the rule): a study that was
interrupted ends as it would have ended without the break. Trials lost with their worker are put back in the queue with
the parameters and the place they had. Several workers may run one study, each with its own batch.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState

from drl_agents.search.claims import Batch, agent_of, claim_batch, counted, first_beat, requeue, requeue_dead
from drl_agents.search.config import derived_seed
from drl_agents.search.objective import (
    OBJECTIVE_NAME,
    OBJECTIVE_UNIT,
    TrialFailed,
    TrialOutcome,
    TrialPruned,
    Workload,
    evaluate_batch,
)
from drl_agents.search.place import Heartbeat, StudyPlace
from drl_agents.search.space import suggest
from environments.errors import InputError

logger = logging.getLogger(__name__)

Study = optuna.Study  # for those who handle a study without touching Optuna
BATCH_ENVS = 240  # environments of one population beyond which a CPU core gains little
MAX_POPULATION = 8  # trials of a batch: more would see results too late
MIN_BATCHES = 5  # a search needs rounds to learn from


def auto_population(workload: Workload, n_trials: int) -> int:
    """How many trials to train side by side: K = min(BATCH_ENVS // E, MAX_POPULATION, n_trials // MIN_BATCHES), >= 1.

    E = n_envs * folds_per_batch * n_seeds is the environments of one trial. Measured on one core with networks of two
    layers of 64, the sample's five stocks and n_envs = 12: 7, 20, 23, 23, 27, 26 thousand steps a second for 12, 60,
    120, 240, 480, 960 environments. An accelerator steps more of them at once: there, unmeasured, E does not count.
    """
    each = workload.n_envs * workload.folds_per_batch * workload.n_seeds
    fits = BATCH_ENVS // each if workload.market.device.type == "cpu" else MAX_POPULATION
    return max(1, min(fits, MAX_POPULATION, n_trials // MIN_BATCHES))


def open_study(place: StudyPlace, identity: Mapping[str, Any], expect_existing: bool = False) -> optuna.Study:
    """The study of that name, made if it is not there.

    Args:
        identity: what makes results comparable (data fingerprint, folds, steps, seed, ...), JSON-able. It is kept with
            the study, and must be the same when the study is opened again.

    Raises:
        InputError: the name belongs to a study of something else; the message names the first field that differs.
            Or the storage cannot be had, or a journal's study has its returns in another folder.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = place.open_storage()
    with place.claiming():
        names = optuna.get_all_study_names(storage)
        if expect_existing and place.name not in names:
            raise InputError(f"study {place.name!r} is not in the storage: there are {', '.join(names) or 'none'}")
        # What trials draw is drawn before they are asked for: nothing is left to a sampler here.
        idle = {"sampler": optuna.samplers.RandomSampler(seed=0), "pruner": optuna.pruners.NopPruner()}
        if place.name in names:  # opened without a write: it may be refused below
            study = optuna.load_study(study_name=place.name, storage=storage, **idle)
        else:
            study = optuna.create_study(study_name=place.name, storage=storage, direction="maximize", **idle)
        begun = bool(study.get_trials(deepcopy=False))
        place.keep_together(study, new=not begun)
        known = study.user_attrs
        if begun:
            known.setdefault("agent", agent_of(study))
            known.setdefault("group_baseline", False)  # of a study made before there was one
        else:
            # New, or its maker died before it had written all.
            for key, value in {**identity, "objective": OBJECTIVE_NAME, "unit": OBJECTIVE_UNIT}.items():
                if key not in known:
                    study.set_user_attr(key, value)
    for key, value in identity.items():
        if key in known and known[key] != value:
            name, there, here = first_difference(key, known[key], value)
            raise InputError(
                f"study {place.name!r} belongs to another search: its {name} is {there}, here it is {here}; "
                f"take another --study-name"
            )
    return study


def first_difference(name: str, there: Any, here: Any) -> tuple[str, str, str]:
    """What differs in two values that differ, and each as text; of tables the first entry, by name, that does."""
    if isinstance(there, Mapping) and isinstance(here, Mapping):
        for key in sorted({*there, *here}):
            if key not in there or key not in here:
                return key, *(repr(own[key]) if key in own else "not given" for own in (there, here))
            if there[key] != here[key]:
                return first_difference(key, there[key], here[key])
    return name, repr(there), repr(here)


def kept_population(study: optuna.Study, asked: int) -> int:
    """The trials per batch the study began with; `asked` where it begins now. What is found is what is kept."""
    if "population" not in study.user_attrs:
        study.set_user_attr("population", asked)
    return int(study.user_attrs["population"])


def run_study(
    study: optuna.Study,
    place: StudyPlace,
    workload: Workload,
    *,
    n_trials: int,
    seed: int,
    population: int = 1,
    fixed: Mapping[str, Any] | None = None,
    stop: Callable[[], bool] = lambda: False,
    on_change: Callable[[], None] = lambda: None,
) -> bool:
    """Run trials until the study has `n_trials` that finished; other workers may do the same beside this one.

    Args:
        population: K, trials drawn and trained together.
        fixed: environment options that are not searched.
        stop: asked between batches.
        on_change: called when trials began or ended.

    Returns:
        True when the study is complete, False when it was stopped.
    """
    while True:
        # Under one lock: a trial that was asked for and not yet signed would look like a dead worker's.
        with place.claiming():
            requeue_dead(study, place)
            running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
            if len(counted(study)) >= n_trials and not running:
                return True
            if stop():
                return False
            trials = claim_batch(study, n_trials, population, seed, fixed)
            first_beat(study, place, trials)
        if not trials:
            time.sleep(1.0)  # another worker has the last trials; should it die, they are ours
            continue
        on_change()
        with Heartbeat(study, place, trials):
            _run_batch(study, trials, place, workload, seed, fixed, on_change)
        on_change()


def _run_batch(
    study: optuna.Study,
    trials: list[optuna.Trial],
    place: StudyPlace,
    workload: Workload,
    seed: int,
    fixed: Mapping[str, Any] | None,
    on_change: Callable[[], None],
) -> None:
    """Evaluate claimed trials of one batch, and tell what came of each."""
    untold = {trial.number for trial in trials}

    def told(trial: optuna.Trial, end: TrialOutcome | TrialPruned | TrialFailed) -> None:
        try:
            _tell(study, place, trial, end)
        except optuna.exceptions.UpdateFinishedTrialError:
            # This process stood still for so long that it was taken for dead.
            logger.warning("trial %d went to another worker: what came of it here is dropped", trial.number)
        untold.discard(trial.number)

    try:
        everything = study.get_trials(deepcopy=False)
        knowledge = Batch.of(everything[trials[0].number]).knowledge(everything, agent_of(study))
        configs = [suggest(trial, fixed, agent_of(study)) for trial in trials]
        seeds = [derived_seed(seed, "trial", trial.user_attrs["ordinal"]) for trial in trials]
        for trial, config, own in zip(trials, configs, seeds, strict=True):
            trial.set_user_attr("config", config.to_dict())
            trial.set_user_attr("seed", own)
        values: list[dict[int, float]] = [{} for _ in trials]

        def report(index: int, step: int, value: float) -> bool:
            values[index][step] = value
            with contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError):  # told when it ends
                trials[index].report(value, step)
            if not knowledge.prunes(values[index]):
                return False
            told(trials[index], TrialPruned(step))
            on_change()
            return True

        for trial, end in zip(trials, evaluate_batch(workload, configs, seeds, report), strict=True):
            if trial.number in untold:
                told(trial, end)
    except BaseException:
        with place.claiming():
            everything = study.get_trials(deepcopy=False)
            for number in sorted(untold):
                requeue(study, everything[number])
        raise


def _tell(
    study: optuna.Study, place: StudyPlace, trial: optuna.Trial, end: TrialOutcome | TrialPruned | TrialFailed
) -> None:
    if isinstance(end, TrialOutcome):
        place.save_returns(trial, end.returns)
        trial.set_user_attr("fold_sharpes", [float(s) for s in end.sharpes])
        trial.set_user_attr("steps_per_second", end.train_steps / max(end.train_seconds, 1e-9))
        study.tell(trial, end.value)
        logger.info("trial %d: %.3f (%s)", trial.number, end.value, OBJECTIVE_UNIT)
    elif isinstance(end, TrialFailed):
        trial.set_user_attr("reason", str(end.error))
        study.tell(trial, state=TrialState.FAIL)
        logger.warning("trial %d failed: %s", trial.number, end.error)
    else:
        study.tell(trial, state=TrialState.PRUNED)
        logger.info("trial %d pruned", trial.number)


def try_storage(folder: Path) -> str:
    """Make a study in `folder`, run a trial of nothing, and read it back; says what was done."""
    place = StudyPlace("verify", folder)
    study = open_study(place, {})
    study.tell(study.ask(), 1.0)
    if open_study(place, {}, expect_existing=True).best_value != 1.0:
        raise OSError("the value written was not read back")
    return f"journal file written and read back in {folder.parent}"
