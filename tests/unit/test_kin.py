"""PPO's kin as agents: found by name, conforming, resumed to the last bit, and deployed as bundles."""

from __future__ import annotations

import sys
import types
from dataclasses import dataclass

import numpy as np
import optuna
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from drl_agents.agents import registry
from drl_agents.agents.a2c import A2CConfig, AgentA2C
from drl_agents.agents.checker import AgentError, check_agent
from drl_agents.agents.compilation import why_not
from drl_agents.agents.ppo import AgentPPO
from drl_agents.agents.registry import agent_config, agent_names, build_agent, find_agent
from drl_agents.agents.rmsprop import FlatRMSprop
from drl_agents.agents.sac import AgentSAC, SACConfig
from drl_agents.deployment.bundle import load_bundle, save_bundle
from drl_agents.evaluation.backtest import backtest
from drl_agents.networks.population import MLP, FlatParameters, member_generators
from drl_agents.networks.spec import PolicySpec
from drl_agents.search.objective import Workload, train_members
from drl_agents.search.space import space_of, suggest
from drl_agents.training.checkpoint import load_checkpoint, restore, save_checkpoint
from drl_agents.training.memory import Sizes, measure
from drl_agents.training.trainer import Budget, train
from environments.alpaca_env import VectorizedCryptoEnvAlpaca
from environments.data.source import load_bars
from environments.errors import InputError
from environments.market import Market

SMALL = {"horizon_len": 8, "learning_starts": 16, "buffer_size": 60, "batch_size": 8, "update_to_data": 0.25}
OFF_POLICY = {"sac": "trades", "td3": "trades", "ddpg": "trades", "dqn": "regimes"}


@pytest.fixture(scope="module")
def market() -> Market:
    torch.set_num_threads(1)
    return Market.from_bars(load_bars("synthetic", options={"kind": "gbm", "n_bars": 200, "n_assets": 2}, seed=1))


def built(name: str, market: Market, seeds=(0,), n_envs=4, **config):
    env = VectorizedCryptoEnvAlpaca(
        market, n_envs * len(seeds), n_members=len(seeds), episode_length=12, seed=list(seeds), action=OFF_POLICY[name]
    )
    agent = build_agent(name, PolicySpec.of(env, hidden=(8,)), {**SMALL, **config}, seeds)
    agent.policy.fit_normalizer(env)
    return agent, env


# ---------------------------------------------------------------------------------------------------- registry


def test_every_name_gives_its_agent():
    names = ["ppo", "shac", "a2c", "sac", "td3", "ddpg", "dqn"]
    assert agent_names()[:7] == names
    for name in names:
        agent, config = find_agent(name)
        assert agent.__name__.lower() == f"agent{name}" and isinstance(agent_config(name), config)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: find_agent("spam"), "agent 'spam': accepted are ppo, shac, a2c, sac, td3, ddpg, dqn, package.module"),
        (lambda: agent_config("sac", {"gama": 1}), r"agent sac has no field gama \(did you mean gamma\?\): accepted"),
        (lambda: agent_config("dqn", {"gamma": 1.5}), "gamma=1.5: accepted are 0.0 to 1.0"),
        (lambda: agent_config("dqn", {"batch_size": 2.5}), "agent dqn: batch_size=2.5: accepted is a whole number"),
        (lambda: agent_config("sac", {"gamma": "high"}), "gamma='high': accepted is a number, or one for each member"),
        (lambda: agent_config("ppo", {"norm_adv": "no"}), "norm_adv='no': accepted is bool"),
        (lambda: agent_config("sac", {"amp": "fp16"}), "amp='fp16': off-policy agents accept off, bf16"),
        (lambda: agent_config("a2c", {"optimizer": "sgd"}), "optimizer='sgd': accepted are rmsprop, adam"),
        (lambda: find_agent("json:loads"), "is not a subclass of AgentBase"),
        (lambda: find_agent("no.such:Thing"), "agent 'no.such:Thing': No module named 'no'"),
        (lambda: build_agent("sac", PolicySpec(0, 1, 3, "discrete", 2)), "agent sac plays Box actions, not Discrete"),
        (lambda: build_agent("dqn", PolicySpec(0, 1, 3, "box", 2)), "agent dqn plays Discrete actions, not a Box"),
        (lambda: build_agent("td3", PolicySpec(0, 1, 3, "box", 2, network="gru")), "network='gru': accepted with this"),
        (lambda: build_agent("td3", PolicySpec(0, 1, 3, "box", 2), {"tau": [0.1, 0.2]}), "tau: 2 values for 1 members"),
    ],
)
def test_mistakes_are_named(call, message):
    with pytest.raises(InputError, match=message):
        call()


