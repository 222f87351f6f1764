"""A loopback server that speaks as Alpaca's historical bars and as Supabase's tables, faults included."""

from __future__ import annotations

import base64
import json
import threading
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pandas as pd

KEYS = ("PKTESTKEYID0001", "s3cr3t/of+the=tests")
SERVICE_KEY = "eyJhbGciOiJub25lIn0.service-role.tests"
PATHS = {"/v1beta3/crypto/us/bars": "crypto", "/v2/stocks/bars": "stock"}


@dataclass(frozen=True)
class Fault:
    """What one request gets instead of an answer: a status, a hang of some seconds, or half an answer."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    hang: float = 0.0
    cut: bool = False
    message: str = "as the test wants it"


def bars_of(start: str, n: int, minutes: int, price: float = 100.0) -> list[dict[str, Any]]:
    """`n` bars as the API writes them, `minutes` apart; no two alike."""
    stamps = pd.date_range(start, periods=n, freq=f"{minutes}min", tz="UTC")
    return [bar(stamp, price + i) for i, stamp in enumerate(stamps)]


def bar(stamp: pd.Timestamp, price: float) -> dict[str, Any]:
    """One bar as the API writes it, closing a tenth above its open."""
    text = pd.Timestamp(stamp).tz_convert("UTC").strftime("%Y-%m-%dT%H:%M:%SZ")
    close = price + 0.1
    return {
        "t": text,
        "o": price,
        "h": close + 0.5,
        "l": price - 0.5,
        "c": close,
        "v": price / 3,
        "n": 7,
        "vw": price,
    }


class DataApi:
    """`with DataApi() as api:` serves on `api.url` until the block ends.

    bars: {(symbol, "5Min"): bars as `bars_of` makes them}; pages hold at most `page` of them.
    rows: {table: rows}, served by PostgREST's Range protocol, at most `max_rows` at once.
    faults: what the next requests get, in turn; None for a proper answer.
    asked: (path, {parameter: value}, headers) of every request that was not refused for its keys.
    """

    def __init__(self, page: int = 10_000, max_rows: int = 1_000) -> None:
        self.bars: dict[tuple[str, str], list[dict[str, Any]]] = {}
        self.rows: dict[str, list[dict[str, Any]]] = {}
        self.page, self.max_rows = page, max_rows
        self.faults: deque[Fault | None] = deque()
        self.asked: list[tuple[str, dict[str, str], dict[str, str]]] = []
        self.closing = threading.Event()

    def __enter__(self) -> DataApi:
        api = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                api.serve(self)

            def log_message(self, *ignored: object) -> None:
                """Quiet: what was asked is in `asked`."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *ignored: object) -> None:
        self.closing.set()
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def tokens(self) -> list[str | None]:
        """The page token of every request."""
        return [query.get("page_token") for _, query, _ in self.asked]

    def serve(self, handler: BaseHTTPRequestHandler) -> None:
        url = urlsplit(handler.path)
        # The last of repeated parameters, but all of `timestamp`, which has two bounds.
        several = parse_qs(url.query)
        query = {name: values[-1] for name, values in several.items()}
        self.asked.append((url.path, query, {k.lower(): v for k, v in handler.headers.items()}))
        fault = self.faults.popleft() if self.faults else None
        if fault is not None and fault.hang:
            self.closing.wait(fault.hang)
            return
        if fault is not None and fault.status:
            return self.answer(handler, fault.status, {"message": fault.message}, fault.headers)
        if url.path in PATHS:
            status, body, headers = self.page_of_bars(PATHS[url.path], query, handler.headers)
        elif url.path.startswith("/rest/v1/"):
            status, body, headers = self.range_of_rows(url.path[9:], several, handler.headers)
        else:
            status, body, headers = 404, {"message": "no such path"}, {}
        self.answer(handler, status, body, headers, cut=fault is not None and fault.cut)

    @staticmethod
    def answer(
        handler: BaseHTTPRequestHandler, status: int, body: Any, headers: dict[str, str], cut: bool = False
    ) -> None:
        data = json.dumps(body).encode()
        handler.send_response(status)
        for name, value in {
            "Content-Type": "application/json",
            "Content-Length": str(len(data)),
            **headers,
        }.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(data[: len(data) // 2] if cut else data)

    def page_of_bars(self, kind: str, query: dict[str, str], headers: Any) -> tuple[int, Any, dict[str, str]]:
        """Status, body and headers of one page. Without a feed of its own, crypto needs no keys."""
        given = headers.get("APCA-API-KEY-ID"), headers.get("APCA-API-SECRET-KEY")
        if given != KEYS and (kind == "stock" or given != (None, None)):
            return 401, {"message": f"no access for {given[0]} {given[1]}"}, {}
        key = query["symbols"], query["timeframe"]
        if key[0] not in {symbol for symbol, _ in self.bars}:
            return 400, {"message": f"invalid symbol: {key[0]}"}, {}
        first = base64.b64decode(query["page_token"]).decode() if "page_token" in query else query["start"]
        found = [b for b in self.bars.get(key, []) if first <= b["t"] <= query["end"]]
        size = min(int(query["limit"]), self.page)
        page, more = found[:size], found[size:]
        token = base64.b64encode(more[0]["t"].encode()).decode() if more else None
        return 200, {"bars": {key[0]: page} if page else {}, "next_page_token": token}, {}

    def range_of_rows(
        self, table: str, query: dict[str, Sequence[str]], headers: Any
    ) -> tuple[int, Any, dict[str, str]]:
        """PostgREST: filters eq, gte and lt, an order, and a Range of items."""
        if headers.get("apikey") != SERVICE_KEY or headers.get("Authorization") != f"Bearer {SERVICE_KEY}":
            return 401, {"message": "Invalid API key"}, {}
        if table not in self.rows:
            return 404, {"message": f"no table {table}"}, {}
        found = [row for row in self.rows[table] if all(map(lambda f: _passes(row, *f), _filters(query)))]
        found.sort(key=lambda row: row[query["order"][0].removesuffix(".asc")])
        first, last = map(int, headers["Range"].split("-"))
        page = found[first : min(last + 1, first + self.max_rows)]
        span = f"{first}-{first + len(page) - 1}" if page else "*"
        total = len(found) if "count=exact" in (headers.get("Prefer") or "") else "*"
        names = query["select"][0].split(",")
        body = [{name: row[name] for name in names} for row in page]
        return 206 if len(page) < len(found) else 200, body, {"Content-Range": f"{span}/{total}"}


def _filters(query: dict[str, Sequence[str]]) -> Iterable[tuple[str, str, str]]:
    for name, values in query.items():
        if name not in ("select", "order"):
            for value in values:
                operator, _, operand = value.partition(".")
                yield name, operator, operand


def _passes(row: dict[str, Any], name: str, operator: str, operand: str) -> bool:
    value = row[name]
    if name == "timestamp":
        value, operand = pd.Timestamp(value), pd.Timestamp(operand)
    return {"eq": value == operand, "gte": value >= operand, "lt": value < operand}[operator]
