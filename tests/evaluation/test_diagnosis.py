"""Each planted mistake is named; where all is well nothing is said."""

from __future__ import annotations

import numpy as np
import pytest

from detkit.evaluation import CocoEvaluator
from detkit.evaluation.diagnosis import explain_failure

CLASSES, IMAGES = 5, 40


def boxes_of(rng: np.random.Generator, count: int) -> np.ndarray:
    """xywh, clearly wider than high and away from the diagonal."""
    size = np.stack([rng.uniform(60, 120, count), rng.uniform(20, 40, count)], axis=1)
    corner = np.stack([rng.uniform(200, 400, count), rng.uniform(10, 150, count)], axis=1)
    return np.concatenate([corner, size], axis=1)


def explained(
    *,
    labels: str = "right",
    boxes: str = "right",
    noise: float = 2.0,
    detect: bool = True,
    unsure: bool = False,
) -> list[str]:
    """What is said of a good detector when the truths are written down in this way."""
    rng = np.random.default_rng(0)
    image = np.repeat(np.arange(IMAGES), 4)
    category = rng.integers(0, CLASSES, len(image))
    right = boxes_of(rng, len(image))
    x, y, w, h = right.T
    written = {
        "right": right,
        "corners": np.stack([x, y, x + w, y + h], axis=1),
        "swapped": np.stack([y, x, h, w], axis=1),
        "centre": np.stack([x + w / 2, y + h / 2, w, h], axis=1),
    }[boxes]
    names = {
        "right": category,
        "next": (category - 1) % CLASSES,
        "before": (category + 1) % CLASSES,
        "mixed": np.array([3, 4, 1, 2, 0])[category],
    }[labels]
    evaluator = CocoEvaluator.from_arrays(
        image_ids=np.arange(IMAGES),
        category_ids=np.arange(CLASSES) + 1,
        gt_image_index=image,
        gt_category_index=names,
        gt_boxes=written,
        class_names=["ant", "bee", "cat", "dog", "eel"],
    )
    for index in range(IMAGES) if detect else ():
        of_image = image == index
        found = right[of_image] + rng.normal(0, noise, (4, 4))
        corners = np.concatenate([found[:, :2], found[:, :2] + np.abs(found[:, 2:])], axis=1)
        shifts = np.repeat(np.arange(CLASSES if unsure else 1), 4)  # the other classes come later
        scores = rng.uniform(0.5, 1, len(shifts)) / (1 + shifts)
        classes = (np.tile(category[of_image], len(shifts) // 4) + shifts) % CLASSES + 1
        evaluator.update(index, np.tile(corners, (len(shifts) // 4, 1)), scores, classes)
    return explain_failure(evaluator.compute())


@pytest.mark.parametrize(
    ("planted", "said"),
    [
        ({"labels": "next"}, "labels are shifted by one"),
        ({"labels": "before"}, "labels are shifted by one"),
        ({"labels": "next", "unsure": True}, "labels are shifted by one: AP50 is 0.2"),
        ({"labels": "mixed"}, "objects are found but named wrongly"),
        ({"boxes": "corners"}, "bbox holds corners [x1, y1, x2, y2]"),
        ({"boxes": "swapped"}, "x and y are swapped"),
        ({"boxes": "centre"}, "bbox holds the centre"),
        ({"noise": 26.0}, "boxes lie near the objects but do not fit"),
        ({"noise": 400.0}, "objects are not found, whatever their class"),
        ({"detect": False}, "nothing was detected at all"),
    ],
)
def test_planted_mistakes_are_named(planted: dict[str, object], said: str) -> None:
    reasons = explained(**planted)  # type: ignore[arg-type]
    assert reasons[0].startswith(said), reasons
    assert all("\n" not in reason for reason in reasons)


def test_confused_classes_are_listed() -> None:
    (reason,) = explained(labels="mixed")
    assert "'cat' as 'dog'" in reason


def test_nothing_is_said_where_all_is_well() -> None:
    assert explained() == []
    assert explained(unsure=True) == []


def test_a_poor_detector_is_not_told_what_it_may_still_learn() -> None:
    assert explained(labels="mixed", unsure=True) == []


def test_no_truths() -> None:
    evaluator = CocoEvaluator.from_arrays(
        image_ids=[1], category_ids=[1], gt_image_index=[], gt_category_index=[], gt_boxes=[]
    )
    assert explain_failure(evaluator.compute())[0].startswith("there are no truths")
