"""Atomic file writes: a reader sees the old file or the new one, never half of one."""

import json
import os
import tempfile
from pathlib import Path
from typing import Any

_UMASK = os.umask(0)  # can be read only by setting it
os.umask(_UMASK)


def write_atomic(path: str | Path, data: bytes | str) -> None:
    """Write `data` to `path` so that a crash at any moment leaves the old content or the new.

    A temporary file in the same folder is written, flushed and fsynced, then moved over `path` with
    `os.replace`, and the folder is fsynced so that the rename itself survives a power cut.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    payload = data.encode() if isinstance(data, str) else data
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        if hasattr(os, "fchmod"):
            os.fchmod(handle, 0o666 & ~_UMASK)  # as any new file: a temporary one is its owner's alone
        with os.fdopen(handle, "wb") as file:
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make renames inside `folder` durable; a no-op where folders cannot be opened (Windows)."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as JSON, atomically. NaN and infinities are refused: write None for undefined."""
    write_atomic(path, json.dumps(value, indent=2, allow_nan=False) + "\n")