def test_numbers_as_yaml_gives_them():
    config = agent_config("sac", {"batch_size": 64.0, "gamma": [0.9, 0.99], "max_grad_norm": None})
    assert type(config.batch_size) is int and config.gamma == [0.9, 0.99] and config.max_grad_norm is None


class Outsider(AgentPPO):
    config_class = registry.find_agent("ppo")[1]


class WithoutConfig(AgentPPO):
    pass


@pytest.fixture
def outside(monkeypatch):
    module = types.ModuleType("an_outside_package")
    module.Outsider, module.WithoutConfig = Outsider, WithoutConfig
    monkeypatch.setitem(sys.modules, "an_outside_package", module)


def test_agents_from_outside(outside, monkeypatch):
    spec = PolicySpec(0, 1, 3, "box", 2)
    agent = build_agent("an_outside_package:Outsider", spec, {"gamma": 0.5}, (1, 2))
    assert type(agent) is Outsider and agent.config.gamma == 0.5 and agent.n_members == 2
    with pytest.raises(InputError, match="WithoutConfig.config_class must be the dataclass of its hyper-parameters"):
        find_agent("an_outside_package:WithoutConfig")

    @dataclass
    class Point:
        name: str = "outsider"

        def load(self):
            return Outsider

    monkeypatch.setattr(registry, "entry_points", lambda group: [Point()] if group == "drl_agents.agents" else [])
    assert agent_names()[-1] == "outsider" and find_agent("outsider")[0] is Outsider


# ----------------------------------------------------------------------------------------------------- checker


@pytest.mark.parametrize("name", ["ppo", "shac", "a2c", "sac", "td3", "ddpg", "dqn"])
def test_built_in_agents_keep_the_contract(name):
    check_agent(name)


class Forgetful(AgentSAC):
    """Does not save its replay."""

    config_class = SACConfig

    def state_dict(self):
        return {**super().state_dict(), "replay": []}


class Frozen(AgentSAC):
    config_class = SACConfig

    def _learn(self, rollout, steps):
        return {}


class Entangled(AgentSAC):
    """Its members pull each other's actors."""

    config_class = SACConfig

    def _learn(self, rollout, steps):
        values = self._learnt["actor"][0].values
        values.lerp_(values.mean(0, keepdim=True).expand_as(values), 0.5)
        return super()._learn(rollout, steps)


@pytest.mark.parametrize(
    ("agent", "rule"),
    [
        (Forgetful, "saved and restored, an agent goes on the same to the last bit"),
        (Frozen, "training changes the policy"),
        (Entangled, "a member of a population learns what it learns alone"),
    ],
)
def test_what_breaks_the_contract_is_found(agent, rule, monkeypatch):
    module = types.ModuleType("an_outside_package")
    module.Agent = agent
    monkeypatch.setitem(sys.modules, "an_outside_package", module)
    with pytest.raises(AgentError, match=rule):
        check_agent("an_outside_package:Agent")


# --------------------------------------------------------------------------------------- training and resuming


@pytest.mark.parametrize("name", OFF_POLICY)
@pytest.mark.parametrize("options", [{}, {"n_step": 3, "prioritized_replay": True}])
def test_resumed_it_ends_as_it_would_have(name, options, market, tmp_path):
    path = tmp_path / "checkpoint.pt"
    whole, env = built(name, market, **options)
    train(whole, env, Budget(iterations=6))
    first, env = built(name, market, **options)
    train(first, env, Budget(iterations=6), checkpoint=path, stop=lambda: first.timesteps >= 3 * 32)
    second, env = built(name, market, **options)
    assert train(second, env, Budget(iterations=6), checkpoint=path, resume=True).iterations == 6
    for key, value in whole.policy.state_dict().items():
        assert torch.equal(value, second.policy.state_dict()[key]), key
    assert torch.equal(whole.replay.state, second.replay.state)
    assert (whole.timesteps, whole.updates) == (second.timesteps, second.updates) == (192, 48)


def test_a_checkpoint_of_another_architecture_is_refused_untouched(market, tmp_path):
    agent, env = built("sac", market)
    train(agent, env, Budget(iterations=2))
    save_checkpoint(tmp_path / "c.pt", agent, env, 2, {})
    other, env = built("td3", market)
    before = other.policy.state_dict()["actor.layers.0.weight"].clone()
    with pytest.raises(InputError, match="checkpoint does not fit"):
        restore(load_checkpoint(tmp_path / "c.pt"), other, env)
    assert torch.equal(before, other.policy.state_dict()["actor.layers.0.weight"])


