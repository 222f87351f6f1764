"""The stress test: each cell against the holder's account worked out by hand, and what is written of it."""

from __future__ import annotations

import importlib.util
import json
import math
import struct
import sys
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch

from drl_agents.deployment.bundle import load_bundle, save_bundle
from drl_agents.evaluation.backtest import backtest
from drl_agents.evaluation.report import write_stress
from drl_agents.evaluation.stress import StressGrid, stress, stress_lines
from drl_agents.networks.policy import ActorCritic, PolicySpec
from drl_agents.training.commandline import run
from environments.alpaca_env import VectorizedCryptoEnvAlpaca
from environments.data.source import load_bars
from environments.errors import InputError
from environments.frictions import slippage_table
from environments.market import Market
from environments.market_env import MarketVecEnv
from environments.rules import AssetRule, RuleBook

CASH = 100_000.0
OPENS = [100.0, 100.0, 104.0, 98.0, 120.0, 110.0, 90.0, 95.0]
CLOSES = [100.0, 102.0, 99.0, 118.0, 111.0, 92.0, 96.0, 106.0]
START = 1  # the first bar with a return_1


@pytest.fixture(scope="module")
def market(flat_market) -> Market:
    return flat_market([[price] for price in OPENS], [[price] for price in CLOSES])


@pytest.fixture(scope="module")
def make_env(market):
    """One walk with a commission of 40 bps unless told otherwise, no spread and no impact."""

    def make(n_envs: int = 1, **overrides) -> MarketVecEnv:
        options = {"commission_bps": 40.0, "slippage_bps": 5.0, **overrides}
        return MarketVecEnv(
            market, n_envs, random_start=False, episode_length=None, spread_bps=0.0, impact_coef=0.0, fee_in="quote",
            features=("return_1",), max_trade=1.0, rules=RuleBook("crypto", {"S0": AssetRule(1e-9, 0.0, 1.0)}),
            **options,
        )  # fmt: skip

    return make


def hold(x: torch.Tensor) -> torch.Tensor:
    """Buys for half the equity as long as nothing is held, then keeps it. x ends in cash, weight, gain, idle."""
    return 0.5 * (x[..., -3:-2] == 0)


