"""What an action means: from the numbers a policy gives to the orders a trader sends.

Orders are decided at the close of bar t, from what is known there: the account, the marks of bar t, which
assets can be judged, and what a scheme has worked out of the market up to t. They are quantities: the price they
fill at is the next bar's. All functions are pure and let gradients through.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from importlib.metadata import entry_points
from typing import Any

import gymnasium
import numpy as np
import torch
from torch import Tensor

from environments.errors import InputError
from environments.features import Bars
from environments.market import Market
from environments.portfolio import (
    Account,
    acceptable,
    differentiated,
    floor_to,
    remnant,
    straight_through,
    whole_shorts,
    with_sign,
    within_limit,
)
from environments.regimes import HOLD, N_FACTORS, REGIMES, asset_factors, target_weights
from environments.rules import HALF, RuleTensors

ENTRY_POINTS = "drl_agents.actions"


class ActionScheme(ABC):
    """Turns actions into orders for A assets.

    A scheme is a frozen dataclass; its fields are its options, JSON-able, and travel with a model.

    One that reads the market beyond the marks says in two steps what it reads, so that a back-test computes it once
    per bar and a live trader computes the same from its last bars: `factors`, of each asset's own bars, and
    `rows`, across the assets at each bar. Neither may look ahead, nor further back than `features.MEMORY` bars.

    name: what the option `action` calls it. n_factors: K, how many numbers `factors` gives per asset and bar; 0
    for a scheme that needs nothing of the kind. differentiable: the orders have a gradient to every entry of the
    action; where actions are choices, `orders` then also takes shares of the choices, (N, choices) floats that add up
    to 1, and gives the same mixture of their orders.
    """

    name: str
    differentiable: bool = False
    n_factors: int = 0

    @abstractmethod
    def space(self, n_assets: int) -> gymnasium.Space:
        """The space of one environment's action.

        Raises:
            InputError: the scheme cannot trade that many assets.
        """

    @abstractmethod
    def orders(
        self,
        action: Tensor,
        account: Account,
        equity: Tensor,
        mark: Tensor,
        judged: Tensor,
        rules: RuleTensors,
        row: Tensor | None = None,
    ) -> Tensor:
        """(N, A) signed units to trade.

        Args:
            action: (N, ...) of `space`.
            equity: (N,) at the marks.
            mark: (N, A) last known close, > 0 where judged.
            judged: (N, A) bool, the asset has a bar now and features: only these are traded.
            row: (N, ...) the scheme's table at the bar of the decision; None for a scheme without one.
        """

    def factors(self, bars: Bars, extra: Mapping[str, np.ndarray]) -> np.ndarray:
        """(T, K) float64, what the scheme reads of one asset's T own bars, NaN where unknown."""
        raise NotImplementedError(f"{type(self).__name__} has n_factors={self.n_factors} and no factors")

    def rows(self, factors: Tensor, judged: Tensor) -> Tensor:
        """(B, ...) what `orders` needs at each of B bars, from factors (B, A, K) and judged (B, A)."""
        raise NotImplementedError(f"{type(self).__name__} has n_factors={self.n_factors} and no rows")

    def table(self, market: Market, judged: Tensor) -> Tensor | None:
        """(B, ...) rows of every bar of a market, on its device; None for a scheme that needs none."""
        if not self.n_factors:
            return None
        present = market.close.isfinite().cpu().numpy()
        prices = (market.open, market.high, market.low, market.close, market.volume)
        columns = [column.cpu().double().numpy() for column in prices]
        extra = market.extra.cpu().double().numpy()
        factors = np.full((market.n_bars, market.n_assets, self.n_factors), np.nan)
        for asset in range(market.n_assets):
            own = present[:, asset]
            bars = Bars(*(np.ascontiguousarray(column[own, asset]) for column in columns))
            further = {name: extra[own, asset, i] for i, name in enumerate(market.extra_names)}
            factors[own, asset] = self.factors(bars, further)
        return self.rows(torch.from_numpy(factors), judged.cpu()).to(market.device, market.dtype)

    def why_no_gradient(self) -> str | None:
        """What keeps gradients from flowing back from orders to actions; None where they do."""
        if self.differentiable:
            return None
        return f"action scheme {self.name!r} has no gradient to its whole action: accepted are {_DIFFERENTIABLE}"

    @property
    def options(self) -> dict[str, Any]:
        """The scheme's options by name: `build_scheme(scheme.name, **scheme.options)` is the scheme again."""
        return {item.name: getattr(self, item.name) for item in fields(self)}


