"""A second set of books: one environment in plain Python floats, to check the vectorised one against.

Written from what `environments` promises, one account and one asset at a time, with nothing but loops and
floats (IEEE double). Slow and obvious on purpose: where the two disagree, one of them is wrong.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

WORD = 2**64
SLACK = 1e-9  # of an increment: quantities are on increments up to floating-point rounding


@dataclass(frozen=True)
class Rule:
    increment: float
    min_quantity: float
    min_notional: float


@dataclass(frozen=True)
class Costs:
    """Basis points of the traded value; impact is dimensionless."""

    commission_bps: float
    spread_bps: float
    slippage_bps: float
    impact_coef: float

    def of(self, value: float, uniform: float, portfolio_value: float) -> float:
        """commission + spread + slippage * U + impact * sqrt(value / portfolio value), times the value."""
        if value == 0:
            return 0.0
        share = (self.commission_bps + self.spread_bps + uniform * self.slippage_bps) / 10_000
        return value * (share + self.impact_coef * math.sqrt(value / portfolio_value))


@dataclass(frozen=True)
class Asset:
    """One asset's bars by clock tick: (open, high, low, close, volume), or None where it has none."""

    symbol: str
    bars: Sequence[tuple[float, float, float, float, float] | None]
    rule: Rule

    def mark(self, tick: int) -> float:
        """The last close known at `tick`; 0 before the first."""
        for earlier in range(tick, -1, -1):
            if self.bars[earlier] is not None:
                return self.bars[earlier][3]
        return 0.0

    def fill_price(self, tick: int, fill_at: str) -> float | None:
        """What an order fills at in the bar of `tick`; None where nothing was traded."""
        bar = self.bars[tick]
        if bar is None or bar[4] <= 0:
            return None
        return bar[0] if fill_at == "open" else bar[3]

    def judged(self, tick: int, warm_up: int) -> bool:
        """It has a bar at `tick`, and `warm_up` bars of its own before that."""
        if self.bars[tick] is None:
            return False
        return sum(bar is not None for bar in self.bars[:tick]) >= warm_up


@dataclass(frozen=True)
class Setup:
    assets: Sequence[Asset]
    clock: Sequence[int]  # UTC nanoseconds
    ranges: Sequence[tuple[int, int]]  # where episodes may walk
    costs: Costs
    scheme: str  # "trades", "weights", "signal_size" or "regimes"
    max_trade: float
    sharpness: float
    threshold: float
    reward: dict[str, float]  # weights by term
    lag: int
    fill_at: str
    initial_cash: float
    ruin: float
    episode_length: int | None
    slippage_seed: int
    warm_up: int


@dataclass
class Outcome:
    """What one step did."""

    reward: float
    terminated: bool
    truncated: bool
    equity: float
    fees: float
    traded_value: list[float]
    cash: float
    shares: list[float]
    entry: list[float]
    idle: list[int]
    vector: list[float]
    tick: int
    orders: list[float] = field(default_factory=list)


