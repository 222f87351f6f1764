"""What /v2/account/activities tells: fills, fees, interest, and what was no trade: payments, dividends, splits.

https://docs.alpaca.markets/docs/account-activities
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterator
from typing import Any
from uuid import UUID

from environments.live.alpaca_local.account import ACCOUNT_ID
from environments.live.alpaca_local.books import Execution
from environments.live.alpaca_local.orders import VenueOrder
from environments.live.alpaca_local.wire import Names, decimal, rfc3339


class ActivityLog:
    """The newest `kept` activities, oldest first.

    fee_in: where the commission is taken, see `Frictions`. Alpaca tells of crypto fees at the end of the day; here each
    follows its fill.
    """

    def __init__(self, names: Names, fee_in: str, kept: int, seed: int) -> None:
        self.names, self.fee_in = names, fee_in
        self._told: deque[dict[str, Any]] = deque(maxlen=kept)
        self._ids = random.Random(f"activities {seed}")

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self._told)

    def fill(self, order: VenueOrder, event: str, execution: Execution) -> None:
        """A fill of an order, and its fee. event: "fill" or "partial_fill"."""
        stamp, symbol, price = order.updated, self.names.wire[order.terms.asset], decimal(execution.price)
        self._tell(
            "FILL", stamp, transaction_time=rfc3339(stamp), type=event, price=price, qty=decimal(execution.quantity),
            side=order.terms.side, symbol=symbol, leaves_qty=decimal(order.left(execution.price)), order_id=order.id,
            cum_qty=decimal(order.filled), order_status=order.status,
        )  # fmt: skip
        if not execution.fee:
            return
        kind = "CFEE" if self.names.asset_class == "crypto" else "FEE"
        if order.buying and self.fee_in == "received":
            kept = decimal(-execution.fee / execution.price)
            self._charge(kind, stamp, "fee in the coin received", "0", qty=kept, price=price, symbol=symbol)
        else:
            self._charge(kind, stamp, "fee of the trade", decimal(-execution.fee), symbol=symbol)

    def interest(self, stamp: int, amount: float) -> None:
        """What a margin account was charged for a bar, currency."""
        self._charge("INT", stamp, "borrow fee and margin interest of the bar", decimal(-amount))

    def cash(self, stamp: int, kind: str, amount: float, symbol: str | None) -> None:
        """Cash that no trade moved: currency, < 0 where it was taken."""
        own = {} if symbol is None else {"symbol": symbol}
        self._charge(kind, stamp, "", decimal(amount), **own)

    def split(self, stamp: int, symbol: str, before: float, after: float, mark: float) -> None:
        """A split of a position of `before` units at `mark` into `after`: Alpaca tells it in two parts."""
        moved = f"From QTY:{decimal(before)}, To QTY:{decimal(after)}, Position Value:{decimal(abs(before) * mark)}"
        parts = (("REMOVE", -before, mark), ("ADD", after, mark * before / after))
        for word, units, price in parts:
            own = {"symbol": symbol, "qty": decimal(units), "price": decimal(price)}
            self._charge("SPLIT", stamp, f"{word}, {moved}", "0", **own)

    def _charge(self, kind: str, stamp: int, description: str, net_amount: str, **fields: str) -> None:
        day = rfc3339(stamp)[:10]
        self._tell(kind, stamp, date=day, description=description, net_amount=net_amount, status="executed", **fields)

    def _tell(self, kind: str, stamp: int, **fields: str) -> None:
        digits = "".join(c for c in rfc3339(stamp)[:19] if c.isdigit())
        number = f"{digits}000::{UUID(int=self._ids.getrandbits(128), version=4)}"
        self._told.append({"id": number, "account_id": ACCOUNT_ID, "activity_type": kind, **fields})
