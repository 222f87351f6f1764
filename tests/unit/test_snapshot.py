"""Snapshot: what the files say, what follows from them, and that no file can make it raise."""

from __future__ import annotations

import json
import math
import os
import socket
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import psutil
import pytest

from drl_agents.monitoring import curve, gpu, tail
from drl_agents.monitoring.liveness import process_state
from drl_agents.monitoring.records import Trial, Worker
from drl_agents.monitoring.snapshot import Watcher, check_names, find_studies, take_snapshot
from drl_agents.monitoring.study import best_so_far, optuna_command, thin, workers
from drl_agents.monitoring.trader import outlook
from drl_agents.monitoring.trading_records import Outlook, Prediction
from environments.errors import InputError
from environments.files import write_json


@pytest.fixture(autouse=True)
def instant_device(monkeypatch):
    monkeypatch.setattr(gpu, "CPU_SAMPLE_SECONDS", 0.0)


def iso(seconds_ago: float = 0.0) -> str:
    return (datetime.now(UTC) - timedelta(seconds=seconds_ago)).isoformat()


def this_process() -> dict:
    return {"pid": os.getpid(), "process_started": psutil.Process().create_time()}


def ended_pid() -> int:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def progress(**changes) -> dict:
    trials = [
        {"number": n, "state": s, "value": v, "started": iso(900), "seconds": 60.0, "params": {"gamma": 0.99}}
        for n, (s, v) in enumerate(
            [("complete", 0.5), ("pruned", 9.0), ("complete", 0.25), ("failed", None), ("complete", 1.5)]
        )
    ]
    return {
        "study": "alpha",
        "state": "running",
        "phase": "search",
        **this_process(),
        "host": socket.gethostname(),
        "started": iso(1000),
        "updated": iso(5),
        "n_trials": 20,
        "synthetic": False,
        "objective": {"name": "Sharpe", "unit": "per year", "direction": "maximize"},
        "data": {
            "source": "sample",
            "symbols": ["BTC/USD"],
            "timeframe": "1h",
            "bars": 500,
            "fingerprint": "ab",
        },
        "counts": {"complete": 3, "pruned": 1, "failed": 1, "running": 1},
        "trials_per_hour": 12.0,
        "eta_seconds": 4500.0,
        "best": {"number": 4, "value": 1.5, "params": {"gamma": 0.99}},
        "trials": trials,
        "report": None,
        "bundle": None,
        "gate": None,
        **changes,
    }


def trader_state(**changes) -> dict:
    return {
        "name": "live",
        "model": "ppo-1",
        "study": "alpha",
        "trial": 4,
        "broker": "local",
        "state": "ACTIVE",
        "synthetic": True,
        "timeframe": "1h",
        "symbols": ["BTC/USD"],
        "started": iso(7200),
        "updated": iso(5),
        "bar": iso(60),
        "bars_done": 3,
        "initial_equity": 1000.0,
        "equity": 1100.0,
        "cash": 100.0,
        "drawdown": 0.02,
        "max_drawdown": 0.05,
        "fees": 1.5,
        "n_orders": 2,
        "n_fills": 1,
        "positions": [{"symbol": "BTC/USD", "shares": 0.01, "price": 1e5, "value": 1000.0, "weight": 10 / 11}],
        "orders": [
            {
                "id": "o1",
                "bar": iso(60),
                "symbol": "BTC/USD",
                "side": "buy",
                "quantity": 0.01,
                "status": "filled",
                "filled_quantity": 0.01,
                "filled_price": 1e5,
            }
        ],
        "process": this_process(),
        "host": socket.gethostname(),
        **changes,
    }


def equity_csv(n: int, step: timedelta = timedelta(hours=1)) -> str:
    start = datetime(2025, 1, 1, tzinfo=UTC)
    rows = [f"{(start + i * step).isoformat()},{1000 + i},{100}\n" for i in range(n)]
    return "timestamp,equity,cash\n" + "".join(rows)


