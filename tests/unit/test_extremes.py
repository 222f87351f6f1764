"""Bars that break naive books, as they happened and made again by hand.

Every event is met twice: "real" on the bars it happened in (skipped where those are not beside the project) and
"remade" in a small market with the same event in it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch

from environments.data.source import load_bars
from environments.features import compute_features
from environments.market import Market
from environments.market_env import MarketVecEnv

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
HOURLY, FIVE_MINUTES = "crypto_1h_binance_2018_2024.parquet", "crypto_5m_binance_2022_2023.parquet"
DOW = "us_daily_dow30_mega8_2004_2021.parquet"
EVENT = 80  # the tick of the event in a remade market
FREE = {"commission_bps": 0.0, "spread_bps": 0.0, "slippage_bps": 0.0, "impact_coef": 0.0}


class World(NamedTuple):
    """A market, the bar its event happens in, and the asset (column) it happens to."""

    market: Market
    bar: int
    asset: int


class Event(NamedTuple):
    """Where an event is found, and how it is made: `remake(bars of asset 0)` changes or removes ticks."""

    file: str
    symbols: tuple[str, ...]  # the one it happens to first
    start: str
    end: str
    moment: str
    remake: Callable[[list], list]
    timeframe: str = "1h"
    asset_class: str = "crypto"
    pauses: dict[int, str] = {}  # noqa: RUF012


def wick(bars):
    """One low of a ten-thousandth of the price."""
    o, h, _, c, v = bars[EVENT]
    return [*bars[:EVENT], (o, h, 1e-4 * min(o, c), c, v), *bars[EVENT + 1 :]]


def outage(bars):
    """14 bars without volume at one price, then (see `pauses`) none for a while."""
    price = bars[EVENT - 1][3]
    return [*bars[:EVENT], *[(price, price, price, price, 0.0)] * 14, *bars[EVENT + 14 :]]


def surge(bars):
    """A close 70% above the one before."""
    o, _, low, _, v = bars[EVENT]
    last = 1.7 * bars[EVENT - 1][3]
    scale = last / bars[EVENT][3]
    after = [(*(scale * price for price in bar[:4]), bar[4]) for bar in bars[EVENT + 1 :]]
    return [*bars[:EVENT], (o, last, low, last, v), *after]


def idle(bars):
    o, *rest, _ = bars[EVENT]
    return [*bars[:EVENT], (o, *rest, 0.0), *bars[EVENT + 1 :]]


def halt(bars):
    return [*bars[:EVENT], None, *bars[EVENT + 1 :]]


def listing(bars):
    return [None] * EVENT + bars[EVENT:]


def split(bars):
    """Adjusted as the real bars are: the price goes on smoothly, four times as many shares change hands."""
    return [*bars[:EVENT], *[(*bar[:4], 4 * bar[4]) for bar in bars[EVENT:]]]


EVENTS = {
    "wick": Event(HOURLY, ("LINKUSDT", "BTCUSDT"), "2020-03-08", "2020-03-16", "2020-03-12 10:00", wick),
    "outage": Event(FIVE_MINUTES, ("BTCUSDT", "AAVEUSDT"), "2023-03-24 04:00", "2023-03-24 20:00",
                    "2023-03-24 11:30", outage, "5m", pauses={EVENT + 14: "80min"}),
    "surge": Event(HOURLY, ("DOGEUSDT", "BTCUSDT"), "2021-01-25", "2021-02-02", "2021-01-29 03:00", surge),
    "idle": Event(HOURLY, ("LINKUSDT", "BTCUSDT"), "2019-04-28", "2019-05-05", "2019-05-02 05:00", idle),
    "halt": Event(DOW, ("AMD", "IBM"), "2014-09-01", "2015-04-01", "2015-01-02", halt, "1d", "stock"),
    "listing": Event(DOW, ("DOW", "IBM"), "2018-12-01", "2019-08-01", "2019-03-20", listing, "1d", "stock"),
    "split": Event(DOW, ("AAPL", "IBM"), "2020-05-01", "2020-12-01", "2020-08-31", split, "1d", "stock"),
}  # fmt: skip


@pytest.fixture(scope="module")
def worlds(make_market, random_bars):
    """`worlds(event name, "real" or "remade")`, each made once."""
    made: dict[tuple[str, str], World] = {}

    def remade(event: Event) -> World:
        bars = {"S0": event.remake(random_bars(7, 160)), "S1": random_bars(8, 160, price=40.0)}
        if event.remake is outage:
            bars["S1"] = outage(bars["S1"])
        market = make_market(bars, timeframe=event.timeframe, asset_class=event.asset_class, pauses=event.pauses)
        return World(market, EVENT, 0)

    def real(event: Event) -> World:
        path = DATA / event.file
        if not path.exists():
            pytest.skip(f"{event.file} is not beside the project")
        request = {"symbols": event.symbols, "start": event.start, "end": event.end}
        market = Market.from_bars(load_bars("files", path=path, asset_class=event.asset_class, **request))
        bar = int(np.flatnonzero(market.timestamps.numpy() == pd.Timestamp(event.moment).value).item())
        return World(market, bar, 0)

    def find(name: str, kind: str) -> World:
        if (name, kind) not in made:
            made[name, kind] = (real if kind == "real" else remade)(EVENTS[name])
        return made[name, kind]

    return find


@pytest.fixture(params=["remade", "real"])
def world(request, worlds):
    """`world(event name)` in both kinds."""
    return lambda name: worlds(name, request.param)


def walking(market: Market, n_envs: int = 1, **options) -> MarketVecEnv:
    """Accounts that walk all bars, are never ruined, and show one feature."""
    own = {"segments": [(0, market.n_bars)], "features": ("return_1",), **options}
    return MarketVecEnv(market, n_envs, random_start=False, episode_length=None, ruin=0.0, **own)


def curve(env: MarketVecEnv, decide: Callable[[int], torch.Tensor]) -> dict[int, tuple[float, list, list]]:
    """{bar: (equity, shares, traded value by asset)} of environment 0, deciding by the bar's number."""
    env.reset()
    seen = {}
    for bar in range(int(env.bar[0]), env.market.n_bars - 1):
        env.step(decide(bar).expand(env.n_envs, -1).contiguous())
        seen[bar + 1] = (float(env.last_equity[0]), env.last_shares[0].tolist(), env.traded_value[0].tolist())
    return seen


