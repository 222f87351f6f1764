"""Frictions: what a trade costs beyond its price. Each is a share of the traded value, against the trader.

    commission     commission_bps * 1e-4 * value                       the venue's fee per side
    spread         spread_bps * 1e-4 * value                           crossing the bid-ask spread
    slippage       U * slippage_bps * 1e-4 * value, U ~ Uniform[0, 1)  per bar and asset, see `slippage_table`
    impact         impact_coef * sqrt(value / reference) * value       square-root law; the reference is the portfolio's
                                                                       value or what the bar traded, volume * price
                                                                       (then value / reference counts as at most 1)
    participation  an order takes at most participation * volume of the bar that fills it, the rest lapses

The portfolio's value is its equity, or its gross exposure where that is more (in a margin account). Spread, slippage
and impact are worse prices: they are always paid in currency. The commission is taken in currency, or (`fee_in`
"received") from what a trade brings in: a buy of q units credits q * (1 - commission_bps * 1e-4), a sell pays out less
currency. Alpaca's crypto fee is of that kind: a position is then off the increment by its fees (the venue keeps nine
decimals), and a sale that would leave less than one increment sells all. What borrowing costs is in
`environments.margin`.

Sources: Alpaca's fee schedule (https://docs.alpaca.markets/docs/crypto-fees, taker tier 1: 25 bps, of the asset
credited; US stocks: no commission); Almgren et al., "Direct Estimation of Equity Market Impact", 2005, and Gatheral,
"No-dynamic-arbitrage and market impact", 2010, for the square root, there of the share of the market's volume.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from environments.errors import InputError
from environments.market import Market

BPS = 1e-4
COEFFICIENTS = ("commission_bps", "spread_bps", "slippage_bps", "impact_coef")


@dataclass(frozen=True)
class Frictions:
    """Friction parameters; basis points of traded value, except `impact_coef` (dimensionless).

    impact_reference: "portfolio" or "volume". participation: share of the filling bar's volume an order may take, in
    (0, 1]; None: all that is ordered. fee_in: "quote" (currency) or "received", where the commission is taken.
    In a population the coefficients may be tensors (N, 1) in place of numbers, see `each_members`.
    """

    commission_bps: float = 0.0
    spread_bps: float = 2.0
    slippage_bps: float = 5.0
    impact_coef: float = 0.01
    impact_reference: str = "portfolio"
    participation: float | None = None
    fee_in: str = "quote"

    def __post_init__(self) -> None:
        for name in COEFFICIENTS:
            value = getattr(self, name)
            # Together under one: a sale whose costs exceed its proceeds could not be paid for.
            limit = 0.5 if name == "impact_coef" else 1_000
            if not 0 <= value < limit:
                raise InputError(f"{name}={value}: accepted are 0 <= value < {limit}")
        for name, accepted in (("impact_reference", ("portfolio", "volume")), ("fee_in", ("quote", "received"))):
            if getattr(self, name) not in accepted:
                raise InputError(f"{name}={getattr(self, name)!r}: accepted are {', '.join(accepted)}")
        if self.participation is not None and not 0 < self.participation <= 1:
            raise InputError(f"participation={self.participation}: accepted are 0 < participation <= 1")

    @classmethod
    def for_venue(cls, asset_class: str, **overrides: Any) -> Frictions:
        """The defaults of Alpaca's venue for "crypto" or "stock", with `overrides`."""
        own = {"commission_bps": 25.0, "fee_in": "received"} if asset_class == "crypto" else {}
        return cls(**{**own, **overrides})

    @classmethod
    def each_members(cls, own: Sequence[Frictions], each: int, dtype: torch.dtype, device: torch.device) -> Frictions:
        """The frictions of P * each environments, `each` in succession with those of one of `own`.

        Coefficients in which the members agree stay numbers. The others are tensors (P * each, 1): a population whose
        members pay different costs is one batch, and each pays what it pays alone.

        Raises:
            InputError: the members differ in what is no coefficient.
        """
        rest = {replace(member, **dict.fromkeys(COEFFICIENTS, 0.0)) for member in own}
        if len(rest) > 1:
            accepted = ", ".join(COEFFICIENTS)
            raise InputError(f"frictions of one population: accepted are members that differ in {accepted}")
        merged = copy.copy(own[0])
        for name in COEFFICIENTS:
            values = [getattr(member, name) for member in own]
            if len(set(values)) > 1:
                column = torch.tensor(values, dtype=dtype, device=device).repeat_interleave(each).unsqueeze(-1)
                object.__setattr__(merged, name, column)  # each was checked as a number
        return merged

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def reads_volume(self) -> bool:
        """Does what is filled, or what it costs, depend on the filling bar's volume?"""
        return self.participation is not None or (self.impact_reference == "volume" and self.has_impact)

    @property
    def has_impact(self) -> bool:
        """Is there an impact, of any member's?"""
        return _positive(self.impact_coef)

    @property
    def has_slippage(self) -> bool:
        """Is there slippage, of any member's?"""
        return _positive(self.slippage_bps)

    @property
    def kept_in_units(self) -> bool:
        """Is a commission, of any member's, taken from the units that a buy brings in?"""
        return self.fee_in == "received" and _positive(self.commission_bps)

    @property
    def credited(self) -> float | Tensor:
        """Units credited for each unit bought; (N, 1) where the members' commissions differ."""
        return 1 - self.commission_bps * BPS if self.fee_in == "received" else 1.0

    def rate(self, slip: Tensor | None) -> Tensor | float:
        """Commission, spread and slippage together as a share of the traded value. slip: (N, A), see `cost`."""
        rate = (self.commission_bps + self.spread_bps) * BPS
        return rate if slip is None else rate + slip * (self.slippage_bps * BPS)

    def cost(self, value: Tensor, slip: Tensor | None, reference: Tensor | None, rate: Tensor | None = None) -> Tensor:
        """Cost of trading `value`, same shape and currency.

        Args:
            value: (N, A) traded value, >= 0.
            slip: (N, A) uniform draws in [0, 1) for the bar, or None where slippage_bps is 0.
            reference: (N, 1) or (N, A) value the impact is relative to, > 0; None where impact_coef is 0.
            rate: `rate(slip)` where it is known already.
        """
        rate = self.rate(slip) if rate is None else rate
        if self.has_impact:
            # Clamped away from 0: the square root's slope there is infinite and would poison gradients. Of what a
            # liquid market trades in a bar, a small order is a smaller part than of any portfolio.
            least, most = (1e-30, 1.0) if self.impact_reference == "volume" else (1e-12, None)
            rate = rate + self.impact_coef * (value / reference).clamp(min=least, max=most).sqrt()
        return value * rate


