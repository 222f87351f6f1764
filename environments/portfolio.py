"""The books: one accounting step, pure functions through which gradients flow.

Value in = value out + fees, every step: `cash + shares * price` after `settle` equals what it was before minus the
fees, at the fill prices. In a cash account cash never goes negative and a position is never sold short; in a margin
account both may be, up to the limit (`environments.margin`): shares < 0 are owed.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from environments.frictions import Frictions
from environments.margin import CASH_ACCOUNT, MarginTerms
from environments.rules import RuleTensors

# Quantities are whole multiples of an increment up to rounding of the division; without this slack 0.3 / 0.1
# would count as two increments.
_SLACK = 1e-9
_MANY = 256  # accounts from which on compiled vector code has enough of them to run along


class Account(NamedTuple):
    """What N traders hold.

    cash: (N,) currency. shares: (N, A) units, negative where sold short.
    entry: (N, A) average price paid, or received, for what is held, fees left out; 0 where nothing is held. A trade
        through zero opens a new position: its entry is the price of that trade.
    idle: (N, A) bars since the asset was last traded (or the episode began).
    """

    cash: Tensor
    shares: Tensor
    entry: Tensor
    idle: Tensor


class Fills(NamedTuple):
    """What was traded in one bar, all (N, A).

    traded: signed units that changed hands, what the venue kept of a buy as its fee not among them. value: >= 0
    currency, |traded| at the fill price. fees: currency, all costs, what was kept in units at the fill price.
    """

    traded: Tensor
    value: Tensor
    fees: Tensor


def open_account(cash: Tensor, n_assets: int) -> Account:
    """Accounts that hold nothing but `cash` (N,)."""
    n = cash.shape[0]
    # Of many accounts those of one asset are neighbours in memory, and compiled vector code runs along them; assets are
    # few. Not on a GPU, where it was not timed.
    columns = n >= _MANY and cash.device.type == "cpu"
    zeros = cash.new_zeros(n_assets, n).t() if columns else cash.new_zeros(n, n_assets)
    return Account(cash.clone(), zeros, zeros.clone(), zeros.clone())


def equity(account: Account, mark: Tensor) -> Tensor:
    """(N,) cash + sum of shares * mark; mark: (N, A) currency per unit."""
    return account.cash + (account.shares * mark).sum(-1)


def differentiated(x: Tensor) -> bool:
    """Is a gradient of `x` wanted?"""
    return torch.is_grad_enabled() and x.requires_grad


def straight_through(value: Tensor, source: Tensor) -> Tensor:
    """`value`, bit for bit, with the gradient of `source` where one is wanted (Bengio et al., 2013)."""
    return value.detach() + (source - source.detach()) if differentiated(source) else value


def with_sign(size: Tensor, like: Tensor) -> Tensor:
    """`size` (>= 0) with the sign of `like`; its gradient is that sign for a size of 0 too, where copysign has none."""
    return torch.where(like < 0, -size, size) if differentiated(size) else torch.copysign(size, like)


def floor_to(quantity: Tensor, increment: Tensor) -> Tensor:
    """Largest multiple of `increment` not above `quantity` (>= 0), gradients passed straight through."""
    steps = quantity / increment
    if steps.dtype == torch.float32:  # there a hundred increments are already off by more than the slack
        steps = steps * (1 + 4 * torch.finfo(torch.float32).eps)
    return straight_through(torch.floor(steps + _SLACK) * increment, quantity)


def acceptable(quantity: Tensor, price: Tensor, rules: RuleTensors) -> Tensor:
    """bool: does an order of `quantity` (>= 0) at `price` reach the venue's minima?"""
    number = torch.finfo(quantity.dtype)
    slack = max(_SLACK, 4 * number.eps)
    # At least the smallest number there is: an order of nothing is none.
    least = (rules.min_quantity * (1 - slack)).clamp(min=number.tiny)
    # One comparison of both differences: masks are what vector code is slow at.
    return torch.minimum(quantity - least, quantity * price - rules.min_notional) >= 0


def remnant(held: Tensor, rules: RuleTensors) -> Tensor:
    """(N, A) units under which what stays of a position of `held` units is no position, see `RuleTensors`.

    Shares are sums of increments and carry their rounding; left behind it would show as a position (an entry price, a
    profit) that no venue knows of.
    """
    return torch.maximum(rules.remnant * rules.increment, 64 * torch.finfo(held.dtype).eps * held)


