"""Forecast: what the back-test predicts of the model that trades, in `prediction.json` beside its trader."""

from __future__ import annotations

import contextlib
import json
import logging

from drl_agents.deployment.health import heldout_returns, predict, prediction_facts
from drl_agents.deployment.terms import Terms, Trader
from drl_agents.deployment.trading_record import iso
from environments.errors import InputError
from environments.files import write_json
from environments.live.broker import Bar

PREDICTION = "prediction.json"
SHOWN_BARS = 250  # of a prediction, at least

logger = logging.getLogger(__name__)


class Forecast:
    """Writes the prediction where a trader's model is another than at the bar before, or its account is new. By itself
    it is the hook of a trader that follows no champion, see `takeover.Hook`."""

    def __init__(self) -> None:
        self._predicted: str | None = None

    def at_boundary(self, trader: Trader, bar: Bar) -> None:
        """Nothing: a prediction can wait."""

    def after_orders(self, trader: Trader, bar: Bar) -> None:
        """Show the prediction of a model that goes on trading as it is."""
        self.show(trader, bar, Terms())

    def show(self, trader: Trader, bar: Bar, terms: Terms) -> None:
        """Write what the model's held-out bars predict from `bar` on; nothing where they are not known."""
        bundle = trader.bundle
        if self._predicted == bundle.id:
            return
        path = trader.folder / PREDICTION
        self._predicted = bundle.id
        if path.exists():
            with contextlib.suppress(ValueError, KeyError):  # a damaged one is written anew
                if trader.bars_done and json.loads(path.read_text(encoding="utf-8"))["model"] == bundle.id:
                    return  # written before a restart: it began then
            path.unlink()
        try:
            prediction = predict(heldout_returns(bundle), max(SHOWN_BARS, terms.health_bars), terms.false_alarms)
        except InputError as error:
            logger.warning("no prediction of %s is shown: %s", bundle.id[:12], error)
            return
        write_json(path, prediction_facts(prediction, bundle, iso(bar.timestamp), trader.equity))
