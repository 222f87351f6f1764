"""Take-over: another model goes on with a trader's account, at a bar boundary, where a hook says so."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Protocol

from drl_agents.deployment.bundle import Bundle
from drl_agents.deployment.decider import Decider
from drl_agents.deployment.registry import slot_of
from drl_agents.deployment.terms import POSITIONS
from environments.errors import InputError
from environments.live.broker import Bar

if TYPE_CHECKING:
    from drl_agents.deployment.trader import PaperTrader

logger = logging.getLogger(__name__)


class Hook(Protocol):
    """Who may change the model at a bar boundary."""

    def at_boundary(self, trader: PaperTrader, bar: Bar) -> None:
        """Called after every bar, when the books are reconciled and before the model decides: orders wait for it."""

    def after_orders(self, trader: PaperTrader, bar: Bar) -> None:
        """Called when the orders decided at the bar were sent: here there is time."""


def take_over(trader: PaperTrader, bundle: Bundle, positions: str) -> None:
    """Have `trader` trade with `bundle` from this boundary on.

    Orders held back are dropped; none is in flight at a boundary whose books are reconciled.

    positions: "inherit": the new model decides at once on what is held. "flatten": all is closed first, the new model
    decides from the next bar on.

    Raises:
        InputError: the bundle is of another market, or `positions` is neither.
    """
    if positions not in POSITIONS:
        raise InputError(f"positions={positions!r}: accepted are {', '.join(POSITIONS)}")
    own, other = slot_of(trader.bundle.manifest["market"]), slot_of(bundle.manifest["market"])
    if own != other:
        raise InputError(f"bundle {bundle.id[:12]} trades {other}, this trader {own}")
    fresh = Decider(bundle)
    # As far as the trader is: a bar may have closed meanwhile, and comes next.
    newest = trader.view.timestamp
    before_it = [bar for bar in trader.feed.history() if bar.timestamp < newest]
    fresh.see([*before_it, trader.bar])
    trader.drop_held_back("the model was replaced")
    before, trader.decider = trader.bundle.id, fresh
    trader.ledger.margin = fresh.margin
    trader.flatten = positions == "flatten" and any(trader.ledger.positions.values())
    if trader.journal is not None:
        with trader.journal.transaction():
            trader.journal.remember("bundle", bundle.id)
            trader.journal.remember("flatten", trader.flatten)
            trader.journal.event("model", f"{before} -> {bundle.id}, positions {positions}", newest)
    logger.info("model %s replaces %s", bundle.id[:12], before[:12])
