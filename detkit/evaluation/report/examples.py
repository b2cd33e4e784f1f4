"""The sections of a report with parts of pictures: typical errors, labels that may be wrong."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from detkit.evaluation.errors import ERRORS, ErrorKind
from detkit.evaluation.inputs import Ints
from detkit.evaluation.label_errors import LabelError
from detkit.evaluation.matching import overlaps
from detkit.evaluation.outcomes import NONE
from detkit.evaluation.report.charts import MEANINGS
from detkit.evaluation.report.html import Markup, element, join, shorten
from detkit.evaluation.report.models import Model, under_names
from detkit.evaluation.report.pictures import Album, Box
from detkit.evaluation.report.tables import Column, sortable_table

EXAMPLES = 6  # of each type of error
SUSPECTS_LISTED = 100
SUSPECTS_SHOWN = 12


def typical_errors(models: Sequence[Model], album: Album) -> Markup | None:
    """Of each type the errors that stand out most: confident detections, large missed objects.

    None where no picture can be shown.
    """
    most = max(2, EXAMPLES // len(models))
    pieces = [join(*(_errors_of(model, album, kind, most) for kind in ERRORS)) for model in models]
    return under_names(models, pieces) if any(pieces) else None


def _errors_of(model: Model, album: Album, kind: ErrorKind, most: int) -> Markup | None:
    count = model.errors.counts[kind.label]
    if not count:
        return None
    show = _missed_example if kind == ErrorKind.MISSED else _detection_example
    figures = [show(model, album, each) for each in _one_per_image(model, kind, most)]
    if not any(figures):
        return None
    return join(
        element("h3", f"{kind.label}: {MEANINGS[kind]} ({count:,})"),
        element("div", *figures, class_="pictures crops"),
    )


def _one_per_image(model: Model, kind: ErrorKind, most: int) -> list[int]:
    """Indices of detections, or of missed truths."""
    errors = model.errors
    found = errors.typical(kind, 50 * most)
    images = (errors.truths if kind == ErrorKind.MISSED else errors.detections).image[found]
    chosen: list[int] = found[_first_of_each(images)[:most]].tolist()
    return chosen


def _first_of_each(images: Ints | Sequence[int]) -> Ints:
    """Where each image comes first; the same picture again would tell little new."""
    _, first = np.unique(np.asarray(images, np.int64), return_index=True)
    return np.sort(first)


def _detection_example(model: Model, album: Album, detection: int) -> Markup | None:
    errors, names = model.errors, model.result.class_names
    found, truths, truth = errors.detections, errors.truths, int(errors.truth[detection])
    box, name = found.boxes[detection], names[found.category[detection]]
    caption = f"{name} {found.scores[detection]:.2f}"
    boxes = [Box(box.tolist(), "wrong", caption)]
    if truth != NONE:
        about = truths.boxes[truth]
        iou = overlaps(box[None], about[None], np.zeros(1, bool))[0]
        true_name = names[truths.category[truth]]
        boxes.insert(0, Box(about.tolist(), "truth", true_name))
        caption += f"; truth {true_name}, IoU {iou:.2f}"
    image = int(found.image[detection])
    return album.show_part(image, boxes, caption=caption)


def _missed_example(model: Model, album: Album, truth: int) -> Markup | None:
    truths, names = model.errors.truths, model.result.class_names
    box, image = truths.boxes[truth].tolist(), int(truths.image[truth])
    name = names[truths.category[truth]]
    return album.show_part(image, [Box(box, "missed", name)], caption=name)


def label_errors(models: Sequence[Model], album: Album) -> Markup:
    """Where the labels may be wrong rather than the detector, after the best of the models."""
    model = max(models, key=lambda each: float(each.result.stats[0]))
    try:
        suspects = model.result.label_errors()
    except ValueError as error:  # boxes that are no numbers, as `strict` lets them in
        return element("p", str(error), class_="about")
    after = f" by the detections of {shorten(model.name, 60)}" if len(models) > 1 else ""
    about = element("p", f"Labels to look at first{after}, most suspicious above.", class_="about")
    if not len(suspects):
        return element("p", "No label looks wrong.", class_="about")
    listed = suspects.errors[:SUSPECTS_LISTED]
    columns = [
        Column("image", [album.names[_image_of(model, each)] for each in listed]),
        Column("what may be wrong", [each.kind.value for each in listed]),
        Column("class", [each.name for each in listed]),
        Column("found", [each.found or "" for each in listed], "class of the detection"),
        Column("suspicion", [each.suspicion for each in listed], "0 to 1"),
        Column("score", [each.score for each in listed], "of the detection"),
        Column("IoU", [each.iou for each in listed], "of truth and detection"),
    ]
    shown = _first_of_each([_image_of(model, each) for each in listed])[:SUSPECTS_SHOWN]
    figures = [_suspect_example(model, album, listed[place]) for place in shown.tolist()]
    counts = ", ".join(f"{kind}: {n:,}" for kind, n in suspects.counts().items() if n)
    return join(
        about,
        element("p", counts, class_="about"),
        element("div", *figures, class_="pictures crops") if any(figures) else None,
        sortable_table("suspects", columns, what="images"),
    )


def _image_of(model: Model, suspect: LabelError) -> int:
    """Index of its image."""
    if suspect.truth is not None:
        return int(model.result.truths.truths.image[suspect.truth])
    return int(model.result.detections.image[suspect.detection])


def _suspect_example(model: Model, album: Album, suspect: LabelError) -> Markup | None:
    truths, detections = model.result.truths.truths, model.result.detections
    boxes = []
    if suspect.truth is not None:
        boxes.append(Box(truths.boxes[suspect.truth].tolist(), "truth", suspect.name))
    if suspect.other is not None:
        boxes.append(Box(truths.boxes[suspect.other].tolist(), "truth", suspect.name))
    if suspect.detection is not None:
        found = f"{suspect.found or suspect.name} {suspect.score:.2f}"
        boxes.append(Box(detections.boxes[suspect.detection].tolist(), "wrong", found))
    image = _image_of(model, suspect)
    return album.show_part(image, boxes, caption=f"{suspect.kind.value}: {suspect.name}")
