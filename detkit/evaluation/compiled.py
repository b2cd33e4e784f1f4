"""The evaluation by the compiled module: arrays are laid out for it and taken from it.

K categories, T thresholds, A area ranges, M limits, R recall levels, N detections.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detkit.evaluation.inputs import (
    CocoSettings,
    FlatDetections,
    FlatTruths,
    Floats,
    Ints,
)


def draw_curves(
    native: ModuleType,
    truths: FlatTruths,
    detections: FlatDetections,
    *,
    num_categories: int,
    settings: CocoSettings,
    with_scores: bool = True,
) -> tuple[Floats, Floats, Floats, Ints]:
    """Precision `[T, R, K, A, M]`, recall `[T, K, A, M]`, scores, and truths `[A, K]`.

    Scores are as precision, or empty where they are not wanted.
    """
    numbers = thresholds, ranges, limits, levels = _numbers(settings)
    rows = (num_categories, len(ranges), len(limits), len(thresholds))
    precision: Floats = np.zeros((*rows, len(levels)))
    scores: Floats = np.zeros(precision.shape if with_scores else (0,) * precision.ndim)
    recall, num_truths = np.zeros(rows), np.zeros((len(ranges), num_categories), np.int64)
    native.draw_curves(
        _columns(truths),
        _columns(detections),
        numbers,
        _num_images(truths, detections),
        num_categories,
        (precision, scores, recall, num_truths),
    )
    # Views: the axes as pycocotools has them, without its strided writes.
    precision, scores = (table.transpose(3, 4, 0, 1, 2) for table in (precision, scores))
    return precision, recall.transpose(3, 0, 1, 2), scores, num_truths


def find_takes(
    native: ModuleType,
    truths: FlatTruths,
    detections: FlatDetections,
    *,
    num_categories: int,
    settings: CocoSettings,
) -> tuple[Ints, NDArray[np.int32]]:
    """The n detections within the limit, by category, best first, and which truths they take.

    Args:
        native: the module.
        truths: in the order to which indices refer.
        detections: N in any order.
        num_categories: how many categories there are.
        settings: with one area range and one limit.

    Returns:
        Their places in the order given, `[n]`, and indices of truths, -1 for none, `[T, n]`.
    """
    order = np.zeros(len(detections), np.int32)
    taken = np.full((len(settings.iou_thresholds), len(detections)), -1, np.int32)
    count = native.find_takes(
        _columns(truths),
        _columns(detections),
        _numbers(settings),
        _num_images(truths, detections),
        num_categories,
        (order, taken),
    )
    return order[:count].astype(np.int64), taken[:, :count]


def _numbers(settings: CocoSettings) -> tuple[Floats, Floats, Ints, Floats]:
    return (
        settings.matching_thresholds,
        np.array(list(settings.area_ranges.values()), np.float64),
        np.array(settings.max_dets, np.int64),
        np.ascontiguousarray(settings.recall_levels, np.float64),
    )


def _columns(table: FlatTruths | FlatDetections) -> tuple[NDArray[Any], ...]:
    """The arrays as the module reads them; copied only where they are not so already."""
    index = [np.ascontiguousarray(column, np.int64) for column in (table.image, table.category)]
    boxes = np.ascontiguousarray(table.boxes, np.float64)
    if isinstance(table, FlatDetections):
        return *index, boxes, np.ascontiguousarray(table.scores, np.float64)
    flags = [np.ascontiguousarray(column, np.bool_) for column in (table.crowd, table.id_is_zero)]
    return *index, boxes, np.ascontiguousarray(table.area, np.float64), *flags


def _num_images(truths: FlatTruths, detections: FlatDetections) -> int:
    return 1 + max(int(table.image.max(initial=-1)) for table in (truths, detections))
