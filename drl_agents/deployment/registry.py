"""The registry: bundles, the champion of each market, and an audit log that is only ever appended to.

    <logs>/deployment/bundles/<id>/            every bundle that was deployed
    <logs>/deployment/champions/<slot>.json    which one trades a market; swapped atomically
    <logs>/deployment/audit.jsonl              promotions and refusals, with their reasons

A slot is a market: asset class, bar size, symbols in their order. Champions of different markets do not compete.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from drl_agents.deployment.bundle import Bundle, load_bundle
from drl_agents.training.record import now, plain
from environments.errors import InputError
from environments.files import sync_folder, write_json


def slot_of(market: Mapping[str, Any]) -> str:
    """The slot of a market, from a bundle's `market` facts: "crypto-5m-8-1f0c2a9b"."""
    symbols = market["symbols"]
    digest = hashlib.sha256(",".join(symbols).encode()).hexdigest()[:8]
    return f"{market['asset_class']}-{market['timeframe']}-{len(symbols)}-{digest}"


class Registry:
    """The deployment folder under `logs`."""

    def __init__(self, logs: str | Path) -> None:
        self.folder = Path(logs) / "deployment"

    def champion_file(self, slot: str) -> Path:
        return self.folder / "champions" / f"{slot}.json"

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """One promoter at a time; the lock goes with the process that holds it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "promotion.guard").open("w") as guard:
            fcntl.flock(guard, fcntl.LOCK_EX)
            yield

    def champion(self, slot: str) -> Bundle | None:
        """The bundle deployed in `slot`, verified; None where none ever was.

        Raises:
            InputError: the pointer or the bundle it names is damaged.
        """
        file = self.champion_file(slot)
        if not file.exists():
            return None
        try:
            pointer = json.loads(file.read_text(encoding="utf-8"))
            path = self.folder / pointer["path"]
            identity = pointer["bundle"]
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{file}: damaged ({error})") from error
        bundle = load_bundle(path)
        if bundle.id != identity:
            raise InputError(f"{file}: names {identity[:12]}, but {path} holds {bundle.id[:12]}")
        return bundle

    def newest_slot(self) -> str:
        """The slot promoted last.

        Raises:
            InputError: nothing was ever deployed.
        """
        files = sorted((self.folder / "champions").glob("*.json"), key=lambda f: f.stat().st_mtime)
        if not files:
            raise InputError(
                f"{self.folder}: no champion yet; scripts/optimize.py or scripts/auto_replace_best.py makes one"
            )
        return files[-1].stem

    def promote(self, bundle: Bundle, facts: Mapping[str, Any]) -> Path:
        """Copy the bundle in, point its market's champion at it, and record it. Returns the bundle's place."""
        place = self.folder / "bundles" / bundle.id[:16]
        if not _intact(place):
            half = place.with_name(f".{place.name}.{os.getpid()}")
            shutil.rmtree(half, ignore_errors=True)
            shutil.copytree(bundle.folder, half)
            load_bundle(half)  # what was copied is what will be loaded: verify it before anything points at it
            for name in half.iterdir():
                with name.open("rb") as file:
                    os.fsync(file.fileno())
            sync_folder(half)
            shutil.rmtree(place, ignore_errors=True)
            os.replace(half, place)
            sync_folder(place.parent)
        relative = str(place.relative_to(self.folder))
        lineage = bundle.manifest["lineage"]
        pointer = {"bundle": bundle.id, "path": relative, "promoted": now(), **facts}
        pointer |= {"study": lineage.get("study"), "trial": lineage.get("trial")}
        write_json(self.champion_file(slot_of(bundle.manifest["market"])), plain(pointer))
        self.record("promoted", bundle.id, lineage.get("study"), [], facts)
        return place

    def refuse(self, bundle_id: str | None, study: str | None, reasons: list[str], facts: Mapping[str, Any]) -> None:
        """Record why a candidate was not promoted."""
        self.record("refused", bundle_id, study, reasons, facts)

    def record(
        self, event: str, bundle: str | None, study: str | None, reasons: list[str], facts: Mapping[str, Any]
    ) -> None:
        """Append one line to the audit log and wait until it is on disk."""
        self.folder.mkdir(parents=True, exist_ok=True)
        line = {"time": now(), "event": event, "bundle": bundle, "study": study, "reasons": reasons, **facts}
        path = self.folder / "audit.jsonl"
        # A line that a crash cut short stays as it is, and alone.
        torn = path.exists() and not path.read_bytes().endswith(b"\n") and path.stat().st_size > 0
        with path.open("a", encoding="utf-8") as log:
            log.write("\n" * torn + json.dumps(plain(line), allow_nan=False) + "\n")
            log.flush()
            os.fsync(log.fileno())


def _intact(folder: Path) -> bool:
    """Is there a bundle that loads?"""
    try:
        load_bundle(folder)
    except InputError:
        return False
    return True
