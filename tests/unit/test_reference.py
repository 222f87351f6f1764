"""The vectorised environment against a second set of books in plain floats, step by step."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from environments.market_env import MarketVecEnv
from environments.rules import AssetRule, RuleBook
from tests.reference.books import Asset, Costs, ReferenceBooks, Rule, Setup

TOLERANCE = 1e-9
# What was compared in this session: shown by `pytest -s`, and asserted on at the end.
seen = {"steps": 0, "error": 0.0, "episodes": 0, "trades": 0, "schemes": set(), "rewards": set(), "regimes": 0}

costs = st.builds(
    Costs,
    commission_bps=st.sampled_from([0.0, 25.0, 300.0]),
    spread_bps=st.sampled_from([0.0, 2.0, 100.0]),
    slippage_bps=st.sampled_from([0.0, 5.0, 200.0]),
    impact_coef=st.sampled_from([0.0, 0.01, 0.3]),
)
rules = st.sampled_from(
    [
        Rule(1e-9, 1e-9, 1.0),
        Rule(1e-4, 1e-4, 10.0),
        Rule(0.1, 0.1, 10.0),
        Rule(1.0, 1.0, 0.0),
        Rule(0.3, 2.1, 700.0),
    ]
)
worlds = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 2**32),
        "ticks": st.integers(12, 60),
        "assets": st.lists(rules, min_size=1, max_size=4),
        "missing": st.sampled_from([0.0, 0.15]),
        "idle": st.sampled_from([0.0, 0.1]),
        "jump": st.sampled_from([0.0, 0.1]),
        "pause": st.booleans(),
        "costs": costs,
        "scheme": st.sampled_from(["trades", "weights", "signal_size", "regimes"]),
        "max_trade": st.sampled_from([0.1, 0.5, 1.0]),
        "sharpness": st.sampled_from([1.0, 5.0, 50.0]),
        "threshold": st.sampled_from([0.0, 0.1, 0.5]),
        "reward": st.sampled_from(
            [
                {"log_return": 1.0},
                {"excess": 1.0},
                {"differential_sharpe": 1.0},
                {"excess": 1.0, "turnover": 0.1, "drawdown": 0.5},
                {"concentration": 0.3, "cvar": 2.0, "log_return": 0.5},
            ]
        ),
        "lag": st.integers(1, 3),
        "fill_at": st.sampled_from(["open", "close"]),
        "ruin": st.sampled_from([0.0, 0.1, 0.7]),
        "episode_length": st.sampled_from([None, 1, 7]),
        "cash": st.sampled_from([50.0, 1_000.0, 1e6]),
    }
)


def relative(a: float, b: float, scale: float) -> float:
    return abs(a - b) / max(abs(a), abs(b), scale)


def compare(world: dict, make_market, random_bars, steps: int = 30) -> None:
    """Play one random world on both sets of books and assert that every number agrees."""
    draw = random.Random(world["seed"])
    bars = {}
    assets = world["assets"][:1] if world["scheme"] == "signal_size" else world["assets"]
    for i in range(len(assets)):
        bars[f"S{i}/USD"] = random_bars(
            draw.getrandbits(32), world["ticks"], price=draw.choice([0.07, 3.0, 100.0, 60_000.0]), sigma=0.05,
            missing=world["missing"], idle=world["idle"], jump=world["jump"],
            # Asset 0 is there from the start, so that the clock is.
            listed=0 if i == 0 else draw.choice([0, 0, 5, world["ticks"] - 2]),
        )  # fmt: skip
    if world["missing"]:
        bars["S0/USD"] = [b or (1.0, 2.0, 0.5, 1.5, 0.0) for b in bars["S0/USD"]]  # bars nobody traded in
    market = make_market(bars, pauses={world["ticks"] // 2: "120h"} if world["pause"] else None)
    overrides = {
        symbol: AssetRule(rule.increment, rule.min_quantity, rule.min_notional)
        for symbol, rule in zip(bars, assets, strict=True)
    }
    n = 5
    env = MarketVecEnv(
        market, n, action=world["scheme"],
        max_trade=world["max_trade"] if world["scheme"] == "trades" else None,
        sharpness=world["sharpness"] if world["scheme"] == "weights" else None,
        threshold=world["threshold"] if world["scheme"] == "signal_size" else None,
        reward=",".join(f"{term}:{weight}" for term, weight in world["reward"].items()),
        episode_length=world["episode_length"], initial_cash=world["cash"],
        ruin=world["ruin"], decision_lag=world["lag"], fill_at=world["fill_at"], slippage_seed=7,
        rules=RuleBook("crypto", overrides), features=("return_1",), seed=world["seed"] % 1000,
        **vars(world["costs"]),
    )  # fmt: skip
    setup = Setup(
        assets=[Asset(s, own, r) for (s, own), r in zip(bars.items(), assets, strict=True)],
        clock=market.timestamps.tolist(), ranges=market.segments(), costs=world["costs"],
        scheme=world["scheme"], max_trade=world["max_trade"], sharpness=world["sharpness"],
        threshold=world["threshold"], reward=world["reward"], lag=world["lag"], fill_at=world["fill_at"],
        initial_cash=world["cash"], ruin=world["ruin"],
        episode_length=world["episode_length"], slippage_seed=7, warm_up=1,
    )  # fmt: skip
    seen["schemes"].add(world["scheme"])
    seen["rewards"] |= set(world["reward"])
    books = [ReferenceBooks(setup) for _ in range(n)]
    observation = env.reset()
    for book, start, stop in zip(books, observation.bar.tolist(), env.stop.tolist(), strict=True):
        book.begin(start, stop)
    for _ in range(steps):
        # Ends of the range more often than uniform numbers would: full buys and full exits.
        if world["scheme"] == "regimes":
            batch = torch.tensor([draw.randrange(12) for _ in range(n)])
        else:
            width = env.single_action_space.shape[0]
            numbers = [draw.choice([-1.0, 1.0, draw.uniform(-1.3, 1.3)]) for _ in range(n * width)]
            batch = torch.tensor(numbers, dtype=torch.float32).view(n, width)
        step = env.step(batch)
        final = step.final_observation
        for i, book in enumerate(books):
            want = book.step(batch[i].tolist())  # an int where actions are choices
            seen["steps"] += 1
            # Beyond the first window of 20 bars the twelve portfolios differ.
            seen["regimes"] += world["scheme"] == "regimes" and want.tick > 21 and sum(want.traded_value) > 0
            seen["trades"] += sum(value > 0 for value in want.traded_value)
            assert (bool(step.terminated[i]), bool(step.truncated[i])) == (want.terminated, want.truncated)
            assert int(final.bar[i]) == want.tick
            ended = want.terminated or want.truncated
            # Amounts are judged against the account's size: a residue of 1e-12 beside 1e6 is zero.
            worth = max(want.equity, 1e-3 * world["cash"])
            pairs = [
                (float(env.last_equity[i]), want.equity, worth),
                (float(env.fees[i]), want.fees, worth),
                (float(env.traded_value[i].sum()), sum(want.traded_value), worth),
                # The reward leaves the environment as float32.
                (float(step.reward[i]), float(torch.tensor(want.reward, dtype=torch.float32)), 200.0),
            ]
            pairs += [
                (have, own, 1e-3 * worth / (asset.mark(want.tick) or worth))
                for have, own, asset in zip(env.last_shares[i].tolist(), want.shares, setup.assets, strict=True)
            ]
            if not ended:
                pairs.append((float(env.account.cash[i]), want.cash, worth))
                pairs += list(zip(env.account.entry[i].tolist(), want.entry, [1e-9] * len(bars), strict=True))
                pairs += list(zip(env.account.idle[i].tolist(), want.idle, [1.0] * len(bars), strict=True))
            for have, own, scale in pairs:
                error = relative(have, own, scale)
                seen["error"] = max(seen["error"], error)
                assert error <= TOLERANCE, f"{have} instead of {own}"
            assert final.state[i].tolist() == pytest.approx(want.vector, rel=1e-5, abs=1e-6)
            if ended:
                seen["episodes"] += 1
                assert float(env.account.cash[i]) == float(env.equity[i]) == world["cash"]
                book.begin(int(env.bar[i]), int(env.stop[i]))


@settings(max_examples=120, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(world=worlds)
def test_books_agree(world, make_market, random_bars):
    compare(world, make_market, random_bars)


@pytest.mark.slow
@settings(max_examples=1_000, deadline=None, suppress_health_check=list(HealthCheck))
@given(world=worlds)
def test_books_agree_at_length(world, make_market, random_bars):
    compare(world, make_market, random_bars, steps=40)


def test_enough_was_compared(make_market, random_bars):
    """A comparison in which nothing is traded or no episode ends would agree about nothing."""
    if not seen["steps"]:
        pytest.skip("only counts what the comparison in this file did")
    print(f"\n{seen['steps']} steps, {seen['trades']} trades, {seen['episodes']} episodes, error {seen['error']:.1e}")
    assert seen["steps"] >= 5_000 and seen["trades"] >= seen["steps"] // 4 and seen["episodes"] >= 100
    assert len(seen["schemes"]) == 4 and len(seen["rewards"]) == 7 and seen["regimes"] >= 200
