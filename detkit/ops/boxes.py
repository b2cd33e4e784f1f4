"""Box geometry. Boxes are `[N, 4]` xyxy in pixels, `w = x2 - x1`; N and M count boxes."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import box_iou

__all__ = ["box_area", "box_iou", "clip_boxes", "pairwise_intersection", "scale_boxes"]


def box_area(boxes: Tensor) -> Tensor:
    """Area `[...]` of boxes `[..., 4]` in square pixels; negative sides count as they are."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def pairwise_intersection(first: Tensor, second: Tensor) -> Tensor:
    """Area `[M, N]` shared by each of `first` `[M, 4]` with each of `second` `[N, 4]`."""
    x1, y1, x2, y2 = first[:, None].unbind(-1)  # [M, 1] each
    left, top, right, bottom = second[None].unbind(-1)  # [1, N] each
    # side by side, not as corners [M, N, 2]: half the memory
    width = (torch.minimum(x2, right) - torch.maximum(x1, left)).clamp_(min=0)
    height = (torch.minimum(y2, bottom) - torch.maximum(y1, top)).clamp_(min=0)
    return width * height


def clip_boxes(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Move corners of boxes `[..., 4]` outside an image of (height, width) onto its border."""
    height, width = size
    x1, y1, x2, y2 = boxes.unbind(-1)
    x1, x2 = x1.clamp(0, width), x2.clamp(0, width)
    y1, y2 = y1.clamp(0, height), y2.clamp(0, height)
    return torch.stack([x1, y1, x2, y2], dim=-1)


def scale_boxes(boxes: Tensor, source: tuple[int, int], destination: tuple[int, int]) -> Tensor:
    """Map boxes `[N, 4]` from an image of size `source` to `destination`, both (height, width)."""
    ratio_y, ratio_x = destination[0] / source[0], destination[1] / source[1]
    x1, y1, x2, y2 = boxes.unbind(-1)
    return torch.stack([x1 * ratio_x, y1 * ratio_y, x2 * ratio_x, y2 * ratio_y], dim=-1)
