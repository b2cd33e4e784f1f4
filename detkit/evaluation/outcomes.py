"""What became of every detection and every truth: the matches behind the COCO metric.

Curves of precision, confusion, errors and calibration all start from these. T overlap thresholds,
N detections, M truths.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from detkit.evaluation.backend import native_module
from detkit.evaluation.compiled import find_takes
from detkit.evaluation.inputs import (
    AREA_RANGES,
    Bools,
    CocoSettings,
    FlatDetections,
    FlatTruths,
    Floats,
)
from detkit.evaluation.matching import (
    candidates_for,
    rank_detections,
    stable_argsort,
    taken_truths,
)

NONE = -1


@dataclass(frozen=True, slots=True, eq=False)
class Outcomes:
    """The matches for one area range and one limit on detections.

    Attributes:
        detections: N, by category, then best first; those beyond the limit are left out.
        truths: M, by image, then category, then as given.
        iou_thresholds: `[T]`.
        truth_of: `[T, N]` index into `truths` of the truth that a detection took, -1 for none.
        counts: `[M]` whether a truth counts: no crowd, and its area in the range.
        ignored: `[T, N]` detections that are neither right nor wrong: they took a truth that does
            not count, or none and their own area is out of the range.
    """

    detections: FlatDetections
    truths: FlatTruths
    iou_thresholds: Floats
    truth_of: NDArray[np.int32]
    counts: Bools
    ignored: Bools

    @property
    def right(self) -> Bools:
        """Detections that took a truth that counts (true positives), `[T, N]`."""
        return (self.truth_of != NONE) & ~self.ignored

    @property
    def wrong(self) -> Bools:
        """Detections that count and took no truth (false positives), `[T, N]`."""
        return (self.truth_of == NONE) & ~self.ignored

    @property
    def detection_of(self) -> NDArray[np.int32]:
        """Index into `detections` of the best one that took each truth, -1 for none, `[T, M]`."""
        table = np.full((len(self.truth_of), len(self.truths)), NONE, np.int32)
        for row, truth_of in zip(table, self.truth_of, strict=True):
            took = np.flatnonzero(truth_of != NONE)[::-1]  # a crowd may be taken again and again
            row[truth_of[took]] = took
        return table

    @property
    def missed(self) -> Bools:
        """Truths that count and that no detection took (false negatives), `[T, M]`."""
        return self.counts & (self.detection_of == NONE)


def find_outcomes(
    truths: FlatTruths,
    detections: FlatDetections,
    *,
    num_categories: int,
    iou_thresholds: Sequence[float] | Floats = (0.5,),
    area_range: tuple[float, float] = AREA_RANGES["all"],
    limit: int = 100,
) -> Outcomes:
    """Match as the COCO metric does.

    Args:
        truths: in any order.
        detections: in any order; equal scores rank in the order given.
        num_categories: how many categories there are.
        iou_thresholds: `[T]` in 0..1.
        area_range: least and largest area in square pixels of what counts, both inclusive.
        limit: detections of one category in one image that are looked at, the best ones.

    Raises:
        ValueError: a threshold outside of 0..1.
    """
    given = np.asarray(iou_thresholds, np.float64)
    if not ((given >= 0) & (given <= 1)).all():
        raise ValueError(f"overlap thresholds must lie in 0..1, got {given.tolist()}")
    settings = CocoSettings(given, {"": area_range}, (limit,))
    truths = truths[stable_argsort(truths.image * num_categories + truths.category)]
    found, truth_of = _take(truths, detections, num_categories, settings)
    counts = _inside(truths.area, area_range) & ~truths.crowd
    outside = ~_inside(found.boxes[:, 2] * found.boxes[:, 3], area_range)
    ignored = np.tile(outside, (len(given), 1))
    took = np.nonzero(truth_of != NONE)  # few did
    ignored[took] = ~counts[truth_of[took]]
    return Outcomes(found, truths, given, truth_of, counts, ignored)


def _take(
    truths: FlatTruths, detections: FlatDetections, num_categories: int, settings: CocoSettings
) -> tuple[FlatDetections, NDArray[np.int32]]:
    """The detections within the limit, as Outcomes has them, and the truths they take, `[T, N]`.

    Args:
        truths: sorted by image, then category.
        detections: in any order.
        num_categories: how many categories there are.
        settings: with one area range and one limit.
    """
    native = native_module()
    if native is not None:
        order, taken = find_takes(
            native, truths, detections, num_categories=num_categories, settings=settings
        )
        return detections[order], taken
    ranked = rank_detections(detections)
    candidates = candidates_for(ranked, truths, num_categories=num_categories, settings=settings)
    tables = [
        taken_truths(ranked, truths, candidates, curves) for _, curves in settings.curve_blocks()
    ]
    kept = np.flatnonzero(ranked.rank < settings.max_dets[-1])
    return ranked.detections[kept], np.concatenate(tables)[:, kept]


def _inside(area: Floats, area_range: tuple[float, float]) -> Bools:
    return (area >= area_range[0]) & (area <= area_range[1])
