"""A large minibatch in pieces is the minibatch; members with the same statistics share one table of the market."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from drl_agents.agents import pieces, ppo
from drl_agents.agents.compilation import why_not
from drl_agents.agents.ppo import AgentPPO, PPOConfig
from drl_agents.networks.policy import PolicySpec
from environments.alpaca_env import VectorizedCryptoEnvAlpaca
from environments.data.source import load_bars
from environments.market import Market

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def market() -> Market:
    return Market.from_bars(load_bars("synthetic", options={"kind": "gbm", "n_bars": 300, "n_assets": 2}, seed=1))


def updated(market: Market, piece: int, monkeypatch, *, env: dict | None = None, spec: dict | None = None, **config):
    """Figures and parameters after two updates of minibatches of 2 x 96 samples; pieces of at most `piece`."""
    monkeypatch.setattr(pieces, "PIECE", piece)
    world = VectorizedCryptoEnvAlpaca(market, 48, n_members=2, episode_length=20, seed=[1, 2], **(env or {}))
    own = {"horizon_len": 8, "num_minibatches": 2, "update_epochs": 2, "compile": "off", **config}
    agent = AgentPPO(PolicySpec.of(world, hidden=(8, 8), **(spec or {})), PPOConfig(**own), (3, 4))
    agent.policy.fit_normalizer(world)
    figures = [agent.update(agent.explore_env(world, 8)) for _ in range(2)]
    return figures[-1], agent


@pytest.mark.parametrize(
    "case",
    [
        {},
        {"norm_adv": False, "max_grad_norm": (0.05, 5.0)},
        {"target_kl": (1e-4, 10.0)},
        {"amp": "fp16"},
        {"env": {"clock_groups": 12}},
        {"critic_learning_rate": 1e-3},
        pytest.param({"compile": "on"}, marks=pytest.mark.skipif(why_not() is not None, reason=f"{why_not()}")),
    ],
    ids=["plain", "no norm", "KL", "fp16", "clocks", "critic", "compiled"],
)
def test_in_pieces_or_whole(market, monkeypatch, case):
    """Of equal sizes (4 x 24)."""
    whole, reference = updated(market, 1_000, monkeypatch, **case)
    counted, count = [], pieces.pieces
    monkeypatch.setattr(ppo, "pieces", lambda *a: counted.append(count(*a)) or counted[-1])
    cut, agent = updated(market, 24, monkeypatch, **case)
    assert set(counted) == {4}
    loose = {"rtol": 2e-2, "atol": 2e-3} if case.get("amp") else {"rtol": 1e-4, "atol": 1e-5}
    for name in whole:
        assert_close(cut[name], whole[name], **loose, msg=lambda text, name=name: f"{name}: {text}")
    assert_close(agent.parameters.values, reference.parameters.values, **loose)


def test_pieces_of_different_sizes(market, monkeypatch):
    """97 samples of each member, in 3 pieces: there are no equal ones."""
    agents = []
    for piece in (1_000, 35):
        monkeypatch.setattr(pieces, "PIECE", piece)
        env = VectorizedCryptoEnvAlpaca(market, 97, episode_length=20, seed=1)
        config = PPOConfig(horizon_len=2, num_minibatches=2, update_epochs=1, compile="off")
        agents.append(AgentPPO(PolicySpec.of(env, hidden=(8,)), config))
        agents[-1].update(agents[-1].explore_env(env, 2))
    assert_close(agents[0].parameters.values, agents[1].parameters.values, rtol=1e-4, atol=1e-6)


def test_an_encoder_and_a_memory_are_not_cut(market, monkeypatch):
    for network in ("gru", "lightweight"):
        whole, _ = updated(market, 1_000, monkeypatch, spec={"network": network})
        cut, _ = updated(market, 10, monkeypatch, spec={"network": network})
        assert all(torch.equal(whole[name], cut[name]) for name in whole)


def test_members_of_one_fold_share_their_rows(market):
    """Four members on two folds: two tables, and each member reads what it reads alone."""
    folds = [[(0, 150)], [(100, 300)]]
    env = VectorizedCryptoEnvAlpaca(market, 4, n_members=4, segments=[folds[i] for i in (1, 0, 1, 0)], lookback=3)
    for kind in ("standard", "quantile"):
        agent = AgentPPO(PolicySpec.of(env, hidden=(8,), normalizer=kind), PPOConfig(), (1, 2, 3, 4))
        agent.policy.fit_normalizer(env)
        windows = agent.windows(env.rows)
        assert windows.table.shape[0] == 2 and windows.kind[0] == windows.kind[2] != windows.kind[1]
        bar = torch.tensor([[50, 1], [60, 2], [70, 140], [299, 0]])
        alone = torch.cat([agent.policy.row_normalizer(env.rows.expand(4, -1, -1))[p : p + 1] for p in range(4)])
        for p in range(4):
            for j, last in enumerate(bar[p].tolist()):
                own = [alone[p, b] if b >= 0 else torch.zeros_like(alone[p, 0]) for b in range(last - 2, last + 1)]
                assert torch.equal(windows.at(bar)[p, j], torch.cat(own))
