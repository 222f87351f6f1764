"""A promotion or a roll-back killed at any write: the market has one of the two champions, whole and on record."""

from __future__ import annotations

import os
import signal
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from drl_agents.deployment.bundle import Bundle, load_bundle, save_bundle
from drl_agents.deployment.registry import Registry, slot_of
from drl_agents.networks.policy import ActorCritic, PolicySpec
from environments.alpaca_env import VectorizedCryptoEnvAlpaca
from environments.data.source import load_bars
from environments.market import Market

FACTS = {"sharpe": 1.5}
MOST = 40  # writes of one change of champion, and some

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="which file is synced is read off /proc"),
]


@pytest.fixture(scope="module")
def bundles(tmp_path_factory) -> list[Bundle]:
    folder = tmp_path_factory.mktemp("bundles")
    env = VectorizedCryptoEnvAlpaca(Market.from_bars(load_bars("synthetic", options={"n_bars": 80}, seed=1)), 1)
    return [
        load_bundle(
            save_bundle(
                folder / str(seed), ActorCritic(PolicySpec.of(env, hidden=(4,)), seeds=(seed,)), 0, env,
                "VectorizedCryptoEnvAlpaca", {"study": "s", "trial": seed},
            )
        )
        for seed in (1, 2)
    ]  # fmt: skip


def killed_at(call: int, torn: bool, work: Callable[[], None]) -> bool:
    """Run `work` in a child that kills itself before its `call`-th fsync or rename. True if it came so far.

    torn: where that is the fsync of the audit log, half of the line it was to make safe is lost.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking beside threads, which the child never uses
        child = os.fork()
    if child == 0:
        calls = 0
        sync, rename = os.fsync, os.replace

        def count(descriptor: int | None = None) -> None:
            nonlocal calls
            calls += 1
            if calls < call:
                return
            if torn and descriptor is not None and os.readlink(f"/proc/self/fd/{descriptor}").endswith("audit.jsonl"):
                content = Path(os.readlink(f"/proc/self/fd/{descriptor}")).read_bytes()
                last = len(content) - content[:-1].rfind(b"\n") - 1
                os.truncate(descriptor, len(content) - last // 2)
            os.kill(os.getpid(), signal.SIGKILL)

        os.fsync = lambda descriptor: (count(descriptor), sync(descriptor))[1]
        os.replace = lambda *names: (count(), rename(*names))[1]
        try:
            work()
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


def checked(registry: Registry, slot: str, change: str, old: Bundle, new: Bundle) -> Bundle:
    """What must hold once the next process has taken the lock. Returns the champion."""
    with registry.exclusive():
        champion = registry.champion(slot)
        assert champion.id in (old.id, new.id)
        chain = registry.verify()
        assert chain.broken is None, str(chain)
        entries = registry.audit.entries()
        begun = [entry["digest"] for entry in entries if entry["event"] in ("promoting", "rolling back")]
        ended = [entry["intent"] for entry in entries if "intent" in entry]
        assert sorted(begun) == sorted(ended)  # each change ended once, none was never announced
        done = [entry for entry in entries if entry["event"] in ("promoted", "rolled back")]
        assert done[-1]["bundle"] == champion.id
        if change == "roll back":
            assert registry.quarantined(new) == (champion.id == old.id)
    return champion


@pytest.mark.parametrize("torn", [False, True], ids=["whole", "torn"])
@pytest.mark.parametrize("change", ["promote", "roll back"])
def test_a_kill_at_any_write(tmp_path, bundles, change, torn):
    old, new = bundles
    slot = slot_of(old.manifest["market"])
    champions, kills, torn_lines = set(), 0, 0
    for call in range(1, MOST):
        registry = Registry(tmp_path / str(call))
        with registry.exclusive():
            registry.promote(old, FACTS)
            if change == "roll back":
                registry.promote(new, FACTS)

        def work(registry: Registry = registry) -> None:
            with registry.exclusive():
                if change == "promote":
                    registry.promote(new, FACTS)
                else:
                    registry.roll_back(slot, ["a loss"], {})

        killed = killed_at(call, torn, work)
        champion = checked(registry, slot, change, old, new)
        torn_lines += registry.verify().torn
        champions.add(champion.id)
        kills += killed
        if killed:
            with registry.exclusive():  # the next attempt succeeds
                if change == "promote":
                    registry.promote(new, FACTS)
                elif champion.id == new.id:
                    registry.roll_back(slot, ["a loss"], {})
            assert checked(registry, slot, change, old, new).id == (new.id if change == "promote" else old.id)
        else:
            assert champion.id == (new.id if change == "promote" else old.id)
            break
    assert not killed and kills >= 8 and champions == {old.id, new.id}
    assert bool(torn_lines) == torn