def all_in(world: World) -> Callable[[int], torch.Tensor]:
    """Everything into the event's asset, at every bar."""
    action = torch.full((1, world.market.n_assets), -1.0)
    action[0, world.asset] = 1.0
    return lambda bar: action


# ---------------------------------------------------------------------------------- what holds everywhere


@pytest.mark.parametrize("scheme", ["trades", "weights"])
@pytest.mark.parametrize("name", EVENTS)
def test_the_books_balance_through_it(name, scheme, world):
    """Twenty random accounts, every cost: all finite, nothing is made or lost, and nothing fills without a trade."""
    market, event, _ = world(name)
    window = (event - 40, min(event + 45, market.n_bars))
    env = walking(
        market, 20, segments=[window], action=scheme, features=None, lookback=2, commission_bps=25.0, impact_coef=0.05
    )
    generator = torch.Generator().manual_seed(1)
    width = env.single_action_space.shape[0]
    first = int(env.bar[0])
    cash, shares = env.account.cash.clone(), env.account.shares.clone()
    fillable = (market.volume > 0) & market.open.isfinite()
    known = market.close.isfinite().cummax(0).values
    trades = 0
    assert first < event
    for bar in range(first + 1, window[1]):
        action = torch.rand(20, width, generator=generator) * 3 - 1.5  # beyond the bounds as well
        step = env.step(action)
        assert step.reward.isfinite().all() and step.final_observation.state.isfinite().all()
        moved = env.last_shares - shares
        assert not moved[:, ~fillable[bar]].any() and not env.traded_value[:, ~fillable[bar]].any()
        assert not env.last_shares[:, ~known[bar]].any()
        price = torch.where(fillable[bar], market.open[bar], 0.0)
        assert (env.traded_value - moved.abs() * price).abs().max() < 1e-6
        cash = cash - moved @ price - env.fees
        shares = env.last_shares.clone()
        marks = torch.where(known[bar], market.mark[bar], 0.0)
        assert (env.last_equity - (cash + shares @ marks)).abs().max() < 1e-6
        assert (cash >= -1e-6).all() and (shares >= 0).all() and (env.fees >= 0).all()
        trades += int((moved != 0).sum())
    assert step.truncated.all() and trades > 20 * (window[1] - first) // 4


