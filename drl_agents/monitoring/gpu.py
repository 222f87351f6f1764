"""How busy this machine is: GPUs through torch.cuda, processor and memory through psutil.

Watching must not slow down what is watched. `torch.cuda.mem_get_info` would create a CUDA context and take
hundreds of MiB of the trainer's card, so memory and utilisation are asked through `device_memory_used` and
`utilization`, which query the driver's management library (https://docs.pytorch.org/docs/stable/cuda.html).
That needs the nvidia-ml-py package (amdsmi on ROCm); without it the reason is reported instead of a number.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import psutil

CPU_SAMPLE_SECONDS = 0.1  # psutil compares two readings of the processor's clocks; the first alone says 0 %


@dataclass
class GpuSnapshot:
    """One GPU: `utilization` in percent of the last sample period, memory in bytes, None where unknown."""

    index: int
    name: str
    utilization: float | None = None
    memory_used: int | None = None
    memory_total: int | None = None


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
        # The management libraries raise their own classes (NVMLError, AmdSmiException), which derive only
        # from Exception and cannot be named without importing packages that may be absent.
        try:
            properties = torch.cuda.get_device_properties(index)
            gpu.name, gpu.memory_total = properties.name, int(properties.total_memory)
            gpu.memory_used = int(torch.cuda.device_memory_used(index))
            gpu.utilization = float(torch.cuda.utilization(index))
        except Exception as error:
            reasons.append(f"GPU {index}: {first_line(error)}")
    return gpus, reasons


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its class where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
