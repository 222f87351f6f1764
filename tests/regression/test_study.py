"""A study ends as it would have ended without the break, however it was broken, and workers share it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import optuna
import pytest
import torch
from optuna.trial import TrialState

from drl_agents.evaluation.splits import combinatorial_purged
from drl_agents.search import claims, draw
from drl_agents.search import study as study_module
from drl_agents.search.claims import counted, requeue_dead
from drl_agents.search.objective import SplitFailed, TrialFailed, TrialOutcome, TrialPruned, Workload
from drl_agents.search.place import StudyPlace
from drl_agents.search.space import MAX_LOOKBACK, SPACE
from drl_agents.search.study import auto_population, open_study, run_study
from environments.data.source import load_bars
from environments.errors import InputError
from environments.market import Market
from tests.reference.study_worker import Workers, finish, let_go, workers_in

IDENTITY = {"fingerprint": "abc", "holdout": [300, 400], "seed": 7}
N_TRIALS = 12


@pytest.fixture(scope="module", autouse=True)
def small():
    """One thread, and a study whose sampler and pruner wake after three trials instead of eight."""
    before, startup = torch.get_num_threads(), draw.STARTUP_TRIALS
    torch.set_num_threads(1)
    draw.STARTUP_TRIALS = 3
    yield
    torch.set_num_threads(before)
    draw.STARTUP_TRIALS = startup


def scored(workload, configs, seeds, report) -> list:
    """In place of training: a value that depends on what was drawn and on the seed, told in two halves."""
    ends = []
    for i, (config, seed) in enumerate(zip(configs, seeds, strict=True)):
        value = float(np.log(config.hyper.learning_rate) + 5 * config.hyper.gamma + seed % 1000 / 1000)
        if seed % 4 == 0:
            ends.append(TrialFailed(SplitFailed(f"nothing was traded with seed {seed}")))
        elif report(i, 1, value - 0.5):
            ends.append(TrialPruned(1))
        else:
            ends.append(outcome(value))
    return ends


def outcome(value: float) -> TrialOutcome:
    return TrialOutcome(np.array([value]), np.array([value, np.nan]), 1, 1.0)


@pytest.fixture
def quick(monkeypatch):
    """What a trial is worth is not in question: nothing is trained."""
    monkeypatch.setattr(study_module, "evaluate_batch", scored)


@pytest.fixture(scope="module")
def workload() -> Workload:
    options = {"kind": "momentum", "n_bars": 170, "sigma": 0.02}
    market = Market.from_bars(load_bars("synthetic", options=options, seed=2))
    folds = combinatorial_purged([(40, 170)], 2, 1, MAX_LOOKBACK + 1, 2, min_length=32)
    return Workload(market, tuple(folds), "VectorizedCryptoEnvAlpaca", n_envs=2, timesteps=1, folds_per_batch=1)


def place_at(folder: Path) -> StudyPlace:
    return StudyPlace("s", folder)


def go(place: StudyPlace, workload: Workload | None = None, n_trials: int = N_TRIALS, **options) -> optuna.Study:
    study = open_study(place, IDENTITY)
    options = {"seed": 7, "fixed": {"episode_length": 40}, **options}
    assert run_study(study, place, workload, n_trials=n_trials, **options)
    return study


def told(study: optuna.Study, place: StudyPlace) -> list:
    """Everything the trials say, by their place in the study."""
    lines = []
    for t in counted(study):
        returns = place.load_returns(t).tobytes() if t.state == TrialState.COMPLETE else b""
        attrs = {k: t.user_attrs.get(k) for k in ("ordinal", "config", "seed", "fold_sharpes", "reason")}
        lines.append((attrs, t.params, t.state, t.value, t.intermediate_values, returns))
    return sorted(lines, key=lambda line: line[0]["ordinal"])


@pytest.fixture(scope="module", params=[1, 4], ids=["one by one", "in batches"])
def size(request) -> int:
    """K, the trials of a batch."""
    return request.param


@pytest.fixture(scope="module")
def unbroken(size, tmp_path_factory) -> list:
    place = place_at(tmp_path_factory.mktemp("whole"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study_module, "evaluate_batch", scored)
        return told(go(place, population=size), place)


@pytest.fixture
def whole(quick, unbroken) -> list:
    """What the study without a break tells, nothing being trained in what follows either."""
    result = unbroken
    assert [line[0]["ordinal"] for line in result] == list(range(N_TRIALS))
    assert {line[2] for line in result} == {TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL}
    assert len({str(line[1]) for line in result}) == N_TRIALS
    return result


def test_same_seed_same_study(tmp_path, size, whole):
    assert told(go(place_at(tmp_path), population=size), place_at(tmp_path)) == whole


def test_another_seed_another_study(tmp_path, size, whole):
    other = told(go(place_at(tmp_path), n_trials=1, seed=8, population=size), place_at(tmp_path))
    assert other[0][1] != whole[0][1]


def test_a_batch_shares_its_choices_and_nothing_else(size, whole):
    choices = {p.name for p in SPACE if p.choices}
    for first in range(0, N_TRIALS, size):
        drawn = [line[1] for line in whole[first : first + size]]
        for name in drawn[0]:
            assert len({params[name] for params in drawn}) == (1 if name in choices else size), name


def test_stopped_between_batches_and_gone_on(tmp_path, size, whole):
    place, done = place_at(tmp_path), []
    study = open_study(place, IDENTITY)
    options = {"n_trials": N_TRIALS, "seed": 7, "fixed": {"episode_length": 40}, "population": size}
    stopped = run_study(
        study, place, None, stop=lambda: len(counted(study)) >= 4, on_change=lambda: done.append(1), **options
    )
    pruned = sum(t.state == TrialState.PRUNED for t in counted(study))
    assert not stopped and len(counted(study)) == 4 and len(done) == 2 * 4 // size + pruned
    assert told(go(place, population=size), place) == whole


@pytest.mark.parametrize("n_trials", [1, 5, 8])
def test_asked_for_more_trials_later(tmp_path, size, whole, n_trials):
    """Also in the middle of a batch: the rest of it is drawn as if there had been no break."""
    go(place_at(tmp_path), n_trials=n_trials, population=size)
    assert told(go(place_at(tmp_path), population=size), place_at(tmp_path)) == whole


class Killed(BaseException):
    """Stands for the end of the process: nothing of ours may run after it."""


def dead_worker() -> dict:
    return {"pid": os.getpid(), "process_started": 0.0, "host": claims.socket.gethostname()}


def die(*args, **options):
    raise Killed


def after(function, calls: int):
    """`function`, and the end of the process after so many calls of it."""
    made = []

    def until(*args, **options):
        result = function(*args, **options)
        made.append(1)
        if len(made) == calls:
            raise Killed
        return result

    return until


# Where a worker may die: in training, and before or after each write that takes a trial, ends it or puts it back.
MOMENTS = ("suggest", "evaluate_batch", "save_returns", "saved", "told", "enqueued", "asked", "half signed")


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_in_a_batch(tmp_path, size, whole, monkeypatch, moment):
    place = place_at(tmp_path)
    go(place, n_trials=4, population=size)
    with monkeypatch.context() as patch:
        patch.setattr(claims, "_worker", dead_worker)
        patch.setattr(study_module, "requeue", lambda *args: None)  # the process is gone
        if moment in ("suggest", "evaluate_batch"):
            patch.setattr(study_module, moment, die)
        elif moment in ("save_returns", "saved"):
            new = die if moment == "save_returns" else after(StudyPlace.save_returns, 1)
            patch.setattr(StudyPlace, "save_returns", new)
        elif moment == "told":
            patch.setattr(study_module, "_tell", after(study_module._tell, 1))
        elif moment == "enqueued":
            patch.setattr(optuna.Study, "enqueue_trial", after(optuna.Study.enqueue_trial, 1))
        elif moment == "asked":
            patch.setattr(claims, "_worker", die)
        else:
            write = optuna.Trial.set_user_attr

            def until(self, key, value):
                write(self, key, value)
                if key == "pid":
                    raise Killed

            patch.setattr(optuna.Trial, "set_user_attr", until)
        with pytest.raises(Killed):
            go(place, population=size)
    study = open_study(place, IDENTITY)
    states = [t.state for t in study.trials[4:]][-size:]
    running = states.count(TrialState.RUNNING)
    # Of the last batch: a trial of it may have been pruned before its mates were lost.
    ended = size - states.count(TrialState.PRUNED) - states.count(TrialState.COMPLETE)
    assert running == {"enqueued": 0, "asked": 1, "half signed": 1}.get(moment, ended)
    assert running or moment in ("enqueued", "told")
    assert told(go(place, population=size), place) == whole
    lost = [t for t in study.trials if "requeued" in t.user_attrs]
    assert len(lost) == running and all(t.state == TrialState.FAIL and t.number >= 4 for t in lost)


@pytest.mark.parametrize("moment", ["tell", "enqueue_trial"])
def test_killed_while_putting_trials_back(tmp_path, size, whole, monkeypatch, moment):
    place = place_at(tmp_path)
    go(place, n_trials=4, population=size)
    with monkeypatch.context() as patch:
        patch.setattr(claims, "_worker", dead_worker)

        def broken(*args, **options):
            patch.setattr(optuna.Study, moment, die)
            raise KeyError("a fault")

        patch.setattr(study_module, "evaluate_batch", broken)
        with pytest.raises(Killed):
            go(place, population=size)
    assert told(go(place, population=size), place) == whole


def test_stopped_at_once_in_a_batch(tmp_path, size, whole, monkeypatch):
    """The second Ctrl-C: the trials go back in the queue before the process ends."""
    place = place_at(tmp_path)
    with monkeypatch.context() as patch:

        def interrupted(*args, **options):
            raise KeyboardInterrupt

        patch.setattr(study_module, "evaluate_batch", interrupted)
        with pytest.raises(KeyboardInterrupt):
            go(place, population=size)
    study = open_study(place, IDENTITY)
    assert [t.state for t in study.trials] == [TrialState.FAIL] * size + [TrialState.WAITING] * size
    assert told(go(place, population=size), place) == whole


def test_what_is_trained_together_is_told_as_if_trained_alone(workload, tmp_path, monkeypatch):
    """The study's result is the same as when every trial of the same draws is evaluated by itself."""
    together = told(go(place_at(tmp_path / "a"), workload, n_trials=4, population=4), place_at(tmp_path / "a"))
    at_once = study_module.evaluate_batch

    def one_by_one(workload, configs, seeds, report):
        ends = []
        for i, own in enumerate(zip(configs, seeds, strict=True)):
            config, seed = own
            ends += at_once(workload, [config], [seed], lambda _, step, value, i=i: report(i, step, value))
        return ends

    monkeypatch.setattr(study_module, "evaluate_batch", one_by_one)
    apart = told(go(place_at(tmp_path / "b"), workload, n_trials=4, population=4), place_at(tmp_path / "b"))
    assert len(together) == len(apart) == 4
    assert sum(line[2] == TrialState.COMPLETE for line in together) >= 2
    for left, right in zip(together, apart, strict=True):
        assert left[1:3] == right[1:3] and left[0]["config"] == right[0]["config"]
        assert left[0]["reason"] == right[0]["reason"] and left[4].keys() == right[4].keys()
        for step in left[4]:
            assert left[4][step] == pytest.approx(right[4][step], rel=1e-6, abs=1e-6)
        if left[2] == TrialState.COMPLETE:
            assert left[3] == pytest.approx(right[3], rel=1e-6, abs=1e-6)
            assert left[0]["fold_sharpes"] == pytest.approx(right[0]["fold_sharpes"], rel=1e-6, abs=1e-6)
            returns = [np.frombuffer(line[5], np.uint8)[-4 * 170 :].view(np.float32) for line in (left, right)]
            np.testing.assert_allclose(*returns, rtol=0, atol=1e-7)


