"""The environment's equity against vectorbt's (https://vectorbt.dev), an independent back-tester.

The same target weights, commission and fill rule go through both. vectorbt sizes a target-percent order with the
valuation price it is given and fills it at the order price: the close of the deciding bar and the open (or close) of
the filling bar say there what the environment's rule says here.

Where cash runs out the two differ by design: the environment cuts all buys by one factor, vectorbt refuses the last of
them. The schedules here leave enough of it.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch

from environments.data.source import load_bars
from environments.market import Market
from environments.market_env import MarketVecEnv
from environments.rules import AssetRule, RuleBook

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # its own dependencies'
    vectorbt = pytest.importorskip("vectorbt", reason="vectorbt is not installed (extra: proof)")

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
CASH = 100_000.0
TOLERANCE = 1e-9  # relative, of the equity at every close


class Walk(NamedTuple):
    """equity: (T + 1,) at every close from the first decision's. fees: in all. orders: filled."""

    equity: np.ndarray
    fees: float
    orders: int


class Plan(NamedTuple):
    """weights: (B, A) targets decided at each bar's close, NaN rows where nothing is decided."""

    weights: np.ndarray
    lag: int
    fill_at: str
    commission_bps: float


def rebalancing(market: Market, every: int, seed: int = 0) -> np.ndarray:
    """Random target weights every `every` bars, 15% of the equity left in cash: no buy is ever cut down."""
    draws = np.random.default_rng(seed).dirichlet(np.ones(market.n_assets), market.n_bars)
    weights = np.full_like(draws, np.nan)
    weights[1::every] = 0.85 * draws[1::every]
    return weights


def environment(market: Market, plan: Plan, scheme: str) -> MarketVecEnv:
    """Commission only, increments and minima next to nothing, one walk over all bars."""
    rules = RuleBook(market.asset_class, {s: AssetRule(1e-12, 0.0, 0.0) for s in market.symbols})
    return MarketVecEnv(
        market, 1, segments=[(0, market.n_bars)], random_start=False, episode_length=None, action=scheme,
        max_trade=1.0 if scheme == "trades" else None, initial_cash=CASH, ruin=0.0, decision_lag=plan.lag,
        fill_at=plan.fill_at, commission_bps=plan.commission_bps, spread_bps=0.0, slippage_bps=0.0,
        impact_coef=0.0, fee_in="quote", rules=rules, features=("return_1",),
    )  # fmt: skip


def ours(market: Market, plan: Plan) -> Walk:
    """Trades toward the targets on the bars that have some, and none on the others."""
    env = environment(market, plan, "trades")
    env.reset()
    start = int(env.bar)
    equity, fees, orders = [CASH], 0.0, 0
    for bar in range(start, market.n_bars - 1):
        action = torch.zeros(1, market.n_assets, dtype=torch.float64)
        if np.isfinite(plan.weights[bar]).all():
            held = env.account.shares * market.mark[bar] / env.equity
            action = torch.from_numpy(plan.weights[bar : bar + 1]) - held
        env.step(action)
        equity.append(float(env.last_equity))
        fees += float(env.fees)
        orders += int((env.traded_value > 0).sum())
    return Walk(np.array(equity), fees, orders)


def theirs(market: Market, plan: Plan, start: int = 1) -> Walk:
    """The same through vectorbt, the orders entered in the bars that fill them."""
    lag = plan.lag
    mark, tradable = market.mark.numpy(), market.tradable.numpy()
    judged = np.isfinite(market.close.numpy())
    price = (market.open if plan.fill_at == "open" else market.close).numpy()
    size, valuation = np.full_like(mark, np.nan), np.full_like(mark, np.nan)
    size[lag:], valuation[lag:] = plan.weights[:-lag], mark[:-lag]
    # What cannot be judged when it is decided on, or was not traded in the bar that should fill it, is left alone.
    size[lag:][~judged[:-lag]] = np.nan
    size[~tradable] = np.nan
    size[: start + lag] = np.nan
    clock = pd.to_datetime(market.timestamps.numpy(), utc=True)

    def table(values):
        return pd.DataFrame(values, index=clock, columns=list(market.symbols))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        portfolio = vectorbt.Portfolio.from_orders(
            table(mark), size=table(size), size_type="targetpercent", price=table(price), val_price=table(valuation),
            fees=plan.commission_bps * 1e-4, init_cash=CASH, cash_sharing=True, group_by=True, call_seq="auto",
        )  # fmt: skip
        records = portfolio.orders.records
        return Walk(portfolio.value().to_numpy()[start:], float(records["fees"].sum()), len(records))


