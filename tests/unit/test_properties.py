"""What must hold of every environment over a market, whatever the market, the actions and the options."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from environments.errors import InputError
from environments.features import compute_features
from environments.market_env import MarketVecEnv
from environments.observation import Observation, build_observation
from environments.rules import AssetRule, RuleBook

quick = settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
options = st.fixed_dictionaries(
    {
        "action": st.sampled_from(["trades", "weights"]),
        "reward": st.sampled_from(["log_return", "excess"]),
        "decision_lag": st.integers(1, 3),
        "fill_at": st.sampled_from(["open", "close"]),
        "lookback": st.sampled_from([1, 3]),
        "impact_coef": st.sampled_from([0.0, 0.01, 0.4]),
        "commission_bps": st.sampled_from([0.0, 25.0]),
    }
)
fills = st.fixed_dictionaries(
    {
        "fee_in": st.sampled_from(["quote", "received"]),
        "participation": st.sampled_from([None, 0.001]),
        "impact_reference": st.sampled_from(["portfolio", "volume"]),
    }
)
loans = st.builds(
    lambda kind, rate: {**kind, "borrow_bps": rate, "margin_rate_bps": rate},
    kind=st.sampled_from([{"margin": 2.0}, {"shorting": True}, {"margin": 4.0, "shorting": True}]),
    rate=st.sampled_from([0.0, 5_000.0]),
)
seeds = st.integers(0, 2**32)
EPSILON = torch.finfo(torch.float64).eps
INCREMENTS = (1e-9, 0.01, 1.0)
RULES = {f"S{i}/USD": AssetRule(step, step, 5.0) for i, step in enumerate(INCREMENTS)}


def some_bars(random_bars, seed: int, ticks: int = 90) -> dict:
    """Three assets: one complete, one with holes, one listed late; wild moves and bars without volume."""
    draw = random.Random(seed)
    kinds = ({}, {"missing": 0.15, "idle": 0.1}, {"listed": 30, "jump": 0.05})
    return {
        f"S{i}/USD": random_bars(draw.getrandbits(32), ticks, price=draw.choice([0.3, 20.0, 900.0]), sigma=0.04, **kind)
        for i, kind in enumerate(kinds)
    }


def actions_of(env: MarketVecEnv, steps: int, seed: int) -> torch.Tensor:
    """(steps, N, ...) random actions, full ones more often than chance."""
    generator = torch.Generator().manual_seed(seed)
    shape = (steps, env.n_envs, *env.single_action_space.shape)
    action = torch.rand(shape, generator=generator) * 2 - 1
    return torch.where(torch.rand(shape, generator=generator) < 0.3, action.sign(), action)


@quick
@given(seed=seeds, options=options, fills=fills)
def test_value_is_conserved_and_nothing_is_overdrawn(seed, options, fills, make_market, random_bars):
    """Cash and shares at the fill prices: after = before - fees. Cash and positions never below zero."""
    market = make_market(some_bars(random_bars, seed))
    env = MarketVecEnv(market, 6, rules=RuleBook("crypto", RULES), features=("return_1",), ruin=0.0, **options, **fills)
    quote = market.open if options["fill_at"] == "open" else market.close
    increments = torch.tensor(INCREMENTS, dtype=torch.float64)
    credited = 1 - options["commission_bps"] * 1e-4 if fills["fee_in"] == "received" else 1.0
    peak = torch.zeros(6, 3, dtype=torch.float64)
    for action in actions_of(env, 120, seed):
        bar = env.bar + 1
        cash, shares = env.account.cash.clone(), env.account.shares.clone()
        step = env.step(action)
        price = torch.where(quote[bar].isnan() | ~market.tradable[bar], market.mark[bar], quote[bar])
        before = cash + (shares * price).sum(-1)
        after = env.last_equity + (env.last_shares * (price - market.mark[bar])).sum(-1)
        assert torch.allclose(before, after + env.fees, rtol=1e-10, atol=1e-6)
        assert (env.fees >= 0).all() and (env.account.cash >= 0).all() and (env.last_shares >= 0).all()
        cash_left = env.last_equity - (env.last_shares * market.mark[bar]).sum(-1)
        assert (cash_left >= -1e-9 * env.last_equity.abs() - 1e-9).all()
        # Off the grid only by the rounding of the largest position it was ever part of; where the venue keeps a part
        # of what is bought, what was ordered is on it, and no sale leaves less than an increment.
        peak = torch.maximum(peak, env.last_shares)
        moved = env.last_shares - shares
        units = env.last_shares if credited == 1 else (moved / credited).clamp(min=0)
        off = units - (units / increments).round() * increments
        assert (off.abs() <= 1e-9 * increments + 64 * EPSILON * peak).all()
        sold = (moved < 0) & (env.last_shares > 0)
        assert (env.last_shares >= (1 - 1e-6) * increments - 64 * EPSILON * peak)[sold].all()
        assert torch.allclose(moved.abs() * price, env.traded_value, rtol=1e-9, atol=1e-6)
        assert (moved[~market.tradable[bar]] == 0).all()
        if fills["participation"]:
            most = fills["participation"] * market.volume[bar].nan_to_num()
            assert (moved.abs() <= most + increments).all()
        assert step.reward.isfinite().all()


@quick
@given(seed=seeds, options=options, fills=fills, loan=loans)
def test_value_is_conserved_on_margin(seed, options, fills, loan, make_market, random_bars):
    """The same with shorts, debts and forced closes; what opens a position stays within the limit, costs included."""
    market = make_market(some_bars(random_bars, seed), asset_class="stock")
    fills = {**fills, "fee_in": "quote"}
    own = RuleBook("stock", RULES)
    env = MarketVecEnv(market, 6, rules=own, features=("return_1",), ruin=0.0, **options, **fills, **loan)
    quote = market.open if options["fill_at"] == "open" else market.close
    increments, terms = torch.tensor(INCREMENTS, dtype=torch.float64), env.margin
    peak, short, owing = torch.zeros(6, 3, dtype=torch.float64), 0, 0
    for action in actions_of(env, 120, seed):
        bar = env.bar + 1
        cash, shares = env.account.cash.clone(), env.account.shares.clone()
        step = env.step(action)
        mark = market.mark[bar]
        price = torch.where(quote[bar].isnan() | ~market.tradable[bar], mark, quote[bar])
        before = cash + (shares * price).sum(-1)
        after = env.last_equity + (env.last_shares * (price - mark)).sum(-1)
        held, moved = env.last_shares, env.last_shares - shares
        value = held * mark
        closed = step.terminated  # by force, or with nothing left (ruin=0)
        assert not held[closed & (env.last_equity > 0)].any()
        assert torch.allclose(before[~closed], (after + env.fees)[~closed], rtol=1e-10, atol=1e-6)
        least = terms.maintenance_margin * value.clamp(min=0).sum(-1)
        least -= terms.maintenance_margin_short * value.clamp(max=0).sum(-1)
        assert (env.last_equity >= least - 1e-9 * value.abs().sum(-1))[~closed].all()
        opened = (held.abs() > shares.abs()).any(-1) | (held * shares < 0).any(-1)
        if not loan["borrow_bps"]:  # nor interest: the costs are those of the fills
            gross = (held.abs() * price).sum(-1)
            assert (gross <= terms.margin * after * (1 + 1e-9) + 1e-6)[opened & ~closed].all()
        assert terms.shorting or (held >= -1e-12).all()
        peak = torch.maximum(peak, held.abs())
        off = held - (held / increments).round() * increments
        assert (off.abs() <= 1e-9 * increments + 64 * EPSILON * peak).all()
        assert (moved[~market.tradable[bar] & ~closed.unsqueeze(-1)] == 0).all()
        assert step.reward.isfinite().all() and step.final_observation.state.isfinite().all()
        short, owing = short + int((held < 0).sum()), owing + int((env.account.cash < 0).sum())
    assert not terms.shorting or short > 0
    assert terms.margin == 1 or terms.shorting or options["action"] != "weights" or owing > 0


@quick
@given(seed=seeds, options=options)
def test_only_judged_assets_are_ordered(seed, options, make_market, random_bars):
    """Nothing is ordered in an asset's first 33 bars, which all features together need, nor in its gaps."""
    market = make_market(some_bars(random_bars, seed, ticks=110))
    table = compute_features(market)
    env = MarketVecEnv(market, 4, rules=RuleBook("crypto", RULES), **options)
    lag = options["decision_lag"]
    for action in actions_of(env, 80, seed):
        decided = env.bar + 1 - lag
        started = env.bar - env.elapsed
        shares = env.account.shares.clone()
        env.step(action)
        traded = env.last_shares != shares
        # What fills now was decided `lag` bars before the fill, in the same episode.
        assert not (traded & (decided < started).unsqueeze(-1)).any()
        assert not (traded & ~table.ready[decided.clamp(min=0)]).any()
    own_bars = market.close.isfinite().cumsum(0)
    assert not (table.ready & (own_bars <= 33)).any()
    assert table.ready[(own_bars > 33) & market.close.isfinite()].float().mean() > 0.5


