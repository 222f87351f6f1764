"""The objective: trained on training bars, judged on test bars, whatever is trained beside it."""

from __future__ import annotations

import numpy as np
import pytest

from drl_agents.evaluation.metrics import sharpe_ratio
from drl_agents.evaluation.splits import Fold, combinatorial_purged
from drl_agents.search import objective
from drl_agents.search.config import TrialConfig
from drl_agents.search.objective import SplitFailed, Workload, evaluate, train_members, walk_folds
from drl_agents.search.space import MAX_LOOKBACK
from environments.data.source import load_bars
from environments.errors import InputError
from environments.market import Market

ENV = "VectorizedCryptoEnvAlpaca"
PURGE, EMBARGO = MAX_LOOKBACK + 1, 3
CONFIG = TrialConfig(
    env={"lookback": 4, "episode_length": 40, "max_trade": 1.0},
    network={"hidden": (16,)},
    agent={"horizon_len": 32, "num_minibatches": 2, "learning_rate": 3e-3},
)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def market() -> Market:
    options = {"kind": "momentum", "n_bars": 420, "n_assets": 2, "sigma": 0.02}
    return Market.from_bars(load_bars("synthetic", options=options, seed=4))


def work(market: Market, folds=None, folds_per_batch=4, timesteps=256) -> Workload:
    chosen = folds or combinatorial_purged([(40, 420)], 4, 2, PURGE, EMBARGO, min_length=32)
    return Workload(market, tuple(chosen), ENV, n_envs=4, timesteps=timesteps, folds_per_batch=folds_per_batch)


@pytest.fixture(scope="module")
def together(market):
    return evaluate(work(market, folds_per_batch=6), CONFIG, seed=9)


