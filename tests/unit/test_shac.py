"""SHAC: gradients of the environment against finite differences, ends of episodes by hand, a member as it is alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from drl_agents.agents.shac import AgentSHAC, SHACConfig
from drl_agents.agents.short_horizon import InwardClamp, discounts, window_objective
from drl_agents.networks.policy import PolicySpec
from drl_agents.networks.population import member_state
from drl_agents.training.trainer import Budget, train
from environments.adapters import GymnasiumVecEnv
from environments.alpaca_env import VectorizedCryptoEnvAlpaca
from environments.data.source import load_bars
from environments.errors import InputError
from environments.market import Market
from environments.market_env import MarketVecEnv
from environments.portfolio import floor_to, straight_through, with_sign
from environments.rewards import Reward
from environments.rules import AssetRule, RuleBook

pytestmark = pytest.mark.usefixtures("one_thread")
COSTS = {"commission_bps": 10.0, "spread_bps": 5.0, "slippage_bps": 3.0, "impact_coef": 0.05}
MARGIN = {"margin": 2.0, "shorting": True, "borrow_bps": 300.0, "margin_rate_bps": 500.0}
TERMS = "log_return,excess,differential_sharpe,drawdown,turnover:0.1,concentration:0.1,cvar"


@pytest.fixture(scope="module")
def stocks() -> Market:
    options = {"kind": "gbm", "n_bars": 200, "n_assets": 3, "asset_class": "stock", "timeframe": "1d"}
    return Market.from_bars(load_bars("synthetic", options=options, seed=3))


@pytest.fixture(scope="module")
def coins() -> Market:
    options = {"kind": "momentum", "n_bars": 300, "n_assets": 2}
    return Market.from_bars(load_bars("synthetic", options=options, seed=1))


@pytest.fixture(scope="module")
def coin() -> Market:
    return Market.from_bars(load_bars("synthetic", options={"kind": "gbm", "n_bars": 200}, seed=5))


# ------------------------------------------------------------------------------------------ the environment's gradient


class Kept:
    """An environment's reward that keeps what it gave before the environment cuts it to float32."""

    def __init__(self, reward: Reward) -> None:
        self.reward, self.memory, self.last = reward, reward.memory, None

    def __call__(self, *args):
        self.last, memory = self.reward(*args)
        return self.last, memory


def walk(env: MarketVecEnv, actions: torch.Tensor) -> torch.Tensor:
    """(N,) float64: a weighted sum of the rewards and the equities of T steps from a reset."""
    env.detach()
    env.reset(seed=7)
    if not isinstance(env._reward, Kept):
        env._reward = Kept(env._reward)
    total = torch.zeros(env.n_envs, dtype=torch.float64)
    for t, action in enumerate(actions):
        env.advance(action, env.draws(1)[0])
        total = total + (t + 1) * env._reward.last + env.equity / env.initial_cash
    return total


def slopes(env: MarketVecEnv, actions: torch.Tensor) -> torch.Tensor:
    actions = actions.clone().requires_grad_()
    return torch.autograd.grad(walk(env, actions).sum(), actions)[0]


def differences(env: MarketVecEnv, actions: torch.Tensor, step: float = 1e-4) -> torch.Tensor:
    """Central differences. Environments are independent: one entry is moved in all of them at once."""
    found = torch.zeros_like(actions)
    with torch.no_grad():
        for t, k in np.ndindex(actions.shape[0], actions.shape[2]):
            moved = torch.zeros_like(actions)
            moved[t, :, k] = step
            found[t, :, k] = (walk(env, actions + moved) - walk(env, actions - moved)) / (2 * step)
    return found