@quick
@given(seed=seeds, options=options, cut=st.integers(45, 85))
def test_the_future_changes_nothing(seed, options, cut, make_market, random_bars):
    """Every bar after `cut` is replaced: up to the decision at `cut` all is the same, bit for bit."""
    bars, other = some_bars(random_bars, seed), some_bars(random_bars, seed + 1)
    changed = {s: bars[s][: cut + 1] + other[s][cut + 1 :] for s in bars}
    runs = []
    for market in (make_market(bars), make_market(changed)):
        env = MarketVecEnv(
            market,
            1,
            rules=RuleBook("crypto", RULES),
            random_start=False,
            episode_length=None,
            ruin=0.0,
            **options,
        )
        # The scale is a constant of the whole training range, not something seen at a bar.
        env.reward_scale.fill_(1.0)
        observation, log, moved = env.reset(), [env.rows[: cut + 1]], 0.0
        for action in actions_of(env, cut - int(env.bar), seed + 2):
            dense = build_observation(env.rows, observation, env.lookback)
            row = env.bar_row(env.bar)
            orders = env.scheme.orders(action, env.account, env.equity, row.mark, row.judged, env.rules)
            step = env.step(action)
            observation = step.observation
            log += [dense, orders, *env.account, env.equity, env.fees, env.traded_value, env.pending]
            log += [step.reward, step.terminated, step.truncated]
            log = [x.clone() for x in log]
            moved += float(env.traded_value.sum())
        assert int(env.bar) == cut and moved > 0
        row = env.bar_row(env.bar)
        last = actions_of(env, 1, seed + 3)[0]
        log.append(env.scheme.orders(last, env.account, env.equity, row.mark, row.judged, env.rules))
        log.append(build_observation(env.rows, observation, env.lookback))
        runs.append((market, log))
    (one, first), (two, second) = runs
    assert not torch.equal(one.close[cut + 1 :].nan_to_num(), two.close[cut + 1 :].nan_to_num())
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        assert a.dtype == b.dtype and torch.equal(a.nan_to_num(123.0), b.nan_to_num(123.0))


