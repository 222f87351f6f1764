"""Where a benchmark ran: machine and versions."""

from __future__ import annotations

import os
import platform
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
import torch

from drl_agents.benchmark.race import wait_for
from drl_agents.training.record import code_version

PACKAGES = ("drl-agents", "torch", "numpy", "pandas", "gymnasium", "stable-baselines3", "sbx-rl", "jax", "flax")
COPIED = 2**28  # bytes of the array whose copy shows the memory bandwidth: more than any cache holds


def cpu_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine_facts(device: torch.device) -> dict[str, Any]:
    """Processor, memory, accelerator and their copy bandwidth, load at the time, and operating system."""
    facts = {
        "cpu": cpu_model(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "cores": cpu_cores(),
        "memory_gb": round(psutil.virtual_memory().total / 2**30, 1),
        "load_average": list(os.getloadavg()),
        "system": f"{platform.system()} {platform.machine()}",
        "device": str(device),
        "copy_gb_per_second": round(copy_bandwidth(device) / 1e9, 1),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        facts |= {"gpu": properties.name, "gpu_memory_gb": round(properties.total_memory / 2**30, 1)}
    return facts


def versions() -> dict[str, str | None]:
    """The code's version with its commit, and those of Python and the packages that matter; None for one that is not
    installed."""
    return {"code": code_version(), "python": platform.python_version(), **{name: _version(name) for name in PACKAGES}}


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def cpu_model() -> str:
    """The processor's name as the system tells it."""
    known = Path("/proc/cpuinfo")
    lines = known.read_text().splitlines() if known.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def copy_bandwidth(device: torch.device) -> float:
    """Bytes per second, read and written, of copying a large array on the device: the best of five."""
    source = torch.zeros(COPIED // 4, device=device)
    target = torch.ones_like(source)
    best = float("inf")
    for _ in range(5):
        wait_for(device)
        started = time.perf_counter()
        target.copy_(source)
        wait_for(device)
        best = min(best, time.perf_counter() - started)
    return 2 * COPIED / best
