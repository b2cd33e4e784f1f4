"""Non-maximum suppression and the choice of what a detector reports. K candidates, C classes."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import nms as _nms

from detkit.ops.boxes import box_area


def nms(boxes: Tensor, scores: Tensor, *, iou_threshold: float) -> Tensor:
    """Hard NMS with torchvision's kernel.

    Args:
        boxes: `[K, 4]`.
        scores: `[K]`.
        iou_threshold: of two boxes that overlap by more than this, the lower score goes.

    Returns:
        Indices of the boxes that stay, best score first.
    """
    return _nms(boxes, scores, iou_threshold)


def batched_nms(boxes: Tensor, scores: Tensor, groups: Tensor, *, iou_threshold: float) -> Tensor:
    """NMS inside each group (class or pyramid level) on its own.

    Args:
        boxes: `[K, 4]`.
        scores: `[K]`.
        groups: `[K]` int64; boxes of different groups never suppress each other.
        iou_threshold: see `nms`.

    Returns:
        Indices of the boxes that stay, best score first.
    """
    if boxes.numel() == 0:
        return torch.zeros(0, dtype=torch.int64, device=boxes.device)
    if boxes.is_cuda:
        # One kernel for all groups: move them apart. In float64, as the shift would cost float32
        # boxes their last digits and with them the exact IoU.
        shift = groups.double() * (boxes.max().double() - boxes.min().double() + 1)
        return _nms(boxes.double() + shift[:, None], scores.double(), iou_threshold)
    # The CPU kernel is quadratic, so many small calls beat one large one.
    keep = torch.zeros_like(scores, dtype=torch.bool)
    for group in groups.unique():
        member = (groups == group).nonzero()[:, 0]
        keep[member[_nms(boxes[member], scores[member], iou_threshold)]] = True
    kept = keep.nonzero()[:, 0]
    return kept[scores[kept].argsort(descending=True, stable=True)]


def candidates(
    boxes: Tensor,
    scores: Tensor,
    *,
    score_threshold: float,
    min_size: float = 0.0,
    limit: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """From class scores of one image to single boxes: those with a chance to be reported.

    Args:
        boxes: `[N, C, 4]`, or `[N, 1, 4]` where all classes share a box.
        scores: `[N, C]`.
        score_threshold: only scores above it count.
        min_size: boxes with a side shorter than this many pixels are dropped.
        limit: only the best so many are looked at; None for all.

    Returns:
        boxes `[K, 4]`, scores `[K]`, labels `[K]`, not sorted.
    """
    classes, scores = scores.shape[1], scores.flatten()
    index = (scores > score_threshold).nonzero()[:, 0]
    scores = scores[index]
    if limit is not None and len(scores) > limit:
        scores, best = scores.topk(limit)
        index = index[best]
    row, label = index // classes, index % classes
    boxes = boxes[row, label] if boxes.shape[1] > 1 else boxes[row, 0]
    sides = boxes[:, 2:] - boxes[:, :2]
    large = (sides >= min_size).all(dim=1) & box_area(boxes).isfinite()
    large = large.nonzero()[:, 0]  # indexing by a mask would look for them three times
    return boxes[large], scores[large], label[large]


def select_detections(
    boxes: Tensor,
    scores: Tensor,
    *,
    score_threshold: float,
    iou_threshold: float,
    max_detections: int,
    min_size: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """From class scores of one image to what is reported: threshold, NMS in each class, top scores.

    Args:
        boxes: see `candidates`.
        scores: see `candidates`.
        score_threshold: see `candidates`.
        iou_threshold: see `nms`.
        max_detections: at most this many in the image.
        min_size: see `candidates`.

    Returns:
        boxes `[K, 4]`, scores `[K]`, labels `[K]`, best first.
    """
    boxes, scores, labels = candidates(
        boxes, scores, score_threshold=score_threshold, min_size=min_size
    )
    keep = batched_nms(boxes, scores, labels, iou_threshold=iou_threshold)[:max_detections]
    return boxes[keep], scores[keep], labels[keep]
