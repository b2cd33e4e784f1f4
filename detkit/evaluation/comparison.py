"""Variants of a recipe, several seeds each: is a difference larger than the spread of the seeds?

The rule is Welch's interval of the difference of two means (B. L. Welch, The generalization of
Student's problem when several different population variances are involved, Biometrika 34, 1947):
it supposes normal scores, but not that all variants scatter equally. Where the interval of 95 %
leaves out zero, the difference counts as larger than the spread.
"""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from detkit.evaluation.tables import markdown

CONFIDENCE = 0.95


class Interval(NamedTuple):
    """A difference of means and how far it may be off."""

    difference: float
    low: float
    high: float

    @property
    def beyond_spread(self) -> bool:
        """Whether zero lies outside: the seeds alone do not explain the difference."""
        return self.low > 0 or self.high < 0


def welch_interval(scores: Sequence[float], baseline: Sequence[float]) -> Interval | None:
    """The interval of 95 % of `mean(scores) - mean(baseline)`, section 6 of Welch's paper.

    Returns:
        The interval, or None where one of the two has fewer than two scores: no spread is known.
    """
    if min(len(scores), len(baseline)) < 2:
        return None
    difference = statistics.fmean(scores) - statistics.fmean(baseline)
    parts = [(statistics.variance(s) / len(s), len(s) - 1) for s in (scores, baseline)]
    variance = sum(part for part, _ in parts)
    if variance == 0:
        return Interval(difference, difference, difference)
    freedom = variance**2 / sum(part**2 / degrees for part, degrees in parts)
    reach = t_quantile(freedom) * math.sqrt(variance)
    return Interval(difference, difference - reach, difference + reach)


def t_quantile(freedom: float, confidence: float = CONFIDENCE) -> float:
    """The t that Student's |T| stays below with this probability, e.g. 2.776 for 4 degrees.

    With `t = sqrt(freedom) tan(angle)` the density becomes `cos(angle) ** (freedom - 1)` up to a
    factor: finite, and on a bounded range, so that sums over a grid are exact to 4 digits.

    Args:
        freedom: degrees of freedom, at least 1, not necessarily whole.
        confidence: in the open range 0..1.
    """
    angles = np.linspace(0, np.pi / 2, 100_001)
    density = np.cos(angles) ** (freedom - 1)
    area = np.concatenate([[0], np.cumsum(density[1:] + density[:-1])])  # trapezoids
    angle = np.interp(confidence * area[-1], area, angles)
    return math.sqrt(freedom) * math.tan(angle)


class SeedScore(NamedTuple):
    """What one training came to."""

    seed: int
    ap: float
    ap50: float


class RelativeLatency(NamedTuple):
    """Time for one picture, and its ratio to that of the first variant."""

    milliseconds: float
    ratio: float


@dataclass(frozen=True)
class Variant:
    """A row of the table.

    Attributes:
        values: of the keys that differ, as text.
        parameters: of the detector.
        planned: how many seeds it was to be trained with.
        scores: of those that came to an end.
        latency: None where it is not known.
    """

    values: tuple[str, ...]
    parameters: int
    planned: int
    scores: tuple[SeedScore, ...]
    latency: RelativeLatency | None = None

    @property
    def name(self) -> str:
        """Its values in one word; "recipe" where nothing was varied."""
        return " ".join(self.values) or "recipe"

    @property
    def aps(self) -> list[float]:
        """AP of each seed."""
        return [score.ap for score in self.scores]

    @property
    def mean(self) -> float | None:
        """Mean AP over the seeds; None where no training came to an end."""
        return statistics.fmean(self.aps) if self.scores else None

    @property
    def deviation(self) -> float | None:
        """Sample standard deviation of AP; None for fewer than two seeds."""
        return statistics.stdev(self.aps) if len(self.scores) > 1 else None


