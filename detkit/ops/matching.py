"""Assign ground truth to anchors by overlap (Faster R-CNN, arXiv 1506.01497, section 3.1.2).

N anchors or proposals, M ground-truth boxes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from detkit.ops.boxes import box_area, pairwise_intersection


class Match(NamedTuple):
    """What each anchor stands for: `truth` `[N]` index of its box, and three exclusive masks."""

    truth: Tensor  # [N] int64, meaningful where positive
    positive: Tensor  # [N] bool
    negative: Tensor  # [N] bool; neither positive nor negative: ignored


def match(
    anchors: Tensor,
    truths: Tensor,
    crowd: Tensor,
    *,
    positive_iou: float,
    negative_iou: float,
    allow_low_quality: bool = False,
    crowd_overlap: float = 0.5,
) -> Match:
    """Give each anchor the truth that it overlaps most.

    Args:
        anchors: `[N, 4]`.
        truths: `[M, 4]`; M = 0 makes every anchor negative.
        crowd: `[M]` bool; crowd regions are never matched, and an anchor that lies in one by
            `crowd_overlap` of its own area is ignored instead of negative.
        positive_iou: at least this overlap is an object.
        negative_iou: less than this overlap is background; between the two is ignored.
        allow_low_quality: also take the best anchors of every truth, however low their overlap.
        crowd_overlap: see `crowd`.

    Raises:
        ValueError: `positive_iou` is below `negative_iou`.
    """
    if positive_iou < negative_iou:
        raise ValueError(
            f"positive_iou {positive_iou} is below negative_iou {negative_iou}: what overlaps by "
            "something between would be an object and background; lower negative_iou"
        )
    if len(truths) == 0:
        nothing = torch.zeros(len(anchors), dtype=torch.bool, device=anchors.device)
        return Match(nothing.long(), nothing, ~nothing)

    shared = pairwise_intersection(truths, anchors)  # [M, N]
    anchor_area = box_area(anchors)  # [N]
    iou = shared / (box_area(truths)[:, None] + anchor_area - shared)
    iou = iou.masked_fill(crowd[:, None], -1)
    best_iou, truth = iou.max(dim=0)  # [N]
    positive = best_iou >= positive_iou
    negative = best_iou < negative_iou
    if allow_low_quality:
        # low-quality matches stay positive so that every truth gets an anchor; ties all count.
        # Such an anchor keeps the truth that it overlaps most, as in the reference code.
        best_of_truth = iou.amax(dim=1, keepdim=True)  # [M, 1]
        positive |= ((iou == best_of_truth) & (best_of_truth > 0)).any(dim=0)
        negative &= ~positive
    in_crowd = shared.masked_fill(~crowd[:, None], -1).amax(dim=0) >= crowd_overlap * anchor_area
    return Match(truth, positive, negative & ~in_crowd)
