"""What a source of bars is, what it gives, and how one is found by name."""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import datetime
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pandas as pd

from environments.data.exchange import NO_CALENDAR, Sessions
from environments.data.quality import Gap, check_bars, count_gaps
from environments.data.tidy import COLUMNS, nanoseconds, sort_bars, symbol_codes
from environments.errors import InputError
from environments.timeframe import Timeframe

ENTRY_POINTS = "drl_agents.sources"
ASSET_CLASSES = ("crypto", "stock")
# Imported when asked for, so that a source's own dependencies burden nobody else.
BUILT_IN = {
    "files": "environments.data.files:FileSource",
    "sample": "environments.data.sample:SampleSource",
    "synthetic": "environments.data.synthetic:SyntheticSource",
    "alpaca": "environments.data.alpaca:AlpacaSource",
    "postgres": "environments.data.postgres:PostgresSource",
}


class SourceUnavailable(InputError):
    """The source cannot be had now: no keys or refused ones, no connection, or no answer.

    The request itself may be right; asking again later, or with keys, may succeed.
    """


@dataclass(frozen=True, eq=False)
class BarSet:
    """Checked bars of one or more symbols in one timeframe.

    frame: columns timestamp (datetime64[ns, UTC], bar open time; the session date at 00:00 for daily stock
        bars), symbol, open, high, low, close, volume (float64), then those in `extra` (float64); rows by
        symbol, then timestamp.
    symbols: in the order asked for, else alphabetical.
    asset_class: "crypto" (round the clock) or "stock" (sessions).
    fingerprint: see `fingerprint`; the same content has the same one wherever it came from.
    gaps: bars missing between two bars of a symbol, see `quality.count_gaps`.
    description: one line for people.
    calendar: the exchange calendar that stock bars follow, see `exchange.choose_sessions`; None for crypto, and where
        sessions are read off the bars.
    notes: what was found or done on the way, a line each: bars dropped outside sessions, sessions without a bar.
    origin, note: the parts of the description that say where the bars are from and what was done to them.
    planted: for synthetic bars, which edge was planted in them; otherwise None.
    """

    frame: pd.DataFrame
    symbols: tuple[str, ...]
    timeframe: Timeframe
    source: str
    asset_class: str
    synthetic: bool
    fingerprint: str
    gaps: tuple[Gap, ...]
    description: str
    extra: tuple[str, ...] = ()
    planted: dict[str, Any] | None = None
    calendar: str | None = None
    notes: tuple[str, ...] = ()
    origin: str = ""
    note: str = ""


