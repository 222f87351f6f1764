"""Faults a venue can have: at random by rates, or programmed one by one. All are drawn from one seed.

of a request       delay          the answer comes `seconds` later
                   drop_request   the connection is closed and nothing was done
                   drop_reply     it is done, and the connection is closed without an answer
                   429            too many requests: nothing was done
                   500, 503, 504  nothing was done, or (`after`) it is done all the same
                   missing_field  a field of the answer is left out (`field`, else any)
                   unknown_enum   a status, side or type of the answer is one nobody knows (`field`, else any)
                   clock_skew     /v2/clock and the answer's Date are off by `seconds`
                   stale_data     the data API does not have the newest bar yet
                   late_cancel    an order is pending_cancel, and fills before the cancel arrives
                   late_reject    an order is accepted, and rejected afterwards
of a websocket     cut            the connection breaks before the message
                   mute           it stays open, and nothing comes any more
                   repeat_bar     a bar comes twice
                   stale_bar      the bar before comes again, the new one never
                   late_bar       a bar comes after the next one
                   missing_field, unknown_enum   of an order's update
"""

from __future__ import annotations

import random
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from environments.errors import InputError

STATUSES = ("429", "500", "503", "504")
REQUEST = (
    "delay", "drop_request", "drop_reply", *STATUSES, "missing_field", "unknown_enum", "clock_skew", "stale_data",
    "late_cancel", "late_reject",
)  # fmt: skip
FRAME = ("cut", "mute", "repeat_bar", "stale_bar", "late_bar", "missing_field", "unknown_enum")
BARS = ("repeat_bar", "stale_bar", "late_bar")
ENUMS = ("status", "side", "type", "order_type", "time_in_force", "asset_class", "exchange")
# Which requests a kind can meet; the others meet all.
PATHS = {
    "clock_skew": ("GET", "/v2/clock"),
    "stale_data": ("GET", ("/v1beta3/crypto", "/v2/stocks")),
    "late_cancel": ("DELETE", "/v2/orders/"),
    "late_reject": ("POST", "/v2/orders"),
}


@dataclass(frozen=True)
class Fault:
    """One fault. path, method: which requests it is for, None for any. after: the request is done first."""

    kind: str
    path: str | None = None
    method: str | None = None
    seconds: float = 0.0
    after: bool = False
    field: str | None = None


class FaultPlan:
    """Which faults come when.

    Args:
        seed: of all draws. rates: {kind: probability}, of each request or websocket message that the kind can meet.
        seconds: of a delay. skew: seconds that the venue's clock is ahead, always.

    Raises:
        InputError: an unknown kind, a rate outside [0, 1].
    """

    def __init__(
        self, seed: int = 0, rates: Mapping[str, float] | None = None, seconds: float = 0.05, skew: float = 0.0
    ) -> None:
        for kind, rate in (rates or {}).items():
            _known(kind)
            if not 0 <= rate <= 1:
                raise InputError(f"fault {kind}: rate {rate}, accepted are 0 to 1")
        self.rates, self.seconds, self.skew = dict(rates or {}), seconds, skew
        self.counts: dict[str, int] = {}
        self._draw = random.Random(seed)
        self._programmed: list[Fault] = []
        self._lock = threading.Lock()

    def next(self, kind: str, path: str | None = None, method: str | None = None, **details: Any) -> None:
        """Program one fault: the next request (or websocket message) of that path and method has it.

        details: `seconds`, `after`, `field`, see `Fault` and the top of this file.
        """
        _known(kind)
        details.setdefault("seconds", 3_600.0 if kind == "clock_skew" else self.seconds)
        with self._lock:
            self._programmed.append(Fault(kind, path, method, **details))

    @property
    def waiting(self) -> int:
        """Programmed faults that have not come yet."""
        return len(self._programmed)

    def of_request(self, method: str, path: str) -> Fault | None:
        """The fault that this request has."""
        kinds = []
        for kind in REQUEST:
            needed, beginning = PATHS.get(kind, (method, "/"))
            if method == needed and path.startswith(beginning):
                kinds.append(kind)
        return self._pick(tuple(kinds), path, method)

    def of_frame(self, path: str, bars: bool) -> Fault | None:
        """The fault that this websocket message has. bars: it carries bars, not an order's update."""
        kinds = ("cut", "mute", *BARS) if bars else ("cut", "mute", "missing_field", "unknown_enum")
        return self._pick(kinds, path, None)

    def _pick(self, kinds: tuple[str, ...], path: str, method: str | None) -> Fault | None:
        with self._lock:
            chosen = self._due(kinds, path, method) or self._random(kinds, path, method)
            if chosen is not None:
                self.counts[chosen.kind] = self.counts.get(chosen.kind, 0) + 1
            return chosen

    def _due(self, kinds: tuple[str, ...], path: str, method: str | None) -> Fault | None:
        for fault in self._programmed:
            if fault.kind in kinds and fault.path in (None, path) and fault.method in (None, method):
                self._programmed.remove(fault)
                return fault
        return None

    def _random(self, kinds: tuple[str, ...], path: str, method: str | None) -> Fault | None:
        for kind, rate in self.rates.items():
            if kind in kinds and self._draw.random() < rate:
                seconds = self._draw.uniform(-3_600, 3_600) if kind == "clock_skew" else self.seconds
                after = kind in ("500", "503", "504") and self._draw.random() < 0.5
                return Fault(kind, path, method, seconds, after)
        return None

    def mangle(self, fault: Fault, content: Any) -> Any:
        """The answer as a fault leaves it: a field gone, or with a value nobody knows.

        Of a list the first object is changed; one that has nothing of the kind stays as it is.
        """
        if isinstance(content, list):
            return [self.mangle(fault, content[0]), *content[1:]] if content else content
        if not isinstance(content, dict):
            return content
        if fault.kind == "missing_field":
            names = [fault.field] if fault.field in content else sorted(content) if fault.field is None else []
        else:
            names = [name for name in ENUMS if name in content and fault.field in (None, name)]
        if not names:
            return content
        with self._lock:
            name = self._draw.choice(names)
        changed = dict(content)
        if fault.kind == "missing_field":
            del changed[name]
        else:
            changed[name] = "as_yet_unknown"
        return changed


def _known(kind: str) -> None:
    accepted = tuple(dict.fromkeys((*REQUEST, *FRAME)))
    if kind not in accepted:
        raise InputError(f"fault {kind!r}: accepted are {', '.join(accepted)}")
