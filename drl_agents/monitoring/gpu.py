"""How busy this machine is: processor and memory through psutil, NVIDIA GPUs through nvidia-smi, others through torch.

Watching must not slow down what is watched. `torch.cuda.mem_get_info` would create a CUDA context and take
hundreds of MiB of the trainer's card. nvidia-smi comes with the driver and makes none
(https://docs.nvidia.com/deploy/nvidia-smi/). Where it is not, torch asks the driver's management library through
`device_memory_used`, `utilization`, `temperature` and `power_draw`
(https://docs.pytorch.org/docs/stable/cuda.html), which needs the amdsmi package on ROCm, nvidia-ml-py on CUDA; without
it the reason is reported instead of a number.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field

import psutil

CPU_SAMPLE_SECONDS = 0.1  # psutil compares two readings of the processor's clocks; the first alone says 0 %
SMI_SECONDS = 5.0  # a driver in trouble may never answer
SMI_FIELDS = "index,name,utilization.gpu,memory.used,memory.total,temperature.gpu,power.draw,power.limit"


@dataclass
class GpuSnapshot:
    """One GPU: `utilization` in percent of the last sample period, memory in bytes, `temperature` in degrees Celsius,
    `power` and `power_limit` in watts; None where unknown."""

    index: int
    name: str
    utilization: float | None = None
    memory_used: int | None = None
    memory_total: int | None = None
    temperature: float | None = None
    power: float | None = None
    power_limit: float | None = None


@dataclass
class DeviceSnapshot:
    """The machine: `cpu_percent` over all cores (0-100), memory in bytes, and why anything is missing."""

    cpu_percent: float | None = None
    cpu_count: int | None = None
    memory_used: int | None = None
    memory_total: int | None = None
    gpus: list[GpuSnapshot] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)


def take_device_snapshot() -> DeviceSnapshot:
    """Read processor, memory and every visible GPU. Never raises: what cannot be read is in `reasons`.

    Blocks for `CPU_SAMPLE_SECONDS` to measure the processor.
    """
    device = DeviceSnapshot(cpu_count=psutil.cpu_count())
    try:
        device.cpu_percent = psutil.cpu_percent(interval=CPU_SAMPLE_SECONDS)
        memory = psutil.virtual_memory()
        device.memory_used, device.memory_total = memory.total - memory.available, memory.total
    except (psutil.Error, OSError, RuntimeError) as error:
        device.reasons.append(f"processor and memory: {first_line(error)}")
    device.gpus, reasons = read_gpus()
    device.reasons += reasons
    return device


def read_gpus() -> tuple[list[GpuSnapshot], list[str]]:
    """The machine's GPUs, and a reason for each thing that could not be told."""
    tool = shutil.which("nvidia-smi")
    return ask_driver(tool) if tool else ask_torch()


def ask_driver(tool: str) -> tuple[list[GpuSnapshot], list[str]]:
    """Every NVIDIA GPU of the machine, those of other processes too, from nvidia-smi at `tool`."""
    command = [tool, f"--query-gpu={SMI_FIELDS}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SMI_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        return [], [f"nvidia-smi: {first_line(error)}"]
    if done.returncode:
        said = (done.stdout + done.stderr).strip() or f"exit status {done.returncode}"
        return [], [f"nvidia-smi: {said.splitlines()[0]}"]
    gpus = []
    for line in done.stdout.splitlines():
        cells = [cell.strip() for cell in line.split(",")]
        if len(cells) != len(SMI_FIELDS.split(",")) or not cells[0].isdigit():
            return gpus, [f"nvidia-smi: said {line[:60]!r}"]
        busy, used, total, heat, power, limit = (_figure(cell) for cell in cells[2:])
        memory = [None if mib is None else int(mib * 2**20) for mib in (used, total)]
        gpus.append(GpuSnapshot(int(cells[0]), cells[1], busy, *memory, heat, power, limit))
    return gpus, []


def _figure(cell: str) -> float | None:
    """A number of nvidia-smi's; None for "[N/A]" and its kin."""
    try:
        return float(cell)
    except ValueError:
        return None


def ask_torch() -> tuple[list[GpuSnapshot], list[str]]:
    """The GPUs torch sees, and a reason for each thing it could not tell."""
    try:
        import torch  # heavy, and the processor's numbers do not need it
    except (ImportError, OSError) as error:  # OSError: a shared library of a GPU build is missing
        return [], [f"torch does not import: {first_line(error)}"]
    if torch.version.cuda is None and torch.version.hip is None:
        return [], ["torch is a CPU build"]
    if not torch.cuda.is_available():
        return [], ["torch sees no CUDA or ROCm device"]
    gpus: list[GpuSnapshot] = []
    reasons: list[str] = []
    for index in range(torch.cuda.device_count()):
        gpu = GpuSnapshot(index, name=f"GPU {index}")
        gpus.append(gpu)
        questions: dict[str, Callable[[int], float]] = {
            "memory_used": torch.cuda.device_memory_used,
            "utilization": torch.cuda.utilization,
            "temperature": torch.cuda.temperature,
            "power": lambda i: torch.cuda.power_draw(i) / 1000,  # milliwatts
        }
        # The management libraries raise their own classes (NVMLError, AmdSmiException), which derive only
        # from Exception and cannot be named without importing packages that may be absent.
        try:
            properties = torch.cuda.get_device_properties(index)
            gpu.name, gpu.memory_total = properties.name, int(properties.total_memory)
            for name, ask in questions.items():
                setattr(gpu, name, ask(index))
        except Exception as error:
            reasons.append(f"GPU {index}: {first_line(error)}")
    return gpus, reasons


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its class where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
