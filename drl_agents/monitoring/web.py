"""The web view: a static page, and a stream of what changes under `logs/`.

Nothing here acts on a trader or a study: the page reads, and there is no route that writes. On the loopback interface
the page is open to the users of this machine, and only under a loopback name, so that no foreign page can reach it by
pointing its own name here. On any other interface a token is asked for.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import ipaddress
import json
import math
import os
import secrets
import signal
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.requests import HTTPConnection, Request
from starlette.responses import FileResponse, PlainTextResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from drl_agents.monitoring.increments import Increments
from drl_agents.monitoring.snapshot import Watcher, take_snapshot
from environments.errors import InputError

STATIC = Path(__file__).parent / "static"
TOKEN_VARIABLE = "DRL_DASHBOARD_TOKEN"
TOKEN_LENGTH = 16  # characters below which a token given by hand is refused
COOKIE = "drl_dashboard"
BEAT_SECONDS = 1.0  # between two messages where nothing changes: a page that hears none for ten says it is stale
MAX_READERS = 16  # pages at once: each has a watcher of its own
SECURITY = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


def is_loopback(host: str) -> bool:
    """Does `host` mean this machine alone?"""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def make_token(host: str) -> str | None:
    """The token that readers must show: none on loopback, else `DRL_DASHBOARD_TOKEN`, else a new one.

    Raises:
        InputError: the token given is too short to be one.
    """
    if is_loopback(host):
        return None
    given = os.environ.get(TOKEN_VARIABLE, "")
    if given and len(given) < TOKEN_LENGTH:
        raise InputError(f"{TOKEN_VARIABLE} has {len(given)} characters: at least {TOKEN_LENGTH} are accepted")
    return given or secrets.token_urlsafe(24)


class Guard:
    """Lets in who may read, and adds `SECURITY` to every answer.

    Without a token the Host header must name the loopback interface. With one, a request must carry it as a cookie or
    as `Authorization: Bearer`; `?token=` on the page sets the cookie and leaves the address.
    """

    def __init__(self, app: ASGIApp, token: str | None) -> None:
        self.app, self.token = app, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = [(name.lower().encode(), value.encode()) for name, value in SECURITY.items()]
                names = {name for name, _ in own}
                message["headers"] = [pair for pair in message.get("headers", []) if pair[0] not in names] + own
            await send(message)

        refusal = self._refusal(HTTPConnection(scope))
        await (refusal or self.app)(scope, receive, send_guarded)

    def _refusal(self, request: HTTPConnection) -> Response | None:
        if self.token is None:
            host = request.headers.get("host", "")
            name = host[1 : host.find("]")] if host.startswith("[") else host.partition(":")[0]
            return None if is_loopback(name) else PlainTextResponse("this page is for this machine alone\n", 403)
        shown = request.query_params.get("token", "")
        if request.url.path == "/" and self._is_token(shown):
            rest = [(k, v) for k, v in request.query_params.multi_items() if k != "token"]
            answer = RedirectResponse("/" + ("?" + urlencode(rest) if rest else ""), 303)
            answer.set_cookie(COOKIE, self.token, httponly=True, samesite="strict")
            return answer
        bearer = request.headers.get("authorization", "").removeprefix("Bearer ")
        if self._is_token(request.cookies.get(COOKIE, "")) or self._is_token(bearer):
            return None
        return PlainTextResponse("open the address that was printed when the dashboard started\n", 401)

    def _is_token(self, shown: str) -> bool:
        return hmac.compare_digest(shown.encode(), (self.token or "").encode())


def build_app(logs: str | Path, refresh: float, token: str | None, stopping: Callable[[], bool]) -> Starlette:
    """The application.

    GET / is the page, /static/ its parts, /events?study=&trader= a stream (text/event-stream) of JSON messages
    of `Increments`, from looks `refresh` seconds apart, /snapshot.json?study=&trader= one whole snapshot.

    Args:
        stopping: True ends the streams.
    """
    readers = 0

    def watcher(request: Request) -> Watcher:
        return Watcher(logs, request.query_params.get("study"), request.query_params.get("trader"))

    async def page(request: Request) -> Response:
        return FileResponse(STATIC / "index.html", media_type="text/html; charset=utf-8")

    async def snapshot(request: Request) -> Response:
        taken = await run_in_threadpool(watcher(request).take)
        return Response(taken.to_json(), media_type="application/json")

    async def events(request: Request) -> Response:
        nonlocal readers
        if readers >= MAX_READERS:
            return PlainTextResponse(f"{MAX_READERS} pages are open already: close one\n", 503)
        own, told = watcher(request), Increments()

        def look() -> dict[str, Any]:
            return told.next(own.take(), own.curve)

        async def stream() -> AsyncIterator[str]:
            nonlocal readers
            readers += 1
            try:
                loop = asyncio.get_running_loop()
                due, said = loop.time(), -math.inf
                while not stopping() and not await request.is_disconnected():
                    message = await run_in_threadpool(look)
                    if set(message) != {"time"} or loop.time() - said >= BEAT_SECONDS:
                        said = loop.time()
                        yield f"data: {json.dumps(message, allow_nan=False, separators=(',', ':'))}\n\n"
                    due = max(due + refresh, loop.time())
                    while (left := due - loop.time()) > 0 and not stopping():
                        await asyncio.sleep(min(left, 0.25))
            finally:
                readers -= 1

        return StreamingResponse(stream(), media_type="text/event-stream")

    routes = [
        Route("/", page),
        Route("/events", events),
        Route("/snapshot.json", snapshot),
        Mount("/static", StaticFiles(directory=STATIC)),
    ]
    return Starlette(routes=routes, middleware=[Middleware(Guard, token=token)])


def build_server(logs: str | Path, host: str, port: int, refresh: float, token: str | None) -> uvicorn.Server:
    """A server that ends its streams when it is told to exit; `run()` serves until then."""
    server: uvicorn.Server
    app = build_app(logs, refresh, token, lambda: server.should_exit)
    # No access log: the first request's address holds the token.
    config = uvicorn.Config(
        app, host=host, port=port, log_level="warning", access_log=False, lifespan="off", server_header=False,
        timeout_graceful_shutdown=3,
    )  # fmt: skip
    server = uvicorn.Server(config)
    return server


def address(host: str, port: int, token: str | None, chosen: Mapping[str, str | None]) -> str:
    """What to open in a browser."""
    name = f"[{host}]" if ":" in host else host
    query = {key: value for key, value in {**chosen, "token": token}.items() if value}
    return f"http://{name}:{port}/" + (f"?{urlencode(query)}" if query else "")


def serve(logs: str | Path, host: str, port: int, refresh: float, chosen: Mapping[str, str | None]) -> int:
    """Serve until Ctrl-C or SIGTERM; prints the address to open.

    Args:
        chosen: {"study": ..., "trader": ...}, what the page shows at first; None: whatever was written to last.

    Raises:
        InputError: the address cannot be had, or the token is too short.
    """
    if not 0 < port < 65536:
        raise InputError(f"--port {port}: accepted are 1 to 65535")
    token = make_token(host)
    try:
        listener = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise InputError(f"--host {host} --port {port}: {error.strerror or error}") from None
    # uvicorn raises the signal that ended it once more, under the handler that was there before.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with listener, contextlib.suppress(KeyboardInterrupt):
            take_snapshot(logs)  # the first look imports what later ones need: the page shall not wait for that
            print(f"dashboard: {address(host, port, token, chosen)}   (Ctrl-C ends it)", flush=True)
            build_server(logs, host, port, refresh, token).run(sockets=[listener])
    finally:
        signal.signal(signal.SIGTERM, before)
    return 0
