"""Fetch bars once and keep them: a dataset folder with a fingerprint, or rows of a PostgreSQL table."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd

from environments.data.exchange import NO_CALENDAR
from environments.data.extend import HistoryChanged, extend, fetch_from
from environments.data.pages import kept, write_record
from environments.data.postgres import write_bars
from environments.data.sessions import DAY
from environments.data.source import BarRequest, BarSet, DataSource, SourceUnavailable, find_source, load_bars
from environments.data.store import MANIFEST, load_dataset, save_dataset
from environments.errors import InputError
from environments.timeframe import Timeframe

# Index funds and large companies that trade all day. With cash, which is the account's own and has no bars, they are
# the thirteen of the expanded set.
EXPANDED = ("SPY", "QQQ", "IWM", "AAPL", "MSFT", "NVDA", "TSLA", "AMZN", "META", "GOOGL", "AMD", "NFLX")
DESTINATIONS = ("files", "postgres")
FALLBACKS = ("synthetic",)
# Sources that keep what they fetch in the dataset folder themselves, to go on after an interruption.
KEEPS_ITS_DATASET = ("alpaca",)
# Sources that can be asked for the new part alone; of others all is read, and must go on from what is kept.
FETCHES_SPANS = ("postgres",)
SESSION_MINUTES = 390
FALLBACK_BARS = (2, 500_000)

Progress = Callable[[str, float, int], None]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Download:
    """What to fetch and where to keep it.

    source: a name that `source.find_source` knows. request: the fields of `BarRequest` but for the path of
    alpaca, which is `out`. out: the dataset's folder; needed unless `to` is postgres. fallback: "synthetic"
    for made-up bars when the source is not to be had; None to fail then.
    """

    source: str
    request: Mapping[str, Any] = field(default_factory=dict)
    out: Path | None = None
    to: str = "files"
    fallback: str | None = None


@dataclass(frozen=True)
class Downloaded:
    """bars: what was fetched; folder: the dataset, if one was kept; rows: written to PostgreSQL; reason: why
    the bars are synthetic where another source was asked for, otherwise None."""

    bars: BarSet
    folder: Path | None
    rows: int
    reason: str | None = None


def download(job: Download, on_progress: Progress | None = None) -> Downloaded:
    """Fetch, check and keep the bars.

    on_progress: called with a symbol, the fraction of it that is done, and its bars so far.

    Raises:
        SourceUnavailable: the source cannot be had and there is no fallback.
        InputError: a wrong option, bad bars (the report of `quality.check_bars`), or a folder that holds
            another dataset. KeyboardInterrupt passes through; pages of alpaca that came before it are kept.
    """
    _check(job)
    try:
        bars = _load(job, on_progress)
    except SourceUnavailable as error:
        if job.fallback is None:
            raise
        return _synthetic(job, str(error))
    rows = write_bars(bars, on_progress) if job.to == "postgres" else 0
    return Downloaded(bars, job.out, rows)


def _check(job: Download) -> None:
    if job.to not in DESTINATIONS:
        raise InputError(f"to {job.to!r}: {' or '.join(DESTINATIONS)} are accepted")
    if job.fallback not in (None, *FALLBACKS):
        raise InputError(f"fallback {job.fallback!r}: {' or '.join(FALLBACKS)} is accepted")
    if job.out is None and job.to == "files":
        raise InputError("out: name the dataset's folder, such as data/crypto")
    if job.fallback is not None and job.to == "postgres":
        raise InputError("fallback synthetic is for files: synthetic bars are not written to a database")


def _load(job: Download, on_progress: Progress | None) -> BarSet:
    source = find_source(job.source)
    if hasattr(source, "on_progress"):
        source.on_progress = on_progress
    request = BarRequest(**job.request)
    if job.out is None:
        return source.load(request)
    if job.source in KEEPS_ITS_DATASET:
        return source.load(replace(request, path=job.out))
    return _load_and_keep(source, request, job.out)


def _load_and_keep(source: DataSource, request: BarRequest, folder: Path) -> BarSet:
    """The bars of `request`, kept in `folder`: what is there of an earlier end is added to.

    Raises:
        InputError: the folder holds another dataset, or the source says something else about the bars in it.
    """
    asked = {"source": source.name, **{name: _text(value) for name, value in vars(request).items() if name != "end"}}
    end = _text(request.end)
    found = kept(folder, asked, end)
    if found is None:
        bars = source.load(request)
    else:
        before, since = found[0], None
        if source.name in FETCHES_SPANS:
            calendar = before.calendar or (NO_CALENDAR if before.asset_class == "stock" else None)
            since = fetch_from(before)
            request = replace(request, start=since, asset_class=before.asset_class, calendar=calendar)
        bars = source.load(request)
        try:
            bars = extend(before, bars, since)
        except HistoryChanged as error:
            raise HistoryChanged(f"{folder}: {error}; name another folder, or remove this one") from None
    write_record(folder, asked, end, bars.fingerprint)
    save_dataset(bars, folder)
    return bars


def _text(value: Any) -> Any:
    """A field of a request as a JSON value."""
    if value is None or isinstance(value, int):
        return value
    if isinstance(value, tuple):
        return list(value)
    return {k: str(v) for k, v in value.items()} if isinstance(value, Mapping) else str(value)


def _synthetic(job: Download, reason: str) -> Downloaded:
    """As many made-up bars as were asked for, of symbols SYN0, SYN1, ..., in the folder <out>-synthetic.

    The names, the folder, the manifest's source, description and flag say so; `out` itself stays free for the
    bars that were wanted.
    """
    asked = BarRequest(**job.request)
    symbols = asked.symbols or ("one",)
    asset_class = asked.asset_class or ("crypto" if "/" in symbols[0] else "stock")
    timeframe = asked.timeframe or Timeframe.parse("1h")
    start = asked.start or pd.Timestamp("2020-01-01", tz="UTC")
    end = asked.end or pd.Timestamp.now("UTC").as_unit("ns").floor("D")
    if asset_class == "crypto":
        n_bars = (end - start) // pd.Timedelta(timeframe.nanoseconds)
    else:
        days = len(pd.bdate_range(start.floor("D"), end, inclusive="left"))
        daily = timeframe.nanoseconds >= DAY
        n_bars = days * (1 if daily else max(SESSION_MINUTES // timeframe.minutes, 1))
    n_bars = min(max(int(n_bars), FALLBACK_BARS[0]), FALLBACK_BARS[1])
    logger.warning("%s: SYNTHETIC bars instead", reason)
    bars = load_bars(
        "synthetic",
        timeframe=timeframe,
        start=start.isoformat(),
        asset_class=asset_class,
        options={"n_bars": n_bars, "n_assets": len(symbols)},
    )
    assert job.out is not None
    folder = job.out.with_name(f"{job.out.name}-synthetic")
    if (folder / MANIFEST).exists() and load_dataset(folder).fingerprint != bars.fingerprint:
        raise InputError(f"{folder}: it holds another dataset; name another folder, or remove this one")
    save_dataset(bars, folder)
    return Downloaded(bars, folder, 0, reason)
