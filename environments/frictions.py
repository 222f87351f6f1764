"""Frictions: what a trade costs beyond its price. Each is a share of the traded value, against the trader.

    commission   commission_bps * 1e-4 * value                       the venue's fee per side
    spread       spread_bps * 1e-4 * value                           crossing the bid-ask spread
    slippage     U * slippage_bps * 1e-4 * value, U ~ Uniform[0, 1)  per bar and asset, see `slippage_table`
    impact       impact_coef * sqrt(value / reference) * value       square-root law, reference = portfolio value

Sources: Alpaca's fee schedule (https://docs.alpaca.markets/docs/crypto-fees, taker tier 1: 25 bps; US
stocks: no commission); Almgren et al., "Direct Estimation of Equity Market Impact", 2005, and Gatheral,
"No-dynamic-arbitrage and market impact", 2010, for the square root.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields

import numpy as np
import torch
from torch import Tensor

from environments.errors import InputError
from environments.market import Market

BPS = 1e-4


@dataclass(frozen=True)
class Frictions:
    """Friction parameters; basis points of traded value, except `impact_coef` (dimensionless)."""

    commission_bps: float = 0.0
    spread_bps: float = 2.0
    slippage_bps: float = 5.0
    impact_coef: float = 0.01

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            # Together under one: a sale whose costs exceed its proceeds could not be paid for.
            limit = 0.5 if item.name == "impact_coef" else 1_000
            if not 0 <= value < limit:
                raise InputError(f"{item.name}={value}: accepted are 0 <= value < {limit}")

    @classmethod
    def for_venue(cls, asset_class: str, **overrides: float) -> Frictions:
        """The defaults of Alpaca's venue for "crypto" or "stock", with `overrides`."""
        return cls(**{"commission_bps": 25.0 if asset_class == "crypto" else 0.0, **overrides})

    def to_dict(self) -> dict[str, float]:
        return asdict(self)

    def cost(self, value: Tensor, slip: Tensor | None, reference: Tensor) -> Tensor:
        """Cost of trading `value`, same shape and currency.

        Args:
            value: (N, A) traded value, >= 0.
            slip: (N, A) uniform draws in [0, 1) for the bar, or None where slippage_bps is 0.
            reference: (N, 1) portfolio value the impact is relative to, > 0.
        """
        rate = (self.commission_bps + self.spread_bps) * BPS
        if slip is not None:
            rate = rate + slip * (self.slippage_bps * BPS)
        if self.impact_coef:
            # Clamped away from 0: the square root's slope there is infinite and would poison gradients.
            rate = rate + self.impact_coef * (value / reference).clamp(min=1e-12).sqrt()
        return value * rate


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
