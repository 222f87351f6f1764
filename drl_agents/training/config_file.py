"""A YAML file in place of flags: the same names, the same checks; what the command line says goes before it."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from drl_agents.agents.registry import BUILT_IN, find_agent
from drl_agents.training.config import read_yaml
from environments.errors import InputError

_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text", Path: "a path"}


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
        InputError: no such file; a key that is no flag (the nearest one is named, the agents that have it, or all);
            a key given twice; a value that is not of the flag's type.
    """
    arguments = list(arguments)
    if (named := _last("config", arguments)) is None:
        return arguments
    path = Path(named)
    accepted = {name: kind for name, kind in flags(options).items() if name != "config"}
    made: list[str] = []
    for name, (key, value) in _content(path).items():
        if name not in accepted:
            raise InputError(f"{path}: {key} is no option{_meant(name, list(accepted))}")
        made += _flag(path, key, value, accepted[name])
    return [*made, *arguments]


def _content(path: Path) -> dict[str, tuple[str, Any]]:
    """{flag's name: (key as it is written, value)} of a file."""
    found: dict[str, tuple[str, Any]] = {}
    for key, value in read_yaml(path, "n_envs: 64").items():
        name = key.replace("-", "_")
        if name in found:
            raise InputError(f"{path}: {found[name][0]} and {key} are the same option: give one of them")
        found[name] = key, value
    return found


def _meant(name: str, accepted: list[str]) -> str:
    """What an unknown name may have been meant for, to end a sentence."""
    having = [agent for agent in BUILT_IN if name in find_agent(agent)[1].__dataclass_fields__]
    if having:
        return f" of this agent; those that have it are {', '.join(having)}"
    close = difflib.get_close_matches(name, accepted, n=1)
    return f"; the nearest is {close[0]}" if close else f"; accepted are {', '.join(sorted(accepted))}"


def flags(options: type) -> dict[str, Any]:
    """{name: type} of every field of a dataclass, those of the dataclasses in it in their place."""
    hints = typing.get_type_hints(options)
    found: dict[str, Any] = {}
    for item in filter(lambda item: item.init, dataclasses.fields(options)):
        kind = hints[item.name]
        found |= flags(kind) if dataclasses.is_dataclass(kind) else {item.name: kind}
    return found


def given(name: str, arguments: Sequence[str]) -> str | None:
    """What `--name` is given as, on the command line or else in the file of `--config`; None where it is not."""
    found = _last(name, arguments)
    if found is None and (path := _last("config", arguments)) is not None:
        _, value = _content(Path(path)).get(name, (name, None))
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
    flag = f"--{key.replace('_', '-')}"
    union = typing.get_origin(kind) in (typing.Union, types.UnionType)
    parts = typing.get_args(kind) if union else (kind,)
    several = [typing.get_args(part)[0] for part in parts if typing.get_origin(part) in (tuple, Sequence)]
    single = [part for part in parts if part in _WORDS]
    if value in ("null", "~", "") and types.NoneType in parts:
        return [flag, "None"]
    # Lists of words are one flag, separated by commas; lists of numbers are several words.
    allowed = [*several, *(part for part in single if part is str)] if isinstance(value, list) else [*single, *several]
    items = value if isinstance(value, list) else [value]
    if not items or not all(any(_fits(item, part) for part in allowed) for item in items):
        words = list(dict.fromkeys(_WORDS[part] for part in (*single, *several)))
        listed = ", or a list of them" if several or str in single else ""
        shown = "nothing" if value == "" else str(value).lower() if isinstance(value, bool) else value
        raise InputError(f"{path}: {key}: {shown}: accepted is {' or '.join(words)}{listed}")
    if isinstance(value, bool):
        return [flag if value else f"--no-{flag[2:]}"]
    return [flag, ",".join(map(_text, items))] if str in single else [flag, *map(_text, items)]


def _fits(value: Any, kind: type) -> bool:
    """Whether a value of YAML, as `read_yaml` gives them, is one of a flag's type."""
    if kind is bool or isinstance(value, bool):
        return kind is bool and isinstance(value, bool)
    if isinstance(value, float):
        return kind is not int or value.is_integer()
    return isinstance(value, str) and value != "" and kind in (str, Path)


def _text(value: Any) -> str:
    # A number is read as a float: a flag that wants a whole one takes no "64.0".
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
