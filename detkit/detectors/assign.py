"""Which truth each candidate box learns from, and which candidates are in the minibatch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from detkit.ops import match, sample_balanced
from detkit.structures import Target


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
        rescue: every truth gets its best candidates, however low their overlap.
    """

    positive_iou: float
    negative_iou: float
    samples: int
    positive_fraction: float
    rescue: bool = False

    @torch.no_grad()
    def __call__(self, candidates: Tensor, target: Target) -> Assigned:
        """Assign the truths of one image to `candidates` `[N, 4]`."""
        matched = match(
            candidates,
            target.boxes,
            target.crowd,
            positive_iou=self.positive_iou,
            negative_iou=self.negative_iou,
            rescue=self.rescue,
        )
        index, positive, valid = sample_balanced(
            matched.positive,
            matched.negative,
            count=self.samples,
            positive_fraction=self.positive_fraction,
        )
        if len(target) == 0:
            boxes, labels = candidates[index], torch.zeros_like(index)
        else:
            truth = matched.truth[index]
            boxes, labels = target.boxes[truth], target.labels[truth]
        return Assigned(index, positive, valid, boxes, labels)
