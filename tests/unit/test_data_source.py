"""Sources are found by name, requests are read strictly, and the embedded sample is what it says."""

import hashlib
from importlib.metadata import EntryPoint
from importlib.resources import files

import pandas as pd
import pytest

from environments.data import source as source_module
from environments.data.sample import FILE
from environments.data.source import BarRequest, load_bars
from environments.errors import InputError


class Borrowed:
    """What an installed package would offer."""

    name = "borrowed"

    def load(self, request):
        return load_bars("synthetic", seed=request.seed, options={"n_bars": 10})


class Useless:
    pass


def test_an_unknown_name_lists_the_accepted_ones():
    with pytest.raises(InputError, match="data source 'alpaka': accepted are files, sample, synthetic"):
        load_bars("alpaka")


def test_an_installed_package_adds_a_source(monkeypatch):
    points = [
        EntryPoint("borrowed", f"{__name__}:Borrowed", source_module.ENTRY_POINTS),
        EntryPoint("absent", "no_such_package_anywhere:Source", source_module.ENTRY_POINTS),
        EntryPoint("useless", "collections:OrderedDict", source_module.ENTRY_POINTS),
    ]
    monkeypatch.setattr(EntryPoint, "load", _load_here)
    monkeypatch.setattr(source_module, "entry_points", lambda group: [p for p in points if p.group == group])
    assert (
        load_bars("borrowed", seed=3).fingerprint == load_bars("synthetic", seed=3, options={"n_bars": 10}).fingerprint
    )
    with pytest.raises(InputError, match=r"'absent'.*cannot be imported"):
        load_bars("absent")
    with pytest.raises(InputError, match=r"'useless'.*load method"):
        load_bars("useless")
    with pytest.raises(InputError, match="files, sample, synthetic, .*absent, borrowed, useless"):
        load_bars("other")


_original_load = EntryPoint.load


def _load_here(point):
    """This test module has no importable name, so its own entry point is answered here."""
    return Borrowed if point.name == "borrowed" else _original_load(point)


@pytest.mark.parametrize(
    ("request_", "match"),
    [
        ({"symbol": "A"}, "no option symbol: accepted are symbols, timeframe"),
        ({"symbols": ["A", "A"]}, "A named more than once"),
        ({"symbols": [3]}, "symbols 3"),
        ({"timeframe": "5x"}, "timeframe '5x'"),
        ({"start": "1 March"}, "start '1 March': an ISO date"),
        ({"start": "2024-02-01", "end": "2024-01-01"}, "must come before end"),
        ({"asset_class": "bond"}, "crypto or stock"),
        ({"seed": -1}, "seed -1"),
        ({"extra_columns": ["close"]}, "every bar set has these"),
        ({"path": "x.csv"}, "source sample takes no path"),
        ({"options": {"kind": "gbm"}}, "source sample takes no options"),
        ({"asset_class": "crypto"}, "sample holds stocks"),
        ({"symbols": "AAPL,TSLA"}, "no symbol TSLA; it has AAPL, FB, GOOG, IBM, MSFT"),
        ({"timeframe": "1h"}, "timeframe 1h asked for, but .* holds 1d bars"),
        ({"timeframe": "7d"}, "1d at most"),
        ({"symbols": "FB", "end": "2010-01-01"}, "no complete 1d bars of .*2012-05-18"),
    ],
)
def test_a_wrong_request_is_refused_in_one_line(request_, match):
    with pytest.raises(InputError, match=match) as caught:
        load_bars("sample", **request_)
    assert "\n" not in str(caught.value)


def test_files_needs_a_path():
    with pytest.raises(InputError, match="needs a path"):
        load_bars("files")


def test_a_request_reads_dates_as_utc():
    request = BarRequest(start="2024-01-01", end="2024-01-02T00:00+05:30")
    assert request.start == pd.Timestamp("2024-01-01", tz="UTC")
    assert request.end == pd.Timestamp("2024-01-01 18:30", tz="UTC")


def test_the_sample_is_the_published_file_and_holds_what_its_note_says():
    content = (files("environments.data") / FILE).read_bytes()
    note = (files("environments.data") / FILE.replace(".parquet", ".md")).read_text()
    assert hashlib.sha256(content).hexdigest() in note
    bars = load_bars("sample")
    assert bars.symbols == ("AAPL", "FB", "GOOG", "IBM", "MSFT")
    assert (bars.asset_class, str(bars.timeframe), bars.synthetic, bars.gaps) == ("stock", "1d", False, ())
    assert bars.frame["symbol"].value_counts().to_dict() == {
        "AAPL": 3270,
        "IBM": 3270,
        "MSFT": 3270,
        "GOOG": 2148,
        "FB": 196,
    }
    aapl = bars.frame[bars.frame["symbol"] == "AAPL"].set_index("timestamp")["close"]
    assert aapl.pct_change().loc["2000-09-29"] == pytest.approx(-0.519, abs=5e-4)


def test_the_same_content_has_the_same_fingerprint_from_another_source(tmp_path):
    (tmp_path / "copy.parquet").write_bytes((files("environments.data") / FILE).read_bytes())
    sample, copy = load_bars("sample"), load_bars("files", path=tmp_path / "copy.parquet")
    assert copy.fingerprint == sample.fingerprint and copy.source != sample.source
