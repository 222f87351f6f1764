"""What is fetched from Alpaca for a request: which bars, of which feed, up to which complete one."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd

from environments.data.source import BarRequest
from environments.errors import InputError
from environments.timeframe import Timeframe

# Plans without a subscription may not ask for consolidated trades of the last 15 minutes.
DELAY = pd.Timedelta(minutes=15)
HALF_HOUR = 30
OPTIONS = {
    "feed": ("sip", "iex"),
    "adjustment": ("all", "raw", "split", "dividend"),
    "hours": ("regular", "all"),
}

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """What is fetched: bars of `fetched`, of which those of `timeframe` are made.

    start <= timestamp < end; asked_end is what the request said, end what it comes to.
    """

    symbols: tuple[str, ...]
    asset_class: str
    timeframe: Timeframe
    fetched: Timeframe
    start: pd.Timestamp
    end: pd.Timestamp
    asked_end: pd.Timestamp | None
    feed: str
    adjustment: str
    hours: str

    @property
    def adjusted(self) -> bool:
        return self.asset_class == "stock" and self.adjustment != "raw"

    def asked(self) -> dict[str, Any]:
        """What identifies the download, apart from its symbols and from when it is made, as JSON values."""
        given = asdict(self) | {"timeframe": str(self.timeframe), "fetched": str(self.fetched)}
        return {k: None if v is None else str(v) for k, v in given.items() if k not in ("symbols", "end")}

    def facts(self, today: pd.Timestamp) -> dict[str, Any]:
        """What depends on when it is made. A dividend or split after `begun` changes all adjusted prices."""
        return {"end": self.end.isoformat()} | ({"begun": str(today.date())} if self.adjusted else {})


def make_plan(request: BarRequest, now: pd.Timestamp) -> Plan:
    """What to fetch for `request` at the time `now`. Raises InputError for what Alpaca does not offer."""
    request.accept_only("alpaca", "symbols", "timeframe", "start", "end", "path", "asset_class", "options")
    for name in ("symbols", "timeframe", "start"):
        if getattr(request, name) is None:
            raise InputError(f"source alpaca needs {name}, such as BTC/USD, 1h and 2023-01-01")
    symbols, timeframe = request.symbols, request.timeframe
    pairs = [s for s in symbols if "/" in s]
    asset_class = request.asset_class or ("crypto" if pairs else "stock")
    if wrong := [s for s in symbols if ("/" in s) != (asset_class == "crypto")]:
        raise InputError(
            f"source alpaca, {asset_class}: symbol {wrong[0]}; crypto symbols have a slash as in BTC/USD, "
            "stock symbols have none, and one request is for one of the two"
        )
    options = {name: accepted[0] for name, accepted in OPTIONS.items()}
    for name, value in request.options.items():
        if name not in OPTIONS:
            raise InputError(f"source alpaca has no option {name}: accepted are {', '.join(OPTIONS)}")
        if value not in OPTIONS[name]:
            raise InputError(f"source alpaca {name}={value}: {', '.join(OPTIONS[name])} are accepted")
        options[name] = value
    fetched = timeframe
    if asset_class == "stock" and options["hours"] == "regular" and timeframe.minutes < 1_440:
        if timeframe.minutes % HALF_HOUR == 0:
            fetched = Timeframe(HALF_HOUR)
        elif HALF_HOUR % timeframe.minutes:
            raise InputError(f"timeframe {timeframe}: in regular hours, divisors and multiples of 30m are accepted")
    api_timeframe(fetched)
    # The bar that opens just before the end is complete, and old enough for every plan.
    latest = (now - DELAY - pd.Timedelta(timeframe.nanoseconds)).as_unit("ns")
    end = request.end
    if end is None or end > latest:
        end = latest.floor("D")
        if request.end is not None:
            logger.info("alpaca: bars to %s are complete; the end asked for is later", end.date())
    if request.start >= end:
        raise InputError(f"start {request.start.isoformat()}: complete bars end at {end.isoformat()}")
    return Plan(symbols, asset_class, timeframe, fetched, request.start, end, request.end, **options)


def api_timeframe(timeframe: Timeframe) -> str:
    """Alpaca's notation: 1Min to 59Min, 1Hour to 23Hour or 1Day. Raises InputError for other lengths."""
    minutes = timeframe.minutes
    if minutes < 60:
        return f"{minutes}Min"
    if minutes % 60 == 0 and minutes < 1_440:
        return f"{minutes // 60}Hour"
    if minutes == 1_440:
        return "1Day"
    raise InputError(f"timeframe {timeframe}: Alpaca has 1m to 59m, 1h to 23h and 1d")