def write_trader(logs, name="live", equity=None, **changes):
    write_json(logs / "paper" / name / "state.json", trader_state(name=name, **changes))
    (logs / "paper" / name / "equity.csv").write_text(equity_csv(3) if equity is None else equity)


def write_study(logs, name="alpha", **changes):
    write_json(logs / "studies" / name / "progress.json", progress(study=name, **changes))


def test_nothing_written_yet_is_empty_and_no_problem(tmp_path):
    taken = take_snapshot(tmp_path / "logs")
    assert taken.empty
    assert (taken.study, taken.trader, taken.deployment, taken.problems) == (None, None, None, [])


def test_a_whole_set_of_files_is_read_without_problems(tmp_path):
    write_study(tmp_path)
    write_trader(tmp_path)
    write_json(
        tmp_path / "deployment" / "champions/stock-1d-2.json",
        {"bundle": "ppo-1", "path": "p", "study": "alpha", "trial": 4, "promoted": iso(9), "sharpe": 1.25},
    )
    audit = tmp_path / "deployment" / "audit.jsonl"
    audit.write_text(
        json.dumps({"time": iso(9), "event": "promoted", "bundle": "ppo-1", "reasons": ["better"], "replaced": "x"})
        + "\n"
    )
    taken = take_snapshot(tmp_path)
    assert taken.problems == []
    assert taken.study.state == "running" and taken.study.process == "alive" and not taken.study.stale
    assert taken.study.best_so_far == [0.5, 0.5, 1.5]  # the pruned trial's 9.0 does not count
    assert taken.study.counts.complete == 3 and taken.study.best.value == 1.5
    assert 4 < taken.study.age_seconds < 60
    assert taken.trader.profit == 100.0 and taken.trader.profit_fraction == 0.1
    assert taken.trader.equity_curve == [1000.0, 1001.0, 1002.0]
    assert taken.trader.positions[0].symbol == "BTC/USD" and taken.trader.orders[0].filled_price == 1e5
    assert taken.deployment.champion.sharpe == 1.25
    event = taken.deployment.audit[0]
    assert event.reasons == ["better"] and event.details == {"replaced": "x"}


def test_json_round_trip_holds_the_numbers_and_no_nan(tmp_path):
    write_study(tmp_path)
    path = tmp_path / "studies" / "alpha" / "progress.json"
    text = path.read_text().replace('"trials_per_hour": 12.0', '"trials_per_hour": NaN')
    path.write_text(text.replace('"eta_seconds": 4500.0', '"eta_seconds": 1e999'))

    def refuse(name):
        raise AssertionError(f"{name} in the JSON")

    read = json.loads(take_snapshot(tmp_path).to_json(), parse_constant=refuse)
    assert read["study"]["trials_per_hour"] is None and read["study"]["eta_seconds"] is None
    assert read["study"]["trials"][4]["value"] == 1.5
    assert read["trader"] is None and "cpu_percent" in read["device"]


def test_running_with_its_process_gone_is_dead(tmp_path):
    write_study(tmp_path, pid=ended_pid())
    write_trader(tmp_path, process={"pid": ended_pid(), "process_started": 1.0})
    taken = take_snapshot(tmp_path)
    assert taken.study.state == "dead" and taken.trader.state == "dead"


def test_a_reused_pid_is_not_taken_for_the_run(tmp_path):
    started = psutil.Process().create_time()
    assert process_state(os.getpid(), started, socket.gethostname()) == "alive"
    assert process_state(os.getpid(), started - 3600, socket.gethostname()) == "gone"


@pytest.mark.parametrize("pid", [-1, 10**30])
def test_an_impossible_pid_is_gone(pid):
    assert process_state(pid, None, socket.gethostname()) == "gone"


def test_another_host_cannot_be_checked(tmp_path):
    write_study(tmp_path, pid=ended_pid(), host="elsewhere.example")
    study = take_snapshot(tmp_path).study
    assert study.state == "running" and study.process == "unknown"


