"""How accounts lie in memory changes nothing of what they hold."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from environments import portfolio
from environments.alpaca_env import VectorizedCryptoEnvAlpaca, VectorizedStockEnvAlpaca
from environments.data.source import load_bars
from environments.market import Market


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (VectorizedCryptoEnvAlpaca, {"decision_lag": 2, "participation": 0.05}),
        (VectorizedStockEnvAlpaca, {"margin": 2.0, "shorting": True}),
    ],
    ids=["cash", "margin"],
)
def test_by_asset_or_by_account(kind, options, monkeypatch):
    """300 accounts over 60 steps and several episodes; sums over assets may round in another order."""
    stocks = {"asset_class": "stock"} if kind is VectorizedStockEnvAlpaca else {}
    market = Market.from_bars(
        load_bars("synthetic", options={"kind": "gbm", "n_bars": 300, "n_assets": 3}, seed=1, **stocks)
    )
    draws = torch.Generator().manual_seed(0)
    actions = 2 * torch.rand(60, 300, 3, generator=draws) - 1
    found = []
    for many in (1, 10_000):
        monkeypatch.setattr(portfolio, "_MANY", many)
        env = kind(market, 300, episode_length=25, seed=3, **options)
        assert (env.account.shares.stride(0) == 1) == (many == 1)
        steps = [env.step(action) for action in actions]
        ended = torch.stack([s.terminated | s.truncated for s in steps])
        found.append(
            (torch.stack([s.reward for s in steps]), ended, env.state_dict(), env.last_shares, env.traded_value)
        )
    assert found[0][1].sum() >= 600 and found[0][4].abs().sum() > 0
    assert_close(found[0], found[1], rtol=1e-9, atol=1e-6)
