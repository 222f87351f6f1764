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
        "platform": platform.platform(),
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
    """`<folder>/run.jsonl`: a first line of facts, then one line per iteration. Appended, never rewritten."""

    def __init__(self, folder: str | Path, facts: dict[str, Any]) -> None:
        self.path = Path(folder) / "run.jsonl"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.write({"time": now(), "facts": facts, "versions": versions()})

    def write(self, line: dict[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(plain(line), allow_nan=False) + "\n")