@pytest.mark.parametrize("size", [1, 4])
def test_a_fold_does_not_depend_on_its_batch(market, together, size):
    outcome = evaluate(work(market, folds_per_batch=size), CONFIG, seed=9)
    assert outcome.sharpes.size == 6
    np.testing.assert_allclose(outcome.sharpes, together.sharpes, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(outcome.returns, together.returns, rtol=0, atol=1e-8)
    assert outcome.train_steps == together.train_steps == 6 * 256


def test_folds_differ_and_so_do_seeds(market, together):
    assert np.unique(together.sharpes).size == 6
    other = evaluate(work(market, folds_per_batch=6), CONFIG, seed=10)
    assert (other.sharpes != together.sharpes).all()


def test_the_value_is_the_mean_sharpe_of_the_test_returns(market, together):
    load = work(market)
    agent, _ = train_members(
        load, CONFIG, [f.train for f in load.folds], [objective.derived_seed(9, f.index) for f in load.folds]
    )
    rows = walk_folds(load, CONFIG, load.folds, agent)
    by_hand = [sharpe_ratio(row[np.isfinite(row)], market.bars_per_year) for row in rows]
    np.testing.assert_allclose(together.sharpes, by_hand, rtol=1e-6)
    assert together.value == pytest.approx(np.mean(by_hand), rel=1e-6)
    # Every bar is tested by three of the six folds: the kept series is their mean.
    tested = np.isfinite(rows).any(axis=0)
    np.testing.assert_allclose(together.returns[tested], np.nanmean(rows[:, tested], axis=0), atol=1e-8)


def in_ranges(ranges, n_bars) -> np.ndarray:
    mask = np.zeros(n_bars, dtype=bool)
    for a, b in ranges:
        mask[a:b] = True
    return mask


def test_returns_lie_in_the_test_windows_exactly(market, together):
    load = work(market)
    agent, _ = train_members(load, CONFIG, [f.train for f in load.folds], range(6))
    for row, fold in zip(walk_folds(load, CONFIG, load.folds, agent), load.folds, strict=True):
        # The first bar of a window is where its account opens; a return needs a bar before it.
        expected = in_ranges([(a + 1, b) for a, b in fold.test], market.n_bars)
        assert (np.isfinite(row) == expected).all()
    groups = sorted({piece for fold in load.folds for piece in fold.test})
    assert (np.isfinite(together.returns) == in_ranges([(a + 1, b) for a, b in groups], market.n_bars)).all()


def test_a_ruined_account_earns_nothing_more(market):
    load = work(market)
    agent, _ = train_members(load, CONFIG, [f.train for f in load.folds], range(6))
    rows = walk_folds(load, CONFIG.with_env(ruin=0.999), load.folds, agent)
    ended = 0
    for row, fold in zip(rows, load.folds, strict=True):
        for a, b in fold.test:
            assert np.isfinite(row[a + 1 : b]).all()
            growth = np.cumprod(1 + row[a + 1 : b])
            broke = np.flatnonzero(growth <= 0.999)
            if broke.size:
                ended += 1
                assert (row[a + 1 + broke[0] + 1 : b] == 0).all()
    assert ended >= 6


def test_training_visits_training_bars_only(market, monkeypatch):
    """Neither a test bar nor a purged one is stood on, and none of a test window is seen in an observation."""
    load = work(market, timesteps=2_000)
    made = []

    def recording(*args, **options):
        env = build(*args, **options)
        env.visited = [set() for _ in range(env.n_members)]
        step = env.step
        each = env.n_envs // env.n_members

        def stepped(action):
            before = env.bar.clone()
            taken = step(action)
            for bars in (before, taken.final_observation.bar, taken.observation.bar):
                for member in range(env.n_members):
                    env.visited[member] |= set(bars[member * each : (member + 1) * each].tolist())
            return taken

        env.step = stepped
        made.append(env)
        return env

    build = objective.market_env
    monkeypatch.setattr(objective, "market_env", recording)
    train_members(load, CONFIG, [f.train for f in load.folds], range(6))
    (env,) = made
    for visited, fold in zip(env.visited, load.folds, strict=True):
        bars = np.zeros(market.n_bars, dtype=bool)
        bars[list(visited)] = True
        assert bars.sum() > 0.8 * in_ranges(fold.train, market.n_bars).sum()
        assert not (bars & ~in_ranges(fold.train, market.n_bars)).any()
        purged = [(max(0, a - PURGE), b + PURGE + EMBARGO) for a, b in fold.test]
        assert not (bars & in_ranges(purged, market.n_bars)).any()
        seen = {bar - back for bar in visited for back in range(CONFIG.lookback)}
        assert not in_ranges(fold.test, market.n_bars)[sorted(seen)].any()


def test_a_fold_that_never_trades_has_no_value(market):
    poor = CONFIG.with_env(initial_cash=9.0)  # the venue's smallest order is 10
    with pytest.raises(SplitFailed, match="fold 0: .*undefined"):
        evaluate(work(market), poor, seed=9)


def test_reports_after_each_batch_but_the_last(market, together):
    told = []
    evaluate(work(market, folds_per_batch=2), CONFIG, 9, report=lambda step, value: told.append((step, value)))
    assert [step for step, _ in told] == [2, 4]
    assert told[1][1] == pytest.approx(together.sharpes[:4].mean(), rel=1e-6)


def test_a_seam_beside_a_group_edge_leaves_no_bar_behind(market):
    """A group may reach one bar over a pause of the market: nothing can be walked in one bar."""
    fold = Fold(0, ((40, 200),), ((300, 350), (350, 351), (351, 420)), (1,))
    load = work(market, [fold])
    agent, _ = train_members(load, CONFIG, [fold.train], [1])
    row = walk_folds(load, CONFIG, [fold], agent)[0]
    assert (np.isfinite(row) == in_ranges([(301, 350), (352, 420)], market.n_bars)).all()


def test_environments_without_a_market_are_refused(market):
    with pytest.raises(InputError, match="gym:CartPole-v1"):
        objective.market_env("gym:CartPole-v1", market, 2)