def match(
    account: Account,
    orders: Tensor,
    price: Tensor,
    fillable: Tensor,
    rules: RuleTensors,
    frictions: Frictions,
    slip: Tensor | None,
    volume: Tensor | None = None,
) -> Fills:
    """What of the market orders is executed in one bar.

    Cash account: sells first, then buys share the cash there is. When the buys and their costs exceed the cash, all
    are scaled by the same factor cash / cost. Margin account: see `within_limit`. What was scaled is rounded down to
    increments; what falls below a minimum is dropped. Costs per unit of value never rise when an order shrinks, so
    what was scaled is always affordable.

    Args:
        orders: (N, A) signed units, on increments. Sells are cut to what is held unless it may be sold short; one
            that would leave a `remnant` sells all.
        price: (N, A) fill price; any finite number where not `fillable`.
        fillable: (N, A) bool; elsewhere the order lapses.
        slip: (N, A) see `Frictions.cost`.
        volume: (N, A) units the bar traded, 0 where none; needed where `frictions.reads_volume`.
    """
    wanted = orders.masked_fill(~fillable, 0.0)
    if frictions.reads_volume and volume is None:
        raise ValueError(f"participation={frictions.participation}, impact by volume: the bar's volume is needed")
    if frictions.participation is not None:
        most = floor_to(frictions.participation * volume, rules.increment)
        wanted = torch.minimum(torch.maximum(wanted, -most), most)
    rate = frictions.rate(slip)
    if not rules.margin.cash_account:
        return _match_margin(account, wanted, price, rules, frictions, rate, volume)

    reference = None
    if frictions.has_impact:
        by_portfolio = frictions.impact_reference == "portfolio"
        reference = equity(account, price).unsqueeze(-1) if by_portfolio else volume * price
        reference = reference.clamp(min=1e-12)
    selling = wanted < 0
    sold = torch.minimum((-wanted).clamp(min=0), account.shares)
    rest = (account.shares - sold).detach()
    sold = torch.where(selling & (rest < remnant(account.shares, rules)), sold + rest, sold)
    size = torch.where(selling, sold, wanted)  # an order of nothing is one side's too: its slope is not lost

    value = size * price
    fees = frictions.cost(value, None, reference, rate)
    credited = frictions.credited
    cash = account.cash + ((value - fees) * selling).sum(-1)
    # What is kept in units is not paid in currency: both together make the value.
    outlay = credited * value + fees if frictions.kept_in_units else value + fees
    cost = (outlay * ~selling).sum(-1)
    share = (cash / cost.clamp(min=1e-12)).clamp(0, 1).unsqueeze(-1)
    scaled = floor_to(size * share, rules.increment)
    scaled = scaled * acceptable(scaled, price, rules)
    size = torch.where((cost > cash).unsqueeze(-1) & ~selling, scaled, size)
    value = size * price
    fees = frictions.cost(value, None, reference, rate)
    if frictions.kept_in_units:
        size = torch.where(selling, size, credited * size)
        value = size * price
    return Fills(with_sign(size, wanted), value, fees)


def whole_shorts(size: Tensor, wanted: Tensor, held: Tensor, rules: RuleTensors) -> Tensor:
    """(N, A) sizes >= 0 of which what is sold short, or bought back of it, is whole units, rounded down.

    Of a sell of q against a holding of l = max(held, 0) that is what is beyond l; of a buy against s = max(-held, 0) it
    is all of it, unless the order closes the position.
    """
    if not rules.whole_short:
        return size
    covered = held + torch.copysign(size, wanted) >= 0
    kept = torch.where(covered, size, held.clamp(min=0))
    # The difference of what is nearly the same is off by the rounding of the larger one, not by its own.
    short = torch.add(size - kept, size, alpha=4 * torch.finfo(size.dtype).eps)
    return straight_through(kept + torch.floor(short + _SLACK), size)


def within_limit(
    size: Tensor, wanted: Tensor, account: Account, price: Tensor, fees: Tensor | None, rules: RuleTensors
) -> Tensor:
    """(N, A) sizes >= 0 after which a margin account's gross exposure is at most margin * equity, at `price`.

    Of an order of size q_i against a position s_i, c_i closes it and o_i = q_i - c_i opens one. With E the equity, F
    the fees of what closes and f of what opens (of an order that does both, in the parts c_i and o_i of its fees: a
    smaller order has no higher costs per unit), all openings are scaled by

        k = (margin * (E - F) - sum (|s_i| - c_i) p_i) / (sum o_i p_i + margin * f),  if that is below 1

    to the increments of c_i + k o_i (see `whole_shorts`); below a minimum they are dropped, c_i alone where fees are
    given (of an order that the venue has, a part may be filled). What closes is never scaled.

    Args:
        size: (N, A) units >= 0. wanted: (N, A) the same with signs. fees: (N, A) costs of `size`, None to leave them
            to the fill.
    """
    held, limit = account.shares, rules.margin.margin
    closing = torch.minimum(size, held.abs()) * (wanted * held < 0)
    opening = size - closing
    freed, bill = closing * price, opening * price
    if fees is not None:
        opens = fees * (opening / size.clamp(min=1e-30))
        freed, bill = freed - limit * (fees - opens), bill + limit * opens
    value = held * price
    # margin * E and the gross exposure in one sum: sums over few assets are what a step spends its time on.
    room, bill = limit * account.cash + (limit * value - value.abs() + freed).sum(-1), bill.sum(-1)
    share = (room / bill.clamp(min=1e-12)).clamp(0, 1).unsqueeze(-1)
    less = whole_shorts(floor_to(closing + opening * share, rules.increment), wanted, held, rules)
    fits = acceptable(less, price, rules)
    less = less * fits if fees is None else torch.where(fits, less, closing)
    return torch.where((bill > room).unsqueeze(-1) & (opening > 0), less, size)


