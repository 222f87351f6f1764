"""A download that is interrupted goes on where it was: its pages are kept until the dataset is whole."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd

from environments.data.source import BarSet
from environments.data.store import MANIFEST, load_dataset
from environments.errors import InputError
from environments.files import write_json

PARTIAL = ".partial"
PLAN = "plan.json"
RECORD = "download.json"
Row = list[Any]  # [timestamp as text, open, high, low, close, volume]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PageCache:
    """Pages of one download, one folder per symbol: <dataset>/.partial/<symbol>/00000.json, 00001.json, ...

    A page holds its bars and the token that asks for the page after it; the last one's is None. Each is
    written in one step, so whatever stops the process leaves whole pages only.

    facts: what was settled when the download began, such as its end, and holds until it is complete.
    """

    folder: Path
    facts: dict[str, Any]

    @classmethod
    def open(cls, dataset: Path, asked: dict[str, Any], facts: dict[str, Any], keep: bool) -> PageCache:
        """The pages of the interrupted download under `dataset`, or a new download.

        An interrupted one is gone on with when `asked` is what it was begun with and, unless `keep`, `facts`
        are the same; otherwise its pages are dropped.
        """
        folder = dataset / PARTIAL
        plan = _read(folder / PLAN)
        if plan is not None and plan.get("asked") == asked and (keep or plan.get("facts") == facts):
            return cls(folder, plan["facts"])
        if folder.exists():
            logger.info("%s: pages of another or an outdated download are dropped", folder)
            shutil.rmtree(folder)
        write_json(folder / PLAN, {"asked": asked, "facts": facts})
        return cls(folder, facts)

    def pages(self, symbol: str) -> Iterator[tuple[list[Row], str | None]]:
        """(bars, token of the next page) of the pages kept for `symbol`, up to the first that is missing."""
        for number in range(10**9):
            path = self._page(symbol, number)
            page = _read(path)
            if page is None:
                path.unlink(missing_ok=True)
                return
            yield page["bars"], page["next_page_token"]

    def add(self, symbol: str, number: int, bars: list[Row], next_page_token: str | None) -> None:
        """Keep page `number` of `symbol`."""
        write_json(self._page(symbol, number), {"bars": bars, "next_page_token": next_page_token})

    def drop(self, symbol: str) -> None:
        """Remove the pages of `symbol`."""
        shutil.rmtree(self._page(symbol, 0).parent, ignore_errors=True)

    @staticmethod
    def discard(dataset: Path) -> None:
        """Remove all pages under `dataset`: it is whole."""
        shutil.rmtree(dataset / PARTIAL, ignore_errors=True)

    def _page(self, symbol: str, number: int) -> Path:
        return self.folder / quote(symbol, safe="") / f"{number:05d}.json"


def write_record(dataset: Path, asked: dict[str, Any], end: str | None, fingerprint: str) -> None:
    """Note beside a dataset what it answers, see `kept`. To be written before the dataset: alone it claims nothing."""
    write_json(dataset / RECORD, {"asked": asked, "end": end, "fingerprint": fingerprint})


def kept(dataset: Path, asked: dict[str, Any], end: str | None) -> tuple[BarSet, str | None] | None:
    """The dataset in the folder and the end it reaches, if it answers `asked` up to `end` or to an earlier end.

    None where there is none, or only what a crash left of one. asked: all that identifies the dataset but its end.
    end: ISO time that bars are to stop before; None for all there are.

    Raises:
        InputError: the folder holds a dataset that answers something else or goes on beyond `end`, or one that was
            changed.
    """
    manifest = _read(dataset / MANIFEST)
    if manifest is None and not (dataset / MANIFEST).exists():
        return None
    record = _read(dataset / RECORD) or {}
    if record.get("asked") != asked or not _reaches(end, record["end"]):
        raise InputError(f"{dataset}: it holds another dataset; name another folder, or remove this one")
    whole = manifest is not None and record["fingerprint"] == manifest.get("fingerprint")
    return (load_dataset(dataset), record["end"]) if whole else None


def _reaches(end: str | None, before: str | None) -> bool:
    """Whether bars up to `end` hold those up to `before`."""
    return end is None or (before is not None and pd.Timestamp(end) >= pd.Timestamp(before))


def _read(path: Path) -> dict[str, Any] | None:
    """A JSON object; None where there is no file or, told in the log, it is not readable."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError:
        value = None
    if not isinstance(value, dict):
        logger.warning("%s: not readable, it is made again", path)
        return None
    return value
