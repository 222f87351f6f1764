"""The data websocket as a queue of bars, through alpaca-py's own client."""

from __future__ import annotations

import queue

import pytest

from environments.alpaca_env import VectorizedCryptoEnvAlpaca
from environments.data.credentials import Secret
from environments.live.alpaca_local.server import LocalAlpaca
from environments.live.alpaca_stream import BarStream

KEYS = (Secret("local"), Secret("local"))


def test_bars_come_through_twice_late_and_after_a_cut(make_market, random_bars):
    market = make_market({"BTCUSDT": random_bars(1, 70), "DOGEUSDT": random_bars(2, 70)}, timeframe="1m")
    stamps, closes = market.timestamps.tolist(), market.close
    with LocalAlpaca(VectorizedCryptoEnvAlpaca(market, 1), 50, 70) as venue:
        stream = BarStream(["BTC/USDT", "DOGE/USDT"], "crypto", KEYS, url=f"{venue.stream_url}/v1beta3/crypto/us")
        try:
            first = None
            while first is None:  # until the subscription stands
                venue.advance()
                try:
                    first = stream.get(1.0)
                except queue.Empty:
                    continue
            symbol, stamp, values = first
            bar = stamps.index(stamp)
            assert (
                symbol == "BTC/USDT" and values[3] == closes[bar, 0].item() and values[0] == market.open[bar, 0].item()
            )
            assert stream.get(5.0)[:2] == ("DOGE/USDT", stamp)
            venue.faults.next("repeat_bar")
            venue.advance()
            told = [stream.get(5.0) for _ in range(3)]
            assert {t[1] for t in told} == {stamps[bar + 1]} and len({t[0] for t in told}) == 2
        finally:
            stream.close()
        with pytest.raises(queue.Empty):
            while True:
                stream.get(0.1)