@dataclass(frozen=True)
class Comparison:
    """Variants side by side; the first is what the others are compared with.

    Attributes:
        keys: what differs, a name for each of a variant's values.
        variants: at least one.
        notes: what a reader must know of how they were measured, a sentence each.
    """

    keys: tuple[str, ...]
    variants: tuple[Variant, ...]
    notes: tuple[str, ...] = ()

    def interval(self, variant: Variant) -> Interval | None:
        """Of the difference to the first variant; None where no spread is known."""
        return welch_interval(variant.aps, self.variants[0].aps)

    def text(self) -> str:
        """The table in Markdown, what can be concluded from it, and the notes."""
        lines = [self.conclusion(), *self.cautions(), *self.notes]
        return "\n".join([self.table(), "", *(f"- {line}" for line in lines)])

    def table(self) -> str:
        """A line for each variant, in Markdown with aligned columns."""
        head = [*self.keys, "seeds", "params (M)", "ms (ratio)", "AP", "min to max", "std", "AP50"]
        head += ["difference (95 % interval)", "beyond the spread?"]
        return markdown([head, *(self._cells(variant) for variant in self.variants)])

    def _cells(self, variant: Variant) -> list[str]:
        scores, latency = variant.scores, variant.latency
        count = str(len(scores))
        if len(scores) < variant.planned:
            count += f" of {variant.planned}"
        aps = variant.aps
        return [
            *variant.values,
            count,
            f"{variant.parameters / 1e6:.3f}",
            f"{latency.milliseconds:.1f} ({latency.ratio:.2f})" if latency else "-",
            _number(variant.mean),
            f"{min(aps):.3f} to {max(aps):.3f}" if aps else "-",
            _number(variant.deviation),
            f"{statistics.fmean(score.ap50 for score in scores):.3f}" if scores else "-",
            *self._verdict(variant),
        ]

    def _verdict(self, variant: Variant) -> tuple[str, str]:
        """The cells of the difference and of whether it is beyond the spread."""
        first = self.variants[0]
        if variant is first or variant.mean is None or first.mean is None:
            return "-", "-"
        interval = self.interval(variant)
        if interval is None:
            return f"{variant.mean - first.mean:+.3f}", "unknown"
        cell = f"{interval.difference:+.3f} ({interval.low:+.3f} to {interval.high:+.3f})"
        if not interval.beyond_spread:
            return cell, "no"
        return cell, "yes, higher" if interval.difference > 0 else "yes, lower"

    def conclusion(self) -> str:
        """One honest sentence."""
        first, others = self.variants[0], self.variants[1:]
        if not others:
            return "One variant only: its spread is what any change has to exceed."
        known = [(v, i) for v in others if (i := self.interval(v)) is not None]
        if not known:
            return "Nothing can be said about the differences: that takes two seeds each at least."
        beyond = [f"{v.name} ({i.difference:+.3f})" for v, i in known if i.beyond_spread]
        if beyond:
            rest = "; of the others this cannot be said" if len(beyond) < len(others) else ""
            what = f"Larger than the spread of the seeds: {', '.join(beyond)}"
            return f"{what}, compared with {first.name}{rest}."
        none = "No difference is larger than the spread of the seeds"
        unknown = len(others) - len(known)
        return f"{none}{f' ({unknown} without a known spread)' if unknown else ''}."

    def cautions(self) -> list[str]:
        """What the rule is and what it cannot do."""
        intervals = [i for v in self.variants[1:] if (i := self.interval(v)) is not None]
        if not intervals:
            return []
        reach = sorted((interval.high - interval.low) / 2 for interval in intervals)
        count = len(intervals)
        luck = min(1, count * (1 - CONFIDENCE))
        return [
            f"Rule: 95 % Welch interval of the difference to {self.variants[0].name}; yes where "
            "it leaves out zero. No is not 'equal': it is 'not seen with so few seeds'.",
            f"An interval reaches {reach[0]:.3f} to {reach[-1]:.3f} to either side; smaller "
            "differences do not show with these seeds.",
            f"A 'yes' by luck alone somewhere in {count} comparison{'s' * (count > 1)} has a "
            f"chance of up to about {luck:.0%}.",
            "Seeds change first weights, order and augmentation; the pictures stay the same.",
        ]

    def as_dict(self) -> dict[str, Any]:
        """Everything, every seed included, ready for JSON."""
        return {
            "keys": list(self.keys),
            "variants": [
                {
                    **self.record(variant),
                    "values": list(variant.values),
                    "scores": [score._asdict() for score in variant.scores],
                }
                for variant in self.variants
            ],
            "conclusion": self.conclusion(),
            "cautions": self.cautions(),
            "notes": list(self.notes),
        }

    def csv(self) -> str:
        """A line for each variant, unrounded; an empty field where nothing is known."""
        records = [self.record(variant) for variant in self.variants]
        file = io.StringIO()
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*self.keys, *records[0]])
        for variant, record in zip(self.variants, records, strict=True):
            writer.writerow([*variant.values, *record.values()])
        return file.getvalue()

    def record(self, variant: Variant) -> dict[str, Any]:
        """The numbers of one variant by name; None where nothing is known."""
        latency, interval, aps = variant.latency, self.interval(variant), variant.aps
        if variant is self.variants[0]:
            interval = None
        ap50s = [score.ap50 for score in variant.scores]
        return {
            "seeds": len(aps),
            "parameters": variant.parameters,
            "latency_ms": latency.milliseconds if latency else None,
            "latency_ratio": latency.ratio if latency else None,
            "AP_mean": variant.mean,
            "AP_min": min(aps, default=None),
            "AP_max": max(aps, default=None),
            "AP_std": variant.deviation,
            "AP50_mean": statistics.fmean(ap50s) if ap50s else None,
            "difference": interval.difference if interval else None,
            "difference_low": interval.low if interval else None,
            "difference_high": interval.high if interval else None,
            "beyond_spread": interval.beyond_spread if interval else None,
        }


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
