"""Folds as index ranges: no bar in both sides, no gap too short, no range over a seam."""

from itertools import combinations
from math import comb

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drl_agents.evaluation.splits import (
    Fold,
    backtest_paths,
    combinatorial_purged,
    group_ranges,
    split_holdout,
    walk_forward,
)
from environments.errors import InputError


def bars_of(ranges):
    return [bar for start, stop in ranges for bar in range(start, stop)]


def test_groups_are_equal_slices_cut_at_seams():
    # 12 bars in 3 groups of 4; the first seam (bar 6, next segment starts at 10) lies inside group 1.
    assert group_ranges([(0, 6), (10, 16)], 3) == [((0, 4),), ((4, 6), (10, 12)), ((12, 16),)]


def test_walk_forward_expands_and_keeps_the_gap():
    folds = walk_forward([(0, 100)], n_splits=3, purge=5, embargo=2)
    assert folds == [
        Fold(0, ((0, 18),), ((25, 50),), (1,)),
        Fold(1, ((0, 43),), ((50, 75),), (2,)),
        Fold(2, ((0, 68),), ((75, 100),), (3,)),
    ]


def test_walk_forward_does_not_glue_touching_segments():
    folds = walk_forward([(0, 30), (30, 60)], n_splits=2, purge=0)
    assert folds[1].train == ((0, 30), (30, 40))
    assert folds[0].test == ((20, 30), (30, 40))


def test_combinatorial_purges_both_sides_and_embargoes_after():
    folds = combinatorial_purged([(0, 100)], n_groups=5, n_test_groups=1, purge=3, embargo=4, min_length=1)
    assert folds[2].train == ((0, 37), (67, 100))  # test 40..59: 3 bars before, 3 + 4 after
    assert folds[2].test == ((40, 60),)
    assert folds[0].train == ((27, 100),) and folds[4].train == ((0, 77),)


def test_neighbouring_test_groups_stay_separate_ranges():
    folds = combinatorial_purged([(0, 100)], n_groups=5, n_test_groups=2, purge=1, embargo=0, min_length=1)
    assert len(folds) == comb(5, 2)
    assert folds[0].test_groups == (0, 1) and folds[0].test == ((0, 20), (20, 40))
    assert [fold.test_groups for fold in folds] == list(combinations(range(5), 2))


def test_purge_reaches_across_a_seam():
    # Test group 1 is bars 10..19, which ends at the seam; bars 20 and 21 of the next segment still go.
    fold = combinatorial_purged([(0, 20), (20, 40)], 4, 1, purge=2, embargo=0, min_length=1)[1]
    assert fold.train == ((0, 8), (22, 40))


def test_short_training_ranges_are_dropped():
    # Test groups 0 and 2 leave 20..39 less 5 on either side: 10 bars, and 65..99: 35 bars.
    kept = combinatorial_purged([(0, 100)], 5, 2, purge=5, embargo=0, min_length=10)[1]
    dropped = combinatorial_purged([(0, 100)], 5, 2, purge=5, embargo=0, min_length=11)[1]
    assert kept.train == ((25, 35), (65, 100))
    assert dropped.train == ((65, 100),)


@st.composite
def segment_lists(draw):
    segments, end = [], 0
    for _ in range(draw(st.integers(1, 4))):
        start = end + draw(st.integers(0, 5))
        end = start + draw(st.integers(20, 60))
        segments.append((start, end))
    return segments


@settings(max_examples=60, deadline=None, database=None)
@given(segment_lists(), st.integers(2, 6), st.integers(0, 3), st.integers(0, 3), st.data())
def test_every_fold_keeps_its_promises(segments, n_groups, purge, embargo, data):
    n_test_groups = data.draw(st.integers(1, n_groups - 1))
    min_length = data.draw(st.integers(1, 3))
    try:
        folds = combinatorial_purged(segments, n_groups, n_test_groups, purge, embargo, min_length)
    except InputError as error:
        assert "training range" in str(error)
        return
    everything = set(bars_of(segments))
    for fold in folds:
        train, test = bars_of(fold.train), bars_of(fold.test)
        assert len(set(train)) == len(train) and len(set(test)) == len(test)
        for first, last in fold.train + fold.test:
            assert any(start <= first < last <= stop for start, stop in segments)
        assert min(stop - start for start, stop in fold.train) >= min_length
        # What may train, written as the definition reads, bar by bar.
        allowed = {bar for bar in everything if not any(a - purge <= bar < b + purge + embargo for a, b in fold.test)}
        assert set(train) <= allowed
        if min_length == 1:
            assert set(train) == allowed
    tested = [bar for fold in folds for bar in bars_of(fold.test)]
    assert len(tested) == len(everything) * comb(n_groups - 1, n_test_groups - 1)


