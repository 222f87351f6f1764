"""Shadow, take-over, health window and roll-back, beside the real trader and beside one whose state is set by hand."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from drl_agents.deployment.bundle import WEIGHTS, Bundle, load_bundle, save_bundle
from drl_agents.deployment.forecast import PREDICTION
from drl_agents.deployment.health import HELDOUT, heldout_returns, keep_heldout, predict, unhealthy
from drl_agents.deployment.registry import Registry, slot_of
from drl_agents.deployment.shadow import Shadow
from drl_agents.deployment.succession import Succession
from drl_agents.deployment.terms import Terms
from drl_agents.deployment.trader import PaperTrader
from drl_agents.evaluation.backtest import backtest
from drl_agents.networks.policy import ActorCritic, PolicySpec
from environments.alpaca_env import VectorizedCryptoEnvAlpaca, VectorizedStockEnvAlpaca
from environments.data.source import load_bars
from environments.errors import InputError
from environments.live.local import LocalBroker
from environments.market import Market

pytestmark = pytest.mark.usefixtures("one_thread")
START, STOP = 100, 180
EASY = np.random.default_rng(0).normal(0.0, 0.05, 300)  # held-out returns that no live result falls out of
BOAST = np.full(300, 0.05) + np.random.default_rng(0).normal(0.0, 1e-4, 300)  # that none can keep up with


def bundle_for(market: Market, folder: Path, seed: int, heldout: np.ndarray | None = EASY, **options) -> Bundle:
    """A policy that was never trained but decides with vigour."""
    kind = VectorizedCryptoEnvAlpaca if market.asset_class == "crypto" else VectorizedStockEnvAlpaca
    env = kind(market, 1, **options)
    policy = ActorCritic(PolicySpec.of(env, hidden=(8,)), seeds=(seed,))
    policy.fit_normalizer(env)
    with torch.no_grad():
        policy.actor.layers[-1].weight.mul_(60.0)
    lineage = {"study": "s", "trial": seed}
    bundle = load_bundle(save_bundle(folder / str(seed), policy, 0, env, kind.__name__, lineage))
    if heldout is not None:
        keep_heldout(bundle, heldout)
    return bundle


@pytest.fixture(scope="module")
def market() -> Market:
    return Market.from_bars(load_bars("synthetic", options={"n_bars": 200, "n_assets": 2}, seed=3))


@pytest.fixture(scope="module")
def bundles(market, tmp_path_factory) -> SimpleNamespace:
    """champion; good: a challenger that does what its held-out bars say; boaster: one that cannot."""
    folder = tmp_path_factory.mktemp("bundles")
    return SimpleNamespace(
        champion=bundle_for(market, folder, 1),
        good=bundle_for(market, folder, 2),
        boaster=bundle_for(market, folder, 3, BOAST),
    )


@pytest.fixture
def registry(tmp_path, bundles) -> Registry:
    registry = Registry(tmp_path / "logs")
    registry.promote(bundles.champion, {})
    return registry


@pytest.fixture
def slot(bundles) -> str:
    return slot_of(bundles.champion.manifest["market"])


def events(registry: Registry) -> list[str]:
    assert registry.verify().broken is None
    return [entry["event"] for entry in registry.audit.entries()]


def trade(registry: Registry, market: Market, slot: str, folder: Path, hook=None) -> PaperTrader:
    """Run the slot's champion over the replayed bars beside its succession."""
    bundle = registry.champion(slot)
    env = bundle.env(market, (START, STOP))
    with Succession(registry, slot) as succession:
        trader = PaperTrader(
            bundle, LocalBroker(env, START, STOP), folder / "paper", "t", hook=succession if hook is None else hook
        )
        trader.run()
    assert trader.state == "FINISHED"
    return trader


def challenge(registry: Registry, bundle: Bundle, **terms) -> None:
    registry.challenge(bundle, {"terms": {"max_loss": 0.9, **terms}})


# --------------------------------------------------------------------------------------------------- shadow

CASES = {
    "trades": {},
    "lag 2": {"decision_lag": 2},
    "weights, close": {"action": "weights", "fill_at": "close"},
    "thin bars": {"participation": 1e-4, "impact_reference": "volume", "max_trade": 1.0},
}


