"""A repaired copy of annotations, with a line for each change; the originals stay as they are.

N images, G annotations.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from detkit.data.check.boxes import (
    box_faults,
    clip,
    corners_as_sides,
    fractions_as_pixels,
    repeats,
    sizes_of_boxes,
    turn,
    wrong_areas,
)
from detkit.data.check.findings import DataReport
from detkit.data.check.labels import category_shift, repeated
from detkit.data.check.pictures import Picture, true_sizes
from detkit.data.check.records import NOWHERE, Records, is_whole, make_records

_OF_SHAPE = ("segmentation", "keypoints")  # would have to be turned and converted like the box


class Repair:
    """Annotations while they are repaired, in steps that each leave them consistent.

    Args:
        records: as read.
        pictures: N, as read.
        report: what was found in them.

    Attributes:
        records: as far as repaired.
        changes: a line for each.
    """

    def __init__(self, records: Records, pictures: Sequence[Picture], report: DataReport) -> None:
        self.records = records
        self.report = report
        self._pictures = list(pictures)
        self.changes = [f"dropped {text}" for text in records.dropped]

    def run(self) -> dict[str, Any]:
        """Repair what can be repaired without guessing, and return the content to write."""
        self._category_ids()
        self._images()
        self._sizes()
        self._drop(self.records.image_index == NOWHERE, "its image is unknown")
        self._drop(self.records.category_index == NOWHERE, "its category is unknown")
        self._boxes()
        self._annotation_ids()
        return dict(self.records.content)

    def _replace(self, **sections: list[dict[str, Any]]) -> None:
        """Other records, looked up anew."""
        content = {**self.records.content, **sections}
        self.records = make_records(self.records.source, self.records.folder, content)

    def _drop(self, mask: np.ndarray, reason: str) -> None:
        """Leave annotations out, `[G]` bool."""
        if not mask.any():
            return
        self._note(np.flatnonzero(mask), f"dropped, {reason}")
        self._replace(annotations=_kept(self.records.annotations, ~mask))

    def _note(self, indices: np.ndarray, what: str) -> None:
        self.changes += [f"{self.records.box_name(i)}: {what}" for i in indices.tolist()]

    def _category_ids(self) -> None:
        """Shift ids that are off by one; join categories of one name."""
        shift = category_shift(self.records)
        if shift:
            self.changes.append(f"category ids of all boxes: {shift:+d}")
            items = self.records.annotations
            moved = [{**item, "category_id": item["category_id"] + shift} for item in items]
            self._replace(annotations=moved)
        categories = self.records.categories
        twice = repeated([each["id"] for each in categories])
        same_name = repeated([each["name"] for each in categories]) & ~twice
        id_of = {each["name"]: each["id"] for each in reversed(_kept(categories, ~twice))}
        instead = {each["id"]: id_of[each["name"]] for each in _kept(categories, same_name)}
        for each in _kept(categories, twice | same_name):
            joined = f", its boxes get id {instead[each['id']]}" if each["id"] in instead else ""
            self.changes.append(f"category {each['id']} ({each['name']}): dropped{joined}")
        if (twice | same_name).any():
            self._replace(
                categories=_kept(categories, ~(twice | same_name)),
                annotations=_with_ids(self.records.annotations, "category_id", instead),
            )

    def _images(self) -> None:
        """Drop images that cannot be read or told apart, join those of one file, number texts."""
        images = self.records.images
        reasons = {
            "image_missing": "its picture is missing",
            "image_unreadable": "its picture cannot be read",
            "image_id_duplicate": "another image has its id",
            "image_twice": "another image has its file",
        }
        gone = np.zeros(len(images), dtype=bool)
        for code, reason in reasons.items():
            for index in self.report.indices(code).tolist():
                if not gone[index]:
                    self.changes.append(f"{self.records.image_name(index)}: dropped, {reason}")
                gone[index] = True
        first: dict[Path | None, Any] = {}
        for image, picture in zip(images, self._pictures, strict=True):
            first.setdefault(picture.path, image["id"])
        instead = {
            images[i]["id"]: first[self._pictures[i].path]
            for i in self.report.indices("image_twice").tolist()
        }
        kept = _kept(images, ~gone)
        instead |= self._numbers(kept)
        self._pictures = _kept(self._pictures, ~gone)
        self._replace(
            images=_with_ids(kept, "id", instead),
            annotations=_with_ids(self.records.annotations, "image_id", instead),
        )

    def _numbers(self, images: list[dict[str, Any]]) -> dict[Any, int]:
        """New ids for those that are texts: the number that a text is, else a free one."""
        ids = [image["id"] for image in images]
        named = [item["image_id"] for item in self.records.annotations]
        taken = set(filter(is_whole, ids))
        # that no box names: one of an unknown image must not be given to another by chance
        free = 1 + max(
            filter(is_whole, (*map(_as_number, ids), *map(_as_number, named))), default=0
        )
        numbers: dict[Any, int] = {}
        for text in (each for each in ids if isinstance(each, str)):
            number = _as_number(text)
            if not is_whole(number) or number in taken:
                number, free = free, free + 1
            numbers[text] = number
            taken.add(number)
        self.changes += [f"image {text!r}: its id is {number}" for text, number in numbers.items()]
        return numbers

    def _sizes(self) -> None:
        """The size of each file, and boxes of unrotated pictures turned with them."""
        true = true_sizes(self.records, self._pictures)
        annotated = self.records.sizes
        boxes = self.records.boxes.copy()
        images = list(self.records.images)
        for index in np.flatnonzero((true != annotated).any(axis=1)).tolist():
            height, width = true[index].tolist()
            images[index] = {**images[index], "width": width, "height": height}
            own = self.records.image_index == index
            turned = self._turned(index, boxes[own])
            if turned is not None:
                boxes[own] = turned
            self.changes.append(
                f"{self.records.image_name(index)}: size {width}x{height}"
                + ("" if turned is None else ", boxes turned with the picture")
            )
        self._replace(images=images)
        self._set_boxes(boxes)

    def _turned(self, index: int, boxes: np.ndarray) -> np.ndarray | None:
        """Boxes of a picture that was annotated unrotated; None if they were drawn upright."""
        picture, (height, width) = self._pictures[index], self.records.sizes[index].tolist()
        if picture.size != (width, height) or picture.orientation < 5:
            return None
        ends = boxes[:, :2] + boxes[:, 2:]
        if (boxes[:, :2] < -1).any() or (ends > [width + 1, height + 1]).any():
            return None
        return turn(boxes, (height, width), picture.orientation)

    def _set_boxes(self, boxes: np.ndarray) -> None:
        """Other boxes `[G, 4]`; what else tells the shape of an object that moved goes."""
        items = list(self.records.annotations)
        for index in np.flatnonzero((boxes != self.records.boxes).any(axis=1)).tolist():
            rest = {key: each for key, each in items[index].items() if key not in _OF_SHAPE}
            items[index] = {**rest, "bbox": boxes[index].tolist()}
        self._replace(annotations=items)

    def _boxes(self) -> None:
        """Sides in pixels; boxes that cannot be meant go, those that leave are clipped."""
        if len(self.report.indices("boxes_are_fractions")):
            self.changes.append("all boxes: converted from fractions of their pictures")
            of_boxes = sizes_of_boxes(self.records, true_sizes(self.records, self._pictures))
            self._set_boxes(fractions_as_pixels(self.records.boxes, of_boxes))
        if len(self.report.indices("boxes_are_corners")):
            self.changes.append("all boxes: converted from x1, y1, x2, y2")
            self._set_boxes(corners_as_sides(self.records.boxes))
        sizes = true_sizes(self.records, self._pictures)
        faults = box_faults(self.records.boxes, sizes_of_boxes(self.records, sizes))
        gone = faults["box_negative"] | faults["box_degenerate"] | faults["box_outside"]
        for code, reason in (
            ("box_negative", "negative width or height"),
            ("box_degenerate", "width or height 0"),
            ("box_outside", "outside its picture"),
        ):
            self._note(np.flatnonzero(faults[code]), f"dropped, {reason}")
        self._clip(faults["box_clipped"], sizes)
        self._replace(annotations=_kept(self.records.annotations, ~gone))
        indices = np.stack([self.records.image_index, self.records.category_index], axis=1)
        self._drop(
            repeats(np.concatenate([indices, self.records.boxes], axis=1)), "repeats another"
        )
        self._areas()

    def _clip(self, leaving: np.ndarray, sizes: np.ndarray) -> None:
        self._note(np.flatnonzero(leaving), "clipped to its picture")
        boxes = self.records.boxes.copy()
        boxes[leaving] = clip(boxes, sizes_of_boxes(self.records, sizes))[leaving]
        items = list(self.records.annotations)
        for index in np.flatnonzero(leaving).tolist():  # its shape stays, as the part inside does
            items[index] = {**items[index], "bbox": boxes[index].tolist()}
        self._replace(annotations=items)

    def _areas(self) -> None:
        items = list(self.records.annotations)
        wrong = np.flatnonzero(wrong_areas(self.records, self.records.boxes))
        self._note(wrong, "area of the box")
        for index in wrong.tolist():
            area = float(self.records.boxes[index, 2:].prod())
            items[index] = {**items[index], "area": area}
        self._replace(annotations=items)

    def _annotation_ids(self) -> None:
        """New ids for boxes that have none, 0, or that of another box."""
        items = list(self.records.annotations)
        ids: list[Any] = [item.get("id") for item in items]
        whole = [is_whole(each) and each != 0 for each in ids]
        free = 1 + max(itertools.compress(ids, whole), default=0)
        for index in np.flatnonzero(repeated(ids) | ~np.array(whole, dtype=bool)).tolist():
            self._note(np.array([index]), f"its id is {free}")
            items[index] = {**items[index], "id": free}
            free += 1
        self._replace(annotations=items)


def _as_number(each: Any) -> Any:
    """The whole number that a text is, e.g. 19 of "19"; anything else as it is."""
    return int(each) if isinstance(each, str) and re.fullmatch("0|[1-9][0-9]{,17}", each) else each


def _kept(items: Sequence[Any], mask: np.ndarray) -> list[Any]:
    return [item for item, keep in zip(items, mask.tolist(), strict=True) if keep]


def _with_ids(
    items: Iterable[dict[str, Any]], key: str, instead: dict[Any, Any]
) -> list[dict[str, Any]]:
    return [{**item, key: instead.get(item[key], item[key])} for item in items]
