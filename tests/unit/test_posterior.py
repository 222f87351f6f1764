"""Posterior analysis: by hand where there is a hand's answer, by coverage where there is a known truth."""

from __future__ import annotations

import json
import math

import numpy as np
import pandas as pd
import pytest

from drl_agents.evaluation.metrics import max_drawdown, sharpe_ratio
from drl_agents.evaluation.posterior import posterior
from drl_agents.evaluation.posterior_plot import write_posterior
from drl_agents.evaluation.result import BacktestResult
from environments.errors import InputError

DAY = pd.Timedelta(days=1).value


def walk(name: str, returns: np.ndarray, step: int = DAY, traded: float = 0.0) -> BacktestResult:
    n = len(returns)
    equity = 1000 * np.concatenate([[1.0], np.cumprod(1 + returns)])
    stamps = pd.Timestamp("2020-01-31", tz="UTC").value + step * np.arange(n + 1)
    return BacktestResult(
        name, ("A",), stamps, equity, np.zeros((n + 1, 1)), np.zeros(n), traded * equity[:-1], 0, 252.0, 1
    )


def series(seed: int, n: int = 500, mean: float = 0.0, spread: float = 0.01) -> np.ndarray:
    return np.random.default_rng(seed).normal(mean, spread, n)


def test_values_are_those_of_the_bars_as_they_were():
    own, held = series(0), series(1)
    found = posterior(walk("m", own, traded=0.02), walk("h", held), n_resamples=50)
    measures = found.measures
    assert measures["total_return"].model.value == pytest.approx(np.prod(1 + own) - 1)
    assert measures["sharpe"].holding.value == pytest.approx(sharpe_ratio(held, 252))
    equity = np.concatenate([[1.0], np.cumprod(1 + own)])
    assert measures["max_drawdown"].model.value == pytest.approx(max_drawdown(equity))
    assert measures["turnover"].model.value == pytest.approx(0.02 * 252)
    assert measures["turnover"].difference.low == pytest.approx(5.04)
    month = {c.label: c for c in found.groups["month"]}
    february = [
        r
        for r, t in zip(own, pd.date_range("2020-02-01", periods=500), strict=True)
        if t.strftime("%Y-%m") == "2020-02"
    ]
    assert month["2020-02"].bars == 29 and month["2020-02"].model.value == pytest.approx(np.mean(february) * 252)
    assert sum(c.bars for c in found.groups["month"]) == 500 and "hour" not in found.groups


def test_volatility_regimes_are_known_before_the_bar():
    held = np.concatenate([series(2, 200, spread=0.001), series(3, 200, spread=0.05)])
    own = np.where(np.arange(400) < 200, 0.001, -0.002)
    found = posterior(walk("m", own), walk("h", held), n_resamples=20)
    by = {c.label: c for c in found.groups["volatility"]}
    assert sum(c.bars for c in by.values()) == 380  # the first twenty have no trailing volatility
    assert by["calm"].model.value == pytest.approx(0.252) and by["wild"].model.value == pytest.approx(-0.504)
    # What happens in a bar does not move its own regime.
    last = held.copy()
    last[-1] = 10.0
    again = posterior(walk("m", own), walk("h", last), n_resamples=20)
    assert [c.bars for c in again.groups["volatility"]] == [c.bars for c in found.groups["volatility"]]


def test_hours_of_intraday_bars():
    own = np.tile([0.01, 0.0, -0.01, 0.0], 100)
    found = posterior(walk("m", own, step=DAY // 4), walk("h", series(4, 400), step=DAY // 4), n_resamples=20)
    assert [c.label for c in found.groups["hour"]] == ["00:00", "06:00", "12:00", "18:00"]
    assert [c.model.value for c in found.groups["hour"]] == pytest.approx([0.0, 2.52, 0.0, -2.52])


def test_intervals_cover_the_truth_as_often_as_they_say():
    """Independent returns of a known Sharpe ratio: of 40 windows, about 36 of the 90% intervals hold it."""
    truth = 0.05 * math.sqrt(252)
    held = 0
    for seed in range(40):
        own = series(100 + seed, 250, mean=0.0005)
        found = posterior(walk("m", own), walk("h", series(seed, 250)), level=0.9, n_resamples=200, seed=seed)
        interval = found.measures["sharpe"].model
        held += interval.low <= truth <= interval.high
    assert 30 <= held <= 40  # 36 expected, standard deviation 1.9


def test_seeded_and_honest_about_a_clear_difference():
    good, bad = walk("m", series(5, mean=0.003)), walk("h", series(6, mean=-0.003))
    one, two = (posterior(good, bad, n_resamples=100, seed=7) for _ in range(2))
    assert one == two and one.measures["sharpe"].probability > 0.98
    assert posterior(bad, good, n_resamples=100).measures["sharpe"].probability < 0.02


def test_files(tmp_path):
    found = posterior(walk("m", np.zeros(60)), walk("h", series(8, 60)), n_resamples=30)
    assert math.isnan(found.measures["sharpe"].model.value)
    paths = write_posterior(tmp_path, title="a model", found=found, synthetic=True)
    content = json.loads(paths.json.read_text())
    assert content["title"].startswith("SYNTHETIC") and content["measures"]["sharpe"]["model"]["value"] is None
    assert paths.png.read_bytes().startswith(b"\x89PNG")


def test_refused():
    with pytest.raises(InputError, match="cover other bars"):
        posterior(walk("m", series(0)), walk("h", series(0, 400)))
    with pytest.raises(InputError, match="level=95"):
        posterior(walk("m", series(0)), walk("h", series(1)), level=95)
