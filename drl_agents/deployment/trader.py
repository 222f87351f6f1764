"""PaperTrader: a bundle trading through a broker, one decision per closed bar.

    new bar -> features -> build_observation -> policy -> action scheme -> orders -> fills -> books

Every arrow is the function training used. The trader keeps its own books from the fills it is told of, and
stops when they differ from the broker's.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import torch

from drl_agents.deployment.bundle import EARLIER, Bundle
from drl_agents.training.record import now, plain
from environments.actions import build_scheme
from environments.files import write_json
from environments.live.broker import Bar, Broker, Order, OrderResult
from environments.live.view import MarketView
from environments.margin import MarginTerms
from environments.observation import Observation, account_vector, build_observation
from environments.portfolio import Fills, equity, open_account, settle
from environments.rules import RuleBook

_STATE_EVERY = 1.0  # seconds between writes of state.json while bars come fast


class Unreconciled(RuntimeError):
    """The broker's books differ from the trader's."""


@dataclass(frozen=True)
class PaperResult:
    """timestamps (T + 1,) int64 ns of the bars, equity (T + 1,) at their closes; orders sent, orders with a fill."""

    timestamps: np.ndarray
    equity: np.ndarray
    n_orders: int
    n_fills: int


class PaperTrader:
    """One model, one account.

    Args:
        folder: where state.json, equity.csv and orders.jsonl are written; what an earlier run left is replaced.
    """

    def __init__(self, bundle: Bundle, broker: Broker, folder: str | Path, name: str) -> None:
        manifest = bundle.manifest
        options, market = manifest["env"]["options"], manifest["market"]
        self.bundle, self.broker, self.folder, self.name = bundle, broker, Path(folder), name
        self.symbols: list[str] = market["symbols"]
        self.lookback, self.lag = options["lookback"], options["decision_lag"]
        # By name, as models were written before an action scheme could bring options of its own.
        named = {name: options[name] for name in ("max_trade", "sharpness") if name in options}
        self.scheme = build_scheme(options["action"], **{**options.get("action_options", {}), **named})
        book = RuleBook.from_dict(market["asset_class"], manifest["rules"])
        terms = MarginTerms.__dataclass_fields__
        self.margin = MarginTerms(**{name: options[name] for name in terms if name in options})
        fee_in = {**EARLIER, **options}["fee_in"]
        self.rules = book.tensors(self.symbols, torch.device("cpu"), torch.float64, self.margin, fee_in)
        self.view = MarketView(
            len(self.symbols), options["features"], market["extra"], self.lookback, torch.float64, self.scheme
        )
        self.account = open_account(torch.tensor([broker.cash()], dtype=torch.float64), len(self.symbols))
        self.initial = self.peak = float(self.account.cash)
        self.worst = self.fees = 0.0
        self.held_back: deque[list[Order]] = deque()
        self.recent: deque[dict[str, Any]] = deque(maxlen=20)
        self.n_orders = self.n_fills = self.bars_done = 0
        self.state, self.started, self._written = "ACTIVE", now(), 0.0
        self.folder.mkdir(parents=True, exist_ok=True)

    def run(self, stop: Callable[[], bool] = lambda: False) -> PaperResult:
        """Trade until the broker has no more bars, `stop()`, or a forced close, which leaves the state HALTED.

        Raises:
            Unreconciled: the books differ; the state is then HALTED.
        """
        history = self.broker.history()
        self.view.replay(history)
        stamps, curve = [history[-1].timestamp], [self.initial]
        with (self.folder / "equity.csv").open("w") as equity_file, (self.folder / "orders.jsonl").open("w") as journal:
            equity_file.write("timestamp,equity,cash\n")
            self._decide(history[-1], journal)
            while not stop() and (bar := self.broker.next_bar()) is not None:
                self.view.append(bar)
                closed = self._settle()
                value = float(equity(self.account, self.view.mark))
                self._mark(value)
                stamps.append(bar.timestamp)
                curve.append(value)
                equity_file.write(f"{_iso(bar.timestamp)},{value!r},{float(self.account.cash)!r}\n")
                if closed:
                    self.state = "HALTED"
                    break
                self._decide(bar, journal)
                if time.monotonic() - self._written > _STATE_EVERY:
                    equity_file.flush()
                    self._write_state(value)
        if self.state == "ACTIVE":
            self.state = "FINISHED"
        self._write_state(curve[-1])
        return PaperResult(np.array(stamps), np.array(curve), self.n_orders, self.n_fills)

    def _decide(self, bar: Bar, journal: Any) -> None:
        mark, judged = self.view.mark, self.view.judged
        value = equity(self.account, mark)
        rows = self.view.rows
        seen = Observation(torch.tensor([len(rows) - 1]), account_vector(self.account, mark, value))
        action = self.bundle.decide(build_observation(rows, seen, self.lookback).unsqueeze(0))[0]
        row = self.view.action_row
        units = self.scheme.orders(action, self.account, value, mark, judged, self.rules, row)[0].tolist()
        orders = [
            Order(f"{self.bundle.id[:12]}-{bar.timestamp}-{symbol}", symbol, "buy" if u > 0 else "sell", abs(u))
            for symbol, u in zip(self.symbols, units, strict=True)
            if u
        ]
        self.held_back.append(orders)
        if len(self.held_back) < self.lag:
            return
        due = self.held_back.popleft()
        for order in due:
            journal.write(json.dumps({"bar": _iso(bar.timestamp), **vars(order)}) + "\n")
            self.recent.append({"id": order.client_order_id, "bar": _iso(bar.timestamp), "symbol": order.symbol,
                                "side": order.side, "quantity": order.quantity, "status": "new",
                                "filled_quantity": 0.0, "filled_price": None})  # fmt: skip
        journal.flush()
        self.broker.submit(due)
        self.n_orders += len(due)

    def _settle(self) -> bool:
        """Book what the broker did in the last bar. True: the account had too little left, its positions are closed."""
        results = self.broker.results()
        self._book([result for result in results if not result.forced])
        closed = False
        if not self.margin.cash_account:
            value = self.account.shares * self.view.mark
            short = -value.clamp(max=0).sum(-1)
            carry = self.margin.carry(self.account.cash, short)
            self.account = self.account._replace(cash=self.account.cash - carry)
            self.fees += float(carry)
            closed = bool(self.account.cash + value.sum(-1) < self.margin.requirement(value.sum(-1) + short, short))
        if forced := [result for result in results if result.forced]:
            self._book(forced, bars=0)
            closed = True
        self._reconcile()
        return closed

    def _book(self, results: list[OrderResult], bars: int = 1) -> None:
        traded, value, fees = (torch.zeros(1, len(self.symbols), dtype=torch.float64) for _ in range(3))
        shown = {line["id"]: line for line in self.recent}
        for result in results:
            i = self.symbols.index(result.order.symbol)
            traded[0, i] += result.filled_quantity if result.order.side == "buy" else -result.filled_quantity
            value[0, i] += result.filled_value
            fees[0, i] += result.fees
            self.n_fills += result.filled_quantity > 0
            line = shown.get(result.order.client_order_id)
            if line is not None:
                price = result.filled_value / result.filled_quantity if result.filled_quantity else None
                line.update(status=result.status, filled_quantity=result.filled_quantity, filled_price=price)
        self.account = settle(self.account, Fills(traded, value, fees), self.margin, bars)
        self.fees += float(fees.sum())

    def _reconcile(self) -> None:
        cash, positions = self.broker.cash(), self.broker.positions()
        own = dict(zip(self.symbols, self.account.shares[0].tolist(), strict=True))
        differing = [s for s in own if not np.isclose(own[s], positions.get(s, 0.0), rtol=1e-9, atol=1e-12)]
        foreign = sorted(set(positions) - set(own))
        if differing or foreign or not np.isclose(cash, float(self.account.cash), rtol=1e-9, atol=1e-6):
            self.state = "HALTED"
            self._write_state(float(equity(self.account, self.view.mark)))
            raise Unreconciled(
                f"the broker's books differ: cash {cash} against {float(self.account.cash)}, "
                f"positions {positions} against {own}"
            )

    def _mark(self, value: float) -> None:
        self.bars_done += 1
        self.peak = max(self.peak, value)
        self.worst = max(self.worst, 1 - value / self.peak)

    def _write_state(self, value: float) -> None:
        self._written = time.monotonic()
        lineage, market = self.bundle.manifest["lineage"], self.bundle.manifest["market"]
        mark, shares = self.view.mark[0].tolist(), self.account.shares[0].tolist()
        positions = [
            {"symbol": s, "shares": n, "price": p, "value": n * p, "weight": n * p / value}
            for s, n, p in zip(self.symbols, shares, mark, strict=True)
            if n
        ]
        state = {
            "name": self.name,
            "model": self.bundle.id,
            "study": lineage.get("study"),
            "trial": lineage.get("trial"),
            "broker": self.broker.name,
            "state": self.state,
            "synthetic": market["synthetic"],
            "timeframe": market["timeframe"],
            "symbols": self.symbols,
            "started": self.started,
            "updated": now(),
            "bar": _iso(self.view.timestamp),
            "bars_done": self.bars_done,
            "initial_equity": self.initial,
            "equity": value,
            "cash": float(self.account.cash),
            "drawdown": 1 - value / self.peak,
            "max_drawdown": self.worst,
            "fees": self.fees,
            "n_orders": self.n_orders,
            "n_fills": self.n_fills,
            "positions": positions,
            "orders": list(self.recent),
            "process": {"pid": os.getpid(), "process_started": psutil.Process().create_time()},
            "host": socket.gethostname(),
        }
        write_json(self.folder / "state.json", plain(state))


def _iso(timestamp: int | None) -> str:
    return pd.Timestamp(timestamp, unit="ns", tz="UTC").isoformat()
