"""The sections of a report with whole pictures: the worst, and where models differ."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from detkit.evaluation.inputs import Bools, Ints
from detkit.evaluation.outcomes import NONE
from detkit.evaluation.report.html import Markup, element, join, shorten
from detkit.evaluation.report.models import Model, under_names
from detkit.evaluation.report.pictures import Album, Box
from detkit.evaluation.report.tables import Column, sortable_table

WORST_PICTURES = 12
WORST_LISTED = 50
DIFFERING_IMAGES = 4


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
    return join(differing, under_names(models, pieces))


def _differing(
    models: Sequence[Model], album: Album, verdicts: Sequence[_Verdicts]
) -> Markup | None:
    """The same images as each of the models sees them."""
    spread = np.ptp([each.mistakes for each in verdicts], axis=0)
    order = np.argsort(-spread, kind="stable")[:DIFFERING_IMAGES]
    figures = [
        album.show(
            image,
            of_model.boxes(image),
            caption=f"{shorten(model.name, 40)}: {of_model.sums(image)}",
        )
        for image in order[spread[order] > 0].tolist()
        for model, of_model in zip(models, verdicts, strict=True)
    ]
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
        album.show(image, verdicts.boxes(image), caption=verdicts.sums(image))
        for image in order[:most].tolist()
    ]
    table = sortable_table(f"worst-{model.place}", columns, what="images")
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