@pytest.mark.parametrize(
    ("which", "options"),
    [
        ("stocks", {"action": "trades", "max_trade": 0.2}),
        ("stocks", {"action": "trades", "max_trade": 0.4, "decision_lag": 2}),
        ("stocks", {"action": "trades", "max_trade": 0.3, **MARGIN}),
        ("stocks", {"action": "weights", "sharpness": 2.0}),
        ("stocks", {"action": "weights", "sharpness": 2.0, **MARGIN}),
        ("stocks", {"action": "regimes"}),
        ("coins", {"action": "trades", "max_trade": 0.2}),
        ("coins", {"action": "weights", "sharpness": 2.0}),
        ("coin", {"action": "signal_size", "threshold": 0.1}),
    ],
)
def test_the_gradient_through_the_books_is_that_of_finite_differences(which, options, request):
    """Six steps with all costs and all reward terms; what is bought, sold and held differs between the environments."""
    market = request.getfixturevalue(which)
    # So much that the whole shares of what is sold short are no steps beside the differences.
    cash = 1e12 if options.get("shorting") else 1e5
    env = MarketVecEnv(market, 5, reward=TERMS, episode_length=50, initial_cash=cash, **COSTS, **options)
    generator = torch.Generator().manual_seed(11)
    shape = (6, 5, 12) if options["action"] == "regimes" else (6, 5, *env.single_action_space.shape)
    # Buys at first, so that there is something to sell; nobody runs into the limits of the account.
    actions = 0.5 * torch.rand(shape, generator=generator, dtype=torch.float64)
    actions[2:] -= 0.25
    if options["action"] == "regimes":
        actions = torch.softmax(4 * actions, dim=-1)
    if options["action"] == "signal_size":
        actions[..., 0] = torch.tensor([0.8, 0.5, -0.5, 0.4, -0.8, 0.6], dtype=torch.float64).view(6, 1)
    wanted, found = differences(env, actions), slopes(env, actions)
    assert wanted.abs().sum() > 0.1
    if options["action"] == "signal_size":
        assert not found[..., 0].any() and not wanted[..., 0].any()  # a direction is a choice
    # A kink (a drawdown that begins, a member of the worst tail that changes) may lie within a step.
    off = (wanted - found).abs() > 1e-5 + 2e-4 * wanted.abs()
    assert off.double().mean() <= 0.01, (wanted[off], found[off])


def test_values_do_not_depend_on_whether_a_gradient_is_wanted(stocks):
    """Bit for bit, orders below the minima and full sales among them."""
    rules = RuleBook("stock", dict.fromkeys(stocks.symbols, AssetRule(1.0, 3.0, 500.0)))
    for options in ({"action": "trades", "max_trade": 0.6}, {"action": "weights"}, {"action": "trades", **MARGIN}):
        seen = []
        for wanted in (False, True):
            env = MarketVecEnv(stocks, 16, rules=rules, episode_length=20, reward=TERMS, **COSTS, **options)
            generator = torch.Generator().manual_seed(2)
            for _ in range(40):
                action = 1.2 * torch.randn(16, *env.single_action_space.shape, generator=generator)
                with torch.set_grad_enabled(wanted):
                    step = env.advance(action.requires_grad_(wanted), env.draws(1)[0])
                seen.append([x.detach().clone() for x in (step.reward, step.observation.state, env.equity, env.fees)])
                seen[-1].append(step.final_observation.state.detach().clone())
        half = len(seen) // 2
        for plain, differentiated in zip(seen[:half], seen[half:], strict=True):
            assert all(torch.equal(a, b) for a, b in zip(plain, differentiated, strict=True))


def test_rounding_minima_and_signs_pass_gradients_straight_through():
    x = torch.tensor([0.3, 2.7], dtype=torch.float64, requires_grad=True)
    floored = floor_to(x, torch.tensor(1.0, dtype=torch.float64))
    assert floored.tolist() == [0.0, 2.0]
    assert torch.autograd.grad(floored.sum(), x)[0].tolist() == [1.0, 1.0]
    zero = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    signed = with_sign(zero, torch.tensor([-1.0, 1.0], dtype=torch.float64))
    assert torch.autograd.grad(signed.sum(), zero)[0].tolist() == [-1.0, 1.0]
    value = torch.tensor([0.1, 1e16], dtype=torch.float64)
    assert torch.equal(straight_through(value, x).detach(), value)  # adding and taking off would round


