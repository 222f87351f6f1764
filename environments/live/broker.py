"""What a trader needs of a venue and of its bars, and what passes between them."""

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
    """What has become of an order so far; quantities are of the whole order, not since the last time it was told.

    status: "filled", "partially_filled", "canceled" (nothing was filled), or whatever else the venue calls it. ended:
    nothing more will happen to it; a partially filled order that ended has lapsed.
    filled_quantity: units credited to the account or taken from it; what the venue kept of a buy as its fee is not
    among them. filled_value: their value at the fill price, currency. fees: currency, all costs, what was kept in units
    at the fill price. forced: the venue's own order, to close a position of an account that had too little left.
    broker_id: the venue's own name of the order, where it has one.
    """

    order: Order
    status: str
    filled_quantity: float
    filled_value: float
    fees: float
    forced: bool = False
    ended: bool = True
    broker_id: str = ""


@dataclass(frozen=True)
class Activity:
    """What moved an account but for a trade: money paid in or out, a dividend, interest, a fee, a split.

    kind: the venue's word for it, "CSD" or "SPLIT". cash: currency, < 0 where it was taken. symbol: "" where it is of
    none; units: what came to the position or went from it. day: ISO date. status: "executed", or another of the
    venue's where it does not hold.
    """

    id: str
    kind: str
    cash: float
    symbol: str = ""
    units: float = 0.0
    day: str = ""
    status: str = "executed"


@dataclass(frozen=True)
class Accepted:
    """The venue has the order. result: what it said of it, where it said so in full."""

    broker_id: str = ""
    result: OrderResult | None = None


@dataclass(frozen=True)
class Rejected:
    """The venue does not take the order, and said why; nothing will come of it."""

    code: int
    message: str


@dataclass(frozen=True)
class Ambiguous:
    """Nobody can tell yet whether the venue has the order: the answer did not come, or was no answer."""

    reason: str


@dataclass(frozen=True)
class NotSent:
    """The venue has not looked at the order (too many requests); it may be sent again."""

    reason: str


Outcome = Accepted | Rejected | Ambiguous | NotSent


class BrokerUnavailable(RuntimeError):
    """The venue cannot be asked. What is not known is not guessed: no answer is never an empty one."""


class NoBarYet(Exception):
    """No bar has closed within the time given."""


@dataclass(frozen=True)
class Slack:
    """How far a venue's books may be from the trader's without being wrong.

    relative, units, cash: rounding of positions (share, units) and of cash (currency). of_traded: share of the value
    traded since they last agreed that may be fees the orders did not tell. Within the slack the venue's books are
    taken over.
    """

    relative: float = 1e-9
    units: float = 1e-12
    cash: float = 1e-6
    of_traded: float = 0.0


class Broker(Protocol):
    """A venue that holds one account.

    slack: see `Slack`. costs_in_price: are a fill's costs (spread, slippage, impact) inside its price? The trader then
    keeps its books at the bar's own price, as training does, and counts the difference among the fees.
    refuses_uncovered: does it refuse an order for more than the account has, rather than execute what it can?
    """

    name: str
    slack: Slack
    costs_in_price: bool
    refuses_uncovered: bool

    def submit(self, orders: Sequence[Order]) -> list[Outcome]:
        """Hand in market orders in their order, those that free cash first; one outcome for each."""

    def results(self, orders: Sequence[Order]) -> Sequence[OrderResult]:
        """What has become of `orders`, and of the venue's own orders since the last call.

        Left out are orders of which there is nothing new, or of which the venue knows nothing.

        Raises:
            BrokerUnavailable: the venue does not answer.
        """

    def cancel(self, orders: Sequence[OrderResult]) -> None:
        """Ask for the rest of open orders to be given up; whether it was is told by `results`."""

    def cash(self) -> float:
        """Currency in the account. Raises as `results` does."""

    def positions(self) -> dict[str, float]:
        """Units held, by symbol; what is not held is left out. Raises as `results` does."""


class Feed(Protocol):
    """Where closed bars come from, one by one."""

    def history(self) -> Sequence[Bar]:
        """Closed bars up to now, oldest first."""

    def next_bar(self, timeout: float | None = None) -> Bar | None:
        """Wait for the next bar to close; None when there will be no more.

        timeout: seconds to wait at most, None for no limit.

        Raises:
            NoBarYet: none closed in that time.
        """
