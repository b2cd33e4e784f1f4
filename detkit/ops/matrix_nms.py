"""Matrix NMS: soft suppression without turns (SOLOv2, arXiv 2003.10152, section 3.3).

The score of box j is multiplied by

    min over all better i of  f(iou_ij) / f(max over all better k of iou_ki)

and by no more than 1. The denominator says how likely i itself is suppressed. f(x) is 1 - x, or
exp(-x^2 / sigma).
Only pairs that overlap can lower a score, so the matrix of the name is never made. K boxes.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from detkit.ops.neighbours import Neighbours, overlap


def matrix_nms(
    boxes: Tensor,
    scores: Tensor,
    groups: Tensor | None = None,
    *,
    method: str = "gaussian",
    sigma: float = 0.5,
    score_threshold: float = 1e-3,
) -> tuple[Tensor, Tensor]:
    """Lower the scores of boxes that overlap a better one, all at once.

    Args:
        boxes: `[K, 4]`.
        scores: `[K]`, at least 0; of equal ones the first is better.
        groups: `[K]` int64; boxes of different groups never touch each other. None for one.
        method: "linear" or "gaussian", see above.
        sigma: of the Gaussian; the smaller, the more a score falls.
        score_threshold: boxes are dropped whose score is not above it in the end.

    Returns:
        `[n]` indices of the boxes that stay, best first; `[n]` their new scores.

    Raises:
        ValueError: an unknown method.
    """
    if method not in ("linear", "gaussian"):
        raise ValueError(f"unknown method {method!r} of matrix NMS; choose linear or gaussian")

    def decay(iou: Tensor) -> Tensor:
        return 1 - iou if method == "linear" else (-iou.square() / sigma).exp()

    best = scores.argsort(descending=True, stable=True)
    boxes, scores = boxes[best], scores[best]
    neighbours = Neighbours(boxes, None if groups is None else groups[best])
    covered = boxes.new_zeros(len(boxes))  # [K] largest IoU with a better one
    for _, worse, iou in _overlaps(neighbours):
        covered.scatter_reduce_(0, worse, iou, "amax")
    own = decay(covered)
    factor = torch.ones_like(own)
    for better, worse, iou in _overlaps(neighbours):
        # A box that lies exactly on a better one is out (0 / 0); the better one speaks for both
        speaks = own.index_select(0, better)
        ratio = torch.where(speaks > 0, decay(iou) / speaks, 1.0)
        factor.scatter_reduce_(0, worse, ratio, "amin")
    lowered = scores * factor.to(scores.dtype)
    kept = (lowered > score_threshold).nonzero()[:, 0]
    value, order = lowered[kept].sort(descending=True, stable=True)
    return best[kept[order]], value


def _overlaps(neighbours: Neighbours) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Of all pairs that overlap, the ranks of the better and of the worse box, and their IoU."""
    for first, second in neighbours.every_pair():
        iou = neighbours.measure(overlap, first, second)
        first, second = (neighbours.order.index_select(0, each) for each in (first, second))
        yield torch.minimum(first, second), torch.maximum(first, second), iou
