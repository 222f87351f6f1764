"""The page's server: what it tells and when, whom it lets in, and that it has nothing that writes."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from drl_agents.monitoring import gpu, web
from drl_agents.monitoring.increments import Increments
from drl_agents.monitoring.snapshot import Watcher
from environments.errors import InputError
from environments.files import write_json

ROOT = Path(__file__).resolve().parents[2]
START = datetime(2025, 1, 1, tzinfo=UTC)
TOKEN = "a-token-that-is-long-enough"


@pytest.fixture(autouse=True)
def instant_device(monkeypatch):
    monkeypatch.setattr(gpu, "CPU_SAMPLE_SECONDS", 0.0)


def trial(number: int, state: str = "complete") -> dict:
    value = number / 10 if state == "complete" else None
    return {"number": number, "state": state, "value": value, "started": "", "seconds": 1.0, "params": {"g": 0.5}}


def write_study(logs: Path, trials: list[dict]) -> None:
    facts = {"study": "alpha", "state": "finished", "trials": trials, "updated": START.isoformat()}
    write_json(logs / "studies" / "alpha" / "progress.json", facts)


def bars(first: int, end: int) -> str:
    return "".join(f"{(START + timedelta(hours=i)).isoformat()},{1000 + i},10\n" for i in range(first, end))


def write_trader(logs: Path, equity: str, name: str = "live") -> None:
    facts = {"name": name, "state": "FINISHED", "equity": 1000.0, "updated": START.isoformat()}
    write_json(logs / "paper" / name / "state.json", facts)
    (logs / "paper" / name / "equity.csv").write_text("timestamp,equity,cash\n" + equity)


def step(watcher: Watcher, told: Increments) -> dict:
    return told.next(watcher.take(), watcher.curve)


def test_a_page_is_told_everything_first_and_then_what_is_new(tmp_path):
    write_study(tmp_path, [trial(0), trial(1, "running")])
    write_trader(tmp_path, bars(0, 5))
    watcher, told = Watcher(tmp_path), Increments()
    first = step(watcher, told)
    assert set(first) == {
        "time", "names", "study", "trader", "deployment", "device", "problems", "trials", "equity",
        "prediction",
    }  # fmt: skip
    assert first["equity"]["anew"] and first["equity"]["equity"] == [1000.0 + i for i in range(5)]
    assert [row["number"] for row in first["trials"]["rows"]] == [0, 1]
    assert set(step(watcher, told)) <= {"time", "device"}

    with (tmp_path / "paper" / "live" / "equity.csv").open("a") as file:
        file.write(bars(5, 7))
    write_study(tmp_path, [trial(0), trial(1), trial(2, "running")])
    third = step(watcher, told)
    assert not third["equity"]["anew"] and third["equity"]["first"] == 5
    assert third["equity"]["equity"] == [1005.0, 1006.0]
    assert not third["trials"]["anew"] and [row["number"] for row in third["trials"]["rows"]] == [1, 2]


def test_a_run_that_begins_anew_replaces_the_curve(tmp_path):
    write_trader(tmp_path, bars(0, 5))
    watcher, told = Watcher(tmp_path), Increments()
    step(watcher, told)
    write_trader(tmp_path, bars(3, 4))
    assert step(watcher, told)["equity"] == {
        "anew": True, "first": 0, "time": [(START + timedelta(hours=3)).timestamp()],
        "equity": [1003.0],
    }  # fmt: skip


def test_another_trader_replaces_the_curve_and_none_empties_it(tmp_path):
    write_trader(tmp_path, bars(0, 2), "a")
    write_trader(tmp_path, bars(4, 6), "b")
    watcher, told = Watcher(tmp_path, trader="a"), Increments()
    step(watcher, told)
    watcher.trader = "b"
    other = step(watcher, told)
    assert other["equity"]["anew"] and other["equity"]["equity"] == [1004.0, 1005.0]
    (tmp_path / "paper" / "b" / "state.json").unlink()
    gone = step(watcher, told)
    assert gone["trader"] is None and gone["equity"]["anew"] and gone["equity"]["time"] == []


@contextmanager
def serving(logs: Path, token: str | None = None):
    """A server on a free port of loopback; yields the port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = web.build_server(logs, "127.0.0.1", 0, 0.1, token)
        thread = threading.Thread(target=lambda: server.run(sockets=[listener]), daemon=True)
        thread.start()
        deadline = time.monotonic() + 20
        while not server.started:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        try:
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join(timeout=10)
            assert not thread.is_alive()


