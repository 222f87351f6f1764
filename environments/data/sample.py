"""The sample that ships with the package: five US stocks, daily, 2000 to 2013, public domain."""

from __future__ import annotations

from importlib.resources import as_file, files

from environments.data.files import bars_from_frame, read_bars
from environments.data.source import BarRequest, BarSet
from environments.errors import InputError

FILE = "sample_us_daily_2000_2013.parquet"


class SampleSource:
    """AAPL, FB, GOOG, IBM and MSFT; FB from 2012 and GOOG from 2004 only, the others throughout.

    Where the bars come from and what was done to them is told in sample_us_daily_2000_2013.md beside them.
    """

    name = "sample"

    def load(self, request: BarRequest) -> BarSet:
        """The bars asked for. Raises InputError for an unknown symbol, another timeframe or an empty span."""
        request.accept_only(self.name, "symbols", "timeframe", "start", "end", "asset_class", "calendar")
        if request.asset_class == "crypto":
            raise InputError("source sample holds stocks: asset_class stock is accepted")
        with as_file(files("environments.data") / FILE) as path:
            frame = read_bars(path, symbols=request.symbols)
        return bars_from_frame(frame, FILE, request, source=self.name)
