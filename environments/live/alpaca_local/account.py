"""What the venue says of the account: /v2/account and /v2/positions."""

from __future__ import annotations

from typing import Any
from uuid import NAMESPACE_DNS, uuid5

from environments.live.alpaca_local.books import Books
from environments.live.alpaca_local.checks import available, buying_power
from environments.live.alpaca_local.orders import VenueOrder
from environments.live.alpaca_local.wire import Names, decimal, rfc3339

ACCOUNT_ID = str(uuid5(NAMESPACE_DNS, "local alpaca account"))


def account_json(books: Books, orders: list[VenueOrder], created: int, last_equity: float) -> dict[str, Any]:
    """Alpaca's account object; there is no pattern-day-trader field any more."""
    values = [units * mark for units, mark in zip(books.units, books.marks, strict=True)]
    long, short = sum(v for v in values if v > 0), sum(v for v in values if v < 0)
    power, margin = decimal(buying_power(books, orders)), books.env.margin
    required = margin.maintenance_margin * long - margin.maintenance_margin_short * short
    worth = decimal(books.equity)
    return {
        "id": ACCOUNT_ID,
        "account_number": "LOCAL0000001",
        "status": "ACTIVE",
        "crypto_status": "ACTIVE",
        "currency": "USD",
        "buying_power": power,
        "regt_buying_power": power,
        "non_marginable_buying_power": decimal(max(min(books.cash, float(power)), 0.0)),
        "cash": decimal(books.cash),
        "accrued_fees": "0",
        "pending_transfer_in": "0",
        "portfolio_value": worth,
        "trading_blocked": False,
        "transfers_blocked": False,
        "account_blocked": False,
        "created_at": rfc3339(created),
        "trade_suspended_by_user": False,
        "multiplier": decimal(margin.margin),
        "shorting_enabled": margin.shorting,
        "equity": worth,
        "last_equity": decimal(last_equity),
        "long_market_value": decimal(long),
        "short_market_value": decimal(short),
        "position_market_value": decimal(long + short),
        "initial_margin": decimal((long - short) / margin.margin),
        "maintenance_margin": decimal(required if not margin.cash_account else 0.0),
        "last_maintenance_margin": "0",
        "sma": "0",
    }


def position_json(asset: int, books: Books, orders: list[VenueOrder], names: Names, before: float) -> dict[str, Any]:
    """Alpaca's position object: its symbol has no slash. before: the mark of the bar before.

    avg_entry_price is the environment's, costs left out: what an observation shows of the position is read off it.
    """
    units, mark, entry = books.units[asset], books.marks[asset], books.entries[asset]
    worth, cost = units * mark, units * entry
    gain, today = worth - cost, units * (mark - before)
    return {
        "asset_id": names.ids[asset],
        "symbol": names.held[asset],
        "exchange": "CRYPTO" if names.asset_class == "crypto" else "NASDAQ",
        "asset_class": "crypto" if names.asset_class == "crypto" else "us_equity",
        "asset_marginable": not books.env.margin.cash_account,
        "qty": decimal(units),
        "qty_available": decimal(available(books, orders, asset) if units > 0 else units),
        "avg_entry_price": decimal(entry),
        "side": "long" if units > 0 else "short",
        "market_value": decimal(worth),
        "cost_basis": decimal(cost),
        "unrealized_pl": decimal(gain),
        "unrealized_plpc": decimal(gain / abs(cost) if cost else 0.0),
        "unrealized_intraday_pl": decimal(today),
        "unrealized_intraday_plpc": decimal(today / abs(worth - today) if worth != today else 0.0),
        "current_price": decimal(mark),
        "lastday_price": decimal(before),
        "change_today": decimal(mark / before - 1 if before else 0.0),
    }
