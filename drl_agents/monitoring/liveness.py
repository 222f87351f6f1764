"""Is a process still there, and how old is what it last wrote?"""

from __future__ import annotations

import platform
import socket
from datetime import datetime

import psutil

from drl_agents.monitoring.typed_json import parse_time, shown


def process_state(pid: int | None, process_started: float | None, host: str) -> str:
    """ "alive", "gone", or "unknown" where the process ran on another host or may not be looked at.

    A pid is reused after its process ends, so the start time (psutil's create_time) must agree as well; two
    seconds of tolerance cover a clock that was set in between.
    """
    if pid is None or host not in (socket.gethostname(), platform.node()):
        return "unknown"
    try:
        process = psutil.Process(pid)
        same = process_started is None or abs(process.create_time() - process_started) < 2.0
        return "alive" if same and process.status() != psutil.STATUS_ZOMBIE else "gone"
    except (psutil.NoSuchProcess, ValueError, OverflowError):  # the last two: not a number a pid can have
        return "gone"
    except psutil.AccessDenied:
        return "unknown"


def age_seconds(updated: str, now: datetime, where: str, problems: list[str]) -> float | None:
    """Seconds from an ISO 8601 time to `now`, at least 0; None, with a problem noted, where it is no time."""
    time = parse_time(updated)
    if time is None:
        problems.append(f"{where}: 'updated' should be an ISO 8601 time, not {shown(updated)}")
        return None
    age = (now - time).total_seconds()
    if age < -60:
        problems.append(f"{where}: 'updated' is {-age:.0f} s in the future; the clocks differ")
    return max(0.0, age)
