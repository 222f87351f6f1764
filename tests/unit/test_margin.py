"""Margin accounts by hand: shorting, leverage, what borrowing costs, the forced close, gradients."""

from __future__ import annotations

import importlib.util
import math
import sys
from pathlib import Path

import pytest
import torch
import tyro

from drl_agents.training.commandline import parse_options
from environments.actions import SignalSize, TargetWeights, Trades, to_orders
from environments.errors import InputError
from environments.frictions import Frictions
from environments.margin import CASH_ACCOUNT, MarginTerms
from environments.market_env import MarketVecEnv
from environments.observation import account_vector
from environments.plugin import build_env
from environments.portfolio import Account, close_bar, equity, match, open_account, settle
from environments.rules import AssetRule, RuleBook, RuleTensors

FREE = Frictions(0.0, 0.0, 0.0, 0.0)
SHORT = MarginTerms(margin=2.0, shorting=True)


def f64(*values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def rules(n: int = 1, increment: float = 1e-9, least: float = 0.0, margin: MarginTerms = SHORT) -> RuleTensors:
    return RuleTensors(f64(*[increment] * n), f64(*[increment] * n), f64(*[least] * n), margin=margin)


def trade(account: Account, orders, price, rule: RuleTensors, frictions: Frictions = FREE):
    """(account after, fills) of one bar for a single trader."""
    price = f64(price)
    fills = match(account, f64(orders), price, torch.ones_like(price, dtype=torch.bool), rule, frictions, None)
    return settle(account, fills, rule.margin), fills


def held(cash: float, shares, entry) -> Account:
    return Account(f64(cash), f64([*shares]), f64([*entry]), torch.zeros(1, len(shares), dtype=torch.float64))


# ------------------------------------------------------------------------------------------------ the books


def test_a_short_sale_and_its_cover():
    """Sell 10 at 50 with 1 %: 500 - 5. At 40 it is worth 1,095; bought back there for 400 + 4."""
    costs, rule = Frictions(100.0, 0.0, 0.0, 0.0), rules()
    account, fills = trade(open_account(f64(1_000.0), 1), [-10.0], [50.0], rule, costs)
    assert (fills.traded.item(), fills.value.item(), fills.fees.item()) == (-10.0, 500.0, 5.0)
    assert (account.cash.item(), account.shares.item(), account.entry.item()) == (1_495.0, -10.0, 50.0)
    assert equity(account, f64([40.0])).item() == 1_095.0
    account, _ = trade(account, [10.0], [40.0], rule, costs)
    assert (account.cash.item(), account.shares.item(), account.entry.item()) == (1_091.0, 0.0, 0.0)


def test_entry_prices_on_both_sides_of_zero():
    """Short 10 at 50 and 30 at 70 average 65; covering leaves it; through zero the new position has its own price."""
    rule, account = rules(), open_account(f64(1e6), 1)
    for order, price, shares, entry in (
        (-10.0, 50.0, -10.0, 50.0),
        (-30.0, 70.0, -40.0, 65.0),
        (15.0, 90.0, -25.0, 65.0),
        (-25.0, 75.0, -50.0, 70.0),
        (80.0, 60.0, 30.0, 60.0),
        (10.0, 80.0, 40.0, 65.0),
        (-45.0, 20.0, -5.0, 20.0),
        (5.0, 33.0, 0.0, 0.0),
    ):
        account, _ = trade(account, [order], [price], rule)
        assert (account.shares.item(), account.entry.item()) == pytest.approx((shares, entry), rel=1e-12)


def test_rounding_leaves_no_position_on_either_side():
    for lots in ([29 * 0.1, 28 * 0.1], [0.1] * 8, [1.1, 2.2, 3.3]):
        account, rule = open_account(f64(1e5), 1), rules(increment=0.1)
        for lot in lots:
            account, _ = trade(account, [-lot], [10.0], rule)
        account, _ = trade(account, [math.fsum(lots)], [10.0], rule)
        assert account.shares.item() == 0.0 == account.entry.item()
        assert account.cash.item() == pytest.approx(1e5, rel=1e-12)


def test_openings_are_scaled_to_the_limit():
    """Equity 1,000, limit 2: of 1,500 bought and 2,500 sold short half is done: 750 + 1,250 = 2,000."""
    account, fills = trade(open_account(f64(1_000.0), 2), [150.0, -25.0], [10.0, 100.0], rules(2))
    assert fills.traded[0].tolist() == pytest.approx([75.0, -12.5])
    assert account.cash.item() == pytest.approx(1_000 - 750 + 1_250)


def test_costs_are_part_of_the_limit():
    """k * 4,000 <= 2 * (1,000 - 0.01 * k * 4,000): k = 2,000 / 4,080."""
    account, fills = trade(open_account(f64(1_000.0), 1), [400.0], [10.0], rules(), Frictions(100.0, 0.0, 0.0, 0.0))
    assert fills.value.item() == pytest.approx(4_000 * 2_000 / 4_080)
    assert fills.value.item() == pytest.approx(2 * equity(account, f64([10.0])).item(), rel=1e-9)
    assert account.cash.item() < 0


def test_what_closes_is_never_scaled():
    """Long 100 at 10 of equity 400: over the limit. Selling 150 closes 100 and opens 50: 500 of room is 800 - 0."""
    start = held(-600.0, [100.0, 0.0], [10.0, 0.0])
    account, fills = trade(start, [-150.0, 40.0], [10.0, 10.0], rules(2))
    # After closing, 800 of room for 500 short and 400 long: 8 / 9 of each.
    assert fills.traded[0].tolist() == pytest.approx([-100 - 50 * 8 / 9, 40 * 8 / 9])
    assert (account.shares.abs() * 10).sum().item() == pytest.approx(800.0)
    account, fills = trade(held(-900.0, [100.0], [10.0]), [-30.0], [10.0], rules())
    assert fills.traded.item() == -30.0
    account, fills = trade(held(-900.0, [100.0], [10.0]), [30.0], [10.0], rules())
    assert fills.traded.item() == 0.0


def test_an_order_through_zero_that_is_cut_below_a_minimum_still_closes():
    """Short 2 of 10, buy 102: 10 of equity lends 20, 2 units more; at a minimum of 50 only the cover is left."""
    start = held(30.0, [-2.0], [10.0])
    assert trade(start, [102.0], [10.0], rules(least=0.0))[1].traded.item() == pytest.approx(4.0)
    assert trade(start, [102.0], [10.0], rules(least=50.0))[1].traded.item() == pytest.approx(2.0)


def test_what_is_sold_short_is_whole_shares():
    """Of 10.5 held: a sell of 12.9 closes them and sells 2 short, one of 4.25 stays. Of 3 owed: 1.9 bought back are 1,
    3 are all, 4.5 are 3 and 1.5 to hold; 0.7 more sold is nothing."""
    book = RuleBook("stock")
    rule = book.tensors(["A"], torch.device("cpu"), torch.float64, SHORT)
    assert rule.whole_short
    price, able = f64([10.0]), torch.tensor([[True]])
    for shares, order, done in (
        (10.5, -12.9, -12.5), (10.5, -4.25, -4.25), (10.5, -10.5, -10.5), (10.5, -11.4, -10.5), (10.5, 0.3, 0.3),
        (-3.0, 1.9, 1.0), (-3.0, 3.0, 3.0), (-3.0, 4.5, 4.5), (-3.0, -0.7, 0.0), (-3.0, -2.7, -2.0), (0.0, -0.9, 0.0),
    ):  # fmt: skip
        account = held(10_000.0, [shares], [10.0])
        # To the increment of nine decimals.
        assert to_orders(f64([order]), account, price, able, rule).item() == pytest.approx(done, abs=1.1e-9)
        assert trade(account, [order], [10.0], rule)[1].traded.item() == pytest.approx(done, abs=1.1e-9)
    whole = book.from_dict("stock", {"A": {"fractional": False}})
    assert whole.tensors(["A"], torch.device("cpu"), torch.float64, SHORT).whole_short is False
    assert book.tensors(["A"], torch.device("cpu"), torch.float64, MarginTerms(2.0)).whole_short is False


def test_openings_scaled_to_the_limit_are_whole_where_they_are_short():
    """Equity 1,000, limit 2: of 1,500 bought and 2,500 sold short half is done, 12.5 shares short rounded to 12."""
    rule = RuleBook("stock").tensors(["A", "B"], torch.device("cpu"), torch.float64, SHORT)
    _, fills = trade(open_account(f64(1_000.0), 2), [150.0, -25.0], [10.0, 100.0], rule)
    assert fills.traded[0].tolist() == pytest.approx([75.0, -12.0])


def test_margin_without_shorting_sells_what_is_held():
    rule = rules(margin=MarginTerms(margin=2.0))
    account, fills = trade(held(0.0, [10.0], [10.0]), [-25.0], [10.0], rule)
    assert fills.traded.item() == -10.0 and account.shares.item() == 0.0 and account.cash.item() == 100.0
    wanted = to_orders(f64([-25.0]), held(0.0, [10.0], [10.0]), f64([10.0]), torch.tensor([[True]]), rule)
    assert wanted.item() == -10.0


def test_shorting_without_leverage_stays_within_equity():
    rule = rules(margin=MarginTerms(shorting=True))
    account, _ = trade(open_account(f64(1_000.0), 1), [-500.0], [10.0], rule)
    assert account.shares.item() == pytest.approx(-100.0) and account.cash.item() == pytest.approx(2_000.0)


def test_impact_in_a_margin_account_is_relative_to_the_gross_exposure():
    """Equity 400, 1,000 held: 100 more is a tenth. In cash it is a quarter of the equity."""
    costs = Frictions(0.0, 0.0, 0.0, 0.1)
    four = rules(margin=MarginTerms(margin=4.0))
    _, fills = trade(held(-600.0, [100.0], [10.0]), [10.0], [10.0], four, costs)
    assert fills.fees.item() == pytest.approx(100 * 0.1 * math.sqrt(0.1), rel=1e-9)
    _, fills = trade(open_account(f64(400.0), 1), [10.0], [10.0], four, costs)
    assert fills.fees.item() == pytest.approx(100 * 0.1 * math.sqrt(0.25), rel=1e-9)


# ------------------------------------------------------------------------------------------------- the close


def closed(account: Account, mark, terms: MarginTerms, costs: Frictions = FREE):
    return close_bar(account, torch.tensor(mark, dtype=torch.float64), terms, costs, None, None)


def test_borrowing_by_hand():
    """500 short at 3 % a year and 800 owed at 6 %, over a 250th of a year: 0.06 + 0.192. Cash costs nothing."""
    terms = MarginTerms(4.0, True, borrow_bps=300.0, margin_rate_bps=600.0, bars_per_year=250.0)
    account = Account(f64(-800.0, 800.0), f64([-5.0, 30.0], [5.0, 0.0]), f64([100.0, 90.0]).expand(2, 2), f64([0, 0]))
    after, done = close_bar(account, f64([100.0, 100.0]).expand(2, 2), terms, FREE, None, None)
    assert done.carry.tolist() == pytest.approx([0.06 + 0.192, 0.0], rel=1e-12)
    assert after.cash.tolist() == pytest.approx([-800.252, 800.0], rel=1e-12) and not done.forced.any()


def test_the_requirement_by_hand():
    """A quarter of 1,000 long and 30 % of 500 short: 400."""
    assert SHORT.requirement(f64(1_000.0), f64(500.0)).item() == pytest.approx(400.0)
    account = held(-600.0, [100.0], [9.0])
    # Equity 100 p - 600 against 25 p: even at p = 8.
    for price, forced in ((8.01, False), (7.99, True)):
        _, done = closed(account, [[price]], SHORT)
        assert bool(done.forced) is forced
    short = held(1_300.0, [-100.0], [10.0])
    for price, forced in ((9.99, False), (10.01, True)):  # 1,300 - 100 p against 30 p: even at 10
        assert bool(closed(short, [[price]], SHORT)[1].forced) is forced


def test_a_forced_close_by_hand():
    """Long 100 and short 50 at 10, equity 200 of 375 + 150: sold for 1,000, bought back for 500, 1 % of 1,500 paid."""
    account = Account(f64(-300.0), f64([100.0, -50.0, 0.0]), f64([9.0, 9.0, 0.0]), f64([3.0, 3.0, 3.0]))
    after, done = closed(account, [[10.0, 10.0, 5.0]], SHORT, Frictions(100.0, 0.0, 0.0, 0.0))
    assert bool(done.forced) and done.fills.traded[0].tolist() == [-100.0, 50.0, 0.0]
    assert done.fills.value[0].tolist() == [1_000.0, 500.0, 0.0] and done.fills.fees.sum().item() == pytest.approx(15.0)
    assert after.cash.item() == pytest.approx(200.0 - 15.0)
    assert not after.shares.any() and not after.entry.any() and after.idle[0].tolist() == [0.0, 0.0, 3.0]


def test_impact_of_a_forced_close_by_volume_is_bounded():
    """Twice what the bar traded, and something it did not trade: at most impact_coef of the value."""
    costs = Frictions(0.0, 0.0, 0.0, 0.1, "volume")
    account = held(-1_990.0, [100.0, 100.0], [10.0, 10.0])
    _, done = close_bar(account, f64([10.0, 10.0]), SHORT, costs, None, f64([50.0, 0.0]))
    assert done.fills.fees[0].tolist() == pytest.approx([100.0, 100.0])


def test_a_forced_close_terminates_the_episode(flat_market):
    """Short 100,000 at 100 with equity 100,000; at 160 it is 40,000 against 48,000: closed there, and over."""
    opens = [[100.0], [100.0], [100.0], [100.0], [160.0], [100.0], [100.0]]
    market = flat_market(opens, [[100.0], [100.0], [100.0], [160.0], [100.0], [100.0], [100.0]], asset_class="stock")
    env = MarketVecEnv(
        market, 1, features=("return_1",), random_start=False, max_trade=1.0, shorting=True, commission_bps=100.0,
        spread_bps=0.0, slippage_bps=0.0, impact_coef=0.0, episode_length=None, reward="log_return",
        borrow_bps=1_000.0, bars_per_year=100.0, rules=RuleBook("stock", {"S0": AssetRule(1.0, 1.0, 0.0)}),
    )  # fmt: skip
    env.step(-torch.ones(1, 1))
    # Costs are in the limit: 990 shares would be worth 99,000 of 100,000 - 990.
    assert float(env.last_shares) == -990.0 and float(env.fees) == pytest.approx(990 + 99)
    step = env.step(torch.zeros(1, 1))
    assert bool(step.terminated) and not bool(step.truncated)
    after = 100_000 - 990 - 99 - 60 * 990 - 158.4 - 1_584  # 0.1 % and 1 % of 158,400
    assert float(env.last_equity) == pytest.approx(after, rel=1e-12) and not env.last_shares.any()
    assert float(env.fees) == pytest.approx(158.4 + 1_584) and float(env.traded_value) == pytest.approx(158_400)
    assert step.final_observation.state[0].tolist() == pytest.approx([1.0, 0.0, 0.0, 0.0])
    assert float(env.account.cash) == float(env.equity) == 100_000.0
    assert step.reward.item() == pytest.approx(math.log(after / 98_911) * float(env.reward_scale), rel=1e-6)


# ---------------------------------------------------------------------------------- actions and observations


def wanted(scheme, action, account, mark, rule):
    mark = torch.tensor(mark, dtype=torch.float64)
    judged = torch.ones_like(mark, dtype=torch.bool)
    return scheme.orders(torch.tensor([action]), account, equity(account, mark), mark, judged, rule)[0].tolist()


def test_trades_go_through_zero():
    """Equity 1,000: -1 * 0.5 * 1,000 sells 50 of 10 held."""
    account = held(900.0, [10.0], [10.0])
    assert wanted(Trades(0.5), [-1.0], account, [[10.0]], rules()) == pytest.approx([-50.0])


def test_signed_weights_by_hand():
    """Sharpness ln 2, actions (1, -1, 0): 2 * (2 - 1/2) / (1 + 2 + 1/2 + 1/2 + 2) = 1/2 long, as much short."""
    got = wanted(TargetWeights(math.log(2)), [1.0, -1.0, 0.0], open_account(f64(1_000.0), 2), [[10.0, 20.0]], rules(2))
    assert got == pytest.approx([50.0, -25.0], rel=1e-6)
    still = wanted(TargetWeights(5.0), [0.0, 0.0, -1.0], open_account(f64(1_000.0), 2), [[10.0, 20.0]], rules(2))
    assert still == [0.0, 0.0]
    full = wanted(TargetWeights(50.0), [1.0, -1.0, -1.0], open_account(f64(1_000.0), 2), [[10.0, 20.0]], rules(2))
    assert full == pytest.approx([100.0, -50.0], rel=1e-6)


def test_weights_on_margin_without_shorting():
    """Twice the softmax: 2 * (1/2, 1/4) with 1/4 in cash."""
    rule = rules(2, margin=MarginTerms(margin=2.0))
    got = wanted(TargetWeights(math.log(2)), [1.0, 0.0, 0.0], open_account(f64(1_000.0), 2), [[10.0, 20.0]], rule)
    assert got == pytest.approx([100.0, 25.0], rel=1e-6)


@pytest.mark.parametrize(
    ("action", "shares", "units"),
    [
        ((1.0, 0.0), 0.0, 100.0),  # half of 2,000
        ((-1.0, 0.0), 0.0, -100.0),
        ((-1.0, 1.0), 40.0, -40.0),  # what is held first
        ((-1.0, 0.0), 40.0, -20.0),
        ((1.0, 0.0), 40.0, 80.0),  # half of 2,000 - 400
        ((1.0, 0.0), -40.0, 20.0),
        ((1.0, 1.0), -40.0, 40.0),
        ((-1.0, 0.0), -40.0, -80.0),
        ((0.05, 1.0), 40.0, 0.0),
    ],
)
def test_signal_and_size_on_both_sides(action, shares, units):
    account = held(1_000.0 - 10 * shares, [shares], [10.0])
    assert wanted(SignalSize(0.1), action, account, [[10.0]], rules()) == pytest.approx([units], rel=1e-6)


def test_a_holding_too_small_to_sell_does_not_bar_a_short_sale():
    """0.3 held at 10 is below the minimum of 5: as if nothing were held."""
    account = held(997.0, [0.3], [10.0])
    assert wanted(SignalSize(0.1), (-1.0, 0.0), account, [[10.0]], rules(least=5.0)) == pytest.approx([-99.85])


def test_account_vector_of_a_short():
    """Cash 1,500 of 1,000; 20 short at 25, sold at 30: it gained 5 of 30. Sold at 20, it lost a quarter."""
    account = Account(f64(1_500.0), f64([-20.0, 0.0]), f64([30.0, 0.0]), f64([0.0, 6.0]))
    vector = account_vector(account, f64([25.0, 9.0]), f64(1_000.0))[0].tolist()
    assert vector == pytest.approx([1.5, -0.5, 0.0, 1 / 6, 0.0, 0.0, math.log(7) / 5], rel=1e-6)
    lost = account._replace(entry=f64([20.0, 0.0]))
    assert account_vector(lost, f64([25.0, 9.0]), f64(1_000.0))[0, 3].item() == pytest.approx(-0.25)
    owing = Account(f64(-50.0), f64([0.0]), f64([0.0]), f64([0.0]))
    assert account_vector(owing, f64([1.0]), f64(-50.0))[0].tolist() == [-1.0, 0.0, 0.0, 0.0]


# ------------------------------------------------------------------------------------------------- gradients


@pytest.mark.parametrize("shares", [(30.0, -20.0, 0.0), (0.0, 0.0, 0.0), (-40.0, 35.0, -10.0)])
@pytest.mark.parametrize("scheme", [Trades(0.7), TargetWeights(2.0)])
@pytest.mark.parametrize("reference", ["portfolio", "volume"])
def test_slopes_are_those_of_the_unrounded_books(scheme, shares, reference):
    """Autograd against finite differences, from actions through fills and borrowing to equity, shorts among them."""
    rule = rules(3, increment=1e-12, margin=MarginTerms(2.0, True, 5_000.0, 5_000.0, bars_per_year=10.0))
    costs = Frictions(10.0, 2.0, 5.0, 0.1, reference, 0.9)
    price, volume = f64([10.0, 21.0, 5.0]), f64([80.0, 70.0, 90.0])
    mark, slip = f64([10.7, 20.0, 5.5]), f64([0.1, 0.5, 0.9])
    cash = 1_000.0 - float((f64([*shares]) * price).sum())
    account = Account(f64(cash), f64([*shares]), f64([9.0, 22.0, 4.0]), f64([0.0, 0.0, 0.0]))
    able = torch.ones(1, 3, dtype=torch.bool)

    def after(action: torch.Tensor) -> torch.Tensor:
        orders = scheme.orders(action, account, equity(account, price), price, able, rule)
        fills = match(account, orders, price, able, rule, costs, slip, volume)
        done, _ = close_bar(settle(account, fills, rule.margin), mark, rule.margin, costs, slip, volume)
        return equity(done, mark)

    generator, seen = torch.Generator().manual_seed(3), 0.0
    for _ in range(6):
        size = 3 if isinstance(scheme, Trades) else 4
        action = torch.rand(1, size, generator=generator, dtype=torch.float64) * 1.6 - 0.8
        action.requires_grad_()
        (slope,) = torch.autograd.grad(after(action).sum(), action)
        assert slope.isfinite().all()
        for i in range(size):
            step = torch.zeros_like(action)
            step[0, i] = 1e-5
            difference = (after((action + step).detach()) - after((action - step).detach())).item() / 2e-5
            assert slope[0, i].item() == pytest.approx(difference, rel=2e-4, abs=2e-3)
        seen += slope.abs().sum().item()
    assert seen > 10


def test_slopes_are_finite_where_nothing_moves():
    action = torch.zeros(1, 2, dtype=torch.float64, requires_grad=True)
    account, rule = open_account(f64(100.0), 2), rules(2)
    price, able = f64([10.0, 0.0]), torch.tensor([[True, False]])
    orders = Trades(1.0).orders(action, account, equity(account, price), price, able, rule)
    fills = match(account, orders, price, able, rule, Frictions(), f64([0.5, 0.5]))
    done, _ = close_bar(settle(account, fills, rule.margin), price, rule.margin, Frictions(), f64([0.5, 0.5]), None)
    equity(done, price).sum().backward()
    assert action.grad.isfinite().all()


# --------------------------------------------------------------------------------------------------- options


def test_options_out_of_range_are_refused(flat_market):
    for wrong in (
        {"margin": 0.5}, {"margin": 5.0}, {"borrow_bps": -1.0}, {"margin_rate_bps": math.nan},
        {"maintenance_margin": 1.5}, {"maintenance_margin_short": -0.1}, {"bars_per_year": 0.0}, {"shorting": "maybe"},
    ):  # fmt: skip
        with pytest.raises(InputError, match=next(iter(wrong))):
            MarginTerms(**wrong)
    assert CASH_ACCOUNT.cash_account and not SHORT.cash_account and not MarginTerms(shorting=True).cash_account
    prices = [[100.0]] * 5
    crypto, stock = flat_market(prices, prices), flat_market(prices, prices, asset_class="stock")
    for own in ({"shorting": True}, {"margin": 2.0}):
        with pytest.raises(InputError, match="crypto is neither lent on nor sold short"):
            MarketVecEnv(crypto, 1, features=("return_1",), **own)
    with pytest.raises(InputError, match="fee_in='received'"):
        MarketVecEnv(stock, 1, features=("return_1",), shorting=True, fee_in="received")
    env = MarketVecEnv(stock, 1, features=("return_1",), margin=2.0, borrow_bps=25.0)
    assert env.margin == MarginTerms(2.0, borrow_bps=25.0, bars_per_year=stock.bars_per_year)
    assert env.margin.to_dict()["margin"] == 2.0 and env.rules.margin is env.margin


def test_the_command_line_reaches_the_account(flat_market):
    """Flags of `optimize.py`, and the same by name as `train.py` and configurations give them."""
    path = Path(__file__).resolve().parents[2] / "scripts" / "optimize.py"
    spec = importlib.util.spec_from_file_location("script_optimize_margin", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    said = (
        "--margin 2 --shorting --borrow-bps 300 --margin-rate-bps 600 --maintenance-margin 0.3 "
        "--maintenance-margin-short 0.4 --participation 0.05 --impact-reference volume --fee-in quote"
    )
    given = tyro.cli(module.Options, args=said.split(), config=(tyro.conf.OmitArgPrefixes,)).settings().env_options
    by_name = parse_options(
        "margin=2,shorting=true,borrow_bps=300,margin_rate_bps=600,maintenance_margin=0.3,maintenance_margin_short=0.4,"
        "participation=0.05,impact_reference=volume,fee_in=quote"
    )
    assert {name: given[name] for name in by_name} == by_name
    prices = [[100.0]] * 6
    market = flat_market(prices, prices, asset_class="stock")
    env = build_env("VectorizedStockEnvAlpaca", market, 1, features=("return_1",), **by_name)
    assert env.margin == MarginTerms(2, True, 300, 600, 0.3, 0.4, market.bars_per_year)
    assert (env.frictions.participation, env.frictions.impact_reference) == (0.05, "volume")
    plain = tyro.cli(module.Options, args=[], config=(tyro.conf.OmitArgPrefixes,)).settings().env_options
    assert not set(plain) & set(by_name)
