"""How far AP would move with other images.

Images are drawn with replacement, as many as there are, again and again (the bootstrap: Efron and
Tibshirani, An Introduction to the Bootstrap, 1993, chapters 6 and 13); the AP of these resamples
scatters about the AP of all images as that scatters about the AP of endlessly many such images.

The 95 % interval is the basic one (Davison and Hinkley, Bootstrap Methods and their Application,
1997, section 5.2): with the quantiles q of the resamples, from `2 AP - q(97.5 %)` to
`2 AP - q(2.5 %)`. For AP comes out too high where a class has few truths, since every level of
recall takes the best precision that follows; a resample has fewer different ones and is higher
still. The percentile interval, from `q(2.5 %)` to `q(97.5 %)`, has this error twice, the basic one
takes off part of it. How often they cover the true AP (`benchmarks/bootstrap_coverage.py`; the
frequency of the classes falls as 1 / rank, an image has 6 truths):

    images  classes   basic  percentile   basic, difference of two models
        50        3    91 %        92 %    92 %
       200        5    93 %        92 %    94 %
       200       20    90 %        85 %    93 %
     5,000       80    94 %        88 %    92 %
     1,000       80    88 %        68 %    92 %
     1,000      400    32 %         2 %    90 %

Differences have no such error. Where AP has, `ApInterval.sentence` says so.

All this is about images: a trained model is given, and what varies is what it is tested on. Another
seed in training gives another model; whether a difference is larger than the spread of the seeds is
what `comparison` answers.

B resamples, K categories, T thresholds.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from detkit.evaluation.inputs import CocoSettings, CocoTruths, FlatDetections, Floats, Ints
from detkit.evaluation.literal import is_ordinary
from detkit.evaluation.outcomes import find_outcomes
from detkit.evaluation.resampling import (
    ClassRanking,
    draw_weights,
    rank_classes,
    weighted_precision,
)
from detkit.evaluation.tables import known, number, plain

CONFIDENCE = 0.95
NUMBERS = ("AP", "AP50", "AP75")
LEAST_IMAGES = 2  # one image, drawn again and again, does not scatter


class Interval(NamedTuple):
    """A number and its 95 % interval; NaN for what is not known."""

    estimate: float
    low: float
    high: float

    def as_dict(self) -> dict[str, float | None]:
        """Ready for JSON."""
        return {name: known(value) for name, value in self._asdict().items()}


class ClassInterval(NamedTuple):
    """AP of one class, or a difference of two."""

    category_id: int
    name: str
    AP: Interval


@dataclass(frozen=True, eq=False)
class Resamples:
    """Numbers of all images and of each resample; NaN where there is nothing to average.

    Attributes:
        category_ids: sorted.
        class_names: in the order of the ids.
        numbers: `[3]` AP, AP50 and AP75.
        drawn: `[B, 3]` the same of the resamples.
        of_classes: `[K]` AP of each class.
        drawn_of_classes: `[B, K]` the same of the resamples.
        lowest: what these numbers cannot be below; they cannot be above 1.
    """

    category_ids: tuple[int, ...]
    class_names: tuple[str, ...]
    numbers: Floats
    drawn: Floats
    of_classes: Floats
    drawn_of_classes: Floats
    lowest: float = 0.0

    def __len__(self) -> int:
        return len(self.drawn)

    def __sub__(self, other: Resamples) -> Resamples:
        """The differences on the same images, as far as both have resamples."""
        count = min(len(self), len(other))
        return Resamples(
            self.category_ids,
            self.class_names,
            self.numbers - other.numbers,
            self.drawn[:count] - other.drawn[:count],
            self.of_classes - other.of_classes,
            self.drawn_of_classes[:count] - other.drawn_of_classes[:count],
            lowest=-1.0,
        )

    def intervals(self) -> dict[str, Interval]:
        """Of AP, AP50 and AP75."""
        columns = zip(NUMBERS, self.numbers, self.drawn.T, strict=True)
        return {name: _basic_interval(value, drawn, self.lowest) for name, value, drawn in columns}

    def per_class(self) -> list[ClassInterval]:
        """Of the AP of each class, without low and high where fewer than two images have truths."""
        columns = zip(self.of_classes, self.drawn_of_classes.T, strict=True)
        intervals = [_basic_interval(value, drawn, self.lowest) for value, drawn in columns]
        rows = zip(self.category_ids, self.class_names, intervals, strict=True)
        return [ClassInterval(*row) for row in rows]

    def table(self) -> str:
        """The three numbers and AP of each class, a line each."""
        lines = [*self.intervals().items(), *((each.name, each.AP) for each in self.per_class())]
        rows = [(name, *map(number, interval)) for name, interval in lines]
        return plain([("", *Interval._fields), *rows])

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON; None where nothing is known."""
        return {
            "confidence": CONFIDENCE,
            "resamples": len(self),
            **{name: interval.as_dict() for name, interval in self.intervals().items()},
            "per_class": [
                {"category_id": category_id, "name": name, "AP": interval.as_dict()}
                for category_id, name, interval in self.per_class()
            ],
        }


