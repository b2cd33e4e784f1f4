"""pycocotools, silent and without its crashes, as the reference."""

from __future__ import annotations

import contextlib
import copy
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detkit.evaluation import CocoResult

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
