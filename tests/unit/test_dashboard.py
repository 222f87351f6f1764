"""Dashboard: numbers for people, views that fit their screen, and the command line's exit statuses."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
from rich.console import Console

from drl_agents.monitoring import dashboard, gpu
from drl_agents.monitoring.dashboard import duration, money, number, percent, render, sparkline
from drl_agents.monitoring.records import (
    AuditEvent,
    Best,
    Champion,
    Counts,
    Data,
    DeploymentSnapshot,
    Gate,
    Objective,
    Order,
    Position,
    StudySnapshot,
    TraderSnapshot,
    Trial,
)
from drl_agents.monitoring.snapshot import Snapshot
from environments.files import write_json

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "paper_trader_dashboard.py"
NOW = datetime(2025, 6, 1, 12, 0, tzinfo=UTC)


def study(**changes) -> StudySnapshot:
    params = {"learning_rate": 3e-4, "gamma": 0.9997, "net_dims": [64, 64], "ent_coef": 0.01}
    values = {
        "study": "alpha",
        "state": "running",
        "phase": "search",
        "started": "2025-06-01T09:55:00Z",
        "updated": "2025-06-01T11:59:50Z",
        "n_trials": 50,
        "objective": Objective("Sharpe", "per year", "maximize"),
        "data": Data("sample", ["BTC/USD"], "1h", 43800, "abcdef0123"),
        "counts": Counts(complete=18, pruned=5, failed=2, running=1),
        "trials_per_hour": 12.0,
        "eta_seconds": 7510.0,
        "best": Best(11, 1.4142, params),
        "trials": [Trial(n, "complete", n / 10, "", 75.0, params) for n in range(26)],
        "age_seconds": 10.0,
        "best_so_far": [0.1 * n for n in range(18)],
        **changes,
    }
    return StudySnapshot(**values)


def trader(**changes) -> TraderSnapshot:
    values = {
        "name": "live",
        "model": "ppo-77",
        "study": "alpha",
        "trial": 11,
        "broker": "local",
        "state": "ACTIVE",
        "timeframe": "1h",
        "bar": "2025-06-01T11:00:00Z",
        "bars_done": 400,
        "equity": 10450.0,
        "cash": 450.0,
        "drawdown": 0.012,
        "max_drawdown": 0.0345,
        "fees": 12.5,
        "n_orders": 20,
        "n_fills": 19,
        "positions": [Position(f"COIN{n}/USD", 1.5, 10.0, 1000.0 - n, 0.1) for n in range(10)],
        "orders": [
            Order(f"o{n}", "2025-06-01T11:00:00Z", "COIN1/USD", "buy", 2.0, "filled", 2.0, 1.25) for n in range(20)
        ],
        "age_seconds": 10.0,
        "profit": 450.0,
        "profit_fraction": 0.045,
        "equity_curve": [10000.0 + n for n in range(240)],
        **changes,
    }
    return TraderSnapshot(**values)


def everything(**changes) -> Snapshot:
    values = {
        "time": NOW.isoformat(),
        "host": "box",
        "logs": "logs",
        "studies": ["alpha"],
        "traders": ["live"],
        "study": study(),
        "trader": trader(),
        "deployment": DeploymentSnapshot(
            Champion("ppo-77", "p", "alpha", 11, "2025-05-30T00:00:00Z", 1.25),
            [
                AuditEvent(NOW.isoformat(), "rejected", f"sac-{n}", "alpha", ["overfitting 0.62 above 0.5"])
                for n in range(9)
            ],
        ),
        "device": gpu.DeviceSnapshot(40.0, 8, 2 << 30, 8 << 30, [gpu.GpuSnapshot(0, "Card", 83.0, 1 << 30, 4 << 30)]),
        "problems": [],
        **changes,
    }
    return Snapshot(**values)


def text_of(snapshot: Snapshot, width: int = 80, height: int | None = 24, training: bool = False) -> str:
    file = io.StringIO()
    Console(file=file, width=width, height=height or 100).print(render(snapshot, width, height, training))
    return file.getvalue()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (0.0, "0"),
        (12345.6, "12,346"),
        (1.41421, "1.414"),
        (-0.02081, "-0.02081"),
        (5e-06, "5e-06"),
        (387314847, "387,314,847"),
        (1e300, "1e+300"),
    ],
)
def test_number(value, text):
    assert number(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(1234.5, "$1,234.50"), (-3.0, "-$3.00"), (0.0, "$0.00"), (0.00001834, "$0.00001834"), (None, "–")],
)
def test_money(value, text):
    assert money(value) == text


def test_signed_money_and_percent():
    assert money(5.0, sign=True) == "+$5.00" and money(-5.0, sign=True) == "-$5.00"
    assert percent(0.01234) == "1.23 %" and percent(-0.5, sign=True) == "-50.00 %"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.25, "0.2 s"),
        (59.9, "60 s"),
        (75, "1 min 15 s"),
        (7500, "2 h 05 min"),
        (93600, "1 d 2 h"),
        (None, "–"),
    ],
)
def test_duration(seconds, text):
    assert duration(seconds) == text


def test_a_discount_near_one_is_not_rounded_to_one():
    assert dashboard.setting(0.9997) == "0.9997"


def test_sparkline_spans_lowest_to_highest_and_ends_with_the_last():
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7], 8) == "▁▂▃▄▅▆▇█"
    assert sparkline([5.0, 5.0], 8) == "▁▁"
    assert sparkline([], 8) == "" and sparkline([1, 2], 0) == ""
    assert sparkline([0.0] * 999 + [1.0], 10) == "▁▁▁▁▁▁▁▁▁█"
    assert sparkline([-1.7e308, 1.7e308], 5) == "▁█"


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("problems", [[], ["a: missing", "b: missing", "c: missing"]])
@pytest.mark.parametrize("size", [(80, 24), (80, 25), (100, 30), (119, 28), (120, 24), (140, 40), (250, 70)])
def test_everything_fits_the_screen(size, problems, training):
    lines = text_of(everything(problems=problems), *size, training).splitlines()
    assert len(lines) <= size[1]
    assert max(map(len, lines)) <= size[0]
    assert lines[-1].startswith("CPU 40 % of 8 cores")
    assert all(line[-1] in "│╮╯" for line in lines if line[0] in "│╭╰")  # no frame is broken by a long line


@pytest.mark.parametrize("parts", [{"study": None}, {"deployment": None}, {"study": None, "deployment": None}])
@pytest.mark.parametrize("empty", [False, True])
def test_parts_fit_the_screen_too(parts, empty):
    few = trader(positions=[], orders=[], equity_curve=[]) if empty else trader()
    assert len(text_of(everything(trader=few, **parts)).splitlines()) <= 24


def test_the_smallest_screen_shows_what_matters():
    text = text_of(everything())
    for part in (
        "ACTIVE",
        "Equity $10,450.00",
        "profit +$450.00 (+4.50 %)",
        "drawdown 1.20 % (max 3.45 %)",
        "ppo-77",
        "from study alpha, trial 11",
        "COIN0/USD",
        "filled",
        "RUNNING",
        "phase search",
        "25/50 trials",
        "ETA 2 h 05 min",
        "5 pruned",
        "2 failed",
        "12 trials/hour",
        "1.414 per year",
        "learning_rate 0.0003",
        "Sharpe 1.25",
        "overfitting 0.62",
        "Card 83 % 1.0/4.0 GiB",
    ):
        assert part in text, part


def test_the_training_view_shows_the_last_eight_trials_and_no_trader():
    text = text_of(everything(), 100, 40, training=True)
    assert "Paper trader" not in text
    assert re.findall(r"│ (\d+) +complete +[\d.]+ +1 min 15 s", text) == [str(n) for n in range(25, 17, -1)]


def test_panels_stand_side_by_side_where_there_is_room():
    assert "Training" not in text_of(everything(), 119, 40).splitlines()[1]
    assert "Training" in text_of(everything(), 120, 40).splitlines()[1]


def test_synthetic_is_loud_and_real_is_not_called_synthetic():
    assert "SYNTHETIC" not in text_of(everything())
    text = text_of(everything(study=study(synthetic=True)))
    assert "SYNTHETIC DATA: NOT A REAL MARKET" in text.splitlines()[0]
    assert text.count("SYNTHETIC DATA") == 2  # the first line and the training's frame, not the trader's


def test_dead_and_stale_are_told():
    assert "DEAD (its process is gone)" in text_of(everything(study=study(state="dead")))
    assert "STALE: updated 2 h 00 min ago" in text_of(everything(trader=trader(stale=True, age_seconds=7200.0)))


def test_a_refused_gate_gives_its_reasons():
    gated = study(state="finished", phase="judge", gate=Gate(False, ["deflated Sharpe 0.41 below 0.95"]))
    text = text_of(everything(study=gated))
    assert "refused" in text and "deflated Sharpe 0.41 below 0.95" in text and "ETA" not in text


def test_problems_are_shown_and_counted():
    text = text_of(everything(problems=["a: missing", "b: missing", "c: missing"]))
    assert "a: missing" in text and "b: missing (and 1 more)" in text


def test_files_cannot_steer_the_terminal_or_use_markup():
    text = text_of(everything(trader=trader(model="\x1b[31mred\ud800 [bold]x[/bold]")))
    assert "\x1b" not in text and "[bold]x[/bold]" in text
    text.encode()


def test_an_almost_empty_snapshot_is_drawn():
    text = text_of(everything(study=StudySnapshot(), trader=TraderSnapshot(), deployment=DeploymentSnapshot()))
    assert "Nothing is deployed" in text and "0/? trials" in text


def test_training_view_without_a_study_says_how_to_start():
    assert dashboard.START in text_of(everything(study=None), training=True)


def command_line():
    spec = importlib.util.spec_from_file_location("paper_trader_dashboard", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # tyro resolves the dataclass's annotations through it
    spec.loader.exec_module(module)
    return module.main


def test_once_with_nothing_written_is_friendly(tmp_path, capsys):
    assert command_line()(["--once", "--logs", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert len(out.splitlines()) == 1 and "./start_vectorized_training.sh" in out


def test_unknown_study_and_bad_refresh_exit_with_two(tmp_path, capsys):
    write_json(tmp_path / "studies" / "alpha" / "progress.json", {})
    for arguments, told in ((["--study", "nope"], "there is: alpha"), (["--refresh", "nan"], "at least 0.1")):
        assert command_line()(["--once", "--logs", str(tmp_path), *arguments]) == 2
        captured = capsys.readouterr()
        assert captured.out == "" and len(captured.err.splitlines()) == 1 and told in captured.err


def test_json_and_once_print_the_study(tmp_path, capsys):
    write_json(tmp_path / "studies" / "alpha" / "progress.json", {"study": "alpha", "state": "finished"})
    assert command_line()(["--json", "--logs", str(tmp_path)]) == 0
    assert json.loads(capsys.readouterr().out)["study"]["state"] == "finished"
    assert command_line()(["--once", "--training", "--logs", str(tmp_path)]) == 0
    assert "FINISHED" in capsys.readouterr().out


@pytest.mark.skipif(os.name == "nt", reason="needs a pseudo-terminal")
def test_ctrl_c_leaves_the_full_screen_view_cleanly(tmp_path):
    write_json(tmp_path / "studies" / "alpha" / "progress.json", {"study": "alpha", "state": "finished"})
    import fcntl
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm", "PYTHONDONTWRITEBYTECODE": "1"}
    child = subprocess.Popen(
        [sys.executable, str(SCRIPT), "--logs", str(tmp_path), "--refresh", "0.2"],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=environment,
    )
    os.close(theirs)
    seen, interrupted, deadline = b"", False, time.monotonic() + 60
    try:
        while time.monotonic() < deadline:
            if select.select([ours], [], [], 0.2)[0]:
                try:
                    piece = os.read(ours, 65536)
                except OSError:  # Linux's way to say that the other end is closed
                    break
                if not piece:
                    break
                seen += piece
            if b"FINISHED" in seen and not interrupted:
                child.send_signal(signal.SIGINT)
                interrupted = True
        assert child.wait(timeout=10) == 0
    finally:
        child.kill()
        child.wait()
        os.close(ours)
    assert interrupted and b"Traceback" not in seen
    # Alternate screen entered and left, cursor hidden and shown again.
    assert seen.rfind(b"\x1b[?1049l") > seen.rfind(b"\x1b[?1049h") >= 0
    assert seen.rfind(b"\x1b[?25h") > seen.rfind(b"\x1b[?25l") >= 0
