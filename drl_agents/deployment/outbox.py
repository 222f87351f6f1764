"""Orders between a decision and the broker: in what order they go, cut to what the account can cover, written down."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from drl_agents.deployment.decider import Decider
from drl_agents.deployment.journal import BLOCKED, HELD, NEVER_SENT, Journal
from drl_agents.deployment.ledger import Ledger
from drl_agents.deployment.reconcile import LookupBroker
from environments.live.broker import Broker, Order
from environments.live.risk import Blocked

ROUNDING = 1e-9  # of a quantity: what differs by less is the same

OPENS = "-open"  # at the end of an id: what an order through zero opens, once its other part has closed what was held


def sendable(due: Sequence[Order], decider: Decider, broker: Broker, ledger: Ledger) -> list[Order]:
    """`due` in the order to be sent, what makes positions smaller first: it frees what the others need. Where the
    broker refuses what cannot be covered, orders that waited are cut to what the account holds by now, and those
    through zero are sent in two parts."""
    held = ledger.positions
    if broker.refuses_uncovered and due:
        due = decider.fitted(due, ledger.account) if decider.lag > 1 else due
        due = in_parts(due, held)

    def grows(order: Order) -> bool:
        units = held[order.symbol]
        after = units + order.quantity * (1 if order.side == "buy" else -1)
        return order.client_order_id.endswith(OPENS) or abs(after) > abs(units)

    return sorted(due, key=grows) if len(due) > 1 else list(due)


def in_parts(orders: Sequence[Order], held: Mapping[str, float]) -> list[Order]:
    """`orders` with those that would take a position through zero as two: what closes it, under the order's own id, and
    what opens the other side, under that id with `OPENS`. No venue flips a position in one order.

    Of 13.5 to be sold with 10.5 held: 10.5 close the position, 3 are sold short. held: units by symbol.
    """
    parts = []
    for order in orders:
        units, buying = held[order.symbol], order.side == "buy"
        rest = order.quantity - abs(units)
        if units == 0 or (units < 0) != buying or rest <= ROUNDING * order.quantity:
            parts.append(order)
            continue
        # What is sold short is whole shares, up to the rounding of the difference.
        rest = rest if buying else float(round(rest))
        parts += [
            replace(order, quantity=abs(units)),
            replace(order, quantity=rest, client_order_id=order.client_order_id + OPENS),
        ]
    return [order for order in parts if order.quantity > 0]


def used_before(broker: LookupBroker, orders: Sequence[Order]) -> list[Blocked]:
    """Those of a new trader's first orders whose ids an earlier trader of the account used after the same bar: what
    came of them is among the positions that were taken over already. One of which nothing was filled yet is shared."""
    why = "an earlier trader of this account sent it after the same bar"
    known = [(order, broker.lookup(order)) for order in orders]
    return [
        Blocked(order, why) for order, sent in known if sent is not None and (sent.ended or sent.filled_quantity > 0)
    ]


def write_down(
    journal: Journal,
    bar: int,
    decided: Sequence[Order],
    due: Sequence[Order],
    blocked: Sequence[Blocked],
    waiting: Iterable[Sequence[Order]],
    lag: int,
) -> None:
    """Write what was decided at `bar`, what is sent after it, and what is not; inside a transaction.

    due: orders to be sent now, decided now or held back until now, those through zero in two parts. blocked: those of
    them that are not sent. waiting: orders still held back, by decision. lag: of the decisions, in bars.
    """
    sent = {order.client_order_id: order for order in due}
    for order in decided:
        name = order.client_order_id
        journal.intend(sent.get(name, order), bar, bar if name in sent else None)
    new = {order.client_order_id for order in decided}
    for order in due:
        if order.client_order_id.endswith(OPENS):
            journal.intend(order, bar, bar)
        elif order.client_order_id not in new:
            journal.due(order, bar)
    for refused in blocked:
        journal.mark(refused.order.client_order_id, BLOCKED, refused.reason, ended=True)
    if lag == 1:
        return
    kept = sent.keys() | {order.client_order_id for orders in waiting for order in orders}
    for known in journal.open_orders():
        name = known.order.client_order_id
        if known.state == HELD and name not in kept:
            journal.mark(name, NEVER_SENT, "nothing is left to cover it", ended=True)