class ReferenceBooks:
    """One environment, from `begin(start, stop)` through `step(action)` until it says the episode is over."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.reward_scale = reward_scale(setup.assets, setup.ranges)

    def begin(self, start: int, stop: int) -> None:
        """An episode from tick `start` that may see ticks below `stop`."""
        own = self.setup
        self.tick, self.stop, self.steps = start, stop, 0
        self.cash = own.initial_cash
        self.shares = [0.0 for _ in own.assets]
        self.entry = [0.0 for _ in own.assets]
        self.idle = [0 for _ in own.assets]
        self.equity = own.initial_cash
        # Orders decided in the last lag - 1 steps and not yet due, oldest first.
        self.queue = [[0.0 for _ in own.assets] for _ in range(own.lag - 1)]
        buyable = [i for i, asset in enumerate(own.assets) if asset.judged(start, own.warm_up)]
        self.holder_units = [0.0 for _ in own.assets]
        for i in buyable:
            self.holder_units[i] = own.initial_cash / len(buyable) / own.assets[i].mark(start)
        self.holder_value = own.initial_cash
        self.curve = [own.initial_cash]  # equity at every close of the episode
        self.moments = (0.0, 1.0)  # of returns in units of the market's deviation

    def step(self, action: Sequence[float] | int) -> Outcome:
        """Decide at the close of this bar, fill what is due in the next one, mark at the next one's close."""
        own = self.setup
        decided = self._decide(action)
        self.queue.append(decided)
        due = self.queue.pop(0)
        self.tick += 1
        self.steps += 1
        fees, values = self._fill(due)

        marks = [asset.mark(self.tick) for asset in own.assets]
        equity = self.cash + sum(s * m for s, m in zip(self.shares, marks, strict=True))
        holder = sum(u * m for u, m in zip(self.holder_units, marks, strict=True))
        self.curve.append(equity)
        reward = 0.0
        for term, weight in own.reward.items():
            reward += weight * self._reward(term, holder, values, marks)
        self.equity, self.holder_value = equity, holder

        terminated = equity <= own.ruin * own.initial_cash
        out_of_bars = self.tick == self.stop - 1
        out_of_time = own.episode_length is not None and self.steps == own.episode_length
        return Outcome(
            reward=reward,
            terminated=terminated,
            truncated=(out_of_bars or out_of_time) and not terminated,
            equity=equity,
            fees=sum(fees),
            traded_value=values,
            cash=self.cash,
            shares=list(self.shares),
            entry=list(self.entry),
            idle=list(self.idle),
            vector=self._vector(marks, equity),
            tick=self.tick,
            orders=decided,
        )

    def _reward(self, term: str, holder: float, traded: Sequence[float], marks: Sequence[float]) -> float:
        """What one term pays for the bar that ends with the last equity of the curve."""
        before, after, scale = self.curve[-2], self.curve[-1], self.reward_scale
        if term == "log_return":
            return scale * math.log(max(after / before, 1e-6))
        if term == "excess":
            return scale * ((after / before - 1) - (holder / self.holder_value - 1))
        if term == "turnover":
            return -sum(traded) / before
        if term == "concentration":
            return -sum((s * m / max(after, 1e-12)) ** 2 for s, m in zip(self.shares, marks, strict=True))
        if term == "drawdown":
            return -scale * (fall_from_peak(self.curve) - fall_from_peak(self.curve[:-1]))
        if term == "cvar":
            return -scale * (tail_loss(self.curve) - tail_loss(self.curve[:-1]))
        assert term == "differential_sharpe"
        first, second = self.moments
        r = scale * (after / before - 1)
        slope = second * (r - first) - first * (r**2 - second) / 2
        self.moments = (first + 0.01 * (r - first), second + 0.01 * (r**2 - second))
        return slope / max(second - first**2, 0.01) ** 1.5

    def _decide(self, action: Sequence[float] | int) -> list[float]:
        """Signed quantities the agent orders, seeing bars up to this one's close."""
        own = self.setup
        marks = [asset.mark(self.tick) for asset in own.assets]
        judged = [asset.judged(self.tick, own.warm_up) for asset in own.assets]
        clipped = [] if own.scheme == "regimes" else [min(max(float(a), -1.0), 1.0) for a in action]
        frozen = sum(s * m for s, m, can in zip(self.shares, marks, judged, strict=True) if not can)
        wanted = [0.0 for _ in own.assets]
        if own.scheme == "trades":
            for i in range(len(own.assets)):
                if judged[i]:
                    wanted[i] = clipped[i] * own.max_trade * self.equity / marks[i]
        elif own.scheme == "signal_size":
            fraction = (clipped[1] + 1) / 2
            if judged[0] and clipped[0] > own.threshold:
                wanted[0] = fraction * self.cash / marks[0]
            elif judged[0] and clipped[0] < -own.threshold:
                wanted[0] = -fraction * self.shares[0]
        elif own.scheme == "regimes":
            target = regime(int(action), own.assets, self.tick, judged)
            for i in range(len(own.assets)):
                if judged[i] and target is not None:
                    wanted[i] = target[i] * (self.equity - frozen) / marks[i] - self.shares[i]
        else:
            # Only what can be judged, and cash, share the softmax; what cannot be judged is left alone.
            score = [math.exp(own.sharpness * a) for a in clipped]
            total = score[-1] + sum(s for s, can in zip(score[:-1], judged, strict=True) if can)
            for i in range(len(own.assets)):
                if judged[i]:
                    target = score[i] / total * (self.equity - frozen) / marks[i]
                    wanted[i] = target - self.shares[i]
        orders = []
        for i, asset in enumerate(own.assets):
            size = abs(wanted[i])
            if wanted[i] < 0:
                size = min(size, self.shares[i])
            size = round_down(size, asset.rule.increment)
            if not judged[i] or not reaches_minima(size, marks[i], asset.rule):
                size = 0.0
            orders.append(size if wanted[i] > 0 else -size)
        # Nobody orders more than the cash and the proceeds of their sells would pay for, at the marks.
        spendable = self.cash + sum(-q * m for q, m in zip(orders, marks, strict=True) if q < 0)
        bill = sum(q * m for q, m in zip(orders, marks, strict=True) if q > 0)
        if bill > spendable:
            for i, asset in enumerate(own.assets):
                if orders[i] > 0:
                    less = round_down(orders[i] * (spendable / bill), asset.rule.increment)
                    orders[i] = less if reaches_minima(less, marks[i], asset.rule) else 0.0
        return orders

    def _fill(self, orders: Sequence[float]) -> tuple[list[float], list[float]]:
        """Sells first, then buys out of the cash there is then. Returns fees and values by asset."""
        own, n = self.setup, len(self.setup.assets)
        prices = [asset.fill_price(self.tick, own.fill_at) for asset in own.assets]
        draws = [uniform(own.slippage_seed, a.symbol, own.clock[self.tick]) for a in own.assets]
        worth = self.cash
        for i, asset in enumerate(own.assets):
            worth += self.shares[i] * (asset.mark(self.tick) if prices[i] is None else prices[i])
        fees, values = [0.0] * n, [0.0] * n

        for i in range(n):
            if prices[i] is None or orders[i] >= 0:
                continue
            quantity = min(-orders[i], self.shares[i])
            rounding = max(0.5 * own.assets[i].rule.increment, 64 * sys.float_info.epsilon * self.shares[i])
            if self.shares[i] - quantity < rounding:
                quantity = self.shares[i]  # what would stay is no position: there is no half increment
            values[i] = quantity * prices[i]
            fees[i] = own.costs.of(values[i], draws[i], worth)
            self.cash += values[i] - fees[i]
            self.shares[i] -= quantity

        buys = {i: orders[i] for i in range(n) if prices[i] is not None and orders[i] > 0}
        bill = sum(q * prices[i] + own.costs.of(q * prices[i], draws[i], worth) for i, q in buys.items())
        if bill > self.cash:
            share = self.cash / bill
            for i, quantity in buys.items():
                rule = own.assets[i].rule
                less = round_down(quantity * share, rule.increment)
                buys[i] = less if reaches_minima(less, prices[i], rule) else 0.0
        for i, quantity in buys.items():
            if quantity == 0:
                continue
            values[i] = quantity * prices[i]
            fees[i] = own.costs.of(values[i], draws[i], worth)
            self.cash -= values[i] + fees[i]
            paid = self.entry[i] * self.shares[i] + values[i]
            self.shares[i] += quantity
            self.entry[i] = paid / self.shares[i]
        self.cash = max(self.cash, 0.0)

        for i in range(n):
            self.idle[i] = 0 if values[i] > 0 else self.idle[i] + 1
            if self.shares[i] == 0:
                self.entry[i] = 0.0
        return fees, values

    def _vector(self, marks: Sequence[float], equity: float) -> list[float]:
        """Cash share, weights, unrealised profits within +-1, log1p(idle) / 5."""
        worth = max(equity, 1e-12)
        gains = [
            min(max(m / e - 1, -1.0), 1.0) if s * m > 1e-6 * worth else 0.0
            for s, m, e in zip(self.shares, marks, self.entry, strict=True)
        ]
        weights = [s * m / worth for s, m in zip(self.shares, marks, strict=True)]
        return [self.cash / worth, *weights, *gains, *(math.log1p(i) / 5 for i in self.idle)]


