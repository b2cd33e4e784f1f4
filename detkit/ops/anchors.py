"""Anchors: reference boxes on a regular grid (Faster R-CNN, arXiv 1506.01497, section 3.1.1).

S sizes, R aspect ratios, A = S * R anchors a cell, H x W cells; M boxes of a data set, K clusters.
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


def shape_iou(shapes: Tensor, others: Tensor) -> Tensor:
    """IoU `[M, K]` of boxes with one centre, from their (height, width) `[M, 2]` and `[K, 2]`."""
    shared = torch.minimum(shapes[:, None], others[None]).prod(dim=2)
    return shared / (shapes.prod(dim=1)[:, None] + others.prod(dim=1) - shared)


def cluster_boxes(
    sizes: Tensor, k: int, *, seed: int = 0, max_steps: int = 300
) -> tuple[Tensor, float]:
    """Anchors from the data: k-means with the distance 1 - IoU (YOLO9000, arXiv 1612.08242, 2.).

    A cluster moves to the mean of its boxes unless they overlap that less than before: the mean is
    not what has the highest mean IoU, and so the mean IoU never falls.

    Args:
        sizes: `[M, 2]` (height, width) of boxes with an area.
        k: how many clusters.
        seed: of the choice where the clusters start, which is k-means++ (far apart).
        max_steps: it ends earlier where nothing moves.

    Returns:
        The clusters `[K, 2]`, smallest area first, K = min(k, M), and the mean over the boxes of
        the IoU with their best cluster, 0 without boxes.

    Raises:
        ValueError: k is below 1, or a side is not above 0.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    if len(sizes) == 0:
        return sizes.reshape(0, 2), 0.0
    if not bool((sizes > 0).all()):
        raise ValueError("boxes without an area have no shape; leave them out of the clusters")
    clusters = _far_apart(sizes, min(k, len(sizes)), seed)
    for _ in range(max_steps):
        moved = cluster_step(sizes, clusters)
        if torch.equal(moved, clusters):
            break
        clusters = moved
    clusters = clusters[clusters.prod(dim=1).argsort(stable=True)]
    return clusters, float(shape_iou(sizes, clusters).amax(dim=1).mean())


def cluster_step(sizes: Tensor, clusters: Tensor) -> Tensor:
    """Clusters `[K, 2]` after one step of `cluster_boxes`."""
    iou, nearest = shape_iou(sizes, clusters).max(dim=1)  # [M]

    def per_cluster(values: Tensor) -> Tensor:
        return values.new_zeros(len(clusters), *values.shape[1:]).index_add(0, nearest, values)

    count = per_cluster(torch.ones_like(iou))
    mean = per_cluster(sizes) / count.clamp(min=1)[:, None]
    gained = shape_iou(sizes, mean).gather(1, nearest[:, None])[:, 0] - iou
    better = per_cluster(gained) > 0  # an empty cluster stays, too
    return torch.where(better[:, None], mean, clusters)


def _far_apart(sizes: Tensor, k: int, seed: int) -> Tensor:
    """`[K, 2]` of the boxes, each drawn by its squared distance from those before it."""
    generator = torch.Generator().manual_seed(seed)
    chosen = [int(torch.randint(len(sizes), (1,), generator=generator))]
    distance = sizes.new_full((len(sizes),), torch.inf)
    for _ in range(k - 1):
        latest = shape_iou(sizes, sizes[chosen[-1:]])[:, 0]
        distance = torch.minimum(distance, 1 - latest)
        # where all boxes left are equal to chosen ones, any will do
        chance = distance.square().cpu() + 1e-12
        chosen.append(int(torch.multinomial(chance, 1, generator=generator)))
    return sizes[chosen]
