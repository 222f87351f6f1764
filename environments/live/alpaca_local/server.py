"""LocalAlpaca: the venue behind a port of this machine.

    with LocalAlpaca(env, start, stop) as venue:
        client = TradingClient("local", "local", url_override=venue.url)
        client.submit_order(...)
        venue.advance()     # the next bar opens, orders fill, it closes

One thread serves HTTP and websockets; who drives the replay calls `advance`, here or by POST /local/v1/advance. The
venue's time is that of the bars. What is particular to it, where Alpaca's own venue is another:

    a market order fills in the bar after it was sent, at the price of the environment, and lapses with that bar
    a buy may use what open market sells will bring: both fill when the bar opens, sells first
    spread, slippage and impact are part of `filled_avg_price`; `books` says how cash and units follow from it
    numbers have all digits of a float64; "bars" are those of the replayed timeframe, not minutes
"""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from typing import Any

import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.h11_impl import H11Protocol

from environments.errors import InputError
from environments.live.alpaca_local.bars import BarFeed
from environments.live.alpaca_local.faults import FaultPlan
from environments.live.alpaca_local.gate import Faulty
from environments.live.alpaca_local.routes import nowhere, routes
from environments.live.alpaca_local.streams import Hub
from environments.live.alpaca_local.venue import Venue
from environments.live.alpaca_local.wire import rfc3339
from environments.market_env import MarketVecEnv

HOST = "127.0.0.1"
_PATIENCE = 10.0  # seconds for the server to begin or to end


