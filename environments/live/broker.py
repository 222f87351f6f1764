"""What a trader needs of a broker, and what passes between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np


@dataclass(frozen=True, eq=False)
class Bar:
    """One closed bar of A assets. timestamp: UTC nanoseconds. The arrays are (A,) float64, NaN where an asset has no
    bar; extra: (A, E) further columns."""

    timestamp: int
    open: np.ndarray
    high: np.ndarray
    low: np.ndarray
    close: np.ndarray
    volume: np.ndarray
    extra: np.ndarray


@dataclass(frozen=True)
class Order:
    """A market order. client_order_id: unique, chosen by the trader. quantity: > 0 units; side: "buy" or "sell"."""

    client_order_id: str
    symbol: str
    side: str
    quantity: float


@dataclass(frozen=True)
class OrderResult:
    """What became of an order. status: "filled", "partially_filled" (the rest lapsed), "canceled" (nothing was filled).

    filled_quantity: units credited to the account or taken from it; what the venue kept of a buy as its fee is not
    among them. filled_value: their value at the fill price, currency. fees: currency, all costs, what was kept in units
    at the fill price. forced: the venue's own order, to close a position of an account that had too little left.
    """

    order: Order
    status: str
    filled_quantity: float
    filled_value: float
    fees: float
    forced: bool = False


class Broker(Protocol):
    """A venue that holds one account and tells when a bar has closed."""

    name: str

    def history(self) -> Sequence[Bar]:
        """Closed bars up to now, oldest first."""

    def submit(self, orders: Sequence[Order]) -> None:
        """Hand in market orders."""

    def next_bar(self) -> Bar | None:
        """Wait for the next bar to close; None when there will be no more."""

    def results(self) -> Sequence[OrderResult]:
        """Orders that ended since the last call."""

    def cash(self) -> float:
        """Currency in the account."""

    def positions(self) -> dict[str, float]:
        """Units held, by symbol; what is not held is left out."""
