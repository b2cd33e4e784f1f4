"""The sections of a report that are plots: errors, confusions, scores, parts of the data."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from detkit.evaluation.confusion import BACKGROUND, ConfusionMatrix
from detkit.evaluation.errors import ERRORS, ErrorKind
from detkit.evaluation.inputs import Ints
from detkit.evaluation.report.html import Markup, element, join, shorten
from detkit.evaluation.report.models import IOU, Model, under_names
from detkit.evaluation.report.svg import (
    Axis,
    Line,
    bar_plot,
    line_plot,
    matrix_plot,
    plots,
    unit_axis,
)
from detkit.evaluation.report.tables import Column, plain_table
from detkit.evaluation.roc import FROC_RATES
from detkit.evaluation.slices import Slices
from detkit.evaluation.tables import number

WIDEST_MATRIX = 40  # classes; of more, those that are confused most

MEANINGS = {
    ErrorKind.CLASSIFICATION: "on an object, but of another class",
    ErrorKind.LOCALISATION: "of the right class, but the box fits badly",
    ErrorKind.BOTH: "of another class, and the box fits badly",
    ErrorKind.DUPLICATE: "on an object that a better detection has found",
    ErrorKind.BACKGROUND: "where nothing is",
    ErrorKind.MISSED: "objects that no detection points at",
}


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
        plots(
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
        pieces.append(shown)
    return under_names(models, pieces)


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
    return plots(
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
        lines.append(Line(name, every.scores, every.precision, model.place, notes=notes))
    plot = line_plot(lines, unit_axis("score"), unit_axis("precision"), diagonal=True)
    return join(plot, element("p", "; ".join(errors_found), class_="about"))


def _froc(models: Sequence[Model]) -> Markup:
    rates = np.geomspace(FROC_RATES[0], FROC_RATES[-1], 121)
    lines = [
        Line(_name(model, models), rates, model.result.froc(iou=IOU).overall.at(rates), model.place)
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
        plots(
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
