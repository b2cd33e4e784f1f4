"""Right and wrong detections, and what of them is reported as a score threshold falls.

N detections, n different scores.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from detkit.evaluation.inputs import Bools, CocoTruths, Floats, Ints
from detkit.evaluation.outcomes import Outcomes


@dataclass(frozen=True, slots=True, eq=False)
class Judged:
    """The detections that are right or wrong, of one category or of all.

    Those of crowds are neither and left out.

    Attributes:
        category_id: None for all categories.
        name: of the category.
        scores: `[N]` of one category descending.
        right: `[N]` took a truth that counts; the others are wrong.
        truths: that count.
    """

    category_id: int | None
    name: str
    scores: Floats
    right: Bools
    truths: int


def judged_by_category(truths: CocoTruths, outcomes: Outcomes) -> Iterator[Judged]:
    """The detections of every category in turn, from the outcomes at one overlap threshold."""
    judged = np.flatnonzero(~outcomes.ignored[0])
    scores, right = outcomes.detections.scores[judged], outcomes.right[0, judged]
    ids = truths.category_ids.tolist()
    counts = np.bincount(outcomes.truths.category[outcomes.counts], minlength=len(ids)).tolist()
    ends = np.searchsorted(outcomes.detections.category[judged], np.arange(len(ids) + 1))
    for index, (category_id, name) in enumerate(zip(ids, truths.class_names, strict=True)):
        own = slice(ends[index], ends[index + 1])
        yield Judged(category_id, name, scores[own], right[own], counts[index])


def judged_together(outcomes: Outcomes) -> Judged:
    """The detections of all categories as one, from the outcomes at one overlap threshold."""
    judged = ~outcomes.ignored[0]
    scores, right = outcomes.detections.scores[judged], outcomes.right[0, judged]
    return Judged(None, "all", scores, right, int(outcomes.counts.sum()))


@dataclass(frozen=True, slots=True, eq=False)
class Sweep:
    """Right and wrong among what scores a threshold or more; equal scores come in one step.

    Attributes:
        thresholds: `[n]` the different scores, descending.
        right: `[n + 1]` right ones above all scores (none), from the first score on, from the
            second on and so forth.
        wrong: `[n + 1]` wrong ones likewise.
    """

    thresholds: Floats
    right: Ints
    wrong: Ints

    @classmethod
    def of(cls, scores: Floats, right: Bools) -> Sweep:
        """From the scores, `[N]` in any order, and whether each is right, `[N]`."""
        steps, place = np.unique(-scores, return_inverse=True)
        counts = [np.bincount(place[kind], minlength=len(steps)) for kind in (right, ~right)]
        return cls(-steps, *(np.concatenate([[0], np.cumsum(each)]) for each in counts))
