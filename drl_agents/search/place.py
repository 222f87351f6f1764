"""Where a study lives: its storage, the lock under which workers take trials, and the trials' returns.

Workers of one host share a journal file, or an SQLite file; workers of several hosts share a PostgreSQL database.
"""

from __future__ import annotations

import base64
import fcntl
import hashlib
import io
import secrets
import threading
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import optuna
import sqlalchemy
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial
from sqlalchemy.engine import URL, make_url

from environments.errors import InputError
from environments.files import write_atomic

BEAT_S = 30  # a worker tells the database this often that it is alive
SILENCE_S = 180  # one not heard of for so long is dead to workers of other hosts
CHUNK = 32_000  # characters of one attribute: some databases cut off a text after 64 kB


def database_url(storage: str) -> URL:
    """`storage` as SQLAlchemy wants it, with the driver of PostgreSQL that this project installs.

    Raises:
        InputError: not a URL of SQLite or PostgreSQL: under no other database do workers exclude each other here.
    """
    accepted = "--storage: accepted are a journal file, sqlite:///FILE and postgresql://user:password@host/database"
    try:
        url = make_url(storage)
    except (sqlalchemy.exc.ArgumentError, ValueError):
        raise InputError(accepted) from None  # the reason would show the password
    if url.drivername in ("postgres", "postgresql"):
        return url.set(drivername="postgresql+psycopg")
    if url.get_backend_name() in ("sqlite", "postgresql"):
        return url
    raise InputError(f"{accepted}, not {url.drivername}")


