"""Indicators that somebody else computed: the table technical_indicators, joined to the bars as further columns.

    table technical_indicators
        symbol, timeframe, timestamp    of the bar, as in historical_bars; primary key
        any numeric columns             the indicators; NULL or NaN where unknown

A row stamped with bar t is taken as known at the close of bar t, as the bar itself is, and no earlier: whoever fills
the table must compute it from bars up to t.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from environments.data.tidy import COLUMNS
from environments.errors import InputError

TABLE = "technical_indicators"
OPTION = "indicators"
ALL = "all"
KEYS = ("symbol", "timeframe", "timestamp")
NOT_INDICATORS = (*KEYS, "id")  # an identity column, as table editors add, is a number too


def asked_indicators(options: dict[str, Any], source: str) -> tuple[str, ...] | None:
    """The option `indicators` of a source: names, ("all",), or None where none are asked for.

    Raises:
        InputError: another option, or a name that is no indicator's.
    """
    if unknown := sorted(set(options) - {OPTION}):
        raise InputError(f"source {source} has no option {', '.join(unknown)}: accepted is {OPTION}")
    value = options.get(OPTION)
    if value is None:
        return None
    names = tuple(part.strip() for part in value.split(",")) if isinstance(value, str) else tuple(value)
    bad = [n for n in names if not isinstance(n, str) or not n or n in (*COLUMNS, *NOT_INDICATORS)]
    if bad or not names or len(set(names)) < len(names) or (ALL in names and len(names) > 1):
        raise InputError(f"{OPTION} {value!r}: {ALL}, or names of columns of {TABLE} separated by commas, are accepted")
    return names


def choose_indicators(asked: Sequence[str], present: Sequence[str], taken: Sequence[str]) -> tuple[str, ...]:
    """The indicators to read, of the numeric columns `present`; `taken` names other columns of the bars.

    Raises:
        InputError: the table lacks one, or has none, or one has the name of a column of the bars.
    """
    have = [name for name in present if name not in NOT_INDICATORS]
    chosen = tuple(have) if tuple(asked) == (ALL,) else tuple(asked)
    if absent := [name for name in chosen if name not in have]:
        raise InputError(f"{TABLE} has no numeric column {', '.join(absent)}; it has {', '.join(have) or 'none'}")
    if not chosen:
        raise InputError(f"{TABLE} has no numeric column to read")
    if twice := [name for name in chosen if name in (*COLUMNS, *taken)]:
        raise InputError(f"{TABLE}: column {', '.join(twice)} is one of the bars' as well; name the indicators to read")
    return chosen


def without_nan_texts(row: dict[str, Any]) -> dict[str, Any]:
    """A JSON row in which NaN, for which JSON has a text only, is a number."""
    return {name: math.nan if value == "NaN" else value for name, value in row.items()}


def numeric_names(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The columns of JSON rows that hold numbers or null, and at least one number."""
    names = dict.fromkeys(name for row in rows for name in row)

    def number(value: Any) -> bool:
        return isinstance(value, int | float) and not isinstance(value, bool)

    known = {name: [row[name] for row in rows if row.get(name) is not None] for name in names}
    return [name for name, values in known.items() if values and all(map(number, values))]


def report_unknown(frame: pd.DataFrame, names: Sequence[str]) -> list[str]:
    """A line for every indicator that some bars lack.

    Raises:
        InputError: no bar of a symbol has any of an indicator: the table was filled for other bars.
    """
    notes = []
    for name in names:
        unknown = np.isnan(frame[name].to_numpy())
        known = frame.loc[~unknown, "symbol"].unique()
        if without := sorted(set(frame["symbol"].unique()) - set(known)):
            raise InputError(f"{TABLE} has no {name} at any bar of {', '.join(without)} in the span asked for")
        if unknown.any():
            notes.append(f"{TABLE}: {int(unknown.sum()):,} of {len(frame):,} bars have no {name}")
    return notes
