"""Checkpoints: what goes in comes out, and what does not fit or was damaged is refused in one line."""

from __future__ import annotations

import logging
import os
import random
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from drl_agents.agents.ppo import AgentPPO, PPOConfig
from drl_agents.networks.policy import PolicySpec
from drl_agents.training.checkpoint import (
    checkpoints_in,
    interrupted_path,
    load_checkpoint,
    newest_checkpoint,
    restore,
    save_checkpoint,
    set_aside,
)
from drl_agents.training.trainer import Budget, check_facts, train
from environments.alpaca_env import VectorizedCryptoEnvAlpaca
from environments.data.source import load_bars
from environments.errors import InputError
from environments.market import Market
from environments.plugin import build_env


@pytest.fixture(scope="module")
def market() -> Market:
    torch.set_num_threads(1)
    bars = load_bars("synthetic", options={"kind": "gbm", "n_bars": 200, "n_assets": 2}, seed=1)
    return Market.from_bars(bars)


def build(market: Market, hidden=(8,), n_envs=4, seed=0, **env_options):
    env = VectorizedCryptoEnvAlpaca(market, n_envs, episode_length=20, seed=seed, **env_options)
    config = PPOConfig(horizon_len=8, num_minibatches=2, update_epochs=2)
    return AgentPPO(PolicySpec.of(env, hidden=hidden), config, (seed,)), env


@pytest.fixture
def saved(market, tmp_path) -> Path:
    agent, env = build(market)
    path = tmp_path / "checkpoint.pt"
    train(agent, env, Budget(iterations=3), checkpoint=path, facts={"data": "abc", "gamma": 0.99})
    return path


