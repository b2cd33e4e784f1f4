"""AP of resampled images, without evaluating them anew.

A resample draws as many images as there are, with replacement. It is a weight for each image: how
often it was drawn. The matches in an image do not depend on the others, so detections are matched
and sorted once, and the weights only count: true and false positives are weighted sums along the
ranking. The AP is that of a data set in which the images stand as often as they were drawn, under
ids of their own. There, copies of a detection tie; all of them are true positives or all false, and
precision is taken at the last one, where true positives have lifted it most. Different detections
of equal score keep the order that they have in the evaluation, each with all its copies.

I images, B resamples, K categories, T thresholds, N detections and M truths of one category,
S settled detections: those that are no false positive at some threshold.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from detkit.evaluation.backend import native_module
from detkit.evaluation.inputs import RECALL_GRID, Bools, FlatTruths, Floats, Ints
from detkit.evaluation.outcomes import NONE, Outcomes

WEIGHTS_PER_CHUNK = 1 << 22  # 32 MiB
SUMS_PER_CHUNK = 1 << 18  # the running sums of a chunk then stay in the cache


@dataclass(frozen=True, slots=True, eq=False)
class ClassRanking:
    """What of one category the weights of the images act on.

    Attributes:
        truth_image: `[M]` the image of each truth that counts.
        image: `[N]` the image of each detection, best first.
        settled: `[S]` places of the settled ones in this order, ascending.
        right: `[T, S]` which of these are true positives.
        ignored: `[T, S]` which are neither true nor false.
    """

    truth_image: Ints
    image: Ints
    settled: Ints
    right: Bools
    ignored: Bools


def rank_classes(outcomes: Outcomes, num_categories: int) -> list[ClassRanking]:
    """The categories one by one."""
    found = outcomes.detections
    right = outcomes.right & ~_voids(outcomes.truths)[outcomes.truth_of]
    settled = np.flatnonzero((right | outcomes.ignored).any(axis=0))
    right, ignored = right[:, settled], outcomes.ignored[:, settled]
    truths = outcomes.truths[outcomes.counts]
    truths = truths[np.argsort(truths.category, kind="stable")]
    ends = np.arange(num_categories + 1)
    first = np.searchsorted(found.category, ends)
    first_settled = np.searchsorted(settled, first)
    first_truth = np.searchsorted(truths.category, ends)
    table = []
    for k in range(num_categories):
        own = slice(first_settled[k], first_settled[k + 1])
        ranking = ClassRanking(
            truth_image=truths.image[first_truth[k] : first_truth[k + 1]],
            image=found.image[first[k] : first[k + 1]],
            settled=settled[own] - first[k],
            right=np.ascontiguousarray(right[:, own]),
            ignored=np.ascontiguousarray(ignored[:, own]),
        )
        table.append(ranking)
    return table


def _voids(truths: FlatTruths) -> Bools:
    """Truths a match with which counts as none, `[M + 1]`; the last one is that of no match."""
    assert NONE == -1
    return np.append(truths.id_is_zero, False)


def draw_weights(images: int, resamples: int, rng: np.random.Generator) -> Iterator[Ints]:
    """How often each image is drawn, `[B, I]`, in portions that make up all resamples."""
    portion = max(1, WEIGHTS_PER_CHUNK // max(images, 1))
    for start in range(0, resamples, portion):
        rows = range(start, min(start + portion, resamples))
        draws = (rng.integers(0, images, images) for _ in rows)
        yield np.stack([np.bincount(draw, minlength=images) for draw in draws])


def weighted_precision(classes: Sequence[ClassRanking], weights: Ints) -> Iterator[Floats]:
    """Average precision at each threshold, class by class, `[B, T]`; NaN without truths.

    Args:
        classes: the rankings.
        weights: `[B, I]` how often each image counts.
    """
    native = native_module()
    if native is None:
        yield from (_precision(ranking, weights) for ranking in classes)
        return
    words = np.ascontiguousarray(weights, np.uint32)
    yield from (_compiled_precision(native, ranking, words) for ranking in classes)


def _compiled_precision(
    native: ModuleType, ranking: ClassRanking, weights: NDArray[np.uint32]
) -> Floats:
    columns = ranking.truth_image, ranking.image, ranking.settled, ranking.right, ranking.ignored
    precision = np.empty((len(weights), len(ranking.right)))
    native.weigh_class(columns, weights, precision, *weights.shape, len(ranking.right))
    return precision


def _precision(ranking: ClassRanking, weights: Ints) -> Floats:
    """In numpy, portion by portion."""
    portion = max(1, SUMS_PER_CHUNK // max(len(ranking.image), 1))
    rows = [
        _precision_of_portion(ranking, weights[start : start + portion])
        for start in range(0, len(weights), portion)
    ]
    return np.concatenate([np.zeros((0, len(ranking.right))), *rows])


def _precision_of_portion(ranking: ClassRanking, weights: Ints) -> Floats:
    truths = weights.take(ranking.truth_image, axis=1).sum(axis=1)  # [B]
    seen = np.cumsum(weights.take(ranking.image, axis=1), axis=1)  # [B, N]
    seen = seen.take(ranking.settled, axis=1)  # [B, S]
    own = weights.take(ranking.image[ranking.settled], axis=1)  # [B, S]
    precision = np.zeros((len(weights), len(ranking.right)))
    for column, right, ignored in zip(precision.T, ranking.right, ranking.ignored, strict=True):
        at = np.flatnonzero(right | ignored)[::-1]
        true = _count_up_to(own, at, right)
        judged = seen.take(at, axis=1) - _count_up_to(own, at, ignored)
        column[:] = _area(true, judged - true, np.maximum(truths, 1))
    precision[truths == 0] = np.nan
    return precision


def _count_up_to(own: Ints, at: Ints, flags: Bools) -> Ints:
    """Weight of the flagged among those at `at` or better, for each; worst first."""
    weights = own.take(at[::-1], axis=1) * flags[at[::-1]]
    return np.cumsum(weights, axis=1)[:, ::-1]


def _area(true: Ints, false: Ints, truths: Ints) -> Floats:
    """Area under the precision-recall curve, `[B]`, from points with the worst one first.

    Each level of recall counts with the highest precision of the points that reach it: a point adds
    its running maximum once for each level that the next better point does not reach.

    Args:
        true: `[B, P]` true positives up to and with the point.
        false: `[B, P]` false positives before it.
        truths: `[B]`.
    """
    if not true.shape[1]:
        return np.zeros(len(true))
    precision = true / (false + true + np.spacing(1.0))
    recall = true / truths[:, None]
    levels = np.rint(recall * (len(RECALL_GRID) - 1)).astype(np.int64)
    levels -= RECALL_GRID[levels] > recall  # the nearest level may be the one above
    levels += 1  # recall 0 is a level, and reached by all
    added = levels.copy()
    added[:, :-1] -= levels[:, 1:]
    envelope = np.maximum.accumulate(precision, axis=1)
    # summed one by one, as the compiled code does it
    return np.cumsum(added * envelope, axis=1)[:, -1] / len(RECALL_GRID)
