"""Which of the 12 numbers differ from those of pycocotools, and why.

By default the metric counts what is there. pycocotools 2.0.11 looks annotations up by their ids and
notes a match by the id of the truth, 0 meaning none; its AP is that of exactly 100 detections; an
overlap that is NaN reaches all its thresholds. M annotations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import numpy as np

from detkit.evaluation.accumulation import CurveArrays, evaluate_arrays
from detkit.evaluation.inputs import (
    Bools,
    CocoSettings,
    CocoTruths,
    FlatDetections,
    FlatTruths,
    Ints,
    TruthsById,
)
from detkit.evaluation.literal import evaluate_literally, is_ordinary

CURVES = ("precision", "recall", "scores")


def take_by_id(
    truths: FlatTruths, ids: Ints, *, collected: Bools, listed: Bools
) -> TruthsById | None:
    """The annotations as pycocotools takes them, or None where that makes no difference.

    It collects ids image by image and looks each up in a dict, in which the last one wins.

    Args:
        truths: all M annotations, in file order.
        ids: `[M]`.
        collected: `[M]` whose ids it looks up: their image and, where categories are used, their
            category are listed.
        listed: `[M]` their image and category are listed.
    """
    unique, group, count = np.unique(ids, return_inverse=True, return_counts=True)
    reasons = []
    if (ids[listed] == 0).any():
        reasons.append("counts a match with annotation id 0 as a miss")
    if len(unique) < len(ids):
        repeated = unique[count > 1][0]
        reasons.append(f"takes the last annotation of a repeated id each time (as of {repeated})")
    if not reasons:
        return None
    last = np.zeros(len(unique), np.int64)
    last[group] = np.arange(len(ids))
    row = np.flatnonzero(collected)
    row = last[group[row[np.argsort(truths.image[row], kind="stable")]]]
    taken = replace(truths, id_is_zero=ids == 0)
    return TruthsById(taken[row[listed[row]]], tuple(reasons))


def with_ids(truths: CocoTruths, ids: Ints) -> CocoTruths:
    """The same ground truth that knows the ids of its annotations, `[M]` in its order."""
    every = np.ones(len(ids), bool)
    return replace(truths, by_id=take_by_id(truths.truths, ids, collected=every, listed=every))


def find_notes(
    truths: CocoTruths,
    detections: FlatDetections,
    settings: CocoSettings,
    *,
    arrays: CurveArrays,
    stats_of: Callable[[CurveArrays], Mapping[str, float]],
) -> tuple[str, ...]:
    """For each cause for which pycocotools gives other numbers, or none, a sentence with them.

    Args:
        truths: what was to be found.
        detections: what was found.
        settings: of the evaluation.
        arrays: its outcome.
        stats_of: gives the 12 numbers of an outcome, by name.
    """
    if settings.strict:
        return ()
    notes, mine = [], stats_of(arrays)
    if not len(detections) and max(mine.values()) > -1:
        notes.append(
            "no detection in these categories: an empty list fails in pycocotools (IndexError)"
        )
    if 100 not in settings.max_dets and mine["AP"] > -1:
        limit = settings.max_dets[-1]
        notes.append(
            f"{_difference('AP', mine['AP'], -1)}: it is that of the limit {limit}, pycocotools "
            "wants a limit of exactly 100"
        )
    if not settings.use_categories and truths.listed is not None:
        notes.append("without categories pycocotools counts a category that is listed twice twice")
    return (*notes, *_notes_on_matches(truths, detections, settings, arrays, stats_of))


def _notes_on_matches(
    truths: CocoTruths,
    detections: FlatDetections,
    settings: CocoSettings,
    arrays: CurveArrays,
    stats_of: Callable[[CurveArrays], Mapping[str, float]],
) -> Iterator[str]:
    """At most one note: what differs where pycocotools takes other truths, or matches otherwise."""
    by_id = truths.by_id or TruthsById(truths.truths, ())
    reasons = list(by_id.reasons)
    ordinary = is_ordinary(by_id.truths, detections)
    if not ordinary:
        reasons.append("lets an overlap that float64 cannot hold (NaN) reach all thresholds")
    if not reasons:
        return
    evaluate = evaluate_arrays if ordinary else evaluate_literally
    num_categories = len(truths.category_ids)
    others = evaluate(by_id.truths, detections, num_categories=num_categories, settings=settings)
    mine, theirs = stats_of(arrays), stats_of(others)
    names = [name for name in mine if name != "AP" or 100 in settings.max_dets]
    differing = [_difference(n, mine[n], theirs[n]) for n in names if mine[n] != theirs[n]]
    said = f"pycocotools {' and '.join(reasons)}"
    if differing:
        yield f"{', '.join(differing)}: {said}"
    elif not all(np.array_equal(getattr(arrays, name), getattr(others, name)) for name in CURVES):
        yield f"the 12 numbers are those of pycocotools, not all curves: {said}"


def _difference(name: str, mine: float, theirs: float) -> str:
    """Both numbers, with as many digits as it takes to see that they differ."""
    digits = next(n for n in (3, 6, 9, 17) if n == 17 or f"{mine:.{n}f}" != f"{theirs:.{n}f}")
    return f"{name} {mine:.{digits}f} (pycocotools: {theirs:.{digits}f})"
