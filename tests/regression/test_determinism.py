"""The same seed gives the same result, interrupted or not: bit for bit."""

from __future__ import annotations

import json

import pytest
import torch

from drl_agents.agents.ppo import AgentPPO, PPOConfig
from drl_agents.networks.policy import PolicySpec
from drl_agents.training.record import RunRecord
from drl_agents.training.trainer import Budget, train
from environments.alpaca_env import VectorizedCryptoEnvAlpaca
from environments.data.source import load_bars
from environments.market import Market
from environments.plugin import build_env

WHOLE = 12


@pytest.fixture(scope="module")
def market() -> Market:
    torch.set_num_threads(1)
    bars = load_bars("synthetic", options={"kind": "momentum", "n_bars": 300, "n_assets": 2}, seed=1)
    return Market.from_bars(bars)


def build(market: Market, seeds=(7,), action="trades", **env_options):
    env = VectorizedCryptoEnvAlpaca(
        market,
        4 * len(seeds),
        n_members=len(seeds),
        episode_length=13,
        slippage_bps=5.0,
        action=action,
        seed=list(seeds),
        **env_options,
    )
    config = PPOConfig(horizon_len=8, num_minibatches=2, update_epochs=3, target_kl=1e-3, anneal_lr=True)
    agent = AgentPPO(PolicySpec.of(env, hidden=(8,)), config, seeds)
    agent.policy.row_normalizer.set(*env.normalizer_stats())
    return agent, env


def everything(agent: AgentPPO, env) -> dict[str, torch.Tensor]:
    """All tensors a run ends with: parameters, optimiser, generators, books."""
    state = {"agent": agent.state_dict(), "env": env.state_dict(), "seen": agent.observation_state()}
    tensors: dict[str, torch.Tensor] = {}

    def walk(name, value):
        if isinstance(value, dict):
            for key, inner in value.items():
                walk(f"{name}.{key}", inner)
        elif isinstance(value, torch.Tensor):
            tensors[name] = value

    walk("", state)
    return tensors


def assert_same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    different = [name for name in first if not torch.equal(first[name], second[name])]
    assert different == []


def whole_run(market, budget, **options):
    agent, env = build(market, **options)
    result = train(agent, env, budget)
    return everything(agent, env), result


def test_same_seed_same_result(market):
    first, a = whole_run(market, Budget(iterations=WHOLE))
    second, b = whole_run(market, Budget(iterations=WHOLE))
    assert_same(first, second)
    assert a.figures == b.figures


def test_global_random_state_has_no_part_in_it(market):
    torch.manual_seed(1)
    first, _ = whole_run(market, Budget(iterations=3))
    torch.manual_seed(2)
    second, _ = whole_run(market, Budget(iterations=3))
    assert_same(first, second)


def test_another_seed_another_result(market):
    first, _ = whole_run(market, Budget(iterations=2), seeds=(7,))
    second, _ = whole_run(market, Budget(iterations=2), seeds=(8,))
    assert not torch.equal(first[".agent.policy.actor.layers.0.weight"], second[".agent.policy.actor.layers.0.weight"])


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"seeds": (7, 8, 9)},
        {"decision_lag": 3},
        {"action": "weights", "lookback": 3},
        {"random_start": False, "segments": [(0, 150), (150, 300)]},
    ],
    ids=["plain", "population", "lag", "weights", "walks"],
)
@pytest.mark.parametrize("broken_after", [1, 7])
def test_resume_equals_uninterrupted(market, tmp_path, options, broken_after):
    budget, path = Budget(iterations=WHOLE), tmp_path / "c.pt"
    expected, whole = whole_run(market, budget, **options)
    agent, env = build(market, **options)
    seen = []
    first = train(
        agent,
        env,
        budget,
        checkpoint=path,
        stop=lambda: len(seen) == broken_after,
        on_iteration=lambda i, of, figures: seen.append(i),
    )
    assert first.interrupted and first.iterations == broken_after
    agent, env = build(market, **options)  # nothing carried over but the file
    env.reset(seed=99)
    second = train(agent, env, budget, checkpoint=path, resume=True)
    assert second.timesteps == (WHOLE - broken_after) * 8 * env.n_envs
    assert_same(everything(agent, env), expected)
    assert second.figures == whole.figures and second.episodes == whole.episodes


def test_resume_counts_episodes_on(market, tmp_path):
    budget, path = Budget(episodes=30), tmp_path / "c.pt"
    expected, whole = whole_run(market, budget)
    agent, env = build(market)
    seen = []
    train(
        agent,
        env,
        budget,
        checkpoint=path,
        stop=lambda: len(seen) == 5,
        on_iteration=lambda i, of, f: seen.append(of),
    )
    assert set(seen) == {None}
    agent, env = build(market)
    second = train(agent, env, budget, checkpoint=path, resume=True)
    assert second.episodes == whole.episodes >= 30
    assert_same(everything(agent, env), expected)


def test_resuming_a_finished_run_does_nothing(market, tmp_path):
    path = tmp_path / "c.pt"
    agent, env = build(market)
    train(agent, env, Budget(iterations=3), checkpoint=path)
    before = agent.parameters.values.clone()
    agent, env = build(market)
    result = train(agent, env, Budget(iterations=3), checkpoint=path, resume=True)
    assert (result.iterations, result.timesteps) == (3, 0)
    assert torch.equal(agent.parameters.values, before)


def test_a_gymnasium_environment_is_reproducible_too():
    ends = []
    for _ in range(2):
        env = build_env("gym:CartPole-v1", None, 3, seed=4)
        agent = AgentPPO(PolicySpec.of(env, hidden=(8,)), PPOConfig(horizon_len=32), (4,))
        train(agent, env, Budget(timesteps=500))
        ends.append(agent.parameters.values.clone())
    assert torch.equal(*ends)


def test_the_record_has_a_line_per_iteration(market, tmp_path):
    agent, env = build(market, seeds=(7, 8))
    train(agent, env, Budget(timesteps=100), record=RunRecord(tmp_path, {"seed": 7}))
    head, *lines = [json.loads(line) for line in (tmp_path / "run.jsonl").read_text().splitlines()]
    assert head["facts"] == {"seed": 7} and "torch" in head["versions"]
    assert [line["iteration"] for line in lines] == [1, 2, 3, 4]  # ceil(100 / (8 * 4))
    assert [line["timesteps"] for line in lines] == [32, 64, 96, 128]
    assert all(len(line["policy_loss"]) == 2 for line in lines)
