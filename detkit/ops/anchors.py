"""Anchors: reference boxes on a regular grid (Faster R-CNN, arXiv 1506.01497, section 3.1.1).

S sizes, R aspect ratios, A = S * R anchors a cell, H x W cells.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def cell_anchors(
    sizes: Sequence[float], aspect_ratios: Sequence[float], *, rounded: bool = True
) -> Tensor:
    """Anchors `[A, 4]` centred on the origin, all sizes for the first ratio, then the next.

    An anchor of size s and ratio r (height / width) has the area s * s. `rounded` gives whole
    pixels, as torchvision has them.
    """
    scales = torch.tensor(sizes, dtype=torch.float32)
    heights = torch.tensor(aspect_ratios, dtype=torch.float32).sqrt()
    w = (1 / heights[:, None] * scales[None, :]).flatten()  # [R * S]
    h = (heights[:, None] * scales[None, :]).flatten()
    anchors = torch.stack([-w, -h, w, h], dim=1) / 2
    return anchors.round() if rounded else anchors


def centred_boxes(shapes: Sequence[Sequence[float]] | Tensor) -> Tensor:
    """Boxes `[A, 4]` centred on the origin from their (height, width) `[A, 2]`."""
    half = torch.as_tensor(shapes, dtype=torch.float32).reshape(-1, 2).flip(1) / 2  # (w, h)
    return torch.cat([-half, half], dim=1)


def grid_anchors(cell: Tensor, shape: tuple[int, int], stride: tuple[float, float]) -> Tensor:
    """Shift the anchors of one cell over a feature map.

    Args:
        cell: `[A, 4]` anchors of the first cell, such as `cell_anchors` gives them.
        shape: (H, W) of the feature map.
        stride: (vertical, horizontal) pixels between cells.

    Returns:
        `[H * W * A, 4]`, rows first, the anchors of a cell side by side.
    """
    height, width = shape
    y = torch.arange(height, device=cell.device, dtype=cell.dtype) * stride[0]
    x = torch.arange(width, device=cell.device, dtype=cell.dtype) * stride[1]
    y, x = torch.meshgrid(y, x, indexing="ij")
    shifts = torch.stack([x, y, x, y], dim=2)  # [H, W, 4]
    return (shifts[:, :, None] + cell).reshape(-1, 4)


def grid_points(
    shape: tuple[int, int],
    stride: tuple[float, float],
    *,
    first: float = 0.0,
    device: torch.device | str | None = None,
) -> Tensor:
    """Centres of the cells of a feature map.

    Args:
        shape: (H, W) of the feature map.
        stride: (vertical, horizontal) pixels between cells.
        first: pixel that the first cell is centred at, in both directions.
        device: of the result.

    Returns:
        `[H * W, 2]` (x, y), rows first.
    """
    height, width = shape
    y = torch.arange(height, device=device, dtype=torch.float32) * stride[0] + first
    x = torch.arange(width, device=device, dtype=torch.float32) * stride[1] + first
    y, x = torch.meshgrid(y, x, indexing="ij")
    return torch.stack([x, y], dim=2).flatten(0, 1)
