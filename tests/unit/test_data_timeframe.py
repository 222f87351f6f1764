"""Timeframe: notation there and back, and what is refused."""

import pytest

from environments.errors import InputError
from environments.timeframe import Timeframe


@pytest.mark.parametrize(
    ("text", "minutes", "canonical"),
    [
        ("1m", 1, "1m"),
        ("60m", 60, "1h"),
        ("90m", 90, "90m"),
        ("4h", 240, "4h"),
        ("24h", 1440, "1d"),
        ("1d", 1440, "1d"),
    ],
)
def test_parse_gives_minutes_and_canonical_notation(text, minutes, canonical):
    timeframe = Timeframe.parse(text)
    assert (timeframe.minutes, str(timeframe)) == (minutes, canonical)
    assert timeframe.nanoseconds == minutes * 60_000_000_000
    assert Timeframe.parse(str(timeframe)) == timeframe


@pytest.mark.parametrize("text", ["", "5", "m", "1M", "5min", "0m", "-5m", "1.5h", "1w", "999999d", None, 5])
def test_parse_refuses_other_notations(text):
    with pytest.raises(InputError, match="accepted"):
        Timeframe.parse(text)


@pytest.mark.parametrize("minutes", [0, -1, 1.0, True, "5"])
def test_minutes_must_be_a_positive_whole_number(minutes):
    with pytest.raises(InputError, match="whole minutes"):
        Timeframe(minutes)