def _positive(coefficient: float | Tensor) -> bool:
    # A tensor is of members that differ, so one of them is not 0; to look would make the host wait for the device.
    return isinstance(coefficient, Tensor) or coefficient > 0


def slippage_table(market: Market, seed: int) -> Tensor:
    """(B, A) uniform draws in [0, 1), a function of (seed, symbol, timestamp) alone.

    Drawn by hashing (splitmix64, Steele, Lea and Flood, OOPSLA 2014) rather than from a stream: a bar has
    the same slippage in training, in any fold, in a back-test and in the replaying broker, wherever each starts.
    """

    def compute() -> Tensor:
        names = np.array([_text_key(symbol) for symbol in market.symbols], dtype=np.uint64)
        stamps = market.timestamps.cpu().numpy().astype(np.uint64)
        with np.errstate(over="ignore"):
            key = _splitmix(stamps[:, None] ^ _splitmix(names + np.uint64(seed))[None, :])
        uniform = (key >> np.uint64(11)).astype(np.float64) * 2.0**-53
        return torch.as_tensor(uniform, dtype=market.dtype).to(market.device)

    return market.once(("slippage", seed), compute)


def _splitmix(x: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        x = x + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


def _text_key(text: str) -> int:
    """FNV-1a, 64 bits: Python's own hash() differs between processes."""
    key = 0xCBF29CE484222325
    for byte in text.encode():
        key = ((key ^ byte) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    return key
