"""The trader at a venue that is not the replay: it fills at once, lends cash, goes silent, and remembers old ids."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from drl_agents.deployment.bookkeeper import Bookkeeper, InFlight
from drl_agents.deployment.bundle import Bundle, load_bundle, save_bundle
from drl_agents.deployment.journal import Journal
from drl_agents.deployment.ledger import Ledger
from drl_agents.deployment.trader import PaperTrader
from drl_agents.deployment.trading_record import TradingRecord
from drl_agents.deployment.venues import paper_trading
from drl_agents.networks.policy import ActorCritic, PolicySpec
from environments.alpaca_env import VectorizedCryptoEnvAlpaca, VectorizedStockEnvAlpaca
from environments.data.credentials import Secret
from environments.errors import InputError
from environments.live.alpaca_broker import AlpacaBroker
from environments.live.broker import Accepted, Bar, BrokerUnavailable, Order, OrderResult
from environments.margin import MarginTerms
from environments.market import Market

pytestmark = pytest.mark.usefixtures("one_thread")
SYMBOLS = ["A", "B"]


@pytest.fixture(scope="module")
def market(make_market, random_bars) -> Market:
    bars = {symbol: random_bars(i, 160, price=50.0, sigma=0.02) for i, symbol in enumerate(SYMBOLS)}
    return make_market(bars, asset_class="stock", timeframe="1d")


@pytest.fixture(scope="module")
def bundle(market, tmp_path_factory) -> Bundle:
    env = VectorizedStockEnvAlpaca(market, 1, max_trade=0.2)
    policy = ActorCritic(PolicySpec.of(env, hidden=(8,)), seeds=(3,))
    policy.fit_normalizer(env)
    with torch.no_grad():
        policy.actor.layers[-1].weight.mul_(60.0)
    return load_bundle(save_bundle(tmp_path_factory.mktemp("b"), policy, 0, env, "VectorizedStockEnvAlpaca", {}))


class Venue:
    """Bars and one account. Orders fill when they are sent, at the newest close times `dearer`; cash may be owed.

    window: how many bars back its history goes. down: how many of the next readings of the cash fail.
    """

    name, slack, costs_in_price, refuses_uncovered = "fake", AlpacaBroker.slack, True, True

    def __init__(self, market: Market, at: int, window: int = 80) -> None:
        columns = [getattr(market, name).double().numpy() for name in ("open", "high", "low", "close", "volume")]
        stamps = market.timestamps.tolist()
        extra = np.zeros((len(SYMBOLS), 0))
        self.bars = [Bar(stamp, *(c[i] for c in columns), extra) for i, stamp in enumerate(stamps)]
        self.at, self.window, self.stop, self.dearer, self.down = at, window, len(self.bars), 1.0, 0
        self.dollars, self.units, self.orders = 100_000.0, dict.fromkeys(SYMBOLS, 0.0), {}

    def history(self) -> list[Bar]:
        return self.bars[max(0, self.at + 1 - self.window) : self.at + 1]

    def next_bar(self, timeout: float | None = None) -> Bar | None:
        if self.at + 1 >= self.stop:
            return None
        self.at += 1
        return self.bars[self.at]

    def submit(self, orders):
        for order in orders:
            if order.client_order_id not in self.orders:  # an id is taken once
                price = self.bars[self.at].close[SYMBOLS.index(order.symbol)] * self.dearer
                sign = 1 if order.side == "buy" else -1
                self.dollars -= sign * order.quantity * price
                self.units[order.symbol] += sign * order.quantity
                done = OrderResult(order, "filled", order.quantity, order.quantity * price, 0.0, broker_id="x")
                self.orders[order.client_order_id] = done
        return [Accepted("x") for _ in orders]

    def lookup(self, order: Order) -> OrderResult | None:
        return self.orders.get(order.client_order_id)

    def results(self, orders):
        return [found for order in orders if (found := self.lookup(order))]

    def cancel(self, orders) -> None: ...

    def foreign_orders(self, known):
        return []

    def latest_orders(self):
        return list(self.orders)

    def activities(self, since):
        return []

    def cash(self) -> float:
        if self.down:
            self.down -= 1
            raise BrokerUnavailable("down")
        return round(self.dollars, 2)

    def positions(self):
        return {symbol: units for symbol, units in self.units.items() if units}


def trade(bundle: Bundle, venue: Venue, folder: Path, until: int, fresh: bool = False) -> dict:
    """Run until the bar `until`; gives state.json."""
    venue.stop = until + 1
    journal = Journal(folder, {"symbols": SYMBOLS}, fresh)
    try:
        PaperTrader(bundle, venue, folder, "t", feed=venue, journal=journal).run()
    finally:
        journal.close()
    return json.loads((folder / "state.json").read_text())


def test_down_for_longer_than_history_goes_back(bundle, market, tmp_path):
    venue = Venue(market, 60, window=40)
    trade(bundle, venue, tmp_path, 70)
    venue.at = 120  # fifty bars later, of which history has forty
    state = trade(bundle, venue, tmp_path, 125)
    assert (state["state"], state["bar"][:10]) == ("FINISHED", str(np.datetime64(venue.bars[125].timestamp, "ns"))[:10])
    assert state["n_fills"] > 3 and state["equity"] == pytest.approx(
        venue.dollars + sum(venue.units[s] * venue.bars[125].close[i] for i, s in enumerate(SYMBOLS)), abs=0.05
    )


def test_a_venue_that_fills_dearer_than_there_is_cash(bundle, market, tmp_path):
    """A gap upwards overnight: the account owes a little, as Alpaca's may, and the books say so."""
    venue = Venue(market, 60)
    venue.dearer = 1.05
    state = trade(bundle, venue, tmp_path, 110)
    cash = [float(line.split(",")[2]) for line in (tmp_path / "equity.csv").read_text().splitlines()[1:]]
    assert state["state"] == "FINISHED" and len(cash) == 50
    assert min(cash) < -100.0, "the venue has lent something"


