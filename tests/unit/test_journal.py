"""The journal: what it was told is there after a restart, once; it is held by one process."""

from __future__ import annotations

import multiprocessing
import sqlite3

import pytest

from drl_agents.deployment.journal import FILE, HELD, INTENDED, NEVER_SENT, TIDY_EVERY, Journal
from environments.errors import InputError
from environments.live.broker import Order, OrderResult

MARKET = {"symbols": ["A", "B"], "timeframe": "1h", "asset_class": "crypto"}
BUY, SELL = Order("m-1-A", "A", "buy", 2.0), Order("m-1-B", "B", "sell", 1.0)


def filled(order: Order, quantity: float, value: float, ended: bool = False) -> OrderResult:
    return OrderResult(
        order, "filled" if ended else "partially_filled", quantity, value, 0.1, ended=ended, broker_id="x"
    )


@pytest.fixture
def journal(tmp_path):
    journal = Journal(tmp_path, MARKET)
    yield journal
    journal.close()


def again(journal: Journal) -> Journal:
    journal.close()
    return Journal(journal.folder, MARKET)


def test_it_is_durable_by_default(journal):
    pragmas = [journal._db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("journal_mode", "synchronous")]
    assert pragmas == ["wal", 2]  # 2 is FULL


def test_the_log_is_moved_when_told_and_not_by_a_commit(journal):
    """10,000 rows are more than SQLite lets a log grow to by itself."""
    file = journal.folder / FILE
    before = file.stat().st_size
    for bar in range(TIDY_EVERY):
        journal.tidy()
        with journal.transaction():
            for row in range(100):
                journal.event("test", "x" * 500, 100 * bar + row)
    assert file.stat().st_size == before
    journal.tidy()
    assert file.stat().st_size > before + 100 * TIDY_EVERY * 500
    assert journal._db.execute("SELECT count(*) FROM events").fetchone() == (100 * TIDY_EVERY,)


def test_orders_and_bars_come_back(journal):
    with journal.transaction():
        journal.bar(100, 1_000.0, 400.0, {"ledger": {"cash": 400.0}}, True)
        journal.intend(BUY, 100, 100)
        journal.intend(SELL, 100, None)
    later = again(journal)
    row = later.last_bar()
    assert (row.timestamp, row.equity, row.cash, row.decided) == (100, 1_000.0, 400.0, True)
    assert row.books == {"ledger": {"cash": 400.0}} and later.curve() == [(100, 1_000.0, 400.0)]
    first, second = later.open_orders()
    assert (first.order, first.state, first.due_at) == (BUY, INTENDED, 100)
    assert (second.order, second.state, second.due_at) == (SELL, HELD, None)
    assert later.sent_orders() == [(100, BUY)]
    later.due(SELL, 200)
    assert later.sent_orders() == [(100, BUY), (200, SELL)] and later.decided_bars(3) == [100]
    later.close()


def test_a_transaction_is_all_or_nothing(journal):
    with pytest.raises(RuntimeError, match="in between"), journal.transaction():
        journal.bar(100, 1.0, 1.0, {}, True)
        journal.intend(BUY, 100, 100)
        raise RuntimeError("in between")
    assert journal.last_bar() is None and journal.open_orders() == []


def test_what_was_not_committed_is_gone_with_the_process(journal):
    journal._db.execute("BEGIN IMMEDIATE")
    journal.intend(BUY, 100, 100)
    later = again(journal)
    assert later.open_orders() == []
    later.close()


def test_a_fill_is_booked_once_however_often_it_is_told(journal):
    journal.intend(BUY, 100, 100)
    for result in (
        filled(BUY, 0.5, 5.0),
        filled(BUY, 0.5, 5.0),
        filled(BUY, 2.0, 21.0, True),
        filled(BUY, 2.0, 21.0, True),
    ):
        journal.result(result, 200)
    fills = journal._db.execute("SELECT filled, quantity, value FROM fills ORDER BY filled").fetchall()
    assert fills == [(0.5, 0.5, 5.0), (2.0, 1.5, 16.0)]
    assert journal.open_orders() == []
    # What has ended stays as it is, whatever is told of it later.
    journal.result(filled(BUY, 9.0, 90.0), 300)
    assert journal._db.execute("SELECT filled, state FROM orders").fetchone() == (2.0, "filled")
    states = [row[0] for row in journal._db.execute("SELECT state FROM transitions")]
    assert states == ["intended", "partially_filled", "filled"]