def _match_margin(
    account: Account,
    wanted: Tensor,
    price: Tensor,
    rules: RuleTensors,
    frictions: Frictions,
    rate: Tensor | float,
    volume: Tensor | None,
) -> Fills:
    held = account.shares
    if not rules.margin.shorting:
        wanted = torch.maximum(wanted, -held)
    reference = None
    if frictions.has_impact:
        value = held * price
        worth, gross = account.cash + value.sum(-1), value.abs().sum(-1)
        reference = _reference(worth, gross, price, frictions, volume)
    size = whole_shorts(wanted.abs(), wanted, held, rules)
    fees = frictions.cost(size * price, None, reference, rate)
    size = within_limit(size, wanted, account, price, fees, rules)
    traded = with_sign(size, wanted)
    rest = (held + traded).detach().abs()
    traded = torch.where((size > 0) & (rest < remnant(held.abs(), rules)), -held, traded)
    value = traded.abs() * price
    return Fills(traded, value, frictions.cost(value, None, reference, rate))


def _reference(worth: Tensor, gross: Tensor, price: Tensor, frictions: Frictions, volume: Tensor | None) -> Tensor:
    """(N, 1) or (N, A) what a margin account's impact is relative to; worth, gross: (N,) equity and exposure."""
    if frictions.impact_reference == "volume":
        return (volume * price).clamp(min=1e-12)
    return torch.maximum(worth, gross).clamp(min=1e-12).unsqueeze(-1)


def settle(account: Account, fills: Fills, margin: MarginTerms = CASH_ACCOUNT, bars: int = 1) -> Account:
    """The account after `fills`, whoever executed them; `idle` is advanced by `bars`, and 0 where traded."""
    spent = with_sign(fills.value, fills.traded)
    cash = account.cash - (spent + fills.fees).sum(-1)
    shares = account.shares + fills.traded
    idle = (account.idle + bars).masked_fill(fills.traded != 0, 0.0)
    if margin.cash_account:
        cash = cash.clamp(min=0)  # a fully spent account may miss zero by the rounding of the sum
        paid = account.entry * account.shares + fills.value
        opened = fills.traded > 0
        entry = torch.where(opened, paid / shares.clamp(min=1e-30), account.entry).masked_fill(shares <= 0, 0.0)
        return Account(cash, shares, entry, idle)
    crossed = shares * account.shares < 0
    opened = fills.traded * shares > 0
    before = account.shares.abs().masked_fill(crossed, 0.0)
    paid = (account.entry * before + fills.value) / (before + fills.traded.abs()).clamp(min=1e-30)
    entry = torch.where(opened, paid, account.entry).masked_fill(shares == 0, 0.0)
    return Account(cash, shares, entry, idle)


class Close(NamedTuple):
    """What the end of a bar did to N margin accounts.

    forced: (N,) bool, the venue closed all positions. fills: (N, A) of that, 0 elsewhere. carry: (N,) currency, borrow
    fees and interest of the bar. costs: (N,) carry and the fees of the fills. equity: (N,) after all of it.
    """

    forced: Tensor
    fills: Fills
    carry: Tensor
    costs: Tensor
    equity: Tensor


def close_bar(
    account: Account,
    mark: Tensor,
    margin: MarginTerms,
    frictions: Frictions,
    slip: Tensor | None,
    volume: Tensor | None,
) -> tuple[Account, Close]:
    """A margin account at a bar's close: it pays for what it owes; where it has too little left, all is closed.

    A forced close is at the closing marks, with the costs of any trade, the bar's slippage among them. It has no
    participation limit, and what did not trade in the bar is closed at its last known close.

    Args:
        mark: (N, A) last known closes. slip, volume: the bar's, as for `match`.
    """
    value = account.shares * mark
    net, short = value.sum(-1), value.clamp(max=0).sum(-1)
    carry = margin.carry(account.cash, -short)
    cash = account.cash - carry
    forced = cash + net < margin.requirement(net - short, -short)
    closed = forced.to(net.dtype).unsqueeze(-1)
    kept = 1 - closed
    size = value.abs() * closed
    reference = None
    if frictions.has_impact:
        reference = _reference(cash + net, net - 2 * short, mark, frictions, volume)
    fees = frictions.cost(size, slip, reference)
    spent = fees.sum(-1)
    traded = -account.shares * closed
    worth = cash + net - spent
    # Of a position the rest is 0 exactly; what is traded at the close was not idle.
    after = Account(
        torch.where(forced, worth, cash), account.shares * kept, account.entry * kept, account.idle * (traded == 0)
    )
    return after, Close(forced, Fills(traded, size, fees), carry, carry + spent, worth)
