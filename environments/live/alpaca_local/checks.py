"""Which orders the account can take on: what there is to pay with, to sell, and what could trade with itself."""

from __future__ import annotations

from collections.abc import Iterable

from environments.live.alpaca_local.books import Books
from environments.live.alpaca_local.orders import Terms, VenueOrder
from environments.live.alpaca_local.refusal import Refused, forbidden, malformed
from environments.live.alpaca_local.wire import Names, decimal

# Sums of floats: what differs by less is the same.
SLACK = 1e-9


def basis(terms: Terms, mark: float) -> float:
    """The price an order is valued at: its limit, else its stop, else the mark."""
    return terms.limit_price or terms.stop_price or mark


def spendable(books: Books, orders: Iterable[VenueOrder]) -> float:
    """Currency that a cash account's next buy may use: cash, less the open buys, plus what open market sells bring.

    All market orders of a bar are matched together, sells first, so that their proceeds are there when it opens.
    """
    left = books.cash
    for order in orders:
        mark = books.marks[order.terms.asset]
        if order.buying:
            price = basis(order.terms, mark)
            left -= order.left(price) * price
        elif order.terms.type == "market":
            left += min(order.left(mark), max(books.units[order.terms.asset], 0.0)) * mark
    return left


def exposure(books: Books, orders: Iterable[VenueOrder]) -> tuple[float, list[float]]:
    """Gross exposure, currency at the marks, and units (A,), after all open orders have filled."""
    units = list(books.units)
    for order in orders:
        quantity = order.left(books.marks[order.terms.asset])
        units[order.terms.asset] += quantity if order.buying else -quantity
    return sum(abs(n) * mark for n, mark in zip(units, books.marks, strict=True)), units


def buying_power(books: Books, orders: Iterable[VenueOrder]) -> float:
    """Currency that the next order which opens something may come to."""
    if books.env.margin.cash_account:
        return max(spendable(books, orders), 0.0)
    return max(books.env.margin.margin * books.equity - exposure(books, orders)[0], 0.0)


def available(books: Books, orders: Iterable[VenueOrder], asset: int) -> float:
    """Units that are held and in no open sale."""
    mark = books.marks[asset]
    sold = sum(order.left(mark) for order in orders if order.terms.asset == asset and not order.buying)
    return max(books.units[asset] - sold, 0.0)


def position_after(books: Books, orders: Iterable[VenueOrder], asset: int) -> float:
    """Units of the asset once its open market orders have filled, as they will before anything else."""
    units, mark = books.units[asset], books.marks[asset]
    for order in orders:
        if order.terms.asset == asset and order.terms.type == "market":
            units += order.left(mark) if order.buying else -order.left(mark)
    return 0.0 if abs(units) <= SLACK * abs(books.units[asset]) else units


def check_side(terms: Terms, quantity: float, books: Books, orders: list[VenueOrder], names: Names) -> None:
    """An order may not take a position through zero, and only whole shares are sold short.

    Alpaca counts a closing order as done when it has filled; here, where all market orders of a bar fill together when
    it opens, one that is open counts as done, so that a close and the order that opens the other side can follow each
    other. Whether Alpaca takes a part of a share that buys back a short position is not documented; it is taken here.
    https://docs.alpaca.markets/docs/fractional-trading, https://github.com/alpacahq/alpaca-trade-api-python/issues/129

    Raises:
        Refused: 403, more is sold, or bought back, than the position has; 422, a part of a share would be sold short.
    """
    held, sign = position_after(books, orders, terms.asset), 1 if terms.side == "buy" else -1
    if held * sign < 0:
        resting = [o for o in orders if o.terms.type != "market" and o.terms.asset == terms.asset]
        mark = books.marks[terms.asset]
        free = max(abs(held) - sum(o.left(mark) for o in resting if o.terms.side == terms.side), 0.0)
        if quantity <= free * (1 + SLACK):
            return
        if sign > 0 or (terms.qty is not None and _whole(quantity)):
            raise _too_little(terms, quantity, free, books, names)
    if sign < 0 and (terms.qty is None or not _whole(quantity)):
        raise malformed("fractional orders cannot be sold short")


