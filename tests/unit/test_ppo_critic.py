"""Actor and critic with an optimiser each, and epochs of the critic alone."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from drl_agents.agents.ppo import AgentPPO, PPOConfig
from drl_agents.networks.spec import PolicySpec
from drl_agents.training.checkpoint import load_checkpoint, restore, save_checkpoint
from drl_agents.training.trainer import Budget, train
from environments.alpaca_env import VectorizedCryptoEnvAlpaca
from environments.data.source import load_bars
from environments.errors import InputError
from environments.market import Market

pytestmark = pytest.mark.usefixtures("one_thread")
SEEDS = (3, 5)


@pytest.fixture(scope="module")
def market() -> Market:
    return Market.from_bars(load_bars("synthetic", options={"kind": "momentum", "n_bars": 300, "n_assets": 2}, seed=1))


def after(market: Market, iterations: int = 2, network: dict | None = None, **config):
    """(agent, its parameters (P, D) before by name, after by name) of so many iterations of two members."""
    env = VectorizedCryptoEnvAlpaca(market, 8, n_members=2, episode_length=20, seed=list(SEEDS))
    spec = PolicySpec.of(env, **(network or {"hidden": (16,)}))
    agent = AgentPPO(spec, PPOConfig(horizon_len=16, num_minibatches=2, update_epochs=2, **config), SEEDS)
    agent.policy.fit_normalizer(env)
    before = {name: view.clone() for name, view in agent.parameters.views().items()}
    figures = [agent.update(agent.explore_env(env, 16)) for _ in range(iterations)][-1]
    return agent, before, dict(agent.parameters.views()), figures


def test_two_optimisers_of_one_rate_are_one_where_nothing_is_clipped(market):
    (_, _, one, _), (_, _, two, _) = (
        after(market, max_grad_norm=1e6, learning_rate=1e-3, **own) for own in ({}, {"critic_learning_rate": 1e-3})
    )
    for name in one:
        assert_close(two[name], one[name], rtol=0, atol=1e-7)


@pytest.mark.parametrize(("epochs", "phases"), [(0, ["rollout", "update"]), (1, ["rollout", "update", "critic"])])
def test_the_critics_epochs_are_a_phase_of_their_own(market, epochs, phases):
    """Told to the display, and timed."""
    env = VectorizedCryptoEnvAlpaca(market, 8, episode_length=20)
    config = PPOConfig(horizon_len=16, num_minibatches=2, critic_epochs=epochs)
    agent = AgentPPO(PolicySpec.of(env, hidden=(16,)), config)
    told, lines = [], []
    train(
        agent, env, Budget(iterations=2), on_phase=told.append,
        on_iteration=lambda done, limit, figures: lines.append(figures),
    )  # fmt: skip
    assert told == 2 * phases
    assert all({f"{name}_seconds" for name in phases} <= set(line) for line in lines)
    agent.update(agent.explore_env(env, 16))
    assert told == 2 * phases  # trained by hand, it tells the display of a run that is over nothing


def test_each_has_its_own_norm_limit(market):
    """The critic's large gradient of a small limit does not shrink the actor's: Adam's first steps aside, its moments
    are those of the gradient as it is."""
    agents = [
        after(market, 1, max_grad_norm=0.5, vf_coef=100.0, **own)[0] for own in ({}, {"critic_learning_rate": 3e-4})
    ]
    actor = agents[1].optimizer.second
    together = agents[0].optimizer.second[:, : actor.shape[1]]
    assert bool((actor.sum(1) > 100 * together.sum(1)).all())


@pytest.mark.parametrize(("moves", "config"), [
    (("actor", "log_std"), {"critic_learning_rate": 0.0}),
    (("critic",), {"learning_rate": 0.0, "critic_learning_rate": 1e-3}),
    (("critic",), {"learning_rate": 0.0, "critic_learning_rate": 1e-3, "critic_epochs": 2}),
])  # fmt: skip
def test_a_rate_of_zero_leaves_its_own_alone(market, moves, config):
    _, before, now, _ = after(market, **config)
    moved = [name for name in before if not torch.equal(before[name], now[name])]
    assert moved == [name for name in before if name.startswith(moves)] and 0 < len(moved) < len(before)


@pytest.mark.parametrize("network", [
    {"hidden": (16,)},
    {"network": "gru", "hidden_dim": 8, "hidden": (8,)},
    {"network": "lightweight", "d_model": 8, "n_heads": 2, "hidden": (8,)},
    {"per_asset": True, "hidden": (8,)},
])  # fmt: skip
def test_epochs_of_the_critic_train_the_critic_alone_and_explain_more(market, network):
    """With the first optimiser at rest, so that what moves was moved by them."""
    config = {"learning_rate": 0.0, "critic_learning_rate": 3e-3, "vf_coef": (0.5, 1.0)}
    agent, before, now, figures = after(market, 1, network, critic_epochs=8, **config)
    for name in before:
        moved = [not torch.equal(before[name][p], now[name][p]) for p in (0, 1)]
        assert moved == [name.startswith("critic.")] * 2, name
    assert agent.critic_optimizer.count.flatten().tolist() == [2 * (2 + 8)] * 2
    assert not any(value.requires_grad for value in figures.values())
    assert bool((figures["explained_variance_after"] > figures["explained_variance"] + 0.01).all())


def test_the_critics_rate_is_the_actors_unless_given(market):
    (_, _, one, _), (_, _, two, _) = (
        after(market, learning_rate=2e-3, critic_epochs=1, **own) for own in ({}, {"critic_learning_rate": 2e-3})
    )
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_both_optimisers_are_resumed(market, tmp_path):
    finals = []
    for broken in (False, True):
        env = VectorizedCryptoEnvAlpaca(market, 8, episode_length=20, seed=1)
        config = PPOConfig(horizon_len=16, num_minibatches=2, critic_epochs=1, critic_learning_rate=9e-4)
        agent = AgentPPO(PolicySpec.of(env, hidden=(16,)), config)
        agent.policy.fit_normalizer(env)
        if broken:
            restore(load_checkpoint(tmp_path / "c.pt"), agent, env)
        for i in range(2 if broken else 4):
            if i == 2:
                save_checkpoint(tmp_path / "c.pt", agent, env, 2, {})
            agent.update(agent.explore_env(env, 16))
        finals.append(agent.parameters.values.clone())
    assert torch.equal(*finals)


def test_wrong_values_are_named():
    for wrong, named in (
        ({"critic_epochs": -1}, "critic_epochs=-1"),
        ({"critic_learning_rate": 2.0}, "critic_learning"),
    ):
        with pytest.raises(InputError, match=named):
            PPOConfig(**wrong)
