"""Detectors in two stages: propose regions, then judge each.

From R-CNN (arXiv 1311.2524) to Faster R-CNN (arXiv 1506.01497).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from detkit.detectors.base import Detector, Losses
from detkit.detectors.roi import RoIHead
from detkit.detectors.rpn import RPN
from detkit.structures import Batch, Detections


class RegionProposal(Detector):
    """Backbone, pyramid, proposals, and a head that judges them.

    Args:
        backbone: images to a list of maps, finest first.
        neck: maps to maps, or None.
        rpn: the proposals.
        roi: the second stage.
        mean: of R, G and B in 0..1.
        std: of R, G and B in 0..1.
    """

    def __init__(
        self,
        backbone: nn.Module,
        neck: nn.Module | None,
        rpn: RPN,
        roi: RoIHead,
        *,
        mean: Sequence[float],
        std: Sequence[float],
    ) -> None:
        super().__init__(mean=mean, std=std)
        self.backbone = backbone
        self.neck = neck
        self.rpn = rpn
        self.roi = roi

    def features(self, batch: Batch) -> list[Tensor]:
        """Maps of backbone and neck, finest first."""
        maps = self.backbone(self.normalize(batch))
        return maps if self.neck is None else self.neck(maps)

    def losses(self, features: list[Tensor], batch: Batch) -> Losses:
        """Losses of both stages; the second learns from what the first proposes now."""
        output = self.rpn(features, (batch.images.shape[-2], batch.images.shape[-1]))
        proposals = self.rpn.propose(output, batch.sizes, self.rpn.train_limits)
        return self.rpn.loss(output, batch) | self.roi.loss(features, proposals, batch)

    def detections(self, features: list[Tensor], batch: Batch) -> list[Detections]:
        """Propose, judge, report."""
        output = self.rpn(features, (batch.images.shape[-2], batch.images.shape[-1]))
        proposals = self.rpn.propose(output, batch.sizes, self.rpn.test_limits)
        return self.roi.detect(features, proposals, batch)
