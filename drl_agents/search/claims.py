"""Who runs which trial: batches are queued whole, claimed by workers, and put back when their worker dies.

A trial has a number, given by Optuna, and an ordinal, its place in the study: one that is tried again has a new number
and keeps its ordinal, its batch and what it drew. Everything here is called under `StudyPlace.claiming()`.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import optuna
import psutil
from optuna.trial import FrozenTrial, TrialState

from drl_agents.search.draw import Knowledge
from drl_agents.search.place import StudyPlace, beat
from environments.errors import InputError

FINISHED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
OPEN = (TrialState.WAITING, TrialState.RUNNING)


def counted(study: optuna.Study) -> list[FrozenTrial]:
    """The trials that were tried: all that finished, less those that died and were put back in the queue."""
    return [t for t in study.get_trials(deepcopy=False, states=FINISHED) if "requeued" not in t.user_attrs]


def agent_of(study: optuna.Study) -> str:
    """Whose trials a study's are; one that does not say is of PPO's time."""
    return study.user_attrs.get("agent", "ppo")


@dataclass(frozen=True)
class Batch:
    """Trials drawn together; every one of them carries this as its attribute `batch`.

    first, size: their ordinals are first, ..., first + size - 1. before: trials the study had when they were drawn.
    running: the numbers of those among them that had not ended.
    """

    first: int
    size: int
    before: int
    running: tuple[int, ...]

    @classmethod
    def of(cls, trial: FrozenTrial) -> Batch:
        kept = trial.user_attrs["batch"]
        return cls(**{**kept, "running": tuple(kept["running"])})

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "running": list(self.running)}

    def knowledge(self, trials: Sequence[FrozenTrial], agent: str = "ppo") -> Knowledge:
        """What it knows of the study's `trials`, of `agent`: the same whenever it is asked."""
        earlier = [t for t in trials if t.number < self.before and "batch" in t.user_attrs]
        ended = [t for t in earlier if t.number not in self.running and "requeued" not in t.user_attrs]
        ended.sort(key=_ordinal)
        running = [t.user_attrs["drawn"] for t in sorted(earlier, key=_ordinal) if t.number in self.running]
        return Knowledge(ended, running, len({Batch.of(t).first for t in ended}), agent)


def _ordinal(trial: FrozenTrial) -> int:
    return trial.user_attrs["ordinal"]


def claim_batch(
    study: optuna.Study, n_trials: int, size: int, seed: int, fixed: Mapping[str, Any] | None = None
) -> list[optuna.Trial]:
    """Take up to `size` trials of one batch: those that wait, else of a new batch, so that the study gets `n_trials`.

    Returns:
        the trials, signed by this process; none where all are done or being run.

    Raises:
        InputError: something else queued trials in the study.
    """
    trials = study.get_trials(deepcopy=False)
    strange = [t.number for t in trials if t.state == TrialState.WAITING and "batch" not in t.user_attrs]
    if strange:
        raise InputError(
            f"study {study.study_name!r}: trial {strange[0]} was queued by something else; take another study"
        )
    room = n_trials - len(counted(study)) - sum(t.state == TrialState.RUNNING for t in trials)
    if room <= 0:
        return []
    waiting = [t for t in trials if t.state == TrialState.WAITING]
    if not waiting:
        queue_batch(study, room, size, seed, fixed)
        waiting = study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
    own = [t for t in waiting if Batch.of(t).first == Batch.of(waiting[0]).first]
    taken = []
    # They are given out by number; a batch may lie in the queue in parts, and each part is a population as well.
    for expected, next_out in zip(own[: min(room, size)], waiting, strict=False):
        if expected.number != next_out.number:
            break
        trial = study.ask()
        for key, value in _worker().items():
            trial.set_user_attr(key, value)
        taken.append(trial)
    return taken


