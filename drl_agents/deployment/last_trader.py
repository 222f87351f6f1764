"""The trader that followed a market's champion last: did it leave in good order?

    <logs>/deployment/traders/<slot>.json    the folder of the trader that attended the slot last

What it left is its own state.json, which it writes while it runs and when it ends. A champion is not replaced behind
the back of one that ended halted, stale or unreconciled: its account holds positions that nobody has accounted for.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from environments.files import write_json

STATE = "state.json"
IN_ORDER = ("ACTIVE", "FINISHED")  # ACTIVE: it was killed, with books that agreed


def note_trader(file: Path, folder: str | Path) -> None:
    """Write down whose folder `folder` is: the trader's that attends the slot of `file` now."""
    write_json(file, {"folder": str(Path(folder).resolve())})


def left_in_disorder(file: Path) -> str:
    """How the trader noted in `file` ended, where that was in no good order, and what to do; else "", as where no
    trader ever attended the slot."""
    if not file.exists():
        return ""
    try:
        folder = Path(json.loads(file.read_text(encoding="utf-8"))["folder"])
        state = json.loads((folder / STATE).read_text(encoding="utf-8"))
        wrong = _wrong(state)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"how the slot's last trader ended cannot be read ({error}): start it again, or delete {file}"
    if not wrong:
        return ""
    return (
        f"the slot's last trader ended {', '.join(wrong)} ({folder}): start it again (--fresh where a limit halted it "
        "for good), it tries what waits once it is ACTIVE and its books agree"
    )


def _wrong(state: dict[str, Any]) -> list[str]:
    wrong = [] if state["state"] in IN_ORDER else [str(state["state"])]
    wrong += [] if state["stale"] is False else ["stale"]
    return wrong + ([] if state["books_agree"] is True else ["unreconciled"])