@dataclass(frozen=True)
class StudyPlace:
    """Where a study lives: its name, its folder, and the Optuna storage (None: a journal file in the folder)."""

    name: str
    folder: Path
    storage: str | None = None

    @property
    def url(self) -> URL | None:
        """The storage's database, None where it is a journal file."""
        return database_url(self.storage) if self.storage and "://" in self.storage else None

    @property
    def many_hosts(self) -> bool:
        """True when workers of other hosts may share the study."""
        return self.url is not None and self.url.get_backend_name() == "postgresql"

    @property
    def guard(self) -> Path:
        """The file that is locked where the workers are of one host: beside the storage that they share, whatever
        folder each writes its logs under."""
        named = self.url.database if self.url is not None else self.storage
        if not named or named == ":memory:":
            return self.folder / "claim.guard"
        path = Path(named).resolve()
        return path.with_name(f"{path.name}.guard")

    def keep_together(self, study: optuna.Study, new: bool) -> None:
        """Mark the folder as the study's, or see that it is: beside a journal the trials' returns are files in it, and
        workers of two folders would each miss the other's. A folder that was moved is still the study's.

        Raises:
            InputError: the study keeps them in another folder.
        """
        if self.url is not None:
            return
        path, known = self.folder / "study.key", study.user_attrs.get("key")
        if known is None and new:
            known = secrets.token_hex(8)
            write_atomic(path, known)
            study.set_user_attr("key", known)
        if known is not None and (not path.is_file() or path.read_text(encoding="utf-8") != known):
            raise InputError(
                f"--logs: study {self.name!r} of {self.storage or self.folder} keeps its trials' returns in another "
                f"folder than {self.folder}: give the --logs it was begun with, or a database as --storage"
            )

    def open_storage(self) -> BaseStorage:
        """The storage, made if it is not there.

        Raises:
            InputError: the database cannot be reached, or its driver is not installed.
        """
        if self.url is None:
            path = Path(self.storage) if self.storage else self.folder / "journal.log"
            path.parent.mkdir(parents=True, exist_ok=True)
            return JournalStorage(JournalFileBackend(str(path)))
        beats = {"heartbeat_interval": BEAT_S, "grace_period": SILENCE_S} if self.many_hosts else {}
        with self._told(), self.claiming(), warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            # Hours lie between two calls of a worker: a connection may have gone stale.
            return RDBStorage(self._text(), engine_kwargs={"pool_pre_ping": True}, **beats)

    def _text(self) -> str:
        return self.url.render_as_string(hide_password=False)

    @contextmanager
    def _told(self) -> Iterator[None]:
        """An error of reaching the database as one line, without the password."""
        try:
            yield
        except ImportError:
            raise InputError("--storage: PostgreSQL needs psycopg: pip install 'drl-agents[postgres]'") from None
        except sqlalchemy.exc.SQLAlchemyError as error:
            reason = str(getattr(error, "orig", error)).strip().splitlines()[0]
            if self.url.password:
                reason = reason.replace(str(self.url.password), "***")
            raise InputError(f"--storage {self.url.render_as_string()}: {reason}") from None

    @contextmanager
    def claiming(self) -> Iterator[None]:
        """One worker at a time takes trials, or puts them back; the lock goes with its process.

        On one host a locked file, across hosts a lock of PostgreSQL's that lasts as long as its transaction
        (https://www.postgresql.org/docs/current/explicit-locking.html#ADVISORY-LOCKS).
        """
        if not self.many_hosts:
            path = self.guard
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("w") as guard:
                fcntl.flock(guard, fcntl.LOCK_EX)
                yield
            return
        # One lock for all studies of the database: the tables are made under it too.
        key = int.from_bytes(hashlib.sha256(b"drl_agents.search").digest()[:8], "big", signed=True)
        engine = sqlalchemy.create_engine(self._text(), poolclass=sqlalchemy.pool.NullPool)
        with engine.begin() as connection:
            connection.execute(sqlalchemy.text("SELECT pg_advisory_xact_lock(:key)"), {"key": key})
            yield

    # ------------------------------------------------------------------------------------------- returns

    def returns_file(self, trial: int) -> Path:
        """Where the out-of-sample returns of a trial are kept when the storage is a journal file."""
        return self.folder / "returns" / f"trial_{trial:05d}.npy"

    def save_returns(self, trial: optuna.Trial, returns: np.ndarray) -> None:
        """Keep a trial's out-of-sample returns (B,), float32.

        Beside a journal as a file. In a database with the trial, so that they reach every host: compressed, base64,
        in attributes returns_0, returns_1, ... of the trial, their number in `returns`.
        """
        buffer = io.BytesIO()
        np.save(buffer, returns.astype(np.float32), allow_pickle=False)
        if self.url is None:
            write_atomic(self.returns_file(trial.number), buffer.getvalue())
            return
        text = base64.b64encode(zlib.compress(buffer.getvalue())).decode()
        chunks = [text[i : i + CHUNK] for i in range(0, len(text), CHUNK)]
        for i, chunk in enumerate(chunks):
            trial.set_user_attr(f"returns_{i}", chunk)
        trial.set_user_attr("returns", len(chunks))

    def load_returns(self, trial: FrozenTrial) -> np.ndarray:
        """What `save_returns` kept.

        Raises:
            InputError: it is not there: the trial ran under another folder of logs.
        """
        if "returns" in trial.user_attrs:
            text = "".join(trial.user_attrs[f"returns_{i}"] for i in range(trial.user_attrs["returns"]))
            return np.load(io.BytesIO(zlib.decompress(base64.b64decode(text))), allow_pickle=False)
        path = self.returns_file(trial.number)
        if not path.is_file():
            raise InputError(f"the returns of trial {trial.number} are not in {path}: give the --logs it ran under")
        return np.load(path, allow_pickle=False)


class Heartbeat:
    """Tells the database every `BEAT_S` seconds, as long as the block lasts, that these trials' worker is alive.

    Without a database of several hosts there is nothing to tell: who is on the host is asked for its process.
    """

    def __init__(self, study: optuna.Study, place: StudyPlace, trials: Sequence[optuna.Trial]) -> None:
        self._storage, self._trials = study._storage, [trial._trial_id for trial in trials]
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True) if place.many_hosts else None

    def __enter__(self) -> Heartbeat:
        if self._thread is not None:
            self._thread.start()
        return self

    def __exit__(self, *rest: object) -> None:
        self._over.set()
        if self._thread is not None:
            self._thread.join()

    def _beat(self) -> None:
        while not self._over.wait(BEAT_S):
            beat(self._storage, self._trials)


def beat(storage: BaseStorage, trials: Sequence[int]) -> None:
    """One sign of life for each of the trials, by their ids. A database that is away is tried again at the next."""
    for trial in trials:
        try:
            storage.record_heartbeat(trial)
        except (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
            reason = str(error).strip().splitlines()[0]
            optuna.logging.get_logger(__name__).warning("no sign of life reached the database: %s", reason)
            return