@dataclass(frozen=True)
class BarRequest:
    """What is asked of a source. Every field is optional; a source refuses those it has no use for.

    symbols: a sequence, or one text with commas; None for all there are.
    timeframe: a Timeframe or its notation; None for the source's own.
    start, end: ISO dates or times (naive means UTC); bars with start <= timestamp < end are given.
    path: a file or a folder of files.
    asset_class: "crypto" or "stock"; None to tell it from the bars.
    extra_columns: further numeric columns to carry; NaN where unknown.
    calendar: of stocks: a name of exchange_calendars such as XNYS, "none" to read sessions off the bars, or None for
        the known calendar that the bars fit.
    seed: of a synthetic market.
    options: further options of the source.

    Raises:
        InputError: a field cannot be read; the message says what is accepted.
    """

    symbols: tuple[str, ...] | None = None
    timeframe: Timeframe | None = None
    start: pd.Timestamp | None = None
    end: pd.Timestamp | None = None
    path: Path | None = None
    asset_class: str | None = None
    extra_columns: tuple[str, ...] = ()
    calendar: str | None = None
    seed: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        def normalise(name: str, value: Any) -> None:
            object.__setattr__(self, name, value)

        normalise("symbols", _names("symbols", self.symbols) or None)
        normalise("extra_columns", _names("extra_columns", self.extra_columns))
        if reserved := [name for name in self.extra_columns if name in COLUMNS]:
            raise InputError(f"extra_columns {', '.join(reserved)}: every bar set has these already")
        if isinstance(self.timeframe, str):
            normalise("timeframe", Timeframe.parse(self.timeframe))
        normalise("start", _moment("start", self.start))
        normalise("end", _moment("end", self.end))
        if self.start is not None and self.end is not None and self.start >= self.end:
            raise InputError(f"start {self.start.isoformat()}: it must come before end {self.end.isoformat()}")
        if self.path is not None:
            normalise("path", Path(self.path))
        if self.asset_class not in (None, *ASSET_CLASSES):
            raise InputError(f"asset_class {self.asset_class!r}: {' or '.join(ASSET_CLASSES)} are accepted")
        if self.calendar is not None and (not isinstance(self.calendar, str) or not self.calendar.strip()):
            raise InputError(f"calendar {self.calendar!r}: a name such as XNYS, or {NO_CALENDAR}, is accepted")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or self.seed < 0:
            raise InputError(f"seed {self.seed!r}: a whole number of at least 0 is accepted")
        normalise("options", dict(self.options or {}))

    def accept_only(self, source: str, *accepted: str) -> None:
        """Raise InputError when a field that `source` has no use for was given. A seed is let through."""
        plain = BarRequest()
        for name in (f.name for f in fields(self) if f.name != "seed"):
            if name not in accepted and getattr(self, name) != getattr(plain, name):
                raise InputError(f"source {source} takes no {name}: it takes {', '.join(accepted)}")


@runtime_checkable
class DataSource(Protocol):
    """Anything with a name that turns a request into bars."""

    name: str

    def load(self, request: BarRequest) -> BarSet:
        """The bars asked for. Raises InputError for a request it cannot meet."""
        ...


def load_bars(source: str, **request: Any) -> BarSet:
    """The bars of the source called `source`: built in, or of an installed package.

    A package offers a source with an entry point of the group "drl_agents.sources" that names a class
    without constructor arguments, or an instance, following `DataSource`. request: the fields of
    `BarRequest`.

    Raises:
        InputError: no source of that name, no such field, or what the source itself refuses.
    """
    accepted = [f.name for f in fields(BarRequest)]
    if unknown := sorted(set(request) - set(accepted)):
        raise InputError(f"bars have no option {', '.join(unknown)}: accepted are {', '.join(accepted)}")
    return find_source(source).load(BarRequest(**request))


def find_source(name: str) -> DataSource:
    """The source called `name`. Raises InputError listing the accepted names when there is none."""
    if name in BUILT_IN:
        module, _, attribute = BUILT_IN[name].partition(":")
        return getattr(importlib.import_module(module), attribute)()
    installed = {point.name: point for point in entry_points(group=ENTRY_POINTS)}
    if name not in installed:
        raise InputError(f"data source {name!r}: accepted are {', '.join((*BUILT_IN, *sorted(installed)))}")
    try:
        found = installed[name].load()
    except (ImportError, AttributeError) as error:
        raise InputError(f"data source {name!r} ({installed[name].value}) cannot be imported: {error}") from error
    found = found() if isinstance(found, type) else found
    if not isinstance(found, DataSource):
        raise InputError(f"data source {name!r} ({installed[name].value}): a name and a load method are needed")
    return found


