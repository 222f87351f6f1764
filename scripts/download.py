"""Download historical bars into a dataset folder or a PostgreSQL table."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from drl_agents.training.commandline import OutputOptions, parse_options, run, terminal
from environments.data import download as downloads
from environments.errors import InputError


@dataclass(frozen=True)
class Options:
    """Download historical bars. Keys are read from the environment or a .env file, never from options."""

    source: str = "alpaca"
    """alpaca, postgres, files, sample, synthetic, or one an installed package adds"""
    symbols: str | None = None
    """comma-separated, such as BTC/USD,ETH/USD or AAPL,MSFT"""
    expanded: bool = False
    """SPY QQQ IWM AAPL MSFT NVDA TSLA AMZN META GOOGL AMD NFLX and cash instead of --symbols; cash is the account's own
    and has no bars"""
    timeframe: str | None = None
    """bar size such as 5m, 1h, 1d"""
    start: str | None = None
    """first day, ISO date"""
    end: str | None = None
    """the day to stop before, ISO date; default: all complete bars"""
    out: Path | None = None
    """folder of the dataset, such as data/crypto"""
    to: str = "files"
    """files, or postgres: the database of DATABASE_URL (and --out as well, if given)"""
    fallback: str | None = None
    """synthetic: made-up bars, marked as such, when the source cannot be had; default: fail"""
    path: Path | None = None
    """of source files: a Parquet or CSV file, or a folder of them"""
    asset_class: str | None = None
    """crypto or stock; default: by the symbols or the bars"""
    calendar: str | None = None
    """sessions of stocks: a name of exchange_calendars such as XNYS or XBOM, or none to read them off the bars;
    default: XNYS or XBOM if the bars fit"""
    extra_columns: str | None = None
    """comma-separated further numeric columns to carry, such as marketcap"""
    indicators: str | None = None
    """of source postgres: all, or comma-separated columns of technical_indicators"""
    options: str | None = None
    """options of the source, such as feed=iex,adjustment=raw,hours=all for alpaca"""
    output: OutputOptions = field(default_factory=OutputOptions)

    def job(self) -> downloads.Download:
        if self.expanded and self.symbols is not None:
            raise InputError("--expanded names symbols of its own: give it without --symbols")
        request = {
            "symbols": downloads.EXPANDED if self.expanded else self.symbols,
            "timeframe": self.timeframe,
            "start": self.start,
            "end": self.end,
            "path": self.path,
            "asset_class": self.asset_class,
            "calendar": self.calendar,
            "extra_columns": self.extra_columns,
            "options": parse_options(self.options) | ({"indicators": self.indicators} if self.indicators else {}),
        }
        given = {name: value for name, value in request.items() if value}
        return downloads.Download(self.source, given, self.out, self.to, self.fallback)


def main(options: Options) -> int:
    try:
        with progress_bars(terminal(options.output)) as report:
            done = downloads.download(options.job(), report)
    except KeyboardInterrupt:
        kept = options.source in downloads.KEEPS_ITS_DATASET
        print("stopped; the same command goes on from here" if kept else "stopped", file=sys.stderr)
        return 130
    if done.bars.synthetic:
        why = f" ({done.reason})" if done.reason else ""
        print(f"SYNTHETIC bars{why}: they say nothing about a real market")
    missing = sum(gap.missing_bars for gap in done.bars.gaps)
    print(done.bars.description)
    if options.expanded:
        print(f"expanded set: {len(downloads.EXPANDED)} symbols; the thirteenth, cash, is the account's own: no bars")
    for note in done.bars.notes:
        print(note)
    if done.bars.asset_class == "stock":
        print(f"calendar:     {done.bars.calendar or 'none, sessions are read off the bars'}")
    print(f"missing bars: {missing} in {len(done.bars.gaps)} gaps")
    print(f"fingerprint:  {done.bars.fingerprint}")
    if done.folder is not None:
        print(f"dataset:      {done.folder}")
    if options.to == "postgres":
        print(f"database:     {done.rows} rows written")
    return 0


@contextmanager
def progress_bars(console: Console | None) -> Iterator[downloads.Progress | None]:
    """One line per symbol on a terminal; None where there is none."""
    if console is None:
        yield None
        return
    columns = (
        TextColumn("{task.description:>10}"),
        BarColumn(),
        TextColumn("{task.fields[bars]:>9,} bars"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as shown:
        tasks: dict[str, int] = {}

        def report(symbol: str, fraction: float, bars: int) -> None:
            if symbol not in tasks:
                tasks[symbol] = shown.add_task(symbol, total=1.0, bars=0)
            shown.update(tasks[symbol], completed=fraction, bars=bars)

        yield report


if __name__ == "__main__":
    run(Options, main)
