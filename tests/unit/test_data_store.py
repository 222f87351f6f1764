"""A dataset comes back as it was saved, and a changed or half-written one does not come back at all."""

import json

import pandas as pd
import pytest

from environments.data.source import load_bars
from environments.data.store import load_dataset, save_dataset
from environments.errors import InputError


@pytest.fixture
def bars():
    return load_bars("synthetic", seed=1, timeframe="5m", options={"kind": "signal", "n_bars": 240, "n_assets": 3})


@pytest.fixture
def folder(bars, tmp_path):
    return save_dataset(bars, tmp_path / "set")


def test_a_dataset_comes_back_whole(bars, folder):
    again = load_dataset(folder)
    pd.testing.assert_frame_equal(again.frame, bars.frame)
    for name in (
        "symbols",
        "timeframe",
        "source",
        "asset_class",
        "synthetic",
        "fingerprint",
        "gaps",
        "description",
        "extra",
        "planted",
    ):
        assert getattr(again, name) == getattr(bars, name), name
    assert {path.name for path in folder.iterdir()} == {"bars.parquet", "manifest.json"}


def test_the_manifest_tells_what_is_inside(tmp_path, bars):
    frame = bars.frame.drop(index=[4, 5])
    frame.to_parquet(tmp_path / "holes.parquet")
    holed = load_bars("files", path=tmp_path / "holes.parquet", symbols=("SYN2", "SYN0", "SYN1"))
    folder = save_dataset(holed, tmp_path / "holed")
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["rows"] == 718 and manifest["timeframe"] == "5m" and manifest["source"] == "files"
    assert manifest["symbols"] == ["SYN2", "SYN0", "SYN1"]
    assert manifest["start"] == "2020-01-01T00:00:00+00:00" and manifest["end"] == "2020-01-01T19:55:00+00:00"
    assert manifest["gaps"] == [{"symbol": "SYN0", "after": "2020-01-01T00:15:00+00:00", "missing_bars": 2}]
    assert load_dataset(folder).symbols == ("SYN2", "SYN0", "SYN1")


def test_fewer_symbols_and_coarser_bars(bars, folder):
    part = load_dataset(folder, symbols=("SYN2", "SYN0"), timeframe="1h")
    assert part.symbols == ("SYN2", "SYN0") and str(part.timeframe) == "1h"
    assert len(part.frame) == 2 * 20 and part.synthetic and part.extra == ("signal",)
    assert part.fingerprint != bars.fingerprint and "resampled from 5m" in part.description
    assert part.planted["ic"] == 0.2 and "optimal_log_return_per_bar" not in part.planted
    assert load_dataset(folder, symbols="SYN1").planted == bars.planted
    with pytest.raises(InputError, match="no symbol SYN9; it has SYN0, SYN1, SYN2"):
        load_dataset(folder, symbols="SYN9")
    with pytest.raises(InputError, match="timeframe 1m asked for, but set holds 5m"):
        load_dataset(folder, timeframe="1m")


def test_saving_again_replaces_the_dataset(folder):
    other = load_bars("sample", symbols="IBM,AAPL")
    save_dataset(other, folder)
    assert load_dataset(folder).fingerprint == other.fingerprint


def test_bars_that_do_not_match_their_manifest_are_refused(bars, folder):
    frame = bars.frame.copy()
    frame.loc[7, "volume"] += 1.0
    frame.to_parquet(folder / "bars.parquet")
    with pytest.raises(InputError, match=f"{folder.name}.*fingerprint"):
        load_dataset(folder)


def damage_manifest(folder, **changes):
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest.update(changes)
    path.write_text(json.dumps({k: v for k, v in manifest.items() if v != "gone"}))


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"version": 2}, "version 2, version 1 is accepted"),
        ({"fingerprint": "gone"}, "no valid fingerprint"),
        ({"symbols": ["SYN0"]}, "were expected"),
        ({"symbols": ["SYN1", "SYN0", "SYN2"]}, "the fingerprint of"),
        ({"timeframe": "15m"}, "the fingerprint of"),
        ({"timeframe": "quarter"}, "timeframe 'quarter'"),
        ({"asset_class": "bond"}, "no valid asset_class"),
        ({"extra": ["close"]}, "no valid extra"),
        ({"extra": ["mood"]}, "no column mood"),
    ],
)
def test_a_damaged_manifest_is_refused_naming_the_folder(folder, changes, match):
    damage_manifest(folder, **changes)
    with pytest.raises(InputError, match=match) as caught:
        load_dataset(folder)
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)


def test_missing_and_unreadable_parts_are_refused(folder, tmp_path):
    with pytest.raises(InputError, match=r"nowhere: manifest.json is missing"):
        load_dataset(tmp_path / "nowhere")
    bars = folder / "bars.parquet"
    content = bars.read_bytes()
    bars.write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=r"set: bars.parquet: not readable"):
        load_dataset(folder)
    bars.unlink()
    with pytest.raises(InputError, match=r"set: bars.parquet is missing"):
        load_dataset(folder)
    (folder / "manifest.json").write_text("{half")
    with pytest.raises(InputError, match=r"set: manifest.json is not readable"):
        load_dataset(folder)
    (folder / "manifest.json").write_text("[]")
    with pytest.raises(InputError, match="version None"):
        load_dataset(folder)
