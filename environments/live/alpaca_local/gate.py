"""Where requests meet their faults: an ASGI application around the venue's own."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import TYPE_CHECKING, Any

from environments.live.alpaca_local.faults import STATUSES, Fault
from environments.live.alpaca_local.wire import SECOND

if TYPE_CHECKING:
    from environments.live.alpaca_local.server import LocalAlpaca

MESSAGES = {
    429: "too many requests.",
    500: "internal server error occurred",
    503: "service unavailable",
    504: "upstream request timeout",
}


class Faulty:
    """`app` with the faults of `local`'s plan. /local has none.

    abort: breaks the connection of a scope.
    """

    def __init__(self, app: Callable, local: LocalAlpaca, abort: Callable[[Any], None]) -> None:
        self.app, self.local, self.abort = app, local, abort

    async def __call__(self, scope: dict[str, Any], receive: Callable, send: Callable) -> None:
        if scope["type"] != "http" or scope["path"].startswith("/local/"):
            return await self.app({**scope, "state": {"skew": 0, "behind": 0}}, receive, send)
        faults = self.local.faults
        fault = faults.of_request(scope["method"], scope["path"])
        kind = fault.kind if fault is not None else ""
        skew = faults.skew + (fault.seconds if kind == "clock_skew" else 0.0)
        scope["state"] = {"skew": int(skew * SECOND), "behind": int(kind == "stale_data")}
        dated = self._dated(send, skew)
        if kind == "delay":
            await asyncio.sleep(fault.seconds)
        elif kind in ("late_cancel", "late_reject"):
            self.local.venue.later = kind
        elif kind == "drop_request":
            return await self._break(scope, receive)
        elif kind in STATUSES and not fault.after:
            return await self._refuse(int(kind), dated)
        if kind in ("drop_reply", "missing_field", "unknown_enum", *STATUSES):
            answer: list[dict[str, Any]] = []

            async def keep(message: dict[str, Any]) -> None:
                answer.append(message)

            await self.app(scope, receive, keep)
            if kind == "drop_reply":
                return await self._break(scope, receive)
            if kind in STATUSES:
                return await self._refuse(int(kind), dated)
            return await self._mangled(fault, answer, dated)
        await self.app(scope, receive, dated)
        self.local.venue.later = ""  # of this request alone, also where it was refused

    def _dated(self, send: Callable, skew: float) -> Callable:
        """`send` with the header Date, which tells the venue's time."""

        async def with_date(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                now = datetime.fromtimestamp(self.local.venue.now / SECOND + skew, UTC)
                message["headers"] = [*message["headers"], (b"date", format_datetime(now, usegmt=True).encode())]
            await send(message)

        return with_date

    async def _break(self, scope: dict[str, Any], receive: Callable) -> None:
        self.abort(scope)
        while (await receive())["type"] != "http.disconnect":
            continue

    async def _refuse(self, status: int, send: Callable) -> None:
        body = json.dumps({"code": status * 100_000 + 10_000, "message": MESSAGES[status]}).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        if status == 429:
            headers.append((b"retry-after", b"1"))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _mangled(self, fault: Fault, answer: list[dict[str, Any]], send: Callable) -> None:
        start, body = answer[0], b"".join(message.get("body", b"") for message in answer[1:])
        if start["status"] in (200, 207) and body:
            body = json.dumps(self.local.faults.mangle(fault, json.loads(body))).encode()
        headers = [header for header in start["headers"] if header[0] != b"content-length"]
        headers.append((b"content-length", str(len(body)).encode()))
        await send({**start, "headers": headers})
        await send({"type": "http.response.body", "body": body})
