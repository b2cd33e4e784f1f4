"""Losses as pure functions; every one gives 0 for empty input, with a gradient."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import generalized_box_iou_loss


def smooth_l1(prediction: Tensor, target: Tensor, *, beta: float) -> Tensor:
    """Element-wise smooth L1 (Fast R-CNN, arXiv 1504.08083, equation 3); beta = 0 is plain L1."""
    return F.smooth_l1_loss(prediction, target, beta=beta, reduction="none")


def giou_loss(boxes: Tensor, targets: Tensor) -> Tensor:
    """1 - GIoU `[N]` of paired boxes `[N, 4]` (arXiv 1902.09630)."""
    return generalized_box_iou_loss(boxes, targets, reduction="none")


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of `values` where `mask` holds; 0 where it holds nowhere."""
    return (values * mask).sum() / mask.sum().clamp(min=1)
