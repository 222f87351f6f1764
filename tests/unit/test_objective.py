"""The objective: trained on training bars, judged on test bars, whatever is trained beside it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from drl_agents.evaluation.metrics import sharpe_ratio
from drl_agents.evaluation.splits import Fold, combinatorial_purged
from drl_agents.search import objective
from drl_agents.search.config import TrialConfig
from drl_agents.search.objective import (
    SplitFailed,
    TrialFailed,
    TrialOutcome,
    TrialPruned,
    Workload,
    evaluate,
    evaluate_batch,
    train_members,
    walk_folds,
)
from drl_agents.search.space import MAX_LOOKBACK
from drl_agents.training.trainer import TrainingDiverged
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
        advance = env.advance
        each = env.n_envs // env.n_members

        def stepped(action, draw):
            before = env.bar.clone()
            taken = advance(action, draw)
            for bars in (before, taken.final_observation.bar, taken.observation.bar):
                for member in range(env.n_members):
                    env.visited[member] |= set(bars[member * each : (member + 1) * each].tolist())
            return taken

        env.advance = stepped
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


def varied(i: int, **agent) -> TrialConfig:
    """Configurations of one shape that differ in every number a member may have of its own."""
    own = {
        "learning_rate": (3e-3, 1e-3, 5e-4)[i],
        "gamma": (0.99, 0.9, 0.95)[i],
        "gae_lambda": (0.95, 0.8, 0.9)[i],
        "clip_coef": (0.2, 0.1, 0.3)[i],
        "ent_coef": (1e-3, 1e-2, 1e-4)[i],
        "vf_coef": (0.5, 1.0, 0.25)[i],
        "max_grad_norm": (0.5, 2.0, 1.0)[i],
        "target_kl": (0.05, 0.01, 0.1)[i],
    }
    env = {
        **CONFIG.env,
        "max_trade": (1.0, 0.3, 0.6)[i],
        "reward": ("excess:1,turnover:0.1", "excess:2,turnover:1", "excess:1,turnover:0.01")[i],
        "spread_bps": (2.0, 0.0, 8.0)[i],
        "commission_bps": (25.0, 10.0, None)[i],
    }
    return TrialConfig(env, {**CONFIG.network, "log_std": (-0.5, -1.2, 0.0)[i]}, {**CONFIG.agent, **own, **agent})


SEEDS = (9, 21, 5)


@pytest.fixture(scope="module")
def alone(market) -> list[TrialOutcome]:
    return [evaluate(work(market), varied(i), SEEDS[i]) for i in range(3)]


def assert_same(left: TrialOutcome, right: TrialOutcome) -> None:
    np.testing.assert_allclose(left.sharpes, right.sharpes, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(left.returns, right.returns, rtol=0, atol=1e-8)
    assert left.train_steps == right.train_steps


def test_a_trial_does_not_depend_on_its_batch(market, alone):
    together = evaluate_batch(work(market), [varied(i) for i in range(3)], SEEDS)
    for left, right in zip(together, alone, strict=True):
        assert_same(left, right)
    assert np.unique([end.value for end in together]).size == 3


def test_a_pruned_trial_leaves_and_the_others_stay_what_they_are(market, alone, monkeypatch):
    sizes, told = [], []

    def counted(workload, configs, segments, seeds, rounds):
        sizes.append(len(segments))
        return train_members(workload, configs, segments, seeds, rounds)

    def report(trial, step, value):
        told.append((trial, step, value))
        return trial == 1

    monkeypatch.setattr(objective, "train_members", counted)
    ends = evaluate_batch(work(market), [varied(i) for i in range(3)], SEEDS, report)
    assert sizes == [3 * 4, 2 * 2]  # four of the six folds, then the other two
    assert ends[1] == TrialPruned(4)
    assert [(trial, step) for trial, step, _ in told] == [(0, 4), (1, 4), (2, 4)]
    for trial, _, value in told:
        assert value == pytest.approx(alone[trial].sharpes[:4].mean(), rel=1e-6)
    assert_same(ends[0], alone[0])
    assert_same(ends[2], alone[2])


def test_a_batch_of_pruned_trials_trains_no_more(market, monkeypatch):
    made = []

    def counted(*args):
        made.append(1)
        return train_members(*args)

    monkeypatch.setattr(objective, "train_members", counted)
    load = work(market, folds_per_batch=2, timesteps=32)
    ends = evaluate_batch(load, [varied(0), varied(1)], SEEDS[:2], lambda *told: True)
    assert ends == [TrialPruned(2), TrialPruned(2)] and len(made) == 1


def test_a_trial_that_diverges_fails_alone(market):
    """Its rewards are too large for float32, of its scale alone: their square is infinite."""
    scales = (1e-9, 1e9)
    configs = [varied(i, reward_scale=scales[i]).with_env(reward="excess:1e12") for i in range(2)]
    with pytest.raises(TrainingDiverged) as raised:
        evaluate(work(market), configs[1], SEEDS[1])
    sound = evaluate(work(market), configs[0], SEEDS[0])
    ends = evaluate_batch(work(market), [configs[1], configs[0], configs[1]], [SEEDS[1], SEEDS[0], SEEDS[1]])
    for end in (ends[0], ends[2]):
        assert isinstance(end, TrialFailed) and str(end.error) == str(raised.value)
    assert_same(ends[1], sound)


def test_a_trial_that_never_trades_fails_alone(market):
    """An account's order is a thousandth of a thousandth of it: under the venue's smallest."""
    still = TrialConfig({**CONFIG.env, "max_trade": 1e-6}, CONFIG.network, CONFIG.agent)
    ends = evaluate_batch(work(market), [still, CONFIG], (4, 9))
    assert isinstance(ends[0], TrialFailed) and isinstance(ends[0].error, SplitFailed)
    assert "fold 0: the Sharpe ratio of" in str(ends[0].error)
    assert_same(ends[1], evaluate(work(market), CONFIG, seed=9))


def test_seeds_are_members_too(market):
    """Every fold is trained with each seed; the trial's value is the mean over both."""
    load = work(market)
    twice = replace(load, n_seeds=2)
    (end,) = evaluate_batch(twice, [CONFIG], [9])
    folds = load.folds
    rows = []
    for run in range(2):
        seeds = [objective.fold_seed(9, f.index, run) for f in folds]
        agent, _ = train_members(load, CONFIG, [f.train for f in folds], seeds)
        rows.append(walk_folds(load, CONFIG, folds, agent))
    by_hand = [[sharpe_ratio(row[np.isfinite(row)], market.bars_per_year) for row in own] for own in rows]
    assert (np.array(by_hand[0]) != np.array(by_hand[1])).all()
    np.testing.assert_allclose(end.sharpes, np.mean(by_hand, axis=0), rtol=1e-6)
    tested = np.isfinite(rows[0]).any(axis=0)
    np.testing.assert_allclose(end.returns[tested], np.nanmean(np.concatenate(rows)[:, tested], axis=0), atol=1e-8)
    assert end.train_steps == 2 * 6 * 256
    other = varied(1, target_kl=None).with_env(reward="excess:2")
    beside = evaluate_batch(twice, [other, CONFIG.with_env(reward="excess")], [3, 9])[1]
    assert_same(beside, end)


def test_shapes_that_differ_are_no_batch(market):
    other = TrialConfig(CONFIG.env, {"hidden": (8,)}, CONFIG.agent)
    with pytest.raises(InputError, match="one population"):
        evaluate_batch(work(market), [CONFIG, other], [1, 2])
