"""LocalBroker: replays bars and fills orders with the environment's own books. Nothing to sign up for.

An order handed in after bar t fills in bar t + 1, as a market order sent at the close of t would. A margin account is
charged for what it owes at every close, and closed by force where it has too little left.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from environments.errors import InputError
from environments.live.broker import Accepted, Bar, Order, OrderResult, Slack
from environments.market_env import MarketVecEnv
from environments.portfolio import Fills, close_bar, match, open_account, settle


class LocalBroker:
    """A broker over historical bars.

    Args:
        env: an environment made for the model that trades: its market, rules, costs, fill price and cash are the
            venue's. The environment itself is not stepped.
        start, stop: the bars to replay; bars before `start` are history.
    """

    name = "local"
    slack, costs_in_price, refuses_uncovered = Slack(), False, False

    def __init__(self, env: MarketVecEnv, start: int, stop: int) -> None:
        if not 0 <= start < stop - 1 < env.market.n_bars:
            raise InputError(f"bars {start} to {stop}: the market has {env.market.n_bars}, at least 2 are replayed")
        self.env, self.market = env, env.market
        self.bar, self.stop = start, stop
        cash = torch.full((1,), env.initial_cash, dtype=self.market.dtype, device=self.market.device)
        self.account = open_account(cash, self.market.n_assets)
        names = ("open", "high", "low", "close", "volume", "extra")
        self._columns = [getattr(self.market, name).cpu().double().numpy() for name in names]
        self._stamps = self.market.timestamps.cpu().numpy()
        self._waiting: list[Order] = []
        self._ended: list[OrderResult] = []
        self._seen: set[str] = set()

    def _at(self, bar: int) -> Bar:
        return Bar(int(self._stamps[bar]), *(column[bar] for column in self._columns))

    def history(self) -> list[Bar]:
        return [self._at(bar) for bar in range(self.bar + 1)]

    def submit(self, orders: Sequence[Order]) -> list[Accepted]:
        for order in orders:
            if order.client_order_id in self._seen:
                raise InputError(f"client_order_id {order.client_order_id} must be unique")
            if order.symbol not in self.market.symbols or not order.quantity > 0 or order.side not in ("buy", "sell"):
                raise InputError(f"order {order}: unknown symbol, side or quantity")
            self._seen.add(order.client_order_id)
            self._waiting.append(order)
        return [Accepted(order.client_order_id) for order in orders]

    def cancel(self, orders: Sequence[OrderResult]) -> None:
        """Nothing is left to cancel: an order ends in the bar after it."""

    def next_bar(self, timeout: float | None = None) -> Bar | None:
        if self.bar + 1 >= self.stop:
            return None
        self.bar += 1
        self._execute()
        return self._at(self.bar)

    def _execute(self) -> None:
        wanted = torch.zeros_like(self.account.shares)
        index = {symbol: i for i, symbol in enumerate(self.market.symbols)}
        for order in self._waiting:
            wanted[0, index[order.symbol]] += order.quantity if order.side == "buy" else -order.quantity
        env, row = self.env, self.env.bar_row(torch.tensor([self.bar], device=self.market.device))
        fills = match(self.account, wanted, row.price, row.fillable, env.rules, env.frictions, row.slip, row.volume)
        self.account = settle(self.account, fills, env.margin)
        self._tell(self._waiting, fills)
        self._waiting = []
        if env.margin.cash_account:
            return
        held = self.account.shares[0].tolist()
        self.account, close = close_bar(self.account, row.mark, env.margin, env.frictions, row.slip, row.volume)
        if close.forced:
            orders = [
                Order(f"forced-{self._stamps[self.bar]}-{symbol}", symbol, "sell" if units > 0 else "buy", abs(units))
                for symbol, units in zip(self.market.symbols, held, strict=True)
                if units
            ]
            self._tell(orders, close.fills, forced=True)

    def _tell(self, orders: Sequence[Order], fills: Fills, forced: bool = False) -> None:
        """Note what became of `orders`, which `fills` executed."""
        traded, value, fees = (x[0].cpu().numpy() for x in fills)
        for order in orders:
            i = self.market.symbols.index(order.symbol)
            quantity = float(abs(traded[i]))
            executed = quantity / self.env.frictions.credited if order.side == "buy" else quantity
            full = executed >= order.quantity * (1 - 1e-9)
            status = "filled" if full else "partially_filled" if quantity else "canceled"
            self._ended.append(OrderResult(order, status, quantity, float(value[i]), float(fees[i]), forced))

    def results(self, orders: Sequence[Order] = ()) -> list[OrderResult]:
        ended, self._ended = self._ended, []
        return ended

    def cash(self) -> float:
        return float(self.account.cash)

    def positions(self) -> dict[str, float]:
        held = self.account.shares[0].tolist()
        return {symbol: units for symbol, units in zip(self.market.symbols, held, strict=True) if units}
