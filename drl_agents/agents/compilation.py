"""Compilation of what runs most: the steps of a rollout, the values of it, the minibatch.

What is compiled is the same function that runs uncompiled: results agree to float32 rounding. It takes a C++ compiler
on the CPU and Triton on a GPU; torch keeps part of what it compiled on disk for the next process.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from environments.errors import InputError

logger = logging.getLogger(__name__)

MODES = ("auto", "on", "off")
# Steps (all members together) from which compiling, half a minute to two, has paid for itself.
WORTH_STEPS = 4_000_000
# Shapes of one function that are kept compiled side by side, by all agents of the process; with one more all go.
MAX_VARIANTS = 64


def why_not() -> str | None:
    """What keeps torch.compile from working here; None where it works.

    A minibatch step is compiled with its gradient in one graph, which torch has offered since 2.12.
    """
    if not hasattr(torch._dynamo.config, "trace_autograd_ops"):
        return f"torch {torch.__version__} cannot compile a gradient step, 2.12 can"
    if not torch.cuda.is_available() and not any(shutil.which(name) for name in ("c++", "g++", "clang++")):
        return "no C++ compiler (c++, g++ or clang++) was found"
    return None


def _guards(entries: Sequence[Any]) -> list[bool]:
    """Which guards are checked at every call: tensors, numbers, types and functions that objects hold (an environment's
    reward is one); not what only changes when code is replaced.

    Checking all of them costs as much as a step of a dozen environments.
    """
    skipped = ("NOT_PRESENT_IN_GENERIC_DICT", "EMPTY_NN_MODULE_HOOKS_DICT", "DICT_NOT_CONTAINS")
    return [not entry.is_global and entry.guard_type not in skipped for entry in entries]


class Compiler:
    """Compiles functions, or leaves them alone.

    Args:
        mode: "on" compiles, "off" does not, "auto" compiles once `plan` was told of enough steps.

    Attributes:
        seconds: spent compiling so far.

    Raises:
        InputError: an unknown mode; "on" where nothing can be compiled.
    """

    def __init__(self, mode: str) -> None:
        if mode not in MODES:
            raise InputError(f"compile={mode!r}: accepted are {', '.join(MODES)}")
        self.mode, self.seconds = mode, 0.0
        self.active = mode == "on"
        if self.active and (reason := why_not()):
            raise InputError(f"compile='on' cannot be had: {reason}")
        self._known: dict[str, Callable[..., Any]] = {}

    def refuse(self, reason: str) -> None:
        """What it would be given cannot be compiled: "auto" leaves it alone.

        Raises:
            InputError: with "on"; names the reason.
        """
        if self.mode == "on":
            raise InputError(f"compile='on' cannot be had: {reason}")
        self.mode = "off"

    def plan(self, steps: int) -> None:
        """Say how many environment steps are to come. A rule of counts: the clock must not decide what is computed."""
        if self.mode == "auto" and steps >= WORTH_STEPS and not self.active:
            reason = why_not()
            if reason:
                logger.warning("running uncompiled: %s", reason)
            self.active = reason is None

    def __call__(self, function: Callable[..., Any], serial: bool = False) -> Callable[..., Any]:
        """`function` compiled, or as it is. serial: its own loops run in one thread, where they are so short that to
        wake a second one takes longer; what a library multiplies is the library's to divide."""
        if not self.active:
            return function
        name = function.__qualname__ + (", serial" if serial else "")
        if name not in self._known:
            self._known[name] = self._compiled(function, name, serial)
        return self._known[name]

    def _compiled(self, function: Callable[..., Any], name: str, serial: bool) -> Callable[..., Any]:
        torch._dynamo.config.trace_autograd_ops = True
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, MAX_VARIANTS)
        # What the size assertions would look at once more, the guards have looked at.
        options = {"guard_filter_fn": _guards, "size_asserts": False} | ({"cpp.threads": 1} if serial else {})
        compiled = torch.compile(function, fullgraph=True, dynamic=False, options=options)

        def run(*args: Any) -> Any:
            try:
                return compiled(*args)
            except torch._dynamo.exc.FailOnRecompileLimitHit:
                # Told before anything of the function was run. A long study comes to more shapes than are kept.
                logger.info("%d variants of %s are compiled: beginning anew", MAX_VARIANTS, name)
                torch._dynamo.reset()
                return compiled(*args)

        def first(*args: Any) -> Any:
            if self._known[name] is run:
                return run(*args)
            started = time.perf_counter()
            out = run(*args)
            spent = time.perf_counter() - started
            self.seconds += spent
            logger.info("compiled %s in %.0f s", name, spent)
            self._known[name] = run
            return out

        return first
