"""Timeframe: how long one bar lasts."""

from __future__ import annotations

import re
from dataclasses import dataclass

from environments.errors import InputError

MINUTES = {"m": 1, "h": 60, "d": 1_440}
LONGEST = 365 * MINUTES["d"]
NOTATION = re.compile(r"([0-9]{1,6})([mhd])")
ACCEPTED = "minutes, hours or days are accepted, such as 1m, 5m, 15m, 1h, 4h, 1d"


@dataclass(frozen=True)
class Timeframe:
    """The length of one bar in whole minutes, from 1 minute to 365 days.

    `str()` gives the canonical notation in the largest unit that divides it: "5m", "90m", "1h", "1d".

    Raises:
        InputError: `minutes` is not a whole number in that range.
    """

    minutes: int

    def __post_init__(self) -> None:
        whole = isinstance(self.minutes, int) and not isinstance(self.minutes, bool)
        if not whole or not 1 <= self.minutes <= LONGEST:
            raise InputError(f"timeframe of {self.minutes!r} minutes: 1 to {LONGEST} whole minutes are accepted")

    @classmethod
    def parse(cls, text: str) -> Timeframe:
        """The timeframe that `text` writes: a whole number and m, h or d.

        Lower case only: an upper-case M is a month in several market-data interfaces.

        Raises:
            InputError: any other notation, or a length out of range.
        """
        match = NOTATION.fullmatch(text.strip()) if isinstance(text, str) else None
        if match is None:
            raise InputError(f"timeframe {text!r}: {ACCEPTED}")
        return cls(int(match[1]) * MINUTES[match[2]])

    @property
    def nanoseconds(self) -> int:
        """The length in nanoseconds, the unit of every timestamp here."""
        return self.minutes * 60 * 10**9

    def __str__(self) -> str:
        for unit in ("d", "h"):
            if self.minutes % MINUTES[unit] == 0:
                return f"{self.minutes // MINUTES[unit]}{unit}"
        return f"{self.minutes}m"
