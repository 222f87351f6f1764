"""Risk limits against numbers worked out by hand."""

from __future__ import annotations

import json
import math

import pytest

from environments.errors import InputError
from environments.live.broker import Order
from environments.live.risk import DAY, SECOND, RiskLimits, RiskMonitor

HOUR = 3_600 * SECOND
NOON = 19_000 * DAY + 12 * HOUR
EQUITY = 1_000.0


def monitor(**limits) -> RiskMonitor:
    made = RiskMonitor(RiskLimits(**{**RiskLimits.off().__dict__, **limits}), HOUR)
    made.assess(NOON, EQUITY, NOON)
    return made


def order(side: str, quantity: float, symbol: str = "A", name: str = "") -> Order:
    return Order(name or f"{symbol}-{side}-{quantity}", symbol, side, quantity)


def refused(risk: RiskMonitor, orders, held=(), marks=(("A", 10.0), ("B", 20.0)), before=(), now=NOON) -> list[str]:
    allowed, blocked = risk.screen(orders, now, EQUITY, dict(held), dict(marks), dict(before))
    assert {o.client_order_id for o in allowed} | {b.order.client_order_id for b in blocked} == {
        o.client_order_id for o in orders
    }
    return [b.reason for b in blocked]


def test_nothing_is_stopped_without_limits():
    risk = monitor()
    assert refused(risk, [order("buy", 1e9), order("sell", 1e9, "B")]) == []
    assert (risk.state, risk.reasons) == ("ACTIVE", [])


def test_order_value():
    risk = monitor(order_value=0.5)  # 500: 50 units of 10
    assert refused(risk, [order("buy", 50.0), order("sell", 25.0, "B")]) == []
    assert refused(risk, [order("buy", 50.01)]) == ["order of 0.50 equities, 0.5 allowed"]
    # An order that only reduces is an order too: a typing error of a zero too many sells everything.
    assert len(refused(risk, [order("sell", 60.0)], held={"A": 60.0})) == 1


def test_asset_weight_counts_what_is_held():
    risk = monitor(asset_weight=0.4)  # 400 in one asset: 40 units of 10
    assert refused(risk, [order("buy", 10.0)], held={"A": 30.0}) == []
    assert refused(risk, [order("buy", 10.1)], held={"A": 30.0}) == ["position of 0.40 equities, 0.4 allowed"]
    assert refused(risk, [order("sell", 90.0)], held={"A": 45.0}) != []  # to 45 short
    assert refused(risk, [order("sell", 5.0)], held={"A": 100.0}) == []  # too much still, but less than before


def test_gross_exposure_counts_sells_first():
    risk = monitor(gross_exposure=1.0)
    held = {"A": 60.0, "B": 20.0}  # 600 + 400
    assert refused(risk, [order("buy", 1.0)], held=held) == ["gross exposure of 1.01 equities, 1 allowed"]
    both = [order("buy", 10.0), order("sell", 5.0, "B")]  # +100 - 100, the sell comes second
    assert refused(risk, both, held=held) == []
    short = [order("sell", 1.0)]
    assert refused(risk, short, held={"A": -60.0, "B": 20.0}) != []  # short positions are exposure


def test_price_band():
    risk = monitor(price_band=0.1)
    for price, stopped in ((11.0, False), (11.01, True), (9.0, False), (8.99, True)):
        assert bool(refused(risk, [order("buy", 1.0)], marks={"A": price}, before={"A": 10.0})) == stopped, price
    assert refused(risk, [order("buy", 1.0)], before={"A": 0.0}) == []  # its first bar: nothing to compare with


def test_throttle_forgets_after_a_minute():
    risk = monitor(orders_per_minute=2)
    names = iter("abcdefgh")

    def one(seconds: float) -> bool:
        return not refused(risk, [order("buy", 1.0, name=next(names))], now=NOON + int(seconds * SECOND))

    assert [one(0), one(1), one(2), one(59.9), one(60.0), one(60.5), one(61.0)] == [
        True, True, False, False, True, False, True,
    ]  # fmt: skip


