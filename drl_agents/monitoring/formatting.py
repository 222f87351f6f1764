"""Numbers, times and names as people read them; what is not known is a dash."""

from __future__ import annotations

import math

from drl_agents.monitoring.typed_json import parse_time


def number(value: float | None, digits: int = 4) -> str:
    """A number in `digits` significant digits, thousands separated: 12345.6 -> "12,346", None -> "–"."""
    if value is None:
        return "–"
    size = abs(value)
    if size >= 1e15 or 0 < size < 1e-3:
        return f"{value:.{digits}g}"
    decimals = max(0, digits - 1 - math.floor(math.log10(size))) if size else 0
    text = f"{value:,.{decimals}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def money(value: float | None, sign: bool = False) -> str:
    """An amount in the account's currency: 1234.5 -> "$1,234.50", with `sign` "+$1,234.50"."""
    if value is None:
        return "–"
    mark = "-" if value < 0 else "+" if sign else ""
    size = abs(value)
    # A coin's price can be far below a cent: four significant digits there.
    decimals = 2 if size >= 1 or not size else min(16, 3 - math.floor(math.log10(size)))
    return f"{mark}${size:,.{decimals}f}"


def cents(value: float | None) -> str:
    """What a holding is worth, to the cent: what a sale leaves is a billionth of a share, and worth nothing."""
    return money(0.0 if value is not None and abs(value) < 0.005 else value)


def percent(fraction: float | None, sign: bool = False) -> str:
    """A fraction as percent: 0.0123 -> "1.23 %"."""
    return "–" if fraction is None else f"{100 * fraction:{'+' if sign else ''},.2f} %"


def duration(seconds: float | None) -> str:
    """Seconds for people, in the two largest units: 7500 -> "2 h 05 min"."""
    if seconds is None:
        return "–"
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes = int(seconds // 60)
    if minutes < 60:
        return f"{minutes} min {int(seconds % 60):02d} s"
    if minutes < 24 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes // 1440} d {minutes % 1440 // 60} h"


def size(bytes_used: int | None, bytes_total: int | None) -> str:
    """Memory in GiB: "3.1/8.0 GiB"."""
    used, total = (("–" if value is None else f"{value / 2**30:.1f}") for value in (bytes_used, bytes_total))
    return f"{used}/{total} GiB"


def clock(text: str) -> str:
    """An ISO time as "2025-06-01 12:05"; text that is no time stays as it is."""
    moment = parse_time(text)
    return plain(text) if moment is None else f"{moment:%Y-%m-%d %H:%M}"


def plain(value: object) -> str:
    """`value` as text without control characters and unpaired surrogates, which would steer the terminal."""
    return "".join(c if c.isprintable() else "�" for c in str(value))


def setting(value: object) -> str:
    """A hyper-parameter's value; floats in three digits, in five just below one, where discounts are."""
    if not isinstance(value, float):
        return plain(value)
    return number(value, 5 if 0.9 <= value < 1 else 3)


def short(identity: str) -> str:
    """A model's id as people compare it: its first twelve characters."""
    return plain(identity[:12])
