"""A picture of what a detector's cells see beside what there is to be seen.

Colours are those of Okabe and Ito, which people with any colour vision tell apart.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from detkit.analysis.scales import Scales, box_sides, levels_of
from detkit.analysis.subject import Subject, backbone_of, without_pyramid
from detkit.engine.data import build_dataset
from detkit.files import open_atomically
from detkit.registry import suggest

_BLUE, _ORANGE, _GREEN, _RED, _GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#5A5A5A"
_BINS_PER_OCTAVE = 6


def save_plot(subject: Subject, path: str | Path) -> Scales:
    """Draw the levels of a network, and the boxes of its training data if it has a recipe.

    Args:
        subject: what is drawn.
        path: of the picture; its ending says the format.

    Returns:
        What was drawn.

    Raises:
        ValueError: the data cannot be read, or the ending is of no format.
    """
    path = Path(path)
    formats = Figure().canvas.get_supported_filetypes()
    ending = path.suffix.removeprefix(".").lower()
    if ending not in formats:
        raise ValueError(f"{path}: unknown kind of picture; {suggest(ending, formats)}")
    scales, title = scales_of(subject), subject.name
    if subject.recipe is not None:
        title += f": {subject.recipe.model.backbone.name} at {'x'.join(map(str, subject.size))}"
    with open_atomically(path) as handle:
        plot_scales(scales, title).savefig(handle, format=ending, dpi=150)
    return scales


def scales_of(subject: Subject) -> Scales:
    """The levels of a network, and the boxes of its training data if it has a recipe."""
    net = without_pyramid(subject.build("cpu"))  # anchors have values
    body = backbone_of(net)
    recipe = subject.recipe
    if recipe is None:
        return Scales(levels_of(body.stage_info()))
    levels = levels_of(body.feature_info, net)
    if recipe.data.train is None:
        return Scales(levels)
    dataset = build_dataset(recipe.data.train, role="train")
    return Scales(levels, box_sides(dataset, recipe.data.resize))


def plot_scales(scales: Scales, title: str) -> Figure:
    """Receptive fields, strides and anchors of every level below a histogram of the objects.

    Args:
        scales: what is drawn; without `sides` the histogram is left out.
        title: of the picture.
    """
    has_objects = scales.sides is not None
    rows = len(scales.levels)
    heights = [2.6, 0.46 * rows + 0.6] if has_objects else [0.46 * rows + 0.6]
    figure = Figure(figsize=(9, sum(heights) + 1.5), layout="constrained")
    axes = figure.subplots(len(heights), 1, sharex=True, squeeze=False, height_ratios=heights)
    figure.suptitle(title, fontsize=12)
    low, high = _limits(scales)
    if has_objects:
        _draw_objects(axes[0, 0], scales, low, high)
    _draw_levels(axes[-1, 0], scales)
    ticks = 2.0 ** np.arange(np.ceil(np.log2(low)), np.floor(np.log2(high)) + 1)
    axes[-1, 0].set_xscale("log", base=2)
    axes[-1, 0].set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes[-1, 0].set_xlim(low, high)
    axes[-1, 0].set_xlabel("pixels of the image as the network gets it (logarithmic)")
    figure.legend(
        *axes[-1, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False
    )
    return figure


def _limits(scales: Scales) -> tuple[float, float]:
    """Of the axis, with room for the numbers at the ends of the bars."""
    given = [float(level.stride) for level in scales.levels]
    given += [float(side) for level in scales.levels for side in level.anchors]
    given += [float(level.receptive_field) for level in scales.levels if level.receptive_field]
    if scales.sides is not None and len(scales.sides):
        given += [float(scales.sides.min()), float(scales.sides.max())]
    return min(given) / 3, max(given) * 3


def _draw_objects(axes: Axes, scales: Scales, low: float, high: float) -> None:
    assert scales.sides is not None
    finest, largest = scales.finest_stride, scales.largest_field
    octaves = np.log2(high / low)
    bins = np.geomspace(low, high, int(octaves * _BINS_PER_OCTAVE) + 1)
    axes.hist(scales.sides, bins.tolist(), color=_GREY, alpha=0.75)
    axes.set_ylabel("objects")
    axes.axvline(finest, color=_ORANGE, linewidth=1.5)
    axes.axvspan(low, finest, color=_ORANGE, alpha=0.12, linewidth=0)
    title = (
        f"{len(scales.sides):,} boxes by the square root of their area\n"
        f"{_percent(scales.smaller_than(finest))} smaller than the finest stride ({finest} px)"
    )
    if largest is not None:
        axes.axvline(largest, color=_BLUE, linewidth=1.5)
        axes.axvspan(largest, high, color=_BLUE, alpha=0.12, linewidth=0)
        share = _percent(scales.larger_than(largest))
        title += f", {share} larger than the largest receptive field ({largest} px)"
    axes.set_title(title, fontsize=10)


def _annotate(axes: Axes, text: str, x: float, y: float, points: int) -> None:
    """Text that many points to the right of a place, or to the left."""
    axes.annotate(
        text,
        (x, y),
        xytext=(points, 0),
        textcoords="offset points",
        ha="left" if points > 0 else "right",
        va="center",
        fontsize=8,
    )


def _percent(share: float) -> str:
    if 0 < share < 0.001:
        return "less than 0.1 %"
    return f"{100 * share:.1f} %"


def _draw_levels(axes: Axes, scales: Scales) -> None:
    levels = scales.levels
    rows = np.arange(len(levels))[::-1]  # the finest on top
    fields = [level.receptive_field or level.stride for level in levels]
    strides = [level.stride for level in levels]
    widths = np.subtract(fields, strides)
    axes.barh(
        rows, widths, left=strides, height=0.5, color=_BLUE, alpha=0.35,
        label="from the stride to the receptive field of the backbone's map",
    )  # fmt: skip
    axes.plot(strides, rows, "|", color=_ORANGE, markersize=16, markeredgewidth=3, label="stride")
    anchors = [
        (side, row) for level, row in zip(levels, rows, strict=True) for side in level.anchors
    ]
    if anchors:
        axes.plot(*zip(*anchors, strict=True), "D", color=_RED, markersize=6, label="anchor")
    for level, row, field in zip(levels, rows, fields, strict=True):
        beyond = f"{level.receptive_field}" if level.receptive_field else "field not known"
        if scales.sides is not None and len(scales.sides):
            if level.receptive_field:
                beyond += f"\n{_percent(scales.larger_than(level.receptive_field))} larger"
            below = f"{_percent(scales.smaller_than(level.stride))}\nsmaller"
            _annotate(axes, below, level.stride, row, -9)
        _annotate(axes, beyond, max([field, *level.anchors]), row, 9)
    axes.set_yticks(rows, [f"{level.name} (stride {level.stride})" for level in levels])
    axes.set_ylim(-0.6, len(levels) - 0.4)
    axes.set_axisbelow(True)
    axes.grid(axis="x", alpha=0.3)