@pytest.mark.parametrize("name", CASES)
def test_the_shadow_is_the_backtest(market, tmp_path, name):
    """Without random slippage the challenger's books in the shadow are the back-test's."""
    bundle = bundle_for(market, tmp_path, 5, slippage_bps=0.0, **CASES[name])
    env = bundle.env(market, (START, STOP))
    tested = backtest(env, bundle.decide)[0]
    assert tested.n_trades > 20
    broker = LocalBroker(bundle.env(market, (START, STOP)), START, STOP)
    shadow = Shadow(bundle, broker.history(), env.initial_cash)
    while (bar := broker.next_bar()) is not None:
        shadow.see(bar)
    assert np.array(shadow.curve) == pytest.approx(tested.equity, rel=1e-9)
    assert shadow.bars == tested.returns.size and shadow.returns == pytest.approx(tested.returns, abs=1e-9)


def test_the_shadow_of_a_margin_account(tmp_path):
    options = {"kind": "regimes", "n_bars": 200, "n_assets": 2, "sigma": 0.02}
    market = Market.from_bars(load_bars("synthetic", options=options, timeframe="1d", asset_class="stock", seed=5))
    own = {"slippage_bps": 0.0, "shorting": True, "margin": 2.0, "borrow_bps": 300.0, "max_trade": 1.0}
    bundle = bundle_for(market, tmp_path, 5, **own)
    env = bundle.env(market, (START, STOP))
    tested = backtest(env, bundle.decide)[0]
    broker = LocalBroker(bundle.env(market, (START, STOP)), START, STOP)
    shadow = Shadow(bundle, broker.history(), env.initial_cash)
    while (bar := broker.next_bar()) is not None:
        shadow.see(bar)
    assert tested.weights.min() < -0.1
    assert np.array(shadow.curve[: tested.equity.size]) == pytest.approx(tested.equity, rel=1e-9)


# ----------------------------------------------------------------------------------- beside the real trader


def test_a_challenger_takes_over_after_its_shadow(registry, bundles, market, slot, tmp_path):
    challenge(registry, bundles.good, shadow_bars=20, health_bars=15)
    trader = trade(registry, market, slot, tmp_path)
    assert trader.bundle.id == bundles.good.id == registry.champion(slot).id
    assert events(registry)[2:] == ["challenger", "shadow", "promoting", "promoted", "healthy"]
    assert registry.challenger(slot) is None and not registry.attended(slot)
    lines = [json.loads(line) for line in (tmp_path / "paper" / "orders.jsonl").read_text().splitlines()]
    by_model = [line["client_order_id"].split("-")[0] for line in lines]
    turn = by_model.index(bundles.good.id[:12])
    assert set(by_model[:turn]) == {bundles.champion.id[:12]} and set(by_model[turn:]) == {bundles.good.id[:12]}
    stamps = market.timestamps.numpy().astype("datetime64[ns]")
    boundary = str(stamps[START + 21])[:19]  # what the 20th bar showed is known once its orders are out
    assert lines[turn - 1]["bar"][:19] < boundary <= lines[turn]["bar"][:19]
    kept = json.loads(registry.champion_file(slot).read_text())
    assert kept["previous"]["bundle"] == bundles.champion.id and kept["shadow"]["bars"] == 20


def test_orders_do_not_wait_for_the_shadow(registry, bundles, market, slot, tmp_path, monkeypatch):
    """At every bar the trader's own orders are sent before the challenger sees it."""
    challenge(registry, bundles.good, shadow_bars=1_000)
    told = []

    def noting(kind, name, word):
        method = getattr(kind, name)
        monkeypatch.setattr(kind, name, lambda self, *args: (told.append(word), method(self, *args))[1])

    noting(LocalBroker, "next_bar", "bar")
    noting(LocalBroker, "submit", "orders")
    noting(Shadow, "__init__", "shadow")
    noting(Shadow, "see", "shadow")
    trade(registry, market, slot, tmp_path)
    bars = " ".join(told).split("bar")
    assert len(bars) == STOP - START + 1 and bars.pop().split() == []  # the feed's end
    assert {tuple(bar.split()) for bar in bars} == {("orders", "shadow"), ("shadow",)}


