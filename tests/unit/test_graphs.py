"""A recorded iteration is the iteration: on the CPU by a tape of operations, on a GPU by CUDA graphs."""

from __future__ import annotations

import logging

import pytest
import torch

from drl_agents.agents.a2c import A2CConfig, AgentA2C
from drl_agents.agents.graphs import Graphs, recorder_for
from drl_agents.agents.ppo import AgentPPO, PPOConfig
from drl_agents.networks.policy import PolicySpec
from environments.alpaca_env import VectorizedCryptoEnvAlpaca
from environments.data.source import load_bars
from environments.market import Market
from tests.reference.tape import Tape, tape_recorder

STEPS = 8


@pytest.fixture(scope="module")
def market() -> Market:
    return Market.from_bars(load_bars("synthetic", options={"kind": "gbm", "n_bars": 300, "n_assets": 2}, seed=1))


def made(market: Market, record=None, *, n_envs: int = 12, env: dict | None = None, spec: dict | None = None, **hyper):
    """An agent of two members that may not look, and its environment."""
    torch.manual_seed(0)
    seeds = (5, 6)
    world = VectorizedCryptoEnvAlpaca(market, n_envs, n_members=2, episode_length=13, seed=[1, 2], **(env or {}))
    own = {"horizon_len": STEPS, "num_minibatches": 2, "update_epochs": 2, "compile": "off", **hyper}
    agent = AgentPPO(PolicySpec.of(world, hidden=(8, 8), **(spec or {})), PPOConfig(**own), seeds, market.device)
    agent.looks = False
    agent.graphs = Graphs(record)
    agent.policy.fit_normalizer(world)
    return agent, world


def trained(agent, env, iterations: int) -> list[dict[str, torch.Tensor]]:
    figures = []
    for i in range(iterations):
        agent.progress = i / iterations
        figures.append(agent.update(agent.explore_env(env, STEPS)))
    return figures


CASES = {
    "plain": {},
    "annealed, with a target KL": {"anneal_lr": True, "target_kl": (0.001, 10.0)},
    "a critic of its own": {"critic_epochs": 2, "critic_learning_rate": 1e-3},
    "lookback": {"env": {"lookback": 4}},
    "shared clocks": {"env": {"clock_groups": 3}, "group_baseline": True},
    "lag, margin of costs": {"env": {"decision_lag": 2, "slippage_bps": 5.0}},
    "discrete": {"env": {"action": "regimes"}},
    "gru": {"spec": {"network": "gru"}},
    "gru with dropout": {"spec": {"network": "gru", "options": {"dropout": 0.3}}},
    "transformer": {"spec": {"network": "lightweight"}, "env": {"lookback": 4}},
    "half precision": {"amp": "fp16"},
}


@pytest.mark.parametrize("case", CASES)
def test_a_recorded_run_is_the_run(market, case):
    """Four iterations, of which two are launched again without Python: figures, weights, books, all to the last bit;
    and nothing on the way waits for a device."""
    agent, env = made(market, tape_recorder, **CASES[case])
    plain, world = made(market, **CASES[case])
    for own, other in zip(trained(agent, env, 4), trained(plain, world, 4), strict=True):
        assert own.keys() == other.keys()
        for name in own:
            assert torch.equal(own[name], other[name]), name
    assert {known.launch is not None for known in agent.graphs._known.values()} == {True}
    assert set(agent.graphs._known) == {"AgentBase._fill", "AgentPPO._learn"}
    assert torch.equal(agent.parameters.values, plain.parameters.values)
    assert torch.equal(env.equity, world.equity) and torch.equal(env.bar, world.bar)


def test_looking_changes_nothing_but_the_work(market):
    """What is evaluated everywhere, since looking where it is needed would wait, is what is evaluated there alone."""
    for spec in ({}, {"network": "gru"}):
        blind, env = made(market, spec=spec)
        seeing, world = made(market, spec=spec)
        seeing.looks = True
        for own, other in zip(trained(blind, env, 3), trained(seeing, world, 3), strict=True):
            for name in own:
                torch.testing.assert_close(own[name], other[name], rtol=1e-4, atol=1e-6)


def test_no_phase_is_told_while_recording(market):
    """A trainer marks phases by events in the device's queue; of a recorded update the parts are one."""
    agent, env = made(market, tape_recorder, **CASES["a critic of its own"])
    told: list[str] = []
    agent.on_phase = told.append
    trained(agent, env, 4)
    assert told == ["critic"]


