"""The confusion matrix against tables by hand and a slow reference in plain Python."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pytest

from detkit.evaluation import CocoEvaluator, CocoResult

Box = tuple[float, float, float, float]


def test_by_hand(pets: CocoResult) -> None:
    """The dog at 0.7 lies on a cat that is found at 0.3: it is of background."""
    matrix = pets.confusion(score=0.25)
    assert matrix.counts.tolist() == [[2, 0, 0], [1, 1, 0], [1, 2, 0]]
    np.testing.assert_allclose(matrix.precision, [1 / 2, 1 / 3])
    np.testing.assert_allclose(matrix.recall, [1, 1 / 2])


def test_what_a_class_leaves_others_may_take(pets: CocoResult) -> None:
    """Without the cat at 0.3 the dog at 0.7 takes its place."""
    assert pets.confusion(score=0.3).counts.tolist() == [[2, 0, 0], [1, 1, 0], [1, 2, 0]]
    assert pets.confusion(score=0.35).counts.tolist() == [[1, 1, 0], [1, 1, 0], [1, 1, 0]]
    assert pets.confusion(score=1).counts.tolist() == [[0, 0, 2], [0, 0, 2], [0, 0, 0]]


def iou_of(a: Box, b: Box) -> float:
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    shared = max(width, 0) * max(height, 0)
    return shared / (a[2] * a[3] + b[2] * b[3] - shared)


def inside(a: Box, crowd: Box) -> float:
    width = min(a[0] + a[2], crowd[0] + crowd[2]) - max(a[0], crowd[0])
    height = min(a[1] + a[3], crowd[1] + crowd[3]) - max(a[1], crowd[1])
    return max(width, 0) * max(height, 0) / (a[2] * a[3])


def slow_matrix(result: CocoResult, iou: float, score: float) -> np.ndarray:
    """Image by image, detection by detection."""
    flat, found = result.truths.truths, result.detections
    classes = len(result.category_ids)
    counts = np.zeros((classes + 1, classes + 1), int)
    for image in range(len(result.truths.image_ids)):
        truths = [n for n in range(len(flat)) if flat.image[n] == image and not flat.crowd[n]]
        crowds = [n for n in range(len(flat)) if flat.image[n] == image and flat.crowd[n]]
        # of equal scores the lower class is first, as within the result
        order = sorted(range(len(found)), key=lambda n: (-found.scores[n], found.category[n], n))
        todo = [n for n in order if found.image[n] == image and found.scores[n] >= score]
        for same_class in (True, False):
            left = []
            for n in todo:
                box, category = tuple(found.boxes[n]), found.category[n]
                best, place = iou, None
                for m in truths:
                    overlap = iou_of(box, tuple(flat.boxes[m]))
                    fits = (flat.category[m] == category) == same_class
                    if fits and overlap >= best:
                        best, place = overlap, m
                if place is not None:
                    truths.remove(place)
                    counts[flat.category[place], category] += 1
                elif not same_class or not any(
                    flat.category[c] == category and inside(box, tuple(flat.boxes[c])) >= iou
                    for c in crowds
                ):
                    left.append(n)
            todo = left
        for n in todo:
            counts[-1, found.category[n]] += 1
        for m in truths:
            counts[flat.category[m], -1] += 1
    return counts


@pytest.mark.parametrize("seed", range(25))
@pytest.mark.parametrize(("iou", "score"), [(0.5, 0.25), (0.3, 0), (0.75, 0.6)])
def test_slow_reference(
    random_result: Callable[..., CocoResult], seed: int, iou: float, score: float
) -> None:
    result = random_result(seed)
    matrix = result.confusion(iou, score)
    assert matrix.counts.tolist() == slow_matrix(result, iou, score).tolist()


@pytest.mark.parametrize("seed", range(10))
def test_sums_are_the_operating_points(random_result: Callable[..., CocoResult], seed: int) -> None:
    result = random_result(seed)
    for score in (0.0, 0.25, 0.5):
        counts = result.confusion(0.5, score).counts
        points = [curve.at(score) for curve in result.operating_points(0.5).classes]
        right = np.diag(counts)[:-1]
        assert right.tolist() == [point.true_positives for point in points]
        wrong, missed = counts.sum(axis=0)[:-1] - right, counts.sum(axis=1)[:-1] - right
        assert wrong.tolist() == [point.false_positives for point in points]
        assert missed.tolist() == [point.false_negatives for point in points]


def test_normalized(pets: CocoResult) -> None:
    matrix = pets.confusion(score=0.25)
    np.testing.assert_allclose(matrix.normalized()[:2], [[1, 0, 0], [0.5, 0.5, 0]])
    np.testing.assert_allclose(matrix.normalized("detection")[:, :2].sum(axis=0), 1)
    assert np.isnan(matrix.normalized("detection")[:, 2]).all()  # nothing is missed
    np.testing.assert_allclose(matrix.normalized("all"), matrix.counts / 7)
    with pytest.raises(ValueError, match="by must be 'truth', 'detection' or 'all', got 'rows'"):
        matrix.normalized("rows")


def test_table_and_json(pets: CocoResult) -> None:
    matrix = pets.confusion(score=0.25)
    assert matrix.table().splitlines() == [
        "IoU 0.50, scores from 0.25; rows: truth, columns: detection",
        "                0  1  bg",
        "0   cat         2  0   0",
        "1   dog         1  1   0",
        "bg  background  1  2   0",
    ]
    (pair,) = matrix.most_confused()
    assert (pair.truth, pair.detection, pair.count, pair.share) == ("dog", "cat", 1, 0.5)
    content = matrix.as_dict()
    assert json.loads(json.dumps(content, allow_nan=False)) == content
    few = pets.confusion(score=0.7).most_confused()  # of two cats one is missed in part
    assert [(each.truth, each.detection, each.share) for each in few] == [("cat", "dog", 0.5)]
    assert content["labels"] == ["cat", "dog", "background"]


def test_of_many_classes_the_most_confused_are_listed() -> None:
    """Class 3 is taken for 4 twice, 8 for 7 once; one is right, one missed, one of background."""
    truths = [(0, 3), (20, 3), (40, 8), (60, 5), (80, 6)]
    found = [(0, 4), (20, 4), (40, 7), (60, 5), (100, 9)]
    evaluator = CocoEvaluator.from_arrays(
        image_ids=[1],
        category_ids=np.arange(30),
        gt_image_index=[0] * 5,
        gt_category_index=[category for _, category in truths],
        gt_boxes=[[x, 0, 10, 10] for x, _ in truths],
    )
    boxes = [[x, 0, x + 10, 10] for x, _ in found]
    evaluator.update(1, boxes, [0.9] * 5, [category for _, category in found])
    assert evaluator.compute().confusion().table().splitlines()[1:] == [
        "right 1, confused 3, missed 1, detections of background 1",
        "",
        "truth  taken for  count  share",
        "3      4              2  1.000",
        "8      7              1  1.000",
    ]


def test_limit_is_that_of_the_result(pets: CocoResult) -> None:
    evaluator = CocoEvaluator.from_coco(
        {
            "images": [{"id": 1}],
            "categories": [{"id": 1}],
            "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 9, 9]}],
        },
        max_dets=[2],
    )
    evaluator.update(1, [[20, 0, 29, 9], [40, 0, 49, 9], [0, 0, 9, 9]], [0.9, 0.8, 0.7], [1] * 3)
    assert evaluator.compute().confusion().counts.tolist() == [[0, 1], [2, 0]]


def test_nothing_at_all() -> None:
    empty = CocoEvaluator.from_coco({"images": [], "categories": [], "annotations": []}).compute()
    matrix = empty.confusion()
    assert matrix.counts.tolist() == [[0]]
    assert matrix.most_confused() == []
    assert matrix.table().splitlines()[1:] == ["                bg", "bg  background   0"]
    assert np.isnan(matrix.normalized("all")).all()
