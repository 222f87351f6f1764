"""No look-ahead, by perturbation: change every bar after t, and all that is known or decided at t stays, bit for bit.

Every test is turned round as well: with bar t itself changed, what is known at t is another thing. A comparison that
could not fail would prove nothing.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
import torch

from drl_agents.networks.policy import ActorCritic, PolicySpec
from environments.actions import SCHEMES, build_scheme
from environments.bar_table import bar_table
from environments.data.exchange import exchange_sessions
from environments.data.resample import resample_bars
from environments.data.source import BarSet, make_bars
from environments.features import compute_features
from environments.frictions import slippage_table
from environments.market import Market
from environments.market_env import MarketVecEnv
from environments.observation import build_observation
from environments.timeframe import Timeframe

MINUTE = 60 * 10**9
SYMBOLS = ("AAA", "BBB", "CCC", "DDD")
PRICES = ["open", "high", "low", "close"]


# ------------------------------------------------------------------------------------- worlds and their futures


def crypto_clock() -> pd.DatetimeIndex:
    """170 bars of 5 minutes with an outage of two hours and a pause of three days, which ends a segment."""
    stamps = pd.date_range("2023-03-20", periods=170, freq="5min", tz="UTC").to_series()
    stamps.iloc[80:] += pd.Timedelta("2h")
    stamps.iloc[125:] += pd.Timedelta("3D")
    return pd.DatetimeIndex(stamps)


def stock_clock() -> pd.DatetimeIndex:
    """Half hours of New York's sessions around 2024-07-03, a half day before a holiday."""
    nyse = exchange_sessions("XNYS", 2024, 2024)
    days = range(*np.searchsorted(nyse.dates, [pd.Timestamp("2024-06-20").value, pd.Timestamp("2024-07-10").value]))
    stamps = [np.arange(nyse.opens[day], nyse.closes[day], 30 * MINUTE) for day in days]
    return pd.DatetimeIndex(np.concatenate(stamps).astype("datetime64[ns]"), tz="UTC")


def random_bars(clock: pd.DatetimeIndex, seed: int) -> pd.DataFrame:
    """Four symbols on one clock: AAA whole; BBB with holes and idle bars; CCC listed late; DDD in both ways."""
    rng = np.random.default_rng(seed)
    parts = []
    for i, symbol in enumerate(SYMBOLS):
        n = len(clock)
        close = 50 * (i + 1) * np.exp(np.cumsum(rng.normal(0, 0.01, n)))
        opened = np.append(close[0], close[:-1]) * np.exp(rng.normal(0, 0.003, n))
        part = pd.DataFrame(
            {
                "timestamp": clock,
                "symbol": symbol,
                "open": opened,
                "high": np.maximum(opened, close) * (1 + rng.uniform(0, 0.01, n)),
                "low": np.minimum(opened, close) * (1 - rng.uniform(0, 0.01, n)),
                "close": close,
                "volume": rng.uniform(1, 1e6, n) * (rng.random(n) > 0.1 * (i % 2)),
                "marketcap": 1e9 * close * rng.uniform(0.5, 1.5, n),
                "signal": np.where(rng.random(n) < 0.05, np.nan, rng.normal(size=n)),
            }
        )
        listed = clock[40] if i >= 2 else clock[0]
        parts.append(part[(clock >= listed) & (rng.random(n) >= 0.08 * (i % 2))])
    return pd.concat(parts, ignore_index=True)


def as_bars(frame: pd.DataFrame, asset_class: str) -> BarSet:
    return make_bars(
        frame,
        source="memory",
        origin="test bars",
        timeframe=Timeframe(5 if asset_class == "crypto" else 30),
        asset_class=asset_class,
        symbols=SYMBOLS,
        sessions=exchange_sessions("XNYS", 2024, 2024) if asset_class == "stock" else None,
    )


