"""Detectors as graphs of tensor operations: pixels in, detections out, nothing decided in Python.

What a detector does of one image after the other, by masks and with as many boxes as there are, is
done here for the whole batch in a fixed number of places (`places`), by the same layers, heads and
box coders. So it can be traced, and the trace holds for other pictures, sizes and batches.

B images, H and W their padded size, P regions, N rows (anchors, cells, regions) of a level, C
classes, M candidates, K reported.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from detkit.detectors import Detector, ImagePyramid, Tiled
from detkit.detectors.image_pyramid import Octaves
from detkit.detectors.one_stage import OneStage
from detkit.detectors.proposals import GivenProposals
from detkit.detectors.region_proposal import RegionProposal
from detkit.detectors.sliding_window import SlidingWindow
from detkit.detectors.task_aligned import TaskAlignedHead
from detkit.inference.export.places import NOTHING, Found
from detkit.inference.export.pyramid import PyramidGraph
from detkit.inference.export.regions import RegionGraph
from detkit.inference.export.selection import select
from detkit.inference.export.suppression import check_exportable
from detkit.inference.export.windows import WindowGraph
from detkit.ops import Selection


class ExportableDetector(nn.Module):
    """A detector with its decoding and suppression as one graph.

    Args:
        graph: from normalised images `[B, 3, H, W]`, their sizes `[B, 2]` and, where it looks at
            regions from outside, proposals `[B, P, 4]`, to what is found.
        mean: `[3, 1, 1]` of R, G and B in 0..1.
        std: `[3, 1, 1]`.
        max_detections: K.
        most_proposals: P at most, of detectors whose regions come from outside; None: of others.
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
        most_proposals: int | None,
        divisor: int,
    ) -> None:
        super().__init__()
        self.find = graph
        self.register_buffer("mean", mean.clone(), persistent=False)
        self.register_buffer("std", std.clone(), persistent=False)
        self.max_detections = max_detections
        self.most_proposals = most_proposals
        self.divisor = divisor

    @property
    def takes_proposals(self) -> bool:
        """Whether regions to look at come from outside."""
        return self.most_proposals is not None

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
    return ExportableDetector(
        _graph_of(detector, divisor),
        detector.mean,
        detector.std,
        max_detections=_count(detector),
        most_proposals=_most_proposals(detector),
        divisor=divisor,
    ).eval()


def _graph_of(detector: Detector, divisor: int) -> nn.Module:
    """The graph of a detector.

    Raises:
        ValueError: there is none.
    """
    if isinstance(detector, ImagePyramid):
        return _pyramid(detector, divisor)
    if isinstance(detector, Tiled):
        raise ValueError(
            "tiles are cut from pictures before the network sees them, and no file of a network "
            "holds that; leave out test.tile"
        )
    check_exportable(selection_of(detector).nms)
    if isinstance(detector, SlidingWindow):
        return WindowGraph(detector, divisor)
    if isinstance(detector, RegionProposal):
        return RegionGraph(detector)
    assert isinstance(detector, OneStage)
    return OneStageGraph(detector)


def _pyramid(detector: ImagePyramid, divisor: int) -> PyramidGraph:
    if isinstance(detector.scales, Octaves):
        raise ValueError(
            "image_pyramid.smallest makes as many copies as a picture's size asks for, which no "
            "graph of fixed shapes holds; give image_pyramid.scales"
        )
    check_exportable(detector.fuse.keywords["nms"])  # type: ignore[attr-defined]
    return PyramidGraph(
        _graph_of(detector.detector, divisor),
        detector,
        num_classes=_num_classes(detector),
        count=_count(detector),
    )


def selection_of(detector: Detector) -> Selection:
    """What a detector reports, of a pyramid the detector inside."""
    if isinstance(detector, ImagePyramid):
        return selection_of(detector.detector)
    if isinstance(detector, RegionProposal):
        return detector.roi_stages[-1].selection
    assert isinstance(detector, OneStage | SlidingWindow)
    return detector.selection


def _count(detector: Detector) -> int:
    """How many boxes of an image are reported at most."""
    own = selection_of(detector).max_detections
    if not isinstance(detector, ImagePyramid):
        return own
    limit = detector.fuse.keywords["max_detections"]  # type: ignore[attr-defined]
    return own if limit is None else limit


def _num_classes(detector: Detector) -> int:
    if isinstance(detector, ImagePyramid):
        return _num_classes(detector.detector)
    if isinstance(detector, RegionProposal):
        return detector.roi_stages[0].head.cls_score.out_features - 1
    assert isinstance(detector, OneStage | SlidingWindow)
    if isinstance(detector.head, TaskAlignedHead):
        return detector.head.class_logits.out_channels
    return detector.head.num_classes  # type: ignore[return-value]


def _most_proposals(detector: Detector) -> int | None:
    """How many regions of an image it takes from outside; None: it finds them itself."""
    if isinstance(detector, ImagePyramid):
        return _most_proposals(detector.detector)
    if isinstance(detector, RegionProposal) and isinstance(detector.rpn, GivenProposals):
        return detector.rpn.limit
    return None


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
