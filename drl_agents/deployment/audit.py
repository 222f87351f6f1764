"""The audit log: JSON lines that are only ever appended, each carrying the SHA-256 of the line before it.

    {"previous": "<sha256 of the line before>", "time": ..., "event": ..., ...}

A changed, inserted, removed or reordered line breaks the chain at the line after it. Lines cut off at the end, and a
newest line that was changed, break no chain: the digest of the newest line is kept beside the log (`audit.head.json`)
and that of a promotion's line in the champion's pointer, see `registry`, and `verify` asks that the log still has both.
The next writer looks, too, and leaves a line that says so for good. Who can write all three can write another history.
A line that a crash cut short stays as it is; the next writer ends it and says so in a line of its own, which carries
the digest of what is there.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drl_agents.training.record import now, plain
from environments.files import sync_folder, write_json

FIRST = "0" * 64  # what the first line carries: there is no line before it
TORN, MISSING = "torn", "missing"


@dataclass(frozen=True)
class Chain:
    """What `AuditLog.verify` found. lines: in the log. broken: number of the first broken line, counted from 1, None
    where all hold. reason: what is wrong with it. torn: lines that a crash cut short."""

    lines: int
    broken: int | None = None
    reason: str = ""
    torn: int = 0

    def __str__(self) -> str:
        if self.broken is not None:
            return f"line {self.broken} of {self.lines}: {self.reason}"
        counted = "1 line" if self.lines == 1 else f"{self.lines} lines"
        return f"{counted}, unbroken" + (f"; {self.torn} cut short by a crash" if self.torn else "")


def digest(line: bytes) -> str:
    """SHA-256 of a line without its end, in hexadecimal."""
    return hashlib.sha256(line).hexdigest()


class AuditLog:
    """One log; any number of processes may append to it."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.head = self.path.with_suffix(".head.json")

    def append(self, event: str, fields: Mapping[str, Any]) -> str:
        """Write one line and wait until it is on disk. Returns its digest."""
        with self._alone():
            content = self.path.read_bytes() if self.path.exists() else b""
            previous, before = _last_digest(content), b""
            if content and not content.endswith(b"\n"):
                marker = _line(previous, TORN, {"bytes": len(content) - content.rfind(b"\n") - 1})
                previous, before = digest(marker), b"\n" + marker + b"\n"
            for head in self._head().values():
                if head != _last_digest(content) and head not in map(digest, self._lines()):
                    marker = _line(previous, MISSING, {"newest": head})
                    previous, before = digest(marker), before + marker + b"\n"
            line = _line(previous, event, fields)
            with self.path.open("ab") as file:
                file.write(before + line + b"\n")
                file.flush()
                os.fsync(file.fileno())
            if not content:
                sync_folder(self.path.parent)
            # After a crash before this the head is the line before, which the log has, too.
            write_json(self.head, {"newest": digest(line)})
        return digest(line)

    def entries(self) -> list[dict[str, Any]]:
        """The lines that can be read, oldest first; each with its `digest`."""
        found = []
        for line in self._lines():
            entry = _parsed(line)
            if entry is not None:
                found.append({**entry, "digest": digest(line)})
        return found

    def verify(self, anchors: Mapping[str, str] | None = None) -> Chain:
        """Does every line carry the digest of the one before it?

        anchors: {where it was found: digest of a line that the log must have}.
        """
        lines = self._lines()
        entries = [_parsed(line) for line in lines]
        torn = 0
        for i, (line, entry) in enumerate(zip(lines, entries, strict=True)):
            if entry is None:
                follower = entries[i + 1] if i + 1 < len(lines) else None
                told = follower is not None and follower.get("event") == TORN and follower.get("bytes") == len(line)
                if not told and (i + 1 < len(lines) or self.path.read_bytes().endswith(b"\n")):
                    return Chain(len(lines), i + 1, "it cannot be read, and no crash is on record there", torn)
                torn += 1
                continue
            expected = digest(lines[i - 1]) if i else FIRST
            if entry.get("previous") != expected:
                reason = "it does not carry the digest of the line before: that line was changed, removed or put in"
                return Chain(len(lines), i + 1, reason if i else "the beginning of the log is missing", torn)
            if entry.get("event") == MISSING:
                return Chain(len(lines), i + 1, "lines before it were gone or changed when it was written", torn)
        digests = {digest(line) for line in lines}
        for where, anchor in {**self._head(), **(anchors or {})}.items():
            if anchor not in digests:
                return Chain(len(lines), len(lines) + 1, f"the line that {where} was written with is missing", torn)
        return Chain(len(lines), torn=torn)

    def _head(self) -> dict[str, str]:
        """As `anchors`: the newest line when one was written last. None of a log that is older than its head."""
        if not self.head.exists():
            return {}
        head = _parsed(self.head.read_bytes())
        return {str(self.head): str((head or {}).get("newest", ""))}

    def _lines(self) -> list[bytes]:
        content = self.path.read_bytes() if self.path.exists() else b""
        lines = content.split(b"\n")
        return lines if lines[-1] else lines[:-1]

    @contextmanager
    def _alone(self) -> Iterator[None]:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.with_suffix(".guard").open("w") as guard:
            fcntl.flock(guard, fcntl.LOCK_EX)
            yield


def _line(previous: str, event: str, fields: Mapping[str, Any]) -> bytes:
    return json.dumps(plain({"previous": previous, "time": now(), "event": event, **fields}), allow_nan=False).encode()


def _last_digest(content: bytes) -> str:
    """Of the last line of a log, whether it was ended or not."""
    body = content.removesuffix(b"\n")
    return digest(body[body.rfind(b"\n") + 1 :]) if content else FIRST


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) else None
