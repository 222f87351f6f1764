"""The websockets: /stream with updates of orders, /v1beta3/crypto/us and /v2/{feed} with bars as they close.

A client that connects with the header Content-Type: application/msgpack is answered in msgpack, another in JSON. On the
data sockets times are msgpack timestamps, or RFC 3339 text in JSON. The channel "bars" carries the bars of the replayed
timeframe; "trades" and "quotes" have the last price of each.

https://docs.alpaca.markets/docs/websocket-streaming, https://docs.alpaca.markets/docs/streaming-market-data
"""

from __future__ import annotations

import asyncio
import hmac
import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import msgpack
from starlette.websockets import WebSocket, WebSocketDisconnect

from environments.live.alpaca_local.faults import Fault, FaultPlan
from environments.live.alpaca_local.wire import SECOND, rfc3339

CHANNELS = {"bars": "b", "trades": "t", "quotes": "q"}
SILENT = ("updatedBars", "dailyBars", "orderbooks", "statuses", "lulds", "corrections", "cancelErrors")
STREAM = "/stream"


class Socket:
    """One connection. wanted: symbols by channel; ready: it may be sent what it asked for."""

    def __init__(self, websocket: WebSocket, path: str) -> None:
        self.websocket, self.path = websocket, path
        self.packed = websocket.headers.get("content-type", "") == "application/msgpack"
        self.wanted: dict[str, set[str]] = {}
        self.ready = self.muted = False
        self.queue: asyncio.Queue[Any] = asyncio.Queue()

    async def send(self, content: Any) -> None:
        if self.packed:
            await self.websocket.send_bytes(msgpack.packb(content, default=_packed_time))
        else:
            text = json.dumps(content, default=_written_time)
            # Alpaca's trading stream sends its JSON in binary frames.
            await (self.websocket.send_bytes(text.encode()) if self.path == STREAM else self.websocket.send_text(text))

    async def receive(self) -> dict[str, Any] | None:
        """The next message; None where it is none that can be read.

        Raises:
            WebSocketDisconnect: the client has gone.
        """
        message = await self.websocket.receive()
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message.get("code", 1005))
        data = message.get("bytes") or (message.get("text") or "").encode()
        # A client says what it can read; what it writes, alpaca-py's trading stream for one, may be the other.
        for read in (json.loads, msgpack.unpackb):
            try:
                content = read(data)
            except (ValueError, msgpack.exceptions.UnpackException):
                continue
            return content if isinstance(content, dict) else None
        return None


@dataclass(frozen=True)
class Moment:
    """UTC nanoseconds that are to be written as a time."""

    nanoseconds: int


def _packed_time(moment: Moment) -> msgpack.Timestamp:
    return msgpack.Timestamp(*divmod(moment.nanoseconds, SECOND))


def _written_time(moment: Moment) -> str:
    return rfc3339(moment.nanoseconds)