@quick
@given(seed=seeds, options=options)
def test_together_equals_alone(seed, options, make_market, random_bars):
    """Environment j of N is the environment that walks segment j by itself."""
    market = make_market(some_bars(random_bars, seed), pauses={20: "48h", 55: "48h"})
    ranges = [(a, b) for a, b in market.segments() if b - a > 10] + [(30, 50)]
    keep = dict(
        rules=RuleBook("crypto", RULES),
        features=("return_1", "range"),
        random_start=False,
        episode_length=13,
        **options,
    )
    many = MarketVecEnv(market, len(ranges), segments=ranges, **keep)
    alone = [MarketVecEnv(market, 1, segments=[one], **keep) for one in ranges]
    for env in alone:  # constants of the range they were made over
        env.reward_scale.copy_(many.reward_scale[:1])
    for action in actions_of(many, 60, seed):
        together = many.step(action)
        for j, env in enumerate(alone):
            step = env.step(action[j : j + 1])
            pairs = [(together.reward, step.reward), (together.truncated, step.truncated)]
            pairs += [
                (together.terminated, step.terminated),
                (many.last_equity, env.last_equity),
                (many.fees, env.fees),
            ]
            pairs += list(zip(many.account, env.account, strict=True))
            pairs += list(zip(together.observation, step.observation, strict=True))
            pairs += list(zip(together.final_observation, step.final_observation, strict=True))
            for a, b in pairs:
                assert torch.equal(a[j : j + 1], b)