def other_values(frame: pd.DataFrame, after: np.ndarray, rng: np.random.Generator) -> pd.DataFrame:
    """Other prices, volumes and further columns."""
    frame, n = frame.copy(), int(after.sum())
    level = frame.loc[after, "close"].to_numpy() * np.exp(rng.normal(0, 0.5, n))
    opened = level * np.exp(rng.normal(0, 0.1, n))
    frame.loc[after, "open"], frame.loc[after, "close"] = opened, level
    frame.loc[after, "high"] = np.maximum(opened, level) * (1 + rng.random(n))
    frame.loc[after, "low"] = np.minimum(opened, level) * rng.uniform(0.1, 1, n)
    frame.loc[after, "volume"] = rng.uniform(0, 1e9, n) * (rng.random(n) > 0.3)
    frame.loc[after, "marketcap"] = rng.uniform(1, 1e12, n)
    frame.loc[after, "signal"] = rng.normal(0, 100, n)
    return frame


def dropped(frame: pd.DataFrame, after: np.ndarray, rng: np.random.Generator) -> pd.DataFrame:
    """No such bars: the data end here."""
    return frame[~after].reset_index(drop=True)


def holes(frame: pd.DataFrame, after: np.ndarray, rng: np.random.Generator) -> pd.DataFrame:
    """A third of the bars missing, NaN in a market, and further columns unknown."""
    frame = frame.copy()
    frame.loc[after, ["signal", "marketcap"]] = np.nan
    return frame[~(after & (rng.random(len(frame)) < 0.33))].reset_index(drop=True)


def later(frame: pd.DataFrame, after: np.ndarray, rng: np.random.Generator) -> pd.DataFrame:
    """The same bars a minute late."""
    return frame.assign(timestamp=frame["timestamp"].where(~after, frame["timestamp"] + pd.Timedelta("1min")))


FUTURES = (other_values, dropped, holes, later)


class World:
    """A market, and the same with another future."""

    def __init__(self, asset_class: str, seed: int = 0) -> None:
        self.asset_class = asset_class
        self.frame = random_bars(crypto_clock() if asset_class == "crypto" else stock_clock(), seed)
        self.clock = np.unique(self.frame["timestamp"].to_numpy(dtype="datetime64[ns]"))
        self.market = Market.from_bars(as_bars(self.frame, asset_class))

    def with_future(self, t: int, future: Callable, seed: int = 1) -> Market:
        """The market whose bars after bar t are another future's."""
        after = self.frame["timestamp"].to_numpy(dtype="datetime64[ns]") > self.clock[t]
        frame = future(self.frame, after, np.random.default_rng(seed))
        return Market.from_bars(as_bars(frame, self.asset_class))


@pytest.fixture(scope="module", params=["crypto", "stock"])
def world(request) -> World:
    return World(request.param)


@pytest.fixture(scope="module")
def moments(world) -> list[int]:
    """Bars to stand at: about the listing, and four at random after the indicators' warm-up."""
    return [39, 40, *np.random.default_rng(5).integers(90, len(world.clock) - 3, 4).tolist()]


def same_bits(a, b) -> bool:
    """Equal in every bit; all NaN are alike."""
    a, b = (np.asarray(x) for x in (a, b))
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if a.dtype.kind == "f":
        a, b = (np.where(np.isnan(x), np.nan, x).astype(x.dtype) for x in (a, b))
    return a.tobytes() == b.tobytes()


# ---------------------------------------------------------------------------------- what depends on the market


def known(market: Market) -> dict[str, np.ndarray]:
    """All that is computed once per bar, a row for each bar."""
    table = compute_features(market)
    judged = table.ready & market.close.isfinite()
    slip = slippage_table(market, 3)
    found = {
        "timestamps": market.timestamps,
        "segment": market.segment,
        "mark": market.mark,
        "tradable": market.tradable,
        "features": table.values,
        "judged": judged,
        "slippage": slip,
        "bar table, open": bar_table(market, judged, "open", slip),
        "bar table, close": bar_table(market, judged, "close", None, with_volume=True),
        "extra": market.extra,
    }
    for name, kind in SCHEMES.items():
        if kind.n_factors:
            found[f"table of {name}"] = build_scheme(name).table(market, judged)
    return {name: value.numpy() for name, value in found.items()}


