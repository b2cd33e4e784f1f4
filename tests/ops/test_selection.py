"""From candidates to what is reported: every suppression by its name, and several sources."""

from __future__ import annotations

import math
from typing import get_args

import pytest
import torch

from detkit.config import SelectConfig
from detkit.ops import (
    SUPPRESSIONS,
    Selection,
    diou_nms,
    fuse,
    matrix_nms,
    nms,
    non_maximum_merging,
    select_detections,
    soft_nms,
    suppress,
    weighted_boxes_fusion,
)
from detkit.structures import Detections

A, B, FAR = [0.0, 0, 10, 10], [0.0, 0, 10, 8], [50.0, 50, 60, 60]  # IoU of the first two: 0.8


def found(boxes, scores, labels=None):
    labels = torch.zeros(len(boxes)) if labels is None else torch.tensor(labels)
    return Detections(torch.tensor(boxes).float(), torch.tensor(scores), labels.long())


def rows(detections):
    return [
        (label, round(score, 4), [round(v, 4) for v in box])
        for label, score, box in zip(
            detections.labels.tolist(),
            detections.scores.tolist(),
            detections.boxes.tolist(),
            strict=True,
        )
    ]


def test_the_recipe_offers_what_there_is():
    assert get_args(SelectConfig.model_fields["nms"].annotation) == SUPPRESSIONS
    fields = {*SelectConfig.model_fields}
    assert fields == {*Selection.__dataclass_fields__}


GAUSS = math.exp(-(0.8**2) / 0.5)
MEAN = [0, 0, 10, (0.8 * 10 + 0.6 * 8) / 1.4]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("hard", [(1, 0.8, A)]),
        ("diou", [(1, 0.8, A)]),
        ("soft_linear", [(1, 0.8, A), (0, 0.6 * 0.2, B)]),
        ("soft_gaussian", [(1, 0.8, A), (0, 0.6 * GAUSS, B)]),
        ("matrix_linear", [(1, 0.8, A), (0, 0.6 * 0.2, B)]),
        ("matrix_gaussian", [(1, 0.8, A), (0, 0.6 * GAUSS, B)]),
        ("wbf", [(1, 0.8, MEAN)]),
        ("nmm", [(1, 0.8, A)]),
        ("none", [(1, 0.8, A), (0, 0.6, B)]),
    ],
)
def test_each_kind_by_hand_across_classes_and_not(name, expected):
    pair = found([B, A], [0.6, 0.8], [0, 1])
    expected = [
        (label, round(score, 4), [round(v, 4) for v in box]) for label, score, box in expected
    ]
    settings = {"nms": name, "iou_threshold": 0.5}
    assert rows(suppress(pair, **settings, class_agnostic=True)) == expected
    assert rows(suppress(pair, **settings)) == [(1, 0.8, A), (0, 0.6, B)]
    one = Detections(pair.boxes, pair.scores, torch.ones(2, dtype=torch.int64))
    assert rows(suppress(one, **settings)) == [(1, *rest) for _, *rest in expected]
    assert rows(suppress(one, **settings, max_detections=1)) == expected[:1]


def test_every_kind_is_its_function(scene):
    boxes, scores, labels = scene(150, 3, seed=0)
    candidates = Detections(boxes, scores, labels)
    settings = {"iou_threshold": 0.4, "sigma": 0.3, "score_threshold": 0.1}

    def of(name, **more):
        return suppress(candidates, nms=name, **settings, **more)

    for method in ("linear", "gaussian"):
        index, lowered = soft_nms(boxes, scores, labels, method=method, **settings)
        assert torch.equal(of(f"soft_{method}").boxes, boxes[index])
        assert torch.equal(of(f"soft_{method}").scores, lowered)
        index, lowered = matrix_nms(
            boxes, scores, labels, method=method, sigma=0.3, score_threshold=0.1
        )
        assert torch.equal(of(f"matrix_{method}").labels, labels[index])
        assert torch.equal(of(f"matrix_{method}").scores, lowered)
    index = diou_nms(boxes, scores, labels, iou_threshold=0.4)
    assert torch.equal(of("diou").boxes, boxes[index])
    index = nms(boxes, scores, iou_threshold=0.4)
    assert torch.equal(of("hard", class_agnostic=True).boxes, boxes[index])
    fused, _, _ = weighted_boxes_fusion(boxes, scores, labels, iou_threshold=0.4, conf_type="max")
    assert torch.equal(of("wbf").boxes, fused)
    merged, _ = non_maximum_merging(boxes, scores, labels, iou_threshold=0.4)
    assert torch.equal(of("nmm").boxes, merged)


