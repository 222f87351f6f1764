"""The health window: a model that took over is watched for some bars, and rolled back if it fails.

The window is kept on disk, so that it outlives its trader; it counts for nothing until the champion's pointer names its
model, and is therefore written before the pointer is.
"""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass, field
from pathlib import Path
from threading import Thread
from typing import Any

from drl_agents.deployment.bundle import Bundle
from drl_agents.deployment.health import Prediction, growth_of, heldout_returns, predict, unhealthy
from drl_agents.deployment.registry import Registry, study_of
from drl_agents.deployment.terms import Terms, Trader
from drl_agents.deployment.trading_record import iso
from environments.errors import InputError
from environments.files import write_json
from environments.live.broker import Bar
from environments.live.risk import ACTIVE
from environments.timeframe import Timeframe

logger = logging.getLogger(__name__)

KEPT_EVERY = 10  # bars between two writes of the count


@dataclass
class Watch:
    """A health window, kept on disk: the model, what the account was worth when it took over (over its `flow_factor`:
    what is paid in is no gain), bars seen since. newest: the bar counted last, UTC nanoseconds; 0 where it is not
    known. account: see `_account`; [] where it is not known. bars_done: of that account when the window began. idle:
    how many of the bars seen the trader was not ACTIVE in."""

    bundle: str
    equity: float
    since: str
    terms: dict[str, Any]
    seen: int = 0
    newest: int = 0
    account: list[Any] = field(default_factory=list)
    bars_done: int = 0
    idle: int = 0


class HealthWindow:
    """Of one slot."""

    def __init__(self, registry: Registry, slot: str) -> None:
        self.registry, self.slot = registry, slot
        self.file = registry.folder / "health" / f"{slot}.json"
        self._watch: Watch | None = None
        self._writer: Thread | None = None
        self._predicted: tuple[str, Prediction | None] | None = None
        self._stuck = ""

    def begin(self, bundle: Bundle, trader: Trader, bar: Bar, terms: Terms) -> None:
        """Watch `bundle` from `bar` on, in the account of `trader`."""
        self._written()
        self._watch = Watch(
            bundle.id, trader.equity / trader.flow_factor, iso(bar.timestamp), asdict(terms), newest=bar.timestamp,
            account=_account(trader), bars_done=trader.bars_done,
        )  # fmt: skip
        self._predicted = None
        write_json(self.file, asdict(self._watch))

    def look(self, trader: Trader, bar: Bar, settled: bool) -> bool:
        """Hold the trader's bar against the window of its model; True where it was rolled back.

        A model that cannot be rolled back goes on, and challengers are tried beside it.

        settled: nothing stands in the way of another model now; else a failure waits for the next bar.
        """
        bundle, watch = trader.bundle, self._of(trader.bundle.id)
        if watch is None:
            return False
        if watch.account and (watch.account != _account(trader) or trader.bars_done < watch.bars_done):
            # What this account is worth says nothing of what that one was.
            logger.warning("another account: the health window of %s begins anew", bundle.id[:12])
            self.begin(bundle, trader, bar, Terms(**watch.terms))
            return False
        before, closed = watch.seen, _closed_since(watch, trader, bar)
        watch.seen, watch.newest = before + closed, bar.timestamp
        watch.idle += closed * (trader.state != ACTIVE)
        terms, growth = Terms(**watch.terms), growth_of(trader.equity / trader.flow_factor, watch.equity)
        reasons = unhealthy(self._prediction(bundle, terms), growth, watch.seen, terms.max_loss)
        facts = {"slot": self.slot, "bars": watch.seen, "idle": watch.idle, "log_return": growth, "since": watch.since}
        if not reasons:
            # One that may not trade shows nothing: the window ends after so many bars in which it might. Nor has it
            # failed, as what halted it may be none of its doing; what it loses meanwhile is held against it still.
            if watch.seen - watch.idle >= terms.health_bars:
                self.registry.record("healthy", bundle.id, study_of(bundle), [], facts)
                self._end()
            elif trader.state != ACTIVE:
                self._written()
                write_json(self.file, asdict(watch))  # no order waits for it, and a restart must not take it for active
            elif watch.seen // KEPT_EVERY > before // KEPT_EVERY:
                self._keep(watch)
            return False
        if not settled:
            return False
        with self.registry.exclusive():
            if self.registry.champion_id(self.slot) != bundle.id:
                self._end()  # another process changed the champion: that one is followed
                return False
            try:
                restored = self.registry.roll_back(self.slot, reasons, facts)
            except InputError as error:  # nothing whole to go back to
                if str(error) != self._stuck:  # the same at every bar is told once
                    logger.error("%s fails and cannot be rolled back: %s", bundle.id[:12], error)
                    self.registry.record("not rolled back", bundle.id, study_of(bundle), [*reasons, str(error)], facts)
                self._stuck = str(error)
                return False
        logger.warning("%s rolled back to %s: %s", bundle.id[:12], restored.id[:12], "; ".join(reasons))
        trader.replace_model(restored, terms.positions if trader.state == "ACTIVE" else "inherit")
        self._end()
        return True

    def _of(self, model: str) -> Watch | None:
        """The window of `model`, None where it has none."""
        if self._watch is None and self.file.exists():
            try:
                self._watch = Watch(**json.loads(self.file.read_text(encoding="utf-8")))
            except (ValueError, TypeError) as error:
                raise InputError(f"{self.file}: damaged ({error}); delete it to end the window") from error
        return self._watch if self._watch is not None and self._watch.bundle == model else None

    def _keep(self, watch: Watch) -> None:
        """Write the count beside the trader's work: a disk takes longer than a decision may."""
        self._written()
        self._writer = Thread(target=write_json, args=(self.file, asdict(watch)))
        self._writer.start()

    def _written(self) -> None:
        if self._writer is not None:
            self._writer.join()
        self._writer = None

    def _end(self) -> None:
        self._written()
        self.file.unlink(missing_ok=True)
        self._watch = self._predicted = None

    def _prediction(self, bundle: Bundle, terms: Terms) -> Prediction | None:
        """What the model's held-out bars predict, worked out once; None where they are not known."""
        if self._predicted is None or self._predicted[0] != bundle.id:
            try:
                prediction = predict(heldout_returns(bundle), terms.health_bars, terms.false_alarms)
            except InputError as error:
                logger.warning("the loss limit alone holds for %s: %s", bundle.id[:12], error)
                prediction = None
            self._predicted = (bundle.id, prediction)
        return self._predicted[1]


def _account(trader: Trader) -> list[Any]:
    """Which account a trader trades: where its files are, and what it began with."""
    return [str(Path(trader.folder).resolve()), trader.initial]


def _closed_since(watch: Watch, trader: Trader, bar: Bar) -> int:
    """How many bars closed since the one counted last, `bar` among them. Those the trader skipped, or was down for,
    count: what it holds has moved in all of them."""
    length = Timeframe.parse(trader.bundle.manifest["market"]["timeframe"]).nanoseconds
    if not watch.newest or bar.timestamp - watch.newest <= length:
        return 1
    return 1 + sum(watch.newest < missed.timestamp < bar.timestamp for missed in trader.feed.history())
