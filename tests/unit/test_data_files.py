"""Parquet and CSV give the same bars; every unusable file is refused by name."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from environments.data.files import infer_asset_class
from environments.data.source import load_bars
from environments.errors import InputError
from environments.market import Market
from environments.market_env import MarketVecEnv
from environments.regimes import REGIMES

REAL = Path(__file__).resolve().parents[3] / "shared" / "data"


def table(symbols=("BTCUSDT",), start="2024-01-01", periods=24, freq="5min", seed=0):
    rng = np.random.default_rng(seed)
    parts = []
    for symbol in symbols:
        close = 100 * np.exp(np.cumsum(rng.normal(0, 0.01, periods)))
        opened = np.append(100.0, close[:-1])
        parts.append(
            pd.DataFrame(
                {
                    "timestamp": pd.date_range(start, periods=periods, freq=freq, tz="UTC"),
                    "symbol": symbol,
                    "open": opened,
                    "high": np.maximum(opened, close) * 1.001,
                    "low": np.minimum(opened, close) * 0.999,
                    "close": close,
                    "volume": rng.uniform(1, 2, periods),
                    "mood": rng.normal(size=periods),
                }
            )
        )
    return pd.concat(parts, ignore_index=True)


def test_parquet_and_every_csv_notation_of_time_have_one_fingerprint(tmp_path):
    bars = table(("ETHUSDT", "BTCUSDT"))
    bars.to_parquet(tmp_path / "a.parquet")
    stamps = bars["timestamp"].dt.tz_localize(None)
    epoch = (stamps - pd.Timestamp(0)) // pd.Timedelta("1s")
    notations = {
        "offset": bars["timestamp"].dt.tz_convert("Asia/Kolkata").map(lambda t: t.isoformat()),
        "naive": stamps.map(lambda t: t.isoformat(sep=" ")),
        "seconds": epoch,
        "milliseconds": epoch * 1000,
        "microseconds": epoch * 10**6,
        "nanoseconds": epoch * 10**9,
    }
    first = load_bars("files", path=tmp_path / "a.parquet", extra_columns=("mood",))
    assert first.symbols == ("BTCUSDT", "ETHUSDT") and first.extra == ("mood",)
    assert first.asset_class == "crypto" and str(first.timeframe) == "5m" and not first.synthetic
    assert str(first.frame["timestamp"].dtype) == "datetime64[ns, UTC]"
    assert first.frame["symbol"].is_monotonic_increasing
    for name, column in notations.items():
        bars.assign(timestamp=column).to_csv(tmp_path / f"{name}.csv", index=False)
        again = load_bars("files", path=tmp_path / f"{name}.csv", extra_columns="mood")
        assert again.fingerprint == first.fingerprint, name
        assert again.frame["timestamp"].equals(first.frame["timestamp"])


def test_fingerprint_tells_content_apart(tmp_path):
    bars = table(("A", "B"))
    bars.to_parquet(tmp_path / "a.parquet")
    bars.sort_values(["timestamp", "symbol"]).to_parquet(tmp_path / "interleaved.parquet")
    one = bars.copy()
    one.loc[3, "volume"] = np.nextafter(one.loc[3, "volume"], 2)
    one.to_parquet(tmp_path / "one.parquet")

    def of(name, **request):
        return load_bars("files", path=tmp_path / name, **request).fingerprint

    same = of("a.parquet")
    assert len(same) == 64 and of("interleaved.parquet") == same
    others = [
        of("one.parquet"),
        of("a.parquet", symbols=("B", "A")),
        of("a.parquet", symbols="A"),
        of("a.parquet", timeframe="10m"),
        of("a.parquet", extra_columns=("mood",)),
        of("a.parquet", end="2024-01-01T01:00"),
    ]
    assert len({same, *others}) == 7


def test_symbols_keep_the_order_asked_for(tmp_path):
    table(("A", "B", "C")).to_parquet(tmp_path / "a.parquet")
    bars = load_bars("files", path=tmp_path / "a.parquet", symbols=["C", "A"])
    assert bars.symbols == ("C", "A")
    assert bars.frame["symbol"].unique().tolist() == ["A", "C"]


def test_start_is_inclusive_and_end_exclusive_before_and_after_resampling(tmp_path):
    table(periods=36).to_parquet(tmp_path / "a.parquet")  # 00:00 to 02:55
    cut = load_bars("files", path=tmp_path / "a.parquet", start="2024-01-01T00:10", end="2024-01-01T01:00")
    assert cut.frame["timestamp"].iloc[[0, -1]].dt.strftime("%H:%M").tolist() == ["00:10", "00:55"]
    hours = load_bars(
        "files", path=tmp_path / "a.parquet", timeframe="1h", start="2024-01-01T00:10", end="2024-01-01T02:30"
    )
    # 00:00 began before the start and 02:00 would have needed bars from after the end.
    assert hours.frame["timestamp"].dt.strftime("%H:%M").tolist() == ["01:00"]
    assert "resampled from 5m" in hours.description and "resampled" not in cut.description


def test_a_folder_is_one_dataset_and_a_symbol_may_continue_in_another_file(tmp_path):
    whole = table(("A", "B"), periods=40)
    early, late = whole[whole.index % 40 < 20], whole[whole.index % 40 >= 20]
    late.to_parquet(tmp_path / "1.parquet")
    early.to_csv(tmp_path / "2.csv", index=False)
    (tmp_path / "notes.txt").write_text("not bars")
    whole.to_parquet(tmp_path.parent / f"{tmp_path.name}.parquet")
    together = load_bars("files", path=tmp_path)
    assert together.fingerprint == load_bars("files", path=tmp_path.parent / f"{tmp_path.name}.parquet").fingerprint
    early.iloc[-1:].to_parquet(tmp_path / "3.parquet")
    with pytest.raises(InputError, match=r"B at 2024-01-01T01:35.*appears twice"):
        load_bars("files", path=tmp_path)
    table(("C",), freq="1h").to_parquet(tmp_path / "3.parquet")
    with pytest.raises(InputError, match=r"3.parquet 1h; one timeframe"):
        load_bars("files", path=tmp_path)


def test_unusable_files_are_refused_by_name(tmp_path):
    def refused(match, name="bad.csv", **request):
        with pytest.raises(InputError, match=match) as caught:
            load_bars("files", path=tmp_path / name, **request)
        assert "\n" not in str(caught.value)

    good = table()
    refused("no such file", "absent.csv")
    (tmp_path / "bad.csv").write_text("")
    refused("bad.csv: not readable")
    good.iloc[:0].to_csv(tmp_path / "bad.csv", index=False)
    refused("bad.csv: no rows")
    good.assign(symbol=["", *good["symbol"][1:]]).to_csv(tmp_path / "bad.csv", index=False)
    refused("bad.csv: row 1 has no symbol")
    good.assign(volume="many").to_parquet(tmp_path / "bad.parquet")
    refused("bad.parquet: column volume is not numeric", "bad.parquet")
    good.drop(columns="volume").to_csv(tmp_path / "bad.csv", index=False)
    refused("bad.csv: no column volume; it has timestamp, symbol")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 this is no parquet file PAR1")
    refused("bad.parquet: not readable", "bad.parquet")
    (tmp_path / "bad.txt").write_text("x")
    refused("bad.txt: files ending in", "bad.txt")
    (tmp_path / "empty").mkdir()
    refused("no file there ends in", "empty")
    good.astype({"close": object}).replace({"close": {good.loc[2, "close"]: "oops"}}).to_csv(
        tmp_path / "bad.csv", index=False
    )
    refused(r"bad.csv: not readable: .*invalid value .oops")
    good.assign(close=good["close"].where(good.index != 2)).to_csv(tmp_path / "bad.csv", index=False)
    refused("bad.csv: BTCUSDT at 2024-01-01T00:10:00.*close is nan")
    good.assign(timestamp=20240101 + good.index).to_csv(tmp_path / "bad.csv", index=False)
    refused("timestamp 20240101 is neither")
    good.assign(timestamp="yesterday").to_csv(tmp_path / "bad.csv", index=False)
    refused("bad.csv: timestamp.*ISO")
    good.to_csv(tmp_path / "bad.csv", index=False)
    refused("no symbol ETHUSDT, X; it has BTCUSDT", symbols=("ETHUSDT", "BTCUSDT", "X"))
    refused("timeframe 1m asked for, but bad.csv holds 5m bars", timeframe="1m")
    refused("no complete 5m bars of any symbol", start="2030-01-01")
    refused("no column absent", extra_columns=("absent",))
    good.iloc[:1].to_csv(tmp_path / "bad.csv", index=False)
    refused("no symbol has two bars")
    table(freq="7D").to_csv(tmp_path / "bad.csv", index=False)
    refused("7 days apart")
    table(freq="30s").to_csv(tmp_path / "bad.csv", index=False)
    refused("30 s apart")


def test_daily_csv_with_plain_dates_compressed(tmp_path):
    bars = table(("AAPL",), periods=30, freq="B")
    bars.to_parquet(tmp_path / "a.parquet")
    bars.assign(timestamp=bars["timestamp"].dt.strftime("%Y-%m-%d")).to_csv(tmp_path / "a.csv.gz", index=False)
    daily = load_bars("files", path=tmp_path / "a.csv.gz")
    assert (str(daily.timeframe), daily.asset_class, daily.gaps) == ("1d", "stock", ())
    assert daily.fingerprint == load_bars("files", path=tmp_path / "a.parquet").fingerprint


def test_the_ticker_na_is_a_symbol(tmp_path):
    table(("NA", "AAPL")).to_csv(tmp_path / "a.csv", index=False)
    assert load_bars("files", path=tmp_path / "a.csv").symbols == ("AAPL", "NA")


def test_asset_class_is_decided_by_the_bars():
    assert infer_asset_class(table(("WHATEVER",), periods=10, freq="1D")) == "crypto"
    business = table(("BTCUSDT",), periods=10, freq="B")
    assert infer_asset_class(business) == "stock"
    # Two special weekend sessions (a Saturday and a Sunday) in half a year do not make a stock a coin.
    special = table(("SBIN",), periods=2, freq="8D", start="2024-01-20")
    assert special["timestamp"].dt.day_of_week.tolist() == [5, 6]
    assert infer_asset_class(pd.concat([table(("SBIN",), periods=120, freq="B"), special])) == "stock"
    # No weekend in sight: the names decide.
    monday = {"start": "2024-01-08", "periods": 20, "freq": "5min"}
    assert infer_asset_class(table(("BTC/USD", "SOL-USDC"), **monday)) == "crypto"
    assert infer_asset_class(table(("BTC/USD", "AAPL"), **monday)) == "stock"


@pytest.mark.parametrize("symbols", ["BTCUSDT,SOLUSDT"])
def test_resampled_real_bars_equal_the_exchanges_own_hourly_bars(symbols):
    fine, coarse = REAL / "crypto_5m_binance_2024.parquet", REAL / "crypto_1h_binance_2018_2024.parquet"
    if not fine.exists() or not coarse.exists():
        pytest.skip("the real bars are not on this machine")
    made = load_bars("files", path=fine, symbols=symbols, timeframe="1h", end="2024-02-01").frame
    theirs = load_bars("files", path=coarse, symbols=symbols, start="2024-01-01", end="2024-02-01").frame
    assert len(made) == 2 * 31 * 24
    prices = ["timestamp", "symbol", "open", "high", "low", "close"]
    pd.testing.assert_frame_equal(made[prices], theirs[prices], check_exact=True)
    np.testing.assert_allclose(made["volume"], theirs["volume"], rtol=1e-12)


def test_market_capitalisation_reaches_the_regime_that_tilts_to_the_small(tmp_path):
    """AAA is dear and small, BBB cheap and large: by the price BBB would be the smaller one. CCC's size is unknown."""
    bars = table(("AAA", "BBB", "CCC"), periods=80).drop(columns="mood")
    prices = ["open", "high", "low", "close"]
    scale = bars["symbol"].map({"AAA": 10.0, "BBB": 0.1, "CCC": 1.0})
    bars[prices] = bars[prices].mul(scale, axis=0)
    bars["marketcap"] = bars["symbol"].map({"AAA": 1e9, "BBB": 2e12, "CCC": np.nan})
    bars.loc[(bars["symbol"] == "AAA") & (bars.index % 80 >= 70), "marketcap"] = (
        3e12  # overtakes BBB ten bars from the end
    )
    bars.to_csv(tmp_path / "a.csv", index=False)
    small = REGIMES.index("SIZE_SMALL")

    def weights(*extra):
        request = {"path": tmp_path / "a.csv", "asset_class": "crypto", "extra_columns": extra}
        env = MarketVecEnv(
            Market.from_bars(load_bars("files", **request)),
            1,
            action="regimes",
            features=("return_1",),
            random_start=False,
        )
        return env.action_row(torch.tensor([60, 75]))[:, small].tolist()

    # Two assets have a size; the smaller one of the two has twice the weight of each other asset.
    assert weights("marketcap") == [pytest.approx([0.5, 0.25, 0.25]), pytest.approx([0.25, 0.5, 0.25])]
    # By the price, three have one: the smaller half of three is two.
    assert weights() == [pytest.approx([0.2, 0.4, 0.4])] * 2
