"""Which device, the switches each kind has (all of them set here and nowhere else), and its memory."""

from __future__ import annotations

import os
import resource
import sys
from dataclasses import dataclass

import psutil
import torch

from environments.errors import InputError

GIB = 2**30
HIGH, LOW = 0.9, 0.45  # shares of the memory


@dataclass(frozen=True)
class MemoryStats:
    """Peaks since the process began, or since the planner reset them, in bytes.

    reserved: what is held, of a GPU by torch's allocator (torch.cuda.max_memory_reserved), of the CPU the resident set.
    allocated: what tensors took of it; None on the CPU.
    """

    reserved: int
    allocated: int | None


@dataclass(frozen=True)
class Tuning:
    """What was chosen and set, for the log and the run's record."""

    device: str
    name: str
    settings: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.name} ({self.device}): {', '.join(self.settings)}"


def available_devices() -> list[str]:
    """The devices this torch build can use, best first."""
    found = [f"cuda:{i}" for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    if torch.backends.mps.is_available():
        found.append("mps")
    return [*found, "cpu"]


def pick_device(wish: str = "auto") -> torch.device:
    """The device for `wish`: "auto" (the first available), "cpu", "mps", "cuda", "cuda:1", or a GPU's number.

    ROCm builds of torch call their devices cuda too.

    Raises:
        InputError: it is not there; the message lists what is.
    """
    found = available_devices()
    name = f"cuda:{wish}" if wish.isdigit() else "cuda:0" if wish in ("cuda", "rocm") else wish
    if name == "auto":
        name = found[0]
    if name not in found:
        raise InputError(f"device {wish!r}: available are {', '.join(found)}")
    return torch.device(name)


def tune(device: torch.device, threads: int | None = None) -> Tuning:
    """Set the switches for `device`; call once, before the first allocation on it.

    Args:
        threads: CPU threads of one operation; None leaves torch's choice.
    """
    settings: list[str] = []
    if device.type == "cpu":
        if threads is not None:
            torch.set_num_threads(threads)
        # Denormals cost a hundred times a normal operation and mean zero to us.
        flushed = torch.set_flush_denormal(True)
        settings += [f"{torch.get_num_threads()} threads", f"denormals {'flushed' if flushed else 'kept'}"]
        return Tuning(str(device), "CPU", tuple(settings))
    if device.type == "mps":
        settings += ["money in float32 (the device has no float64)"]
        return Tuning(str(device), "Apple GPU", tuple(settings))
    rocm = torch.version.hip is not None
    # Segments that grow instead of fragmenting; read when the allocator starts.
    variable = "PYTORCH_HIP_ALLOC_CONF" if rocm else "PYTORCH_CUDA_ALLOC_CONF"
    os.environ.setdefault(variable, "expandable_segments:True")
    torch.set_float32_matmul_precision("high")  # TF32 where the hardware has it
    torch.backends.cudnn.benchmark = True  # MIOpen's search too, on ROCm
    settings += [f"{variable}={os.environ[variable]}", "TF32 matmul", f"{'MIOpen' if rocm else 'cuDNN'} search on"]
    return Tuning(str(device), torch.cuda.get_device_name(device), tuple(settings))


def memory_stats(device: torch.device) -> MemoryStats:
    """The memory peaks of this process on `device`; asking does not wait for it."""
    if device.type == "cuda":
        return MemoryStats(torch.cuda.max_memory_reserved(device), torch.cuda.max_memory_allocated(device))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return MemoryStats(peak if sys.platform == "darwin" else peak * 1024, None)


def memory_size(device: torch.device) -> tuple[int, int]:
    """(bytes that count as the whole, bytes this process can still have or has already).

    Of a GPU: its memory, and what is free of it with what torch holds. Of anything else: both are the RAM that is
    available now.
    """
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return total, free + torch.cuda.memory_reserved(device)
    available = psutil.virtual_memory().available
    return available, available


@dataclass(frozen=True)
class MemoryOptions:
    """Let the sizes that were not given be planned: as large as fits a memory budget."""

    high_vram: bool = False
    """plan for 90% of the GPU's memory (without a GPU, of the RAM that is available)"""
    low_vram: bool = False
    """plan for 45% of it"""
    max_vram: str | None = None
    """plan for so many GiB; with commas, one number per GPU: 45,20"""

    @property
    def given(self) -> bool:
        return self.high_vram or self.low_vram or self.max_vram is not None

    def budget(self, device: torch.device) -> tuple[float, str]:
        """(bytes, where they come from): the least of what the options name and what is free.

        Raises:
            InputError: options that contradict each other, a number that cannot be read or is missing for the device.
        """
        if self.high_vram and self.low_vram:
            raise InputError("--high-vram and --low-vram: give one of them")
        whole, reachable = memory_size(device)
        what = "GPU memory" if device.type == "cuda" else "available RAM"
        found = [(float(reachable), f"all that is free of {size_text(whole)} {what}")]
        if self.high_vram or self.low_vram:
            share, flag = (HIGH, "--high-vram") if self.high_vram else (LOW, "--low-vram")
            found.append((share * whole, f"{share:.0%} of {size_text(whole)} {what}, {flag}"))
        if self.max_vram is not None:
            found.append((self._gib(device) * GIB, f"--max-vram {self.max_vram}"))
        return min(found)

    def _gib(self, device: torch.device) -> float:
        try:
            limits = [float(part) for part in self.max_vram.split(",")]
        except ValueError:
            limits = []
        if not limits or not all(0 < limit < float("inf") for limit in limits):
            raise InputError(f"--max-vram {self.max_vram}: GiB are accepted, such as 45, or 45,20 for two GPUs")
        index = device.index or 0
        if len(limits) > 1 and index >= len(limits):
            raise InputError(f"--max-vram {self.max_vram}: {len(limits)} numbers, but the run is on GPU {index}")
        return limits[0] if len(limits) == 1 else limits[index]


def size_text(size: float) -> str:
    """A number of bytes in GiB, small ones in MiB."""
    return f"{size / GIB:.3g} GiB" if size >= 0.01 * GIB else f"{size / 2**20:.3g} MiB"
