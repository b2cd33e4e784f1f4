"""Precision, recall and F1 against tables by hand and pycocotools."""

from __future__ import annotations

import json
import math
from collections.abc import Callable

import numpy as np
import pytest

from detkit.evaluation import CocoEvaluator, CocoResult
from detkit.evaluation.coco import _evaluate
from detkit.evaluation.curves import OperatingCurve
from detkit.evaluation.inputs import CocoSettings

RandomResult = Callable[..., CocoResult]


def known(values) -> list[float | None]:
    return [None if math.isnan(value) else round(float(value), 9) for value in values]


def test_curve_by_hand(pets: CocoResult) -> None:
    cat = pets.pr_curve(1)
    assert (cat.name, cat.truths, cat.iou) == ("cat", 2, 0.5)
    assert cat.scores.tolist() == [0.9, 0.9, 0.6, 0.3]  # without those in the crowds
    assert cat.recall.tolist() == [0.5, 0.5, 0.5, 1]
    np.testing.assert_allclose(cat.precision, [1, 1 / 2, 1 / 3, 1 / 2], atol=1e-15)
    np.testing.assert_allclose(cat.envelope, [1, 1 / 2, 1 / 2, 1 / 2], atol=1e-15)
    np.testing.assert_allclose(cat.interpolated, [1] * 51 + [0.5] * 50, atol=1e-15)
    assert cat.ap == pytest.approx((51 + 25) / 101)


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("iou", [0.5, 0.6, 0.95])
def test_curves_and_ap_are_those_of_the_metric(
    random_result: RandomResult, seed: int, iou: float
) -> None:
    result = random_result(seed)
    (row,) = np.flatnonzero(np.isclose(result.settings.iou_thresholds, iou))
    for index, category_id in enumerate(result.category_ids):
        curve = result.pr_curve(category_id, iou)
        expected = result.precision[row, :, index, 0, -1]
        if curve.truths:
            assert np.array_equal(curve.interpolated, expected)
            assert curve.ap == np.mean(expected)
        else:
            assert (expected == -1).all() and math.isnan(curve.ap)
    if iou == 0.5 and result.stats[1] > -1:
        assert result.pr_curve().ap == pytest.approx(result.stats[1], abs=1e-15)
        rows = result.per_class()
        aps = [-1.0 if math.isnan(each.ap) else each.ap for each in result.pr_curves()]
        assert aps == [row.AP50 for row in rows]


@pytest.mark.parametrize("seed", range(5))
def test_overlap_between_the_thresholds_is_matched_anew(
    random_result: RandomResult, seed: int
) -> None:
    result = random_result(seed)
    settings = CocoSettings.of([0.37])
    alone = _evaluate(result.truths, result.detections, settings)
    for index, curve in enumerate(result.pr_curves(0.37)):
        expected = alone.precision[0, :, index, 0, -1]
        assert np.array_equal(np.nan_to_num(curve.interpolated, nan=-1), expected)


def test_category_without_truths_leaves_the_mean(pets: CocoResult) -> None:
    evaluator = CocoEvaluator.from_arrays(
        image_ids=[1],
        category_ids=[1, 5],
        gt_image_index=[0],
        gt_category_index=[1],
        gt_boxes=[[0, 0, 9, 9]],
    )
    evaluator.update(1, [[0, 0, 9, 9], [0, 0, 9, 9]], [0.5, 0.9], [5, 1])
    result = evaluator.compute()
    assert result.pr_curve().ap == pytest.approx(1)
    assert result.pr_curve().name == "mean of 1 classes"
    none = result.pr_curve(1)
    assert (none.truths, none.as_dict()["AP"]) == (0, None)
    assert none.precision.tolist() == [0]
    points = result.operating_points()
    best = points.classes[0].best
    assert math.isnan(best.f1) and math.isnan(best.precision)  # reports nothing
    assert best.false_positives == 0
    assert points.overall.at(0.5).precision == 0.5  # its detections are wrong nonetheless


def test_operating_points_by_hand(pets: CocoResult) -> None:
    points = pets.operating_points()
    cat, dog = points.classes
    assert cat.thresholds.tolist() == [0.9, 0.6, 0.3]  # equal scores are one step
    assert known(cat.precision) == known([1 / 2, 1 / 3, 1 / 2])
    assert known(cat.recall) == [0.5, 0.5, 1]
    assert known(cat.f1) == known([1 / 2, 2 / 5, 2 / 3])
    assert (cat.best.threshold, cat.best.recall) == (0.3, 1)
    assert known(dog.f1) == known([0, 0, 2 / 5])
    best = points.overall.best
    assert (best.true_positives, best.false_positives, best.false_negatives) == (3, 4, 1)
    assert best.f1 == pytest.approx(6 / 11)
    at = points.overall.at(0.55)
    assert (at.true_positives, at.false_positives, at.threshold) == (1, 3, 0.55)


