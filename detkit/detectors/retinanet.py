"""RetinaNet (arXiv 1708.02002): anchors on a pyramid, judged at once, with the focal loss.

B images, A anchors a cell, N_l anchors of a level and N of all, C classes, D channels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from detkit.detectors.base import Losses
from detkit.detectors.one_stage import CellTruths, DenseHead, cell_truths, class_losses, rows_of
from detkit.detectors.roi import BoxLoss
from detkit.detectors.rpn import AnchorGrid
from detkit.detectors.towers import last_conv
from detkit.ops import decode
from detkit.ops.box_coder import UNIT
from detkit.ops.matching import Match
from detkit.structures import Batch, Size


class RetinaNetOutput(NamedTuple):
    """Maps of each level: logits `[B, A*C, H, W]` and offsets `[B, A*4, H, W]`."""

    logits: list[Tensor]
    offsets: list[Tensor]


class RetinaNetHead(DenseHead):
    """A tower for classes and a tower for boxes, the same for all levels (section 4).

    Args:
        tower: makes maps `[B, D, H, W]` of those of the pyramid; called for each of both.
        anchors: the anchor grid.
        channels: D of the towers.
        num_classes: C.
        prior: probability that the untrained head gives each class (section 4.1).
        match: from anchors `[N, 4]`, boxes `[M, 4]` and crowd `[M]` to what each stands for.
        focal_loss: of logits and targets, element by element.
        box_loss: of the positives.
    """

    def __init__(
        self,
        tower: Callable[[], nn.Module],
        anchors: AnchorGrid,
        *,
        channels: int,
        num_classes: int,
        prior: float,
        match: Callable[[Tensor, Tensor, Tensor], Match],
        focal_loss: Callable[[Tensor, Tensor], Tensor],
        box_loss: BoxLoss,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.cls_tower, self.box_tower = tower(), tower()
        self.cls_logits = last_conv(channels, anchors.num_anchors * num_classes, prior=prior)
        self.bbox_pred = last_conv(channels, anchors.num_anchors * 4)
        self.anchors = anchors
        self.levels = anchors.levels
        self.match = match
        self.focal_loss = focal_loss
        self.box_loss = box_loss

    def forward(self, maps: list[Tensor]) -> RetinaNetOutput:
        """Logits and offsets of all levels."""
        return RetinaNetOutput(
            [self.cls_logits(self.cls_tower(each)) for each in maps],
            [self.bbox_pred(self.box_tower(each)) for each in maps],
        )

    def loss(self, output: RetinaNetOutput, padded: Size, batch: Batch) -> Losses:
        """Focal loss and box loss, each a mean over the images of its sum a positive."""
        assert batch.targets is not None
        anchors = torch.cat(self.anchors(output.offsets, padded))  # [N, 4]
        logits = torch.cat([rows_of(each, self.num_classes) for each in output.logits], dim=1)
        offsets = torch.cat([rows_of(each, 4) for each in output.offsets], dim=1)  # [B, N, 4]
        with torch.no_grad():
            matches = [self.match(anchors, each.boxes, each.crowd) for each in batch.targets]
            truths = cell_truths(matches, batch.targets, offsets)
        share = 1 / (truths.positive.sum(dim=1).clamp(min=1) * max(len(batch), 1))  # [B]
        return {
            "retinanet/class": (class_losses(logits, truths, self.focal_loss) * share).sum(),
            "retinanet/box": (self._box_losses(offsets, anchors, truths) * share).sum(),
        }

    def _box_losses(self, offsets: Tensor, anchors: Tensor, truths: CellTruths) -> Tensor:
        """Sums `[B]` over the positives."""
        anchors = anchors.expand_as(offsets)
        # where there is no truth an anchor is compared to itself: finite, and masked below
        wanted = torch.where(truths.positive[..., None], truths.boxes, anchors)
        losses = self.box_loss(
            offsets.flatten(0, 1), anchors.flatten(0, 1), wanted.flatten(0, 1), UNIT
        )  # [B * N]
        return (losses.view_as(truths.positive) * truths.positive).sum(dim=1)

    def candidates(self, output: RetinaNetOutput, padded: Size) -> list[tuple[Tensor, Tensor]]:
        """Boxes `[B, N_l, 4]` and scores `[B, N_l, C]` of each level."""
        return [
            (decode(rows_of(offsets, 4), anchors), rows_of(logits, self.num_classes).sigmoid())
            for anchors, logits, offsets in zip(
                self.anchors(output.offsets, padded), *output, strict=True
            )
        ]
