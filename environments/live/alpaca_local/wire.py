"""How Alpaca writes numbers, times and symbols.

The trading API writes numbers as decimal strings, the data API as JSON numbers. Strings here carry all the digits of a
float64, where Alpaca keeps nine decimals: a replay then equals the back-test.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import Decimal
from uuid import NAMESPACE_DNS, uuid5

from environments.live.alpaca_local.refusal import malformed, not_found
from environments.rules import QUOTES, base_of

SECOND = 10**9
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def decimal(number: float) -> str:
    """The shortest decimal string that reads back as `number`, never with an exponent: 0.1, 12, 0.000000001."""
    text = repr(float(number))
    if "e" in text:
        text = format(Decimal(text), "f")
    return text.removesuffix(".0")


def rfc3339(nanoseconds: int) -> str:
    """UTC nanoseconds as 2021-03-01T10:00:00Z, with a fraction where there is one."""
    whole, fraction = divmod(nanoseconds, SECOND)
    text = datetime.fromtimestamp(whole, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    return f"{text}.{fraction:09d}".rstrip("0") + "Z" if fraction else text + "Z"


def nanoseconds(text: str, name: str) -> int:
    """UTC nanoseconds of an RFC 3339 time or an ISO date (a time without a zone is UTC).

    Raises:
        Refused: 422, `name` is no such time.
    """
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise malformed(f"invalid {name}: {text!r} is no RFC-3339 time") from None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    gone = moment - _EPOCH
    return (gone.days * 86_400 + gone.seconds) * SECOND + gone.microseconds * 1_000


def wire_symbol(symbol: str, asset_class: str) -> str:
    """What Alpaca's orders and bars call `symbol`: BTCUSDT, BTC-USDT and BTC/USDT are BTC/USDT, a stock is itself."""
    if asset_class != "crypto":
        return symbol
    plain = symbol.upper().replace("/", "").replace("-", "")
    base = base_of(symbol)
    # A name that ends in no quote currency is taken as the coin itself, in dollars.
    return f"{base}/{plain[len(base) :] or QUOTES[-1]}"


class Names:
    """The names of a market's A assets.

    market: as the market has them. wire: of orders and bars (BTC/USD). held: of positions (BTCUSD). ids: of assets.
    """

    def __init__(self, symbols: Sequence[str], asset_class: str) -> None:
        self.asset_class = asset_class
        self.market = list(symbols)
        self.wire = [wire_symbol(symbol, asset_class) for symbol in symbols]
        self.held = [name.replace("/", "") if asset_class == "crypto" else name for name in self.wire]
        self.ids = [str(uuid5(NAMESPACE_DNS, name)) for name in self.wire]
        columns = (self.market, self.wire, self.held, self.ids)
        self._index = {name: i for column in columns for i, name in enumerate(column)}

    def find(self, name: str) -> int | None:
        """The asset that `name` (any of its names, or its id) stands for; None where there is none."""
        return self._index.get(name)

    def asset(self, name: str) -> int:
        """As `find`.

        Raises:
            Refused: 404, there is no such asset.
        """
        found = self.find(name)
        if found is None:
            raise not_found(f"asset not found for {name}")
        return found
