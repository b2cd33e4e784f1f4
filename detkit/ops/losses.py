"""Losses as pure functions, one number for each box or each logit: sums and means are the caller's.

N boxes or anchors, C classes. Boxes are xyxy in pixels. Logits, offsets and boxes are expected in
float32 or wider. Without boxes every loss is an empty tensor, whose sum is zero with a gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import sigmoid_focal_loss

# Keeps empty boxes from dividing by zero, as in torchvision
EPS = 1e-7


# ------------------------------------------------------------------------------ classification


def cross_entropy(
    logits: Tensor,
    labels: Tensor,
    *,
    label_smoothing: float = 0.0,
    class_weights: Tensor | None = None,
) -> Tensor:
    """Softmax cross entropy `[N]`.

    Args:
        logits: `[N, C]`, background among the columns where there is such a class.
        labels: `[N]` int64, the right column.
        label_smoothing: share of the target that is spread over all columns (arXiv 1512.00567,
            section 7).
        class_weights: `[C]` factor of the loss of each class. A mean is the caller's: divide by
            `class_weights[labels].sum()` for the weighted one.
    """
    return F.cross_entropy(
        logits, labels, weight=class_weights, label_smoothing=label_smoothing, reduction="none"
    )


def binary_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy of a sigmoid, of any shape; `targets` in 0..1."""
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="none")


def focal_loss(
    logits: Tensor, targets: Tensor, *, alpha: float = 0.25, gamma: float = 2.0
) -> Tensor:
    """Cross entropy that hardly counts what is already right (RetinaNet, arXiv 1708.02002, eq. 5).

    Args:
        logits: any shape.
        targets: of the same shape, 1 for the class and 0 for the others.
        alpha: weight of the positives; 1 - alpha is that of the negatives. -1 weighs nothing.
        gamma: 0 for cross entropy, else at least 1: below, the slope of a sure logit is not finite.
    """
    return sigmoid_focal_loss(logits, targets, alpha=alpha, gamma=gamma, reduction="none")


def quality_focal_loss(logits: Tensor, targets: Tensor, *, beta: float = 2.0) -> Tensor:
    """Focal loss towards a quality instead of a class (GFL, arXiv 2006.04388, eq. 2).

    Args:
        logits: any shape.
        targets: of the same shape, in 0..1: the IoU of the predicted box in the column of its
            class, 0 elsewhere.
        beta: 0 for cross entropy, else at least 1.
    """
    distance = (targets - logits.sigmoid()).abs()
    return distance.pow(beta) * binary_cross_entropy(logits, targets)


def varifocal_loss(
    logits: Tensor, targets: Tensor, *, alpha: float = 0.75, gamma: float = 2.0
) -> Tensor:
    """Focal only on the negatives; a positive counts by its quality (arXiv 2008.13367, eq. 2).

    Args:
        logits: any shape.
        targets: of the same shape, in 0..1: the IoU of the predicted box in the column of its
            class, 0 elsewhere.
        alpha: weight of the negatives.
        gamma: 0 for cross entropy of the negatives, else at least 1.
    """
    weight = torch.where(targets > 0, targets, alpha * logits.sigmoid().pow(gamma))
    return weight * binary_cross_entropy(logits, targets)


# ------------------------------------------------------------------------------------- numbers


def l1_loss(predicted: Tensor, targets: Tensor) -> Tensor:
    """Sum `[...]` of absolute differences over the last axis of `[..., 4]`."""
    return F.l1_loss(predicted, targets, reduction="none").sum(dim=-1)


def l2_loss(predicted: Tensor, targets: Tensor) -> Tensor:
    """Sum `[...]` of squared differences over the last axis of `[..., 4]`, not halved."""
    return F.mse_loss(predicted, targets, reduction="none").sum(dim=-1)


def smooth_l1_loss(predicted: Tensor, targets: Tensor, *, beta: float = 1.0) -> Tensor:
    """Sum `[...]` over the last axis of `[..., 4]` (Fast R-CNN, arXiv 1504.08083, eq. 3).

    A difference d costs d^2 / (2 beta) below `beta`, |d| - beta / 2 from there on.
    """
    return F.smooth_l1_loss(predicted, targets, beta=beta, reduction="none").sum(dim=-1)


def kl_loss(predicted: Tensor, targets: Tensor, log_variance: Tensor) -> Tensor:
    """Smooth L1 under the uncertainty that the network states (arXiv 1809.08545, eq. 9 and 10).

    exp(-a) d^2 / 2 + a / 2 for a difference |d| <= 1, else exp(-a) (|d| - 1 / 2) + a / 2. It is
    negative where the network is sure and right.

    Args:
        predicted: `[..., 4]` offsets.
        targets: `[..., 4]` offsets.
        log_variance: `[..., 4]`, a = log(sigma^2) of each offset.

    Returns:
        `[...]`, summed over the last axis.
    """
    distance = F.smooth_l1_loss(predicted, targets, beta=1.0, reduction="none")
    return ((-log_variance).exp() * distance + 0.5 * log_variance).sum(dim=-1)


