"""The metric word by word: beside pycocotools' overlaps, and the fast paths beside it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask

from benchmarks.evaluator_edge_cases import backends
from detkit.evaluation.accumulation import CurveArrays, evaluate_arrays
from detkit.evaluation.backend import using
from detkit.evaluation.inputs import CocoSettings, FlatDetections, FlatTruths
from detkit.evaluation.literal import evaluate_literally, is_ordinary, literal_overlaps

NAN, INF = float("nan"), float("inf")
UNIT = [0, 0, 10, 10]


def truths_of(*boxes: list[float], **columns) -> FlatTruths:
    nothing = np.zeros(len(boxes), int)
    xywh = np.array(boxes, float).reshape(-1, 4)
    area = np.array(columns.get("area", xywh[:, 2] * xywh[:, 3]), float)
    return FlatTruths(nothing, nothing, xywh, area, nothing > 0, nothing > 0)


def found_of(*boxes: list[float], scores: list[float] | None = None) -> FlatDetections:
    nothing = np.zeros(len(boxes), int)
    values = np.linspace(1, 0, len(boxes)) if scores is None else np.array(scores, float)
    return FlatDetections(nothing, nothing, np.array(boxes, float).reshape(-1, 4), values)


def evaluate(truths: FlatTruths, found: FlatDetections, **options) -> CurveArrays:
    settings_ = CocoSettings.of(**options)
    return evaluate_literally(truths, found, num_categories=1, settings=settings_)


# ------------------------------------------------------------------------------- checked by hand


def test_right_wrong_right():
    truths = truths_of([0, 0, 50, 50], [200, 0, 50, 50])
    found = found_of([0, 0, 50, 50], [0, 200, 50, 50], [200, 0, 50, 50], scores=[0.9, 0.8, 0.7])
    arrays = evaluate(truths, found)
    expected = [1.0] * 51 + [2 / 3] * 50
    np.testing.assert_allclose(arrays.precision[0, :, 0, 0, 2], expected, atol=1e-15)
    assert arrays.scores[0, :, 0, 0, 2].tolist() == [0.9] * 51 + [0.7] * 50
    assert arrays.recall[0, 0, 0].tolist() == [0.5, 1, 1]
    assert arrays.num_truths.tolist() == [[2], [0], [2], [0]]


def test_an_overlap_that_is_none_reaches_all_thresholds_and_the_last_truth():
    truths = truths_of(UNIT, [50, 0, 10, 10])
    found = found_of([0, 0, NAN, 10], UNIT, [50, 0, 10, 10], scores=[0.9, 0.8, 0.7])
    right = evaluate(truths, found).recall[:, 0, 0, 2]
    assert right.tolist() == [1.0] * 10  # the first took the truth at 50, the second its own
    assert evaluate(truths, found[np.array([0, 2])]).recall[:, 0, 0, 2].tolist() == [0.5] * 10


def test_a_score_that_is_none_ranks_last():
    found = found_of([90, 0, 5, 5], UNIT, scores=[NAN, -5])
    assert evaluate(truths_of(UNIT), found).precision[0, 0, 0, 0, 2] == pytest.approx(1)


def test_an_area_that_is_none_lies_in_every_range():
    truths = truths_of(UNIT, area=[NAN])
    assert evaluate(truths, found_of(UNIT)).num_truths.tolist() == [[1], [1], [1], [1]]


def test_empty():
    arrays = evaluate(truths_of(), found_of())
    assert (arrays.precision == -1).all() and (arrays.scores == -1).all()
    assert (evaluate(truths_of(), found_of(UNIT)).recall == -1).all()
    assert evaluate(truths_of(UNIT), found_of()).recall[:, 0, 0].max() == 0
    none = evaluate_literally(truths_of(), found_of(), num_categories=0, settings=CocoSettings())
    assert none.precision.shape == (10, 101, 0, 4, 3)


@pytest.mark.parametrize(
    ("ordinary", "truths", "found"),
    [
        (True, truths_of(UNIT), found_of(UNIT)),
        (True, truths_of(), found_of()),
        (True, truths_of([1e16, 0, 3, 0]), found_of([-5, -5, -1, 0.1], scores=[-1e300])),
        (False, truths_of([NAN, 0, 1, 1], area=[1]), found_of()),
        (False, truths_of(UNIT, area=[INF]), found_of()),
        (False, truths_of(UNIT, area=[NAN]), found_of()),
        (False, truths_of([0, 0, 1e200, 1], area=[1]), found_of()),
        (False, truths_of(), found_of([0, 0, INF, 1])),
        (False, truths_of(), found_of([0, 0, 1e-200, 1])),
        (False, truths_of(), found_of(UNIT, scores=[NAN])),
        (False, truths_of(), found_of(UNIT, scores=[-INF])),
    ],
)
def test_what_the_fast_path_may_be_given(ordinary, truths, found):
    assert is_ordinary(truths, found) == ordinary


# ------------------------------------------------------------------------------- other references


def test_overlaps_have_the_bits_of_pycocotools():
    rng = np.random.default_rng(0)
    values = [0, 10, 0.1, -10, 1e16, 1e200, 1e-200, NAN, INF, -INF, *rng.uniform(0, 30, 10)]
    boxes, truths = (rng.choice(values, (300, 4)) for _ in range(2))
    crowd = rng.random(300) < 0.3
    expected = mask.iou(boxes, truths, crowd.astype(np.uint8).tolist())
    mine = literal_overlaps(boxes, truths, crowd)
    np.testing.assert_array_equal(mine, expected)  # NaN equals NaN here
    assert np.isnan(mine).any() and np.isinf(mine).any() and (mine > 0).any()


SIDE = st.sampled_from([0, 10, 15, 20, 30, 40, 100])
BOX = st.tuples(st.sampled_from([0, 5, 10, 20]), st.sampled_from([0, 10]), SIDE, SIDE)
TRUTH = st.tuples(
    st.integers(0, 2),
    st.integers(0, 1),
    BOX,
    st.sampled_from([0, 100, 1024, 9216, 2e10]),
    st.booleans(),
    st.booleans(),
)
FOUND = st.tuples(
    st.integers(0, 2), st.integers(0, 1), BOX, st.sampled_from([0, -1, 0.25, 0.5, 0.75])
)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(TRUTH, max_size=14), st.lists(FOUND, max_size=20), st.booleans())
def test_fast_paths_have_the_same_bits(truths, found, many):
    image, category, boxes, area, crowd, zero = zip(*truths, strict=True) if truths else [()] * 6
    flat = FlatTruths.of(image, category, boxes, area=area, crowd=crowd)
    flat.id_is_zero[:] = zero
    image, category, boxes, scores = zip(*found, strict=True) if found else [()] * 4
    detections = FlatDetections(
        np.array(image, np.int64),
        np.array(category, np.int64),
        np.array(boxes, float).reshape(-1, 4),
        np.array(scores, float),
    )
    thresholds = np.linspace(0, 1, 20) if many else None  # 80 curves: two words of bits
    options = CocoSettings.of(thresholds, max_dets=(1, 3, 100))
    slow = evaluate_literally(flat, detections, num_categories=2, settings=options)
    for code in backends():
        with using(code):
            fast = evaluate_arrays(flat, detections, num_categories=2, settings=options)
        for name in ("precision", "recall", "scores", "num_truths"):
            assert getattr(fast, name).tobytes() == getattr(slow, name).tobytes(), (code, name)