def test_the_replay_begins_anew_in_another_market(market):
    agent, env = built("td3", market)
    train(agent, env, Budget(iterations=3))
    assert agent.replay.size == 60 // 4 * 4
    _, other = built(
        "td3", Market.from_bars(load_bars("synthetic", options={"kind": "gbm", "n_bars": 99, "n_assets": 2}))
    )
    agent.update(agent.explore_env(other, 8))
    assert agent.replay.size == 32 and int(agent.replay.bar.max()) < 99


@pytest.mark.parametrize("name", OFF_POLICY)
def test_bfloat16_products_give_nearly_the_same(name, market):
    losses = []
    for amp in ("off", "bf16"):
        agent, env = built(name, market, learning_starts=64, amp=amp)
        train(agent, env, Budget(iterations=2))
        losses.append(agent.update(agent.explore_env(env, 8))["qf_loss"].item())
    assert losses[0] != losses[1] and losses[1] == pytest.approx(losses[0], rel=0.2)


def test_random_actions_until_learning_starts_and_as_many_gradient_steps_as_asked_for(market):
    agent, env = built("td3", market, learning_starts=64, update_to_data=0.3)
    weights = agent.policy.state_dict()["actor.layers.0.weight"].clone()
    for iteration in range(4):
        rollout = agent.explore_env(env, 8)
        # Uniform actions have a spread of 0.577; those of a new actor with noise 0.1 stay near 0.
        assert (float(rollout.action.std()) > 0.4) == (iteration < 2)
        figures = agent.update(rollout)
        assert ("qf_loss" in figures) == (iteration >= 1)
        # 0.3 of 32 steps each, from the rollout that reaches 64 on; fractions are carried over.
        assert agent.updates == [0, 9, 19, 28][iteration]
    assert not torch.equal(weights, agent.policy.state_dict()["actor.layers.0.weight"])


@pytest.mark.parametrize("name", OFF_POLICY)
def test_a_model_is_deployed_as_a_bundle_and_back_tested(name, market, tmp_path):
    agent, env = built(name, market, seeds=(1, 2))
    train(agent, env, Budget(iterations=3))
    bundle = load_bundle(save_bundle(tmp_path / "b", agent.policy, 1, env, "VectorizedCryptoEnvAlpaca", {}))
    x = torch.randn(2, 6, agent.spec.size, generator=torch.Generator().manual_seed(0))
    assert_close(bundle.decide(x[1:])[0], agent.decide(x)[1])
    (result,) = backtest(bundle.env(market, (100, 180)), bundle.decide)
    assert np.isfinite(result.equity).all() and len(result.equity) == 80


def test_transformers_act_for_the_off_policy_agents_too(market):
    env = VectorizedCryptoEnvAlpaca(market, 4, episode_length=12, seed=0, lookback=4)
    spec = PolicySpec.of(env, hidden=(8,), network="lightweight", d_model=8, n_heads=2, num_layers=1)
    agent = build_agent("sac", spec, SMALL)
    agent.policy.fit_normalizer(env)
    before = {key: value.clone() for key, value in agent.policy.state_dict().items() if "encoder" in key}
    train(agent, env, Budget(iterations=3))
    assert before and any(not torch.equal(value, agent.policy.state_dict()[key]) for key, value in before.items())


@pytest.mark.slow
@pytest.mark.parametrize("name", OFF_POLICY)
def test_compiled_it_learns_the_same(name, market):
    if reason := why_not():
        pytest.skip(reason)
    learnt = []
    for compile in ("off", "on"):
        agent, env = built(name, market, seeds=(1, 2), compile=compile)
        train(agent, env, Budget(iterations=4))
        learnt.append(agent.policy.state_dict())
    for key, value in learnt[0].items():
        assert_close(learnt[1][key], value, rtol=1e-4, atol=1e-5)


def test_a_budget_that_ends_before_learning_starts_is_refused(market):
    agent, env = built("sac", market, learning_starts=65)
    with pytest.raises(InputError, match="learning_starts=65: accepted is at most the budget, 64 steps"):
        train(agent, env, Budget(timesteps=50))


