"""ROC of images and FROC of boxes against tables by hand and the definitions."""

from __future__ import annotations

import json
import math
from collections.abc import Callable

import numpy as np
import pytest

from detkit.evaluation import CocoEvaluator, CocoResult
from detkit.evaluation.roc import FROC_RATES, roc_curve
from detkit.evaluation.sweep import Sweep


def test_roc_by_hand() -> None:
    """Scores 4 3 3 2 of + + - -, and one + and one - that have none."""
    sweep = Sweep.of(np.array([3.0, 2, 4, 3]), np.array([True, False, True, False]))
    curve = roc_curve(sweep, category_id=1, name="a", positives=3, negatives=3)
    assert curve.thresholds.tolist() == [np.inf, 4, 3, 2, -np.inf]
    np.testing.assert_allclose(curve.true_positive_rate, [0, 1 / 3, 2 / 3, 2 / 3, 1])
    np.testing.assert_allclose(curve.false_positive_rate, [0, 0, 1 / 3, 2 / 3, 1])
    # of 9 pairs + beats - in 3, 2.5 and 0.5
    assert curve.auc == pytest.approx(6 / 9)


def test_images_by_hand(pets: CocoResult) -> None:
    """Image 3 has a crowd of cats only and is left out for them; image 4 has no detection."""
    cat, dog = pets.roc().classes
    assert (cat.positives, cat.negatives, cat.auc) == (1, 2, 1)
    assert cat.thresholds.tolist() == [np.inf, 0.9, 0.6, -np.inf]
    assert (dog.positives, dog.negatives, dog.auc) == (2, 2, 1)
    assert pets.roc().mean_auc == 1


@pytest.mark.parametrize("seed", range(8))
def test_auc_counts_pairs_of_images(random_result: Callable[..., CocoResult], seed: int) -> None:
    result = random_result(seed, images=9)
    flat, found = result.truths.truths, result.detections
    checked = 0
    for k, curve in enumerate(result.roc().classes):
        scores: dict[bool, list[float]] = {True: [], False: []}
        for image in range(9):
            own = (flat.image == image) & (flat.category == k)
            if own.any() and flat.crowd[own].all():
                continue
            here = found.scores[(found.image == image) & (found.category == k)]
            scores[bool(own.any())].append(max(here, default=-1.0))
        pairs = [(p > n) + (p == n) / 2 for p in scores[True] for n in scores[False]]
        assert (curve.positives, curve.negatives) == (len(scores[True]), len(scores[False]))
        if pairs:
            assert curve.auc == pytest.approx(sum(pairs) / len(pairs))
            checked += 1
        else:
            assert math.isnan(curve.auc)
    areas = [curve.auc for curve in result.roc().classes]
    assert np.isnan(areas).all() or result.roc().mean_auc == pytest.approx(np.nanmean(areas))
    assert checked or not len(flat)


def test_froc_by_hand(pets: CocoResult) -> None:
    """Cats: right and wrong at 0.9, wrong at 0.6, right at 0.3; 2 truths in 4 images."""
    froc = pets.froc()
    cat, dog = froc.classes
    assert cat.thresholds.tolist() == [np.inf, 0.9, 0.6, 0.3]
    assert cat.false_positives.tolist() == [0, 0.25, 0.5, 0.5]
    assert cat.recall.tolist() == [0, 0.5, 0.5, 1]
    # a straight line to 0.25; at 0.5 the higher one of two; no more after that
    assert cat.at().tolist() == [0.25, 0.5, 1, 1, 1, 1, 1]
    assert cat.score == pytest.approx(5.75 / 7)
    assert dog.at([0.0, 0.49, 0.5]).tolist() == [0, 0, 0.5]  # wrong, wrong, right
    assert froc.overall.false_positives.tolist() == [0, 0.25, 0.5, 0.75, 1, 1, 1]
    assert froc.overall.recall.tolist() == [0, 0.25, 0.25, 0.25, 0.25, 0.5, 0.75]
    assert froc.mean_score == pytest.approx((cat.score + dog.score) / 2)


def recall_at(curve: list[tuple[float, float]], rate: float) -> float:
    """The highest point at this rate, or the straight line between its neighbours."""
    x, y = [point for point in curve if point[0] <= rate][-1]
    beyond = [point for point in curve if point[0] > rate]
    if x == rate or not beyond:
        return y
    next_x, next_y = beyond[0]
    return y + (next_y - y) * (rate - x) / (next_x - x)


@pytest.mark.parametrize("seed", range(8))
def test_froc_is_recall_at_a_rate_of_false_positives(
    random_result: Callable[..., CocoResult], seed: int
) -> None:
    """By definition: at each threshold count hits and false alarms of the operating point."""
    result = random_result(seed)
    images = len(result.truths.image_ids)
    for froc, points in zip(
        (result.froc().overall, *result.froc().classes),
        (result.operating_points().overall, *result.operating_points().classes),
        strict=True,
    ):
        if not points.truths:
            assert math.isnan(froc.score)
            continue
        reached = [points.at(t) for t in (math.inf, *points.thresholds)]
        curve = [(p.false_positives / images, p.recall) for p in reached]
        expected = [recall_at(curve, rate) for rate in FROC_RATES]
        np.testing.assert_allclose(froc.at(), expected)
        assert froc.score == pytest.approx(np.mean(expected))


def test_tables_and_json(pets: CocoResult) -> None:
    assert pets.froc().table().splitlines()[:2] == [
        "class  truths    1/8    1/4    1/2      1      2      4      8  score",
        "cat         2  0.250  0.500  1.000  1.000  1.000  1.000  1.000  0.821",
    ]
    assert pets.roc().table().splitlines() == [
        "class  positives  negatives    AUC",
        "cat            1          2  1.000",
        "dog            2          2  1.000",
        "mean                         1.000",
    ]
    for each in (pets.froc(), pets.roc()):
        assert json.loads(json.dumps(each.as_dict(), allow_nan=False)) == each.as_dict()


def test_nothing_at_all() -> None:
    empty = CocoEvaluator.from_coco({"images": [], "categories": [], "annotations": []}).compute()
    assert math.isnan(empty.roc().mean_auc) and math.isnan(empty.froc().mean_score)
    assert empty.froc().as_dict()["overall"]["score"] is None
    no_images = {"images": [], "categories": [{"id": 1}], "annotations": []}
    nowhere = CocoEvaluator.from_coco(no_images).compute()
    assert math.isnan(nowhere.froc().classes[0].score)
    assert math.isnan(nowhere.roc().classes[0].auc)


def test_no_detections(pets: CocoResult) -> None:
    result = CocoEvaluator(pets.truths).compute()
    assert [curve.auc for curve in result.roc().classes] == [0.5, 0.5]  # all images are alike
    assert result.froc().mean_score == 0
