"""What every command line shares: options from dataclasses, logging, and how errors are told.

Exit status: 0 done, 2 wrong input (one line, no traceback), 130 interrupted.
"""

from __future__ import annotations

import contextlib
import io
import logging
import sys
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import tyro
from rich.console import Console
from rich.logging import RichHandler

from drl_agents.training.device import pick_device, tune
from environments.data.source import load_bars
from environments.data.store import load_dataset
from environments.errors import InputError
from environments.market import Market

Options = TypeVar("Options")


@dataclass(frozen=True)
class OutputOptions:
    """quiet: only warnings and results. verbose: everything, and tracebacks of errors. log_file: write the log here
    as well."""

    quiet: bool = False
    verbose: bool = False
    log_file: Path | None = None


@dataclass(frozen=True)
class DataOptions:
    """Where bars come from."""

    data_source: str | None = None
    """files, sample, synthetic, alpaca, postgres, or one an installed package adds; default: files with --data, else
    sample"""
    data: Path | None = None
    """a Parquet or CSV file of bars, or a folder of them (timestamp, symbol, open, high, low, close, volume)"""
    data_dir: Path | None = None
    """a dataset folder with its manifest"""
    symbols: str | None = None
    """comma-separated, in the order the model will know them; default: all"""
    timeframe: str | None = None
    """bar size such as 5m, 1h, 1d; coarser than the file's: bars are resampled"""
    start: str | None = None
    """first day, ISO date"""
    end: str | None = None
    """the day to stop before, ISO date"""
    asset_class: str | None = None
    """crypto or stock; default: read off the bars"""
    calendar: str | None = None
    """sessions of stocks: a name of exchange_calendars such as XNYS or XBOM, or none to read them off the bars;
    default: XNYS or XBOM if the bars fit"""
    extra_columns: str | None = None
    """comma-separated further numeric columns to carry, such as marketcap"""
    indicators: str | None = None
    """of source postgres: all, or comma-separated columns of technical_indicators"""
    data_seed: int = 0
    """seed of synthetic bars"""
    synthetic_options: str | None = None
    """options of synthetic bars, such as kind=signal,n_bars=20000,ic=0.1"""
    gpu: str = "auto"
    """device: auto, cpu, mps, cuda, or a GPU's number"""

    def market(self) -> Market:
        """Load the bars onto the device.

        Raises:
            InputError: options that contradict each other, or whatever the source refuses.
        """
        device = pick_device(self.gpu)
        # For --verbose: what is wrong with other options is found later, and is told in one line alone.
        logging.getLogger(__name__).debug("%s", tune(device))
        symbols = None if self.symbols is None else tuple(s.strip() for s in self.symbols.split(",") if s.strip())
        if self.data_dir is not None:
            if self.data is not None or self.data_source is not None:
                raise InputError("--data-dir names a dataset of its own: give it without --data and --data-source")
            for name in ("start", "end", "asset_class", "calendar", "extra_columns", "indicators"):
                if getattr(self, name) is not None:
                    option = name.replace("_", "-")
                    raise InputError(f"--data-dir is taken as it was saved: give --{option} to scripts/download.py")
            return Market.from_bars(load_dataset(self.data_dir, symbols=symbols, timeframe=self.timeframe), device)
        source = self.data_source or ("files" if self.data is not None else "sample")
        request = {
            "symbols": symbols,
            "timeframe": self.timeframe,
            "start": self.start,
            "end": self.end,
            "path": self.data,
            "asset_class": self.asset_class,
            "calendar": self.calendar,
            "extra_columns": self.extra_columns,
            "options": {} if self.indicators is None else {"indicators": self.indicators},
        }
        if source == "synthetic":
            request["seed"] = self.data_seed
            request["options"] |= parse_options(self.synthetic_options)
        elif self.synthetic_options is not None:
            raise InputError(f"--synthetic-options is for --data-source synthetic, not {source}")
        return Market.from_bars(load_bars(source, **{k: v for k, v in request.items() if v not in (None, {})}), device)


def parse_options(text: str | None) -> dict[str, str | int | float | bool]:
    """ "a=1,b=0.5,c=word,d=true" as a dictionary, numbers as numbers, true and false as themselves."""
    result: dict[str, str | int | float | bool] = {}
    for part in (text or "").split(","):
        if not part.strip():
            continue
        name, equals, value = part.partition("=")
        if not equals:
            raise InputError(f"option {part!r}: write name=value, separated by commas")
        result[name.strip()] = _value(value.strip())
    return result


