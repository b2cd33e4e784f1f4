"""Assign ground truth to the cells that serve it best (TOOD, arXiv 2108.07755, section 3.2).

B images, N cells of all levels, M ground-truth boxes of the fullest image, K cells that a truth
takes at most, C classes, P pairs of a truth and a cell that is inside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from detkit.ops.boxes import box_area
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


def cells_inside(points: Tensor, strides: Tensor, truths: PaddedTruths) -> Tensor:
    """Which cells stand in which truths: `[B, M, N]` bool, False for rows that only fill up.

    A truth narrower than the way from one cell to the next counts as that wide, as it may have no
    cell inside.

    Args:
        points: `[N, 2]` x and y that the cells stand on.
        strides: `[N]` pixels from each cell to the next one of its level.
        truths: of the batch.
    """
    first, last = truths.boxes[..., :2], truths.boxes[..., 2:]
    middle, half = (first + last) / 2, (last - first) / 2  # [B, M, 2]
    near = [
        (points[:, axis] - middle[..., axis, None]).abs_()  # [B, M, N]
        <= torch.maximum(half[..., axis, None], strides / 2)
        for axis in (0, 1)
    ]
    return near[0] & near[1] & truths.valid[..., None]


@torch.no_grad()
def task_aligned_match(
    scores: Tensor,
    boxes: Tensor,
    inside: Tensor,
    truths: PaddedTruths,
    *,
    top_k: int = 13,
    alpha: float = 1.0,
    beta: float = 6.0,
) -> Alignment:
    """Give each truth the cells that both classify and locate it best.

    The alignment of a cell with a truth is score^alpha * IoU^beta (equation 1), of the score for
    the truth's class. The `top_k` best aligned cells inside a truth are its positives; a cell that
    several truths take goes to the one it overlaps most, the first of equals. The quality is the
    alignment, scaled so that the best cell of a truth has the largest IoU among its cells.

    A cell whose box misses the truth has no alignment and is never positive.

    Args:
        scores: `[B, N, C]` in 0..1.
        boxes: `[B, N, 4]` that the cells predict; only those of cells inside a truth matter.
        inside: `[B, M, N]`, from `cells_inside`.
        truths: of the batch; M = 0 makes every cell negative. Crowd regions take no cell, and a
            cell inside one is ignored unless it is positive.
        top_k: K.
        alpha: weight of the score.
        beta: weight of the overlap.
    """
    batch, count, cells = inside.shape
    if count == 0 or cells == 0:
        nothing = inside.new_zeros(batch, cells)
        return Alignment(nothing.long(), nothing, nothing.to(scores), nothing)

    # Few of all pairs of truth and cell are inside: worth waiting for their number
    image, truth, cell = (inside & ~truths.crowd[..., None]).nonzero(as_tuple=True)  # [P]
    score = scores[image, cell, truths.labels[image, truth]]
    iou = _paired_iou(truths.boxes[image, truth], boxes[image, cell])
    alignment = scores.new_zeros(inside.shape)  # [B, M, N]
    alignment[image, truth, cell] = score.pow(alpha) * iou.pow(beta)

    best, taken = alignment.topk(min(top_k, cells), dim=2)  # [B, M, K]
    images = torch.arange(batch, device=taken.device)[:, None, None]
    iou = _paired_iou(truths.boxes[:, :, None], boxes[images, taken]).masked_fill(best == 0, -1)
    owner = _first_of_the_largest(iou, taken, cells)  # [B, N]
    kept = (owner[images, taken] == torch.arange(count, device=owner.device)[:, None]) & (best > 0)

    best, iou = best * kept, iou * kept
    scale = iou.amax(dim=2) / best.amax(dim=2).clamp(min=torch.finfo(best.dtype).tiny)  # [B, M]
    quality = torch.zeros_like(scores[..., 0]).scatter_add_(  # other truths add 0
        1, taken.flatten(1), (best * scale[..., None]).flatten(1)
    )
    positive = owner < count
    in_crowd = (inside & truths.crowd[..., None]).any(dim=1)  # [B, N]
    return Alignment(owner * positive, positive, quality, in_crowd & ~positive)


def _first_of_the_largest(iou: Tensor, taken: Tensor, cells: int) -> Tensor:
    """The truth `[B, N]` that each cell overlaps most of those that take it; M where none does.

    Args:
        iou: `[B, M, K]`, negative where a place is empty.
        taken: `[B, M, K]` cells.
        cells: N.
    """
    batch, count, _ = iou.shape
    places = taken.flatten(1)  # [B, M*K]
    largest = iou.new_full((batch, cells), -1.0)
    largest.scatter_reduce_(1, places, iou.flatten(1), "amax")  # [B, N]
    wins = (iou.flatten(1) == largest.gather(1, places)) & (iou.flatten(1) >= 0)
    rows = torch.arange(count, device=iou.device)[:, None].expand_as(taken)
    owner = places.new_full((batch, cells), count)
    return owner.scatter_reduce_(1, places, rows.flatten(1).where(wins, count), "amin")


def _paired_iou(first: Tensor, second: Tensor) -> Tensor:
    """IoU `[...]` of boxes `[..., 4]`, 0 where both are empty."""
    sides = torch.minimum(first[..., 2:], second[..., 2:]) - torch.maximum(
        first[..., :2], second[..., :2]
    )
    shared = sides.clamp(min=0).prod(dim=-1)
    union = box_area(first) + box_area(second) - shared
    return shared / union.clamp(min=torch.finfo(union.dtype).tiny)
