"""The venue's books: the environment's own accounting, bar by bar, and what of it the wire can say.

Alpaca's orders carry a quantity and an average price, and its fee is told apart from them. So the price of a fill is
the one at which the cash comes out right, slippage, spread and impact among it; with c the commission as a share:

    fee taken from what is received    buy q at p: cash - q * p, units + q * (1 - c)
    (crypto)                           sell q at p: cash + q * p * (1 - c), units - q
    fee in currency                    buy: cash - q * p * (1 + c), units + q; sell as above
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch

from environments.market_env import MarketVecEnv
from environments.portfolio import Fills, close_bar, equity, floor_to, match, open_account, settle

_BPS = 1e-4


class Execution(NamedTuple):
    """What was executed of an asset. quantity: units, > 0; value: currency, the quantity at the price of the fill;
    fee: currency, the commission (what was kept in units at that price)."""

    quantity: float
    value: float
    fee: float

    @property
    def price(self) -> float:
        return self.value / self.quantity


class Books:
    """One account over the bars of an environment of one; the environment itself is not stepped.

    bar: the newest closed bar. account: of one, as `environments.portfolio` has it.
    """

    def __init__(self, env: MarketVecEnv, start: int) -> None:
        self.env, self.market = env, env.market
        cash = torch.full((1,), env.initial_cash, dtype=self.market.dtype, device=self.market.device)
        self.account = open_account(cash, self.market.n_assets)
        # A price limit leaves no room for a worse price: such a fill costs the commission alone.
        self._plain = replace(env.frictions, spread_bps=0.0, slippage_bps=0.0, impact_coef=0.0)
        self.interest = 0.0
        self.go_to(start)

    def go_to(self, bar: int) -> None:
        """Open the bar: what follows is executed in it, and marked at its close."""
        self.bar = bar
        self._row = self.env.bar_row(torch.tensor([bar], device=self.market.device))
        self._volume = self._row.volume
        self.marks: list[float] = self._row.mark[0].tolist()
        self._refresh()

    def _refresh(self) -> None:
        self.cash = float(self.account.cash)
        self.units: list[float] = self.account.shares[0].tolist()

    @property
    def equity(self) -> float:
        """Currency, at the marks."""
        return float(equity(self.account, self._row.mark))

    @property
    def entries(self) -> list[float]:
        """(A,) average price paid for what is held, costs left out."""
        return self.account.entry[0].tolist()

    def price(self, asset: int) -> float:
        """What market orders fill at in this bar, before costs."""
        return float(self._row.price[0, asset])

    def fillable(self, asset: int) -> bool:
        """Does the asset trade in this bar?"""
        return bool(self._row.fillable[0, asset])

    def rounded(self, asset: int, quantity: float) -> float:
        """The quantity rounded down to the asset's increment."""
        return float(floor_to(self.account.cash.new_tensor(quantity), self.env.rules.increment[asset]))

    def receive(self, cash: float) -> None:
        """Book currency that no trade moved."""
        self.account = self.account._replace(cash=self.account.cash + cash)
        self._refresh()

    def split(self, asset: int, ratio: float) -> None:
        """Make every unit held of an asset `ratio` units; what they were bought for in all stays."""
        shares, entry = self.account.shares.clone(), self.account.entry.clone()
        shares[0, asset] *= ratio
        entry[0, asset] /= ratio
        self.account = self.account._replace(shares=shares, entry=entry)
        self._refresh()

    def fill_market(self, wanted: Sequence[float]) -> list[Execution | None]:
        """Execute signed units (A,) as the environment would; once per bar, it also ages what was not traded."""
        env, row = self.env, self._row
        orders = self.account.shares.new_tensor([list(wanted)])
        fills = match(self.account, orders, row.price, row.fillable, env.rules, env.frictions, row.slip, row.volume)
        self.account = settle(self.account, fills, env.margin)
        return self._told(fills, env.frictions.commission_bps)

    def fill_at(self, asset: int, wanted: float, price: float, stopped: bool, whole: bool) -> Execution | None:
        """Execute signed units of one asset at a price of the bar.

        stopped: it trades as a market order there, with all its costs. whole: all of it or nothing.
        """
        frictions, rules = self.env.frictions if stopped else self._plain, self.env.rules
        orders, prices = torch.zeros_like(self.account.shares), self._row.price.clone()
        orders[0, asset], prices[0, asset] = wanted, price
        fills = match(self.account, orders, prices, self._row.fillable, rules, frictions, self._row.slip, self._volume)
        executed = float(fills.traded[0, asset].abs())
        if wanted > 0:
            executed /= frictions.credited
        if whole and executed < abs(wanted) * (1 - 1e-9):
            return None
        self.account = settle(self.account, fills, self.env.margin, bars=0)
        return self._told(fills, frictions.commission_bps)[asset]

    def close(self) -> list[Execution | None]:
        """End the bar: a margin account pays for what it owes; (A,) what the venue then closed by force."""
        env, row = self.env, self._row
        if env.margin.cash_account:
            return [None] * self.market.n_assets
        self.account, close = close_bar(self.account, row.mark, env.margin, env.frictions, row.slip, row.volume)
        self.interest = float(close.carry)
        return self._told(close.fills, env.frictions.commission_bps)

    def _told(self, fills: Fills, commission_bps: float) -> list[Execution | None]:
        """(A,) the fills as the wire tells them, see the top of this file."""
        self._refresh()
        if self._volume is not None:
            self._volume = (self._volume - fills.traded.abs()).clamp(min=0)
        commission, received = commission_bps * _BPS, self.env.frictions.fee_in == "received"
        told: list[Execution | None] = []
        for traded, value, fees in zip(*(column[0].tolist() for column in fills), strict=True):
            if not traded:
                told.append(None)
            elif traded < 0:
                worth = (value - fees) / (1 - commission)
                told.append(Execution(-traded, worth, worth * commission))
            elif received:
                told.append(Execution(traded / (1 - commission), value + fees, (value + fees) * commission))
            else:
                worth = (value + fees) / (1 + commission)
                told.append(Execution(traded, worth, worth * commission))
        return told