def test_begun_anew_after_the_same_bar(bundle, market, tmp_path):
    """What an earlier trader sent after this bar is in the positions already: it is not booked again."""
    venue = Venue(market, 60)
    trade(bundle, venue, tmp_path / "one", 60)
    sent = len(venue.orders)
    assert sent > 0
    for name, fresh in (("one", True), ("two", False)):
        state = trade(bundle, venue, tmp_path / name, 60, fresh)
        assert len(venue.orders) == sent and state["n_orders"] == 0
    state = trade(bundle, venue, tmp_path / "two", 64)
    assert state["state"] == "FINISHED" and len(venue.orders) > sent


def test_an_account_of_nothing(bundle, market, tmp_path):
    venue = Venue(market, 60)
    venue.dollars = 0.0
    with pytest.raises(InputError, match="worth 0: there is nothing to trade with"):
        trade(bundle, venue, tmp_path, 62)


# ------------------------------------------------------------------------------------------- the second look


@pytest.fixture
def books(market, tmp_path):
    """Ten A in flight, which the venue has filled at 50."""
    venue, journal = Venue(market, 60), Journal(tmp_path, {"symbols": SYMBOLS})
    order = Order("one", "A", "buy", 10.0)
    journal.intend(order, 1, 1)
    venue.orders["one"] = OrderResult(order, "filled", 10.0, 500.0, 0.0)
    venue.dollars, venue.units["A"] = 99_500.0, 10.0
    keeper = Bookkeeper(venue, Ledger(SYMBOLS, MarginTerms(), 100_000.0), TradingRecord(tmp_path, "t"), journal)
    keeper.in_flight["one"] = InFlight(order)
    yield keeper, venue
    journal.close()


MARK = torch.tensor([[50.0, 50.0]], dtype=torch.float64)
PRICE = np.array([50.0, 50.0])


def test_a_venue_that_goes_silent_at_the_second_look_has_booked_nothing(books):
    keeper, venue = books
    readings = iter([99_900.0])  # stale at first, then nothing

    def cash() -> float:
        for stale in readings:
            return stale
        raise BrokerUnavailable("down")

    venue.cash = cash
    with pytest.raises(BrokerUnavailable):
        keeper.settle(1, MARK, PRICE)
    assert keeper.ledger.cash == 100_000.0 and keeper.n_fills == 0
    assert keeper.in_flight["one"].filled == 0.0
    del venue.cash
    told, _ = keeper.settle(2, MARK, PRICE, 2)
    assert [result.order.client_order_id for result in told] == ["one"], "the journal hears of it"
    assert keeper.ledger.cash == 99_500.0 and keeper.n_fills == 1 and not keeper.in_flight


def test_fees_that_no_order_told_are_forgiven_at_the_second_look_too(books):
    """0.4% of what was traded is missing, which is within the slack; the first reading was stale."""
    keeper, venue = books
    venue.dollars = 99_498.0
    positions, readings = venue.positions, iter([{}])
    venue.positions = lambda: next(readings, positions())
    keeper.settle(1, MARK, PRICE)
    assert keeper.ledger.cash == 99_498.0 and keeper.reconciled
    venue.dollars = 99_497.0  # nothing was traded since: now it is not forgiven
    with pytest.raises(RuntimeError, match="books differ"):
        keeper.settle(2, MARK, PRICE)


# ------------------------------------------------------------------------------------------------ coins


@pytest.mark.parametrize(("symbol", "taken"), [("BTCUSDT", False), ("BTC/USD", True), ("BTC/USDC", False)])
def test_coins_that_dollars_do_not_buy_are_refused(make_market, random_bars, tmp_path, symbol, taken):
    env = VectorizedCryptoEnvAlpaca(make_market({symbol: random_bars(1, 80, price=100.0)}), 1)
    policy = ActorCritic(PolicySpec.of(env, hidden=(8,)), seeds=(3,))
    policy.fit_normalizer(env)
    bundle = load_bundle(save_bundle(tmp_path / "b", policy, 0, env, "VectorizedCryptoEnvAlpaca", {}))
    told = contextlib.nullcontext() if taken else pytest.raises(InputError, match="train on BTC/USD$")
    with told, paper_trading(bundle, (Secret("key"), Secret(str(tmp_path))), tmp_path / "t", "t"):
        assert taken