def distribution_focal_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy with the two bins around a number (GFL, arXiv 2006.04388, eq. 6).

    Args:
        logits: `[..., bins]` over the values 0, 1, .. bins - 1.
        targets: `[...]` in 0..bins - 1; what lies outside is taken to the border.

    Returns:
        `[...]`.

    Raises:
        ValueError: fewer than two bins.
    """
    bins = logits.shape[-1]
    if bins < 2:
        raise ValueError(f"a distribution needs two bins around a number, got {bins} in all")
    targets = targets.clamp(0, bins - 1)
    left = targets.floor().clamp(max=bins - 2)
    to_right = targets - left
    log_share = logits.log_softmax(dim=-1)
    index = left.long()[..., None]
    below = log_share.gather(-1, index)[..., 0]
    above = log_share.gather(-1, index + 1)[..., 0]
    return -((1 - to_right) * below + to_right * above)


def distribution_expectation(logits: Tensor) -> Tensor:
    """Mean `[...]` of the distributions `[..., bins]` over 0..bins - 1 (GFL, eq. 5)."""
    values = torch.arange(logits.shape[-1], device=logits.device, dtype=logits.dtype)
    return logits.softmax(dim=-1) @ values


# --------------------------------------------------------------------------------- paired boxes
#
# torchvision has GIoU, DIoU and CIoU, too. Its functions pick the pairs that overlap by a mask,
# for which the CPU waits for the GPU four times a call, and its CIoU of an empty box is NaN.


class _Pair(NamedTuple):
    """What the losses of paired boxes share."""

    iou: Tensor  # [N]
    union: Tensor  # [N] area
    hull: Tensor  # [N, 2] width and height of the smallest box around both


def _pair(boxes: Tensor, targets: Tensor) -> _Pair:
    shared = torch.minimum(boxes[..., 2:], targets[..., 2:]) - torch.maximum(
        boxes[..., :2], targets[..., :2]
    )
    # relu and not clamp: boxes that only touch have no slope, whichever side they come from
    width, height = F.relu(shared).unbind(-1)
    intersection = width * height
    hull = torch.maximum(boxes[..., 2:], targets[..., 2:]) - torch.minimum(
        boxes[..., :2], targets[..., :2]
    )
    area, target_area = ((b[..., 2:] - b[..., :2]).unbind(-1) for b in (boxes, targets))
    union = area[0] * area[1] + target_area[0] * target_area[1] - intersection
    return _Pair(intersection / (union + EPS), union, hull)


def iou_loss(boxes: Tensor, targets: Tensor) -> Tensor:
    """1 - IoU `[N]` of paired boxes `[N, 4]`; disjoint boxes cost 1 and have no gradient.

    Linear rather than the -log(IoU) of UnitBox (arXiv 1608.01471), which is infinite there.
    """
    return 1 - _pair(boxes, targets).iou


def giou_loss(boxes: Tensor, targets: Tensor) -> Tensor:
    """1 - GIoU `[N]` in 0..2 of paired boxes `[N, 4]` (arXiv 1902.09630, algorithm 1)."""
    iou, union, hull = _pair(boxes, targets)
    hull_area = hull[..., 0] * hull[..., 1]
    return 1 - (iou - (hull_area - union) / (hull_area + EPS))


def diou_loss(boxes: Tensor, targets: Tensor) -> Tensor:
    """1 - IoU + squared distance of the centres over that of the hull's corners, `[N]`.

    Of paired boxes `[N, 4]` (arXiv 1911.08287, eq. 7).
    """
    return _diou_loss(boxes, targets, _pair(boxes, targets))


def ciou_loss(boxes: Tensor, targets: Tensor) -> Tensor:
    """DIoU loss plus the difference of the aspect ratios, `[N]` (arXiv 1911.08287, eq. 8 to 11).

    Of paired boxes `[N, 4]`. A box without area has no aspect ratio, and none is compared.
    """
    pair = _pair(boxes, targets)
    size, target_size = boxes[..., 2:] - boxes[..., :2], targets[..., 2:] - targets[..., :2]
    solid = ((size > 0) & (target_size > 0)).all(dim=-1, keepdim=True)
    (width, height), (target_width, target_height) = (
        torch.where(solid, each, 1.0).unbind(-1) for each in (size, target_size)
    )
    angle = torch.atan(target_width / target_height) - torch.atan(width / height)
    aspect = (4 / math.pi**2) * angle.square()
    with torch.no_grad():  # a weight in the paper, which the gradient does not go through
        weight = aspect / (1 - pair.iou + aspect + EPS)
    return _diou_loss(boxes, targets, pair) + weight * aspect


def _diou_loss(boxes: Tensor, targets: Tensor, pair: _Pair) -> Tensor:
    centre, target_centre = ((b[..., :2] + b[..., 2:]) / 2 for b in (boxes, targets))
    distance = (centre - target_centre).square().sum(dim=-1)
    return 1 - pair.iou + distance / (pair.hull.square().sum(dim=-1) + EPS)


# Of boxes in pixels and their truths
BOX_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "iou": iou_loss,
    "giou": giou_loss,
    "diou": diou_loss,
    "ciou": ciou_loss,
}
# Of offsets from anchors and those that were wanted
OFFSET_LOSSES: dict[str, Callable[..., Tensor]] = {
    "l1": l1_loss,
    "l2": l2_loss,
    "smooth_l1": smooth_l1_loss,
}