def _basic_interval(estimate: float, drawn: Floats, lowest: float) -> Interval:
    defined = drawn[~np.isnan(drawn)]
    if not len(defined):
        return Interval(float(estimate), np.nan, np.nan)
    tail = (1 - CONFIDENCE) / 2
    high, low = 2 * estimate - np.quantile(defined, [tail, 1 - tail])
    return Interval(float(estimate), max(float(low), lowest), min(float(high), 1.0))


class Headline:
    """The three numbers that everyone asks for, of whatever was resampled."""

    resamples: Resamples

    @property
    def AP(self) -> Interval:
        """Mean over the thresholds and over the classes that have truths."""
        return self.resamples.intervals()["AP"]

    @property
    def AP50(self) -> Interval:
        """At an overlap of 0.5."""
        return self.resamples.intervals()["AP50"]

    @property
    def AP75(self) -> Interval:
        """At an overlap of 0.75."""
        return self.resamples.intervals()["AP75"]


@dataclass(frozen=True, eq=False)
class ApInterval(Headline):
    """AP and how far it would move with other images.

    Attributes:
        resamples: the numbers and how they scatter.
        images: how many there are.
        seed: of the drawing.
        reason: why there is no interval; None where there is one.
    """

    resamples: Resamples
    images: int
    seed: int
    reason: str | None = None

    @property
    def bias(self) -> float:
        """By how much AP is higher in the resamples; NaN where there are none.

        About as much, or more, AP is higher than that of endlessly many images.
        """
        drawn = self.resamples.drawn[:, 0]
        defined = drawn[~np.isnan(drawn)]
        return float(defined.mean() - self.AP.estimate) if len(defined) else np.nan

    def per_class(self) -> list[ClassInterval]:
        """AP of each class, in the order of the ids."""
        return self.resamples.per_class()

    def sentence(self) -> str:
        """AP and its interval, or why there is none."""
        if self.reason is not None:
            return f"no interval: {self.reason}"
        ap, bias = self.AP, self.bias
        caution = ""
        if bias > (ap.high - ap.low) / 4:
            caution = f"; classes with few truths make AP too high, by about {bias:.3f} or more"
        return (
            f"AP {ap.estimate:.3f} (95 % interval {ap.low:.3f} to {ap.high:.3f}, "
            f"{len(self.resamples)} resamples of {self.images} images{caution})"
        )

    def table(self) -> str:
        """The three numbers and AP of each class, a line each."""
        return self.resamples.table()

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON; None where nothing is known."""
        facts = {"images": self.images, "seed": self.seed, "reason": self.reason}
        return {**facts, "bias": known(self.bias), **self.resamples.as_dict()}


def ap_interval(
    truths: CocoTruths,
    detections: FlatDetections,
    settings: CocoSettings,
    *,
    resamples: int = 1000,
    seed: int = 0,
    by_box: bool = False,
) -> ApInterval:
    """Resample the images and see how AP, AP50, AP75 and the AP of the classes scatter.

    They are those of `CocoResult.per_class` and their means. Images are drawn by their place among
    the sorted ids, so that no order of a file changes what is drawn.

    Args:
        truths: of the images.
        detections: in any order.
        settings: thresholds, ranges and limits.
        resamples: how many; 0 for the numbers without intervals.
        seed: of the drawing.
        by_box: detections of equal score in an image, and truths of equal overlap, have the order
            of their boxes instead of that of the file.

    Raises:
        ValueError: 1 resample, or fewer than none.
    """
    check_resamples(resamples)
    if by_box:
        truths = replace(truths, truths=truths.truths[_order_of_boxes(truths.truths.boxes)])
        detections = detections[_order_of_boxes(detections.boxes)]
    classes = _rank(truths, detections, settings)
    images = len(truths.image_ids)
    reason = None if resamples else "no resamples were asked for"
    if not is_ordinary(truths.truths, detections):  # evaluated literally, if strict
        reason = "it takes boxes, areas and scores that are finite numbers"
    reason = reason or _obstacle(classes, images)
    weights = draw_weights(images, 0 if reason else resamples, np.random.default_rng(seed))
    every_image = np.ones((1, images), np.int64)
    portions = [
        _numbers_of(classes, portion, settings.iou_thresholds)
        for portion in itertools.chain([every_image], weights)
    ]
    numbers, of_classes = (np.concatenate(columns) for columns in zip(*portions, strict=True))
    rare = [_num_images([ranking]) < LEAST_IMAGES for ranking in classes]
    of_classes[1:, rare] = np.nan
    drawn = Resamples(
        category_ids=tuple(truths.category_ids.tolist()),
        class_names=truths.class_names,
        numbers=numbers[0],
        drawn=numbers[1:],
        of_classes=of_classes[0],
        drawn_of_classes=of_classes[1:],
    )
    return ApInterval(drawn, images, seed, reason)


def check_resamples(resamples: int) -> None:
    """Raise a ValueError for a number of resamples of which no interval can be made."""
    if resamples < 0 or resamples == 1:
        raise ValueError(
            f"resamples must be 0, for no interval, or at least 2, got {resamples}; 1000 are usual"
        )


def _order_of_boxes(boxes: Floats) -> Ints:
    """By x, then y, width and height."""
    return np.lexsort(boxes.T[::-1])


def _rank(
    truths: CocoTruths, detections: FlatDetections, settings: CocoSettings
) -> list[ClassRanking]:
    """Match for the area range and the limit of `CocoResult.per_class`."""
    ranges, limits = settings.area_ranges, settings.max_dets
    outcomes = find_outcomes(
        truths.truths,
        detections,
        num_categories=len(truths.category_ids),
        iou_thresholds=settings.iou_thresholds,
        area_range=ranges.get("all", next(iter(ranges.values()))),
        limit=limits[min(2, len(limits) - 1)],
    )
    return rank_classes(outcomes, len(truths.category_ids))


def _num_images(classes: Sequence[ClassRanking]) -> int:
    """How many images have truths of these classes."""
    return len(set().union(*(ranking.truth_image.tolist() for ranking in classes)))


def _obstacle(classes: Sequence[ClassRanking], images: int) -> str | None:
    """Why there can be no interval, if so."""
    if images < LEAST_IMAGES:
        return f"it takes {LEAST_IMAGES} images, and there {_are(images)}"
    count = _num_images(classes)
    if count < LEAST_IMAGES:
        return f"it takes {LEAST_IMAGES} images with truths, and there {_are(count)}"
    return None


def _are(count: int) -> str:
    return {0: "are none", 1: "is 1"}.get(count, f"are {count}")


def _numbers_of(
    classes: Sequence[ClassRanking], weights: Ints, thresholds: Floats
) -> tuple[Floats, Floats]:
    """AP, AP50 and AP75, `[B, 3]`, and AP of the classes, `[B, K]`."""
    of_classes = np.empty((len(weights), len(classes)))
    at_one_overlap = np.full((2, len(weights), len(classes)), np.nan)
    for k, precision in enumerate(weighted_precision(classes, weights)):  # [B, T]
        of_classes[:, k] = precision.mean(axis=1)
        for table, iou in zip(at_one_overlap, (0.5, 0.75), strict=True):
            if iou in thresholds:
                table[:, k] = precision[:, thresholds == iou].mean(axis=1)
    means = [_mean_of_known(table) for table in (of_classes, *at_one_overlap)]
    return np.stack(means, axis=1), of_classes


def _mean_of_known(values: Floats) -> Floats:
    """Mean over the classes that are not NaN, `[B, K]` to `[B]`; NaN where all are."""
    is_known = ~np.isnan(values)
    total, count = np.where(is_known, values, 0).sum(axis=1), is_known.sum(axis=1)
    return np.divide(total, count, out=np.full(len(values), np.nan), where=count > 0)
