"""Which truth each candidate box learns from, and which candidates are in the minibatch.

Faster R-CNN, arXiv 1506.01497, section 3.1.3. N candidates, S drawn, M truths. The results have a
fixed size, so that drawing does not wait for a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from detkit.ops.matching import match
from detkit.structures import Target


class Sample(NamedTuple):
    """The drawn candidates: positives first, then negatives, then unused places."""

    index: Tensor  # type: ignore[assignment]  # [S] int64 into the candidates; not tuple.index
    positive: Tensor  # [S] bool
    valid: Tensor  # [S] bool; False where there were too few candidates


def sample_balanced(
    positive: Tensor, negative: Tensor, *, count: int, positive_fraction: float
) -> Sample:
    """Draw `count` candidates at random, at most `positive_fraction` of them positive.

    Args:
        positive: `[N]` bool.
        negative: `[N]` bool, exclusive with `positive`.
        count: how many to draw; S = min(count, N).
        positive_fraction: upper limit of the share of positives; negatives fill up.
    """
    size = min(count, len(positive))
    max_positive = int(count * positive_fraction)
    key = torch.rand(len(positive), device=positive.device)  # [N] in 0..1
    # A second draw among the positives alone demotes those beyond the limit.
    best = torch.where(positive, key, -1.0).topk(min(max_positive, size)).indices
    chosen = torch.zeros_like(positive).index_fill_(0, best, True) & positive
    rank = torch.where(chosen, key + 1, torch.where(negative, key, -1.0))
    value, index = rank.topk(size)
    return Sample(index, value >= 1, value >= 0)


@dataclass(frozen=True)
class Assigned:
    """S drawn candidates of one image.

    Attributes:
        index: `[S]` into the candidates.
        positive: `[S]` bool.
        valid: `[S]` bool; False where there were too few candidates.
        boxes: `[S, 4]` of the truth, meaningful where positive.
        labels: `[S]` of the truth, meaningful where positive.
    """

    index: Tensor
    positive: Tensor
    valid: Tensor
    boxes: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Assigner:
    """Match by overlap, then draw a balanced minibatch.

    Attributes:
        positive_iou: at least this overlap is an object.
        negative_iou: less than this overlap is background; between the two is ignored.
        samples: how many candidates of an image are drawn.
        positive_fraction: at most this share of them is positive.
        allow_low_quality: every truth gets its best candidates, however low their overlap.
    """

    positive_iou: float
    negative_iou: float
    samples: int
    positive_fraction: float
    allow_low_quality: bool = False

    @torch.no_grad()
    def __call__(self, candidates: Tensor, target: Target) -> Assigned:
        """Assign the truths of one image to `candidates` `[N, 4]`."""
        matched = match(
            candidates,
            target.boxes,
            target.crowd,
            positive_iou=self.positive_iou,
            negative_iou=self.negative_iou,
            allow_low_quality=self.allow_low_quality,
        )
        index, positive, valid = sample_balanced(
            matched.positive,
            matched.negative,
            count=self.samples,
            positive_fraction=self.positive_fraction,
        )
        if len(target.boxes) == 0:
            boxes, labels = candidates[index], torch.zeros_like(index)
        else:
            truth = matched.truth[index]
            boxes, labels = target.boxes[truth], target.labels[truth]
        return Assigned(index, positive, valid, boxes, labels)
