"""Bars in PostgreSQL: any server by DATABASE_URL, streamed with COPY in its binary format both ways.

    table historical_bars
        symbol     text              as the source writes it: AAPL, BTC/USD
        timeframe  text              5m, 1h, 1d (see environments.timeframe)
        timestamp  timestamptz       when the bar opens; 00:00 UTC of its date for daily stock bars
        open, high, low, close, volume  double precision
        marketcap  double precision  only where a download brought one; other such columns may be added by hand
        primary key (symbol, timeframe, timestamp)

and, with the same key, technical_indicators (see `indicators`). Doubles and microseconds go over the wire as they
are, so a round trip keeps the fingerprint.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pandas as pd

from environments.data import indicators
from environments.data.copy_binary import HEADER, TRAILER, decode_rows, encode_rows
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
# Further columns that belong to a bar itself; all others are indicators.
OF_THE_BAR = ("marketcap",)
CREATE = """
CREATE TABLE IF NOT EXISTS {table} (
    symbol text NOT NULL,
    timeframe text NOT NULL,
    timestamp timestamptz NOT NULL,
    {columns}
    PRIMARY KEY (symbol, timeframe, timestamp)
)
"""
NUMERIC = ("smallint", "integer", "bigint", "real", "double precision", "numeric")
LONGEST_NAME = 63  # bytes of a PostgreSQL identifier; longer ones are cut without a word
CHUNK_ROWS = 50_000


class PostgresSource:
    """Bars of the table `historical_bars`, by DATABASE_URL or, over https, SUPABASE_URL and its service key.

    DATABASE_URL (postgresql://user:password@host:5432/database, from the environment or `.env`) is used when
    it is set; otherwise SUPABASE_URL and SUPABASE_SERVICE_ROLE_KEY, see `postgrest.SupabaseTable`. Over https
    symbols and timeframe are needed; in a database they default to all symbols and the only timeframe there.

    `extra_columns` names further numeric columns of the table, such as marketcap. The option `indicators` ("all", or
    names separated by commas) joins numeric columns of technical_indicators on symbol, timeframe and timestamp: as
    known at the close of that bar, NaN where there is no row or no number, see `indicators`.
    """

    name = "postgres"
    on_progress: Callable[[str, float, int], None] | None = None
    """called per symbol, the fraction of it that was read, and its bars so far"""

    def load(self, request: BarRequest) -> BarSet:
        """The bars asked for.

        Raises:
            SourceUnavailable: no URL or keys set, or the server cannot be reached or refuses.
            InputError: no such symbol, timeframe, column or indicator, a NULL, or a bad bar.
        """
        request.accept_only(
            self.name, "symbols", "timeframe", "start", "end", "asset_class", "extra_columns", "calendar", "options"
        )
        asked = indicators.asked_indicators(dict(request.options), self.name)
        url = find_secret(URL_VARIABLE)
        if url is not None:
            frame, timeframe, names = self._read(url, request, asked)
        elif find_secret(*SUPABASE_NAMES) is not None:
            frame, timeframe = SupabaseTable.from_environment(TABLE).read(request, self.on_progress)
            names = ()
            if asked is not None:
                table = SupabaseTable.from_environment(indicators.TABLE)
                frame, names = table.join_indicators(frame, request, asked)
        else:
            raise SourceUnavailable(
                f"source postgres needs {URL_VARIABLE}, or {' and '.join(SUPABASE_NAMES)}, in the "
                "environment or in a .env file here"
            )
        note = f", with {', '.join(names)} of {indicators.TABLE}" if names else ""
        bars = bars_from_frame(frame, TABLE, request, source=self.name, own=timeframe, note=note)
        return replace(bars, notes=(*bars.notes, *indicators.report_unknown(bars.frame, names)))

    def _read(
        self, url: Secret, request: BarRequest, asked: Sequence[str] | None
    ) -> tuple[pd.DataFrame, Timeframe, tuple[str, ...]]:
        """Tidy rows, their timeframe, and the names of the indicators in them."""
        with connect(url) as connection:
            # One snapshot, so that a download into the table meanwhile is seen whole or not at all.
            connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
            timeframe, symbols = _choose(connection, request)
            have = _numeric_columns(connection, TABLE)
            if absent := [name for name in request.extra_columns if name not in have]:
                raise InputError(f"{TABLE} has no numeric column {', '.join(absent)}; it has {', '.join(have)}")
            names: tuple[str, ...] = ()
            if asked is not None:
                present = _numeric_columns(connection, indicators.TABLE)
                names = indicators.choose_indicators(asked, present, request.extra_columns)
            frames = []
            for symbol in symbols:
                frames.append(_read_symbol(connection, symbol, timeframe, request, names))
                if self.on_progress is not None:
                    self.on_progress(symbol, 1.0, len(frames[-1]))
        return tidy(pd.concat(frames, ignore_index=True), TABLE, (*request.extra_columns, *names)), timeframe, names


def write_bars(bars: BarSet, on_progress: Callable[[str, float, int], None] | None = None) -> int:
    """Write `bars` to the database of DATABASE_URL; tables and columns are created if they are not there.

    Prices, volume and marketcap go to historical_bars, all other further columns to technical_indicators. Rows of the
    same symbol and timeframe between the first and the last bar of each symbol are replaced; rows outside stay. One
    transaction: all or nothing. Returns the number of rows written to historical_bars.

    Raises:
        SourceUnavailable: DATABASE_URL is not set, or the server cannot be reached or refuses.
        InputError: synthetic bars, a column name that PostgreSQL cannot hold, or timestamps finer than a microsecond.
    """
    if bars.synthetic:
        raise InputError(f"synthetic bars are not written to {TABLE}: nothing there would tell what they are")
    if (nanoseconds(bars.frame) % 1_000).any():
        raise InputError(f"{TABLE} holds timestamps to the microsecond; these bars have finer ones")
    refused = [n for n in bars.extra if n in indicators.NOT_INDICATORS or len(n.encode()) > LONGEST_NAME or "\0" in n]
    if refused:
        raise InputError(f"column {refused[0]!r}: names of up to {LONGEST_NAME} bytes other than id are accepted")
    url = find_secret(URL_VARIABLE)
    if url is None:
        raise SourceUnavailable(f"writing to PostgreSQL needs {URL_VARIABLE} in the environment or in a .env file here")
    own = tuple(name for name in bars.extra if name in OF_THE_BAR)
    others = tuple(name for name in bars.extra if name not in OF_THE_BAR)
    with connect(url) as connection:
        prices = " ".join(f"{name} double precision NOT NULL," for name in VALUES)
        _prepare(connection, TABLE, prices, own)
        _write_table(connection, TABLE, bars, (*VALUES, *own), on_progress)
        _prepare(connection, indicators.TABLE, "", others)
        if others:
            _write_table(connection, indicators.TABLE, bars, others, None)
    return len(bars.frame)


def _prepare(connection: Any, table: str, columns: str, further: Sequence[str]) -> None:
    """Create the table if it is not there, and the nullable columns `further` if it lacks them."""
    from psycopg import sql

    connection.execute(CREATE.format(table=table, columns=columns))
    for name in further:
        statement = sql.SQL("ALTER TABLE {} ADD COLUMN IF NOT EXISTS {} double precision")
        connection.execute(statement.format(sql.Identifier(table), sql.Identifier(name)))


def _write_table(
    connection: Any,
    table: str,
    bars: BarSet,
    names: Sequence[str],
    on_progress: Callable[[str, float, int], None] | None,
) -> None:
    """Replace the rows of each symbol's span by those of `bars`: the keys and the columns `names`."""
    from psycopg import sql

    timeframe = str(bars.timeframe)
    columns = sql.SQL(", ").join(map(sql.Identifier, ("symbol", "timeframe", "timestamp", *names)))
    statement = sql.SQL("COPY {} ({}) FROM STDIN (FORMAT binary)").format(sql.Identifier(table), columns)
    for symbol in bars.symbols:
        rows = bars.frame[bars.frame["symbol"] == symbol]
        first, last = rows["timestamp"].iloc[[0, -1]].dt.to_pydatetime()
        connection.execute(
            f"DELETE FROM {table} WHERE symbol = %s AND timeframe = %s AND timestamp BETWEEN %s AND %s",
            (symbol, timeframe, first, last),
        )
        with connection.cursor().copy(statement) as copy:
            copy.write(HEADER)
            for at in range(0, len(rows), CHUNK_ROWS):
                copy.write(encode_rows(rows.iloc[at : at + CHUNK_ROWS], symbol, timeframe, names))
                if on_progress is not None:
                    done = min(at + CHUNK_ROWS, len(rows))
                    on_progress(symbol, done / len(rows), done)
            copy.write(TRAILER)


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


def _read_symbol(
    connection: Any, symbol: str, timeframe: Timeframe, request: BarRequest, names: Sequence[str]
) -> pd.DataFrame:
    """Tidy rows of one symbol: prices, the further columns asked for, and the indicators `names`, NaN for NULL."""
    from psycopg import sql

    def number(alias: str, name: str) -> sql.Composable:
        return sql.SQL("{}.{}::double precision").format(sql.Identifier(alias), sql.Identifier(name))

    def or_nan(alias: str, name: str) -> sql.Composable:
        return sql.SQL("COALESCE({}, 'NaN')").format(number(alias, name))

    columns = [number("b", name) for name in VALUES]
    columns += [or_nan("b", name) for name in request.extra_columns] + [or_nan("i", name) for name in names]
    keys = sql.SQL("i.symbol = b.symbol AND i.timeframe = b.timeframe AND i.timestamp::timestamptz = b.timestamp")
    join = sql.SQL("LEFT JOIN {} i ON {}").format(sql.Identifier(indicators.TABLE), keys) if names else sql.SQL("")
    statement = sql.SQL(
        "COPY (SELECT b.timestamp::timestamptz, {} FROM {} b {} WHERE b.symbol = %s AND b.timeframe = %s "
        "AND b.timestamp >= %s AND b.timestamp < %s ORDER BY b.timestamp) TO STDOUT (FORMAT binary)"
    ).format(sql.SQL(", ").join(columns), sql.Identifier(TABLE), join)
    first = "-infinity" if request.start is None else request.start.isoformat()
    last = "infinity" if request.end is None else request.end.isoformat()
    with connection.cursor().copy(statement, (symbol, str(timeframe), first, last)) as copy:
        data = b"".join(bytes(chunk) for chunk in copy)
    frame = decode_rows(data, symbol, (*VALUES, *request.extra_columns, *names), TABLE)
    if frame.empty:
        raise InputError(f"{TABLE} has no {timeframe} bars of {symbol} in the span asked for")
    return frame


def _numeric_columns(connection: Any, table: str) -> list[str]:
    """The numeric columns of the table that its bare name means. Raises InputError where there is none."""
    found = connection.execute(
        "SELECT a.attname, format_type(a.atttypid, NULL) FROM pg_attribute a WHERE a.attrelid = to_regclass(%s) "
        "AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum",
        (table,),
    ).fetchall()
    if not found:
        raise InputError(f"the database has no table {table}; scripts/download.py --to postgres makes it")
    return [name for name, kind in found if kind in NUMERIC]


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
