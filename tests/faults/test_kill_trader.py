"""`kill -9` anywhere, every fault of a venue: the books are the broker's, no order goes out twice, none is lost."""

from __future__ import annotations

import json
import random
import sqlite3
from pathlib import Path

import pytest
import torch

from drl_agents.deployment.bundle import Bundle, load_bundle, save_bundle
from drl_agents.deployment.journal import FILE
from drl_agents.evaluation.backtest import backtest
from drl_agents.networks.policy import ActorCritic, PolicySpec
from environments.alpaca_env import VectorizedCryptoEnvAlpaca
from environments.live.alpaca_local.faults import FaultPlan
from environments.live.alpaca_local.server import LocalAlpaca
from environments.market import Market
from tests.reference.trader_worker import Traders

pytestmark = pytest.mark.usefixtures("one_thread")

START, STOP = 50, 55
LAGGED = {"decision_lag": 2, "max_trade": 0.05}  # small enough that the cash never runs out while they wait


@pytest.fixture(scope="module")
def market(make_market, random_bars) -> Market:
    return make_market(
        {"BTCUSDT": random_bars(1, STOP, price=30_000.0), "DOGEUSDT": random_bars(2, STOP, price=0.1, sigma=0.03)}
    )


def made(market: Market, folder: Path, **options) -> Bundle:
    env = VectorizedCryptoEnvAlpaca(market, 1, **options)
    policy = ActorCritic(PolicySpec.of(env, hidden=(8,)), seeds=(3,))
    policy.fit_normalizer(env)
    with torch.no_grad():
        policy.actor.layers[-1].weight.mul_(60.0)
    return load_bundle(save_bundle(folder, policy, 0, env, "VectorizedCryptoEnvAlpaca", {"study": "s"}))


@pytest.fixture(scope="module")
def bundles(market, tmp_path_factory) -> dict[str, Bundle]:
    folder = tmp_path_factory.mktemp("bundles")
    return {"plain": made(market, folder / "plain"), "lagged": made(market, folder / "lagged", **LAGGED)}


@pytest.fixture(scope="module")
def venue(market, bundles):
    with LocalAlpaca(bundles["plain"].env(market, (START, STOP)), START, STOP) as venue:
        yield venue


@pytest.fixture(scope="module")
def traders():
    with Traders() as traders:
        yield traders


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


@pytest.mark.parametrize("kind", ["plain", "lagged"])
def test_killed_at_every_boundary(traders, venue, market, bundles, tmp_path, kind):
    """Killed before or after any write, it goes on as if nothing had happened: the same orders, the same equity."""
    bundle = bundles[kind]
    whole = reference(traders, venue, market, bundle, tmp_path / "whole")
    draw = random.Random(kind)
    moments = range(1, whole["boundaries"] + 1)
    if kind == "lagged":
        moments = sorted(draw.sample(moments, 40))
    wrong = []
    for moment in moments:
        folder = tmp_path / str(moment)
        venue.reset(bundle.env(market, (START, STOP)), START, STOP, seed=moment)
        killed = traders.run(bundle=str(bundle.folder), url=venue.url, folder=str(folder), kill_at=moment)
        again = traders.run(bundle=str(bundle.folder), url=venue.url, folder=str(folder))
        where = f"killed at {moment}, {whole['names'][moment - 1]}: "
        if killed["status"] != "killed" or again["status"] != "done":
            wrong.append(f"{where}{killed} {again.get('error')}")
            continue
        if again["equity"] != whole["equity"]:
            wrong.append(f"{where}equity {again['equity']}")
        orders = {o["client_order_id"]: (o["side"], o["qty"], o["filled_qty"]) for o in venue.orders}
        if orders != whole["orders"]:
            wrong.append(f"{where}orders {sorted(set(orders) ^ set(whole['orders']))}")
        wrong += [where + problem for problem in check_books(venue, folder)]
    assert not wrong, f"{len(wrong)} violations in {len(moments)} runs:\n" + "\n".join(wrong[:20])


# Of each kind: how often a request meets it, and further options of the plan.
FAULTS = {
    "delay": (0.25, {"seconds": 0.06}),
    "drop_request": (0.15, {}),
    "drop_reply": (0.15, {}),
    "429": (0.15, {}),
    "500": (0.15, {}),
    "503": (0.15, {}),
    "504": (0.15, {}),
    "missing_field": (0.15, {}),
    "unknown_enum": (0.15, {}),
    "stale_data": (0.4, {}),
}


def test_every_fault_with_and_without_a_kill(traders, venue, market, bundles, tmp_path):
    """Whatever a request meets, the journal ends with the venue's books, mostly those of a calm venue."""
    bundle = bundles["plain"]
    whole = reference(traders, venue, market, bundle, tmp_path / "whole")
    wrong, equal, runs, met = [], 0, 0, 0
    kinds = [*FAULTS, "all"]
    for seed in range(10 * len(kinds)):
        kind, draw = kinds[seed % len(kinds)], random.Random(seed)
        rates = {kind: FAULTS[kind][0]} if kind != "all" else {name: 0.03 for name in FAULTS}
        plan = FaultPlan(seed, rates, **FAULTS.get(kind, (0, {}))[1])
        venue.reset(bundle.env(market, (START, STOP)), START, STOP, seed=seed, faults=plan)
        folder, facts = tmp_path / str(seed), {"bundle": str(bundle.folder), "url": venue.url}
        if kind in ("delay", "all"):
            facts["timeout"] = [1.0, 0.03]
        kill_at = draw.randrange(1, whole["boundaries"]) if seed % 3 else None
        runs += 1
        first = traders.run(**facts, folder=str(folder), kill_at=kill_at)
        venue.faults = FaultPlan()
        again = traders.run(**facts | {"timeout": [5.0, 5.0]}, folder=str(folder))
        where = f"run {seed}, {kind}, killed at {kill_at}: "
        met += sum(plan.counts.values())
        if again["status"] != "done" or (first["status"] == "failed" and "BrokerUnavailable" not in first["error"]):
            wrong.append(f"{where}{first.get('error')} {again.get('error')}")
            continue
        equal += again["equity"] == whole["equity"]
        wrong += [where + problem for problem in check_books(venue, folder)]
    assert not wrong, f"{len(wrong)} violations in {runs} runs:\n" + "\n".join(wrong[:20])
    assert met > runs and equal > 0.9 * runs, (met, equal, runs)
