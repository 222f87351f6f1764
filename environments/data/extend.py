"""A dataset that grows: new bars are put after those that are kept, once what both have is seen to be the same."""

from __future__ import annotations

import numpy as np
import pandas as pd

from environments.data.exchange import sessions_of
from environments.data.source import BarSet, make_bars
from environments.data.tidy import nanoseconds
from environments.errors import InputError


class HistoryChanged(InputError):
    """The source now says something else about bars that are kept: they cannot be added to."""


def fetch_from(kept: BarSet) -> pd.Timestamp:
    """When the bars to be fetched start: 00:00 UTC of the day of the symbols' earliest last bar.

    From there every symbol has bars that are kept already, to compare the new ones with, and sessions are whole.
    """
    return kept.frame.groupby("symbol")["timestamp"].max().min().floor("D")


def extend(kept: BarSet, new: BarSet, since: pd.Timestamp | None = None) -> BarSet:
    """The bars of `kept`, then those of `new` that are later; as one download of both spans would give them.

    new: bars of the same symbols, timeframe, columns and calendar. since: where they start; None: where `kept` does.

    Raises:
        HistoryChanged: `new` differs from `kept` where both have a symbol's bars, or is of another kind.
    """
    for what in ("symbols", "timeframe", "asset_class", "extra", "calendar", "synthetic"):
        if getattr(kept, what) != getattr(new, what):
            raise HistoryChanged(f"the {what} of the bars kept are {getattr(kept, what)}, now {getattr(new, what)}")
    until = kept.frame.groupby("symbol")["timestamp"].max()
    old_part = kept.frame if since is None else kept.frame[kept.frame["timestamp"] >= since].reset_index(drop=True)
    again = new.frame["timestamp"] <= new.frame["symbol"].map(until)
    new_part = new.frame[again].reset_index(drop=True)
    if not old_part.equals(new_part):
        raise HistoryChanged(_difference(old_part, new_part))
    frame = pd.concat([kept.frame, new.frame[~again]], ignore_index=True)
    clock = np.unique(nanoseconds(frame))
    return make_bars(
        frame,
        source=new.source,
        origin=new.origin,
        timeframe=new.timeframe,
        asset_class=new.asset_class,
        symbols=new.symbols,
        note=new.note,
        synthetic=new.synthetic,
        planted=new.planted,
        sessions=None if new.calendar is None else sessions_of(new.calendar, clock),
        notes=tuple(dict.fromkeys((*kept.notes, *new.notes))),
    )


def _difference(old: pd.DataFrame, new: pd.DataFrame) -> str:
    """The first bar that differs, in words."""
    keys = ["symbol", "timestamp"]
    both = old.merge(new, how="outer", on=keys, suffixes=("", " now"), indicator=True).sort_values(keys)
    for _, row in both.iterrows():
        where = f"{row['symbol']} at {row['timestamp'].isoformat()}"
        if row["_merge"] != "both":
            return f"the bar of {where} is {'gone' if row['_merge'] == 'left_only' else 'there now'}"
        for name in old.columns.drop(keys):
            was, now = row[name], row[f"{name} now"]
            if was != now and not (np.isnan(was) and np.isnan(now)):
                return f"{name} of {where} was {was}, now {now}"
    return "the order of the bars kept has changed"
