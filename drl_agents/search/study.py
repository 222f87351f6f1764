"""The study: an Optuna study over configurations that can be stopped, killed, resumed and shared.

What a trial draws and trains depends on (seed, its place in the study, the results before it), never on time or
on the process: a study that was interrupted ends as it would have ended without the break. A trial lost with its worker
is put back in the queue with the parameters and the place it had.
"""

from __future__ import annotations

import fcntl
import io
import logging
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import psutil
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from drl_agents.search.config import derived_seed
from drl_agents.search.objective import OBJECTIVE_NAME, OBJECTIVE_UNIT, SplitFailed, Workload, evaluate
from drl_agents.search.space import suggest
from drl_agents.training.trainer import TrainingDiverged
from environments.errors import InputError
from environments.files import write_atomic

logger = logging.getLogger(__name__)

STARTUP_TRIALS = 8  # drawn at random before the sampler trusts its model, and before anything is pruned
Study = optuna.Study  # for those who handle a study without touching Optuna
FINISHED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
SIGNING = timedelta(seconds=60)  # a trial begun on another host is given this long to be signed by its worker


@dataclass(frozen=True)
class StudyPlace:
    """Where a study lives: its name, its folder, and the Optuna storage (None: a journal file in the folder)."""

    name: str
    folder: Path
    storage: str | None = None

    def open_storage(self) -> BaseStorage:
        if self.storage and "://" in self.storage:
            return RDBStorage(self.storage)
        path = Path(self.storage) if self.storage else self.folder / "journal.log"
        path.parent.mkdir(parents=True, exist_ok=True)
        return JournalStorage(JournalFileBackend(str(path)))

    @contextmanager
    def claiming(self) -> Iterator[None]:
        """One worker of this host at a time takes a trial, or puts one back; the lock goes with its process."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "claim.guard").open("w") as guard:
            fcntl.flock(guard, fcntl.LOCK_EX)
            yield

    def returns_file(self, trial: int) -> Path:
        """Where the out-of-sample returns of a trial are kept."""
        return self.folder / "returns" / f"trial_{trial:05d}.npy"


def open_study(place: StudyPlace, identity: Mapping[str, Any], expect_existing: bool = False) -> optuna.Study:
    """The study of that name, made if it is not there.

    Args:
        identity: what makes results comparable (data fingerprint, folds, steps, seed, ...), JSON-able. It is kept with
            the study, and must be the same when the study is opened again.

    Raises:
        InputError: the name belongs to a study of something else; the message names the first field that differs.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = place.open_storage()
    names = optuna.get_all_study_names(storage)
    if expect_existing and place.name not in names:
        raise InputError(f"study {place.name!r} is not in the storage: there are {', '.join(names) or 'none'}")
    if place.name not in names:
        study = optuna.create_study(study_name=place.name, storage=storage, direction="maximize", load_if_exists=True)
        for key, value in identity.items():
            study.set_user_attr(key, value)
        study.set_user_attr("objective", OBJECTIVE_NAME)
        study.set_user_attr("unit", OBJECTIVE_UNIT)
        return study
    study = optuna.load_study(study_name=place.name, storage=storage)
    known = study.user_attrs
    if not study.get_trials(deepcopy=False):
        # Its maker may have died before it had written all.
        for key in identity.keys() - known.keys():
            study.set_user_attr(key, identity[key])
    for key, value in identity.items():
        if key in known and known[key] != value:
            raise InputError(
                f"study {place.name!r} belongs to another search: its {key} is {known[key]!r}, here it is {value!r}; "
                f"take another --study-name"
            )
    return study


def counted(study: optuna.Study) -> list[FrozenTrial]:
    """The trials that were tried: all that finished, less those that died and were put back in the queue."""
    return [t for t in study.get_trials(deepcopy=False, states=FINISHED) if "requeued" not in t.user_attrs]


def run_study(
    study: optuna.Study,
    place: StudyPlace,
    workload: Workload,
    *,
    n_trials: int,
    seed: int,
    fixed: Mapping[str, Any] | None = None,
    stop: Callable[[], bool] = lambda: False,
    on_change: Callable[[], None] = lambda: None,
) -> bool:
    """Run trials until the study has `n_trials` that finished; other workers may do the same beside this one.

    Args:
        fixed: environment options that are not searched.
        stop: asked between trials.
        on_change: called when a trial began or ended.

    Returns:
        True when the study is complete, False when it was stopped.
    """
    study.pruner = optuna.pruners.MedianPruner(n_startup_trials=STARTUP_TRIALS)
    while True:
        # Under one lock: a trial that was asked for and not yet signed would look like a dead worker's.
        with place.claiming():
            requeue_dead(study, place)
            trials = study.get_trials(deepcopy=False)
            others = sum(t.state == TrialState.RUNNING for t in trials)
            full = len(counted(study)) + others >= n_trials
            if full and not others:
                return True
            if stop():
                return False
            trial = None if full else study.ask()
            if trial is not None:
                place_in_study = ordinal(trial.number, study.get_trials(deepcopy=False))
                for key, value in {"ordinal": place_in_study, **_worker()}.items():
                    trial.set_user_attr(key, value)
        if trial is None:
            time.sleep(1.0)  # another worker has the last trials; should it die, they are ours
            continue
        # Before anything is drawn. By the trial's own place: two workers must not draw the same.
        study.sampler = optuna.samplers.TPESampler(
            seed=derived_seed(seed, "sampler", place_in_study), n_startup_trials=STARTUP_TRIALS, multivariate=True
        )
        on_change()
        _run_trial(study, trial, place, workload, derived_seed(seed, "trial", place_in_study), fixed)
        on_change()


