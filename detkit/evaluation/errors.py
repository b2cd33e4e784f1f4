"""Which errors cost how much: TIDE.

Bolya, Foley, Hays and Hoffman, "TIDE: A General Toolbox for Identifying Object Detection Errors",
ECCV 2020. Section 2 there defines six types of errors, and for each an oracle that corrects all
errors of this one type; what AP gains by it, dAP, is what the type costs. With `t` the overlap of a
match (0.5) and `b` that of background (0.1), a detection that takes no truth is

    localisation     its overlap with the best truth of its class is b .. t
    classification   else: its overlap with a truth of another class is t or more
    duplicate        else: its overlap with a truth of its class is more than t (which a better
                     detection has taken)
    background       else: its overlap with every truth is at most b
    both             else

and a truth is missed if no detection takes it and neither a classification nor a localisation error
points at it. The oracles: of the detections that point at a free truth with an error of either of
the first two types the best one becomes right and the others go away; the other types of detections
go away; missed truths are not counted. Two special oracles let all wrong detections rank last
(false positives), and count no truth that was not found (false negatives).

Where the paper leaves a choice, that of the authors' package (tidecv 1.0.1) holds, so that the
numbers equal its numbers. They are *not* those of COCO's AP at this overlap:

- the best 100 detections of an image count, not the best 100 of every class in it;
- a class with detections but no truth has an AP of 0; COCO leaves it out of the mean;
- recall levels are 0, 1/100, 2/100 .. as closely as floats go; pycocotools' are a hair off;
- of truths that overlap a detection equally, it takes the first; in COCO the last;
- a crowd excuses the unmatched detections of its class that lie in it by more than `t`, not `t` or
  more. They weigh nothing in AP, yet they are typed and counted as the others are, and an oracle
  may make one right;
- of equal scores, what was right before a correction ranks after everything else in the corrected
  AP; in the AP before, the order of the images decides, then that of the detections. So dAP may
  come out below 0; the six types then give 0. (The package takes the images in the order of the
  file, here they are in that of their ids: equal scores in several images of a file that is not
  sorted are the one place where numbers can differ.)

N detections, M truths, K categories.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detkit.evaluation.inputs import Bools, CocoTruths, FlatDetections, FlatTruths, Floats, Ints
from detkit.evaluation.matching import run_lengths, run_starts, stable_argsort
from detkit.evaluation.outcomes import NONE, find_outcomes
from detkit.evaluation.pairs import chosen_pairs, nearest_truths, pairs_in_images
from detkit.evaluation.tables import known, number, plain

RECALL_LEVELS: Floats = np.arange(101) / 100
EVERY_AREA = (-np.inf, np.inf)


class ErrorKind(IntEnum):
    """What is wrong with a detection, or with a truth."""

    NONE = 0
    CLASSIFICATION = 1
    LOCALISATION = 2
    BOTH = 3
    DUPLICATE = 4
    BACKGROUND = 5
    MISSED = 6

    @property
    def label(self) -> str:
        """Its name in tables and files."""
        return self.name.lower()


ERRORS = tuple(ErrorKind)[1:]


@dataclass(frozen=True, eq=False)
class ErrorAnalysis:
    """Counts and costs of the errors, and the type of each.

    Attributes:
        iou: overlap of a match.
        background_iou: overlap up to which a detection sees nothing but background.
        ap: AP at `iou` before any correction, 0..1; NaN without truths and detections.
        counts: errors of each type, by label.
        delta_ap: what AP gains if all errors of this one type are corrected, by label.
        delta_false_positives: what it gains if all wrong detections rank last.
        delta_false_negatives: what it gains if truths that are not found do not count.
        kind: `[N]` ErrorKind of every detection, in the order given.
        truth: `[N]` index of the truth that the detection took or that its error is about: the
            best of its class, of another class (classification), of any class (both); -1 for none.
        missed: `[M]` the truths of type missed.
        weighs: `[N]` detections that count: among the best of their image, and not excused by a
            crowd. Those that are not among the best have no type.
        detections: N.
        truths: M.
    """

    iou: float
    background_iou: float
    ap: float
    counts: Mapping[str, int]
    delta_ap: Mapping[str, float]
    delta_false_positives: float
    delta_false_negatives: float
    kind: NDArray[np.int8] = field(repr=False)
    truth: Ints = field(repr=False)
    missed: Bools = field(repr=False)
    weighs: Bools = field(repr=False)
    detections: FlatDetections = field(repr=False)
    truths: FlatTruths = field(repr=False)

    def typical(self, kind: ErrorKind, count: int = 10) -> Ints:
        """The errors of a type that stand out: detections by score, missed truths by area.

        Args:
            kind: type of error.
            count: at most so many.

        Returns:
            Indices of detections, or of truths if the type is `MISSED`.
        """
        if kind == ErrorKind.MISSED:
            found, weight = np.flatnonzero(self.missed), self.truths.area
        else:
            found, weight = np.flatnonzero(self.weighs), self.detections.scores
            found = found[self.kind[found] == kind]
        return found[np.argsort(-weight[found], kind="stable")][:count]

    def table(self) -> str:
        """A line for each type."""
        rows = [("error", "count", "dAP")]
        rows += [
            (label, str(self.counts[label]), number(gain, 4))
            for label, gain in self.delta_ap.items()
        ]
        rows.append(("false positives", "", number(self.delta_false_positives, 4)))
        rows.append(("false negatives", "", number(self.delta_false_negatives, 4)))
        head = f"AP at an overlap of {self.iou:g}, as TIDE takes it: {number(self.ap, 4)}"
        return f"{head}\n{plain(rows)}"

    def as_dict(self) -> dict[str, Any]:
        """Everything but the arrays, ready for JSON."""
        return {
            "iou": self.iou,
            "background_iou": self.background_iou,
            "AP": known(self.ap),
            "counts": dict(self.counts),
            "dAP": {
                **self.delta_ap,
                "false_positives": self.delta_false_positives,
                "false_negatives": self.delta_false_negatives,
            },
        }


def analyse_errors(
    truths: CocoTruths,
    detections: FlatDetections,
    *,
    iou: float = 0.5,
    background_iou: float = 0.1,
    limit: int = 100,
) -> ErrorAnalysis:
    """Give every error its type and every type its cost.

    Args:
        truths: what was to be found.
        detections: what was found; equal scores rank in the order given.
        iou: overlap of a match.
        background_iou: overlap up to which a detection sees nothing but background.
        limit: detections of an image that are looked at, the best ones.

    Raises:
        ValueError: overlaps that are not `0 < background_iou <= iou <= 1`, or a limit below 1.
    """
    if not 0 < background_iou <= iou <= 1:
        raise ValueError(
            f"overlaps must be 0 < background_iou <= iou <= 1, got background_iou {background_iou} "
            f"and iou {iou}"
        )
    if limit < 1:
        raise ValueError(f"limit must be 1 or more detections of an image, got {limit}")
    order = _best_of_images(detections, limit)
    everything = truths.truths
    rows = np.flatnonzero(~everything.crowd)
    crowds = everything[everything.crowd]
    judged = _judge(detections[order], everything[rows], crowds, (iou, background_iou))
    oracle = _Oracle.of(judged, len(truths.category_ids))
    kind, weighs = np.zeros(len(detections), np.int8), np.zeros(len(detections), bool)
    kind[order], weighs[order] = judged.kind, judged.weighs
    truth = np.full(len(detections), NONE)
    truth[order] = np.append(rows, NONE)[judged.truth]
    missed = np.zeros(len(everything), bool)
    missed[rows] = judged.missed
    counts = np.bincount(kind, minlength=len(ErrorKind))
    counts[ErrorKind.MISSED] = missed.sum()
    return ErrorAnalysis(
        iou=iou,
        background_iou=background_iou,
        ap=oracle.before if len(rows) or len(order) else np.nan,
        counts={each.label: int(counts[each]) for each in ERRORS},
        delta_ap={each.label: oracle.gain(each) for each in ERRORS},
        delta_false_positives=oracle.gain_of_order(),
        delta_false_negatives=oracle.gain_of_finding(),
        kind=kind,
        truth=truth,
        missed=missed,
        weighs=weighs,
        detections=detections,
        truths=everything,
    )


def _best_of_images(detections: FlatDetections, limit: int) -> Ints:
    """The best detections of every image, best first; equal scores by image, then as given."""
    order = np.lexsort((detections.image, -detections.scores))
    by_image = stable_argsort(detections.image[order])
    first = run_starts(detections.image[order][by_image])
    rank = np.arange(len(order)) - np.repeat(first, run_lengths(first, len(order)))
    return order[np.sort(by_image[rank < limit])]


@dataclass(frozen=True, slots=True)
class _Judged:
    """What is wrong with n detections, best first, and m truths.

    Attributes:
        detections: n.
        truths: m, no crowds.
        kind: `[n]` ErrorKind.
        truth: `[n]` the truth taken, or that the error is about; -1 for none.
        weighs: `[n]` not excused by a crowd.
        chosen: `[n]` points at a free truth, and is the best to do so: the oracle makes it right.
        missed: `[m]` of type missed.
    """

    detections: FlatDetections
    truths: FlatTruths
    kind: NDArray[np.int8]
    truth: Ints
    weighs: Bools
    chosen: Bools
    missed: Bools


def _judge(
    found: FlatDetections, truths: FlatTruths, crowds: FlatTruths, overlaps: tuple[float, float]
) -> _Judged:
    """Tell the types; `overlaps` are those of a match and of background."""
    iou, background = (
        min(overlaps[0], 1 - 1e-10),
        overlaps[1],
    )  # as the metric takes an overlap of 1
    taken = _match(found, truths, iou)
    kind, truth = _types(found, truths, taken, (iou, background))
    free = np.ones(len(truths), bool)
    free[taken[taken != NONE]] = False
    points = np.isin(kind, (ErrorKind.CLASSIFICATION, ErrorKind.LOCALISATION))
    at = np.flatnonzero(points)[::-1]
    at = at[free[truth[at]]]
    best = np.full(len(truths), NONE)
    best[truth[at]] = at  # of several that point at a truth the last written stays: the best
    chosen = np.zeros(len(found), bool)
    chosen[best[best != NONE]] = True
    weighs = (kind == ErrorKind.NONE) | ~_in_crowd(found, crowds, iou)
    return _Judged(found, truths, kind, truth, weighs, chosen, free & (best == NONE))


def _types(
    found: FlatDetections, truths: FlatTruths, taken: Ints, overlaps: tuple[float, float]
) -> tuple[NDArray[np.int8], Ints]:
    """The type of every detection and the truth that it took or is about, `[n]` each."""
    iou, background = overlaps
    pairs = pairs_in_images(found, truths, lowest_iou=background)
    same = found.category[pairs.detection] == truths.category[pairs.truth]
    own_iou, own = nearest_truths(chosen_pairs(pairs, same), len(found))
    other_iou, other = nearest_truths(chosen_pairs(pairs, ~same), len(found))
    rules = [  # the first that holds
        (taken != NONE, ErrorKind.NONE, taken),
        ((own_iou >= background) & (own_iou <= iou), ErrorKind.LOCALISATION, own),
        (other_iou >= iou, ErrorKind.CLASSIFICATION, other),
        (own_iou > iou, ErrorKind.DUPLICATE, own),
        (other_iou > background, ErrorKind.BOTH, other),
    ]
    conditions, kinds, abouts = zip(*rules, strict=True)
    kind = np.select(conditions, kinds, ErrorKind.BACKGROUND).astype(np.int8)
    return kind, np.select(conditions, abouts, NONE)


def _match(found: FlatDetections, truths: FlatTruths, iou: float) -> Ints:
    """The truth that each detection takes, -1 for none, `[n]`; among equal ones the first."""
    place = stable_argsort(found.category)
    # the metric prefers the later one, so that the order is turned around within image and category
    turned = np.lexsort((-np.arange(len(truths)), truths.category, truths.image))
    outcomes = find_outcomes(
        truths[turned],
        found[place],
        num_categories=int(max(found.category.max(initial=0), truths.category.max(initial=0))) + 1,
        iou_thresholds=(iou,),
        area_range=EVERY_AREA,
        limit=len(found) + 1,
    )
    taken = np.empty(len(found), np.int64)
    taken[place] = np.append(turned, NONE)[outcomes.truth_of[0]]
    return taken


def _in_crowd(found: FlatDetections, crowds: FlatTruths, iou: float) -> Bools:
    """Detections that lie in a crowd of their class by more than this part, `[n]`."""
    pairs = pairs_in_images(found, crowds, lowest_iou=iou)
    inside = (pairs.iou > iou) & (found.category[pairs.detection] == crowds.category[pairs.truth])
    flags = np.zeros(len(found), bool)
    flags[pairs.detection[inside]] = True
    return flags


@dataclass(frozen=True, slots=True)
class _Oracle:
    """AP after corrections; n detections, best first.

    Attributes:
        judged: what is wrong.
        order: `[n]` by score; of equal scores, what is right last.
        counts: `[K]` truths of each category.
        before: AP without corrections.
    """

    judged: _Judged
    order: Ints
    counts: Ints
    before: float

    @classmethod
    def of(cls, judged: _Judged, num_categories: int) -> _Oracle:
        """The state before corrections."""
        right = judged.kind == ErrorKind.NONE
        step = np.cumsum(np.diff(judged.detections.scores, prepend=np.inf) != 0)
        order = stable_argsort(2 * step + right)
        counts = np.bincount(judged.truths.category, minlength=num_categories)
        at = np.flatnonzero(judged.weighs)
        before = _mean_ap(judged.detections.category[at], right[at], counts)
        return cls(judged, order, counts, before)

    def gain(self, error: ErrorKind) -> float:
        """AP gained by correcting all errors of a type, 0 where it falls."""
        judged = self.judged
        wrong = judged.kind == error
        right = (judged.kind == ErrorKind.NONE) | (wrong & judged.chosen)
        category = judged.detections.category
        if error == ErrorKind.CLASSIFICATION:
            category = category.copy()
            category[wrong] = judged.truths.category[judged.truth[wrong]]
        counts = self.counts
        if error == ErrorKind.MISSED:
            counts = counts - np.bincount(
                judged.truths.category[judged.missed], minlength=len(counts)
            )
        at = self.order[(right | (judged.weighs & ~wrong))[self.order]]
        return max(_mean_ap(category[at], right[at], counts) - self.before, 0.0)

    def gain_of_order(self) -> float:
        """AP gained if all wrong detections rank last."""
        right = self.judged.kind == ErrorKind.NONE
        at = np.concatenate([np.flatnonzero(right), np.flatnonzero(~right & self.judged.weighs)])
        return _mean_ap(self.judged.detections.category[at], right[at], self.counts) - self.before

    def gain_of_finding(self) -> float:
        """AP gained if truths that are not found do not count."""
        right = self.judged.kind == ErrorKind.NONE
        category = self.judged.detections.category
        found = np.bincount(category[right], minlength=len(self.counts))
        at = self.order[self.judged.weighs[self.order]]
        return _mean_ap(category[at], right[at], found) - self.before


def _mean_ap(category: Ints, right: Bools, counts: Ints) -> float:
    """AP of detections, best first: the mean over categories with truths or detections.

    Args:
        category: `[n]`.
        right: `[n]`.
        counts: `[K]` truths of each category.

    Returns:
        The mean over 101 recall levels and these categories, 0 if there are none.
    """
    order = stable_argsort(category)
    category, right = category[order], right[order]
    present = (counts > 0) | (np.bincount(category, minlength=len(counts)) > 0)
    first = run_starts(category)
    start = np.repeat(first, run_lengths(first, len(category)))
    at = np.flatnonzero(right)
    total = np.append(0, np.cumsum(right))
    hits = total[at + 1] - total[start[at]]
    precision = hits / (at + 1 - start[at])
    level = np.searchsorted(RECALL_LEVELS, hits / counts[category[at]], side="right") - 1
    best = np.zeros((len(counts), len(RECALL_LEVELS)))
    np.maximum.at(best, (category[at], level), precision)
    best = np.maximum.accumulate(best[:, ::-1], axis=1)
    return float(best[present].mean()) if present.any() else 0.0
