"""A soak: a trader on a local venue for 10,000 bars of 10 assets while requests fail at random, restarted now and then.

    python -m tests.benchmarks.soak [--bars N] [--json PATH]

At every restart the trader stops cleanly, goes on in a process of its own that is killed (SIGKILL) in the middle of its
work, and goes on here.

Measured: the ledger against the venue's books at the end and at every restart; what the ledger took over from the
venue's books meanwhile, which would hide a drift; orders at the venue that the journal does not know, of all there ever
were; the memory of the trader's process (the venue lives in another); decision latency. Writes what was measured as
JSON.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import random
import signal
import sqlite3
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import torch

from drl_agents.deployment.bundle import Bundle, load_bundle, save_bundle
from drl_agents.deployment.journal import FILE
from drl_agents.deployment.venues import replaying
from drl_agents.networks.policy import ActorCritic, PolicySpec
from drl_agents.training.record import versions
from environments.alpaca_env import VectorizedCryptoEnvAlpaca
from environments.data.credentials import Secret
from environments.data.source import load_bars
from environments.live.alpaca_local.faults import FaultPlan
from environments.live.alpaca_local.server import LocalAlpaca
from environments.market import Market

HISTORY = 1_100
RATES = {"drop_request": 0.002, "drop_reply": 0.002, "429": 0.002, "500": 0.002, "503": 0.002, "504": 0.002,
         "missing_field": 0.002, "unknown_enum": 0.002, "stale_data": 0.1}  # fmt: skip
KEYS = (Secret("local"), Secret("local"))
MIB = 2**20


def market(bars: int, assets: int) -> Market:
    options = {"kind": "regimes", "n_bars": HISTORY + bars + 1, "n_assets": assets, "sigma": 0.005}
    return Market.from_bars(load_bars("synthetic", options=options, timeframe="5m", asset_class="crypto", seed=7))


def make_bundle(traded: Market, folder: Path) -> Bundle:
    """A policy that was never trained but changes its mind at every bar, over small trades."""
    env = VectorizedCryptoEnvAlpaca(traded, 1, max_trade=0.02, spread_bps=0.0, slippage_bps=0.0, commission_bps=1.0)
    policy = ActorCritic(PolicySpec.of(env, hidden=(64, 64)), seeds=(3,))
    policy.fit_normalizer(env)
    with torch.no_grad():
        policy.actor.layers[-1].weight.mul_(20.0)
    return load_bundle(save_bundle(folder, policy, 0, env, "VectorizedCryptoEnvAlpaca", {"study": "soak"}))


def serve(bundle_folder: str, bars: int, assets: int, pipe: Any) -> None:
    """The venue's process: answers "books" until "end"."""
    torch.set_num_threads(1)
    traded, bundle = market(bars, assets), load_bundle(bundle_folder)
    env = bundle.env(traded, (HISTORY, HISTORY + bars))
    plan, orders = FaultPlan(11, RATES), set()
    with LocalAlpaca(env, HISTORY, HISTORY + bars, faults=plan) as venue:
        # The venue forgets orders long ended, so each is noted when something happens to it.
        send = venue.venue._sink

        def noting(update: dict[str, Any]) -> None:
            orders.add(update["order"]["client_order_id"])
            send(update)

        venue.venue._sink = noting
        pipe.send(venue.url)
        while pipe.recv() != "end":
            told = {"bar": venue.bar - HISTORY, "cash": venue.cash, "positions": venue.positions}
            orders |= {order["client_order_id"] for order in venue.orders}
            pipe.send({**told, "faults": plan.counts, "orders": sorted(orders)})


def doomed(bundle_folder: str, url: str, folder: str, seconds: float) -> None:
    """A trader's process that goes on where the last one stopped, and is gone `seconds` after its first bar."""
    torch.set_num_threads(1)
    begun: list[threading.Timer] = []

    def stop() -> bool:
        if not begun:
            begun.append(threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGKILL)))
            begun[0].start()
        return False

    with replaying(load_bundle(bundle_folder), url, KEYS, folder, "soak") as trader:
        trader.run(stop)


