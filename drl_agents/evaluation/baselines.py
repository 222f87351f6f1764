"""Baselines every model is held against: holding equal weight, holding cash. Same books, same costs."""

from __future__ import annotations

import numpy as np
import torch

from drl_agents.evaluation.result import BacktestResult
from environments.actions import to_orders
from environments.margin import CASH_ACCOUNT
from environments.market_env import MarketVecEnv
from environments.portfolio import match, open_account, settle


@torch.no_grad()
def hold_equal_weight(env: MarketVecEnv) -> BacktestResult:
    """Buy every asset that can be judged for the same value at the first bar, pay for it, and keep it.

    env: one that walks a single window (`random_start=False`, its first environment counts).
    """
    market = env.market
    env.reset()
    start, stop = int(env.bar[0]), int(env.stop[0])
    account = open_account(env.equity[:1], market.n_assets)
    judged = env.features.ready[start].unsqueeze(0)
    mark = market.mark[start].unsqueeze(0)
    # A hundredth is left for costs and for the price moving before the fill: a buy cut down for want of cash would
    # no longer be equal weight.
    value = 0.99 * account.cash.unsqueeze(1) / judged.sum().clamp(min=1)
    wanted = torch.where(judged, value / torch.where(judged, mark, 1.0), 0.0)
    rules = env.rules._replace(margin=CASH_ACCOUNT)  # who holds what there is cash for owes nothing
    orders = to_orders(wanted, account, mark, judged, rules)
    bought = env.bar_row(torch.tensor([start + env.decision_lag], device=env.device).clamp(max=stop - 1))
    fills = match(account, orders, bought.price, bought.fillable, rules, env.frictions, bought.slip, bought.volume)
    account = settle(account, fills)
    marks = market.mark[start:stop]
    values = account.cash + marks @ account.shares[0]
    held = account.shares * marks / values.unsqueeze(1)
    first = min(env.decision_lag, stop - 1 - start)
    values[:first], held[:first] = env.initial_cash, 0.0
    fees, traded = np.zeros(stop - start - 1), np.zeros(stop - start - 1)
    fees[first - 1], traded[first - 1] = float(fills.fees.sum()), float(fills.value.sum())
    return BacktestResult(
        name="hold equal weight",
        symbols=market.symbols,
        timestamps=market.timestamps[start:stop].cpu().numpy(),
        equity=values.cpu().numpy(),
        weights=held.cpu().numpy(),
        fees=fees,
        traded=traded,
        n_trades=int((fills.value > 0).sum()),
        bars_per_year=market.bars_per_year,
        decision_lag=env.decision_lag,
    )


def hold_cash(env: MarketVecEnv) -> BacktestResult:
    """Do nothing: zero return, and a Sharpe ratio that is undefined."""
    env.reset()
    start, stop = int(env.bar[0]), int(env.stop[0])
    steps = stop - start - 1
    return BacktestResult(
        name="hold cash",
        symbols=env.market.symbols,
        timestamps=env.market.timestamps[start:stop].cpu().numpy(),
        equity=np.full(steps + 1, env.initial_cash),
        weights=np.zeros((steps + 1, env.market.n_assets)),
        fees=np.zeros(steps),
        traded=np.zeros(steps),
        n_trades=0,
        bars_per_year=env.market.bars_per_year,
        decision_lag=env.decision_lag,
    )
