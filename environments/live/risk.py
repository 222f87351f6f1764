"""Risk limits: what a trader may send, whatever its model says. Pure arithmetic on plain numbers.

    ACTIVE     every order within the limits is sent
    REDUCING   only orders that make a position smaller, at most to nothing
    HALTED     none; cancels pass in every state

Everything here fails closed: a number that is not finite halts, an order that cannot be judged is not sent.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields

from environments.errors import InputError
from environments.live.broker import Order

ACTIVE, REDUCING, HALTED = "ACTIVE", "REDUCING", "HALTED"
_SEVERITY = (ACTIVE, REDUCING, HALTED)
DAY = 24 * 3_600 * 10**9
SECOND = 10**9
_ROUNDING = 1e-9


@dataclass(frozen=True)
class RiskLimits:
    """Limits, each None to leave it off. The defaults are wide: they stop accidents, not a model that trades as
    tested."""

    order_value: float | None = 8.0
    """value of one order, as a share of equity"""
    asset_weight: float | None = 4.5
    """|value| of one asset after an order, as a share of equity"""
    gross_exposure: float | None = 4.5
    """sum of all |values| after an order, as a share of equity"""
    daily_loss: float | None = 0.5
    """share of the day's first equity (UTC) that may be lost; then only reducing orders are sent until the day ends"""
    drawdown: float | None = 0.9
    """share of the highest equity that may be lost; then trading halts, for good: what is held is kept, not sold"""
    orders_per_minute: int | None = 600
    """orders sent in any 60 seconds of the venue's time"""
    stale_bars: float | None = 2.0
    """bar lengths without a new bar after which nothing is sent"""
    clock_skew: float | None = 30.0
    """seconds between the venue's clock and ours; beyond, only reducing orders are sent"""
    price_band: float | None = 0.5
    """|close / the asset's close before - 1| beyond which the asset is not traded"""
    unexplained: float | None = 0.01
    """share of equity by which the venue's books may differ from what the fills explain, added up over the account's
    life; beyond, only reducing orders are sent"""

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            most = 1.0 if item.name in ("daily_loss", "drawdown") else math.inf
            if value is not None and not 0 < value <= most:
                bound = " <= 1" if most == 1 else ""
                raise InputError(f"{item.name}={value}: a number > 0{bound} is accepted, or none to leave it off")

    @classmethod
    def off(cls) -> RiskLimits:
        """No limits: of a replay that is to show what the model alone does."""
        return cls(**dict.fromkeys(asdict(cls())))


@dataclass(frozen=True)
class Blocked:
    """An order that was not sent, and why."""

    order: Order
    reason: str


