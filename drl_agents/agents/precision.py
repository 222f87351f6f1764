"""The precisions of matrix products, and whether a device has them in hardware."""

from __future__ import annotations

import platform

import torch

PRECISIONS = {"off": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def why_slow(device: torch.device, amp: str) -> str | None:
    """What makes products in the precision `amp` of `PRECISIONS` slower than in float32 on `device`; None where nothing
    does. Without instructions of its own a CPU takes some thirty times as long in bfloat16."""
    if device.type != "cpu" or amp == "off":
        return None
    if amp == "fp16":
        return "on a CPU float16 is slower than float32"
    if platform.machine().lower() in ("x86_64", "amd64"):
        known = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    else:
        known = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return None if known else "this CPU has no instructions for bfloat16"
