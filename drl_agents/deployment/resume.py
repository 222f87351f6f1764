"""Going on with an account that traded before, from its journal and whatever happened at the venue since.

the newest bar is the journal's     orders of it that never went out are sent; if it was not decided on, it is now
bars have closed since              what was filled is booked with the newest of them, which is then decided on;
                                    nothing is sent for those before
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

from drl_agents.deployment.journal import HELD, BarRow
from drl_agents.deployment.reconcile import look_around, resolve
from drl_agents.deployment.trading_record import iso
from environments.errors import InputError
from environments.live.broker import Bar

if TYPE_CHECKING:
    from drl_agents.deployment.trader import PaperTrader

CLOSED = "closed by force"  # of the journal: the bar at which the venue closed the account's positions
KEPT = ("initial", "peak", "worst", "n_orders", "bars_done", "flow_factor")  # of a trader, in every row of the journal


def resume(trader: PaperTrader, row: BarRow, history: Sequence[Bar]) -> list[tuple[int, float, float]]:
    """Bring a trader from the journal's last row to the newest bar. Returns what is to be added to its curve.

    Raises:
        InputError: the account was closed by force, or the bars end before the journal does.
        Unreconciled: the books differ, or the venue does not know an order that it took.
        BrokerUnavailable: the venue does not answer.
    """
    if closed := trader.journal.fact(CLOSED):
        raise InputError(
            f"the account had too little left and was closed by force at {closed}: --fresh begins with what is left"
        )
    newest = history[-1]
    if newest.timestamp < row.timestamp:
        raise InputError(
            f"the journal is at bar {iso(row.timestamp)}, the newest bar is {iso(newest.timestamp)}: "
            "it is of another replay; give another --name, or --fresh"
        )
    missed = [bar for bar in history if bar.timestamp > row.timestamp]
    if known := history[: len(history) - len(missed)]:  # none where it was down for longer than history goes back
        trader.see_history(known)
    _restore(trader, row)
    _note(trader, row, len(missed))
    found = resolve(trader.broker, trader.journal, newest.timestamp)
    trader.books.restore(row.books["ledger"], row.books["n_fills"])
    if not missed:
        trader.books.compare_between_bars(newest.timestamp, found.found, trader.view.mark)
        trader.start_watch()
        if row.decided:
            trader.send(newest, [known.order for known in found.resend], again=True)
        else:
            trader.decide(newest)
        return []
    for bar in missed[:-1]:
        trader.see(bar)
        trader.skip(bar, "it closed while the trader was down")
    trader.start_watch()
    trader.see(missed[-1])
    return trader.trade(missed[-1])


def _restore(trader: PaperTrader, row: BarRow) -> None:
    trader.books.restore(row.books["ledger"], row.books["n_fills"])
    trader.risk.restore(row.books["risk"])
    if row.books.get("memory_of", trader.bundle.id) == trader.bundle.id:  # another model's says nothing to this one
        trader.decider.restore(row.books.get("memory"))
    for name in KEPT:
        setattr(trader, name, row.books.get(name, 1.0))  # the newest of them is not in older journals
    trader.flatten = bool(trader.journal.fact("flatten"))
    waiting = {bar: [] for bar in trader.journal.decided_bars(trader.decider.lag - 1)}
    for known in trader.journal.open_orders():
        if known.state == HELD and known.decided_at in waiting:
            waiting[known.decided_at].append(known.order)
    trader.held_back = deque(waiting.values())


def _note(trader: PaperTrader, row: BarRow, missed: int) -> None:
    """Write the restart down; a model that was changed meanwhile does not send what the other held back."""
    journal, before = trader.journal, trader.journal.fact("bundle")
    if before != trader.bundle.id:
        trader.drop_held_back("the model was changed while the trader was down")
        journal.event("model", f"{before} -> {trader.bundle.id}", row.timestamp)
        journal.remember("bundle", trader.bundle.id)
    journal.event("restart", f"{missed} bars behind", row.timestamp)
    look_around(trader.broker, journal, trader.view.timestamp or row.timestamp)
