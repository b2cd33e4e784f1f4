"""Which classes are taken for which, and what is found in the background or missed.

The matching has two steps. First every class is matched as in the COCO metric, so that the diagonal
holds the true positives of the operating points: a box of another class never takes a truth that
one of the right class finds, however confident or close it is. Then what is left, wrong detections
and missed truths of an image, is matched in the same way as if it were all of one class: the best
detection first, each with the free truth of highest overlap. These pairs are the confusions; what
is still left is background. Precision and recall read off the matrix are thus those of the metric.

K categories; the last row and column, K, are the background.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from detkit.evaluation.inputs import Bools, CocoTruths, FlatDetections, FlatTruths, Floats, Ints
from detkit.evaluation.outcomes import NONE, find_outcomes
from detkit.evaluation.tables import known, number, plain

BACKGROUND = "background"
WIDEST_TABLE = 20  # classes; of more, the table lists the most confused pairs


@dataclass(frozen=True)
class Confusion:
    """Truths of one class that were taken for another.

    Attributes:
        truth: name of the class that they are of.
        detection: name of the class that they were taken for.
        count: how many.
        share: of all truths of their class.
    """

    truth: str
    detection: str
    count: int
    share: float


@dataclass(frozen=True, eq=False)
class ConfusionMatrix:
    """Counts of truths (rows) by the class of the detection that took them (columns).

    Attributes:
        counts: `[K + 1, K + 1]`; the last row holds detections of background (false positives), the
            last column truths that nothing took (false negatives).
        category_ids: K.
        class_names: K.
        iou: least overlap of a match.
        score: least score of the detections that take part.
    """

    counts: Ints
    category_ids: tuple[int, ...]
    class_names: tuple[str, ...]
    iou: float
    score: float

    @property
    def precision(self) -> Floats:
        """Share of the detections of each class that are right, `[K]`; NaN without any."""
        return np.diag(self.normalized("detection"))[:-1].copy()

    @property
    def recall(self) -> Floats:
        """Share of the truths of each class that are found, `[K]`; NaN without any."""
        return np.diag(self.normalized("truth"))[:-1].copy()

    def normalized(self, by: Literal["truth", "detection", "all"] = "truth") -> Floats:
        """Shares instead of counts, `[K + 1, K + 1]`; NaN where there is nothing to share.

        Args:
            by: what adds up to 1: every row ("truth"), every column ("detection"), or all.

        Raises:
            ValueError: something else.
        """
        axes = {"truth": 1, "detection": 0, "all": None}
        if by not in axes:
            raise ValueError(f"by must be 'truth', 'detection' or 'all', got {by!r}")
        total = self.counts.sum(axis=axes[by], keepdims=True)
        empty = np.full(self.counts.shape, np.nan)
        return np.divide(self.counts, total, out=empty, where=total > 0)

    def most_confused(self, limit: int = 20) -> list[Confusion]:
        """The pairs of different classes that are confused most often, most frequent first."""
        classes = self.counts[:-1, :-1] * (1 - np.eye(len(self.class_names), dtype=np.int64))
        order = np.argsort(-classes, axis=None, kind="stable")[:limit]
        truths, found = np.unravel_index(order, classes.shape)
        total = self.counts.sum(axis=1)
        return [
            Confusion(
                self.class_names[truth],
                self.class_names[detection],
                count=int(classes[truth, detection]),
                share=float(classes[truth, detection] / total[truth]),
            )
            for truth, detection in zip(truths, found, strict=True)
            if classes[truth, detection]
        ]

    def table(self) -> str:
        """The matrix, or of more than 20 classes the sums and the most confused pairs."""
        head = f"IoU {self.iou:.2f}, scores from {self.score:.2f}; rows: truth, columns: detection"
        names = [*self.class_names, BACKGROUND]
        if len(self.class_names) <= WIDEST_TABLE:
            numbers = [str(place) for place in range(len(names) - 1)]
            rows = [["", "", *numbers, "bg"]]
            for label, name, counts in zip([*numbers, "bg"], names, self.counts, strict=True):
                rows.append([label, name, *map(str, counts.tolist())])
            return f"{head}\n{plain(rows, names=2)}"
        pairs = [["truth", "taken for", "count", "share"]]
        for pair in self.most_confused():
            pairs.append([pair.truth, pair.detection, str(pair.count), number(pair.share)])
        return f"{head}\n{self._sums()}\n\n{plain(pairs, names=2)}"

    def _sums(self) -> str:
        right = int(np.trace(self.counts))
        missed, background = int(self.counts[:, -1].sum()), int(self.counts[-1].sum())
        confused = int(self.counts.sum()) - right - missed - background
        return (
            f"right {right}, confused {confused}, missed {missed}, "
            f"detections of background {background}"
        )

    def as_dict(self) -> dict[str, Any]:
        """The counts with their labels, ready for JSON."""
        return {
            "iou": self.iou,
            "score": self.score,
            "category_ids": list(self.category_ids),
            "labels": [*self.class_names, BACKGROUND],
            "counts": self.counts.tolist(),
            "precision": [known(value) for value in self.precision],
            "recall": [known(value) for value in self.recall],
        }


def confusion_matrix(
    truths: CocoTruths,
    detections: FlatDetections,
    *,
    iou: float = 0.5,
    score: float = 0.25,
    limit: int = 100,
) -> ConfusionMatrix:
    """Match class by class, then what is left across classes, and count.

    Detections of a crowd of their own class are left out, and so are all crowds.

    Args:
        truths: of the data set.
        detections: on it, in any order.
        iou: least overlap of a match, in 0..1.
        score: least score of the detections that take part.
        limit: detections of one category in one image that take part, the best ones.
    """
    classes = len(truths.category_ids)
    strong = detections[np.flatnonzero(detections.scores >= score)]
    own = find_outcomes(
        truths.truths, strong, num_categories=classes, iou_thresholds=(iou,), limit=limit
    )
    right = own.detections.category[own.right[0]]
    truth, detection = _match_across(
        own.truths, own.missed[0], own.detections, own.wrong[0], own.iou_thresholds
    )
    counts = _count_pairs(right, right, classes) + _count_pairs(truth, detection, classes)
    missed = np.bincount(own.truths.category[own.missed[0]], minlength=classes)
    wrong = np.bincount(own.detections.category[own.wrong[0]], minlength=classes)
    counts[:-1, -1] = missed - np.bincount(truth, minlength=classes)
    counts[-1, :-1] = wrong - np.bincount(detection, minlength=classes)
    ids = tuple(truths.category_ids.tolist())
    return ConfusionMatrix(counts, ids, truths.class_names, float(iou), float(score))


def _match_across(
    truths: FlatTruths, missed: Bools, found: FlatDetections, wrong: Bools, iou: Floats
) -> tuple[Ints, Ints]:
    """Categories of the truths and of the detections that took them, pair by pair."""
    truths, found = truths[missed], found[np.flatnonzero(wrong)]
    found = found[np.lexsort((found.image, -found.scores))]  # as outcomes are, to keep the places
    across = find_outcomes(
        replace(truths, category=np.zeros_like(truths.category)),
        replace(found, category=np.zeros_like(found.category)),
        num_categories=1,
        iou_thresholds=iou,
        limit=len(found) + 1,
    )
    truth_of = across.truth_of[0]
    took = truth_of != NONE
    return truths.category[truth_of[took]], found.category[took]


def _count_pairs(truth: Ints, detection: Ints, classes: int) -> Ints:
    """How often each pair of categories occurs, with room for the background, `[K + 1, K + 1]`."""
    side = classes + 1
    return np.bincount(truth * side + detection, minlength=side**2).reshape(side, side)
