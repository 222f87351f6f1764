"""Weights shared by the assets: order does not matter, and neither does their number."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from drl_agents.agents.ppo import AgentPPO, PPOConfig
from drl_agents.deployment.bundle import load_bundle, save_bundle
from drl_agents.evaluation.backtest import backtest
from drl_agents.networks.build import build_policy
from drl_agents.networks.spec import PolicySpec
from environments.alpaca_env import VectorizedCryptoEnvAlpaca
from environments.data.source import load_bars
from environments.errors import InputError
from environments.market import Market
from environments.observation import account_size

pytestmark = pytest.mark.usefixtures("one_thread")

L, F, A = 3, 4, 5
SPEC = PolicySpec(A * F, L, account_size(A), "box", A, hidden=(8, 6), per_asset=True, n_assets=A)


def market_of(n_assets: int, seed: int = 1, **options) -> Market:
    own = {"kind": "momentum", "n_bars": 300, "n_assets": n_assets, **options}
    return Market.from_bars(load_bars("synthetic", options=own, seed=seed))


def observations(n: int, n_assets: int) -> torch.Tensor:
    size = L * n_assets * F + account_size(n_assets)
    return torch.randn(2, n, size, generator=torch.Generator().manual_seed(n_assets))


def shuffled(x: torch.Tensor, n_assets: int, order: list[int]) -> torch.Tensor:
    """The same observation with the assets in another order."""
    rows, cash, account = x.split([L * n_assets * F, 1, 3 * n_assets], dim=-1)
    rows = rows.view(2, -1, L, n_assets, F)[:, :, :, order].flatten(2)
    return torch.cat([rows, cash, account.view(2, -1, 3, n_assets)[..., order].flatten(2)], dim=-1)


@pytest.mark.parametrize("layer_norm", [False, True])
def test_the_order_of_the_assets_does_not_matter(layer_norm):
    policy = build_policy(replace(SPEC, layer_norm=layer_norm), (1, 2))
    x, order = observations(7, A), [3, 0, 4, 1, 2]
    moved = shuffled(x, A, order)
    assert_close(policy.mode(moved), policy.mode(x)[..., order], rtol=1e-5, atol=1e-6)
    assert_close(policy.value(moved), policy.value(x), rtol=1e-5, atol=1e-6)
    assert not torch.allclose(policy.mode(moved), policy.mode(x), atol=1e-4)


def test_discrete_actions_and_values_are_of_the_whole_set():
    policy = build_policy(replace(SPEC, action="discrete", action_size=12), (1, 2))
    x = observations(7, A)
    moved = shuffled(x, A, [3, 0, 4, 1, 2])
    (logits,) = policy.dense(x, policy.actor)
    assert logits.shape == (2, 7, 12)
    assert_close(policy.dense(moved, policy.actor)[0], logits, rtol=1e-5, atol=1e-6)


def test_one_layer_by_hand():
    policy = build_policy(replace(SPEC, hidden=(2,), activation="relu"), (1, 2))
    x, net = observations(1, 3), policy.actor
    rows, cash, account = x[1, 0].split([L * 3 * F, 1, 9])
    own = torch.cat([rows.view(L, 3, F).transpose(0, 1).flatten(1).clamp(-10, 10), account.view(3, 3).T], dim=1)
    own = torch.cat([own, cash.expand(3, 1)], dim=1)
    sums = own @ net.own[0].weight[1] + own.mean(0) @ net.mean[0].weight[1]
    expected = torch.relu(sums) @ net.each.weight[1] + net.each.bias[1]
    assert_close(policy.mode(x)[1, 0], expected.flatten(), rtol=1e-5, atol=1e-6)


def test_cash_has_the_last_number():
    policy = build_policy(replace(SPEC, action_size=A + 1), (1, 2))
    x = observations(7, A)
    played, moved = policy.mode(x), policy.mode(shuffled(x, A, [3, 0, 4, 1, 2]))
    assert played.shape == (2, 7, A + 1)
    assert_close(moved, played[..., [3, 0, 4, 1, 2, 5]], rtol=1e-5, atol=1e-6)


def test_each_asset_knows_of_the_others():
    policy = build_policy(SPEC, (1, 2))
    x = observations(1, A)
    other = x.clone()
    other[..., L * A * F - F :] += 1.0  # the last asset's newest features, and the account
    assert (policy.mode(x) - policy.mode(other)).abs().min() > 1e-6


@pytest.mark.parametrize(("normalizer", "action"), [("standard", "weights"), ("quantile", "trades")])
def test_trained_on_few_assets_it_runs_on_many(tmp_path, normalizer, action):
    few = market_of(3)
    env = VectorizedCryptoEnvAlpaca(few, 8, lookback=2, episode_length=50, action=action)
    spec = PolicySpec.of(env, per_asset=True, hidden=(16, 16), normalizer=normalizer)
    agent = AgentPPO(spec, PPOConfig(horizon_len=16))
    agent.policy.fit_normalizer(env)
    agent.update(agent.explore_env(env, 16))
    saved = save_bundle(tmp_path / "b", agent.policy, 0, env, "VectorizedCryptoEnvAlpaca", {})
    bundle = load_bundle(saved)
    for n_assets, seed in ((3, 1), (11, 2)):
        result = backtest(bundle.env(market_of(n_assets, seed), (60, 200)), bundle.decide)[0]
        assert result.weights.shape[1] == n_assets and np.isfinite(result.equity).all() and result.n_trades > 20
    with pytest.raises(InputError, match="asset_class"):
        other = load_bars("synthetic", options={"kind": "gbm", "n_bars": 300}, asset_class="stock", timeframe="1h")
        bundle.env(Market.from_bars(other), (60, 200))


def test_features_are_normalised_over_all_assets():
    market = market_of(3)
    env = VectorizedCryptoEnvAlpaca(market, 1, segments=[(50, 150)])
    policy = build_policy(PolicySpec.of(env, per_asset=True), (1,))
    policy.fit_normalizer(env)
    features = env.features.values[50:150].reshape(-1, env.features.values.shape[-1]).double()
    known = features[features.isfinite().all(1)]
    assert_close(policy.row_normalizer.mean[0], known.mean(0).float(), rtol=1e-4, atol=1e-6)
    assert_close(policy.row_normalizer.std[0], known.std(0, correction=0).float(), rtol=1e-4, atol=1e-6)


def test_what_cannot_be_shared_is_refused():
    for wrong, named in (
        ({"network": "gru"}, "not with 'gru'"),
        ({"distribution": "squashed", "value": False}, "not with sac, td3 or ddpg"),
        ({"n_assets": 0}, "there is no market"),
        ({"action_size": 2}, "2 numbers of an action are not one for each of 5 assets"),
    ):
        with pytest.raises(InputError, match=named):
            replace(SPEC, **wrong, options={})
