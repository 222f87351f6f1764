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
CLOSE = 5e-6  # of the account's size: what numbers of 24 bits may be off by after an episode
SLACK = 1e-9  # of an increment: quantities are on increments up to floating-point rounding


@dataclass(frozen=True)
class Rule:
    increment: float
    min_quantity: float
    min_notional: float


@dataclass(frozen=True)
class Costs:
    """Basis points of the traded value; impact is dimensionless, participation a share of the bar's volume."""

    commission_bps: float
    spread_bps: float
    slippage_bps: float
    impact_coef: float
    impact_reference: str = "portfolio"
    participation: float | None = None
    fee_in: str = "quote"

    def of(self, value: float, uniform: float, portfolio_value: float, turnover: float) -> float:
        """commission + spread + slippage * U + impact * sqrt(value / reference), times the value."""
        if value == 0:
            return 0.0
        share = (self.commission_bps + self.spread_bps + uniform * self.slippage_bps) / 10_000
        if self.impact_reference == "portfolio":
            part = value / portfolio_value
        else:
            part = 1.0 if value >= turnover else value / turnover
        return value * (share + self.impact_coef * math.sqrt(part))

    def in_units(self) -> float:
        """The share of what is bought that the venue keeps."""
        return self.commission_bps / 10_000 if self.fee_in == "received" else 0.0


