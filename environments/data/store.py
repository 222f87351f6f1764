"""Datasets on disk: bars.parquet and a manifest whose fingerprint is verified when they are read again."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from environments.data.exchange import NO_CALENDAR, sessions_of
from environments.data.files import bars_from_frame, read_file
from environments.data.source import ASSET_CLASSES, BarRequest, BarSet, make_bars
from environments.data.tidy import COLUMNS, nanoseconds
from environments.errors import InputError
from environments.files import write_atomic, write_json
from environments.timeframe import Timeframe

VERSION = 1
BARS = "bars.parquet"
MANIFEST = "manifest.json"
LATER = ("calendar", "notes")  # not in manifests of the first datasets


def save_dataset(bars: BarSet, folder: str | Path) -> Path:
    """Write `bars` to folder/bars.parquet (zstd) and folder/manifest.json, replacing what is there.

    Each file is replaced in one step, the manifest last: after a crash between the two, the fingerprint of
    the old manifest does not match the new bars and `load_dataset` says so. Returns the folder.
    """
    folder = Path(folder)
    table = pa.Table.from_pandas(bars.frame, preserve_index=False).replace_schema_metadata(None)
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    write_atomic(folder / BARS, buffer.getvalue())
    manifest = {
        "version": VERSION,
        "source": bars.source,
        "description": bars.description,
        "symbols": list(bars.symbols),
        "asset_class": bars.asset_class,
        "timeframe": str(bars.timeframe),
        "start": bars.frame["timestamp"].min().isoformat(),
        "end": bars.frame["timestamp"].max().isoformat(),
        "rows": len(bars.frame),
        "gaps": [
            {"symbol": g.symbol, "after": g.after_timestamp.isoformat(), "missing_bars": g.missing_bars}
            for g in bars.gaps
        ],
        "fingerprint": bars.fingerprint,
        "synthetic": bars.synthetic,
        "extra": list(bars.extra),
        "planted": bars.planted,
        "calendar": bars.calendar,
        "notes": list(bars.notes),
    }
    write_json(folder / MANIFEST, manifest)
    return folder


def load_dataset(
    folder: str | Path, symbols: Sequence[str] | None = None, timeframe: str | Timeframe | None = None
) -> BarSet:
    """The bars saved in `folder`: all of them, or fewer symbols, or resampled to a coarser timeframe.

    The whole dataset is read and verified first; narrowed or resampled bars then have a fingerprint of
    their own.

    Raises:
        InputError: naming the folder, when the manifest or the bars are missing or unreadable, or the
            fingerprint does not match; for an unknown symbol or a timeframe that cannot be made.
    """
    folder = Path(folder)
    manifest = _read_manifest(folder)
    if not (folder / BARS).is_file():
        raise InputError(f"dataset {folder}: {BARS} is missing")
    try:
        own = Timeframe.parse(manifest["timeframe"])
        frame = read_file(folder / BARS, manifest["extra"])
        calendar = manifest.get("calendar")  # datasets from before there were calendars have none
        whole = make_bars(
            frame,
            source=manifest["source"],
            origin=folder.name,
            timeframe=own,
            asset_class=manifest["asset_class"],
            symbols=manifest["symbols"],
            synthetic=manifest["synthetic"],
            planted=manifest["planted"],
            sessions=None if calendar is None else sessions_of(calendar, np.sort(nanoseconds(frame))),
            notes=manifest.get("notes", ()),
        )
    except InputError as error:
        raise InputError(f"dataset {folder}: {error}") from error
    if whole.fingerprint != manifest["fingerprint"]:
        raise InputError(
            f"dataset {folder}: the fingerprint of {BARS} is {whole.fingerprint[:12]}, its manifest says "
            f"{manifest['fingerprint'][:12]}; the bars were changed or half written, save the dataset again"
        )
    # The calendar was settled when the dataset was made.
    request = BarRequest(
        symbols=symbols, timeframe=timeframe, asset_class=whole.asset_class, calendar=whole.calendar or NO_CALENDAR
    )
    if request.timeframe in (None, own) and request.symbols in (None, whole.symbols):
        return replace(whole, description=manifest["description"])
    request = replace(request, symbols=request.symbols or whole.symbols)
    part = bars_from_frame(whole.frame, folder.name, request, source=whole.source, own=own)
    planted = whole.planted
    if planted is not None and part.timeframe != own:
        # The recorded optimum is per bar and for decisions at every bar: it does not hold for longer ones.
        planted = {k: v for k, v in planted.items() if k != "optimal_log_return_per_bar"}
    notes = tuple(dict.fromkeys((*whole.notes, *part.notes)))
    return replace(part, synthetic=whole.synthetic, planted=planted, notes=notes)


def _read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest with the types `load_dataset` relies on. Raises InputError naming the folder otherwise."""
    path = folder / MANIFEST
    if not path.is_file():
        raise InputError(f"dataset {folder}: {MANIFEST} is missing; a folder written by save_dataset is accepted")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"dataset {folder}: {MANIFEST} is not readable: {error}") from error
    if not isinstance(manifest, dict) or manifest.get("version") != VERSION:
        found = manifest.get("version") if isinstance(manifest, dict) else None
        raise InputError(f"dataset {folder}: {MANIFEST} has version {found}, version {VERSION} is accepted")

    def names(value: Any) -> bool:
        return isinstance(value, list) and all(isinstance(name, str) for name in value)

    for key, valid in {
        "source": lambda v: isinstance(v, str),
        "description": lambda v: isinstance(v, str),
        "symbols": lambda v: names(v) and bool(v),
        "asset_class": lambda v: v in ASSET_CLASSES,
        "timeframe": lambda v: isinstance(v, str),
        "fingerprint": lambda v: isinstance(v, str) and bool(v),
        "synthetic": lambda v: isinstance(v, bool),
        "extra": lambda v: names(v) and not set(v) & set(COLUMNS),
        "planted": lambda v: v is None or isinstance(v, dict),
        "calendar": lambda v: v is None or isinstance(v, str),
        "notes": names,
    }.items():
        if key in LATER and key not in manifest:
            continue
        if key not in manifest or not valid(manifest[key]):
            raise InputError(f"dataset {folder}: {MANIFEST} has no valid {key}; save the dataset again")
    return manifest