def test_a_living_worker_keeps_its_trial(workload, tmp_path):
    place = place_at(tmp_path)
    study = open_study(place, IDENTITY)
    (trial,) = claims.claim_batch(study, 1, 1, seed=7)
    assert requeue_dead(study, place) == 0
    trial.set_user_attr("process_started", 1.0)  # the number was given to another process since
    assert requeue_dead(study, place) == 1 and requeue_dead(study, place) == 0


def test_workers_elsewhere_are_let_be(tmp_path):
    place = StudyPlace("s", tmp_path, f"sqlite:///{tmp_path / 'study.db'}")
    study = open_study(place, IDENTITY)
    taken = claims.claim_batch(study, 2, 2, seed=7)
    taken[1].set_user_attr("host", "elsewhere")
    taken[1].set_user_attr("process_started", 0.0)
    assert requeue_dead(study, place) == 0
    taken[0].set_user_attr("process_started", 0.0)
    assert requeue_dead(study, place) == 1
    assert [t.state for t in study.trials] == [TrialState.FAIL, TrialState.RUNNING, TrialState.WAITING]


def test_what_something_else_queued_is_told(tmp_path):
    study = open_study(place_at(tmp_path), IDENTITY)
    study.enqueue_trial({"learning_rate": 1e-3})
    with pytest.raises(InputError, match="trial 0 was queued by something else"):
        claims.claim_batch(study, 2, 2, seed=7)