def ordinal(number: int, trials: Sequence[FrozenTrial]) -> int:
    """The place of trial `number` in the study: as many were begun before it; one tried again keeps its place."""
    own = next(t for t in trials if t.number == number)
    if "ordinal" in own.user_attrs:
        return own.user_attrs["ordinal"]
    return sum("retry_of" not in t.user_attrs for t in trials if t.number < number)


def _run_trial(
    study: optuna.Study,
    trial: optuna.Trial,
    place: StudyPlace,
    workload: Workload,
    seed: int,
    fixed: Mapping[str, Any] | None,
) -> None:
    config = suggest(trial, fixed)
    trial.set_user_attr("config", config.to_dict())
    trial.set_user_attr("seed", seed)

    def report(step: int, value: float) -> None:
        trial.report(value, step)
        if trial.should_prune():
            raise optuna.TrialPruned

    try:
        outcome = evaluate(workload, config, seed, report)
    except optuna.TrialPruned:
        study.tell(trial, state=TrialState.PRUNED)
        logger.info("trial %d pruned", trial.number)
    except (SplitFailed, TrainingDiverged) as error:
        trial.set_user_attr("reason", str(error))
        study.tell(trial, state=TrialState.FAIL)
        logger.warning("trial %d failed: %s", trial.number, error)
    except BaseException:
        with place.claiming():
            _requeue(study, study.trials[trial.number])
        raise
    else:
        _save_returns(place.returns_file(trial.number), outcome.returns)
        trial.set_user_attr("fold_sharpes", [float(s) for s in outcome.sharpes])
        trial.set_user_attr("steps_per_second", outcome.train_steps / max(outcome.train_seconds, 1e-9))
        study.tell(trial, outcome.value)
        logger.info("trial %d: %.3f (%s)", trial.number, outcome.value, OBJECTIVE_UNIT)


def _save_returns(path: Path, returns: np.ndarray) -> None:
    buffer = io.BytesIO()
    np.save(buffer, returns.astype(np.float32), allow_pickle=False)
    write_atomic(path, buffer.getvalue())


def _worker() -> dict[str, Any]:
    return {"pid": os.getpid(), "process_started": psutil.Process().create_time(), "host": socket.gethostname()}


def _alive(trial: FrozenTrial, one_host: bool) -> bool:
    """False only where the worker was on this host and is gone; of other hosts nothing is known."""
    attrs = trial.user_attrs
    if "host" not in attrs:  # signed last: its worker is signing it, or died while it did
        return not one_host and datetime.now() - trial.datetime_start < SIGNING
    if attrs["host"] != socket.gethostname():
        return True
    try:
        started = psutil.Process(attrs["pid"]).create_time()
    except psutil.NoSuchProcess:
        return False
    return abs(started - attrs["process_started"]) < 2


def requeue_dead(study: optuna.Study, place: StudyPlace) -> int:
    """Put the trials of workers that died on this host back in the queue; returns how many.

    The caller holds `place.claiming()`.
    """
    one_host = "://" not in (place.storage or "")
    trials = study.get_trials(deepcopy=False)
    dead = [t for t in trials if t.state == TrialState.RUNNING and not _alive(t, one_host)]
    for trial in dead:
        _requeue(study, trial)
    # Given up by a worker that died before it had put them back in the queue.
    again = {t.user_attrs.get("retry_of") for t in trials}
    lost = [t for t in trials if t.state == TrialState.FAIL and "requeued" in t.user_attrs and t.number not in again]
    for trial in lost:
        _enqueue(study, trial)
    return len(dead) + len(lost)


def _requeue(study: optuna.Study, trial: FrozenTrial) -> None:
    try:
        study._storage.set_trial_user_attr(trial._trial_id, "requeued", True)
        study.tell(trial.number, state=TrialState.FAIL)
    except optuna.exceptions.UpdateFinishedTrialError:
        return  # another worker found it first
    _enqueue(study, trial)


def _enqueue(study: optuna.Study, trial: FrozenTrial) -> None:
    # Parameters are not handed on: drawn again from the same seed and history, they are the same,
    # and those not yet drawn when the worker died are drawn as they would have been.
    place_in_study = ordinal(trial.number, study.get_trials(deepcopy=False))
    study.enqueue_trial({}, user_attrs={"ordinal": place_in_study, "retry_of": trial.number})


def try_storage(folder: Path) -> str:
    """Make a study in `folder`, run a trial of nothing, and read it back; says what was done."""
    place = StudyPlace("verify", folder)
    study = open_study(place, {})
    study.tell(study.ask(), 1.0)
    if open_study(place, {}, expect_existing=True).best_value != 1.0:
        raise OSError("the value written was not read back")
    return f"journal file written and read back in {folder.parent}"
