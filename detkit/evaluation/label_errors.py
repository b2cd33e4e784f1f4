"""Labels that a good detector disagrees with: where to look first for mistakes of annotators.

Five kinds, each with a suspicion in 0..1:

- missing box: a detection that overlaps no truth of any class, nor a crowd. As suspicious as its
  score. Of several at one place the best one stands for all.
- box not found: a truth that no detection of any class overlaps, however low its score. As
  suspicious as truths like it are found usually: the smaller of two shares, that of its class and
  that of its size (all whose area is within the same doubling of the side).
- wrong class: a truth under a detection of another class that fits it closely and is not right
  about another truth. As suspicious as its score is above that of the best detection of the truth's
  own class there.
- loose box: a truth whose best fitting detection of its class fits but half. As suspicious as the
  detection's score times the share of found truths of its size that are fitted better.
- double box: a truth on another one of the same class. As suspicious as they overlap.

The ranking is as good as the detector: objects of a kind that it rarely finds are never suspicious,
what it always gets wrong always is. The images should be others than those of its training, whose
labels it has learned, wrong ones too.

N detections, M truths, P pairs, n suspects.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any

import numpy as np

from detkit.evaluation.inputs import Bools, CocoTruths, FlatDetections, FlatTruths, Floats, Ints
from detkit.evaluation.matching import Candidates
from detkit.evaluation.outcomes import NONE
from detkit.evaluation.pairs import chosen_pairs, nearest_truths, pairs_in_images
from detkit.evaluation.tables import known, number, plain

TOUCHING = 0.1  # below this overlap there is nothing but background, as in TIDE
FOUND = 0.5  # from this overlap on a detection finds a truth of its class
WELL_FITTING = 0.7  # below, a box is loose
CLOSE = 0.8  # from this overlap on a detection of another class is about the same object
SAME = 0.8  # from this overlap on two truths are one


class Suspect(Enum):
    """What may be wrong with a label."""

    MISSING = "missing box"
    NOT_FOUND = "box not found"
    WRONG_CLASS = "wrong class"
    LOOSE = "loose box"
    DOUBLE = "double box"


@dataclass(frozen=True)
class LabelError:
    """A label that may be wrong, or a place where one may be missing.

    Attributes:
        kind: what may be wrong.
        suspicion: 0..1.
        image_id: as in the ground truth.
        name: class of the truth; of the detection where a box is missing.
        box: xywh of the truth; of the detection where a box is missing.
        found: class of the detection, None without one.
        score: of the detection, NaN without one.
        iou: overlap of the truth and the detection, or the other truth; NaN with neither.
        truth: index of the truth, None where a box is missing.
        detection: index of the detection, None without one.
        other: index of the truth that a double box repeats; None otherwise.
    """

    kind: Suspect
    suspicion: float
    image_id: int | str
    name: str
    box: tuple[float, float, float, float]
    found: str | None
    score: float
    iou: float
    truth: int | None
    detection: int | None
    other: int | None

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON; None where nothing is known."""
        return {
            **asdict(self),
            "kind": self.kind.value,
            "box": list(self.box),
            "score": known(self.score),
            "iou": known(self.iou),
        }


