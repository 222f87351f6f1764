"""Orders between a decision and the broker: in what order they go, cut to what the account can cover, written down."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from drl_agents.deployment.decider import Decider
from drl_agents.deployment.journal import BLOCKED, HELD, NEVER_SENT, Journal
from drl_agents.deployment.ledger import Ledger
from drl_agents.deployment.reconcile import LookupBroker
from environments.live.broker import Broker, Order
from environments.live.risk import Blocked


def sendable(due: Sequence[Order], decider: Decider, broker: Broker, ledger: Ledger) -> list[Order]:
    """`due` in the order to be sent, what makes positions smaller first: it frees what the others need. Where the
    broker refuses what cannot be covered, orders that waited are cut to what the account holds by now."""
    if broker.refuses_uncovered and decider.lag > 1 and due:
        due = decider.fitted(due, ledger.account)
    held = ledger.positions

    def growth(order: Order) -> float:
        units = held[order.symbol]
        return abs(units + order.quantity * (1 if order.side == "buy" else -1)) - abs(units)

    return sorted(due, key=lambda order: growth(order) > 0) if len(due) > 1 else list(due)


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

    due: orders to be sent now, decided now or held back until now. blocked: those of them that are not sent. waiting:
    orders still held back, by decision. lag: of the decisions, in bars.
    """
    sent = {order.client_order_id for order in due}
    for order in decided:
        journal.intend(order, bar, bar if order.client_order_id in sent else None)
    new = {order.client_order_id for order in decided}
    for order in due:
        if order.client_order_id not in new:
            journal.due(order, bar)
    for refused in blocked:
        journal.mark(refused.order.client_order_id, BLOCKED, refused.reason, ended=True)
    if lag == 1:
        return
    kept = sent | {order.client_order_id for orders in waiting for order in orders}
    for known in journal.open_orders():
        name = known.order.client_order_id
        if known.state == HELD and name not in kept:
            journal.mark(name, NEVER_SENT, "nothing is left to cover it", ended=True)