def test_an_id_is_used_once(journal):
    journal.intend(BUY, 100, 100)
    with pytest.raises(sqlite3.IntegrityError):
        journal.intend(BUY, 100, 100)


def test_results_of_unknown_orders_change_nothing(journal):
    journal.result(filled(BUY, 1.0, 10.0), 100)
    assert journal._db.execute("SELECT count(*) FROM fills").fetchone() == (0,)


def test_lost_orders_are_those_taken_for_never_sent(journal):
    for order, bar in ((BUY, 100), (SELL, 300)):
        journal.intend(order, bar, bar)
        journal.mark(order.client_order_id, NEVER_SENT, "nobody knows it", ended=True)
    assert [known.order for known in journal.lost_orders(200)] == [SELL]


def _try_to_open(folder, answers):
    try:
        Journal(folder, MARKET).close()
        answers.put("opened")
    except InputError as error:
        answers.put(str(error))


def test_one_writer(journal):
    context = multiprocessing.get_context("fork")
    answers = context.Queue()

    def other() -> str:
        process = context.Process(target=_try_to_open, args=(journal.folder, answers))
        process.start()
        process.join()
        return answers.get(timeout=10)

    assert "a trader of that name is running" in other()
    later = again(journal)
    assert "running" in other()
    later.close()
    assert other() == "opened"


def begun(journal: Journal) -> None:
    """Have it a bar, and close it."""
    journal.bar(100, 1.0, 1.0, {}, True)
    journal.close()


def test_another_market_is_refused(journal):
    begun(journal)
    with pytest.raises(InputError, match="another market .its timeframe differs"):
        Journal(journal.folder, {**MARKET, "timeframe": "5m"})
    fresh = Journal(journal.folder, {**MARKET, "timeframe": "5m"}, fresh=True)
    assert fresh.last_bar() is None
    fresh.close()


def test_a_file_that_is_no_journal_is_refused(tmp_path):
    (tmp_path / FILE).write_bytes(b"not a database, but some text that is long enough to be read as a header" * 9)
    with pytest.raises(InputError, match="no journal that can be read"):
        Journal(tmp_path, MARKET)
    Journal(tmp_path, MARKET, fresh=True).close()


def test_facts_and_events(journal):
    assert journal.fact("bundle") is None
    journal.remember("bundle", "abc")
    journal.remember("bundle", "def")
    journal.event("model", "abc -> def", 100)
    later = again(journal)
    assert later.fact("bundle") == "def"
    assert later._db.execute("SELECT kind, detail, bar FROM events").fetchall() == [("model", "abc -> def", 100)]
    later.close()


def test_a_replay_and_an_account_have_journals_of_their_own(tmp_path):
    account, replay = MARKET | {"venue": "alpaca-paper"}, MARKET | {"venue": "local"}
    begun(Journal(tmp_path, account))
    with pytest.raises(InputError, match="its venue differs"):
        Journal(tmp_path, replay)
    with pytest.raises(InputError, match="of a trader on alpaca-paper, which is not deleted"):
        Journal(tmp_path, replay, fresh=True)
    Journal(tmp_path, account).close()
    Journal(tmp_path, account, fresh=True).close()  # the account's own may be begun anew
    begun(Journal(tmp_path / "b", replay))
    Journal(tmp_path / "b", account, fresh=True).close()  # a replay is worth no more than its bars
    begun(Journal(tmp_path / "c", MARKET))
    Journal(tmp_path / "c", account).close()  # written before there was a venue in it
    with pytest.raises(InputError, match="its venue differs"):
        Journal(tmp_path / "c", replay)


@pytest.mark.parametrize("fresh", [False, True])
def test_one_that_never_began_gives_its_name_back(tmp_path, fresh):
    """A start with wrong keys claimed the name for an account that was never traded."""
    journal = Journal(tmp_path, MARKET | {"venue": "alpaca-paper"})
    journal.remember("activities", ["of another account"])
    journal.close()
    other = Journal(tmp_path, MARKET | {"venue": "local"}, fresh)
    assert other.fact("activities") is None and other.fact("market")["venue"] == "local"
    other.remember("bundle", "abc")
    kept = again(other)  # of the same market it is gone on with
    assert kept.fact("bundle") == "abc"
    kept.close()
