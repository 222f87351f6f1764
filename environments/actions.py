"""What an action means: from the numbers a policy gives to the orders a trader sends.

Orders are decided at the close of bar t, from what is known there: the account, the marks of bar t and
which assets can be judged. They are quantities: the price they fill at is the next bar's. All functions
are pure and let gradients through.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import gymnasium
import numpy as np
import torch
from torch import Tensor

from environments.errors import InputError
from environments.portfolio import Account, acceptable, floor_to
from environments.rules import RuleTensors


class ActionScheme(ABC):
    """Turns actions into orders for A assets."""

    name: str

    @abstractmethod
    def space(self, n_assets: int) -> gymnasium.Space:
        """The space of one environment's action."""

    @abstractmethod
    def orders(
        self, action: Tensor, account: Account, equity: Tensor, mark: Tensor, judged: Tensor, rules: RuleTensors
    ) -> Tensor:
        """(N, A) signed units to trade.

        Args:
            action: (N, ...) of `space`.
            equity: (N,) at the marks.
            mark: (N, A) last known close, > 0 where judged.
            judged: (N, A) bool, the asset has a bar now and features: only these are traded.
        """


def to_orders(wanted: Tensor, account: Account, mark: Tensor, judged: Tensor, rules: RuleTensors) -> Tensor:
    """Signed units (N, A) as orders the venue accepts: rounded toward zero to increments, minima kept.

    Sells end at what is held. Buys that cost more, at the marks, than the cash and the proceeds of the sells are all
    scaled by the same factor: a broker would refuse what cannot be paid. Costs are left to the fill, which scales again.
    """
    selling = wanted < 0
    size = floor_to(torch.where(selling, torch.minimum(-wanted, account.shares), wanted), rules.increment)
    size = size.masked_fill(~(acceptable(size, mark, rules) & judged), 0.0)
    value = size * mark
    bill = value.masked_fill(selling, 0.0).sum(-1)
    spendable = account.cash + value.masked_fill(~selling, 0.0).sum(-1)
    share = (spendable / bill.clamp(min=1e-12)).clamp(max=1).unsqueeze(-1)
    less = floor_to(size * share, rules.increment)
    less = less.masked_fill(~acceptable(less, mark, rules), 0.0)
    size = torch.where((bill > spendable).unsqueeze(-1) & ~selling, less, size)
    return torch.copysign(size, wanted).masked_fill(size == 0, 0.0)


@dataclass(frozen=True)
class Trades(ActionScheme):
    """Box(-1, 1, (A,)): the value of asset i to buy (> 0) or sell (< 0) is action_i * max_trade * equity.

    max_trade: the share of equity that a full action trades in one asset and bar, in (0, 1].
    """

    max_trade: float = 0.25
    name = "trades"

    def __post_init__(self) -> None:
        if not 0 < self.max_trade <= 1:
            raise InputError(f"max_trade={self.max_trade}: accepted are 0 < max_trade <= 1")

    def space(self, n_assets: int) -> gymnasium.Space:
        return gymnasium.spaces.Box(-1.0, 1.0, (n_assets,), np.float32)

    def orders(self, action, account, equity, mark, judged, rules):
        value = action.to(mark.dtype).clamp(-1, 1) * (self.max_trade * equity).unsqueeze(-1)
        wanted = value / mark.masked_fill(~judged, 1.0)
        return to_orders(wanted, account, mark, judged, rules)


@dataclass(frozen=True)
class TargetWeights(ActionScheme):
    """Box(-1, 1, (A + 1,)): target weights softmax(sharpness * action); the last entry is cash.

    Assets that cannot be judged now get no weight and are left as they are held.
    """

    sharpness: float = 5.0
    name = "weights"

    def __post_init__(self) -> None:
        if not 0 < self.sharpness <= 100:
            raise InputError(f"sharpness={self.sharpness}: accepted are 0 < sharpness <= 100")

    def space(self, n_assets: int) -> gymnasium.Space:
        return gymnasium.spaces.Box(-1.0, 1.0, (n_assets + 1,), np.float32)

    def orders(self, action, account, equity, mark, judged, rules):
        logits = action.to(mark.dtype).clamp(-1, 1) * self.sharpness
        logits = torch.cat([logits[:, :-1].masked_fill(~judged, -torch.inf), logits[:, -1:]], dim=-1)
        weights = torch.softmax(logits, dim=-1)[:, :-1]
        # What is held of an asset that cannot be traded now is not there to be shared out.
        free = equity - (account.shares * mark).masked_fill(judged, 0.0).sum(-1)
        wanted = weights * free.unsqueeze(-1) / mark.masked_fill(~judged, 1.0) - account.shares
        return to_orders(wanted, account, mark, judged, rules)


SCHEMES: dict[str, type[ActionScheme]] = {"trades": Trades, "weights": TargetWeights}


def build_scheme(name: str, **options: float) -> ActionScheme:
    """The action scheme `name` with its options; unknown names and options are listed."""
    if name not in SCHEMES:
        raise InputError(f"action scheme {name!r}: accepted are {', '.join(SCHEMES)}")
    accepted = SCHEMES[name].__dataclass_fields__
    unknown = sorted(set(options) - set(accepted))
    if unknown:
        raise InputError(f"action scheme {name!r} has no option {', '.join(unknown)}: accepted are {', '.join(accepted)}")
    return SCHEMES[name](**options)
