"""Weighted boxes fusion and merging: the loops of the papers, numbers to check by hand, edges."""

from __future__ import annotations

import math

import pytest
import torch

from detkit.ops import non_maximum_merging, weighted_boxes_fusion

A, B = [0.0, 0, 10, 10], [0.0, 0, 10, 8]  # IoU 0.8
FAR = [50.0, 50, 60, 60]


def plain_fusion(boxes, scores, labels, source, iou, *, threshold, sources, weights, conf_type):
    """Section 3 of the paper, step by step; the score of each fused box by its members."""
    boxes, labels = boxes.tolist(), labels.tolist()
    factors = weights or [1.0] * sources
    scores = [s * factors[m] for s, m in zip(scores.tolist(), source.tolist(), strict=True)]
    clusters: list[list[int]] = []
    fused: list[list[float]] = []
    for i in sorted(range(len(boxes)), key=lambda i: -scores[i]):
        overlaps = [
            iou(box, boxes[i]) if labels[members[0]] == labels[i] else -1.0
            for members, box in zip(clusters, fused, strict=True)
        ]
        best = max(range(len(fused)), key=lambda c: overlaps[c], default=None)
        if best is None or overlaps[best] <= threshold:
            clusters.append([i])
            fused.append(boxes[i])
            continue
        clusters[best].append(i)
        total = sum(scores[m] for m in clusters[best])
        fused[best] = [
            sum(scores[m] * boxes[m][side] for m in clusters[best]) / total for side in range(4)
        ]
    found = []
    for members, box in zip(clusters, fused, strict=True):
        own = [scores[m] for m in members]
        if conf_type == "max":
            score = max(own) / max(factors)
        else:
            score = sum(own) / len(own) * min(len(own), sources) / sum(factors)
        found.append((score, box, members[0]))
    return sorted(found, key=lambda each: -each[0])


@pytest.mark.parametrize(
    ("count", "classes", "sources", "weights", "conf_type", "threshold", "spread"),
    [
        (1, 1, 1, None, "avg", 0.55, 0.2),
        (200, 1, 1, None, "max", 0.55, 0.2),
        (200, 1, 3, None, "avg", 0.55, 0.1),
        (200, 4, 3, [2.0, 1.0, 0.5], "avg", 0.4, 0.2),
        (200, 4, 3, [2.0, 1.0, 0.5], "max", 0.4, 0.2),
        (200, 60, 2, None, "avg", 0.5, 0.2),
        (300, 1, 2, None, "avg", 0.0, 0.4),
        (300, 2, 2, None, "avg", 0.3, 0.05),
    ],
)
def test_fusion_equals_the_loop_of_the_paper(
    scene, plain_iou, count, classes, sources, weights, conf_type, threshold, spread
):
    boxes, scores, labels = scene(count, classes, seed=count + classes, spread=spread)
    source = torch.randint(sources, (count,), generator=torch.manual_seed(0))
    expected = plain_fusion(
        boxes,
        scores,
        labels,
        source,
        plain_iou,
        threshold=threshold,
        sources=sources,
        weights=weights,
        conf_type=conf_type,
    )
    fused, score, index = weighted_boxes_fusion(
        boxes,
        scores,
        labels,
        source,
        iou_threshold=threshold,
        num_sources=sources,
        weights=weights,
        conf_type=conf_type,
    )
    assert index.tolist() == [founder for _, _, founder in expected]
    assert score.tolist() == pytest.approx([each for each, _, _ in expected], rel=1e-12)
    torch.testing.assert_close(fused, torch.tensor([box for _, box, _ in expected]).double())
    assert count == 1 or len(fused) < count


def test_fusion_by_hand():
    boxes = torch.tensor([B, A, FAR])
    scores = torch.tensor([0.3, 0.6, 0.8])
    source = torch.tensor([1, 0, 0])
    fused, score, index = weighted_boxes_fusion(
        boxes, scores, None, source, num_sources=2, iou_threshold=0.55
    )
    # bottom (0.6 * 10 + 0.3 * 8) / 0.9; two of two saw the first, one of two the other
    torch.testing.assert_close(fused, torch.tensor([[0, 0, 10, 28 / 3], FAR]))
    assert score.tolist() == pytest.approx([(0.6 + 0.3) / 2, 0.8 / 2])
    assert index.tolist() == [1, 2]


def test_labels_keep_boxes_apart_unless_none_are_given():
    boxes, scores = torch.tensor([A, B]), torch.tensor([0.6, 0.3])
    assert weighted_boxes_fusion(boxes, scores, torch.tensor([9, 4]))[2].tolist() == [0, 1]
    assert weighted_boxes_fusion(boxes, scores)[2].tolist() == [0]


def test_a_box_alone_stays_as_it_is():
    boxes = torch.rand(1, 4).cumsum(1)
    fused, score, _ = weighted_boxes_fusion(boxes, torch.tensor([0.7]))
    assert torch.equal(fused, boxes)
    assert score.tolist() == pytest.approx([0.7])


