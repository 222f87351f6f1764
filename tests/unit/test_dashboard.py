"""Dashboard on a terminal: numbers for people, what the views say, keys, and the command line's exit statuses."""

from __future__ import annotations

import asyncio
import fcntl
import importlib.util
import io
import json
import os
import pty
import re
import select
import signal
import socket
import struct
import subprocess
import sys
import termios
import time
import urllib.request
from datetime import UTC, datetime
from pathlib import Path

import pytest
from rich.console import Console
from textual.widgets import TabbedContent

from drl_agents.monitoring import gpu
from drl_agents.monitoring.formatting import cents, duration, money, number, percent, setting
from drl_agents.monitoring.plot import braille
from drl_agents.monitoring.records import Best, Counts, Data, Gate, Objective, StudySnapshot, Trial, Worker
from drl_agents.monitoring.snapshot import Snapshot, Watcher
from drl_agents.monitoring.terminal import Dashboard
from drl_agents.monitoring.trading_records import (
    AuditEvent,
    Champion,
    DeploymentSnapshot,
    Latency,
    Order,
    Outlook,
    Position,
    Risk,
    TraderSnapshot,
)
from drl_agents.monitoring.views import START, TRADE, fills, render
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
        "importances": {"gamma": 0.75, "ent_coef": 0.25},
        "workers": [Worker("box", 4711, 1.0, "alive", [26, 27])],
        "optuna": "optuna-dashboard logs/studies/alpha/journal.log",
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
        "risk": Risk("REDUCING", ["daily loss 3.1 % above 3 %"], {"daily_loss": 0.03}),
        "reconciled": "2025-06-01T11:58:00Z",
        "latency_ms": Latency(0.8, 2.5),
        "outlook": Outlook(40, 9900.0, 10800.0, "inside"),
        "age_seconds": 10.0,
        "profit": 450.0,
        "profit_fraction": 0.045,
        "equity_curve": [10000.0 + n for n in range(240)],
        **changes,
    }
    return TraderSnapshot(**values)


def everything(**changes) -> Snapshot:
    card = gpu.GpuSnapshot(0, "Card", 83.0, 1 << 30, 4 << 30, 61.0, 402.5, 700.0)
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
        "device": gpu.DeviceSnapshot(40.0, 8, 2 << 30, 8 << 30, [card]),
        "problems": [],
        **changes,
    }
    return Snapshot(**values)


def text_of(snapshot: Snapshot, width: int = 100, training: bool = False) -> str:
    file = io.StringIO()
    Console(file=file, width=width).print(render(snapshot, training))
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


def test_signed_money_percent_and_what_is_worth_nothing():
    assert money(5.0, sign=True) == "+$5.00" and money(-5.0, sign=True) == "-$5.00"
    assert percent(0.01234) == "1.23 %" and percent(-0.5, sign=True) == "-50.00 %"
    assert [cents(v) for v in (2.8e-8, -2.8e-8, 0.02, None)] == ["$0.00", "$0.00", "$0.02000", "–"]


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
    assert setting(0.9997) == "0.9997"


def test_a_curve_runs_from_its_lowest_to_its_highest_value():
    """Dots by hand: four columns of dots over two cells, four rows."""
    assert braille([[0, 1, 2, 3]], 2, 1) == ["⡠⠊"]
    assert braille([[3, 2, 1, 0]], 2, 1) == ["⠑⢄"]
    assert braille([[5.0, 5.0]], 2, 1) == ["⠤⠤"]
    assert braille([[0, None, None, 0, 3]], 1, 1) and braille([[]], 3, 2) == [] == braille([[1, 2]], 0, 2)
    assert braille([[0, 3]], 1, 1) == ["⡸"]  # a jump is drawn through
    assert len(braille([[-1.7e308, 1.7e308]], 5, 3)) == 3


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_no_line_is_wider_than_the_screen_and_no_frame_is_broken(width, training):
    lines = text_of(everything(problems=["a: missing"]), width, training).splitlines()
    assert max(map(len, lines)) <= width
    assert all(line[-1] in "│╮╯" for line in lines if line[0] in "│╭╰")


