"""Succession: a challenger runs in the champion's shadow, takes over at a bar boundary, and is rolled back if it fails.

A trader calls `Succession.at_boundary` after every bar, when its books are reconciled and before its model decides, and
`Succession.after_orders` when its orders were sent. The registry's pointers say who trades; the trader follows them:

    a challenger waits        its decisions are booked in its shadow, for as many bars as its terms say
    the shadow is over        refused with its reasons, or made champion at the next boundary: the pointer is swapped,
                              the trader follows
    it took over              a health window: a loss, or less than its back-test predicts, rolls it back
    the pointer was changed   by hand, by another process: the trader follows

Nothing is promoted while the trader is not ACTIVE, stale or unreconciled, or has orders open; it is tried again at the
next bar. Whatever is wrong with a candidate, the champion goes on.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from drl_agents.deployment.bundle import Bundle
from drl_agents.deployment.forecast import Forecast
from drl_agents.deployment.health import growth_of, heldout_returns, predict, unhealthy
from drl_agents.deployment.health_window import HealthWindow
from drl_agents.deployment.pointers import read_pointer
from drl_agents.deployment.registry import Registry, slot_of, study_of
from drl_agents.deployment.shadow import Shadow
from drl_agents.deployment.terms import Terms, Trader
from drl_agents.deployment.trading_record import iso
from drl_agents.evaluation.bootstrap import block_length, paired_sharpe_test
from environments.errors import InputError
from environments.live.broker import Bar, BrokerUnavailable

logger = logging.getLogger(__name__)


class Succession:
    """Tries the challengers of one slot. One trader at a time attends a slot: used as a context manager it says so to
    `scripts/auto_replace_best.py`, which then leaves promotions to it."""

    def __init__(self, registry: Registry, slot: str) -> None:
        self.registry, self.slot = registry, slot
        self.shadow: Shadow | None = None
        self._terms = Terms()
        self._beside: list[float] = []  # the champion's equity on the shadow's bars
        self._safe = False  # may the trader's model change at this bar?
        self._passed = False  # is the shadow over, with nothing against its model?
        self._watching = False  # is the health window open?
        self._told = ""
        self._noted = False  # is it known whose account follows the champion?
        self._forecast = Forecast()
        self._attendance = registry.attendance(slot)
        self._health = HealthWindow(registry, slot)

    def __enter__(self) -> Succession:
        self._attendance.acquire()
        block_length(np.arange(16.0))  # loads what a bootstrap needs: that takes seconds, which a bar boundary has not
        return self

    def __exit__(self, *rest: object) -> None:
        self._attendance.release()

    def at_boundary(self, trader: Trader, bar: Bar) -> None:
        """Change the trader's model where that is due; what goes wrong here is told, and the champion goes on."""
        with self._told_once():
            self._safe, self._watching = False, True
            settled = trader.reconciled and not trader.stale and trader.open_orders == 0
            self._watching = self._health.look(trader, bar, settled)
            if self._watching:
                return
            self._safe = settled and trader.state == "ACTIVE"
            self._follow(trader, self._safe)
            if self._safe and self._passed and self.shadow is not None:
                with self._refused_where_it_fails():
                    self._promote(trader, bar)

    def after_orders(self, trader: Trader, bar: Bar) -> None:
        """Try the challenger on this bar. The orders of the trader do not wait for it."""
        with self._told_once():
            if not self._noted:
                self.registry.note_trader(self.slot, trader.folder)
                self._noted = True
            self._forecast.show(trader, bar, self._terms)
            if not self._watching:
                with self._refused_where_it_fails():
                    self._try_challenger(trader, bar)

    @contextlib.contextmanager
    def _told_once(self) -> Iterator[None]:
        try:
            yield
        except (InputError, OSError, BrokerUnavailable) as error:
            if str(error) != self._told:  # the same at every bar is told once
                logger.warning("succession: %s", error)
            self._told = str(error)

    @contextlib.contextmanager
    def _refused_where_it_fails(self) -> Iterator[None]:
        try:
            yield
        except (OSError, BrokerUnavailable):
            raise
        except Exception as error:  # damaged, of another market, a network of the user's own that raises: its end
            why = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
            self._refuse(None if self.shadow is None else self.shadow.bundle, [why], {})

    # ------------------------------------------------------------------------------------------- following

    def _follow(self, trader: Trader, safe: bool) -> None:
        """Trade with the champion the pointer names, if another process changed it."""
        named = self.registry.champion_id(self.slot)
        if named is None or named == trader.bundle.id or not safe:
            return
        champion = self.registry.champion(self.slot)
        trader.replace_model(champion, self._terms.positions)
        self.registry.record("followed", champion.id, study_of(champion), [], {"slot": self.slot})

    # ---------------------------------------------------------------------------------------------- shadow

    def _try_challenger(self, trader: Trader, bar: Bar) -> None:
        self._passed = False
        if not self.registry.challenger_file(self.slot).exists():
            self.shadow = None
            return
        challenger = self.registry.challenger_id(self.slot)
        if challenger == trader.bundle.id:  # a crash came between its promotion and here
            self.registry.withdraw(self.slot)
            return
        if self.shadow is None or self.shadow.bundle.id != challenger:
            self._begin_shadow(trader, bar)
        else:
            self._advance(trader, bar)
        if self.shadow.bars >= self._terms.shadow_bars and self._safe:
            reasons = self._shadow_reasons(self.shadow, self._terms)
            self._passed = not reasons
            if reasons:
                self._refuse(self.shadow.bundle, reasons, {"shadow": self._facts()})

    def _begin_shadow(self, trader: Trader, bar: Bar) -> None:
        self.shadow = None
        challenger = self.registry.challenger(self.slot)
        own = slot_of(challenger.manifest["market"])
        if own != self.slot:
            raise InputError(f"bundle {challenger.id[:12]} trades {own}, not {self.slot}")
        self._terms = Terms.of(read_pointer(self.registry.challenger_file(self.slot)))
        # As far as the trader is: a bar may have closed meanwhile, and comes next.
        history = [one for one in trader.feed.history() if one.timestamp <= bar.timestamp]
        self.shadow = Shadow(challenger, history, trader.equity)
        self._beside = [trader.equity]
        facts = {"slot": self.slot, "champion": trader.bundle.id, "terms": asdict(self._terms)}
        self.registry.record("shadow", challenger.id, study_of(challenger), [], {**facts, "bar": iso(bar.timestamp)})

    def _advance(self, trader: Trader, bar: Bar) -> None:
        """Let the shadow see the bar, and those the trader skipped before it."""
        seen, missed = self.shadow.timestamp, []
        if bar.timestamp - seen > self.shadow.timeframe:
            missed = [b for b in trader.feed.history() if seen < b.timestamp < bar.timestamp]
        for one in (*missed, bar):
            self.shadow.see(one)
            self._beside.append(trader.equity)

    def _facts(self) -> dict[str, float]:
        return {
            "bars": self.shadow.bars,
            "log_return": growth_of(self.shadow.curve[-1], self.shadow.curve[0]),
            "champion_log_return": growth_of(self._beside[-1], self._beside[0]),
        }

    def _promote(self, trader: Trader, bar: Bar) -> None:
        shadow, terms, own = self.shadow, self._terms, self._facts()
        with self.registry.exclusive():
            if self.registry.challenger_id(self.slot) != shadow.bundle.id:
                return  # another one came while this one was tried
            if self.registry.champion_id(self.slot) != trader.bundle.id:
                return
            # The health window first: it counts for nothing until the pointer names its model.
            self._health.begin(shadow.bundle, trader, bar, terms)
            pointer = read_pointer(self.registry.challenger_file(self.slot))
            judged = {name: pointer[name] for name in ("sharpe", "unit") if name in pointer}
            facts = {"slot": self.slot, "shadow": own, "terms": asdict(terms)}
            self.registry.promote(shadow.bundle, {**judged, **facts})
            self.registry.withdraw(self.slot)
            champion = self.registry.champion(self.slot)
        self.shadow = None
        try:
            trader.replace_model(champion, terms.positions)
        except (OSError, BrokerUnavailable):  # it is followed at the next bar
            raise
        except Exception as error:  # the pointer must not name what the trader cannot run
            with self.registry.exclusive():
                self.registry.roll_back(self.slot, [str(error)], {"slot": self.slot})
            raise

    def _shadow_reasons(self, shadow: Shadow, terms: Terms) -> list[str]:
        """Why the challenger does not take over: a loss, less than its back-test predicts, or worse than the champion
        by more than chance."""
        if shadow.bars == 0:
            return []
        prediction = predict(heldout_returns(shadow.bundle), shadow.bars, terms.false_alarms)
        for seen, value in enumerate(shadow.curve[1:], start=1):
            if reasons := unhealthy(prediction, growth_of(value, shadow.curve[0]), seen, terms.max_loss):
                return [f"in the shadow: {reason}" for reason in reasons]
        beside = np.array(self._beside)
        year = shadow.bundle.manifest["market"]["bars_per_year"]
        test = paired_sharpe_test(beside[1:] / beside[:-1] - 1, shadow.returns, year)
        if test.p_value <= terms.false_alarms:
            return [
                f"in the shadow: p-value {test.p_value:.4g} > {terms.false_alarms:.4g} (champion's Sharpe ratio higher "
                f"by {test.difference:.3g} annualised): FAILED"
            ]
        return []

    def _refuse(self, bundle: Bundle | None, reasons: list[str], facts: Mapping[str, Any]) -> None:
        logger.warning("challenger refused: %s", "; ".join(reasons))
        self.registry.record(
            "refused", bundle and bundle.id, bundle and study_of(bundle), reasons, {**facts, "slot": self.slot}
        )
        self.registry.withdraw(self.slot)
        self.shadow = None
