"""Watch the paper trader and the training, on a terminal or in a browser: reads logs/, changes nothing.

Ctrl-C leaves."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import tyro
from rich.console import Console

from drl_agents.monitoring.snapshot import Watcher, check_names, take_snapshot
from drl_agents.monitoring.views import START, render
from environments.errors import InputError


@dataclass
class Options:
    """What to show, and where."""

    web: bool = False
    """serve a page for browsers instead of drawing on the terminal"""
    host: str = "127.0.0.1"
    """interface of --web; any but loopback asks readers for a token: DRL_DASHBOARD_TOKEN, or one that is printed"""
    port: int = 8765
    """port of --web"""
    training: bool = False
    """begin with the training; --once then leaves the paper trader out"""
    once: bool = False
    """print one view and leave"""
    json: bool = False
    """print one snapshot as JSON and leave"""
    study: str | None = None
    """the study to show (default: the one written to last)"""
    name: str | None = None
    """the paper trader to show (default: the one written to last)"""
    logs: str = "logs"
    """the folder that runs write to"""
    refresh: float | None = None
    """seconds between two looks (default: 1 on a terminal, 0.25 with --web)"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0, or 2 where an option is wrong."""
    options = tyro.cli(Options, args=arguments, description=__doc__, config=(tyro.conf.FlagCreatePairsOff,))
    try:
        if options.refresh is not None and not (math.isfinite(options.refresh) and options.refresh >= 0.1):
            raise InputError(f"--refresh {options.refresh} should be at least 0.1 seconds")
        if options.web and (options.once or options.json):
            raise InputError("--web serves until it is stopped: give it without --once and --json")
        check_names(options.logs, options.study, options.name)
        return show(options)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def show(options: Options) -> int:
    """Do what was asked for."""
    if options.web:
        # Imported here: the terminal's views need no web server.
        from drl_agents.monitoring.web import serve

        chosen = {"study": options.study, "trader": options.name}
        return serve(options.logs, options.host, options.port, options.refresh or 0.25, chosen)
    if options.json:
        print(take_snapshot(options.logs, options.study, options.name).to_json())
        return 0
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # a terminal that cannot draw blocks shows question marks
    console = Console()
    if not options.once and console.is_terminal:
        from drl_agents.monitoring.terminal import Dashboard

        watcher = Watcher(options.logs, options.study, options.name)
        Dashboard(watcher, options.refresh or 1.0, options.training).run()
        return 0
    # Also where the output is a file or a pipe, which cannot be redrawn.
    snapshot = take_snapshot(options.logs, options.study, options.name)
    if snapshot.empty and not snapshot.problems:
        print(f"Nobody has written to {options.logs} yet; {START} makes something to watch.")
    else:
        console.print(render(snapshot, options.training))
    return 0


if __name__ == "__main__":
    sys.exit(main())
