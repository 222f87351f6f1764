"""CUDA graphs: all that one call launches, recorded once and launched again as one.

A rollout of 2,048 environments is hundreds of kernels of a few microseconds, and to launch one from Python takes longer
than it runs. Recorded, the whole horizon is one launch, and so are all epochs and minibatches of an update
(https://docs.pytorch.org/docs/stable/notes/cuda.html, CUDA Graphs).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

logger = logging.getLogger(__name__)

# Runs a function once, or only notes what it would launch: (what launches that again, what the function returned).
Recorder = Callable[[Callable[[], Any]], tuple[Callable[[], None], Any]]


def recorder_for(device: torch.device, compile: str) -> Recorder | None:
    """What records on a CUDA or ROCm device; None for others. compile: as for `Compiler`; "off" is off here too."""
    if device.type != "cuda" or compile == "off":
        return None

    def record(function: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        graph = torch.cuda.CUDAGraph()
        # What other threads do on the device meanwhile, such as asking for its memory, is no part of it and no error.
        with torch.cuda.device(device), torch.cuda.graph(graph, capture_error_mode="thread_local"):
            out = function()
        return graph.replay, out

    return record


@dataclass
class _Recording:
    """given, shapes: of the arguments that are no tensors, and of those that are, what the recording is for.

    tensors: what it reads, written before it is launched. launch: None until it is recorded. out: what it returns,
    overwritten by every launch.
    """

    given: list[Any]
    shapes: list[tuple]
    tensors: list[Tensor] | None = None
    launch: Callable[[], None] | None = None
    out: Any = None

    def holds(self, given: list[Any], shapes: list[tuple]) -> bool:
        same = len(given) == len(self.given) and all(a is b for a, b in zip(given, self.given, strict=True))
        return same and shapes == self.shapes


class Graphs:
    """Calls functions: the first time as they are, then by launching a recording, which is made at the second call.

    What is recorded must be a function of its tensor arguments and of buffers that stay where they are: without a
    branch on a value, with its random numbers handed in, and without anything in Python that changes from one call to
    the next. What it does beyond tensors a launch does not do again, and it should not do it while `recording`: a
    clock's event would become part of the graph.

    An argument that is no tensor is known by its identity. With another one, or with other shapes, a function is called
    as it is once more, in which call whatever is compiled, or made once, is made, and then recorded anew.

    Args:
        record: makes recordings; None: functions are called as they are.

    Attributes:
        recording: a function is being recorded.
    """

    def __init__(self, record: Recorder | None) -> None:
        self._record = record
        self._known: dict[str, _Recording] = {}
        self._refused: set[str] = set()
        self.recording = False

    def __call__(self, function: Callable[..., Any], *args: Any) -> Any:
        """`function(*args)`. What a launch returns is the caller's: copies, which no later one changes."""
        name = function.__qualname__
        if self._record is None or name in self._refused:
            return function(*args)
        leaves, tree = pytree.tree_flatten(args)
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        given = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        shapes = [(x.shape, x.dtype, x.device) for x in tensors]
        known = self._known.get(name)
        if known is None or not known.holds(given, shapes):
            self._known[name] = _Recording(given, shapes)
            return function(*args)
        if known.launch is None and not self._make(known, function, leaves, tree, name):
            return function(*args)
        if tensors:
            torch._foreach_copy_(known.tensors, tensors)
        known.launch()
        return pytree.tree_map_only(Tensor, torch.clone, known.out)

    def _make(self, known: _Recording, function: Callable[..., Any], leaves: list[Any], tree: Any, name: str) -> bool:
        """Record `function`; False where it cannot be, from when on it is called as it is."""
        own = [leaf.clone() if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        known.tensors = [leaf for leaf in own if isinstance(leaf, Tensor)]
        args = pytree.tree_unflatten(own, tree)
        self.recording = True
        try:
            known.launch, known.out = self._record(lambda: function(*args))
        except RuntimeError as error:
            # Nothing has been run, so nothing is lost but the speed. A network of the user's may wait for the device.
            logger.warning("%s runs without a CUDA graph: %s", name, str(error).strip().splitlines()[0])
            self._refused.add(name)
            del self._known[name]
            return False
        finally:
            self.recording = False
        return True
