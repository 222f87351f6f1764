"""Asset rules: what sizes a venue accepts, kept by symbol.

The crypto table is the one Alpaca published with its crypto trading guide
(https://alpaca.markets/docs/trading/crypto-trading/, "Minimum Qty" and "Qty Increment"). A pair that is
not in it takes `CRYPTO_DEFAULT`, the nine decimals every crypto asset has today
(https://docs.alpaca.markets/docs/crypto-trading-1); stocks are fractional to nine decimals from one
dollar (https://docs.alpaca.markets/docs/fractional-trading), but sold short in whole shares alone, whatever their rule.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, NamedTuple

import torch
from torch import Tensor

from environments.errors import InputError
from environments.margin import CASH_ACCOUNT, MarginTerms

QUOTES = ("USDT", "USDC", "USD")

# What a sale may leave, in increments. Positions on increments are off them by the rounding of sums alone: half an
# increment is none. Where the fee is taken out of what is bought, less than a whole one could never be sold again.
HALF, WHOLE = 0.5, 1 - 1e-9


@dataclass(frozen=True)
class AssetRule:
    """Sizes one asset may be traded in.

    increment: smallest step of the quantity, in shares or coins.
    min_quantity: smallest order, in shares or coins.
    min_notional: smallest order, in the account's currency.
    """

    increment: float
    min_quantity: float
    min_notional: float

    def __post_init__(self) -> None:
        if not self.increment > 0 or self.min_quantity < 0 or self.min_notional < 0:
            raise InputError(f"asset rule {self} needs increment > 0 and minima >= 0")


CRYPTO_DEFAULT = AssetRule(1e-9, 1e-9, 10.0)
STOCK_DEFAULT = AssetRule(1e-9, 1e-9, 1.0)
WHOLE_SHARES = AssetRule(1.0, 1.0, 0.0)

_CRYPTO_SIZES: dict[str, tuple[float, float]] = {  # base: (minimum quantity, increment)
    "AAVE": (0.01, 0.01),
    "AVAX": (0.1, 0.1),
    "BAT": (1.0, 1.0),
    "BCH": (0.001, 0.0001),
    "BTC": (0.0001, 0.0001),
    "DOGE": (1.0, 1.0),
    "ETH": (0.001, 0.001),
    "GRT": (1.0, 1.0),
    "LINK": (0.1, 0.1),
    "LTC": (0.01, 0.01),
    "MKR": (0.001, 0.001),
    "SOL": (0.01, 0.01),
    "UNI": (0.1, 0.1),
}


def base_of(symbol: str) -> str:
    """The base of a pair: "BTC/USD", "BTCUSD" and "BTCUSDT" are all "BTC"."""
    name = symbol.upper().replace("/", "").replace("-", "")
    for quote in QUOTES:
        if name.endswith(quote) and len(name) > len(quote):
            return name[: -len(quote)]
    return name


def default_rule(symbol: str, asset_class: str) -> AssetRule:
    """The venue's published rule for `symbol`; asset_class is "crypto" or "stock"."""
    if asset_class == "stock":
        return STOCK_DEFAULT
    if asset_class != "crypto":
        raise InputError(f"asset class {asset_class!r}: accepted are crypto, stock")
    sizes = _CRYPTO_SIZES.get(base_of(symbol))
    if sizes is None:
        return CRYPTO_DEFAULT
    minimum, increment = sizes
    return AssetRule(increment, minimum, CRYPTO_DEFAULT.min_notional)