@pytest.mark.parametrize(("field", "value"), [("fingerprint", "xyz"), ("holdout", [301, 400]), ("seed", 8)])
def test_another_study_of_that_name_is_refused(tmp_path, field, value):
    place = place_at(tmp_path)
    open_study(place, IDENTITY)
    with pytest.raises(InputError) as refused:
        open_study(place, {**IDENTITY, field: value})
    message = str(refused.value)
    assert f"its {field} is {IDENTITY[field]!r}" in message and repr(value) in message and "\n" not in message
    assert open_study(place, IDENTITY).user_attrs[field] == IDENTITY[field]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reward": "excess", "rules": {"A": {"increment": 0.1}}}, "its increment is 0.1, here it is 1;"),
        ({"reward": "excess"}, "its rules is not given, here it is"),
        ({"reward": "drawdown", "rules": {"A": {"increment": 1}}}, "its reward is 'drawdown', here it is 'excess';"),
    ],
)
def test_of_the_environments_options_the_one_that_differs_is_named(tmp_path, options, message):
    place = place_at(tmp_path)
    open_study(place, {"env_options": options})
    with pytest.raises(InputError, match=message) as refused:
        open_study(place, {"env_options": {"reward": "excess", "rules": {"A": {"increment": 1}}}})
    assert str(refused.value).count("excess") == (options["reward"] == "drawdown")


