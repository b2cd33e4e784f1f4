"""Arrays for `compat`: what pycocotools holds in dicts, laid out for the metric.

Whatever pycocotools treats in a way of its own (ids that repeat, numbers that are none, detections
whose area is not that of their box) is a ValueError here: `compat` leaves it to pycocotools.

M truths, N detections, T thresholds, R recall levels, A area ranges, L limits, K categories.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detkit.evaluation.inputs import (
    CocoSettings,
    FlatDetections,
    FlatTruths,
    Floats,
    Ints,
    index_of,
)
from detkit.evaluation.literal import is_ordinary

Record = dict[str, Any]


@dataclass(frozen=True, slots=True, eq=False)
class Selection:
    """What of a data set is evaluated.

    Attributes:
        images: ids, ascending.
        categories: ids, ascending if categories are told apart.
        use_categories: whether they are.
    """

    images: Sequence[Any]
    categories: Sequence[Any]
    use_categories: bool

    @property
    def num_categories(self) -> int:
        """Of the result: one if they are not told apart."""
        return len(self.categories) if self.use_categories else 1


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """Detections whose images and categories are those of a ground truth.

    Attributes:
        image_ids: sorted.
        category_ids: sorted.
        detections: indexed by these, in the order of the file.
        given: `[N, 4]` the boxes as they came, if their numbers are narrower: pycocotools
            multiplies width and height before it widens them.
    """

    image_ids: NDArray[Any]
    category_ids: Ints
    detections: FlatDetections
    given: NDArray[Any] | None = None


def found_of_rows(rows: NDArray[Any], image_ids: NDArray[Any], category_ids: Ints) -> Found:
    """Take `[N, 7]` apart: image id, x, y, w, h, score, category id.

    Raises:
        ValueError: an id that is not among these, NaN.
    """
    if image_ids.dtype.kind != "i" or not np.isfinite(rows[:, [0, 6]]).all():
        raise ValueError("ids must be whole numbers")
    image, known = index_of(image_ids, rows[:, 0].astype(np.int64))
    category, listed = index_of(category_ids, rows[:, 6].astype(np.int64))
    if not (known.all() and listed.all()):
        raise ValueError("an image or category is not listed")
    boxes = np.ascontiguousarray(rows[:, 1:5], np.float64)
    scores = np.ascontiguousarray(rows[:, 5], np.float64)
    narrow = None if rows.dtype == np.float64 else rows[:, 1:5].copy()
    return Found(image_ids, category_ids, FlatDetections(image, category, boxes, scores), narrow)


def records_of(found: Found) -> list[Record]:
    """The detections as records of a results file."""
    flat = found.detections
    columns = (
        found.image_ids[flat.image].tolist(),
        found.category_ids[flat.category].tolist(),
        flat.boxes.tolist() if found.given is None else map(list, found.given),
        flat.scores.tolist(),
    )
    return [
        {"image_id": image, "bbox": box, "score": score, "category_id": category}
        for image, category, box, score in zip(*columns, strict=True)
    ]


def select_truths(
    truths: FlatTruths, image_ids: NDArray[Any], category_ids: Ints, selection: Selection
) -> FlatTruths:
    """The truths of a data set with these sorted ids, indexed as the selection is."""
    place = _places(truths.image, image_ids, truths.category, category_ids, selection)
    if place is None:
        return truths
    image, category, kept = place
    flat = truths[kept]
    return FlatTruths(image, category, flat.boxes, flat.area, flat.crowd, flat.id_is_zero)


def select_detections(
    found: Found, selection: Selection, ranges: Iterable[tuple[float, float]]
) -> FlatDetections:
    """The detections, indexed as the selection is.

    Raises:
        ValueError: an area lies in other ranges than that of the box.
    """
    flat = found.detections
    if found.given is not None:
        _check_areas(flat.boxes, found.given[:, 2] * found.given[:, 3], ranges)
    place = _places(flat.image, found.image_ids, flat.category, found.category_ids, selection)
    if place is None:
        return flat
    image, category, kept = place
    return FlatDetections(image, category, flat.boxes.take(kept, axis=0), flat.scores[kept])


def _places(
    image: Ints,
    image_ids: NDArray[Any],
    category: Ints,
    category_ids: Ints,
    selection: Selection,
) -> tuple[Ints, Ints, Ints] | None:
    """Indices into the selection, and which rows these are; None where nothing changes."""
    images, categories = selection.images, selection.categories
    same = len(images) == len(image_ids) and np.array_equal(images, image_ids)
    if same and selection.use_categories and np.array_equal(categories, category_ids):
        return None
    image = _lookup(image_ids.tolist(), images)[image]
    category = _lookup(category_ids.tolist(), categories)[category]
    return _keep(image, category, selection)


def _lookup(ids: Sequence[Any], wanted: Sequence[Any]) -> Ints:
    """Where each id is among those wanted, -1 for nowhere."""
    place = {id_: index for index, id_ in enumerate(wanted)}
    if len(place) < len(wanted):
        raise ValueError("ids repeat")
    return np.array([place.get(id_, -1) for id_ in ids], np.int64)


def _keep(image: Ints, category: Ints, selection: Selection) -> tuple[Ints, Ints, Ints]:
    kept = np.flatnonzero((image >= 0) & (category >= 0))
    if not selection.use_categories:
        kept = kept[np.argsort(category[kept], kind="stable")]  # as pycocotools joins the cells
        category = np.zeros_like(category)
    return image[kept], category[kept], kept


def truths_of_records(records: Sequence[Record], selection: Selection) -> tuple[FlatTruths, Ints]:
    """Annotations as arrays, and which of the records these are.

    Raises:
        ValueError: ids that repeat or are no whole numbers, a flag other than 0 and 1.
    """
    image, category, kept = _place_records(records, selection)
    records = [records[index] for index in kept.tolist()]
    ids = _whole_ids(records)
    if not {record["iscrowd"] for record in records} <= {0, 1}:
        raise ValueError("iscrowd must be 0 or 1")
    boxes, area = _boxes(records), np.array([record["area"] for record in records], np.float64)
    crowd = np.array([bool(record["iscrowd"]) for record in records], bool)
    return FlatTruths(image, category, boxes, area, crowd, ids == 0), kept


def detections_of_records(
    records: Sequence[Record], selection: Selection, ranges: Iterable[tuple[float, float]]
) -> tuple[FlatDetections, Ints]:
    """Detections as arrays, and which of the records these are.

    Raises:
        ValueError: ids that repeat or are not above 0, areas in other ranges than those of the box.
    """
    image, category, kept = _place_records(records, selection)
    records = [records[index] for index in kept.tolist()]
    if (_whole_ids(records) <= 0).any():
        raise ValueError("ids must be above 0")
    boxes = _boxes(records)
    _check_areas(boxes, np.array([record["area"] for record in records], np.float64), ranges)
    scores = np.array([record["score"] for record in records], np.float64)
    return FlatDetections(image, category, boxes, scores), kept


def _place_records(records: Sequence[Record], selection: Selection) -> tuple[Ints, Ints, Ints]:
    image = _lookup([record["image_id"] for record in records], selection.images)
    category = _lookup([record["category_id"] for record in records], selection.categories)
    return _keep(image, category, selection)


def _whole_ids(records: Sequence[Record]) -> Ints:
    ids = [record["id"] for record in records]
    if len(set(ids)) < len(ids) or not set(map(type, ids)) <= {int}:
        raise ValueError("ids must be different whole numbers")
    return np.array(ids, np.int64)


def _boxes(records: Sequence[Record]) -> Floats:
    return np.array([record["bbox"] for record in records], np.float64).reshape(len(records), 4)


def _check_areas(boxes: Floats, area: NDArray[Any], ranges: Iterable[tuple[float, float]]) -> None:
    product = boxes[:, 2] * boxes[:, 3]
    for each in ranges:
        if (_inside(product, each) != _inside(area, each)).any():
            raise ValueError("the area of a detection must be that of its box")


def _inside(area: NDArray[Any], area_range: tuple[float, float]) -> NDArray[np.bool_]:
    return (area >= area_range[0]) & (area <= area_range[1])


def check_ordinary(truths: FlatTruths, detections: FlatDetections) -> None:
    """Raise ValueError for numbers that the fast path does not treat as pycocotools does."""
    if not is_ordinary(truths, detections):
        raise ValueError("numbers must be finite and of an ordinary size")


def settings_of(params: Any) -> tuple[CocoSettings, Ints]:
    """Settings of the metric, and which of its recall levels stand for `params.recThrs`.

    Raises:
        ValueError: pycocotools takes other values for these.
    """
    wanted = np.asarray(params.recThrs, np.float64)
    if wanted.ndim != 1 or not len(wanted):
        raise ValueError("recThrs must be a list of numbers")
    usable = np.where(wanted > 0, wanted, 0.0)  # also NaN, which is sorted out by `cut_unreached`
    levels, place = np.unique(np.append(usable, 0.0), return_inverse=True)
    named = {str(index): tuple(each) for index, each in enumerate(params.areaRng)}
    checked = CocoSettings.of(params.iouThrs, named, params.maxDets)
    settings = CocoSettings(
        checked.iou_thresholds, checked.area_ranges, checked.max_dets, recall_levels=levels
    )
    return settings, place[:-1]


def cut_unreached(
    precision: Floats, recall: Floats, scores: Floats, levels: Floats
) -> tuple[Floats, Floats]:
    """From the first level on that a curve does not reach, pycocotools leaves all at 0.

    Args:
        precision: `[T, R, K, A, L]`.
        recall: `[T, K, A, L]` highest recall, -1 without truths.
        scores: `[T, R, K, A, L]`.
        levels: `[R]` in any order.
    """
    highest = recall[:, None]
    missed = ~(highest >= levels[:, None, None, None])
    cut = np.logical_or.accumulate(missed, axis=1) & (highest >= 0)
    return np.where(cut, 0.0, precision), np.where(cut, 0.0, scores)
