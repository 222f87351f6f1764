"""Journal against venue: what became of the orders that a trader meant to send before it was interrupted.

An order is known by its client_order_id, which was on disk before it was sent:

    the venue has it                       its state and fills are taken over
    the venue has it not, it was never     sent again under the same id if its bar is still the newest (the venue takes
    heard of since it was written down     an id once, so it cannot be done twice); else it is marked never sent
    the venue has it not, but had          the journal is not of this account: refused
"""

from __future__ import annotations

import logging
import re
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Protocol

from drl_agents.deployment.journal import AMBIGUOUS, HELD, INTENDED, NEVER_SENT, Journal, OpenOrder
from drl_agents.deployment.ledger import Unreconciled
from environments.data.sessions import DAY
from environments.errors import InputError
from environments.live.broker import Activity, Broker, Order, OrderResult

OURS = re.compile(r"(?P<model>[0-9a-f]{12})-(?P<bar>[0-9]{15,20})-.+")  # ids that `Decider.as_orders` makes
SEEN = "activities"  # of the journal: ids of the account's activities that are in the books
WINDOW = 5 * DAY  # activities are dated by the day, and some come late


class LookupBroker(Broker, Protocol):
    """A broker that can be asked for any order by its id."""

    def lookup(self, order: Order) -> OrderResult | None:
        """The order as the venue has it; None where the venue says it has none. Raises BrokerUnavailable."""

    def foreign_orders(self, known: Collection[str]) -> list[str]:
        """Ids of open orders at the venue that are not among `known`."""

    def latest_orders(self) -> list[str]:
        """Ids of the newest orders at the venue, open or ended."""

    def activities(self, since: int) -> list[Activity]:
        """What moved cash or units since that day but for trades, oldest first. since: UTC nanoseconds."""


logger = logging.getLogger(__name__)


@dataclass
class Resolution:
    """resend: orders to be sent again. found: what the venue told of orders it has."""

    resend: list[OpenOrder] = field(default_factory=list)
    found: list[OrderResult] = field(default_factory=list)


def resolve(broker: LookupBroker, journal: Journal, newest_bar: int) -> Resolution:
    """Ask the venue for every order that is not known to have ended, and write down what it has never seen.

    newest_bar: the newest closed bar: an order that was to be sent after it is still wanted.

    Raises:
        BrokerUnavailable: the venue does not answer.
        Unreconciled: the venue does not know an order that it took.
    """
    resolution = Resolution()
    for known in journal.open_orders():
        if known.state == HELD:
            continue
        result = broker.lookup(known.order)
        if result is not None:
            resolution.found.append(result)
        elif known.state not in (INTENDED, AMBIGUOUS):
            raise Unreconciled(
                f"the broker does not know order {known.order.client_order_id}, which it had taken ({known.state}): "
                "is this journal of another account? give another --name"
            )
        elif known.due_at == newest_bar:
            resolution.resend.append(known)
        else:
            journal.mark(known.order.client_order_id, NEVER_SENT, "its bar is over", ended=True)
    return resolution


def late_arrivals(broker: LookupBroker, journal: Journal, bars: int) -> list[OrderResult]:
    """Orders that were taken for never sent and that the venue has after all: a request may outlive its connection.

    bars: how many of the last decided bars' orders are looked up.
    """
    decided = journal.decided_bars(bars)
    found = [broker.lookup(known.order) for known in journal.lost_orders(decided[0])] if decided else []
    return [result for result in found if result is not None]


def look_around(broker: LookupBroker, journal: Journal, newest: int) -> None:
    """At the start: is the account ours alone? Open orders of others are left alone, but told.

    Every trader's ids begin with its model and the bar that was decided on. One that is not in the journal, and is
    open or was sent after the newest bar, is of a trader that runs beside this one: they would halt each other. A new
    journal of the same model takes such an order for its own instead, as decided again it has the same id (see
    `outbox.used_before`).

    newest: the newest closed bar.

    Raises:
        InputError: another trader trades the account. BrokerUnavailable: the venue does not answer.
    """
    known = journal.order_ids()
    is_open = broker.foreign_orders(known)
    again = str(journal.fact("bundle"))[:12] if journal.last_bar() is None else None
    for name in dict.fromkeys([*is_open, *(set(broker.latest_orders()) - known)]):
        sent = OURS.fullmatch(name)
        if sent is None or sent["model"] == again or (name not in is_open and int(sent["bar"]) < newest):
            continue
        raise InputError(
            f"order {name} of this account is another trader's (model {sent['model']}): stop that one and begin after "
            "the next bar, or use another account"
        )
    for name in is_open:
        logger.warning("order %s at the broker is not this trader's: it is left alone", name)
        journal.event("foreign order", name)
    if journal.fact(SEEN) is None or journal.last_bar() is None:  # what is in the account's cash and positions by now
        journal.remember(SEEN, [activity.id for activity in broker.activities(newest - WINDOW)])