@pytest.mark.parametrize("state", ["finished", "interrupted", "failed"])
def test_a_run_that_ended_is_neither_dead_nor_stale(tmp_path, state):
    write_study(tmp_path, state=state, pid=ended_pid(), updated=iso(1e6))
    study = take_snapshot(tmp_path).study
    assert study.state == state and not study.stale
    assert study.age_seconds == pytest.approx(1e6, abs=60)


def test_halted_stays_halted_when_its_process_is_gone(tmp_path):
    write_trader(tmp_path, state="HALTED", process={"pid": ended_pid(), "process_started": 1.0})
    trader = take_snapshot(tmp_path).trader
    assert trader.state == "HALTED" and trader.process_state == "gone"
    write_trader(tmp_path, state="HALTED", updated=iso(9000))
    assert take_snapshot(tmp_path).trader.stale  # its process is there, and should have written
    write_trader(tmp_path, state="HALTED", updated=iso(9000), process={"pid": ended_pid(), "process_started": 1.0})
    assert not take_snapshot(tmp_path).trader.stale


def test_stale_study_allows_three_trials_at_its_own_pace(tmp_path):
    write_study(tmp_path, updated=iso(700), trials_per_hour=60.0)  # 600 s allowed
    assert take_snapshot(tmp_path).study.stale
    write_study(tmp_path, updated=iso(700), trials_per_hour=12.0)  # 3 * 300 s allowed
    assert not take_snapshot(tmp_path).study.stale


def test_stale_trader_allows_two_bars(tmp_path):
    write_trader(tmp_path, updated=iso(3000))  # hourly bars: 7200 s allowed
    assert not take_snapshot(tmp_path).trader.stale
    write_trader(tmp_path, updated=iso(3000), equity=equity_csv(20, timedelta(minutes=5)))
    assert take_snapshot(tmp_path).trader.stale


def test_most_recently_written_is_the_default_and_a_name_picks_another(tmp_path):
    for name, written in (("alpha", 300), ("beta", 100), ("gamma", 200)):
        write_study(tmp_path, name)
        os.utime(tmp_path / "studies" / name / "progress.json", (1e9 - written, 1e9 - written))
    (tmp_path / "studies" / "empty").mkdir()
    assert find_studies(tmp_path) == ["beta", "gamma", "alpha", "empty"]
    assert take_snapshot(tmp_path).study.study == "beta"
    assert take_snapshot(tmp_path, study="alpha").study.study == "alpha"


def test_a_trader_that_has_said_nothing_is_none(tmp_path):
    """A start that never began leaves a folder with a journal."""
    (tmp_path / "paper" / "never").mkdir(parents=True)
    (tmp_path / "paper" / "never" / "journal.sqlite").touch()
    assert take_snapshot(tmp_path).traders == []
    write_trader(tmp_path, name="live")
    assert take_snapshot(tmp_path).traders == ["live"]


def test_unknown_names_are_a_users_mistake_with_the_list(tmp_path):
    write_study(tmp_path)
    with pytest.raises(InputError, match="no study 'nope'.*there is: alpha"):
        check_names(tmp_path, study="nope")
    with pytest.raises(InputError, match="no paper trader 'nope'.*none yet"):
        check_names(tmp_path, trader="nope")
    taken = take_snapshot(tmp_path, study="../alpha")
    assert taken.study is None and "does not exist" in taken.problems[0]


def test_torn_last_equity_line_is_ignored_and_a_broken_one_is_counted(tmp_path):
    write_trader(tmp_path, equity=equity_csv(3) + "2025-01-01T03:00:00+00:00,10")
    taken = take_snapshot(tmp_path)
    assert taken.trader.equity_curve == [1000.0, 1001.0, 1002.0] and taken.problems == []
    lines = equity_csv(3) + "2025-01-01T03:00:00+00:00,102025-01-01T04:00:00+00:00,1004,100\nx,nan,1\n"
    write_trader(tmp_path, equity=lines)
    taken = take_snapshot(tmp_path)
    assert taken.trader.equity_curve == [1000.0, 1001.0, 1002.0]
    assert taken.problems == ["live/equity.csv: 2 lines are not timestamp,equity,cash and were left out"]


