"""What is configured in YAML files, as plain data for those who use it. The only module that reads YAML."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from environments.errors import InputError


def read_yaml(path: str | Path, example: str = "AAPL: {fractional: false}") -> dict[str, Any]:
    """A YAML file (https://yaml.org/spec/1.2.2/) whose top level is a table, as plain data.

    `true` and `false` are booleans, what `float` can read is a number, all else is text: a symbol such as ON or NO
    is not taken for a truth value, nor 1e-4 for text, as YAML 1.1 would have it. Keys are text. example: what the
    message shows where there is no table.

    Raises:
        InputError: no such file, no YAML (says the line), a key given twice, or no table.
    """
    path = Path(path)
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_TextLoader)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error})") from error
    except yaml.YAMLError as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
        where = f", line {mark.line + 1}" if mark is not None else ""
        raise InputError(f"{path}{where}: {problem or 'no YAML'}") from error
    if not isinstance(content, dict):
        found = "a list" if isinstance(content, list) else repr(content) if content else "empty"
        raise InputError(f"{path}: a table is needed, such as '{example}', and it is {found}")
    return _typed(content)


def read_rules(path: str | Path) -> dict[str, dict[str, Any]]:
    """Asset rules by symbol, for the option `rules` of an environment over a market.

        AAPL: {fractional: false}
        BTC/USD: {increment: 0.001, min_quantity: 0.001, min_notional: 10}

    What the entries may say is checked where they are used: `environments.rules.RuleBook.from_dict`.

    Raises:
        InputError: see `read_yaml`.
    """
    return read_yaml(path)


class _TextLoader(yaml.BaseLoader):
    """Every scalar as text; a key given twice is an error instead of the last one's silent victory."""

    def construct_mapping(self, node, deep=False):
        mapping = super().construct_mapping(node, deep=True)
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key} is given twice", key_node.start_mark)
            seen.add(key)
        return mapping


def _typed(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _typed(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_typed(item) for item in value]
    if value in ("true", "false"):
        return value == "true"
    try:
        return float(value)
    except ValueError:
        return value