def ask(port: int, path: str, method: str = "GET", **headers: str):
    """(status, headers, body); `headers` with underscores for hyphens."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request(method, path, headers={k.replace("_", "-"): v for k, v in headers.items()})
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read().decode()
    finally:
        connection.close()


def messages(port: int, count: int, path: str = "/events", **headers: str) -> list[dict]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        assert answer.status == 200 and answer.getheader("content-type").startswith("text/event-stream")
        found = []
        while len(found) < count:
            line = answer.readline().decode()
            if line.startswith("data: "):
                found.append(json.loads(line[6:]))
        return found
    finally:
        connection.close()


def test_the_page_its_parts_and_the_stream_are_served(tmp_path):
    write_trader(tmp_path, bars(0, 3))
    with serving(tmp_path) as port:
        status, headers, body = ask(port, "/")
        assert status == 200 and headers["content-type"] == "text/html; charset=utf-8"
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy and "script-src 'self'" in policy and "unsafe" not in policy
        assert headers["x-content-type-options"] == "nosniff"
        parts = [part.split('"')[0] for part in body.split('="/')[1:]]
        assert len(parts) >= 4 and all(ask(port, f"/{part}")[0] == 200 for part in parts)
        first, second = messages(port, 2)
        assert first["equity"]["equity"] == [1000.0, 1001.0, 1002.0] and "equity" not in second
        assert json.loads(ask(port, "/snapshot.json")[2])["trader"]["name"] == "live"
        assert messages(port, 1, "/events?trader=nope")[0]["problems"] == [
            f"trader 'nope' does not exist under {tmp_path}"
        ]


def test_no_markup_is_made_from_data_and_nothing_comes_from_elsewhere():
    """The scripts put data into the page as text alone, and the page loads nothing from other hosts."""
    static = ROOT / "drl_agents" / "monitoring" / "static"
    scripts = {path.name: path.read_text() for path in static.glob("*.js")}
    assert set(scripts) >= {"app.js", "charts.js", "format.js", "trading.js", "training.js"}
    for name, text in scripts.items():
        for way in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function"):
            assert way not in text, f"{name}: {way}"
    page = (static / "index.html").read_text() + (static / "style.css").read_text()
    assert "http:" not in page and "https:" not in page and "style=" not in page and "onclick" not in page


def test_nothing_acts(tmp_path):
    with serving(tmp_path) as port:
        for method in ("POST", "PUT", "DELETE", "PATCH"):
            for path in ("/", "/events", "/snapshot.json"):
                assert ask(port, path, method)[0] == 405


def test_files_outside_the_static_folder_are_not_served(tmp_path):
    with serving(tmp_path) as port:
        for path in ("/static/../web.py", "/static/%2e%2e/web.py", "/static/..%2fweb.py", "/etc/passwd"):
            assert ask(port, path)[0] == 404


def test_under_a_foreign_name_loopback_answers_nothing(tmp_path):
    """A page elsewhere may point its own name at 127.0.0.1 and ask from within the reader's browser."""
    with serving(tmp_path) as port:
        for name in ("evil.example", "evil.example:8765", "", "127.0.0.1.evil.example"):
            assert ask(port, "/snapshot.json", Host=name)[0] == 403
        for name in ("localhost:1", "127.0.0.1", "[::1]:8765"):
            assert ask(port, "/snapshot.json", Host=name)[0] == 200


