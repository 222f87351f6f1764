"""The audit log: any change of any line is found and named, and a crash is told apart from a change."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
from pathlib import Path

import pytest

from drl_agents.deployment.audit import FIRST, AuditLog


@pytest.fixture
def log(tmp_path) -> AuditLog:
    return AuditLog(tmp_path / "deployment" / "audit.jsonl")


@pytest.fixture
def five(log) -> AuditLog:
    for number in range(5):
        log.append("refused", {"bundle": f"b{number}", "sharpe": float("nan")})
    return log


def rewrite(log: AuditLog, change) -> None:
    lines = log.path.read_bytes().splitlines(keepends=True)
    log.path.write_bytes(b"".join(change(lines)))


def test_each_line_carries_the_digest_of_the_one_before(five):
    previous = FIRST
    for line in five.path.read_bytes().splitlines():
        assert json.loads(line)["previous"] == previous
        previous = hashlib.sha256(line).hexdigest()
    assert five.entries()[-1]["digest"] == previous
    assert str(five.verify()) == "5 lines, unbroken"


def test_append_returns_the_digest_of_its_line(log):
    digests = [log.append("refused", {}) for _ in range(3)]
    assert digests == [hashlib.sha256(line).hexdigest() for line in log.path.read_bytes().splitlines()]
    assert [entry["digest"] for entry in log.entries()] == digests


def test_an_empty_log_is_whole(log):
    assert log.verify().broken is None and log.entries() == []


CHANGES = {
    "a digit": (lambda lines: [*lines[:2], lines[2].replace(b'"b2"', b'"b7"'), *lines[3:]], 4),
    "a space": (lambda lines: [lines[0].replace(b", ", b",  ", 1), *lines[1:]], 2),
    "a line gone": (lambda lines: [*lines[:2], *lines[3:]], 3),
    "the first gone": (lambda lines: lines[1:], 1),
    "two swapped": (lambda lines: [lines[0], lines[2], lines[1], *lines[3:]], 2),
    "one put in": (lambda lines: [*lines[:3], lines[1], *lines[3:]], 4),
    "one made up": (lambda lines: [*lines[:3], b'{"event": "promoted"}\n', *lines[3:]], 4),
    "no JSON": (lambda lines: [*lines[:3], b"{\n", *lines[4:]], 4),
    "no JSON at the end": (lambda lines: [*lines[:4], b"{\n"], 5),
    "a list": (lambda lines: [*lines[:1], b"[]\n", *lines[2:]], 2),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_found_and_named(five, name):
    change, broken = CHANGES[name]
    rewrite(five, change)
    found = five.verify()
    assert found.broken == broken and f"line {broken} of" in str(found)


def test_lines_cut_off_at_the_end_are_found_by_an_anchor(five):
    anchor = five.append("promoting", {})
    assert five.verify({"champion.json": anchor}).broken is None
    rewrite(five, lambda lines: lines[:4])
    five.head.unlink()  # of a log that is older than its head
    assert five.verify().broken is None
    found = five.verify({"champion.json": anchor})
    assert found.broken == 5 and "champion.json" in found.reason


@pytest.mark.parametrize("gone", [1, 2, 5])
def test_lines_cut_off_at_the_end_are_found(five, gone):
    rewrite(five, lambda lines: lines[:-gone])
    found = five.verify()
    assert found.broken == 6 - gone and five.head.name in found.reason
    for _ in range(2):  # and stay found: nothing is known of what was in them
        five.append("refused", {})
        assert five.verify().broken == 6 - gone


def test_a_change_of_the_newest_line_is_found(five):
    rewrite(five, lambda lines: [*lines[:4], lines[4].replace(b'"b4"', b'"b7"')])
    assert five.verify().broken == 6 and five.head.name in five.verify().reason


def test_a_damaged_head_is_told(five):
    five.head.write_text("{")
    assert five.head.name in five.verify().reason


@pytest.mark.parametrize("left", [1, 20, -1])
def test_a_torn_last_line_is_marked_and_the_chain_goes_on(five, left):
    """-1: all of the line but its end."""
    content = five.path.read_bytes()
    start = content[:-1].rfind(b"\n") + 1
    five.path.write_bytes(content[: start + left] if left > 0 else content[:-1])
    five.head.write_text(json.dumps({"newest": five.entries()[3]["digest"]}))  # it had not come to the head
    assert five.verify().broken is None
    five.append("refused", {"bundle": "after"})
    lines = five.path.read_bytes().splitlines()
    marker = json.loads(lines[5])
    assert marker["event"] == "torn" and marker["bytes"] == len(lines[4])
    found = five.verify()
    assert found.broken is None and found.lines == 7 and found.torn == (left > 0)
    assert [entry.get("bundle") for entry in five.entries()][-1] == "after"
    rewrite(five, lambda lines: [*lines[:4], lines[4][:-2] + b"?\n", *lines[5:]])  # what was torn is guarded too
    assert five.verify().broken is not None


def _write(path: Path, who: int) -> None:
    for number in range(20):
        AuditLog(path).append("refused", {"who": who, "number": number})


def test_several_processes_append_to_one_chain(log):
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_write, args=(log.path, who)) for who in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    found = log.verify()
    assert found.broken is None and found.lines == 60
