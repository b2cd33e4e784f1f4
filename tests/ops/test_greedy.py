"""Soft-NMS and DIoU-NMS: the loops of the papers, numbers to check by hand, and the edges."""

from __future__ import annotations

import math

import pytest
import torch

from detkit.ops import batched_nms, diou_nms, nms, soft_nms
from detkit.ops.greedy import greedy_nms
from detkit.ops.neighbours import overlap

A, HALF, FAR = [0.0, 0, 10, 10], [0.0, 0, 10, 5], [50.0, 50, 60, 60]  # IoU of the first two: 0.5


def plain_soft_nms(boxes, scores, labels, iou, *, method, iou_threshold, sigma, score_threshold):
    """Figure 2 of the paper."""
    boxes, scores, labels = boxes.tolist(), scores.tolist(), labels.tolist()
    left = list(range(len(boxes)))
    taken = []
    while left:
        m = max(left, key=lambda i: scores[i])
        left.remove(m)
        taken.append((m, scores[m]))
        for i in left:
            if labels[i] != labels[m]:
                continue
            overlap = iou(boxes[m], boxes[i])
            if method == "gaussian":
                scores[i] *= math.exp(-(overlap**2) / sigma)
            elif overlap >= iou_threshold:
                scores[i] *= 1 - overlap
    return [(m, score) for m, score in taken if score > score_threshold]


@pytest.mark.parametrize("method", ["linear", "gaussian"])
@pytest.mark.parametrize(
    ("count", "classes", "iou_threshold", "sigma", "score_threshold"),
    [
        (1, 1, 0.3, 0.5, 0.0),
        (70, 1, 0.3, 0.5, 0.0),
        (200, 1, 0.5, 0.1, 0.05),
        (200, 3, 0.0, 1.0, 0.0),
        (200, 40, 0.3, 0.5, 0.2),
    ],
)
def test_soft_nms_equals_the_loop_of_the_paper(
    scene, plain_iou, method, count, classes, iou_threshold, sigma, score_threshold
):
    boxes, scores, labels = scene(count, classes, seed=count + classes)
    settings = {
        "method": method,
        "iou_threshold": iou_threshold,
        "sigma": sigma,
        "score_threshold": score_threshold,
    }
    expected = plain_soft_nms(boxes, scores, labels, plain_iou, **settings)
    index, lowered = soft_nms(boxes, scores, labels, **settings)
    assert index.tolist() == [i for i, _ in expected]
    assert lowered.tolist() == pytest.approx([score for _, score in expected], rel=1e-12)
    if classes == 1:  # one group is no group
        alone, without = soft_nms(boxes, scores, **settings)
        assert torch.equal(alone, index) and torch.equal(without, lowered)


@pytest.mark.parametrize(
    ("settings", "scores"),
    [
        ({"method": "linear"}, {0: 0.9, 2: 0.5, 1: 0.4}),  # 0.8 * (1 - 0.5)
        ({"method": "linear", "iou_threshold": 0.5}, {0: 0.9, 2: 0.5, 1: 0.4}),
        ({"method": "linear", "iou_threshold": 0.51}, {0: 0.9, 1: 0.8, 2: 0.5}),
        ({"method": "gaussian"}, {0: 0.9, 2: 0.5, 1: 0.8 * math.exp(-0.5)}),
        ({"method": "gaussian", "sigma": 0.25}, {0: 0.9, 2: 0.5, 1: 0.8 * math.exp(-1)}),
        ({"method": "linear", "score_threshold": 0.4}, {0: 0.9, 2: 0.5}),
    ],
)
def test_soft_nms_by_hand(settings, scores):
    boxes = torch.tensor([A, HALF, FAR])
    index, lowered = soft_nms(boxes, torch.tensor([0.9, 0.8, 0.5]), **settings)
    expected = dict(sorted(scores.items(), key=lambda pair: -pair[1]))
    assert index.tolist() == list(expected)
    assert lowered.tolist() == pytest.approx(list(expected.values()))


def test_soft_nms_leaves_other_groups_alone_and_scores_as_given():
    boxes, scores = torch.tensor([A, HALF]), torch.tensor([0.9, 0.8])
    index, lowered = soft_nms(boxes, scores, torch.tensor([7, -3]))
    assert index.tolist() == [0, 1]
    assert torch.equal(lowered, scores)


def test_copies_of_a_box_fall_one_after_the_other():
    boxes, scores = torch.tensor([A] * 4), torch.tensor([0.6, 0.9, 0.8, 0.7])
    index, lowered = soft_nms(boxes, scores, sigma=1.0, score_threshold=0.0)
    assert index.tolist() == [1, 2, 3, 0]
    fall = [math.exp(-n) for n in range(4)]
    assert lowered.tolist() == pytest.approx([0.9, 0.8 * fall[1], 0.7 * fall[2], 0.6 * fall[3]])
    assert soft_nms(boxes, scores, method="linear", score_threshold=0.0)[0].tolist() == [1]


