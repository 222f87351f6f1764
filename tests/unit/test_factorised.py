"""The market once per bar: what is embedded once and shared gives what computing it for every sample gives."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from drl_agents.agents import base
from drl_agents.agents.compilation import Compiler
from drl_agents.agents.ppo import AgentPPO, PPOConfig, less_the_others, ppo_loss
from drl_agents.networks.policy import ActorCritic, PolicySpec, spread
from environments.alpaca_env import VectorizedCryptoEnvAlpaca
from environments.data.source import load_bars
from environments.errors import InputError
from environments.market import Market

SEEDS = (3, 5)


@pytest.fixture(scope="module")
def market() -> Market:
    torch.set_num_threads(1)
    return Market.from_bars(load_bars("synthetic", options={"kind": "momentum", "n_bars": 400, "n_assets": 3}, seed=1))


def build(market: Market, n_envs: int, members: int = 1, config: PPOConfig | None = None, **options):
    env = VectorizedCryptoEnvAlpaca(
        market, n_envs, n_members=members, lookback=3, episode_length=20, seed=list(SEEDS[:members]), **options
    )
    agent = AgentPPO(PolicySpec.of(env, hidden=(16, 16)), config or PPOConfig(horizon_len=32), SEEDS[:members])
    agent.policy.fit_normalizer(env)
    return agent, env


# ----------------------------------------------------------------------------- factorised and dense


@pytest.mark.parametrize("activation", ["tanh", "relu"])
@pytest.mark.parametrize("normalizer", ["standard", "quantile"])
def test_outputs_losses_and_gradients_are_those_of_the_dense_policy(activation, normalizer):
    """Four samples share each of eight bars: embedded once, and as 32 dense observations."""
    spec = PolicySpec(6, 4, 5, "box", 2, hidden=(16, 16), activation=activation, normalizer=normalizer)
    policy = ActorCritic(spec, SEEDS)
    draws = torch.Generator().manual_seed(0)
    rows = torch.randn(2, 8, 24, generator=draws)
    rows[0, 3, 7] = torch.nan
    state, action = (torch.randn(2, 32, k, generator=draws) for k in (5, 2))
    old, advantage, returns = (torch.randn(2, 32, generator=draws) for _ in range(3))
    dense = torch.cat([spread(rows, 4), state], dim=-1)
    seen = policy.row_normalizer(rows)

    def result(outputs):
        loss, _ = ppo_loss(outputs[0], old, outputs[1], outputs[2], advantage, returns, 0.2, 0.01, 0.5)
        return *outputs, loss, *torch.autograd.grad(loss.sum(), list(policy.parameters()))

    for one, other in zip(result(policy(seen, state, action)), result(policy.evaluate(dense, action)), strict=True):
        assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_a_table_of_embedded_bars_acts_as_embedding_what_is_seen(market, monkeypatch):
    rollouts = []
    for with_table in (True, False):
        agent, env = build(market, 8, members=2)
        if not with_table:
            monkeypatch.setattr(agent, "market_table", lambda env, horizon: None)
        rollouts.append(agent.explore_env(env, 120))
        assert (agent.market_table(env, 120) is not None) is with_table
    for name in ("bar", "truncated", "terminated"):
        assert torch.equal(getattr(rollouts[0], name), getattr(rollouts[1], name))
    for name in ("state", "action", "log_prob", "reward"):
        assert_close(getattr(rollouts[0], name), getattr(rollouts[1], name), rtol=1e-4, atol=1e-4)


# ---------------------------------------------------------------------------------- shared clocks


def test_environments_of_a_clock_see_the_same_bars_through_every_end(market):
    env = VectorizedCryptoEnvAlpaca(market, 12, n_members=2, clock_groups=3, episode_length=15, ruin=0.97, seed=[1, 2])
    assert env.envs_per_clock == 2
    draws = torch.Generator().manual_seed(0)
    begun, ruined_alone = set(), 0
    env.reset()
    for _ in range(120):
        before = env.bar.clone()
        step = env.step(torch.rand(12, 3, generator=draws) * 2 - 1)
        pairs = env.bar.view(6, 2)
        stops = env.stop.view(6, 2)
        assert torch.equal(pairs[:, 0], pairs[:, 1]) and torch.equal(stops[:, 0], stops[:, 1])
        assert torch.equal(step.final_observation.bar, before + 1)
        done = step.terminated | step.truncated
        moved = env.bar != before + 1
        # A clock is set anew where its time is over, and never for the ruin of one of its environments.
        assert bool(done[moved].all())
        alone = step.terminated & ~moved
        ruined_alone += int(alone.sum())
        assert bool((env.equity[done] == env.initial_cash).all()) and bool((env.account.shares[done] == 0).all())
        begun |= set(env.bar[moved].tolist())
    assert ruined_alone > 0 and len(begun) > 10


def test_one_environment_for_each_clock_is_the_default(market):
    plain, grouped = (build(market, 8, **own) for own in ({}, {"clock_groups": 8}))
    one, other = (agent.explore_env(env, 40) for agent, env in (plain, grouped))
    assert torch.equal(one.state, other.state) and torch.equal(one.bar, other.bar)
    assert torch.equal(plain[0].update(one)["value_loss"], grouped[0].update(other)["value_loss"])


def test_a_rollout_of_shared_clocks_keeps_a_bar_for_each(market):
    agent, env = build(market, 12, members=2, clock_groups=3)
    rollout = agent.explore_env(env, 40)
    assert rollout.bar.shape == (41, 6) and rollout.state.shape[:2] == (41, 12)
    before = agent.parameters.values.clone()
    figures = agent.update(rollout)
    assert all(bool(x.isfinite().all()) for x in figures.values()) and not torch.equal(before, agent.parameters.values)
    # What a minibatch makes of a slot: the log probabilities that were stored when the policy acted.
    agent, env = build(market, 12, members=2, clock_groups=3)
    rollout = agent.explore_env(env, 40)
    rows = agent.windows(rollout.rows).at(rollout.by_member(rollout.bar[:-1]))
    log_prob, _, _ = agent.policy(rows, rollout.by_member(rollout.state[:-1]), rollout.by_member(rollout.action))
    assert_close(log_prob, rollout.by_member(rollout.log_prob), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("groups", [0, 5, 16])
def test_groups_that_cannot_share_out_the_environments_are_refused(market, groups):
    with pytest.raises(InputError, match=f"clock_groups={groups}"):
        VectorizedCryptoEnvAlpaca(market, 8, clock_groups=groups)


def test_the_group_baseline_takes_off_what_the_others_had():
    advantage = torch.tensor([[1.0, 2.0, 6.0, 4.0, 4.0, 1.0]])  # two clocks of three
    expected = [[1 - 4.0, 2 - 3.5, 6 - 1.5, 4 - 2.5, 4 - 2.5, 1 - 4.0]]
    assert_close(less_the_others(advantage, 3), torch.tensor(expected))


def test_the_group_baseline_changes_what_is_learned_and_nothing_of_what_is_returned(market):
    plain, based = (
        build(market, 12, config=PPOConfig(horizon_len=32, group_baseline=on, update_epochs=1), clock_groups=4)
        for on in (False, True)
    )
    rollouts = [agent.explore_env(env, 32) for agent, env in (plain, based)]
    (own, returns, values), (less, same_returns, same_values) = (
        agent.advantages(rollout) for (agent, _), rollout in zip((plain, based), rollouts, strict=True)
    )
    # Three neighbours of each step share a clock: (1, 32 * 12) is (T * clocks) of three.
    assert_close(less, less_the_others(own, 3))
    assert not torch.allclose(less, own)
    assert torch.equal(returns, same_returns) and torch.equal(values, same_values)
    for (agent, _), rollout in zip((plain, based), rollouts, strict=True):
        agent.update(rollout)
    assert not torch.allclose(plain[0].parameters.values, based[0].parameters.values, atol=1e-5)


def test_the_group_baseline_leaves_the_expected_gradient_alone():
    """Two actions, three samples of a step, all eight outcomes with their probabilities: the mean gradient of the loss
    is minus d/dz [p r1 + (1 - p) r0] = -p (1 - p) (r1 - r0), p = sigmoid(z), and varies less than without."""
    logit = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    reward, shared = torch.tensor([0.5, 2.0], dtype=torch.float64), 10.0
    p = torch.sigmoid(logit).item()
    means, spreads = [], []
    for based in (False, True):
        chances, slopes = [], []
        for outcome in range(8):
            action = torch.tensor([[outcome >> i & 1 for i in range(3)]])
            log_prob = torch.nn.functional.logsigmoid(torch.where(action == 1, logit, -logit))
            advantage = reward[action] + shared
            advantage = less_the_others(advantage, 3) if based else advantage
            rest = torch.zeros_like(advantage)
            loss, _ = ppo_loss(log_prob, log_prob.detach(), rest, rest, advantage, rest, 0.2, 0.0, 0.0)
            slopes.append(float(torch.autograd.grad(loss.sum(), logit)[0]))
            chances.append(log_prob.sum().exp().item())
        mean = sum(c * g for c, g in zip(chances, slopes, strict=True))
        means.append(mean)
        spreads.append(sum(c * (g - mean) ** 2 for c, g in zip(chances, slopes, strict=True)))
    assert means == pytest.approx([-p * (1 - p) * 1.5] * 2, rel=1e-12)
    assert spreads[1] < 0.1 * spreads[0]


@pytest.mark.parametrize("clocks", [{}, {"clock_groups": 8}])
def test_a_group_baseline_without_groups_is_refused(market, clocks):
    agent, env = build(market, 8, config=PPOConfig(horizon_len=32, group_baseline=True), **clocks)
    with pytest.raises(InputError, match="group_baseline .* accepted with fewer clock_groups than n_envs"):
        agent.explore_env(env, 32)


# -------------------------------------------------------------------------- compiled and in low precision


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_low_precision_keeps_weights_and_returns_in_float32(market, amp):
    agent, env = build(market, 8, config=PPOConfig(horizon_len=32, amp=amp, update_epochs=2))
    exact, same = build(market, 8, config=PPOConfig(horizon_len=32, update_epochs=2))
    figures = [a.update(a.explore_env(e, 32)) for a, e in ((agent, env), (exact, same))]
    assert agent.parameters.values.dtype == torch.float32 and figures[0]["value_loss"].dtype == torch.float32
    assert_close(figures[0]["value_loss"], figures[1]["value_loss"], rtol=0.05, atol=1e-3)
    assert not torch.equal(figures[0]["value_loss"], figures[1]["value_loss"])
    assert figures[0]["skipped_updates"].item() == 0


def test_a_loss_scale_falls_when_gradients_overflow_and_the_step_is_skipped(market):
    agent, env = build(market, 8, config=PPOConfig(horizon_len=32, amp="fp16", num_minibatches=1, update_epochs=1))
    agent.loss_scale.scale.fill_(torch.finfo(torch.float32).max)
    before = agent.parameters.values.clone()
    figures = agent.update(agent.explore_env(env, 32))
    assert figures["skipped_updates"].item() == 1 and torch.equal(before, agent.parameters.values)
    assert agent.loss_scale.scale.item() <= 2.0**24


def test_unknown_precisions_and_compilers_are_refused(market):
    for wrong in ({"amp": "int8"}, {"compile": "yes"}):
        with pytest.raises(InputError, match="accepted are"):
            build(market, 8, config=PPOConfig(**wrong))


def test_compiled_code_of_one_environment_is_not_run_for_another(market, monkeypatch):
    """Environments of the same shapes that differ in the function their reward is.

    The guards tell them apart, whatever turns a graph into code: here nothing does, which takes no time.
    """
    plain = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **options: plain(function, backend="eager", **options))
    rewards = []
    for reward in ("excess", "log_return"):
        pair = [VectorizedCryptoEnvAlpaca(market, 4, reward=reward, seed=1) for _ in range(2)]
        action, draw = torch.ones(4, 3), pair[0].draws(1)[0]
        with torch.no_grad():
            for _ in range(2):
                steps = [run(action, draw) for run in (Compiler("on")(pair[0].advance), pair[1].advance)]
        assert_close(steps[0].reward, steps[1].reward, rtol=1e-6, atol=1e-7)
        rewards.append(steps[1].reward)
    assert not torch.allclose(*rewards)


def test_tables_are_embedded_in_blocks_and_not_made_too_large(market, monkeypatch):
    agent, env = build(market, 8, members=2)
    whole = agent.market_table(env, 200)
    monkeypatch.setattr(base, "_BLOCK", 7 * 2 * env.lookback * env.rows.shape[1])
    assert_close(agent.market_table(env, 200), whole)
    monkeypatch.setattr(base, "MAX_TABLE", whole.numel() - 1)
    assert agent.market_table(env, 200) is None


def test_compiled_training_is_uncompiled_training(market):
    """Two iterations of a population with shared clocks, every compiled function among them."""
    results = []
    for mode in ("on", "off"):
        config = PPOConfig(horizon_len=8, num_minibatches=2, update_epochs=1, compile=mode)
        agent, env = build(market, 8, members=2, config=config, clock_groups=2, reward="log_return")
        figures = [agent.update(agent.explore_env(env, 8)) for _ in range(2)]
        results.append((figures, agent.parameters.values.clone(), env.equity.clone(), agent.compiler.seconds))
    for one, other in zip(results[0][0], results[1][0], strict=True):
        for name in one:
            assert_close(one[name], other[name], rtol=1e-3, atol=1e-4, msg=name)
    assert_close(results[0][1], results[1][1], rtol=1e-4, atol=1e-4)
    assert_close(results[0][2], results[1][2], rtol=1e-6, atol=1e-2)
    assert results[0][3] > 0 == results[1][3]