def test_what_matters_is_told():
    text = text_of(everything())
    for part in (
        "ACTIVE",
        "Equity $10,450.00",
        "profit +$450.00 (+4.50 %)",
        "drawdown 1.20 % (max 3.45 %)",
        "REDUCING",
        "daily loss 3.1 % above 3 %",
        "daily loss 0.03",
        "reconciled 2025-06-01 11:58",
        "bar to order 2.5 ms (p99)",
        "inside the back-test's 90 % band  $9,900.00 to $10,800.00 after 40 bars",
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
        "1.414  trial 11  per year",
        "learning_rate 0.0003",
        "gamma       0.750",
        "box process 4711  alive  trials 26, 27",
        "optuna-dashboard logs/studies/alpha/journal.log",
        "Sharpe 1.25",
        "overfitting 0.62",
        "Card 83 % 1.0/4.0 GiB 61 °C 402 W",
    ):
        assert part in text, part


def test_the_training_view_shows_the_newest_trials_and_no_trader():
    text = text_of(everything(), training=True)
    assert "Paper trader" not in text
    assert re.findall(r"│ (\d+) +complete +[\d.]+ +1 min 15 s", text) == [str(n) for n in range(25, 13, -1)]


def test_a_part_of_an_order_is_told_and_a_rounding_is_not():
    asked = {"quantity": 2.0, "filled_price": 1.25}
    assert [fills(Order(**asked, filled_quantity=q)) for q in (2.0, 2.0 - 1e-9, 1.5, 0.0, None)] == [
        "$1.25", "$1.25", "1.5 at $1.25", "–", "–",
    ]  # fmt: skip


def test_synthetic_is_loud_and_real_is_not_called_synthetic():
    assert "SYNTHETIC" not in text_of(everything())
    text = text_of(everything(study=study(synthetic=True)))
    assert "SYNTHETIC DATA: NOT A REAL MARKET" in text.splitlines()[0]
    assert text.count("SYNTHETIC DATA") == 2  # the first line and the training's frame, not the trader's


def test_dead_and_stale_are_told():
    assert "DEAD (its process is gone)" in text_of(everything(study=study(state="dead")))
    assert "DEAD (its process is gone)" in text_of(everything(trader=trader(state="dead")))
    assert "STALE: updated 2 h 00 min ago" in text_of(everything(trader=trader(stale=True, age_seconds=7200.0)))
    assert "STALE: the trader finds" in text_of(everything(trader=trader(feed_stale=True)))


def test_a_refused_gate_gives_its_reasons_in_full():
    reason = "deflated Sharpe 0.41 below 0.95, " + "and so on " * 20 + "to the end"
    gated = study(state="finished", phase="judge", gate=Gate(False, [reason]))
    text = text_of(everything(study=gated))
    assert "refused" in text and "to the end" in text and "ETA" not in text


def test_files_cannot_steer_the_terminal_or_use_markup():
    evil = "\x1b[31mred\ud800 [bold]x[/bold]"
    text = text_of(everything(trader=trader(broker=evil), study=study(gate=Gate(False, [evil]))))
    assert "\x1b" not in text and text.count("[bold]x[/bold]") == 2
    text.encode()


def test_an_almost_empty_snapshot_is_drawn():
    text = text_of(everything(study=StudySnapshot(), trader=TraderSnapshot(), deployment=DeploymentSnapshot()))
    assert "Nothing is deployed" in text and "0/? trials" in text


def test_where_nothing_was_written_the_view_says_what_to_run():
    text = text_of(everything(study=None, trader=None))
    assert START in text and TRADE in text


class Scripted(Watcher):
    """A watcher that sees what the test says."""

    def __init__(self, snapshot: Snapshot) -> None:
        super().__init__("logs")
        self.snapshot, self.asked = snapshot, []

    def take(self) -> Snapshot:
        self.asked.append((self.study, self.trader))
        return self.snapshot


def shown(app: Dashboard) -> str:
    """The screen's text, as the terminal shows it."""
    return "\n".join("".join(segment.text for segment in strip) for strip in app.screen._compositor.render_strips())


def pilot(app: Dashboard, steps, size=(80, 24)) -> None:
    async def run() -> None:
        async with app.run_test(size=size) as driver:
            await app.look()
            await driver.pause()
            await steps(driver)

    asyncio.run(run())


