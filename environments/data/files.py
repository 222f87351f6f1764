"""Bars from tidy Parquet and CSV files."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from environments.data.exchange import NO_CALENDAR, choose_sessions, keep_sessions
from environments.data.quality import check_bars
from environments.data.resample import resample_bars
from environments.data.sessions import DAY
from environments.data.source import BarRequest, BarSet, make_bars
from environments.data.tidy import (
    COLUMNS,
    VALUES,
    nanoseconds,
    require_columns,
    sort_bars,
    symbol_codes,
    tidy,
)
from environments.errors import InputError
from environments.timeframe import Timeframe

ENDINGS = (".parquet", ".csv", ".csv.gz")
MISSING_NUMBER = ["", "NA", "N/A", "NaN", "nan", "NULL", "null", "None"]
# A base of 2 to 6 characters and a quote currency: BTC/USD, BTCUSDT, ETHUSD, SOL-USDC.
PAIR = re.compile(r"[A-Z0-9]{2,6}[/-]?(USD|USDT|USDC|EUR|BTC)")
MINUTE = 60 * 10**9
# With fewer spacings than this a long one may be a weekend or a holiday between daily bars.
ENOUGH_SPACINGS = 10


class FileSource:
    """One tidy file, or a folder of them: timestamp, symbol, open, high, low, close, volume.

    Timestamps are bar open times, ISO or epoch (naive means UTC). Further numeric columns are carried when
    `extra_columns` names them. The bars' own timeframe is their most common spacing; a coarser whole multiple
    of it is resampled (see `resample.resample_bars`) and the description says so. `start` is inclusive, `end`
    exclusive. Stocks keep to the sessions of their exchange, see `bars_from_frame`.
    """

    name = "files"

    def load(self, request: BarRequest) -> BarSet:
        """Read, check, cut and, where asked, resample. Raises InputError naming the file that is wrong."""
        request.accept_only(
            self.name, "path", "symbols", "timeframe", "start", "end", "asset_class", "extra_columns", "calendar"
        )
        if request.path is None:
            raise InputError("source files needs a path: a Parquet or CSV file, or a folder of them")
        path = request.path.resolve()  # a name also for "."
        frame = read_bars(path, request.extra_columns, request.symbols)
        return bars_from_frame(frame, path.name, request, source=self.name)


def read_bars(path: Path, extra: Sequence[str] = (), symbols: Sequence[str] | None = None) -> pd.DataFrame:
    """The tidy rows of a file, or of all files of a folder, put together (not of its subfolders).

    symbols: keep only these; None keeps all.

    Raises:
        InputError: nothing there, an unreadable file, a missing column, a symbol that no file has, or files
            of different timeframes in one folder.
    """
    if not path.exists():
        raise InputError(f"{path}: no such file or folder")
    if not path.is_dir():
        return _only(read_file(path, extra), symbols, path.name)
    files = sorted(p for p in path.iterdir() if p.name.endswith(ENDINGS) and not p.name.startswith("."))
    if not files:
        raise InputError(f"{path}: no file there ends in {', '.join(ENDINGS)}")
    frames = {file.name: read_file(file, extra) for file in files}
    _refuse_unknown(symbols, {name for frame in frames.values() for name in frame["symbol"].unique()}, path.name)
    first: tuple[str, Timeframe] | None = None
    parts = []
    for name, frame in frames.items():
        part = frame[frame["symbol"].isin(symbols)] if symbols else frame
        if part.empty:
            continue
        check_bars(part, name)
        parts.append(part)
        spacing = _spacing(part)
        if spacing is None:
            continue
        own = _timeframe(spacing, name)
        first = first or (name, own)
        if own != first[1]:
            raise InputError(
                f"{path.name}: {first[0]} holds {first[1]} bars but {name} {own}; one timeframe is accepted"
            )
    # Each file is in order by itself, so a symbol that continues in another file may simply be sorted in.
    return sort_bars(pd.concat(parts, ignore_index=True))


def read_file(path: Path, extra: Sequence[str] = ()) -> pd.DataFrame:
    """The tidy rows of one Parquet or CSV file. Raises InputError naming it when that fails."""
    wanted = [*COLUMNS, *extra]
    try:
        if path.name.endswith(".parquet"):
            file = pq.ParquetFile(path)
            require_columns(file.schema_arrow.names, path.name, extra)
            raw = file.read(columns=wanted).to_pandas()
        elif path.name.endswith(ENDINGS):
            table = pa.csv.read_csv(path, convert_options=_csv_types(extra))
            require_columns(table.column_names, path.name, extra)
            raw = table.select(wanted).to_pandas()
            raw["symbol"] = raw["symbol"].replace("", None)
        else:
            raise InputError(f"{path.name}: files ending in {', '.join(ENDINGS)} are accepted")
    except InputError:
        raise
    except (OSError, ValueError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())[:160]
        raise InputError(f"{path.name}: not readable: {reason}") from error
    return tidy(raw, path.name, extra)


def bars_from_frame(
    frame: pd.DataFrame,
    origin: str,
    request: BarRequest,
    source: str,
    own: Timeframe | None = None,
    note: str = "",
) -> BarSet:
    """Cut and, where asked, resample tidy rows, and make a `BarSet` of them.

    The end is cut before resampling, so no coarse bar contains a later price; the start after it, so no
    coarse bar lacks its beginning.

    Stocks: intraday bars outside the sessions of their exchange calendar are dropped, and a note says how many; see
    `exchange.choose_sessions` and `exchange.keep_sessions`.

    own: the bars' timeframe where it is known; None to tell it from their spacing.
    note: appended to the description.

    Raises:
        InputError: an unknown symbol, a timeframe that cannot be made, no bars between start and end, a bad bar, or a
            calendar that the bars are not of.
    """
    frame = _only(frame, request.symbols, origin)
    asset_class = request.asset_class or infer_asset_class(frame)
    own = own or infer_timeframe(frame, origin)
    want = request.timeframe or own
    sessions, notes = None, []
    if asset_class == "stock":
        sessions, found = choose_sessions(frame, own, request.calendar, origin)
        notes += found
    elif request.calendar not in (None, NO_CALENDAR):
        raise InputError(f"{origin}: calendar {request.calendar} is for stocks; these are crypto bars, round the clock")
    whole = frame
    if request.end is not None:
        frame = frame[frame["timestamp"] < request.end]
    if request.start is not None and want == own:
        frame = frame[frame["timestamp"] >= request.start]
    if sessions is not None and not frame.empty:
        frame, found = keep_sessions(frame, sessions, own)
        notes += found
    if want != own and not frame.empty:
        check_bars(frame, origin)
        frame = resample_bars(sort_bars(frame), own, want, asset_class, origin, sessions)
        note = f", resampled from {own}{note}"
    if request.start is not None:
        frame = frame[frame["timestamp"] >= request.start]
    absent = sorted(set(request.symbols or ()) - set(frame["symbol"].unique()))
    if frame.empty or absent:
        have = whole if frame.empty else whole[whole["symbol"] == absent[0]]
        first, last = have["timestamp"].min().isoformat(), have["timestamp"].max().isoformat()
        raise InputError(
            f"{origin}: no complete {want} bars of {absent[0] if absent else 'any symbol'} in the span "
            f"asked for; it has bars from {first} to {last}"
        )
    return make_bars(
        frame,
        source=source,
        origin=origin,
        timeframe=want,
        asset_class=asset_class,
        symbols=request.symbols,
        note=note,
        sessions=sessions,
        notes=notes,
    )


def infer_timeframe(frame: pd.DataFrame, origin: str) -> Timeframe:
    """The most common spacing of a symbol's bars; spacings of a day to under a week are daily bars.

    Raises:
        InputError: no symbol has two bars, or the spacing is no whole number of minutes, or is days apart.
    """
    spacing = _spacing(frame)
    if spacing is None:
        raise InputError(f"{origin}: no symbol has two bars, so their timeframe cannot be told")
    return _timeframe(spacing, origin)


def infer_asset_class(frame: pd.DataFrame) -> str:
    """ "crypto" for bars that trade on Saturdays and on Sundays, otherwise "stock".

    At least half of the weekend days in the bars' span must have bars, since exchanges hold special sessions
    on a weekend now and then. Bars that span no Saturday or no Sunday are crypto when every symbol looks like
    a currency pair (BTC/USD, BTCUSDT, ETH-USDC).
    """
    days = np.unique(nanoseconds(frame) // DAY)
    span = np.arange(days[0], days[-1] + 1)
    # Day 0, 1970-01-01, was a Thursday: counted from Monday, Saturday is day 5 and Sunday day 6.
    weekend, traded = (d[(d + 3) % 7 >= 5] for d in (span, days))
    if np.unique((weekend + 3) % 7).size < 2:
        return "crypto" if all(PAIR.fullmatch(s.upper()) for s in frame["symbol"].unique()) else "stock"
    on_both = np.unique((traded + 3) % 7).size == 2
    return "crypto" if on_both and 2 * traded.size >= weekend.size else "stock"


def _spacing(frame: pd.DataFrame) -> np.ndarray | None:
    """(n,) int64 nanoseconds between consecutive bars of a symbol; None where no symbol has two."""
    codes, _ = symbol_codes(frame)
    stamps = nanoseconds(frame)
    order = np.argsort(codes, kind="stable")
    step = np.diff(stamps[order])[np.diff(codes[order]) == 0]
    step = step[step > 0]
    return step if step.size else None


def _timeframe(spacing: np.ndarray, origin: str) -> Timeframe:
    lengths, counts = np.unique(spacing, return_counts=True)
    common = int(lengths[np.argmax(counts)])
    if common >= DAY:
        if common >= 7 * DAY or (common >= 2 * DAY and spacing.size >= ENOUGH_SPACINGS):
            raise InputError(f"{origin}: bars are {common / DAY:g} days apart; daily bars or finer are accepted")
        return Timeframe.parse("1d")
    if common % MINUTE:
        raise InputError(f"{origin}: bars are {common / 1e9:g} s apart; whole minutes are accepted")
    return Timeframe(common // MINUTE)


def _csv_types(extra: Sequence[str]) -> pa.csv.ConvertOptions:
    """Numbers are read as the nearest float64; an empty symbol stays a text, as does the ticker NA."""
    numbers = {name: pa.float64() for name in (*VALUES, *extra)}
    return pa.csv.ConvertOptions(
        column_types={"symbol": pa.string(), **numbers}, null_values=MISSING_NUMBER, strings_can_be_null=False
    )


def _only(frame: pd.DataFrame, symbols: Sequence[str] | None, origin: str) -> pd.DataFrame:
    """The rows of `symbols` (all for None)."""
    present = set(frame["symbol"].unique())
    _refuse_unknown(symbols, present, origin)
    if not symbols or len(symbols) == len(present):
        return frame
    return frame[frame["symbol"].isin(symbols)].reset_index(drop=True)


def _refuse_unknown(symbols: Sequence[str] | None, present: set[str], origin: str) -> None:
    if unknown := [name for name in symbols or () if name not in present]:
        raise InputError(f"{origin}: no symbol {', '.join(unknown)}; it has {', '.join(sorted(present))}")
