"""Curves as braille dots: two dots across and four down in each character cell of a terminal."""

from __future__ import annotations

from collections.abc import Sequence

# Bit of the dot at (column, row) of a cell, rows from the top: the order of Unicode's block U+2800.
DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))


def braille(curves: Sequence[Sequence[float | None]], width: int, height: int) -> list[str]:
    """Draw curves over one another, from the lowest value of all (bottom) to the highest (top).

    Args:
        curves: each of values at even steps, the first at the left edge and the last at the right one; None: a gap.
        width, height: character cells.

    Returns:
        `height` lines of `width` characters; no lines where there is no value.
    """
    values = [v for curve in curves for v in curve if v is not None]
    if not values or width < 1 or height < 1:
        return []
    low, high = min(values), max(values)
    across, down = 2 * width, 4 * height
    cells = [[0] * width for _ in range(height)]

    def row_of(value: float) -> int:
        # Halved first: the range of two finite numbers may not be finite.
        share = (value / 2 - low / 2) / (high / 2 - low / 2) if high > low else 0.5
        return round((1 - share) * (down - 1))

    for curve in curves:
        before: int | None = None
        for x in range(across):
            value = curve[round(x * (len(curve) - 1) / (across - 1))] if curve else None
            if value is None:
                before = None
                continue
            y = row_of(value)
            # A steep piece is drawn through, from the dot beside the one before: a jump would leave two loose ends.
            near = y if before is None or before == y else before + (1 if y > before else -1)
            for dot in range(min(y, near), max(y, near) + 1):
                cells[dot // 4][x // 2] |= DOTS[x % 2][dot % 4]
            before = y
    return ["".join(chr(0x2800 + bits) for bits in line) for line in cells]