def _value(text: str) -> str | int | float | bool:
    if text in ("true", "false"):
        return text == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def run(
    options: type[Options] | Callable[[list[str]], tuple[type, list[str]]],
    main: Callable[[Options], int | None],
    arguments: list[str] | None = None,
) -> None:
    """Parse the command line into `options`, run `main`, exit with its status.

    options: a dataclass; or a function of the arguments that gives one, and the arguments to parse into it.

    tyro names an unknown option and the closest known ones itself, in a box: here it is told in one line, as every
    other error.
    """
    told = io.StringIO()
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        kind, arguments = (options, arguments) if isinstance(options, type) else options(arguments)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    try:
        with contextlib.redirect_stderr(told):
            parsed = tyro.cli(kind, args=arguments, config=(tyro.conf.OmitArgPrefixes,))
    except SystemExit as leaving:
        if leaving.code:
            print(f"error: {unboxed(told.getvalue())}", file=sys.stderr)
        raise
    output = getattr(parsed, "output", OutputOptions())
    try:
        configure_logging(output)
        status = main(parsed)
    except InputError as error:
        if output.verbose:
            traceback.print_exc()
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        sys.exit(130)
    sys.exit(status or 0)


def check_name(flag: str, name: str, parent: str) -> None:
    """A name that files go under is one folder's: not a path that leads out of `parent`.

    Raises:
        InputError: it is no such name.
    """
    if name in ("", ".", "..") or Path(name).name != name:
        raise InputError(f"{flag} {name!r}: the name of a folder in {parent} is accepted")


def unboxed(text: str) -> str:
    """The sections of a message of tyro's in one line, without its frame and its title."""
    lines = [line.strip("│ ") for line in text.splitlines() if not line.startswith(("╭", "╰"))]
    sections: list[list[str]] = [[]]
    for line in filter(None, lines):
        if line.strip("─-"):
            sections[-1].append(line)
        else:
            sections.append([])
    if "╭" not in text:  # a terminal without line drawing: the title is a section, not part of the frame
        sections = sections[1:] or sections
    return "; ".join(" ".join(section) for section in sections)


def check_writable(flag: str, path: Path) -> None:
    """A file that is to be written later can be: its folder is there or can be made, and takes a file of its name.

    Raises:
        InputError: a folder of that name, or the system's reason.
    """
    if path.is_dir():
        raise InputError(f"{flag} {path}: a file is accepted, this is a folder")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):  # as it is written: beside it, then in its place
            pass
    except OSError as error:
        raise InputError(f"{flag} {path}: cannot be written: {error.strerror}") from None


def terminal(output: OutputOptions) -> Console | None:
    """Where a live display may go: the terminal, unless it is quiet or not one."""
    console = Console(stderr=True)
    return console if console.is_terminal and not output.quiet else None


def configure_logging(output: OutputOptions) -> None:
    """Log to the terminal, and to `log_file` with times.

    Raises:
        InputError: the file cannot be written.
    """
    root = logging.getLogger()
    root.handlers.clear()
    level = logging.DEBUG if output.verbose else logging.WARNING if output.quiet else logging.INFO
    console = Console(stderr=True)
    if console.is_terminal:
        shown: logging.Handler = RichHandler(console=console, show_path=False, show_level=False, log_time_format="[%X]")
    else:
        shown = logging.StreamHandler(sys.stderr)
        shown.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    shown.setLevel(level)
    root.addHandler(shown)
    if output.log_file is not None:
        check_writable("--log-file", output.log_file)
        try:
            file = logging.FileHandler(output.log_file, encoding="utf-8")
        except OSError as error:
            raise InputError(f"--log-file {output.log_file}: cannot be written: {error.strerror}") from None
        file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        file.setLevel(logging.INFO)
        root.addHandler(file)
    root.setLevel(logging.INFO if not output.verbose else logging.DEBUG)
    # Libraries' debug lines are not ours to show.
    for name in ("matplotlib", "urllib3", "asyncio", "PIL"):
        logging.getLogger(name).setLevel(logging.WARNING)
