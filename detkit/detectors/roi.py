"""The second stage: look at each proposal and say what it shows and where exactly.

Fast R-CNN (arXiv 1504.08083, section 2) with RoI align (arXiv 1703.06870, section 3) on a pyramid
(arXiv 1612.03144, section 4.2). R regions of all images together, C classes, D channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import roi_align, roi_pool

from detkit.detectors.base import Losses, MapGeometry, at_least_float32
from detkit.nn.modes import evaluating
from detkit.ops import (
    BOX_LOSSES,
    OFFSET_LOSSES,
    Assigned,
    Assigner,
    Selection,
    box_area,
    clip_boxes,
    decode,
    encode,
    hardest,
    nms,
)
from detkit.ops.box_coder import Weights
from detkit.structures import Batch, Detections, Size, Target


class RegionPool(nn.Module):
    """Cut a fixed-size patch out of the pyramid level that fits each region's size.

    Args:
        maps: where the cells of the finest feature maps are; as many maps are used.
        resolution: side of the patch.
        canonical_size: a region with sides of this many pixels belongs to `canonical_level`.
        canonical_level: log2 of that level's stride.
    """

    aligned = False  # whether coordinates are shifted by half a pixel
    cut: Callable[..., Tensor]  # patches from map, regions `[R, 5]`, resolution, cells of a pixel

    def __init__(
        self,
        maps: Sequence[MapGeometry],
        *,
        resolution: int,
        canonical_size: float,
        canonical_level: int,
    ) -> None:
        super().__init__()
        self.maps = tuple(maps)
        self.resolution = resolution
        self.canonical_size = canonical_size
        self.canonical_level = canonical_level

    def forward(self, features: list[Tensor], regions: list[Tensor]) -> Tensor:
        """Patches `[R, D, resolution, resolution]` of the regions `[R_i, 4]` of each image."""
        boxes = torch.cat(regions)
        level = self.level_of(boxes)  # [R]
        order = level.argsort()
        counts = torch.bincount(level, minlength=len(self.maps)).tolist()
        rois = with_image(regions)[order]  # [R, 5]
        patches = []
        # extra levels of the pyramid are for the proposals only
        for feature, part, geometry in zip(features, rois.split(counts), self.maps, strict=False):
            offset = geometry.roi_offset(aligned=self.aligned)
            if offset:
                part = part - part.new_tensor([0.0, offset, offset, offset, offset])
            # in the regions' precision: bfloat16 rounds a coordinate beyond 256 to two pixels
            exact = feature.to(part.dtype, memory_format=torch.contiguous_format)
            cut = self.cut(exact, part, self.resolution, 1 / geometry.stride)
            patches.append(cut.to(feature.dtype))
        return torch.cat(patches)[order.argsort()]

    def level_of(self, boxes: Tensor) -> Tensor:
        """Index `[R]` of the level for each box (equation 1 of arXiv 1612.03144)."""
        scale = box_area(boxes).sqrt() / self.canonical_size
        # 1e-6 as in torchvision: a region of exactly the canonical size must not fall a level lower
        fitting = self.canonical_level + torch.log2(scale) + 1e-6  # log2 of the stride
        coarser = [math.log2(each.stride) for each in self.maps[1:]]
        return torch.bucketize(fitting, fitting.new_tensor(coarser), right=True)


class RoIAlign(RegionPool):
    """Patches of values between the cells, nothing rounded (arXiv 1703.06870, section 3).

    Args:
        maps: see `RegionPool`, as all that is not below.
        sampling_ratio: points a bin and direction; 0 adapts to the region's size.
        aligned: shift by half a pixel, so that a pixel's centre is where it is.
    """

    def __init__(
        self,
        maps: Sequence[MapGeometry],
        *,
        resolution: int,
        sampling_ratio: int,
        aligned: bool,
        canonical_size: float,
        canonical_level: int,
    ) -> None:
        super().__init__(
            maps,
            resolution=resolution,
            canonical_size=canonical_size,
            canonical_level=canonical_level,
        )
        self.sampling_ratio = sampling_ratio
        self.aligned = aligned
        self.cut = partial(roi_align, sampling_ratio=sampling_ratio, aligned=aligned)


class RoIPool(RegionPool):
    """The largest value in each bin, after rounding to whole cells (arXiv 1504.08083, sec. 2.1).

    A bin without a cell is 0. Args: see `RegionPool`.
    """

    cut = staticmethod(roi_pool)


def with_image(regions: Sequence[Tensor]) -> Tensor:
    """Regions `[R_i, 4]` of each image as `[R, 5]`, the image's index in front."""
    image = torch.cat([r.new_full((len(r), 1), float(i)) for i, r in enumerate(regions)])
    return torch.cat([image, torch.cat(list(regions))], dim=1)


