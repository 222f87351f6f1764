"""What a challenger is tried on, and what is asked of the trader it is tried beside."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from drl_agents.deployment.bundle import Bundle
from environments.errors import InputError

POSITIONS = ("inherit", "flatten")


class Trader(Protocol):
    """What is asked of a trader; `deployment.trader.PaperTrader` is one."""

    bundle: Bundle
    feed: Any
    folder: Any
    state: str
    stale: bool
    reconciled: bool
    equity: float
    open_orders: int
    initial: float  # equity that its account began with
    bars_done: int  # since then
    flow_factor: float  # what was paid in and out has multiplied the equity by

    def replace_model(self, bundle: Bundle, positions: str) -> None: ...


@dataclass(frozen=True)
class Terms:
    """How a challenger is tried.

    shadow_bars: bars in the champion's shadow. positions: "inherit" (the new model decides on what is held) or
    "flatten" (all is closed first). health_bars: bars after it took over in which it is rolled back if it fails.
    max_loss: fraction of the equity it began with, in its shadow and after it took over. false_alarms: share of
    challengers that are what their held-out bars say and fail all the same, in each of three: the shadow's lower bound,
    its comparison with the champion, the health window's lower bound. All three together fail up to their sum.
    """

    shadow_bars: int = 100
    positions: str = "inherit"
    health_bars: int = 100
    max_loss: float = 0.1
    false_alarms: float = 0.05

    def __post_init__(self) -> None:
        if self.positions not in POSITIONS:
            raise InputError(f"positions={self.positions!r}: accepted are {', '.join(POSITIONS)}")
        for name, least in (("shadow_bars", 0), ("health_bars", 1)):
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise InputError(f"{name}={value!r}: a whole number of at least {least} is accepted")
        if not 0 < self.max_loss <= 1 or not 0 <= self.false_alarms < 1:
            raise InputError(
                f"max_loss={self.max_loss}, false_alarms={self.false_alarms}: fractions from 0 to 1 are accepted"
            )

    @classmethod
    def of(cls, pointer: Mapping[str, Any]) -> Terms:
        """Those a pointer carries, the defaults where it carries none."""
        try:
            return cls(**pointer.get("terms", {}))
        except TypeError as error:
            raise InputError(f"terms of a challenger: {error}") from error
