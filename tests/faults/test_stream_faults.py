"""A trader on bars as they close, by websocket and over REST: what goes wrong with either, and with the clock."""

from __future__ import annotations

import random
import threading
import time

import pytest
import torch

from drl_agents.deployment.bundle import Bundle, load_bundle, save_bundle
from drl_agents.deployment.venues import paper_trading
from drl_agents.evaluation.backtest import backtest
from drl_agents.networks.policy import ActorCritic, PolicySpec
from environments.alpaca_env import VectorizedCryptoEnvAlpaca
from environments.data.credentials import Secret
from environments.live import alpaca_broker, feed
from environments.live.alpaca_local.server import LocalAlpaca
from environments.live.risk import RiskLimits
from environments.market import Market
from tests.reference.trader_runs import check_books

pytestmark = pytest.mark.usefixtures("one_thread")
START, STOP = 50, 62
KEYS = (Secret("local"), Secret("local"))
PATH = "/v1beta3/crypto/us"
ONE_BY_ONE = ["repeat_bar", "stale_bar", "late_bar", "clock_skew"] * 2


@pytest.fixture(scope="module")
def market(make_market, random_bars) -> Market:
    bars = {name: random_bars(i, STOP, price=100.0) for i, name in enumerate(("BTCUSD", "DOGEUSD"))}
    return make_market(bars, timeframe="1m")


@pytest.fixture(scope="module")
def bundle(market, tmp_path_factory) -> Bundle:
    env = VectorizedCryptoEnvAlpaca(market, 1, max_trade=0.2)
    policy = ActorCritic(PolicySpec.of(env, hidden=(8,)), seeds=(3,))
    policy.fit_normalizer(env)
    with torch.no_grad():
        policy.actor.layers[-1].weight.mul_(60.0)
    return load_bundle(save_bundle(tmp_path_factory.mktemp("b"), policy, 0, env, "VectorizedCryptoEnvAlpaca", {}))


@pytest.fixture
def quick(monkeypatch):
    """Seconds as milliseconds: the venue's time stands still until somebody moves it on."""
    monkeypatch.setattr(alpaca_broker, "CLOCK_EVERY", 0.005)
    monkeypatch.setattr(alpaca_broker, "SELLS_FILL_WITHIN", 0.0)
    monkeypatch.setattr(feed, "FIRST_POLL", 0.003)
    monkeypatch.setattr(feed, "POLL", 0.0)
    monkeypatch.setattr(feed, "GRACE", 0.003)


class Mover:
    """Moves the venue on when the trader has done with a bar, each time with the next of `faults`."""

    def __init__(self, venue: LocalAlpaca, faults: list[str]) -> None:
        self.venue, self.faults, self.done = venue, faults, threading.Event()
        self.closed: list[int] = []

    def at_boundary(self, trader, bar) -> None:
        """What is sent at this bar comes after."""

    def after_orders(self, trader, bar) -> None:
        self.closed.append(bar.timestamp)
        self.done.set()

    def connected(self) -> bool:
        until = time.monotonic() + 20
        while not self.venue.hub.connected(PATH) and time.monotonic() < until:
            time.sleep(0.01)
        return bool(self.venue.hub.connected(PATH))

    def __call__(self) -> None:
        while self.done.wait(30):
            self.done.clear()
            if self.faults and self.connected():
                self.venue.faults.next(self.faults.pop(0))
            if not self.venue.advance():
                return


@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_every_fault_of_the_bars_and_the_clock(market, bundle, tmp_path, quick, seed):
    """No bar is lost, taken twice or out of order; every order is the back-test's, and the books are the venue's."""
    tested = backtest(bundle.env(market, (START, STOP)), bundle.decide)[0]
    faults = [*random.Random(seed).sample(ONE_BY_ONE, len(ONE_BY_ONE)), "cut", "mute"]
    with LocalAlpaca(bundle.env(market, (START, STOP)), START, STOP) as venue:
        mover = Mover(venue, list(faults))
        # The venue's time is years behind ours, always.
        options = {"url": venue.url, "stream_url": venue.stream_url + PATH, "limits": RiskLimits.off(), "hook": mover}
        with paper_trading(bundle, KEYS, tmp_path, "t", **options) as trader:
            assert mover.connected()
            thread = threading.Thread(target=mover)
            thread.start()
            paper = trader.run(stop=lambda: len(mover.closed) == STOP - START)
            thread.join()
            assert trader.reconciled and trader.ledger.cash == venue.cash
        assert venue.faults.counts == {kind: faults.count(kind) for kind in faults}
        assert check_books(venue, tmp_path) == []
    assert mover.closed == market.timestamps.tolist()[START:STOP] == paper.timestamps.tolist()
    assert paper.equity == pytest.approx(tested.equity, rel=1e-9) and paper.n_orders > 5
