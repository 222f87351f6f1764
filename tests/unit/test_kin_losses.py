"""The off-policy agents' gradient steps beside the same steps written out with torch's own layers and optimisers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from drl_agents.agents.ddpg import AgentDDPG, DDPGConfig
from drl_agents.agents.dqn import AgentDQN, DQNConfig
from drl_agents.agents.sac import AgentSAC, SACConfig
from drl_agents.agents.td3 import AgentTD3, TD3Config
from drl_agents.networks.population import MLP
from drl_agents.networks.spec import PolicySpec
from drl_agents.networks.squashed import SquashedGaussian
from drl_agents.rollout.replay import Batch

K, A, N, STEPS = 3, 2, 5, 4
HIDDEN, SEEDS = (7, 6), (4, 9)
EXACT = {"rtol": 1e-4, "atol": 1e-6}


def spec(action: str = "box", size: int = A) -> PolicySpec:
    return PolicySpec(0, 1, K, action, size, HIDDEN, "relu")


def batches(discrete: bool = False, members: int = 2) -> list[Batch]:
    g = torch.Generator().manual_seed(0)
    made = []
    for _ in range(STEPS):
        shape = (members, N)
        action = torch.randint(A, shape, generator=g) if discrete else torch.rand(*shape, A, generator=g) * 2 - 1
        state, after = (torch.randn(*shape, K, generator=g) for _ in range(2))
        reward, weight = torch.randn(shape, generator=g), torch.rand(shape, generator=g)
        discount = torch.where(torch.rand(shape, generator=g) < 0.3, 0.0, 0.9)
        made.append(Batch(None, state, action, reward, None, after, discount, weight, torch.zeros(shape).long()))
    return made


def plain(net: MLP, row: int) -> nn.Sequential:
    """Row `row` of a population's network as torch's layers."""
    layers: list[nn.Module] = []
    for own in net.layers:
        layer = nn.Linear(*own.weight.shape[1:])
        layer.weight.data, layer.bias.data = own.weight[row].detach().T.clone(), own.bias[row, 0].detach().clone()
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def same(net: MLP, row: int, other: nn.Sequential) -> None:
    for own, layer in zip(net.layers, other[::2], strict=True):
        assert_close(own.weight[row].T, layer.weight, **EXACT)
        assert_close(own.bias[row, 0], layer.bias, **EXACT)


def squash(head: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """torch's own tanh-squashed normal."""
    mean, log_std = head.split(A, dim=-1)
    normal = torch.distributions.Normal(mean, log_std.clamp(-5, 2).exp())
    squashed = torch.distributions.TransformedDistribution(normal, torch.distributions.TanhTransform(cache_size=1))
    raw = mean + normal.scale * noise
    action = squashed.transforms[0](raw)
    return action, squashed.log_prob(action).sum(-1)


def polyak(target: nn.Module, source: nn.Module, tau: float) -> None:
    for to, own in zip(target.parameters(), source.parameters(), strict=True):
        to.data = (1 - tau) * to.data + tau * own.data


@pytest.mark.parametrize(("agent", "config"), [(AgentSAC, SACConfig()), (AgentTD3, TD3Config())])
def test_errors_of_two_critics_do_not_cancel(agent, config):
    """One says 1 and the other -1 of what is worth 0: the transition is drawn again by an error of 1."""
    made = agent(spec(), config, SEEDS)
    last = made.critic.net.layers[-1]
    with torch.no_grad():
        last.weight.zero_()
        last.bias[0::2], last.bias[1::2] = 1.0, -1.0
    nothing = torch.zeros(2, N)
    batch = batches()[0]._replace(reward=nothing, discount=nothing)
    figures = made.learn(batch, None, None, torch.zeros(2, N, made.noise_size), False)
    assert_close(figures["error"], torch.ones(2, N))


# ------------------------------------------------------------------------------------------------------- SAC


