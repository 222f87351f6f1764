"""The back-tests whose equity curves are kept in `golden/`, and the way to write them anew.

    python -m tests.regression.make_golden

Run it only after a change that is meant to change what an account earns, and say in the changelog which one. The
policies are written by hand and act in eighths, so that the last bit of a feature changes no action.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from drl_agents.evaluation.backtest import backtest
from environments.data.source import load_bars
from environments.files import write_json
from environments.market import Market
from environments.market_env import MarketVecEnv
from environments.rules import WHOLE_SHARES, RuleBook

FOLDER = Path(__file__).parent / "golden"
EVERY = 20  # bars between two kept values of equity

Policy = Callable[[Tensor, int], Tensor]


@dataclass(frozen=True)
class Case:
    """One back-test. source, bars: what `load_bars` is asked for. policy: (dense (1, n, D), A) -> actions."""

    source: str
    bars: dict[str, Any]
    policy: Policy
    env: dict[str, Any] = field(default_factory=dict)
    whole_shares: bool = False


def eighths(x: Tensor) -> Tensor:
    """Within +-1, rounded to multiples of 1/8."""
    return (x.clamp(-1, 1) * 8).round() / 8


def feature(x: Tensor, place: int, n_features: int, n_assets: int) -> Tensor:
    """(1, n, A) feature number `place` of the last bar seen, 0 where unknown."""
    account = 1 + 3 * n_assets
    last = x[..., -account - n_assets * n_features : -account]
    return torch.nan_to_num(last.unflatten(-1, (n_assets, n_features))[..., place])


def follow(x: Tensor, n_assets: int) -> Tensor:
    """Buy what rose over 20 bars, sell what fell."""
    return eighths(8 * feature(x, 0, 1, n_assets))


def against(x: Tensor, n_assets: int) -> Tensor:
    """Buy what fell in the last bar, sell what rose."""
    return eighths(-30 * feature(x, 0, 1, n_assets))


def tilt(x: Tensor, n_assets: int) -> Tensor:
    """Weights toward what rose over 5 bars, cash when nothing did."""
    rose = eighths(10 * feature(x, 0, 2, n_assets))
    return torch.cat([rose, torch.full_like(rose[..., :1], -0.125)], dim=-1)


def take_profit(x: Tensor, n_assets: int) -> Tensor:
    """Sell what gained a twentieth since it was bought, buy again what fell in the last bar."""
    gain = x[..., -2 * n_assets : -n_assets]
    return torch.where(gain > 0.05, -1.0, eighths(-20 * feature(x, 0, 1, n_assets)))


def even(x: Tensor, n_assets: int) -> Tensor:
    """Equal weights, and the same for cash, at every bar."""
    return torch.zeros(*x.shape[:-1], n_assets + 1)


CASES: dict[str, Case] = {
    "stocks_follow": Case(
        "sample", {"symbols": "AAPL,IBM,MSFT", "end": "2006-01-01"}, follow,
        {"action": "trades", "features": ("return_20",)},
    ),
    "stocks_tilt_late_listings": Case(
        "sample", {"start": "2007-01-01"}, tilt,
        {"action": "weights", "sharpness": 3.0, "features": ("return_5", "return_1"), "decision_lag": 2,
         "fill_at": "close", "commission_bps": 1.0, "impact_coef": 0.002},
    ),
    "stocks_whole_shares": Case(
        "synthetic", {"seed": 3, "options": {"kind": "momentum", "n_bars": 1_200, "n_assets": 3, "timeframe": "1d",
                                             "asset_class": "stock"}},
        follow,
        {"action": "trades", "max_trade": 0.5, "features": ("return_5",), "initial_cash": 3_000.0,
         "commission_bps": 5.0}, whole_shares=True,
    ),
    "stocks_long_and_short": Case(
        "synthetic", {"seed": 6, "options": {"kind": "momentum", "n_bars": 1_200, "n_assets": 3, "timeframe": "1d",
                                             "asset_class": "stock"}},
        tilt,
        {"action": "weights", "sharpness": 1.0, "features": ("return_5", "return_1"), "commission_bps": 1.0,
         "margin": 2.0, "shorting": True, "borrow_bps": 300.0, "margin_rate_bps": 600.0, "participation": 0.05,
         "impact_reference": "volume"},
    ),
    "crypto_take_profit_lag_3": Case(
        "synthetic", {"seed": 4, "options": {"kind": "regimes", "n_bars": 1_200, "n_assets": 4}}, take_profit,
        {"action": "trades", "max_trade": 0.125, "features": ("return_1",), "lookback": 4, "decision_lag": 3,
         "slippage_bps": 20.0, "slippage_seed": 9},
    ),
    "crypto_even_dear": Case(
        "synthetic", {"seed": 5, "options": {"kind": "gbm", "n_bars": 1_200, "n_assets": 2, "timeframe": "5m",
                                             "sigma": 0.02}},
        even, {"action": "weights", "features": ("return_1",), "spread_bps": 50.0, "ruin": 0.5},
    ),
}  # fmt: skip


def run_case(name: str) -> dict[str, Any]:
    """Walk a case's market from its first bar to its last: what is kept of it."""
    case = CASES[name]
    market = Market.from_bars(load_bars(case.source, **case.bars))
    rules = RuleBook(market.asset_class, dict.fromkeys(market.symbols, WHOLE_SHARES) if case.whole_shares else None)
    env = MarketVecEnv(
        market, 1, segments=[(0, market.n_bars)], random_start=False, episode_length=None, rules=rules, **case.env
    )
    result = backtest(env, lambda x: case.policy(x, market.n_assets), [name])[0]
    return {
        "case": name,
        "market": market.description,
        "fingerprint": market.fingerprint,
        "bars": len(result.returns),
        "every": EVERY,
        "equity": result.equity[::EVERY].tolist(),
        "last_equity": float(result.equity[-1]),
        "fees": float(result.fees.sum()),
        "traded": float(result.traded.sum()),
        "n_trades": result.n_trades,
    }


def main() -> None:
    for name in CASES:
        write_json(FOLDER / f"{name}.json", run_case(name))


if __name__ == "__main__":
    main()
