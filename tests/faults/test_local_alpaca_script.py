"""scripts/local_alpaca.py: it serves until Ctrl-C, and says in one line what it cannot do."""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path

import pytest
import requests

from drl_agents.training.commandline import run

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "local_alpaca.py"
MARKET = "--data-source synthetic --synthetic-options n_bars=50 --quiet".split()
KEYS = {"APCA-API-KEY-ID": "local", "APCA-API-SECRET-KEY": "local"}

pytestmark = pytest.mark.usefixtures("one_thread")


def call(*arguments: str) -> int:
    spec = importlib.util.spec_from_file_location("script_local_alpaca", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    with pytest.raises(SystemExit) as leaving:
        run(module.Options, module.main, list(arguments))
    return leaving.value.code or 0


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def test_it_plays_the_bars_and_ends_with_ctrl_c(capsys):
    port, seen = free_port(), {}
    url = f"http://127.0.0.1:{port}"

    def client() -> None:
        try:
            deadline = time.monotonic() + 30
            while time.monotonic() < deadline and not seen.get("order"):
                try:
                    body = {"symbol": "SYN0/USD", "side": "buy", "type": "market", "time_in_force": "gtc", "qty": 1}
                    seen["order"] = requests.post(url + "/v2/orders", json=body, headers=KEYS).json()["id"]
                except requests.ConnectionError:
                    time.sleep(0.01)
            while time.monotonic() < deadline and requests.get(url + "/local/v1/clock").json()["more"]:
                time.sleep(0.01)
            seen["status"] = requests.get(f"{url}/v2/orders/{seen['order']}", headers=KEYS).json()["status"]
        finally:
            os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=client)
    thread.start()
    status = call(*MARKET, "--replay-bars", "4", "--speed", "0.05", "--port", str(port))
    thread.join()
    out = capsys.readouterr().out
    assert status == 0 and seen["status"] == "filled"
    assert f"url_override='{url}'" in out and f"ws://127.0.0.1:{port}/stream" in out
    assert "the bars have ended" in out and "after 4 bars and 1 orders" in out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("--speed 0", "--speed 0.0: accepted are seconds > 0"),
        ("--replay-bars 50", "--replay-bars 50: accepted are 1 to 49"),
        ("--faults lightning=0.1", "fault 'lightning': accepted are delay"),
        ("--faults delay=often", "--faults delay=often: a rate from 0 to 1 is accepted"),
        ("--partial-fill-share 2", "partial_fill_share=2.0: accepted are 0 to 1"),
        ("--cash -5", "--cash -5.0: accepted are dollars > 0"),
        ("--port 70000", "port 70000: accepted are 0 to 65535"),
    ],
)
def test_what_it_cannot_do(capsys, arguments, says):
    assert call(*MARKET, *arguments.split()) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and err.startswith("error: ") and says in err