def test_the_prediction_beside_the_trader(registry, bundles, market, slot, tmp_path):
    challenge(registry, bundles.good, shadow_bars=20, health_bars=15)
    trade(registry, market, slot, tmp_path)
    shown = json.loads((tmp_path / "paper" / PREDICTION).read_text())
    stamps = market.timestamps.numpy().astype("datetime64[ns]")
    assert shown["model"] == bundles.good.id and shown["from"][:19] == str(stamps[START + 21])[:19]
    assert shown["bars"] == list(range(1, 251))
    assert all(a < b < c for a, b, c in zip(shown["q05"], shown["q50"], shown["q95"], strict=True))
    # One bar ahead the quantiles are the sample's own.
    assert shown["q50"][0] == pytest.approx(np.median(np.log1p(EASY)), abs=0.01)


def test_a_challenger_below_its_prediction_is_refused(registry, bundles, market, slot, tmp_path):
    challenge(registry, bundles.boaster, shadow_bars=10)
    trader = trade(registry, market, slot, tmp_path)
    assert trader.bundle.id == bundles.champion.id == registry.champion(slot).id
    assert events(registry)[2:] == ["challenger", "shadow", "refused"]
    (reason,) = registry.audit.entries()[-1]["reasons"]
    assert "in the shadow: log return after 1 bars" in reason and "lower bound of the back-test's" in reason


def test_a_new_champion_that_fails_is_rolled_back(registry, bundles, market, slot, tmp_path):
    challenge(registry, bundles.boaster, shadow_bars=0, positions="flatten")
    trader = trade(registry, market, slot, tmp_path)
    assert trader.bundle.id == bundles.champion.id == registry.champion(slot).id
    assert events(registry)[2:] == [
        "challenger", "shadow", "promoting", "promoted", "rolling back", "rolled back",
    ]  # fmt: skip
    last = registry.audit.entries()[-1]
    assert last["quarantined"] == bundles.boaster.id and "lower bound" in last["reasons"][0]
    assert registry.quarantined(bundles.boaster)
    for again in (registry.promote, registry.challenge):
        with pytest.raises(InputError, match="in quarantine"):
            again(bundles.boaster, {})


def test_a_loss_rolls_back(registry, bundles, market, slot, tmp_path):
    """Nothing is known of its held-out bars: the loss limit alone holds."""
    unknown = bundle_for(market, tmp_path, 7, None)
    challenge(registry, unknown, shadow_bars=0, max_loss=1e-4)
    trader = trade(registry, market, slot, tmp_path)
    assert trader.bundle.id == bundles.champion.id and registry.quarantined(unknown)
    assert "loss since it took over" in registry.audit.entries()[-1]["reasons"][0]
    assert "refused" not in events(registry)  # that nothing can be predicted of it is no refusal


def test_a_network_that_raises_leaves_the_champion_running(registry, bundles, market, slot, tmp_path, monkeypatch):
    """A user's own may raise anything, at any bar."""
    challenge(registry, bundles.good, shadow_bars=20)

    def raises(shadow, bar):
        raise RuntimeError("size mismatch")

    monkeypatch.setattr(Shadow, "see", raises)
    trader = trade(registry, market, slot, tmp_path)
    assert trader.bundle.id == bundles.champion.id and events(registry)[-1] == "refused"
    assert registry.audit.entries()[-1]["reasons"] == ["RuntimeError: size mismatch"]


def damaged_weights(registry: Registry, bundle: Bundle, slot: str) -> None:
    place = registry.challenge(bundle, {})
    (place / WEIGHTS).write_bytes(b"other")


def damaged_pointer(registry: Registry, bundle: Bundle, slot: str) -> None:
    registry.challenge(bundle, {})
    registry.challenger_file(slot).write_text("{")


def unknown_terms(registry: Registry, bundle: Bundle, slot: str) -> None:
    registry.challenge(bundle, {"terms": {"patience": 3}})


def other_market(registry: Registry, bundle: Bundle, slot: str) -> None:
    market = Market.from_bars(load_bars("synthetic", options={"n_bars": 120}, seed=3))
    place = registry.challenge(bundle_for(market, registry.folder.parent, 9), {})
    other = registry.challenger_file(slot_of(load_bundle(place).manifest["market"]))
    other.rename(registry.challenger_file(slot))


