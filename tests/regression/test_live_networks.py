"""Every network trades live as it was tested; one that remembers carries its memory from bar to bar."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from drl_agents.deployment.bundle import Bundle, load_bundle, save_bundle
from drl_agents.deployment.decider import Decider
from drl_agents.deployment.trader import PaperTrader
from drl_agents.deployment.venues import replaying
from drl_agents.evaluation.backtest import backtest
from drl_agents.networks.build import build_policy
from drl_agents.networks.spec import PolicySpec
from environments.alpaca_env import VectorizedCryptoEnvAlpaca
from environments.data.credentials import Secret
from environments.live.alpaca_local.server import LocalAlpaca
from environments.live.local import LocalBroker
from environments.market import Market

pytestmark = pytest.mark.usefixtures("one_thread")

KEYS = (Secret("local"), Secret("local"))
KINDS = {
    "mlp": {"layer_norm": True},
    "gru": {"network": "gru", "hidden_dim": 16},
    "large gru": {"network": "gru", "hidden_dim": 32},
    "transformer": {"network": "transformer", "d_model": 16, "num_layers": 2, "n_heads": 2},
    "lightweight": {"network": "lightweight", "d_model": 16, "n_heads": 2, "positions": "sinusoidal"},
    "per asset": {"per_asset": True},
}


@pytest.fixture(scope="module")
def market(make_market, random_bars) -> Market:
    """Coins of which one is listed late; bars are missing, and some traded nothing."""
    return make_market(
        {
            "BTCUSDT": random_bars(1, 300, price=30_000.0, missing=0.03),
            "DOGEUSDT": random_bars(2, 300, price=0.1, sigma=0.03, idle=0.05),
            "AVAXUSDT": random_bars(3, 300, price=20.0, listed=160, missing=0.05),
        }
    )


def bundle_for(market: Market, folder: Path, kind: str, **options) -> Bundle:
    """A policy that was never trained but decides with vigour."""
    env = VectorizedCryptoEnvAlpaca(market, 1, **options)
    policy = build_policy(PolicySpec.of(env, hidden=(16,), **KINDS[kind]), seeds=(2, 3))
    policy.fit_normalizer(VectorizedCryptoEnvAlpaca(market, 2, n_members=2, **options))
    with torch.no_grad():
        (policy.actor.each if policy.spec.per_asset else policy.actor.layers[-1]).weight.mul_(60.0)
    saved = save_bundle(folder / "bundle", policy, 1, env, "VectorizedCryptoEnvAlpaca", {"study": "s", "trial": 1})
    bundle = load_bundle(saved)
    x = torch.randn(1, 5, policy.spec.size, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(bundle.decide(x), policy.mode(x.expand(2, -1, -1))[1:])
    return bundle


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "large gru"])
def test_live_equals_backtest(market, tmp_path, kind):
    bundle = bundle_for(market, tmp_path, kind, lookback=4, decision_lag=2 if kind == "gru" else 1)
    window = (100, market.n_bars)
    tested = backtest(bundle.env(market, window), bundle.decide)[0]
    env = bundle.env(market, window)
    paper = PaperTrader(bundle, LocalBroker(env, int(env.bar[0]), window[1]), tmp_path / "paper", "t").run()
    assert (paper.timestamps == tested.timestamps).all()
    assert np.abs(paper.equity / tested.equity - 1).max() <= 1e-6
    assert paper.n_fills == tested.n_trades > 30


def test_a_trader_that_goes_on_remembers_what_the_one_before_did(market, tmp_path):
    """What the journal keeps of it is JSON."""
    bundle = bundle_for(market, tmp_path, "gru")
    first, second = Decider(bundle), Decider(bundle)
    x = torch.randn(3, 1, 1, bundle.policy.spec.size, generator=torch.Generator().manual_seed(1))
    assert first.memory() is None
    for seen in x[:2]:
        first.player(seen)
    second.restore(json.loads(json.dumps(first.memory())))
    assert torch.equal(first.player(x[2]), second.player(x[2]))
    assert not torch.equal(first.player(x[2]), Decider(bundle).player(x[2]))


def test_another_model_does_not_take_over_what_the_one_before_remembers(market, tmp_path):
    """The champion was changed while the trader was down."""
    first = bundle_for(market, tmp_path / "first", "gru")
    second = bundle_for(market, tmp_path / "second", "large gru")
    with LocalAlpaca(first.env(market, (100, 120)), 100, 120) as venue:
        for bundle, last in ((first, 105), (second, 110), (second, 115)):
            with replaying(bundle, venue.url, KEYS, tmp_path / "t", "t") as trader:
                trader.run(stop=lambda last=last: venue.bar >= last)
            assert len(trader.decider.memory()) == bundle.policy.memory_size and trader.reconciled


def test_what_it_remembers_changes_what_it_does(market, tmp_path):
    """Otherwise the test above would pass without a memory."""
    bundle = bundle_for(market, tmp_path, "gru")
    tested, forgetful = (
        backtest(bundle.env(market, (100, 200)), decide)[0] for decide in (bundle.decide, lambda x: bundle.decide(x))
    )
    assert np.abs(forgetful.equity / tested.equity - 1).max() > 1e-4
