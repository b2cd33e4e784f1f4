"""`Selection` for a batch of images, in a fixed number of places.

B images, N rows (anchors, cells, regions) of a level, C classes, M candidates.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from detkit.inference.export.places import NOTHING, Found, best_of, clip_to, joined, rows_at, top
from detkit.inference.export.suppression import suppress
from detkit.ops import Selection

MOST_CANDIDATES = 5000  # of an image; a box is suppressed by better ones alone, so that those left
# out could change something only where nearly all of so many were suppressed

Level = tuple[Tensor, Tensor]  # boxes [B, N, 4] or [B, N, C, 4]; scores [B, N, C]


def select(levels: Sequence[Level], sizes: Tensor, selection: Selection) -> Found:
    """As `Selection.of_levels`: what is reported, best first; boxes are clipped to the sizes."""
    found = joined(
        [candidates(clip_to(boxes, sizes), scores, selection) for boxes, scores in levels]
    )
    if found.scores.shape[1] > MOST_CANDIDATES:
        found = best_of(found, MOST_CANDIDATES)
    return suppress(
        found,
        nms=selection.nms,
        iou_threshold=selection.iou_threshold,
        sigma=selection.sigma,
        class_agnostic=selection.class_agnostic,
        score_threshold=selection.score_threshold,
        num_classes=levels[0][1].shape[2],
        count=selection.max_detections,
    )


def candidates(boxes: Tensor, scores: Tensor, selection: Selection) -> Found:
    """As `detkit.ops.nms.candidates`: the best pairs of a row and a class, of each image.

    Args:
        boxes: `[B, N, 4]` or `[B, N, 1, 4]` where all classes share a box, or `[B, N, C, 4]`.
        scores: `[B, N, C]`.
        selection: says what counts.
    """
    count, classes = selection.pre_nms or MOST_CANDIDATES, scores.shape[2]
    # each of the best pairs is in one of as many rows that have the best maxima
    best, row = top(scores.amax(dim=2), count)  # [B, M]
    scores = rows_at(scores, row).where(best[..., None] > NOTHING, NOTHING)
    scores, index = scores.flatten(1).topk(count, dim=1)  # [B, M]
    place, label = index // classes, index % classes
    boxes = rows_at(boxes, row.gather(1, place))  # [B, M, 4] or [B, M, C, 4]
    if boxes.ndim == 4:
        column = label * (boxes.shape[2] > 1)
        boxes = boxes.gather(2, column[..., None, None].expand(-1, -1, -1, 4))[:, :, 0]
    sides = boxes[..., 2:] - boxes[..., :2]
    valid = (sides >= selection.min_size).all(dim=-1) & (sides.prod(dim=-1).abs() < torch.inf)
    valid = valid & (scores > selection.score_threshold)
    return Found(boxes.where(valid[..., None], 0.0), scores.where(valid, NOTHING), label)