@pytest.mark.parametrize("name", ["a2c", *OFF_POLICY])
def test_trials_of_a_search_are_members_of_one_population(name, market):
    """What the space draws the agent accepts; ranges differ between the members of a batch."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    fixed = {"action": OFF_POLICY.get(name, "trades"), "lookback": 1, "hidden_dim": 8, "num_layers": 1}
    choices = {p.name: p.choices[0] for p in space_of(name) if p.choices and p.name not in fixed}
    configs = [suggest(study.ask(), {**choices, **fixed}, name) for _ in range(2)]
    configs = [one.with_agent(**{k: v for k, v in SMALL.items() if k in vars(one.hyper)}) for one in configs]
    assert configs[0].hyper != configs[1].hyper
    workload = Workload(market, (), "VectorizedCryptoEnvAlpaca", n_envs=4, timesteps=96, folds_per_batch=2)
    agent, _ = train_members(workload, configs, [[(0, 150)], [(0, 150)]], (1, 2))
    alone, _ = train_members(workload, configs[1:], [[(0, 150)]], (2,))
    for key, value in alone.policy.state_dict().items():
        assert_close(agent.policy.state_dict()[key][1:], value, rtol=1e-4, atol=1e-4)


# --------------------------------------------------------------------------------------------------------- A2C


def test_rmsprop_is_torchs():
    net = MLP(2, (3, 4, 1), "tanh", 1.0, list(member_generators((0, 1), stream=0)))
    flat = FlatParameters(net, 2)
    ours = FlatRMSprop(flat)
    theirs = [nn.Parameter(row.clone()) for row in flat.values]
    optimizers = [torch.optim.RMSprop([p], lr, alpha=0.99, eps=1e-5) for p, lr in zip(theirs, (0.1, 0.01), strict=True)]
    rate, g = torch.tensor([[0.1], [0.01]]), torch.Generator().manual_seed(0)
    for _ in range(5):
        grad = torch.randn(flat.values.shape, generator=g)
        norm = ours.step(grad, rate, torch.full((2, 1), 0.5), torch.ones(2, 1, dtype=torch.bool))
        assert_close(norm, grad.norm(dim=1, keepdim=True))
        for p, own, optimizer in zip(theirs, grad, optimizers, strict=True):
            p.grad = own.clone()
            nn.utils.clip_grad_norm_([p], 0.5)
            optimizer.step()
    assert_close(flat.values, torch.stack([p.detach() for p in theirs]), rtol=1e-4, atol=1e-6)
    before = flat.values.clone()
    grad[0, 0] = torch.nan
    ours.step(grad, rate, torch.ones(2, 1), torch.ones(2, 1, dtype=torch.bool))
    assert torch.equal(flat.values[0], before[0]) and not torch.equal(flat.values[1], before[1])


def test_an_a2c_update_is_the_policy_gradient(market):
    """Beside -A ln p + vf_coef (V - R)^2 / 2 - ent_coef H, written out, with torch's RMSprop."""
    env = VectorizedCryptoEnvAlpaca(market, 8, episode_length=12, seed=0)
    config = A2CConfig(ent_coef=0.01, learning_rate=0.01)
    agent, plain = (AgentA2C(PolicySpec.of(env, hidden=(8,)), config, (3,)) for _ in (0, 1))
    for one in (agent, plain):
        one.policy.fit_normalizer(env)
    rollout = agent.explore_env(env, config.horizon_len)
    advantage, returns, _ = plain.advantages(rollout)
    state, action = rollout.by_member(rollout.state[:-1]), rollout.by_member(rollout.action)
    windows = plain.windows(rollout.rows).at(rollout.by_member(rollout.bar[:-1]))
    log_prob, entropy, value = plain.policy(windows, state, action)
    loss = (-advantage * log_prob + 0.5 * 0.5 * (value - returns).square() - 0.01 * entropy).mean()
    optimizer = torch.optim.RMSprop(plain.policy.parameters(), 0.01, alpha=0.99, eps=1e-5)
    loss.backward()
    nn.utils.clip_grad_norm_(plain.policy.parameters(), 0.5)
    optimizer.step()
    agent.update(rollout)
    for key, expected in plain.policy.state_dict().items():
        assert_close(agent.policy.state_dict()[key], expected, rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------------------------------------------------ memory


def test_the_replay_is_part_of_what_a_run_takes(market):
    """state and final_state (7 numbers each), actions (2), rewards, in float32; two bars in int32; two flags."""

    def build(sizes):
        own = {"horizon_len": sizes.horizon_len, "learning_starts": 10**6, "buffer_size": 100_000}
        return built("sac", market, n_envs=sizes.n_envs, **own)

    peaks = measure(build, Sizes(4, 8, 1), torch.device("cpu"))
    replay = 100_000 * (4 * (2 * 7 + 2 + 1) + 4 * 2 + 2)
    assert replay <= peaks["learning"] <= 1.2 * replay and peaks["rollout"] < 0.1 * replay
