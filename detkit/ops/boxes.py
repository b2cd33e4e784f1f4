"""Box geometry. Boxes are `[N, 4]` xyxy in pixels, `w = x2 - x1`; N and M count boxes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import box_iou

__all__ = ["box_area", "box_iou", "clip_boxes", "pairwise_intersection", "scale_boxes"]


def box_area(boxes: Tensor) -> Tensor:
    """Area `[...]` of boxes `[..., 4]` in square pixels; negative sides count as they are."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def pairwise_intersection(first: Tensor, second: Tensor) -> Tensor:
    """Area `[M, N]` shared by each of `first` `[M, 4]` with each of `second` `[N, 4]`."""
    top_left = torch.maximum(first[:, None, :2], second[None, :, :2])  # [M, N, 2]
    bottom_right = torch.minimum(first[:, None, 2:], second[None, :, 2:])  # [M, N, 2]
    return (bottom_right - top_left).clamp_(min=0).prod(dim=2)


def clip_boxes(boxes: Tensor, limits: Tensor) -> Tensor:
    """Move corners outside the image onto its border.

    Args:
        boxes: `[..., 4]`.
        limits: (width, height, width, height), broadcastable to `boxes`.
    """
    return torch.minimum(boxes.clamp(min=0), limits.to(boxes))


def scale_boxes(
    boxes: Tensor, source: tuple[int, int] | Sequence[int], destination: tuple[int, int]
) -> Tensor:
    """Map boxes `[N, 4]` from an image of size `source` to `destination`, both (height, width)."""
    ratio_y, ratio_x = destination[0] / source[0], destination[1] / source[1]
    return boxes * boxes.new_tensor([ratio_x, ratio_y, ratio_x, ratio_y])
