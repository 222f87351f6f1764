"""A user's own module as the network: found by name, checked, and trained as a member of a population as alone."""

from __future__ import annotations

import sys

import gymnasium
import numpy as np
import pytest
import torch
from torch.testing import assert_close

from drl_agents.agents.ppo import AgentPPO, PPOConfig
from drl_agents.deployment.bundle import load_bundle, save_bundle
from drl_agents.networks.build import build_policy
from drl_agents.networks.policy import PolicySpec
from drl_agents.networks.population import member_state
from drl_agents.training.trainer import Budget, train
from environments.alpaca_env import VectorizedCryptoEnvAlpaca
from environments.data.source import load_bars
from environments.errors import InputError
from environments.market import Market
from environments.observation import Observation
from environments.rules import AssetRule, RuleBook
from environments.vec_env import Step, VecEnv

pytestmark = pytest.mark.usefixtures("one_thread", "users_code")

# A residual network with a learned scale, a constant buffer and two tied layers: nothing our own networks have.
SOURCE = """
import torch
from torch import nn

class Residual(nn.Module):
    def __init__(self, observation_size, action_head_size, hidden=(32,), depth=2):
        super().__init__()
        self.enter = nn.Linear(observation_size, hidden[0])
        self.block = nn.Sequential(nn.LayerNorm(hidden[0]), nn.Linear(hidden[0], hidden[0]), nn.GELU())
        self.again = self.block
        self.depth, self.scale = depth, nn.Parameter(torch.tensor(0.5))
        self.head, self.value = nn.Linear(hidden[0], action_head_size), nn.Linear(hidden[0], 1)
        self.register_buffer("offset", torch.linspace(-1, 1, hidden[0]))

    def forward(self, x):
        x = torch.tanh(self.enter(x)) + self.offset
        for _ in range(self.depth):
            x = x + self.scale * self.again(self.block(x))
        return self.head(x), self.value(x)

class Plain(nn.Module):
    def __init__(self, observation_size, action_head_size):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(observation_size, 16), nn.Tanh())
        self.head, self.value = nn.Linear(16, action_head_size), nn.Linear(16, 1)

    def forward(self, x):
        x = self.net(x)
        return self.head(x), self.value(x)

class Batched(Plain):
    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.net.append(nn.BatchNorm1d(16))

class Random(Plain):
    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.net.append(nn.Dropout(0.5))

class Centred(Plain):
    def forward(self, x):
        return super().forward(x - x.mean(0))

class Judged(Plain):
    def forward(self, x):
        return super().forward(x if self.training else 2 * x)

class Flat(Plain):
    def forward(self, x):
        head, value = super().forward(x)
        return head, value.squeeze(-1)

class One(Plain):
    def forward(self, x):
        return super().forward(x)[0]

class Cut(Plain):
    def forward(self, x):
        return tuple(out.detach() for out in super().forward(x))

class Idle(Plain):
    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.spare = nn.Linear(2, 2)

class Frozen(Plain):
    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.net.requires_grad_(False)

class Branching(Plain):
    def forward(self, x):
        head, value = super().forward(x)
        return (head, value) if float(head.detach().sum()) < 1e9 else (value, head)

class Broken(Plain):
    def forward(self, x):
        raise RuntimeError("no such thing\\nsecond line")

class Empty(nn.Module):
    def __init__(self, observation_size, action_head_size):
        super().__init__()

number = 3
"""
SEEDS = (3, 14, 15)
EXACT = AssetRule(increment=2**-20, min_quantity=2**-20, min_notional=10.0)