def round_down(quantity: float, increment: float) -> float:
    """The largest whole multiple of `increment` not above `quantity`, forgiving rounding."""
    return math.floor(quantity / increment + SLACK) * increment


def reaches_minima(quantity: float, price: float, rule: Rule) -> bool:
    large_enough = quantity >= rule.min_quantity * (1 - SLACK)
    return quantity > 0 and large_enough and quantity * price >= rule.min_notional


def fall_from_peak(curve: Sequence[float]) -> float:
    return 1 - curve[-1] / max(curve)


def tail_loss(curve: Sequence[float]) -> float:
    """Minus the mean of the 5 worst of the last 100 returns; before the episode they were 0."""
    returns = [0.0] * 100 + [b / a - 1 for a, b in zip(curve[:-1], curve[1:], strict=True)]
    return -sum(sorted(returns[-100:])[:5]) / 5


def regime(action: int, assets: Sequence[Asset], tick: int, judged: Sequence[bool]) -> list[float] | None:
    """The target weights one of the twelve regimes stands for; None to hold."""
    if action == 0:
        return None
    able = [i for i, can in enumerate(judged) if can]
    if not able or action == 1:
        return [0.0] * len(assets)
    history = {i: [bar[3] for bar in assets[i].bars[: tick + 1] if bar is not None] for i in able}
    long = [i for i in able if len(history[i]) >= 21]
    change = {i: [b / a - 1 for a, b in zip(history[i][-21:-1], history[i][-20:], strict=True)] for i in long}
    mean = {i: sum(change[i]) / 20 for i in long}
    spread = {i: math.sqrt(sum((r - mean[i]) ** 2 for r in change[i]) / 20) for i in long}
    momentum = {i: history[i][-1] / history[i][-21] - 1 for i in long}
    factor = {
        2: {}, 3: {}, 4: {}, 5: momentum, 6: {i: -spread[i] for i in long},
        7: {i: mean[i] / max(spread[i], 1e-12) for i in long}, 8: {i: -history[i][-1] for i in able},
        9: momentum, 11: momentum,
    }  # fmt: skip
    factor[10] = factor[7]
    ranked = sorted(factor[action], key=lambda i: (-factor[action][i], i))
    part = 0.3 if action == 11 else 0.5
    best = ranked[: math.ceil(part * len(ranked) - 1e-9)]
    if action == 11 and best:
        units = [1.0 if i in best else 0.0 for i in range(len(assets))]
    else:
        units = [(2.0 if i in best else 1.0) if i in able else 0.0 for i in range(len(assets))]
    invested = {2: 0.5, 3: 0.75, 9: 0.7, 10: 0.7}.get(action, 1.0)
    return [invested * u / sum(units) for u in units]


