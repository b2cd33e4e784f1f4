"""The sections of a report that show pictures: the worst ones, and examples of each error."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from detkit.evaluation.errors import ERRORS, ErrorKind
from detkit.evaluation.inputs import Bools, Ints
from detkit.evaluation.label_errors import LabelError
from detkit.evaluation.matching import overlaps
from detkit.evaluation.outcomes import NONE
from detkit.evaluation.report.charts import MEANINGS, under_name
from detkit.evaluation.report.html import Markup, element, join, shorten
from detkit.evaluation.report.models import Model
from detkit.evaluation.report.pictures import Album, Box
from detkit.evaluation.report.tables import Column, sortable_table

WORST_PICTURES = 12
WORST_LISTED = 50
DIFFERING_IMAGES = 4
SUSPECTS_LISTED = 100
SUSPECTS_SHOWN = 12
EXAMPLES = 6  # of each type of error


def about_pictures(album: Album) -> Markup | None:
    """What the colours of boxes mean, with switches that hide them; and what could not be shown."""
    if not any(file is not None for file in album.files):
        missing = "No pictures: name the folder that holds them (--images)."
        return element("p", missing, class_="about")
    switches = [
        element(
            "label",
            element("input", type="checkbox", id=f"show-{kind}", checked=True, autocomplete="off"),
            element("i", class_=f"key {kind}"),
            kind,
        )
        for kind in ("right", "wrong", "missed", "truth")
    ]
    hint = element("span", "A click makes a picture large.", class_="faint")
    return join(element("div", *switches, hint, class_="tools"), _missing(album))


def _missing(album: Album) -> Markup | None:
    names, lines = sorted(album.unreadable), []
    if names:
        shown = ", ".join(shorten(name, 60) for name in names[:5])
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        lines.append(f"Pictures that are missing or broken: {shown}{more}.")
    if album.left_out:
        lines.append(f"{album.left_out} pictures are left out to keep the page small.")
    return element("p", " ".join(lines), class_="about") if lines else None


def worst_images(models: Sequence[Model], album: Album) -> Markup:
    """The images with the most mistakes, and those on which several models differ most."""
    share = max(3, WORST_PICTURES // len(models))
    verdicts = [_Verdicts(model) for model in models]
    pieces = [
        _worst_of(model, album, of_model, share)
        for model, of_model in zip(models, verdicts, strict=True)
    ]
    differing = _differing(models, album, verdicts) if len(models) > 1 else None
    return join(differing, _by_model(models, pieces))


def _differing(
    models: Sequence[Model], album: Album, verdicts: Sequence[_Verdicts]
) -> Markup | None:
    """The same images as each of the models sees them."""
    spread = np.ptp([each.mistakes for each in verdicts], axis=0)
    order = np.argsort(-spread, kind="stable")[:DIFFERING_IMAGES]
    figures = [
        album.show(image, of_model.boxes(image), caption=_caption(
            f"{shorten(model.name, 40)}: {of_model.sums(image)}", album, image))
        for image in order[spread[order] > 0].tolist()
        for model, of_model in zip(models, verdicts, strict=True)
    ]  # fmt: skip
    if not any(figures):
        return None
    title = element("h3", "Images on which the models differ most")
    return join(title, element("div", *figures, class_=f"pictures of-{min(len(models), 4)}"))


def _worst_of(model: Model, album: Album, verdicts: _Verdicts, most: int) -> Markup:
    order = np.argsort(-verdicts.mistakes, kind="stable")[:WORST_LISTED]
    order = order[verdicts.mistakes[order] > 0]
    if not len(order):
        return element("p", "No mistake in any image.")
    columns = [
        Column("image", [album.names[each] for each in order.tolist()]),
        Column("missed", verdicts.missed_in[order].tolist()),
        Column("false alarms", verdicts.wrong_in[order].tolist()),
        Column("right", verdicts.right_in[order].tolist()),
    ]
    figures = [
        album.show(
            image, verdicts.boxes(image), caption=_caption(verdicts.sums(image), album, image)
        )
        for image in order[:most].tolist()
    ]
    table = sortable_table(f"worst-{model.color}", columns, what="images")
    if not any(figures):
        return table
    more = element("details", element("summary", f"The {len(order)} worst as a table"), table)
    return join(element("div", *figures, class_="pictures"), more)


class _Verdicts:
    """What is right, wrong and missed at a model's best threshold, and how often in each image.

    Args:
        model: whose.
    """

    def __init__(self, model: Model) -> None:
        outcomes, names = model.outcomes, model.result.class_names
        self._names, self._found, self._truths = names, outcomes.detections, outcomes.truths
        reported = self._found.scores >= model.threshold
        took = outcomes.detection_of[0]
        self._right: Bools = outcomes.right[0] & reported
        self._wrong: Bools = outcomes.wrong[0] & reported
        self._missed: Bools = outcomes.counts & ~((took != NONE) & np.append(reported, False)[took])
        images = len(model.result.truths.image_ids)
        self.right_in = np.bincount(self._found.image[self._right], minlength=images)
        self.wrong_in = np.bincount(self._found.image[self._wrong], minlength=images)
        self.missed_in: Ints = np.bincount(self._truths.image[self._missed], minlength=images)

    @property
    def mistakes(self) -> Ints:
        """What is wrong or missed in each image, `[I]`."""
        return self.wrong_in + self.missed_in

    def sums(self, image: int) -> str:
        """The counts of an image in words."""
        return (
            f"{self.missed_in[image]} missed, {self.wrong_in[image]} false alarms, "
            f"{self.right_in[image]} right"
        )

    def boxes(self, image: int) -> Iterator[Box]:
        """All that is right, then what is missed, then what is wrong, on top."""
        here = self._found.image == image
        yield from self._detections(np.flatnonzero(here & self._right), "right")
        missed = np.flatnonzero((self._truths.image == image) & self._missed)
        for truth in missed.tolist():
            name = self._names[self._truths.category[truth]]
            yield Box(self._truths.boxes[truth].tolist(), "missed", name)
        yield from self._detections(np.flatnonzero(here & self._wrong), "wrong")

    def _detections(self, index: Ints, kind: str) -> Iterator[Box]:
        for each in index.tolist():
            caption = f"{self._names[self._found.category[each]]} {self._found.scores[each]:.2f}"
            yield Box(self._found.boxes[each].tolist(), kind, caption)


def typical_errors(models: Sequence[Model], album: Album) -> Markup | None:
    """Of each type the errors that stand out most: confident detections, large missed objects.

    None where no picture can be shown.
    """
    most = max(2, EXAMPLES // len(models))
    pieces = [join(*(_errors_of(model, album, kind, most) for kind in ERRORS)) for model in models]
    return _by_model(models, pieces)


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
    """Indices of detections, or of missed truths; the same picture again would tell little new."""
    errors = model.errors
    found = errors.typical(kind, 50 * most)
    images = (errors.truths if kind == ErrorKind.MISSED else errors.detections).image[found]
    _, first = np.unique(images, return_index=True)
    chosen: list[int] = found[np.sort(first)[:most]].tolist()
    return chosen


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
    return album.show_part(image, boxes, caption=_caption(caption, album, image))


def _missed_example(model: Model, album: Album, truth: int) -> Markup | None:
    truths, names = model.errors.truths, model.result.class_names
    box, image = truths.boxes[truth].tolist(), int(truths.image[truth])
    name = names[truths.category[truth]]
    caption = _caption(name, album, image)
    return album.show_part(image, [Box(box, "missed", name)], caption=caption)


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
    one_per_image = {_image_of(model, each): each for each in reversed(listed)}
    shown = [each for each in listed if each in one_per_image.values()][:SUSPECTS_SHOWN]
    figures = [_suspect_example(model, album, each) for each in shown]
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
    text = f"{suspect.kind.value}: {suspect.name}"
    return album.show_part(image, boxes, caption=_caption(text, album, image))


def _caption(text: str, album: Album, image: int) -> Markup:
    return join(
        element("bdi", shorten(text)), element("br"), element("bdi", shorten(album.names[image]))
    )


def _by_model(models: Sequence[Model], pieces: Sequence[Markup]) -> Markup:
    if len(models) == 1:
        return pieces[0]
    return join(*(under_name(model, each) for model, each in zip(models, pieces, strict=True)))
