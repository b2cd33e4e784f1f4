"""Precision-recall curves of matched detections (pycocotools, `COCOeval.accumulate`).

K categories, T thresholds, A area ranges, M limits, R recall levels, C = A * T curves,
N detections, E events, P true positives. A segment is the detections of one category under one
curve; there are C * K of them.

Only matched detections are walked: the false positives before one are the detections of its range
so far less those that are matched. Precision only falls between two true positives, so the envelope
needs their values alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detkit.evaluation.backend import native_module
from detkit.evaluation.compiled import draw_curves
from detkit.evaluation.inputs import (
    Bits,
    Bools,
    CocoSettings,
    Curves,
    FlatDetections,
    FlatTruths,
    Floats,
    Ints,
)
from detkit.evaluation.matching import (
    Candidates,
    Matches,
    RankedDetections,
    candidates_for,
    match,
    rank_detections,
    run_lengths,
    run_starts,
    stable_argsort,
)


@dataclass(frozen=True, eq=False)
class CurveArrays:
    """The arrays of pycocotools' `COCOeval.eval`; -1 where a category has no truth in the range.

    Attributes:
        precision: `[T, R, K, A, M]` highest precision at this recall or more.
        recall: `[T, K, A, M]` highest recall.
        num_truths: `[A, K]` truths that count.
        draw_scores: gives `scores`.
    """

    precision: Floats
    recall: Floats
    num_truths: Ints
    draw_scores: Callable[[], Floats] = field(repr=False)

    @cached_property
    def scores(self) -> Floats:
        """Score at which the recall is reached, 0 where it never is, `[T, R, K, A, M]`.

        Drawn when they are asked for: few ask, and they take as much memory as precision.
        """
        return self.draw_scores()


def evaluate_arrays(
    truths: FlatTruths,
    detections: FlatDetections,
    *,
    num_categories: int,
    settings: CocoSettings,
    with_scores: bool = False,
) -> CurveArrays:
    """Evaluate flat arrays: sort, pair, match, accumulate; compiled where there is a module.

    Args:
        truths: in any order.
        detections: in any order; equal scores rank in the order given.
        num_categories: how many categories there are.
        settings: thresholds, area ranges and limits.
        with_scores: draw the scores at once; otherwise asking for them takes a second evaluation.
    """
    native = native_module()
    if native is None:
        return _evaluate_in_numpy(truths, detections, num_categories, settings)
    precision, recall, scores, num_truths = draw_curves(
        native,
        truths,
        detections,
        num_categories=num_categories,
        settings=settings,
        with_scores=with_scores,
    )
    draw_scores = partial(_scores_of, truths, detections, num_categories, settings)
    if with_scores:
        draw_scores = partial(np.asarray, scores)
    return CurveArrays(precision, recall, num_truths, draw_scores)


def _scores_of(
    truths: FlatTruths, detections: FlatDetections, num_categories: int, settings: CocoSettings
) -> Floats:
    return evaluate_arrays(
        truths, detections, num_categories=num_categories, settings=settings, with_scores=True
    ).scores


def _evaluate_in_numpy(
    truths: FlatTruths, detections: FlatDetections, num_categories: int, settings: CocoSettings
) -> CurveArrays:
    ranked = rank_detections(detections)
    truths = truths[stable_argsort(truths.image * num_categories + truths.category)]
    candidates = candidates_for(ranked, truths, num_categories=num_categories, settings=settings)
    return accumulate(ranked, truths, candidates, num_categories=num_categories, settings=settings)


def accumulate(
    ranked: RankedDetections,
    truths: FlatTruths,
    candidates: Candidates,
    *,
    num_categories: int,
    settings: CocoSettings,
) -> CurveArrays:
    """Match and draw the curves; boxes are looked at no more, but for the areas of detections.

    Args:
        ranked: the detections.
        truths: sorted by image, then category.
        candidates: the pairs, as of `candidates_for` these settings.
        num_categories: how many categories there are.
        settings: thresholds, area ranges and limits.
    """
    inside = _inside_ranges(ranked.detections, settings)
    seen = [_running_count(inside & (ranked.rank < limit)) for limit in settings.max_dets]
    tables = _Tables.empty(settings, num_categories)
    num_truths = _count_truths(truths, num_categories, settings)  # [A, K]
    for block, curves in settings.curve_blocks():
        matches = match(ranked, truths, candidates, curves)
        events = _list_events(ranked, matches, curves, num_categories)
        for index, limit in enumerate(settings.max_dets):
            positives = _count_positives(events, seen[index], limit)
            _draw(tables, (index, block), positives, num_truths[curves.area])
    return tables.finish(settings, num_truths, _top_scores(ranked.detections, num_categories))


def _inside_ranges(found: FlatDetections, settings: CocoSettings) -> Bools:
    """Whether the area of the box lies in each of the ranges, `[A, N]`."""
    area = found.boxes[:, 2] * found.boxes[:, 3]
    ranges = settings.area_ranges.values()
    return np.stack([(area >= low) & (area <= high) for low, high in ranges])


def _running_count(flags: Bools) -> NDArray[np.int32]:
    """How many are set before each column and, at the end, in all: `[A, N]` to `[A, N + 1]`."""
    count = np.zeros((len(flags), flags.shape[1] + 1), np.int32)  # large: half the memory counts
    np.cumsum(flags, axis=1, out=count[:, 1:])
    return count


def _count_truths(truths: FlatTruths, num_categories: int, settings: CocoSettings) -> Ints:
    """Truths that count, by area range and category, `[A, K]`."""
    counting = [
        (truths.area >= low) & (truths.area <= high) & ~truths.crowd
        for low, high in settings.area_ranges.values()
    ]
    rows = [np.bincount(truths.category[flags], minlength=num_categories) for flags in counting]
    return np.stack(rows)


def _top_scores(found: FlatDetections, num_categories: int) -> Floats:
    """The best score of each category, 0 where there is no detection, `[K]`."""
    top = np.zeros(num_categories)
    first = run_starts(found.category)
    top[found.category[first]] = found.scores[first]
    return top


@dataclass(frozen=True, slots=True)
class _Events:
    """Detections that took a truth and change a curve; by segment, best first.

    Attributes:
        segment: `[E]` curve * K + category.
        area: `[E]` area range of the curve.
        position: `[E]` of the detection in RankedDetections.
        first: `[E]` position of the best detection of the category.
        rank: `[E]` of the detection in its image and category.
        score: `[E]`.
        positive: `[E]` it is a true positive.
        inside: `[E]` the area of its own box lies in the range.
    """

    segment: Ints
    area: Ints
    position: Ints
    first: Ints
    rank: Ints
    score: Floats
    positive: Bools
    inside: Bools


def _list_events(
    ranked: RankedDetections, matches: Matches, curves: Curves, num_categories: int
) -> _Events:
    """Spread the bits of the matches into one event per curve and detection."""
    found = ranked.detections
    boxes = found.boxes[matches.detection]
    inside = curves.in_range(boxes[:, 2] * boxes[:, 3])
    curve, row = _bits_set(matches.positive | (matches.taken & inside), len(curves))
    bit = np.uint64(1) << curve.astype(np.uint64)
    position = matches.detection[row]
    category = found.category[position]
    starts = np.searchsorted(found.category, np.arange(num_categories))
    return _Events(
        segment=curve * num_categories + category,
        area=curves.area[curve],
        position=position,
        first=starts[category],
        rank=ranked.rank[position],
        score=found.scores[position],
        positive=(matches.positive[row] & bit) != 0,
        inside=(inside[row] & bit) != 0,
    )


def _bits_set(words: Bits, num_bits: int) -> tuple[Ints, Ints]:
    """(bit, word) indices of all bits set, by bit, then by word."""
    octets = words.astype("<u8").view(np.uint8).reshape(-1, 8).T.copy()  # [8, n]
    flags = np.unpackbits(octets, axis=0, count=num_bits, bitorder="little")  # [num_bits, n]
    at = np.flatnonzero(flags.view(bool))  # numpy searches bool several times faster than uint8
    bit = at // max(len(words), 1)
    return bit, at - bit * len(words)


@dataclass(frozen=True, slots=True)
class _Positives:
    """The true positives of all segments, best first.

    Attributes:
        segment: `[P]`.
        score: `[P]`.
        true: `[P]` true positives of the segment up to and with this one.
        false: `[P]` false positives of the segment before it.
    """

    segment: Ints
    score: Floats
    true: Ints
    false: Ints


def _count_positives(events: _Events, seen: NDArray[np.int32], limit: int) -> _Positives:
    """Count true and false positives within the first `limit` detections of every cell."""
    kept = events.rank < limit
    first = run_starts(events.segment)
    true = _count_by_run(events.positive & kept, first)
    matched = _count_by_run(events.inside & kept, first)
    at = np.flatnonzero(events.positive & kept)
    area, position = events.area[at], events.position[at]
    detections = seen[area, position + 1] - seen[area, events.first[at]]
    return _Positives(events.segment[at], events.score[at], true[at], detections - matched[at])


def _count_by_run(flags: Bools, first: Ints) -> Ints:
    """How many are set in the run so far, with the element itself, `[E]`."""
    total = np.cumsum(flags)
    before: Ints = total[first] - flags[first]
    return total - np.repeat(before, run_lengths(first, len(flags)))


@dataclass(frozen=True, slots=True)
class _Tables:
    """The result while it is made, with the axes in the order in which it is made.

    Attributes:
        precision: `[M, C, R, K]`.
        recall: `[M, C, K]`.
        scores: `[M, C, R, K]`.
        levels: `[R]` of recall.
    """

    precision: Floats
    recall: Floats
    scores: Floats
    levels: Floats

    @classmethod
    def empty(cls, settings: CocoSettings, num_categories: int) -> _Tables:
        """No detections."""
        limits = len(settings.max_dets)
        curves = len(settings.area_ranges) * len(settings.iou_thresholds)
        shape = (limits, curves, len(settings.recall_levels), num_categories)
        recall = np.zeros((limits, curves, num_categories))
        return cls(np.zeros(shape), recall, np.zeros(shape), settings.recall_levels)

    def finish(self, settings: CocoSettings, num_truths: Ints, top_scores: Floats) -> CurveArrays:
        """Mark what has no truth, and put the axes in pycocotools' order.

        Args:
            settings: of the evaluation.
            num_truths: `[A, K]`.
            top_scores: `[K]`.
        """
        # The first detection, right or wrong, reaches recall 0.
        self.scores[:, :, self.levels <= 0] = top_scores
        axes = (len(settings.max_dets), len(settings.area_ranges), len(settings.iou_thresholds))
        area, category = np.nonzero(num_truths == 0)
        views: list[Floats] = []
        for table in (self.precision, self.recall, self.scores):
            view = table.reshape(*axes, *table.shape[2:])  # [M, A, T, (R,) K]
            view[:, area, ..., category] = -1
            views.append(np.moveaxis(view, (0, 1), (-1, -2)))  # [T, (R,) K, A, M]
        precision, recall, scores = views
        return CurveArrays(precision, recall, num_truths, partial(np.asarray, scores))


def _draw(
    tables: _Tables, place: tuple[int, slice], positives: _Positives, num_truths: Ints
) -> None:
    """Write the curves of one limit and block.

    Args:
        tables: written to, in place.
        place: limit and curves.
        positives: of the block's segments.
        num_truths: `[C, K]`.
    """
    num_categories = num_truths.shape[1]
    segment, true, false = positives.segment, positives.true, positives.false
    total = np.bincount(segment, minlength=num_truths.size)
    tables.recall[place] = total.reshape(num_truths.shape) / np.maximum(num_truths, 1)
    # A true positive counts at all levels up to the highest that its recall reaches.
    recall = true / num_truths.reshape(-1)[segment]
    level = np.searchsorted(tables.levels, recall, side="right") - 1
    first = run_starts(segment, level)
    best = np.maximum.reduceat(true / (false + true + np.spacing(1.0)), first)
    above = level[first] >= 0  # the others do not reach the first level, where it is not 0
    first, best = first[above], best[above]
    curve, category = np.divmod(segment[first], num_categories)
    level = level[first]
    precision = tables.precision[place]  # [C, R, K]
    precision[curve, level, category] = best
    _carry_down(precision, np.maximum)
    # The score at a level is that of the first true positive at this level or a higher one.
    reached = np.full(precision.shape, len(first), np.int32)
    reached[curve, level, category] = np.arange(len(first))
    _carry_down(reached, np.minimum)
    tables.scores[place] = np.append(positives.score[first], 0.0)[reached]


def _carry_down(table: NDArray[Any], better: np.ufunc) -> None:
    """Give every level of `[C, R, K]` the better of its own value and that of the level above."""
    for level in range(table.shape[1] - 2, -1, -1):  # 100 vector steps beat one strided accumulate
        better(table[:, level], table[:, level + 1], out=table[:, level])
