"""The market data API over the replayed bars: crypto v1beta3 and stocks v2. Only closed bars are served.

https://docs.alpaca.markets/reference/cryptobars-1, https://docs.alpaca.markets/reference/stockbars
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from environments.live.alpaca_local.refusal import Refused
from environments.live.alpaca_local.streams import Moment
from environments.live.alpaca_local.wire import Names, nanoseconds, rfc3339
from environments.market import Market

PAGE, LARGEST_PAGE = 1_000, 10_000
_UNITS = {"min": 1, "t": 1, "hour": 60, "h": 60, "day": 1_440, "d": 1_440}
_TIMEFRAME = re.compile(r"([0-9]{1,6})(Min|T|Hour|H|Day|D)", re.IGNORECASE)


class BarFeed:
    """The bars of a market as Alpaca sends them.

    half_spread: share of the price between the middle and either side of a quote.
    """

    def __init__(self, market: Market, names: Names, half_spread: float) -> None:
        self.market, self.names, self.half_spread = market, names, half_spread
        columns = ("open", "high", "low", "close", "volume")
        self._columns = np.stack([getattr(market, name).cpu().double().numpy() for name in columns])
        self._stamps = market.timestamps.cpu().numpy()
        self._present = np.isfinite(self._columns[3])

    def bar(self, bar: int, asset: int) -> dict[str, Any] | None:
        """Alpaca's bar object without its time; None where the asset has no bar then.

        n, the number of trades, and vw, their mean price, are not in bars like these: n is 0 or 1, vw (h + l + c) / 3.
        """
        if not self._present[bar, asset]:
            return None
        first, high, low, last, volume = self._columns[:, bar, asset].tolist()
        typical = (high + low + last) / 3
        return {"o": first, "h": high, "l": low, "c": last, "v": volume, "n": int(volume > 0), "vw": typical}

    def messages(self, bar: int) -> list[dict[str, Any]]:
        """What the data websocket sends when a bar has closed: a bar, a trade and a quote of every asset that has."""
        moment, closed = Moment(int(self._stamps[bar])), Moment(int(self._stamps[bar]) + self._length)
        sent = []
        for asset, symbol in enumerate(self.names.wire):
            own = self.bar(bar, asset)
            if own is not None:
                sent.append({"T": "b", "S": symbol, **own, "t": moment})
                sent.append({"T": "t", "S": symbol, **self._trade(own, bar), "t": closed})
                sent.append({"T": "q", "S": symbol, **self._quote(own), "t": closed})
        return sent

    @property
    def _length(self) -> int:
        return self.market.timeframe.nanoseconds

    def _trade(self, own: Mapping[str, Any], bar: int) -> dict[str, Any]:
        return {"p": own["c"], "s": own["v"], "i": bar + 1, "x": "", "c": [], "z": "C", "tks": "B"}

    def _quote(self, own: Mapping[str, Any]) -> dict[str, Any]:
        middle, size, gap = own["c"], own["v"], own["c"] * self.half_spread
        return {"bp": middle - gap, "bs": size, "bx": "", "ap": middle + gap, "as": size, "ax": "", "c": [], "z": "C"}

    def history(self, query: Mapping[str, str], last: int) -> dict[str, Any]:
        """The answer of .../bars: {"bars": {symbol: [...]}, "next_page_token"}, symbol by symbol, oldest first.

        query: symbols, timeframe, start and end (inclusive), limit of bars in all, page_token, sort.
        last: index of the newest closed bar.

        Raises:
            Refused: 400, a parameter is missing or none the API knows; the timeframe is not the replayed one.
        """
        self._check_timeframe(query.get("timeframe", ""))
        assets = sorted(self._assets(query), key=lambda asset: self.names.wire[asset])
        low, high = 0, last + 1
        if query.get("start"):
            low = int(np.searchsorted(self._stamps, nanoseconds(query["start"], "start"), side="left"))
        if query.get("end"):
            high = min(high, int(np.searchsorted(self._stamps, nanoseconds(query["end"], "end"), side="right")))
        limit, falling = self._limit(query), query.get("sort") == "desc"
        begun, skip = self._place(query.get("page_token"))
        pages: dict[str, list[dict[str, Any]]] = {}
        for asset in assets:
            symbol = self.names.wire[asset]
            if symbol < begun:
                continue
            rows = np.flatnonzero(self._present[low:high, asset]) + low
            rows = rows[::-1] if falling else rows
            done = skip if symbol == begun else 0
            taken = rows[done : done + limit]
            if taken.size:
                pages[symbol] = [self._dated(bar, asset) for bar in taken.tolist()]
            limit -= taken.size
            if done + taken.size < rows.size:
                token = base64.urlsafe_b64encode(f"{symbol}|{done + taken.size}".encode()).decode()
                return {"bars": pages, "next_page_token": token}
        return {"bars": pages, "next_page_token": None}

    def latest(self, kind: str, query: Mapping[str, str], last: int) -> dict[str, Any]:
        """The answer of .../latest/{kind}: kind "bars", "trades" or "quotes", the newest of each symbol."""
        found = {}
        for asset in self._assets(query):
            rows = np.flatnonzero(self._present[: last + 1, asset])
            if rows.size:
                bar = int(rows[-1])
                own, closed = self.bar(bar, asset), rfc3339(int(self._stamps[bar]) + self._length)
                made = {"bars": own | {"t": rfc3339(int(self._stamps[bar]))}} if kind == "bars" else {
                    kind: (self._trade(own, bar) if kind == "trades" else self._quote(own)) | {"t": closed}
                }  # fmt: skip
                found[self.names.wire[asset]] = made[kind]
        return {kind: found}

    def _dated(self, bar: int, asset: int) -> dict[str, Any]:
        return {"t": rfc3339(int(self._stamps[bar])), **self.bar(bar, asset)}

    def _assets(self, query: Mapping[str, str]) -> list[int]:
        asked = [symbol.strip() for symbol in query.get("symbols", "").split(",") if symbol.strip()]
        if not asked:
            raise Refused(400, 40010001, "symbols is required")
        found = {symbol: self.names.find(symbol) for symbol in asked}
        for symbol, asset in found.items():
            if asset is None and self.names.asset_class == "crypto" and "/" not in symbol:
                raise Refused(400, 40010001, f"invalid symbol: {symbol}")
        # As at Alpaca a symbol that nothing is known of has no bars.
        return list(dict.fromkeys(asset for asset in found.values() if asset is not None))

    def _check_timeframe(self, text: str) -> None:
        match = _TIMEFRAME.fullmatch(text)
        minutes = int(match[1]) * _UNITS[match[2].lower()] if match else 0
        if minutes != self.market.timeframe.minutes:
            raise Refused(400, 40010001, f"invalid timeframe: {text!r}, this replay has {self.market.timeframe} bars")

    def _limit(self, query: Mapping[str, str]) -> int:
        text = query.get("limit") or str(PAGE)
        if not text.isdigit() or not 1 <= int(text) <= LARGEST_PAGE:
            raise Refused(400, 40010001, f"invalid limit: {text!r}, accepted are 1 to {LARGEST_PAGE}")
        return int(text)

    def _place(self, token: str | None) -> tuple[str, int]:
        """The symbol that a page begins with, and how many of its bars earlier pages had."""
        if not token:
            return "", 0
        try:
            symbol, _, done = base64.urlsafe_b64decode(token.encode()).decode().rpartition("|")
            return symbol, int(done)
        except (binascii.Error, ValueError):
            raise Refused(400, 40010001, "invalid page_token") from None
