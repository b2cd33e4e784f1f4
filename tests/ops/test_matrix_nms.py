"""Matrix NMS: the formula pair by pair, the matrix of the paper's listing, and the edges."""

from __future__ import annotations

import math

import pytest
import torch
from torchvision.ops import box_iou

from detkit.ops import matrix_nms, neighbours


def plain_matrix_nms(boxes, scores, labels, iou, *, method, sigma):
    """Equations 3 to 5, pair by pair."""
    boxes, scores, labels = boxes.tolist(), scores.tolist(), labels.tolist()

    def f(x):
        return 1 - x if method == "linear" else math.exp(-(x**2) / sigma)

    def better(j):
        return [i for i, s in enumerate(scores) if s > scores[j] and labels[i] == labels[j]]

    covered = [
        max((iou(boxes[k], box) for k in better(i)), default=0.0) for i, box in enumerate(boxes)
    ]
    return [
        score * min((f(iou(boxes[i], boxes[j])) / f(covered[i]) for i in better(j)), default=1.0)
        for j, score in enumerate(scores)
    ]


@pytest.mark.parametrize("method", ["linear", "gaussian"])
@pytest.mark.parametrize(("count", "classes"), [(1, 1), (2, 1), (120, 1), (120, 4), (120, 60)])
def test_equals_the_formula_of_the_paper(scene, plain_iou, method, count, classes):
    boxes, scores, labels = scene(count, classes, seed=count)
    expected = plain_matrix_nms(boxes, scores, labels, plain_iou, method=method, sigma=0.4)
    expected = [min(new, old) for new, old in zip(expected, scores.tolist(), strict=True)]
    index, lowered = matrix_nms(
        boxes, scores, labels, method=method, sigma=0.4, score_threshold=0.0
    )
    assert torch.equal(lowered, lowered.sort(descending=True).values)
    found = dict(zip(index.tolist(), lowered.tolist(), strict=True))
    assert len(found) == count
    assert [found[i] for i in range(count)] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("method", ["linear", "gaussian"])
def test_equals_the_matrix_of_the_papers_listing(scene, method):
    boxes, scores, _ = scene(300, seed=1)
    order = scores.argsort(descending=True)
    iou = box_iou(boxes[order], boxes[order]).triu(diagonal=1)  # [K, K] row better than column
    covered = iou.amax(dim=0)[:, None]
    if method == "linear":
        decay = ((1 - iou) / (1 - covered)).amin(dim=0)
    else:
        decay = (-(iou**2 - covered**2) / 0.5).exp().amin(dim=0)
    index, lowered = matrix_nms(boxes, scores, method=method, score_threshold=0.0)
    expected, by_score = (scores[order] * decay).sort(descending=True)
    torch.testing.assert_close(lowered, expected)
    assert torch.equal(index, order[by_score])


def test_by_hand():
    """The third overlaps the second, which itself is half suppressed by the first."""
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 5], [0, 0, 10, 2.5]])
    scores = torch.tensor([0.8, 0.4, 0.2])
    index, lowered = matrix_nms(boxes, scores, method="linear")
    assert index.tolist() == [0, 1, 2]
    # by the first 1 - 1 / 4; by the second (1 - 1 / 2) / (1 - 1 / 2)
    assert lowered.tolist() == pytest.approx([0.8, 0.4 * 0.5, 0.2 * 0.75])
    index, lowered = matrix_nms(boxes, scores, method="linear", score_threshold=0.15)
    assert index.tolist() == [0, 1]


def test_of_copies_only_the_first_of_the_best_stays_with_the_linear_one():
    boxes, scores = torch.tensor([[0.0, 0, 9, 9]] * 4), torch.tensor([0.5, 0.9, 0.9, 0.4])
    index, lowered = matrix_nms(boxes, scores, method="linear")
    assert index.tolist() == [1]
    assert lowered.tolist() == scores[:2].tolist()[1:]


def test_portions_change_nothing(scene, monkeypatch):
    boxes, scores, labels = scene(200, 3, seed=2)
    whole = matrix_nms(boxes, scores, labels)
    monkeypatch.setattr(neighbours, "_PAIRS", 50)
    for a, b in zip(whole, matrix_nms(boxes, scores, labels), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("groups", [None, torch.zeros(0, dtype=torch.int64)])
def test_no_boxes(groups):
    index, scores = matrix_nms(torch.zeros(0, 4), torch.zeros(0), groups)
    assert index.shape == scores.shape == (0,)
    assert index.dtype == torch.int64


def test_an_unknown_method_is_refused():
    with pytest.raises(ValueError, match=r"'cubic'.*linear or gaussian"):
        matrix_nms(torch.zeros(0, 4), torch.zeros(0), method="cubic")