def test_a_token_is_asked_for_everywhere_and_leaves_the_address(tmp_path):
    with serving(tmp_path, TOKEN) as port:
        for path in ("/", "/events", "/snapshot.json", "/static/app.js", f"/snapshot.json?token={TOKEN}"):
            assert ask(port, path)[0] == 401
        assert ask(port, "/?token=wrong")[0] == 401
        assert ask(port, "/snapshot.json", Authorization="Bearer wrong")[0] == 401
        assert ask(port, "/snapshot.json", Authorization="Bearer ")[0] == 401
        status, headers, _ = ask(port, f"/?study=alpha&token={TOKEN}")
        assert status == 303 and headers["location"] == "/?study=alpha"
        cookie = headers["set-cookie"]
        assert "httponly" in cookie.lower() and "samesite=strict" in cookie.lower()
        status, _, body = ask(port, "/", Cookie=cookie.split(";")[0])
        assert status == 200 and TOKEN not in body
        assert messages(port, 1, Authorization=f"Bearer {TOKEN}")[0]["names"]["logs"] == str(tmp_path)


def test_tokens_are_made_or_taken_where_the_interface_is_not_loopback(monkeypatch):
    monkeypatch.delenv(web.TOKEN_VARIABLE, raising=False)
    assert [web.make_token(host) for host in ("127.0.0.1", "localhost", "::1", "127.9.9.9")] == [None] * 4
    made = {web.make_token("0.0.0.0") for _ in range(5)}
    assert len(made) == 5 and all(len(token) >= 32 for token in made)
    monkeypatch.setenv(web.TOKEN_VARIABLE, TOKEN)
    assert web.make_token("192.0.2.1") == TOKEN and web.make_token("127.0.0.1") is None
    monkeypatch.setenv(web.TOKEN_VARIABLE, "short")
    with pytest.raises(InputError, match="5 characters: at least 16"):
        web.make_token("0.0.0.0")


def test_a_port_that_is_taken_is_told_in_one_line(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(InputError, match="--port .* in use"):
        web.serve(tmp_path, "127.0.0.1", taken.getsockname()[1], 1.0, {})
    with pytest.raises(InputError, match="1 to 65535"):
        web.serve(tmp_path, "127.0.0.1", 0, 1.0, {})


def test_the_address_names_what_was_asked_for():
    assert web.address("127.0.0.1", 1, None, {"study": None, "trader": None}) == "http://127.0.0.1:1/"
    assert web.address("::1", 1, None, {"study": "a&b"}) == "http://[::1]:1/?study=a%26b"
    assert web.address("0.0.0.0", 1, TOKEN, {}) == f"http://0.0.0.0:1/?token={TOKEN}"


def test_no_secret_of_the_environment_is_told(tmp_path, monkeypatch):
    secrets = {"APCA_API_KEY_ID": "PKSECRETKEY", "APCA_API_SECRET_KEY": "verysecret", web.TOKEN_VARIABLE: TOKEN}
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    write_trader(tmp_path, bars(0, 3))
    write_study(tmp_path, [trial(0)])
    with serving(tmp_path, TOKEN) as port:
        entry = {"Authorization": f"Bearer {TOKEN}"}
        told = "".join(ask(port, path, **entry)[2] for path in ("/", "/snapshot.json", "/static/app.js"))
        told += json.dumps(messages(port, 2, **entry))
    assert "live" in told and not any(value in told for value in secrets.values())


def test_so_many_readers_and_no_more(tmp_path, monkeypatch):
    monkeypatch.setattr(web, "MAX_READERS", 1)

    def enter(port: int):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        connection.request("GET", "/events")
        return connection, connection.getresponse()

    with serving(tmp_path) as port:
        connection, answer = enter(port)
        assert answer.status == 200 and answer.readline().startswith(b"data: ")
        assert ask(port, "/events")[0] == 503
        answer.close()
        connection.close()
        deadline, status = time.monotonic() + 10, 0
        while status != 200:  # the one that left is forgotten
            assert time.monotonic() < deadline
            time.sleep(0.05)
            connection, answer = enter(port)
            status = answer.status
            answer.close()
            connection.close()
