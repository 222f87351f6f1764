"""Margin: what an account may owe, what that costs, and when the venue ends it.

With E equity, G = sum |shares| * price the gross exposure, M the maintenance requirement and dt = 1 / bars_per_year:

    limit         G <= margin * E after every order, costs included; orders that open or grow a position are all
                  scaled by one factor where they would break it, those that reduce one never are
    borrow        borrow_bps * 1e-4 * dt * (value of what is short)       per bar, at its closing marks
    interest      margin_rate_bps * 1e-4 * dt * max(-cash, 0)             per bar
    maintenance   M = maintenance_margin * (long value) + maintenance_margin_short * (short value)
    forced close  where E < M at a bar's closing marks: all positions are closed at those marks, with costs

A cash account (margin 1, no shorting) owes nothing: none of it applies, and none of it is computed.

Sources: Regulation T lends half of a purchase, margin 2; day traders are lent up to 4 within a day
(https://docs.alpaca.markets/docs/margin-and-short-selling). FINRA Rule 4210(c) asks for 25% of long and 30% of short
market value (https://www.finra.org/rules-guidance/rulebooks/finra-rules/4210); Alpaca asks for 30% of long value too,
and both for more under 5 dollars a share, which is not modelled. Borrow fees and interest are charged on the value at
the end of a day (https://alpaca.markets/support/short-selling-fees, https://alpaca.markets/support/determine-margin-account);
here at the end of every bar, by the share of a year a bar is. A call to pay in, the minimum equity of 2,000 dollars and
round lots of borrowed shares are not modelled. Alpaca takes fractional sells from a holding only
(https://docs.alpaca.markets/docs/fractional-trading): what is sold short is whole shares (`portfolio.whole_shorts`).
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

from torch import Tensor

from environments.errors import InputError

_BPS = 1e-4


@dataclass(frozen=True)
class MarginTerms:
    """What an account may borrow, named as the environment's options.

    margin: limit of gross exposure, in equities, 1 to 4. shorting: may more be sold than is held?
    borrow_bps, margin_rate_bps: basis points a year, of the value of what is short and of negative cash.
    maintenance_margin, maintenance_margin_short: shares of the long and of the short value, in [0, 1].
    bars_per_year: what a year has, for the two rates.
    """

    margin: float = 1.0
    shorting: bool = False
    borrow_bps: float = 0.0
    margin_rate_bps: float = 0.0
    maintenance_margin: float = 0.25
    maintenance_margin_short: float = 0.30
    bars_per_year: float = 252.0

    def __post_init__(self) -> None:
        if not isinstance(self.shorting, bool):
            raise InputError(f"shorting={self.shorting!r}: accepted are true, false")
        for name, least, most in (
            ("margin", 1, 4), ("borrow_bps", 0, 100_000), ("margin_rate_bps", 0, 100_000), ("maintenance_margin", 0, 1),
            ("maintenance_margin_short", 0, 1),
        ):  # fmt: skip
            value = getattr(self, name)
            if not least <= value <= most:
                raise InputError(f"{name}={value}: accepted are {least} <= {name} <= {most}")
        if not 0 < self.bars_per_year < math.inf:
            raise InputError(f"bars_per_year={self.bars_per_year}: a number > 0 is needed")

    @property
    def cash_account(self) -> bool:
        """Nothing can be owed: neither cash nor shares."""
        return self.margin == 1 and not self.shorting

    def check_venue(self, asset_class: str, fee_in: str) -> None:
        """Raises InputError where the venue lends nothing, or takes its fee out of what a position is."""
        if self.cash_account:
            return
        if asset_class == "crypto":
            raise InputError(
                f"margin={self.margin}, shorting={self.shorting}: crypto is neither lent on nor sold short at the "
                f"venue, accepted are margin=1, shorting=False"
            )
        if fee_in != "quote":
            raise InputError(f"fee_in={fee_in!r}: a margin account pays in currency, accepted is quote")

    def to_dict(self) -> dict[str, float | bool]:
        return asdict(self)

    def carry(self, cash: Tensor, short: Tensor) -> Tensor:
        """(N,) currency, the borrow fee and interest of one bar. cash: (N,); short: (N,) value >= 0 of what is owed."""
        share = _BPS / self.bars_per_year
        due = cash.clamp(max=0) * (-self.margin_rate_bps * share)
        return due + short * (self.borrow_bps * share) if self.borrow_bps else due

    def requirement(self, long: Tensor, short: Tensor) -> Tensor:
        """(N,) currency, the maintenance requirement; long, short: (N,) values >= 0 of the positions."""
        return self.maintenance_margin * long + self.maintenance_margin_short * short


CASH_ACCOUNT = MarginTerms()