def test_a_study_half_made_gets_the_rest_of_its_identity(tmp_path):
    place = place_at(tmp_path)
    open_study(place, {"fingerprint": "abc"})
    assert open_study(place, IDENTITY).user_attrs["seed"] == 7
    with pytest.raises(InputError, match="seed"):
        open_study(place, {**IDENTITY, "seed": 8})


def test_a_study_that_is_not_there_is_told(tmp_path):
    open_study(StudyPlace("known", tmp_path), {})
    with pytest.raises(InputError, match="'unknown' is not in the storage: there are known"):
        open_study(StudyPlace("unknown", tmp_path), {}, expect_existing=True)


def test_a_trial_that_fails_counts_and_says_why(workload, tmp_path):
    place = place_at(tmp_path)
    study = go(place, workload, n_trials=2, fixed={"initial_cash": 5.0})
    assert [t.state for t in counted(study)] == [TrialState.FAIL] * 2
    assert all("undefined" in t.user_attrs["reason"] for t in counted(study))


@pytest.mark.parametrize("size", [1, 2])
def test_pruned_trials_count_and_leave_their_batch(tmp_path, monkeypatch, size):
    """A batch judges by what it knew when it was drawn: not by its mates, however late they come."""
    values, seen = iter([3.0, 2.0, 1.0, 0.5, -5.0, 4.0]), []

    def listed(workload, configs, seeds, report):
        ends = []
        for i in range(len(configs)):
            value = next(values)
            ends.append(TrialPruned(2) if report(i, 2, value) else outcome(value))
        seen.append([t.state.name for t in study.get_trials(deepcopy=False)][-len(configs) :])
        return ends

    monkeypatch.setattr(study_module, "evaluate_batch", listed)
    study = open_study(place_at(tmp_path), IDENTITY)
    go(place_at(tmp_path), n_trials=6, population=size)
    # The fourth is below the median of the three before it; in batches of two it knows of two, too few to prune.
    expected = ["COMPLETE"] * 3 + ["PRUNED" if size == 1 else "COMPLETE"] + ["PRUNED", "COMPLETE"]
    assert [t.state.name for t in counted(study)] == expected
    assert seen[-1] == (["RUNNING"] if size == 1 else ["PRUNED", "RUNNING"])