def queue_batch(study: optuna.Study, room: int, size: int, seed: int, fixed: Mapping[str, Any] | None = None) -> None:
    """Queue up to `room` trials: what is left of a batch that was not queued whole, else a new batch of `size`.

    A batch is not whole where the study had no room for all of it, or where its worker died while it queued them.
    """
    trials = [t for t in study.get_trials(deepcopy=False) if "batch" in t.user_attrs]
    present = {_ordinal(t) for t in trials}
    batches = {Batch.of(t).first: Batch.of(t) for t in trials}
    begun = [b for _, b in sorted(batches.items()) if not present.issuperset(range(b.first, b.first + b.size))]
    if begun:
        batch = begun[0]
    else:
        everything = study.get_trials(deepcopy=False)
        first = max((b.first + b.size for b in batches.values()), default=0)
        open_now = tuple(t.number for t in everything if t.state in OPEN)
        batch = Batch(first, size, len(everything), open_now)
    drawn = batch.knowledge(trials, agent_of(study)).draw(batch.first, batch.size, seed, fixed)
    missing = [i for i in range(batch.size) if batch.first + i not in present]
    for i in missing[:room]:
        attrs = {"ordinal": batch.first + i, "batch": batch.to_dict(), "drawn": drawn[i]}
        study.enqueue_trial(drawn[i], user_attrs=attrs)


def _worker() -> dict[str, Any]:
    return {"pid": os.getpid(), "process_started": psutil.Process().create_time(), "host": socket.gethostname()}


def _alive(trial: FrozenTrial, silent: set[int]) -> bool:
    attrs = trial.user_attrs
    if "host" not in attrs:
        return False  # signed last, and under the lock: its worker died while it signed
    if attrs["host"] != socket.gethostname():
        return trial._trial_id not in silent
    try:
        started = psutil.Process(attrs["pid"]).create_time()
    except psutil.NoSuchProcess:
        return False
    return abs(started - attrs["process_started"]) < 2


def requeue_dead(study: optuna.Study, place: StudyPlace) -> int:
    """Put the trials of workers that died back in the queue; returns how many.

    A worker of this host is dead when its process is gone, one of another host when the database has not heard of it
    for `SILENCE_S` seconds. Without such a database nothing is known of other hosts, and their trials are let be.
    """
    silent = set(study._storage._get_stale_trial_ids(study._study_id)) if place.many_hosts else set()
    trials = study.get_trials(deepcopy=False)
    dead = [t for t in trials if t.state == TrialState.RUNNING and not _alive(t, silent)]
    for trial in dead:
        requeue(study, trial)
    # Given up by a worker that died before it had put them back in the queue.
    again = {t.user_attrs.get("retry_of") for t in trials}
    lost = [t for t in trials if t.state == TrialState.FAIL and "requeued" in t.user_attrs and t.number not in again]
    for trial in lost:
        _enqueue(study, trial)
    return len(dead) + len(lost)


def requeue(study: optuna.Study, trial: FrozenTrial) -> None:
    """Give a running trial up and put it back in the queue as another trial with the same ordinal and parameters."""
    try:
        study._storage.set_trial_user_attr(trial._trial_id, "requeued", True)
        study.tell(trial.number, state=TrialState.FAIL)
    except optuna.exceptions.UpdateFinishedTrialError:
        return  # it ended, or another worker found it first
    _enqueue(study, trial)


def _enqueue(study: optuna.Study, trial: FrozenTrial) -> None:
    if "batch" not in trial.user_attrs:
        return  # asked for by something else
    kept = {name: trial.user_attrs[name] for name in ("ordinal", "batch", "drawn")}
    study.enqueue_trial(kept["drawn"], user_attrs={**kept, "retry_of": trial.number})


def first_beat(study: optuna.Study, place: StudyPlace, trials: Sequence[optuna.Trial]) -> None:
    """Begin the signs of life of claimed trials, still under the lock: one without any is never found silent."""
    if place.many_hosts:
        beat(study._storage, [trial._trial_id for trial in trials])
