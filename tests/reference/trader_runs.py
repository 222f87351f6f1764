"""Runs of a trader that may be killed, in processes of their own, and what must hold after them."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

from drl_agents.deployment.bundle import Bundle
from drl_agents.deployment.journal import FILE
from drl_agents.evaluation.backtest import backtest
from environments.live.alpaca_local.server import LocalAlpaca
from environments.market import Market
from tests.reference.trader_worker import Traders

START, STOP = 50, 55


def table(folder: Path, query: str) -> list[tuple]:
    with sqlite3.connect(folder / FILE) as database:
        return database.execute(query).fetchall()


def check_books(venue: LocalAlpaca, folder: Path) -> list[str]:
    """What is wrong after a run: [] where journal and venue tell the same story."""
    wrong = []
    ((cash, books),) = table(folder, "SELECT cash, books FROM bars ORDER BY timestamp DESC LIMIT 1")
    if cash != venue.cash:
        wrong.append(f"cash {cash} against {venue.cash}")
    shares = json.loads(books)["ledger"]["shares"]
    held = {s: n for s, n in zip(venue.venue.market.symbols, shares, strict=True) if n}
    if held != venue.positions:
        wrong.append(f"positions {held} against {venue.positions}")
    ours = {row[0]: row[1:] for row in table(folder, "SELECT id, quantity, state, filled, ended, due_at FROM orders")}
    theirs = {order["client_order_id"]: order for order in venue.orders}
    if len(theirs) != len(venue.orders):
        wrong.append("two orders of one id")
    if unknown := sorted(set(theirs) - set(ours)):
        wrong.append(f"orders that the journal does not know: {unknown}")
    last = table(folder, "SELECT max(timestamp) FROM bars")[0][0]
    for name, (quantity, state, filled, ended, due) in ours.items():
        there = theirs.get(name)
        if there is None:
            if state not in ("never_sent", "rejected", "held", "blocked"):
                wrong.append(f"{name} is {state}, the venue has none")
            continue
        if float(there["qty"]) != quantity:
            wrong.append(f"{name}: {there['qty']} ordered, {quantity} meant")
        if not ended and due != last:  # what was sent after the last bar is open still
            wrong.append(f"{name} is {state} and never ended")
        credited = float(there["filled_qty"]) * (1 - 25e-4 if there["side"] == "buy" else 1)
        if ended and abs(filled - credited) > 1e-9 * max(1.0, credited):
            wrong.append(f"{name}: {filled} booked, {credited} filled")
    return wrong


def reference(traders: Traders, venue: LocalAlpaca, market: Market, bundle: Bundle, folder: Path) -> dict:
    """A run that nobody disturbs."""
    venue.reset(bundle.env(market, (START, STOP)), START, STOP)
    run = traders.run(bundle=str(bundle.folder), url=venue.url, folder=str(folder))
    assert run["status"] == "done", run
    tested = backtest(bundle.env(market, (START, STOP)), bundle.decide)[0]
    assert run["equity"] == tested.equity.tolist() and tested.n_trades > 3
    assert check_books(venue, folder) == []
    run["orders"] = {o["client_order_id"]: (o["side"], o["qty"], o["filled_qty"]) for o in venue.orders}
    return run
