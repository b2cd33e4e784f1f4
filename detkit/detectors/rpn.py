"""Region proposal network (Faster R-CNN, arXiv 1506.01497, section 3.1).

On a pyramid as in FPN, arXiv 1612.03144, section 4.1.

B images, L levels, A anchors a cell, N anchors in all, P proposals kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detkit.detectors.base import Losses, MapGeometry, at_least_float32
from detkit.detectors.proposals import Proposer
from detkit.ops import (
    Assigner,
    batched_nms,
    cell_anchors,
    centred_boxes,
    clip_boxes,
    decode,
    encode,
    grid_anchors,
)
from detkit.structures import Batch, Size


class RPNHead(nn.Module):
    """Shared 3x3 convolutions, then objectness and box offsets for each anchor of a cell.

    Args:
        channels: of every feature map.
        num_anchors: A.
        convs: how many convolutions are shared.
    """

    def __init__(self, channels: int, num_anchors: int, *, convs: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.more_convs = nn.ModuleList(
            nn.Conv2d(channels, channels, 3, padding=1) for _ in range(convs - 1)
        )
        self.cls_logits = nn.Conv2d(channels, num_anchors, 1)
        self.bbox_pred = nn.Conv2d(channels, 4 * num_anchors, 1)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, std=0.01)
                assert layer.bias is not None
                nn.init.zeros_(layer.bias)

    def forward(self, features: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """For each level logits `[B, H*W*A]`, offsets `[B, H*W*A, 4]`, in the order of anchors."""
        logits, offsets = [], []
        for feature in features:
            hidden = F.relu(self.conv(feature))
            for conv in self.more_convs:
                hidden = F.relu(conv(hidden))
            logit = self.cls_logits(hidden)  # [B, A, H, W]
            offset = self.bbox_pred(hidden)  # [B, A*4, H, W]
            logits.append(at_least_float32(logit.permute(0, 2, 3, 1).flatten(1)))
            offset = offset.permute(0, 2, 3, 1).flatten(1)  # [B, H*W*A*4]
            offsets.append(at_least_float32(offset.unflatten(1, (-1, 4))))
        return logits, offsets


class AnchorGrid(nn.Module):
    """Anchors of every level of a pyramid.

    Args:
        sizes: anchor sizes in pixels, one tuple a level; without `aspect_ratios` (height, width)
            of each anchor.
        aspect_ratios: height / width, each with every size, the same on all levels.
        levels: where the cells of each level are.

    Raises:
        ValueError: levels with different numbers of anchors.
    """

    def __init__(
        self,
        sizes: Sequence[Sequence[float | tuple[float, float]]],
        aspect_ratios: Sequence[float] | None,
        levels: Sequence[MapGeometry],
    ) -> None:
        super().__init__()
        if len({len(level) for level in sizes}) != 1:
            raise ValueError(f"every level needs the same number of anchor sizes, got {sizes}")
        self.num_anchors = len(sizes[0]) * (1 if aspect_ratios is None else len(aspect_ratios))
        self.levels = tuple(levels)
        for level, level_sizes in enumerate(sizes):
            cell = _cell(level_sizes, aspect_ratios) + levels[level].center
            self.register_buffer(f"cell{level}", cell, persistent=False)

    def forward(self, features: list[Tensor], padded: Size) -> list[Tensor]:
        """Anchors `[H*W*A, 4]` of each level for images padded to (height, width)."""
        anchors = []
        for index, (feature, level) in enumerate(zip(features, self.levels, strict=True)):
            shape = (feature.shape[-2], feature.shape[-1])
            stride = level.spacing(padded, shape)
            anchors.append(grid_anchors(self.get_buffer(f"cell{index}"), shape, stride))
        return anchors


def _cell(sizes: Sequence[Any], aspect_ratios: Sequence[float] | None) -> Tensor:
    """Anchors `[A, 4]` of a cell: sizes in all ratios, or pairs of height and width as they are."""
    return centred_boxes(sizes) if aspect_ratios is None else cell_anchors(sizes, aspect_ratios)


@dataclass(frozen=True)
class ProposalLimits:
    """How many boxes go on from the first stage.

    Attributes:
        pre_nms: best anchors of each level that are looked at.
        post_nms: best proposals of an image that are kept.
        nms_iou: overlap above which the lower score goes, inside a level.
        min_size: shortest side in pixels.
        score_threshold: lowest objectness.
    """

    pre_nms: int
    post_nms: int
    nms_iou: float
    min_size: float
    score_threshold: float


@dataclass(frozen=True)
class RPNOutput:
    """Raw output for all anchors: anchors, logits and offsets, each a list over levels."""

    anchors: list[Tensor]  # L x [N_l, 4]
    logits: list[Tensor]  # L x [B, N_l]
    offsets: list[Tensor]  # L x [B, N_l, 4]


class RPN(Proposer):
    """Score anchors, learn from truths, and hand the best boxes on.

    Args:
        head: logits and offsets from feature maps.
        anchors: the anchor grid.
        assigner: which anchors learn what.
        train_limits: of the proposals that the second stage learns from.
        test_limits: of the proposals that the second stage judges.
        smooth_l1_beta: where the box loss turns from quadratic to linear.
    """

    def __init__(
        self,
        head: RPNHead,
        anchors: AnchorGrid,
        *,
        assigner: Assigner,
        train_limits: ProposalLimits,
        test_limits: ProposalLimits,
        smooth_l1_beta: float,
    ) -> None:
        super().__init__()
        self.head = head
        self.anchors = anchors
        self.assigner = assigner
        self.train_limits = train_limits
        self.test_limits = test_limits
        self.smooth_l1_beta = smooth_l1_beta

    def forward(self, features: list[Tensor], padded: Size) -> RPNOutput:
        """Judge every anchor of images padded to (height, width).

        Raises:
            ValueError: another number of maps than of levels.
        """
        if len(features) != len(self.anchors.levels):
            raise ValueError(
                f"{len(self.anchors.levels)} levels of anchor sizes for {len(features)} feature "
                "maps; give rpn.anchor_sizes one entry a map"
            )
        logits, offsets = self.head(features)
        return RPNOutput(self.anchors(features, padded), logits, offsets)

    def find(self, features: list[Tensor], batch: Batch) -> list[Tensor]:
        """The best boxes of each image, for the second stage to judge."""
        output = self(features, (batch.images.shape[-2], batch.images.shape[-1]))
        return self.propose(output, batch.sizes, self.test_limits)

    def learn(self, features: list[Tensor], batch: Batch) -> tuple[list[Tensor], Losses]:
        """The best boxes of each image, for the second stage to learn from, and the losses."""
        output = self(features, (batch.images.shape[-2], batch.images.shape[-1]))
        proposals = self.propose(output, batch.sizes, self.train_limits)
        return proposals, self.loss(output, batch)

    def most(self, size: Size) -> int:
        """The limit of testing, whatever the size."""
        return self.test_limits.post_nms

    def loss(self, output: RPNOutput, batch: Batch) -> Losses:
        """Objectness (binary cross entropy) and box loss (smooth L1) over the drawn anchors."""
        assert batch.targets is not None
        anchors = torch.cat(output.anchors)  # [N, 4]
        drawn = [self.assigner(anchors, target) for target in batch.targets]
        index = torch.stack([a.index for a in drawn])  # [B, S]
        positive = torch.stack([a.positive for a in drawn])
        valid = torch.stack([a.valid for a in drawn])
        truth = torch.stack([a.boxes for a in drawn])  # [B, S, 4]

        logits = torch.cat(output.logits, dim=1).gather(1, index)  # [B, S]
        every_offset = torch.cat(output.offsets, dim=1)  # [B, N, 4]
        offsets = every_offset.gather(1, index[..., None].expand(-1, -1, 4))  # [B, S, 4]
        objectness = F.binary_cross_entropy_with_logits(
            logits, positive.to(logits), reduction="none"
        )
        # Encoded for positives only: a negative has no truth, and log(0) there would be NaN
        wanted = encode(torch.where(positive[..., None], truth, anchors[index]), anchors[index])
        box = F.smooth_l1_loss(offsets, wanted, beta=self.smooth_l1_beta, reduction="none")
        count = valid.sum().clamp(min=1)
        return {
            "rpn/objectness": (objectness * valid).sum() / count,
            "rpn/box": (box.sum(dim=2) * positive).sum() / count,
        }

    @torch.no_grad()
    def propose(
        self, output: RPNOutput, sizes: Sequence[Size], limits: ProposalLimits
    ) -> list[Tensor]:
        """The best boxes `[P, 4]` of each image, clipped to it, best first."""
        boxes, scores, levels = [], [], []
        for level, (anchors, logits, offsets) in enumerate(
            zip(output.anchors, output.logits, output.offsets, strict=True)
        ):
            best, index = logits.topk(min(limits.pre_nms, logits.shape[1]), dim=1)  # [B, K]
            chosen = offsets.gather(1, index[..., None].expand(-1, -1, 4))  # [B, K, 4]
            boxes.append(decode(chosen, anchors[index]))
            scores.append(best.sigmoid())
            levels.append(torch.full_like(index[0], level))
        all_boxes, all_scores = torch.cat(boxes, dim=1), torch.cat(scores, dim=1)  # [B, LK, ..]
        all_levels = torch.cat(levels)
        return [
            _best_boxes(clip_boxes(b, size), s, all_levels, limits)
            for b, s, size in zip(all_boxes, all_scores, sizes, strict=True)
        ]


def _best_boxes(boxes: Tensor, scores: Tensor, levels: Tensor, limits: ProposalLimits) -> Tensor:
    """Proposals of one image: drop tiny and unlikely ones, suppress, keep the best."""
    sides = boxes[:, 2:] - boxes[:, :2]
    wanted = (sides >= limits.min_size).all(dim=1) & (scores >= limits.score_threshold)
    keep = wanted.nonzero()[:, 0]  # indexing by a mask would look for them three times
    boxes, scores, levels = boxes[keep], scores[keep], levels[keep]
    best = batched_nms(boxes, scores, levels, iou_threshold=limits.nms_iou)[: limits.post_nms]
    return boxes[best]
