"""The sections of a report that are plots."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from detkit.evaluation.confusion import BACKGROUND, ConfusionMatrix
from detkit.evaluation.errors import ERRORS, ErrorKind
from detkit.evaluation.inputs import RECALL_GRID, Floats, Ints
from detkit.evaluation.report.html import Markup, element, join, json_block, shorten
from detkit.evaluation.report.models import IOU, Model
from detkit.evaluation.report.svg import (
    FRAME,
    UNIT_TICKS,
    Axis,
    Line,
    bar_plot,
    line_plot,
    matrix_plot,
    unit_axis,
)
from detkit.evaluation.report.tables import Column, plain_table
from detkit.evaluation.roc import FROC_RATES
from detkit.evaluation.slices import Slices
from detkit.evaluation.tables import number

MOST_CLASSES = 200  # whose curves are in the page, the most frequent ones
WIDEST_MATRIX = 40  # classes; of more, those that are confused most

MEANINGS = {
    ErrorKind.CLASSIFICATION: "on an object, but of another class",
    ErrorKind.LOCALISATION: "of the right class, but the box fits badly",
    ErrorKind.BOTH: "of another class, and the box fits badly",
    ErrorKind.DUPLICATE: "on an object that a better detection has found",
    ErrorKind.BACKGROUND: "where nothing is",
    ErrorKind.MISSED: "objects that no detection points at",
}


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
        _plots(
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
        name, color = (f"IoU {iou}", index) if alone else (model.name, model.color)
        key = f"pr-{model.color}-{index}"
        yield ClassLine(Line(name, RECALL_GRID, mean, color, key=key), classes)


def _point_lines(model: Model, grid: Floats, *, alone: bool) -> Iterator[ClassLine]:
    """Precision, recall and F1 of all classes under one threshold; of several models F1 alone."""
    overall = model.points.overall.sampled(grid)
    classes = [each.sampled(grid) for each in model.points.classes]
    for index, kind in enumerate(("precision", "recall", "f1") if alone else ("f1",)):
        values = np.array([getattr(each, kind) for each in classes]).reshape(-1, len(grid))
        name, color = (kind.replace("f1", "F1"), index) if alone else (model.name, model.color)
        key = f"{kind}-{model.color}"
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


def errors(models: Sequence[Model]) -> Markup:
    """What each type of error costs."""
    analyses = [model.errors for model in models]
    labels = [kind.label for kind in ERRORS]
    notes = [f"{analyses[0].counts[label]:,}" for label in labels] if len(models) == 1 else []
    series = [
        (model.name, [each.delta_ap[label] for label in labels])
        for model, each in zip(models, analyses, strict=True)
    ]
    special = [
        (model.name, [each.delta_false_positives, each.delta_false_negatives])
        for model, each in zip(models, analyses, strict=True)
    ]
    meaning = [element("li", element("b", k.label), f": {text}") for k, text in MEANINGS.items()]
    return join(
        element(
            "p",
            f"What AP at IoU {IOU} would gain if all errors of one type were corrected "
            f"(TIDE){'; below each type, how many there are' if notes else ''}.",
            class_="about",
        ),
        _plots(
            ("Cost of each type of error", bar_plot(labels, series, notes=notes)),
            (
                "Cost of all false positives, of all false negatives",
                join(
                    bar_plot(["false positives", "false negatives"], special),
                    element("ul", *meaning, class_="about"),
                ),
            ),
        ),
    )


def confusion(models: Sequence[Model]) -> Markup:
    """Which classes are taken for which."""
    pieces = []
    for model in models:
        score = 0.25 if np.isnan(model.threshold) else model.threshold
        matrix = model.result.confusion(iou=IOU, score=score)
        shown = join(
            element(
                "p",
                f"Rows are truths, columns are what they were taken for; IoU {IOU}, scores from "
                f"{score:.3f} on{_where_f1_is_highest(model)}. The shade is the share of the row.",
                class_="about",
            ),
            _matrix(matrix),
            _pairs(matrix),
        )
        pieces.append(shown if len(models) == 1 else under_name(model, shown))
    return join(*pieces)


def _where_f1_is_highest(model: Model) -> str:
    return "" if np.isnan(model.threshold) else ", where F1 is highest"


def _matrix(matrix: ConfusionMatrix) -> Markup:
    kept = _most_confused_classes(matrix.counts)
    rows = np.append(kept, len(matrix.class_names))
    names = [*(matrix.class_names[index] for index in kept), BACKGROUND]
    left_out = len(matrix.class_names) - len(kept)
    note = f"The {len(kept)} classes that are confused most; {left_out} others are left out."
    return join(
        element("p", note, class_="about") if left_out else None,
        element("div", matrix_plot(matrix.counts[np.ix_(rows, rows)], names), class_="scroll"),
    )


def _most_confused_classes(counts: Ints) -> Ints:
    """Those that fit into the plot, in the order of their ids."""
    between = counts[:-1, :-1] - np.diag(np.diag(counts)[:-1])
    total = between.sum(axis=0) + between.sum(axis=1)
    return np.sort(np.argsort(-total, kind="stable")[:WIDEST_MATRIX])


def _pairs(matrix: ConfusionMatrix) -> Markup | None:
    pairs = matrix.most_confused(15)
    if not pairs:
        return None
    columns = [
        Column("truth", [pair.truth for pair in pairs]),
        Column("taken for", [pair.detection for pair in pairs]),
        Column("count", [pair.count for pair in pairs]),
        Column("share", [pair.share for pair in pairs], "of all truths of the class"),
    ]
    return join(element("h3", "Most frequent confusions"), plain_table(columns))


def scores(models: Sequence[Model]) -> Markup:
    """Whether scores mean what they say, and hits against false alarms."""
    return _plots(
        ("Calibration: precision of what has a score", _reliability(models)),
        (f"FROC at IoU {IOU}: recall against false alarms", _froc(models)),
    )


def _reliability(models: Sequence[Model]) -> Markup:
    lines, errors_found = [], []
    for model in models:
        try:
            every = model.result.calibration(iou=IOU).overall
        except ValueError as error:  # scores that are no probabilities
            return element("p", str(error), class_="about")
        notes = [
            f"scores {low:.1f} to {high:.1f}: {count:,} detections, {precision:.3f} of them right"
            for low, high, count, precision in zip(
                every.edges[:-1], every.edges[1:], every.counts, every.precision, strict=True
            )
        ]
        name = _name(model, models)
        of_model = f" of {shorten(name, 60)}" if name else ""
        errors_found.append(f"expected calibration error{of_model} {number(every.ece)}")
        lines.append(Line(name, every.scores, every.precision, model.color, notes=notes))
    plot = line_plot(lines, unit_axis("score"), unit_axis("precision"), diagonal=True)
    return join(plot, element("p", "; ".join(errors_found), class_="about"))


def _froc(models: Sequence[Model]) -> Markup:
    rates = np.geomspace(FROC_RATES[0], FROC_RATES[-1], 121)
    lines = [
        Line(_name(model, models), rates, model.result.froc(iou=IOU).overall.at(rates), model.color)
        for model in models
    ]
    return line_plot(
        lines, Axis("false positives an image", FROC_RATES, log=True), unit_axis("recall")
    )


def _name(model: Model, models: Sequence[Model]) -> str:
    """For a legend, which a single model does not need."""
    return model.name if len(models) > 1 else ""


def parts(models: Sequence[Model]) -> Markup:
    """AP of objects of some size or shape, and of images with few or many."""
    about = (
        "AP of the objects of a size (square root of the area), of the images with so many "
        "objects, and of the boxes of a shape; below each part, how many boxes it has."
    )
    return join(
        element("p", about, class_="about"),
        _plots(
            ("Size in pixels", _part_bars(models, [m.result.by_size() for m in models])),
            ("Objects in the image", _part_bars(models, [m.result.by_density() for m in models])),
            ("Height / width", _part_bars(models, [m.result.by_aspect_ratio() for m in models])),
        ),
    )


def _part_bars(models: Sequence[Model], slices: Sequence[Slices]) -> Markup:
    """A group of bars for each part that has truths."""
    kept = [index for index, part in enumerate(slices[0].slices) if part.truths]
    if not kept:
        return element("p", "No truths.", class_="about")
    first = [slices[0].slices[index] for index in kept]
    series = [
        (model.name, [each.slices[index].AP for index in kept])
        for model, each in zip(models, slices, strict=True)
    ]
    return bar_plot(
        [part.label for part in first], series, notes=[f"{part.truths:,}" for part in first]
    )


def under_name(model: Model, content: Markup) -> Markup:
    """A part of the page that belongs to one of several models; the first is open."""
    summary = element(
        "summary",
        element("i", class_=f"swatch c{model.color}"),
        element("bdi", shorten(model.name)),
    )
    return element("details", summary, content, open=model.color == 0)


def _plots(*titled: tuple[str, Markup]) -> Markup:
    sections = [element("section", element("h3", title), plot) for title, plot in titled]
    return element("div", *sections, class_="plots")