def test_a_long_file_is_read_from_its_end_by_whole_lines(tmp_path):
    path = tmp_path / "equity.csv"
    path.write_text(equity_csv(500))
    lines, anew = tail.Tail(path, 1000).read([])
    assert anew and lines == equity_csv(500).splitlines()[-len(lines) :] and 20 < len(lines) < 35


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "null",
        "3",
        '"text"',
        "\x00\xff",
        '{"study": ' * 3000,
        "9" * 5000,
        '{"trials": [1, null]}',
    ],
)
def test_any_content_becomes_a_problem(tmp_path, content):
    for folder, file in (
        ("studies/a", "progress.json"),
        ("paper/b", "state.json"),
        ("deployment", "champions/stock-1d-2.json"),
    ):
        (tmp_path / folder / file).parent.mkdir(parents=True)
        (tmp_path / folder / file).write_bytes(content.encode("latin-1"))
    (tmp_path / "deployment" / "audit.jsonl").write_bytes(content.encode("latin-1") + b"\n")
    taken = take_snapshot(tmp_path)
    json.loads(taken.to_json())
    told = " ".join(taken.problems)
    for file in ("progress.json", "state.json", "stock-1d-2.json"):
        assert file in told


@pytest.mark.parametrize("key", sorted(progress()))
@pytest.mark.parametrize("value", ["x", -1.5, [{}], {"a": []}, True, 10**400])
def test_a_value_of_any_type_in_any_place_is_survived(tmp_path, key, value):
    write_study(tmp_path)
    path = tmp_path / "studies" / "alpha" / "progress.json"
    path.write_text(json.dumps(progress(**{key: value})))
    json.loads(take_snapshot(tmp_path).to_json())


def test_wrong_types_and_missing_keys_are_named(tmp_path):
    raw = progress(n_trials="many", counts=None)
    del raw["phase"]
    write_json(tmp_path / "studies" / "alpha" / "progress.json", raw)
    taken = take_snapshot(tmp_path)
    assert "alpha/progress.json: lacks phase" in taken.problems
    assert "alpha/progress.json: 'n_trials' should be a whole number, not \"many\"" in taken.problems
    assert taken.study.n_trials is None and taken.study.counts.complete == 0


def test_one_fault_in_every_trial_is_told_once(tmp_path):
    write_study(tmp_path, trials=[{"number": n} for n in range(50)])
    assert take_snapshot(tmp_path).problems == [
        "alpha/progress.json, trials: lacks state, value, started, seconds, params"
    ]


def test_missing_files_of_an_existing_run_are_problems(tmp_path):
    (tmp_path / "studies" / "alpha").mkdir(parents=True)
    write_json(tmp_path / "paper" / "live" / "state.json", trader_state())
    problems = take_snapshot(tmp_path).problems
    assert problems == ["alpha/progress.json: missing", "live/equity.csv: missing"]


def test_a_file_where_a_folder_belongs_is_a_problem(tmp_path):
    (tmp_path / "studies").write_text("")
    (tmp_path / "deployment").write_text("")
    problems = take_snapshot(tmp_path).problems
    assert len(problems) == 2 and "should be a readable folder" in problems[0]


def test_a_clock_in_the_future_is_told(tmp_path):
    write_study(tmp_path, updated=iso(-3600))
    taken = take_snapshot(tmp_path)
    assert taken.study.age_seconds == 0 and "in the future" in taken.problems[0]


def test_best_so_far_minimises_where_the_objective_says_so():
    trials = [Trial(n, "COMPLETE", value) for n, value in ((2, 1.0), (0, 3.0), (1, 5.0))]
    assert best_so_far(trials, "minimize") == [3.0, 3.0, 1.0]
    assert best_so_far(trials, "maximize") == [3.0, 5.0, 5.0]


def test_thin_keeps_both_ends():
    values = thin([float(i) for i in range(1001)], 11)
    assert values == [100.0 * i for i in range(11)]