@pytest.mark.parametrize("spoil", [damaged_weights, damaged_pointer, unknown_terms, other_market])
def test_a_corrupt_challenger_leaves_the_champion_running(registry, bundles, market, slot, tmp_path, spoil):
    spoil(registry, bundles.good, slot)
    trader = trade(registry, market, slot, tmp_path)
    assert trader.bundle.id == bundles.champion.id and trader.bars_done == STOP - START - 1
    assert events(registry).count("refused") == 1 and registry.challenger_id(slot) is None


def test_a_pointer_changed_by_another_process_is_followed(registry, bundles, market, slot, tmp_path):
    registry.promote(bundles.good, {})
    succession = Succession(registry, slot)

    class ByHand:
        def at_boundary(self, trader, bar):
            if trader.bars_done == 30:
                registry.roll_back(slot, ["by hand"], {})
            succession.at_boundary(trader, bar)

        def after_orders(self, trader, bar):
            succession.after_orders(trader, bar)

    trader = trade(registry, market, slot, tmp_path, ByHand())
    assert trader.bundle.id == bundles.champion.id and events(registry)[-1] == "followed"


# -------------------------------------------------------------------------- beside a trader set by hand


@dataclass
class Stand:
    """A trader whose state is what the test says."""

    bundle: Bundle
    feed: LocalBroker
    folder: Path
    state: str = "ACTIVE"
    stale: bool = False
    reconciled: bool = True
    equity: float = 100_000.0
    open_orders: int = 0
    initial: float = 100_000.0
    bars_done: int = 0
    flow_factor: float = 1.0
    replaced: list[tuple[str, str]] = field(default_factory=list)

    def replace_model(self, bundle: Bundle, positions: str) -> None:
        self.bundle = bundle
        self.replaced.append((bundle.id, positions))


@pytest.fixture
def stand(bundles, market, tmp_path) -> Stand:
    env = bundles.champion.env(market, (START, STOP))
    (tmp_path / "stand").mkdir()
    return Stand(bundles.champion, LocalBroker(env, START, STOP), tmp_path / "stand")


def pass_bars(succession: Succession, stand: Stand, count: int = 1) -> None:
    """What a trader calls at each of the next bars."""
    for _ in range(count):
        pass_bar(succession, stand, stand.feed.next_bar())


def pass_bar(succession: Succession, stand: Stand, bar) -> None:
    succession.at_boundary(stand, bar)
    succession.after_orders(stand, bar)


UNSAFE = [{"state": "HALTED"}, {"state": "REDUCING"}, {"stale": True}, {"reconciled": False}, {"open_orders": 1}]


@pytest.mark.parametrize("unsafe", UNSAFE, ids=["halted", "reducing", "stale", "unreconciled", "orders open"])
def test_nothing_is_promoted_while_the_trader_is_not_safe(registry, bundles, slot, stand, unsafe):
    challenge(registry, bundles.good, shadow_bars=2)
    succession = Succession(registry, slot)
    safe = {name: getattr(stand, name) for name in unsafe}
    vars(stand).update(unsafe)
    pass_bars(succession, stand, 5)
    assert stand.replaced == [] and registry.champion_id(slot) == bundles.champion.id
    vars(stand).update(safe)
    pass_bars(succession, stand, 2)
    assert stand.replaced == [(bundles.good.id, "inherit")] and registry.champion_id(slot) == bundles.good.id


def test_a_health_window_outlives_a_restart(registry, bundles, slot, stand):
    challenge(registry, bundles.good, shadow_bars=0, health_bars=30, max_loss=0.2)
    first = Succession(registry, slot)
    pass_bars(first, stand, 12)
    stand.equity = 79_000.0
    Succession(registry, slot).at_boundary(stand, stand.feed.next_bar())
    assert stand.replaced[-1][0] == bundles.champion.id and registry.quarantined(bundles.good)


