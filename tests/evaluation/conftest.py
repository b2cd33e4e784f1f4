"""pycocotools, silent and without its crashes, as the reference."""

from __future__ import annotations

import contextlib
import copy
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detkit.evaluation import CocoEvaluator, CocoResult
from detkit.evaluation.backend import load_native, using

Record = dict[str, Any]


@dataclass
class Reference:
    """What pycocotools gives; stats and summary only where it can give them."""

    precision: np.ndarray
    recall: np.ndarray
    scores: np.ndarray
    stats: np.ndarray | None
    summary: str


def run_pycocotools(
    truths: Record,
    detections: list[Record],
    *,
    iou_thresholds: Sequence[float] | None = None,
    area_ranges: dict[str, tuple[float, float]] | None = None,
    max_dets: Sequence[int] = (1, 10, 100),
) -> Reference:
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = copy.deepcopy(truths)
        truth.createIndex()
        if detections:
            found = truth.loadRes(copy.deepcopy(detections))
        else:  # loadRes looks at the first detection
            found = COCO()
            found.dataset = {**truth.dataset, "annotations": []}
            found.createIndex()
        evaluation = COCOeval(truth, found, "bbox")
        if iou_thresholds is not None:
            evaluation.params.iouThrs = np.array(iou_thresholds)
        if area_ranges is not None:
            evaluation.params.areaRng = [list(values) for values in area_ranges.values()]
            evaluation.params.areaRngLbl = list(area_ranges)
        evaluation.params.maxDets = list(max_dets)
        evaluation.evaluate()
        evaluation.accumulate()
    arrays = (evaluation.eval[key] for key in ("precision", "recall", "scores"))
    if len(max_dets) < 3:  # summarize wants three
        return Reference(*arrays, None, "")
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        evaluation.summarize()
    return Reference(*arrays, evaluation.stats, printed.getvalue().rstrip("\n"))


def assert_same_bits(result: CocoResult, reference: Reference) -> None:
    for name in ("precision", "recall", "scores"):
        mine, theirs = getattr(result, name), getattr(reference, name)
        assert mine.shape == theirs.shape, name
        different = mine.view(np.int64) != theirs.view(np.int64) if mine.size else np.zeros(0)
        at = [tuple(index.tolist()) for index in np.argwhere(different)[:3]]
        assert not at, f"{name} at {at}: {[mine[i] for i in at]}, not {[theirs[i] for i in at]}"
    if reference.stats is not None:
        assert result.stats.tobytes() == reference.stats.tobytes()
        assert result.summary() == reference.summary


@pytest.fixture(scope="session")
def pycocotools() -> Callable[..., Reference]:
    return run_pycocotools


@pytest.fixture(scope="session")
def assert_same() -> Callable[[CocoResult, Reference], None]:
    return assert_same_bits


@pytest.fixture(scope="session")
def pets() -> CocoResult:
    """Cats and dogs in four pictures, by hand; the third holds a crowd, the last one nothing."""
    evaluator = CocoEvaluator.from_arrays(
        image_ids=[1, 2, 3, 4],
        category_ids=[1, 2],
        class_names=["cat", "dog"],
        gt_image_index=[0, 0, 0, 0, 1, 2],
        gt_category_index=[0, 0, 1, 0, 1, 0],
        gt_boxes=[[x, 0, 10, 10] for x in (0, 20, 40)]
        + [[60, 0, 30, 30], [0, 0, 10, 10], [0, 0, 50, 50]],
        gt_crowd=[False, False, False, True, False, True],
    )
    found = {
        1: [
            (0, 10, 0.9, 1),  # right
            (0, 10, 0.9, 1),  # the same again: wrong
            (65, 10, 0.8, 1),  # in the crowd
            (20, 10, 0.7, 2),  # a dog where a cat is that is found later
            (20, 10, 0.3, 1),  # right
            (40, 10, 0.4, 2),  # right
        ],
        2: [(0, 10, 0.6, 1), (70, 10, 0.5, 2)],  # a cat where a dog is; a dog of nothing
        3: [(5, 10, 0.95, 1)],  # in the crowd
    }
    for image_id, rows in found.items():
        boxes = [[x, 0, x + side, side] for x, side, _, _ in rows]
        evaluator.update(image_id, boxes, [row[2] for row in rows], [row[3] for row in rows])
    return evaluator.compute()


def make_random_result(seed: int, images: int = 6, categories: int = 3) -> CocoResult:
    """Crowded pictures with crowds, ties of scores and overlaps, and confused categories.

    The last category has no truth, and the last picture nothing at all.
    """
    rng = np.random.default_rng(seed)
    truths, found = rng.integers(0, 30), rng.integers(0, 60)
    boxes = np.concatenate([rng.integers(0, 5, (90, 2)), rng.integers(3, 8, (90, 2))], axis=1)
    evaluator = CocoEvaluator.from_arrays(
        image_ids=np.arange(images) + 10,
        category_ids=np.arange(categories) * 2 + 1,
        gt_image_index=rng.integers(0, images - 1, truths),
        gt_category_index=rng.integers(0, categories - 1, truths),
        gt_boxes=boxes[:truths],
        gt_crowd=rng.random(truths) < 0.2,
    )
    image = rng.integers(0, images - 1, found)
    category, scores = rng.integers(0, categories, found), rng.integers(1, 9, found) / 8
    corners = boxes[truths : truths + found].copy()
    corners[:, 2:] += corners[:, :2]
    for index in range(images):
        own = image == index
        evaluator.update(index + 10, corners[own], scores[own], category[own] * 2 + 1)
    return evaluator.compute()


@pytest.fixture(scope="session")
def random_result() -> Callable[..., CocoResult]:
    return make_random_result


@pytest.fixture(scope="module", params=["compiled", "numpy"])
def each_backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs the tests of a module with the compiled evaluator and with the one in numpy."""
    module, fault = load_native()
    if request.param == "compiled" and module is None:
        pytest.skip(f"no compiled evaluator: {fault}")
    with using(request.param):
        yield request.param
