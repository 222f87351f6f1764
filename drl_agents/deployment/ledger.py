"""The trader's own books: what the fills it was told of make of its account, held against the venue's.

The same functions book here, in training and in the back-test (`environments.portfolio`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from environments.live.broker import OrderResult, Slack
from environments.margin import MarginTerms
from environments.portfolio import Account, Fills, equity, open_account, settle, with_sign

Books = tuple[Account, float, tuple[float, ...]]  # account, fees, what was taken over from the venue's
OVERSPENT = 1e-6  # currency; what a sum of fills misses zero by is less


class Unreconciled(RuntimeError):
    """The venue's books differ from the trader's."""


class Ledger:
    """Books of one account of A symbols.

    cash: currency to begin with. fees: all costs so far, currency.
    """

    def __init__(self, symbols: Sequence[str], margin: MarginTerms, cash: float) -> None:
        self.symbols, self.margin = list(symbols), margin
        self._index = {symbol: i for i, symbol in enumerate(self.symbols)}
        self.account: Account = open_account(torch.tensor([cash], dtype=torch.float64), len(self.symbols))
        self.fees = self._unsettled = self._carried = 0.0
        self._taken_over = (0.0,) * (1 + len(self.symbols))  # currency, of cash and of each symbol

    def take_over(self, positions: Mapping[str, float], mark: Tensor) -> None:
        """Begin with what the account holds already, as if bought at the marks (1, A)."""
        shares = torch.zeros_like(self.account.shares)
        for symbol, units in positions.items():
            shares[0, self._index[symbol]] = units
        self.account = self.account._replace(shares=shares, entry=mark * (shares != 0))

    def settle(
        self, results: Sequence[OrderResult], mark: Tensor, price: np.ndarray | None = None, bars: int = 1
    ) -> bool:
        """Book a bar: the fills in it, and of a margin account what it owes.

        Args:
            results: what was filled of orders since the last bar, not of the whole orders.
            mark: (1, A) closes. price: (A,) the bar's own price at the fills, where the venue's prices include costs
            (see `Broker.costs_in_price`). bars: how many went by.

        Returns:
            True where the account had too little left at the close, so that its positions are closed by force.
        """
        self._book([result for result in results if not result.forced], price, bars)
        closed = False
        if not self.margin.cash_account:
            value = self.account.shares * mark
            short = -value.clamp(max=0).sum(-1)
            carry = self.margin.carry(self.account.cash, short)
            self.account = self.account._replace(cash=self.account.cash - carry)
            self.fees += float(carry)
            self._carried += float(carry)
            closed = self.short_of_margin(mark)
        if forced := [result for result in results if result.forced]:
            self._book(forced, None, 0)
            closed = True
        return closed

    def _book(self, results: Sequence[OrderResult], price: np.ndarray | None, bars: int) -> None:
        traded, value, fees = ([0.0] * len(self.symbols) for _ in range(3))
        for result in results:
            i = self._index[result.order.symbol]
            sign = 1 if result.order.side == "buy" else -1
            worth, costs = result.filled_value, result.fees
            if price is not None and np.isfinite(price[i]):
                # What was paid beyond the bar's price is a cost, as it is in training; the entry price is without it.
                worth = result.filled_quantity * float(price[i])
                costs += sign * (result.filled_value - worth)
            traded[i] += sign * result.filled_quantity
            value[i] += worth
            fees[i] += costs
        fills = Fills(*torch.tensor([[traded], [value], [fees]], dtype=torch.float64))
        before = self.account
        self.account = settle(before, fills, self.margin, bars)
        if self.margin.cash_account:
            # The environment never spends more than there is. A venue may: it fills at a price that nobody knew when
            # the order was sent, and Alpaca's paper accounts may borrow.
            cash = before.cash - (with_sign(fills.value, fills.traded) + fills.fees).sum(-1)
            if float(cash) < -OVERSPENT:
                self.account = self.account._replace(cash=cash)
        self.fees += float(fills.fees.sum())
        self._unsettled += float(fills.value.sum())

    def short_of_margin(self, mark: Tensor) -> bool:
        """Is a margin account's equity at marks (1, A) less than it must keep?"""
        value = self.account.shares * mark
        short = -value.clamp(max=0).sum(-1)
        return bool(self.account.cash + value.sum(-1) < self.margin.requirement(value.sum(-1) + short, short))

    def receive(self, cash: float) -> None:
        """Book currency that no trade brought; < 0 where it was taken."""
        self.account = self.account._replace(cash=self.account.cash + cash)

    def split(self, symbol: str, units: float) -> float:
        """Book `units` that a split added to a position, < 0 where it took some: the entry price moves the other way,
        so that units * entry stays. Returns the new units per old one."""
        i = self._index[symbol]
        shares, entry = self.account.shares.clone(), self.account.entry.clone()
        ratio = float((shares[0, i] + units) / shares[0, i])
        shares[0, i] += units
        entry[0, i] /= ratio
        self.account = self.account._replace(shares=shares, entry=entry)
        return ratio

    def equity(self, mark: Tensor) -> float:
        """Currency, at marks (1, A)."""
        return float(equity(self.account, mark))

    @property
    def cash(self) -> float:
        return float(self.account.cash)

    @property
    def positions(self) -> dict[str, float]:
        """Units by symbol, of all symbols."""
        return dict(zip(self.symbols, self.account.shares[0].tolist(), strict=True))

    def reconcile(self, cash: float, positions: Mapping[str, float], slack: Slack, mark: Tensor) -> None:
        """Hold the books against the venue's; where they differ within the slack, the venue's are taken over.

        What is taken over adds up in `adopted`.

        Raises:
            Unreconciled: they differ by more; the message has both.
        """
        own, price = self.positions, mark[0].tolist()
        unknown_fees = slack.of_traded * self._unsettled
        differing = sorted(set(positions) - set(own))
        for (symbol, units), worth in zip(own.items(), price, strict=True):
            allowed = slack.units + slack.relative * abs(units) + unknown_fees / max(worth, 1e-12)
            if not abs(positions.get(symbol, 0.0) - units) <= allowed:
                differing.append(symbol)
        # What is charged for a loan is the venue's to say, too: at another rate, later, or (of paper money) never.
        allowed = slack.cash + slack.relative * abs(cash) + unknown_fees + self._carried * (slack.of_traded > 0)
        if differing or not abs(cash - self.cash) <= allowed:
            raise Unreconciled(
                f"the broker's books differ: cash {cash} against {self.cash}, positions {dict(positions)} against {own}"
            )
        if slack.of_traded:
            more = cash - self.cash
            differences = [math.copysign(max(abs(more) - abs(self._carried), 0.0), more)]
            for (symbol, units), worth in zip(own.items(), price, strict=True):
                differences.append((positions.get(symbol, 0.0) - units) * worth)
            self._taken_over = tuple(map(sum, zip(self._taken_over, differences, strict=True)))
            self._adopt(cash, positions)
        self._unsettled = self._carried = 0.0

    def _adopt(self, cash: float, positions: Mapping[str, float]) -> None:
        shares = torch.tensor([[positions.get(symbol, 0.0) for symbol in self.symbols]], dtype=torch.float64)
        self.fees += self.cash - cash
        self.account = self.account._replace(
            cash=torch.tensor([cash], dtype=torch.float64),
            shares=shares,
            entry=self.account.entry.masked_fill(shares == 0, 0.0),
        )

    def force_closed(self, cash: float) -> None:
        """The venue closed everything: nothing is held, and `cash` is what there is."""
        self._adopt(cash, {})

    @property
    def adopted(self) -> float:
        """Currency, by how much the books were made to be the venue's so far: |sum of the differences of cash|, less
        what was booked for a loan, + sum over symbols of |sum of the differences of units * mark|.

        One difference may be rounding, or a fee that no order told; rounding cancels, and a sum that grows is of
        something that the books do not know.
        """
        return sum(map(abs, self._taken_over))

    def snapshot(self) -> Books:
        """The books as they are, for `put_back`; an account is never changed in place."""
        return self.account, self.fees, self._taken_over

    def put_back(self, books: Books) -> None:
        """Undo what was booked since `snapshot`."""
        self.account, self.fees, self._taken_over = books
        self._unsettled = self._carried = 0.0

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; `restore` takes it."""
        columns = {name: value[0].tolist() for name, value in self.account._asdict().items()}
        return {**columns, "fees": self.fees, "taken_over": list(self._taken_over)}

    def restore(self, books: Mapping[str, Any]) -> None:
        """Go on from `to_dict()`."""
        columns = {name: torch.tensor([books[name]], dtype=torch.float64) for name in Account._fields}
        taken_over = books.get("taken_over", [0.0] * (1 + len(self.symbols)))  # older journals have none
        self.put_back((Account(**columns), float(books["fees"]), tuple(taken_over)))