def test_a_member_does_not_notice_the_others(make_market, random_bars):
    """Member p of three, on random starts and its own segments, runs as it does alone with its seed."""
    market = make_market(some_bars(random_bars, 5, ticks=200))
    segments = [[(0, 90)], [(60, 150), (160, 200)], [(40, 200)]]
    keep = dict(rules=RuleBook("crypto", RULES), features=("return_1",), episode_length=9)
    many = MarketVecEnv(market, 12, n_members=3, segments=segments, seed=[11, 22, 33], **keep)
    alone = [MarketVecEnv(market, 4, segments=s, seed=x, **keep) for s, x in zip(segments, (11, 22, 33), strict=True)]
    for action in actions_of(many, 300, 1):  # beyond one block of random starts
        together = many.step(action)
        for p, env in enumerate(alone):
            own = slice(4 * p, 4 * p + 4)
            step = env.step(action[own])
            assert torch.equal(together.observation.bar[own], step.observation.bar)
            assert torch.equal(together.reward[own], step.reward)
            assert torch.equal(together.observation.state[own], step.observation.state)
    means, spreads = many.normalizer_stats()
    for p, env in enumerate(alone):
        assert torch.equal(env.normalizer_stats()[0][0], means[p]) and torch.equal(
            env.normalizer_stats()[1][0], spreads[p]
        )


def test_an_observation_is_the_last_rows_and_the_account():
    rows = torch.arange(10, dtype=torch.float32).view(5, 2)
    seen = Observation(torch.tensor([3, 1]), torch.tensor([[0.5], [0.25]]))
    nan = float("nan")
    want = torch.tensor([[2.0, 3, 4, 5, 6, 7, 0.5], [nan, nan, 0, 1, 2, 3, 0.25]])
    assert torch.equal(build_observation(rows, seen, 3).nan_to_num(99.0), want.nan_to_num(99.0))
    assert build_observation(rows, seen, 1).tolist() == [[6.0, 7.0, 0.5], [2.0, 3.0, 0.25]]
    assert build_observation(None, Observation(None, seen.state), 1).tolist() == [[0.5], [0.25]]


# ----------------------------------------------------------------------------------------------- episodes


@pytest.mark.parametrize("length", [None, 6])
def test_no_episode_crosses_a_pause_and_starts_cover_every_legal_bar(length, make_market, random_bars):
    market = make_market({"S0/USD": random_bars(1, 60)}, pauses={20: "48h", 45: "48h"})
    assert market.segments() == [(0, 20), (20, 45), (45, 60)]
    env = MarketVecEnv(market, 32, features=("return_1",), lookback=4, episode_length=length)
    started, ended = set(env.bar.tolist()), set()
    still = torch.zeros(32, 1)
    for _ in range(200):
        before = env.bar.clone()
        step = env.step(still)
        reached = step.final_observation.bar
        assert (market.segment[before] == market.segment[reached]).all() and (reached == before + 1).all()
        over = step.truncated
        ended |= set(reached[over].tolist())
        started |= set(step.observation.bar[over].tolist())
        assert (market.segment[env.stop - 1] == market.segment[env.bar]).all()
    # The first three bars have no four behind them; the last of a segment leaves no step to take.
    room = 1 if length is None else length
    assert started == {t for a, b in market.segments() for t in range(max(a, 3), b - room)}
    if length is None:
        assert ended == {19, 44, 59}
    else:
        assert ended == {t + length for t in started}


def test_starts_are_equally_likely(make_market, random_bars):
    market = make_market({"S0/USD": random_bars(1, 52)})
    env = MarketVecEnv(market, 500, features=("return_1",), episode_length=1)
    counts = np.zeros(52)
    for _ in range(100):
        counts += np.bincount(env.bar.numpy(), minlength=52)
        env.step(torch.zeros(500, 1))
    legal = counts[1:51]  # bar 0 has no return yet
    assert counts[0] == counts[51] == 0 and legal.min() > 850 and legal.max() < 1_150  # 1,000 +- 32


