"""Reward terms on numbers worked out by hand; what each sums to over an episode; what it remembers begins anew."""

from __future__ import annotations

import math

import pytest
import torch

from environments.errors import InputError
from environments.market_env import MarketVecEnv
from environments.rewards import (
    CVAR_WINDOW,
    REWARDS,
    Outcome,
    Reward,
    differential_sharpe,
    parse_reward,
    reward_term,
    tail_loss,
)


def f64(*values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def outcome(before: float, after: float, traded=(0.0,), shares=(0.0,), mark=(1.0,)) -> Outcome:
    return Outcome(f64(before), f64(after), f64(1.0), f64(1.0), f64([*traded]), f64([*shares]), f64([*mark]))


def memory_of(reward: Reward, n: int = 1) -> list[torch.Tensor]:
    return [torch.full((n, *shape), first, dtype=torch.float64) for shape, first in reward.memory.values()]


def paid(text: str, curve, scale: float = 1.0) -> list[float]:
    """What a reward pays along a curve of equity."""
    reward = parse_reward(text)
    memory, got = memory_of(reward), []
    for before, after in zip(curve[:-1], curve[1:], strict=True):
        value, memory = reward(outcome(before, after), memory, f64(scale))
        got.append(value.item())
    return got


# -------------------------------------------------------------------------------------------------- terms


def test_drawdown_by_hand():
    """100, 80 (down 20%), 90 (10%), 110 (a new peak), 55 (half): increments of the drawdown, which add up to it."""
    assert paid("drawdown", [100.0, 80.0, 90.0, 110.0, 55.0]) == pytest.approx([-0.2, 0.1, 0.1, -0.5])
    assert paid("drawdown", [100.0, 120.0, 130.0]) == pytest.approx([0.0, 0.0])
    assert sum(paid("drawdown", [100.0, 300.0, 60.0, 150.0], 7.0)) == pytest.approx(-7 * 0.5)


def test_turnover_and_concentration_by_hand():
    traded, shares, mark = f64([300.0, 50.0]), f64([50.0, 1.0]), f64([10.0, 250.0])
    one = Outcome(f64(1_000.0), f64(1_250.0), f64(1.0), f64(1.0), traded, shares, mark)
    assert parse_reward("turnover")(one, [], f64(9.0))[0].item() == pytest.approx(-0.35)
    # 500 and 250 of 1,250: 0.4^2 + 0.2^2; cash does not count.
    assert parse_reward("concentration")(one, [], f64(9.0))[0].item() == pytest.approx(-0.2)
    assert parse_reward("concentration")(outcome(1.0, 1.0), [], f64(9.0))[0].item() == 0.0


def test_tail_loss_by_hand():
    returns = torch.zeros(1, 100, dtype=torch.float64)
    returns[0, [3, 50, 51, 77, 80, 99]] = f64(-0.05, -0.01, -0.04, 0.3, -0.02, -0.03)
    assert tail_loss(returns).item() == pytest.approx(0.15 / 5)
    assert tail_loss(torch.full((2, 100), 0.01)).tolist() == pytest.approx([-0.01, -0.01])


def test_cvar_adds_up_to_the_tail_of_the_last_hundred_bars():
    generator = torch.Generator().manual_seed(2)
    returns = torch.randn(250, generator=generator, dtype=torch.float64) * 0.01
    curve = [100.0, *(100 * (1 + returns).cumprod(0)).tolist()]
    for bars in (3, 40, 100, 250):
        last = torch.cat([torch.zeros(100, dtype=torch.float64), returns[:bars]])[-100:]
        expected = -3.0 * -last.sort().values[:5].mean().item()
        assert sum(paid("cvar", curve[: bars + 1], 3.0)) == pytest.approx(expected, rel=1e-9)
    assert paid("cvar", [100.0, 95.0])[0] == pytest.approx(-0.01)  # the worst of five, the others 0


def test_differential_sharpe_by_hand():
    """A = 0.1, B = 0.5, R = 0.3: ΔA = 0.2, ΔB = -0.41; (0.5 * 0.2 + 0.05 * 0.41) / 0.49^1.5 = 0.1205 / 0.343."""
    value, mean, square = differential_sharpe(f64(0.3), f64(0.1), f64(0.5), eta=0.05)
    assert value.item() == pytest.approx(0.1205 / 0.343, rel=1e-12)
    assert (mean.item(), square.item()) == pytest.approx((0.11, 0.4795), rel=1e-12)
    # In standard deviations of the market, from its own moments: the first reward is the return itself.
    assert paid("differential_sharpe", [100.0, 103.0], 50.0) == pytest.approx([1.5])


def test_differential_sharpe_does_not_depend_on_the_unit():
    small, large = (differential_sharpe(f64(0.3 * u), f64(0.1 * u), f64(0.5 * u * u))[0].item() for u in (1.0, 40.0))
    assert small == pytest.approx(large, rel=1e-12)


def test_differential_sharpe_adds_up_to_the_moving_ratio():
    """eta * sum of D against the change of A / sqrt(B - A^2): the smaller eta, the closer, as a first order is."""
    returns = 0.1 + torch.randn(400, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    errors = []
    for eta in (0.02, 0.002):
        mean, square, total = f64(0.1), f64(1.1), 0.0
        start = (mean / (square - mean**2).sqrt()).item()
        for r in returns[: round(4 / eta) if eta == 0.02 else 400]:
            value, mean, square = differential_sharpe(r, mean, square, eta)
            total += eta * value.item()
        moved = (mean / (square - mean**2).sqrt()).item() - start
        errors.append(abs(total - moved))
    assert errors[1] < 0.01 and errors[1] < errors[0] < 0.5


def test_cash_does_not_make_a_small_move_immense():
    """10,000 bars in cash let the moments fade; a move of one market deviation is then worth at most ten."""
    rewards = paid("differential_sharpe", [100.0] * 10_000 + [101.0], 100.0)
    assert set(rewards[:-1]) == {0.0} and 0 <= rewards[-1] <= 10


def test_every_term_has_a_slope():
    """Gradients flow through every reward, by the equity or by what is held."""
    for name in REWARDS:
        after = torch.tensor([101.0, 99.0], dtype=torch.float64, requires_grad=True)
        shares = after.unsqueeze(-1).square() / 2_000
        row = f64([5.0], [5.0])
        one = Outcome(f64(100.0, 100.0), after, f64(1.0, 1.0), f64(1.0, 1.0), row * shares, shares, row)
        reward = parse_reward(name)
        reward(one, memory_of(reward, 2), f64(50.0, 50.0))[0].sum().backward()
        assert after.grad.isfinite().all() and after.grad.abs().sum() > 0, name


# ----------------------------------------------------------------------------------------------- the sum


def test_terms_are_weighed_and_added():
    curve = [100.0, 104.0, 91.0, 93.0, 120.0]
    alone = {name: paid(name, curve, 20.0) for name in REWARDS}
    together = ",".join(f"{name}:{0.5 + i}" for i, name in enumerate(REWARDS))
    expected = [sum((0.5 + i) * alone[n][t] for i, n in enumerate(REWARDS)) for t in range(4)]
    assert paid(together, curve, 20.0) == pytest.approx(expected, rel=1e-12)


def test_what_a_text_says():
    assert parse_reward("excess").weights == (1.0,)
    both = parse_reward(" excess:2, turnover:1e-1  cvar")
    assert both.names == ("excess", "turnover", "cvar") and both.weights == (2.0, 0.1, 1.0)
    assert list(both.memory) == ["cvar.returns", "cvar.loss"]
    assert both.memory["cvar.returns"] == ((CVAR_WINDOW,), 0.0)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("sharpe", "'sharpe': accepted are log_return, excess, differential_sharpe, drawdown, turnover"),
        ("excess:1,drawdwn:2", "'drawdwn': accepted are"),
        ("", "accepted are log_return"),
        ("excess,", "accepted are log_return"),
        ("excess:1,excess:2", "excess is named twice"),
        ("excess:", "the weight of excess is '', accepted are numbers > 0"),
        ("excess:much", "'much'"),
        ("excess:-1", "'-1'"),
        ("excess:0", "'0'"),
        ("turnover:nan", "'nan'"),
        ("turnover:inf", "'inf'"),
    ],
)
def test_what_cannot_be_meant_is_refused(text, says):
    with pytest.raises(InputError) as error:
        parse_reward(text)
    assert says in str(error.value) and "\n" not in str(error.value)


