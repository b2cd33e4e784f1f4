"""The sections of a report that are numbers: the headline, the 12 numbers, the classes."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence

from detkit.evaluation.bootstrap import Interval
from detkit.evaluation.paired import compare
from detkit.evaluation.report.html import Markup, element, join, shorten
from detkit.evaluation.report.models import Model
from detkit.evaluation.report.svg import swatch
from detkit.evaluation.report.tables import Column, plain_table, sortable_table
from detkit.evaluation.result import STATISTICS


def headline(models: Sequence[Model]) -> Markup:
    """What was measured, AP of each model with its interval, and who is better."""
    truths = models[0].result.truths
    crowds = int(truths.truths.crowd.sum())
    facts = (
        f"{len(truths.image_ids):,} images, {len(truths.truths):,} boxes"
        f"{f' ({crowds:,} crowd)' if crowds else ''}, {len(truths.category_ids):,} classes"
    )
    source = element("bdi", shorten(truths.source))
    if len(models) == 1:
        cards = list(_cards_of_one(models[0]))
        source = join(element("bdi", shorten(models[0].name)), " on ", source)
    else:
        cards = [_card_of_several(model) for model in models]
    return join(
        element("p", source, ": ", facts, class_="about"),
        element("div", *cards, class_="headline"),
        *(_verdict(models[0], other) for other in models[1:]),
        *(_notes(model, models) for model in models),
    )


def _cards_of_one(model: Model) -> Iterator[Markup]:
    """AP, AP50 and AP75 with their intervals, and the best F1."""
    interval, best = model.interval, model.points.overall.best
    ap, ap50, ap75 = model.result.stats[:3].tolist()
    overlaps = model.result.settings.iou_thresholds
    where = f"at overlaps of {overlaps[0]:g} to {overlaps[-1]:g}"
    yield _card(where, f"AP {_number(ap)}", _range(interval.AP), _how(model))
    yield _card("at an overlap of 0.5", f"AP50 {_number(ap50)}", _range(interval.AP50))
    yield _card("at an overlap of 0.75", f"AP75 {_number(ap75)}", _range(interval.AP75))
    if not math.isnan(best.threshold):
        where = f"precision {best.precision:.3f}, recall {best.recall:.3f}"
        yield _card(f"at scores from {best.threshold:.3f} on", f"F1 {best.f1:.3f}", where)


def _card_of_several(model: Model) -> Markup:
    best, (ap, ap50, ap75) = model.points.overall.best, model.result.stats[:3].tolist()
    facts = f"AP50 {_number(ap50)}, AP75 {_number(ap75)}"
    if not math.isnan(best.threshold):
        facts += f"; F1 {best.f1:.3f} at scores from {best.threshold:.3f} on"
    name = join(swatch(model.place), element("bdi", shorten(model.name)))
    return _card(name, f"AP {_number(ap)}", _range(model.interval.AP), _how(model), facts)


def _card(name: str, value: str, *lines: str | None) -> Markup:
    return element(
        "div",
        element("div", name, class_="name"),
        element("div", value, class_="value"),
        *(element("div", line, class_="faint" if place else None)
          for place, line in enumerate(lines) if line),
        class_="card",
    )  # fmt: skip


def _range(interval: Interval) -> str | None:
    if math.isnan(interval.low):
        return None
    return f"95 % interval {interval.low:.3f} to {interval.high:.3f}"


def _how(model: Model) -> str:
    found = f"{len(model.result.detections):,} detections"
    if model.interval.reason is not None:
        return f"{found}; no interval: {model.interval.reason}"
    return f"{found}; the images resampled {model.resamples:,} times"


def _verdict(first: Model, other: Model) -> Markup:
    names = (shorten(first.name), shorten(other.name))
    difference = compare(first.result, other.result, resamples=first.resamples, names=names)
    return element("p", difference.sentence(), class_="verdict")


def _notes(model: Model, models: Sequence[Model]) -> Markup | None:
    if not model.result.notes:
        return None
    name = f"{shorten(model.name)}: " if len(models) > 1 else ""
    items = [element("li", f"{name}{note}") for note in model.result.notes]
    return element("ul", *items, class_="notes")


def twelve_numbers(models: Sequence[Model]) -> Markup:
    """COCO's 12 numbers, a column for each model."""
    lines = models[0].result.summary().splitlines()
    columns = [
        Column("", [each.name for each in STATISTICS]),
        Column("averaged over", [_what(line) for line in lines], minor=True),
    ]
    columns += [
        Column("value" if len(models) == 1 else model.name, _known(model.result.stats.tolist()))
        for model in models
    ]
    return plain_table(columns)


def _what(line: str) -> str:
    """What a line of the summary averages over, as it says itself in square brackets."""
    inside = re.search(r"\[(.*)\]", line)
    return " ".join(inside[1].split()).replace(" |", ",").replace("= ", "=") if inside else ""


def classes(models: Sequence[Model]) -> Markup:
    """The table of the classes; several models stand side by side with their AP."""
    rows = models[0].result.per_class()
    columns = [
        Column("class", [row.name for row in rows]),
        Column("truths", [row.truths for row in rows], "boxes that count"),
        Column("images", [row.images for row in rows], "images that hold one of them"),
    ]
    columns += _columns_of_one(models[0]) if len(models) == 1 else _columns_of_several(models)
    return sortable_table("classes-table", columns, what="classes")


def _columns_of_one(model: Model) -> Iterator[Column]:
    rows, best = model.result.per_class(), [curve.best for curve in model.points.classes]
    intervals = [each.AP for each in model.interval.per_class()]
    yield Column("detections", [row.detections for row in rows])
    yield Column("AP", _known([row.AP for row in rows]))
    yield Column("from", [each.low for each in intervals], "95 % interval of AP, lower end")
    yield Column("to", [each.high for each in intervals], "95 % interval of AP, upper end")
    yield Column("AP50", _known([row.AP50 for row in rows]))
    yield Column("AP75", _known([row.AP75 for row in rows]))
    yield Column("AR", _known([row.AR for row in rows]), "highest recall, mean over the overlaps")
    at = "at the threshold of highest F1"
    yield Column("best F1", [point.f1 for point in best], "highest F1 over all score thresholds")
    yield Column("score", [point.threshold for point in best], "threshold at which F1 is highest")
    yield Column("precision", [point.precision for point in best], at)
    yield Column("recall", [point.recall for point in best], at)


def _columns_of_several(models: Sequence[Model]) -> Iterator[Column]:
    for model in models:
        aps = [row.AP for row in model.result.per_class()]
        yield Column(f"AP {model.name}", _known(aps))
    first = models[0]
    for other in models[1:]:
        paired = compare(first.result, other.result, resamples=first.resamples).per_class()
        yield Column(
            f"{other.name} less {first.name}",
            [each.AP.estimate for each in paired],
            "bold: the 95 % interval leaves out zero; by luck alone so does one class of 20",
            signed=True,
            bold=[each.AP.low > 0 or each.AP.high < 0 for each in paired],
        )


def _known(values: Sequence[float]) -> list[float | None]:
    return [value if value > -1 else None for value in values]


def _number(value: float) -> str:
    return f"{value:.3f}" if value > -1 else "unknown"