class BoxHead(nn.Module):
    """Hidden layers, then class logits and box offsets.

    Args:
        in_features: numbers in a flattened patch.
        hidden: width of the hidden layers.
        num_classes: C, without background.
        class_agnostic: one box for all classes instead of one for each.
        fcs: how many hidden layers; they are called fc6, fc7, ... as in VGG.
        convs: patches to patches, before they are flattened.
    """

    def __init__(
        self,
        in_features: int,
        hidden: int,
        num_classes: int,
        *,
        class_agnostic: bool,
        fcs: int = 2,
        convs: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.convs = convs
        self.fcs = [f"fc{6 + index}" for index in range(fcs)]
        for index, name in enumerate(self.fcs):
            self.add_module(name, nn.Linear(hidden if index else in_features, hidden))
        self.cls_score = nn.Linear(hidden, num_classes + 1)  # background last
        self.bbox_pred = nn.Linear(hidden, 4 if class_agnostic else 4 * num_classes)

    def forward(self, patches: Tensor) -> tuple[Tensor, Tensor]:
        """Logits `[R, C + 1]` and offsets `[R, C, 4]` (`[R, 1, 4]` if class-agnostic)."""
        hidden = (patches if self.convs is None else self.convs(patches)).flatten(1)
        for name in self.fcs:
            hidden = F.relu(self.get_submodule(name)(hidden))
        logits = at_least_float32(self.cls_score(hidden))
        offsets = at_least_float32(self.bbox_pred(hidden))
        return logits, offsets.unflatten(1, (-1, 4))


class ClassLoss(nn.Module):
    """How wrong a region's class is.

    Args:
        focusing: gamma of (1 - p)^gamma, which turns cross entropy into the focal loss (arXiv
            1708.02002, equation 4) of a softmax; 0 for cross entropy.
        label_smoothing: share of the truth that is spread over all classes.
        class_weights: of each class, background last; None for 1 each.
    """

    weights: Tensor | None

    def __init__(
        self,
        *,
        focusing: float = 0.0,
        label_smoothing: float = 0.0,
        class_weights: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.focusing = focusing
        self.label_smoothing = label_smoothing
        weights = None if class_weights is None else torch.tensor(class_weights)
        self.register_buffer("weights", weights, persistent=False)  # from the recipe

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Loss `[R]` of logits `[R, C + 1]` where `labels` `[R]` is true, C for background."""
        loss = F.cross_entropy(
            logits,
            labels,
            weight=None if self.weights is None else self.weights.to(logits),
            label_smoothing=self.label_smoothing,
            reduction="none",
        )
        if self.focusing == 0:
            return loss
        likely = logits.softmax(dim=1).gather(1, labels[:, None])[:, 0]  # [R]
        return loss * (1 - likely) ** self.focusing


@dataclass(frozen=True)
class BoxLoss:
    """How the distance between a box and its truth is measured.

    Attributes:
        kind: one of `ops.OFFSET_LOSSES`, on offsets, or of `ops.BOX_LOSSES`, on boxes.
        weight: factor.
        beta: where smooth L1 turns from quadratic to linear.
    """

    kind: str
    weight: float
    beta: float

    def __call__(
        self, offsets: Tensor, proposals: Tensor, truths: Tensor, weights: Weights
    ) -> Tensor:
        """Loss `[R]` of `offsets` `[R, 4]` from `proposals` towards `truths` `[R, 4]`."""
        if self.kind in BOX_LOSSES:
            boxes = decode(offsets, proposals, weights=weights)
            return self.weight * BOX_LOSSES[self.kind](boxes, truths)
        settings = {"beta": self.beta} if self.kind == "smooth_l1" else {}
        wanted = encode(truths, proposals, weights=weights)
        return self.weight * OFFSET_LOSSES[self.kind](offsets, wanted, **settings)


def region_losses(
    logits: Tensor,
    offsets: Tensor,
    regions: Tensor,
    drawn: Sequence[Assigned],
    *,
    class_loss: Callable[[Tensor, Tensor], Tensor],
    box_loss: BoxLoss,
    box_weights: Weights,
) -> tuple[Tensor, Tensor]:
    """Class loss and box loss `[R]` of each region, 0 where there is nothing to learn.

    Args:
        logits: `[R, C + 1]`, background last.
        offsets: `[R, C, 4]`, or `[R, 1, 4]` where all classes share a box.
        regions: `[R, 4]` boxes that the offsets lead from.
        drawn: what the regions of each image are to learn, R in all.
        class_loss: of logits and labels, C for the background.
        box_loss: of the positives.
        box_weights: of the offsets.
    """
    positive = torch.cat([a.positive for a in drawn])  # [R]
    valid = torch.cat([a.valid for a in drawn])
    labels = torch.cat([a.labels for a in drawn])
    truths = torch.cat([a.boxes for a in drawn])  # [R, 4]
    background = logits.shape[1] - 1
    classes = class_loss(logits, torch.where(positive, labels, background))
    column = labels if offsets.shape[1] > 1 else torch.zeros_like(labels)
    own = offsets[torch.arange(len(labels), device=labels.device), column]  # [R, 4]
    # Where there is no truth a unit box is compared to itself: finite whatever the region's size,
    # and masked below
    unit = (torch.arange(4, device=regions.device) >= 2).to(regions.dtype)  # 0, 0, 1, 1
    regions, truths = (torch.where(positive[:, None], b, unit) for b in (regions, truths))
    boxes = box_loss(own, regions, truths, box_weights)
    return classes * valid, boxes * positive


class RoIHead(nn.Module):
    """Cut out, classify and refine proposals.

    Args:
        pool: patches from feature maps and regions.
        head: logits and offsets from patches.
        assigner: which proposals learn what.
        hard_iou: overlap above which two proposals count as one when the hardest are taken instead
            of drawn (OHEM, arXiv 1604.03540); None to draw.
        box_weights: of the offsets.
        class_loss: of all that were drawn.
        box_loss: of the positives.
        selection: of what is reported.
    """

    def __init__(
        self,
        pool: nn.Module,
        head: BoxHead,
        *,
        assigner: Assigner,
        box_weights: Weights,
        class_loss: ClassLoss,
        box_loss: BoxLoss,
        selection: Selection,
        hard_iou: float | None = None,
    ) -> None:
        super().__init__()
        self.pool = pool
        self.head = head
        self.assigner = assigner
        self.hard_iou = hard_iou
        self.box_weights = box_weights
        self.class_loss = class_loss
        self.box_loss = box_loss
        self.selection = selection

    def forward(self, features: list[Tensor], proposals: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Logits `[R, C + 1]`, offsets `[R, C or 1, 4]` of proposals `[R_i, 4]` of each image."""
        return self.head(self.pool(features, proposals))

    def loss(self, features: list[Tensor], proposals: list[Tensor], batch: Batch) -> Losses:
        """The class loss of all that were drawn, and the box loss of the positives."""
        chosen, drawn = self.draw(features, proposals, batch)
        logits, offsets = self(features, chosen)
        return self.loss_of(logits, offsets, torch.cat(chosen), drawn)

    def draw(
        self, features: list[Tensor], proposals: list[Tensor], batch: Batch
    ) -> tuple[list[Tensor], list[Assigned]]:
        """Proposals `[S, 4]` of each image to learn from, and what they are to learn."""
        assert batch.targets is not None
        # truths are proposals too: in the beginning the first stage finds nothing to learn from
        candidates = [
            torch.cat([boxes, target.boxes])
            for boxes, target in zip(proposals, batch.targets, strict=True)
        ]
        if self.hard_iou is None:
            drawn = [
                self.assigner(boxes, target)
                for boxes, target in zip(candidates, batch.targets, strict=True)
            ]
        else:
            drawn = self._hardest(features, candidates, batch.targets, iou=self.hard_iou)
        return [boxes[a.index] for boxes, a in zip(candidates, drawn, strict=True)], drawn

    @torch.no_grad()
    def _hardest(
        self,
        features: list[Tensor],
        candidates: list[Tensor],
        targets: Sequence[Target],
        *,
        iou: float,
    ) -> list[Assigned]:
        """Those of the candidates that the head as it is has the highest loss for."""
        every = [self.assigner.every(b, t) for b, t in zip(candidates, targets, strict=True)]
        with evaluating(self):  # batch norm must not note what nothing is learnt from
            logits, offsets = self(features, candidates)
        parts = region_losses(
            logits,
            offsets,
            torch.cat(candidates),
            every,
            class_loss=self.class_loss,
            box_loss=self.box_loss,
            box_weights=self.box_weights,
        )
        losses = torch.stack(parts).sum(dim=0)  # [R]
        drawn = []
        for boxes, each, loss in zip(
            candidates, every, losses.split([len(b) for b in candidates]), strict=True
        ):
            # what is ignored has the loss 0, and must not suppress a good one with the same
            rank = torch.where(each.valid, loss, -1.0)
            apart = torch.zeros_like(each.valid)
            apart[nms(boxes, rank, iou_threshold=iou)] = True
            left = replace(each, positive=each.positive & apart, valid=each.valid & apart)
            drawn.append(hardest(left, loss, count=self.assigner.samples))
        return drawn

    def loss_of(
        self, logits: Tensor, offsets: Tensor, proposals: Tensor, drawn: list[Assigned]
    ) -> Losses:
        """Losses of what was said of the drawn proposals `[R, 4]`, over their number."""
        classes, boxes = region_losses(
            logits,
            offsets,
            proposals,
            drawn,
            class_loss=self.class_loss,
            box_loss=self.box_loss,
            box_weights=self.box_weights,
        )
        count = torch.cat([a.valid for a in drawn]).sum().clamp(min=1)
        return {"roi/class": classes.sum() / count, "roi/box": boxes.sum() / count}

    @torch.no_grad()
    def refine(
        self, offsets: Tensor, proposals: list[Tensor], sizes: Sequence[Size]
    ) -> list[Tensor]:
        """The boxes `[R_i, 4]` of a class-agnostic head, clipped to each image.

        Those without an area stay: they overlap nothing, so they are background in training, and
        too small to be reported in testing.
        """
        boxes = decode(offsets[:, 0], torch.cat(proposals), weights=self.box_weights)
        parts = boxes.split([len(p) for p in proposals])
        return [clip_boxes(part, size) for part, size in zip(parts, sizes, strict=True)]

    def detect(
        self, features: list[Tensor], proposals: list[Tensor], batch: Batch
    ) -> list[Detections]:
        """Detections of each image in pixels of the original image."""
        logits, offsets = self(features, proposals)
        return self.report(logits.softmax(dim=1), offsets, proposals, batch)

    def report(
        self, scores: Tensor, offsets: Tensor, proposals: list[Tensor], batch: Batch
    ) -> list[Detections]:
        """Detections from scores `[R, C + 1]` and offsets `[R, C or 1, 4]` of the proposals."""
        scores = scores[:, :-1]  # [R, C], background dropped
        boxes = decode(offsets, torch.cat(proposals)[:, None], weights=self.box_weights)
        counts = [len(p) for p in proposals]
        return [
            self.selection(b, s, size, original)
            for b, s, size, original in zip(
                boxes.split(counts),
                scores.split(counts),
                batch.sizes,
                batch.original_sizes,
                strict=True,
            )
        ]
