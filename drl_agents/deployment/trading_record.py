"""What a trader shows of itself: state.json, equity.csv and orders.jsonl in its folder.

equity.csv and orders.jsonl begin with what the journal has, so a torn line of a killed trader is gone; state.json is
replaced whole, at most every second while bars come fast.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections import deque
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import psutil

from drl_agents.training.record import now, plain
from environments.files import write_json
from environments.live.broker import Order, OrderResult

if TYPE_CHECKING:
    from drl_agents.deployment.trader import PaperTrader

STATE_EVERY = 1.0  # seconds between writes of state.json while bars come fast
SHOWN_ORDERS = 20


@lru_cache(maxsize=4)  # of a bar's time, asked for with every order of it
def iso(timestamp: int | None) -> str:
    """UTC nanoseconds as ISO 8601."""
    return pd.Timestamp(timestamp, unit="ns", tz="UTC").isoformat()


class TradingRecord:
    """The files of the trader `name` in `folder`; what an earlier run left is replaced.

    curve: (timestamp, equity, cash) of bars that are done already; sent: (bar, order) of orders sent already.
    """

    def __init__(self, folder: str | Path, name: str) -> None:
        self.folder, self.name = Path(folder), name
        self.folder.mkdir(parents=True, exist_ok=True)
        self.started, self._written = now(), 0.0
        self.recent: deque[dict[str, Any]] = deque(maxlen=SHOWN_ORDERS)
        self._latencies: deque[float] = deque(maxlen=10_000)
        # Asked once: neither changes, and a state is written every second.
        self._process = {"pid": os.getpid(), "process_started": psutil.Process().create_time()}
        self._host = socket.gethostname()

    def open(
        self, curve: Iterable[tuple[int, float, float]] = (), sent: Iterable[tuple[int, Order]] = ()
    ) -> TradingRecord:
        """Begin the files anew."""
        self._equity = (self.folder / "equity.csv").open("w")
        self._orders = (self.folder / "orders.jsonl").open("w")
        self._equity.write("timestamp,equity,cash\n")
        for timestamp, value, cash in curve:
            self.bar(timestamp, value, cash)
        for bar, order in sent:
            self.order(bar, order)
        self.flush()
        return self

    def __enter__(self) -> TradingRecord:
        return self

    def __exit__(self, *exception: object) -> None:
        self._equity.close()
        self._orders.close()

    def bar(self, timestamp: int, equity: float, cash: float) -> None:
        """A line of equity.csv: the books at a close."""
        self._equity.write(f"{iso(timestamp)},{equity!r},{cash!r}\n")

    def order(self, bar: int, order: Order) -> None:
        """A line of orders.jsonl: an order about to be sent after `bar`."""
        self._orders.write(json.dumps({"bar": iso(bar), **vars(order)}) + "\n")
        self.recent.append({"id": order.client_order_id, "bar": iso(bar), "symbol": order.symbol,
                            "side": order.side, "quantity": order.quantity, "status": "new",
                            "filled_quantity": 0.0, "filled_price": None})  # fmt: skip

    def flush(self) -> None:
        self._equity.flush()
        self._orders.flush()

    def told(self, results: Sequence[OrderResult]) -> None:
        """Show what became of orders among the recent ones."""
        shown = {line["id"]: line for line in self.recent}
        for result in results:
            line = shown.get(result.order.client_order_id)
            if line is not None:
                filled = result.filled_quantity
                price = result.filled_value / filled if filled else None
                line.update(status=result.status, filled_quantity=filled, filled_price=price)

    def status(self, client_order_id: str, status: str) -> None:
        """Show an order's state without a fill."""
        for line in self.recent:
            if line["id"] == client_order_id:
                line["status"] = status

    def latency(self, seconds: float) -> None:
        """Add a decision's latency, of the last 10,000 that count."""
        self._latencies.append(seconds)

    def latencies_ms(self) -> dict[str, float | None]:
        """{"p50", "p99"} in milliseconds, None before the first."""
        if not self._latencies:
            return {"p50": None, "p99": None}
        p50, p99 = np.percentile(np.array(self._latencies), [50, 99]) * 1e3
        return {"p50": float(p50), "p99": float(p99)}

    def due(self) -> bool:
        """Is it time to write state.json again?"""
        return time.monotonic() - self._written > STATE_EVERY

    def state(self, facts: dict[str, Any]) -> None:
        """Write state.json."""
        self._written = time.monotonic()
        own = {
            "started": self.started,
            "updated": now(),
            "orders": list(self.recent),
            "latency_ms": self.latencies_ms(),
            "process": self._process,
            "host": self._host,
        }
        write_json(self.folder / "state.json", plain({"name": self.name, **facts, **own}))


def state_facts(trader: PaperTrader) -> dict[str, Any]:
    """What state.json says of a trader."""
    value, ledger = trader.equity, trader.ledger
    lineage, market = trader.bundle.manifest["lineage"], trader.bundle.manifest["market"]
    positions = [
        {"symbol": symbol, "shares": units, "price": price, "value": units * price, "weight": units * price / value}
        for (symbol, units), price in zip(ledger.positions.items(), trader.view.mark[0].tolist(), strict=True)
        if units
    ]
    return {
        "model": trader.bundle.id,
        "study": lineage.get("study"),
        "trial": lineage.get("trial"),
        "broker": trader.broker.name,
        "state": trader.state,
        "synthetic": market["synthetic"],
        "timeframe": market["timeframe"],
        "symbols": trader.symbols,
        "bar": iso(trader.view.timestamp),
        "bars_done": trader.bars_done,
        "initial_equity": trader.initial * trader.flow_factor,  # what was paid in since is no return
        "equity": value,
        "cash": ledger.cash,
        "drawdown": 1 - value / trader.peak,
        "max_drawdown": trader.worst,
        "fees": ledger.fees,
        "n_orders": trader.n_orders,
        "n_fills": trader.books.n_fills,
        "positions": positions,
        "risk": {**trader.risk.to_dict(), "state": trader.state},
        "reconciled": trader.books.reconciled_at,
        "books_agree": trader.reconciled,
        "adopted": ledger.adopted,
        "stale": trader.stale,
    }