@pytest.mark.parametrize("member", [0, 1])
def test_sac_step(member):
    config = SACConfig(policy_lr=0.01, q_lr=(0.02, 0.03), alpha=0.3, tau=(0.1, 0.2), amp="off")
    agent = AgentSAC(spec(), config, SEEDS)
    policy = agent.policy
    actor, critics = plain(policy.actor, member), [plain(agent.critic.net, 2 * member + i) for i in (0, 1)]
    targets = [plain(agent.critic.net, 2 * member + i) for i in (0, 1)]
    log_alpha = torch.tensor(math.log(0.3), requires_grad=True)
    rate = config.q_lr[member]
    q_adam = torch.optim.Adam([p for c in critics for p in c.parameters()], rate)
    pi_adam, alpha_adam = torch.optim.Adam(actor.parameters(), 0.01), torch.optim.Adam([log_alpha], rate)
    noise = torch.randn(STEPS, 2, N, 2 * A, generator=torch.Generator().manual_seed(1))
    for step, drawn in enumerate(batches()):
        figures = agent.learn(drawn, None, None, noise[step], True)
        state, after, action = drawn.state[member], drawn.next_state[member], drawn.action[member]
        alpha = log_alpha.exp().item()
        with torch.no_grad():
            then, log_prob = squash(actor(after), noise[step, member, :, :A])
            later = torch.min(*[t(torch.cat([after, then], 1))[:, 0] for t in targets])
            goal = drawn.reward[member] + drawn.discount[member] * (later - alpha * log_prob)
        errors = [c(torch.cat([state, action], 1))[:, 0] - goal for c in critics]
        loss = sum((drawn.weight[member] * e.square()).mean() for e in errors)
        assert_close(figures["qf_loss"][member], loss.detach(), **EXACT)
        assert_close(figures["error"][member], (errors[0].abs() + errors[1].abs()).detach() / 2, rtol=1e-4, atol=1e-5)
        q_adam.zero_grad()
        loss.backward()
        q_adam.step()
        now, log_prob = squash(actor(state), noise[step, member, :, A:])
        value = torch.min(*[c(torch.cat([state, now], 1))[:, 0] for c in critics])
        pi_loss = (alpha * log_prob - value).mean()
        assert_close(figures["actor_loss"][member], pi_loss.detach(), rtol=1e-4, atol=1e-5)
        pi_adam.zero_grad()
        pi_loss.backward()
        pi_adam.step()
        alpha_adam.zero_grad()
        (-log_alpha.exp() * (log_prob.detach() - A)).mean().backward()
        alpha_adam.step()
        for target, critic in zip(targets, critics, strict=True):
            polyak(target, critic, config.tau[member])
    same(policy.actor, member, actor)
    for i in (0, 1):
        same(agent.critic.net, 2 * member + i, critics[i])
        flat = torch.cat([torch.cat([x.weight.T.flatten(), x.bias]) for x in targets[i][::2]])
        assert_close(agent._learnt["critic_target"][0].values[2 * member + i], flat.detach(), **EXACT)
    assert_close(agent.temperature.log[member, 0], log_alpha.detach(), **EXACT)


def test_a_temperature_that_is_fixed_stays():
    agent = AgentSAC(spec(), SACConfig(alpha=(0.3, 0.7), autotune=False), SEEDS)
    for drawn in batches():
        figures = agent.learn(drawn, None, None, torch.zeros(2, N, 2 * A), True)
    assert_close(figures["alpha"], torch.tensor([0.3, 0.7]))


def test_squashed_gaussian_is_torchs():
    own, g = SquashedGaussian(A), torch.Generator().manual_seed(0)
    head, noise = torch.randn(200, 2 * A, generator=g), torch.randn(200, A, generator=g)
    action, log_prob = own.sample(head, None, noise)
    theirs, expected = squash(head, noise)
    assert_close(action, theirs)
    assert_close(log_prob, expected, rtol=1e-4, atol=1e-4)
    assert_close(own.mode(head), torch.tanh(head[:, :A]))
    # Where tanh rounds to one the density is still a number.
    assert bool(own.sample(torch.full((1, 2 * A), 30.0), None, torch.ones(1, A))[1].isfinite().all())


# ------------------------------------------------------------------------------------------------ DDPG and TD3


@pytest.mark.parametrize(("kind", "member"), [("ddpg", 0), ("ddpg", 1), ("td3", 0), ("td3", 1)])
def test_deterministic_step(kind, member):
    twins = 2 if kind == "td3" else 1
    own = {"learning_rate": (0.01, 0.02), "tau": 0.1, "policy_frequency": 2}
    if kind == "td3":
        agent = AgentTD3(spec(), TD3Config(**own, policy_noise=0.4, noise_clip=(0.5, 0.1)), SEEDS)
    else:
        agent = AgentDDPG(spec(), DDPGConfig(**own), SEEDS)
    clip, rate = (0.5, 0.1)[member], own["learning_rate"][member]
    actor, goal_actor = plain(agent.policy.actor, member), plain(agent.policy.actor, member)
    critics, targets = ([plain(agent.critic.net, twins * member + i) for i in range(twins)] for _ in (0, 1))
    q_adam = torch.optim.Adam([p for c in critics for p in c.parameters()], rate)
    pi_adam = torch.optim.Adam(actor.parameters(), rate)
    noise = torch.randn(STEPS, 2, N, agent.noise_size, generator=torch.Generator().manual_seed(1))
    for step, drawn in enumerate(batches()):
        due = (step + 1) % agent.period == 0
        figures = agent.learn(drawn, None, None, noise[step], due)
        state, after, action = drawn.state[member], drawn.next_state[member], drawn.action[member]
        with torch.no_grad():
            then = goal_actor(after).tanh()
            if kind == "td3":
                then = (then + (0.4 * noise[step, member]).clamp(-clip, clip)).clamp(-1, 1)
            later = torch.stack([t(torch.cat([after, then], 1))[:, 0] for t in targets]).amin(0)
            goal = drawn.reward[member] + drawn.discount[member] * later
        loss = sum(
            (drawn.weight[member] * (c(torch.cat([state, action], 1))[:, 0] - goal).square()).mean() for c in critics
        )
        assert_close(figures["qf_loss"][member], loss.detach(), rtol=1e-4, atol=1e-5)
        q_adam.zero_grad()
        loss.backward()
        q_adam.step()
        assert ("actor_loss" in figures) == due
        if due:
            pi_loss = -critics[0](torch.cat([state, actor(state).tanh()], 1)).mean()
            assert_close(figures["actor_loss"][member], pi_loss.detach(), rtol=1e-4, atol=1e-5)
            pi_adam.zero_grad()
            pi_loss.backward()
            pi_adam.step()
            polyak(goal_actor, actor, 0.1)
            for target, critic in zip(targets, critics, strict=True):
                polyak(target, critic, 0.1)
    same(agent.policy.actor, member, actor)
    for i in range(twins):
        same(agent.critic.net, twins * member + i, critics[i])