class FakeCuda:
    """torch.cuda as far as it is asked; it fails the way it does without nvidia-ml-py."""

    class properties:
        name, total_memory = "Card", 8 << 30

    def __init__(self, measurable: bool):
        self.measurable = measurable

    def is_available(self):
        return True

    def device_count(self):
        return 1

    def get_device_properties(self, index):
        return self.properties

    def device_memory_used(self, index):
        if not self.measurable:
            raise ModuleNotFoundError("nvidia-ml-py does not seem to be installed\nor imported")
        return 2 << 30

    def utilization(self, index):
        return 37

    def temperature(self, index):
        return 61

    def power_draw(self, index):
        return 250_500  # milliwatts


def test_a_gpu_is_measured_or_the_reason_is_told(monkeypatch):
    import torch

    monkeypatch.setattr(gpu.shutil, "which", lambda name: None)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch, "cuda", FakeCuda(measurable=True))
    assert gpu.take_device_snapshot().gpus == [gpu.GpuSnapshot(0, "Card", 37.0, 2 << 30, 8 << 30, 61.0, 250.5)]
    monkeypatch.setattr(torch, "cuda", FakeCuda(measurable=False))
    device = gpu.take_device_snapshot()
    assert device.gpus == [gpu.GpuSnapshot(0, "Card", None, None, 8 << 30)]
    assert device.reasons == ["GPU 0: nvidia-ml-py does not seem to be installed"]


@pytest.mark.parametrize(
    ("script", "gpus", "reasons"),
    [
        (
            "echo '0, NVIDIA H200, 83, 1024, 2048, 61, 402.5, 700.00'; echo '1, Old, [N/A], 5, 8, 40, [N/A], [N/A]'",
            [
                gpu.GpuSnapshot(0, "NVIDIA H200", 83.0, 1 << 30, 2 << 30, 61.0, 402.5, 700.0),
                gpu.GpuSnapshot(1, "Old", None, 5 << 20, 8 << 20, 40.0),
            ],
            [],
        ),
        ("echo 'NVIDIA-SMI has failed'; exit 9", [], ["nvidia-smi: NVIDIA-SMI has failed"]),
        ("echo nonsense", [], ["nvidia-smi: said 'nonsense'"]),
        ("exec sleep 60", [], ["nvidia-smi: Command"]),
    ],
)
def test_the_drivers_own_tool_is_read(tmp_path, monkeypatch, script, gpus, reasons):
    """A stand-in prints what nvidia-smi does in its csv,noheader,nounits format."""
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o755)
    monkeypatch.setattr(gpu, "SMI_SECONDS", 0.3)
    found, told = gpu.ask_driver(str(tool))
    assert found == gpus
    assert len(told) == len(reasons) and all(line.startswith(start) for line, start in zip(told, reasons, strict=True))


def test_processor_and_memory_are_measured():
    device = gpu.take_device_snapshot()
    assert 0 <= device.cpu_percent <= 100 and 0 < device.memory_used <= device.memory_total


def test_without_torch_the_processor_is_still_measured(monkeypatch):
    monkeypatch.setattr(gpu.shutil, "which", lambda name: None)
    monkeypatch.setitem(sys.modules, "torch", None)  # makes `import torch` raise ImportError
    device = gpu.take_device_snapshot()
    assert device.cpu_percent is not None and device.gpus == [] and "torch does not import" in device.reasons[0]


def test_only_new_lines_are_read_and_a_file_begun_anew_is_noticed(tmp_path):
    """Also where it keeps its inode and has grown past where the last look ended."""
    path, told = tmp_path / "log", []
    follower = tail.Tail(path)
    assert follower.read(told) == ([], True) and len(told) == 1
    path.write_text("a\nb\nhal")
    assert follower.read(told) == (["a", "b"], True)
    with path.open("a") as file:
        file.write("f\n")
    assert follower.read(told) == (["half"], False)
    assert follower.read(told) == ([], False)
    path.write_text("x\ny\nother\nlonger than before\n")
    assert follower.read(told) == (["x", "y", "other", "longer than before"], True)
    path.write_text("x\n")
    assert follower.read(told) == (["x"], True)
    other = tmp_path / "other"
    other.write_text("x\nz\n")
    os.replace(other, path)
    assert follower.read(told) == (["x", "z"], True) and len(told) == 1


