"""Match detections to truths as COCO defines it, for all thresholds and area ranges at once.

The definition (pycocotools, `COCOeval.evaluateImg`), for one image, category, threshold and range:
detections, best first, each take the free truth of highest overlap, provided that it reaches the
threshold; of equal overlaps the later truth. Truths that do not count (crowds, areas out of range)
are taken only where no counting one can be, and a crowd stays free.

Here each of up to 64 (threshold, range) curves is one bit of a word, so that a step on words is a
step on all curves. The cells (image, category) are independent: round n handles the n-th detection
of every cell together. M truths, N detections, P candidate pairs, E entries, C curves.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

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

PAIRS_PER_CHUNK = 1 << 16  # the temporaries of a chunk then stay in the cache


@dataclass(frozen=True, slots=True)
class RankedDetections:
    """Detections by category, best first.

    Attributes:
        detections: sorted by category, then descending score, then image, then the order given.
        rank: `[N]` place among the detections of the same image and category.
        by_cell: `[N]` positions sorted by image, then category, then rank.
    """

    detections: FlatDetections
    rank: Ints
    by_cell: Ints


@dataclass(frozen=True, slots=True)
class Candidates:
    """The pairs of detection and truth of one cell whose overlap reaches the lowest threshold.

    Grouped by cell, in a cell by the rank of the detection, then by the order of the truths.

    Attributes:
        detection: `[P]` position in RankedDetections.
        truth: `[P]` index into the truths.
        iou: `[P]`.
    """

    detection: Ints
    truth: Ints
    iou: Floats


@dataclass(frozen=True, slots=True)
class Matches:
    """What became of the detections that had a candidate; all others are unmatched.

    Attributes:
        detection: `[n]` position in RankedDetections, ascending.
        positive: `[n]` the curves where it took a truth that counts.
        taken: `[n]` the curves where it took any truth.
    """

    detection: Ints
    positive: Bits
    taken: Bits


def rank_detections(detections: FlatDetections) -> RankedDetections:
    """Sort once, for the matching and for the curves."""
    order = stable_argsort(detections.image)
    order = order[_best_first(detections.scores[order])]
    order = order[stable_argsort(detections.category[order])]
    ranked = detections[order]
    by_cell = stable_argsort(ranked.image)  # category and score are in order already
    first = run_starts(ranked.image[by_cell], ranked.category[by_cell])
    length = run_lengths(first, len(ranked))
    rank = np.empty(len(ranked), np.int64)
    rank[by_cell] = np.arange(len(ranked)) - np.repeat(first, length)
    return RankedDetections(ranked, rank, by_cell)


def _best_first(scores: Floats) -> Ints:
    """Stable order of descending scores, NaN last.

    Upper bits of a score and its place fill a word, and sorting words is many times faster than a
    stable argsort. Scores that differ in the other bits alone are rare.
    """
    place_bits = len(scores).bit_length()
    bits = (0.0 - scores).view(np.int64)  # of a number plus 0.0, for which -0.0 is 0.0
    keys = bits ^ ((bits >> 63) & np.iinfo(np.int64).max)  # integers in the order of the numbers
    words = (keys >> place_bits << place_bits) | np.arange(len(scores))
    words.sort()
    order = words & ((1 << place_bits) - 1)
    ranked = scores[order]
    if (ranked[:-1] >= ranked[1:]).all():
        return order
    return np.argsort(-scores, kind="stable")


def stable_argsort(keys: Ints) -> Ints:
    """Stable order of integers >= 0, by 16-bit digits: numpy has a radix sort for those alone."""
    order = np.argsort(keys.astype(np.uint16), kind="stable")
    for shift in range(16, int(keys.max(initial=0)).bit_length(), 16):
        digits = (keys[order] >> shift).astype(np.uint16)
        order = order[np.argsort(digits, kind="stable")]
    return order


def run_starts(*keys: Ints) -> Ints:
    """Where a new run of equal keys begins."""
    if not len(keys[0]):
        return np.zeros(0, np.int64)
    changed = np.zeros(len(keys[0]), bool)
    changed[0] = True
    for key in keys:
        changed[1:] |= key[1:] != key[:-1]
    return np.flatnonzero(changed)


def run_lengths(first: Ints, total: int) -> Ints:
    """How long the runs are that begin there, of `total` elements."""
    return np.diff(first, append=total)


def find_candidates(
    ranked: RankedDetections,
    truths: FlatTruths,
    *,
    num_categories: int,
    lowest_iou: float,
    max_rank: int,
) -> Candidates:
    """Pair detections with the truths of their image and category.

    Args:
        ranked: the detections.
        truths: sorted by image, then category.
        num_categories: how many categories there are.
        lowest_iou: pairs with a smaller overlap are no candidates.
        max_rank: detections of this rank or worse are left out.
    """
    found = ranked.detections
    cells = truths.image * num_categories + truths.category  # [M], ascending
    position = ranked.by_cell[ranked.rank[ranked.by_cell] < max_rank]
    cell = found.image[position] * num_categories + found.category[position]
    first = np.searchsorted(cells, cell, side="left")
    count = np.searchsorted(cells, cell, side="right") - first  # truths in the cell
    position, first, count = (values[count > 0] for values in (position, first, count))
    parts = []
    for chunk in _chunks(count):
        detection, truth = _expand(position[chunk], first[chunk], count[chunk])
        iou = overlaps(
            found.boxes.take(detection, axis=0),  # a row at a time: much faster than indexing
            truths.boxes.take(truth, axis=0),
            truths.crowd[truth],
        )
        near = iou >= lowest_iou
        parts.append((detection[near], truth[near], iou[near]))
    if not parts:
        return Candidates(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))
    return Candidates(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def candidates_for(
    ranked: RankedDetections, truths: FlatTruths, *, num_categories: int, settings: CocoSettings
) -> Candidates:
    """The pairs that can matter for these settings; arguments are those of `find_candidates`."""
    return find_candidates(
        ranked,
        truths,
        num_categories=num_categories,
        lowest_iou=float(settings.matching_thresholds.min()),
        max_rank=settings.max_dets[-1],
    )


def _chunks(count: Ints) -> Iterator[slice]:
    """Split into slices of about PAIRS_PER_CHUNK pairs each, at least one row in each."""
    total = np.cumsum(count)
    start = 0
    while start < len(count):
        done = total[start - 1] if start else 0
        stop = int(np.searchsorted(total, done + PAIRS_PER_CHUNK, side="right"))
        yield slice(start, max(stop, start + 1))
        start = max(stop, start + 1)


def _expand(position: Ints, first: Ints, count: Ints) -> tuple[Ints, Ints]:
    """Each position beside each of its truths, `first .. first + count - 1`."""
    before = np.cumsum(count) - count
    truth = np.arange(int(count.sum())) + np.repeat(first - before, count)
    return np.repeat(position, count), truth


def overlaps(boxes: Floats, truths: Floats, crowd: Bools) -> Floats:
    """IoU of pairs of xywh boxes, `[P]`; with a crowd, the part of the detection inside it.

    The order of the operations is that of `bbIou` in pycocotools' maskApi.c, to the last bit.
    Areas that underflow to 0 have no overlap.
    """
    x, y, w, h = boxes.T
    tx, ty, tw, th = truths.T
    width = np.minimum(w + x, tw + tx) - np.maximum(x, tx)
    height = np.minimum(h + y, th + ty) - np.maximum(y, ty)
    shared = width * height
    area = w * h
    union = np.where(crowd, area, area + tw * th - shared)
    meet = (width > 0) & (height > 0) & (shared > 0)
    return np.divide(shared, union, out=np.zeros(len(boxes)), where=meet)


def match(
    ranked: RankedDetections, truths: FlatTruths, candidates: Candidates, curves: Curves
) -> Matches:
    """Let every detection take its truth, for each of the curves.

    Args:
        ranked: the detections.
        truths: sorted as for `find_candidates`.
        candidates: the pairs.
        curves: at most 64.
    """
    counting = _counting(truths, curves)
    entries, taken = _settle(ranked, truths, candidates, curves)
    counts = counting[entries.truth]
    # pycocotools notes a match by the truth's id, so that it takes id 0 for none
    taken &= ~np.where(truths.id_is_zero[entries.truth], counts, np.uint64(0))
    first = run_starts(entries.detection)
    detection = entries.detection[first]
    positive = np.bitwise_or.reduceat(taken & counts, first)
    anything = np.bitwise_or.reduceat(taken, first)
    order = np.argsort(detection)
    return Matches(detection[order], positive[order], anything[order])


def taken_truths(
    ranked: RankedDetections, truths: FlatTruths, candidates: Candidates, curves: Curves
) -> NDArray[np.int32]:
    """Which truth each detection takes, -1 for none, `[C, N]`; arguments are those of `match`."""
    entries, taken = _settle(ranked, truths, candidates, curves)
    table = np.full((len(curves), len(ranked.detections)), -1, np.int32)
    for curve in range(len(curves)):
        took = (taken >> np.uint64(curve)) & np.uint64(1) != 0
        table[curve, entries.detection[took]] = entries.truth[took]
    return table


def _counting(truths: FlatTruths, curves: Curves) -> Bits:
    """The curves for which each truth counts, `[M]`."""
    return np.where(truths.crowd, np.uint64(0), curves.in_range(truths.area))


def _settle(
    ranked: RankedDetections, truths: FlatTruths, candidates: Candidates, curves: Curves
) -> tuple[_Entries, Bits]:
    """All attempts, and the curves for which each of them takes its truth."""
    entries = _entries(candidates, _counting(truths, curves), curves)
    rounds = _rounds(ranked.detections, entries)
    taken = _play(entries, rounds, np.where(truths.crowd, ~np.uint64(0), np.uint64(0)))
    return entries, taken


@dataclass(frozen=True, slots=True)
class _Entries:
    """Attempts to take a truth: for each detection in a row, in order of preference.

    Attributes:
        detection: `[E]` position in RankedDetections.
        truth: `[E]`.
        allowed: `[E]` the curves for which this attempt is open.
    """

    detection: Ints
    truth: Ints
    allowed: Bits


def _entries(candidates: Candidates, counting: Bits, curves: Curves) -> _Entries:
    """List every detection's attempts: counting truths by overlap, then the others by overlap."""
    reached = curves.reached(candidates.iou)
    counts = counting[candidates.truth]
    first = run_starts(candidates.detection)
    length = run_lengths(first, len(reached))
    owner = np.repeat(np.arange(len(first)), length)
    # With one candidate there is nothing to prefer, and one attempt does for both kinds.
    single = np.repeat(length == 1, length)
    several = np.flatnonzero(~single)
    pair = np.concatenate([np.arange(len(reached)), several])
    group = np.concatenate([2 * owner, 2 * owner[several] + 1])
    allowed = np.concatenate(
        [np.where(single, reached, reached & counts), (reached & ~counts)[several]]
    )
    # Stable sorts, the last key first: the later truth, the larger overlap, the group.
    order = np.flatnonzero(allowed)[::-1]
    order = order[np.argsort(-candidates.iou[pair[order]], kind="stable")]
    order = order[stable_argsort(group[order])]
    pair = pair[order]
    return _Entries(candidates.detection[pair], candidates.truth[pair], allowed[order])


