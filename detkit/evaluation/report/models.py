"""The detections that a report is about, with the analyses that several of its sections show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from detkit.evaluation.bootstrap import ApInterval
from detkit.evaluation.curves import OperatingPoints
from detkit.evaluation.errors import ErrorAnalysis
from detkit.evaluation.outcomes import Outcomes
from detkit.evaluation.report.html import Markup, element, join, shorten
from detkit.evaluation.report.svg import swatch
from detkit.evaluation.result import CocoResult

IOU = 0.5  # of everything but AP, which averages over overlaps


@dataclass(frozen=True, eq=False)
class Model:
    """One set of detections.

    Attributes:
        name: as the page calls it.
        result: of its evaluation.
        place: among the models of the page, from 0 on; it has the series colour of that number.
        resamples: for the interval of AP.
    """

    name: str
    result: CocoResult
    place: int
    resamples: int

    @cached_property
    def interval(self) -> ApInterval:
        """AP, and how far it would move with other images."""
        return self.result.interval(resamples=self.resamples)

    @cached_property
    def points(self) -> OperatingPoints:
        """Precision, recall and F1 over the score threshold."""
        return self.result.operating_points(iou=IOU)

    @cached_property
    def threshold(self) -> float:
        """The score threshold of highest F1 over all classes; NaN where there is none."""
        return self.points.overall.best.threshold

    @cached_property
    def outcomes(self) -> Outcomes:
        """What became of every detection and truth at an overlap of 0.5."""
        return self.result.outcomes_at(IOU)

    @cached_property
    def errors(self) -> ErrorAnalysis:
        """Types of errors (TIDE)."""
        return self.result.errors(iou=IOU)


def under_names(models: Sequence[Model], pieces: Sequence[Markup]) -> Markup:
    """What belongs to each of several models, folded but for the first; that of one as it is."""
    if len(models) == 1:
        return pieces[0]
    folded = []
    for model, piece in zip(models, pieces, strict=True):
        name = element("summary", swatch(model.place), element("bdi", shorten(model.name)))
        folded.append(element("details", name, piece, open=model.place == 0))
    return join(*folded)
