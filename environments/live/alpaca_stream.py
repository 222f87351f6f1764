"""Alpaca's data websocket as a queue of bars. https://docs.alpaca.markets/docs/streaming-market-data"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import threading
from collections.abc import Sequence
from typing import Any

from alpaca.data.enums import DataFeed
from alpaca.data.live import CryptoDataStream, StockDataStream

from environments.data.credentials import Secret
from environments.live.alpaca_history import Values
from environments.live.feed import streamed

SILENCE = 150.0  # seconds without a bar after which the connection is made anew: it may be mute

logger = logging.getLogger(__name__)


class BarStream:
    """Bars as the websocket sends them, from a thread of its own; it reconnects by itself.

    What is lost meanwhile is not made up for here: who reads it asks over REST (see `LiveFeed`).

    Args:
        wire: symbols as the venue calls them. url: another venue's websocket, None: Alpaca's.
    """

    def __init__(
        self,
        wire: Sequence[str],
        asset_class: str,
        keys: tuple[Secret, Secret],
        stock_feed: str = "iex",
        url: str | None = None,
    ) -> None:
        self._bars: queue.Queue[tuple[str, int, Values]] = queue.Queue()
        key, secret = (part.reveal() for part in keys)
        options: dict[str, Any] = {"raw_data": True, "url_override": url, "data_timeout": SILENCE}
        if asset_class == "crypto":
            self._stream = CryptoDataStream(key, secret, **options)
        else:
            self._stream = StockDataStream(key, secret, feed=DataFeed(stock_feed), **options)
        self._stream.subscribe_bars(self._take, *wire)
        self._thread = threading.Thread(target=self._run, name="bars", daemon=True)
        self._thread.start()

    async def _take(self, message: Any) -> None:
        bar = streamed(message)
        if bar is None:
            logger.info("a websocket message that is no bar was left out")
        else:
            self._bars.put(bar)

    def _run(self) -> None:
        try:
            asyncio.run(self._stream._run_forever())
        except Exception as error:  # whatever ends it: REST goes on alone
            logger.warning("the data websocket ended (%s); bars come over REST alone", type(error).__name__)

    def get(self, timeout: float) -> tuple[str, int, Values]:
        """The next bar. Raises queue.Empty where none came in `timeout` seconds."""
        return self._bars.get(timeout=timeout)

    def close(self) -> None:
        """End the connection and its thread."""
        with contextlib.suppress(RuntimeError, AttributeError):  # it never began, or has ended
            self._stream.stop()
        self._thread.join(timeout=10)