def nothing(x: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(x[..., :1])


def held_by_hand(lag: int, slippage_bps: float, commission_bps: float, draws: np.ndarray) -> float:
    """Total return of `hold`: half the cash buys at the open of each of the `lag` bars until the first fill is seen."""
    cash, shares = CASH, 0.0
    for fill in range(START + lag, min(START + 2 * lag, len(OPENS))):
        value = 0.5 * CASH / CLOSES[fill - lag] * OPENS[fill]
        share = (commission_bps + slippage_bps * draws[fill]) * 1e-4
        value = min(value, cash / (1 + share))
        shares += value / OPENS[fill]
        cash -= value * (1 + share)
    return (cash + shares * CLOSES[-1]) / CASH - 1


def test_every_cell_is_the_account_worked_out_by_hand(make_env, market):
    result = stress(make_env, hold)
    draws = slippage_table(market, 0)[:, 0].numpy()
    returns, fees = result.table("total_return"), result.table("fees")
    assert returns.shape == fees.shape == (3, 3, 3) and result.commission_bps == 40.0 and result.own == (1, 5.0)
    grid = product(enumerate((1, 2, 3)), enumerate((0.0, 5.0, 10.0)), enumerate((20.0, 40.0, 80.0)))
    for (i, lag), (j, slippage), (k, commission) in grid:
        assert returns[i, j, k] == pytest.approx(held_by_hand(lag, slippage, commission, draws), abs=1e-9)
    for cell in result.cells:
        assert cell.commission_bps == cell.commission_factor * 40.0
        assert cell.figures["n_trades"]["value"] == min(cell.decision_lag, 2)  # two halves, then there is no cash
    # What is dearer pays more and earns less, what fills at other bars earns something else.
    assert (np.diff(fees, axis=1) > 0).all() and (np.diff(fees, axis=2) > 0).all()
    assert (np.diff(returns, axis=1) < 0).all() and (np.diff(returns, axis=2) < 0).all()
    assert np.ptp(returns[:, 0, 0]) > 0.01
    worst = result.worst()
    assert worst.figures["total_return"]["value"] == returns.min()


def test_the_cell_without_stress_is_the_plain_backtest(make_env):
    plain = backtest(make_env(), hold, ["model"])[0].figures()
    result = stress(make_env, hold)
    own = [c for c in result.cells if (c.decision_lag, c.slippage_bps, c.commission_factor) == (1, 5.0, 1.0)]
    assert [cell.figures for cell in own] == [plain]


def test_no_commission_has_no_multiples(make_env):
    """Each walk once: its own, and nine for a lag and a slippage each."""
    made = []

    def counted(**overrides):
        made.append(overrides)
        return make_env(**{"commission_bps": 0.0, **overrides})

    result = stress(counted, hold)
    assert len(made) == 10 and made[0] == {} and len(result.cells) == 27
    assert (np.ptp(result.table("total_return"), axis=2) == 0).all()
    assert result.table("fees")[:, 0].max() == 0.0


def test_a_grid_of_ones_own(make_env):
    grid = StressGrid(decision_lags=(2,), slippages_bps=(0.0, 50.0), commission_factors=(1.0,))
    result = stress(make_env, hold, grid)
    assert result.table("fees").shape == (1, 2, 1)
    lines = stress_lines(result, "fees")
    assert len(lines) == 3 and "account currency" in lines[0] and "slippage 50 bps" in lines[1]
    assert lines[2].split()[:5] == ["2", "x1", "=", "40", "bps"]
    shown = [float(value) for value in lines[2].split()[5:]]
    assert shown == pytest.approx(result.table("fees")[0, :, 0].tolist(), rel=1e-3)


@pytest.mark.parametrize(
    "wrong,says",
    [
        ({"decision_lags": (0, 1)}, "decision_lags=(0, 1): rising numbers of at least 1"),
        ({"slippages_bps": (5.0, 0.0)}, "slippages_bps=(5.0, 0.0): rising numbers of at least 0"),
        ({"commission_factors": ()}, "commission_factors=()"),
        ({"commission_factors": (1.0, math.nan)}, "commission_factors=(1.0, nan)"),
        ({"slippages_bps": (-1.0,)}, "slippages_bps=(-1.0,)"),
    ],
)
def test_a_wrong_grid_is_refused(wrong, says):
    with pytest.raises(InputError) as refused:
        StressGrid(**wrong)
    assert says in str(refused.value) and "\n" not in str(refused.value)


def test_what_cannot_be_stressed_is_refused(make_env):
    with pytest.raises(InputError, match="1 environment is accepted, 2 were made"):
        stress(partial(make_env, 2), hold)
    with pytest.raises(InputError, match="stress figure 'profit': accepted are total_return, "):
        stress(make_env, nothing, StressGrid((1,), (0.0,), (1.0,))).table("profit")
    with pytest.raises(InputError, match="slippage_bps=2000"):
        stress(make_env, nothing, StressGrid((1,), (2_000.0,), (1.0,)))


# ----------------------------------------------------------------------------------------------- written


def test_the_report_holds_every_cell_and_its_picture(make_env, tmp_path):
    result = stress(make_env, hold)
    paths = write_stress(tmp_path / "new", title="model $a$", result=result, synthetic=False)
    content = json.loads(paths.json.read_text())
    assert sorted(p.name for p in paths.json.parent.iterdir()) == ["stress.json", "stress.png"]
    assert content["title"] == "model $a$" and content["market"] == "historical"
    assert content["own"]["commission"] == {"value": 40.0, "unit": "bps of traded value"}
    assert len(content["cells"]) == 27 and content["grid"]["decision_lags"] == [1, 2, 3]
    for kept, cell in zip(content["cells"], result.cells, strict=True):
        assert kept["figures"] == cell.figures
        assert (kept["decision_lag"], kept["slippage_bps"]) == (cell.decision_lag, cell.slippage_bps)
    gains = [cell["figures"]["total_return"]["value"] > 0 for cell in content["cells"]]
    assert content["cells_with_a_gain"]["value"] == pytest.approx(np.mean(gains)) and 0 < sum(gains) < 27
    header = paths.png.read_bytes()[:24]
    assert header[:8] == b"\x89PNG\r\n\x1a\n" and struct.unpack(">II", header[16:24]) == (1560, 648)


def test_undefined_is_said_and_synthetic_too(make_env, tmp_path):
    """A policy that never trades has no Sharpe ratio in any cell."""
    result = stress(make_env, nothing, StressGrid((1, 4), (0.0,), (1.0,)))
    assert np.isnan(result.table("sharpe")).all() and not result.table("total_return").any()
    assert all(line.split()[-1] == "undefined" for line in stress_lines(result)[2:])
    paths = write_stress(tmp_path, title="still", result=result, synthetic=True)
    content = json.loads(paths.json.read_text())
    assert content["market"] == "SYNTHETIC" and content["title"].startswith("SYNTHETIC MARKET")
    assert content["cells"][0]["figures"]["sharpe"]["value"] is None
    assert paths.png.stat().st_size > 5_000


# ------------------------------------------------------------------------------------ bundles, command line


@pytest.fixture(scope="module")
def bundle_folder(tmp_path_factory) -> Path:
    """An untrained policy over 120 made-up bars, its last 60 held out."""
    bars = load_bars("synthetic", options={"kind": "signal", "n_bars": 120, "n_assets": 2}, seed=1)
    env = VectorizedCryptoEnvAlpaca(Market.from_bars(bars), 1, lookback=2, commission_bps=20.0)
    policy = ActorCritic(PolicySpec.of(env, hidden=(8,)), seeds=(3,))
    policy.fit_normalizer(env)
    lineage = {"study": "s", "data": {"holdout_bars": 60}}
    folder = tmp_path_factory.mktemp("stress") / "bundle"
    return save_bundle(folder, policy.eval(), 0, env, "VectorizedCryptoEnvAlpaca", lineage)


def test_a_bundle_is_run_with_other_costs(bundle_folder):
    bundle = load_bundle(bundle_folder)
    bars = load_bars("synthetic", options={"kind": "signal", "n_bars": 120, "n_assets": 2}, seed=1)
    make = partial(bundle.env, Market.from_bars(bars), (60, 120))
    env = make(decision_lag=3, slippage_bps=0.0, commission_bps=7.0)
    assert (env.decision_lag, env.frictions.slippage_bps, env.frictions.commission_bps) == (3, 0.0, 7.0)
    assert env.frictions.spread_bps == make().frictions.spread_bps and env.lookback == 2
    assert make(commission_bps=None).frictions.commission_bps == make().frictions.commission_bps == 20.0
    with pytest.raises(InputError, match=r"has no option comission_bps: accepted are .*commission_bps") as refused:
        make(comission_bps=1.0)
    assert "\n" not in str(refused.value)


def test_the_command_line_prints_the_table_and_writes_the_files(bundle_folder, tmp_path, capsys):
    path = Path(__file__).resolve().parents[2] / "scripts" / "backtest.py"
    spec = importlib.util.spec_from_file_location("script_backtest", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    arguments = ["--bundle", str(bundle_folder), "--out", str(tmp_path / "report"), "--data-source", "synthetic",
                 "--synthetic-options", "kind=signal,n_bars=120,n_assets=2", "--data-seed", "1",
                 "--gpu", "cpu"]  # fmt: skip
    with pytest.raises(SystemExit) as leaving:
        run(module.Options, module.main, [*arguments, "--stress"])
    printed = capsys.readouterr().out
    assert not leaving.value.code
    files = {p.name for p in (tmp_path / "report").iterdir()}
    assert files == {"report.json", "report.png", "stress.json", "stress.png"}
    content = json.loads((tmp_path / "report" / "stress.json").read_text())
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    same = [c for c in content["cells"] if (c["decision_lag"], c["slippage_bps"], c["commission_factor"]) == (1, 5, 1)]
    assert [cell["figures"] for cell in same] == [report["model"]["figures"]]
    rows = [line for line in printed.splitlines() if line.lstrip().startswith(("1  ", "2  ", "3  "))]
    assert len(rows) == 18 and "x0.5 = 10 bps" in rows[0] and "heat map: " in printed