@pytest.fixture
def users_code(tmp_path, monkeypatch):
    (tmp_path / "users_networks.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("users_networks", None)


@pytest.fixture(scope="module")
def market() -> Market:
    bars = load_bars("synthetic", options={"kind": "momentum", "n_bars": 300, "n_assets": 2}, seed=1)
    return Market.from_bars(bars)


def build(market: Market, members: list[int], amp: str = "off") -> tuple[AgentPPO, VectorizedCryptoEnvAlpaca]:
    seeds = [SEEDS[p] for p in members]
    rules = RuleBook(market.asset_class, dict.fromkeys(market.symbols, EXACT))
    env = VectorizedCryptoEnvAlpaca(
        market, 4 * len(members), n_members=len(members), episode_length=20, lookback=2, rules=rules, seed=seeds
    )
    spec = PolicySpec.of(env, network="users_networks:Residual", hidden=(16,), depth=1)
    rates = [(1e-3, 3e-4, 3e-3)[p] for p in members]
    config = PPOConfig(horizon_len=16, num_minibatches=2, update_epochs=2, learning_rate=rates, amp=amp)
    agent = AgentPPO(spec, config, seeds)
    agent.policy.fit_normalizer(env)
    return agent, env


def test_a_member_of_three_equals_the_same_alone(market):
    """After 40 gradient steps."""
    together, env = build(market, [0, 1, 2])
    start = together.parameters.values.clone()
    assert all(not torch.equal(start[p], start[q]) for p, q in ((0, 1), (0, 2), (1, 2)))
    train(together, env, Budget(iterations=10))
    for p in range(3):
        alone, env = build(market, [p])
        assert torch.equal(alone.parameters.values[0], start[p])
        train(alone, env, Budget(iterations=10))
        assert (together.parameters.values[p] - start[p]).abs().max() > 1e-2
        for name, value in alone.policy.state_dict().items():
            assert_close(member_state(together.policy, p)[name], value, rtol=0, atol=1e-4)


def test_it_computes_what_the_module_computes(market):
    """Each member's copy by itself, on observations put together by hand; bars embedded once as well."""
    import users_networks

    agent, env = build(market, [0, 1])
    policy = agent.policy
    bar = torch.tensor([[60, 61, 62], [90, 80, 70]])
    state = torch.randn(2, 6, env.state_size, generator=torch.Generator().manual_seed(1))
    seen = policy.windows(env.rows).at(bar)
    head, value = policy.heads(policy.embed(seen), state)
    (only,) = policy.outputs(seen, state, policy.critic)
    assert torch.equal(only, value)
    for p in range(2):
        module = users_networks.Residual(policy.spec.size, 2, hidden=(16,), depth=1)
        names = {name.removeprefix("members."): own[0] for name, own in member_state(policy, p).items()}
        missing, unexpected = module.load_state_dict(
            {k: v for k, v in names.items() if "normal" not in k}, strict=False
        )
        assert unexpected == ["log_std"] and all(name.startswith("again") for name in missing)
        dense = torch.cat([seen[p].repeat_interleave(2, 0), state[p]], dim=-1)
        own_head, own_value = module(dense)
        assert_close(head[p], own_head, rtol=0, atol=1e-6)
        assert_close(value[p], own_value, rtol=0, atol=1e-6)


class Sign(VecEnv):
    """-1 or 1 is seen at random; the reward is -(action - seen / 2)^2, and every step is an episode."""

    state_size, device = 1, torch.device("cpu")
    single_observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (1,), np.float32)
    single_action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)

    def __init__(self, n_envs: int) -> None:
        self.n_envs, self.generator = n_envs, torch.Generator().manual_seed(0)

    def reset(self, seed=None):
        self.seen = torch.randint(0, 2, (self.n_envs, 1), generator=self.generator) * 2.0 - 1.0
        return Observation(None, self.seen)

    def step(self, action):
        reward, last = -(action[:, 0] - self.seen[:, 0] / 2).square(), Observation(None, self.seen)
        ended = torch.ones(self.n_envs, dtype=torch.bool)
        return Step(self.reset(), reward, ended, ~ended, last)


def test_it_learns_the_known_answer():
    """Half of what is seen is the best action, for each of two members; what it then loses is its noise's variance."""
    env = Sign(16)
    env.n_members = 2
    config = PPOConfig(horizon_len=20, learning_rate=1e-2, gamma=0.9, anneal_lr=True)
    agent = AgentPPO(PolicySpec.of(env, network="users_networks:Residual", hidden=(16,)), config, (0, 1))
    train(agent, env, Budget(iterations=20))
    seen = torch.tensor([-1.0, 1.0]).view(1, 2, 1).expand(2, -1, -1)
    assert_close(agent.decide(seen), seen / 2, rtol=0, atol=0.1)
    variance = agent.policy.log_std.detach().exp().square().view(2, 1)
    assert_close(agent.policy.value(seen).detach(), -variance.expand(-1, 2), rtol=0, atol=0.1)


