"""Why AP is low although a detector learns: hypotheses tried on its detections.

Each hypothesis changes the truths as a mistake in the annotations would, and evaluates again: where
AP jumps, the detector has learned something that the truths say in another way.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from detkit.evaluation.accumulation import evaluate_arrays
from detkit.evaluation.confusion import confusion_matrix
from detkit.evaluation.inputs import AREA_RANGES, CocoSettings, FlatDetections, FlatTruths, Floats
from detkit.evaluation.result import CocoResult

LOW_AP50 = 0.02  # below, something is wrong or has hardly begun
# below, mistakes that leave no doubt are named: a detector that gives each box several classes has
# some AP where all labels are wrong
POOR_AP50 = 0.3
CLEAR_AP50 = 0.1  # a hypothesis with this, and
NEARLY_ALL = 0.7  # of what classes taken as one have
CLEAR_RATIO = 3.0  # so many times the AP50 without it, explains


# What [x, y, w, h] of the truths becomes if the file means something else by its four numbers
BOX_MISTAKES: dict[str, Callable[[Floats], Floats]] = {
    "bbox holds corners [x1, y1, x2, y2] where COCO has [x, y, width, height]": lambda b: (
        np.concatenate([b[:, :2], b[:, 2:] - b[:, :2]], axis=1)
    ),
    "x and y are swapped: bbox holds [y, x, height, width]": lambda b: b[:, [1, 0, 3, 2]],
    "bbox holds the centre [cx, cy, width, height] where COCO has the top left corner": lambda b: (
        np.concatenate([b[:, :2] - b[:, 2:] / 2, b[:, 2:]], axis=1)
    ),
}


def explain_failure(result: CocoResult) -> list[str]:
    """What most likely keeps AP low, the strongest reason first; empty if it is not.

    Args:
        result: of a validation; its AP50 decides whether there is anything to explain.

    Returns:
        Sentences of one line each, with the numbers that speak for them.
    """
    truths, found = result.truths.truths, result.detections
    count = len(result.category_ids)
    counting = truths[~truths.crowd]
    if not len(counting):
        return ["there are no truths to find; AP cannot be other than -1"]
    if not len(found):
        return ["nothing was detected at all: train longer, or lower model.select.score_threshold"]
    base = _ap(truths, found, count)
    if base >= POOR_AP50:
        return []
    reasons = _labels(result, base)
    reasons += _boxes(truths, found, max(_ap_of_one_class(truths, found), base))
    return reasons or ([_nothing_fits(truths, found)] if base < LOW_AP50 else [])


def _labels(result: CocoResult, base: float) -> list[str]:
    """Classes that mean something else in the truths than in the detector."""
    truths, found, count = result.truths.truths, result.detections, len(result.category_ids)
    aside = _ap_of_one_class(truths, found)
    if count < 2 or not _explains(aside, base):
        return []
    for shift in (1, -1):
        moved = replace(truths, category=(truths.category + shift) % count)
        score = _ap(moved, found, count)
        if score >= NEARLY_ALL * aside and _explains(score, base):
            return [
                f"labels are shifted by one: AP50 is {base:.3f}, and {score:.3f} if each class of "
                f"the truths is taken for the {'next' if shift > 0 else 'one before'}; compare the "
                "category ids (counted from 0 or from 1?) of training and validation data"
            ]
    if base >= LOW_AP50:  # classes that are alike are learned last
        return []
    matrix = confusion_matrix(result.truths, found, iou=0.5, score=0.0)
    pairs = [f"{c.truth!r} as {c.detection!r}" for c in matrix.most_confused(3)]
    return [
        f"objects are found but named wrongly: AP50 is {base:.3f}, and {aside:.3f} with all "
        f"classes as one; most often {', '.join(pairs)}; compare the categories of training and "
        "validation data"
    ]


def _boxes(truths: FlatTruths, found: FlatDetections, base: float) -> list[str]:
    """Four numbers that mean something else; the classes are left aside."""
    scores = {
        mistake: _ap_of_one_class(replace(truths, boxes=change(truths.boxes)), found)
        for mistake, change in BOX_MISTAKES.items()
    }
    mistake = max(scores, key=lambda name: scores[name])
    if not _explains(scores[mistake], base):
        return []
    return [
        f"{mistake}: AP50 without classes is {base:.3f}, and {scores[mistake]:.3f} if the truths "
        "are read so; correct the annotations of validation or of training"
    ]


def _nothing_fits(truths: FlatTruths, found: FlatDetections) -> str:
    """What is left to say: how far off the boxes are."""
    loose = _ap_of_one_class(truths, found, iou=0.1)
    tight = _ap_of_one_class(truths, found)
    if _explains(loose, tight):
        return (
            f"boxes lie near the objects but do not fit: AP without classes is {tight:.3f} at IoU "
            f"0.5 and {loose:.3f} at IoU 0.1; train longer, or compare the sizes of pictures in "
            "the annotations with those of the files"
        )
    return (
        f"objects are not found, whatever their class (AP {loose:.3f} at IoU 0.1 without "
        "classes): train longer, or see with --sanity whether the model can learn a few pictures"
    )


def _explains(score: float, base: float) -> bool:
    return score >= max(CLEAR_AP50, CLEAR_RATIO * base)


def _ap_of_one_class(truths: FlatTruths, found: FlatDetections, *, iou: float = 0.5) -> float:
    return _ap(
        replace(truths, category=np.zeros_like(truths.category)),
        replace(found, category=np.zeros_like(found.category)),
        1,
        iou=iou,
    )


def _ap(truths: FlatTruths, found: FlatDetections, count: int, *, iou: float = 0.5) -> float:
    """AP at one overlap, whatever the size; 0 where there is nothing to average."""
    settings = CocoSettings.of([iou], {"all": AREA_RANGES["all"]}, (100,))
    precision = evaluate_arrays(truths, found, num_categories=count, settings=settings).precision
    known = precision[precision > -1]
    return float(known.mean()) if len(known) else 0.0