def test_a_curve_grows_bar_by_bar_and_keeps_the_newest(tmp_path, monkeypatch):
    monkeypatch.setattr(curve, "CURVE_BARS", 8)
    path = tmp_path / "equity.csv"
    path.write_text(equity_csv(6))
    follower, told = curve.EquityCurve(path), []
    follower.update(told)
    assert (follower.first, follower.end, follower.version) == (0, 6, 1)
    with path.open("a") as file:
        file.write("".join(equity_csv(11).splitlines(keepends=True)[7:]))
    follower.update(told)
    assert (follower.version, follower.first, follower.end) == (1, 3, 11)
    assert follower.equity == [1000.0 + i for i in range(3, 11)]
    assert told == []


def test_risk_latency_and_reconciliation_are_read_where_the_trader_tells_them(tmp_path):
    risk = {"state": "REDUCING", "reasons": ["daily loss 3.1 % above 3 %"], "limits": {"daily_loss": 0.03}}
    when = iso(30)
    write_trader(tmp_path, risk=risk, reconciled=when, latency_ms={"p50": 0.8, "p99": 2.5}, stale=True)
    taken = take_snapshot(tmp_path)
    assert taken.problems == []
    assert taken.trader.risk.state == "REDUCING" and taken.trader.risk.limits == {"daily_loss": 0.03}
    assert taken.trader.reconciled == when and taken.trader.latency_ms.p99 == 2.5
    assert taken.trader.feed_stale and not taken.trader.stale


def test_a_prediction_is_read_whole_or_not_at_all(tmp_path):
    write_trader(tmp_path)
    path = tmp_path / "paper" / "live" / "prediction.json"
    given = {"bars": [1, 2], "q05": [-0.1, -0.2], "q50": [0.0, 0.1], "q95": [0.2, 0.3], "from": iso(60)}
    write_json(path, given)
    taken = take_snapshot(tmp_path)
    assert taken.problems == [] and taken.trader.prediction.q95 == [0.2, 0.3]
    assert taken.trader.prediction.start == given["from"]
    write_json(path, {**given, "model": "another", "equity": 1000.0})
    assert take_snapshot(tmp_path).trader.prediction is None
    write_json(path, {**given, "q05": [-0.1]})
    taken = take_snapshot(tmp_path)
    assert taken.trader.prediction is None and "one length" in taken.problems[0]
    for bars in ([0, 1], [2, 1], [1, 10**9]):
        write_json(path, {**given, "bars": bars})
        assert take_snapshot(tmp_path).trader.prediction is None


def test_where_the_equity_stands_in_its_prediction(tmp_path):
    """From bar 1 (equity 1001) on: after 2 bars 1001 exp(q), against the equity 1003."""
    follower = curve.EquityCurve(tmp_path / "equity.csv")
    (tmp_path / "equity.csv").write_text(equity_csv(4))
    follower.update([])
    given = {"bars": [1, 2], "q05": [0.0, -math.log(2)], "q50": [0.0, 0.0], "q95": [0.0, math.log(2)]}
    start = "2025-01-01T01:00:00Z"
    assert outlook(Prediction(**given, start=start), follower) == Outlook(2, 500.5, 2002.0, "inside")
    assert outlook(Prediction(**given, start=start, equity=10.0), follower).where == "above"
    assert outlook(Prediction(**given, start=start, equity=3000.0), follower).where == "below"
    assert outlook(Prediction(**given, start="2025-01-01T00:00:00Z"), follower) is None  # three bars: not predicted
    assert outlook(Prediction(**given, start="2024-12-31T23:00:00Z"), follower) is None  # before the first bar known
    assert outlook(Prediction(**{**given, "q95": [0.0, 1e6]}, start=start), follower) is None