@pytest.mark.parametrize("future", FUTURES, ids=lambda f: f.__name__)
def test_what_is_computed_per_bar(world, moments, future):
    before = known(world.market)
    assert before["judged"][moments[2:]].any(1).all() and not before["judged"].all()
    assert any(name.startswith("table of") for name in before)
    for t in moments[2:] if future is dropped else moments:  # without bars an unlisted symbol is no symbol
        after = known(world.with_future(t, future))
        for name, rows in before.items():
            assert same_bits(rows[: t + 1], after[name][: t + 1]), f"{name} at {t}"


def test_what_is_computed_per_bar_depends_on_its_bar(world, moments):
    """The comparison fails where it should: every one of them sees bar t itself."""
    before = known(world.market)
    seen = set()
    for t in moments:
        for future in (other_values, holes, later):
            after = known(world.with_future(t - 1, future))
            seen |= {name for name in before if not same_bits(before[name][t : t + 1], after[name][t : t + 1])}
    assert seen >= set(before) - {"segment"}  # a minute is no pause


@pytest.mark.parametrize("name", compute_features(World("crypto").market).names)
def test_every_feature_depends_on_its_bar(name):
    world = World("crypto", seed=2)
    t = 150
    column = compute_features(world.market).names.index(name)
    rows = [compute_features(m).values[t, :, column] for m in (world.market, world.with_future(t - 1, other_values))]
    assert not same_bits(*rows)


# --------------------------------------------------------------------------------------------------- resampling


def coarse(world: World, frame: pd.DataFrame, want: str, calendar: bool) -> pd.DataFrame:
    """Coarse bars, each with the time at which it is complete."""
    crypto = world.asset_class == "crypto"
    sessions = exchange_sessions("XNYS", 2024, 2024) if calendar else None
    have = Timeframe(5 if crypto else 30)
    frame = frame.sort_values(["symbol", "timestamp"], ignore_index=True)
    out = resample_bars(frame, have, Timeframe.parse(want), world.asset_class, "x", sessions)
    end = out["timestamp"] + pd.Timedelta(Timeframe.parse(want).nanoseconds)
    if not crypto:
        nyse = exchange_sessions("XNYS", 2024, 2024)
        close = pd.to_datetime(nyse.closes[np.searchsorted(nyse.dates, out["timestamp"].dt.floor("D").array.asi8)])
        end = (
            pd.Series(close.tz_localize("UTC")) if want == "1d" else end.clip(upper=pd.Series(close.tz_localize("UTC")))
        )
    return out.assign(end=end)


CASES = [("crypto", "15m", False), ("crypto", "1h", False), ("stock", "1h", True), ("stock", "90m", True),
         ("stock", "1d", True), ("stock", "1h", False)]  # fmt: skip


@pytest.mark.parametrize(("asset_class", "want", "calendar"), CASES)
@pytest.mark.parametrize("future", [other_values, holes, dropped], ids=lambda f: f.__name__)
def test_resampled_bars(asset_class, want, calendar, future):
    world = World(asset_class, seed=3)
    whole = coarse(world, world.frame, want, calendar)
    columns = [*PRICES, "volume", "marketcap", "signal"]
    stamps = world.frame["timestamp"].to_numpy(dtype="datetime64[ns]")
    length = np.timedelta64(5 if asset_class == "crypto" else 30, "m")
    changed = 0
    for t in np.random.default_rng(4).integers(40, len(world.clock) - 2, 6):
        now = pd.Timestamp(world.clock[t] + length, tz="UTC")  # bar t has closed
        frame = future(world.frame, stamps > world.clock[t], np.random.default_rng(t))
        then = coarse(world, frame, want, calendar)
        complete = whole[whole["end"] <= now].set_index(["symbol", "timestamp"])[columns]
        shown = then[then["end"] <= now].set_index(["symbol", "timestamp"])[columns]
        if future is dropped:
            # Nothing is shown that is not complete; of a symbol whose last bars are missing its last may be absent.
            assert len(shown) == len(then)
            lacking = complete.index.difference(shown.index)
            assert lacking.get_level_values(0).is_unique
            complete = complete.loc[complete.index.difference(lacking)]
            shown = shown.loc[shown.index.sort_values()]
        assert list(complete.index) == list(shown.index)
        assert same_bits(complete.to_numpy(), shown.to_numpy())
        unfinished = whole[(whole["timestamp"] <= now) & (whole["end"] > now)]
        changed += len(unfinished)
    assert changed or want == "15m"


