"""The books, actions, frictions and rewards on numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from environments.actions import TargetWeights, Trades, build_scheme, to_orders
from environments.data.source import load_bars
from environments.errors import InputError
from environments.frictions import Frictions, slippage_table
from environments.market import Market
from environments.market_env import MarketVecEnv
from environments.observation import account_vector
from environments.portfolio import Account, Fills, equity, floor_to, match, open_account, settle
from environments.rewards import excess, log_return, reward_term
from environments.rules import WHOLE, AssetRule, RuleBook, RuleTensors, base_of, default_rule

FREE = Frictions(0.0, 0.0, 0.0, 0.0)


def f64(*values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def rules(*each: tuple[float, float, float]) -> RuleTensors:
    return RuleTensors(*(f64(*column) for column in zip(*each, strict=True)))


FINE = (1e-9, 1e-9, 1.0)


def trade(account: Account, orders, price, rule: RuleTensors, frictions: Frictions = FREE, fillable=None, slip=None):
    """(account after, fills) of one bar for a single trader."""
    price, orders = torch.tensor(price, dtype=torch.float64), torch.tensor(orders, dtype=torch.float64)
    able = torch.ones_like(price, dtype=torch.bool) if fillable is None else torch.tensor([fillable])
    fills = match(account, orders, price, able, rule, frictions, None if slip is None else f64(slip))
    return settle(account, fills), fills


# ------------------------------------------------------------------------------------------- frictions


def test_costs_by_hand():
    """20,000 of a 100,000 portfolio: 25 bps = 50, 2 bps = 4, half of 5 bps = 5, 0.01 sqrt(0.2) = 89.44."""
    cost = Frictions(25.0, 2.0, 5.0, 0.01).cost(f64([20_000.0]), f64([0.5]), f64([100_000.0]))
    assert cost.item() == pytest.approx(50 + 4 + 5 + 0.01 * math.sqrt(0.2) * 20_000, rel=1e-14)
    assert cost.item() == pytest.approx(148.4427191, rel=1e-9)


def test_each_friction_alone():
    value, slip, worth = f64([1_000.0, 0.0]), f64([0.25, 0.9]), f64([4_000.0])
    assert Frictions(10.0, 0.0, 0.0, 0.0).cost(value, slip, worth).tolist() == [[1.0, 0.0]]
    assert Frictions(0.0, 20.0, 0.0, 0.0).cost(value, slip, worth).tolist() == [[2.0, 0.0]]
    assert Frictions(0.0, 0.0, 40.0, 0.0).cost(value, slip, worth).tolist() == [[1.0, 0.0]]
    assert Frictions(0.0, 0.0, 0.0, 0.1).cost(value, slip, worth).tolist() == [[50.0, 0.0]]


def test_impact_slope_is_finite_at_zero():
    value = f64([0.0]).requires_grad_()
    Frictions(0.0, 0.0, 0.0, 0.1).cost(value, None, f64([1.0])).sum().backward()
    assert torch.isfinite(value.grad).all()


@pytest.mark.parametrize("wrong", [{"commission_bps": -1.0}, {"spread_bps": 1_000.0}, {"slippage_bps": math.nan}])
def test_costs_out_of_range_are_refused(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        Frictions(**wrong)


def test_costs_that_exceed_the_proceeds_are_refused():
    with pytest.raises(InputError, match="impact_coef"):
        Frictions(impact_coef=2.0)
    worst = Frictions(999.0, 999.0, 999.0, 0.499)
    account, fills = trade(
        Account(f64(0.0), f64([3.0]), f64([10.0]), f64([4.0])),
        [[-3.0]],
        [[10.0]],
        rules(FINE),
        worst,
        slip=[[0.999]],
    )
    assert fills.fees.sum() < 30
    assert account.cash.item() == pytest.approx(30 - fills.fees.sum().item(), rel=1e-12)


def test_slippage_depends_on_symbol_time_and_seed_only(make_market, random_bars):
    first, second = random_bars(1, 60), random_bars(2, 60)
    both = make_market({"AA/USD": first, "BB/USD": second})
    swapped = make_market({"BB/USD": second[20:], "AA/USD": first[20:]})
    table = slippage_table(both, 3)
    # `swapped` starts at the same clock: the draws follow the clock, not the prices.
    assert torch.equal(table[:40, 0], slippage_table(swapped, 3)[:, 1])
    assert not torch.equal(table, slippage_table(both, 4))
    assert not torch.equal(table[:, 0], table[:, 1])
    assert table.min() >= 0 and table.max() < 1 and abs(table.mean() - 0.5) < 0.1


# ---------------------------------------------------------------------------------------------- rounding


def test_three_tenths_are_three_increments():
    """0.3 / 0.1 is 2.9999999999999996 in floating point."""
    assert floor_to(f64(0.3), f64(0.1)).item() == pytest.approx(0.3, rel=1e-15)
    assert floor_to(f64(0.7), f64(0.1)).item() == pytest.approx(0.7, rel=1e-15)
    assert floor_to(f64(0.2999), f64(0.1)).item() == pytest.approx(0.2, rel=1e-15)
    assert floor_to(f64(0.0), f64(0.1)).item() == 0.0


def test_gradient_passes_through_rounding():
    quantity = f64(2.75).requires_grad_()
    rounded = floor_to(quantity, f64(1.0))
    rounded.backward()
    assert rounded.item() == 2.0 and quantity.grad.item() == 1.0


@pytest.mark.parametrize("action,held", [(0.5, 0.0), (-0.5, 50.0)])
def test_gradient_from_equity_to_action(action, held):
    """A trade of action * 0.25 * 1,000 at 10, marked at 11: dE/da = 250 / 10 * (11 - 10) = 25, either way."""
    a = torch.tensor([[action]], dtype=torch.float64, requires_grad=True)
    cash = 1_000.0 - 10 * held
    account = Account(f64(cash), f64([held]), f64([10.0]), f64([0.0]))
    rule, able = rules((1.0, 1.0, 0.0)), torch.tensor([[True]])
    orders = Trades(0.25).orders(a, account, f64(1_000.0), f64([10.0]), able, rule)
    assert orders.item() == math.copysign(12.0, action)
    after = settle(account, match(account, orders, f64([10.0]), able, rule, FREE, None))
    value = equity(after, f64([11.0]))
    value.sum().backward()
    assert a.grad.item() == pytest.approx(25.0, rel=1e-12)


def test_gradients_are_finite_when_cash_runs_short():
    a = torch.tensor([[1.0, 0.9, -1.0]], dtype=torch.float64, requires_grad=True)
    account = Account(f64(100.0), f64([0.0, 3.0, 9.0]), f64([0.0, 9.0, 12.0]), f64([0.0, 2.0, 1.0]))
    price, able, rule = f64([10.0, 20.0, 0.0]), torch.tensor([[True, True, False]]), rules(FINE, FINE, FINE)
    orders = Trades(1.0).orders(a, account, equity(account, price), price, able, rule)
    after = settle(account, match(account, orders, price, able, rule, Frictions(), torch.full((1, 3), 0.5).double()))
    equity(after, f64([10.5, 19.0, 0.0])).sum().backward()
    assert torch.isfinite(a.grad).all() and a.grad[0, :2].abs().sum() > 0 and a.grad[0, 2] == 0


# ------------------------------------------------------------------------------------------- one bar's fills


def test_buy_and_sell_with_commission():
    """Buy 10 at 50 with 1 %: 500 + 5. Then sell 4 at 60: 240 - 2.40."""
    costs = Frictions(100.0, 0.0, 0.0, 0.0)
    account, fills = trade(open_account(f64(1_000.0), 1), [[10.0]], [[50.0]], rules(FINE), costs)
    assert (fills.traded.item(), fills.value.item(), fills.fees.item()) == (10.0, 500.0, 5.0)
    assert (account.cash.item(), account.shares.item(), account.entry.item()) == (495.0, 10.0, 50.0)
    account, fills = trade(account, [[-4.0]], [[60.0]], rules(FINE), costs)
    assert fills.fees.item() == pytest.approx(2.4)
    assert account.cash.item() == pytest.approx(495 + 240 - 2.4)
    assert (account.shares.item(), account.entry.item(), account.idle.item()) == (6.0, 50.0, 0.0)


def test_two_buys_share_the_cash():
    """600 + 600 for 900 of cash: both shrink by 3/4, neither is served first."""
    account, fills = trade(open_account(f64(900.0), 2), [[60.0, 6.0]], [[10.0, 100.0]], rules(FINE, FINE))
    assert fills.traded[0].tolist() == pytest.approx([45.0, 4.5])
    assert account.cash.item() == pytest.approx(0.0, abs=1e-6) and account.cash.item() >= 0


def test_fees_are_part_of_what_must_be_affordable():
    """1,000 buys 1,000 / 1.01 worth at 1 % commission, in whole shares of 10: 99 for 990 + 9.90."""
    account, fills = trade(
        open_account(f64(1_000.0), 1),
        [[100.0]],
        [[10.0]],
        rules((1.0, 1.0, 0.0)),
        Frictions(100.0, 0.0, 0.0, 0.0),
    )
    assert fills.traded.item() == 99.0
    assert account.cash.item() == pytest.approx(1_000 - 990 - 9.9)


def test_proceeds_of_sales_pay_for_buys_of_the_same_bar():
    account = Account(f64(0.0), f64([10.0, 0.0]), f64([5.0, 0.0]), f64([3.0, 3.0]))
    account, fills = trade(account, [[-10.0, 5.0]], [[10.0, 20.0]], rules(FINE, FINE))
    assert fills.traded[0].tolist() == [-10.0, 5.0]
    assert account.cash.item() == 0.0 and account.shares[0].tolist() == [0.0, 5.0]
    assert account.entry[0].tolist() == [0.0, 20.0]


def test_sale_is_cut_to_what_is_held():
    account = Account(f64(7.0), f64([2.0]), f64([5.0]), f64([3.0]))
    account, fills = trade(account, [[-5.0]], [[10.0]], rules(FINE))
    assert fills.traded.item() == -2.0 and account.cash.item() == 27.0 and account.shares.item() == 0.0


def test_scaled_buy_below_a_minimum_is_dropped():
    """Cash for 0.5 of both: 0.5 * 18 = 9 misses the minimum of 10, 0.5 * 400 = 200 does not."""
    rule = rules((1e-9, 1e-9, 10.0), (1e-9, 1e-9, 10.0))
    _, fills = trade(open_account(f64(209.0), 2), [[18.0, 400.0]], [[1.0, 1.0]], rule)
    assert fills.traded[0, 0].item() == 0.0 and fills.traded[0, 1].item() == pytest.approx(200.0)
    assert fills.value[0, 0].item() == 0.0 == fills.fees[0, 0].item()


def test_order_lapses_where_nothing_trades():
    start = Account(f64(100.0), f64([1.0, 1.0]), f64([5.0, 5.0]), f64([3.0, 0.0]))
    account, fills = trade(start, [[-1.0, 2.0]], [[10.0, 10.0]], rules(FINE, FINE), fillable=[False, False])
    assert fills.value.sum() == 0 and account.cash.item() == 100.0
    assert account.shares[0].tolist() == [1.0, 1.0] and account.idle[0].tolist() == [4.0, 1.0]


def test_selling_everything_leaves_nothing():
    """29 and 28 tenths make a hair more than 57 * 0.1: no dust stays behind, above the grid or below it."""
    rule = rules((0.1, 0.1, 0.0))
    for lots in ([29 * 0.1, 28 * 0.1], [0.1] * 8, [0.1, 0.2], [0.7, 0.1, 0.3, 0.6], [1.1, 2.2, 3.3]):
        account = open_account(f64(1_000.0), 1)
        for lot in lots:
            account, _ = trade(account, [[lot]], [[10.0]], rule)
        orders = Trades(1.0).orders(
            -torch.ones(1, 1),
            account,
            equity(account, f64([10.0])),
            f64([10.0]),
            torch.tensor([[True]]),
            rule,
        )
        account, _ = trade(account, orders.tolist(), [[10.0]], rule)
        assert account.shares.item() == 0.0 and account.entry.item() == 0.0
        assert account.cash.item() == pytest.approx(1_000.0, rel=1e-12)


def test_entry_price_is_the_average_paid():
    """10 at 50 and 30 at 70 average 65; selling leaves it; buying again averages over what is left."""
    account = open_account(f64(10_000.0), 1)
    for order, price, entry in (
        (10.0, 50.0, 50.0),
        (30.0, 70.0, 65.0),
        (-20.0, 90.0, 65.0),
        (20.0, 85.0, 75.0),
    ):
        account, _ = trade(account, [[order]], [[price]], rules(FINE))
        assert account.entry.item() == pytest.approx(entry, rel=1e-12)


def test_settle_takes_any_fills():
    """What a broker reports is booked the same way: 2 bought for 21 with a fee of 0.5."""
    after = settle(open_account(f64(100.0), 1), Fills(f64([2.0]), f64([21.0]), f64([0.5])))
    assert (after.cash.item(), after.shares.item(), after.entry.item()) == (78.5, 2.0, 10.5)


# ------------------------------------------------------------------------ fees in units, volume, precision


def test_a_fee_taken_from_what_is_bought():
    """0.1 at 30,000 with 25 bps leaves 0.09975 for 3,000 of cash; sold at 40,000 it brings 3,990 less 9.975."""
    costs = Frictions(25.0, 0.0, 0.0, 0.0, fee_in="received")
    rule = rules((1e-4, 1e-4, 10.0))._replace(remnant=WHOLE)
    account, fills = trade(open_account(f64(5_000.0), 1), [[0.1]], [[30_000.0]], rule, costs)
    assert account.shares.item() == pytest.approx(0.09975, rel=1e-14)
    assert account.cash.item() == pytest.approx(2_000.0, rel=1e-14) and account.entry.item() == pytest.approx(30_000.0)
    assert (fills.fees.item(), fills.value.item()) == pytest.approx((7.5, 2_992.5), rel=1e-12)
    # All that is held is ordered and sold, though it is no multiple of the increment.
    mark, able = f64([40_000.0]), torch.tensor([[True]])
    orders = Trades(1.0).orders(-torch.ones(1, 1), account, equity(account, mark), mark, able, rule)
    assert orders.item() == -account.shares.item()
    account, fills = trade(account, orders.tolist(), [[40_000.0]], rule, costs)
    assert account.shares.item() == 0.0 == account.entry.item()
    assert account.cash.item() == pytest.approx(2_000 + 3_990 - 9.975, rel=1e-12)


def test_all_of_the_cash_buys_more_where_the_fee_is_no_cash():
    """1,000 buys 1,000 worth; 2 % of spread is still paid in cash: 1,000 / 1.02."""
    rule = rules((1e-9, 1e-9, 1.0))._replace(remnant=WHOLE)
    received = Frictions(100.0, 0.0, 0.0, 0.0, fee_in="received")
    account, _ = trade(open_account(f64(1_000.0), 1), [[200.0]], [[10.0]], rule, received)
    assert account.shares.item() == pytest.approx(99.0, rel=1e-9) and account.cash.item() == pytest.approx(0, abs=1e-6)
    spread = Frictions(100.0, 200.0, 0.0, 0.0, fee_in="received")
    account, fills = trade(open_account(f64(1_000.0), 1), [[200.0]], [[10.0]], rule, spread)
    assert account.shares.item() == pytest.approx(99.0 / 1.02, rel=1e-9)
    assert fills.fees.item() == pytest.approx(0.03 * 1_000 / 1.02, rel=1e-9)


@pytest.mark.parametrize(("wanted", "ordered"), [(-1.2, -1.0), (-98.7, -98.0), (-98.8, -99.75), (-500.0, -99.75)])
def test_a_sale_leaves_a_whole_increment_or_nothing(wanted, ordered):
    """99.75 coins of an increment of 1: what leaves more than one is rounded down, what leaves less sells all."""
    account = Account(f64(0.0), f64([99.75]), f64([1.0]), f64([0.0]))
    rule = rules((1.0, 1.0, 0.0))._replace(remnant=WHOLE)
    orders = to_orders(f64([wanted]), account, f64([1.0]), torch.tensor([[True]]), rule)
    assert orders.item() == pytest.approx(ordered)
    # A buy is on the increment, and a sub-increment position does not turn one into it.
    small = Account(f64(50.0), f64([0.3]), f64([1.0]), f64([0.0]))
    for units, bought in ((0.2, 0.0), (3.7, 3.0)):
        assert to_orders(f64([units]), small, f64([1.0]), torch.tensor([[True]]), rule).item() == bought


def test_an_order_takes_its_part_of_the_volume():
    """5 % of 500 and of 70 traded, in whole shares: 25 bought, 3 sold, the rest lapses; of no volume, none."""
    account = Account(f64(1e6), f64([0.0, 90.0, 5.0]), f64([0.0, 10.0, 10.0]), f64([0.0, 0.0, 0.0]))
    price, able = f64([10.0, 10.0, 10.0]), torch.ones(1, 3, dtype=torch.bool)
    orders, volume, one = f64([40.0, -60.0, -5.0]), f64([500.0, 70.0, 0.0]), (1.0, 1.0, 0.0)
    costs = Frictions(0.0, 0.0, 0.0, 0.0, participation=0.05)
    fills = match(account, orders, price, able, rules(one, one, one), costs, None, volume)
    assert fills.traded[0].tolist() == [25.0, -3.0, 0.0]
    with pytest.raises(ValueError, match="volume is needed"):
        match(account, orders, price, able, rules(one, one, one), costs, None)


def test_impact_relative_to_the_volume():
    """2,000 of a bar that traded 50,000: 0.1 * sqrt(0.04) = 2 %; more than the bar traded counts as all of it."""
    costs = Frictions(0.0, 0.0, 0.0, 0.1, "volume")
    price, able = f64([20.0]), torch.tensor([[True]])
    for volume, share in ((2_500.0, 0.02), (100.0, 0.1), (50.0, 0.1)):
        fills = match(open_account(f64(1e9), 1), f64([100.0]), price, able, rules(FINE), costs, None, f64([volume]))
        assert fills.fees.item() == pytest.approx(2_000 * share, rel=1e-12)


def test_friction_choices_are_checked():
    for wrong in ({"impact_reference": "market"}, {"participation": 0.0}, {"participation": 1.5}, {"fee_in": "coins"}):
        with pytest.raises(InputError, match=next(iter(wrong))):
            Frictions(**wrong)
    assert Frictions.for_venue("crypto").fee_in == "received" and Frictions.for_venue("stock").fee_in == "quote"
    assert Frictions.for_venue("crypto", fee_in="quote").fee_in == "quote"


def test_single_precision_counts_increments():
    """0.3 / 0.1 is 3.0000002 there, and 123.4 / 0.1 is below 1,234: both are on the increment."""
    step = torch.tensor(0.1)
    for units in (0.3, 0.7, 123.4, 2_345.6):
        assert floor_to(torch.tensor(units), step).item() == pytest.approx(units, rel=1e-6)
    assert floor_to(torch.tensor(0.29), step).item() == pytest.approx(0.2, rel=1e-6)


def test_a_market_in_single_precision():
    bars = load_bars("synthetic", options={"kind": "gbm", "n_bars": 120, "n_assets": 2}, seed=1)
    market = Market.from_bars(bars, dtype=torch.float32)
    assert {market.open.dtype, market.mark.dtype, market.volume.dtype} == {torch.float32}
    env = MarketVecEnv(market, 4, features=("return_1",))
    step = env.step(torch.ones(4, 2))
    assert env.equity.dtype == env.account.shares.dtype == torch.float32 and step.reward.isfinite().all()
    assert Market.from_bars(bars).dtype == torch.float64
    with pytest.raises(InputError, match="dtype=torch.float16"):
        Market.from_bars(bars, dtype=torch.float16)


# ------------------------------------------------------------------------------------------------ actions


def orders_of(scheme, action, account, mark, judged=None, rule=None):
    mark = torch.tensor(mark, dtype=torch.float64)
    able = torch.ones_like(mark, dtype=torch.bool) if judged is None else torch.tensor([judged])
    rule = rule or rules(*([FINE] * mark.shape[1]))
    return scheme.orders(torch.tensor([action]), account, equity(account, mark), mark, able, rule)[0].tolist()


def test_trades_are_shares_of_equity():
    """Equity 1,000: 0.5 * 0.2 * 1,000 = 100 buys 4 at 25; 1 * 0.2 * 1,000 = 200 would sell 20 of 10 held."""
    account = Account(f64(900.0), f64([0.0, 10.0]), f64([0.0, 8.0]), f64([0.0, 0.0]))
    assert orders_of(Trades(0.2), [0.5, -1.0], account, [[25.0, 10.0]]) == pytest.approx([4.0, -10.0])
    assert orders_of(Trades(0.2), [9.0, 0.0], account, [[25.0, 10.0]]) == pytest.approx([8.0, 0.0])
    assert orders_of(Trades(0.2), [1.0, 1.0], account, [[25.0, 10.0]], judged=[False, True])[0] == 0.0


def test_target_weights_by_hand():
    """Sharpness ln 4, action (1, 0, 0): weights 4/6, 1/6 and 1/6 in cash."""
    account = Account(f64(500.0), f64([0.0, 50.0]), f64([0.0, 10.0]), f64([0.0, 0.0]))
    scheme = TargetWeights(math.log(4))
    got = orders_of(scheme, [1.0, 0.0, 0.0], account, [[20.0, 10.0]])
    assert got == pytest.approx([1_000 * 4 / 6 / 20, 1_000 / 6 / 10 - 50], rel=1e-6)


def test_target_weights_leave_what_cannot_be_judged():
    """Half of 1,000 is held in asset 1, which has no bar: the other half is shared by asset 0 and cash."""
    account = Account(f64(500.0), f64([0.0, 50.0]), f64([0.0, 10.0]), f64([0.0, 0.0]))
    got = orders_of(TargetWeights(5.0), [0.3, 1.0, 0.3], account, [[20.0, 10.0]], judged=[True, False])
    assert got == pytest.approx([500 / 2 / 20, 0.0], rel=1e-6)


def test_minima_at_the_decision():
    """9.99 is below the venue's 10; 3 shares are below a minimum of 4; 0.4 of a whole share is none."""
    account = open_account(f64(1_000.0), 3)
    rule = rules((1e-9, 1e-9, 10.0), (1.0, 4.0, 0.0), (1.0, 1.0, 0.0))
    assert orders_of(Trades(1.0), [0.00999, 0.03, 0.04], account, [[1.0, 10.0, 100.0]], rule=rule) == [
        0.0,
        0.0,
        0.0,
    ]
    got = orders_of(Trades(1.0), [0.01001, 0.041, 0.11], account, [[1.0, 10.0, 100.0]], rule=rule)
    assert got == pytest.approx([10.01, 4.0, 1.0], rel=1e-6)


