"""What a detector reports: from scored boxes to few good ones.

N candidates, C classes, K kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from detkit.ops.boxes import clip_boxes, scale_boxes
from detkit.ops.fusion import non_maximum_merging, weighted_boxes_fusion
from detkit.ops.greedy import diou_nms, soft_nms
from detkit.ops.matrix_nms import matrix_nms
from detkit.ops.nms import batched_nms, candidates
from detkit.ops.nms import nms as hard_nms
from detkit.structures import Detections, Size

SUPPRESSIONS = (
    "hard",
    "soft_linear",
    "soft_gaussian",
    "diou",
    "matrix_linear",
    "matrix_gaussian",
    "wbf",
    "nmm",
    "none",
)


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
    """Make the boxes of one object in one image one.

    hard, diou: the best stays (`batched_nms`, `diou_nms`).
    soft_linear, soft_gaussian, matrix_linear, matrix_gaussian: all stay, with scores that are the
    lower the more they overlap better ones (`soft_nms`, `matrix_nms`).
    wbf: the mean of them with the highest of their scores (`weighted_boxes_fusion`): as one source
    gives an object many boxes, the mean of the scores would punish it for the poor ones.
    nmm: the box around all of them (`non_maximum_merging`, intersection over the smaller one).
    none: all stay as they are.

    Args:
        found: the candidates, in any order.
        nms: one of `SUPPRESSIONS`.
        iou_threshold: overlap above which boxes are of one object; matrix_* and soft_gaussian lower
            scores whatever the overlap, and do not look at it.
        sigma: of the Gaussian ones; the smaller, the more a score falls.
        class_agnostic: also boxes of different classes.
        score_threshold: scores that suppression has lowered must stay above it.
        max_detections: the best that are kept; None for all.

    Returns:
        Best first.

    Raises:
        ValueError: an unknown kind.
    """
    boxes, scores = found.boxes, found.scores
    groups = None if class_agnostic else found.labels
    family, _, method = _known(nms).partition("_")
    if family == "soft":
        index, scores = soft_nms(
            boxes,
            scores,
            groups,
            method=method,
            iou_threshold=iou_threshold,
            sigma=sigma,
            score_threshold=score_threshold,
        )
        found = Detections(boxes[index], scores, found.labels[index])
    elif family == "matrix":
        index, scores = matrix_nms(
            boxes, scores, groups, method=method, sigma=sigma, score_threshold=score_threshold
        )
        found = Detections(boxes[index], scores, found.labels[index])
    elif family == "wbf":
        boxes, scores, index = weighted_boxes_fusion(
            boxes, scores, groups, iou_threshold=iou_threshold, conf_type="max"
        )
        found = Detections(boxes, scores, found.labels[index])
    elif family == "nmm":
        boxes, index = non_maximum_merging(boxes, scores, groups, iou_threshold=iou_threshold)
        found = Detections(boxes, scores[index], found.labels[index])
    else:
        found = found[_chosen(family, found, groups, iou_threshold)]
    return found[:max_detections]


def _chosen(family: str, found: Detections, groups: Tensor | None, iou_threshold: float) -> Tensor:
    """Indices of the boxes that stay as they are."""
    boxes, scores = found.boxes, found.scores
    if family == "none":
        return scores.argsort(descending=True, stable=True)
    if family == "diou":
        return diou_nms(boxes, scores, groups, iou_threshold=iou_threshold)
    if groups is None:
        return hard_nms(boxes, scores, iou_threshold=iou_threshold)
    return batched_nms(boxes, scores, groups, iou_threshold=iou_threshold)


def _known(name: str) -> str:
    if name not in SUPPRESSIONS:
        raise ValueError(f"unknown nms {name!r}; choose one of {', '.join(SUPPRESSIONS)}")
    return name


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

    wbf counts how many of several sources saw an object, and averages their scores (arXiv
    1910.13302); for the others a detection is a detection, wherever it comes from.

    Args:
        parts: of each source, also those that found nothing; all in pixels of the same image.
        nms: see `suppress`.
        iou_threshold: see `suppress`.
        sigma: see `suppress`.
        class_agnostic: see `suppress`.
        score_threshold: only scores above it, before and after.
        max_detections: see `suppress`.
        weights: how much each source is trusted; None for all alike. Scores are multiplied by it,
            divided by the largest one, or for wbf as in the paper.

    Returns:
        Best first.

    Raises:
        ValueError: an unknown kind; weights that are not one a source, or not above 0.
    """
    if weights is not None and (len(weights) != len(parts) or min(weights, default=1) <= 0):
        raise ValueError(f"{len(parts)} sources need as many weights above 0, got {list(weights)}")
    if _known(nms) == "wbf" and len(parts) > 1:
        found = _vote(parts, iou_threshold, class_agnostic, score_threshold, weights)
    else:
        if weights is not None:
            parts = [
                Detections(part.boxes, part.scores * (weight / max(weights)), part.labels)
                for part, weight in zip(parts, weights, strict=True)
            ]
        joined = Detections.cat(parts)
        found = suppress(
            joined[joined.scores > score_threshold],
            nms=nms,
            iou_threshold=iou_threshold,
            sigma=sigma,
            class_agnostic=class_agnostic,
            score_threshold=score_threshold,
        )
    return found[:max_detections]


def _vote(
    parts: Sequence[Detections],
    iou_threshold: float,
    class_agnostic: bool,
    score_threshold: float,
    weights: Sequence[float] | None,
) -> Detections:
    """Weighted boxes fusion of several sources."""
    parts = [part[part.scores > score_threshold] for part in parts]
    labels = torch.cat([part.labels for part in parts])
    source = torch.cat([torch.full_like(part.labels, n) for n, part in enumerate(parts)])
    boxes, scores, index = weighted_boxes_fusion(
        torch.cat([part.boxes for part in parts]),
        torch.cat([part.scores for part in parts]),
        None if class_agnostic else labels,
        source,
        iou_threshold=iou_threshold,
        num_sources=len(parts),
        weights=weights,
    )
    found = Detections(boxes, scores, labels[index])
    return found[found.scores > score_threshold]


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
        return self.of_levels([(boxes, scores)], size, original)

    def of_levels(
        self, levels: Sequence[tuple[Tensor, Tensor]], size: Size, original: Size
    ) -> Detections:
        """The same from several levels, each with its boxes and scores."""
        found = [
            candidates(
                clip_boxes(boxes, size),
                scores,
                score_threshold=self.score_threshold,
                min_size=self.min_size,
                limit=self.pre_nms,
            )
            for boxes, scores in levels
        ]
        boxes, scores, labels = (torch.cat(part) for part in zip(*found, strict=True))
        best = suppress(
            Detections(boxes, scores, labels),
            nms=self.nms,
            iou_threshold=self.iou_threshold,
            sigma=self.sigma,
            class_agnostic=self.class_agnostic,
            score_threshold=self.score_threshold,
            max_detections=self.max_detections,
        )
        return Detections(scale_boxes(best.boxes, size, original), best.scores, best.labels)
