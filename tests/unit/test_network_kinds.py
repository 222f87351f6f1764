"""What must hold for every network: factorised is dense, a member is itself, a rollout is what the update sees."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from drl_agents.agents.ppo import AgentPPO, PPOConfig, ppo_loss
from drl_agents.evaluation.backtest import backtest, walk_returns
from drl_agents.networks.build import build_policy
from drl_agents.networks.policy import spread
from drl_agents.networks.population import member_state
from drl_agents.networks.spec import PolicySpec
from drl_agents.training.checkpoint import load_checkpoint, restore, save_checkpoint
from environments.alpaca_env import VectorizedCryptoEnvAlpaca
from environments.data.source import load_bars
from environments.errors import InputError
from environments.market import Market
from environments.rules import AssetRule, RuleBook

pytestmark = pytest.mark.usefixtures("one_thread")

SEEDS = (3, 5)
# Steps of a power of two: shares stay multiples (see test_population).
EXACT = AssetRule(increment=2**-20, min_quantity=2**-20, min_notional=10.0)
KINDS = {
    "mlp, LayerNorm": {"hidden": (16, 8), "layer_norm": True},
    "per asset": {"hidden": (16, 8), "per_asset": True, "layer_norm": True},
    "gru": {"network": "gru", "hidden_dim": 16, "hidden": (16,)},
    "transformer": {"network": "transformer", "d_model": 16, "num_layers": 3, "n_heads": 2, "hidden": (16,)},
    "lightweight": {
        "network": "lightweight", "d_model": 16, "n_heads": 2, "positions": "sinusoidal", "hidden": (16,),
        "activation": "relu",
    },
}  # fmt: skip
kinds = pytest.mark.parametrize("kind", KINDS)
# Where it costs: the two transformers are one code.
trained_kinds = pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "transformer"])


@pytest.fixture(scope="module")
def market() -> Market:
    return Market.from_bars(load_bars("synthetic", options={"kind": "momentum", "n_bars": 300, "n_assets": 3}, seed=1))


def build(market: Market, kind: str, n_envs: int, members=(0,), *, config=None, **options):
    seeds = [SEEDS[p] for p in members]
    settings = {"lookback": 3, "episode_length": 20, **options}
    rules = RuleBook(market.asset_class, dict.fromkeys(market.symbols, EXACT))
    env = VectorizedCryptoEnvAlpaca(market, n_envs, n_members=len(seeds), seed=seeds, rules=rules, **settings)
    made = config or PPOConfig(horizon_len=16, num_minibatches=2, update_epochs=2)
    agent = AgentPPO(PolicySpec.of(env, **KINDS[kind]), made, seeds)
    agent.policy.fit_normalizer(env)
    return agent, env


@kinds
def test_outputs_losses_and_gradients_are_those_of_the_dense_policy(kind):
    """Four samples share each of eight bars: embedded once, and as 32 dense observations."""
    spec = PolicySpec(6, 4, 7, "box", 2, n_assets=2, **as_fields(kind))
    policy = build_policy(spec, SEEDS)
    draws = torch.Generator().manual_seed(0)
    rows = torch.randn(2, 8, 24, generator=draws)
    rows[0, 3, 7] = torch.nan
    state, action = (torch.randn(2, 32, k, generator=draws) for k in (7, 2))
    old, advantage, returns = (torch.randn(2, 32, generator=draws) for _ in range(3))
    dense = torch.cat([spread(rows, 4), state], dim=-1)
    seen = policy.row_normalizer(rows)
    parameters = [p for name, p in policy.named_parameters() if "recall" not in name or not name.endswith("weight")]

    def result(outputs):
        loss, _ = ppo_loss(outputs[0], old, outputs[1], outputs[2], advantage, returns, 0.2, 0.01, 0.5)
        return *outputs, loss, *torch.autograd.grad(loss.sum(), parameters)

    for one, other in zip(result(policy(seen, state, action)), result(policy.evaluate(dense, action)), strict=True):
        assert_close(one, other, rtol=1e-5, atol=1e-5)


def as_fields(kind: str) -> dict:
    """Fields of `PolicySpec` for what `PolicySpec.of` takes by name."""
    shared = {k: v for k, v in KINDS[kind].items() if k in PolicySpec.__dataclass_fields__}
    return {**shared, "options": {k: v for k, v in KINDS[kind].items() if k not in shared}}


@kinds
def test_a_members_weights_depend_on_its_own_seed_alone(kind):
    spec = PolicySpec(6, 4, 7, "box", 2, n_assets=2, **as_fields(kind))
    together, alone = build_policy(spec, (5, 6, 7)), build_policy(spec, (6,))
    for name, value in alone.state_dict().items():
        assert torch.equal(member_state(together, 1)[name], value), name
    x = torch.randn(3, 5, spec.size, generator=torch.Generator().manual_seed(1))
    assert_close(together.mode(x)[1:2], alone.mode(x[1:2]))
    assert not torch.allclose(together.mode(x[1:2].expand(3, -1, -1))[0], alone.mode(x[1:2])[0])


@kinds
@pytest.mark.parametrize("options", [{}, {"clock_groups": 2}], ids=["own clocks", "shared clocks"])
def test_the_update_sees_what_the_policy_did(market, kind, options):
    """The log probabilities and values of the update's pass are those of the steps as they were taken; the memory, if
    there is one, was cut where episodes ended."""
    agent, env = build(market, kind, 16, (0, 1), ruin=0.99, **options)
    for _ in range(2):
        rollout = agent.explore_env(env, 16)
    assert rollout.truncated.any() and rollout.terminated.any()
    batch = agent._batch(rollout, *agent.advantages(rollout)[:2])
    index = torch.arange(batch.slots).expand(2, -1)
    seen, where = agent.seen(batch.windows, agent.pick_bars(batch, index))
    if agent.policy.encoder is not None and not options:
        assert seen.shape[1] < batch.slots  # bars that are seen twice are embedded once
    sequence = () if batch.memory is None else (batch.memory, batch.begins)
    log_prob, _, value = agent.policy(seen, batch.state, batch.action, where, *sequence)
    assert_close(log_prob, batch.log_prob, rtol=1e-5, atol=1e-5)
    assert_close(value, agent.advantages(rollout)[2], rtol=1e-5, atol=1e-5)


@kinds
def test_a_table_of_embedded_bars_acts_as_embedding_what_is_seen(market, kind, monkeypatch):
    rollouts = []
    for with_table in (True, False):
        agent, env = build(market, kind, 8, (0, 1))
        if not with_table:
            monkeypatch.setattr(agent, "market_table", lambda env, horizon: None)
        rollouts.append(agent.explore_env(env, 40))
        assert (agent.market_table(env, 40) is not None) is with_table
    for name in ("state", "action", "log_prob", "reward"):
        assert_close(getattr(rollouts[0], name), getattr(rollouts[1], name), rtol=1e-4, atol=1e-4)


@trained_kinds
def test_a_member_of_two_equals_the_same_alone(market, kind):
    config = PPOConfig(
        horizon_len=16,
        num_minibatches=2,
        update_epochs=2,
        learning_rate=3e-3,
        critic_learning_rate=1e-2,
        critic_epochs=1,
    )
    together, env = build(market, kind, 8, (0, 1), config=config)
    start = together.parameters.values.clone()
    figures = [together.update(together.explore_env(env, 16)) for _ in range(5)][-1]
    for p in (0, 1):
        alone, env = build(market, kind, 4, (p,), config=config)
        own = [alone.update(alone.explore_env(env, 16)) for _ in range(5)][-1]
        assert (together.parameters.values[p] - start[p]).abs().max() > 1e-2
        assert_close(alone.parameters.values[0], together.parameters.values[p], rtol=0, atol=1e-4)
        for name, value in own.items():
            assert_close(figures[name][p], value[0], rtol=1e-2, atol=1e-3, msg=name)


@trained_kinds
def test_resumed_training_is_unbroken_training(market, kind, tmp_path):
    agent, env = build(market, kind, 8)
    for i in range(4):
        if i == 2:
            save_checkpoint(tmp_path / "c.pt", agent, env, 2, {})
        agent.update(agent.explore_env(env, 16))
    again, env = build(market, kind, 8)
    assert restore(load_checkpoint(tmp_path / "c.pt"), again, env) == 2
    for _ in range(2):
        again.update(again.explore_env(env, 16))
    assert torch.equal(again.parameters.values, agent.parameters.values)


@trained_kinds
def test_a_walk_is_a_backtest_and_each_begins_anew(market, kind):
    agent, _ = build(market, kind, 8)
    with torch.no_grad():
        last = agent.policy.actor.each if agent.spec.per_asset else agent.policy.actor.layers[-1]
        last.weight.mul_(60.0)
    walk = VectorizedCryptoEnvAlpaca(
        market, 2, segments=[(60, 150), (100, 250)], random_start=False, episode_length=None, lookback=3
    )
    decide = agent.decide
    first, second = (backtest(walk, decide) for _ in range(2))
    own = walk_returns(walk, agent)
    for one, other, returns in zip(first, second, own, strict=True):
        assert (one.equity == other.equity).all() and one.n_trades > 20
        assert returns == pytest.approx(one.equity[1:] / one.equity[:-1] - 1, abs=1e-6)


# --------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"network": "lstm"}, "network='lstm': accepted are mlp, gru, transformer, lightweight"),
        ({"network": "gru", "dropout": 1.0}, "dropout=1.0"),
        ({"network": "gru", "n_gru_layers": 0}, "n_gru_layers=0"),
        ({"network": "gru", "d_model": 8}, "no option d_model: accepted are hidden_dim, n_gru_layers, dropout"),
        ({"n_heads": 2}, "'mlp' has no option n_heads"),
        ({"network": "transformer", "d_model": 30}, "n_heads=8: a divisor of d_model=30"),
        ({"network": "lightweight", "positions": "rotary"}, "positions='rotary': accepted are learned, sinusoidal"),
        ({"network": "lightweight", "n_heads": 5, "d_model": 5, "positions": "sinusoidal"}, "d_model=5"),
    ],
)
def test_a_wrong_network_is_named(market, wrong, named):
    env = VectorizedCryptoEnvAlpaca(market, 1)
    with pytest.raises(InputError, match=named):
        PolicySpec.of(env, **wrong)


def test_a_transformer_needs_a_market():
    with pytest.raises(InputError, match="there is none; accepted: mlp, gru"):
        PolicySpec(0, 1, 4, "box", 2, network="transformer")


def test_an_agent_says_which_networks_it_trains():
    spec = PolicySpec(0, 1, 4, "box", 2, network="gru")
    with pytest.raises(InputError, match="network='gru': accepted with this agent are mlp"):
        build_policy(spec, (0,), accepted=("mlp",))


def test_more_minibatches_than_sequences_are_refused(market):
    agent, env = build(market, "gru", 2, config=PPOConfig(horizon_len=16, num_minibatches=4))
    with pytest.raises(InputError, match="num_minibatches=4 is too many for 2 sequences"):
        agent.update(agent.explore_env(env, 16))
