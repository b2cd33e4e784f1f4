"""Plots as inline SVG: plain arrays in, vector graphics out that follow the page's colours.

Colours come from classes of the page's style sheet, `c0`, `c1` .. for series, so that a plot fits a
light and a dark page. Nothing is drawn for NaN.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from detkit.evaluation.inputs import Floats
from detkit.evaluation.report.html import Markup, element, join, shorten

COLORS = 8  # series colours of the style sheet
_WIDTH, _HEIGHT = 440, 290
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 14, 12, 42
FRAME = (_LEFT, _TOP, _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM)  # x, y, width, height
_MOST_POINTS = 1000
_LABEL_LENGTH = 18


@dataclass(frozen=True)
class Axis:
    """One axis of a line plot.

    Attributes:
        label: what it measures.
        ticks: where it has lines and numbers; the first and the last are its ends.
        log: whether it is logarithmic.
    """

    label: str
    ticks: Sequence[float]
    log: bool = False

    def place(self, values: Floats) -> Floats:
        """Where values lie between the ends, 0 to 1; those beyond lie on the end, `[n]`."""
        ends = np.array([self.ticks[0], self.ticks[-1]], float)
        values = np.clip(values, *ends)
        if self.log:
            values, ends = np.log(values), np.log(ends)
        return np.asarray((values - ends[0]) / (ends[1] - ends[0]))


@dataclass(frozen=True)
class Line:
    """One series of a line plot.

    Attributes:
        name: for the legend.
        x: `[n]`.
        y: `[n]`; NaN interrupts the line.
        color: index of the series colour.
        notes: `[n]` texts for the points, which then become dots that show them.
        key: what the page's script finds the line by.
    """

    name: str
    x: Floats
    y: Floats
    color: int = 0
    notes: Sequence[str] = ()
    key: str | None = None


UNIT_TICKS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)


def unit_axis(label: str) -> Axis:
    """From 0 to 1."""
    return Axis(label, UNIT_TICKS)


def line_plot(lines: Sequence[Line], x: Axis, y: Axis, *, diagonal: bool = False) -> Markup:
    """Lines in one frame, with a legend above.

    Args:
        lines: may be empty, and may have no points.
        x: the horizontal axis.
        y: the vertical axis.
        diagonal: also draw the line from corner to corner.
    """
    drawn = [_frame(x, y)]
    if diagonal:
        ends = np.array([0.0, 1.0])
        drawn.append(_path(ends, ends, class_="diagonal"))
    drawn += [_line(line, x, y) for line in lines]
    label = f"{y.label} over {x.label}"
    picture = _picture(_WIDTH, _HEIGHT, *drawn, label=label, class_="plot")
    return join(legend([(line.name, line.color) for line in lines]), picture)


def legend(entries: Sequence[tuple[str, int]]) -> Markup | None:
    """Names beside their colours; None where there is nothing to tell."""
    if not any(name for name, _ in entries):
        return None
    items = [
        element("li", swatch(color), element("bdi", shorten(name, 60))) for name, color in entries
    ]
    return element("ul", *items, class_="legend")


def swatch(color: int) -> Markup:
    """A stroke in the colour of a series."""
    return element("i", class_=f"swatch c{color % COLORS}")


def bar_plot(
    labels: Sequence[str],
    series: Sequence[tuple[str, Sequence[float]]],
    *,
    notes: Sequence[str] = (),
) -> Markup:
    """Horizontal bars in groups, each with its number.

    Args:
        labels: `[n]` of the groups.
        series: (name, `[n]` values from 0 on); NaN has no bar.
        notes: `[n]` a second, fainter line under each label.
    """
    values = np.array([values for _, values in series], float).reshape(len(series), len(labels))
    highest = max(np.nanmax(values, initial=0.0), 1e-9)
    gap, left, thickness = 14, 132, 18 if len(series) == 1 else 13
    group = max(thickness * len(series), 30 if notes else 0) + gap
    room = _WIDTH - left - 56
    drawn: list[Markup] = []
    for row, label in enumerate(labels):
        top = row * group + gap / 2
        middle = top + (group - gap) / 2
        drawn.append(_label(label, left - 8, middle - (7 if notes else 0)))
        if notes:
            drawn.append(_label(notes[row], left - 8, middle + 8, class_="faint"))
        start = middle - thickness * len(series) / 2
        for index, value in enumerate(values[:, row]):
            y, text = start + index * thickness, "-" if math.isnan(value) else f"{value:.3f}"
            length = 0.0 if math.isnan(value) else room * value / highest
            drawn += [
                element("rect", x=left, y=_short(y + 1), width=_short(length),
                        height=thickness - 2, class_=f"bar c{index % COLORS}"),
                element("text", text, x=_short(left + length + 5), y=_short(y + thickness / 2 + 4)),
            ]  # fmt: skip
    names = [(name, index) for index, (name, _) in enumerate(series)]
    height = group * max(len(labels), 1)
    picture = _picture(_WIDTH, height, *drawn, label=", ".join(labels), class_="plot")
    return join(legend(names) if len(series) > 1 else None, picture)


def matrix_plot(counts: np.ndarray, names: Sequence[str]) -> Markup:
    """A matrix of counts, shaded by their share of the row; the diagonal has its own colour.

    Args:
        counts: `[n, n]`.
        names: `[n]` of rows and columns.
    """
    side = min(44.0, max(9.0, 520 / max(len(names), 1)))
    font, left, top = min(12.0, side * 0.9), 140, 112
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    extent = _short(side * len(names))
    cells = [
        _cell((names[i], names[j]), int(counts[i, j]), float(share[i, j]), (i, j), side)
        for i, j in np.argwhere(counts > 0).tolist()
    ]
    return _picture(
        left + side * len(names) + 84,
        top + side * len(names) + 8,
        *(_label(n, left - 6, top + (i + 0.5) * side, size=font) for i, n in enumerate(names)),
        *(_column_label(n, left + (j + 0.5) * side, top - 6) for j, n in enumerate(names)),
        element(
            "g",
            element("rect", width=extent, height=extent, class_="empty"),
            *cells,
            transform=f"translate({left} {top})",
        ),
        label="confusion matrix",
        class_="matrix",
        width=_short(left + side * len(names) + 84),
        font_size=_short(font),
    )


def _cell(
    names: tuple[str, str], count: int, share: float, place: tuple[int, int], side: float
) -> Markup:
    """A cell of a matrix, with its count where that has room."""
    (row, column), (truth, found) = place, (shorten(name, 40) for name in names)
    x, y = column * side, row * side
    rectangle = element(
        "rect",
        element("title", f"{truth} as {found}: {count} ({share:.0%} of the row)"),
        x=_short(x), y=_short(y), width=_short(side), height=_short(side),
        fill_opacity=f"{0.06 + 0.94 * share:.2f}", class_="hit" if row == column else "slip",
    )  # fmt: skip
    if side < 26:
        return rectangle
    text = str(count) if count < 10_000 else f"{count / 1000:.0f}k"
    place_of_text = {"x": _short(x + side / 2), "y": _short(y + side / 2 + 4)}
    style = "count strong" if share > 0.5 else "count"
    return join(rectangle, element("text", text, class_=style, **place_of_text))


def plots(*titled: tuple[str, Markup]) -> Markup:
    """Plots side by side where there is room, each under its title."""
    sections = [element("section", element("h3", title), plot) for title, plot in titled]
    return element("div", *sections, class_="plots")


# ------------------------------------------------------------------------------------------ pieces


def _picture(
    right: float, bottom: float, *drawn: Markup, label: str, **attributes: object
) -> Markup:
    """Drawn between 0, 0 and right, bottom."""
    box = f"0 0 {_short(right)} {_short(bottom)}"
    return element("svg", *drawn, viewBox=box, role="img", aria_label=label, **attributes)


def _frame(x: Axis, y: Axis) -> Markup:
    """Grid lines, numbers and labels of both axes."""
    right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
    drawn = []
    for tick, at in zip(x.ticks, _across(x.place(np.array(x.ticks, float))), strict=True):
        drawn.append(element("path", d=f"M{at:.1f} {_TOP}V{bottom}", class_="grid"))
        drawn.append(element("text", f"{tick:g}", x=_short(at), y=bottom + 16, class_="tick"))
    for tick, at in zip(y.ticks, _down(y.place(np.array(y.ticks, float))), strict=True):
        drawn.append(element("path", d=f"M{_LEFT} {at:.1f}H{right}", class_="grid"))
        drawn.append(
            element("text", f"{tick:g}", x=_LEFT - 6, y=_short(at + 4), class_="tick left")
        )
    drawn.append(element("text", x.label, x=(_LEFT + right) / 2, y=_HEIGHT - 6, class_="tick"))
    middle = (_TOP + bottom) / 2
    turned = f"rotate(-90 12 {middle})"
    drawn.append(element("text", y.label, x=12, y=middle, transform=turned, class_="tick"))
    return element("g", *drawn)


def _line(line: Line, horizontal: Axis, vertical: Axis) -> Markup:
    across, up = horizontal.place(line.x), vertical.place(line.y)
    color = f"c{line.color % COLORS}"
    dots = [
        element("circle", element("title", note), cx=_short(x), cy=_short(y), r=4,
                class_=f"dot {color}")
        for note, x, y in zip(line.notes, _across(across), _down(up), strict=False)
        if not math.isnan(x + y)
    ]  # fmt: skip
    return join(_path(across, up, class_=f"line {color}", data_line=line.key), *dots)


def _path(across: Floats, up: Floats, **attributes: object) -> Markup:
    """A line through points in 0..1; those that fall on the same half pixel are drawn once."""
    points = np.stack([_across(across), _down(up)], axis=1)
    grid = np.round(np.nan_to_num(points, nan=-1.0) * 2)
    new = np.ones(len(points), bool)
    new[1:] = (grid[1:] != grid[:-1]).any(axis=1)
    kept = np.flatnonzero(new)
    if len(kept) > _MOST_POINTS:
        kept = kept[np.linspace(0, len(kept) - 1, _MOST_POINTS).astype(int)]
    steps, pen = [], "M"
    for x, y in points[kept].tolist():
        if math.isnan(x + y):
            pen = "M"
            continue
        steps.append(f"{pen}{x:.1f} {y:.1f}")
        pen = "L"
    return element("path", d="".join(steps), **attributes)


def _across(place: Floats) -> Floats:
    return _LEFT + place * (_WIDTH - _RIGHT - _LEFT)


def _down(place: Floats) -> Floats:
    return _HEIGHT - _BOTTOM - place * (_HEIGHT - _BOTTOM - _TOP)


def _label(text: str, x: float, y: float, *, size: float = 12.0, class_: str = "") -> Markup:
    """Text that ends at x, its middle at y."""
    style = f"label {class_}".rstrip()
    return element("text", _in_short(text), x=_short(x), y=_short(y + size / 3), class_=style)


def _column_label(text: str, x: float, y: float) -> Markup:
    """Slanted text that starts at x, y."""
    turned = f"rotate(-50 {_short(x)} {_short(y)})"
    return element(
        "text", _in_short(text), x=_short(x), y=_short(y), transform=turned, class_="start"
    )


def _in_short(text: str) -> Markup:
    """As much of a text as there is room for; the tooltip has more."""
    short = shorten(text, _LABEL_LENGTH)
    return join(element("title", shorten(text)) if short != text else None, short)


def _short(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