def test_the_mean_moves_with_each_box():
    """The third overlaps the first too little, but the mean of the first two enough."""
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 2, 10, 12], [0, 4, 10, 14]])
    scores = torch.tensor([0.9, 0.9, 0.9]) - torch.tensor([0.0, 0.001, 0.002])
    fused, _, index = weighted_boxes_fusion(boxes, scores, iou_threshold=0.5)
    assert index.tolist() == [0]
    torch.testing.assert_close(fused[0], torch.tensor([0.0, 2, 10, 12]), atol=0.01, rtol=0)


def test_what_fusion_refuses():
    boxes, scores = torch.tensor([A]), torch.tensor([0.5])
    with pytest.raises(ValueError, match=r"'mean'; choose avg or max"):
        weighted_boxes_fusion(boxes, scores, conf_type="mean")
    with pytest.raises(ValueError, match=r"1 weights for 2 sources"):
        weighted_boxes_fusion(boxes, scores, None, scores.long(), num_sources=2, weights=[1.0])
    with pytest.raises(ValueError, match=r"the source of each box"):
        weighted_boxes_fusion(boxes, scores, weights=[1.0])


# ------------------------------------------------------------------------------------ merging


def plain_merging(boxes, scores, labels, measure, threshold):
    """Take the best, merge all that overlap it, and so on with the others."""
    boxes, labels = boxes.tolist(), labels.tolist()
    left = scores.argsort(descending=True).tolist()
    found = []
    while left:
        best = left.pop(0)
        own = [
            i
            for i in left
            if labels[i] == labels[best] and measure(boxes[best], boxes[i]) > threshold
        ]
        left = [i for i in left if i not in own]
        members = [boxes[i] for i in [best, *own]]
        low = [min(box[k] for box in members) for k in (0, 1)]
        high = [max(box[k] for box in members) for k in (2, 3)]
        found.append((best, [*low, *high]))
    return found


@pytest.mark.parametrize("metric", ["iou", "ios"])
@pytest.mark.parametrize(("count", "classes"), [(1, 1), (200, 1), (400, 3), (200, 50)])
@pytest.mark.parametrize("threshold", [0.0, 0.5])
def test_merging_equals_the_plain_loop(scene, plain_iou, metric, count, classes, threshold):
    boxes, scores, labels = scene(count, classes, seed=count)

    def ios(a, b):
        area, other = ((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
        iou = plain_iou(a, b)
        return iou * (area + other) / (1 + iou) / min(area, other)

    measure = plain_iou if metric == "iou" else ios
    expected = plain_merging(boxes, scores, labels, measure, threshold)
    merged, index = non_maximum_merging(
        boxes, scores, labels, iou_threshold=threshold, metric=metric
    )
    assert index.tolist() == [best for best, _ in expected]
    assert merged.tolist() == [box for _, box in expected]


def test_merging_by_hand():
    """Halves of an object at the border of two tiles, and the whole of it seen badly."""
    boxes = torch.tensor([[0.0, 0, 60, 40], [40, 0, 100, 40], [0, 0, 100, 42], FAR])
    scores = torch.tensor([0.9, 0.8, 0.7, 0.6])
    merged, index = non_maximum_merging(boxes, scores, iou_threshold=0.5)
    # the halves share a third of each
    assert merged.tolist() == [[0, 0, 100, 42], [40, 0, 100, 40], FAR]
    assert index.tolist() == [0, 1, 3]
    merged, index = non_maximum_merging(boxes, scores, iou_threshold=0.5, metric="iou")
    assert index.tolist() == [0, 1, 3]
    assert merged[0].tolist() == [0, 0, 100, 42]  # IoU 4 / 7
    _, index = non_maximum_merging(boxes, scores, torch.tensor([0, 0, 1, 0]))
    assert index.tolist() == [0, 1, 2, 3]


def test_an_unknown_metric_is_refused():
    with pytest.raises(ValueError, match=r"'giou'; choose iou or ios"):
        non_maximum_merging(torch.zeros(0, 4), torch.zeros(0), metric="giou")


@pytest.mark.parametrize("groups", [None, torch.zeros(0, dtype=torch.int64)])
def test_no_boxes(groups):
    empty, none = torch.zeros(0, 4), torch.zeros(0)
    fused, scores, index = weighted_boxes_fusion(empty, none, groups, num_sources=3)
    assert fused.shape == (0, 4) and scores.shape == index.shape == (0,)
    merged, index = non_maximum_merging(empty, none, groups)
    assert merged.shape == (0, 4) and index.shape == (0,)


def test_a_point_is_fused_with_nothing():
    boxes, scores = torch.tensor([A, [5.0, 5, 5, 5]]), torch.tensor([0.9, 0.8])
    assert len(weighted_boxes_fusion(boxes, scores, iou_threshold=0.0)[0]) == 2
    merged, _ = non_maximum_merging(boxes, scores, iou_threshold=0.0)
    assert merged.tolist() == boxes.tolist()
    assert all(math.isfinite(v) for v in merged.flatten().tolist())
