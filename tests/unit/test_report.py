"""The report's JSON and picture."""

import json
import math
import struct
import sys

import matplotlib
import numpy as np
import pytest
from matplotlib.image import imread

from drl_agents.evaluation.report import MAX_POINTS, largest_weights, thin_extremes, thin_means, write_report
from drl_agents.evaluation.result import BacktestResult
from environments.errors import InputError

MINUTE = 60 * 10**9


def result(name="PPO", n_bars=300, n_assets=3, seed=0, start=1_700_000_000 * 10**9, short=False):
    rng = np.random.default_rng(seed)
    weights = rng.dirichlet(np.ones(n_assets + 1), n_bars + 1)[:, :n_assets] - (0.4 if short else 0.0)
    equity = 1e5 * np.cumprod(np.concatenate([[1.0], 1 + rng.normal(0, 2e-3, n_bars)]))
    traded = np.abs(np.diff(weights, axis=0)).sum(axis=1) * equity[:-1]
    return BacktestResult(
        name=name,
        symbols=tuple(f"${number}_USD" for number in range(n_assets)),
        timestamps=start + 5 * MINUTE * np.arange(n_bars + 1),
        equity=equity,
        weights=weights,
        fees=traded * 1e-3,
        traded=traded,
        n_trades=n_bars,
        bars_per_year=105_120,
        decision_lag=1,
    )


def write(folder, **changes):
    arguments = {
        "title": "hold-out",
        "model": result(),
        "baselines": [result("buy and hold", seed=1)],
        "facts": {"seed": 3},
        "synthetic": False,
    }
    return write_report(folder, **{**arguments, **changes})


def test_json_holds_every_figure_with_its_unit_for_all(tmp_path):
    model, baseline = result(), result("buy and hold", seed=1)
    paths = write(tmp_path / "new" / "folder", model=model, baselines=[baseline])
    content = json.loads(paths.json.read_text())
    assert content["title"] == "hold-out" and content["market"] == "historical"
    assert content["facts"] == {"seed": 3}
    assert content["model"]["figures"] == model.figures()
    assert [entry["name"] for entry in content["baselines"]] == ["buy and hold"]
    assert content["baselines"][0]["figures"] == baseline.figures()
    assert content["model"]["start"] == "2023-11-14T22:13:20Z"
    assert content["model"]["decision_lag"]["value"] == 1
    assert sorted(path.name for path in paths.json.parent.iterdir()) == ["report.json", "report.png"]


def test_picture_is_a_png_of_the_stated_size(tmp_path):
    header = write(tmp_path).png.read_bytes()[:24]
    assert header[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", header[16:24]) == (1560, 1320)


def test_drawing_leaves_no_global_plotting_state(tmp_path):
    keys = ("font.size", "text.color", "axes.edgecolor", "xtick.color")
    pyplot_loaded, settings = "matplotlib.pyplot" in sys.modules, [matplotlib.rcParams[key] for key in keys]
    write(tmp_path)
    assert ("matplotlib.pyplot" in sys.modules) == pyplot_loaded
    assert [matplotlib.rcParams[key] for key in keys] == settings


def test_a_synthetic_market_says_so_in_both_files(tmp_path):
    real = write(tmp_path / "real")
    made = write(tmp_path / "made", synthetic=True)
    content = json.loads(made.json.read_text())
    assert content["market"] == "SYNTHETIC" and content["title"].startswith("SYNTHETIC MARKET")
    assert "SYNTHETIC" not in real.json.read_text()
    # The alarm colour of the heading is in one picture and not in the other.
    alarm = np.array([0xC2, 0x41, 0x0C]) / 255
    counts = [(np.abs(imread(paths.png)[..., :3] - alarm).max(axis=2) < 0.02).sum() for paths in (real, made)]
    assert counts[0] == 0 and counts[1] > 500


def test_shorts_ruin_and_no_baselines_are_drawn(tmp_path):
    ruined = result(n_bars=50)
    equity = ruined.equity.copy()
    equity[20:] = 0.0
    ruined = BacktestResult(**{**ruined.__dict__, "equity": equity})
    paths = write(tmp_path / "ruin", model=ruined, baselines=[])
    figures = json.loads(paths.json.read_text())["model"]["figures"]
    assert figures["sharpe"]["value"] is None and figures["max_drawdown"]["value"] == 1.0
    assert write(tmp_path / "short", model=result(n_assets=12, short=True)).png.stat().st_size > 10_000


def test_a_bad_report_writes_nothing(tmp_path):
    for changes, culprit in [
        ({"facts": {"sharpe": math.nan}}, "facts"),
        ({"facts": {"model": object()}}, "facts"),
        ({"baselines": [result("late", start=0)]}, "'late' covers other bars"),
        ({"baselines": [result("PPO", seed=1)]}, "'PPO' appears twice"),
    ]:
        with pytest.raises(InputError, match=culprit) as error:
            write(tmp_path, **changes)
        assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_thinning_keeps_every_extreme_and_the_ends():
    values = np.random.default_rng(0).normal(size=100_000).cumsum()
    values[31_337] = 1e6  # a one-bar spike
    values[77_777] = -1e6
    kept = thin_extremes(values)
    assert len(kept) <= MAX_POINTS and (np.diff(kept) > 0).all()
    assert {0, 99_999, 31_337, 77_777} <= set(kept.tolist())
    np.testing.assert_array_equal(thin_extremes(values[:4000]), np.arange(4000))
    assert len(thin_extremes(values[:4001])) <= MAX_POINTS


def test_thinned_weights_still_sum_to_one():
    timestamps = np.arange(10_003)
    shares = np.random.default_rng(0).dirichlet(np.ones(4), 10_003)
    times, means = thin_means(timestamps, shares)
    assert len(times) == len(means) == MAX_POINTS and times[-1] == 10_002
    np.testing.assert_allclose(means.sum(axis=1), 1.0)
    # 6 rows in 3 buckets of 2.
    _, pairs = thin_means(np.arange(6), np.arange(6.0)[:, None], max_points=3)
    np.testing.assert_array_equal(pairs[:, 0], [0.5, 2.5, 4.5])


def test_small_assets_are_drawn_together():
    model = result(n_assets=12)
    names, shares = largest_weights(model, top=2)
    order = np.argsort(-model.weights.mean(axis=0))
    assert names == [model.symbols[order[0]], model.symbols[order[1]], "other (10)", "cash"]
    np.testing.assert_allclose(shares.sum(axis=1), 1.0)
    np.testing.assert_allclose(shares[:, 2], model.weights[:, order[2:]].sum(axis=1))
    few, _ = largest_weights(result(n_assets=2))
    assert len(few) == 3 and few[-1] == "cash"