def assert_agree(a: Walk, b: Walk, fewest_orders: int) -> None:
    assert a.equity.shape == b.equity.shape and np.isfinite(a.equity).all()
    error = np.abs(a.equity / b.equity - 1).max()
    print(f"{len(a.equity)} closes, {a.orders} orders, fees {a.fees:.2f}, largest relative difference {error:.1e}")
    assert error < TOLERANCE
    assert a.fees == pytest.approx(b.fees, rel=TOLERANCE)
    assert a.orders == b.orders >= fewest_orders


@pytest.fixture(scope="module")
def market(make_market, random_bars) -> Market:
    """Three assets with gaps at the open, bars without volume and missing bars."""
    bars = {
        f"S{i}/USD": random_bars(i, 600, price=p, sigma=0.02, idle=0.03, missing=0.03 * (i > 0))
        for i, p in enumerate((0.07, 100.0, 40_000.0))
    }
    return make_market(bars)


@pytest.mark.parametrize("fill_at", ["open", "close"])
@pytest.mark.parametrize("lag", [1, 2, 3])
def test_a_schedule_of_target_weights(market, lag, fill_at):
    plan = Plan(rebalancing(market, 50), lag, fill_at, 25.0)
    assert_agree(ours(market, plan), theirs(market, plan), fewest_orders=30)


@pytest.fixture(scope="module")
def liquid(make_market, random_bars) -> Market:
    """Three assets that trade in every bar, so that sells always pay for the buys decided with them."""
    return make_market({f"S{i}/USD": random_bars(20 + i, 600, sigma=0.02) for i in range(3)})


@pytest.mark.parametrize("commission_bps", [0.0, 100.0])
def test_rebalanced_at_every_bar(liquid, commission_bps):
    market = liquid
    plan = Plan(rebalancing(market, 1), 1, "open", commission_bps)
    assert_agree(ours(market, plan), theirs(market, plan), fewest_orders=1_500)


def test_target_weights_as_actions(liquid):
    """The scheme "weights": what its softmax makes of an action is the target percent of the other books."""
    market = liquid
    plan = Plan(np.empty((market.n_bars, 3)), 1, "open", 10.0)
    env = environment(market, plan, "weights")
    env.reset()
    generator = torch.Generator().manual_seed(0)
    # Cash is never the smallest score: enough of it is left for the opens above the closes.
    actions = torch.rand(market.n_bars, 4, generator=generator) * 0.6 - 0.3
    actions[:, 3] = 0.2
    plan.weights[:] = torch.softmax(env.scheme.sharpness * actions.double(), dim=1)[:, :3].numpy()
    equity, fees, orders = [CASH], 0.0, 0
    for bar in range(int(env.bar), market.n_bars - 1):
        env.step(actions[bar : bar + 1])
        equity.append(float(env.last_equity))
        fees += float(env.fees)
        orders += int((env.traded_value > 0).sum())
    assert_agree(Walk(np.array(equity), fees, orders), theirs(market, plan), fewest_orders=1_000)


def test_another_fill_rule_is_told_apart(market):
    """A control: filled at another price, a bar later or for another fee, the curves part by far more."""
    right = Plan(rebalancing(market, 50), 1, "open", 25.0)
    for wrong in (right._replace(fill_at="close"), right._replace(lag=2), right._replace(commission_bps=26.0)):
        error = np.abs(ours(market, right).equity / theirs(market, wrong).equity - 1).max()
        assert error > 1e-5


REAL = {
    "crypto_5m": (
        "crypto_5m_binance_2022_2023.parquet",
        {"start": "2023-03-22", "end": "2023-03-28"},  # with the outage of 24 March and its bars without volume
    ),
    "dow30": (
        "us_daily_dow30_mega8_2004_2021.parquet",
        {"start": "2013-01-02", "symbols": ("AAPL", "BA", "CAT", "CVX", "DIS", "GS", "HD", "IBM", "JNJ", "JPM",
                                            "KO", "MCD", "MMM", "MRK", "MSFT", "NKE", "PG", "UNH", "WMT")},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REAL)
@pytest.mark.parametrize("fill_at", ["open", "close"])
def test_real_bars(name, fill_at):
    file, request = REAL[name]
    if not (DATA / file).exists():
        pytest.skip(f"{file} is not beside the project")
    market = Market.from_bars(load_bars("files", path=DATA / file, **request))
    plan = Plan(rebalancing(market, 50), 1, fill_at, 25.0)
    assert_agree(ours(market, plan), theirs(market, plan), fewest_orders=250)