def make_bars(
    frame: pd.DataFrame,
    *,
    source: str,
    origin: str,
    timeframe: Timeframe,
    asset_class: str,
    symbols: Sequence[str] | None = None,
    note: str = "",
    synthetic: bool = False,
    planted: dict[str, Any] | None = None,
    sessions: Sessions | None = None,
    notes: Sequence[str] = (),
) -> BarSet:
    """Check a tidy frame (see `tidy.tidy`) and make a `BarSet` of it; every source ends here.

    origin: a short name of where the rows are from, for messages and the description.
    note: what was done to them, appended to the description.
    sessions: of the exchange, for stocks; see `exchange.choose_sessions`. notes: lines to be shown.

    Raises:
        InputError: a bad bar, see `quality.check_bars`.
    """
    check_bars(frame, origin)
    frame = sort_bars(frame)
    extra = tuple(name for name in frame.columns if name not in COLUMNS)
    frame = frame[[*COLUMNS, *extra]]
    _, names = symbol_codes(frame)
    symbols = tuple(symbols) if symbols else tuple(str(name) for name in names)
    if sorted(symbols) != list(names):
        raise InputError(f"{origin}: bars of {', '.join(names)}, but {', '.join(symbols)} were expected")
    stamps = nanoseconds(frame)
    first, last = (pd.Timestamp(t, unit="ns").isoformat(" ", "minutes") for t in (stamps.min(), stamps.max()))
    plural = "symbol" if len(symbols) == 1 else "symbols"
    return BarSet(
        frame=frame,
        symbols=symbols,
        timeframe=timeframe,
        source=source,
        asset_class=asset_class,
        synthetic=synthetic,
        fingerprint=fingerprint(frame, symbols, timeframe),
        gaps=count_gaps(frame, timeframe, asset_class, sessions),
        description=f"{source} {origin}: {len(symbols)} {asset_class} {plural}, {len(frame)} bars of "
        f"{timeframe}, {first} to {last} UTC{note}",
        extra=extra,
        planted=planted,
        calendar=None if sessions is None else sessions.name,
        notes=tuple(notes),
        origin=origin,
        note=note,
    )


def fingerprint(frame: pd.DataFrame, symbols: Sequence[str], timeframe: Timeframe) -> str:
    """sha256 (64 hex digits) over the content of a sorted tidy frame.

    Hashed: the symbols in their order (it decides which column of a market is which), the timeframe, the
    column names, the rows per symbol, the timestamps as little-endian int64 nanoseconds and every column as
    little-endian float64. Not hashed: where the bars came from and how they were stored.
    """
    codes, names = symbol_codes(frame)
    columns = [name for name in frame.columns if name not in ("timestamp", "symbol")]
    head = {
        "symbols": list(symbols),
        "timeframe": str(timeframe),
        "columns": columns,
        "rows": dict(zip(map(str, names), np.bincount(codes).tolist(), strict=True)),
    }
    digest = hashlib.sha256(json.dumps(head, sort_keys=True).encode())
    digest.update(nanoseconds(frame).astype("<i8").tobytes())
    for name in columns:
        digest.update(frame[name].to_numpy(dtype="<f8").tobytes())
    return digest.hexdigest()


def _names(what: str, value: Any) -> tuple[str, ...]:
    """A sequence of names, or one text with commas, as a tuple without repetitions."""
    if value is None:
        return ()
    names = tuple(part.strip() for part in value.split(",")) if isinstance(value, str) else tuple(value)
    if bad := [name for name in names if not isinstance(name, str) or not name]:
        raise InputError(f"{what} {bad[0]!r}: names are accepted, as a list or separated by commas")
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f"{what}: {', '.join(repeated)} named more than once")
    return names


def _moment(what: str, value: Any) -> pd.Timestamp | None:
    """An ISO date or time, or a datetime, as a UTC timestamp."""
    if value is None:
        return None
    try:
        parsed = pd.Timestamp(datetime.fromisoformat(value) if isinstance(value, str) else value)
    except (ValueError, TypeError, OverflowError) as error:
        raise InputError(f"{what} {value!r}: an ISO date or time such as 2021-12-31 is accepted") from error
    if parsed is pd.NaT:
        raise InputError(f"{what} {value!r}: an ISO date or time such as 2021-12-31 is accepted")
    parsed = parsed.tz_localize("UTC") if parsed.tzinfo is None else parsed.tz_convert("UTC")
    return parsed.as_unit("ns")