def reward_scale(assets: Sequence[Asset], ranges: Sequence[tuple[int, int]]) -> float:
    """1 / sample standard deviation of the mean one-bar return of the assets known at both ends."""
    means = []
    for start, stop in ranges:
        for tick in range(start, stop - 1):
            returns = [asset.mark(tick + 1) / asset.mark(tick) - 1 for asset in assets if asset.mark(tick) > 0]
            means.append(sum(returns) / len(returns) if returns else 0.0)
    if len(means) < 2:
        return 1.0
    centre = sum(means) / len(means)
    spread = math.sqrt(sum((m - centre) ** 2 for m in means) / (len(means) - 1))
    return 1 / spread if spread > 0 else 1.0


def splitmix64(x: int) -> int:
    """The output function of splitmix64 applied to x + its golden-ratio increment (Steele et al., 2014)."""
    x = (x + 0x9E3779B97F4A7C15) % WORD
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % WORD
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB % WORD
    return x ^ (x >> 31)


def fnv1a(text: str) -> int:
    """FNV-1a, 64 bits."""
    key = 0xCBF29CE484222325
    for byte in text.encode():
        key = (key ^ byte) * 0x100000001B3 % WORD
    return key


def uniform(seed: int, symbol: str, stamp: int) -> float:
    """In [0, 1), from the top 53 bits of a hash of seed, symbol and time."""
    return (splitmix64(stamp ^ splitmix64((fnv1a(symbol) + seed) % WORD)) >> 11) / 2**53