def test_a_roll_back_waits_for_reconciled_books_but_not_for_a_halt_to_end(registry, bundles, slot, stand):
    challenge(registry, bundles.good, shadow_bars=0, max_loss=0.2, positions="flatten")
    succession = Succession(registry, slot)
    pass_bars(succession, stand, 2)
    stand.equity, stand.state, stand.reconciled = 70_000.0, "HALTED", False
    succession.at_boundary(stand, stand.feed.next_bar())
    assert registry.champion_id(slot) == bundles.good.id
    stand.reconciled = True
    succession.at_boundary(stand, stand.feed.next_bar())
    assert stand.replaced == [(bundles.good.id, "flatten"), (bundles.champion.id, "inherit")]
    assert registry.champion_id(slot) == bundles.champion.id


@pytest.mark.parametrize("idle", ["HALTED", "REDUCING"])
def test_a_model_that_may_not_trade_is_not_found_healthy(registry, bundles, slot, stand, idle):
    """Some bars of five, ten it may not trade in, and those that are left, across a restart."""
    challenge(registry, bundles.good, shadow_bars=0, health_bars=5, max_loss=0.9)
    first = Succession(registry, slot)
    pass_bars(first, stand, 4)
    stand.state = idle
    pass_bars(first, stand, 10)
    assert "healthy" not in events(registry) and registry.champion_id(slot) == bundles.good.id
    stand.state, again = "ACTIVE", Succession(registry, slot)
    for _ in range(5):
        pass_bars(again, stand, 1)
    (ended,) = [entry for entry in registry.audit.entries() if entry["event"] == "healthy"]
    assert (ended["bars"], ended["idle"]) == (15, 10)


def test_a_halted_model_that_loses_is_rolled_back(registry, bundles, slot, stand):
    challenge(registry, bundles.good, shadow_bars=0, health_bars=5, max_loss=0.2)
    succession = Succession(registry, slot)
    pass_bars(succession, stand, 2)
    stand.state = "HALTED"
    pass_bars(succession, stand, 8)
    stand.equity = 79_000.0
    pass_bars(succession, stand, 1)
    assert registry.champion_id(slot) == bundles.champion.id and registry.quarantined(bundles.good)


def test_what_is_paid_in_or_out_is_no_gain_or_loss_of_the_model(registry, bundles, slot, stand):
    """A third is taken out of the account: no roll-back. Half of the rest is lost, though as much is paid in: one."""
    challenge(registry, bundles.good, shadow_bars=0, health_bars=30, max_loss=0.2)
    succession = Succession(registry, slot)
    pass_bars(succession, stand, 2)
    stand.equity, stand.flow_factor = 66_000.0, 0.66
    pass_bars(succession, stand, 2)
    assert registry.champion_id(slot) == bundles.good.id
    stand.equity, stand.flow_factor = 66_000.0, 1.32
    pass_bars(succession, stand, 1)
    assert registry.champion_id(slot) == bundles.champion.id


def test_bars_that_were_skipped_count_in_the_health_window(registry, bundles, slot, stand):
    """What fell in 30 bars, of which the trader saw the last, is not held against the lower bound of one bar."""
    challenge(registry, bundles.good, shadow_bars=0, health_bars=100, max_loss=0.9)
    pass_bars(Succession(registry, slot), stand, 2)
    floor = predict(EASY, 100, Terms().false_alarms).floor
    fell = (floor[0] + floor[29]) / 2
    assert floor[29] < fell < floor[0]
    stand.equity *= np.exp(fell)
    bars = [stand.feed.next_bar() for _ in range(30)]
    again = Succession(registry, slot)  # it was down meanwhile
    again.at_boundary(stand, bars[-1])
    assert registry.champion_id(slot) == bundles.good.id
    stand.equity *= np.exp(floor.min())
    again.at_boundary(stand, stand.feed.next_bar())
    assert registry.champion_id(slot) == bundles.champion.id


@pytest.mark.parametrize("other", ["name", "cash", "fresh"])
def test_another_account_is_not_held_against_what_the_one_before_was_worth(registry, bundles, slot, stand, other):
    """A trader of another name, or one that begins anew, has lost nothing by having less."""
    challenge(registry, bundles.good, shadow_bars=0, health_bars=30, max_loss=0.2)
    stand.bars_done, stand.equity = 7, 120_000.0
    pass_bars(Succession(registry, slot), stand, 2)
    stand.equity, stand.bars_done = 60_000.0, 8
    if other == "name":
        stand.folder = stand.folder.parent
    elif other == "cash":
        stand.initial = 60_000.0
    else:
        stand.bars_done = 0
    again = Succession(registry, slot)
    again.at_boundary(stand, stand.feed.next_bar())
    assert registry.champion_id(slot) == bundles.good.id
    stand.equity = 47_000.0
    again.at_boundary(stand, stand.feed.next_bar())
    assert registry.champion_id(slot) == bundles.champion.id  # the window goes on, in the new account


