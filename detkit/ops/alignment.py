"""Assign ground truth to the cells that serve it best (TOOD, arXiv 2108.07755, section 3.2).

B images, N cells of all levels, M ground-truth boxes of the fullest image, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from detkit.structures import Target


class PaddedTruths(NamedTuple):
    """The truths of a batch, as many rows for every image."""

    boxes: Tensor  # [B, M, 4]
    labels: Tensor  # [B, M] int64
    crowd: Tensor  # [B, M] bool
    valid: Tensor  # [B, M] bool; False where an image has fewer truths


class Alignment(NamedTuple):
    """What each cell learns."""

    truth: Tensor  # [B, N] int64 index of its box, meaningful where positive
    positive: Tensor  # [B, N] bool
    quality: Tensor  # [B, N] in 0..1 the score it is to give its truth's class; 0 elsewhere
    ignored: Tensor  # [B, N] bool, exclusive with `positive`: in a crowd region, learns nothing


@dataclass(frozen=True)
class AlignedTargets:
    """What the N cells of B images learn.

    Attributes:
        boxes: `[B, N, 4]` of the truth, meaningful where positive.
        labels: `[B, N]` of the truth, meaningful where positive.
        positive: `[B, N]` bool.
        quality: `[B, N]` the score to give the truth's class; 0 where there is no truth.
        ignored: `[B, N]` bool; learns nothing.
    """

    boxes: Tensor
    labels: Tensor
    positive: Tensor
    quality: Tensor
    ignored: Tensor


@dataclass(frozen=True)
class AlignedAssigner:
    """`task_aligned_match` with its settings, for the targets of a batch.

    Attributes:
        top_k: positives of a truth at most.
        alpha: weight of the score.
        beta: weight of the overlap.
    """

    top_k: int = 13
    alpha: float = 1.0
    beta: float = 6.0

    def __call__(
        self,
        scores: Tensor,
        boxes: Tensor,
        points: Tensor,
        targets: Sequence[Target],
        *,
        strides: Tensor,
    ) -> AlignedTargets:
        """Assign; the tensors are those of `task_aligned_match`, with one target per image."""
        truths = pad_truths(targets)
        matched = task_aligned_match(
            scores,
            boxes,
            points,
            truths,
            strides=strides,
            top_k=self.top_k,
            alpha=self.alpha,
            beta=self.beta,
        )
        if truths.boxes.shape[1] == 0:  # nothing to look up
            wanted, labels = torch.zeros_like(boxes), matched.truth
        else:
            wanted = truths.boxes.gather(1, matched.truth[..., None].expand(-1, -1, 4))
            labels = truths.labels.gather(1, matched.truth)
        return AlignedTargets(wanted, labels, *matched[1:])


def pad_truths(targets: Sequence[Target]) -> PaddedTruths:
    """Put the truths of B images, at least one, side by side."""
    lengths = [len(target) for target in targets]
    count = torch.tensor(lengths, device=targets[0].boxes.device)
    places = torch.arange(max(lengths), device=count.device)
    boxes, labels, crowd = (
        torch.nn.utils.rnn.pad_sequence([getattr(t, part) for t in targets], batch_first=True)
        for part in ("boxes", "labels", "crowd")
    )
    return PaddedTruths(boxes, labels, crowd, places < count[:, None])


@torch.no_grad()
def task_aligned_match(
    scores: Tensor,
    boxes: Tensor,
    points: Tensor,
    truths: PaddedTruths,
    *,
    strides: Tensor,
    top_k: int = 13,
    alpha: float = 1.0,
    beta: float = 6.0,
) -> Alignment:
    """Give each truth the cells that both classify and locate it best.

    The alignment of a cell with a truth is score^alpha * IoU^beta (equation 1), of the score for
    the truth's class. The `top_k` best aligned cells inside a truth are its positives; a cell that
    several truths want goes to the one it overlaps most. The quality is the alignment, scaled so
    that the best cell of each truth has the largest IoU among its cells.

    A truth narrower than the distance of two cells counts as that wide when cells inside it are
    looked for, as no cell may be inside. A cell whose box misses the truth has no alignment and is
    never positive.

    Args:
        scores: `[B, N, C]` in 0..1.
        boxes: `[B, N, 4]` that the cells predict.
        points: `[N, 2]` x and y that the cells stand on.
        truths: of the batch; M = 0 makes every cell negative. Crowd regions are never matched, and
            a cell that stands in one is ignored unless it is positive.
        strides: `[N]` pixels from each cell to the next one of its level.
        top_k: positives of a truth at most.
        alpha: weight of the score.
        beta: weight of the overlap.
    """
    if truths.boxes.shape[1] == 0 or len(points) == 0:
        nothing = torch.zeros(boxes.shape[:2], dtype=torch.bool, device=boxes.device)
        return Alignment(nothing.long(), nothing, nothing.to(scores), nothing)

    real = truths.valid & ~truths.crowd  # [B, M]
    wanted = _stands_in(points, truths.boxes, least=strides) & real[..., None]  # [B, M, N]
    iou = _pairwise_iou(truths.boxes, boxes)  # [B, M, N]
    index = truths.labels[..., None].expand_as(iou)
    score = scores.transpose(1, 2).gather(1, index)  # [B, M, N] each truth's class
    alignment = score.pow(alpha) * iou.pow(beta) * wanted

    best, cells = alignment.topk(min(top_k, alignment.shape[2]), dim=2)  # [B, M, K]
    chosen = torch.zeros_like(wanted).scatter_(2, cells, best > 0)
    largest, truth = torch.where(chosen, iou, -1.0).max(dim=1)  # [B, N]
    positive = largest >= 0

    # each cell belongs to one truth from here on, so that truths are normalised by their own cells
    kept = chosen.zero_().scatter_(1, truth[:, None], positive[:, None])  # [B, M, N]
    highest = (alignment * kept).amax(dim=2)  # [B, M]
    overlap = (iou * kept).amax(dim=2)  # [B, M]
    factor = overlap / highest.clamp(min=torch.finfo(highest.dtype).tiny)
    quality = alignment.gather(1, truth[:, None])[:, 0] * factor.gather(1, truth) * positive

    crowds = truths.valid & truths.crowd
    in_crowd = (_stands_in(points, truths.boxes) & crowds[..., None]).any(dim=1)  # [B, N]
    return Alignment(truth, positive, quality, in_crowd & ~positive)


def _stands_in(points: Tensor, truths: Tensor, least: Tensor | float = 0.0) -> Tensor:
    """Which points `[N, 2]` are in which boxes `[B, M, 4]`, widened to `least` `[N]`: `[B, M, N]`.

    A point on the border of a box is not in it, unless the box is as narrow as `least`.
    """
    inside = None
    for axis in (0, 1):
        low, high = truths[..., axis, None], truths[..., axis + 2, None]  # [B, M, 1]
        far = (points[:, axis] - (low + high) / 2).abs()  # [B, M, N]
        near = (far < (high - low) / 2) | (far <= least / 2)
        inside = near if inside is None else inside & near
    assert inside is not None
    return inside


def _pairwise_iou(truths: Tensor, boxes: Tensor) -> Tensor:
    """IoU `[B, M, N]` of boxes `[B, M, 4]` and `[B, N, 4]`, 0 where both are empty."""
    # side by side rather than stacked: the passes over [B, M, N] are what costs here
    first, second = truths[:, :, None].unbind(3), boxes[:, None].unbind(3)  # [B, M, 1], [B, 1, N]
    wide = torch.minimum(first[2], second[2]) - torch.maximum(first[0], second[0])
    high = torch.minimum(first[3], second[3]) - torch.maximum(first[1], second[1])
    shared = wide.clamp_(min=0).mul_(high.clamp_(min=0))  # [B, M, N]
    areas = [(x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in (first, second)]
    union = areas[0] + areas[1] - shared
    return shared / union.clamp(min=torch.finfo(union.dtype).tiny)