class Hub:
    """All connections, and what is sent to them.

    Args:
        key, secret: of the account. faults: what goes wrong. abort: breaks a connection, given its scope.
    """

    def __init__(self, key: str, secret: str, faults: Callable[[], FaultPlan], abort: Callable[[Any], None]) -> None:
        self._key, self._secret, self._faults, self._abort = key, secret, faults, abort
        self._sockets: set[Socket] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        # By path: the bars sent last, and those held back.
        self._before: dict[str, list[dict[str, Any]]] = {}
        self._late: dict[str, list[dict[str, Any]]] = {}

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """The event loop that the connections live in."""
        self._loop = loop

    def forget(self) -> None:
        """A new replay begins: no bar has been sent."""
        self._before, self._late = {}, {}

    def connected(self, path: str) -> int:
        """Connections of a path that have subscribed to something."""
        return sum(socket.path == path and socket.ready and bool(socket.wanted) for socket in list(self._sockets))

    # ----------------------------------------------------------------------------------- sending, by any thread

    def update(self, update: dict[str, Any]) -> None:
        """Send an order's update."""
        if not self._heard(STREAM):
            return
        fault = self._faults().of_frame(STREAM, bars=False)
        if fault is not None and fault.kind in ("missing_field", "unknown_enum"):
            update = {**update, "order": self._faults().mangle(fault, update["order"])}
        self._send(STREAM, {"stream": "trade_updates", "data": update}, fault)

    def bars(self, path: str, bars: list[dict[str, Any]]) -> None:
        """Send the messages of one closed bar: T, S and their fields."""
        before, late = self._before.get(path), self._late.pop(path, None)
        self._before[path] = bars
        if not self._heard(path):
            return
        fault = self._faults().of_frame(path, bars=True)
        kind = fault.kind if fault is not None else ""
        frames = [bars]
        if kind == "repeat_bar":
            frames = [bars, bars]
        elif kind == "stale_bar":
            frames = [before] if before else []
        elif kind == "late_bar":
            frames, self._late[path] = [], bars
        for frame in [*frames, late] if late else frames:
            self._send(path, frame, fault)

    def _heard(self, path: str) -> bool:
        """Is anybody connected there? A programmed fault waits until somebody is."""
        return any(socket.path == path for socket in list(self._sockets))

    def _send(self, path: str, content: Any, fault: Fault | None) -> None:
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._deliver, path, content, fault.kind if fault else "")

    def _deliver(self, path: str, content: Any, kind: str) -> None:
        for socket in list(self._sockets):
            if socket.path != path or not socket.ready:
                continue
            if kind == "cut":
                self._abort(socket.websocket.scope)
                self._sockets.discard(socket)
            elif kind == "mute":
                socket.muted = True
            elif not socket.muted:
                socket.queue.put_nowait(content)

    # ----------------------------------------------------------------------------------- the two protocols

    async def trading(self, websocket: WebSocket) -> None:
        """/stream: authenticate, listen, updates."""
        await self._serve(websocket, STREAM, self._trading_message, self._trading_frame, None)

    async def data(self, websocket: WebSocket) -> None:
        """A data socket: connected, auth, subscribe, bars."""
        hello = [{"T": "success", "msg": "connected"}]
        await self._serve(websocket, websocket.scope["path"], self._data_message, self._data_frame, hello)

    async def _serve(self, websocket: WebSocket, path: str, read: Callable, frame: Callable, hello: Any) -> None:
        await websocket.accept()
        socket = Socket(websocket, path)
        sender = asyncio.create_task(self._sender(socket, frame))
        self._sockets.add(socket)
        try:
            # Ends when the client has gone, or was cut off while it was being sent something.
            with suppress(WebSocketDisconnect, RuntimeError):
                if hello:
                    await socket.send(hello)
                while True:
                    answer = read(socket, await socket.receive())
                    if answer is not None and not socket.muted:
                        await socket.send(answer)
        finally:
            self._sockets.discard(socket)
            sender.cancel()

    async def _sender(self, socket: Socket, frame: Callable) -> None:
        while True:
            content = frame(socket, await socket.queue.get())
            if content:
                try:
                    await socket.send(content)
                except (WebSocketDisconnect, RuntimeError):
                    return

    def _knows(self, key: Any, secret: Any) -> bool:
        given = ((f"{key}", self._key), (f"{secret}", self._secret))
        return all(hmac.compare_digest(told.encode(), own.encode()) for told, own in given)

    def _trading_message(self, socket: Socket, message: dict[str, Any] | None) -> Any:
        data = message.get("data") if message is not None else None
        data, action = data if isinstance(data, dict) else {}, (message or {}).get("action")
        if action in ("authenticate", "auth"):
            keys = (data.get("key_id"), data.get("secret_key")) if data else (message.get("key"), message.get("secret"))
            socket.ready = self._knows(*keys)
            status = "authorized" if socket.ready else "unauthorized"
            return {"stream": "authorization", "data": {"status": status, "action": "authenticate"}}
        if action == "listen" and socket.ready:
            streams = [name for name in _names(data.get("streams")) if name == "trade_updates"]
            socket.wanted = {name: {"*"} for name in streams}
            return {"stream": "listening", "data": {"streams": streams}}
        return {"stream": "error", "data": {"error": "invalid action" if socket.ready else "not authenticated"}}

    def _trading_frame(self, socket: Socket, content: Any) -> Any:
        return content if socket.wanted else None

    def _data_message(self, socket: Socket, message: dict[str, Any] | None) -> Any:
        if message is None:
            return _error(400, "invalid syntax")
        action = message.get("action")
        if action == "auth":
            if socket.ready:
                return _error(403, "already authenticated")
            socket.ready = self._knows(message.get("key"), message.get("secret"))
            return [{"T": "success", "msg": "authenticated"}] if socket.ready else _error(402, "auth failed")
        if not socket.ready:
            return _error(401, "not authenticated")
        if action not in ("subscribe", "unsubscribe"):
            return _error(400, "invalid syntax")
        for channel in (*CHANNELS, *SILENT):
            symbols = set(_names(message.get(channel)))
            own = socket.wanted.get(channel, set())
            socket.wanted[channel] = own | symbols if action == "subscribe" else own - symbols
        socket.wanted = {channel: symbols for channel, symbols in socket.wanted.items() if symbols}
        lists = {channel: sorted(socket.wanted.get(channel, ())) for channel in (*CHANNELS, *SILENT)}
        return [{"T": "subscription", **lists}]

    def _data_frame(self, socket: Socket, content: list[dict[str, Any]]) -> list[dict[str, Any]]:
        wanted = {CHANNELS[channel]: symbols for channel, symbols in socket.wanted.items() if channel in CHANNELS}
        return [m for m in content if m["T"] in wanted and not wanted[m["T"]].isdisjoint(("*", m["S"]))]


def _names(given: Any) -> list[str]:
    """The texts of a list; none of what is no list."""
    return [name for name in given if isinstance(name, str)] if isinstance(given, list) else []


def _error(code: int, message: str) -> list[dict[str, Any]]:
    return [{"T": "error", "code": code, "msg": message}]
