"""Succession beside a trader on Alpaca's protocol: the real client, a real socket, a journal, restarts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from drl_agents.deployment.bundle import Bundle, load_bundle, save_bundle
from drl_agents.deployment.health import keep_heldout
from drl_agents.deployment.registry import Registry, slot_of
from drl_agents.deployment.succession import Succession
from drl_agents.deployment.venues import replaying
from drl_agents.networks.policy import ActorCritic, PolicySpec
from environments.alpaca_env import VectorizedCryptoEnvAlpaca
from environments.data.credentials import Secret
from environments.live.alpaca_local.server import LocalAlpaca
from environments.market import Market

START, STOP = 60, 110
KEYS = (Secret("a-key-for-this-test"), Secret("a-secret-for-this-test"))

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def market(make_market, random_bars) -> Market:
    return make_market(
        {"BTCUSDT": random_bars(1, STOP, price=30_000.0), "DOGEUSDT": random_bars(2, STOP, price=0.1, sigma=0.03)}
    )


def bundle_for(market: Market, folder: Path, seed: int, mean: float) -> Bundle:
    """mean: of the returns it is said to have had on its held-out bars, per bar."""
    env = VectorizedCryptoEnvAlpaca(market, 1, max_trade=0.05)
    policy = ActorCritic(PolicySpec.of(env, hidden=(8,)), seeds=(seed,))
    policy.fit_normalizer(env)
    with torch.no_grad():
        policy.actor.layers[-1].weight.mul_(60.0)
    bundle = load_bundle(save_bundle(folder, policy, 0, env, "VectorizedCryptoEnvAlpaca", {"study": "s"}))
    keep_heldout(bundle, np.random.default_rng(seed).normal(mean, 0.02, 200))
    return bundle


@pytest.mark.parametrize(("mean", "positions", "stays"), [(0.0, "inherit", True), (0.5, "flatten", False)])
def test_take_over_and_roll_back_across_restarts(market, tmp_path, mean, positions, stays):
    """A challenger takes over; one that promised too much goes again. The trader is stopped in between, twice."""
    champion, challenger = bundle_for(market, tmp_path / "a", 1, 0.0), bundle_for(market, tmp_path / "b", 2, mean)
    registry, slot = Registry(tmp_path / "logs"), slot_of(champion.manifest["market"])
    registry.promote(champion, {})
    # The shadow is left out where its end would be the same.
    terms = {"shadow_bars": 8 if stays else 0, "positions": positions, "health_bars": 12, "max_loss": 0.9}
    registry.challenge(challenger, {"terms": terms})
    keys = {"key": KEYS[0].reveal(), "secret": KEYS[1].reveal()}
    models = []
    with LocalAlpaca(champion.env(market, (START, STOP)), START, STOP, **keys) as venue:
        for last in (80, 90, STOP):
            bundle = registry.champion(slot)
            with (
                Succession(registry, slot) as hook,
                replaying(bundle, venue.url, KEYS, tmp_path / "t", "t", hook=hook) as trader,
            ):
                trader.run(stop=lambda last=last: venue.bar >= last)
                models.append(trader.bundle.id)
                assert trader.reconciled and trader.risk.reasons == []
                assert trader.ledger.cash == venue.cash
        ids = [order["client_order_id"] for order in venue.orders]
    senders = {name.split("-")[0] for name in ids}
    assert len(set(ids)) == len(ids) and senders == {champion.id[:12], challenger.id[:12]}
    events = [entry["event"] for entry in registry.audit.entries()]
    assert registry.verify().broken is None and registry.challenger_id(slot) is None
    if stays:
        assert models == [challenger.id] * 3 and events[-1] == "healthy"
    else:
        assert models[-1] == champion.id and registry.quarantined(challenger)
        assert events[-2:] == ["rolling back", "rolled back"]
    assert registry.champion_id(slot) == models[-1]