def test_highest_of_the_best_thresholds() -> None:
    counts = np.array([1, 1, 3]), np.array([1, 2, 5])  # F1 is 2 / 6, 2 / 7 and 6 / 12
    curve = OperatingCurve(1, "a", 4, np.array([0.9, 0.5, 0.1]), *counts)
    assert curve.best.threshold == 0.1
    curve = OperatingCurve(1, "a", 4, np.array([0.9, 0.5, 0.1]), counts[0], np.array([1, 2, 11]))
    assert (curve.best.threshold, curve.best.f1) == (0.9, 1 / 3)  # 6 / 18 is the same


def test_curve_at_other_thresholds(pets: CocoResult) -> None:
    cat = pets.operating_points().classes[0]
    again = cat.sampled(np.array([1.0, 0.9, 0.899, 0.3, 0.0]))
    assert again.true_positives.tolist() == [0, 1, 1, 2, 2]
    assert again.false_positives.tolist() == [0, 1, 1, 2, 2]
    assert known(again.precision) == [None, 0.5, 0.5, 0.5, 0.5]
    assert known(again.recall) == [0, 0.5, 0.5, 1, 1]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("threshold", [0.2, 0.5, 0.875])
def test_points_are_those_of_a_file_cut_at_the_threshold(
    random_result: RandomResult, pycocotools, seed: int, threshold: float
) -> None:
    """What scores less is thrown away before pycocotools sees it; its recall counts hits."""
    result = random_result(seed)
    flat, found = result.truths.truths, result.detections
    truths = {
        "images": [{"id": int(i)} for i in result.truths.image_ids],
        "categories": [{"id": i, "name": str(i)} for i in result.category_ids],
        "annotations": [
            {
                "id": n + 1,
                "image_id": int(result.truths.image_ids[flat.image[n]]),
                "category_id": int(result.category_ids[flat.category[n]]),
                "bbox": flat.boxes[n].tolist(),
                "area": float(flat.area[n]),
                "iscrowd": int(flat.crowd[n]),
            }
            for n in range(len(flat))
        ],
    }
    cut = [
        {
            "image_id": int(result.truths.image_ids[found.image[n]]),
            "category_id": int(result.category_ids[found.category[n]]),
            "bbox": found.boxes[n].tolist(),
            "score": float(found.scores[n]),
        }
        for n in np.flatnonzero(found.scores >= threshold)
    ]
    recall = pycocotools(truths, cut).recall[0, :, 0, -1]  # [K]
    points = [curve.at(threshold) for curve in result.operating_points().classes]
    mine = [-1 if math.isnan(point.recall) else point.recall for point in points]
    assert mine == recall.tolist()


def test_tables_and_json(pets: CocoResult) -> None:
    assert pets.operating_points().table().splitlines() == [
        "class  truths  threshold  precision  recall     F1",
        "cat         2      0.300      0.500   1.000  0.667",
        "dog         2      0.400      0.333   0.500  0.400",
        "all         4      0.300      0.429   0.750  0.545",
    ]
    assert pets.operating_points().table(0.65).splitlines()[1:3] == [
        "cat         2      0.650      0.500   0.500  0.500",
        "dog         2      0.650      0.000   0.000  0.000",
    ]
    assert pets.pr_curve(1).table().splitlines()[:3] == [
        "cat: AP 0.752 at IoU 0.50, 2 truths",
        "recall  precision",
        "   0.0      1.000",
    ]
    for each in (pets.operating_points(), pets.pr_curve(), pets.pr_curve(2)):
        assert json.loads(json.dumps(each.as_dict(), allow_nan=False)) == each.as_dict()
    best = pets.operating_points().as_dict()["per_class"][0]["best"]
    assert (best["threshold"], best["true_positives"]) == (0.3, 2)


def test_grid_goes_as_far_as_the_scores(pets: CocoResult) -> None:
    assert pets.operating_points().grid.tolist() == np.linspace(0, 1, 101).tolist()
    evaluator = CocoEvaluator(pets.truths)
    evaluator.update(1, [[0, 0, 9, 9]] * 2, [-3, 12], [1, 1])
    grid = evaluator.compute().operating_points().grid
    assert (grid[0], grid[-1]) == (-3, 12)


def test_nothing_at_all() -> None:
    empty = CocoEvaluator.from_coco({"images": [], "categories": [], "annotations": []}).compute()
    assert math.isnan(empty.pr_curve().ap)
    points = empty.operating_points()
    assert (points.classes, points.overall.truths) == ((), 0)
    assert points.as_dict()["overall"]["best"]["f1"] is None
    assert points.table().splitlines()[1].split() == ["all", "0", "-", "-", "-", "-"]


def test_no_detections(pets: CocoResult) -> None:
    result = CocoEvaluator(pets.truths).compute()
    assert result.pr_curve(1).ap == 0
    best = result.operating_points().classes[0].best
    assert math.isnan(best.threshold) and math.isnan(best.precision)
    assert (best.recall, best.f1, best.false_negatives) == (0, 0, 2)


def test_mistakes(pets: CocoResult) -> None:
    with pytest.raises(ValueError, match=r"unknown category_id 7; allowed: 1, 2"):
        pets.pr_curve(7)
    with pytest.raises(ValueError, match=r"overlap thresholds must lie in 0\.\.1, got \[50\.0\]"):
        pets.operating_points(iou=50)
