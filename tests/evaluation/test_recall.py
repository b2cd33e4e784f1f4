"""Recall of proposals is COCO's with all classes taken as one."""

from __future__ import annotations

import contextlib
import io

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detkit.evaluation.recall import proposal_recall

LIMITS = (3, 10, 40)

pytestmark = pytest.mark.usefixtures("each_backend")


def random_boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    corner = rng.integers(0, 60, (count, 2))
    return np.concatenate([corner, corner + rng.integers(4, 40, (count, 2))], axis=1) * 1.0


def iou(one: np.ndarray, other: np.ndarray) -> float:
    low, high = np.maximum(one[:2], other[:2]), np.minimum(one[2:], other[2:])
    common = np.clip(high - low, 0, None).prod()
    areas = [(box[2:] - box[:2]).prod() for box in (one, other)]
    return float(common / (sum(areas) - common))


def slow_recall(
    proposals: list[np.ndarray], truths: list[np.ndarray], threshold: float, limit: int
) -> float:
    """Each proposal, best first, takes the free truth of highest overlap."""
    found = 0
    for boxes, targets in zip(proposals, truths, strict=True):
        free = set(range(len(targets)))
        for box in boxes[:limit]:
            reached = [(iou(box, targets[i]), i) for i in free]
            reached = [pair for pair in reached if pair[0] >= threshold]
            if reached:
                free.remove(max(reached)[1])
                found += 1
    return found / sum(map(len, truths))


@pytest.fixture(scope="module")
def boxes() -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Proposals and truths of five images; some proposals are truths moved a little."""
    rng = np.random.default_rng(0)
    truths = [random_boxes(rng, count) for count in (4, 0, 7, 1, 5)]
    proposals = []
    for targets in truths:
        near = np.repeat(targets, 2, axis=0) + rng.integers(-4, 5, (2 * len(targets), 4))
        near[:, 2:] = np.maximum(near[:, 2:], near[:, :2] + 1)
        mixed = np.concatenate([near, random_boxes(rng, 30)])
        proposals.append(rng.permutation(mixed))
    proposals[3] = np.zeros((0, 4))
    return proposals, truths


def test_equals_a_slow_reference(boxes: tuple[list[np.ndarray], list[np.ndarray]]) -> None:
    result = proposal_recall(*boxes, limits=LIMITS)
    for t, threshold in enumerate(result.iou_thresholds.tolist()):
        for column, limit in enumerate(LIMITS):
            expected = slow_recall(*boxes, threshold, limit)
            assert result.recall[t, column] == pytest.approx(expected)
    assert 0 < result.at(0.7, 3) < result.at(0.7, 40) < result.at(0.5, 40) < 1
    assert result.truths == 17
    assert result.proposals == pytest.approx(np.mean([len(each) for each in boxes[0]]))


def test_equals_pycocotools_without_categories(
    boxes: tuple[list[np.ndarray], list[np.ndarray]],
) -> None:
    proposals, truths = boxes
    crowd = [np.arange(len(targets)) == 2 for targets in truths]
    result = proposal_recall(proposals, truths, crowd=crowd, limits=LIMITS)
    assert result.truths == 14
    assert result.recall == pytest.approx(coco_recall(proposals, truths, crowd), abs=1e-12)
    assert result.average(10) == pytest.approx(coco_recall(proposals, truths, crowd)[:, 1].mean())


def coco_recall(
    proposals: list[np.ndarray], truths: list[np.ndarray], crowd: list[np.ndarray]
) -> np.ndarray:
    """`[T, L]` of pycocotools with useCats=0, whatever the categories."""

    def xywh(box: np.ndarray) -> list[float]:
        return [box[0], box[1], box[2] - box[0], box[3] - box[1]]

    annotations = [
        {"image_id": i + 1, "category_id": 1 + n % 2, "bbox": xywh(box)}
        | {"area": float((box[2:] - box[:2]).prod()), "iscrowd": int(crowd[i][n])}
        for i, targets in enumerate(truths)
        for n, box in enumerate(targets)
    ]
    results = [
        {"image_id": i + 1, "category_id": 1, "bbox": xywh(box), "score": 1 / (1 + n)}
        for i, found in enumerate(proposals)
        for n, box in enumerate(found)
    ]
    coco = COCO()
    with contextlib.redirect_stdout(io.StringIO()):
        coco.dataset = {
            "info": {},
            "images": [{"id": i + 1, "width": 100, "height": 100} for i in range(len(truths))],
            "annotations": [{"id": n + 1, **each} for n, each in enumerate(annotations)],
            "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}],
        }
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(results), "bbox")
        evaluation.params.useCats = 0
        evaluation.params.maxDets = list(LIMITS)
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation.eval["recall"][:, 0, 0]


def test_by_hand() -> None:
    truths = [np.array([[0, 0, 10, 10], [20, 20, 30, 30]]), np.array([[5, 5, 9, 9]])]
    proposals = [
        np.array([[0, 0, 10, 10], [0, 0, 10, 10], [20, 20, 30, 36]]),  # the third overlaps by 0.625
        np.zeros((0, 4)),
    ]
    result = proposal_recall(proposals, truths, limits=(2, 100))
    assert result.at(0.5, 2) == pytest.approx(1 / 3)
    assert result.at(0.5, 100) == pytest.approx(2 / 3)
    assert result.at(0.7, 100) == pytest.approx(1 / 3)
    assert result.average(100) == pytest.approx((3 * 2 / 3 + 7 / 3) / 10)  # up to 0.60
    lines = result.table().splitlines()
    assert lines[1].split() == ["2", "0.333", "0.333", "0.333"]
    assert lines[2].split() == ["100", "0.667", "0.333", "0.433"]


def test_nothing_to_find_and_nothing_found() -> None:
    none, one = np.zeros((0, 4)), np.array([[0.0, 0, 5, 5]])
    assert (proposal_recall([one], [none]).recall == -1).all()
    assert (proposal_recall([], []).recall == -1).all()
    assert (proposal_recall([none], [one]).recall == 0).all()


def test_no_images() -> None:
    nobody = proposal_recall([], [], crowd=[])
    assert (nobody.truths, nobody.proposals, nobody.at(0.5, 100)) == (0, 0.0, -1)


def test_lists_must_be_of_the_same_images() -> None:
    with pytest.raises(ValueError, match="got 1, 2 and None"):
        proposal_recall([np.zeros((0, 4))], [np.zeros((0, 4))] * 2)
