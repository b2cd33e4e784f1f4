"""The section of a report with curves: of all classes, or of the one that is chosen."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from detkit.evaluation.inputs import RECALL_GRID, Floats
from detkit.evaluation.report.html import Markup, element, join, json_block, shorten
from detkit.evaluation.report.models import IOU, Model
from detkit.evaluation.report.svg import FRAME, UNIT_TICKS, Axis, Line, line_plot, plots, unit_axis

MOST_CLASSES = 200  # whose curves are in the page, the most frequent ones


class ClassLine(NamedTuple):
    """A line of all classes that becomes that of one class when it is chosen.

    Attributes:
        line: of all.
        classes: `[K, 101]` of each class, on the same even grid; NaN where unknown.
    """

    line: Line
    classes: Floats


def curves(models: Sequence[Model]) -> Markup:
    """Precision over recall, and both over the score threshold, of all classes or of one."""
    grid = _threshold_grid(models)
    alone = len(models) == 1
    pr = [line for model in models for line in _pr_lines(model, alone=alone)]
    points = [line for model in models for line in _point_lines(model, grid, alone=alone)]
    usual = grid[0] == 0 and grid[-1] == 1
    precision = line_plot([each.line for each in pr], unit_axis("recall"), unit_axis("precision"))
    threshold = line_plot(
        [each.line for each in points],
        Axis("score threshold", UNIT_TICKS if usual else grid[::25].tolist()),
        unit_axis("share" if alone else "F1"),
    )
    return join(
        _class_choice(models[0], [*pr, *points]),
        plots(
            (f"Precision and recall{'' if alone else f' at IoU {IOU}'}", precision),
            (f"{'Precision, recall and F1' if alone else 'F1'} at IoU {IOU}", threshold),
        ),
    )


def _pr_lines(model: Model, *, alone: bool) -> Iterator[ClassLine]:
    """Mean over the classes of the precision at each recall."""
    for index, iou in enumerate((0.5, 0.75, 0.9) if alone else (IOU,)):
        found = model.result.pr_curves(iou)
        classes = np.array([each.interpolated for each in found]).reshape(-1, len(RECALL_GRID))
        mean = model.result.pr_curve(None, iou).interpolated
        name, color = (f"IoU {iou}", index) if alone else (model.name, model.place)
        key = f"pr-{model.place}-{index}"
        yield ClassLine(Line(name, RECALL_GRID, mean, color, key=key), classes)


def _point_lines(model: Model, grid: Floats, *, alone: bool) -> Iterator[ClassLine]:
    """Precision, recall and F1 of all classes under one threshold; of several models F1 alone."""
    overall = model.points.overall.sampled(grid)
    classes = [each.sampled(grid) for each in model.points.classes]
    for index, kind in enumerate(("precision", "recall", "f1") if alone else ("f1",)):
        values = np.array([getattr(each, kind) for each in classes]).reshape(-1, len(grid))
        name, color = (kind.replace("f1", "F1"), index) if alone else (model.name, model.place)
        key = f"{kind}-{model.place}"
        yield ClassLine(Line(name, grid, getattr(overall, kind), color, key=key), values)


def _threshold_grid(models: Sequence[Model]) -> Floats:
    grids = [model.points.grid for model in models]
    return np.linspace(min(g[0] for g in grids), max(g[-1] for g in grids), 101)


def _class_choice(model: Model, lines: Sequence[ClassLine]) -> Markup | None:
    """The field that chooses a class, and for the page's script the curves of each."""
    names, truths = model.result.class_names, [each.truths for each in model.points.classes]
    chosen = sorted(range(len(names)), key=lambda index: -truths[index])[:MOST_CLASSES]
    chosen = sorted((index for index in chosen if truths[index]), key=lambda i: names[i].lower())
    if len(chosen) < 2:
        return None
    table = {
        each.line.key: [_thousandths(each.line.y), *map(_thousandths, each.classes[chosen])]
        for each in lines
    }
    options = [element("option", f"{shorten(names[i], 60)} ({truths[i]:,})") for i in chosen]
    field = element("select", element("option", "all classes"), *options, id="curve-class")
    label = element("label", "curves of ", field)
    rest = sum(count > 0 for count in truths) - len(chosen)
    more = element("span", f"{rest} rarer classes are left out", class_="faint") if rest else None
    data = json_block("curve-data", {"frame": FRAME, "lines": table})
    return join(element("div", label, more, class_="tools"), data)


def _thousandths(values: Floats) -> list[int]:
    """Whole numbers for the script; -1 for NaN."""
    return np.where(np.isnan(values), -1, np.round(values * 1000)).astype(int).tolist()
