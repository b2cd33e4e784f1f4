"""Boxes as numbers to predict: offsets from anchors, or distances from points to the sides.

Offsets are those of R-CNN (arXiv 1311.2524, appendix C):

    dx = (x - xa) / wa    dy = (y - ya) / ha    dw = log(w / wa)    dh = log(h / ha)

with (x, y) the centre; each offset is multiplied by a weight so that it has about unit variance.
Distances are those of FCOS (arXiv 1904.01355, section 3.1).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

Weights = tuple[float, float, float, float]
UNIT: Weights = (1.0, 1.0, 1.0, 1.0)
# Growth beyond 1000/16 times the anchor comes from an untrained network, and exp() of it overflows.
MAX_LOG_RATIO = math.log(1000.0 / 16)


def encode(boxes: Tensor, anchors: Tensor, *, weights: Weights = UNIT) -> Tensor:
    """Offsets `[..., 4]` that lead from `anchors` `[..., 4]` to `boxes` `[..., 4]`."""
    anchor_size = anchors[..., 2:] - anchors[..., :2]
    size = boxes[..., 2:] - boxes[..., :2]
    shift = (boxes[..., :2] + 0.5 * size) - (anchors[..., :2] + 0.5 * anchor_size)
    offsets = torch.cat([shift / anchor_size, torch.log(size / anchor_size)], dim=-1)
    return _scale(offsets, weights)


def decode(
    offsets: Tensor,
    anchors: Tensor,
    *,
    weights: Weights = UNIT,
    max_log_ratio: float = MAX_LOG_RATIO,
) -> Tensor:
    """Boxes `[..., 4]` from `offsets` `[..., 4]` and `anchors` broadcastable to them."""
    x, y, w, h = weights
    offsets = _scale(offsets, (1 / x, 1 / y, 1 / w, 1 / h))
    anchor_size = anchors[..., 2:] - anchors[..., :2]
    centre = anchors[..., :2] + 0.5 * anchor_size + offsets[..., :2] * anchor_size
    half = 0.5 * anchor_size * offsets[..., 2:].clamp(max=max_log_ratio).exp()
    return torch.cat([centre - half, centre + half], dim=-1)


def _scale(offsets: Tensor, factors: Weights) -> Tensor:
    """Multiply column by column: a tensor of factors would have to travel to the GPU first."""
    if factors == UNIT:
        return offsets
    columns = offsets.unbind(-1)
    return torch.stack([c * f for c, f in zip(columns, factors, strict=True)], dim=-1)


def side_distances(points: Tensor, boxes: Tensor) -> Tensor:
    """Distances `[..., 4]` of points to the left, top, right and bottom side; negative outside."""
    return torch.cat([points - boxes[..., :2], boxes[..., 2:] - points], dim=-1)


def boxes_around(points: Tensor, distances: Tensor) -> Tensor:
    """Boxes `[..., 4]` whose sides are at `distances` `[..., 4]` from `points` `[..., 2]`."""
    return torch.cat([points - distances[..., :2], points + distances[..., 2:]], dim=-1)
