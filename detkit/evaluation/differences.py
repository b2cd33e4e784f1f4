"""Which of the 12 numbers differ from those of pycocotools, and why.

By default the metric counts what is there. pycocotools 2.0.11 looks annotations up by their ids and
notes a match by the id of the truth, 0 meaning none; its AP is that of exactly 100 detections; an
overlap that is NaN reaches all its thresholds. M annotations.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from detkit.evaluation.accumulation import evaluate_arrays
from detkit.evaluation.inputs import Bools, CocoTruths, FlatTruths, Ints, TruthsById
from detkit.evaluation.literal import evaluate_literally, is_ordinary

if TYPE_CHECKING:
    from detkit.evaluation.result import CocoResult

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


def find_notes(result: CocoResult, names: Sequence[str]) -> tuple[str, ...]:
    """For each cause for which pycocotools gives other numbers, or none, a sentence with them.

    Args:
        result: an evaluation.
        names: of its 12 numbers.
    """
    return () if result.settings.strict else tuple(_notes(result, names))


def _notes(result: CocoResult, names: Sequence[str]) -> Iterator[str]:
    if not len(result.detections) and (result.stats > -1).any():
        yield "no detection in these categories: an empty list fails in pycocotools (IndexError)"
    compared = list(names)
    if 100 not in result.settings.max_dets:
        compared.remove("AP")
        value = result.stats[names.index("AP")]
        if value > -1:
            yield (
                f"AP {value:.3f} (pycocotools: -1.000): it is that of the limit "
                f"{result.settings.max_dets[-1]}, pycocotools wants a limit of exactly 100"
            )
    if not result.settings.use_categories and result.truths.listed is not None:
        yield "without categories pycocotools counts a category that is listed twice twice"
    by_id = result.truths.by_id or TruthsById(result.truths.truths, ())
    reasons = list(by_id.reasons)
    ordinary = is_ordinary(by_id.truths, result.detections)
    if not ordinary:
        reasons.append("lets an overlap that float64 cannot hold (NaN) reach all thresholds")
    if reasons:
        arrays = (evaluate_arrays if ordinary else evaluate_literally)(
            by_id.truths,
            result.detections,
            num_categories=len(result.category_ids),
            settings=result.settings,
        )
        theirs = replace(result, **{name: getattr(arrays, name) for name in CURVES})
        yield from _compare(result, theirs, names, compared, " and ".join(reasons))


def _compare(
    result: CocoResult,
    theirs: CocoResult,
    names: Sequence[str],
    compared: Sequence[str],
    reasons: str,
) -> Iterator[str]:
    """At most one note, on those of the numbers that are compared."""
    differing = [
        _difference(name, mine, other)
        for name, mine, other in zip(names, result.stats, theirs.stats, strict=True)
        if name in compared and mine != other
    ]
    if differing:
        yield f"{', '.join(differing)}: pycocotools {reasons}"
    elif not all(np.array_equal(getattr(result, name), getattr(theirs, name)) for name in CURVES):
        yield f"the 12 numbers are those of pycocotools, not all curves: pycocotools {reasons}"


def _difference(name: str, mine: float, theirs: float) -> str:
    """Both numbers, with as many digits as it takes to see that they differ."""
    digits = next(n for n in (3, 6, 9, 17) if n == 17 or f"{mine:.{n}f}" != f"{theirs:.{n}f}")
    return f"{name} {mine:.{digits}f} (pycocotools: {theirs:.{digits}f})"