class LocalAlpaca:
    """The venue as a server; begins with `with`, or `open` and `close`.

    Args:
        env: an environment of one: its market, rules, costs, fill price and cash are the venue's. It is not stepped.
        start, stop: the bars to replay; those up to `start` have closed already.
        key, secret: what a client must give.
        partial_fill_share: share of the fills that come in two parts, at the same price. seed: of which ones.
        faults: what goes wrong; None: nothing, until `faults.next` is called.
        port: 0 takes a free one.

    Raises:
        InputError: no such bars, a share outside [0, 1], a port that is taken.
    """

    def __init__(
        self,
        env: MarketVecEnv,
        start: int,
        stop: int,
        key: str = "local",
        secret: str = "local",
        partial_fill_share: float = 0.1,
        seed: int = 0,
        faults: FaultPlan | None = None,
        port: int = 0,
    ) -> None:
        if not 0 <= port <= 65_535:
            raise InputError(f"port {port}: accepted are 0 to 65535; 0 takes a free one")
        self.key, self.secret, self._port = key, secret, port
        self._connections: dict[Any, asyncio.Transport] = {}
        self.hub = Hub(key, secret, lambda: self.faults, self._abort)
        self.reset(env, start, stop, partial_fill_share, seed, faults)
        self._server: uvicorn.Server | None = None

    def reset(
        self,
        env: MarketVecEnv,
        start: int,
        stop: int,
        partial_fill_share: float = 0.1,
        seed: int = 0,
        faults: FaultPlan | None = None,
    ) -> None:
        """Begin anew, on the same port: a fresh account, no orders. Connections stay as they are."""
        self.faults = faults or FaultPlan(seed)
        self.venue = Venue(env, start, stop, partial_fill_share, seed, self.hub.update)
        spread = env.frictions.spread_bps * 1e-4 / 2
        self.feed = BarFeed(env.market, self.venue.names, spread)
        self.hub.forget()
        crypto = env.market.asset_class == "crypto"
        self._data_paths = ("/v1beta3/crypto/us",) if crypto else ("/v2/iex", "/v2/sip")

    # ------------------------------------------------------------------------------------------ the replay

    def advance(self) -> bool:
        """The next bar opens, orders meet it, it closes and is sent out. False: there is none."""
        with self.venue.lock:
            played = self.venue.advance()
            if played:
                messages = self.feed.messages(self.venue.bar)
                for path in self._data_paths:
                    self.hub.bars(path, messages)
            return played

    def closed_bar(self) -> dict[str, Any]:
        """The newest closed bar: index, open time, when it closed, and Alpaca's bar object by symbol."""
        venue = self.venue
        stamp = int(venue.market.timestamps[venue.bar])
        own = {name: self.feed.bar(venue.bar, asset) for asset, name in enumerate(venue.names.wire)}
        bars = {name: bar for name, bar in own.items() if bar is not None}
        return {"index": venue.bar, "t": rfc3339(stamp), "now": rfc3339(venue.now), "bars": bars}

    @property
    def bar(self) -> int:
        """Index of the newest closed bar."""
        return self.venue.bar

    @property
    def more(self) -> bool:
        """Will there be another bar?"""
        return self.venue.more

    @property
    def cash(self) -> float:
        """Currency in the account."""
        return self.venue.books.cash

    @property
    def equity(self) -> float:
        """Currency, positions at the newest closes."""
        return self.venue.books.equity

    @property
    def positions(self) -> dict[str, float]:
        """Units held, by the market's symbols; what is not held is left out."""
        units = self.venue.books.units
        return {symbol: n for symbol, n in zip(self.venue.market.symbols, units, strict=True) if n}

    @property
    def orders(self) -> list[dict[str, Any]]:
        """Alpaca's order object of every order, oldest first."""
        with self.venue.lock:
            return [order.to_json(self.venue.names) for order in self.venue.orders.values()]

    # ------------------------------------------------------------------------------------------ the server

    @property
    def url(self) -> str:
        """What a client's `url_override` takes, for trading and for data."""
        return f"http://{HOST}:{self._port}"

    @property
    def stream_url(self) -> str:
        """Where the websockets are: + /stream, /v1beta3/crypto/us, /v2/iex."""
        return f"ws://{HOST}:{self._port}"

    def open(self) -> LocalAlpaca:
        """Begin to serve; returns when clients can connect."""
        # Named TCP, asyncio turns Nagle's algorithm off: with it on, every answer waits 40 ms for an acknowledgement.
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((HOST, self._port))
        except OSError as error:
            listener.close()
            raise InputError(f"port {self._port}: {error.strerror}; 0 takes a free one") from None
        self._port = listener.getsockname()[1]
        served = Starlette(routes=routes(self), exception_handlers={404: nowhere, 405: nowhere})
        app = Faulty(served, self, self._abort)
        config = uvicorn.Config(
            app, http=self._protocol(), ws="websockets-sansio", loop="asyncio", lifespan="off", log_config=None,
            log_level="warning", access_log=False, server_header=False, date_header=False, timeout_graceful_shutdown=1,
        )  # fmt: skip
        listener.listen(128)
        self._server = server = uvicorn.Server(config)

        async def serve() -> None:
            self.hub.attach(asyncio.get_running_loop())
            await server.serve(sockets=[listener])

        self._thread = threading.Thread(target=lambda: asyncio.run(serve()), name="local Alpaca", daemon=True)
        self._thread.start()
        deadline = time.monotonic() + _PATIENCE
        while not server.started:
            if time.monotonic() > deadline or not self._thread.is_alive():
                raise RuntimeError(f"the venue did not begin to serve on {self.url}")
            time.sleep(0.001)
        return self

    def close(self) -> None:
        """Stop serving; connections are closed."""
        if self._server is not None:
            self._server.should_exit = True
            self._thread.join(_PATIENCE)
            self._server = None

    def __enter__(self) -> LocalAlpaca:
        return self.open()

    def __exit__(self, *error: object) -> None:
        self.close()

    def _protocol(self) -> type[H11Protocol]:
        """uvicorn's HTTP connection, which tells us its transport: that is what a fault breaks."""
        connections = self._connections

        class Connection(H11Protocol):
            def connection_made(self, transport: asyncio.Transport) -> None:
                super().connection_made(transport)
                # One that became a websocket is not told to us when it ends.
                for peer in [peer for peer, other in connections.items() if other.is_closing()]:
                    del connections[peer]
                connections[tuple(transport.get_extra_info("peername"))] = transport

        return Connection

    def _abort(self, scope: dict[str, Any]) -> None:
        """Break the connection that a request or websocket came by."""
        transport = self._connections.pop(tuple(scope["client"]), None)
        if transport is not None:
            transport.abort()