def test_each_of_a_batch_has_its_own_end(tmp_path, monkeypatch):
    def ended(workload, configs, seeds, report):
        return [outcome(1.0), TrialFailed(SplitFailed("nothing was traded")), outcome(2.0)]

    monkeypatch.setattr(study_module, "evaluate_batch", ended)
    study = go(place_at(tmp_path), n_trials=3, population=3)
    assert [t.state.name for t in study.trials] == ["COMPLETE", "FAIL", "COMPLETE"]
    assert study.trials[1].user_attrs["reason"] == "nothing was traded" and len(counted(study)) == 3
    assert place_at(tmp_path).load_returns(study.trials[2])[0] == 2.0


def test_a_result_that_comes_too_late_is_dropped(tmp_path, monkeypatch):
    """A worker that stood still so long that its trials were given to another."""
    study = open_study(place_at(tmp_path), IDENTITY)
    made = []

    def slow(workload, configs, seeds, report):
        if not made:
            made.append(1)
            with place_at(tmp_path).claiming():
                for trial in study.get_trials(deepcopy=False):
                    claims.requeue(study, trial)
            assert not report(0, 2, 1.0)
            return [outcome(99.0)] * len(configs)
        return [outcome(1.0)] * len(configs)

    monkeypatch.setattr(study_module, "evaluate_batch", slow)
    assert run_study(study, place_at(tmp_path), None, n_trials=2, seed=7, population=2)
    assert [t.value for t in counted(study)] == [1.0, 1.0] and len(study.trials) == 4


@pytest.mark.parametrize(
    ("n_envs", "folds", "seeds", "n_trials", "expected"),
    [(12, 5, 1, 100, 4), (12, 5, 2, 100, 2), (1, 5, 1, 100, 8), (1, 5, 1, 20, 4), (64, 10, 1, 100, 1), (1, 1, 1, 3, 1)],
)
def test_the_population_that_keeps_a_core_busy(workload, n_envs, folds, seeds, n_trials, expected):
    sized = replace(workload, n_envs=n_envs, folds_per_batch=folds, n_seeds=seeds)
    assert auto_population(sized, n_trials) == expected


def test_a_study_keeps_the_population_it_began_with(tmp_path):
    study = open_study(place_at(tmp_path), IDENTITY)
    assert study_module.kept_population(study, 4) == 4
    assert study_module.kept_population(open_study(place_at(tmp_path), IDENTITY), 8) == 4


def shared_out(study: optuna.Study, pids: set[int], size: int) -> None:
    """Each trial was run once, by one of them, none draws what another drew, and each batch is one worker's."""
    trials = study.trials
    assert [t.state for t in trials] == [TrialState.COMPLETE] * 24
    assert sorted(t.user_attrs["ordinal"] for t in trials) == list(range(24))
    assert len({t.user_attrs["seed"] for t in trials}) == 24
    assert len({tuple(t.params.values()) for t in trials}) == 24
    assert {t.user_attrs["pid"] for t in trials} == pids
    owners = {(t.user_attrs["ordinal"] // size, t.user_attrs["pid"]) for t in trials}
    assert len(owners) == 24 // size


@pytest.fixture(scope="module")
def crew(tmp_path_factory) -> Iterator[Workers]:
    with workers_in(tmp_path_factory.mktemp("workers")) as crew:
        yield crew


@pytest.mark.parametrize("size", [1, 4])
def test_two_workers_share_the_trials(crew, tmp_path, size):
    workers = [crew.start(tmp_path, size=size, n_trials=24) for _ in range(2)]
    let_go(*workers)
    finish(*workers)
    shared_out(open_study(place_at(tmp_path), {"seed": 7}), {w.pid for w in workers}, size)
