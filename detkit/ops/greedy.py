"""Greedy suppression: soft-NMS and DIoU-NMS.

By definition these take one box after the other, the best one first, and lower the scores of the
boxes that overlap it. But a box whose score is the highest among those that it overlaps can be
taken at once: no score ever rises, so nothing can come before it that would change it. All such
boxes are taken together, and a few dozen rounds of vector work do what were as many steps as boxes.

K boxes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from detkit.ops.neighbours import Measure, Neighbours, distance_overlap, overlap

_ABREAST = 64  # of the best boxes, how many are looked at in a round


def take_turns(
    boxes: Tensor, scores: Tensor, groups: Tensor | None, factor: Measure, *, score_threshold: float
) -> tuple[Tensor, Tensor]:
    """Take the best box, multiply the scores of those that overlap it, and so on.

    Args:
        boxes: `[K, 4]`.
        scores: `[K]`, at least 0.
        groups: `[K]` int64; boxes of different groups do not touch each other. None for one group.
        factor: by what the score of the second of two boxes is multiplied when the first is taken;
            in 0..1, and 1 where they do not overlap.
        score_threshold: at least 0; boxes that fall to it are given up.

    Returns:
        `[n]` indices of the boxes taken, in this order; `[n]` their scores by then.
    """
    index = torch.arange(len(boxes), device=boxes.device)
    taken: list[Tensor] = [index[:0]]
    values: list[Tensor] = [scores[:0]]
    while True:
        alive = (scores > score_threshold).nonzero()[:, 0]
        if len(alive) == 0:
            break
        neighbours = Neighbours(boxes[alive], None if groups is None else groups[alive])
        alive = alive[neighbours.order]
        index, boxes, scores = index[alive], boxes[alive], scores[alive]
        groups = neighbours.groups
        # those that are done with are sorted out now and then
        while (scores > score_threshold).sum() * 2 > len(scores):
            places = _free(neighbours, scores, factor, score_threshold)
            if len(places) == 0:  # NaN stands in front of them until it is sorted out
                break
            taken.append(index[places])
            values.append(scores[places])
            first, second = neighbours.pairs(places)
            lowered = neighbours.measure(factor, first, second)
            scores = scores.scatter_reduce(0, second, lowered, "prod")
            scores[places] = 0
    value, order = torch.cat(values).sort(descending=True, stable=True)
    return torch.cat(taken)[order], value


def _free(
    neighbours: Neighbours, scores: Tensor, factor: Measure, score_threshold: float
) -> Tensor:
    """Places of boxes that no better one would change: among the best, as all better are there."""
    value, best = scores.topk(min(_ABREAST, len(scores)))
    columns = neighbours.columns.index_select(1, best)
    changes = factor(columns[:, :, None], columns[:, None, :]) < 1  # [B, B] the row the column
    if neighbours.groups is not None:
        group = neighbours.groups[best]
        changes &= group[:, None] == group
    blocked = changes.triu_(1).any(dim=0)
    return best[~blocked & (value > score_threshold)]


def greedy_nms(boxes: Tensor, scores: Tensor, groups: Tensor | None, same: Measure) -> Tensor:
    """Hard NMS by any measure.

    Args:
        boxes: `[K, 4]`.
        scores: `[K]`, of equal ones the first wins.
        groups: `[K]` int64 or None.
        same: of boxes in columns `[4, ...]`, which are of one object; False where they do not
            overlap.

    Returns:
        Indices of the boxes that stay, best score first.
    """
    # places instead of scores: all different, and above 0 whatever the scores are
    order = scores.argsort(descending=True, stable=True)
    places = torch.arange(len(order), 0, -1, device=order.device, dtype=torch.float64)
    priority = torch.empty_like(places).scatter_(0, order, places)

    def factor(first: Tensor, second: Tensor) -> Tensor:
        return (~same(first, second)).to(priority.dtype)

    return take_turns(boxes, priority, groups, factor, score_threshold=0.0)[0]


def diou_nms(
    boxes: Tensor, scores: Tensor, groups: Tensor | None = None, *, iou_threshold: float
) -> Tensor:
    """NMS that spares boxes whose centre is elsewhere (arXiv 1911.08287, section 4.2).

    Args:
        boxes: `[K, 4]`.
        scores: `[K]`.
        groups: `[K]` int64; boxes of different groups never suppress each other. None for one.
        iou_threshold: of two boxes whose DIoU is at least this, the lower score goes.

    Returns:
        Indices of the boxes that stay, best score first.
    """

    def same(first: Tensor, second: Tensor) -> Tensor:
        return distance_overlap(first, second) >= iou_threshold

    return greedy_nms(boxes, scores, groups, same)


def soft_nms(
    boxes: Tensor,
    scores: Tensor,
    groups: Tensor | None = None,
    *,
    method: str = "gaussian",
    iou_threshold: float = 0.3,
    sigma: float = 0.5,
    score_threshold: float = 1e-3,
) -> tuple[Tensor, Tensor]:
    """Lower the scores of boxes that overlap a better one (arXiv 1704.04503, section 3).

    Args:
        boxes: `[K, 4]`.
        scores: `[K]`, at least 0.
        groups: `[K]` int64; boxes of different groups never touch each other. None for one.
        method: "linear" multiplies by 1 - IoU where the IoU is at least `iou_threshold`, "gaussian"
            by exp(-IoU^2 / sigma) whatever it is.
        iou_threshold: see `method`.
        sigma: see `method`; the smaller, the more a score falls.
        score_threshold: boxes are dropped whose score is not above it in the end.

    Returns:
        `[n]` indices of the boxes that stay, best first; `[n]` their new scores.

    Raises:
        ValueError: an unknown method.
    """
    if method not in ("linear", "gaussian"):
        raise ValueError(f"unknown method {method!r} of soft-NMS; choose linear or gaussian")

    def linear(first: Tensor, second: Tensor) -> Tensor:
        iou = overlap(first, second)
        return torch.where(iou >= iou_threshold, 1 - iou, 1.0).to(scores.dtype)

    def gaussian(first: Tensor, second: Tensor) -> Tensor:
        return (-overlap(first, second).square() / sigma).exp().to(scores.dtype)

    factor = linear if method == "linear" else gaussian
    return take_turns(boxes, scores, groups, factor, score_threshold=score_threshold)
