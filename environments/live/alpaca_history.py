"""Closed bars from Alpaca's market data API, as a trader needs them: the last of every symbol, and the newest ones.

https://docs.alpaca.markets/reference/cryptobars-1, https://docs.alpaca.markets/reference/stockbars
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from alpaca.common.exceptions import APIError
from alpaca.data.historical import CryptoHistoricalDataClient, StockHistoricalDataClient

from environments.data.alpaca_plan import api_timeframe
from environments.data.credentials import Secret
from environments.data.sessions import DAY
from environments.errors import InputError
from environments.live.alpaca_local.wire import wire_symbol
from environments.live.alpaca_session import Unreadable, prepare, read, told
from environments.live.broker import Bar
from environments.timeframe import Timeframe

COLUMNS = "ohlcv"
PAGE_LIMIT = 10_000
CONFIRMATIONS = 3
EARLIEST = "2010-01-01T00:00:00Z"

Values = tuple[float, float, float, float, float]


class BarHistory:
    """Bars of A symbols over REST.

    Args:
        symbols, asset_class, timeframe: of the model's market.
        keys: crypto bars need none at Alpaca, but are given more freely with them.
        url: another venue's, for both trading and data; None: Alpaca's data API.
        stock_feed: "iex" or "sip", for stocks. sleep: for tests.
    """

    def __init__(
        self,
        symbols: Sequence[str],
        asset_class: str,
        timeframe: Timeframe,
        keys: tuple[Secret, Secret],
        url: str | None = None,
        stock_feed: str = "iex",
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._sleep = sleep
        self.symbols, self.asset_class, self.timeframe, self._keys = list(symbols), asset_class, timeframe, keys
        self.wire = [wire_symbol(symbol, asset_class) for symbol in symbols]
        kind = CryptoHistoricalDataClient if asset_class == "crypto" else StockHistoricalDataClient
        client = kind(keys[0].reveal(), keys[1].reveal(), raw_data=True, url_override=url)
        self._client = prepare(client, url)
        self._path = "/crypto/us/bars" if asset_class == "crypto" else "/stocks/bars"
        self._further = {} if asset_class == "crypto" else {"feed": stock_feed, "adjustment": "all"}

    def last(self, count: int) -> list[Bar]:
        """The last `count` bars of every symbol, aligned on their union, oldest first.

        A newest bar that some symbol lacks is asked for again, `CONFIRMATIONS` times at most: a symbol may have no bar,
        or the data may have been behind when it was asked for.
        """
        bars = self.aligned({symbol: self._newest(symbol, count) for symbol in self.wire})
        for _ in range(CONFIRMATIONS):
            if not bars or np.isfinite(bars[-1].close).all():
                break
            again = self.since(bars[-1].timestamp - 1)
            if again and np.isfinite(again[0].close).sum() > np.isfinite(bars[-1].close).sum():
                bars[-1:] = again
        return bars

    def since(self, timestamp: int) -> list[Bar]:
        """All bars that opened after `timestamp` (UTC nanoseconds), aligned, oldest first."""
        start = pd.Timestamp(timestamp + 1, unit="ns", tz="UTC").isoformat().replace("+00:00", "Z")
        found: dict[str, list[tuple[int, Values]]] = {symbol: [] for symbol in self.wire}
        token: str | None = None
        while True:
            answer = self._ask({"symbols": ",".join(self.wire), "start": start, "sort": "asc", "page_token": token})
            for symbol, bars in answer[0].items():
                found[symbol] += bars
            token = answer[1]
            if token is None:
                return [bar for bar in self.aligned(found) if bar.timestamp > timestamp]

    def _newest(self, symbol: str, count: int) -> list[tuple[int, Values]]:
        if count > PAGE_LIMIT:
            raise InputError(f"{count} bars of history: at most {PAGE_LIMIT} are asked for")
        query = {"symbols": symbol, "start": EARLIEST, "sort": "desc"}
        found: list[tuple[int, Values]] = []
        token: str | None = None
        while len(found) < count:
            # A page may hold fewer than were asked for, and say that there are more.
            page, token = self._ask({**query, "limit": count - len(found), "page_token": token})
            found += page.get(symbol, [])
            if token is None:
                break
        return found[::-1]

    def _ask(self, query: Mapping[str, Any]) -> tuple[dict[str, list[tuple[int, Values]]], str | None]:
        """One page: (stamp, open, high, low, close, volume) of each bar by symbol, and the token of the next page."""
        asked = {"timeframe": api_timeframe(self.timeframe), "limit": PAGE_LIMIT, **self._further, **query}

        def ask() -> tuple[dict[str, list[tuple[int, Values]]], str | None]:
            answer = self._client.get(self._path, {k: v for k, v in asked.items() if v is not None})
            if (
                not isinstance(answer, dict)
                or not isinstance(answer.get("bars"), dict)
                or "next_page_token" not in answer
            ):
                raise Unreadable("no page of bars")
            return {symbol: parsed(bars) for symbol, bars in answer["bars"].items()}, answer["next_page_token"]

        try:
            return read("bars", ask, self._keys, sleep=self._sleep)
        except APIError as error:
            code, message = told(error)
            raise InputError(f"Alpaca does not accept the request for bars ({code}: {message})") from None

    def aligned(self, found: Mapping[str, Sequence[tuple[int, Values]]]) -> list[Bar]:
        """Bars of each symbol (by its name at the venue) as bars of all, NaN where one has none."""
        # Daily bars open at midnight in New York, or are labelled with the date: both are that date.
        daily = self.timeframe.nanoseconds >= DAY
        rows: dict[int, np.ndarray] = {}
        for i, symbol in enumerate(self.wire):
            for stamp, values in found.get(symbol, ()):
                stamp = stamp // DAY * DAY if daily else stamp
                if stamp not in rows:
                    rows[stamp] = np.full((len(self.wire), len(COLUMNS)), np.nan)
                rows[stamp][i] = values
        return [as_bar(stamp, rows[stamp]) for stamp in sorted(rows)]


def as_bar(timestamp: int, values: np.ndarray) -> Bar:
    """values: (A, 5) open, high, low, close, volume; NaN where there is no bar."""
    return Bar(timestamp, *(np.ascontiguousarray(column) for column in values.T), np.zeros((len(values), 0)))


def parsed(bars: Sequence[Mapping[str, Any]]) -> list[tuple[int, Values]]:
    """Alpaca's bar objects as (UTC nanoseconds, values).

    Raises:
        Unreadable: a field is missing or is no number.
    """
    try:
        stamps = pd.to_datetime([bar["t"] for bar in bars], utc=True, format="ISO8601").as_unit("ns").asi8
        values = np.array([[bar[name] for name in COLUMNS] for bar in bars], dtype=np.float64).reshape(-1, len(COLUMNS))
    except (KeyError, TypeError, ValueError) as error:
        raise Unreadable(f"no bar: {type(error).__name__}") from None
    if not np.isfinite(values).all() or (stamps <= 0).any():  # no time at all reads as one long ago
        raise Unreadable("a bar's time or price is none")
    return list(zip(stamps.tolist(), map(tuple, values.tolist()), strict=True))
