"""What an evaluation gives: the curves, the 12 numbers, and a table of the classes.

K categories, T thresholds, A area ranges, M limits, R recall levels.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, astuple, dataclass, field, fields, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from detkit.evaluation.accumulation import CurveArrays
from detkit.evaluation.bootstrap import ApInterval, ap_interval
from detkit.evaluation.calibration import Calibration, calibration
from detkit.evaluation.confusion import ConfusionMatrix, confusion_matrix
from detkit.evaluation.curves import (
    OperatingPoints,
    PrCurve,
    mean_curve,
    operating_points,
    pr_curves,
)
from detkit.evaluation.differences import find_notes
from detkit.evaluation.errors import ErrorAnalysis, analyse_errors
from detkit.evaluation.inputs import CocoSettings, CocoTruths, FlatDetections, Floats, Ints
from detkit.evaluation.label_errors import LabelErrors, find_label_errors
from detkit.evaluation.outcomes import Outcomes, find_outcomes
from detkit.evaluation.roc import Froc, Roc, froc, image_roc
from detkit.evaluation.slices import (
    ASPECT_RATIOS,
    OBJECTS,
    SIDES,
    Slices,
    slice_by_aspect_ratio,
    slice_by_attribute,
    slice_by_density,
    slice_by_size,
)
from detkit.registry import suggest


class Statistic(NamedTuple):
    """One of the 12 lines.

    Attributes:
        name: short name.
        precision: it averages precision, otherwise recall.
        iou: a single threshold, or None for the mean over all.
        area: name of the area range.
        limit: which of the limits on detections, or None for a limit of 100.
    """

    name: str
    precision: bool
    iou: float | None
    area: str
    limit: int | None


STATISTICS = (
    Statistic("AP", True, None, "all", None),  # pycocotools wants exactly 100 here
    Statistic("AP50", True, 0.5, "all", 2),
    Statistic("AP75", True, 0.75, "all", 2),
    Statistic("APs", True, None, "small", 2),
    Statistic("APm", True, None, "medium", 2),
    Statistic("APl", True, None, "large", 2),
    Statistic("AR1", False, None, "all", 0),
    Statistic("AR10", False, None, "all", 1),
    Statistic("AR100", False, None, "all", 2),
    Statistic("ARs", False, None, "small", 2),
    Statistic("ARm", False, None, "medium", 2),
    Statistic("ARl", False, None, "large", 2),
)


@dataclass(frozen=True)
class ClassResult:
    """The numbers of one class; -1 where there is nothing to average.

    Attributes:
        category_id: as in the ground truth.
        name: of the class.
        AP: mean over the thresholds.
        AP50: at an overlap of 0.5.
        AP75: at an overlap of 0.75.
        AR: mean over the thresholds of the highest recall.
        truths: annotations that count (no crowds).
        images: that hold one of these.
        detections: of the class.
    """

    category_id: int
    name: str
    AP: float
    AP50: float
    AP75: float
    AR: float
    truths: int
    images: int
    detections: int


@dataclass(frozen=True, eq=False)
class CocoResult:
    """Result of the COCO metric; the arrays equal those of pycocotools bit for bit.

    Attributes:
        curves: precision, recall and scores.
        category_ids: sorted.
        class_names: in the order of the ids.
        settings: thresholds, area ranges and limits.
        truths: what was to be found.
        detections: what was found, in the order given.
    """

    curves: CurveArrays = field(repr=False)
    category_ids: tuple[int, ...]
    class_names: tuple[str, ...]
    settings: CocoSettings
    truths: CocoTruths = field(repr=False)
    detections: FlatDetections = field(repr=False)
    _intervals: dict[tuple[int, int, bool], ApInterval] = field(
        default_factory=dict, init=False, repr=False
    )

    @property
    def precision(self) -> Floats:
        """Highest precision at this recall or more, `[T, R, K, A, M]`.

        Here and in `recall` and `scores`, -1 where a category has no truth in the area range.
        """
        return self.curves.precision

    @property
    def recall(self) -> Floats:
        """Highest recall, `[T, K, A, M]`."""
        return self.curves.recall

    @property
    def scores(self) -> Floats:
        """Score at which the recall is reached, 0 where it never is, `[T, R, K, A, M]`."""
        return self.curves.scores

    @property
    def num_truths(self) -> Ints:
        """Annotations that count, `[A, K]`."""
        return self.curves.num_truths

    @cached_property
    def outcomes(self) -> Outcomes:
        """What became of every detection and truth of any size, at all thresholds."""
        return find_outcomes(
            self.truths.truths,
            self.detections,
            num_categories=len(self.category_ids),
            iou_thresholds=self.settings.iou_thresholds,
            limit=self.settings.max_dets[-1],
        )

    @cached_property
    def stats(self) -> Floats:
        """The 12 numbers, `[12]`, in pycocotools' order; -1 where there is nothing to average.

        With fewer than three limits the last stands for the missing ones. As in pycocotools the
        first number, AP, is that of the limit 100, while AP50 .. APl are those of the third limit.
        Without a limit of 100, AP is that of the largest, or -1 as in pycocotools if `strict`.
        """
        return np.array([self._mean(statistic) for statistic in STATISTICS])

    @cached_property
    def notes(self) -> tuple[str, ...]:
        """A sentence on each cause for which pycocotools gives other numbers; none if `strict`."""
        return find_notes(
            self.truths,
            self.detections,
            self.settings,
            arrays=self.curves,
            stats_of=self._stats_of,
        )

    def _stats_of(self, arrays: CurveArrays) -> dict[str, float]:
        """The 12 numbers by name, as they would be with these curves."""
        other = replace(self, curves=arrays)
        return {s.name: float(v) for s, v in zip(STATISTICS, other.stats, strict=True)}

    def summary(self) -> str:
        """The 12 lines as pycocotools prints them."""
        return "\n".join(
            self._line(statistic, value)
            for statistic, value in zip(STATISTICS, self.stats, strict=True)
        )

    def per_class(self) -> list[ClassResult]:
        """The numbers of each class, in the order of `category_ids`.

        They are those of the third limit and of the area range "all", or of the first without it.
        """
        names = list(self.settings.area_ranges)
        area = names.index("all") if "all" in names else 0
        limit = self._limit(2)
        thresholds = self.settings.iou_thresholds
        images, detections = self._images_of_classes(names[area]), self._detections_of_classes()
        rows = []
        for index, (category_id, name) in enumerate(
            zip(self.category_ids, self.class_names, strict=True)
        ):
            precision = self.precision[:, :, index, area, limit]  # [T, R]
            row = ClassResult(
                category_id=category_id,
                name=name,
                AP=_mean_of_known(precision),
                AP50=_mean_of_known(precision[thresholds == 0.5]),
                AP75=_mean_of_known(precision[thresholds == 0.75]),
                AR=_mean_of_known(self.recall[:, index, area, limit]),
                truths=int(self.num_truths[area, index]),
                images=int(images[index]),
                detections=int(detections[index]),
            )
            rows.append(row)
        return rows

    def table(self) -> str:
        """The classes as text, one line each."""
        rows = self.per_class()
        width = max([len(row.name) for row in rows] + [len("class")])
        lines = [f"{'class':<{width}}  truths     AP   AP50   AP75     AR"]
        for row in rows:
            values = (row.AP, row.AP50, row.AP75, row.AR)
            numbers = (f"{value:6.3f}" if value > -1 else "     -" for value in values)
            lines.append(f"{row.name:<{width}}  {row.truths:6d} {' '.join(numbers)}")
        return "\n".join(lines)

    def csv(self) -> str:
        """The classes as comma-separated values with a head, one line each; empty for unknown."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow([column.name for column in fields(ClassResult)])
        for row in self.per_class():
            cells = astuple(row)
            writer.writerow(["" if isinstance(c, float) and c == -1 else c for c in cells])
        return text.getvalue()

    def as_dict(self) -> dict[str, Any]:
        """The 12 numbers by name, and the classes under `per_class`, ready for JSON."""
        numbers = {
            statistic.name: float(value)
            for statistic, value in zip(STATISTICS, self.stats, strict=True)
        }
        return {**numbers, "per_class": [asdict(row) for row in self.per_class()]}

    def outcomes_at(self, iou: float) -> Outcomes:
        """`outcomes` at one overlap in 0..1, which need not be one of the thresholds."""
        (rows,) = np.nonzero(np.isclose(self.settings.iou_thresholds, iou, rtol=0, atol=1e-9))
        if len(rows):
            row = slice(rows[0], rows[0] + 1)
            every = self.outcomes
            return replace(
                every,
                iou_thresholds=every.iou_thresholds[row],
                truth_of=every.truth_of[row],
                ignored=every.ignored[row],
            )
        return find_outcomes(
            self.truths.truths,
            self.detections,
            num_categories=len(self.category_ids),
            iou_thresholds=(iou,),
            limit=self.settings.max_dets[-1],
        )

    def pr_curve(self, category_id: int | None = None, iou: float = 0.5) -> PrCurve:
        """Precision over recall of a class, or the mean over the classes.

        Raises:
            ValueError: an unknown category, or an overlap outside of 0..1.
        """
        curves = self.pr_curves(iou)
        if category_id is None:
            return mean_curve(curves, iou=iou)
        if category_id not in self.category_ids:
            choices = suggest(str(category_id), [str(each) for each in self.category_ids])
            raise ValueError(f"unknown category_id {category_id}; {choices}")
        return curves[self.category_ids.index(category_id)]

    def pr_curves(self, iou: float = 0.5) -> list[PrCurve]:
        """Precision over recall of each class, in the order of `category_ids`."""
        return pr_curves(self.truths, self.outcomes_at(iou))

    def operating_points(self, iou: float = 0.5) -> OperatingPoints:
        """Precision, recall and F1 over the score threshold, and the best threshold."""
        return operating_points(self.truths, self.outcomes_at(iou))

    def froc(self, iou: float = 0.5) -> Froc:
        """Recall against false positives in an image."""
        return froc(self.truths, self.outcomes_at(iou))

    def roc(self) -> Roc:
        """Is there one in the image? ROC curve and AUC of each class, by its best detection."""
        return image_roc(self.truths, self.detections)

    def confusion(self, iou: float = 0.5, score: float = 0.25) -> ConfusionMatrix:
        """Which classes are taken for which, found in the background, or missed."""
        limit = self.settings.max_dets[-1]
        return confusion_matrix(self.truths, self.detections, iou=iou, score=score, limit=limit)

    def calibration(
        self, iou: float = 0.5, bins: int = 10, *, equal_mass: bool = False, score: float = 0.0
    ) -> Calibration:
        """Do scores mean what they say? Arguments are those of `calibration.calibration`."""
        outcomes = self.outcomes_at(iou)
        return calibration(self.truths, outcomes, bins=bins, equal_mass=equal_mass, score=score)

    def errors(self, iou: float = 0.5, background_iou: float = 0.1) -> ErrorAnalysis:
        """What kinds of errors there are, and what each kind costs (TIDE)."""
        return analyse_errors(self.truths, self.detections, iou=iou, background_iou=background_iou)

    def label_errors(self, least_suspicion: float = 0.5) -> LabelErrors:
        """Labels that the detections disagree with, the most suspicious first."""
        return find_label_errors(self.truths, self.detections, least_suspicion=least_suspicion)

    def by_size(self, bins: Sequence[float] = SIDES) -> Slices:
        """The numbers of objects by the square root of their area; `bins` are edges in pixels."""
        return slice_by_size(self.truths, self.detections, self.settings, edges=bins)

    def by_aspect_ratio(self, bins: Sequence[float] = ASPECT_RATIOS) -> Slices:
        """The numbers of objects by height / width; `bins` are edges."""
        return slice_by_aspect_ratio(self.truths, self.detections, self.settings, edges=bins)

    def by_density(self, bins: Sequence[int] = OBJECTS) -> Slices:
        """The numbers of images by the objects in them; `bins` are edges."""
        return slice_by_density(self.truths, self.detections, self.settings, edges=bins)

    def by_attribute(self, name: str) -> Slices:
        """The numbers of images by an attribute that the file has of them, as "weather"."""
        records = self.truths.image_records()
        return slice_by_attribute(
            self.truths, self.detections, self.settings, records=records, name=name
        )

    def interval(self, resamples: int = 1000, seed: int = 0, *, by_box: bool = False) -> ApInterval:
        """How far AP would move with other images (bootstrap), made once for the same arguments.

        Arguments and errors are those of `bootstrap.ap_interval`.
        """
        key = resamples, seed, by_box
        if key not in self._intervals:
            self._intervals[key] = ap_interval(
                self.truths,
                self.detections,
                self.settings,
                resamples=resamples,
                seed=seed,
                by_box=by_box,
            )
        return self._intervals[key]

    def _images_of_classes(self, area_range: str) -> Ints:
        """Images with a truth that counts, by category, `[K]`."""
        low, high = self.settings.area_ranges[area_range]
        flat, images = self.truths.truths, len(self.truths.image_ids)
        counts = ~flat.crowd & (flat.area >= low) & (flat.area <= high)
        cells = np.unique(flat.category[counts] * images + flat.image[counts])
        return np.bincount(cells // max(images, 1), minlength=len(self.category_ids))

    def _detections_of_classes(self) -> Ints:
        return np.bincount(self.detections.category, minlength=len(self.category_ids))

    def _limit(self, index: int) -> int:
        """Index of the limit of that place, or of the last one."""
        return min(index, len(self.settings.max_dets) - 1)

    def _max_dets(self, statistic: Statistic) -> int:
        if statistic.limit is None:
            limits = self.settings.max_dets
            return 100 if self.settings.strict or 100 in limits else limits[-1]
        return self.settings.max_dets[self._limit(statistic.limit)]

    def _mean(self, statistic: Statistic) -> float:
        values = self.precision if statistic.precision else self.recall
        if statistic.iou is not None:
            values = values[self.settings.iou_thresholds == statistic.iou]
        names = list(self.settings.area_ranges)
        limits = np.flatnonzero(np.array(self.settings.max_dets) == self._max_dets(statistic))
        if statistic.area not in names:
            return -1.0
        return _mean_of_known(values[..., names.index(statistic.area), :][..., limits])

    def _line(self, statistic: Statistic, value: float) -> str:
        thresholds = self.settings.iou_thresholds
        iou = f"{thresholds[0]:0.2f}:{thresholds[-1]:0.2f}"
        if statistic.iou is not None:
            iou = f"{statistic.iou:0.2f}"
        title = "Average Precision  (AP)" if statistic.precision else "Average Recall     (AR)"
        return (
            f" {title} @[ IoU={iou:<9} | area={statistic.area:>6s} | "
            f"maxDets={self._max_dets(statistic):>3d} ] = {value:0.3f}"
        )


def _mean_of_known(values: Floats) -> float:
    """Mean of what is not -1, in the order of the axes, as the last bit depends on it."""
    known = values[values > -1]
    return float(np.mean(known)) if len(known) else -1.0
