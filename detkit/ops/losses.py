"""Losses that torch lacks, as pure functions."""

from __future__ import annotations

from torch import Tensor
from torchvision.ops import generalized_box_iou_loss


def giou_loss(boxes: Tensor, targets: Tensor) -> Tensor:
    """1 - GIoU `[N]` of paired boxes `[N, 4]` (arXiv 1902.09630)."""
    return generalized_box_iou_loss(boxes, targets, reduction="none")
