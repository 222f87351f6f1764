"""How much of the time a GPU computes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

import torch


def covered(intervals: Iterable[tuple[float, float]]) -> float:
    """Length of the union of (start, end) intervals: overlaps, as of kernels on two streams, count once."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(intervals):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def busy_share(call: Callable[[], None], device: torch.device) -> float:
    """Share of one call's wall time in which a kernel, copy or fill ran on a CUDA device.

    Read off torch's profiler, which slows the launching thread down: where launches are what the GPU waits for, the
    share is lower than without it.
    """
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        torch.cuda.synchronize(device)
        started = time.perf_counter()
        call()
        torch.cuda.synchronize(device)
        seconds = time.perf_counter() - started
    spans = [
        (event.time_range.start, event.time_range.end)
        for event in profile.events()
        # An annotation spans the kernels launched under it and the gaps between them.
        if event.device_type == torch.autograd.DeviceType.CUDA and not event.is_user_annotation
    ]
    return covered(spans) * 1e-6 / seconds