def test_without_a_whole_champion_to_go_back_to_challengers_are_still_tried(registry, bundles, slot, stand):
    challenge(registry, bundles.good, shadow_bars=0, max_loss=0.2)
    succession = Succession(registry, slot)
    pass_bars(succession, stand, 2)
    (registry.folder / "bundles" / bundles.champion.id[:16] / WEIGHTS).write_bytes(b"other")
    stand.equity = 70_000.0
    pass_bars(succession, stand, 3)
    assert registry.champion_id(slot) == bundles.good.id and events(registry)[-1] == "not rolled back"
    assert events(registry).count("not rolled back") == 1
    challenge(registry, bundles.boaster, shadow_bars=0)
    pass_bars(succession, stand, 2)
    assert stand.bundle.id == bundles.boaster.id == registry.champion_id(slot)


def test_a_shadow_begins_where_the_trader_is(registry, bundles, slot, stand):
    """The feed may know of a bar more, which comes next."""
    challenge(registry, bundles.good, shadow_bars=50)
    succession, first = Succession(registry, slot), stand.feed.history()[-1]
    second = stand.feed.next_bar()
    pass_bar(succession, stand, first)
    assert succession.shadow.timestamp == first.timestamp
    pass_bar(succession, stand, second)
    assert succession.shadow.bars == 1 and registry.challenger_id(slot) == bundles.good.id


@pytest.mark.parametrize("error", [InputError("it does not fit"), RuntimeError("mat1 and mat2")])
def test_a_model_the_trader_cannot_run_is_rolled_back(registry, bundles, slot, stand, error):
    challenge(registry, bundles.good, shadow_bars=0)

    def refuses(bundle: Bundle, positions: str) -> None:
        raise error

    stand.replace_model = refuses
    pass_bars(Succession(registry, slot), stand, 2)
    assert registry.champion_id(slot) == bundles.champion.id and registry.quarantined(bundles.good)


def test_the_shadow_sees_the_bars_the_trader_skipped(registry, bundles, slot, stand):
    challenge(registry, bundles.good, shadow_bars=50)
    gaps, whole = Succession(registry, slot), Shadow(bundles.good, stand.feed.history(), stand.equity)
    pass_bar(gaps, stand, stand.feed.history()[-1])
    for i in range(12):
        bar = stand.feed.next_bar()
        whole.see(bar)
        if i % 4 == 3:
            pass_bar(gaps, stand, bar)
    assert gaps.shadow.curve == pytest.approx(whole.curve)


def test_one_trader_at_a_time_attends_a_slot(registry, bundles, slot):
    with Succession(registry, slot):
        assert registry.put_forward(bundles.good, {})[1] is False
        with pytest.raises(InputError, match="held by a live run"), Succession(registry, slot):
            pass
    assert registry.champion_id(slot) == bundles.champion.id and registry.challenger_id(slot) == bundles.good.id
    assert registry.put_forward(bundles.good, {})[1] is True


DISORDER = [
    ({"state": "HALTED"}, "ended HALTED ("),
    ({"state": "REDUCING"}, "ended REDUCING ("),
    ({"stale": True}, "ended stale ("),
    ({"state": "HALTED", "books_agree": False}, "ended HALTED, unreconciled ("),
    ({"books_agree": None}, "ended unreconciled ("),
    (None, "cannot be read"),
]


@pytest.mark.parametrize(("left", "told"), DISORDER, ids=[told for _, told in DISORDER])
def test_what_is_no_good_order(registry, bundles, slot, tmp_path, left, told):
    good = {"state": "FINISHED", "stale": False, "books_agree": True}
    registry.note_trader(slot, tmp_path)
    (tmp_path / "state.json").write_text("{" if left is None else json.dumps({**good, **left}))
    assert not registry.attended(slot) and registry.put_forward(bundles.good, {})[1] is False
    last = registry.audit.entries()[-1]
    assert (last["event"], last["bundle"]) == ("challenger", bundles.good.id) and told in last["waits"]
    assert registry.champion_id(slot) == bundles.champion.id
    (tmp_path / "state.json").write_text(json.dumps(good))
    assert registry.put_forward(bundles.good, {})[1] is True


