"""What moves an account but for trades: money paid in or out, dividends, interest, fees, splits.

Read when the books differ from the venue's, and booked where that explains all of the difference:

    paid in or out (CSD, CSW, JNLC, ACATC)    cash; no profit and no loss, see `apply`
    income and costs (DIV..., INT, FEE, ...)  cash; a profit or a loss
    a split (SPLIT)                           units times a ratio, entry price divided by it: worth as much as before

Anything else (a spin-off, a merger, another symbol) is not booked, and the books stay different. Kinds and fields:
https://docs.alpaca.markets/docs/account-activities
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import Tensor

from drl_agents.deployment.decider import Decider
from drl_agents.deployment.ledger import Ledger, Unreconciled
from environments.live.broker import Activity, Slack

if TYPE_CHECKING:
    from drl_agents.deployment.trader import PaperTrader

logger = logging.getLogger(__name__)

PAID = frozenset({"CSD", "CSW", "JNLC", "ACATC"})
INCOME = frozenset({"DIV", "DIVCGL", "DIVCGS", "DIVFT", "DIVNRA", "DIVROC", "DIVTXEX", "DIVWH", "CIL", "WH"})
# Of these a part may be in the books already: fees are known of an order, interest of a loan, cents within the slack.
COSTS = frozenset({"FEE", "CFEE", "INT", "INTNRA", "PTC"})
SPLIT = "SPLIT"


@dataclass
class Booked:
    """What was booked. told: all activities that were new; taken: those of them that it was made of. paid:
    currency paid in, < 0 out. splits: new units per old one, by symbol."""

    told: list[Activity] = field(default_factory=list)
    paid: float = 0.0
    splits: dict[str, float] = field(default_factory=dict)
    taken: list[Activity] = field(default_factory=list)


def book(
    activities: Sequence[Activity],
    ledger: Ledger,
    cash: float,
    positions: Mapping[str, float],
    slack: Slack,
    mark: Tensor,
) -> Booked:
    """Book `activities` into `ledger`, and hold it against the venue's `cash` and `positions` again.

    Of `COSTS` as much is taken as the cash asks for, between nothing and all of it.

    Args:
        activities: those that no books have. mark: (1, A) closes, currency.

    Raises:
        Unreconciled: the books differ still.
    """
    booked = Booked(list(activities))
    least = most = 0.0
    units: dict[str, float] = {}
    for activity in activities:
        if activity.status != "executed":
            continue
        if activity.kind in COSTS:
            least, most = least + min(activity.cash, 0.0), most + max(activity.cash, 0.0)
        elif activity.kind in PAID or activity.kind in INCOME:
            ledger.receive(activity.cash)
            booked.paid += activity.cash * (activity.kind in PAID)
        elif activity.kind == SPLIT:
            units[activity.symbol] = units.get(activity.symbol, 0.0) + activity.units
            ledger.receive(activity.cash)
        else:
            continue
        booked.taken.append(activity)
    for symbol, change in units.items():
        if not ledger.positions.get(symbol):
            raise Unreconciled(f"{symbol} was split, of which the books hold nothing")
        booked.splits[symbol] = ledger.split(symbol, change)
    costs = min(max(cash - ledger.cash, least), most)
    ledger.receive(costs)
    ledger.fees -= costs
    ledger.reconcile(cash, positions, slack, mark)
    return booked


def apply(booked: Booked, trader: PaperTrader) -> None:
    """Let a trader know what was booked at its newest bar.

    Its equity E has what was paid in, F, in it: returns and drawdowns are those of what was there before, so that all
    they are measured from (the highest equity, the day's first) is multiplied by E / (E - F), and `flow_factor` with it
    (a time-weighted return, as in the Global Investment Performance Standards).

    After a split history is asked for anew: the venue's bars before it are in new shares then.
    """
    if booked.paid:
        value = trader.equity
        if not value > booked.paid:
            raise Unreconciled(
                f"{booked.paid:g} was paid in, and the account is worth {value:g}: it had nothing before"
            )
        factor = value / (value - booked.paid)
        trader.flow_factor *= factor
        trader.peak *= factor
        trader.risk.peak *= factor
        trader.risk.day_equity *= factor
    if booked.splits:
        newest = trader.view.timestamp
        fresh = Decider(trader.bundle)
        fresh.see([*(bar for bar in trader.feed.history() if bar.timestamp < newest), trader.bar])
        fresh.restore(trader.decider.memory())
        trader.drop_held_back("a split changed what a share is")
        trader.decider = fresh
        trader.adjust_marks(booked.splits)
