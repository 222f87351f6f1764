"""Where a study lives: which storages, whose words reach the user, and the returns that travel with it."""

from __future__ import annotations

import fcntl

import numpy as np
import pytest

from drl_agents.search import place as place_module
from drl_agents.search.place import StudyPlace, database_url
from drl_agents.search.results import study_statistics
from drl_agents.search.study import open_study
from environments.errors import InputError


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        ("postgresql://a:b@h:5/d", "postgresql+psycopg://a:b@h:5/d"),
        ("postgres://a@h/d?sslmode=require", "postgresql+psycopg://a@h/d?sslmode=require"),
        ("postgresql+psycopg://h/d", "postgresql+psycopg://h/d"),
        ("sqlite:////tmp/x.db", "sqlite:////tmp/x.db"),
    ],
)
def test_urls_name_the_driver_that_is_there(given, taken):
    assert database_url(given).render_as_string(hide_password=False) == taken


@pytest.mark.parametrize("given", ["mysql://a:hunter2@h/d", "redis://h", "postgresql://a:hunter2@h:port/d", "://"])
def test_other_storages_are_refused_in_one_line(given):
    with pytest.raises(InputError) as refused:
        database_url(given)
    message = str(refused.value)
    assert "accepted are a journal file" in message and "\n" not in message and "hunter2" not in message


def test_a_database_that_is_not_there_is_told_without_its_password(tmp_path):
    pytest.importorskip("psycopg")
    place = StudyPlace("s", tmp_path, "postgresql://anna:hunter2@127.0.0.1:1/d?connect_timeout=2")
    with pytest.raises(InputError) as refused:
        place.open_storage()
    message = str(refused.value)
    assert message.startswith("--storage postgresql") and "127.0.0.1" in message
    assert "\n" not in message and "hunter2" not in message


RETURNS = np.random.default_rng(0).normal(size=40_000).astype(np.float32)
RETURNS[::7] = np.nan


@pytest.mark.parametrize("kind", ["journal", "journal elsewhere", "database"])
def test_returns_are_kept_as_they_are(tmp_path, kind):
    storage = {"journal elsewhere": str(tmp_path / "j.log"), "database": f"sqlite:///{tmp_path / 's.db'}"}.get(kind)
    place = StudyPlace("s", tmp_path / "here", storage)
    study = open_study(place, {})
    trial = study.ask()
    place.save_returns(trial, RETURNS)
    study.tell(trial, 1.0)
    # Read where the folder is another host's: a database brings the returns along, a journal does not.
    other = StudyPlace("s", tmp_path / "there", storage)
    if kind == "database":
        assert trial.user_attrs["returns"] > 1 and not (tmp_path / "here" / "returns").exists()
        reader, where = open_study(other, {}, expect_existing=True), other
    else:
        reader, where = open_study(place, {}, expect_existing=True), place
        with pytest.raises(InputError, match="returns of trial 0 are not in .*--logs"):
            other.load_returns(reader.trials[0])
    np.testing.assert_array_equal(where.load_returns(reader.trials[0]), RETURNS)
    assert np.isfinite(study_statistics(reader, where).trial_sharpes).all()


@pytest.mark.parametrize("kind", ["journal", "sqlite"])
def test_workers_of_one_storage_exclude_each_other_whatever_their_logs(tmp_path, kind, monkeypatch):
    storage = {"journal": str(tmp_path / "x" / "j.log"), "sqlite": f"sqlite:///{tmp_path}/x/j.db"}[kind]
    (tmp_path / "x").mkdir()
    one, other = (StudyPlace("s", tmp_path / logs, storage) for logs in ("a", "b"))
    with one.claiming(), other.guard.open("w") as guard, pytest.raises(BlockingIOError):
        fcntl.flock(guard, fcntl.LOCK_EX | fcntl.LOCK_NB)
    monkeypatch.chdir(tmp_path / "x")
    if kind == "journal":
        assert StudyPlace("s", tmp_path, "j.log").guard == one.guard
    assert StudyPlace("s", tmp_path).guard.parent == tmp_path  # a journal of the folder's own


def test_a_journals_study_has_one_folder_of_logs(tmp_path):
    """Which may be moved; a database's may have as many as it has workers."""
    storage = str(tmp_path / "j.log")
    study = open_study(StudyPlace("s", tmp_path / "a", storage), {"seed": 1})
    study.tell(study.ask(), 1.0)
    with pytest.raises(InputError, match="--logs: study 's' .* in another folder than .*b: give the --logs") as refused:
        open_study(StudyPlace("s", tmp_path / "b", storage), {"seed": 1})
    assert "\n" not in str(refused.value) and not (tmp_path / "b").exists()
    (tmp_path / "a").rename(tmp_path / "c")
    assert len(open_study(StudyPlace("s", tmp_path / "c", storage), {"seed": 1}).trials) == 1
    base = f"sqlite:///{tmp_path / 'd.db'}"
    for logs in ("a", "b"):
        open_study(StudyPlace("s", tmp_path / logs, base), {"seed": 1})


def test_a_lost_database_is_no_end_of_the_signs_of_life(monkeypatch):
    """One beat that does not reach it is told, and the next one tries again."""
    tried = []

    class Away:
        def record_heartbeat(self, trial):
            tried.append(trial)
            raise place_module.sqlalchemy.exc.OperationalError("x", {}, Exception("gone"))

    place_module.beat(Away(), [1, 2])
    place_module.beat(Away(), [1, 2])
    assert tried == [1, 1]
