"""A trader who chooses between portfolios live holds what the back-test held: the same table, from the last bars."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from drl_agents.deployment.bundle import Bundle, load_bundle, save_bundle
from drl_agents.deployment.trader import PaperTrader
from drl_agents.evaluation.backtest import backtest
from drl_agents.networks.policy import ActorCritic, PolicySpec
from environments.actions import Regimes, SignalSize, TargetWeights
from environments.alpaca_env import VectorizedCryptoEnvAlpaca
from environments.features import MEMORY
from environments.live.local import LocalBroker
from environments.live.view import MarketView
from environments.market import Market

TOLERANCE = 1e-6


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def market(make_market, random_bars) -> Market:
    """Five coins; one listed late, two with missing bars, one that at times trades nothing."""
    return make_market(
        {
            "BTCUSDT": random_bars(1, 400, price=30_000.0),
            "DOGEUSDT": random_bars(2, 400, price=0.1, sigma=0.03, idle=0.05),
            "AVAXUSDT": random_bars(3, 400, price=20.0, listed=200, missing=0.05),
            "ETHUSDT": random_bars(4, 400, price=2_000.0, missing=0.1),
            "XRPUSDT": random_bars(5, 400, price=0.5, sigma=0.02),
        }
    )


def bundle_for(market: Market, folder: Path, **options) -> Bundle:
    """A policy that was never trained but changes its mind often."""
    env = VectorizedCryptoEnvAlpaca(market, 1, **options)
    policy = ActorCritic(PolicySpec.of(env, hidden=(16,)), seeds=(3,))
    policy.fit_normalizer(env)
    with torch.no_grad():
        policy.actor.layers[-1].weight.mul_(60.0)
    return load_bundle(save_bundle(folder / "bundle", policy, 0, env, "VectorizedCryptoEnvAlpaca", {"study": "s"}))


def compare(bundle: Bundle, market: Market, window: tuple[int, int], folder: Path) -> int:
    """Fills, after the largest relative difference of the two equity curves was found small."""
    tested = backtest(bundle.env(market, window), bundle.decide, ["model"])[0]
    env = bundle.env(market, window)
    paper = PaperTrader(bundle, LocalBroker(env, int(env.bar[0]), window[1]), folder / "paper", "t").run()
    assert (paper.timestamps == tested.timestamps).all()
    assert np.abs(paper.equity / tested.equity - 1).max() <= TOLERANCE
    assert np.ptp(tested.equity) > 1e-3 * tested.equity[0]
    assert paper.n_fills == tested.n_trades
    return paper.n_fills


CASES = {
    "regimes": {},
    "lookback": {"lookback": 8},
    "lag 2": {"decision_lag": 2},
    "close": {"fill_at": "close"},
    "few features": {"features": ("return_1",)},  # judged before there are 20 bars
    "rewards": {"reward": "excess:1,drawdown:0.5,cvar:0.1"},
}


@pytest.mark.parametrize("name", CASES)
def test_regimes_live_equal_the_backtest(market, tmp_path, name):
    options = {"action": "regimes", **CASES[name]}
    bundle = bundle_for(market, tmp_path, **options)
    start = 5 if name == "few features" else 100
    assert compare(bundle, market, (start, market.n_bars), tmp_path) > 100
    assert bundle.env(market, (100, 200)).reward_name == options.get("reward", "excess")


def test_signal_and_size_live_equal_the_backtest(make_market, random_bars, tmp_path):
    market = make_market({"BTCUSDT": random_bars(1, 400, price=30_000.0, missing=0.03)})
    bundle = bundle_for(market, tmp_path, action="signal_size", threshold=0.25)
    assert bundle.env(market, (100, 200)).scheme == SignalSize(0.25)
    assert compare(bundle, market, (100, market.n_bars), tmp_path) > 30


def test_every_row_of_the_table_is_seen_live(market):
    """Bit for bit: a rank that turned on the last digit would be another portfolio."""
    env = VectorizedCryptoEnvAlpaca(market, 1, action="regimes")
    broker = LocalBroker(env, 60, market.n_bars)
    view = MarketView(5, env.features.names, (), 1, torch.float64, Regimes())
    view.replay(broker.history())
    for bar in range(60, market.n_bars):
        if bar > 60:
            view.append(broker.next_bar())
        assert torch.equal(view.action_row, env.action_row(torch.tensor([bar]))), bar
    assert MarketView(5, env.features.names, (), 1, torch.float64, SignalSize()).action_row is None


def test_a_view_that_forgets_sees_the_same_row(make_market, random_bars):
    """Past twice `MEMORY` bars of an asset its history is moved; one asset's turn is later than the other's."""
    ticks = 2 * MEMORY + 60
    market = make_market({"ETHUSDT": random_bars(7, ticks), "SOLUSDT": random_bars(8, ticks, listed=25)})
    env = VectorizedCryptoEnvAlpaca(market, 1, action="regimes", features=("return_1",))
    broker = LocalBroker(env, 2 * MEMORY - 10, ticks)
    view = MarketView(2, env.features.names, (), 1, torch.float64, Regimes())
    view.replay(broker.history())
    while (bar := broker.next_bar()) is not None:
        view.append(bar)
        assert torch.equal(view.action_row, env.action_row(torch.tensor([broker.bar])))
    assert broker.bar == ticks - 1


def test_a_model_whose_options_stand_by_themselves_trades_on(market, tmp_path):
    """As models were written before a scheme's options had a place of their own."""
    bundle = bundle_for(market, tmp_path, action="weights", sharpness=10.0)
    options = dict(bundle.manifest["env"]["options"])
    assert options.pop("action_options") == {"sharpness": 10.0}
    env = {**bundle.manifest["env"], "options": {**options, "sharpness": 10.0}}
    earlier = replace(bundle, manifest={**bundle.manifest, "env": env})
    assert compare(earlier, market, (100, 200), tmp_path) > 30
    broker = LocalBroker(earlier.env(market, (100, 200)), 100, 200)
    assert PaperTrader(earlier, broker, tmp_path / "again", "t").scheme == TargetWeights(10.0)
