"""Tables in Markdown and in plain text, and numbers that may be unknown."""

from __future__ import annotations

import math
from collections.abc import Sequence


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table with aligned columns; the first row is its head."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) + " |"
        for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def plain(rows: Sequence[Sequence[str]], *, names: int = 1) -> str:
    """A table for a terminal: `names` columns to the left, then numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(width) if place < names else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    return "\n".join(line.rstrip() for line in lines)


def number(value: float, digits: int = 3) -> str:
    """The number as a cell; "-" for NaN, which stands for what is not known."""
    return "-" if math.isnan(value) else f"{value:.{digits}f}"


def known(value: float) -> float | None:
    """The number for JSON, which has no NaN."""
    return None if math.isnan(value) else float(value)