@dataclass(frozen=True)
class Loan:
    """What may be owed, and what that costs a year in basis points. leverage 1 without shorting: nothing."""

    leverage: float = 1.0
    shorting: bool = False
    borrow_bps: float = 0.0
    interest_bps: float = 0.0
    keep_long: float = 0.25
    keep_short: float = 0.30
    bars_per_year: float = 252.0

    @property
    def granted(self) -> bool:
        return self.leverage > 1 or self.shorting


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

    def volume(self, tick: int) -> float:
        bar = self.bars[tick]
        return 0.0 if bar is None else bar[4]

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
    loan: Loan = field(default_factory=Loan)


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
    forced: bool = False
    size: float = 0.0  # the larger of |equity| and what is held and owed: what amounts are to be judged against
    blur: float = 1.0  # how much more blurred the reward is than the returns


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
        # Was a decision of this episode so close that rounding to 24 bits could have made it another?
        self.close_call = False
        self.blur = 1.0  # of the reward, for the same reason

    def step(self, action: Sequence[float] | int) -> Outcome:
        """Decide at the close of this bar, fill what is due in the next one, mark at the next one's close."""
        own = self.setup
        decided = self._decide(action)
        self.queue.append(decided)
        due = self.queue.pop(0)
        self.tick += 1
        self.steps += 1
        fees, values = self._fill_on_loan(due) if own.loan.granted else self._fill(due)
        cost = sum(fees)

        marks = [asset.mark(self.tick) for asset in own.assets]
        size = abs(self.cash) + sum(abs(s) * m for s, m in zip(self.shares, marks, strict=True))
        # Of so small a trade, or of what it would leave, there may be none elsewhere.
        self.close_call |= any(0 < value < CLOSE * size for value in values)
        forced = False
        if own.loan.granted:
            cost += self._pay_for_the_loan(marks)
            if forced := self._too_little_left(marks, size):
                cost += self._close_all(marks, values)
        equity = self.cash + sum(s * m for s, m in zip(self.shares, marks, strict=True))
        holder = sum(u * m for u, m in zip(self.holder_units, marks, strict=True))
        self.curve.append(equity)
        # What is left where nearly all was owed is a difference, too blurred to divide by.
        self.close_call |= equity < 0.01 * size
        reward = 0.0
        for term, weight in own.reward.items():
            reward += weight * self._reward(term, holder, values, marks)
        self.equity, self.holder_value = equity, holder

        ruin = own.ruin * own.initial_cash
        self._closely(equity - ruin, size)
        terminated = equity <= ruin or forced
        out_of_bars = self.tick == self.stop - 1
        out_of_time = own.episode_length is not None and self.steps == own.episode_length
        return Outcome(
            reward=reward,
            terminated=terminated,
            truncated=(out_of_bars or out_of_time) and not terminated,
            equity=equity,
            fees=cost,
            traded_value=values,
            cash=self.cash,
            shares=list(self.shares),
            entry=list(self.entry),
            idle=list(self.idle),
            vector=self._vector(marks, equity),
            tick=self.tick,
            orders=decided,
            forced=forced,
            size=size,
            blur=self.blur,
        )

    # ------------------------------------------------------------------------------- what 24 bits could change

    def _closely(self, margin: float, size: float) -> None:
        if abs(margin) < CLOSE * size:
            self.close_call = True

    def _round(self, quantity: float, i: int, price: float, whole: bool = False) -> float:
        """`quantity` on the increments of asset i; whole: it is a position, which is on them already."""
        step = self.setup.assets[i].rule.increment
        blur = CLOSE * self._size() / price if price > 0 else 0.0
        if not whole and step > blur and round_down(quantity + blur, step) != round_down(max(quantity - blur, 0), step):
            self.close_call = True
        return round_down(quantity, step)

    def _on_lots(self, signed: float, i: int, price: float, again: bool = False) -> float:
        """A signed quantity of which what is, or was, owed in shares is whole ones: nobody lends a part of a share.

        again: it was put on lots when it was decided, and whole numbers are exact.
        """
        loan, rule, held = self.setup.loan, self.setup.assets[i].rule, self.shares[i]
        if not loan.shorting or all(a.rule.increment == int(a.rule.increment) for a in self.setup.assets):
            return signed
        lot, blur = math.ceil(rule.increment), CLOSE * self._size() / price if price > 0 else 0.0

        def lots(quantity: float) -> float:
            if again and abs(quantity / lot - round(quantity / lot)) < SLACK:
                return round(quantity / lot) * lot
            if lot > blur and round_down(quantity + blur, lot) != round_down(max(quantity - blur, 0.0), lot):
                self.close_call = True
            return round_down(quantity, lot)

        if signed < 0:
            own = min(-signed, max(held, 0.0))
            return -(own + lots(-signed - own))
        if held < 0 and not again and abs(signed + held) < blur < lot:
            self.close_call = True
        if held < 0 and signed < -held:
            return lots(signed)
        return signed

    def _reaches(self, quantity: float, price: float, i: int) -> bool:
        rule = self.setup.assets[i].rule
        if quantity > 0:
            self._closely(quantity * price - rule.min_notional, self._size())
        return reaches_minima(quantity, price, rule)

    def _size(self) -> float:
        worth = sum(abs(s) * a.mark(self.tick) for s, a in zip(self.shares, self.setup.assets, strict=True))
        return max(abs(self.cash) + worth, self.setup.initial_cash)

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
        # The variance is what is left of two moments: so much more blurred than they are.
        self.blur = max(second / max(second - first**2, 0.01), 1.0) ** 1.5
        slope = second * (r - first) - first * (r**2 - second) / 2
        self.moments = (first + 0.01 * (r - first), second + 0.01 * (r**2 - second))
        return slope / max(second - first**2, 0.01) ** 1.5

    def _decide(self, action: Sequence[float] | int) -> list[float]:
        """Signed quantities the agent orders, seeing bars up to this one's close."""
        own = self.setup
        marks = [asset.mark(self.tick) for asset in own.assets]
        judged = [asset.judged(self.tick, own.warm_up) for asset in own.assets]
        clipped = [] if own.scheme == "regimes" else [min(max(float(a), -1.0), 1.0) for a in action]
        loan = own.loan
        if loan.granted:
            blocked = sum(abs(s) * m for s, m, can in zip(self.shares, marks, judged, strict=True) if not can)
            free = max(self.equity - blocked / loan.leverage, 0.0)
        else:
            free = self.equity - sum(s * m for s, m, can in zip(self.shares, marks, judged, strict=True) if not can)
        wanted = [0.0 for _ in own.assets]
        if own.scheme == "trades":
            for i in range(len(own.assets)):
                if judged[i]:
                    wanted[i] = clipped[i] * own.max_trade * self.equity / marks[i]
        elif own.scheme == "signal_size":
            if judged[0] and abs(clipped[0]) > own.threshold:
                wanted[0] = self._signal(clipped[0] > 0, (clipped[1] + 1) / 2, marks[0])
        elif own.scheme == "regimes":
            target = regime(int(action), own.assets, self.tick, judged)
            for i in range(len(own.assets)):
                if judged[i] and target is not None:
                    wanted[i] = target[i] * free / marks[i] - self.shares[i]
        else:
            # Only what can be judged, and cash, share the softmax; what cannot be judged is left alone.
            up = [math.exp(own.sharpness * a) if can else 0.0 for a, can in zip(clipped, [*judged, True], strict=True)]
            down = [1 / u if u and loan.shorting else 0.0 for u in up[:-1]]
            total = sum(up) + sum(down)
            for i in range(len(own.assets)):
                if judged[i]:
                    wanted[i] = loan.leverage * (up[i] - down[i]) / total * free / marks[i] - self.shares[i]
        orders = []
        for i in range(len(own.assets)):
            orders.append(self._order(wanted[i], i, marks[i]) if judged[i] else 0.0)
        if loan.granted:
            return self._within_limit(orders, marks, None)
        # Nobody orders more than the cash and the proceeds of their sells would pay for, at the marks.
        spendable = self.cash + sum(-q * m for q, m in zip(orders, marks, strict=True) if q < 0)
        bill = sum(q * m for q, m in zip(orders, marks, strict=True) if q > 0)
        if bill > spendable:
            for i in range(len(own.assets)):
                if orders[i] > 0:
                    less = self._round(orders[i] * (spendable / bill), i, marks[i])
                    orders[i] = less if self._reaches(less, marks[i], i) else 0.0
        return orders

    def _signal(self, up: bool, part: float, mark: float) -> float:
        """Units of the only asset that a direction and a size ask for."""
        loan, held = self.setup.loan, self.shares[0]
        if not loan.granted:
            return part * self.cash / mark if up else -part * held
        room = max(loan.leverage * self.equity - abs(held) * mark, 0.0)
        real = self._reaches(abs(held), mark, 0)
        if up:
            return -part * held if held < 0 and real else part * room / mark
        if held > 0 and real:
            return -part * held
        return -part * room / mark if loan.shorting else 0.0

    def _order(self, wanted: float, i: int, mark: float) -> float:
        """The signed quantity the venue is asked for."""
        own, held = self.setup, self.shares[i]
        size, whole = abs(wanted), False
        if wanted < 0 and not own.loan.shorting:
            size = min(size, held)
            whole = size == held
            if own.costs.fee_in == "received":
                self._closely((held - size - own.assets[i].rule.increment) * mark, self._size())
                whole = held - size < self._nothing(i)
        exact = whole and own.costs.fee_in == "received"
        size = held if exact else self._round(size, i, mark, whole)
        if own.loan.granted:
            size = abs(self._on_lots(math.copysign(size, wanted), i, mark))
        if not self._reaches(size, mark, i):
            return 0.0
        return size if wanted > 0 else -size

    def _nothing(self, i: int) -> float:
        """Units of asset i under which what a trade leaves of a position goes with it."""
        part = 1 - 1e-9 if self.setup.costs.fee_in == "received" else 0.5
        return max(part * self.setup.assets[i].rule.increment, 64 * sys.float_info.epsilon * abs(self.shares[i]))

    def _within_limit(
        self, orders: Sequence[float], prices: Sequence[float], fees: Sequence[float] | None
    ) -> list[float]:
        """Orders on a loan: gross exposure at most leverage times the equity that costs leave."""
        limit, n = self.setup.loan.leverage, len(orders)
        closing = [min(abs(q), abs(s)) if q * s < 0 else 0.0 for q, s in zip(orders, self.shares, strict=True)]
        opening = [abs(q) - c for q, c in zip(orders, closing, strict=True)]
        worth = self.cash + sum(s * p for s, p in zip(self.shares, prices, strict=True))
        # The fees of an order that closes and opens are shared by its parts.
        spent = [0.0] * n if fees is None else fees
        for_openings = [f * o / abs(q) if q else 0.0 for f, o, q in zip(spent, opening, orders, strict=True)]
        room = limit * (worth - (sum(spent) - sum(for_openings)))
        room -= sum((abs(s) - c) * p for s, c, p in zip(self.shares, closing, prices, strict=True))
        bill = sum(o * p for o, p in zip(opening, prices, strict=True)) + limit * sum(for_openings)
        if bill <= room or bill == 0:
            return list(orders)
        share = max(room, 0.0) / bill
        kept = []
        for i in range(n):
            size = abs(orders[i])
            if opening[i] > 0:
                size = self._round(closing[i] + opening[i] * share, i, prices[i])
                size = abs(self._on_lots(math.copysign(size, orders[i]), i, prices[i]))
                if not self._reaches(size, prices[i], i):
                    size = 0.0 if fees is None else closing[i]
            kept.append(math.copysign(size, orders[i]))
        return kept

    def _prices(self) -> tuple[list[float], list[bool]]:
        """What an asset is worth in the filling bar, and whether an order can fill there."""
        found = [asset.fill_price(self.tick, self.setup.fill_at) for asset in self.setup.assets]
        marks = [asset.mark(self.tick) for asset in self.setup.assets]
        return [m if p is None else p for p, m in zip(found, marks, strict=True)], [p is not None for p in found]

    def _draws(self) -> list[float]:
        own = self.setup
        return [uniform(own.slippage_seed, a.symbol, own.clock[self.tick]) for a in own.assets]

    def _capped(self, orders: Sequence[float], able: Sequence[bool]) -> list[float]:
        """What the bar lets through of each order."""
        part = self.setup.costs.participation
        kept = []
        for i, asset in enumerate(self.setup.assets):
            most = math.inf if part is None else round_down(part * asset.volume(self.tick), asset.rule.increment)
            kept.append(math.copysign(min(abs(orders[i]), most), orders[i]) if able[i] else 0.0)
        return kept

    def _fill_on_loan(self, orders: Sequence[float]) -> tuple[list[float], list[float]]:
        """All orders together, within the limit. Returns fees and values by asset."""
        own, n = self.setup, len(self.setup.assets)
        prices, able = self._prices()
        draws, orders = self._draws(), self._capped(orders, able)
        if not own.loan.shorting:
            orders = [max(q, -s) for q, s in zip(orders, self.shares, strict=True)]
        orders = [self._on_lots(q, i, prices[i], again=True) for i, q in enumerate(orders)]
        worth = self._portfolio(prices)

        def cost(i: int, quantity: float) -> float:
            return own.costs.of(quantity * prices[i], draws[i], worth, own.assets[i].volume(self.tick) * prices[i])

        traded = self._within_limit(orders, prices, [cost(i, abs(q)) for i, q in enumerate(orders)])
        fees, values = [0.0] * n, [0.0] * n
        for i in range(n):
            before, quantity = self.shares[i], traded[i]
            if quantity and abs(before + quantity) < self._nothing(i):
                quantity = -before
            values[i] = abs(quantity) * prices[i]
            fees[i] = cost(i, abs(quantity))
            self.cash -= quantity * prices[i] + fees[i]
            after = self.shares[i] = before + quantity
            if after == 0:
                self.entry[i] = 0.0
            elif after * before < 0 or (before == 0 and quantity):
                self.entry[i] = prices[i]
            elif quantity * before > 0:
                self.entry[i] = (self.entry[i] * abs(before) + values[i]) / abs(after)
            self.idle[i] = 0 if quantity else self.idle[i] + 1
        return fees, values

    def _portfolio(self, prices: Sequence[float]) -> float:
        """Equity, or what is held and owed where that is more."""
        value = [s * p for s, p in zip(self.shares, prices, strict=True)]
        return max(self.cash + sum(value), sum(abs(v) for v in value))

    def _pay_for_the_loan(self, marks: Sequence[float]) -> float:
        loan = self.setup.loan
        short = sum(-s * m for s, m in zip(self.shares, marks, strict=True) if s < 0)
        due = (loan.borrow_bps * short + loan.interest_bps * max(-self.cash, 0.0)) / 10_000 / loan.bars_per_year
        self.cash -= due
        return due

    def _too_little_left(self, marks: Sequence[float], size: float) -> bool:
        loan, value = self.setup.loan, [s * m for s, m in zip(self.shares, marks, strict=True)]
        needed = sum(loan.keep_long * v if v > 0 else loan.keep_short * -v for v in value)
        left = self.cash + sum(value)
        self._closely(left - needed, size)
        return left < needed

    def _close_all(self, marks: Sequence[float], values: list[float]) -> float:
        """Close every position at the marks, whatever it costs; adds to `values`, returns the costs."""
        own, draws, worth, total = self.setup, self._draws(), self._portfolio(marks), 0.0
        for i, asset in enumerate(own.assets):
            size = abs(self.shares[i]) * marks[i]
            fee = own.costs.of(size, draws[i], worth, asset.volume(self.tick) * marks[i])
            self.cash += self.shares[i] * marks[i] - fee
            if self.shares[i]:
                self.idle[i] = 0
            self.shares[i] = self.entry[i] = 0.0
            values[i] += size
            total += fee
        return total

    def _fill(self, orders: Sequence[float]) -> tuple[list[float], list[float]]:
        """Sells first, then buys out of the cash there is then. Returns fees and values by asset."""
        own, n = self.setup, len(self.setup.assets)
        prices, able = self._prices()
        draws, orders = self._draws(), self._capped(orders, able)
        worth = self.cash + sum(s * p for s, p in zip(self.shares, prices, strict=True))
        fees, values = [0.0] * n, [0.0] * n

        def cost(i: int, quantity: float) -> float:
            return own.costs.of(quantity * prices[i], draws[i], worth, own.assets[i].volume(self.tick) * prices[i])

        for i in range(n):
            if orders[i] >= 0:
                continue
            quantity = min(-orders[i], self.shares[i])
            if own.costs.fee_in == "received":
                edge = self.shares[i] - quantity - own.assets[i].rule.increment
                self._closely(edge * prices[i], self._size())
            if self.shares[i] - quantity < self._nothing(i):
                quantity = self.shares[i]  # what would stay is no position: there is no half increment
            values[i] = quantity * prices[i]
            fees[i] = cost(i, quantity)
            self.cash += values[i] - fees[i]
            self.shares[i] -= quantity

        # The venue keeps a part of what is bought: that part of the costs is not paid in currency.
        kept = own.costs.in_units()
        buys = {i: q for i, q in enumerate(orders) if q > 0}
        bill = sum(q * prices[i] * (1 - kept) + cost(i, q) for i, q in buys.items())
        if bill > self.cash:
            share = self.cash / bill
            for i, quantity in buys.items():
                less = self._round(quantity * share, i, prices[i])
                buys[i] = less if self._reaches(less, prices[i], i) else 0.0
        for i, quantity in buys.items():
            if quantity == 0:
                continue
            fees[i] = cost(i, quantity)
            self.cash -= quantity * prices[i] * (1 - kept) + fees[i]
            credited = quantity * (1 - kept)
            values[i] = credited * prices[i]
            paid = self.entry[i] * self.shares[i] + values[i]
            self.shares[i] += credited
            self.entry[i] = paid / self.shares[i]
        self.cash = max(self.cash, 0.0)

        for i in range(n):
            self.idle[i] = 0 if values[i] > 0 else self.idle[i] + 1
            if self.shares[i] == 0:
                self.entry[i] = 0.0
        return fees, values

    def _vector(self, marks: Sequence[float], equity: float) -> list[float]:
        """Cash share, weights, unrealised profits within +-1, log1p(idle) / 5."""
        worth = max(abs(equity), 1e-12)
        gains = []
        for s, m, e in zip(self.shares, marks, self.entry, strict=True):
            if abs(s) * m <= 1e-6 * worth:
                gains.append(0.0)
            else:  # what is short gains what its price loses
                gains.append(min(max((m - e) / e if s > 0 else (e - m) / e, -1.0), 1.0))
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