def plain_diou_nms(boxes, scores, labels, iou, threshold):
    boxes, labels = boxes.tolist(), labels.tolist()
    kept: list[int] = []

    def diou(a, b):
        distance = sum(((a[k] + a[k + 2]) / 2 - (b[k] + b[k + 2]) / 2) ** 2 for k in (0, 1))
        hull = sum((max(a[k + 2], b[k + 2]) - min(a[k], b[k])) ** 2 for k in (0, 1))
        return iou(a, b) - distance / hull

    for i in scores.argsort(descending=True).tolist():
        if all(labels[i] != labels[k] or diou(boxes[k], boxes[i]) < threshold for k in kept):
            kept.append(i)
    return kept


@pytest.mark.parametrize(("count", "classes"), [(1, 1), (200, 1), (200, 3), (200, 50)])
@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.6])
def test_diou_nms_equals_the_loop_of_the_paper(scene, plain_iou, count, classes, threshold):
    boxes, scores, labels = scene(count, classes, seed=3)
    kept = diou_nms(boxes, scores, labels, iou_threshold=threshold).tolist()
    assert kept == plain_diou_nms(boxes, scores, labels, plain_iou, threshold)
    assert len(kept) < count or classes > 3 or count == 1


def test_diou_nms_spares_a_box_with_another_centre():
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 5], [0, 2.5, 10, 7.5]])  # IoU 0.5 both
    scores = torch.tensor([0.9, 0.8, 0.7])
    # 2.5^2 / (10^2 + 10^2) = 1 / 32 off for the second
    assert diou_nms(boxes, scores, iou_threshold=0.48).tolist() == [0, 1]
    assert diou_nms(boxes, scores, iou_threshold=0.46).tolist() == [0]


@pytest.mark.parametrize("classes", [1, 5])
def test_the_rounds_with_plain_iou_are_torchvisions_hard_nms(scene, classes):
    boxes, scores, labels = scene(600, classes, seed=5)
    kept = greedy_nms(boxes, scores - 2, labels, lambda a, b: overlap(a, b) > 0.4)
    assert torch.equal(kept, batched_nms(boxes, scores, labels, iou_threshold=0.4))
    same = torch.zeros_like(labels)
    kept = greedy_nms(boxes, scores, same, lambda a, b: overlap(a, b) > 0.4)
    assert torch.equal(kept, nms(boxes, scores, iou_threshold=0.4))


def test_of_equal_scores_the_first_wins():
    boxes, scores = torch.tensor([FAR, A, A, HALF]), torch.full((4,), 0.5)
    assert diou_nms(boxes, scores, iou_threshold=0.3).tolist() == [0, 1]


def test_boxes_without_area_and_without_a_number_stop_nothing():
    point, nan = [5.0, 5, 5, 5], [math.nan] * 4
    boxes = torch.tensor([*[nan] * 100, A, HALF, point])
    scores = torch.linspace(1, 0.1, len(boxes))
    for index in (
        diou_nms(boxes, scores, iou_threshold=0.3),
        soft_nms(boxes, scores)[0],
    ):
        assert {100, 102} <= set(index.tolist())
        assert len(index) == len(set(index.tolist()))


@pytest.mark.parametrize("groups", [None, torch.zeros(0, dtype=torch.int64)])
def test_no_boxes(groups):
    empty, none = torch.zeros(0, 4), torch.zeros(0)
    for method in ("linear", "gaussian"):
        index, scores = soft_nms(empty, none, groups, method=method)
        assert index.shape == scores.shape == (0,)
        assert index.dtype == torch.int64
    assert diou_nms(empty, none, groups, iou_threshold=0.5).tolist() == []


def test_an_unknown_method_is_refused():
    with pytest.raises(ValueError, match=r"'cubic'.*linear or gaussian"):
        soft_nms(torch.zeros(0, 4), torch.zeros(0), method="cubic")


@pytest.mark.gpu
def test_on_a_gpu_as_on_the_cpu(scene):
    boxes, scores, labels = scene(1000, 5, seed=9)
    index, lowered = soft_nms(boxes, scores, labels)
    there, value = soft_nms(boxes.cuda(), scores.cuda(), labels.cuda())
    assert torch.equal(there.cpu(), index)
    torch.testing.assert_close(value.cpu(), lowered)
    kept = diou_nms(boxes.cuda(), scores.cuda(), labels.cuda(), iou_threshold=0.4)
    assert torch.equal(kept.cpu(), diou_nms(boxes, scores, labels, iou_threshold=0.4))
