"""Bars in PostgreSQL: any server by DATABASE_URL, streamed with COPY in its binary format both ways.

    table historical_bars
        symbol     text              as the source writes it: AAPL, BTC/USD
        timeframe  text              5m, 1h, 1d (see environments.timeframe)
        timestamp  timestamptz       when the bar opens; 00:00 UTC of its date for daily stock bars
        open, high, low, close, volume  double precision
        primary key (symbol, timeframe, timestamp)

Doubles and microseconds go over the wire as they are, so a round trip keeps the fingerprint.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pandas as pd

from environments.data.credentials import Secret, find_secret, redact
from environments.data.files import bars_from_frame
from environments.data.postgrest import SUPABASE_NAMES, SupabaseTable
from environments.data.source import BarRequest, BarSet, SourceUnavailable
from environments.data.tidy import VALUES, nanoseconds, tidy
from environments.errors import InputError
from environments.timeframe import Timeframe

TABLE = "historical_bars"
URL_VARIABLE = "DATABASE_URL"
CONNECT_TIMEOUT = 10
CREATE = f"""
CREATE TABLE IF NOT EXISTS {TABLE} (
    symbol text NOT NULL,
    timeframe text NOT NULL,
    timestamp timestamptz NOT NULL,
    open double precision NOT NULL,
    high double precision NOT NULL,
    low double precision NOT NULL,
    close double precision NOT NULL,
    volume double precision NOT NULL,
    PRIMARY KEY (symbol, timeframe, timestamp)
)
"""
SELECT = f"""
COPY (
    SELECT timestamp::timestamptz, {", ".join(f"{name}::double precision" for name in VALUES)}
    FROM {TABLE}
    WHERE symbol = %s AND timeframe = %s AND timestamp >= %s AND timestamp < %s ORDER BY timestamp
) TO STDOUT (FORMAT binary)
"""

# https://www.postgresql.org/docs/current/sql-copy.html, "Binary Format": a signature, flags and the length of
# a header extension; per row the number of fields, per field its length and content, big-endian; -1 ends it.
HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
TRAILER = b"\xff\xff"
MICROSECONDS_TO_2000 = 946_684_800_000_000  # timestamps count microseconds from 2000-01-01
EIGHT_BYTES = [("timestamp", ">i8"), *((name, ">f8") for name in VALUES)]
CHUNK_ROWS = 50_000


class PostgresSource:
    """Bars of the table `historical_bars`, by DATABASE_URL or, over https, SUPABASE_URL and its service key.

    DATABASE_URL (postgresql://user:password@host:5432/database, from the environment or `.env`) is used when
    it is set; otherwise SUPABASE_URL and SUPABASE_SERVICE_ROLE_KEY, see `postgrest.SupabaseTable`. Over https
    symbols and timeframe are needed; in a database they default to all symbols and the only timeframe there.
    """

    name = "postgres"
    on_progress: Callable[[str, float, int], None] | None = None
    """called per symbol, the fraction of it that was read, and its bars so far"""

    def load(self, request: BarRequest) -> BarSet:
        """The bars asked for.

        Raises:
            SourceUnavailable: no URL or keys set, or the server cannot be reached or refuses.
            InputError: no such symbol or timeframe, a NULL, or a bad bar.
        """
        request.accept_only(self.name, "symbols", "timeframe", "start", "end", "asset_class")
        url = find_secret(URL_VARIABLE)
        if url is not None:
            frame, timeframe = self._read(url, request)
        elif find_secret(*SUPABASE_NAMES) is not None:
            frame, timeframe = SupabaseTable.from_environment(TABLE).read(request, self.on_progress)
        else:
            raise SourceUnavailable(
                f"source postgres needs {URL_VARIABLE}, or {' and '.join(SUPABASE_NAMES)}, in the "
                "environment or in a .env file here"
            )
        return bars_from_frame(frame, TABLE, request, source=self.name, own=timeframe)

    def _read(self, url: Secret, request: BarRequest) -> tuple[pd.DataFrame, Timeframe]:
        with connect(url) as connection:
            # One snapshot, so that a download into the table meanwhile is seen whole or not at all.
            connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
            timeframe, symbols = _choose(connection, request)
            frames = []
            for symbol in symbols:
                frames.append(_read_symbol(connection, symbol, timeframe, request))
                if self.on_progress is not None:
                    self.on_progress(symbol, 1.0, len(frames[-1]))
        return tidy(pd.concat(frames, ignore_index=True), TABLE), timeframe


def write_bars(bars: BarSet, on_progress: Callable[[str, float, int], None] | None = None) -> int:
    """Write `bars` to the database of DATABASE_URL; the table is created if it is not there.

    Rows of the same symbol and timeframe between the first and the last bar of each symbol are replaced; rows
    outside stay. One transaction: all or nothing. Returns the number of rows written.

    Raises:
        SourceUnavailable: DATABASE_URL is not set, or the server cannot be reached or refuses.
        InputError: synthetic bars, further columns, or timestamps finer than a microsecond, none of which the
            table can hold.
    """
    if bars.synthetic:
        raise InputError(f"synthetic bars are not written to {TABLE}: nothing there would tell what they are")
    if bars.extra:
        raise InputError(f"{TABLE} has no column {', '.join(bars.extra)}: prices and volume are accepted")
    if (nanoseconds(bars.frame) % 1_000).any():
        raise InputError(f"{TABLE} holds timestamps to the microsecond; these bars have finer ones")
    url = find_secret(URL_VARIABLE)
    if url is None:
        raise SourceUnavailable(f"writing to PostgreSQL needs {URL_VARIABLE} in the environment or in a .env file here")
    timeframe = str(bars.timeframe)
    columns = ", ".join(("symbol", "timeframe", "timestamp", *VALUES))
    with connect(url) as connection:
        connection.execute(CREATE)
        for symbol in bars.symbols:
            rows = bars.frame[bars.frame["symbol"] == symbol]
            first, last = rows["timestamp"].iloc[[0, -1]].dt.to_pydatetime()
            connection.execute(
                f"DELETE FROM {TABLE} WHERE symbol = %s AND timeframe = %s AND timestamp BETWEEN %s AND %s",
                (symbol, timeframe, first, last),
            )
            with connection.cursor().copy(f"COPY {TABLE} ({columns}) FROM STDIN (FORMAT binary)") as copy:
                copy.write(HEADER)
                for at in range(0, len(rows), CHUNK_ROWS):
                    copy.write(encode_rows(rows.iloc[at : at + CHUNK_ROWS], symbol, timeframe))
                    if on_progress is not None:
                        done = min(at + CHUNK_ROWS, len(rows))
                        on_progress(symbol, done / len(rows), done)
                copy.write(TRAILER)
    return len(bars.frame)


@contextmanager
def connect(url: Secret) -> Iterator[Any]:
    """A psycopg connection, committed at the end or rolled back; its errors as one line without the URL.

    Raises:
        InputError: psycopg is not installed, or `url` is not a PostgreSQL URL.
        SourceUnavailable: whatever the server or the way to it refuses.
    """
    try:
        import psycopg
    except ImportError:
        raise InputError("PostgreSQL needs psycopg: pip install 'drl-agents[postgres]'") from None
    if not url.reveal().startswith(("postgresql://", "postgres://")):
        raise InputError(f"{URL_VARIABLE}: postgresql://user:password@host:5432/database is accepted")
    patience = {} if "PGCONNECT_TIMEOUT" in os.environ else {"connect_timeout": CONNECT_TIMEOUT}
    try:
        with psycopg.connect(url.reveal(), **patience) as connection:
            yield connection
    except psycopg.ProgrammingError as error:
        # A URL that cannot be parsed is quoted in the message, password and all.
        reason = redact(str(error), [url])[:160] if error.sqlstate else f"{URL_VARIABLE} is not a readable URL"
        raise SourceUnavailable(f"PostgreSQL: {reason}") from None
    except psycopg.Error as error:
        raise SourceUnavailable(f"PostgreSQL: {redact(str(error), [url])[:200]}") from None


def encode_rows(rows: pd.DataFrame, symbol: str, timeframe: str) -> bytes:
    """Rows of one symbol in COPY's binary format: 8 fields each, all of one length, so one array."""
    texts = {"symbol": symbol.encode(), "timeframe": timeframe.encode()}
    fields: list[tuple[str, str]] = [("n", ">i2")]
    for name, text in texts.items():
        fields += [(f"{name}_length", ">i4"), (name, f"V{len(text)}")]
    for name, kind in EIGHT_BYTES:
        fields += [(f"{name}_length", ">i4"), (name, kind)]
    out = np.zeros(len(rows), dtype=fields)
    out["n"] = 2 + len(EIGHT_BYTES)
    for name, text in texts.items():
        out[f"{name}_length"], out[name] = len(text), np.void(text)
    for name, _ in EIGHT_BYTES:
        out[f"{name}_length"] = 8
        if name == "timestamp":
            out[name] = nanoseconds(rows) // 1_000 - MICROSECONDS_TO_2000
        else:
            out[name] = rows[name].to_numpy()
    return out.tobytes()


def decode_rows(data: bytes, symbol: str) -> pd.DataFrame:
    """The tidy rows of one symbol in what `SELECT` streams. Raises InputError where a field is NULL."""
    fields: list[tuple[str, str]] = [("n", ">i2")]
    for name, kind in EIGHT_BYTES:
        fields += [(f"{name}_length", ">i4"), (name, kind)]
    row = np.dtype(fields)
    body = memoryview(data)[len(HEADER) : -len(TRAILER)]
    whole = len(body) % row.itemsize == 0
    rows = np.frombuffer(body, dtype=row, count=len(body) // row.itemsize)
    # A NULL has no content, so the rows after it are out of step.
    if not whole or any((rows[f"{name}_length"] != 8).any() for name, _ in EIGHT_BYTES):
        raise InputError(f"{TABLE}: a NULL in the bars of {symbol}; numbers are needed")
    stamps = (rows["timestamp"].astype(np.int64) + MICROSECONDS_TO_2000).view("datetime64[us]")
    columns = {name: rows[name].astype(np.float64) for name in VALUES}
    frame = pd.DataFrame({"timestamp": pd.DatetimeIndex(stamps, tz="UTC"), **columns})
    return frame.assign(symbol=symbol)


def _read_symbol(connection: Any, symbol: str, timeframe: Timeframe, request: BarRequest) -> pd.DataFrame:
    first = "-infinity" if request.start is None else request.start.isoformat()
    last = "infinity" if request.end is None else request.end.isoformat()
    with connection.cursor().copy(SELECT, (symbol, str(timeframe), first, last)) as copy:
        data = b"".join(bytes(chunk) for chunk in copy)
    frame = decode_rows(data, symbol)
    if frame.empty:
        raise InputError(f"{TABLE} has no {timeframe} bars of {symbol} in the span asked for")
    return frame


def _choose(connection: Any, request: BarRequest) -> tuple[Timeframe, tuple[str, ...]]:
    """The timeframe and the symbols to read. Raises InputError listing what the table has."""
    import psycopg

    try:
        found = connection.execute(
            f"SELECT timeframe, array_agg(DISTINCT symbol) FROM {TABLE} GROUP BY timeframe"
        ).fetchall()
    except psycopg.errors.UndefinedTable:
        message = f"the database has no table {TABLE}; scripts/download.py --to postgres makes it"
        raise InputError(message) from None
    have = {timeframe: set(symbols) for timeframe, symbols in found}
    if not have:
        raise InputError(f"{TABLE} is empty; scripts/download.py --to postgres fills it")
    if request.timeframe is None and len(have) > 1:
        raise InputError(f"{TABLE} has timeframes {', '.join(sorted(have))}: name one")
    timeframe = str(request.timeframe) if request.timeframe is not None else next(iter(have))
    if timeframe not in have:
        raise InputError(f"{TABLE} has no {timeframe} bars; it has {', '.join(sorted(have))}")
    symbols = request.symbols or tuple(sorted(have[timeframe]))
    if absent := [name for name in symbols if name not in have[timeframe]]:
        present = ", ".join(sorted(have[timeframe]))
        raise InputError(f"{TABLE} has no {timeframe} bars of {', '.join(absent)}; it has {present}")
    return Timeframe.parse(timeframe), symbols