def test_daily_loss_reduces_until_the_day_ends():
    risk = monitor(daily_loss=0.1)
    midnight = (NOON // DAY + 1) * DAY
    assert risk.assess(NOON + HOUR, 901.0, NOON + HOUR) == "ACTIVE"
    assert risk.assess(NOON + 2 * HOUR, 900.0, NOON) == "REDUCING"
    assert "daily loss 10.00%" in risk.reasons[0]
    assert refused(risk, [order("buy", 1.0), order("sell", 1.0, "B")], held={"B": 2.0})[0].startswith("only reducing")
    assert refused(risk, [order("sell", 2.0, "B")], held={"B": 2.0}) == []
    assert refused(risk, [order("sell", 3.0, "B")], held={"B": 2.0}) != []  # through zero is a new position
    assert refused(risk, [order("buy", 2.0, "B")], held={"B": -2.0}) == []
    assert risk.assess(midnight - 1, 900.0, midnight) == "REDUCING"
    assert risk.assess(midnight, 900.0, midnight) == "ACTIVE"  # a new day begins with 900
    assert risk.assess(midnight + HOUR, 811.0, midnight) == "ACTIVE"
    assert risk.assess(midnight + HOUR, 810.0, midnight) == "REDUCING"


def test_drawdown_halts_for_good():
    risk = monitor(drawdown=0.2)
    assert risk.assess(NOON, 2_000.0, NOON) == "ACTIVE"
    assert risk.assess(NOON + DAY, 1_601.0, NOON + DAY) == "ACTIVE"
    assert risk.assess(NOON + DAY, 1_600.0, NOON + DAY) == "HALTED"
    assert risk.assess(NOON + 2 * DAY, 5_000.0, NOON + 2 * DAY) == "HALTED", "a good bar does not undo it"
    assert refused(risk, [order("sell", 1.0)], held={"A": 1.0})[0].startswith("halted: drawdown 20.00%")
    again = RiskMonitor(risk.limits, HOUR)
    again.restore(risk.memory())
    assert again.assess(NOON + 2 * DAY, 5_000.0, NOON + 2 * DAY) == "HALTED", "nor does a restart"


def test_stale_bars_and_skewed_clocks():
    risk = monitor(stale_bars=2.0, clock_skew=5.0)
    assert risk.assess(NOON + 2 * HOUR, EQUITY, NOON) == "ACTIVE"
    assert risk.assess(NOON + 2 * HOUR + 1, EQUITY, NOON) == "HALTED"
    assert risk.assess(NOON + 3 * HOUR, EQUITY, NOON + 3 * HOUR) == "ACTIVE"
    assert risk.assess(NOON + 3 * HOUR, EQUITY, NOON + 3 * HOUR, skew=-5.1) == "REDUCING"
    assert "clocks differ by -5.1 s" in risk.reasons[0]


@pytest.mark.parametrize("wrong", [math.nan, math.inf, 0.0, -1.0])
def test_a_number_that_is_none_halts(wrong):
    risk = monitor()
    assert risk.assess(NOON, wrong, NOON) == "HALTED"
    assert refused(risk, [order("sell", 1.0)], held={"A": 1.0}) != []
    if not wrong <= 0:
        assert risk.assess(NOON, EQUITY, NOON, skew=wrong) == "HALTED"
        assert risk.assess(wrong, EQUITY, NOON) == "HALTED"


@pytest.mark.parametrize("limits", [{"price_band": 0.5}, {"asset_weight": 4.0}])
def test_what_cannot_be_judged_is_not_sent(limits):
    risk = monitor(**limits)
    bad = "a price, a position or the equity is no usable number"
    assert refused(risk, [order("buy", 1.0)], marks={"A": math.nan}) == [bad]
    assert refused(risk, [order("buy", 1.0, "C")]) == [bad]  # no mark at all
    assert refused(risk, [order("buy", math.nan)]) == [bad]
    assert refused(risk, [order("buy", 1.0)], held={"B": math.nan}) == [bad]
    assert risk.screen([order("buy", 1.0)], NOON, math.nan, {}, {"A": 1.0}, {})[0] == []


def test_the_worst_state_counts_and_all_reasons_are_told():
    risk = monitor(daily_loss=0.1, drawdown=0.15, clock_skew=1.0)
    risk.assess(NOON, 800.0, NOON, skew=3.0)
    assert risk.state == "HALTED" and len(risk.reasons) == 3
    told = risk.to_dict()
    assert told["state"] == "HALTED" and told["limits"]["daily_loss"] == 0.1 and told["limits"]["price_band"] is None


@pytest.mark.parametrize(
    ("name", "value"), [("order_value", 0.0), ("daily_loss", 1.5), ("stale_bars", -1.0), ("drawdown", math.nan)]
)
def test_limits_that_are_none(name, value):
    with pytest.raises(InputError, match=f"{name}="):
        RiskLimits(**{name: value})


def test_books_that_differ_from_the_fills_for_long_reduce():
    """1% of 1,000 may be taken over from the venue's books in all."""
    risk = monitor(unexplained=0.01)
    assert risk.assess(NOON, EQUITY, NOON, unexplained=10.0) == "ACTIVE"
    assert risk.assess(NOON, EQUITY, NOON, unexplained=10.01) == "REDUCING" and "1.00% of equity" in risk.reasons[0]
    assert len(refused(risk, [order("buy", 1.0), order("sell", 1.0)], held={"A": 2.0})) == 1
    assert risk.assess(NOON, EQUITY, NOON, unexplained=math.nan) == "HALTED"
    assert monitor().assess(NOON, EQUITY, NOON, unexplained=500.0) == "ACTIVE"


def test_a_crash_loop_does_not_begin_the_minute_anew():
    """Of three orders a minute two are sent; after a restart within the minute one is left, a minute later three."""
    limits, four = {"orders_per_minute": 3}, [order("buy", 1.0, name=str(i)) for i in range(4)]
    first = monitor(**limits)
    assert refused(first, four[:2]) == []
    again = monitor(**limits)
    again.restore(json.loads(json.dumps(first.memory())))
    assert refused(again, four, now=NOON + 59 * SECOND) == ["more than 3 orders in a minute"] * 3
    once_more = monitor(**limits)
    once_more.restore(json.loads(json.dumps(again.memory())))
    assert len(refused(once_more, four, now=NOON + 60 * SECOND)) == 2
    older = first.memory()
    del older["sent"]
    once_more.restore(older)
    assert len(refused(once_more, four, now=NOON)) == 1