def test_the_models_lineage_comes_from_its_bundle_and_from_no_other(tmp_path):
    write_trader(tmp_path, model="a" * 64)
    manifest = {
        "id": "a" * 64,
        "code_version": "1.0",
        "lineage": {"study": "alpha", "trial": 4, "value": 1.5, "seed": 7, "timesteps": 100, "data": {"bars": 9}},
    }
    write_json(tmp_path / "studies" / "alpha" / "bundle" / "bundle.json", manifest)
    lineage = take_snapshot(tmp_path).trader.lineage
    assert (lineage.trial, lineage.value, lineage.code_version, lineage.data.bars) == (4, 1.5, "1.0", 9)
    write_json(tmp_path / "studies" / "alpha" / "bundle" / "bundle.json", {**manifest, "id": "b" * 64})
    assert take_snapshot(tmp_path).trader.lineage is None


def test_workers_are_those_that_run_trials_now():
    here = {"host": socket.gethostname(), **this_process()}
    trials = [
        Trial(0, "complete", 1.0, worker=Worker(**here)),
        Trial(1, "running", worker=Worker(**here)),
        Trial(2, "running", worker=Worker(**here)),
        Trial(3, "running", worker=Worker("elsewhere", 12, 1.0)),
        Trial(4, "running"),
    ]
    found = {w.host: (w.state, w.trials) for w in workers(trials)}
    assert found == {socket.gethostname(): ("alive", [1, 2]), "elsewhere": ("unknown", [3])}


def test_optunas_own_dashboard_is_named_with_a_command_that_a_shell_takes(tmp_path):
    folder = tmp_path / "with space"
    assert optuna_command(folder) == ""
    folder.mkdir()
    (folder / "journal.log").write_text("")
    assert optuna_command(folder) == f"optuna-dashboard '{folder}/journal.log'"


def test_the_parameter_that_decides_is_the_most_important(tmp_path):
    rows = [
        {
            "number": n,
            "state": "complete",
            "value": float(-abs(n % 10 - 7)),
            "started": "",
            "seconds": 1.0,
            "params": {"decides": float(n % 10), "idle": float(n * 7919 % 40), "constant": 3},
        }
        for n in range(40)
    ]
    write_study(tmp_path, trials=rows)
    watcher = Watcher(tmp_path)
    shares = watcher.take().study.importances
    assert list(shares) == ["decides", "idle"] and shares["decides"] > 0.6
    assert sum(shares.values()) == pytest.approx(1.0)
    write_study(tmp_path, trials=rows[:7])
    assert watcher.take().study.importances == {}


def test_a_file_that_was_not_written_is_not_parsed_again(tmp_path, monkeypatch):
    write_study(tmp_path)
    watcher = Watcher(tmp_path)
    first = watcher.take().study
    monkeypatch.setattr("drl_agents.monitoring.study.read_json", lambda *_: pytest.fail("parsed again"))
    second = watcher.take().study
    assert second.trials is first.trials and second.state == "running"


def test_what_a_study_writes_is_read_without_problems(tmp_path):
    import optuna

    from drl_agents.search.progress import StudyProgress

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(study_name="alpha", direction="maximize")
    for value in (0.5, 1.5):
        study.tell(study.ask({"gamma": optuna.distributions.FloatDistribution(0.9, 0.99)}), value)
    running = study.ask()
    for name, value in {**this_process(), "host": socket.gethostname()}.items():
        running.set_user_attr(name, value)
    facts = {"source": "sample", "symbols": ["A"], "timeframe": "1d", "bars": 9, "fingerprint": "ab"}
    StudyProgress(study, tmp_path / "studies" / "alpha", 10, facts, False, None).update()
    taken = take_snapshot(tmp_path)
    assert taken.problems == []
    assert taken.study.best.value == 1.5 and taken.study.counts.running == 1
    assert [(w.pid, w.state, w.trials) for w in taken.study.workers] == [(os.getpid(), "alive", [2])]
    assert taken.study.trials[0].worker is None
