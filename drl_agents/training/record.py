"""Records: what a run was made of, and what it did, as JSON lines."""

from __future__ import annotations

import json
import math
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

RUN_RECORD = "run.jsonl"


def now() -> str:
    """The time, ISO 8601, UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def code_version() -> str:
    """The package's version, with the commit of the checkout it runs from where there is one."""
    try:
        number = version("drl-agents")
    except PackageNotFoundError:
        number = "0+source"
    folder = Path(__file__).resolve().parents[2]
    if not (folder / ".git").exists():
        return number
    described = subprocess.run(
        ["git", "-C", str(folder), "describe", "--always", "--dirty", "--exclude=*"], capture_output=True, text=True
    )
    return f"{number}+{described.stdout.strip()}" if described.returncode == 0 else number


def versions() -> dict[str, str]:
    """Versions that results may depend on."""
    return {
        "code": code_version(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": f"{platform.system()} {platform.machine()}",
    }


def plain(value: Any) -> Any:
    """A value as JSON takes it: tensors become numbers or lists, NaN and infinities None."""
    if isinstance(value, torch.Tensor):
        return plain(value.item() if value.numel() == 1 else value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return value


class RunRecord:
    """`<folder>/run.jsonl`: a line of facts, then one line per iteration. Appended to, never rewritten.

    A line's ..._seconds and steps_per_second are of the wall clock; all else in it is the same whenever the run is
    repeated. Nothing is written before the first iteration is: a run that could not begin leaves no trace.
    """

    def __init__(self, folder: str | Path, facts: dict[str, Any]) -> None:
        self.path = Path(folder) / RUN_RECORD
        self._facts: dict[str, Any] | None = facts

    def write(self, line: dict[str, Any]) -> None:
        lines = [line]
        if self._facts is not None:
            lines.insert(0, {"time": now(), "facts": self._facts, "versions": versions()})
            self._facts = None
            self.path.parent.mkdir(parents=True, exist_ok=True)
        text = "".join(json.dumps(plain(one), allow_nan=False) + "\n" for one in lines)
        with self.path.open("a+b") as file:
            # A line that a killed run left torn must not swallow the next one.
            if file.seek(0, 2) and (file.seek(-1, 2), file.read(1))[1] != b"\n":
                text = "\n" + text
            file.write(text.encode())