def to_orders(wanted: Tensor, account: Account, mark: Tensor, judged: Tensor, rules: RuleTensors) -> Tensor:
    """Signed units (N, A) as orders the venue accepts: rounded toward zero to increments, minima kept.

    Cash account: sells end at what is held; where the fee is taken from what is bought, one that would leave less than
    an increment sells all. Buys that cost more, at the marks, than the cash and the proceeds of the sells are all
    scaled by the same factor: a broker would refuse what cannot be paid. Margin account: sells end at what is held
    unless it may be sold short, in whole shares (`portfolio.whole_shorts`), and what opens or grows positions is scaled
    to the limit at the marks (`portfolio.within_limit`). Costs are left to the fill, which scales again.
    """
    if not rules.margin.cash_account:
        return _margin_orders(wanted, account, mark, judged, rules)
    selling = wanted < 0
    size = torch.where(selling, torch.minimum(-wanted, account.shares), wanted)
    rounded = floor_to(size, rules.increment)
    if rules.remnant > HALF:  # a position off the increment is sold whole, where less than an increment would stay
        rest = (account.shares - size).detach()
        rounded = torch.where(selling & (rest < remnant(account.shares, rules)), account.shares, rounded)
    size = rounded * (acceptable(rounded, mark, rules) & judged)
    if differentiated(rounded):
        size = straight_through(size, rounded * judged)
    value = size * mark
    proceeds = value * selling
    bill = (value - proceeds).sum(-1)
    spendable = account.cash + proceeds.sum(-1)
    share = (spendable / bill.clamp(min=1e-12)).clamp(max=1).unsqueeze(-1)
    less = floor_to(size * share, rules.increment)
    less = less * acceptable(less, mark, rules)
    size = torch.where((bill > spendable).unsqueeze(-1) & ~selling, less, size)
    return _signed(size, wanted)


def _signed(size: Tensor, wanted: Tensor) -> Tensor:
    orders = with_sign(size, wanted)
    return straight_through(orders.masked_fill(size == 0, 0.0), orders)  # no order is 0.0, and never -0.0


def _margin_orders(wanted: Tensor, account: Account, mark: Tensor, judged: Tensor, rules: RuleTensors) -> Tensor:
    if not rules.margin.shorting:
        wanted = torch.maximum(wanted, -account.shares)
    size = whole_shorts(floor_to(wanted.abs(), rules.increment), wanted, account.shares, rules)
    kept = size * (acceptable(size, mark, rules) & judged)
    size = straight_through(kept, size * judged) if differentiated(size) else kept
    return _signed(within_limit(size, wanted, account, mark, None, rules), wanted)


def units_toward(
    weights: Tensor, account: Account, equity: Tensor, mark: Tensor, judged: Tensor, rules: RuleTensors | None = None
) -> Tensor:
    """Signed units (N, A) from what is held to target weights (N, A), 0 where not judged.

    What is held of an asset that cannot be traded now is not there to be shared out: weights are of the rest. In a
    margin account (`rules`) such a position takes up 1 / margin of its value, and at most all of the equity.
    """
    frozen = (account.shares * mark).masked_fill(judged, 0.0)
    if rules is None or rules.margin.cash_account:
        free = equity - frozen.sum(-1)
    else:
        free = (equity - frozen.abs().sum(-1) / rules.margin.margin).clamp(min=0)
    return weights * free.unsqueeze(-1) / mark.masked_fill(~judged, 1.0) - account.shares


