"""Quiet: nothing that can wait happens between a bar and its orders."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def collected_when_told() -> Iterator[Callable[[], object]]:
    """Python's cyclic garbage collector is off inside, and is called when there is time: yields what calls it.

    By itself it runs whenever so many objects were made, now and then over all there are: tens of milliseconds in a
    process that has loaded PyTorch. What exists at the beginning is left out (`gc.freeze`), so a call takes well under
    one (https://docs.python.org/3/library/gc.html).
    """
    enabled = gc.isenabled()
    gc.disable()
    gc.freeze()
    try:
        yield gc.collect
    finally:
        gc.unfreeze()
        if enabled:
            gc.enable()
