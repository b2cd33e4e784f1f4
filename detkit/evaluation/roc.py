"""Hits against false alarms: ROC of images, FROC of boxes, and the areas under them.

ROC: a class is looked for in an image; its score there is that of the best detection, wherever it
lies (Fawcett, "An introduction to ROC analysis", Pattern Recognition Letters 27, 2006). FROC: boxes
that are found against false positives in an image (Bunch et al., "A free-response approach to the
measurement and characterization of radiographic-observer performance", 1978), and the mean of its
recall at 1/8 .. 8 false positives an image (Setio et al., "Validation, comparison, and combination
of algorithms for automatic detection of pulmonary nodules: the LUNA16 challenge", 2017).

K categories, I images, N samples, n different scores, F rates of false positives.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from detkit.evaluation.inputs import CocoTruths, FlatDetections, Floats, Ints, index_of
from detkit.evaluation.matching import run_starts
from detkit.evaluation.outcomes import Outcomes
from detkit.evaluation.sweep import Judged, Sweep, judged_by_category, judged_together
from detkit.evaluation.tables import known, number, plain

FROC_RATES = (1 / 8, 1 / 4, 1 / 2, 1.0, 2.0, 4.0, 8.0)  # false positives an image, as in LUNA16


@dataclass(frozen=True, eq=False)
class RocCurve:
    """True against false positive rate of one class against the rest, over the score threshold.

    Attributes:
        category_id: of the class.
        name: of the class.
        positives: samples that are of the class.
        negatives: samples that are not.
        thresholds: `[n + 2]` infinity, the different scores descending, minus infinity.
        true_positive_rate: `[n + 2]` share of the positives that score this or more, from 0 to 1;
            NaN without positives.
        false_positive_rate: `[n + 2]` share of the negatives; NaN without negatives.
        auc: area under the curve, the probability that a positive scores more than a negative,
            where equal scores count half (Mann and Whitney); NaN without positives or negatives.
    """

    category_id: int
    name: str
    positives: int
    negatives: int
    thresholds: Floats
    true_positive_rate: Floats
    false_positive_rate: Floats
    auc: float


def roc_curve(
    sweep: Sweep, *, category_id: int, name: str, positives: int, negatives: int
) -> RocCurve:
    """The curve of samples of which some may have no score: these come last, all at once.

    Args:
        sweep: `right` are positives and `wrong` negatives.
        category_id: of the class.
        name: of the class.
        positives: all of them, with those that have no score.
        negatives: likewise.
    """
    right, wrong = np.append(sweep.right, positives), np.append(sweep.wrong, negatives)
    pairs = positives * negatives
    halves = int((np.diff(wrong) * (right[1:] + right[:-1])).sum())  # trapezoids, without rounding
    return RocCurve(
        category_id,
        name,
        positives,
        negatives,
        thresholds=np.concatenate([[np.inf], sweep.thresholds, [-np.inf]]),
        true_positive_rate=_share(right, positives),
        false_positive_rate=_share(wrong, negatives),
        auc=halves / (2 * pairs) if pairs else np.nan,
    )


def _share(counts: Ints, total: int) -> Floats:
    return counts / total if total else np.full(len(counts), np.nan)


@dataclass(frozen=True, eq=False)
class Roc:
    """The ROC curve of every class against the rest.

    Attributes:
        classes: K.
    """

    classes: tuple[RocCurve, ...]

    @property
    def mean_auc(self) -> float:
        """Mean over the classes that have positives and negatives (macro); NaN without any."""
        return mean_of_known([curve.auc for curve in self.classes])

    def table(self) -> str:
        """A line for each class, and the mean."""
        rows = [("class", "positives", "negatives", "AUC")]
        rows += [
            (curve.name, str(curve.positives), str(curve.negatives), number(curve.auc))
            for curve in self.classes
        ]
        return plain([*rows, ("mean", "", "", number(self.mean_auc))])

    def as_dict(self) -> dict[str, Any]:
        """The areas, ready for JSON."""
        keys = ("category_id", "name", "positives", "negatives")
        rows = [
            {**{key: getattr(curve, key) for key in keys}, "auc": known(curve.auc)}
            for curve in self.classes
        ]
        return {"mean_auc": known(self.mean_auc), "per_class": rows}


def image_roc(truths: CocoTruths, detections: FlatDetections) -> Roc:
    """Is there one in the image? The score of an image is that of its best detection of the class.

    An image is positive where it has a truth of the class, negative where it has none, and left out
    where there are only crowds. Images without a detection score less than all others.

    Args:
        truths: of the data set.
        detections: on it, in any order.
    """
    images = len(truths.image_ids)
    flat = truths.truths
    cells = flat.category * images + flat.image  # a cell is an image, looked at for a category
    positive = np.unique(cells[~flat.crowd])
    unclear = np.setdiff1d(cells[flat.crowd], positive)
    cell, score = _best_of_cells(detections.category * images + detections.image, detections.scores)
    clear = ~index_of(unclear, cell)[1]
    cell, score = cell[clear], score[clear]
    right = index_of(positive, cell)[1]
    bounds = np.arange(len(truths.category_ids) + 1) * images
    positives, skipped = (np.diff(np.searchsorted(c, bounds)) for c in (positive, unclear))
    ends = np.searchsorted(cell, bounds)
    return Roc(
        tuple(
            roc_curve(
                Sweep.of(score[ends[k] : ends[k + 1]], right[ends[k] : ends[k + 1]]),
                category_id=int(category_id),
                name=truths.class_names[k],
                positives=int(positives[k]),
                negatives=int(images - positives[k] - skipped[k]),
            )
            for k, category_id in enumerate(truths.category_ids)
        )
    )


def _best_of_cells(cell: Ints, scores: Floats) -> tuple[Ints, Floats]:
    """Each cell once, ascending, and its highest score."""
    order = np.lexsort((-scores, cell))
    first = order[run_starts(cell[order])]
    return cell[first], scores[first]


@dataclass(frozen=True, eq=False)
class FrocCurve:
    """Recall against false positives in an image over the score threshold.

    Attributes:
        category_id: None for all classes together.
        name: of the class.
        truths: that count.
        thresholds: `[n + 1]` infinity, then the different scores, descending.
        false_positives: `[n + 1]` in an image on average, ascending from 0; NaN without images.
        recall: `[n + 1]` share of the truths that are found; NaN without truths.
    """

    category_id: int | None
    name: str
    truths: int
    thresholds: Floats
    false_positives: Floats
    recall: Floats

    def at(self, rates: Sequence[float] | Floats = FROC_RATES) -> Floats:
        """Recall at these rates of false positives, `[F]`.

        Between two thresholds the curve is a straight line: reporting by one or the other at random
        comes to a point on it. Beyond the last threshold nothing more is found.
        """
        # of several points at one rate, np.interp comes to the first and goes on from the last
        return np.interp(rates, self.false_positives, self.recall)

    @property
    def score(self) -> float:
        """Mean recall at 1/8, 1/4, 1/2, 1, 2, 4 and 8 false positives an image (LUNA16)."""
        return float(self.at().mean())


@dataclass(frozen=True, eq=False)
class Froc:
    """The FROC curve of every class and of all together.

    Attributes:
        iou: least overlap of a match.
        overall: all classes under one threshold; its false positives are those of all classes.
        classes: K, in the order of the category ids.
    """

    iou: float
    overall: FrocCurve
    classes: tuple[FrocCurve, ...]

    @property
    def mean_score(self) -> float:
        """Mean score over the classes that have truths; NaN without any."""
        return mean_of_known([curve.score for curve in self.classes])

    def table(self) -> str:
        """A line for each class and one for all: recall at each rate, and their mean."""
        rates = [f"1/{round(1 / rate)}" if rate < 1 else f"{rate:.0f}" for rate in FROC_RATES]
        rows = [["class", "truths", *rates, "score"]]
        for curve in (*self.classes, self.overall):
            numbers = (*curve.at(), curve.score)
            rows.append([curve.name, str(curve.truths), *map(number, numbers)])
        return plain(rows)

    def as_dict(self) -> dict[str, Any]:
        """Recall at each rate, ready for JSON."""
        return {
            "iou": self.iou,
            "false_positives_per_image": list(FROC_RATES),
            "mean_score": known(self.mean_score),
            "overall": _froc_as_dict(self.overall),
            "per_class": [_froc_as_dict(curve) for curve in self.classes],
        }


def _froc_as_dict(curve: FrocCurve) -> dict[str, Any]:
    head = {"category_id": curve.category_id, "name": curve.name, "truths": curve.truths}
    return {**head, "recall": [known(value) for value in curve.at()], "score": known(curve.score)}


def froc(truths: CocoTruths, outcomes: Outcomes) -> Froc:
    """Sweep the threshold through all scores, class by class and for all together.

    Args:
        truths: names the categories and counts the images.
        outcomes: at one overlap threshold.
    """
    images = len(truths.image_ids)
    classes = tuple(_froc_curve(each, images) for each in judged_by_category(truths, outcomes))
    overall = _froc_curve(judged_together(outcomes), images)
    return Froc(float(outcomes.iou_thresholds[0]), overall, classes)


def _froc_curve(judged: Judged, images: int) -> FrocCurve:
    sweep = Sweep.of(judged.scores, judged.right)
    return FrocCurve(
        judged.category_id,
        judged.name,
        judged.truths,
        thresholds=np.concatenate([[np.inf], sweep.thresholds]),
        false_positives=_share(sweep.wrong, images),
        recall=_share(sweep.right, judged.truths),
    )


def mean_of_known(values: Sequence[float]) -> float:
    """Mean of what is not NaN; NaN of nothing."""
    numbers = [value for value in values if not np.isnan(value)]
    return float(np.mean(numbers)) if numbers else np.nan
