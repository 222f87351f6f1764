"""Which bars train and which bars test: walk-forward, combinatorial purged cross-validation, hold-out.

Bars are integers and everything here is half-open ranges of them. A *segment* (start, stop) is a stretch of
bars in which an episode may walk; two segments are never joined, even where one stops at the bar on which the
next starts, because time is missing between them. *Groups* are equal slices of all the bars counted through
the segments; a group that reaches over a seam is two ranges. So a fold is index ranges over one market: no
bar is copied and no two pieces are glued.

Why bars are purged. The sample at bar t is more than bar t: its observation looks `lookback` bars back and
its order fills `lag` bars later, so it depends on bars t - lookback .. t + lag. A training sample within
lookback + lag bars of a test range, before or after it, shares bars with a test sample. `purge` bars are
therefore removed from training on both sides of every test range; lookback + lag is the purge that suffices.
The embargo removes that many further bars after a test range, against slower dependence (volatility,
regimes) running from the test bars into the training that follows. Distances are counted in bar indices,
across seams too: features may reach back over a seam, and the few bars it costs are cheaper than a leak.

Source: Lopez de Prado, "Advances in Financial Machine Learning", Wiley, 2018: chapter 7 (purging and
embargo) and chapter 12 (combinatorial purged cross-validation and its back-test paths).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from numbers import Integral

from environments.errors import InputError

Range = tuple[int, int]


@dataclass(frozen=True)
class Fold:
    """One split: half-open bar ranges to train on and to test on.

    index: position in its list of folds. train, test: ranges in time order, each inside one segment; test
    has one range per (group, segment), groups that touch stay apart. test_groups: the groups tested.
    """

    index: int
    train: tuple[Range, ...]
    test: tuple[Range, ...]
    test_groups: tuple[int, ...]


def group_ranges(segments: Sequence[Range], n_groups: int) -> list[tuple[Range, ...]]:
    """The `n_groups` groups, each a tuple of ranges inside single segments.

    Group g holds the bars number floor(g * B / n_groups) up to floor((g + 1) * B / n_groups) of the B bars of
    all segments, so sizes differ by at most one. InputError for invalid segments or more groups than bars.
    """
    segments = _checked(segments)
    bars = _count(segments)
    if bars < n_groups:
        raise InputError(f"{n_groups} groups do not fit {bars} bars: at most {bars} groups are accepted")
    bounds = [group * bars // n_groups for group in range(n_groups + 1)]
    groups = []
    for first, last in zip(bounds[:-1], bounds[1:], strict=True):
        ranges, seen = [], 0
        for start, stop in segments:
            low, high = max(first - seen, 0), min(last - seen, stop - start)
            if low < high:
                ranges.append((start + low, start + high))
            seen += stop - start
        groups.append(tuple(ranges))
    return groups


def walk_forward(
    segments: Sequence[Range], n_splits: int, purge: int, embargo: int = 0, min_length: int = 1
) -> list[Fold]:
    """Expanding-window folds: train on everything before a group, test on that group.

    The bars are cut into n_splits + 1 groups; fold i tests group i + 1 and trains on groups 0 .. i, less the
    last `purge + embargo` bars before the test. No training bar follows a test range here, so the embargo
    widens the one gap there is. Training ranges shorter than `min_length` bars are dropped.
    InputError when n_splits < 1, a negative purge or embargo, or a fold is left without training bars.
    """
    segments = _checked(segments)
    _at_least("n_splits", n_splits, 1)
    _check_gaps(purge, embargo, min_length)
    groups = group_ranges(segments, n_splits + 1)
    folds = []
    for index in range(n_splits):
        test = groups[index + 1]
        train = _without(segments, [(test[0][0] - purge - embargo, segments[-1][1])], min_length)
        folds.append(_fold(index, train, test, (index + 1,), purge, embargo, min_length, segments))
    return folds


def combinatorial_purged(
    segments: Sequence[Range], n_groups: int, n_test_groups: int, purge: int, embargo: int, min_length: int
) -> list[Fold]:
    """Combinatorial purged cross-validation (CPCV): one fold for each choice of test groups.

    C(n_groups, n_test_groups) folds in lexicographic order of their test groups. Around each test range
    [a, b) the training bars a - purge .. a - 1 and b .. b + purge + embargo - 1 are removed; training ranges
    then shorter than `min_length` bars (too short for an episode) are dropped. Test ranges are kept whole.
    InputError when n_groups < 2, n_test_groups is outside 1 .. n_groups - 1, purge or embargo is negative,
    min_length < 1, or a fold is left without training bars.
    Source: Lopez de Prado, "Advances in Financial Machine Learning", 2018, section 12.4.
    """
    segments = _checked(segments)
    _at_least("n_groups", n_groups, 2)
    if not (_is_integer(n_test_groups) and 1 <= n_test_groups <= n_groups - 1):
        raise InputError(f"n_test_groups is {n_test_groups}: 1 to {n_groups - 1} is accepted with n_groups={n_groups}")
    _check_gaps(purge, embargo, min_length)
    groups = group_ranges(segments, n_groups)
    folds = []
    for index, chosen in enumerate(combinations(range(n_groups), n_test_groups)):
        test = tuple(piece for group in chosen for piece in groups[group])
        removed = [(start - purge, stop + purge + embargo) for start, stop in test]
        train = _without(segments, removed, min_length)
        # Neighbouring groups of one segment stay one training range: an episode may walk across them.
        folds.append(_fold(index, train, test, chosen, purge, embargo, min_length, segments))
    return folds


def backtest_paths(folds: Sequence[Fold], n_groups: int) -> list[list[tuple[int, int]]]:
    """The back-test paths of combinatorial folds: each path tests every group exactly once.

    A path is n_groups pairs (fold index, group) in order of group; path j takes, for each group, the j-th
    fold that tests it, so every (fold, test group) is used in exactly one path. There are
    phi(N, k) = C(N, k) * k / N = C(N - 1, k - 1) paths. InputError when the folds do not test every group
    0 .. n_groups - 1 equally often (walk-forward folds never test group 0).
    Source: Lopez de Prado, "Advances in Financial Machine Learning", 2018, section 12.4.
    """
    _at_least("n_groups", n_groups, 2)
    testers: list[list[int]] = [[] for _ in range(n_groups)]
    for fold in folds:
        for group in fold.test_groups:
            if not 0 <= group < n_groups:
                raise InputError(f"fold {fold.index} tests group {group}: groups 0 to {n_groups - 1} are accepted")
            testers[group].append(fold.index)
    counts = [len(indices) for indices in testers]
    if min(counts) != max(counts) or counts[0] == 0:
        raise InputError(
            f"folds test groups 0 to {n_groups - 1} {counts} times: every group equally often is accepted, "
            "as in all folds of combinatorial_purged"
        )
    return [[(testers[group][path], group) for group in range(n_groups)] for path in range(counts[0])]


def split_holdout(segments: Sequence[Range], holdout_bars: int, purge: int) -> tuple[list[Range], list[Range]]:
    """(search_segments, holdout_segments): the last `holdout_bars` bars are kept out of every search.

    The `purge` bars before the first hold-out bar belong to neither. InputError when holdout_bars < 1, when
    it is not less than the number of bars, or when the purge leaves nothing to search on.
    """
    segments = _checked(segments)
    _at_least("holdout_bars", holdout_bars, 1)
    _at_least("purge", purge, 0)
    bars = _count(segments)
    if holdout_bars >= bars:
        raise InputError(f"holdout_bars is {holdout_bars} of {bars} bars: 1 to {bars - 1} is accepted")
    holdout, missing = [], holdout_bars
    for start, stop in reversed(segments):
        if missing == 0:
            break
        taken = min(missing, stop - start)
        holdout.insert(0, (stop - taken, stop))
        missing -= taken
    search = _without(segments, [(holdout[0][0] - purge, segments[-1][1])], 1)
    if not search:
        raise InputError(
            f"holdout_bars={holdout_bars} and purge={purge} leave none of {bars} bars to search on: "
            f"a sum below {bars} is accepted"
        )
    return search, holdout


def _fold(
    index: int, train: list[Range], test: tuple[Range, ...], test_groups: tuple[int, ...],
    purge: int, embargo: int, min_length: int, segments: list[Range],
) -> Fold:  # fmt: skip
    if not train or not test:
        side = "test" if not test else "training"
        raise InputError(
            f"fold {index} (test groups {', '.join(map(str, test_groups))}) has no {side} range left of "
            f"{_count(segments)} bars in {len(segments)} segments with purge={purge}, embargo={embargo}, "
            f"min_length={min_length}: smaller values, fewer groups or more bars are accepted"
        )
    return Fold(index, tuple(train), test, test_groups)


def _without(ranges: Sequence[Range], removed: Sequence[Range], min_length: int) -> list[Range]:
    """`ranges` less every bar of `removed` (which may overlap), in pieces of at least `min_length` bars."""
    kept = list(ranges)
    for low, high in removed:
        pieces = [((start, min(stop, low)), (max(start, high), stop)) for start, stop in kept]
        kept = [piece for pair in pieces for piece in pair if piece[0] < piece[1]]
    return [(start, stop) for start, stop in kept if stop - start >= min_length]


def _count(ranges: Sequence[Range]) -> int:
    return sum(stop - start for start, stop in ranges)


def _checked(segments: Sequence[Range]) -> list[Range]:
    pairs = [tuple(segment) for segment in segments]
    if not pairs:
        raise InputError("segments is empty: at least one (start, stop) range of bars is accepted")
    end = 0
    for pair in pairs:
        whole = len(pair) == 2 and all(_is_integer(bound) for bound in pair)
        if not whole or not end <= pair[0] < pair[1]:
            raise InputError(
                f"segment {pair} from bar {end} on: sorted, disjoint (start, stop), start < stop, is accepted"
            )
        end = pair[1]
    return [(int(start), int(stop)) for start, stop in pairs]


def _check_gaps(purge: int, embargo: int, min_length: int) -> None:
    _at_least("purge", purge, 0)
    _at_least("embargo", embargo, 0)
    _at_least("min_length", min_length, 1)


def _at_least(name: str, value: int, minimum: int) -> None:
    if not _is_integer(value) or value < minimum:
        raise InputError(f"{name} is {value}: a whole number of at least {minimum} is accepted")


def _is_integer(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)