@dataclass(frozen=True)
class Trades(ActionScheme):
    """Box(-1, 1, (A,)): the value of asset i to buy (> 0) or sell (< 0) is action_i * max_trade * equity.

    With shorting a sell may go through zero.

    max_trade: the share of equity that a full action trades in one asset and bar, in (0, 1].
    """

    max_trade: float = 0.25
    name = "trades"
    differentiable = True

    def __post_init__(self) -> None:
        if not 0 < self.max_trade <= 1:
            raise InputError(f"max_trade={self.max_trade}: accepted are 0 < max_trade <= 1")

    def space(self, n_assets: int) -> gymnasium.Space:
        return gymnasium.spaces.Box(-1.0, 1.0, (n_assets,), np.float32)

    def orders(self, action, account, equity, mark, judged, rules, row=None):
        value = action.to(mark.dtype).clamp(-1, 1) * (self.max_trade * equity).unsqueeze(-1)
        wanted = value / mark.masked_fill(~judged, 1.0)
        return to_orders(wanted, account, mark, judged, rules)


@dataclass(frozen=True)
class TargetWeights(ActionScheme):
    """Box(-1, 1, (A + 1,)): target weights softmax(sharpness * action); the last entry is cash.

    In a margin account they are shares of margin * equity. With shorting, and x = sharpness * action, x_c that of cash:

        w_i = margin * (exp(x_i) - exp(-x_i)) / (exp(x_c) + sum_j (exp(x_j) + exp(-x_j)))

    a softmax over being long and being short of each asset, and neither: 0 where the action is 0, and the sum of |w|
    stays below margin.

    Assets that cannot be judged now get no weight and are left as they are held.
    """

    sharpness: float = 5.0
    name = "weights"
    differentiable = True

    def __post_init__(self) -> None:
        if not 0 < self.sharpness <= 100:
            raise InputError(f"sharpness={self.sharpness}: accepted are 0 < sharpness <= 100")

    def space(self, n_assets: int) -> gymnasium.Space:
        return gymnasium.spaces.Box(-1.0, 1.0, (n_assets + 1,), np.float32)

    def orders(self, action, account, equity, mark, judged, rules, row=None):
        logits, n = action.to(mark.dtype).clamp(-1, 1) * self.sharpness, mark.shape[-1]
        none, sides = ~judged, [logits[:, :n]]
        if rules.margin.shorting:
            sides.append(-sides[0])
        choices = [*(side.masked_fill(none, -torch.inf) for side in sides), logits[:, n:]]
        shares = torch.softmax(torch.cat(choices, dim=-1), dim=-1)
        weights = shares[:, :n] - shares[:, n : 2 * n] if rules.margin.shorting else shares[:, :n]
        if rules.margin.margin != 1:
            weights = weights * rules.margin.margin
        return to_orders(units_toward(weights, account, equity, mark, judged, rules), account, mark, judged, rules)


@dataclass(frozen=True)
class SignalSize(ActionScheme):
    """Box(-1, 1, (2,)) of a market of one symbol: a direction d and a size f = (action_1 + 1) / 2.

        d >  threshold   buy for f * cash
        d < -threshold   sell f of the holding
        else             hold

    In a margin account a buy is for f * (margin * equity - the position's value). With shorting the two directions
    mirror each other: d > threshold buys back f of what is short, or else buys; d < -threshold sells f of what is held,
    or else sells short for f * (margin * equity - the position's value). Held, or short, is what an order could close.

    Gradients reach the size alone: the direction is a choice.

    threshold: in [0, 1).
    """

    threshold: float = 0.1
    name = "signal_size"

    def __post_init__(self) -> None:
        if not 0 <= self.threshold < 1:
            raise InputError(f"threshold={self.threshold}: accepted are 0 <= threshold < 1")

    def space(self, n_assets: int) -> gymnasium.Space:
        if n_assets != 1:
            raise InputError(f"action scheme 'signal_size' trades a market of one symbol, this one has {n_assets}")
        return gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)

    def orders(self, action, account, equity, mark, judged, rules, row=None):
        direction, size = action.to(mark.dtype).clamp(-1, 1).split(1, dim=-1)
        share = (size + 1) / 2
        if not rules.margin.cash_account:
            wanted = self._margin_wanted(direction, share, account, equity, mark, judged, rules)
            return to_orders(wanted, account, mark, judged, rules)
        bought = share * account.cash.unsqueeze(-1) / mark.masked_fill(~judged, 1.0)
        wanted = torch.where(direction > self.threshold, bought, 0.0)
        wanted = torch.where(direction < -self.threshold, -share * account.shares, wanted)
        return to_orders(wanted, account, mark, judged, rules)

    def _margin_wanted(self, direction, share, account, equity, mark, judged, rules):
        held = account.shares
        room = rules.margin.margin * equity.unsqueeze(-1) - held.abs() * mark
        opened = share * room.clamp(min=0) / mark.masked_fill(~judged, 1.0)
        # What is too small for an order cannot be closed, and would bar the other side for good.
        closed, real = -share * held, acceptable(held.abs(), mark, rules)
        bought = torch.where((held < 0) & real, closed, opened)
        sold = torch.where((held > 0) & real, closed, -opened if rules.margin.shorting else 0.0)
        wanted = torch.where(direction > self.threshold, bought, 0.0)
        return torch.where(direction < -self.threshold, sold, wanted)


