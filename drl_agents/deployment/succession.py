"""Succession: a challenger runs in the champion's shadow, takes over at a bar boundary, and is rolled back if it fails.

A trader calls `Succession.at_boundary` after every bar, when its books are reconciled and before its model decides.
The registry's pointers say who trades; the trader follows them:

    a challenger waits        its decisions are booked in its shadow, for as many bars as its terms say
    the shadow is over        refused with its reasons, or made champion: the pointer is swapped, the trader follows
    it took over              a health window: a loss, or less than its back-test predicts, rolls it back
    the pointer was changed   by hand, by another process: the trader follows

Nothing is promoted while the trader is not ACTIVE, stale or unreconciled, or has orders open; it is tried again at the
next bar. Whatever is wrong with a candidate, the champion goes on.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from drl_agents.deployment.bundle import Bundle
from drl_agents.deployment.health import growth_of, heldout_returns, predict, prediction_facts, unhealthy
from drl_agents.deployment.health_window import HealthWindow
from drl_agents.deployment.registry import Registry, read_pointer, slot_of, study_of
from drl_agents.deployment.shadow import Shadow
from drl_agents.deployment.terms import Terms, Trader
from drl_agents.deployment.trading_record import iso
from drl_agents.evaluation.bootstrap import block_length, paired_sharpe_test
from environments.errors import InputError
from environments.files import write_json
from environments.live.broker import Bar, BrokerUnavailable

logger = logging.getLogger(__name__)

PREDICTION = "prediction.json"
SHOWN_BARS = 250  # of a prediction, at least


class Succession:
    """Tries the challengers of one slot. One trader at a time attends a slot: used as a context manager it says so to
    `scripts/auto_replace_best.py`, which then leaves promotions to it."""

    def __init__(self, registry: Registry, slot: str) -> None:
        self.registry, self.slot = registry, slot
        self.shadow: Shadow | None = None
        self._terms = Terms()
        self._beside: list[float] = []  # the champion's equity on the shadow's bars
        self._told = ""
        self._predicted: str | None = None
        self._attendance = registry.attendance(slot)
        self._health = HealthWindow(registry, slot)

    def __enter__(self) -> Succession:
        self._attendance.acquire()
        block_length(np.arange(16.0))  # loads what a bootstrap needs: that takes seconds, which a bar boundary has not
        return self

    def __exit__(self, *rest: object) -> None:
        self._attendance.release()

    def at_boundary(self, trader: Trader, bar: Bar) -> None:
        """Do what is due at this bar; what goes wrong here is told, and the champion goes on."""
        try:
            self._act(trader, bar)
        except (InputError, OSError, BrokerUnavailable) as error:
            if str(error) != self._told:  # the same at every bar is told once
                logger.warning("succession: %s", error)
            self._told = str(error)

    def _act(self, trader: Trader, bar: Bar) -> None:
        settled = trader.reconciled and not trader.stale and trader.open_orders == 0
        if self._health.look(trader, bar, settled):
            self._show_prediction(trader, bar)
            return
        safe = settled and trader.state == "ACTIVE"
        self._follow(trader, safe)
        self._show_prediction(trader, bar)
        self._try_challenger(trader, bar, safe)

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

    def _try_challenger(self, trader: Trader, bar: Bar, safe: bool) -> None:
        file = self.registry.challenger_file(self.slot)
        waiting = file.exists()
        if not waiting:
            self.shadow = None
            return
        try:
            challenger = self.registry.challenger_id(self.slot)
            if challenger == trader.bundle.id:  # a crash came between its promotion and here
                self.registry.withdraw(self.slot)
                return
            if self.shadow is None or self.shadow.bundle.id != challenger:
                self._begin_shadow(trader, bar)
            else:
                self._advance(trader, bar)
            if self.shadow.bars >= self._terms.shadow_bars and safe:
                self._conclude(trader, bar)
        except (OSError, BrokerUnavailable):
            raise
        except Exception as error:  # damaged, of another market, a network of the user's own that raises: its end
            why = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
            self._refuse(None if self.shadow is None else self.shadow.bundle, [why], {})

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

    def _conclude(self, trader: Trader, bar: Bar) -> None:
        shadow, terms = self.shadow, self._terms
        own = {
            "bars": shadow.bars,
            "log_return": growth_of(shadow.curve[-1], shadow.curve[0]),
            "champion_log_return": growth_of(self._beside[-1], self._beside[0]),
        }
        reasons = self._shadow_reasons(shadow, terms)
        if reasons:
            self._refuse(shadow.bundle, reasons, {"shadow": own})
            return
        with self.registry.exclusive():
            if self.registry.challenger_id(self.slot) != shadow.bundle.id:
                return  # another one came while this one was tried
            if self.registry.champion_id(self.slot) != trader.bundle.id:
                return
            # The health window first: it counts for nothing until the pointer names its model.
            self._health.begin(shadow.bundle, trader, bar, terms)
            self.registry.promote(shadow.bundle, {"slot": self.slot, "shadow": own, "terms": asdict(terms)})
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
        self._show_prediction(trader, bar)

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

    def _show_prediction(self, trader: Trader, bar: Bar) -> None:
        """Write `prediction.json` beside the trader where its model is another than at the bar before."""
        bundle = trader.bundle
        if self._predicted == bundle.id:
            return
        path, terms = trader.folder / PREDICTION, self._terms
        self._predicted = bundle.id
        if path.exists():
            with contextlib.suppress(ValueError):  # a damaged one is written anew
                if json.loads(path.read_text(encoding="utf-8"))["model"] == bundle.id:
                    return  # written before a restart: it began then
            path.unlink()
        try:
            prediction = predict(heldout_returns(bundle), max(SHOWN_BARS, terms.health_bars), terms.false_alarms)
        except InputError as error:
            logger.warning("no prediction of %s is shown: %s", bundle.id[:12], error)
            return
        write_json(path, prediction_facts(prediction, bundle, iso(bar.timestamp), trader.equity))
