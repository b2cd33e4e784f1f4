"""The parts of the matching beside something simple."""

from __future__ import annotations

import numpy as np
import pytest
from pycocotools import mask

from detkit.evaluation.inputs import CURVES_PER_BLOCK, CocoSettings
from detkit.evaluation.matching import overlaps, run_starts, stable_argsort


def test_overlaps_equal_pycocotools_to_the_last_bit():
    rng = np.random.default_rng(0)
    boxes = np.concatenate([rng.uniform(0, 40, (300, 2)), rng.normal(30, 20, (300, 2))], axis=1)
    truths = np.concatenate([rng.uniform(0, 40, (99, 2)), rng.normal(30, 20, (99, 2))], axis=1)
    crowd = rng.random(99) < 0.3
    expected = mask.iou(boxes, truths, crowd.astype(np.uint8))  # [300, 99]
    row, column = (index.reshape(-1) for index in np.indices(expected.shape))
    found = overlaps(boxes[row], truths[column], crowd[column])
    assert found.tobytes() == expected[row, column].tobytes()
    assert 0.4 < (found > 0).mean() < 1


@pytest.mark.parametrize("largest", [0, 9, 2**16 - 1, 2**16, 2**40])
def test_stable_argsort(largest):
    keys = np.random.default_rng(0).integers(0, largest, 500, endpoint=True)
    keys[100:200] = keys[:100]
    assert stable_argsort(keys).tolist() == np.argsort(keys, kind="stable").tolist()


def test_stable_argsort_of_nothing():
    assert stable_argsort(np.zeros(0, np.int64)).tolist() == []


def test_run_starts():
    assert run_starts(np.array([4, 4, 1, 1, 4])).tolist() == [0, 2, 4]
    assert run_starts(np.array([4, 4, 1, 1]), np.array([0, 1, 1, 1])).tolist() == [0, 1, 2]
    assert run_starts(np.zeros(0, np.int64)).tolist() == []


def test_blocks_hold_every_curve_once():
    settings = CocoSettings.of(np.linspace(0.1, 0.9, 37))
    blocks = list(settings.curve_blocks())
    assert [len(curves) for _, curves in blocks] == [64, 64, 20]
    assert CURVES_PER_BLOCK == 64
    seen = [i for block, _ in blocks for i in range(148)[block]]
    assert seen == list(range(148))
    iou = np.concatenate([curves.iou for _, curves in blocks])
    area = np.concatenate([curves.area for _, curves in blocks])
    assert iou.tolist() == settings.iou_thresholds.tolist() * 4
    assert area.tolist() == [0] * 37 + [1] * 37 + [2] * 37 + [3] * 37
