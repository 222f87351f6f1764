"""Decider: a bundle with all it needs to turn closed bars into orders.

    new bar -> features -> build_observation -> policy -> action scheme -> orders

Every arrow is the function training used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from drl_agents.deployment.bundle import EARLIER, Bundle
from environments.actions import build_scheme, to_orders
from environments.live.broker import Bar, Order
from environments.live.view import MarketView
from environments.margin import MarginTerms
from environments.observation import Observation, account_vector, build_observation
from environments.portfolio import Account, equity
from environments.rules import RuleBook


class Decider:
    """One model, and what it has seen of its market.

    symbols: in the model's order. lookback: bars it sees. lag: bars from a decision to its fill. fill_at: the price
    of the filling bar that training filled at.
    """

    def __init__(self, bundle: Bundle) -> None:
        manifest = bundle.manifest
        options, market = manifest["env"]["options"], manifest["market"]
        self.bundle, self.player = bundle, bundle.decide
        self.symbols: list[str] = market["symbols"]
        self.lookback, self.lag, self.fill_at = options["lookback"], options["decision_lag"], options["fill_at"]
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

    def fill_price(self, bar: Bar) -> np.ndarray:
        """(A,) the bar's own price that training filled at, NaN where there is none."""
        return bar.open if self.fill_at == "open" else bar.close

    @torch.inference_mode()
    def orders(self, account: Account) -> list[Order]:
        """What the model orders at the newest bar, for an account of one."""
        view = self.view
        mark, judged, rows = view.mark, view.judged, view.rows
        value = equity(account, mark)
        seen = Observation(torch.tensor([len(rows) - 1]), account_vector(account, mark, value))
        action = self.player(build_observation(rows, seen, self.lookback).unsqueeze(0))[0]
        units = self.scheme.orders(action, account, value, mark, judged, self.rules, view.action_row)[0].tolist()
        return self.as_orders(dict(zip(self.symbols, units, strict=True)))

    def memory(self) -> list[float] | None:
        """What a policy that remembers knows of the bars it decided at, JSON-able; None where there is nothing."""
        return None if self.player.memory is None else self.player.memory.flatten().tolist()

    def restore(self, memory: list[float] | None) -> None:
        """Put back what `memory` gave."""
        self.player.memory = None if memory is None else torch.tensor(memory).view(1, 1, -1)

    def as_orders(self, units: dict[str, float]) -> list[Order]:
        """Signed units as orders; their ids are made of the model, the newest bar and the symbol: decided again, an
        order has the same id."""
        prefix = f"{self.bundle.id[:12]}-{self.view.timestamp}"
        return [
            Order(f"{prefix}-{symbol}", symbol, "buy" if number > 0 else "sell", abs(number))
            for symbol, number in units.items()
            if number
        ]

    def fitted(self, orders: Sequence[Order], account: Account) -> list[Order]:
        """Orders of an earlier bar, cut to what the account can cover at the newest marks; what is left of none is
        dropped."""
        wanted = torch.zeros_like(account.shares)
        for order in orders:
            wanted[0, self.symbols.index(order.symbol)] = order.quantity * (1 if order.side == "buy" else -1)
        mark = self.view.mark
        units = to_orders(wanted, account, mark, mark > 0, self.rules)[0].abs().tolist()
        cut = dict(zip(self.symbols, units, strict=True))
        return [replace(order, quantity=cut[order.symbol]) for order in orders if cut[order.symbol]]

    def closing_orders(self, held: dict[str, float]) -> list[Order]:
        """Orders that close what is held, of the assets that have a bar now."""
        judged = dict(zip(self.symbols, self.view.judged[0].tolist(), strict=True))
        return self.as_orders({symbol: -units for symbol, units in held.items() if units and judged[symbol]})

    def marks(self) -> dict[str, float]:
        """Last known closes by symbol, 0 before the first."""
        return dict(zip(self.symbols, self.view.mark[0].tolist(), strict=True))

    def see(self, bars: Sequence[Bar]) -> None:
        """Take in history."""
        self.view.replay(bars)