@pytest.mark.parametrize("name", EVENTS)
def test_what_is_seen_is_finite_or_unknown(name, world):
    market, _, _ = world(name)
    table = compute_features(market)
    assert not table.values.isinf().any()
    np.testing.assert_array_equal(table.ready, table.values.isfinite().all(-1))
    assert not table.ready[~market.close.isfinite()].any()
    assert (table.values[table.ready].abs() < 50).all()  # of order one, whatever the price did


# ---------------------------------------------------------------------------------------- event by event


def test_a_wick_moves_no_account(world):
    """Fills are at opens and marks at closes: with the low put back to the body, the curve is the same."""
    market, event, asset = world("wick")
    low, body = market.low[event, asset], torch.minimum(market.open, market.close)[event, asset]
    assert low < 1e-3 * body
    column = market.low.clone()
    column[event, asset] = body
    tame = dataclasses.replace(market, low=column, _computed={})
    sway = {bar: torch.randn(1, 2, generator=torch.Generator().manual_seed(bar)) for bar in range(market.n_bars)}
    assert curve(walking(market), sway.__getitem__) == curve(walking(tame), sway.__getitem__)
    # It is seen, by the policy that looks at it.
    ranges = [float(compute_features(m, ("range",)).values[event, asset, 0]) for m in (market, tame)]
    assert ranges[0] == pytest.approx(math.log(float(market.high[event, asset] / low)), rel=1e-6)
    assert ranges[0] > 9 > 1 > ranges[1]


def test_an_outage_freezes_the_account(world):
    """No fill and no gain while nothing is traded; the first order after it fills at the first open."""
    market, event, _ = world("outage")
    silent = range(event, event + 14)
    assert not market.tradable[event : event + 14].any() and market.tradable[event + 14].all()
    assert int(market.timestamps[event + 14] - market.timestamps[event + 13]) == 85 * 60 * 10**9
    assert market.segments() == [(0, market.n_bars)]  # minutes, not days: an episode goes on
    # Buys and sells by turns: there is always something to trade.
    seen = curve(walking(market, max_trade=0.5), lambda bar: torch.full((1, 2), 1.0 if bar % 2 else -1.0))
    before, shares, traded = seen[event - 1]
    assert sum(traded) > 0 and any(shares)
    for bar in silent:
        equity, held, traded = seen[bar]
        assert sum(traded) == 0 and held == shares and equity == pytest.approx(before, rel=1e-3)
    assert seen[event + 13][0] == seen[event + 1][0]  # at one price
    assert sum(seen[event + 14][2]) > 0


