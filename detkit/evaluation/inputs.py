"""What the COCO metric takes: its settings, and truths and detections as flat arrays.

M truths, N detections, T overlap thresholds, A area ranges, C = A * T curves.
Boxes are xywh in float64 here, as in COCO's files: the metric is defined on them, and converting to
corners and back would move overlaps across a threshold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Ids = NDArray[Any]  # int64, or of dtype object if they are strings
LoadRecords = Callable[[], Sequence[Mapping[str, Any]]]
Bits = NDArray[np.uint64]  # one bit per curve

# Written as in pycocotools: arange, start + i * step or float32 give other last bits.
RECALL_GRID: Floats = np.linspace(0.0, 1.0, 101)
IOU_GRID: Floats = np.linspace(0.5, 0.95, 10)
AREA_RANGES: Mapping[str, tuple[float, float]] = {
    "all": (0.0, 1e5**2),
    "small": (0.0, 32.0**2),
    "medium": (32.0**2, 96.0**2),
    "large": (96.0**2, 1e5**2),
}
CURVES_PER_BLOCK = 64  # the bits of a Bits word


@dataclass(frozen=True, slots=True)
class FlatTruths:
    """All annotations of a data set, in file order.

    Attributes:
        image: `[M]` index into the sorted image ids.
        category: `[M]` index into the sorted category ids.
        boxes: `[M, 4]` xywh in pixels.
        area: `[M]` in square pixels, of the mask where there is one.
        crowd: `[M]`; a crowd takes any number of detections and is never missed.
        id_is_zero: `[M]`; a match with such a truth counts as none (see `evaluate_files`).
    """

    image: Ints
    category: Ints
    boxes: Floats
    area: Floats
    crowd: Bools
    id_is_zero: Bools

    def __len__(self) -> int:
        return len(self.image)

    def __getitem__(self, index: Ints | Bools) -> FlatTruths:
        return FlatTruths(
            self.image[index],
            self.category[index],
            self.boxes[index],
            self.area[index],
            self.crowd[index],
            self.id_is_zero[index],
        )

    @classmethod
    def of(
        cls,
        image: ArrayLike,
        category: ArrayLike,
        boxes: ArrayLike,
        *,
        area: ArrayLike | None = None,
        crowd: ArrayLike | None = None,
    ) -> FlatTruths:
        """Build from array-likes; `area` defaults to w * h and `crowd` to False."""
        xywh = np.asarray(boxes, np.float64).reshape(-1, 4)
        truths = cls(
            np.asarray(image, np.int64),
            np.asarray(category, np.int64),
            xywh,
            xywh[:, 2] * xywh[:, 3] if area is None else np.asarray(area, np.float64),
            np.zeros(len(xywh), bool) if crowd is None else np.asarray(crowd, bool),
            np.zeros(len(xywh), bool),
        )
        lengths = [len(c) for c in (truths.image, truths.category, xywh, truths.area, truths.crowd)]
        if len(set(lengths)) > 1:
            raise ValueError(
                "image, category, boxes, area and crowd of the truths must have one length, "
                f"got {lengths}"
            )
        if not (np.isfinite(xywh).all() and np.isfinite(truths.area).all()):
            raise ValueError("boxes and areas of the truths must be finite")
        return truths


@dataclass(frozen=True, slots=True)
class FlatDetections:
    """All detections on a data set; equal scores rank in the order given.

    Attributes:
        image: `[N]` index into the sorted image ids.
        category: `[N]` index into the sorted category ids.
        boxes: `[N, 4]` xywh in pixels.
        scores: `[N]`, any range.
    """

    image: Ints
    category: Ints
    boxes: Floats
    scores: Floats

    def __len__(self) -> int:
        return len(self.image)

    def __getitem__(self, index: Ints) -> FlatDetections:
        return FlatDetections(
            self.image[index],
            self.category[index],
            self.boxes.take(index, axis=0),  # a row at a time: much faster than indexing
            self.scores[index],
        )


@dataclass(frozen=True, slots=True)
class CocoTruths:
    """A data set's ground truth.

    Attributes:
        image_ids: sorted, each once; int64, or of dtype object if they are strings.
        category_ids: sorted, each once.
        class_names: of the categories, in that order.
        truths: the annotations of these images and categories.
        source: where it comes from, for error messages.
        by_id: the annotations as pycocotools takes them, where that is different.
        load_images: gives the records of the images, if there are such.
        listed: `[K]` how often the ground truth lists each category, where that is not once each.
    """

    image_ids: Ids
    category_ids: Ints
    class_names: tuple[str, ...]
    truths: FlatTruths
    source: str = "ground truth"
    by_id: TruthsById | None = None
    load_images: LoadRecords | None = None
    listed: Ints | None = None

    def image_records(self) -> list[Mapping[str, Any]] | None:
        """The records of the images: file name, width, height and any attribute of theirs.

        A file is read again for them at each call.

        Returns:
            In the order of `image_ids`; None where the ground truth came as arrays.

        Raises:
            ValueError: the file has changed meanwhile.
            OSError: it can no longer be read.
        """
        if self.load_images is None:
            return None
        try:
            by_id = {record["id"]: record for record in self.load_images()}
            return [by_id[image_id] for image_id in self.image_ids.tolist()]
        except (KeyError, TypeError):
            raise ValueError(f"{self.source}: changed since it was read") from None


@dataclass(frozen=True, slots=True)
class TruthsById:
    """Annotations as pycocotools takes them, which looks them up by their ids.

    Attributes:
        truths: of a repeated id the last annotation, each time; `id_is_zero` is set.
        reasons: what is odd about the ids, as ends of "pycocotools ...".
    """

    truths: FlatTruths
    reasons: tuple[str, ...]


def index_of(ids: Ids, values: Ids) -> tuple[Ints, Bools]:
    """Where each value stands in the sorted ids, and whether it does.

    Args:
        ids: `[n]`, ascending, each once.
        values: `[m]`.
    """
    if ids.dtype.kind != "i" or values.dtype.kind != "i":
        place = {each: index for index, each in enumerate(ids.tolist())}
        index = np.array([place.get(value, -1) for value in values.tolist()], np.int64)
        return index, index >= 0
    if len(ids) and len(values) and int(ids[-1]) - int(ids[0]) < len(values):
        low, high = ids[0], ids[-1]
        if low <= values.min() and values.max() <= high:
            return _look_up(ids, values - low)
    index = np.searchsorted(ids, values)
    known = np.zeros(len(values), bool)
    inside = index < len(ids)
    known[inside] = ids[index[inside]] == values[inside]
    return index, known


def _look_up(ids: Ints, offsets: Ints) -> tuple[Ints, Bools]:
    """`index_of` by a table of all numbers between the ids, for values given from the first on."""
    table = np.full(ids[-1] - ids[0] + 1, -1)
    table[ids - ids[0]] = np.arange(len(ids))
    index = np.take(table, offsets, out=offsets, mode="clip")  # without a mode it is slower
    return index, index >= 0


@dataclass(frozen=True, slots=True)
class Curves:
    """At most 64 precision-recall curves, each an overlap threshold within an area range.

    Attributes:
        iou: `[C]` least overlap of a match.
        area: `[C]` index of the area range.
        ranges: `[A, 2]` least and largest area, both inclusive.
    """

    iou: Floats
    area: Ints
    ranges: Floats

    def __len__(self) -> int:
        return len(self.iou)

    def in_range(self, area: Floats) -> Bits:
        """The curves in whose range each area lies, `[n]`."""
        bits = np.zeros(len(area), np.uint64)
        for index in np.unique(self.area):
            low, high = self.ranges[index]
            word = _word(np.flatnonzero(self.area == index))
            bits |= np.where((area >= low) & (area <= high), word, np.uint64(0))
        return bits

    def reached(self, iou: Floats) -> Bits:
        """The curves whose threshold each overlap reaches, `[n]`."""
        steps = np.unique(self.iou)
        words = [_word(np.flatnonzero(self.iou <= step)) for step in steps]
        table = np.array([np.uint64(0), *words], np.uint64)
        return table[np.searchsorted(steps, iou, side="right")]


def _word(curves: NDArray[np.intp]) -> np.uint64:
    """The word with these bits set."""
    return np.bitwise_or.reduce(np.uint64(1) << curves.astype(np.uint64), initial=np.uint64(0))


@dataclass(frozen=True)
class CocoSettings:
    """Thresholds, ranges and limits of an evaluation; the defaults are COCO's.

    Attributes:
        iou_thresholds: `[T]` in 0..1.
        area_ranges: name to (least, largest) area in square pixels, both inclusive.
        max_dets: limits on the detections of one category in one image, ascending.
        use_categories: otherwise a detection of any category takes a truth of any category, as for
            proposals, and all count as one category with the id -1.
        strict: with pycocotools' bits also where it is wrong.
        recall_levels: `[R]` where precision is read, ascending; the first is 0.
    """

    iou_thresholds: Floats = field(default_factory=IOU_GRID.copy)
    area_ranges: Mapping[str, tuple[float, float]] = field(
        default_factory=lambda: dict(AREA_RANGES)
    )
    max_dets: tuple[int, ...] = (1, 10, 100)
    use_categories: bool = True
    strict: bool = False
    recall_levels: Floats = field(default_factory=RECALL_GRID.copy)

    @classmethod
    def of(
        cls,
        iou_thresholds: Sequence[float] | Floats | None = None,
        area_ranges: Mapping[str, tuple[float, float]] | None = None,
        max_dets: Sequence[int] = (1, 10, 100),
        *,
        use_categories: bool = True,
        strict: bool = False,
    ) -> CocoSettings:
        """Check and complete what the caller gave; None stands for COCO's values.

        Raises:
            ValueError: no threshold, range or limit, or one outside of what is allowed.
        """
        thresholds = IOU_GRID.copy() if iou_thresholds is None else _thresholds(iou_thresholds)
        ranges = _ranges(AREA_RANGES if area_ranges is None else area_ranges)
        return cls(thresholds, ranges, _limits(max_dets), use_categories, strict)

    @property
    def matching_thresholds(self) -> Floats:
        """`[T]`; a threshold of 1 still accepts an overlap that rounding left a hair below."""
        return np.minimum(self.iou_thresholds, 1 - 1e-10)

    def curve_blocks(self) -> Iterator[tuple[slice, Curves]]:
        """All A * T curves, area range by area range, as blocks that fit the bits of a word."""
        ranges = np.array(list(self.area_ranges.values()), np.float64)  # [A, 2]
        area = np.repeat(np.arange(len(ranges)), len(self.iou_thresholds))  # [C]
        iou = np.tile(self.matching_thresholds, len(ranges))  # [C]
        for start in range(0, len(iou), CURVES_PER_BLOCK):
            block = slice(start, min(start + CURVES_PER_BLOCK, len(iou)))
            yield block, Curves(iou[block], area[block], ranges)


def _thresholds(given: Sequence[float] | Floats) -> Floats:
    try:
        thresholds = np.array(given, np.float64)
    except (TypeError, ValueError):
        thresholds = np.zeros(0)
    if thresholds.ndim != 1 or not len(thresholds):
        raise ValueError(f"iou_thresholds must be a list of numbers, got {given}")
    if not np.all((thresholds >= 0) & (thresholds <= 1)):
        raise ValueError(f"iou_thresholds must lie in 0..1, got {thresholds.tolist()}")
    return thresholds


def _ranges(given: Mapping[str, tuple[float, float]]) -> dict[str, tuple[float, float]]:
    try:
        ranges = {name: (float(low), float(high)) for name, (low, high) in given.items()}
    except (AttributeError, TypeError, ValueError):
        ranges = {}
    if not ranges or not all(low <= high for low, high in ranges.values()):
        raise ValueError(f"area_ranges must be name: (least, largest), got {given}")
    return ranges


def _limits(given: Sequence[int]) -> tuple[int, ...]:
    try:
        limits = tuple(sorted(int(limit) for limit in given))
        whole = sorted(given) == list(limits)
    except (OverflowError, TypeError, ValueError):
        limits, whole = (), False
    if not limits or not whole or limits[0] < 1:
        shown = tuple(given) if isinstance(given, Sequence) else given
        raise ValueError(f"max_dets must be positive whole numbers, got {shown}")
    return limits
