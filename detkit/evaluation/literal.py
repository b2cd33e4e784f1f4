"""The COCO metric word by word, slowly: what the fast path is held against.

Truth by truth, detection by detection, threshold by threshold, as pycocotools 2.0.11 defines it
(`COCOeval.evaluateImg` and `accumulate`), also for numbers that are none: an overlap that is NaN is
below no threshold and so reaches all of them, a score that is NaN ranks last, an area that is NaN
lies in every range.

A cell holds the G truths and D detections of one image and category. K categories, T thresholds,
R recall levels, A area ranges, M limits, N detections of a category over all images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from detkit.evaluation.accumulation import CurveArrays
from detkit.evaluation.inputs import (
    Bools,
    CocoSettings,
    FlatDetections,
    FlatTruths,
    Floats,
    Ints,
)

Cell = tuple[FlatTruths, FlatDetections]
# The products of larger sizes, and of smaller ones, are not sure to fit into float64.
LARGEST, SMALLEST = 1e150, 1e-150


def is_ordinary(truths: FlatTruths, detections: FlatDetections) -> bool:
    """Whether all numbers are finite, and all overlaps sure to be numbers."""
    if not (_within(truths.area, np.inf) and _within(detections.scores, np.inf)):
        return False
    for boxes in (truths.boxes, detections.boxes):
        sizes = boxes[:, 2:]
        if not _within(boxes, LARGEST):
            return False
        if sizes.min(initial=1.0) < SMALLEST and ((sizes > 0) & (sizes < SMALLEST)).any():
            return False
    return True


def _within(values: Floats, limit: float) -> bool:
    """Whether all lie between -limit and limit; NaN lies nowhere."""
    return bool(-limit < values.min(initial=0.0) and values.max(initial=0.0) < limit)


def evaluate_literally(
    truths: FlatTruths, detections: FlatDetections, *, num_categories: int, settings: CocoSettings
) -> CurveArrays:
    """As `evaluate_arrays`, but of any numbers, and some thousand times slower."""
    ranges = list(settings.area_ranges.values())
    shape = (
        len(settings.iou_thresholds),
        len(settings.recall_levels),
        num_categories,
        len(ranges),
        len(settings.max_dets),
    )
    precision, scores = np.full(shape, -1.0), np.full(shape, -1.0)
    recall = np.full((shape[0], *shape[2:]), -1.0)
    num_truths = np.zeros((len(ranges), num_categories), np.int64)
    for category, cells in enumerate(_cells(truths, detections, num_categories)):
        for area, area_range in enumerate(ranges):
            matched = [_match(cell, area_range, settings) for cell in cells]
            total = num_truths[area, category] = sum(each.num_truths for each in matched)
            if not total:
                continue
            for index, limit in enumerate(settings.max_dets):
                heights, highest, at = _draw(matched, limit, total, settings.recall_levels)
                precision[:, :, category, area, index] = heights
                recall[:, category, area, index] = highest
                scores[:, :, category, area, index] = at
    return CurveArrays(precision, recall, num_truths, partial(np.asarray, scores))


def _cells(truths: FlatTruths, detections: FlatDetections, num_categories: int) -> list[list[Cell]]:
    """The cells of every category, by image; those without truths and detections are left out."""
    cells: list[list[Cell]] = []
    for category in range(num_categories):
        own_truths = truths[truths.category == category]
        own = detections[np.flatnonzero(detections.category == category)]
        images = np.union1d(own_truths.image, own.image)
        cells.append(
            [
                (own_truths[own_truths.image == image], own[np.flatnonzero(own.image == image)])
                for image in images
            ]
        )
    return cells


@dataclass(frozen=True, slots=True)
class _Matched:
    """What became of the detections of a cell in one area range, best first.

    Attributes:
        scores: `[D]`.
        positive: `[T, D]` it took a truth.
        ignored: `[T, D]` it counts neither as right nor as wrong.
        num_truths: how many truths count.
    """

    scores: Floats
    positive: Bools
    ignored: Bools
    num_truths: int


def _match(cell: Cell, area_range: tuple[float, float], settings: CocoSettings) -> _Matched:
    truths, found = cell
    found = found[np.argsort(-found.scores, kind="stable")[: settings.max_dets[-1]]]
    ignorable = truths.crowd | _outside(truths.area, area_range)
    order = np.argsort(ignorable, kind="stable")  # truths that count come first
    truths, ignorable = truths[order], ignorable[order]
    overlaps = literal_overlaps(found.boxes, truths.boxes, truths.crowd).tolist()
    positive = np.zeros((len(settings.iou_thresholds), len(found)), bool)
    ignored = np.zeros_like(positive)
    for t, threshold in enumerate(settings.matching_thresholds.tolist()):
        free = [True] * len(truths)
        for d, row in enumerate(overlaps):
            choice = _choose(row, threshold, free, ignorable.tolist())
            if choice is not None:
                free[choice] = bool(truths.crowd[choice])  # any number of detections take a crowd
                positive[t, d] = not truths.id_is_zero[choice]
                ignored[t, d] = ignorable[choice]
    with np.errstate(over="ignore", invalid="ignore"):
        outside = _outside(found.boxes[:, 2] * found.boxes[:, 3], area_range)
    ignored |= ~positive & outside
    return _Matched(found.scores, positive, ignored, int(np.count_nonzero(~ignorable)))


def _choose(
    overlaps: Sequence[float], threshold: float, free: list[bool], ignorable: list[bool]
) -> int | None:
    """The truth that a detection takes: of the largest overlap, of equal ones the last."""
    best, reached = None, threshold
    for truth, overlap in enumerate(overlaps):
        if not free[truth]:
            continue
        if best is not None and ignorable[truth] and not ignorable[best]:
            break  # what counts is preferred, whatever the overlaps
        if overlap < reached:  # false also for NaN, then and from then on
            continue
        best, reached = truth, overlap
    return best


def _outside(area: Floats, area_range: tuple[float, float]) -> Bools:
    return (area < area_range[0]) | (area > area_range[1])


def literal_overlaps(boxes: Floats, truths: Floats, crowd: Bools) -> Floats:
    """IoU of xywh boxes `[D, 4]` and truths `[G, 4]` as in `bbIou` of maskApi.c, `[D, G]`."""
    x, y, w, h = boxes.T[:, :, None]
    tx, ty, tw, th = truths.T
    with np.errstate(all="ignore"):  # fmin and fmax prefer a number to NaN
        width = np.fmin(w + x, tw + tx) - np.fmax(x, tx)
        height = np.fmin(h + y, th + ty) - np.fmax(y, ty)
        shared = width * height
        union = np.where(crowd, w * h, w * h + tw * th - shared)
        return np.where((width <= 0) | (height <= 0), 0.0, shared / union)


def _draw(
    cells: list[_Matched], limit: int, num_truths: int, levels: Floats
) -> tuple[Floats, Floats, Floats]:
    """Precision `[T, R]`, highest recall `[T]` and scores `[T, R]` of one category.

    Args:
        cells: by image.
        limit: on the detections of a cell.
        num_truths: how many count in all cells.
        levels: `[R]` of recall.
    """
    scores = np.concatenate([cell.scores[:limit] for cell in cells])  # [N]
    order = np.argsort(-scores, kind="stable")
    scores = scores[order]
    positive = np.concatenate([cell.positive[:, :limit] for cell in cells], axis=1)[:, order]
    ignored = np.concatenate([cell.ignored[:, :limit] for cell in cells], axis=1)[:, order]
    curves = [
        _curve(right, wrong, scores, num_truths, levels)
        for right, wrong in zip(positive & ~ignored, ~positive & ~ignored, strict=True)
    ]
    precision, recall, at = zip(*curves, strict=True)
    return np.stack(precision), np.array(recall), np.stack(at)


def _curve(
    right: Bools, wrong: Bools, scores: Floats, num_truths: int, levels: Floats
) -> tuple[Floats, float, Floats]:
    """One curve of precision over recall, from flags and scores `[N]`, best first."""
    precision, at = np.zeros(len(levels)), np.zeros(len(levels))
    if not len(scores):
        return precision, 0.0, at
    true, false = np.cumsum(right).astype(float), np.cumsum(wrong).astype(float)
    recall = true / num_truths
    highest = np.maximum.accumulate((true / (false + true + np.spacing(1.0)))[::-1])[::-1]
    first: Ints = np.searchsorted(recall, levels, side="left")  # where a level is reached
    reached = first < len(scores)
    precision[reached], at[reached] = highest[first[reached]], scores[first[reached]]
    return precision, float(recall[-1]), at
