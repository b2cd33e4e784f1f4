"""Do scores mean what they say: of the detections that score 0.8, are four of five right?

The expected calibration error (Guo et al., "On Calibration of Modern Neural Networks", ICML 2017,
section 2) sorts predictions into bins by their score and averages, weighted by their numbers, how
far the mean score and the share of right ones lie apart; the maximum calibration error is the worst
bin's. Of detections the share of right ones is their precision, and the error is the D-ECE over the
score alone (Kueppers et al., "Multivariate Confidence Calibration for Object Detection", CVPR
Workshops 2020). It is a matter of what is reported only: objects that are missed do not count.

N detections, B bins.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from detkit.evaluation.inputs import Bools, CocoTruths, Floats, Ints
from detkit.evaluation.outcomes import Outcomes
from detkit.evaluation.sweep import Judged, judged_by_category, judged_together
from detkit.evaluation.tables import known, number, plain


@dataclass(frozen=True, eq=False)
class Reliability:
    """A reliability diagram: mean score and precision by bins of the score.

    Attributes:
        category_id: None for all classes together.
        name: of the class.
        edges: `[B + 1]` from 0 to 1; a bin holds its upper edge, the first also 0.
        counts: `[B]` predictions.
        scores: `[B]` their mean score; NaN in an empty bin.
        precision: `[B]` share of right ones; NaN in an empty bin.
    """

    category_id: int | None
    name: str
    edges: Floats
    counts: Ints
    scores: Floats
    precision: Floats

    @property
    def ece(self) -> float:
        """Expected calibration error, 0..1: mean gap over the predictions; NaN without any."""
        return _mean(np.abs(self.scores - self.precision), self.counts)

    @property
    def mce(self) -> float:
        """Maximum calibration error, 0..1: the gap of the worst bin; NaN without predictions."""
        gaps = np.abs(self.scores - self.precision)[self.counts > 0]
        return float(gaps.max()) if len(gaps) else np.nan

    @property
    def mean_score(self) -> float:
        """Mean over all predictions; above `mean_precision` the detector is overconfident."""
        return _mean(self.scores, self.counts)

    @property
    def mean_precision(self) -> float:
        """Share of right ones in all predictions."""
        return _mean(self.precision, self.counts)

    def table(self) -> str:
        """A line for each bin."""
        rows = [["scores", "count", "mean score", "precision"]]
        columns = (self.edges[:-1], self.edges[1:], self.counts, self.scores, self.precision)
        for low, high, count, score, precision in zip(*columns, strict=True):
            bounds = f"{low:.3f}..{high:.3f}"
            rows.append([bounds, str(count), number(score), number(precision)])
        return plain(rows)

    def as_dict(self) -> dict[str, Any]:
        """The bins and their errors, ready for JSON."""
        return {
            "category_id": self.category_id,
            "name": self.name,
            "edges": self.edges.tolist(),
            "counts": self.counts.tolist(),
            "scores": [known(value) for value in self.scores],
            "precision": [known(value) for value in self.precision],
            "ece": known(self.ece),
            "mce": known(self.mce),
        }


def _mean(values: Floats, counts: Ints) -> float:
    """Mean of the bins by how many predictions they hold; empty ones hold NaN."""
    filled = counts > 0
    return float(np.average(values[filled], weights=counts[filled])) if filled.any() else np.nan


def reliability(
    scores: Floats,
    right: Bools,
    *,
    bins: int = 10,
    equal_mass: bool = False,
    category_id: int | None = None,
    name: str = "all",
) -> Reliability:
    """Sort predictions into bins of their score.

    Args:
        scores: `[N]` in 0..1, in any order.
        right: `[N]`.
        bins: how many, B.
        equal_mass: bins of about the same number of predictions instead of the same width. Equal
            scores share a bin, so that there may be fewer.
        category_id: for the result.
        name: for the result.

    Raises:
        ValueError: fewer than one bin, or scores that cannot be probabilities.
    """
    if bins < 1:
        raise ValueError(f"bins must be at least 1, got {bins}")
    if len(scores) and not (scores.min() >= 0 and scores.max() <= 1):
        raise ValueError(
            "calibration needs scores in 0..1, got "
            f"{scores.min():.6g}..{scores.max():.6g}; turn them into probabilities first"
        )
    edges = _mass_edges(scores, bins) if equal_mass else np.linspace(0, 1, bins + 1)
    place = np.searchsorted(edges[1:-1], scores, side="left")
    counts = np.bincount(place, minlength=len(edges) - 1)
    sums = [np.bincount(place, weights=each, minlength=len(counts)) for each in (scores, right)]
    empty = np.full(len(counts), np.nan)
    means = [np.divide(each, counts, out=empty.copy(), where=counts > 0) for each in sums]
    return Reliability(category_id, name, edges, counts, *means)


def _mass_edges(scores: Floats, bins: int) -> Floats:
    """Edges from 0 to 1 between which about equally many scores lie."""
    places = np.arange(1, bins) * len(scores) // bins - 1  # of the last score of each bin
    inner = np.unique(np.sort(scores)[places[places >= 0]])
    return np.concatenate([[0.0], inner[inner < 1], [1.0]])


@dataclass(frozen=True, eq=False)
class Calibration:
    """Reliability of each class and of all together.

    Attributes:
        iou: least overlap of a match.
        overall: all detections.
        classes: in the order of the category ids.
    """

    iou: float
    overall: Reliability
    classes: tuple[Reliability, ...]

    def table(self) -> str:
        """The bins of all detections, and a line for each class."""
        rows = [["class", "detections", "mean score", "precision", "ECE", "MCE"]]
        for each in (*self.classes, self.overall):
            numbers = (each.mean_score, each.mean_precision, each.ece, each.mce)
            rows.append([each.name, str(each.counts.sum()), *map(number, numbers)])
        return f"{self.overall.table()}\n\n{plain(rows)}"

    def as_dict(self) -> dict[str, Any]:
        """All bins and errors, ready for JSON."""
        return {
            "iou": self.iou,
            "overall": self.overall.as_dict(),
            "per_class": [each.as_dict() for each in self.classes],
        }


def calibration(
    truths: CocoTruths,
    outcomes: Outcomes,
    *,
    bins: int = 10,
    equal_mass: bool = False,
    score: float = 0.0,
) -> Calibration:
    """Compare the scores of detections with their precision, class by class and for all together.

    Most detections in a results file score next to nothing and are wrong, as they say: they pull
    the error down. `score` leaves them out.

    Args:
        truths: names the categories.
        outcomes: at one overlap threshold.
        bins: of the score.
        equal_mass: see `reliability`.
        score: least score of the detections that take part.

    Raises:
        ValueError: fewer than one bin, or scores outside of 0..1.
    """

    def of(judged: Judged) -> Reliability:
        kept = judged.scores >= score
        return reliability(
            judged.scores[kept],
            judged.right[kept],
            bins=bins,
            equal_mass=equal_mass,
            category_id=judged.category_id,
            name=judged.name,
        )

    classes = tuple(of(each) for each in judged_by_category(truths, outcomes))
    return Calibration(float(outcomes.iou_thresholds[0]), of(judged_together(outcomes)), classes)
