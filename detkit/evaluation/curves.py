"""Precision, recall and F1: against each other, and over the score threshold.

All of them count what the COCO metric counts: detections take truths in the order of their scores,
so that what becomes of one does not depend on the threshold, and detections of crowds are neither
right nor wrong.

K categories, N counted detections of a category, n different scores, R recall levels.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from detkit.evaluation.inputs import RECALL_GRID, CocoTruths, Floats, Ints
from detkit.evaluation.outcomes import Outcomes
from detkit.evaluation.sweep import Judged, Sweep, judged_by_category, judged_together
from detkit.evaluation.tables import known, number, plain


@dataclass(frozen=True, eq=False)
class PrCurve:
    """Precision over recall of a class, or the mean over the classes.

    A point for each counted detection, best first, as in pycocotools: also detections of equal
    scores are points of their own.

    Attributes:
        category_id: None for the mean.
        name: of the class.
        iou: least overlap of a match.
        truths: that count.
        recall: `[N]` of the detections so far; the mean has no points, N = 0.
        precision: `[N]` of the detections so far.
        envelope: `[N]` highest precision at this recall or more, of which AP is made.
        scores: `[N]` descending.
        interpolated: `[R]` the envelope at the recalls 0, 0.01 .. 1 (`RECALL_GRID`), 0 where the
            recall is not reached. It is `CocoResult.precision` of this class and overlap (but for
            what `strict` takes over from pycocotools). All are NaN without truths.
    """

    category_id: int | None
    name: str
    iou: float
    truths: int
    recall: Floats
    precision: Floats
    envelope: Floats
    scores: Floats
    interpolated: Floats

    @property
    def ap(self) -> float:
        """Average precision, the mean of `interpolated`; NaN without truths."""
        return float(np.mean(self.interpolated))

    def table(self) -> str:
        """Precision at every tenth of recall."""
        head = f"{self.name}: AP {number(self.ap)} at IoU {self.iou:.2f}, {self.truths} truths"
        rows = [("recall", "precision")]
        rows += [
            (f"{level:.1f}", number(value))
            for level, value in zip(RECALL_GRID[::10], self.interpolated[::10], strict=True)
        ]
        return f"{head}\n{plain(rows, names=0)}"

    def as_dict(self) -> dict[str, Any]:
        """AP and the curve at 101 recalls, ready for JSON."""
        return {
            "category_id": self.category_id,
            "name": self.name,
            "iou": self.iou,
            "truths": self.truths,
            "AP": known(self.ap),
            "recall": RECALL_GRID.tolist(),
            "precision": [known(value) for value in self.interpolated],
        }


def pr_curves(truths: CocoTruths, outcomes: Outcomes) -> list[PrCurve]:
    """The curve of every category, in the order of `category_ids`.

    Args:
        truths: names the categories.
        outcomes: at one overlap threshold.
    """
    iou = float(outcomes.iou_thresholds[0])
    return [_pr_curve(judged, iou) for judged in judged_by_category(truths, outcomes)]


def mean_curve(curves: list[PrCurve], *, iou: float) -> PrCurve:
    """The mean over the classes that have truths, at each level of recall.

    Args:
        curves: of the classes, at this overlap.
        iou: least overlap of a match.
    """
    found = [curve.interpolated for curve in curves if curve.truths]
    mean = np.mean(found, axis=0) if found else np.full(len(RECALL_GRID), np.nan)
    truths, none = sum(curve.truths for curve in curves), np.zeros(0)
    name = f"mean of {len(found)} classes"
    return PrCurve(None, name, iou, truths, none, none, none, none, mean)


def _pr_curve(judged: Judged, iou: float) -> PrCurve:
    right = np.cumsum(judged.right)
    recall = right / judged.truths if judged.truths else np.full(len(right), np.nan)
    # with the same hair as pycocotools, for the last bit of AP
    precision = right / (np.arange(1, len(right) + 1) + np.spacing(1.0))
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    interpolated = np.full(len(RECALL_GRID), np.nan)
    if judged.truths:
        interpolated = np.append(envelope, 0.0)[np.searchsorted(recall, RECALL_GRID)]
    return PrCurve(
        judged.category_id,
        judged.name,
        iou,
        judged.truths,
        recall=recall,
        precision=precision,
        envelope=envelope,
        scores=judged.scores,
        interpolated=interpolated,
    )


@dataclass(frozen=True)
class OperatingPoint:
    """What a detector does that reports what scores a threshold or more.

    Attributes:
        threshold: of the score; NaN where there is nothing to choose from.
        precision: share of right ones in what is reported; NaN where nothing is.
        recall: share of the truths that are found; NaN without truths.
        f1: harmonic mean of the two, 2 TP / (2 TP + FP + FN); NaN without truths.
        true_positives: right ones.
        false_positives: wrong ones.
        false_negatives: truths that are not found.
    """

    threshold: float
    precision: float
    recall: float
    f1: float
    true_positives: int
    false_positives: int
    false_negatives: int

    def as_dict(self) -> dict[str, Any]:
        """The numbers, None where unknown, ready for JSON."""
        return {k: known(v) if isinstance(v, float) else v for k, v in asdict(self).items()}


@dataclass(frozen=True, eq=False)
class OperatingCurve:
    """Precision, recall and F1 of a class, or of all together, over the score threshold.

    Attributes:
        category_id: None for all classes together.
        name: of the class.
        truths: M, that count.
        thresholds: `[n]` the different scores, descending.
        true_positives: `[n]` right ones that score this or more.
        false_positives: `[n]` wrong ones that score this or more.
    """

    category_id: int | None
    name: str
    truths: int
    thresholds: Floats
    true_positives: Ints
    false_positives: Ints

    @property
    def precision(self) -> Floats:
        """Share of right ones in what is reported, `[n]`; NaN where nothing is."""
        return _ratio(self.true_positives, self.true_positives + self.false_positives)

    @property
    def recall(self) -> Floats:
        """Share of the truths that are found, `[n]`; NaN without truths."""
        return _ratio(self.true_positives, np.full(len(self.thresholds), self.truths))

    @property
    def f1(self) -> Floats:
        """Harmonic mean of precision and recall, `[n]`; NaN without truths."""
        total = self.true_positives + self.false_positives + self.truths
        return _ratio(2 * self.true_positives, total * (self.truths > 0))

    @property
    def best(self) -> OperatingPoint:
        """The point of highest F1, of several the one of the highest threshold."""
        if not self.truths or not len(self.thresholds):
            return self.at(np.nan)
        return self._point(int(np.argmax(self.f1)))

    def at(self, threshold: float) -> OperatingPoint:
        """The point of this threshold; with NaN nothing is reported."""
        return self.sampled(np.array([threshold], np.float64))._point(0)

    def sampled(self, thresholds: Floats) -> OperatingCurve:
        """The curve at these thresholds, `[G]` in any order, e.g. to draw many on one axis."""
        place = np.searchsorted(-self.thresholds, -thresholds, side="right")
        place[np.isnan(thresholds)] = 0
        counts = (self.true_positives, self.false_positives)
        columns = (np.concatenate([[0], each])[place] for each in counts)
        return OperatingCurve(self.category_id, self.name, self.truths, thresholds, *columns)

    def _point(self, place: int) -> OperatingPoint:
        right = int(self.true_positives[place])
        return OperatingPoint(
            threshold=float(self.thresholds[place]),
            precision=float(self.precision[place]),
            recall=float(self.recall[place]),
            f1=float(self.f1[place]),
            true_positives=right,
            false_positives=int(self.false_positives[place]),
            false_negatives=self.truths - right,
        )


def _ratio(part: Ints, whole: Ints) -> Floats:
    """NaN where the whole is 0."""
    return np.divide(part, whole, out=np.full(len(part), np.nan), where=whole > 0)


@dataclass(frozen=True, eq=False)
class OperatingPoints:
    """Precision, recall and F1 over the score threshold.

    Attributes:
        iou: least overlap of a match.
        overall: all classes together under one threshold (micro average).
        classes: K, in the order of the category ids.
    """

    iou: float
    overall: OperatingCurve
    classes: tuple[OperatingCurve, ...]

    @property
    def grid(self) -> Floats:
        """101 thresholds to draw the curves at: 0 to 1, or further where scores are, `[101]`."""
        scores = self.overall.thresholds
        return np.linspace(scores.min(initial=0.0), scores.max(initial=1.0), 101)

    def table(self, threshold: float | None = None) -> str:
        """A line for each class and one for all: at this threshold, or each at its best F1."""
        rows = [["class", "truths", "threshold", "precision", "recall", "F1"]]
        for curve in (*self.classes, self.overall):
            point = curve.best if threshold is None else curve.at(threshold)
            numbers = (point.threshold, point.precision, point.recall, point.f1)
            rows.append([curve.name, str(curve.truths), *map(number, numbers)])
        return plain(rows)

    def as_dict(self) -> dict[str, Any]:
        """The best point of each class and of all, and the curve of all, ready for JSON."""
        curve = self.overall.sampled(self.grid)
        return {
            "iou": self.iou,
            "overall": {
                **_best_as_dict(self.overall),
                "thresholds": curve.thresholds.tolist(),
                "precision": [known(value) for value in curve.precision],
                "recall": [known(value) for value in curve.recall],
                "f1": [known(value) for value in curve.f1],
            },
            "per_class": [_best_as_dict(curve) for curve in self.classes],
        }


def _best_as_dict(curve: OperatingCurve) -> dict[str, Any]:
    head = {"category_id": curve.category_id, "name": curve.name, "truths": curve.truths}
    return {**head, "best": curve.best.as_dict()}


def operating_points(truths: CocoTruths, outcomes: Outcomes) -> OperatingPoints:
    """Sweep the threshold through all scores, class by class and for all together.

    Args:
        truths: names the categories.
        outcomes: at one overlap threshold.
    """
    classes = tuple(_operating_curve(each) for each in judged_by_category(truths, outcomes))
    overall = _operating_curve(judged_together(outcomes))
    return OperatingPoints(float(outcomes.iou_thresholds[0]), overall, classes)


def _operating_curve(judged: Judged) -> OperatingCurve:
    sweep = Sweep.of(judged.scores, judged.right)
    head = (judged.category_id, judged.name, judged.truths)
    return OperatingCurve(*head, sweep.thresholds, sweep.right[1:], sweep.wrong[1:])