def _whole(quantity: float) -> bool:
    return abs(quantity - round(quantity)) <= SLACK * quantity


def check(terms: Terms, books: Books, orders: list[VenueOrder], names: Names) -> None:
    """Can the account take on an order of these terms beside its open `orders`?

    A market order is valued at the mark, without its costs: those are left to the fill, which scales it where the
    cash does not suffice.

    Raises:
        Refused: 403, it is too small, or there is too little to sell or to pay with; see `check_side` too.
    """
    asset, margin = terms.asset, books.env.margin
    mark, rules, crypto = books.marks[asset], books.env.rules, names.asset_class == "crypto"
    if mark <= 0:
        raise forbidden(f"asset {names.wire[asset]} has no price yet")
    price = basis(terms, mark)
    quantity = terms.qty if terms.qty is not None else terms.notional / price
    cost = quantity * price
    if terms.side == "buy" and not (margin.shorting and books.units[asset] < 0):
        least = float(rules.min_notional[asset])
        if cost < least * (1 - SLACK):
            raise forbidden(f"cost basis must be >= minimal amount of order {decimal(least)}")
        smallest = float(rules.min_quantity[asset])
        if quantity < smallest * (1 - SLACK):
            raise forbidden(f"qty must be >= minimal qty of order {decimal(smallest)}")
    if margin.shorting:
        check_side(terms, quantity, books, orders, names)
    elif terms.side == "sell":
        free = available(books, orders, asset)
        if quantity > free * (1 + SLACK):
            raise _too_little(terms, quantity, free, books, names)
        return
    if margin.cash_account:
        room = spendable(books, orders)
        if cost > room + SLACK * (abs(room) + cost):
            if crypto:
                shown = f"(requested: {decimal(cost)}, available: {decimal(max(room, 0.0))})"
                raise forbidden(f"insufficient balance for USD {shown}")
            raise forbidden("insufficient buying power", buying_power=decimal(max(room, 0.0)), cost_basis=decimal(cost))
        return
    before, units = exposure(books, orders)
    after = units[asset] + (quantity if terms.side == "buy" else -quantity)
    gross = before + (abs(after) - abs(units[asset])) * mark
    limit = margin.margin * books.equity
    if abs(after) > abs(units[asset]) and gross > limit * (1 + SLACK):
        room = decimal(max(limit - before, 0.0))
        raise forbidden("insufficient buying power", buying_power=room, cost_basis=decimal(cost))


def _too_little(terms: Terms, quantity: float, free: float, books: Books, names: Names) -> Refused:
    held, name = books.units[terms.asset], names.wire[terms.asset]
    if names.asset_class == "crypto":
        coin = name.split("/")[0]
        return forbidden(
            f"insufficient balance for {coin} (requested: {decimal(quantity)}, available: {decimal(free)})",
            balance=decimal(held), symbol=coin,
        )  # fmt: skip
    if held <= 0 and not books.env.margin.shorting:
        return forbidden("account is not allowed to short")
    return forbidden(
        f"insufficient qty available for order (requested: {decimal(quantity)}, available: {decimal(free)})",
        available=decimal(free), existing_qty=decimal(held), held_for_orders=decimal(abs(held) - free), symbol=name,
    )  # fmt: skip


def check_wash(terms: Terms, orders: Iterable[VenueOrder]) -> None:
    """An order may not be able to trade with an open one of the same account.

    https://docs.alpaca.markets/docs/user-protection (wash trade protection)

    Raises:
        Refused: 403, with the id of the other order.
    """
    for other in orders:
        if other.terms.asset != terms.asset or other.terms.side == terms.side:
            continue
        if terms.type == other.terms.type == "limit":
            limits = (terms.limit_price, other.terms.limit_price)
            buy, sell = limits if terms.side == "buy" else limits[::-1]
            if buy < sell:
                continue
            reason = "opposite side limit order exists"
        else:
            reason = "opposite side market/stop order exists"
        raise forbidden(
            "potential wash trade detected. use complex orders", existing_order_id=other.id, reject_reason=reason
        )