def test_action_options_are_checked():
    with pytest.raises(InputError, match="trades, weights"):
        build_scheme("hold")
    with pytest.raises(InputError, match="max_trade"):
        build_scheme("trades", sharpness=2.0)
    with pytest.raises(InputError, match="max_trade"):
        build_scheme("trades", max_trade=1.5)


# ------------------------------------------------------------------------------- rewards, rules, observation


def test_rewards_by_hand():
    """100 to 110 while the holder goes from 200 to 210: ln 1.1 and 10 % - 5 %."""
    before, after, held, held_after = f64(100.0), f64(110.0), f64(200.0), f64(210.0)
    assert log_return(before, after, held, held_after).item() == pytest.approx(math.log(1.1))
    assert excess(before, after, held, held_after).item() == pytest.approx(0.05)
    assert log_return(before, f64(-5.0), held, held_after).item() == pytest.approx(math.log(1e-6))
    with pytest.raises(InputError, match="log_return, excess"):
        reward_term("sharpe")


def test_rules_follow_the_symbol():
    assert [base_of(s) for s in ("BTC/USD", "BTCUSD", "btc-usdt", "USDC/USD", "USD")] == [
        "BTC", "BTC", "BTC", "USDC", "USD"
    ]  # fmt: skip
    assert default_rule("BTCUSDT", "crypto") == AssetRule(0.0001, 0.0001, 10.0)
    assert default_rule("AAPL", "stock") == AssetRule(1e-9, 1e-9, 1.0)
    book = RuleBook("crypto", {"ETH/USD": AssetRule(2.0, 3.0, 4.0)})
    there = book.tensors(["ETH/USD", "BTC/USD"], torch.device("cpu"), torch.float64)
    back = book.tensors(["BTC/USD", "ETH/USD"], torch.device("cpu"), torch.float64)
    assert there.increment.tolist() == [2.0, 0.0001] and back.increment.tolist() == [0.0001, 2.0]
    again = RuleBook.from_dict("crypto", book.to_dict(["ETH/USD", "BTC/USD"]))
    assert [again.rule(s) for s in ("ETH/USD", "BTC/USD")] == [book.rule(s) for s in ("ETH/USD", "BTC/USD")]
    with pytest.raises(InputError, match="ETH/USD"):
        book.tensors(["BTC/USD"], torch.device("cpu"), torch.float64)
    with pytest.raises(InputError, match="increment"):
        AssetRule(0.0, 1.0, 1.0)


def test_account_vector_by_hand():
    """Cash 400 of 1,000; 20 at 30 bought at 24 (+25 %); an asset never held, idle for 6 bars."""
    account = Account(f64(400.0), f64([20.0, 0.0]), f64([24.0, 0.0]), f64([0.0, 6.0]))
    vector = account_vector(account, f64([30.0, 9.0]), f64(1_000.0))[0].tolist()
    assert vector == pytest.approx([0.4, 0.6, 0.0, 0.25, 0.0, 0.0, math.log(7) / 5], rel=1e-6)
    rich = Account(f64(0.0), f64([1.0]), f64([1.0]), f64([0.0]))
    assert account_vector(rich, f64([50.0]), f64(50.0))[0].tolist() == [0.0, 1.0, 1.0, 0.0]
