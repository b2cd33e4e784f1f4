"""Detectors as graphs of tensor operations: pixels in, detections out, nothing decided in Python.

What a detector does of one image after the other, by masks and with as many boxes as there are, is
done here for the whole batch in a fixed number of places (`places`), by the same layers, heads and
box coders. So it can be traced, and the trace holds for other pictures, sizes and batches.

B images, H and W their padded size, P regions, N rows (anchors, cells, regions) of a level, C
classes, M candidates, K reported.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from detkit.detectors import Detector
from detkit.detectors.one_stage import OneStage
from detkit.inference.export.places import NOTHING, Found, clip_to, joined, rows_at, top
from detkit.inference.export.suppression import best_of, check_exportable, suppress
from detkit.ops import Selection

MOST_CANDIDATES = 5000  # of an image; what is reported is among far fewer of the best

Level = tuple[Tensor, Tensor]  # boxes [B, N, 4] or [B, N, C, 4]; scores [B, N, C]


class ExportableDetector(nn.Module):
    """A detector with its decoding and suppression as one graph.

    Args:
        graph: from normalised images `[B, 3, H, W]`, their sizes `[B, 2]` and, where it looks at
            regions from outside, proposals `[B, P, 4]`, to what is found.
        mean: `[3, 1, 1]` of R, G and B in 0..1.
        std: `[3, 1, 1]`.
        max_detections: K.
        takes_proposals: whether regions come from outside.
        divisor: H and W are multiples of it.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        graph: nn.Module,
        mean: Tensor,
        std: Tensor,
        *,
        max_detections: int,
        takes_proposals: bool,
        divisor: int,
    ) -> None:
        super().__init__()
        self.find = graph
        self.register_buffer("mean", mean.clone(), persistent=False)
        self.register_buffer("std", std.clone(), persistent=False)
        self.max_detections = max_detections
        self.takes_proposals = takes_proposals
        self.divisor = divisor

    def forward(
        self, images: Tensor, sizes: Tensor, proposals: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Detections in pixels of the images as they stand in the batch.

        Args:
            images: `[B, 3, H, W]` uint8 (or float in 0..255), RGB, padded right and below.
            sizes: `[B, 2]` int64, (height, width) of each image inside the padding.
            proposals: `[B, P, 4]` regions to look at, rows of zeros where there are fewer; only of
                detectors that take them.

        Returns:
            boxes `[B, K, 4]`, scores `[B, K]`, descending, and labels `[B, K]`; where fewer were
            found: boxes and scores of 0 and labels of -1.
        """
        found = self.find(self.normalize(images, sizes), sizes, proposals)
        there = found.scores > NOTHING
        return (
            found.boxes.where(there[..., None], 0.0),
            found.scores.where(there, 0.0),
            found.labels.where(there, -1),
        )

    def normalize(self, images: Tensor, sizes: Tensor) -> Tensor:
        """As `Detector.normalize`: zero mean and unit variance; the padding becomes 0."""
        values = (images.to(self.mean.dtype) - 255 * self.mean) / (255 * self.std)
        return values * _inside(values, sizes)


def _inside(images: Tensor, sizes: Tensor) -> Tensor:
    """1 within the images of these sizes `[B, 2]` and 0 in the padding, `[B, 1, H, W]`."""
    y = torch.arange(images.shape[2], device=images.device) < sizes[:, :1]  # [B, H]
    x = torch.arange(images.shape[3], device=images.device) < sizes[:, 1:]  # [B, W]
    return (y[:, None, :, None] & x[:, None, None, :]).to(images.dtype)


def exportable(detector: Detector, *, divisor: int = 32) -> ExportableDetector:
    """The detector as a module of fixed shapes, which torch.export and torch.jit.trace take.

    Args:
        detector: with its weights; they are shared.
        divisor: H and W of the images are multiples of it (`model.size_divisor`).

    Raises:
        ValueError: there is no such form of this detector.
    """
    graph, takes_proposals, count = _graph_of(detector)
    return ExportableDetector(
        graph,
        detector.mean,
        detector.std,
        max_detections=count,
        takes_proposals=takes_proposals,
        divisor=divisor,
    ).eval()


def _graph_of(detector: Detector) -> tuple[nn.Module, bool, int]:
    if isinstance(detector, OneStage):
        check_exportable(detector.selection.nms)
        return OneStageGraph(detector), False, detector.selection.max_detections
    raise ValueError(f"{type(detector).__name__} cannot be exported; export the detector inside it")


class OneStageGraph(nn.Module):
    """`OneStage.detections` of a batch."""

    def __init__(self, detector: OneStage) -> None:
        super().__init__()
        self.backbone, self.neck, self.head = detector.backbone, detector.neck, detector.head
        self.selection = detector.selection

    def forward(self, images: Tensor, sizes: Tensor, proposals: Tensor | None) -> Found:
        """Detections `[B, K]` in images `[B, 3, H, W]` of these sizes `[B, 2]`."""
        maps = self.backbone(images)
        maps = maps if self.neck is None else self.neck(maps)
        padded = (images.shape[-2], images.shape[-1])
        return select(self.head.candidates(self.head(maps), padded), sizes, self.selection)


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
