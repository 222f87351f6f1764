"""Another device than the host's, where there is none: torch's "meta", whose tensors have a shape and no values.

What runs there would run on a GPU as far as devices go: whatever needs a value is an error, and every operation that
has tensors of both is noted, a copy from one to the other and a number that was made on the wrong one alike.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

THERE = torch.device("meta")


class _Crossings(TorchDispatchMode):
    """Notes operations that have tensors of both devices. One number is no tensor: kernels take it as an argument."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = {x.device.type for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, Tensor) and x.dim()}
        try:
            out = func(*args, **(kwargs or {}))
        finally:
            if len(given) > 1:
                self.found.append(f"{func}: {sorted(given)}")
        made = {x.device.type for x in pytree.tree_leaves(out) if isinstance(x, Tensor)}
        if len(given) == 1 and len(given | made) > 1:
            self.found.append(f"{func}: {sorted(given)} -> {sorted(made)}")
        return out


class Mover:
    """Moves whole objects with all they hold, each once; what shares memory here does not share it there."""

    def __init__(self) -> None:
        self._moved: dict[int, Any] = {}
        self._kept: list[Any] = []  # so that no identity is given twice

    def move(self, thing: Any) -> Any:
        """`thing` there: tensors and devices are replaced, objects, dictionaries and lists are changed in place."""
        if id(thing) not in self._moved:
            self._kept.append(thing)
            self._moved[id(thing)] = self._replaced(thing)
            self._fill(thing)
        return self._moved[id(thing)]

    def _replaced(self, thing: Any) -> Any:
        if isinstance(thing, torch.device):
            return THERE
        if isinstance(thing, Tensor):
            made = torch.empty_strided(thing.shape, thing.stride(), dtype=thing.dtype, device=THERE)
            return nn.Parameter(made, thing.requires_grad) if isinstance(thing, nn.Parameter) else made
        if isinstance(thing, tuple):
            moved = [self.move(value) for value in thing]
            return type(thing)(*moved) if hasattr(thing, "_fields") else tuple(moved)
        return thing

    def _fill(self, thing: Any) -> None:
        if isinstance(thing, dict):
            thing.update({key: self.move(value) for key, value in thing.items()})
        elif isinstance(thing, list):
            thing[:] = [self.move(value) for value in thing]
        elif isinstance(thing, nn.Module) or (
            type(thing).__module__.split(".")[0] in ("drl_agents", "environments") and hasattr(thing, "__dict__")
            and not isinstance(thing, type)
        ):  # fmt: skip
            for name, value in list(vars(thing).items()):
                object.__setattr__(thing, name, self.move(value))


@contextmanager
def watched() -> Iterator[list[str]]:
    """Within, the operations between the devices go into the list. There is no autocast on the device that is none."""
    crossings = _Crossings()
    with (
        mock.patch.object(torch, "autocast", lambda *args, **options: nullcontext()),
        mock.patch.object(torch, "is_autocast_enabled", lambda *args: False),
        crossings,
    ):
        yield crossings.found
