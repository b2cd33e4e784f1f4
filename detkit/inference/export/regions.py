"""R-CNN and its descendants as graphs: regions, their patches, and what the heads say of them.

B images, P regions of an image, R = B * P of all, L levels, C classes, D channels.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detkit.detectors.base import MapGeometry
from detkit.detectors.crop import RoICrop
from detkit.detectors.proposals import GivenProposals, GridProposals, Proposer
from detkit.detectors.region_proposal import RegionProposal
from detkit.detectors.roi import RegionPool
from detkit.detectors.rpn import RPN
from detkit.inference.export.places import (
    NOTHING,
    Found,
    clip_to,
    joined,
    quotient_up,
    rows_at,
    top,
)
from detkit.inference.export.selection import select
from detkit.inference.export.suppression import suppress
from detkit.ops import box_area, decode, grid_anchors

Regions = tuple[Tensor, Tensor]  # boxes [B, P, 4]; [B, P] bool: whether there is one


class RegionGraph(nn.Module):
    """`RegionProposal.detections` of a batch."""

    def __init__(self, detector: RegionProposal) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, images: Tensor, sizes: Tensor, proposals: Tensor | None) -> Found:
        """Detections `[B, K]` in images `[B, 3, H, W]` of these sizes `[B, 2]`."""
        detector, maps = self.detector, [images]
        if detector.shared:
            maps = detector.backbone(images)
            maps = maps if detector.neck is None else detector.neck(maps)
        regions, there = propose(detector.rpn, maps, images, sizes, proposals)
        *earlier, last = detector.roi_stages
        for stage in earlier:
            _, offsets = stage.head(patches(stage.pool, maps, regions))
            refined = decode(offsets[:, 0], regions.flatten(0, 1), weights=stage.box_weights)
            regions = clip_to(refined.view_as(regions), sizes)
        shown = patches(last.pool, maps, regions)
        judged = [stage.head(shown) for stage in detector.roi_stages]
        scores = torch.stack([logits.softmax(dim=1) for logits, _ in judged]).mean(dim=0)
        scores = scores[:, :-1].unflatten(0, there.shape)  # [B, P, C], background dropped
        offsets = judged[-1][1].unflatten(0, there.shape)  # [B, P, C or 1, 4]
        boxes = decode(offsets, regions[:, :, None], weights=last.box_weights)
        scores = scores.where(there[..., None], NOTHING)
        return select([(boxes, scores)], sizes, last.selection)


def propose(
    proposer: Proposer, maps: list[Tensor], images: Tensor, sizes: Tensor, given: Tensor | None
) -> Regions:
    """As `proposer.find`.

    Args:
        proposer: of the detector.
        maps: of the images.
        images: `[B, 3, H, W]`.
        sizes: `[B, 2]` (height, width) inside the padding.
        given: `[B, P, 4]` regions from outside, rows of zeros where there is none; or None.
    """
    if isinstance(proposer, GivenProposals):
        assert given is not None
        given = given[:, : proposer.limit]
        return clip_to(given, sizes), (given != 0).any(dim=-1)
    if isinstance(proposer, GridProposals):
        return _grid(proposer, images, sizes)
    assert isinstance(proposer, RPN)
    return _learnt(proposer, maps, images, sizes)


def _grid(proposer: GridProposals, images: Tensor, sizes: Tensor) -> Regions:
    """The boxes of the padded size; of a smaller image only the first rows and columns."""
    stride, cell = proposer.stride, proposer.get_buffer("cell")
    rows, columns = (quotient_up(side, stride) for side in images.shape[-2:])
    boxes = grid_anchors(cell, (rows, columns), (stride, stride))
    counts = quotient_up(sizes, stride)  # [B, 2]
    y = torch.arange(rows, device=images.device) < counts[:, :1]  # [B, rows]
    x = torch.arange(columns, device=images.device) < counts[:, 1:]
    there = (y[:, :, None] & x[:, None])[..., None].expand(-1, -1, -1, len(cell)).flatten(1)
    return clip_to(boxes.expand(images.shape[0], -1, -1), sizes), there


def _learnt(rpn: RPN, maps: list[Tensor], images: Tensor, sizes: Tensor) -> Regions:
    """As `RPN.propose`."""
    output, limits = rpn(maps, (images.shape[-2], images.shape[-1])), rpn.test_limits
    parts = []
    for level, (anchors, logits, offsets) in enumerate(
        zip(output.anchors, output.logits, output.offsets, strict=True)
    ):
        best, index = top(logits, limits.pre_nms, filling=-torch.inf)  # [B, M]
        boxes = clip_to(decode(rows_at(offsets, index), anchors[index]), sizes)
        scores, sides = best.sigmoid(), boxes[..., 2:] - boxes[..., :2]
        valid = (sides >= limits.min_size).all(dim=-1) & (scores >= limits.score_threshold)
        scores = scores.where(valid & (best > -torch.inf), NOTHING)
        parts.append(Found(boxes, scores, torch.full_like(index, level)))
    found = suppress(
        joined(parts),
        nms="hard",
        iou_threshold=limits.nms_iou,
        num_classes=len(parts),
        count=limits.post_nms,
    )
    return found.boxes, found.scores > NOTHING


def patches(pool: nn.Module, maps: list[Tensor], regions: Tensor) -> Tensor:
    """As `pool(maps, regions)`: `[R, D, h, w]` of regions `[B, P, 4]`."""
    if isinstance(pool, RoICrop):
        return _crops(pool, maps[0], regions)
    assert isinstance(pool, RegionPool)
    boxes = with_image(regions)  # [R, 5]
    cuts = zip(maps, pool.maps, strict=False)  # extra levels are for the proposals only
    if len(pool.maps) == 1:
        return _cut(pool, *next(cuts), boxes)
    level = _level_of(pool, boxes[:, 1:])
    cut = boxes.new_zeros(boxes.shape[0], maps[0].shape[1], pool.resolution, pool.resolution)
    for number, (feature, geometry) in enumerate(cuts):
        index = (level == number).nonzero()[:, 0]
        cut = cut.index_put((index,), _cut(pool, feature, geometry, boxes[index]))
    return cut


def _cut(pool: RegionPool, feature: Tensor, geometry: MapGeometry, boxes: Tensor) -> Tensor:
    """Patches of boxes `[R, 5]` from one map."""
    offset = geometry.roi_offset(aligned=pool.aligned)
    if offset:
        boxes = boxes - boxes.new_tensor([0.0, offset, offset, offset, offset])
    return pool.cut(feature, boxes, pool.resolution, 1 / geometry.stride)


def _level_of(pool: RegionPool, boxes: Tensor) -> Tensor:
    """As `pool.level_of`, by comparisons, which every runtime has."""
    scale = box_area(boxes).sqrt() / pool.canonical_size
    fitting = pool.canonical_level + torch.log2(scale) + 1e-6
    coarser = fitting.new_tensor([math.log2(each.stride) for each in pool.maps[1:]])
    return (fitting[:, None] >= coarser).sum(dim=1)


def _crops(pool: RoICrop, images: Tensor, regions: Tensor) -> Tensor:
    """As `RoICrop`, all regions at a time."""
    border = 1  # of the mean colour
    around = pool.surround(regions.flatten(0, 1)).view_as(regions)
    boxes = with_image(around + border)
    shown = pool.network(pool.crop(F.pad(images, (border,) * 4), boxes))[-1]
    return shown if pool.resolution is None else F.adaptive_avg_pool2d(shown, pool.resolution)


def with_image(regions: Tensor) -> Tensor:
    """Regions `[B, P, 4]` as `[R, 5]`, the image's index in front."""
    image = torch.arange(regions.shape[0], device=regions.device, dtype=regions.dtype)
    image = image[:, None, None].expand(-1, regions.shape[1], 1)
    return torch.cat([image, regions], dim=2).flatten(0, 1)
