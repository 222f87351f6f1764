"""JSON from a process that may be writing, dying or of another version: read what fits, say what does not."""

from __future__ import annotations

import json
import math
from dataclasses import fields, is_dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

Record = TypeVar("Record")


def parse_time(text: str) -> datetime | None:
    """An ISO 8601 time as an aware datetime (UTC where it names no zone), None where it is none."""
    try:
        time = datetime.fromisoformat(text.strip())
    except ValueError:
        return None
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def fill(cls: type[Record], raw: Any, where: str, problems: list[str]) -> Record:
    """Make a `cls` from a JSON object by its fields' types.

    A null takes the field's default, and so does a missing key of an optional field. Any other missing key, or a value
    of another type, does too, and is noted in `problems` as a line that starts with `where`, once however many records
    share the fault.
    """
    values: dict[str, Any] = {}
    complaints: list[str] = []
    if not isinstance(raw, dict):
        complaints.append(f"{where}: should be a JSON object, not {shown(raw)}")
        raw = {}
    elif missing := [name for name in _schema(cls) if name not in raw and name not in _optional(cls)]:
        complaints.append(f"{where}: lacks {', '.join(missing)}")
    for name, hint in _schema(cls).items():
        if raw.get(name) is None:
            continue
        try:
            values[name] = _convert(hint, raw[name], f"{where}, {name}", problems)
        except (TypeError, OverflowError):
            kind = {float: "a number", int: "a whole number", str: "text", bool: "true or false"}.get(hint)
            kind = kind or ("a list" if get_origin(hint) is list else "an object")
            complaints.append(f"{where}: {name!r} should be {kind}, not {shown(raw[name])}")
    problems += [line for line in complaints if line not in problems]
    return cls(**values)


@cache
def _optional(cls: type) -> frozenset[str]:
    """Names of the fields that a file may lack."""
    return frozenset(item.name for item in fields(cls) if "optional" in item.metadata)


@cache
def _schema(cls: type) -> dict[str, Any]:
    """Field name -> type without None, for the fields that are read from files."""
    hints = get_type_hints(cls)
    names = [item.name for item in fields(cls) if "derived" not in item.metadata]
    return {
        name: next(iter(set(get_args(hints[name])) - {type(None)}))
        if type(None) in get_args(hints[name])
        else hints[name]
        for name in names
    }


def _convert(hint: Any, value: Any, where: str, problems: list[str]) -> Any:
    """`value` as `hint` says, TypeError where it is something else."""
    if is_dataclass(hint):
        return fill(hint, value, where, problems)
    if get_origin(hint) is list:
        if not isinstance(value, list):
            raise TypeError
        return [_convert(get_args(hint)[0], item, where, problems) for item in value]
    if hint in (int, float):
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise TypeError
        if hint is int and value != int(value):
            raise TypeError
        return hint(value)
    if not isinstance(value, hint):
        raise TypeError
    return value


def parse_json(text: str) -> Any:
    """JSON in which NaN, the infinities and numbers beyond a float's range become None."""

    def finite(number: str) -> float | None:
        value = float(number)
        return value if math.isfinite(value) else None

    return json.loads(text, parse_constant=lambda _: None, parse_float=finite)


def read_json(path: Path, problems: list[str]) -> dict | None:
    """The JSON object in a file; None, with a problem noted, where there is none."""
    try:
        raw = parse_json(path.read_text(encoding="utf-8"))
        if isinstance(raw, dict):
            return raw
        problems.append(f"{label(path)}: should be a JSON object, not {shown(raw)}")
    except FileNotFoundError:
        problems.append(f"{label(path)}: missing")
    except OSError as error:
        problems.append(f"{label(path)}: cannot be read ({error.strerror})")
    except (ValueError, RecursionError) as error:
        problems.append(f"{label(path)}: not JSON ({error})")
    return None


def stamp(path: Path) -> tuple[int, ...] | None:
    """Differs after a file was written, replaced, made or removed; None where it cannot be looked at."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_size, stat.st_ino


def label(path: Path) -> str:
    return f"{path.parent.name}/{path.name}"


def shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 30 else text[:29] + "…"
