"""The books: one accounting step, a pure function through which gradients flow.

Value in = value out + fees, every step: `cash + shares * price` after `settle` equals what it was before
minus the fees, at the fill prices. Cash never goes negative; a position is never sold short.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from environments.frictions import Frictions
from environments.rules import RuleTensors

# Quantities are whole multiples of an increment up to rounding of the division; without this slack 0.3 / 0.1
# would count as two increments.
_SLACK = 1e-9


class Account(NamedTuple):
    """What N traders hold.

    cash: (N,) currency. shares: (N, A) units.
    entry: (N, A) average price paid for the shares held, fees left out; 0 where nothing is held.
    idle: (N, A) bars since the asset was last traded (or the episode began).
    """

    cash: Tensor
    shares: Tensor
    entry: Tensor
    idle: Tensor


class Fills(NamedTuple):
    """What was traded in one bar, all (N, A). traded: signed units; value: >= 0 currency; fees: currency."""

    traded: Tensor
    value: Tensor
    fees: Tensor


def open_account(cash: Tensor, n_assets: int) -> Account:
    """Accounts that hold nothing but `cash` (N,)."""
    zeros = cash.new_zeros(cash.shape[0], n_assets)
    return Account(cash.clone(), zeros, zeros.clone(), zeros.clone())


def equity(account: Account, mark: Tensor) -> Tensor:
    """(N,) cash + sum of shares * mark; mark: (N, A) currency per unit."""
    return account.cash + (account.shares * mark).sum(-1)


def floor_to(quantity: Tensor, increment: Tensor) -> Tensor:
    """Largest multiple of `increment` not above `quantity` (>= 0), gradients passed straight through."""
    floored = torch.floor(quantity / increment + _SLACK) * increment
    if torch.is_grad_enabled() and quantity.requires_grad:
        return quantity + (floored - quantity).detach()
    return floored


def acceptable(quantity: Tensor, price: Tensor, rules: RuleTensors) -> Tensor:
    """bool: does an order of `quantity` (>= 0) at `price` reach the venue's minima?"""
    return (quantity >= rules.min_quantity * (1 - _SLACK)) & (quantity * price >= rules.min_notional) & (quantity > 0)


def match(
    account: Account,
    orders: Tensor,
    price: Tensor,
    fillable: Tensor,
    rules: RuleTensors,
    frictions: Frictions,
    slip: Tensor | None,
) -> Fills:
    """What of the market orders is executed in one bar: sells first, then buys share the cash there is.

    When the buys and their fees cost more than the cash, all are scaled by the same factor
    cash / cost, then rounded down to increments; what falls below a minimum is dropped. Costs per unit of value never
    rise when an order shrinks, so the scaled buys are always affordable.

    Args:
        orders: (N, A) signed units, on increments. Sells are cut to what is held; one that would leave less than
            half an increment sells all.
        price: (N, A) fill price; any finite number where not `fillable`.
        fillable: (N, A) bool; elsewhere the order lapses.
        slip: (N, A) see `Frictions.cost`.
    """
    wanted = orders.masked_fill(~fillable, 0.0)
    sold = torch.minimum((-wanted).clamp(min=0), account.shares)
    # Shares are sums of increments and carry their rounding: less than half an increment is no position, and
    # left behind it would show as one (an entry price, a profit) that no venue knows of.
    rest = (account.shares - sold).detach()
    rounding = torch.maximum(0.5 * rules.increment, 64 * torch.finfo(rest.dtype).eps * account.shares)
    sold = torch.where((sold > 0) & (rest < rounding), sold + rest, sold)
    bought = wanted.clamp(min=0)
    reference = equity(account, price).clamp(min=1e-12).unsqueeze(-1)

    sold_value = sold * price
    sold_fees = frictions.cost(sold_value, slip, reference)
    cash = account.cash + (sold_value - sold_fees).sum(-1)

    bought_value = bought * price
    cost = (bought_value + frictions.cost(bought_value, slip, reference)).sum(-1)
    short = cost > cash
    share = (cash / cost.clamp(min=1e-12)).clamp(0, 1).unsqueeze(-1)
    scaled = floor_to(bought * share, rules.increment)
    scaled = scaled.masked_fill(~acceptable(scaled, price, rules), 0.0)
    bought = torch.where(short.unsqueeze(-1), scaled, bought)
    bought_value = bought * price
    bought_fees = frictions.cost(bought_value, slip, reference)
    return Fills(bought - sold, sold_value + bought_value, sold_fees + bought_fees)


def settle(account: Account, fills: Fills) -> Account:
    """The account after `fills`, whoever executed them; `idle` is advanced by one bar, and 0 where traded."""
    bought = fills.traded > 0
    spent = torch.where(bought, fills.value, -fills.value)
    # max with 0: a fully spent account may miss zero by the rounding of the sum.
    cash = (account.cash - (spent + fills.fees).sum(-1)).clamp(min=0)
    shares = account.shares + fills.traded
    paid = account.entry * account.shares + fills.value
    entry = torch.where(bought, paid / shares.clamp(min=1e-30), account.entry).masked_fill(shares <= 0, 0.0)
    idle = (account.idle + 1).masked_fill(fills.traded != 0, 0.0)
    return Account(cash, shares, entry, idle)