@dataclass(frozen=True)
class Regimes(ActionScheme):
    """Discrete(12): one of twelve portfolios defined by factors, see `environments.regimes`.

    Assets that cannot be judged now get no weight and are left as they are held. HOLD sends no orders. Of shares p of
    the twelve the order is the mixture of theirs: 1 - p_HOLD of the way to the portfolio sum_k p_k w_k / (1 - p_HOLD).
    """

    name = "regimes"
    differentiable = True
    n_factors = N_FACTORS

    def space(self, n_assets: int) -> gymnasium.Space:
        return gymnasium.spaces.Discrete(len(REGIMES))

    def factors(self, bars, extra):
        return asset_factors(bars, extra)

    def rows(self, factors, judged):
        return target_weights(factors, judged)

    def orders(self, action, account, equity, mark, judged, rules, row=None):
        if row is None:
            raise ValueError("the orders of a regime need the row of its table: (N, 12, A) target weights")
        if action.is_floating_point():
            share = action.to(mark.dtype)
            moving = 1 - share[:, HOLD : HOLD + 1]
            mixed = torch.einsum("nk,nka->na", share, row) / moving.clamp(min=1e-12)
            wanted = moving * units_toward(mixed, account, equity, mark, judged, rules)
            return to_orders(wanted, account, mark, judged, rules)
        weights = row[torch.arange(len(action), device=action.device), action]
        wanted = units_toward(weights, account, equity, mark, judged, rules)
        return to_orders(wanted.masked_fill((action == HOLD).unsqueeze(-1), 0.0), account, mark, judged, rules)


SCHEMES: dict[str, type[ActionScheme]] = {kind.name: kind for kind in (Trades, TargetWeights, SignalSize, Regimes)}
_DIFFERENTIABLE = ", ".join(name for name, kind in SCHEMES.items() if kind.differentiable)


def find_scheme(name: str) -> type[ActionScheme]:
    """The class of the action scheme `name`: built in, or an entry point of the group "drl_agents.actions".

    Raises:
        InputError: nothing has that name (the message lists what does), or what has it is no action scheme.
    """
    if name in SCHEMES:
        return SCHEMES[name]
    installed = {point.name: point for point in entry_points(group=ENTRY_POINTS)}
    if name not in installed:
        raise InputError(f"action scheme {name!r}: accepted are {', '.join((*SCHEMES, *installed))}")
    kind = installed[name].load()
    sound = isinstance(kind, type) and issubclass(kind, ActionScheme) and is_dataclass(kind)
    # Frozen, so that it can be part of the key its table is remembered under; named as it is asked for, so
    # that a model finds it again.
    if not sound or not kind.__dataclass_params__.frozen or kind.name != name:
        wanted = f"a frozen dataclass derived from ActionScheme with the name {name!r}"
        raise InputError(f"action scheme {name!r}: {installed[name].value} is not {wanted}")
    return kind


def build_scheme(name: str, **options: Any) -> ActionScheme:
    """The action scheme `name` with its options; unknown names and options are listed."""
    kind = find_scheme(name)
    accepted = [item.name for item in fields(kind)]
    unknown = sorted(set(options) - set(accepted))
    if unknown:
        said = ", ".join(accepted) or "none"
        raise InputError(f"action scheme {name!r} has no option {', '.join(unknown)}: accepted are {said}")
    return kind(**options)
