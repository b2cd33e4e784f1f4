"""The COCO metric for boxes, equal to pycocotools 2.0.11 to the last bit.

Reference: Lin et al., "Microsoft COCO: Common Objects in Context", and
https://cocodataset.org/#detection-eval. `coco_json` reads files into flat arrays, `matching` gives
detections their truths, `accumulation` draws the curves, `result` averages them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from detkit.evaluation.accumulation import evaluate_arrays
from detkit.evaluation.coco_json import read_detections, read_truths
from detkit.evaluation.inputs import (
    CocoSettings,
    CocoTruths,
    FlatDetections,
    FlatTruths,
    Floats,
    Ids,
    Ints,
    TruthsById,
    index_of,
)
from detkit.evaluation.literal import evaluate_literally, is_ordinary
from detkit.evaluation.result import CocoResult

State = dict[str, np.ndarray]
BOX_FORMATS = ("xyxy", "xywh")


def evaluate_files(
    gt_json: str | Path | Mapping[str, Any],
    dt_json: str | Path | Sequence[Mapping[str, Any]],
    *,
    iou_thresholds: Sequence[float] | Floats | None = None,
    area_ranges: Mapping[str, tuple[float, float]] | None = None,
    max_dets: Sequence[int] = (1, 10, 100),
    use_categories: bool = True,
    strict: bool = False,
) -> CocoResult:
    """Evaluate a COCO results file against a COCO ground-truth file, or what was read from them.

    Equal to pycocotools to the last bit, but for inputs on which it fails or is wrong, and then
    `CocoResult.notes` says what differs: an annotation with id 0 counts like any other (pycocotools
    takes every match with it for a miss), and so does each of several annotations with one id; AP
    is that of the largest limit where there is none of 100 (pycocotools: -1); no detections give 0
    (an exception); `area` defaults to w * h and `iscrowd` to 0 (exceptions); NaN and infinite
    numbers are an error (an overlap that is NaN reaches all thresholds).

    Args:
        gt_json: ground truth.
        dt_json: detections: a list of image_id, category_id, bbox (xywh) and score.
        iou_thresholds: default 0.50, 0.55 .. 0.95.
        area_ranges: name to least and largest area in square pixels, both inclusive; default
            COCO's all, small, medium, large.
        max_dets: limits on the detections of one category in one image.
        use_categories: False lets a detection take a truth of any category, as for proposals
            (`useCats` of pycocotools).
        strict: reproduce pycocotools to the last bit in all of these as well, wherever it gives
            numbers at all.

    Raises:
        ValueError: malformed JSON, a missing or wrong field, an image that the ground truth does
            not have (the message names file, index and field), or a wrong setting.
        OSError: a file cannot be read.
    """
    settings = CocoSettings.of(
        iou_thresholds, area_ranges, max_dets, use_categories=use_categories, strict=strict
    )
    truths = read_truths(gt_json, strict=strict, use_categories=use_categories)
    return _evaluate(truths, read_detections(dt_json, truths, strict=strict), settings)


def _evaluate(truths: CocoTruths, detections: FlatDetections, settings: CocoSettings) -> CocoResult:
    if not settings.use_categories:
        truths, detections = _as_one_category(truths, detections, strict=settings.strict)
    literally = settings.strict and not is_ordinary(truths.truths, detections)
    curves = (evaluate_literally if literally else evaluate_arrays)(
        truths.truths,
        detections,
        num_categories=len(truths.category_ids),
        settings=settings,
    )
    return CocoResult(
        curves=curves,
        category_ids=tuple(truths.category_ids.tolist()),
        class_names=truths.class_names,
        settings=settings,
        truths=truths,
        detections=detections,
    )


def _as_one_category(
    truths: CocoTruths, detections: FlatDetections, *, strict: bool
) -> tuple[CocoTruths, FlatDetections]:
    """All as one category, in the order of pycocotools: by category, then as given."""

    def order(category: Ints) -> Ints:
        rows = np.argsort(category, kind="stable")
        if truths.listed is None or not strict:
            return rows
        # pycocotools takes what a category holds once for each time that it is listed
        own = [rows[category[rows] == index] for index in range(len(truths.category_ids))]
        return np.concatenate([np.tile(o, n) for o, n in zip(own, truths.listed, strict=True)])

    def merge(flat: FlatTruths) -> FlatTruths:
        flat = flat[order(flat.category)]
        return replace(flat, category=np.zeros_like(flat.category))

    by_id = truths.by_id
    merged = replace(
        truths,
        category_ids=np.array([-1]),
        class_names=("any category",),
        truths=merge(truths.truths),
        by_id=by_id and TruthsById(merge(by_id.truths), by_id.reasons),
    )
    found = detections[order(detections.category)]
    return merged, replace(found, category=np.zeros_like(found.category))


class CocoEvaluator:
    """Collects the detections of a validation run, image by image, and evaluates them.

    Images that never come count as images without detections. Of an image that comes twice, as
    when a sampler pads its shards, the first result counts. In distributed training:

        states = [None] * world_size
        torch.distributed.all_gather_object(states, evaluator.state())
        evaluator.reset()              # then all processes merge the same, in the same order
        evaluator.merge(states)
        result = evaluator.compute()

    Args:
        truths: ground truth.
        settings: thresholds, area ranges and limits; default COCO's.
    """

    def __init__(self, truths: CocoTruths, settings: CocoSettings | None = None) -> None:
        self.truths = truths
        self.settings = settings or CocoSettings()
        self._place = {image_id: i for i, image_id in enumerate(truths.image_ids.tolist())}
        self._images: dict[int | str, State] = {}  # by image id, in the order of arrival

    @classmethod
    def from_coco(
        cls,
        source: Mapping[str, Any] | str | Path,
        *,
        iou_thresholds: Sequence[float] | Floats | None = None,
        area_ranges: Mapping[str, tuple[float, float]] | None = None,
        max_dets: Sequence[int] = (1, 10, 100),
        use_categories: bool = True,
        strict: bool = False,
    ) -> CocoEvaluator:
        """Take the ground truth from a COCO file or the dict read from one.

        Arguments and errors are those of `evaluate_files`.
        """
        settings = CocoSettings.of(
            iou_thresholds, area_ranges, max_dets, use_categories=use_categories, strict=strict
        )
        truths = read_truths(source, strict=strict, use_categories=use_categories)
        return cls(truths, settings)

    @classmethod
    def from_arrays(
        cls,
        *,
        image_ids: ArrayLike,
        category_ids: ArrayLike,
        gt_image_index: ArrayLike,
        gt_category_index: ArrayLike,
        gt_boxes: ArrayLike,
        gt_area: ArrayLike | None = None,
        gt_crowd: ArrayLike | None = None,
        class_names: Sequence[str] | None = None,
    ) -> CocoEvaluator:
        """Take the ground truth from flat arrays: I images, K categories, M truths.

        Args:
            image_ids: `[I]` whole numbers or strings, any order, each once.
            category_ids: `[K]`, any order, each once.
            gt_image_index: `[M]` index into `image_ids`.
            gt_category_index: `[M]` index into `category_ids`.
            gt_boxes: `[M, 4]` xywh in pixels.
            gt_area: `[M]` in square pixels; default w * h.
            gt_crowd: `[M]` bool; default none.
            class_names: in the order of `category_ids`; default the ids.

        Raises:
            ValueError: ids that repeat, columns of different length, an index out of range, NaN.
        """
        images, image_place = _sort_ids(_image_ids(image_ids), "image_ids")
        categories, category_place = _sort_ids(np.asarray(category_ids, np.int64), "category_ids")
        names = class_names or [str(category) for category in np.asarray(category_ids).tolist()]
        if len(names) != len(categories):
            raise ValueError(f"{len(categories)} category_ids have {len(names)} class_names")
        truths = FlatTruths.of(
            _place_of(gt_image_index, image_place, "gt_image_index"),
            _place_of(gt_category_index, category_place, "gt_category_index"),
            gt_boxes,
            area=gt_area,
            crowd=gt_crowd,
        )
        sorted_names = tuple(str(names[i]) for i in np.argsort(category_place))
        return cls(CocoTruths(images, categories, sorted_names, truths))

    def __len__(self) -> int:
        """How many images have come."""
        return len(self._images)

    def update(
        self,
        image_id: int | str,
        boxes: ArrayLike,
        scores: ArrayLike,
        category_ids: ArrayLike,
        *,
        box_format: str = "xyxy",
    ) -> None:
        """Add the detections of one image; a second call for the same image changes nothing.

        Detections of categories that the ground truth does not list are left out of the result.

        Args:
            image_id: as in the ground truth.
            boxes: `[K, 4]` in pixels of the original image.
            scores: `[K]`.
            category_ids: `[K]`, original ids, not labels.
            box_format: "xyxy" for corners, "xywh" for boxes as in COCO's files.

        Raises:
            ValueError: unknown image or format, arrays that do not fit each other or do not hold
                numbers, ids that are not whole, and, unless `strict`, NaN, infinite numbers and
                negative sizes.
        """
        if box_format not in BOX_FORMATS:
            raise ValueError(f"box_format must be {' or '.join(BOX_FORMATS)}, got {box_format!r}")
        image_id = _image_id(image_id)
        if image_id not in self._place:
            raise ValueError(
                f"image_id {image_id!r} is not among the {len(self._place)} images of "
                f"{self.truths.source}"
            )
        values = _numbers(image_id, "boxes", boxes)
        found: State = {
            "boxes": values if values.size else values.reshape(-1, 4),
            "scores": _numbers(image_id, "scores", scores),
            "category_ids": _ids(image_id, "category_ids", category_ids),
        }
        _check_shapes(image_id, found)
        if not self.settings.strict:
            _check_finite(image_id, found)
        if box_format == "xyxy":
            found["boxes"] = _corners_to_sizes(found["boxes"])
        if not self.settings.strict:
            _check_sizes(image_id, found["boxes"])
        self._images.setdefault(image_id, found)

    def state(self) -> State:
        """What has come so far, as flat arrays: I images, N detections.

        Returns:
            image_ids `[I]`, counts `[I]` of detections, boxes `[N, 4]` xywh, scores `[N]` and
            category_ids `[N]`, in the order of arrival.
        """
        images = self._images.values()
        empty = {"boxes": np.zeros((0, 4)), "scores": np.zeros(0), "category_ids": np.zeros(0, int)}
        columns = {
            key: np.concatenate([none, *(found[key] for found in images)])
            for key, none in empty.items()
        }
        counts = np.array([len(found["scores"]) for found in images], np.int64)
        image_ids = np.array(list(self._images), self.truths.image_ids.dtype)
        return {"image_ids": image_ids, "counts": counts, **columns}

    def merge(self, states: Iterable[State]) -> None:
        """Add the images of other evaluators; the first result of an image counts, own ones first.

        Args:
            states: of evaluators on the same ground truth.

        Raises:
            ValueError: an image that this ground truth does not have.
        """
        for state in states:
            ends = np.cumsum(state["counts"])[:-1]
            columns = {
                key: np.split(state[key], ends) for key in ("boxes", "scores", "category_ids")
            }
            for i, image_id in enumerate(state["image_ids"].tolist()):
                if image_id not in self._place:
                    raise ValueError(
                        f"image_id {image_id!r} of a merged state is not among the "
                        f"{len(self._place)} images of {self.truths.source}"
                    )
                self._images.setdefault(image_id, {key: columns[key][i] for key in columns})

    def flat_detections(self) -> FlatDetections:
        """What has come so far of the listed categories, indexed as `truths` is."""
        state = self.state()
        place = [self._place[image_id] for image_id in self._images]
        image = np.repeat(np.array(place, np.int64), state["counts"])
        category, listed = index_of(self.truths.category_ids, state["category_ids"])
        detections = FlatDetections(image, category, state["boxes"], state["scores"])
        return detections[np.flatnonzero(listed)]

    def compute(self) -> CocoResult:
        """Evaluate all that has come; more may come after."""
        return _evaluate(self.truths, self.flat_detections(), self.settings)

    def reset(self) -> None:
        """Forget the detections, keep the ground truth."""
        self._images.clear()


def _image_id(given: Any) -> int | str:
    """A whole number of any type, or a string."""
    if isinstance(given, str):
        return str(given)
    try:
        whole = int(given)
    except (TypeError, ValueError, OverflowError):
        whole = None
    if whole is None or whole != given or isinstance(given, bool):
        raise ValueError(f"image_id must be a whole number or a string, got {given!r}")
    return whole


def _numbers(image_id: int | str, name: str, values: ArrayLike) -> Floats:
    """A copy as float64, for the caller may use the memory again."""
    try:
        given = np.asarray(values)
    except ValueError as error:  # rows of different lengths
        raise ValueError(f"image_id {image_id}: {name}: {error}") from None
    if given.size and given.dtype.kind not in "fiu":
        raise ValueError(f"image_id {image_id}: {name} must be numbers, got {given.dtype} values")
    return given.astype(np.float64)


def _ids(image_id: int | str, name: str, values: ArrayLike) -> Ints:
    numbers = _numbers(image_id, name, values)
    wrong = (np.floor(numbers) != numbers) | ~(np.abs(numbers) < 2.0**63)
    if wrong.any():
        raise ValueError(
            f"image_id {image_id}: {name} must be whole numbers of 64 bits, got {numbers[wrong][0]}"
        )
    return np.asarray(values).astype(np.int64)  # not by way of float64, which has but 53 bits


def _check_shapes(image_id: int | str, found: State) -> None:
    shapes = [list(found[key].shape) for key in ("boxes", "scores", "category_ids")]
    count = len(found["scores"]) if found["scores"].ndim else 0
    if shapes != [[count, 4], [count], [count]]:
        raise ValueError(
            f"image_id {image_id}: boxes, scores and category_ids must be [K, 4], [K] and [K], "
            f"got {shapes[0]}, {shapes[1]} and {shapes[2]}"
        )


def _check_finite(image_id: int | str, found: State) -> None:
    for key in ("boxes", "scores"):
        wrong, _ = np.nonzero(~np.isfinite(np.atleast_2d(found[key].T).T))
        if len(wrong):
            raise ValueError(
                f"image_id {image_id}: {key}[{wrong[0]}] must be finite, "
                f"got {found[key][wrong[0]].tolist()}"
            )


def _corners_to_sizes(boxes: Floats) -> Floats:
    low, high = np.split(boxes, 2, axis=1)
    with np.errstate(invalid="ignore", over="ignore"):
        return np.concatenate([low, high - low], axis=1)


def _check_sizes(image_id: int | str, boxes: Floats) -> None:
    wrong, _ = np.nonzero(boxes[:, 2:] < 0)
    if len(wrong):
        width, height = boxes[wrong[0], 2:].tolist()
        raise ValueError(
            f"image_id {image_id}: boxes[{wrong[0]}] must not have a negative size, "
            f"got {width} x {height}"
        )


def _image_ids(ids: ArrayLike) -> Ids:
    """Whole numbers as int64, strings as objects."""
    given = np.asarray(ids)
    text = given.dtype.kind == "U" or any(isinstance(each, str) for each in given[:1].tolist())
    return given.astype(object if text else np.int64)


def _sort_ids(given: Ids, name: str) -> tuple[Ids, Ints]:
    """The sorted ids, and for each id as given its place among them.

    Raises:
        ValueError: an id repeats.
    """
    unique, place, count = np.unique(given, return_inverse=True, return_counts=True)
    if len(unique) < len(given):
        raise ValueError(
            f"{name} must be given once each, {unique[count > 1].tolist()[0]!r} repeats"
        )
    return unique, place


def _place_of(index: ArrayLike, place: Ints, name: str) -> Ints:
    """Turn an index into the ids as given into an index into the sorted ids."""
    given = np.asarray(index, np.int64)
    wrong = (given < 0) | (given >= len(place))
    if wrong.any():
        raise ValueError(f"{name} must lie in 0..{len(place) - 1}, got {given[wrong][0]}")
    return place[given]
