"""The health window: a model that took over is watched for some bars, and rolled back if it fails.

The window is kept on disk, so that it outlives its trader; it counts for nothing until the champion's pointer names its
model, and is therefore written before the pointer is.
"""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass
from threading import Thread
from typing import Any

from drl_agents.deployment.bundle import Bundle
from drl_agents.deployment.health import Prediction, growth_of, heldout_returns, predict, unhealthy
from drl_agents.deployment.registry import Registry, study_of
from drl_agents.deployment.terms import Terms, Trader
from environments.errors import InputError
from environments.files import write_json

logger = logging.getLogger(__name__)

KEPT_EVERY = 10  # bars between two writes of the count


@dataclass
class Watch:
    """A health window, kept on disk: the model, what the account was worth when it took over, bars seen since."""

    bundle: str
    equity: float
    since: str
    terms: dict[str, Any]
    seen: int = 0


class HealthWindow:
    """Of one slot."""

    def __init__(self, registry: Registry, slot: str) -> None:
        self.registry, self.slot = registry, slot
        self.file = registry.folder / "health" / f"{slot}.json"
        self._watch: Watch | None = None
        self._writer: Thread | None = None
        self._predicted: tuple[str, Prediction | None] | None = None

    def begin(self, bundle: Bundle, equity: float, since: str, terms: Terms) -> None:
        """Watch `bundle` from the bar `since` on, where the account is worth `equity`."""
        self._written()
        self._watch = Watch(bundle.id, equity, since, asdict(terms))
        write_json(self.file, asdict(self._watch))

    def look(self, trader: Trader, settled: bool) -> bool:
        """Hold the trader's bar against the window of its model; True where it was rolled back.

        settled: nothing stands in the way of another model now; else a failure waits for the next bar.
        """
        bundle, watch = trader.bundle, self._of(trader.bundle.id)
        if watch is None:
            return False
        watch.seen += 1
        terms, growth = Terms(**watch.terms), growth_of(trader.equity, watch.equity)
        reasons = unhealthy(self._prediction(bundle, terms), growth, watch.seen, terms.max_loss)
        facts = {"slot": self.slot, "bars": watch.seen, "log_return": growth, "since": watch.since}
        if not reasons:
            if watch.seen >= terms.health_bars:
                self.registry.record("healthy", bundle.id, study_of(bundle), [], facts)
                self._end()
            elif watch.seen % KEPT_EVERY == 0:
                self._keep(watch)
            return False
        if not settled:
            return False
        with self.registry.exclusive():
            if self.registry.champion_id(self.slot) != bundle.id:
                self._end()  # another process changed the champion: that one is followed
                return False
            restored = self.registry.roll_back(self.slot, reasons, facts)
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