@dataclass(frozen=True)
class LabelErrors:
    """What may be wrong with the labels, most suspicious first.

    Attributes:
        errors: n.
        least_suspicion: of those that are listed.
    """

    errors: tuple[LabelError, ...]
    least_suspicion: float

    def __len__(self) -> int:
        return len(self.errors)

    def __iter__(self) -> Iterator[LabelError]:
        return iter(self.errors)

    def of_kind(self, kind: Suspect) -> list[LabelError]:
        """Those of a kind, most suspicious first."""
        return [error for error in self.errors if error.kind == kind]

    def counts(self) -> dict[str, int]:
        """How many there are of each kind."""
        found = Counter(error.kind for error in self.errors)
        return {kind.value: found[kind] for kind in Suspect}

    def table(self, count: int = 20) -> str:
        """The most suspicious, a line each, and how many there are of each kind."""
        rows: list[tuple[str, ...]] = [
            ("kind", "class", "found", "image", "box (x y w h)", "suspicion", "score", "IoU")
        ]
        rows += [
            (
                error.kind.value,
                error.name,
                error.found or "-",
                str(error.image_id),
                " ".join(f"{value:.0f}" for value in error.box),
                *(number(value) for value in (error.suspicion, error.score, error.iou)),
            )
            for error in self.errors[:count]
        ]
        counts = ", ".join(f"{kind} {found}" for kind, found in self.counts().items())
        total = f"{len(self)} with a suspicion of {self.least_suspicion:g} or more: {counts}"
        return f"{plain(rows, names=5)}\n{total}"

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON; None where nothing is known."""
        return {
            "least_suspicion": self.least_suspicion,
            "counts": self.counts(),
            "errors": [error.as_dict() for error in self.errors],
        }


@dataclass(frozen=True, slots=True)
class _Suspects:
    """n suspects of one kind; indices are -1 where there is none.

    Attributes:
        kind: of all.
        suspicion: `[n]`.
        truth: `[n]`.
        detection: `[n]`.
        other: `[n]` truth.
        iou: `[n]`.
    """

    kind: Suspect
    suspicion: Floats
    truth: Ints
    detection: Ints
    other: Ints
    iou: Floats


@dataclass(frozen=True, slots=True)
class _Scene:
    """What the kinds look at.

    Attributes:
        truths: M.
        detections: N.
        pairs: P pairs of any class that touch.
        same: `[P]` they are of one class.
        octave: `[M]` size of the truths, a number for each doubling of the side.
    """

    truths: FlatTruths
    detections: FlatDetections
    pairs: Candidates
    same: Bools
    octave: Ints

    @classmethod
    def of(cls, truths: FlatTruths, detections: FlatDetections) -> _Scene:
        """Pair them."""
        pairs = pairs_in_images(detections, truths, lowest_iou=TOUCHING)
        same = detections.category[pairs.detection] == truths.category[pairs.truth]
        area = np.nan_to_num(truths.boxes[:, 2] * truths.boxes[:, 3])  # `strict` lets NaN in
        side = np.sqrt(np.clip(area, 1.0, 2.0**60))
        return cls(truths, detections, pairs, same, np.log2(side).astype(np.int64))

    def select(self, chosen: Bools) -> Candidates:
        """Some pairs, without those of crowds."""
        return chosen_pairs(self.pairs, chosen & ~self.truths.crowd[self.pairs.truth])


def find_label_errors(
    truths: CocoTruths, detections: FlatDetections, *, least_suspicion: float = 0.5
) -> LabelErrors:
    """Rank what a detector disagrees with.

    Args:
        truths: the labels.
        detections: of a good detector that was not trained on these images, also those of low
            scores.
        least_suspicion: of what is listed, in 0..1. Detections that score less give no suspicion.

    Raises:
        ValueError: a suspicion outside of 0..1.
    """
    if not 0 <= least_suspicion <= 1:
        raise ValueError(f"least_suspicion must lie in 0..1, got {least_suspicion}")
    scene = _Scene.of(truths.truths, detections)
    confident = detections.scores >= least_suspicion
    suspects = [
        _missing(scene, confident),
        _not_found(scene),
        _wrong_class(scene, confident),
        _loose(scene, confident),
        _double(scene),
    ]
    errors = [
        error for kind in suspects for error in _describe(kind, truths, detections, least_suspicion)
    ]
    errors.sort(key=lambda error: -error.suspicion)  # stable: equal ones stay in a fixed order
    return LabelErrors(tuple(errors), least_suspicion)


def _missing(scene: _Scene, confident: Bools) -> _Suspects:
    """Confident detections that touch no truth."""
    alone = confident & np.isfinite(scene.detections.boxes).all(axis=1)
    alone[scene.pairs.detection] = False
    at = np.flatnonzero(alone)
    at = at[np.argsort(-scene.detections.scores[at], kind="stable")]
    found = scene.detections[at]
    places = FlatTruths.of(found.image, found.category, found.boxes)
    pairs = pairs_in_images(found, places, lowest_iou=FOUND)
    repeated = pairs.detection[pairs.truth < pairs.detection]  # a better one is at this place
    at = np.delete(at, repeated)
    none = np.full(len(at), NONE)
    scores = np.minimum(scene.detections.scores[at], 1.0)
    return _Suspects(Suspect.MISSING, scores, none, at, none, np.full(len(at), np.nan))


def _not_found(scene: _Scene) -> _Suspects:
    """Truths that no detection touches."""
    truths, count = scene.truths, ~scene.truths.crowd
    touched = np.zeros(len(truths), bool)
    touched[scene.pairs.truth] = True
    found = np.zeros(len(truths), bool)
    found[scene.pairs.truth[scene.same & (scene.pairs.iou >= FOUND)]] = True
    usual = np.minimum(
        _share(found, truths.category, count), _share(found, scene.octave, count)
    )  # [M]
    at = np.flatnonzero(~touched & count)
    none = np.full(len(at), NONE)
    return _Suspects(Suspect.NOT_FOUND, usual[at], at, none, none, np.full(len(at), np.nan))


def _share(flags: Bools, group: Ints, count: Bools) -> Floats:
    """The share of flags in the group of each element, among those that count, `[M]`."""
    total = np.bincount(group[count], minlength=int(group.max(initial=0)) + 1)
    flagged = np.bincount(group[count & flags], minlength=len(total))
    return (flagged / np.maximum(total, 1))[group]


def _wrong_class(scene: _Scene, confident: Bools) -> _Suspects:
    """Truths that a confident detection of another class fits."""
    pairs, scores = scene.pairs, scene.detections.scores
    hits = scene.same & (pairs.iou >= FOUND)
    right = np.zeros(len(scores), bool)
    right[pairs.detection[hits]] = True
    own_score = np.zeros(len(scene.truths))
    np.maximum.at(own_score, pairs.truth[hits], scores[pairs.detection[hits]])
    strays = confident & ~right
    pairs = scene.select(~scene.same & (pairs.iou >= CLOSE) & strays[pairs.detection])
    pairs = _best_of_truths(pairs, scores[pairs.detection], len(scene.truths))
    suspicion = np.minimum(scores[pairs.detection], 1.0) - own_score[pairs.truth]
    none = np.full(len(suspicion), NONE)
    return _Suspects(Suspect.WRONG_CLASS, suspicion, pairs.truth, pairs.detection, none, pairs.iou)


def _loose(scene: _Scene, confident: Bools) -> _Suspects:
    """Truths that the best fitting confident detection of their class fits but half."""
    scores = scene.detections.scores
    own = scene.select(scene.same & confident[scene.pairs.detection])
    _, nearest = nearest_truths(own, len(scores))
    own = chosen_pairs(own, nearest[own.detection] == own.truth)
    best = _best_of_truths(own, own.iou, len(scene.truths))
    best = chosen_pairs(best, best.iou >= FOUND)
    octave = scene.octave[best.truth]
    order = np.lexsort((-best.iou, octave))
    start = np.searchsorted(octave[order], octave)
    better = np.empty(len(order), np.int64)
    better[order] = np.arange(len(order))
    better -= start
    share = better / np.maximum(np.bincount(octave)[octave] - 1, 1)  # of the others of its size
    suspicion = np.minimum(scores[best.detection], 1.0) * share
    at = np.flatnonzero(best.iou < WELL_FITTING)
    none = np.full(len(at), NONE)
    return _Suspects(
        Suspect.LOOSE, suspicion[at], best.truth[at], best.detection[at], none, best.iou[at]
    )


def _best_of_truths(pairs: Candidates, merit: Floats, count: int) -> Candidates:
    """Of each of `count` truths the pair of largest merit, the first of equal ones."""
    order = np.argsort(-merit, kind="stable")[::-1]
    last = np.full(count, NONE)
    last[pairs.truth[order]] = order  # the last written is the best
    return chosen_pairs(pairs, last[last != NONE])


def _double(scene: _Scene) -> _Suspects:
    """Truths upon an earlier one of their class."""
    rows = np.flatnonzero(~scene.truths.crowd)
    truths = scene.truths[rows]
    boxes = FlatDetections(truths.image, truths.category, truths.boxes, np.zeros(len(rows)))
    pairs = pairs_in_images(boxes, truths, lowest_iou=SAME)
    same = truths.category[pairs.detection] == truths.category[pairs.truth]
    pairs = chosen_pairs(pairs, same & (pairs.detection > pairs.truth))
    iou, other = nearest_truths(pairs, len(rows))
    at = np.flatnonzero(other != NONE)
    none = np.full(len(at), NONE)
    return _Suspects(Suspect.DOUBLE, iou[at], rows[at], none, rows[other[at]], iou[at])


def _describe(
    suspects: _Suspects, truths: CocoTruths, detections: FlatDetections, least_suspicion: float
) -> Iterator[LabelError]:
    """A record for each that is suspicious enough, most suspicious first."""
    order = np.argsort(-suspects.suspicion, kind="stable")
    order = order[suspects.suspicion[order] >= least_suspicion]
    columns = (suspects.suspicion, suspects.truth, suspects.detection, suspects.other, suspects.iou)
    rows = zip(*(column[order].tolist() for column in columns), strict=True)
    names, image_ids = truths.class_names, truths.image_ids.tolist()
    for suspicion, truth, detection, other, iou in rows:
        source, index = (detections, detection) if truth == NONE else (truths.truths, truth)
        found = detection != NONE
        yield LabelError(
            suspects.kind,
            suspicion,
            image_id=image_ids[source.image[index]],
            name=names[source.category[index]],
            box=tuple(source.boxes[index].tolist()),
            found=names[detections.category[detection]] if found else None,
            score=float(detections.scores[detection]) if found else np.nan,
            iou=iou,
            truth=None if truth == NONE else truth,
            detection=detection if found else None,
            other=None if other == NONE else other,
        )