def test_exploring_adds_noise_within_the_bounds():
    agent = AgentDDPG(spec(), DDPGConfig(exploration_noise=(0.5, 2.0)), SEEDS)
    agent._random = False
    state, noise = torch.zeros(2, N, K), torch.randn(2, N, A, generator=torch.Generator().manual_seed(0))
    action, _ = agent.act(None, state, noise)
    sure = agent.best(None, state)
    spread = torch.tensor([0.5, 2.0]).view(2, 1, 1)
    assert_close(action, (sure + spread * noise).clamp(-1, 1))
    agent._random = True
    many = agent.act(None, torch.zeros(2, 40_000, K), torch.randn(2, 40_000, A))[0]
    # Uniform: a quarter below -0.5, half below 0, a quarter above 0.5.
    shares = [float((many < bound).float().mean()) for bound in (-0.5, 0.0, 0.5)]
    assert shares == pytest.approx([0.25, 0.5, 0.75], abs=0.01) and float(many.abs().max()) <= 1


# -------------------------------------------------------------------------------------------------------- DQN


@pytest.mark.parametrize("member", [0, 1])
def test_dqn_step(member):
    config = DQNConfig(learning_rate=(0.01, 0.02), max_grad_norm=0.5, target_network_frequency=2)
    agent = AgentDQN(spec("discrete"), config, SEEDS)
    policy = agent.policy
    online, target = (nn.ModuleList([plain(policy.actor, member), plain(policy.critic, member)]) for _ in (0, 1))

    def q(net: nn.ModuleList, x: Tensor) -> Tensor:
        return net[1](x) + net[0](x) - net[0](x).mean(1, keepdim=True)

    adam = torch.optim.Adam(online.parameters(), config.learning_rate[member])
    for step, drawn in enumerate(batches(discrete=True)):
        due = (step + 1) % agent.period == 0
        figures = agent.learn(drawn, None, None, torch.zeros(2, N, 0), due)
        state, after = drawn.state[member], drawn.next_state[member]
        with torch.no_grad():
            # Double: the learnt network chooses, the target network says what the choice is worth.
            choice = q(online, after).argmax(1)
            goal = drawn.reward[member] + drawn.discount[member] * q(target, after)[range(N), choice]
        value = q(online, state)[range(N), drawn.action[member]]
        loss = (drawn.weight[member] * (value - goal).square()).mean()
        assert_close(figures["qf_loss"][member], loss.detach(), rtol=1e-4, atol=1e-5)
        adam.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(online.parameters(), 0.5)
        adam.step()
        if due:
            polyak(target, online, 1.0)
    same(policy.actor, member, online[0])
    same(policy.critic, member, online[1])
    # The policy alone plays what Q prefers.
    assert torch.equal(agent.best(None, drawn.state), agent.network(None, drawn.state).argmax(-1))


@pytest.mark.parametrize("epsilon", [0.0, 0.3, 1.0])
def test_epsilon_greedy(epsilon):
    agent = AgentDQN(spec("discrete", 4), DQNConfig(), (0,))
    agent.epsilon.fill_(epsilon)
    n = 40_000
    state = torch.zeros(1, n, K)
    noise = agent.distribution.noise((1, n), torch.Generator().manual_seed(3))
    action, _ = agent.act(None, state, noise)
    greedy = int(agent.best(None, state)[0, 0])
    shares = action.flatten().bincount(minlength=4) / n
    expected = np.full(4, epsilon / 4)
    expected[greedy] += 1 - epsilon
    assert shares.tolist() == pytest.approx(expected.tolist(), abs=0.008)


def test_epsilon_falls_with_progress():
    agent = AgentDQN(spec("discrete"), DQNConfig(learning_starts=10, exploration_fraction=0.5), (0,))
    seen = []
    for timesteps, progress in ((0, 0.0), (10, 0.0), (10, 0.25), (10, 0.5), (10, 0.9)):
        agent.timesteps, agent.progress = timesteps, progress
        agent.set_epsilon()
        seen.append(agent.epsilon.item())
    assert seen == pytest.approx([1.0, 1.0, 0.525, 0.05, 0.05])
