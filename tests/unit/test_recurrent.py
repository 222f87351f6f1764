"""The network that remembers: torch's GRU, one step at a time, forgotten where an episode begins."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from drl_agents.agents.ppo import AgentPPO, PPOConfig
from drl_agents.agents.sequences import sequence_values
from drl_agents.networks.build import build_policy
from drl_agents.networks.gru import PopulationGRU
from drl_agents.networks.player import Player
from drl_agents.networks.population import member_generators
from drl_agents.networks.spec import PolicySpec
from environments.alpaca_env import VectorizedCryptoEnvAlpaca
from environments.data.source import load_bars
from environments.market import Market
from environments.observation import Observation, build_observation

H, T, N = 6, 9, 4


def draws(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("n_layers", [1, 2])
def test_each_member_equals_torchs_gru(n_layers):
    ours = PopulationGRU(H, n_layers, list(member_generators((1, 2), 0)))
    with torch.no_grad():
        for i, parameter in enumerate(ours.parameters()):
            parameter.add_(0.1 * draws(*parameter.shape, seed=i))
    x, first = draws(T, 2, N, H), draws(2, N, n_layers * H, seed=1)
    found = ours.unroll(x, first, torch.zeros(T, 2, N, dtype=torch.bool))
    for p in (0, 1):
        theirs = nn.GRU(H, H, n_layers)
        with torch.no_grad():
            for i in range(n_layers):
                getattr(theirs, f"weight_ih_l{i}").copy_(ours.read[i].weight[p].T)
                getattr(theirs, f"weight_hh_l{i}").copy_(ours.recall[i].weight[p].T)
                getattr(theirs, f"bias_ih_l{i}").copy_(ours.read[i].bias[p, 0])
                getattr(theirs, f"bias_hh_l{i}").copy_(ours.recall[i].bias[p, 0])
        out, last = theirs(x[:, p], first[p].view(N, n_layers, H).transpose(0, 1).contiguous())
        assert_close(found[:, p, :, -H:], out, rtol=1e-5, atol=1e-6)
        assert_close(found[-1, p].view(N, n_layers, H).transpose(0, 1), last, rtol=1e-5, atol=1e-6)


def policy_of(dropout: float = 0.3, members=(1, 2)):
    options = {"hidden_dim": H, "n_gru_layers": 2, "dropout": dropout}
    return build_policy(PolicySpec(3, 2, 5, "box", 2, hidden=(8,), network="gru", options=options), members)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("each", [1, 2])
def test_unrolled_sequences_equal_one_step_after_the_other(dropout, each):
    """Log probabilities, values and every gradient, through episodes that begin inside, by `remember` step by step."""
    policy, p, clocks = policy_of(dropout), 2, N // each
    windows, state = draws(p, clocks, T, 6), draws(p, clocks, T, each, 5, seed=1)
    action = draws(p, clocks, T, each, 2, seed=2)
    begins = torch.rand(p, clocks, T, each, generator=torch.Generator().manual_seed(3)) < 0.3
    memory = policy.initial_memory(N, list(member_generators((7, 8), 0)))
    memory[..., : policy.memory_size] = draws(p, N, policy.memory_size, seed=4)
    parameters = list(policy.parameters())

    def gradients(outputs):
        total = sum((x * draws(*x.shape, seed=9)).sum() for x in outputs)
        return torch.autograd.grad(total, parameters)

    flat = [x.flatten(1, 3) for x in (state, action)]
    whole = policy(windows.flatten(1, 2), *flat, None, memory, begins.flatten(1))
    steps, kept = [], memory
    for t in range(T):
        seen = policy.forget_ended(kept, begins[:, :, t].reshape(p, N))
        kept = policy.remember(policy.embed(windows[:, :, t]), state[:, :, t].reshape(p, N, 5), seen)
        head, value = policy.heads(None, kept)
        taken = action[:, :, t].reshape(p, N, 2)
        log_prob, entropy = policy.distribution.log_prob_entropy(head, policy.log_std, taken)
        steps.append((log_prob, entropy, value.squeeze(-1)))
    joined = [
        torch.stack(own).unflatten(2, (clocks, each)).permute(1, 2, 0, 3).reshape(p, -1)
        for own in zip(*steps, strict=True)
    ]
    for one, other in zip(whole, joined, strict=True):
        assert_close(one, other, rtol=1e-5, atol=1e-5)
    for one, other in zip(gradients(whole), gradients(joined), strict=True):
        assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_where_an_episode_begins_nothing_is_remembered():
    policy = policy_of(0.0)
    windows, state = draws(2, N * T, 6), draws(2, N * T, 5, seed=1)
    begins = torch.zeros(2, N, T, dtype=torch.bool)
    begins[:, :, 4] = True
    one, other = (
        policy.unroll(windows, state, memory, begins.flatten(1)).view(2, N, T, -1)
        for memory in (torch.zeros(2, N, policy.memory_size), draws(2, N, policy.memory_size, seed=5))
    )
    assert not torch.allclose(one[:, :, 3], other[:, :, 3], atol=1e-3)
    assert torch.equal(one[:, :, 4:], other[:, :, 4:])


def test_dropout_silences_its_share_and_keeps_the_mean():
    policy = policy_of(0.25)
    factors = policy.initial_memory(20_000, list(member_generators((1, 2), 0)))[..., policy.memory_size :]
    assert factors.shape[-1] == 2 * H and factors.unique().tolist() == pytest.approx([0.0, 1 / 0.75])
    assert factors.mean().item() == pytest.approx(1.0, abs=0.01)
    assert not torch.equal(factors[0], factors[1])
    assert policy.initial_memory(3).shape == (2, 3, policy.memory_size)  # judged, the network is whole


@pytest.fixture(scope="module")
def market() -> Market:
    torch.set_num_threads(1)
    return Market.from_bars(load_bars("synthetic", options={"kind": "momentum", "n_bars": 300, "n_assets": 2}, seed=1))


def test_values_of_final_observations_are_those_of_the_memory_at_their_time(market):
    """Against an account followed by itself: what its player remembers at the end of an episode."""
    env = VectorizedCryptoEnvAlpaca(market, 6, episode_length=7, seed=2, lookback=2, clock_groups=3)
    network = {"network": "gru", "hidden_dim": H, "hidden": (8,), "dropout": 0.0}
    agent = AgentPPO(PolicySpec.of(env, **network), PPOConfig(horizon_len=16, num_minibatches=2))
    agent.policy.fit_normalizer(env)
    agent.explore_env(env, 5)
    rollout = agent.explore_env(env, 16)
    value, final = sequence_values(agent, rollout)
    rows, checked = rollout.rows, 0
    done = rollout.terminated | rollout.truncated

    def dense(bar, state):
        return build_observation(rows, Observation(bar, state), 2).view(1, 1, -1)

    with torch.no_grad():
        for i in range(6):
            memory = rollout.memory[:, i : i + 1]
            for t in range(16):
                x = dense(rollout.bar[t, i // 2], rollout.state[t, i])
                assert value[t, i].item() == pytest.approx(agent.policy.value(x, memory).item(), abs=1e-5)
                memory = agent.policy.play(x, memory)[1]
                if rollout.truncated[t, i]:
                    last = dense(rollout.final_bar[t, i // 2], rollout.final_state[t, i])
                    assert final[t, i].item() == pytest.approx(agent.policy.value(last, memory).item(), abs=1e-5)
                    checked += 1
                if done[t, i]:
                    memory = torch.zeros_like(memory)
    assert checked >= 12


def test_a_player_remembers_and_another_does_not():
    policy = policy_of(0.3)
    with torch.no_grad():
        policy.actor.layers[-1].weight.mul_(100.0)
    x, later = draws(2, N, policy.spec.size), draws(2, N, policy.spec.size, seed=1)
    player = Player(policy)
    first, second = player(x), player(later)
    other = player.begin()
    assert torch.equal(other(x), first) and torch.equal(first, policy.mode(x))
    assert not torch.allclose(policy.mode(later), second, atol=1e-3)
    elsewhere = Player(policy)
    elsewhere.memory = other.memory
    assert torch.equal(elsewhere(later), second)
