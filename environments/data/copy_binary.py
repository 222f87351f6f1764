"""Rows of PostgreSQL's COPY in its binary format: eight-byte fields after texts that are the same in every row.

https://www.postgresql.org/docs/current/sql-copy.html, "Binary Format": a signature, flags and the length of a header
extension; per row the number of fields, per field its length and content, big-endian; -1 ends it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from environments.data.tidy import nanoseconds
from environments.errors import InputError

HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
TRAILER = b"\xff\xff"
MICROSECONDS_TO_2000 = 946_684_800_000_000  # timestamps count microseconds from 2000-01-01


def encode_rows(rows: pd.DataFrame, symbol: str, timeframe: str, names: Sequence[str]) -> bytes:
    """Rows of one symbol: symbol, timeframe, timestamp and the float64 columns `names`; all of one length, so one
    array."""
    fields: list[tuple[str, str]] = [("count", ">i2")]
    texts = (symbol.encode(), timeframe.encode())
    for i, text in enumerate(texts):
        fields += [(f"length of text {i}", ">i4"), (f"text {i}", f"V{len(text)}")]
    out = np.zeros(len(rows), dtype=fields + _eight_bytes(names))
    out["count"] = len(texts) + 1 + len(names)
    for i, text in enumerate(texts):
        out[f"length of text {i}"], out[f"text {i}"] = len(text), np.void(text)
    for i, name in enumerate(("timestamp", *names)):
        out[f"length {i}"] = 8
        out[f"value {i}"] = (
            nanoseconds(rows) // 1_000 - MICROSECONDS_TO_2000 if name == "timestamp" else rows[name].to_numpy()
        )
    return out.tobytes()


def decode_rows(data: bytes, symbol: str, names: Sequence[str], table: str) -> pd.DataFrame:
    """The tidy rows of one symbol in a stream of timestamp and the float64 columns `names`. Raises InputError where a
    field is NULL."""
    row = np.dtype([("count", ">i2"), *_eight_bytes(names)])
    body = memoryview(data)[len(HEADER) : -len(TRAILER)]
    whole = len(body) % row.itemsize == 0
    rows = np.frombuffer(body, dtype=row, count=len(body) // row.itemsize)
    # A NULL has no content, so the rows after it are out of step.
    if not whole or any((rows[f"length {i}"] != 8).any() for i in range(len(names) + 1)):
        raise InputError(f"{table}: a NULL in the bars of {symbol}; numbers are needed")
    stamps = (rows["value 0"].astype(np.int64) + MICROSECONDS_TO_2000).view("datetime64[us]")
    columns = {name: rows[f"value {i}"].astype(np.float64) for i, name in enumerate(names, start=1)}
    return pd.DataFrame({"timestamp": pd.DatetimeIndex(stamps, tz="UTC"), "symbol": symbol, **columns})


def _eight_bytes(names: Sequence[str]) -> list[tuple[str, str]]:
    """Length and content of the timestamp and of each float64; numbered, since a column may be called anything."""
    kinds = [">i8", *[">f8"] * len(names)]
    return [field for i, kind in enumerate(kinds) for field in ((f"length {i}", ">i4"), (f"value {i}", kind))]
