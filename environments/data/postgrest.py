"""Bars of a Supabase project over https: PostgREST, read range by range."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import requests

from environments.data.credentials import Secret, find_secret, redact
from environments.data.http import PatientSession, require_https
from environments.data.indicators import ALL, choose_indicators, numeric_names, without_nan_texts
from environments.data.source import BarRequest, SourceUnavailable
from environments.data.tidy import COLUMNS, VALUES, tidy
from environments.errors import InputError
from environments.timeframe import Timeframe

SUPABASE_NAMES = ("SUPABASE_URL", "SUPABASE_SERVICE_ROLE_KEY")
PAGE_ROWS = 1_000  # a project's max-rows unless it was changed; a server that gives fewer is followed
PLAIN_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
CONTENT_RANGE = re.compile(r"(?:(\d+)-(\d+)|\*)/(\d+|\*)")


@dataclass
class SupabaseTable:
    """One table behind <url>/rest/v1.

    Pages are asked for with the Range header and a stable order; Content-Range of the first page tells how
    many rows there are, and reading fewer is an error.

    https://docs.postgrest.org/en/latest/references/api/pagination_count.html
    """

    url: str
    key: Secret
    table: str
    session: requests.Session = field(default_factory=lambda: PatientSession("Supabase"))

    @classmethod
    def from_environment(cls, table: str) -> SupabaseTable:
        """By SUPABASE_URL and SUPABASE_SERVICE_ROLE_KEY. Raises SourceUnavailable naming the one not set."""
        url, key = (find_secret(name) for name in SUPABASE_NAMES)
        if url is None or key is None:
            lacking = SUPABASE_NAMES[0 if url is None else 1]
            raise SourceUnavailable(f"Supabase: set {lacking} in the environment or in a .env file here")
        return cls(require_https(url.reveal(), SUPABASE_NAMES[0]), key, table)

    def read(
        self, request: BarRequest, on_progress: Callable[[str, float, int], None] | None = None
    ) -> tuple[pd.DataFrame, Timeframe]:
        """The tidy rows asked for, and their timeframe.

        Raises:
            SourceUnavailable: no answer, refused keys, or a table that changed while it was read.
            InputError: no symbols or timeframe named, or the table has no bars of a symbol.
        """
        for name in ("symbols", "timeframe"):
            if getattr(request, name) is None:
                raise InputError(f"bars of Supabase over https need {name}: name them")
        frames = []
        select = ",".join((*COLUMNS, *map(_quoted, request.extra_columns)))
        with self.session:
            for symbol in request.symbols or ():
                rows = self._rows(self._filters(request, symbol, select), symbol, on_progress)
                if not rows:
                    raise InputError(f"{self.table} has no {request.timeframe} bars of {symbol} in the span asked for")
                columns = [*COLUMNS, *request.extra_columns]
                frames.append(tidy(pd.DataFrame(rows).reindex(columns=columns), self.table, request.extra_columns))
        return pd.concat(frames, ignore_index=True), request.timeframe

    def join_indicators(
        self, frame: pd.DataFrame, request: BarRequest, asked: Sequence[str]
    ) -> tuple[pd.DataFrame, tuple[str, ...]]:
        """`frame` with the indicators of this table as further columns, NaN where it has none, and their names.

        Rows are joined by symbol and timestamp. asked: see `indicators.asked_indicators`.

        Raises:
            SourceUnavailable: as `read`.
            InputError: the table lacks an indicator, or holds two rows of one bar.
        """
        select = "*" if tuple(asked) == (ALL,) else ",".join(map(_quoted, ("timestamp", *asked)))
        rows: list[dict[str, Any]] = []
        with self.session:
            for symbol in request.symbols or ():
                filters = self._filters(request, symbol, select)
                rows += [without_nan_texts(row) | {"symbol": symbol} for row in self._rows(filters, symbol, None)]
        if not rows:
            raise InputError(f"{self.table} has no {request.timeframe} rows of {', '.join(request.symbols or ())}")
        names = choose_indicators(asked, numeric_names(rows), request.extra_columns)
        found = tidy(pd.DataFrame(rows).assign(**dict.fromkeys(VALUES, 0.0)), self.table, names)
        keys = ["symbol", "timestamp"]
        twice = found.duplicated(keys)
        if twice.any():
            first = found.loc[twice.idxmax()]
            raise InputError(f"{self.table}: two rows of {first['symbol']} at {first['timestamp'].isoformat()}")
        return frame.merge(found[[*keys, *names]], how="left", on=keys, validate="many_to_one"), names

    def _filters(self, request: BarRequest, symbol: str, select: str) -> list[tuple[str, str]]:
        filters = [
            ("select", select),
            ("symbol", f"eq.{symbol}"),
            ("timeframe", f"eq.{request.timeframe}"),
            ("order", "timestamp.asc"),
        ]
        if request.start is not None:
            filters.append(("timestamp", f"gte.{request.start.isoformat()}"))
        if request.end is not None:
            filters.append(("timestamp", f"lt.{request.end.isoformat()}"))
        return filters

    def _rows(
        self,
        filters: list[tuple[str, str]],
        symbol: str,
        on_progress: Callable[[str, float, int], None] | None,
    ) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = []
        total = None
        while total is None or len(rows) < total:
            page, counted = self._page(filters, len(rows), count=total is None)
            total = counted if total is None else total
            if not page and len(rows) < total:
                raise SourceUnavailable(f"{self.table}: {len(rows)} of {total} rows of {symbol}, then none; ask again")
            rows += page
            if on_progress is not None and total:
                on_progress(symbol, min(len(rows) / total, 1.0), len(rows))
        return rows

    def _page(self, filters: list[tuple[str, str]], offset: int, count: bool) -> tuple[list[dict[str, Any]], int]:
        """Rows from `offset`, and with `count` how many there are in all (otherwise 0)."""
        key = self.key.reveal()
        headers = {
            "apikey": key,
            "Range-Unit": "items",
            "Range": f"{offset}-{offset + PAGE_ROWS - 1}",
            **({"Prefer": "count=exact"} if count else {}),
        }

        def bearer(prepared: requests.PreparedRequest) -> requests.PreparedRequest:
            # As `auth`, since a login for the host in a .netrc would replace a plain header.
            prepared.headers["Authorization"] = f"Bearer {key}"
            return prepared

        answer = self.session.get(f"{self.url}/rest/v1/{self.table}", params=filters, headers=headers, auth=bearer)
        reason = redact(answer.text, [self.key])[:160]
        if answer.status_code in (401, 403):
            raise SourceUnavailable(
                f"Supabase refused (HTTP {answer.status_code}: {reason}): check {SUPABASE_NAMES[1]}"
            )
        if answer.status_code not in (200, 206):
            raise SourceUnavailable(f"Supabase, table {self.table}: HTTP {answer.status_code}: {reason}")
        span = CONTENT_RANGE.fullmatch(answer.headers.get("Content-Range", ""))
        try:
            page = answer.json()
        except ValueError:
            page = None
        if span is None or not isinstance(page, list) or (count and span[3] == "*"):
            raise SourceUnavailable(f"Supabase, table {self.table}: an answer without rows or Content-Range")
        if page and int(span[1] or -1) != offset:
            raise SourceUnavailable(f"Supabase, table {self.table}: rows from {span[1]}, {offset} asked for")
        return page, int(span[3]) if count else 0


def _quoted(name: str) -> str:
    """A column's name in `select`: as it is, or in quotes where PostgREST reads something else into it."""
    if PLAIN_NAME.fullmatch(name):
        return name
    escaped = name.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