def test_backtest_paths_use_every_test_once():
    folds = combinatorial_purged([(0, 120)], n_groups=6, n_test_groups=2, purge=0, embargo=0, min_length=1)
    paths = backtest_paths(folds, n_groups=6)
    assert len(paths) == 5  # the book's example: phi(6, 2) = 15 * 2 / 6 = 5
    pairs = [pair for path in paths for pair in path]
    assert sorted(pairs) == sorted((fold.index, group) for fold in folds for group in fold.test_groups)
    for path in paths:
        assert [group for _, group in path] == list(range(6))
    # First path of six groups by two: fold 0 tests (0, 1), fold 1 tests (0, 2), ..., fold 4 tests (0, 5).
    assert paths[0] == [(0, 0), (0, 1), (1, 2), (2, 3), (3, 4), (4, 5)]


def test_backtest_paths_refuses_folds_that_miss_a_group():
    with pytest.raises(InputError, match="equally often"):
        backtest_paths(walk_forward([(0, 100)], 3, 0), n_groups=4)
    folds = combinatorial_purged([(0, 100)], 4, 1, 0, 0, 1)
    with pytest.raises(InputError, match="equally often"):
        backtest_paths(folds[:-1], n_groups=4)
    with pytest.raises(InputError, match="tests group 3"):
        backtest_paths(folds, n_groups=3)


def test_holdout_is_the_last_bars_and_the_purge_belongs_to_neither():
    assert split_holdout([(0, 50), (60, 100)], 30, 5) == ([(0, 50), (60, 65)], [(70, 100)])
    # 45 bars reach into the first segment: 40 of the second and 5 of the first.
    assert split_holdout([(0, 50), (60, 100)], 45, 5) == ([(0, 40)], [(45, 50), (60, 100)])
    # A purge across the seam counts indices: hold-out from bar 60, search up to bar 57.
    assert split_holdout([(0, 60), (60, 100)], 40, 3) == ([(0, 57)], [(60, 100)])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: combinatorial_purged([(0, 100)], 1, 1, 0, 0, 1), "n_groups is 1"),
        (lambda: combinatorial_purged([(0, 100)], 4, 4, 0, 0, 1), "n_test_groups is 4: 1 to 3 is accepted"),
        (lambda: combinatorial_purged([(0, 100)], 4, 0, 0, 0, 1), "n_test_groups is 0"),
        (lambda: combinatorial_purged([(0, 100)], 4, 1, -1, 0, 1), "purge is -1"),
        (lambda: combinatorial_purged([(0, 100)], 4, 1, 0, 0.5, 1), "embargo is 0.5"),
        (lambda: combinatorial_purged([(0, 100)], 4, 1, 0, 0, 0), "min_length is 0"),
        (lambda: combinatorial_purged([(0, 3)], 4, 1, 0, 0, 1), "4 groups do not fit 3 bars"),
        (lambda: combinatorial_purged([(0, 100)], 4, 3, 10, 10, 1), r"fold 1 .*no training range"),
        (lambda: combinatorial_purged([], 4, 1, 0, 0, 1), "segments is empty"),
        (lambda: combinatorial_purged([(0, 10), (5, 20)], 4, 1, 0, 0, 1), r"segment \(5, 20\)"),
        (lambda: combinatorial_purged([(5, 5)], 4, 1, 0, 0, 1), r"segment \(5, 5\)"),
        (lambda: walk_forward([(0, 100)], 0, 0), "n_splits is 0"),
        (lambda: walk_forward([(0, 100)], 3, 25), "fold 0 .*no training range"),
        (lambda: split_holdout([(0, 100)], 100, 0), "holdout_bars is 100 of 100 bars: 1 to 99"),
        (lambda: split_holdout([(0, 100)], 0, 0), "holdout_bars is 0"),
        (lambda: split_holdout([(0, 100)], 60, 40), "leave none of 100 bars"),
    ],
)
def test_wrong_input_says_what_is_accepted_on_one_line(call, message):
    with pytest.raises(InputError, match=message) as error:
        call()
    assert "accepted" in str(error.value) and "\n" not in str(error.value)