def test_the_default_selection_is_hard_nms_in_each_class(scene):
    boxes, _, _ = scene(60, seed=1)
    scores = torch.rand(60, 4, generator=torch.manual_seed(0), dtype=torch.float64)
    limits = {"score_threshold": 0.3, "iou_threshold": 0.4, "max_detections": 50, "min_size": 8}
    inside = boxes.clamp(0, 70)
    expected = select_detections(inside[:, None], scores, **limits)
    reported = Selection(**limits)(boxes[:, None], scores, (70, 70), (140, 210))
    assert torch.equal(reported.scores, expected[1]) and torch.equal(reported.labels, expected[2])
    assert torch.equal(reported.boxes, expected[0] * torch.tensor([3.0, 2, 3, 2]).double())
    assert 0 < len(reported) < 50


def test_the_threshold_counts_again_after_suppression():
    boxes, scores = torch.tensor([[A], [B]]), torch.tensor([[0.8], [0.6]])
    limits = {"iou_threshold": 0.5, "max_detections": 9, "nms": "soft_linear"}
    low = Selection(score_threshold=0.1, **limits)(boxes, scores, (20, 20), (20, 20))
    high = Selection(score_threshold=0.2, **limits)(boxes, scores, (20, 20), (20, 20))
    assert low.scores.tolist() == pytest.approx([0.8, 0.12])
    assert high.scores.tolist() == pytest.approx([0.8])


@pytest.mark.parametrize("name", SUPPRESSIONS)
@pytest.mark.parametrize("agnostic", [False, True])
def test_nothing_to_report(name, agnostic):
    settings = {"nms": name, "iou_threshold": 0.5, "class_agnostic": agnostic}
    for empty in (
        suppress(Detections.empty(), **settings),
        fuse([Detections.empty()] * 3, **settings),
        fuse([], **settings),
        Selection(score_threshold=0.5, max_detections=3, **settings)(
            torch.zeros(4, 1, 4), torch.zeros(4, 2), (8, 8), (8, 8)
        ),
    ):
        assert empty.boxes.shape == (0, 4)
        assert empty.labels.dtype == torch.int64


# ---------------------------------------------------------------------------- several sources


def test_fusion_of_sources_counts_votes():
    parts = [found([A, FAR], [0.6, 0.8]), found([B], [0.3]), Detections.empty()]
    fused = fuse(parts, nms="wbf", iou_threshold=0.55)
    assert rows(fused) == [
        (0, 0.3, [0, 0, 10, round(28 / 3, 4)]),  # mean 0.45 of two of three
        (0, round(0.8 / 3, 4), FAR),
    ]
    # weights 2, 1, 1: scores 1.2 and 0.3 have the mean 0.75, and 2 boxes of a weight of 4
    fused = fuse(parts, nms="wbf", iou_threshold=0.55, weights=[2, 1, 1])
    assert rows(fused) == [(0, 0.4, FAR), (0, 0.375, [0, 0, 10, 9.6])]
    assert len(fuse(parts, nms="wbf", iou_threshold=0.55, score_threshold=0.28)) == 1


def test_one_source_alone_has_nobody_to_vote_with():
    fused = fuse([found([A, B], [0.8, 0.6])], nms="wbf", iou_threshold=0.5)
    assert rows(fused) == [(0, 0.8, [round(v, 4) for v in MEAN])]


def test_weights_of_other_kinds_scale_the_scores():
    parts = [found([A], [0.6]), found([B], [0.8])]
    assert rows(fuse(parts, nms="hard", iou_threshold=0.5)) == [(0, 0.8, B)]
    assert rows(fuse(parts, nms="hard", iou_threshold=0.5, weights=[2, 1])) == [(0, 0.6, A)]
    assert rows(fuse(parts, nms="none", iou_threshold=0.5, weights=[2, 1])) == [
        (0, 0.6, A), (0, 0.4, B)
    ]  # fmt: skip


@pytest.mark.parametrize("name", SUPPRESSIONS)
def test_sources_obey_the_limits(name):
    parts = [found([A, FAR], [0.5, 0.4], [0, 1]), found([A, FAR], [0.5, 0.4], [0, 1])]
    limited = fuse(parts, nms=name, iou_threshold=0.5, max_detections=1)
    assert len(limited) == 1 and limited.labels.tolist() == [0]
    above = fuse(parts, nms=name, iou_threshold=0.5, score_threshold=0.45)
    assert set(above.labels.tolist()) == {0}


def test_what_is_refused():
    with pytest.raises(ValueError, match=r"unknown nms 'sotf'; choose one of hard, soft_linear"):
        suppress(Detections.empty(), nms="sotf", iou_threshold=0.5)
    with pytest.raises(ValueError, match=r"unknown nms 'sotf'"):
        fuse([], nms="sotf", iou_threshold=0.5)
    with pytest.raises(ValueError, match=r"2 sources need as many weights above 0, got \[1\]"):
        fuse([Detections.empty()] * 2, nms="hard", iou_threshold=0.5, weights=[1])
    with pytest.raises(ValueError, match=r"weights above 0"):
        fuse([Detections.empty()] * 2, nms="hard", iou_threshold=0.5, weights=[1, 0])
