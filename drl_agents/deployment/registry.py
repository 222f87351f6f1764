"""The registry: bundles, the champion of each market, its challenger, and an audit log that is only ever appended to.

    <logs>/deployment/bundles/<id>/            every bundle that was deployed or challenged
    <logs>/deployment/champions/<slot>.json    which one trades a market; swapped atomically
    <logs>/deployment/challengers/<slot>.json  which one is to be tried in its shadow
    <logs>/deployment/quarantine/<id>.json     one that was rolled back: never promoted again
    <logs>/deployment/traders/<slot>.json      the trader that followed the champion last; see `last_trader`
    <logs>/deployment/holdout_looks.jsonl      which models were judged on which held-out bars
    <logs>/deployment/audit.jsonl              what was decided, with the reasons; see `audit`

A slot is a market: asset class, bar size, symbols in their order. Champions of different markets do not compete.

A change of champion is three writes: a line that says what is intended, the pointer, a line that says it is done. Where
a crash left only the first, or the first two, the next one to come finds out by the pointer which it was and writes
what is missing: no champion without its lines.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from drl_agents.deployment.audit import AuditLog, Chain
from drl_agents.deployment.bundle import Bundle, load_bundle
from drl_agents.deployment.last_trader import left_in_disorder, note_trader
from drl_agents.deployment.pointers import previous_of, read_pointer
from drl_agents.training.record import now, plain
from drl_agents.training.runlock import RunLock
from environments.errors import InputError
from environments.files import sync_folder, write_json

logger = logging.getLogger(__name__)

# What is intended, and how it ends.
PROMOTION = ("promoting", "promoted")
ROLLBACK = ("rolling back", "rolled back")
ENDS = {PROMOTION[0]: PROMOTION[1], ROLLBACK[0]: ROLLBACK[1]}
ABANDONED = "abandoned"


def slot_of(market: Mapping[str, Any]) -> str:
    """The slot of a market, from a bundle's `market` facts: "crypto-5m-8-1f0c2a9b"."""
    symbols = market["symbols"]
    digest = hashlib.sha256(",".join(symbols).encode()).hexdigest()[:8]
    return f"{market['asset_class']}-{market['timeframe']}-{len(symbols)}-{digest}"


def study_of(bundle: Bundle) -> str | None:
    """The study a bundle comes from, as its lineage says."""
    return bundle.manifest["lineage"].get("study")


