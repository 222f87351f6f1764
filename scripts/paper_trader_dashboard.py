"""Watch the paper trader and the training on a terminal: reads logs/, changes nothing. Ctrl-C leaves."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import tyro
from rich.console import Console

from drl_agents.monitoring.dashboard import START, render, watch
from drl_agents.monitoring.snapshot import check_names, take_snapshot
from environments.errors import InputError


@dataclass
class Options:
    """What to show."""

    training: bool = False
    """show the training only, without the paper trader"""
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
    refresh: float = 1.0
    """seconds between two looks"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0, or 2 where an option is wrong."""
    options = tyro.cli(Options, args=arguments, description=__doc__, config=(tyro.conf.FlagCreatePairsOff,))
    try:
        if not (math.isfinite(options.refresh) and options.refresh >= 0.1):
            raise InputError(f"--refresh {options.refresh} should be at least 0.1 seconds")
        check_names(options.logs, options.study, options.name)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2

    def take():
        return take_snapshot(options.logs, options.study, options.name)

    if options.json:
        print(take().to_json())
        return 0
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # a terminal that cannot draw blocks shows question marks
    console = Console()
    if not options.once and console.is_terminal:
        watch(take, console, options.refresh, options.training)
        return 0
    # Also where the output is a file or a pipe, which cannot be redrawn.
    snapshot = take()
    if snapshot.empty and not snapshot.problems:
        print(f"Nobody has written to {options.logs} yet; {START} makes something to watch.")
    else:
        console.print(render(snapshot, console.width, training=options.training))
    return 0


if __name__ == "__main__":
    sys.exit(main())