def refused(call, *named: str) -> str:
    with pytest.raises(InputError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message and all(name in message for name in named), message
    return message


# ------------------------------------------------------------------------------------------- round trip


def flat(state, name="") -> dict:
    if isinstance(state, dict):
        return {k: v for key, inner in state.items() for k, v in flat(inner, f"{name}.{key}").items()}
    return {name: state}


def test_everything_comes_back(market, tmp_path):
    agent, env = build(market)
    train(agent, env, Budget(iterations=3))
    random.seed(4), np.random.seed(5), torch.manual_seed(6)
    save_checkpoint(tmp_path / "c.pt", agent, env, 3, {"note": "x"})
    expected = {
        "agent": agent.state_dict(),
        "env": env.state_dict(),
        "observation": agent.observation_state(),
    }
    draws = random.random(), np.random.rand(), torch.rand(())
    other, other_env = build(market, seed=1)
    state = load_checkpoint(tmp_path / "c.pt")
    assert state["record"] == {"note": "x"}
    assert restore(state, other, other_env) == 3
    assert (random.random(), np.random.rand(), torch.rand(())) == draws
    found = {
        "agent": other.state_dict(),
        "env": other_env.state_dict(),
        "observation": other.observation_state(),
    }
    for name, value in flat(expected).items():
        same = torch.equal(value, flat(found)[name]) if isinstance(value, torch.Tensor) else value == flat(found)[name]
        assert same, name


def test_what_was_saved_does_not_go_on_changing(market):
    agent, env = build(market)
    train(agent, env, Budget(iterations=1))
    state = agent.state_dict()
    before = {name: value.clone() for name, value in flat(state).items()}
    train(agent, env, Budget(iterations=2))
    assert all(torch.equal(before[name], value) for name, value in flat(state).items())


def test_a_run_stopped_before_its_first_rollout_resumes(market, tmp_path):
    path = tmp_path / "c.pt"
    agent, env = build(market)
    assert train(agent, env, Budget(iterations=2), checkpoint=path, stop=lambda: True).interrupted
    resumed, env = build(market)
    train(resumed, env, Budget(iterations=2), checkpoint=path, resume=True)
    whole, env = build(market)
    train(whole, env, Budget(iterations=2))
    assert torch.equal(resumed.parameters.values, whole.parameters.values)


def test_an_environment_that_cannot_be_saved_starts_its_episodes_anew(tmp_path):
    path = tmp_path / "c.pt"
    env = build_env("gym:CartPole-v1", None, 2)
    config = PPOConfig(horizon_len=8, num_minibatches=2, update_epochs=1)
    agent = AgentPPO(PolicySpec.of(env, hidden=(4,)), config)
    train(agent, env, Budget(iterations=2), checkpoint=path)
    again, env = AgentPPO(agent.spec, config), build_env("gym:CartPole-v1", None, 2)
    result = train(again, env, Budget(iterations=4), checkpoint=path, resume=True)
    assert (result.iterations, result.timesteps) == (4, 2 * 16)


# ---------------------------------------------------------------------------------------------- damage


@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_refused(saved, share):
    content = saved.read_bytes()
    saved.write_bytes(content[: int(len(content) * share)])
    refused(lambda: load_checkpoint(saved), saved.name)


def test_every_flipped_bit_is_noticed(saved):
    content = saved.read_bytes()
    draws = random.Random(0)
    places = {0, 63, 64, 65, len(content) - 1, *(draws.randrange(len(content)) for _ in range(200))}
    for place in sorted(places):
        damaged = bytearray(content)
        damaged[place] ^= 1 << draws.randrange(8)
        saved.write_bytes(damaged)
        refused(lambda: load_checkpoint(saved), saved.name)


def test_other_files_are_refused(saved, tmp_path):
    refused(lambda: load_checkpoint(tmp_path / "none.pt"), "none.pt", "no such file")
    weights = tmp_path / "weights.pt"
    torch.save({"format": 1}, weights)
    refused(lambda: load_checkpoint(weights), "weights.pt")


# ------------------------------------------------------------------------------------------- other runs


@pytest.mark.parametrize(
    ("other", "named"),
    [
        ({"hidden": (9,)}, ("policy.", "(1, 29, 8)", "(1, 29, 9)")),
        ({"hidden": (8, 8)}, ("policy.", "layers.1", "(1, 8, 8)")),
        ({"lookback": 2}, ("policy.", "(1, 29, 8)", "(1, 51, 8)")),
        ({"n_envs": 1}, ("environment", "equity", "(4,)", "(1,)")),
        ({"decision_lag": 2}, ("environment", "pending", "(0, 4, 2)", "(1, 4, 2)")),
    ],
)
def test_what_does_not_fit_is_named_and_nothing_touched(market, saved, other, named):
    agent, env = build(market, **other)
    before = agent.parameters.values.clone()
    refused(lambda: restore(load_checkpoint(saved), agent, env), *named)
    assert torch.equal(agent.parameters.values, before)


def test_one_environments_state_is_not_spread_over_many(market, tmp_path):
    agent, env = build(market, n_envs=1)
    save_checkpoint(tmp_path / "c.pt", agent, env, 0, {})
    agent, env = build(market, n_envs=4)
    refused(lambda: restore(load_checkpoint(tmp_path / "c.pt"), agent, env), "equity", "(1,)", "(4,)")


@pytest.mark.parametrize("facts", [{"data": "abd", "gamma": 0.99}, {"data": "abc"}, None])
def test_another_runs_checkpoint_is_refused(market, saved, facts):
    agent, env = build(market)
    name = "data" if facts is None or facts["data"] != "abc" else "gamma"
    refused(
        lambda: train(agent, env, Budget(iterations=5), checkpoint=saved, resume=True, facts=facts),
        name,
        "another run",
    )


def test_facts_survive_the_round_trip_as_json(market, tmp_path):
    """Tuples come back as lists; that is the same run."""
    facts = {"hidden": (8, 8), "nested": {"a": None}}
    agent, env = build(market)
    train(agent, env, Budget(iterations=1), checkpoint=tmp_path / "c.pt", facts=facts)
    result = train(agent, env, Budget(iterations=2), checkpoint=tmp_path / "c.pt", resume=True, facts=facts)
    assert result.iterations == 2


def test_facts_that_could_not_be_read_back_are_refused_at_once(market, tmp_path):
    agent, env = build(market)
    with pytest.raises(TypeError):
        train(agent, env, Budget(iterations=1), checkpoint=tmp_path / "c.pt", facts={"path": Path("x")})
    assert not (tmp_path / "c.pt").exists()


def test_another_agent_is_named_before_its_hyper_parameters():
    there, here = {"agent": {"alpha": 0.2}, "agent_name": "sac"}, {"agent": {"clip_coef": 0.2}, "agent_name": "ppo"}
    refused(lambda: check_facts(there, here), "agent_name is 'sac' there and 'ppo' here")


def test_the_first_difference_is_named_inside_nested_facts(market, tmp_path):
    agent, env = build(market)
    path, facts = tmp_path / "c.pt", {"seed": 1, "agent": {"gamma": 0.9, "learning_rate": 1e-3}}
    train(agent, env, Budget(iterations=1), checkpoint=path, facts=facts)
    other = {"seed": 2, "agent": {"gamma": 0.9, "learning_rate": 1e-4}}
    call = lambda: train(agent, env, Budget(iterations=2), checkpoint=path, resume=True, facts=other)  # noqa: E731
    assert "seed" not in refused(call, "agent.learning_rate is 0.001 there and 0.0001 here")


# ------------------------------------------------------------------------------------- several in a folder


@pytest.fixture
def folder(market, tmp_path) -> Path:
    """checkpoint.pt of 3 iterations, interrupted ones of 5 and, twice, of 7."""
    agent, env = build(market)
    save_checkpoint(tmp_path / "checkpoint.pt", agent, env, 3, {})
    for minute, iteration in ((1, 5), (9, 7), (8, 7)):
        path = tmp_path / f"model_interrupted_20260101T000{minute}00Z_{iteration}.pt"
        save_checkpoint(path, agent, env, iteration, {"minute": minute})
        os.utime(path, (minute, minute))
    return tmp_path


def test_the_newest_is_of_the_most_iterations_and_then_the_latest(folder, market):
    path, state = newest_checkpoint(folder)
    assert path.name == "model_interrupted_20260101T000900Z_7.pt" and state["record"] == {"minute": 9}
    agent, env = build(market)
    save_checkpoint(folder / "checkpoint.pt", agent, env, 8, {})
    assert newest_checkpoint(folder)[0].name == "checkpoint.pt"


def test_a_damaged_one_is_told_and_the_next_newest_taken(folder, caplog):
    for path in folder.glob("*_7.pt"):
        path.write_bytes(path.read_bytes()[:-50])
    with caplog.at_level(logging.WARNING):
        assert newest_checkpoint(folder)[0].name == "model_interrupted_20260101T000100Z_5.pt"
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 2 and all("_7.pt: cut short" in line and "_5.pt" in line for line in told)


def test_where_all_are_damaged_none_is_made_up(folder, tmp_path):
    for path in checkpoints_in(folder):
        path.write_bytes(b"")
    refused(lambda: newest_checkpoint(folder), "checkpoint.pt", "cut short")
    assert newest_checkpoint(tmp_path / "elsewhere") is None


def test_what_is_set_aside_is_never_overwritten(folder):
    names = []
    for content in (b"1", b"2", b"3"):
        (folder / "checkpoint.pt").write_bytes(content)
        names.append(set_aside(folder / "checkpoint.pt"))
    assert [p.name for p in names] == ["checkpoint.pt.old", "checkpoint.pt.2.old", "checkpoint.pt.3.old"]
    assert [p.read_bytes() for p in names] == [b"1", b"2", b"3"]
    assert not {p.name for p in checkpoints_in(folder)} & {p.name for p in names}


def test_interrupted_runs_are_named_by_time_and_iteration(tmp_path):
    path = interrupted_path(tmp_path, 24)
    assert path.parent == tmp_path and re.fullmatch(r"model_interrupted_\d{8}T\d{6}Z_24\.pt", path.name)


def test_a_stopped_run_leaves_its_last_checkpoint_as_it_was(market, tmp_path):
    agent, env = build(market)
    seen: list[int] = []
    result = train(
        agent,
        env,
        Budget(iterations=9),
        checkpoint=tmp_path / "checkpoint.pt",
        checkpoint_every=2,
        stop=lambda: len(seen) == 5,
        interrupted_checkpoint=lambda iteration: interrupted_path(tmp_path, iteration),
        on_iteration=lambda done, limit, figures: seen.append(done),
    )
    assert result.interrupted and result.checkpoint.name.endswith("_5.pt")
    assert load_checkpoint(tmp_path / "checkpoint.pt")["iteration"] == 4
    assert newest_checkpoint(tmp_path)[0] == result.checkpoint
    assert newest_checkpoint(tmp_path)[1]["iteration"] == 5