def test_walks_go_from_first_to_last_bar(make_market, random_bars):
    """Every window is walked whole, again and again; the environment beyond them takes the first again."""
    market = make_market({"S0/USD": random_bars(1, 60)}, pauses={30: "48h"})
    env = MarketVecEnv(
        market,
        3,
        segments=[(5, 17), (30, 60)],
        features=("return_1",),
        random_start=False,
        episode_length=None,
    )
    paths = [[] for _ in range(3)]
    for _ in range(60):
        before = env.bar.tolist()
        step = env.step(torch.zeros(3, 1))
        for j in range(3):
            paths[j].append((before[j], int(step.final_observation.bar[j]), bool(step.truncated[j])))
    for j, (a, b) in enumerate([(5, 17), (30, 60), (5, 17)]):
        walk = [(t, t + 1, t == b - 2) for t in range(a, b - 1)]
        assert paths[j] == (walk * 60)[:60]


def test_bad_segments_are_refused(make_market, random_bars):
    market = make_market({"S0/USD": random_bars(1, 60)}, pauses={30: "48h"})
    for wrong in ([(0, 60)], [(40, 90)], [(-5, 20)], [(20, 20)]):
        with pytest.raises(InputError, match="segment"):
            MarketVecEnv(market, 1, segments=wrong, features=("return_1",))
    for empty in ([], [[]]):  # nothing to train on is not everything to train on
        with pytest.raises(InputError, match=r"no episode fits|lookback"):
            MarketVecEnv(market, 1, segments=empty, features=("return_1",))
    with pytest.raises(InputError, match="lookback"):
        MarketVecEnv(market, 1, segments=[(2, 12)], features=("return_1",), lookback=20)
    with pytest.raises(InputError, match="decision_lag"):
        MarketVecEnv(market, 1, decision_lag=0)


def test_ruin_ends_an_episode_and_the_next_one_forgets_it(flat_market):
    """All in at 10, then the price falls to 1: terminated, not truncated, though the data end there too."""
    prices = [[10.0], [10.0], [10.0], [10.0], [0.5]]
    market = flat_market(prices, prices)
    env = MarketVecEnv(
        market, 1, features=("return_1",), random_start=False, action="weights", commission_bps=0.0,
        spread_bps=0.0, slippage_bps=0.0, impact_coef=0.0, episode_length=None, reward="log_return",
    )  # fmt: skip
    all_in = torch.tensor([[1.0, -1.0]])
    env.step(all_in), env.step(all_in)
    step = env.step(all_in)
    assert bool(step.terminated) and not bool(step.truncated)
    assert float(env.last_equity) == pytest.approx(5_000, rel=1e-2)
    assert int(step.final_observation.bar) == 4 and int(env.bar) == 1
    assert float(env.equity) == float(env.account.cash) == 100_000.0
    assert float(env.account.shares) == float(env.account.entry) == float(env.account.idle) == 0.0
    assert step.observation.state.tolist() == [[1.0, 0.0, 0.0, 0.0]]
    assert float(step.final_observation.state[0, 1]) > 0.9


def test_orders_fill_a_bar_later_at_its_open(flat_market):
    """Decided at the close of bar 1 (100), filled at the open of bar 2 (120), not at the price seen."""
    market = flat_market([[90.0], [95.0], [120.0], [80.0], [70.0]], [[90.0], [100.0], [110.0], [75.0], [70.0]])
    free = dict(commission_bps=0.0, spread_bps=0.0, slippage_bps=0.0, impact_coef=0.0)
    for lag, fill_at, price in (
        (1, "open", 120.0),
        (1, "close", 110.0),
        (2, "open", 80.0),
        (2, "close", 75.0),
    ):
        env = MarketVecEnv(
            market, 1, features=("return_1",), random_start=False, decision_lag=lag, fill_at=fill_at,
            max_trade=0.5, episode_length=None, rules=RuleBook("crypto", {"S0": AssetRule(1.0, 1.0, 0.0)}),
            **free,
        )  # fmt: skip
        assert int(env.bar) == 1
        env.step(torch.ones(1, 1))
        for _ in range(lag - 1):
            assert float(env.traded_value) == 0.0
            env.step(torch.zeros(1, 1))
        # Half of 100,000 at 100 is 500 shares, whatever they then cost.
        assert float(env.last_shares) == 500.0 and float(env.traded_value) == 500 * price
        assert float(env.account.entry) == price and float(env.account.cash) == 100_000 - 500 * price


