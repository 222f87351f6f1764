"""A study ends as it would have ended without the break, however it was broken, and workers share it."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import optuna
import pytest
import torch
from optuna.trial import TrialState

from drl_agents.evaluation.splits import combinatorial_purged
from drl_agents.search import study as study_module
from drl_agents.search.objective import TrialOutcome, Workload
from drl_agents.search.space import MAX_LOOKBACK
from drl_agents.search.study import StudyPlace, counted, open_study, requeue_dead, run_study
from environments.data.source import load_bars
from environments.errors import InputError
from environments.market import Market

ROOT = Path(__file__).resolve().parents[2]
IDENTITY = {"fingerprint": "abc", "holdout": [300, 400], "seed": 7}
N_TRIALS = 6


@pytest.fixture(scope="module", autouse=True)
def small():
    """One thread, and a study whose sampler and pruner wake after three trials instead of eight."""
    before, startup = torch.get_num_threads(), study_module.STARTUP_TRIALS
    torch.set_num_threads(1)
    study_module.STARTUP_TRIALS = 3
    yield
    torch.set_num_threads(before)
    study_module.STARTUP_TRIALS = startup


@pytest.fixture(scope="module")
def workload() -> Workload:
    options = {"kind": "momentum", "n_bars": 170, "sigma": 0.02}
    market = Market.from_bars(load_bars("synthetic", options=options, seed=2))
    folds = combinatorial_purged([(40, 170)], 2, 1, MAX_LOOKBACK + 1, 2, min_length=32)
    return Workload(market, tuple(folds), "VectorizedCryptoEnvAlpaca", n_envs=2, timesteps=1, folds_per_batch=1)


def place_at(folder: Path) -> StudyPlace:
    return StudyPlace("s", folder)


def go(place: StudyPlace, workload: Workload, n_trials: int = N_TRIALS, **options) -> optuna.Study:
    study = open_study(place, IDENTITY)
    options = {"seed": 7, "fixed": {"episode_length": 40}, **options}
    assert run_study(study, place, workload, n_trials=n_trials, **options)
    return study


def told(study: optuna.Study, place: StudyPlace) -> list:
    """Everything the trials say, by their place in the study."""
    lines = []
    for t in counted(study):
        returns = np.load(place.returns_file(t.number)).tobytes() if t.state == TrialState.COMPLETE else b""
        attrs = {k: t.user_attrs.get(k) for k in ("ordinal", "config", "seed", "fold_sharpes", "reason")}
        lines.append((attrs, t.params, t.state, t.value, t.intermediate_values, returns))
    return sorted(lines, key=lambda line: line[0]["ordinal"])


@pytest.fixture(scope="module")
def whole(workload, tmp_path_factory) -> list:
    place = place_at(tmp_path_factory.mktemp("whole"))
    result = told(go(place, workload), place)
    assert [line[0]["ordinal"] for line in result] == list(range(N_TRIALS))
    assert sum(line[2] == TrialState.COMPLETE for line in result) >= 3
    assert len({str(line[1]) for line in result}) == N_TRIALS
    return result


def test_same_seed_same_study(workload, tmp_path, whole):
    assert told(go(place_at(tmp_path), workload), place_at(tmp_path)) == whole


def test_another_seed_another_study(workload, tmp_path, whole):
    other = told(go(place_at(tmp_path), workload, n_trials=1, seed=8), place_at(tmp_path))
    assert other[0][1] != whole[0][1]


def test_stopped_between_trials_and_gone_on(workload, tmp_path, whole):
    place, done = place_at(tmp_path), []
    study = open_study(place, IDENTITY)
    options = {"n_trials": N_TRIALS, "seed": 7, "fixed": {"episode_length": 40}}
    stopped = run_study(
        study, place, workload, stop=lambda: len(counted(study)) >= 4, on_change=lambda: done.append(1), **options
    )
    assert not stopped and len(counted(study)) == 4 and len(done) == 8
    assert told(go(place, workload), place) == whole


def test_asked_for_more_trials_later(workload, tmp_path, whole):
    go(place_at(tmp_path), workload, n_trials=2)
    assert told(go(place_at(tmp_path), workload), place_at(tmp_path)) == whole


class Killed(BaseException):
    """Stands for the end of the process: nothing of ours may run after it."""


def dead_worker() -> dict:
    return {"pid": os.getpid(), "process_started": 0.0, "host": study_module.socket.gethostname()}


# Where a worker may die: in training, and before or after each write that takes a trial or puts it back.
MOMENTS = ("suggest", "evaluate", "_save_returns", "ask", "pid")


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_in_a_trial(workload, tmp_path, whole, monkeypatch, moment):
    place = place_at(tmp_path)
    go(place, workload, n_trials=3)

    def die(*args, **options):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(study_module, "_worker", dead_worker)
        patch.setattr(study_module, "_requeue", lambda *args: None)  # the process is gone
        if moment in ("suggest", "evaluate", "_save_returns"):
            patch.setattr(study_module, moment, die)
        elif moment == "ask":
            patch.setattr(study_module, "ordinal", die)
        else:
            write = optuna.Trial.set_user_attr

            def until(self, key, value):
                write(self, key, value)
                if key == moment:
                    raise Killed

            patch.setattr(optuna.Trial, "set_user_attr", until)
        with pytest.raises(Killed):
            go(place, workload)
    study = open_study(place, IDENTITY)
    assert [t.state for t in study.trials].count(TrialState.RUNNING) == 1
    assert told(go(place, workload), place) == whole
    (lost,) = (t for t in study.trials if "requeued" in t.user_attrs)
    assert lost.state == TrialState.FAIL and lost.number >= 3


@pytest.mark.parametrize("moment", ["tell", "enqueue_trial"])
def test_killed_while_putting_a_trial_back(workload, tmp_path, whole, monkeypatch, moment):
    place = place_at(tmp_path)
    go(place, workload, n_trials=2)
    with monkeypatch.context() as patch:
        patch.setattr(study_module, "_worker", dead_worker)

        def die(*args, **options):
            raise Killed

        patch.setattr(study_module, "evaluate", die)
        patch.setattr(optuna.Study, moment, die)
        with pytest.raises(Killed):
            go(place, workload)
    assert told(go(place, workload), place) == whole


def test_stopped_at_once_in_a_trial(workload, tmp_path, whole, monkeypatch):
    """The second Ctrl-C: the trial goes back in the queue before the process ends."""
    place = place_at(tmp_path)
    with monkeypatch.context() as patch:

        def interrupted(*args, **options):
            raise KeyboardInterrupt

        patch.setattr(study_module, "evaluate", interrupted)
        with pytest.raises(KeyboardInterrupt):
            go(place, workload)
    study = open_study(place, IDENTITY)
    assert [t.state for t in study.trials] == [TrialState.FAIL, TrialState.WAITING]
    assert told(go(place, workload), place) == whole


def test_a_living_worker_keeps_its_trial(workload, tmp_path):
    place = place_at(tmp_path)
    study = open_study(place, IDENTITY)
    trial = study.ask()
    for key, value in {"ordinal": 0, **study_module._worker()}.items():
        trial.set_user_attr(key, value)
    assert requeue_dead(study, place) == 0
    trial.set_user_attr("process_started", 1.0)  # the number was given to another process since
    assert requeue_dead(study, place) == 1 and requeue_dead(study, place) == 0


def test_workers_elsewhere_are_let_be(tmp_path):
    place = StudyPlace("s", tmp_path, f"sqlite:///{tmp_path / 'study.db'}")
    study = open_study(place, IDENTITY)
    unsigned, signed = study.ask(), study.ask()
    for key, value in {"ordinal": 1, "pid": 1, "process_started": 0.0, "host": "elsewhere"}.items():
        signed.set_user_attr(key, value)
    assert requeue_dead(study, place) == 0
    assert unsigned.number == 0 and [t.state for t in study.trials] == [TrialState.RUNNING] * 2


@pytest.mark.parametrize(("field", "value"), [("fingerprint", "xyz"), ("holdout", [301, 400]), ("seed", 8)])
def test_another_study_of_that_name_is_refused(tmp_path, field, value):
    place = place_at(tmp_path)
    open_study(place, IDENTITY)
    with pytest.raises(InputError) as refused:
        open_study(place, {**IDENTITY, field: value})
    message = str(refused.value)
    assert f"its {field} is {IDENTITY[field]!r}" in message and repr(value) in message and "\n" not in message
    assert open_study(place, IDENTITY).user_attrs[field] == IDENTITY[field]


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


def test_pruned_trials_count(workload, tmp_path, monkeypatch):
    place, values = place_at(tmp_path), iter([3.0, 2.0, 1.0, -5.0, 4.0])

    def scored(workload, config, seed, report):
        value = next(values)
        report(2, value)
        return TrialOutcome(np.array([value]), np.zeros(3), 1, 1.0)

    monkeypatch.setattr(study_module, "evaluate", scored)
    study = go(place, workload, n_trials=5)
    assert [t.state.name for t in counted(study)] == ["COMPLETE"] * 3 + ["PRUNED", "COMPLETE"]


WORKER = textwrap.dedent(
    """
    import sys, time
    from pathlib import Path
    import numpy as np
    from drl_agents.search import study
    from drl_agents.search.objective import TrialOutcome

    def quick(workload, config, seed, report):
        time.sleep(0.002)
        value = config.ppo.learning_rate
        return TrialOutcome(np.array([value]), np.array([value, seed]), 1, 1.0)

    study.evaluate = quick  # what is shared out is in question here, not what it is worth
    place = study.StudyPlace("s", Path(sys.argv[1]))
    opened = study.open_study(place, {"seed": 7})
    print("ready", flush=True)
    sys.stdin.readline()
    print(study.run_study(opened, place, None, n_trials=24, seed=7))
    """
)


def test_two_workers_share_the_trials(tmp_path):
    """Each trial is run once, by one of them, and none draws what another drew."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    command = [sys.executable, "-c", WORKER, str(tmp_path)]
    workers = [subprocess.Popen(command, env=environment, **pipes) for _ in range(2)]
    for worker in workers:
        assert worker.stdout.readline() == "ready\n", worker.stderr.read()
    for worker in workers:
        worker.stdin.write("go\n")
        worker.stdin.flush()
    for worker in workers:
        out, err = worker.communicate(timeout=100)
        assert (worker.returncode, out) == (0, "True\n"), err
    study = open_study(place_at(tmp_path), {"seed": 7})
    trials = study.trials
    assert [t.state for t in trials] == [TrialState.COMPLETE] * 24
    assert sorted(t.user_attrs["ordinal"] for t in trials) == list(range(24))
    assert len({t.user_attrs["seed"] for t in trials}) == 24
    assert len({tuple(t.params.values()) for t in trials}) == 24
    assert {t.user_attrs["pid"] for t in trials} == {w.pid for w in workers}
