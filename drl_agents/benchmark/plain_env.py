"""PlainMarketEnv: one account in plain numpy, as the peers' users would write it.

The vectorised core at N = 1 pays torch's overhead for every operation, so it would slow a peer that steps single
environments. This one has the same market, observations, costs and books without it.
"""

from __future__ import annotations

from typing import Any, ClassVar

import gymnasium
import numpy as np

from environments.errors import InputError
from environments.features import compute_features
from environments.market import Market
from environments.observation import DUST, account_size
from environments.rewards import reward_scale
from environments.rules import RuleBook

SLACK = 1e-9  # of the division by an increment: 0.3 / 0.1 is three increments


class PlainMarketEnv(gymnasium.Env):
    """One environment of `MarketVecEnv` with lookback 1, action "trades", reward "excess", lag 1, commission alone.

    Observations (R + 1 + 3A,) float32: the market's features and the account vector of `environments.observation`.
    Actions (A,) in [-1, 1]: the value bought or sold as a share of equity is action * max_trade. `info` holds bar (int)
    and equity (currency). `reset(options={"start": bar})` begins at that bar instead of a random one.

    Args:
        market: one segment; every asset has every bar, with volume.
        episode_length: bars after which an episode is truncated.
        commission_bps: basis points of traded value, per side.
        max_trade, initial_cash, ruin: as for `MarketVecEnv`.

    Raises:
        InputError: the market has gaps or pauses, or no room for an episode: this environment knows none of these.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": []}

    def __init__(
        self,
        market: Market,
        episode_length: int = 1_000,
        commission_bps: float = 30.0,
        max_trade: float = 0.25,
        initial_cash: float = 100_000.0,
        ruin: float = 0.1,
    ) -> None:
        if len(market.segments()) > 1 or not bool(market.tradable.all()):
            raise InputError(f"{market.description}: a plain environment needs every bar of every asset, with volume")
        table = compute_features(market)
        ready = table.ready.all(1).cpu().numpy()
        self.first = int(ready.argmax())
        self.last = market.n_bars - 1 - episode_length
        if not ready[self.first :].all() or self.last < self.first:
            raise InputError(f"{market.description}: {market.n_bars} bars hold no episode of {episode_length} bars")
        self.rows = table.rows.cpu().numpy()
        self.open, self.close = (x.double().cpu().numpy() for x in (market.open, market.close))
        rules = RuleBook(market.asset_class).tensors(market.symbols, market.device, market.dtype)
        self.increment, self.min_quantity, self.min_notional = (
            x.double().cpu().numpy() for x in (rules.increment, rules.min_quantity, rules.min_notional)
        )
        self.least = self.min_quantity * (1 - SLACK)
        self.scale = float(reward_scale(market, [market.segments()]))
        self.episode_length, self.fee, self.max_trade = episode_length, commission_bps * 1e-4, max_trade
        self.initial_cash, self.ruin_level = initial_cash, ruin * initial_cash
        self.n_assets, width = market.n_assets, self.rows.shape[1]
        self.observation_space = gymnasium.spaces.Box(
            -np.inf, np.inf, (width + account_size(self.n_assets),), np.float32
        )
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (self.n_assets,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed)
        self.bar = int((options or {}).get("start", -1))
        if self.bar < 0:
            self.bar = int(self.np_random.integers(self.first, self.last + 1))
        self.elapsed = 0
        self.cash = self.equity = self.initial_cash
        self.shares, self.entry, self.idle = (np.zeros(self.n_assets) for _ in range(3))
        # The equal-weight holder of the excess reward.
        self.holder_units = self.initial_cash / self.n_assets / self.close[self.bar]
        self.holder_value = self.initial_cash
        return self._observation(), {"bar": self.bar, "equity": self.equity}

    def step(self, action: np.ndarray):
        orders = self._orders(action, self.close[self.bar])
        self.bar += 1
        self.elapsed += 1
        self._fill(orders, self.open[self.bar])
        mark = self.close[self.bar]
        before, self.equity = self.equity, self.cash + float(self.shares @ mark)
        held_before, self.holder_value = self.holder_value, float(self.holder_units @ mark)
        gained = self.equity / before - self.holder_value / held_before
        terminated = self.equity <= self.ruin_level
        truncated = not terminated and self.elapsed >= self.episode_length
        info = {"bar": self.bar, "equity": self.equity}
        return self._observation(), gained * self.scale, terminated, truncated, info

    def _floor(self, quantity: np.ndarray, price: np.ndarray) -> np.ndarray:
        """`quantity` (A,) >= 0 on increments, 0 where it is under the venue's minima."""
        size = np.floor(quantity / self.increment + SLACK) * self.increment
        size[(size < self.least) | (size * price < self.min_notional)] = 0.0
        return size

    def _orders(self, action: np.ndarray, mark: np.ndarray) -> np.ndarray:
        """(A,) signed units: sells up to what is held, buys up to the cash and the sells' proceeds."""
        wanted = np.minimum(np.maximum(action, -1.0), 1.0) * (self.max_trade * self.equity / mark)
        selling = wanted < 0
        size = self._floor(np.where(selling, np.minimum(-wanted, self.shares), wanted), mark)
        value = size * mark
        proceeds = float(value[selling].sum())
        bill, spendable = float(value.sum()) - proceeds, self.cash + proceeds
        if bill > spendable:
            size = np.where(selling, size, self._floor(size * (spendable / bill), mark))
        return np.where(selling, -size, size)

    def _fill(self, orders: np.ndarray, price: np.ndarray) -> None:
        """Sells first, then buys share the cash there is; see `environments.portfolio.match` and `settle`."""
        sold = np.minimum(np.maximum(-orders, 0.0), self.shares)
        rest = self.shares - sold
        dust = np.maximum(0.5 * self.increment, 64 * np.finfo(np.float64).eps * self.shares)
        sold = np.where((sold > 0) & (rest < dust), self.shares, sold)
        bought = np.maximum(orders, 0.0)
        cash = self.cash + float(sold @ price) * (1 - self.fee)
        cost = float(bought @ price) * (1 + self.fee)
        if cost > cash:
            bought = self._floor(bought * (cash / cost), price)
            cost = float(bought @ price) * (1 + self.fee)
        self.cash = max(cash - cost, 0.0)
        shares = self.shares + (bought - sold)
        buying = bought > 0
        paid = self.entry * self.shares + bought * price
        entry = np.where(buying, paid / np.maximum(shares, 1e-30), self.entry)
        self.entry = np.where(shares > 0, entry, 0.0)
        self.idle = np.where(buying | (sold > 0), 0.0, self.idle + 1)
        self.shares = shares

    def _observation(self) -> np.ndarray:
        a, row = self.n_assets, self.rows[self.bar]
        mark, width = self.close[self.bar], row.size
        value = self.shares * mark
        observation = np.empty(width + 1 + 3 * a, dtype=np.float32)
        observation[:width] = row
        observation[width] = self.cash / self.equity
        observation[width + 1 : width + 1 + a] = value / self.equity
        gain = mark / np.maximum(self.entry, 1e-30) - 1
        gain = np.where(value > DUST * self.equity, np.minimum(np.maximum(gain, -1.0), 1.0), 0.0)
        observation[width + 1 + a : width + 1 + 2 * a] = gain
        observation[width + 1 + 2 * a :] = np.log1p(self.idle) / 5
        return observation