def test_nothing_is_promoted_behind_a_trader_that_halted(registry, bundles, market, slot, tmp_path):
    """Nobody attends the slot any more: what passes the gate waits until its trader runs again, in good order."""
    trade(registry, market, slot, tmp_path)
    file = tmp_path / "paper" / "state.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "state": "HALTED", "books_agree": False}))
    assert registry.put_forward(bundles.good, {}, {"shadow_bars": 3})[1] is False
    assert registry.champion_id(slot) == bundles.champion.id
    # Started again, its books agree: it tries the challenger, which takes over.
    trader = trade(registry, market, slot, tmp_path)
    assert trader.bundle.id == bundles.good.id == registry.champion_id(slot)
    assert registry.put_forward(bundles.champion, {})[1]


def test_behind_a_trader_that_ended_in_good_order_there_is_no_waiting(registry, bundles, market, slot, tmp_path):
    trade(registry, market, slot, tmp_path)
    killed = tmp_path / "paper" / "state.json"
    killed.write_text(json.dumps({**json.loads(killed.read_text()), "state": "ACTIVE"}))
    assert registry.put_forward(bundles.good, {})[1] and registry.champion_id(slot) == bundles.good.id


def test_a_promotion_out_of_the_shadow_keeps_what_the_gate_found(registry, bundles, market, slot, tmp_path):
    found = {"sharpe": 1.7, "unit": "annualised Sharpe ratio"}
    registry.challenge(bundles.good, {**found, "terms": {"shadow_bars": 3, "max_loss": 0.9}})
    trade(registry, market, slot, tmp_path)
    kept = json.loads(registry.champion_file(slot).read_text())
    assert kept["bundle"] == bundles.good.id and found.items() <= kept.items()


# ---------------------------------------------------------------------------------------------- health


def test_the_floor_is_crossed_by_its_share_of_windows():
    """False alarms on fresh windows of the same returns: what was asked for, within sampling."""
    rng = np.random.default_rng(1)
    prediction = predict(rng.normal(0.001, 0.02, 4_000), 50, 0.1)
    fresh = np.cumsum(np.log1p(rng.normal(0.001, 0.02, (2_000, 50))), axis=1)
    crossed = (fresh < prediction.floor).any(axis=1).mean()
    assert 0.05 < crossed < 0.16
    assert (prediction.floor < prediction.quantiles["q05"]).all()


def test_unhealthy_on_both_sides():
    prediction = predict(EASY, 10, 0.05)
    floor = float(prediction.floor[2])
    assert unhealthy(prediction, floor, 3, 1.0) == []
    assert len(unhealthy(prediction, floor - 1e-9, 3, 1.0)) == 1
    assert unhealthy(None, np.log(0.9), 1, 0.1 + 1e-12) == [] and len(unhealthy(None, np.log(0.9), 1, 0.1 - 1e-9)) == 1
    assert len(unhealthy(prediction, np.nan, 1, 0.5)) == 2  # what is undefined fails


def test_heldout_returns_of_another_bundle_are_not_read(bundles, tmp_path):
    assert heldout_returns(bundles.good) == pytest.approx(EASY, abs=1e-10)
    path = bundles.good.folder / HELDOUT
    kept = path.read_text()
    try:
        for content, names in (('{"bundle": "x", "returns": []}', "of bundle x"), ("[", "damaged"), ("{}", "damaged")):
            path.write_text(content)
            with pytest.raises(InputError, match=names):
                heldout_returns(bundles.good)
    finally:
        path.write_text(kept)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"positions": "keep"}, "inherit, flatten"),
        ({"shadow_bars": -1}, "at least 0"),
        ({"health_bars": 0}, "at least 1"),
        ({"max_loss": 0.0}, "fractions"),
        ({"false_alarms": 1.0}, "fractions"),
    ],
)
def test_terms_out_of_range_are_refused(wrong, told):
    with pytest.raises(InputError, match=told):
        Terms(**wrong)
