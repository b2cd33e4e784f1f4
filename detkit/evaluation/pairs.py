"""Detections beside the truths of their image, whatever the class.

N detections, M truths, P pairs.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from detkit.evaluation.inputs import FlatDetections, FlatTruths, Floats, Ints
from detkit.evaluation.matching import (
    Candidates,
    find_candidates,
    rank_detections,
    run_starts,
    stable_argsort,
)
from detkit.evaluation.outcomes import NONE


def pairs_in_images(
    detections: FlatDetections, truths: FlatTruths, *, lowest_iou: float
) -> Candidates:
    """The pairs that overlap by so much or more; with a crowd, the part of the detection inside it.

    Args:
        detections: N, in any order.
        truths: M, in any order.
        lowest_iou: above 0.

    Returns:
        Indices of detections and truths as given. The pairs of a detection stand together, in the
        order of the truths.
    """
    best_first = np.lexsort((detections.image, -detections.scores))
    by_image = stable_argsort(truths.image)
    found, targets = detections[best_first], truths[by_image]
    pairs = find_candidates(
        rank_detections(replace(found, category=np.zeros_like(found.category))),  # in this order
        replace(targets, category=np.zeros_like(targets.category)),
        num_categories=1,
        lowest_iou=lowest_iou,
        max_rank=len(found) + 1,
    )
    return Candidates(best_first[pairs.detection], by_image[pairs.truth], pairs.iou)


def nearest_truths(pairs: Candidates, count: int) -> tuple[Floats, Ints]:
    """The largest overlap of each of `count` detections, 0 for none, and its truth, -1 for none.

    Of equal overlaps the first truth is taken. The pairs of a detection must stand together.
    """
    first = run_starts(pairs.detection)
    largest, nearest = np.zeros(count), np.full(count, NONE)
    if len(first):
        largest[pairs.detection[first]] = np.maximum.reduceat(pairs.iou, first)
    at = np.flatnonzero(pairs.iou == largest[pairs.detection])[::-1]
    nearest[pairs.detection[at]] = pairs.truth[at]  # the last written is the first
    return largest, nearest


def chosen_pairs(pairs: Candidates, chosen: np.ndarray) -> Candidates:
    """Some of the pairs, by a mask or an index."""
    return Candidates(pairs.detection[chosen], pairs.truth[chosen], pairs.iou[chosen])
