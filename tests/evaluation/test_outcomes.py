"""The matches are those of pycocotools' evalImgs."""

from __future__ import annotations

import contextlib
import io
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detkit.evaluation import CocoResult
from detkit.evaluation.coco import CocoEvaluator, _evaluate
from detkit.evaluation.coco_json import read_detections
from detkit.evaluation.inputs import CocoSettings
from detkit.evaluation.outcomes import find_outcomes

Record = dict[str, Any]

pytestmark = pytest.mark.usefixtures("each_backend")


def random_case(seed: int) -> tuple[Record, list[Record]]:
    """Three crowded images of two categories, with crowds and ties of scores and overlaps."""
    rng = np.random.default_rng(seed)
    annotations, detections = [], []
    for image in (3, 5, 9):
        for _ in range(rng.integers(0, 12)):
            box = rng.integers(0, 5, 2).tolist() + rng.integers(3, 8, 2).tolist()
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image,
                    "category_id": int(rng.integers(1, 3)),
                    "bbox": box,
                    "area": float(rng.choice([10, 2000, box[2] * box[3]])),
                    "iscrowd": int(rng.random() < 0.2),
                }
            )
        for _ in range(rng.integers(1, 20)):
            box = rng.integers(0, 5, 2).tolist() + rng.integers(3, 8, 2).tolist()
            score = float(rng.integers(1, 6) / 5)
            category = int(rng.integers(1, 3))
            detections.append(
                {"image_id": image, "category_id": category, "bbox": box, "score": score}
            )
    images = [{"id": image} for image in (3, 5, 9)]
    categories = [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}]
    return {"images": images, "categories": categories, "annotations": annotations}, detections


def pycocotools_tally(truths: Record, detections: list[Record]) -> dict[str, dict[Any, np.ndarray]]:
    """What pycocotools says of each detection, by (area range, score, box) and image, sorted."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = truths
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(detections), "bbox")
        evaluation.params.maxDets = [1, 5, 7]
        evaluation.evaluate()
    tally: dict[str, dict[Any, np.ndarray]] = {}
    params = evaluation.params
    names = {tuple(r): n for r, n in zip(params.areaRng, params.areaRngLbl, strict=True)}
    for cell in evaluation.evalImgs:
        if cell is not None:
            of_area = tally.setdefault(names[tuple(cell["aRng"])], {})
            matched, ignored = cell["dtMatches"], cell["dtIgnore"]
            of_area[cell["image_id"], cell["category_id"]] = np.stack([matched, ignored])
    return tally


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("area", ["all", "small", "medium"])
def test_outcomes_are_those_of_pycocotools(seed: int, area: str) -> None:
    truths, detections = random_case(seed)
    evaluator = CocoEvaluator.from_coco(truths)
    settings = CocoSettings()
    found = read_detections(detections, evaluator.truths)
    outcomes = find_outcomes(
        evaluator.truths.truths,
        found,
        num_categories=2,
        iou_thresholds=settings.iou_thresholds,
        area_range=settings.area_ranges[area],
        limit=7,
    )
    expected = pycocotools_tally(truths, detections)[area]
    image_ids, category_ids = evaluator.truths.image_ids, evaluator.truths.category_ids
    checked = 0
    for (image, category), (matched, ignored) in expected.items():
        at = np.flatnonzero(
            (image_ids[outcomes.detections.image] == image)
            & (category_ids[outcomes.detections.category] == category)
        )
        assert len(at) == matched.shape[1]
        taken = outcomes.truth_of[:, at]
        boxes = np.array([a["bbox"] for a in truths["annotations"]] + [[-1] * 4], float)
        theirs = boxes[matched.astype(int) - 1]  # ids count from 1; 0 is no match
        mine = np.append(outcomes.truths.boxes, [[-1] * 4], axis=0)[taken]
        assert np.array_equal(mine, theirs)
        assert np.array_equal(outcomes.ignored[:, at], ignored.astype(bool))
        checked += matched.size
    assert checked


def test_each_truth_is_right_once_or_missed() -> None:
    truths, detections = random_case(3)
    evaluator = CocoEvaluator.from_coco(truths)
    result: CocoResult = _evaluate(
        evaluator.truths, read_detections(detections, evaluator.truths), CocoSettings()
    )
    outcomes = result.outcomes
    per_threshold = outcomes.right.sum(axis=1) + outcomes.missed.sum(axis=1)
    assert per_threshold.tolist() == [outcomes.counts.sum()] * 10
    assert not (outcomes.right & outcomes.wrong).any()