def test_low_precision_trains(market):
    agent, env = build(market, [0, 1], amp="bf16")
    figures = train(agent, env, Budget(iterations=2)).figures
    assert all(map(bool, figures["grad_norm"])) and agent.parameters.values.dtype == torch.float32


def test_a_bundle_brings_it_back(market, tmp_path):
    agent, env = build(market, [0, 1])
    train(agent, env, Budget(iterations=1))
    folder = save_bundle(tmp_path / "bundle", agent.policy, 1, env, "VectorizedCryptoEnvAlpaca", {})
    x = torch.randn(1, 20, agent.spec.size, generator=torch.Generator().manual_seed(2))
    x[0, :3, :4] = torch.nan
    loaded = load_bundle(folder)
    assert torch.equal(loaded.decide(x), agent.decide(x.expand(2, -1, -1))[1:])
    sys.path.remove(str(tmp_path))
    sys.modules.pop("users_networks")
    with pytest.raises(InputError, match="network 'users_networks:Residual': No module named 'users_networks'"):
        load_bundle(folder)


BOX = {"row_size": 0, "lookback": 1, "state_size": 4, "action": "box", "action_size": 2}


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("Batched", "buffer net.2.running_mean changes when it runs"),
        ("Random", "other results when it is run again"),
        ("Centred", "an observation's result depends on the others"),
        ("Judged", "other results in evaluation"),
        ("Flat", r"shapes \(5, 2\) and \(5,\), accepted are \(5, 2\) and \(5, 1\)"),
        ("One", "forward gives Tensor, accepted is the pair"),
        ("Cut", "cannot be differentiated"),
        ("Idle", "no gradient reaches its parameter spare.weight"),
        ("Frozen", "parameter net.0.weight is not a float32 that requires a gradient"),
        ("Branching", "torch.vmap cannot run it"),
        ("Broken", r"fails on observations \(5, 4\): no such thing$"),
        ("Empty", "it has no parameters"),
        ("Absent", "has no attribute 'Absent'"),
        ("number", "a class derived from torch.nn.Module is accepted"),
    ],
)
def test_what_breaks_the_contract_is_refused_with_the_reason(name, reason):
    with pytest.raises(InputError, match=f"network 'users_networks:{name}': .*{reason}") as refused:
        build_policy(PolicySpec(**BOX, network=f"users_networks:{name}"), (0,))
    assert "\n" not in str(refused.value)


def test_options_are_the_constructors():
    spec = PolicySpec(**BOX, network="users_networks:Residual", options={"depth": 3, "hidden": [24]})
    policy = build_policy(spec, (0, 1))
    assert policy.members.enter.weight.shape == (2, 24, 4)
    assert PolicySpec(**spec.to_dict()) == spec
    with pytest.raises(InputError, match="unexpected keyword argument 'width'; options it names: hidden, depth"):
        build_policy(PolicySpec(**BOX, network="users_networks:Residual", options={"width": 3}), (0,))
    with pytest.raises(InputError, match="accepted with agents that learn a value of states"):
        build_policy(PolicySpec(**BOX, network="users_networks:Plain", value=False), (0,))


def test_it_is_never_compiled():
    spec = PolicySpec(**BOX, network="users_networks:Plain")
    agent = AgentPPO(spec, PPOConfig(compile="auto"))
    agent.compiler.plan(10**9)
    assert not agent.compiler.active
    with pytest.raises(InputError, match="compile='on' cannot be had: .*torch.vmap"):
        AgentPPO(spec, PPOConfig(compile="on"))


def test_its_critic_is_not_trained_apart():
    spec = PolicySpec(**BOX, network="users_networks:Plain")
    for own in ({"critic_epochs": 2}, {"critic_learning_rate": 1e-3}):
        with pytest.raises(InputError, match="network 'users_networks:Plain' has no critic apart"):
            AgentPPO(spec, PPOConfig(**own))


def test_building_one_leaves_the_random_numbers_alone():
    before = torch.get_rng_state()
    build_policy(PolicySpec(**BOX, network="users_networks:Plain"), (0, 1))
    assert torch.equal(torch.get_rng_state(), before)
