"""Fixtures shared by all tests: small markets held in memory."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Mapping, Sequence

import pandas as pd
import pytest
import torch

from environments.data.source import make_bars
from environments.market import Market
from environments.timeframe import Timeframe

Bar = tuple[float, float, float, float, float]  # open, high, low, close, volume
START = pd.Timestamp("2021-03-01", tz="UTC")
WORKER = "PYTEST_XDIST_WORKER" in os.environ

# The files that take longest, the longest first, as `--durations=0` has them. Where workers share the files these are
# handed out first, so that none is begun when the others are done. A name that is no longer right costs only time.
LONGEST = (
    "contracts/test_readme.py",
    "faults/test_stream_faults.py",
    "faults/test_train_script.py",
    "faults/test_kill_study.py",
    "faults/test_kill_trader.py",
    "unit/test_memory_plan.py",
    "faults/test_trader_faults.py",
    "unit/test_graphs.py",
    "benchmarks/test_benchmark_script.py",
    "unit/test_factorised.py",
    "learning/test_kin.py",
    "learning/test_known_answers.py",
    "learning/test_planted_edge.py",
    "learning/test_classic.py",
    "unit/test_pieces.py",
    "unit/test_reference.py",
    "regression/test_study_postgres.py",
    "unit/test_search_memory.py",
    "unit/test_shac.py",
    "unit/test_properties.py",
    "learning/test_gate_calibration.py",
    "learning/test_networks_learn.py",
    "benchmarks/test_throughput.py",
    "contracts/test_export.py",
    "unit/test_population.py",
    "unit/test_objective.py",
    "faults/test_kill_training.py",
    "contracts/test_dashboard_browser.py",
    "unit/test_bootstrap.py",
    "learning/test_shac_planted.py",
    "unit/test_search_agents.py",
    "regression/test_live_regimes.py",
)


def pytest_configure(config: pytest.Config) -> None:
    """Files are handed out in our order, not by their number of tests; a worker keeps to its own core."""
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False
    if WORKER:
        os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that tests start
        torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, the others as they were."""
    if WORKER:
        place = {name: i for i, name in enumerate(LONGEST)}
        items.sort(key=lambda item: place.get("/".join(item.path.parts[-2:]), len(LONGEST)))


def _market(
    bars: Mapping[str, Sequence[Bar | None]],
    *,
    timeframe: str = "1h",
    asset_class: str = "crypto",
    pauses: Mapping[int, str] | None = None,
) -> Market:
    """A market from each symbol's bars, one entry per tick of the clock; None where it has no bar.

    pauses: {i: "72h"} makes the clock stand still for that long before its tick i.
    """
    frame_of = Timeframe.parse(timeframe)
    ticks = max(len(own) for own in bars.values())
    clock, now = [], START
    for tick in range(ticks):
        now = now + pd.Timedelta((pauses or {}).get(tick, "0h"))
        clock.append(now)
        now = now + pd.Timedelta(minutes=frame_of.minutes)
    rows = [
        (clock[tick], symbol, *map(float, bar))
        for symbol, own in bars.items()
        for tick, bar in enumerate(own)
        if bar is not None
    ]
    names = ["timestamp", "symbol", "open", "high", "low", "close", "volume"]
    frame = pd.DataFrame(rows, columns=names)
    frame["timestamp"] = frame["timestamp"].astype("datetime64[ns, UTC]")
    made = make_bars(
        frame,
        source="memory",
        origin="test bars",
        timeframe=frame_of,
        asset_class=asset_class,
        symbols=list(bars),
    )
    return Market.from_bars(made)


def _random_bars(
    seed: int,
    ticks: int,
    *,
    price: float = 100.0,
    sigma: float = 0.01,
    missing: float = 0.0,
    idle: float = 0.0,
    jump: float = 0.0,
    listed: int = 0,
) -> list[Bar | None]:
    """A random walk of one symbol.

    sigma: standard deviation of a log return; missing, idle, jump: probabilities of a bar that is absent, has
    no volume, or moves by a factor of up to 20 either way; listed: the tick of the first bar.
    """
    draw = random.Random(seed)
    bars: list[Bar | None] = []
    close = price
    for tick in range(ticks):
        gap = draw.gauss(0.0, sigma / 2)
        move = draw.gauss(0.0, sigma)
        if draw.random() < jump:
            move = draw.uniform(-3.0, 3.0)
        first = close * 2.718281828 ** (gap + (draw.uniform(-1.0, 1.0) if draw.random() < jump else 0.0))
        last = min(max(first * 2.718281828**move, price * 1e-3), price * 1e3)
        high = max(first, last) * (1 + abs(draw.gauss(0, sigma / 4)))
        low = min(first, last) * (1 - min(abs(draw.gauss(0, sigma / 4)), 0.5))
        volume = 0.0 if draw.random() < idle else draw.uniform(1.0, 1e6)
        absent = tick < listed or draw.random() < missing
        bars.append(None if absent else (first, high, low, last, volume))
        close = close if absent else last
    return bars


@pytest.fixture(scope="session")
def make_market() -> Callable[..., Market]:
    """`make_market({symbol: [bar or None, ...]}, timeframe=, asset_class=, pauses=)`."""
    return _market


@pytest.fixture(scope="session")
def random_bars() -> Callable[..., list[Bar | None]]:
    """`random_bars(seed, ticks, price=, sigma=, missing=, idle=, jump=, listed=)`: one symbol's bars."""
    return _random_bars


@pytest.fixture(scope="session")
def flat_market() -> Callable[..., Market]:
    """`flat_market(opens, closes)`: prices by hand as (ticks, assets) nested lists, ample volume."""

    def make(opens: Sequence[Sequence[float]], closes: Sequence[Sequence[float]], **options) -> Market:
        bars = {
            f"S{a}": [(o[a], max(o[a], c[a]), min(o[a], c[a]), c[a], 1e6) for o, c in zip(opens, closes, strict=True)]
            for a in range(len(opens[0]))
        }
        return _market(bars, **options)

    return make


@pytest.fixture(autouse=True)
def denormals_kept():
    """A command line run inside a test flushes denormals for the process; the next test must not inherit that."""
    yield
    torch.set_flush_denormal(False)


@pytest.fixture(scope="module")
def one_thread():
    """One torch thread: small work is faster with it, and its rounding does not depend on the machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