def test_an_order_below_the_minimum_still_has_a_slope(stocks):
    """No order is sent, and yet a larger action is seen to lead to one."""
    rules = RuleBook("stock", dict.fromkeys(stocks.symbols, AssetRule(1.0, 1.0, 5_000.0)))
    env = MarketVecEnv(stocks, 4, rules=rules, reward="log_return", max_trade=0.2, **COSTS)
    actions = torch.full((1, 4, 3), 0.1, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(walk(env, actions).sum(), actions)
    assert (env.traded_value == 0).all() and (slope != 0).all()


def test_a_mixture_of_regimes_holds_their_choices(stocks):
    """Shares that are all of one regime order what that choice orders."""
    for regime in range(12):
        equities = []
        for mixed in (False, True):
            env = MarketVecEnv(stocks, 3, action="regimes", seed=1)
            env.step(torch.full((3,), 4))  # hold something first
            choice = torch.full((3,), regime)
            env.step(torch.nn.functional.one_hot(choice, 12).double() if mixed else choice)
            equities.append(torch.cat([env.last_shares, env.fees.unsqueeze(1)], dim=1))
        assert_close(*equities, rtol=1e-9, atol=1e-6)


def test_the_graph_ends_with_the_episode(stocks):
    """What an action earns after the episode it was taken in belongs to another episode: no gradient crosses."""
    env = MarketVecEnv(stocks, 4, episode_length=3, reward="log_return", **COSTS)
    env.reset(seed=1)
    actions = torch.full((6, 4, 3), 0.2, requires_grad=True)
    rewards = []
    for action in actions:
        rewards.append(env.advance(action, env.draws(1)[0]).reward.sum())
    first = torch.autograd.grad(rewards[2], actions, retain_graph=True)[0]
    second = torch.autograd.grad(rewards[5], actions)[0]
    assert first[:3].abs().sum() > 0 and not first[3:].any()
    assert second[3:].abs().sum() > 0 and not second[:3].any()


# ----------------------------------------------------------------------------------------------------- the objective


def test_discounts_begin_anew_with_an_episode():
    done = torch.tensor([[False, True], [True, False], [False, False], [False, False]])
    assert discounts(done, 0.5).tolist() == [[1.0, 1.0], [0.5, 1.0], [1.0, 0.5], [0.5, 0.25]]


def test_the_objective_by_hand():
    """gamma 0.5. Environment 0 is truncated after step 1, environment 1 terminated after step 0."""
    reward = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    done = torch.tensor([[False, True], [True, False], [False, False]])
    cut = torch.tensor([[False, False], [True, False], [True, True]])
    value = torch.tensor([[0.0, 0.0], [10.0, 0.0], [20.0, 40.0]])
    # 0: (1 + 0.5 (3 + 0.5 * 10)) + (5 + 0.5 * 20); 1: 2 + (4 + 0.5 (6 + 0.5 * 40)); each over three steps.
    assert window_objective(reward, cut, value, done, 0.5).tolist() == pytest.approx([20 / 3, 19 / 3])


def test_a_clamped_action_can_only_come_back():
    x = torch.tensor([-2.0, -2.0, 0.5, 2.0, 2.0], requires_grad=True)
    clamped = InwardClamp.apply(x)
    assert clamped.tolist() == [-1.0, -1.0, 0.5, 1.0, 1.0]
    clamped.backward(torch.tensor([1.0, -1.0, 3.0, 1.0, -1.0]))
    assert x.grad.tolist() == [0.0, -1.0, 3.0, 1.0, 0.0]


# ---------------------------------------------------------------------------------------------------------- the agent


SEEDS = (3, 14, 15)
SEGMENTS = [[(0, 150)], [(100, 250)], [(50, 120), (200, 300)]]
OWN = {
    "learning_rate": (5e-3, 1e-3, 2e-2),
    "critic_learning_rate": (1e-3, 1e-2, 1e-4),
    "gamma": (0.9, 0.99, 0.5),
    "td_lambda": (0.95, 0.5, 1.0),
    "tau": (0.5, 0.1, 1.0),
    "max_grad_norm": (0.5, 5.0, 0.05),
    "reward_scale": (1.0, 0.1, 2.0),
}
ENCODER = {"network": "lightweight", "d_model": 8, "n_heads": 2}
EXACT = AssetRule(increment=2**-20, min_quantity=2**-20, min_notional=10.0)


def build(
    market: Market, members: list[int], action: str = "trades", network: dict | None = None, **config
) -> tuple[AgentSHAC, MarketVecEnv]:
    """The given members, side by side; hyper-parameters given as tuples are picked member by member."""
    seeds = [SEEDS[p] for p in members]
    env = VectorizedCryptoEnvAlpaca(
        market, 4 * len(members), n_members=len(members), segments=[SEGMENTS[p] for p in members], episode_length=20,
        lookback=2, rules=RuleBook(market.asset_class, dict.fromkeys(market.symbols, EXACT)), seed=seeds, action=action,
    )  # fmt: skip
    chosen = {k: tuple(v[p] for p in members) if isinstance(v, tuple) else v for k, v in config.items()}
    hyper = SHACConfig(**{"horizon_len": 8, "num_minibatches": 2, **chosen})
    agent = AgentSHAC(PolicySpec.of(env, hidden=(8, 8), **(network or {})), hyper, seeds)
    agent.policy.fit_normalizer(env)
    return agent, env


@pytest.mark.parametrize(("network", "iterations"), [({}, 50), (ENCODER, 14)])
def test_a_member_of_three_equals_the_same_alone(coins, network, iterations):
    together, env = build(coins, [0, 1, 2], network=network, **OWN)
    start = together.actor_parameters.values.clone()
    train(together, env, Budget(iterations=iterations))
    for p in range(3):
        alone, env = build(coins, [p], network=network, **OWN)
        train(alone, env, Budget(iterations=iterations))
        assert (together.actor_parameters.values[p] - start[p]).abs().max() > 1e-2
        for name, value in alone.policy.state_dict().items():
            assert_close(member_state(together.policy, p)[name], value, rtol=0, atol=1e-4)
        assert_close(together.target_parameters.values[p], alone.target_parameters.values[0], rtol=0, atol=1e-4)


@pytest.mark.parametrize(("network", "worth"), [({}, 3.0), (ENCODER, 0.0)])
def test_the_actors_gradient_is_that_of_the_objective(coins, network, worth):
    """Against differences of what a whole window comes to, the critic's value at its end included. With an encoder that
    value is left out: it reads the encoder, and has no say in it."""
    agent, env = build(coins, [0], network=network, horizon_len=5)
    agent.policy.log_std.data.fill_(-4.0)
    agent.policy.actor.layers[-1].bias.data.fill_(0.3)  # buys, and none of them runs into a limit
    agent.target_parameters.values.mul_(worth)  # so that the value at the end matters
    start = env.state_dict()
    noise = agent.noise_generators[0].get_state()
    flat, grads = agent.actor_parameters.values, []

    def loss() -> float:
        env.load_state_dict(start)
        agent.noise_generators[0].set_state(noise)
        agent._observation, agent._explored = None, None
        env.reset(seed=4)
        rollout = agent.explore_env(env, 5)
        step = agent.actor_optimizer.step
        agent.actor_optimizer.step = lambda grad, *rest: (grads.append(grad.clone()), grad.norm(dim=1, keepdim=True))[1]
        targets = agent.target_parameters.values.clone()
        figures = agent.update(rollout)
        agent.actor_optimizer.step = step
        agent.target_parameters.values.copy_(targets)
        return float(figures["policy_loss"])

    loss()
    (slope,) = grads[0]
    biggest = slope.abs().topk(6).indices.tolist()
    if network:
        first = sum(agent.actor_parameters.widths[: [*agent.actor_parameters.shapes].index("encoder.rows.weight")])
        biggest += (first + slope[first:].abs().topk(6).indices).tolist()
    for i in biggest:
        kept = flat[0, i].item()
        moved = []
        for sign in (1, -1):
            flat[0, i] = kept + sign * 3e-3
            moved.append(loss())
        flat[0, i] = kept
        assert (moved[0] - moved[1]) / 6e-3 == pytest.approx(float(slope[i]), rel=0.05, abs=2e-4)


def test_the_critic_has_no_say_in_the_encoder(coins):
    """Where nothing is earned, and the accounts' states do not tell either, the encoder stays as it is."""
    agent, env = build(coins, [0], network=ENCODER)
    encoder, critic = (part.state_dict() for part in (agent.policy.encoder, agent.policy.critic))
    before = [{name: value.clone() for name, value in part.items()} for part in (encoder, critic)]
    for _ in range(2):
        rollout = agent.explore_env(env, 8)
        window = agent._window
        agent._window = window._replace(reward=window.reward * 0, final_state=window.final_state.detach())
        agent.update(rollout)
    assert all(torch.equal(encoder[name], value) for name, value in before[0].items())
    assert not all(torch.equal(critic[name], value) for name, value in before[1].items())


@pytest.mark.parametrize(
    ("action", "amp"), [("trades", "off"), ("weights", "bf16"), ("regimes", "off"), ("regimes", "bf16")]
)
def test_a_window_is_learned_from_once(coins, action, amp):
    agent, env = build(coins, [0, 1], action=action, amp=amp)
    before = agent.actor_parameters.values.clone()
    rollout = agent.explore_env(env, 8)
    assert rollout.action.dtype == (torch.int64 if action == "regimes" else torch.float32)
    figures = agent.update(rollout)
    assert all(value.shape == (2,) and value.isfinite().all() for value in figures.values())
    assert not torch.equal(agent.actor_parameters.values, before)
    with pytest.raises(ValueError, match="learns once"):
        agent.update(rollout)


def test_a_resumed_run_ends_as_the_unbroken_one(coins, tmp_path):
    whole, env = build(coins, [0, 1], anneal_lr=True)
    train(whole, env, Budget(iterations=6))
    file = tmp_path / "c.pt"
    broken, env = build(coins, [0, 1], anneal_lr=True)
    calls = iter([False] * 3 + [True])
    train(broken, env, Budget(iterations=6), checkpoint=file, stop=lambda: next(calls))
    resumed, env = build(coins, [0, 1], anneal_lr=True)
    result = train(resumed, env, Budget(iterations=6), checkpoint=file, resume=True)
    assert result.iterations == 6
    for name, value in whole.state_dict()["policy"].items():
        assert torch.equal(resumed.state_dict()["policy"][name], value), name
    assert torch.equal(whole.target_parameters.values, resumed.target_parameters.values)


def test_a_member_that_breaks_leaves_the_other_alone(coins):
    agents = []
    for broken in (False, True):
        agent, env = build(coins, [0, 1])
        for _ in range(2):
            rollout = agent.explore_env(env, 8)
            if broken:
                agent._window.reward[:, 4:] *= torch.nan
            figures = agent.update(rollout)
        agents.append(agent)
    healthy, hurt = (agent.actor_parameters.values for agent in agents)
    assert torch.equal(healthy[0], hurt[0]) and hurt.isfinite().all()
    assert figures["skipped_updates"].tolist() == [0, 1]


def test_what_cannot_be_differentiated_is_refused_with_the_reason(coin):
    import gymnasium

    env = GymnasiumVecEnv(lambda: gymnasium.make("Pendulum-v1"), 1)
    agent = AgentSHAC(PolicySpec.of(env, hidden=(8,)))
    with pytest.raises(InputError, match="agent shac cannot train here: GymnasiumVecEnv has no gradient"):
        agent.explore_env(env, 4)
    env = MarketVecEnv(coin, 2, action="signal_size")
    with pytest.raises(InputError, match="'signal_size' has no gradient .*accepted are trades, weights, regimes"):
        AgentSHAC(PolicySpec.of(env, hidden=(8,))).explore_env(env, 4)


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("horizon_len", 0, "horizon_len=0: at least 1"),
        ("learning_rate", -1.0, "learning_rate=-1.0: accepted are 0"),
        ("tau", (0.5, 2.0), "tau=2.0: accepted are"),
        ("amp", "fp16", "amp='fp16': .*accepted are off, bf16"),
    ],
)
def test_bad_hyper_parameters_are_named(field, value, said):
    with pytest.raises(InputError, match=said):
        SHACConfig(**{field: value})


@pytest.mark.parametrize("network", [{"per_asset": True}, {"layer_norm": True, "normalizer": "quantile"}, ENCODER])
def test_environments_may_share_clocks(coins, network):
    env = MarketVecEnv(coins, 8, n_members=2, seed=[0, 1], episode_length=20, clock_groups=2)
    agent = AgentSHAC(PolicySpec.of(env, hidden=(8,), **network), SHACConfig(horizon_len=8, num_minibatches=2), (3, 4))
    agent.policy.fit_normalizer(env)
    assert train(agent, env, Budget(iterations=3)).figures["skipped_updates"] == [0, 0]


def test_a_remembering_network_is_refused(coins):
    env = MarketVecEnv(coins, 2)
    with pytest.raises(InputError, match="network='gru': accepted with this agent are mlp, transformer, lightweight"):
        AgentSHAC(PolicySpec.of(env, network="gru", hidden_dim=8))
