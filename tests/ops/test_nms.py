"""Suppression: a plain reference, torchvision's batched kernel, groups, thresholds, empties."""

from __future__ import annotations

import pytest
import torch
import torchvision

from detkit.ops import batched_nms, nms, select_detections


def iou(a: list[float], b: list[float]) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0) * max(height, 0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return shared / (sum(areas) - shared)


def plain_nms(boxes: torch.Tensor, scores: torch.Tensor, iou_threshold: float) -> list[int]:
    """The definition: best first, keep what overlaps nothing kept by more than the threshold."""
    boxes = boxes.double().tolist()
    kept: list[int] = []
    for i in scores.argsort(descending=True, stable=True).tolist():
        if all(iou(boxes[i], boxes[k]) <= iou_threshold for k in kept):
            kept.append(i)
    return kept


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5, 0.7, 1.0])
def test_equals_the_definition(threshold):
    boxes, scores = random_boxes(150, seed=0)
    kept = nms(boxes, scores, iou_threshold=threshold).tolist()
    assert kept == plain_nms(boxes, scores, threshold)
    assert (len(kept) < 150) == (threshold < 1)


def test_overlap_of_exactly_the_threshold_stays():
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 5]])  # IoU 0.5
    scores = torch.tensor([0.8, 0.9])
    assert nms(boxes, scores, iou_threshold=0.5).tolist() == [1, 0]
    assert nms(boxes, scores, iou_threshold=0.49).tolist() == [1]


def test_a_suppressed_box_suppresses_nobody():
    boxes = torch.tensor([[0.0, 0, 10, 10], [4, 0, 14, 10], [8, 0, 18, 10]])
    assert nms(boxes, torch.tensor([3.0, 2, 1]), iou_threshold=0.4).tolist() == [0, 2]


@pytest.mark.parametrize("count", [50, 1200])  # torchvision changes its method at 1000 boxes
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_groups_equal_torchvisions(count, dtype):
    boxes, scores = random_boxes(count, seed=1)
    boxes, scores = boxes.to(dtype), scores.to(dtype)
    groups = torch.randint(0, 5, (count,), generator=torch.manual_seed(0))
    ours = batched_nms(boxes, scores, groups, iou_threshold=0.4)
    assert torch.equal(ours, torchvision.ops.batched_nms(boxes, scores, groups, 0.4))
    assert len(ours) < count


def test_groups_do_not_see_each_other():
    """Each group alone gives what it gives among the others, wherever its boxes lie."""
    boxes, scores = random_boxes(120, seed=2)
    boxes = boxes - 40  # torchvision's shift of groups takes coordinates below zero for another's
    groups = torch.arange(120) % 7 * 1000 - 3000
    kept = batched_nms(boxes, scores, groups, iou_threshold=0.3)
    assert torch.equal(kept, kept[scores[kept].argsort(descending=True)])
    for group in groups.unique():
        member = (groups == group).nonzero()[:, 0]
        alone = member[nms(boxes[member], scores[member], iou_threshold=0.3)]
        assert torch.equal(kept[groups[kept] == group], alone)


def test_equal_scores_keep_their_order():
    boxes = torch.tensor([[0.0, 0, 1, 1], [5, 5, 6, 6], [9, 9, 10, 10], [20, 20, 21, 21]])
    scores = torch.tensor([0.5, 0.7, 0.5, 0.5])
    groups = torch.tensor([3, 0, 0, 1])
    assert batched_nms(boxes, scores, groups, iou_threshold=0.5).tolist() == [1, 0, 2, 3]


@pytest.mark.gpu
def test_groups_on_a_gpu_equal_those_on_the_cpu():
    boxes, scores = random_boxes(2000, seed=3)
    groups = torch.randint(0, 90, (2000,), generator=torch.manual_seed(0))
    expected = batched_nms(boxes, scores, groups, iou_threshold=0.5)
    found = batched_nms(boxes.cuda(), scores.cuda(), groups.cuda(), iou_threshold=0.5)
    assert torch.equal(found.cpu(), expected)


