"""The garbage collector is called between bars, and never runs while orders are waited for."""

from __future__ import annotations

import gc
import weakref

import pytest

from drl_agents.deployment.quiet import collected_when_told


class Cycle:
    """Garbage that only the collector finds."""

    def __init__(self) -> None:
        self.own = self


def test_garbage_waits_until_it_is_told():
    with collected_when_told() as collect:
        garbage = weakref.ref(Cycle())
        kept = [[] for _ in range(200_000)]  # many times what sets the collector off
        assert garbage() is not None and len(kept) == 200_000
        collect()
        assert garbage() is None
    assert gc.isenabled() and gc.get_freeze_count() == 0


def test_it_is_left_as_it_was():
    gc.disable()
    try:
        with pytest.raises(RuntimeError, match="bar"), collected_when_told():
            raise RuntimeError("bar")
        assert not gc.isenabled()
    finally:
        gc.enable()
