"""A YAML file in place of flags: the same names, the same checks; what the command line says goes before it."""

from __future__ import annotations

import dataclasses
import difflib
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from drl_agents.training.config import read_yaml
from environments.errors import InputError


def with_config(options: type, arguments: Sequence[str]) -> list[str]:
    """`arguments` with the flags of the file that `--config FILE` names put before them; without that, as they are.

        # train.yaml
        data: bars.parquet
        symbols: [AAPL, MSFT]
        n_envs: 64
        shorting: true

    Args:
        options: the dataclass the command line is made from; its fields, and those of the dataclasses in it, are the
            names. A later flag replaces an earlier one, so the command line's own count.

    Raises:
        InputError: no such file; a key that is no flag (the nearest one is named); a value no flag can have.
    """
    arguments = list(arguments)
    if (named := _last("config", arguments)) is None:
        return arguments
    path = Path(named)
    accepted = flags(options)
    made: list[str] = []
    for key, value in read_yaml(path).items():
        name = key.replace("-", "_")
        if name not in accepted or name == "config":
            close = difflib.get_close_matches(name, set(accepted) - {"config"}, n=1, cutoff=0.0)
            raise InputError(f"{path}: {key} is no option; the nearest is {close[0]}")
        made += _flag(path, key, value, accepted[name])
    return [*made, *arguments]


def flags(options: type) -> dict[str, Any]:
    """{name: type} of every field of a dataclass, those of the dataclasses in it in their place."""
    hints = typing.get_type_hints(options)
    found: dict[str, Any] = {}
    for item in dataclasses.fields(options):
        kind = hints[item.name]
        found |= flags(kind) if dataclasses.is_dataclass(kind) else {item.name: kind}
    return found


def given(name: str, arguments: Sequence[str]) -> str | None:
    """What `--name` is given as, on the command line or else in the file of `--config`; None where it is not."""
    found = _last(name, arguments)
    if found is None and (path := _last("config", arguments)) is not None:
        value = {key.replace("-", "_"): value for key, value in read_yaml(path).items()}.get(name)
        found = None if value is None else _text(value)
    return found


def _last(name: str, arguments: Sequence[str]) -> str | None:
    flag, found = "--" + name.replace("_", "-"), None
    for i, argument in enumerate(arguments):
        if argument == flag and i + 1 < len(arguments):
            found = arguments[i + 1]
        elif argument.startswith(flag + "="):
            found = argument.partition("=")[2]
    return found


def _flag(path: Path, key: str, value: Any, kind: Any) -> list[str]:
    name = key.replace("_", "-")
    if isinstance(value, bool):
        return [f"--{name}" if value else f"--no-{name}"]
    if isinstance(value, dict):
        raise InputError(f"{path}: {key} is a table: a value or a list is accepted")
    if isinstance(value, list):
        if any(isinstance(item, list | dict) for item in value):
            raise InputError(f"{path}: {key} is a list of lists: a list of values is accepted")
        several = str in (kind, *typing.get_args(kind))
        # Lists of words are one flag, separated by commas; lists of numbers are several words.
        return [f"--{name}", ",".join(map(_text, value))] if several else [f"--{name}", *map(_text, value)]
    return [] if value in ("null", "~", "") else [f"--{name}", _text(value)]


def _text(value: Any) -> str:
    # A number is read as a float: a flag that wants a whole one takes no "64.0".
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
