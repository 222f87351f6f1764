"""One study, one PostgreSQL, workers of several hosts: what is shared, and what becomes of a host that dies."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState

from drl_agents.search import study as study_module
from drl_agents.search.claims import counted
from drl_agents.search.place import StudyPlace
from drl_agents.search.study import open_study, run_study
from tests.reference import study_worker
from tests.reference.postgres_server import Unavailable, server
from tests.reference.study_worker import Workers, finish, let_go, workers_in

psycopg = pytest.importorskip("psycopg", reason="psycopg is not installed (the extra `postgres`)")
N_TRIALS, SIZE = 12, 3


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    try:
        with server() as url:
            yield url
    except Unavailable as reason:
        pytest.skip(str(reason))


@pytest.fixture(scope="module")
def crew(tmp_path_factory) -> Iterator[Workers]:
    with workers_in(tmp_path_factory.mktemp("workers")) as crew:
        yield crew


@pytest.fixture
def database(cluster) -> str:
    """The URL of an empty database."""
    with psycopg.connect(cluster, autocommit=True) as connection:
        connection.execute("DROP DATABASE IF EXISTS search WITH (FORCE)")
        connection.execute("CREATE DATABASE search")
    return cluster.replace("/postgres?", "/search?")


def told(study: optuna.Study, place: StudyPlace) -> list:
    """What the trials say, by their place in the study."""
    lines = [
        (t.user_attrs["ordinal"], t.params, t.value, t.user_attrs["seed"], place.load_returns(t).tolist())
        for t in counted(study)
    ]
    return sorted(lines, key=lambda line: line[0])


def test_two_hosts_share_the_trials_and_their_returns(database, crew, tmp_path):
    folders = [tmp_path / name for name in ("a", "b")]
    workers = [
        crew.start(folder, size=SIZE, n_trials=N_TRIALS, storage=database, host=folder.name) for folder in folders
    ]
    let_go(*workers)
    finish(*workers)
    for folder in folders:  # each of them can refit: nothing of the other's disk is needed
        place = StudyPlace("s", folder, database)
        study = open_study(place, {"seed": 7}, expect_existing=True)
        trials = study.get_trials(deepcopy=False)
        assert [t.state for t in trials] == [TrialState.COMPLETE] * N_TRIALS
        assert sorted(t.user_attrs["ordinal"] for t in trials) == list(range(N_TRIALS))
        assert {t.user_attrs["host"] for t in trials} == {"a", "b"}
        assert len({(t.user_attrs["ordinal"] // SIZE, t.user_attrs["host"]) for t in trials}) == N_TRIALS // SIZE
        for trial in trials:
            expected = np.array([trial.value, trial.user_attrs["seed"]], dtype=np.float32)
            np.testing.assert_array_equal(place.load_returns(trial), expected)
        assert not (folder / "returns").exists()


def test_a_host_that_dies_loses_its_batch_to_the_other(database, crew, tmp_path, monkeypatch):
    """Killed in the middle of a batch: all of it is queued again, and the study ends as if nothing had been."""
    monkeypatch.setattr(study_module, "evaluate_batch", study_worker.scored)
    place = StudyPlace("s", tmp_path / "alone")
    alone = open_study(place, {"seed": 7})
    assert run_study(alone, place, None, n_trials=N_TRIALS, seed=7, population=SIZE)

    doomed = crew.start(tmp_path / "a", size=SIZE, n_trials=N_TRIALS, storage=database, host="a", hangs_at=4)
    let_go(doomed)
    doomed.wait_for("hangs")
    other = crew.start(tmp_path / "b", size=SIZE, n_trials=2 * SIZE, storage=database, host="b")
    let_go(other)
    # The first batch is done and the second runs elsewhere: there is nothing to take while that host is heard of.
    shared = StudyPlace("s", tmp_path / "b", database)
    study = open_study(shared, {"seed": 7}, expect_existing=True)
    with pytest.raises(Exception, match="timed out"):
        other.communicate(timeout=6)
    states = [t.state for t in study.get_trials(deepcopy=False)]
    assert states == [TrialState.COMPLETE] * SIZE + [TrialState.RUNNING] * SIZE
    doomed.send_signal(signal.SIGKILL)
    doomed.communicate(timeout=60)
    finish(other)
    lost = [t for t in study.get_trials(deepcopy=False) if "requeued" in t.user_attrs]
    assert [t.user_attrs["ordinal"] for t in lost] == [3, 4, 5] and {t.user_attrs["host"] for t in lost} == {"a"}
    last = crew.start(tmp_path / "b", size=SIZE, n_trials=N_TRIALS, storage=database, host="b")
    let_go(last)
    finish(last)
    assert told(study, shared) == told(alone, place)