def test_keys_change_the_view_and_scroll_it():
    app = Dashboard(Scripted(everything()), 60.0)

    async def steps(driver):
        text = shown(app)
        assert "Equity $10,450.00" in text and "CPU 40 % of 8 cores" in text and "phase search" not in text
        assert len(text.splitlines()) == 24 and max(map(len, text.splitlines())) == 80
        await driver.press("2")
        assert app.query_one(TabbedContent).active == "training" and "25/50 trials" in shown(app)
        assert "optuna-dashboard" not in shown(app)
        await driver.press("end")
        await driver.pause(0.6)  # it scrolls smoothly
        assert "optuna-dashboard" in shown(app)
        await driver.press("1")
        assert "Equity $10,450.00" in shown(app)
        await driver.press("q")

    pilot(app, steps)
    assert app.return_code == 0


def test_the_screen_follows_the_files_and_the_window():
    watcher = Scripted(everything())
    app = Dashboard(watcher, 60.0)

    async def steps(driver):
        watcher.snapshot = everything(trader=trader(equity=99.5))
        await app.look()
        await driver.pause()
        assert "$99.50" in shown(app) and "$10,450.00" not in shown(app)
        watcher.snapshot = everything(trader=None)
        await app.look()
        await driver.resize_terminal(130, 40)
        await driver.pause()
        assert TRADE in shown(app) and max(map(len, shown(app).splitlines())) == 130

    pilot(app, steps)


def test_the_next_study_and_the_next_trader_are_shown_in_turn():
    watcher = Scripted(everything(studies=["alpha", "beta"], traders=["live", "other"]))
    app = Dashboard(watcher, 60.0)

    async def steps(driver):
        await driver.press("s", "t")
        await driver.pause()
        assert watcher.asked[-1] == ("beta", "other")
        await driver.press("s")
        await driver.pause()
        assert watcher.asked[-1] == ("alpha", "other")

    pilot(app, steps)


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


def test_what_cannot_be_done_exits_with_two_and_one_line(tmp_path, capsys):
    write_json(tmp_path / "studies" / "alpha" / "progress.json", {})
    for arguments, told in (
        (["--once", "--study", "nope"], "there is: alpha"),
        (["--once", "--refresh", "nan"], "at least 0.1"),
        (["--web", "--once"], "without --once"),
        (["--web", "--port", "0"], "1 to 65535"),
    ):
        assert command_line()(["--logs", str(tmp_path), *arguments]) == 2
        captured = capsys.readouterr()
        assert captured.out == "" and len(captured.err.splitlines()) == 1 and told in captured.err


def test_json_and_once_print_the_study(tmp_path, capsys):
    write_json(tmp_path / "studies" / "alpha" / "progress.json", {"study": "alpha", "state": "finished"})
    assert command_line()(["--json", "--logs", str(tmp_path)]) == 0
    assert json.loads(capsys.readouterr().out)["study"]["state"] == "finished"
    assert command_line()(["--once", "--training", "--logs", str(tmp_path)]) == 0
    assert "FINISHED" in capsys.readouterr().out


def test_a_signal_leaves_the_full_screen_view_cleanly(tmp_path):
    write_json(tmp_path / "studies" / "alpha" / "progress.json", {"study": "alpha", "state": "finished"})
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm", "PYTHONDONTWRITEBYTECODE": "1"}
    child = subprocess.Popen(
        [sys.executable, str(SCRIPT), "--training", "--logs", str(tmp_path), "--refresh", "0.2"],
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
                child.send_signal(signal.SIGTERM)
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


def test_the_web_server_prints_its_address_and_ends_at_a_signal(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    child = subprocess.Popen(
        [sys.executable, str(SCRIPT), "--web", "--port", str(port), "--logs", str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
    )
    try:
        assert f"http://127.0.0.1:{port}/ " in child.stdout.readline()
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/events", timeout=20) as stream:
            assert stream.readline().startswith(b"data: ")
            child.send_signal(signal.SIGINT)  # while a page is open
            rest = child.communicate(timeout=20)[0]
        assert child.returncode == 0 and "Traceback" not in rest
    finally:
        child.kill()
        child.wait()
