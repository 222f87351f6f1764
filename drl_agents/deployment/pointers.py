"""Pointers: the small files that say which bundle is a market's champion or challenger, and who was champion before.

A champion's pointer carries the one it replaced, that one the one before it, `STEPS_BACK` deep: so many roll-backs one
after the other are possible.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from drl_agents.deployment.bundle import Bundle
from environments.errors import InputError

STEPS_BACK = 10
REMEMBERED = ("bundle", "path", "sharpe", "unit")  # of a champion before

logger = logging.getLogger(__name__)


def read_pointer(file: Path) -> dict[str, Any]:
    """What a champion's or challenger's pointer says.

    Raises:
        InputError: it is damaged.
    """
    try:
        pointer = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(pointer["path"], str) or not isinstance(pointer["bundle"], str):
            raise TypeError("path and bundle are texts")
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file}: damaged ({error})") from error
    return pointer


def previous_of(file: Path, bundle: Bundle) -> dict[str, Any] | None:
    """The champion that gives way to `bundle`, for the pointer of the one that comes; a damaged pointer cannot be gone
    back to."""
    try:
        pointer = read_pointer(file) if file.exists() else None
    except InputError as error:
        logger.warning("the champion before cannot be kept to go back to: %s", error)
        return None
    if pointer is None:
        return None
    if pointer["bundle"] == bundle.id:  # promoted again: who came before it is still who came before it
        return pointer.get("previous")
    return _remembered(pointer, STEPS_BACK)


def _remembered(pointer: Mapping[str, Any], steps: int) -> dict[str, Any]:
    kept = {name: pointer[name] for name in REMEMBERED if name in pointer}
    if steps > 1 and pointer.get("previous"):
        kept["previous"] = _remembered(pointer["previous"], steps - 1)
    return kept
