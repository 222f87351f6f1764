"""The registry: whatever happens, each market has its old champion or its new one, and every decision is on record."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from drl_agents.deployment import registry as registry_module
from drl_agents.deployment.bundle import MANIFEST, WEIGHTS, Bundle, load_bundle, save_bundle
from drl_agents.deployment.pointers import STEPS_BACK
from drl_agents.deployment.registry import Registry, slot_of
from drl_agents.monitoring.deployment import read_deployment
from drl_agents.networks.policy import ActorCritic, PolicySpec
from environments.alpaca_env import VectorizedCryptoEnvAlpaca
from environments.data.source import load_bars
from environments.errors import InputError
from environments.market import Market

FACTS = {"sharpe": 1.5, "unit": "annualised Sharpe ratio", "checks": []}


def bundle_of(folder: Path, seed: int, **options) -> Bundle:
    bars = load_bars("synthetic", options={"n_bars": 80, **options}, seed=1)
    env = VectorizedCryptoEnvAlpaca(Market.from_bars(bars), 1)
    policy = ActorCritic(PolicySpec.of(env, hidden=(4,)), seeds=(seed,))
    lineage = {"study": "s", "trial": seed}
    return load_bundle(save_bundle(folder / f"{seed}", policy, 0, env, "VectorizedCryptoEnvAlpaca", lineage))


@pytest.fixture(scope="module")
def old(tmp_path_factory) -> Bundle:
    return bundle_of(tmp_path_factory.mktemp("old"), 1)


@pytest.fixture(scope="module")
def new(tmp_path_factory) -> Bundle:
    return bundle_of(tmp_path_factory.mktemp("new"), 2)


@pytest.fixture
def registry(tmp_path) -> Registry:
    return Registry(tmp_path / "logs")


def slot(bundle: Bundle) -> str:
    return slot_of(bundle.manifest["market"])


def audit(registry: Registry) -> list[dict]:
    return [json.loads(line) for line in (registry.folder / "audit.jsonl").read_text().splitlines()]


def test_nothing_is_deployed_at_first(registry, old):
    assert registry.champion(slot(old)) is None
    with pytest.raises(InputError, match="no champion yet"):
        registry.newest_slot()


def test_promotion(registry, old, new):
    place = registry.promote(old, FACTS)
    assert registry.champion(slot(old)).id == old.id and place.parent == registry.folder / "bundles"
    registry.promote(new, FACTS)
    assert registry.champion(slot(old)).id == new.id and registry.newest_slot() == slot(old)
    pointer = json.loads(registry.champion_file(slot(old)).read_text())
    assert pointer["bundle"] == new.id and pointer["trial"] == 2 and pointer["sharpe"] == 1.5
    # The old one is kept, whole, and can come back.
    assert load_bundle(place).id == old.id
    registry.promote(old, FACTS)
    assert registry.champion(slot(old)).id == old.id
    lines = audit(registry)
    assert [line["event"] for line in lines] == ["promoting", "promoted"] * 3
    assert [line["bundle"] for line in lines] == [old.id] * 2 + [new.id] * 2 + [old.id] * 2
    assert registry.verify().broken is None and not registry.quarantined(old)


class Crash(BaseException):
    """The end of the process."""


STEPS = (
    (registry_module.shutil, "copytree"),
    (registry_module, "load_bundle"),
    (registry_module.os, "fsync"),
    (registry_module.os, "replace"),
    (registry_module, "sync_folder"),
    (registry_module, "write_json"),
    (registry_module, "now"),
    (registry_module.Registry, "record"),
)


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("call", [1, 2, 3])
@pytest.mark.parametrize(("where", "name"), STEPS, ids=[name for _, name in STEPS])
def test_a_crash_leaves_the_old_champion_or_the_new(registry, old, new, monkeypatch, where, name, call, after):
    registry.promote(old, FACTS)
    whole, calls = getattr(where, name), []

    def crashing(*args, **options):
        calls.append(name)
        if len(calls) != call:
            return whole(*args, **options)
        try:
            if after:
                whole(*args, **options)
        finally:
            raise Crash

    with monkeypatch.context() as patch:
        patch.setattr(where, name, crashing)
        try:
            registry.promote(new, FACTS)
        except Crash:
            crashed = True
        else:
            crashed = False
    assert crashed == (len(calls) >= call)
    champion = registry.champion(slot(old))
    assert champion.id in (old.id, new.id) and (crashed or champion.id == new.id)
    with registry.exclusive():  # whoever comes next ends what was begun
        told = [line["event"] for line in audit(registry) if line["bundle"] == new.id]
        whole = [["promoting", "promoted"]] if champion.id == new.id else [[], ["promoting", "abandoned"]]
        assert told in whole
        registry.promote(new, FACTS)
    assert registry.champion(slot(old)).id == new.id and registry.verify().broken is None


def test_half_a_copy_is_made_good(registry, old):
    """A folder of that name which does not load is written anew, not pointed at."""
    place = registry.promote(old, FACTS)
    (place / WEIGHTS).write_bytes(b"half")
    with pytest.raises(InputError, match=WEIGHTS):
        registry.champion(slot(old))
    assert registry.promote(old, FACTS) == place
    assert registry.champion(slot(old)).id == old.id


def test_a_bundle_damaged_since_it_was_loaded_is_not_promoted(registry, old, tmp_path):
    copy = load_bundle(shutil.copytree(old.folder, tmp_path / "copy"))
    (copy.folder / WEIGHTS).write_bytes(b"other")
    with pytest.raises(InputError, match=WEIGHTS):
        registry.promote(copy, FACTS)
    assert registry.champion(slot(old)) is None


def test_a_folder_that_holds_another_bundle_by_now_is_not_promoted(registry, old, new, tmp_path):
    """Two jobs refit into one folder; the pointer must not name what is not there."""
    registry.promote(old, FACTS)
    copy = load_bundle(shutil.copytree(new.folder, tmp_path / "copy"))
    newer = bundle_of(tmp_path, 5)
    shutil.copytree(newer.folder, copy.folder, dirs_exist_ok=True)
    with pytest.raises(InputError, match=f"holds {newer.id[:12]} now, no longer {new.id[:12]}"):
        registry.promote(copy, FACTS)
    assert registry.champion(slot(old)).id == old.id


def test_the_audit_log_only_grows(registry, old, new):
    log, seen = registry.folder / "audit.jsonl", b""
    for step in range(4):
        if step % 2:
            registry.promote(old if step == 1 else new, FACTS)
        else:
            registry.refuse(new.id, "s", ["Sharpe ratio 0.1 > 0.5: FAILED"], {"sharpe": float("nan")})
        content = log.read_bytes()
        assert content.startswith(seen) and len(content) > len(seen)
        seen = content
    lines = audit(registry)
    assert [line["event"] for line in lines] == ["refused", "promoting", "promoted"] * 2
    assert lines[0]["reasons"] == ["Sharpe ratio 0.1 > 0.5: FAILED"] and lines[0]["sharpe"] is None
    assert lines[2] | FACTS == lines[2] and all(line["time"] for line in lines)


def test_a_line_cut_short_by_a_crash_spoils_no_other(registry, old):
    registry.refuse(old.id, "s", [], {})
    log = registry.folder / "audit.jsonl"
    log.write_bytes(log.read_bytes() + b'{"time": "2026')
    registry.refuse(old.id, "s", ["second"], {})
    lines = log.read_text().splitlines()
    assert len(lines) == 4 and json.loads(lines[3])["reasons"] == ["second"]
    assert json.loads(lines[2])["event"] == "torn" and registry.verify().torn == 1


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "null", '{"bundle": "x"}', '{"path": 3, "bundle": "x"}', '{"path": "bundles/x"}', "\xff"]
)
def test_a_damaged_pointer_is_named(registry, old, content):
    registry.promote(old, FACTS)
    file = registry.champion_file(slot(old))
    file.write_bytes(content.encode("latin-1"))
    with pytest.raises(InputError) as refused:
        registry.champion(slot(old))
    assert str(file) in str(refused.value) and "\n" not in str(refused.value)


def test_a_pointer_to_another_bundle_is_refused(registry, old, new):
    registry.promote(old, FACTS)
    registry.promote(new, FACTS)
    file = registry.champion_file(slot(old))
    pointer = json.loads(file.read_text())
    file.write_text(json.dumps({**pointer, "bundle": old.id}))
    with pytest.raises(InputError, match=f"names {old.id[:12]}, but .* holds {new.id[:12]}"):
        registry.champion(slot(old))
    file.write_text(json.dumps({**pointer, "path": "bundles/gone"}))
    with pytest.raises(InputError, match=f"gone: no bundle there .*{MANIFEST}"):
        registry.champion(slot(old))


def test_a_challenger_that_waits_gives_way_to_a_new_champion(registry, old, new, tmp_path):
    """It was judged beside the champion before; nobody asked whether it is better than this one."""
    newer = bundle_of(tmp_path, 5)
    registry.promote(old, FACTS)
    registry.challenge(new, FACTS)
    assert registry.put_forward(newer, FACTS)[1] is True
    assert registry.champion_id(slot(old)) == newer.id and registry.challenger_id(slot(old)) is None
    last = audit(registry)[-1]
    assert (last["event"], last["bundle"]) == ("withdrawn", new.id) and registry.verify().broken is None


def test_step_by_step_back(registry, old, new, tmp_path):
    """A, B, C; back to B, back to A: each with what it was promoted with, and no further."""
    newer, place = bundle_of(tmp_path, 5), slot(old)
    for sharpe, bundle in enumerate((old, new, newer)):
        registry.promote(bundle, {**FACTS, "sharpe": float(sharpe)})
    for sharpe, bundle, failed in ((1.0, new, newer), (0.0, old, new)):
        assert registry.roll_back(place, ["by hand"], {}).id == bundle.id == registry.champion(place).id
        pointer = json.loads(registry.champion_file(place).read_text())
        assert pointer["sharpe"] == sharpe and pointer["unit"] == FACTS["unit"] and registry.quarantined(failed)
    with pytest.raises(InputError, match=f"no champion before {old.id[:12]} to go back to"):
        registry.roll_back(place, ["by hand"], {})
    problems: list[str] = []
    assert read_deployment(registry.folder, problems).champion.sharpe == 0.0 and problems == []
    assert registry.verify().broken is None


def test_a_pointer_does_not_grow_for_ever(registry, old, new):
    for _ in range(STEPS_BACK):
        registry.promote(old, FACTS)
        registry.promote(new, FACTS)
    pointer, steps = json.loads(registry.champion_file(slot(old)).read_text()), 0
    while pointer := pointer.get("previous"):
        steps += 1
    assert steps == STEPS_BACK


def test_slots_do_not_mix(registry, old, tmp_path):
    """Other symbols, their order, another bar size: other markets."""
    two = bundle_of(tmp_path, 3, n_assets=2)
    daily = bundle_of(tmp_path, 4, timeframe="1d")
    slots = [slot(b) for b in (old, two, daily)]
    assert len(set(slots)) == 3
    for order, bundle in enumerate((old, two, daily)):
        registry.promote(bundle, FACTS)
        os.utime(registry.champion_file(slot(bundle)), (order, order))
    assert [registry.champion(s).id for s in slots] == [old.id, two.id, daily.id]
    assert registry.newest_slot() == slot(daily)
    registry.champion_file(slot(two)).write_text("{")
    assert registry.champion(slot(old)).id == old.id
    market = old.manifest["market"]
    assert slot_of({**market, "symbols": ["A", "B"]}) != slot_of({**market, "symbols": ["B", "A"]})