def test_log_returns_sum_to_the_episode(make_market, random_bars):
    market = make_market(some_bars(random_bars, 3))
    env = MarketVecEnv(market, 1, reward="log_return", random_start=False, episode_length=None, features=("return_1",))
    total, over = 0.0, False
    for action in actions_of(env, 200, 1):
        step = env.step(action)
        total += float(step.reward) / float(env.reward_scale)
        if over := bool(step.terminated | step.truncated):
            break
    assert over and total == pytest.approx(float((env.last_equity / 100_000).log()), abs=1e-5)


def test_excess_of_the_holder_is_nothing(flat_market):
    """One asset, all in, no costs, open = last close: the holder's return is one's own."""
    closes = [[100.0 * 1.01**t * (1 + 0.1 * (t % 3))] for t in range(12)]
    market = flat_market([closes[0], *closes[:-1]], closes)
    env = MarketVecEnv(
        market, 1, features=("return_1",), random_start=False, action="weights", sharpness=100.0,
        reward="excess", commission_bps=0.0, spread_bps=0.0, slippage_bps=0.0, impact_coef=0.0,
    )  # fmt: skip
    for _ in range(10):
        assert float(env.step(torch.tensor([[1.0, -1.0]])).reward) == pytest.approx(0.0, abs=1e-5)


def test_saved_and_restored(make_market, random_bars):
    market = make_market(some_bars(random_bars, 9))
    env = MarketVecEnv(market, 5, features=("return_1",), episode_length=11, decision_lag=3, seed=4)
    actions = actions_of(env, 160, 2)
    for action in actions[:75]:
        env.step(action)
    saved = env.state_dict()
    other = MarketVecEnv(market, 5, features=("return_1",), episode_length=11, decision_lag=3, seed=99)
    other.load_state_dict(saved)
    for action in actions[75:]:
        a, b = env.step(action), other.step(action)
        assert torch.equal(a.reward, b.reward) and torch.equal(a.observation.bar, b.observation.bar)
        assert torch.equal(a.observation.state, b.observation.state) and torch.equal(a.truncated, b.truncated)


# ------------------------------------------------------------------------------------------------- market


def test_market_aligns_without_filling(make_market):
    one, two = (1.0, 2.0, 0.5, 1.5, 10.0), (2.0, 2.5, 1.0, 2.0, 0.0)
    market = make_market({"B/USD": [None, one, None, two], "A/USD": [two, None, one, one]})
    assert market.symbols == ("B/USD", "A/USD") and market.n_bars == 4
    assert market.close.isnan().tolist() == [[True, False], [False, True], [True, False], [False, False]]
    assert market.mark.tolist() == [[0.0, 2.0], [1.5, 2.0], [1.5, 1.5], [2.0, 1.5]]
    assert market.tradable.tolist() == [[False, False], [True, False], [False, True], [False, True]]
    assert market.bars_per_year == 365.25 * 24


def test_pauses_end_segments(make_market, random_bars):
    bars = {"A": random_bars(1, 12)}
    assert make_market(bars, pauses={5: "23h"}).segments() == [(0, 12)]  # 24 hours from open to open
    assert make_market(bars, pauses={5: "24h"}).segments() == [(0, 5), (5, 12)]
    assert make_market(bars, asset_class="stock", pauses={5: "72h"}).segments() == [(0, 12)]
    # A bar longer than the longest pause does not end a segment by itself.
    assert make_market(bars, timeframe="7d").segments() == [(0, 12)]
    assert make_market(bars, timeframe="30d", asset_class="stock", pauses={4: "24h"}).segments() == [
        (0, 4),
        (4, 12),
    ]
