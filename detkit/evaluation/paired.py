"""Is one model better than another? Both are measured on the same resampled images.

What makes an image hard is hard for both and cancels in the difference, so that this tells much
smaller differences than two separate intervals could. See `bootstrap` for the resampling, and
`comparison` for models that were trained several times.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from detkit.evaluation.bootstrap import ApInterval, ClassInterval, Headline, Interval, Resamples
from detkit.evaluation.inputs import FlatDetections, FlatTruths, Floats
from detkit.evaluation.result import CocoResult
from detkit.evaluation.tables import number


@dataclass(frozen=True, eq=False)
class PairedDifference(Headline):
    """The difference of two models, B less A, on the same images.

    Attributes:
        a: the first model.
        b: the second one, with the same drawing of images.
        names: what to call them.
    """

    a: ApInterval
    b: ApInterval
    names: tuple[str, str] = ("A", "B")

    @cached_property
    def resamples(self) -> Resamples:  # type: ignore[override]
        """The differences and how they scatter."""
        return self.b.resamples - self.a.resamples

    def per_class(self) -> list[ClassInterval]:
        """Of the AP of each class. By luck alone one in 20 intervals leaves out zero."""
        return self.resamples.per_class()

    @property
    def probability(self) -> float:
        """That B has the higher AP: the part of the resamples that say so, halves for a draw.

        As in the interval, resamples are taken as far to the other side of the difference as they
        lie on theirs. NaN where there is no interval.
        """
        drawn = self.resamples.drawn[:, 0]
        signs = np.sign(2 * self.resamples.numbers[0] - drawn[~np.isnan(drawn)])
        return float((1 + signs.mean()) / 2) if len(signs) else math.nan

    @property
    def better(self) -> str | None:
        """The name of the better one, None where the interval does not leave out zero."""
        ap, (a, b) = self.AP, self.names
        return b if ap.low > 0 else a if ap.high < 0 else None

    def sentence(self) -> str:
        """Which one is better and by how much, or that this cannot be told."""
        ap, (a, b) = self.AP, self.names
        if math.isnan(ap.low):
            reason = self.a.reason or self.b.reason
            return f"{b} less {a} is {number(ap.estimate)} (no interval: {reason})"
        if self.better is None:
            return (
                f"no difference can be told from these {self.a.images} images: "
                f"{b} less {a} is {_text(ap)}"
            )
        if self.better == a:
            ap, (a, b) = Interval(-ap.estimate, -ap.high, -ap.low), (b, a)
        return f"{b} is better than {a} by {_text(ap)}"

    def table(self) -> str:
        """The differences of AP, AP50, AP75 and of the AP of each class, a line each."""
        return self.resamples.table()

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON; None where nothing is known."""
        probability = self.probability
        return {
            "names": list(self.names),
            "better": self.better,
            "probability": None if math.isnan(probability) else probability,
            "sentence": self.sentence(),
            "images": self.a.images,
            "seed": self.a.seed,
            "reason": self.a.reason or self.b.reason,
            **self.resamples.as_dict(),
        }


def _text(interval: Interval) -> str:
    """With three decimals, or as many as it takes to see that zero is left out."""
    low, high = interval.low, interval.high
    decimals = 3
    if low > 0 or high < 0:
        decimals = min(max(3, math.ceil(-math.log10(min(abs(low), abs(high))))), 9)
    rounded = (round(value, decimals) + 0.0 for value in interval)  # -0.0 becomes 0.0
    estimate, *ends = (f"{value:.{decimals}f}" for value in rounded)
    return f"{estimate} (95 % interval {ends[0]} to {ends[1]})"


def compare(
    a: CocoResult,
    b: CocoResult,
    *,
    resamples: int = 1000,
    seed: int = 0,
    names: tuple[str, str] = ("A", "B"),
) -> PairedDifference:
    """The difference of two results on the same ground truth, B less A.

    Where a result has detections of equal score in an image, their order in the file decides about
    the last digits of its AP. The order of a file makes no model better: here all of them have the
    order of their boxes.

    Args:
        a: the first model.
        b: the second one.
        resamples: how many; 0 for the difference without an interval.
        seed: of the drawing of images.
        names: what to call the models.

    Raises:
        ValueError: other images, categories, truths or settings, or 1 resample.
    """
    _check_same(a, b)
    by_box = not _same_order(a, b) or any(_has_ties(each.detections) for each in (a, b))
    first, second = (each.interval(resamples, seed, by_box=by_box) for each in (a, b))
    return PairedDifference(first, second, names)


def _check_same(a: CocoResult, b: CocoResult) -> None:
    """Raise a ValueError that says what differs."""
    what = _difference(a, b)
    if what is not None:
        raise ValueError(
            f"two results can be compared on the same ground truth and settings only; of "
            f"{a.truths.source} and {b.truths.source} the {what} differ"
        )


def _difference(a: CocoResult, b: CocoResult) -> str | None:
    """What is not the same of the two, if anything."""
    for name in ("image_ids", "category_ids"):
        first, second = (getattr(each.truths, name) for each in (a, b))
        if not np.array_equal(first, second):
            return f"{name} ({len(first)} and {len(second)})"
    first, second = (_rows(each.truths.truths) for each in (a, b))
    if not np.array_equal(_sorted(first), _sorted(second), equal_nan=True):
        return f"truths ({len(first)} and {len(second)})"
    if _limits(a) != _limits(b):
        return "settings (thresholds, area ranges, limits)"
    return None


def _rows(truths: FlatTruths) -> Floats:
    """All that is known of the annotations, `[M, 9]`."""
    facts = (truths.image, truths.category, truths.area, truths.crowd, truths.id_is_zero)
    return np.column_stack([*facts, truths.boxes])


def _sorted(rows: Floats) -> Floats:
    return rows[np.lexsort(rows.T)]


def _same_order(a: CocoResult, b: CocoResult) -> bool:
    """Whether the two files have the annotations in the same order."""
    return a.truths is b.truths or np.array_equal(_rows(a.truths.truths), _rows(b.truths.truths))


def _has_ties(found: FlatDetections) -> bool:
    """Whether any detections of one image and category have the same score."""
    rows = np.column_stack([found.image, found.category, found.scores])
    rows = rows[np.lexsort(rows.T)]
    return bool((rows[1:] == rows[:-1]).all(axis=1).any())


def _limits(result: CocoResult) -> tuple[list[float], list[tuple[float, float]], tuple[int, ...]]:
    settings = result.settings
    return (
        settings.iou_thresholds.tolist(),
        list(settings.area_ranges.values()),
        settings.max_dets,
    )
