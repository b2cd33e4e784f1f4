"""What a detector reports: from scored boxes to few good ones.

N candidates, C classes, K kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from detkit.ops.boxes import clip_boxes, scale_boxes
from detkit.ops.nms import batched_nms, candidates
from detkit.structures import Detections, Size

SUPPRESSIONS = ("hard", "none")


def suppress(
    found: Detections,
    *,
    nms: str,
    iou_threshold: float,
    sigma: float = 0.5,
    class_agnostic: bool = False,
    score_threshold: float = 0.0,
    max_detections: int | None = None,
) -> Detections:
    """Make the boxes of one object one.

    Args:
        found: the candidates of an image, in any order.
        nms: one of `SUPPRESSIONS`.
        iou_threshold: overlap above which boxes are of one object.
        sigma: of the Gaussian ones.
        class_agnostic: also of different classes.
        score_threshold: only scores above it, after suppression has lowered them.
        max_detections: the best that are kept; None for all.
    """
    if nms not in SUPPRESSIONS:
        raise ValueError(f"unknown nms {nms!r}; choose one of {', '.join(SUPPRESSIONS)}")
    groups = torch.zeros_like(found.labels) if class_agnostic else found.labels
    if nms == "hard":
        keep = batched_nms(found.boxes, found.scores, groups, iou_threshold=iou_threshold)
    else:
        keep = found.scores.argsort(descending=True, stable=True)
    return found[keep[:max_detections]]


def fuse(
    parts: Sequence[Detections],
    *,
    nms: str,
    iou_threshold: float,
    sigma: float = 0.5,
    class_agnostic: bool = False,
    score_threshold: float = 0.0,
    max_detections: int | None = None,
    weights: Sequence[float] | None = None,
) -> Detections:
    """Join the detections of one image from several scales, models or tiles.

    Args:
        parts: of each source, all in pixels of the same image.
        nms: one of `SUPPRESSIONS`.
        iou_threshold: see `suppress`.
        sigma: see `suppress`.
        class_agnostic: see `suppress`.
        score_threshold: see `suppress`.
        max_detections: see `suppress`.
        weights: how much each source is trusted; None for all alike.
    """
    return suppress(
        Detections.cat(parts),
        nms=nms,
        iou_threshold=iou_threshold,
        sigma=sigma,
        class_agnostic=class_agnostic,
        score_threshold=score_threshold,
        max_detections=max_detections,
    )


@dataclass(frozen=True)
class Selection:
    """Which boxes of an image are reported.

    Attributes:
        score_threshold: only scores above it, before and after suppression.
        iou_threshold: overlap above which boxes are of one object.
        max_detections: best boxes of an image.
        min_size: shortest side in pixels of the image as it stands in the batch.
        pre_nms: best candidates of each level that are looked at; None for all.
        nms: how boxes of one object become one, one of `SUPPRESSIONS`.
        sigma: of the Gaussian ones.
        class_agnostic: boxes of different classes suppress each other, too.
    """

    score_threshold: float
    iou_threshold: float
    max_detections: int
    min_size: float = 0.0
    pre_nms: int | None = None
    nms: str = "hard"
    sigma: float = 0.5
    class_agnostic: bool = False

    def __call__(self, boxes: Tensor, scores: Tensor, size: Size, original: Size) -> Detections:
        """Detections of one image, best first.

        Args:
            boxes: `[N, C, 4]`, or `[N, 1, 4]` where all classes share a box.
            scores: `[N, C]`.
            size: (height, width) of the image that the boxes are in; they are clipped to it.
            original: (height, width) of the image that is reported on.
        """
        found = candidates(
            clip_boxes(boxes, size),
            scores,
            score_threshold=self.score_threshold,
            min_size=self.min_size,
        )
        best = suppress(
            Detections(*found),
            nms=self.nms,
            iou_threshold=self.iou_threshold,
            sigma=self.sigma,
            class_agnostic=self.class_agnostic,
            score_threshold=self.score_threshold,
            max_detections=self.max_detections,
        )
        return Detections(scale_boxes(best.boxes, size, original), best.scores, best.labels)
