"""The trader's journal: what it meant to do is on disk before it does it, so that a restart can tell what happened.

One SQLite file in WAL mode with `synchronous=FULL`: a commit returns when it is on disk
(https://www.sqlite.org/pragma.html#pragma_synchronous). One writer, held by a lock on a file beside it that goes with
the process. An order is written as "intended" under an id of its own and committed before it is sent; everything
learnt of it later is added. Fills are kept by (order, quantity filled so far): told twice, they are booked once.

    facts        the account's name and market, the model that trades
    bars         one row per closed bar: the books after it, whether it was decided on
    orders       one row per order: its state and what was filled, as last told
    transitions  every change of an order's state
    fills        every increase of an order's filled quantity
    events       anything else worth telling: models changed, orders blocked, restarts
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drl_agents.training.record import now, plain
from environments.errors import InputError
from environments.live.broker import Order, OrderResult

FILE, LOCK = "journal.sqlite", "journal.lock"
REPLAY = "local"  # the venue whose journals are worth no more than their replay
FORMAT = 1
TIDY_EVERY = 100  # transactions
LONGEST_LOG = 10_000  # pages, at which SQLite moves them by itself
HELD, INTENDED, ACCEPTED, AMBIGUOUS = "held", "intended", "accepted", "ambiguous"
REJECTED, NEVER_SENT, BLOCKED = "rejected", "never_sent", "blocked"

_TABLES = """
CREATE TABLE IF NOT EXISTS facts (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS bars (timestamp INTEGER PRIMARY KEY, equity REAL NOT NULL, cash REAL NOT NULL,
    books TEXT NOT NULL, decided INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS orders (id TEXT PRIMARY KEY, decided_at INTEGER NOT NULL, due_at INTEGER,
    symbol TEXT NOT NULL, side TEXT NOT NULL, quantity REAL NOT NULL, state TEXT NOT NULL,
    broker_id TEXT NOT NULL DEFAULT '', filled REAL NOT NULL DEFAULT 0, value REAL NOT NULL DEFAULT 0,
    fees REAL NOT NULL DEFAULT 0, ended INTEGER NOT NULL DEFAULT 0);
CREATE INDEX IF NOT EXISTS open_orders ON orders (ended) WHERE ended = 0;
CREATE TABLE IF NOT EXISTS transitions (at TEXT NOT NULL, id TEXT NOT NULL, state TEXT NOT NULL, detail TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS fills (id TEXT NOT NULL, filled REAL NOT NULL, quantity REAL NOT NULL, value REAL NOT NULL,
    fees REAL NOT NULL, bar INTEGER NOT NULL, PRIMARY KEY (id, filled));
CREATE TABLE IF NOT EXISTS events (at TEXT NOT NULL, bar INTEGER, kind TEXT NOT NULL, detail TEXT NOT NULL);
"""


@dataclass(frozen=True)
class OpenOrder:
    """An order that is not known to have ended. due_at: the bar after which it is, or was, to be sent; None while held
    back. filled, value, fees: what is booked of it."""

    order: Order
    decided_at: int
    due_at: int | None
    state: str
    filled: float
    value: float
    fees: float


@dataclass(frozen=True)
class BarRow:
    """The books after a bar. books: JSON-able, as the trader gave it. decided: its orders are in the journal."""

    timestamp: int
    equity: float
    cash: float
    books: dict[str, Any]
    decided: bool


class Journal:
    """The journal in `folder`, held by this process until `close`.

    Args:
        market: facts of the account's market; a journal of another market is refused.
            Its "venue", where it has one, keeps a replay and an account apart.
        fresh: begin a new journal; what was there is deleted, but for another venue's that is not a replay: nothing
            else knows of that account's orders.
        One of another market or venue that has no bar never began: nothing was sent, and it gives way.

    Raises:
        InputError: another process holds it, it is of another market or venue, or it is damaged.
    """

    def __init__(self, folder: str | Path, market: Mapping[str, Any], fresh: bool = False) -> None:
        self.folder = Path(folder)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{self.folder}: no folder can be made there ({error.strerror})") from None
        self._lock: int | None = self._take(self.folder / LOCK)
        path = self.folder / FILE
        try:
            if self._gives_way(path, market, fresh):
                for name in (path, *(path.with_name(path.name + tail) for tail in ("-wal", "-shm"))):
                    name.unlink(missing_ok=True)
            self._open(path, market)
        except BaseException:
            os.close(self._lock)
            raise

    @staticmethod
    def _take(path: Path) -> int:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise InputError(f"{path.parent}: a trader of that name is running; stop it, or give --name") from None
        return descriptor

    @staticmethod
    def _gives_way(path: Path, market: Mapping[str, Any], fresh: bool) -> bool:
        """Is a journal to be deleted? Orders are written with the bar they were decided at: one without a bar has none.

        Raises:
            InputError: fresh, but it is of another venue's account.
        """
        if not path.exists():
            return False
        try:
            with contextlib.closing(sqlite3.connect(path)) as old:
                row = old.execute("SELECT value FROM facts WHERE key = 'market'").fetchone()
                begun = old.execute("SELECT 1 FROM bars LIMIT 1").fetchone() is not None
        except sqlite3.DatabaseError:
            return fresh  # none that can be read
        found = {} if row is None else json.loads(row[0])
        if not begun:
            return fresh or any(found.get(key, own) != own for key, own in plain(dict(market)).items())
        if fresh and (venue := found.get("venue")) not in (None, REPLAY, market.get("venue")):
            raise InputError(f"{path}: the journal of a trader on {venue}, which is not deleted; give another --name")
        return fresh

    def _open(self, path: Path, market: Mapping[str, Any]) -> None:
        try:
            self._db, self._untidied = sqlite3.connect(path, isolation_level=None), 0
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.execute(f"PRAGMA wal_autocheckpoint={LONGEST_LOG}")
            self._db.executescript(f"BEGIN IMMEDIATE;{_TABLES}COMMIT;")
            found = self.fact("market")
        except sqlite3.DatabaseError as error:
            raise InputError(f"{path}: no journal that can be read ({error})") from None
        own = plain({"format": FORMAT, **market})
        if found is None:
            self.remember("market", own)
        elif differing := [key for key in own if key in found and found[key] != own[key]]:
            raise InputError(
                f"{path}: the journal of another market (its {', '.join(differing)} differs); give another --name, or "
                "--fresh"
            )
        elif found != own:  # written before it was told of its venue
            self.remember("market", own)

    # ------------------------------------------------------------------------------------------ writing

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All that is written inside is on disk when this ends, or none of it."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")
        self._untidied += 1

    def tidy(self) -> None:
        """Move what was committed from the log into the database, every `TIDY_EVERY` transactions: to be called when
        nothing waits. SQLite does so by itself, but inside the commit that makes the log too long, for which orders
        may wait (https://www.sqlite.org/wal.html#ckpt)."""
        if self._untidied >= TIDY_EVERY:
            self._db.execute("PRAGMA wal_checkpoint(PASSIVE)")
            self._untidied = 0

    def remember(self, key: str, value: Any) -> None:
        """Keep a fact under a key."""
        self._db.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (key, json.dumps(plain(value))))

    def bar(self, timestamp: int, equity: float, cash: float, books: Mapping[str, Any], decided: bool) -> None:
        """Write the books after a bar; again for the same bar, they replace what was there."""
        row = (timestamp, equity, cash, json.dumps(books), int(decided))
        self._db.execute("INSERT OR REPLACE INTO bars VALUES (?, ?, ?, ?, ?)", row)

    def intend(self, order: Order, decided_at: int, due_at: int | None) -> None:
        """Write an order down before anything is sent. due_at: see `OpenOrder`.

        Raises:
            sqlite3.IntegrityError: an order has that id already.
        """
        state = HELD if due_at is None else INTENDED
        row = (order.client_order_id, decided_at, due_at, order.symbol, order.side, order.quantity, state)
        self._db.execute(
            "INSERT INTO orders (id, decided_at, due_at, symbol, side, quantity, state) VALUES (?,?,?,?,?,?,?)", row
        )
        self._moved(order.client_order_id, state, "")

    def due(self, order: Order, bar: int) -> None:
        """An order that was held back is to be sent after `bar`, in the quantity it has now."""
        values = (bar, order.quantity, order.client_order_id)
        self._db.execute("UPDATE orders SET due_at = ?, quantity = ? WHERE id = ?", values)
        self.mark(order.client_order_id, INTENDED)

    def mark(self, client_order_id: str, state: str, detail: str = "", ended: bool = False) -> None:
        """An order's state changed."""
        self._db.execute("UPDATE orders SET state = ?, ended = ? WHERE id = ?", (state, int(ended), client_order_id))
        self._moved(client_order_id, state, detail)

    def result(self, result: OrderResult, bar: int) -> None:
        """Write what the venue told of an order; a fill that is known already changes nothing.

        bar: the bar the fill is booked in.
        """
        name = result.order.client_order_id
        row = self._db.execute("SELECT state, filled, value, fees, ended FROM orders WHERE id = ?", (name,)).fetchone()
        if row is None or row[4]:
            return
        state, filled, value, fees, _ = row
        if result.filled_quantity > filled:
            gained = (result.filled_quantity - filled, result.filled_value - value, result.fees - fees)
            self._db.execute(
                "INSERT OR IGNORE INTO fills VALUES (?, ?, ?, ?, ?, ?)", (name, result.filled_quantity, *gained, bar)
            )
        self._db.execute(
            "UPDATE orders SET state = ?, broker_id = ?, filled = ?, value = ?, fees = ?, ended = ? WHERE id = ?",
            (result.status, result.broker_id, result.filled_quantity, result.filled_value, result.fees,
             int(result.ended), name),
        )  # fmt: skip
        if result.status != state:
            self._moved(name, result.status, "")

    def event(self, kind: str, detail: str, bar: int | None = None) -> None:
        """Write down anything else."""
        self._db.execute("INSERT INTO events VALUES (?, ?, ?, ?)", (now(), bar, kind, detail))

    def _moved(self, client_order_id: str, state: str, detail: str) -> None:
        self._db.execute("INSERT INTO transitions VALUES (?, ?, ?, ?)", (now(), client_order_id, state, detail))

    # ------------------------------------------------------------------------------------------ reading

    def fact(self, key: str) -> Any:
        """What `remember` kept; None where nothing was."""
        row = self._db.execute("SELECT value FROM facts WHERE key = ?", (key,)).fetchone()
        return None if row is None else json.loads(row[0])

    def last_bar(self) -> BarRow | None:
        """The newest bar; None in a new journal."""
        row = self._db.execute("SELECT * FROM bars ORDER BY timestamp DESC LIMIT 1").fetchone()
        return None if row is None else BarRow(row[0], row[1], row[2], json.loads(row[3]), bool(row[4]))

    def curve(self) -> list[tuple[int, float, float]]:
        """(timestamp, equity, cash) of every bar, oldest first."""
        return self._db.execute("SELECT timestamp, equity, cash FROM bars ORDER BY timestamp").fetchall()

    def decided_bars(self, count: int) -> list[int]:
        """The last `count` bars that were decided on, oldest first."""
        rows = self._db.execute("SELECT timestamp FROM bars WHERE decided ORDER BY timestamp DESC LIMIT ?", (count,))
        return [row[0] for row in rows][::-1]

    def open_orders(self) -> list[OpenOrder]:
        """Orders that are not known to have ended, in the order they were decided."""
        return self._orders("WHERE ended = 0")

    def lost_orders(self, since: int) -> list[OpenOrder]:
        """Orders decided at or after `since` that were taken for never sent."""
        return self._orders(f"WHERE state = '{NEVER_SENT}' AND decided_at >= ?", since)

    def sent_orders(self) -> Sequence[tuple[int, Order]]:
        """(bar it was sent after, order) of every order that was to be sent, oldest first."""
        rows = self._db.execute(
            "SELECT due_at, id, symbol, side, quantity FROM orders WHERE due_at IS NOT NULL AND state NOT IN (?, ?) "
            "ORDER BY rowid",
            (BLOCKED, HELD),
        )
        return [(row[0], Order(*row[1:])) for row in rows]

    def order_ids(self) -> set[str]:
        """Ids of all orders that were ever written down, sent or not."""
        return {row[0] for row in self._db.execute("SELECT id FROM orders")}

    def _orders(self, where: str, *values: Any) -> list[OpenOrder]:
        rows = self._db.execute(
            "SELECT id, symbol, side, quantity, decided_at, due_at, state, filled, value, fees FROM orders "
            f"{where} ORDER BY rowid",
            values,
        )
        return [OpenOrder(Order(*row[:4]), *row[4:]) for row in rows]

    def close(self) -> None:
        """Give the journal up; another process may take it."""
        if self._lock is not None:
            self._db.close()
            os.close(self._lock)
            self._lock = None