# ------------------------------------------------------------------------------------- in an environment


@pytest.fixture(scope="module")
def market(make_market, random_bars):
    return make_market({s: random_bars(i, 200, sigma=0.03) for i, s in enumerate(("A/USD", "B/USD", "C/USD"))})


def actions(env: MarketVecEnv, steps: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(steps, env.n_envs, 3, generator=generator) * 2 - 1


ALL = ",".join(f"{name}:{0.3 + 0.2 * i}" for i, name in enumerate(REWARDS))


def test_an_episode_adds_up(market):
    """Whole episodes, through the environment: the sums the terms are documented with."""
    sums = {}
    for name in ("log_return", "drawdown", "turnover", "concentration", "cvar"):
        env = MarketVecEnv(market, 1, reward=name, random_start=False, episode_length=60, ruin=0.0)
        curve, traded, herfindahl, total = [100_000.0], 0.0, 0.0, 0.0
        for action in actions(env, 60, 3):
            before = curve[-1]
            step = env.step(action)
            total += step.reward.item()
            curve.append(env.last_equity.item())
            traded += env.traded_value.sum().item() / before
            bar = int(step.final_observation.bar)
            herfindahl += ((env.last_shares[0] * market.mark[bar] / curve[-1]) ** 2).sum().item()
        assert bool(step.truncated)
        scale, top = env.reward_scale.item(), max(curve)
        returns = sorted([b / a - 1 for a, b in zip(curve[:-1], curve[1:], strict=True)] + [0.0] * 40)
        sums[name] = {
            "log_return": scale * math.log(curve[-1] / 100_000),
            "drawdown": -scale * (1 - curve[-1] / top),
            "turnover": -traded,
            "concentration": -herfindahl,
            "cvar": scale * sum(returns[:5]) / 5,
        }[name]
        assert total == pytest.approx(sums[name], rel=1e-4), name
    assert all(abs(value) > 0.1 for value in sums.values())


def test_what_is_remembered_begins_anew(market):
    """The second episode of an environment pays what the same episode pays in a new one."""
    long = MarketVecEnv(market, 2, reward=ALL, episode_length=20, random_start=False, segments=[(40, 100)])
    again = MarketVecEnv(market, 2, reward=ALL, episode_length=20, random_start=False, segments=[(40, 100)])
    for action in actions(long, 20, 1):
        long.step(action)
    reset = MarketVecEnv(market, 2, reward=ALL, episode_length=20, random_start=False, segments=[(40, 100)])
    for action in actions(long, 7, 4):
        reset.step(action)
    reset.reset()
    for action in actions(long, 20, 2):
        expected = again.step(action).reward.clone()
        assert torch.equal(long.step(action).reward, expected) and torch.equal(reset.step(action).reward, expected)
    assert all(value.shape[0] == 2 for value in long.reward_memory.values()) and len(long.reward_memory) == 5


def test_memory_is_allocated_once_and_saved(market):
    env = MarketVecEnv(market, 3, reward=ALL, episode_length=31, seed=4)
    places = {name: value.data_ptr() for name, value in env.reward_memory.items()}
    moves = actions(env, 120, 5)
    for action in moves[:50]:
        env.step(action)
    other = MarketVecEnv(market, 3, reward=ALL, episode_length=31, seed=9)
    other.load_state_dict(env.state_dict())
    for action in moves[50:]:
        assert torch.equal(env.step(action).reward, other.step(action).reward)
    assert places == {name: value.data_ptr() for name, value in env.reward_memory.items()}
    assert {f"reward.{name}" for name in places} <= set(env.state_dict())
    assert not [key for key in MarketVecEnv(market, 1).state_dict() if key.startswith("reward.")]


def test_one_plain_term_is_itself():
    """A weight of one is not multiplied by, and a term alone is not added to: nothing is computed beside it."""
    one = outcome(100.0, 103.0)
    for name in ("excess", "log_return"):
        alone, memory = reward_term(name).value(one, (), f64(3.0))
        value, after = parse_reward(f"{name}:1")(one, [], f64(3.0))
        assert torch.equal(value, alone) and after == list(memory) == []
    with torch.profiler.profile() as profile:
        parse_reward("excess")(one, [], f64(3.0))
    assert sum(e.count for e in profile.key_averages() if e.key in ("aten::mul", "aten::add")) == 1