@pytest.mark.parametrize(("asset_class", "want", "calendar"), CASES)
def test_resampled_bars_depend_on_the_bars_in_them(asset_class, want, calendar):
    world = World(asset_class, seed=3)
    stamps = world.frame["timestamp"].to_numpy(dtype="datetime64[ns]")
    whole = coarse(world, world.frame, want, calendar)
    frame = other_values(world.frame, stamps > world.clock[120], np.random.default_rng(0))
    then = coarse(world, frame, want, calendar)
    later_ones = whole["end"] > pd.Timestamp(world.clock[122], tz="UTC")
    for name in (*PRICES, "volume", "marketcap", "signal"):
        assert not same_bits(whole.loc[later_ones, name].to_numpy(), then.loc[later_ones, name].to_numpy()), name


# ------------------------------------------------------------------------------ normalisers, accounts, decisions


def environment(market: Market, stop: int | None, **options) -> MarketVecEnv:
    """Three accounts that walk from the first bar on to `stop`, the last bar for None."""
    segments = [(0, market.n_bars if stop is None else stop)]
    common = {
        "episode_length": None,
        "random_start": False,
        "lookback": 3,
        "ruin": 0.0,
        "features": ("return_1", "rsi"),
    }
    return MarketVecEnv(market, 3, segments=segments, **common | options)


@pytest.mark.parametrize("normalizer", ["standard", "quantile"])
@pytest.mark.parametrize("future", FUTURES, ids=lambda f: f.__name__)
def test_normalisers_are_fitted_on_training_bars(world, moments, normalizer, future):
    def statistics(market: Market, t: int) -> dict[str, np.ndarray]:
        env = environment(market, t + 1, features=None)
        policy = ActorCritic(PolicySpec.of(env, normalizer=normalizer), seeds=[0])
        policy.fit_normalizer(env)
        found = {name: value.numpy() for name, value in policy.row_normalizer.named_buffers()}
        return found | {"reward scale": env.reward_scale.numpy()}

    for t in moments[2:4]:
        before, after = statistics(world.market, t), statistics(world.with_future(t, future), t)
        assert before and all(same_bits(before[name], after[name]) for name in before)
        if future is other_values:
            sooner = statistics(world.with_future(t - 1, future), t)
            assert not any(same_bits(before[name], sooner[name]) for name in before)


def run(env: MarketVecEnv, t: int, policy: ActorCritic | None = None) -> dict[int, dict[str, np.ndarray]]:
    """{bar: all that is known and decided at its close} for the 20 bars up to t.

    Actions are random, the same for every market. With a policy, what it makes of each observation is in it, and the
    rewards are not: they are divided by the training window's volatility, and that window goes on beyond t.
    """
    generator = torch.Generator().manual_seed(7)
    space = env.single_action_space
    observation = env.reset()
    seen: dict[int, dict[str, np.ndarray]] = {}
    reward = torch.zeros(env.n_envs)
    while True:
        bar = int(env.bar[0])
        if hasattr(space, "n"):
            action = torch.randint(int(space.n), (env.n_envs,), generator=generator)
        else:
            action = torch.rand(env.n_envs, *space.shape, generator=generator) * 2 - 1
        if bar > t - 20:
            now = env.bar_row(env.bar)
            dense = build_observation(env.rows, observation, env.lookback)
            facts = {
                "observation": dense,
                "equity": env.equity,
                "shares": env.account.shares,
                "cash": env.account.cash,
                "traded": env.traded_value,
                "fees": env.fees,
                "orders": env.scheme.orders(
                    action, env.account, env.equity, now.mark, now.judged, env.rules, env.action_row(env.bar)
                ),
            }
            if policy is None:
                facts["reward"] = reward
            else:
                x = dense.unsqueeze(0)
                log_prob = policy.evaluate(x, action.unsqueeze(0))[0]
                facts |= {"mode": policy.mode(x), "log probability": log_prob, "value": policy.value(x)}
            seen[bar] = {name: value.detach().numpy().copy() for name, value in facts.items()}
            if bar == t:
                return seen
        step = env.step(action)
        observation, reward = step.observation, step.reward
        if bool(step.truncated.any()):
            assert bar == t - 1, "the walk ended early"
            final = build_observation(env.rows, step.final_observation, env.lookback)
            last = {"observation": final, "equity": env.last_equity, "shares": env.last_shares, "reward": reward,
                    "traded": env.traded_value, "fees": env.fees}  # fmt: skip
            return seen | {t: {name: value.numpy().copy() for name, value in last.items()}}