class Registry:
    """The deployment folder under `logs`."""

    def __init__(self, logs: str | Path) -> None:
        self.folder = Path(logs) / "deployment"
        self.audit = AuditLog(self.folder / "audit.jsonl")
        self.looks = self.folder / "holdout_looks.jsonl"

    def champion_file(self, slot: str) -> Path:
        return self.folder / "champions" / f"{slot}.json"

    def challenger_file(self, slot: str) -> Path:
        return self.folder / "challengers" / f"{slot}.json"

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """One promoter at a time; the lock goes with its process. What a crash left half done is ended first."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "promotion.guard").open("w") as guard:
            fcntl.flock(guard, fcntl.LOCK_EX)
            self.recover()
            yield

    # ----------------------------------------------------------------------------------------- who trades

    def champion(self, slot: str) -> Bundle | None:
        """The bundle deployed in `slot`, verified; None where none ever was.

        Raises:
            InputError: the pointer or the bundle it names is damaged.
        """
        return self._pointed_at(self.champion_file(slot))

    def champion_id(self, slot: str) -> str | None:
        """The id in the champion's pointer, without a look at the bundle. Raises as `champion` does."""
        return self._pointer_id(self.champion_file(slot))

    def challenger(self, slot: str) -> Bundle | None:
        """The bundle that waits to be tried in `slot`, verified; None where none does. Raises as `champion` does."""
        return self._pointed_at(self.challenger_file(slot))

    def challenger_id(self, slot: str) -> str | None:
        """The id in the challenger's pointer. Raises as `champion` does."""
        return self._pointer_id(self.challenger_file(slot))

    def _pointer_id(self, file: Path) -> str | None:
        return read_pointer(file)["bundle"] if file.exists() else None

    def _pointed_at(self, file: Path) -> Bundle | None:
        if not file.exists():
            return None
        pointer = read_pointer(file)
        path, identity = self.folder / pointer["path"], pointer["bundle"]
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

    def attendance(self, slot: str) -> RunLock:
        """Held by the trader that tries challengers in `slot`, as long as it runs."""
        return RunLock(self.folder / "attendance" / f"{slot}.json")

    def attended(self, slot: str) -> bool:
        """Does a trader run that tries challengers in `slot`? One of another host counts, as nobody can tell here."""
        try:
            return self.attendance(slot).holder() is not None
        except InputError as error:
            logger.warning("%s", error)
            return True

    def trader_file(self, slot: str) -> Path:
        return self.folder / "traders" / f"{slot}.json"

    def note_trader(self, slot: str, folder: str | Path) -> None:
        """Note that the trader whose files are in `folder` follows the champion of `slot`."""
        note_trader(self.trader_file(slot), folder)

    # ------------------------------------------------------------------------------------------- changes

    def promote(self, bundle: Bundle, facts: Mapping[str, Any]) -> Path:
        """Copy the bundle in, point its market's champion at it, and record it. Returns the bundle's place.

        To be called under `exclusive()` where others may promote too.

        Raises:
            InputError: the bundle is damaged, or in quarantine.
        """
        self._check_quarantine(bundle)
        place = self._keep(bundle)
        file = self.champion_file(slot_of(bundle.manifest["market"]))
        lineage = bundle.manifest["lineage"]
        pointer = {**self._names(bundle, place), "promoted": now(), **facts}
        pointer |= {"study": lineage.get("study"), "trial": lineage.get("trial"), "previous": previous_of(file, bundle)}
        self._swap(PROMOTION, file, pointer, lineage.get("study"), [], facts)
        return place

    def put_forward(
        self, bundle: Bundle, facts: Mapping[str, Any], terms: Mapping[str, Any] | None = None
    ) -> tuple[Path, bool]:
        """Make a bundle that passed the gate champion, or, where a champion is being traded or was left in no good
        order (see `last_trader`), its challenger: the trader tries it when it runs again and its books agree. A
        challenger that waits gives way to either.

        terms: of the challenge, see `succession.Terms`; None for the defaults. Raises as `promote` does.

        Returns:
            the bundle's place, and whether it is the champion now.
        """
        slot = slot_of(bundle.manifest["market"])
        attended = self.attended(slot)
        disorder = "" if attended else left_in_disorder(self.trader_file(slot))
        if self.champion_file(slot).exists() and (attended or disorder):
            own = {} if terms is None else {"terms": dict(terms)}
            if disorder:
                logger.warning("bundle %s waits: %s", bundle.id[:12], disorder)
                own["waits"] = disorder
            return self.challenge(bundle, {**facts, **own}), False
        place = self.promote(bundle, facts)
        self._give_way(slot, bundle)
        return place, True

    def _give_way(self, slot: str, champion: Bundle) -> None:
        """Take away a challenger that nobody tried: it was judged beside the champion before, not beside this one."""
        if not self.challenger_file(slot).exists():
            return
        try:
            waiting = self.challenger_id(slot)
        except InputError as error:
            logger.warning("%s", error)
            waiting = None
        if waiting != champion.id:
            reasons = [f"{champion.id[:12]} became champion, beside which it was not judged"]
            self.record("withdrawn", waiting, None, reasons, {"slot": slot})
        self.withdraw(slot)

    def challenge(self, bundle: Bundle, facts: Mapping[str, Any]) -> Path:
        """Copy the bundle in and have it tried in the champion's shadow; one that waited already gives way.

        Raises:
            InputError: the bundle is damaged, or in quarantine.
        """
        self._check_quarantine(bundle)
        place = self._keep(bundle)
        pointer = {**self._names(bundle, place), "since": now(), **facts}
        write_json(self.challenger_file(slot_of(bundle.manifest["market"])), plain(pointer))
        self.record("challenger", bundle.id, bundle.manifest["lineage"].get("study"), [], facts)
        return place

    def withdraw(self, slot: str) -> None:
        """Take the challenger of `slot` away; the audit says elsewhere why."""
        self.challenger_file(slot).unlink(missing_ok=True)

    def roll_back(self, slot: str, reasons: Sequence[str], facts: Mapping[str, Any]) -> Bundle:
        """Put the champion before back, and the champion of `slot` into quarantine. Returns the former.

        To be called under `exclusive()` where others may promote too.

        Raises:
            InputError: there is no champion, none before it, or that one is damaged or in quarantine itself: then
                nothing is changed.
        """
        file = self.champion_file(slot)
        if not file.exists():
            raise InputError(f"slot {slot!r} has no champion to roll back")
        now_there = read_pointer(file)
        before = now_there.get("previous")
        if not before:
            raise InputError(f"slot {slot!r}: no champion before {now_there['bundle'][:12]} to go back to")
        restored = load_bundle(self.folder / before["path"])
        self._check_quarantine(restored)
        if restored.id != before["bundle"]:
            raise InputError(f"{self.folder / before['path']}: holds {restored.id[:12]}, not {before['bundle'][:12]}")
        lineage = restored.manifest["lineage"]
        pointer = {**before, "promoted": now(), "study": lineage.get("study"), "trial": lineage.get("trial")}
        own = {**facts, "quarantined": now_there["bundle"]}
        self._swap(ROLLBACK, file, pointer, lineage.get("study"), reasons, own)
        return restored

    def quarantine_file(self, bundle_id: str) -> Path:
        return self.folder / "quarantine" / f"{bundle_id[:16]}.json"

    def quarantined(self, bundle: Bundle) -> bool:
        """Was this bundle rolled back, or one of the same weights? A refit by another version has another id."""
        if self.quarantine_file(bundle.id).exists():
            return True
        for marker in sorted((self.folder / "quarantine").glob("*.json")):
            try:
                files = json.loads(marker.read_text(encoding="utf-8"))["files"]
            except (ValueError, KeyError, TypeError) as error:
                raise InputError(
                    f"{marker}: damaged ({error}); its name is the bundle that is in quarantine"
                ) from error
            if files == bundle.manifest["files"]:
                return True
        return False

    def _quarantine(self, slot: str, bundle_id: str, reasons: Sequence[str]) -> None:
        try:
            files = load_bundle(self.folder / "bundles" / bundle_id[:16]).manifest["files"]
        except InputError as error:  # a damaged one is rolled back too; it is known by its id alone
            logger.warning("%s", error)
            files = None
        marker = {"bundle": bundle_id, "files": files, "time": now(), "slot": slot, "reasons": list(reasons)}
        write_json(self.quarantine_file(bundle_id), marker)

    def _check_quarantine(self, bundle: Bundle) -> None:
        if self.quarantined(bundle):
            raise InputError(
                f"bundle {bundle.id[:12]} was rolled back and is in quarantine, see {self.folder / 'quarantine'}"
            )

    def _names(self, bundle: Bundle, place: Path) -> dict[str, str]:
        return {"bundle": bundle.id, "path": str(place.relative_to(self.folder))}

    def _keep(self, bundle: Bundle) -> Path:
        """Copy the bundle in, unless it is there. Returns its place."""
        place = self.folder / "bundles" / bundle.id[:16]
        if not _intact(place, bundle.id):
            half = place.with_name(f".{place.name}.{os.getpid()}")
            shutil.rmtree(half, ignore_errors=True)
            shutil.copytree(bundle.folder, half)
            # What was copied is what will be loaded: verify it before anything points at it.
            if (copied := load_bundle(half)).id != bundle.id:
                shutil.rmtree(half)
                raise InputError(f"{bundle.folder}: holds {copied.id[:12]} now, no longer {bundle.id[:12]}")
            for name in half.iterdir():
                with name.open("rb") as file:
                    os.fsync(file.fileno())
            sync_folder(half)
            shutil.rmtree(place, ignore_errors=True)
            os.replace(half, place)
            sync_folder(place.parent)
        return place

    def _swap(
        self,
        names: tuple[str, str],
        file: Path,
        pointer: dict[str, Any],
        study: str | None,
        reasons: Sequence[str],
        facts: Mapping[str, Any],
    ) -> None:
        """The writes of a change of champion."""
        own = {**facts, "slot": file.stem}
        intent = self.record(names[0], pointer["bundle"], study, reasons, own)
        write_json(file, plain({**pointer, "audit": intent}))
        if "quarantined" in own:
            self._quarantine(file.stem, own["quarantined"], reasons)
        self.record(names[1], pointer["bundle"], study, reasons, {**own, "intent": intent})

    # --------------------------------------------------------------------------------------------- audit

    def recover(self) -> list[str]:
        """End what a crash left half done, and tell it. Returns the events that were written.

        A change whose pointer was swapped is done; one whose pointer was not is abandoned.
        """
        entries = self.audit.entries()
        ended = {entry["intent"] for entry in entries if "intent" in entry}
        written = []
        for entry in entries:
            if entry.get("event") not in ENDS or entry["digest"] in ended:
                continue
            done = self._anchor(self.champion_file(entry["slot"])) == entry["digest"]
            if done and "quarantined" in entry:
                self._quarantine(entry["slot"], entry["quarantined"], entry["reasons"])
            event = ENDS[entry["event"]] if done else ABANDONED
            reasons = ["a crash came between the pointer and this line" if done else "a crash came before the pointer"]
            facts = {"slot": entry["slot"], "intent": entry["digest"], "recovered": True}
            self.record(event, entry["bundle"], entry["study"], reasons, facts)
            logger.warning("%s of %s: %s; now %s", entry["event"], entry["bundle"][:12], reasons[0], event)
            written.append(event)
        return written

    def verify(self) -> Chain:
        """Is the audit log whole, and does it have the line that each champion was promoted with?

        Raises:
            InputError: a champion's pointer is damaged, so that its line is not known.
        """
        files = sorted((self.folder / "champions").glob("*.json"))
        return self.audit.verify({str(file): read_pointer(file).get("audit", "") for file in files})

    def _anchor(self, file: Path) -> str:
        """The digest of the line that a pointer was written with; no digest where there is none to be read."""
        try:
            return read_pointer(file).get("audit", "") if file.exists() else ""
        except InputError as error:
            logger.warning("%s", error)
            return ""

    def refuse(self, bundle_id: str | None, study: str | None, reasons: list[str], facts: Mapping[str, Any]) -> None:
        """Record why a candidate was not promoted."""
        self.record("refused", bundle_id, study, reasons, facts)

    def record(
        self, event: str, bundle: str | None, study: str | None, reasons: Sequence[str], facts: Mapping[str, Any]
    ) -> str:
        """Append one line to the audit log and wait until it is on disk. Returns its digest."""
        return self.audit.append(event, {"bundle": bundle, "study": study, "reasons": list(reasons), **facts})


def _intact(folder: Path, identity: str) -> bool:
    """Is there a bundle of that id that loads?"""
    try:
        return load_bundle(folder).id == identity
    except InputError:
        return False