def test_no_boxes():
    empty, none = torch.zeros(0, 4), torch.zeros(0)
    for kept in (
        nms(empty, none, iou_threshold=0.5),
        batched_nms(empty, none, none.long(), iou_threshold=0.5),
    ):
        assert kept.shape == (0,)
        assert kept.dtype == torch.int64


# ------------------------------------------------------------------- from scores to detections

LIMITS = {"score_threshold": 0.5, "iou_threshold": 0.5, "max_detections": 100}


def detections(boxes, scores, **limits):
    boxes, scores = torch.tensor(boxes).float(), torch.tensor(scores).float()
    boxes, scores, labels = select_detections(boxes, scores, **{**LIMITS, **limits})
    assert len(boxes) == len(scores) == len(labels)
    return [
        (label, round(score, 4), box)
        for label, score, box in zip(labels.tolist(), scores.tolist(), boxes.tolist(), strict=True)
    ]


A, B, C = [0, 0, 10, 10], [50, 0, 60, 10], [0, 0, 10, 9]


def test_each_class_takes_its_own_box():
    found = detections([[A, B]], [[0.75, 0.875]])
    assert found == [(1, 0.875, B), (0, 0.75, A)]


def test_all_classes_share_one_box():
    found = detections([[A], [B]], [[0.75, 0.875, 0.25], [0.0, 0.0, 0.625]])
    assert found == [(1, 0.875, A), (0, 0.75, A), (2, 0.625, B)]


def test_one_class():
    assert detections([[A], [C]], [[0.625], [0.75]]) == [(0, 0.75, C)]


def test_scores_must_be_above_the_threshold():
    assert detections([[A], [B]], [[0.5], [0.5001]]) == [(0, 0.5001, B)]


def test_suppression_stays_inside_a_class():
    boxes = [[A, A], [C, C]]  # IoU 0.9
    found = detections(boxes, [[0.9, 0.8], [0.7, 0.6]])
    assert [f[:2] for f in found] == [(0, 0.9), (1, 0.8)]
    found = detections(boxes, [[0.9, 0.1], [0.1, 0.8]])
    assert [f[:2] for f in found] == [(0, 0.9), (1, 0.8)]
    assert len(detections(boxes, [[0.9, 0.8], [0.7, 0.6]], iou_threshold=0.91)) == 4


def test_the_best_over_all_classes_are_reported():
    boxes, scores = [[A, A], [B, B]], [[0.6, 0.9], [0.8, 0.7]]
    assert [f[:2] for f in detections(boxes, scores, max_detections=3)] == [
        (1, 0.9), (0, 0.8), (1, 0.7)
    ]  # fmt: skip


def test_small_and_impossible_boxes_are_dropped():
    boxes = [[[0, 0, 4, 20]], [[0, 0, 20, 4]], [[30, 30, 35, 35]], [[0, 0, float("inf"), 9]]]
    scores = [[0.9], [0.8], [0.7], [0.6]]
    assert detections(boxes, scores, min_size=5) == [(0, 0.7, [30, 30, 35, 35])]
    assert detections([[[0, 0, float("nan"), 9]]], [[0.9]]) == []


@pytest.mark.parametrize(("proposals", "classes"), [(0, 3), (0, 1), (4, 3)])
def test_nothing_to_report(proposals, classes):
    boxes, scores, labels = select_detections(
        torch.zeros(proposals, classes, 4), torch.zeros(proposals, classes), **LIMITS
    )
    assert boxes.shape == (0, 4)
    assert scores.shape == labels.shape == (0,)
    assert labels.dtype == torch.int64


def random_boxes(count: int, *, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * 60
    size = torch.rand(count, 2, generator=generator) * 30 + 5
    scores = torch.randperm(count, generator=generator) / count
    return torch.cat([corner, corner + size], dim=1), scores