def compare(before: dict, after: dict, t: int) -> None:
    bars = [bar for bar in before if bar <= t]
    assert len(bars) >= 19 and bars == [bar for bar in after if bar <= t]
    for bar in bars:
        assert before[bar].keys() == after[bar].keys()
        for name in before[bar]:
            assert same_bits(before[bar][name], after[bar][name]), f"{name} at {bar}"


OPTIONS = {
    "trades": {"action": "trades", "reward": "excess:1,turnover:0.1,concentration:0.1"},
    "weights at the close": {"action": "weights", "fill_at": "close", "reward": "log_return"},
    "regimes": {"action": "regimes", "features": ("return_1", "rsi", "marketcap"), "reward": "excess:1,drawdown:0.5"},
    "late trades": {"action": "trades", "decision_lag": 3, "reward": "differential_sharpe"},
}


@pytest.mark.parametrize("future", FUTURES, ids=lambda f: f.__name__)
@pytest.mark.parametrize("name", OPTIONS)
def test_a_walk_that_ends_at_t(world, moments, name, future):
    """The training window ends with bar t: observations, fills, accounts and rewards up to it, to the last bit."""
    t = min(moments[2:])
    before = run(environment(world.market, t + 1, **OPTIONS[name]), t)
    assert any(facts["traded"].any() for facts in before.values()) and "reward" in before[t]
    compare(before, run(environment(world.with_future(t, future), t + 1, **OPTIONS[name]), t), t)


@pytest.mark.parametrize("future", [other_values, holes], ids=lambda f: f.__name__)
@pytest.mark.parametrize("name", OPTIONS)
def test_a_walk_that_goes_on(world, moments, name, future):
    """A back-test on to the last bar, with another future after t: what a fitted policy decides at t included."""
    t = min(moments[2:])
    fitted = environment(world.market, t + 1, **OPTIONS[name])
    policy = ActorCritic(PolicySpec.of(fitted, log_std=-1.0), seeds=[0])
    policy.fit_normalizer(fitted)
    with torch.no_grad():
        for head in policy.actor.parameters():
            head.mul_(3.0)  # away from zero, so that every input matters
        before, after = (
            run(environment(market, None, **OPTIONS[name]), t, policy)
            for market in (world.market, world.with_future(t, future))
        )
    compare(before, after, t)
    assert {"mode", "orders", "value"} <= set(before[t])
    # Turned round: with bar t changed, it is seen, valued and decided otherwise.
    with torch.no_grad():
        sooner = run(environment(world.with_future(t - 1, other_values), None, **OPTIONS[name]), t, policy)
    compare(before, sooner, t - 1)
    changed = {fact for fact in before[t] if not same_bits(before[t][fact], sooner[t][fact])}
    assert changed >= {"observation", "equity", "orders", "value", "log probability"}


def test_rewards_and_fills_see_their_own_bar(world, moments):
    """The comparison of walks fails where it should: with bar t changed, its fills and its reward are others."""
    t = moments[2]
    before, sooner = (
        run(environment(market, t + 1, **OPTIONS["trades"]), t)
        for market in (world.market, world.with_future(t - 1, other_values))
    )
    assert {name for name in before[t] if not same_bits(before[t][name], sooner[t][name])} >= {
        "reward",
        "traded",
        "equity",
    }


def test_a_leak_is_found():
    """A feature that peeks one bar ahead is caught by the same comparison."""
    world, t = World("crypto"), 150

    def peeking(market: Market) -> np.ndarray:
        return torch.roll(market.close, -1, 0).log().numpy()

    rows = [peeking(m)[: t + 1] for m in (world.market, world.with_future(t, other_values))]
    assert not same_bits(*rows) and same_bits(*(r[:t] for r in rows))