def soak(bars: int, assets: int, folder: Path, restart_every: int) -> dict[str, Any]:
    """Run it; returns what was measured."""
    torch.set_num_threads(1)
    bundle = make_bundle(market(bars, assets), folder / "bundle")
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    venue = context.Process(target=serve, args=(str(bundle.folder), bars, assets, theirs), daemon=True)
    venue.start()
    url, begun = ours.recv(), time.time()
    memory, drift, restarts, latencies = [], [], {"clean": 0, "killed": 0}, {}
    draw = random.Random(5)
    process, done, seen, every = psutil.Process(), False, 0, max(1, bars // 40)
    while not done:
        with replaying(bundle, url, KEYS, folder / "t", "soak") as trader:

            def stop(trader=trader, goal=seen + restart_every) -> bool:
                if trader.bars_done % every == 0:
                    memory.append((trader.bars_done, process.memory_info().rss / MIB))
                return trader.bars_done >= goal

            trader.run(stop)
            ours.send("books")
            books = ours.recv()
            held = {s: n for s, n in trader.ledger.positions.items() if n}
            units = [abs(held.get(s, 0.0) - books["positions"].get(s, 0.0)) for s in trader.symbols]
            drift.append(max(abs(trader.ledger.cash - books["cash"]), *units))
            adopted = trader.ledger.adopted / trader.equity
            seen, done, latencies = trader.bars_done, books["bar"] >= bars - 1, trader.record.latencies_ms()
        if not done:
            restarts["clean"] += 1
            facts = (str(bundle.folder), url, str(folder / "t"), draw.uniform(0.1, 0.6))
            killed = context.Process(target=doomed, args=facts)
            killed.start()
            killed.join()
            restarts["killed"] += killed.exitcode == -signal.SIGKILL
    ours.send("end")
    venue.join(30)
    with sqlite3.connect(folder / "t" / FILE) as database:
        counts = dict(database.execute("SELECT state, count(*) FROM orders GROUP BY state"))
        known = {row[0] for row in database.execute("SELECT id FROM orders")}
        booked = database.execute("SELECT count(*) FROM bars").fetchone()[0] - 1
        skipped = database.execute("SELECT count(*) FROM events WHERE kind = 'skipped'").fetchone()[0]
    settled = [mib for at, mib in memory if at >= bars // 4]
    return {
        "bars": bars,
        "assets": assets,
        "bars_booked": booked,
        "bars_skipped": skipped,
        "restarts": restarts,
        "faults": books["faults"],
        "orders_by_state": counts,
        "orders_at_the_venue": len(books["orders"]),
        "orders_at_the_venue_unknown_to_the_journal": len(set(books["orders"]) - known),
        "largest_drift_of_cash_or_units": max(drift),
        "taken_over_from_the_venues_books_share_of_equity": adopted,
        "memory_mib": {"first_quarter_end": settled[0], "end": settled[-1], "most": max(settled)},
        "latency_ms": latencies,
        "seconds": round(time.time() - begun, 1),
        "journal_mib": round((folder / "t" / FILE).stat().st_size / MIB, 1),
        "machine": {"processor": platform.machine(), "cores": psutil.cpu_count()},
        "versions": versions(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bars", type=int, default=10_000)
    parser.add_argument("--assets", type=int, default=10)
    parser.add_argument("--restart-every", type=int, default=1_000)
    parser.add_argument("--json", type=Path, default=Path(__file__).with_suffix(".json"))
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measured = soak(asked.bars, asked.assets, Path(folder), asked.restart_every)
    asked.json.write_text(json.dumps(measured, indent=2) + "\n")
    print(json.dumps(measured, indent=2))
    assert measured["largest_drift_of_cash_or_units"] == 0.0 == measured["orders_at_the_venue_unknown_to_the_journal"]
    assert measured["taken_over_from_the_venues_books_share_of_equity"] < 1e-9


if __name__ == "__main__":
    main()
