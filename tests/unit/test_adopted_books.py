"""A venue that takes what no order told of: each time it is within the slack, but it does not stay unnoticed."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from drl_agents.deployment.bundle import Bundle, load_bundle, save_bundle
from drl_agents.deployment.venues import replaying
from drl_agents.networks.policy import ActorCritic, PolicySpec
from environments.alpaca_env import VectorizedCryptoEnvAlpaca
from environments.data.credentials import Secret
from environments.live.alpaca_local.server import LocalAlpaca
from environments.live.risk import RiskLimits
from environments.market import Market

pytestmark = pytest.mark.usefixtures("one_thread")
START, STOP = 50, 100
KEYS = (Secret("local"), Secret("local"))


@pytest.fixture(scope="module")
def market(make_market, random_bars) -> Market:
    return make_market({name: random_bars(i, STOP, price=100.0) for i, name in enumerate(("BTCUSDT", "ETHUSDT"))})


@pytest.fixture(scope="module")
def bundle(market, tmp_path_factory) -> Bundle:
    env = VectorizedCryptoEnvAlpaca(market, 1, max_trade=0.2, commission_bps=10.0, spread_bps=0.0, slippage_bps=0.0)
    policy = ActorCritic(PolicySpec.of(env, hidden=(8,)), seeds=(3,))
    policy.fit_normalizer(env)
    with torch.no_grad():
        policy.actor.layers[-1].weight.mul_(60.0)
    return load_bundle(save_bundle(tmp_path_factory.mktemp("b"), policy, 0, env, "VectorizedCryptoEnvAlpaca", {}))


@pytest.mark.parametrize("hidden", [0.0, 40.0])
def test_fees_that_no_order_tells_of_add_up(market, bundle, tmp_path, hidden):
    """The venue takes `hidden` basis points of the turnover more than the model knows, at every fill."""
    env = bundle.env(market, (START, STOP), commission_bps=10.0 + hidden)
    limits = RiskLimits(unexplained=0.005)
    with (
        LocalAlpaca(env, START, STOP) as venue,
        replaying(bundle, venue.url, KEYS, tmp_path, "t", limits=limits) as trader,
    ):
        states, decide = [], trader.decide

        def watched(bar, *args, **options):
            decide(bar, *args, **options)
            states.append((trader.ledger.adopted, trader.equity, trader.state))

        trader.decide = watched
        trader.run()
        fills = trader.journal._db.execute("SELECT value FROM fills").fetchall()
        kept = trader.journal.last_bar().books["ledger"]["taken_over"]
        assert trader.ledger.cash == pytest.approx(venue.cash, abs=1e-6)
    adopted, equity = np.array([(adopted, equity) for adopted, equity, _ in states]).T
    told = json.loads((tmp_path / "state.json").read_text())
    assert told["adopted"] == sum(map(abs, kept)) == trader.ledger.adopted
    if not hidden:
        assert told["adopted"] < 1e-4 and {state for *_, state in states} == {"ACTIVE"}
        return
    turnover = sum(value for (value,) in fills)
    assert (np.diff(adopted) >= 0).all() and told["adopted"] == pytest.approx(hidden * 1e-4 * turnover, rel=0.02)
    # Beyond half a percent of equity nothing new is opened.
    beyond = adopted > 0.005 * equity
    assert [state for *_, state in states] == ["REDUCING" if more else "ACTIVE" for more in beyond]
    assert beyond[-1] and "venue's books differ from its fills by" in trader.risk.reasons[0]
