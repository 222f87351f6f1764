"""What a CUDA graph is, on the CPU: a list of operations on tensors that stay where they are, gone through again.

Python is not run again: what it decided, and every number it held, is as it was when it was recorded. An operation that
would make the host wait for a device, or bring a value to it, is an error, as it is in a CUDA graph.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

# How many numbers these return, or what Python does next, depends on values; `lift_fresh` is of `torch.tensor(...)`.
WAITING = (
    "aten._local_scalar_dense", "aten.item", "aten.is_nonzero", "aten.equal", "aten.nonzero", "aten.masked_select",
    "aten._unique2", "aten.unique_dim", "aten.unique_consecutive", "aten.bincount", "aten.lift_fresh",
    "aten.repeat_interleave.Tensor",
)  # fmt: skip


class Tape(TorchDispatchMode):
    """Notes every operation; `check` only looks for those that would wait."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple, dict, Any]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if str(func).startswith(WAITING) and str(func) != "aten.repeat_interleave.self_int":
            raise RuntimeError(f"{func} would wait for the device")
        if str(func) == "aten.index.Tensor" and any(x is not None and x.dtype == torch.bool for x in args[1]):
            raise RuntimeError(f"{func} by a mask would wait for the device")
        out = func(*args, **kwargs)
        self.calls.append((func, args, kwargs, out))
        return out

    def play(self) -> None:
        """All operations again; results go where they went."""
        for func, args, kwargs, out in self.calls:
            if func._schema.is_mutable:
                func(*args, **kwargs)
            elif not func.is_view:
                made = pytree.tree_leaves(func(*args, **kwargs))
                for old, new in zip(pytree.tree_leaves(out), made, strict=True):
                    # A view that no schema tells of, such as a reshape, is where its source was put already.
                    if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():
                        old.copy_(new)


def tape_recorder(function: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
    """As `graphs.cuda_recorder`. Here a function is run as it is recorded: the first launch has been made."""
    tape = Tape()
    with tape:
        out = function()
    launches = 0

    def launch() -> None:
        nonlocal launches
        if launches:
            with torch.no_grad():
                tape.play()
        launches += 1

    return launch, out