class RiskMonitor:
    """The limits over time.

    Args:
        timeframe: nanoseconds of one bar.
        peak: highest equity so far, of an account that is gone on with.
    """

    def __init__(self, limits: RiskLimits, timeframe: int, peak: float = 0.0) -> None:
        self.limits, self.timeframe = limits, timeframe
        self._unlimited = limits == RiskLimits.off()
        self.state, self.reasons = ACTIVE, []
        self.peak, self.day, self.day_equity = peak, None, math.nan
        self._killed = ""
        self._sent: deque[int] = deque()

    def assess(self, now: float, equity: float, closed: float, skew: float = 0.0, unexplained: float = 0.0) -> str:
        """The state at a moment; `reasons` then says why it is not ACTIVE.

        Args:
            now: the venue's time, UTC nanoseconds. equity: currency. closed: since when a bar is awaited, UTC
            nanoseconds. skew: seconds the venue's clock is ahead of ours. unexplained: currency, by how much books were
            made to be the venue's so far.
        """
        limits, found = self.limits, []
        numbers = {"equity": equity, "clock": now, "bar": closed, "skew": skew, "unexplained": unexplained}
        if not all(math.isfinite(value) for value in numbers.values()) or equity <= 0:
            told = ", ".join(f"{name} {value:g}" for name, value in numbers.items())
            found.append((HALTED, f"no usable number among {told}"))
        else:
            self._remember(int(now), equity)
            if limits.drawdown is not None and 1 - equity / self.peak >= limits.drawdown * (1 - _ROUNDING):
                # Sticky: a fall as deep as this is not undone by one good bar.
                self._killed = self._killed or f"drawdown {1 - equity / self.peak:.2%} of {limits.drawdown:.2%} allowed"
            if limits.daily_loss is not None and 1 - equity / self.day_equity >= limits.daily_loss * (1 - _ROUNDING):
                lost = 1 - equity / self.day_equity
                found.append((REDUCING, f"daily loss {lost:.2%} of {limits.daily_loss:.2%} allowed"))
            if limits.stale_bars is not None and now - closed > limits.stale_bars * self.timeframe:
                age = (now - closed) / self.timeframe
                found.append((HALTED, f"no bar for {age:.1f} bar lengths, {limits.stale_bars:g} allowed"))
            if limits.clock_skew is not None and abs(skew) > limits.clock_skew:
                found.append((REDUCING, f"clocks differ by {skew:.1f} s, {limits.clock_skew:g} s allowed"))
            if limits.unexplained is not None and unexplained > limits.unexplained * equity * (1 + _ROUNDING):
                share = f"{unexplained / equity:.2%} of equity in all, {limits.unexplained:.2%} allowed"
                found.append((REDUCING, f"the venue's books differ from its fills by {share}: are its fees others?"))
        if self._killed:
            found.append((HALTED, self._killed))
        self.state = max((state for state, _ in found), key=_SEVERITY.index, default=ACTIVE)
        self.reasons = [reason for _, reason in found]
        return self.state

    def _remember(self, now: int, equity: float) -> None:
        self.peak = max(self.peak, equity)
        if self.day != now // DAY:
            self.day, self.day_equity = now // DAY, equity

    def screen(
        self,
        orders: Sequence[Order],
        now: float,
        equity: float,
        held: Mapping[str, float],
        marks: Mapping[str, float],
        before: Mapping[str, float],
    ) -> tuple[list[Order], list[Blocked]]:
        """Which orders may be sent in the present state, and which not. Sells are judged before buys.

        Args:
            equity: currency. held: units by symbol. marks: the newest close by symbol, before: the close before it
            (0 or absent where there was none).
        """
        if self.state == ACTIVE and self._unlimited and equity > 0:
            return list(orders), []
        allowed, blocked = {}, []
        exposure = {symbol: units * marks.get(symbol, math.nan) for symbol, units in held.items() if units}
        gross = sum(abs(value) for value in exposure.values())
        for order in sorted(orders, key=lambda o: o.side == "buy"):
            value = exposure.get(order.symbol, 0.0)
            price = marks.get(order.symbol, math.nan)
            change = order.quantity * price * (1 if order.side == "buy" else -1)
            after = value + change
            # Through zero is a new position, however small.
            reducing = after * value >= 0 and abs(after) <= abs(value)
            reducing = reducing or abs(after) <= abs(value) * _ROUNDING
            last = before.get(order.symbol, 0.0)
            reason = self._refusal(equity, price, last, change, abs(after), gross + abs(after) - abs(value), reducing)
            if not reason and not self._may_send(int(now)):
                reason = f"more than {self.limits.orders_per_minute} orders in a minute"
            if reason:
                blocked.append(Blocked(order, reason))
                continue
            self._sent.append(int(now))
            allowed[order.client_order_id] = order
            gross, exposure[order.symbol] = gross + abs(after) - abs(value), after
        return [order for order in orders if order.client_order_id in allowed], blocked

    def _refusal(
        self, equity: float, price: float, last: float, change: float, after: float, gross: float, reducing: bool
    ) -> str:
        """Why an order is not sent; "" where it is."""
        limits = self.limits
        if self.state == HALTED:
            return "halted: " + "; ".join(self.reasons)
        if not all(math.isfinite(x) for x in (equity, price, last, change, after, gross)) or equity <= 0 or price <= 0:
            return "a price, a position or the equity is no usable number"
        if limits.price_band is not None and last > 0 and abs(price / last - 1) > limits.price_band * (1 + _ROUNDING):
            return f"price {price:g} is {abs(price / last - 1):.1%} from {last:g}, {limits.price_band:.1%} allowed"
        if limits.order_value is not None and abs(change) > limits.order_value * equity * (1 + _ROUNDING):
            return f"order of {abs(change) / equity:.2f} equities, {limits.order_value:g} allowed"
        if reducing:
            return ""
        if self.state == REDUCING:
            return "only reducing orders: " + "; ".join(self.reasons)
        if limits.asset_weight is not None and after > limits.asset_weight * equity * (1 + _ROUNDING):
            return f"position of {after / equity:.2f} equities, {limits.asset_weight:g} allowed"
        if limits.gross_exposure is not None and gross > limits.gross_exposure * equity * (1 + _ROUNDING):
            return f"gross exposure of {gross / equity:.2f} equities, {limits.gross_exposure:g} allowed"
        return ""

    def _may_send(self, now: int) -> bool:
        while self._sent and now - self._sent[0] >= 60 * SECOND:
            self._sent.popleft()
        return self.limits.orders_per_minute is None or len(self._sent) < self.limits.orders_per_minute

    def to_dict(self) -> dict[str, object]:
        """State, reasons and limits, JSON-able."""
        return {"state": self.state, "reasons": list(self.reasons), "limits": asdict(self.limits)}

    def memory(self) -> dict[str, object]:
        """What a restart needs to know: the day's first equity, the peak, a kill that stands, and when how many orders
        were sent within the last minute of sending."""
        return {"peak": self.peak, "day": self.day, "day_equity": self.day_equity if self.day else None,
                "killed": self._killed, "sent": [list(sent) for sent in Counter(self._sent).items()]}  # fmt: skip

    def restore(self, memory: Mapping[str, object]) -> None:
        """Go on from `memory()`."""
        self.peak = max(self.peak, float(memory["peak"]))
        self.day = memory["day"]
        self.day_equity = math.nan if memory["day_equity"] is None else float(memory["day_equity"])
        self._killed = str(memory["killed"])
        self._sent = deque(moment for moment, count in memory.get("sent", ()) for _ in range(count))