def _rounds(found: FlatDetections, entries: _Entries) -> list[Ints]:
    """Sets of entries that touch no common cell, to be played one after the other."""
    detection = entries.detection
    if not len(detection):
        return []
    first = run_starts(detection)
    attempt = np.arange(len(detection)) - np.repeat(first, run_lengths(first, len(detection)))
    owner = detection[first]
    cell = run_starts(found.image[owner], found.category[owner])
    turn = np.arange(len(owner)) - np.repeat(cell, run_lengths(cell, len(owner)))
    turn = np.repeat(turn, run_lengths(first, len(detection)))
    key = turn * (attempt.max() + 1) + attempt
    order = stable_argsort(key)
    return np.split(order, run_starts(key[order])[1:])


def _play(entries: _Entries, rounds: list[Ints], always_free: Bits) -> Bits:
    """The curves for which each entry takes its truth, `[E]`."""
    taken = np.zeros(len(entries.detection), np.uint64)
    free = np.full(len(always_free), ~np.uint64(0))  # [M]
    open_for = np.full(int(entries.detection.max(initial=-1)) + 1, ~np.uint64(0))
    for turn in rounds:
        detection, truth = entries.detection[turn], entries.truth[turn]
        take = entries.allowed[turn] & open_for[detection] & free[truth]
        open_for[detection] &= ~take
        free[truth] &= ~take | always_free[truth]
        taken[turn] = take
    return taken