def overridden_rule(symbol: str, asset_class: str, changes: Mapping[str, Any]) -> AssetRule:
    """The venue's rule for `symbol` with some of it changed.

    Args:
        changes: any of increment, min_quantity, min_notional (numbers) and fractional. `fractional: False` starts from
            whole shares instead of the venue's rule, and takes whole increments only.

    Raises:
        InputError: an unknown key (the nearest accepted one is named), a value that is no such number.
    """
    accepted = (*(item.name for item in fields(AssetRule)), "fractional")
    if not isinstance(changes, Mapping):
        raise InputError(f"rules of {symbol}: {changes!r} is no table of {', '.join(accepted)}")
    for key in changes:
        if key not in accepted:
            close = difflib.get_close_matches(str(key), accepted, n=1, cutoff=0.4)
            hint = f" (nearest: {close[0]})" if close else ""
            raise InputError(f"rules of {symbol}: unknown key {key!r}{hint}: accepted are {', '.join(accepted)}")
    sizes = dict(changes)
    fractional = sizes.pop("fractional", True)
    if not isinstance(fractional, bool):
        raise InputError(f"rules of {symbol}: fractional is {fractional!r}, accepted are true, false")
    for key, value in sizes.items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not 0 <= value < math.inf or (key == "increment" and value == 0):
            wanted = "a number > 0" if key == "increment" else "a number >= 0"
            raise InputError(f"rules of {symbol}: {key} is {value!r}, accepted is {wanted}")
    venue = default_rule(symbol, asset_class)
    rule = AssetRule(**{**asdict(venue if fractional else WHOLE_SHARES), **{k: float(v) for k, v in sizes.items()}})
    if not fractional and rule.increment % 1:
        raise InputError(f"rules of {symbol}: increment is {rule.increment:g}, whole shares need a whole number")
    return rule


class RuleTensors(NamedTuple):
    """The rules of A assets as tensors (A,), in the order of the market's symbols, and what the account may owe.

    remnant: share of an increment; a sale that would leave less than that sells all.
    margin: the account's terms. whole_short: only whole units are sold short, although the increments are finer.
    """

    increment: Tensor
    min_quantity: Tensor
    min_notional: Tensor
    remnant: float = HALF
    margin: MarginTerms = CASH_ACCOUNT
    whole_short: bool = False


class RuleBook:
    """Rules by symbol. Looked up by name, so that reordering symbols reorders rules.

    Args:
        asset_class: "crypto" or "stock", which published defaults apply.
        overrides: rules that replace the defaults, by symbol.
    """

    def __init__(self, asset_class: str, overrides: Mapping[str, AssetRule] | None = None) -> None:
        self.asset_class = asset_class
        self.overrides = dict(overrides or {})

    def rule(self, symbol: str) -> AssetRule:
        return self.overrides.get(symbol) or default_rule(symbol, self.asset_class)

    def tensors(
        self,
        symbols: Sequence[str],
        device: torch.device,
        dtype: torch.dtype,
        margin: MarginTerms = CASH_ACCOUNT,
        fee_in: str = "quote",
    ) -> RuleTensors:
        """Rules for `symbols` in that order; an override for a symbol that is not there is an error.

        margin: what the account may owe. fee_in: where the commission is taken, see `Frictions`.
        """
        unknown = sorted(set(self.overrides) - set(symbols))
        if unknown:
            raise InputError(f"rules name {', '.join(unknown)}, but the market holds {', '.join(symbols)}")
        rules = [self.rule(symbol) for symbol in symbols]
        columns = ("increment", "min_quantity", "min_notional")
        sizes = (torch.tensor([getattr(r, c) for r in rules], dtype=dtype, device=device) for c in columns)
        # "Fractional orders cannot be sold short": https://docs.alpaca.markets/docs/fractional-trading
        short = margin.shorting and any(r.increment % 1 for r in rules)
        return RuleTensors(*sizes, WHOLE if fee_in == "received" else HALF, margin, short)

    def to_dict(self, symbols: Sequence[str]) -> dict[str, dict[str, float]]:
        return {symbol: asdict(self.rule(symbol)) for symbol in symbols}

    @classmethod
    def from_dict(cls, asset_class: str, rules: Mapping[str, Mapping[str, Any]]) -> RuleBook:
        """A book with overrides by symbol, each as `overridden_rule` takes it; what one leaves out is the venue's."""
        return cls(asset_class, {symbol: overridden_rule(symbol, asset_class, own) for symbol, own in rules.items()})
