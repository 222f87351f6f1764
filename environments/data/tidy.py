"""The tidy frame: one row per symbol and bar, the same column types wherever the rows came from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from environments.errors import InputError

PRICES = ("open", "high", "low", "close")
VALUES = (*PRICES, "volume")
COLUMNS = ("timestamp", "symbol", *VALUES)

# Integer timestamps count from 1970 in the unit their size gives away: 1e11 seconds is the year 5138, while
# 1e11 milliseconds is 1973, and so on. Below 1e8 a number is no epoch but a date such as 20200131.
EPOCH_UNITS = ((1e11, "s"), (1e14, "ms"), (1e17, "us"), (float("inf"), "ns"))
SMALLEST_EPOCH = 1e8


def tidy(frame: pd.DataFrame, origin: str, extra: Sequence[str] = ()) -> pd.DataFrame:
    """`frame` with the columns of a bar set, in their order and types; rows stay as they are.

    timestamp becomes datetime64[ns, UTC] (naive times are UTC; integers are an epoch in s, ms, us or ns),
    symbol a string, open, high, low, close, volume and the `extra` columns float64.

    Raises:
        InputError: a column is missing or cannot be read as its type, or there are no rows; `origin`
            names the file in the message.
    """
    require_columns(frame.columns, origin, extra)
    if frame.empty:
        raise InputError(f"{origin}: no rows, at least two bars are needed")
    missing = frame["symbol"].isna()
    if missing.any():
        raise InputError(f"{origin}: row {int(np.argmax(missing.to_numpy())) + 1} has no symbol")
    columns: dict[str, object] = {
        "timestamp": _timestamps(frame["timestamp"], origin),
        "symbol": frame["symbol"].astype(str).array,
    }
    for name in (*VALUES, *extra):
        try:
            values = pd.to_numeric(frame[name]).to_numpy(dtype=np.float64, na_value=np.nan)
            # One NaN of the many there are, so that what is unknown has one fingerprint.
            columns[name] = np.where(np.isnan(values), np.nan, values)
        except (TypeError, ValueError) as error:
            raise InputError(f"{origin}: column {name} is not numeric: {_one_line(error)}") from error
    return pd.DataFrame(columns)


def require_columns(present: Sequence[str], origin: str, extra: Sequence[str] = ()) -> None:
    """Raises InputError, naming `origin`, when a column of a bar set or of `extra` is not in `present`."""
    missing = [name for name in (*COLUMNS, *extra) if name not in set(present)]
    if missing:
        raise InputError(f"{origin}: no column {', '.join(missing)}; it has {', '.join(map(str, present))}")


def nanoseconds(frame: pd.DataFrame) -> np.ndarray:
    """(rows,) int64: the timestamps as UTC nanoseconds, whatever their resolution."""
    return frame["timestamp"].to_numpy(dtype="datetime64[ns]").astype(np.int64)


def symbol_codes(frame: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """The symbols in alphabetical order and, per row, (rows,) int64, which one it is."""
    codes, names = pd.factorize(frame["symbol"], sort=True)
    return codes, np.asarray(names, dtype=object)


def sort_bars(frame: pd.DataFrame) -> pd.DataFrame:
    """Rows by symbol, then timestamp, with a fresh index. Rows already in order are not copied."""
    codes, _ = symbol_codes(frame)
    stamps = nanoseconds(frame)
    step = np.diff(codes)
    if np.all((step > 0) | ((step == 0) & (np.diff(stamps) > 0))):
        return frame.reset_index(drop=True)
    return frame.take(np.lexsort((stamps, codes))).reset_index(drop=True)


def _timestamps(column: pd.Series, origin: str) -> pd.DatetimeIndex:
    """The column as datetime64[ns, UTC]."""
    accepted = "ISO dates and times or an epoch in s, ms, us or ns are accepted"
    try:
        if pd.api.types.is_numeric_dtype(column):
            largest = float(column.abs().max())
            if not largest >= SMALLEST_EPOCH:
                raise InputError(f"{origin}: timestamp {column.iloc[0]} is neither: {accepted}")
            unit = next(unit for limit, unit in EPOCH_UNITS if largest < limit)
            parsed = pd.to_datetime(column, unit=unit, utc=True)
        elif pd.api.types.is_datetime64_any_dtype(column):
            parsed = pd.to_datetime(column, utc=True)
        else:
            parsed = pd.to_datetime(column, utc=True, format="ISO8601")
        index = pd.DatetimeIndex(parsed).as_unit("ns")
    except InputError:
        raise
    except (ValueError, TypeError, OverflowError) as error:
        raise InputError(f"{origin}: timestamp: {_one_line(error)}; {accepted}") from error
    if index.hasnans:
        raise InputError(f"{origin}: row {int(np.argmax(index.isna())) + 1} has no timestamp; {accepted}")
    return index


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:160]