def test_every_launch_draws_anew(market):
    """Noise and starts of episodes are not those that were recorded."""
    agent, env = made(market, tape_recorder)
    actions = []
    for _ in range(4):
        actions.append(agent.explore_env(env, STEPS).action.clone())
    assert len({tuple(a.flatten().tolist()) for a in actions}) == 4


def test_what_was_returned_stays(market):
    agent, env = made(market, tape_recorder)
    figures = trained(agent, env, 3)
    before = {name: value.clone() for name, value in figures[-1].items()}
    trained(agent, env, 2)
    assert all(torch.equal(before[name], figures[-1][name]) for name in before)


def test_another_environment_or_horizon_is_recorded_anew(market):
    agent, env = made(market, tape_recorder)
    trained(agent, env, 3)
    plain, world = made(market)
    trained(plain, world, 3)
    for steps in (5, 5, 5, STEPS):
        own, other = (a.update(a.explore_env(e, steps)) for a, e in ((agent, env), (plain, world)))
        assert torch.equal(own["policy_loss"], other["policy_loss"])
    more, again = (VectorizedCryptoEnvAlpaca(market, 12, n_members=2, seed=9) for _ in range(2))
    for _ in range(3):
        own, other = (a.update(a.explore_env(e, STEPS)) for a, e in ((agent, more), (plain, again)))
        assert torch.equal(own["policy_loss"], other["policy_loss"])


def test_a_resumed_run_goes_on_recorded(market):
    """Weights, moments and generators are put back where they are, which is where a recording reads them."""
    agent, env = made(market, tape_recorder)
    trained(agent, env, 3)
    saved, books, seen = agent.state_dict(), env.state_dict(), agent.observation_state()
    once = trained(agent, env, 3)
    agent.load_state_dict(saved)
    env.load_state_dict(books)
    agent.restore_observation(seen, env)
    again = trained(agent, env, 3)
    for own, other in zip(once, again, strict=True):
        assert all(torch.equal(own[name], other[name]) for name in own)


def test_a2c_is_recorded_too(market):
    env = VectorizedCryptoEnvAlpaca(market, 6, seed=1)
    agent = AgentA2C(PolicySpec.of(env, hidden=(8,)), A2CConfig(compile="off"))
    agent.looks, agent.graphs = False, Graphs(tape_recorder)
    for _ in range(3):
        agent.update(agent.explore_env(env, STEPS))
    assert all(known.launch for known in agent.graphs._known.values()) and len(agent.graphs._known) == 2


def test_what_cannot_be_recorded_runs_as_it_is(market, caplog):
    """The reason is logged once, and training goes on to what it would have come to."""

    def refusing(function):
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    agent, env = made(market, refusing)
    plain, world = made(market)
    with caplog.at_level(logging.WARNING):
        own, other = trained(agent, env, 4), trained(plain, world, 4)
    assert all(torch.equal(a["reward"], b["reward"]) for a, b in zip(own, other, strict=True))
    reason = "runs without a CUDA graph: operation not permitted when stream is capturing"
    assert [r.getMessage() for r in caplog.records] == [f"AgentBase._fill {reason}", f"AgentPPO._learn {reason}"]


def test_the_tape_refuses_what_would_wait(market):
    """The check can fail: an agent that looks is caught."""
    agent, env = made(market)
    agent.looks = True
    with pytest.raises(RuntimeError, match="would wait"), Tape():
        trained(agent, env, 3)


def test_graphs_are_of_gpus_and_can_be_switched_off():
    assert recorder_for(torch.device("cpu"), "on") is None
    assert recorder_for(torch.device("cuda"), "off") is None
    assert recorder_for(torch.device("cuda"), "auto") is not None
    assert Graphs(None)(lambda x: x, 3) == 3


# --------------------------------------------------------------------------------------------- on the GPU


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA or ROCm device")
@pytest.mark.parametrize("case", CASES)
def test_cuda_graphs_equal_eager(case):
    bars = load_bars("synthetic", options={"kind": "gbm", "n_bars": 300, "n_assets": 2}, seed=1)
    market = Market.from_bars(bars, "cuda")
    agent, env = made(market, recorder_for(market.device, "on"), **CASES[case])
    plain, world = made(market, **CASES[case])
    for own, other in zip(trained(agent, env, 5), trained(plain, world, 5), strict=True):
        for name in own:
            torch.testing.assert_close(own[name], other[name], rtol=1e-4, atol=1e-5)
    assert all(known.launch for known in agent.graphs._known.values()) and len(agent.graphs._known) == 2
