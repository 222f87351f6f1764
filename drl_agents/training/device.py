"""Which device, and the switches each kind has: all of them set here and nowhere else."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from environments.errors import InputError


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