def test_a_surge_is_earned_at_the_price_paid(world):
    """All cash into the bar that rose by 70%, and into the one after: close over open is earned, on what was paid."""
    market, event, asset = found = world("surge")
    o, c = market.open[:, asset].tolist(), market.close[:, asset].tolist()
    assert c[event] / c[event - 1] == pytest.approx(1.7, abs=0.001)
    env = walking(market, max_trade=1.0, **FREE)
    for fill in (event, event + 1):
        seen = curve(env, lambda bar, at=fill - 1: all_in(found)(bar) if bar == at else torch.zeros(1, 2))
        assert seen[fill - 1][0] == 100_000.0
        # Ordered is what the last close said the cash would buy; a dearer open buys less, never on credit.
        bought = 100_000.0 / max(c[fill - 1], o[fill])
        assert seen[fill][2][asset] == pytest.approx(bought * o[fill], rel=1e-5) and seen[fill][2][asset] <= 100_000.0
        assert seen[fill][0] == pytest.approx(100_000.0 + bought * (c[fill] - o[fill]), rel=1e-5)


def test_an_order_into_an_idle_bar_lapses(world):
    """Not filled there, not kept for later: the next bar's fill is the next bar's decision."""
    market, event, asset = found = world("idle")
    assert market.volume[event, asset] == 0 and market.close[event, asset].isfinite()
    once = curve(walking(market), lambda bar: all_in(found)(bar) if bar == event - 1 else torch.zeros(1, 2))
    assert not any(any(shares) for _, shares, _ in once.values())
    twice = curve(walking(market), lambda bar: all_in(found)(bar) if bar >= event - 1 else torch.zeros(1, 2))
    assert not any(twice[event][1]) and twice[event + 1][1][asset] > 0


def test_a_halted_position_is_carried_at_its_last_close(world):
    market, event, asset = found = world("halt")
    assert market.close[event, asset].isnan() and market.close[event, 1 - asset].isfinite()
    seen = curve(walking(market, **FREE), lambda bar: all_in(found)(bar) if bar < event - 5 else torch.zeros(1, 2))
    equity, shares, _ = seen[event]
    assert shares[asset] > 0 and shares == seen[event - 1][1]
    assert equity == pytest.approx(seen[event - 1][0], rel=1e-12)  # only the halted asset is held
    move = float(market.close[event + 1, asset] / market.close[event - 1, asset])
    cash = seen[event - 1][0] - shares[asset] * float(market.close[event - 1, asset])
    assert seen[event + 1][0] == pytest.approx(cash + (equity - cash) * move, rel=1e-12)
    # Nothing can be decided about it while it is halted, so it trades again one bar later.
    both = curve(walking(market), all_in(found))
    assert both[event][2][asset] == both[event + 1][2][asset] == 0


def test_a_listing_mid_way_is_traded_from_its_second_bar(world):
    """With one bar of warm-up: seen at its first bar, judged at its second, filled in its third."""
    market, event, asset = found = world("listing")
    assert not market.close[:event, asset].isfinite().any() and market.close[event:, asset].isfinite().all()
    assert not market.mark[:event, asset].any()
    seen = curve(walking(market), all_in(found))
    traded = [bar for bar, (_, _, values) in seen.items() if values[asset] > 0]
    assert traded[0] == event + 2 and all(np.isfinite(equity) for equity, _, _ in seen.values())
    assert {equity for bar, (equity, _, _) in seen.items() if bar < event + 2} == {100_000.0}


def test_an_adjusted_split_is_invisible(world):
    """The holder earns the day's return, and what a market without the split would have earned to the last cent."""
    market, event, asset = found = world("split")
    move = float(market.close[event, asset] / market.close[event - 1, asset])
    env = walking(market, max_trade=1.0, **FREE)
    seen = curve(env, all_in(found))
    assert seen[event][0] / seen[event - 1][0] == pytest.approx(move, rel=2e-3)
    if market.source == "files":
        assert move == pytest.approx(1.0339, abs=1e-4)
    prices = {name: getattr(market, name) * 4 for name in ("open", "high", "low", "close", "mark")}
    unsplit = dataclasses.replace(market, **prices, _computed={})
    other = curve(walking(unsplit, max_trade=1.0, **FREE), all_in(found))
    for bar, (equity, _, _) in seen.items():
        assert equity == pytest.approx(other[bar][0], rel=1e-9)
