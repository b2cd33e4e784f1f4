"""Detectors in two stages: propose regions, then judge each.

R-CNN (arXiv 1311.2524), Fast R-CNN (arXiv 1504.08083), Faster R-CNN (arXiv 1506.01497) and Cascade
R-CNN (arXiv 1712.00726) differ in where the regions come from, in what is cut out for each, and in
how often each is looked at.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from detkit.detectors.base import Detector, Losses
from detkit.detectors.cascade import CascadeHead
from detkit.detectors.proposals import Proposer
from detkit.detectors.roi import RoIHead
from detkit.structures import Batch, Detections


class RegionProposal(Detector):
    """Backbone, pyramid, proposals, and a head that judges them.

    Args:
        backbone: images to a list of maps, finest first.
        neck: maps to maps, or None.
        rpn: where regions come from, learnt or not; checkpoints know it under this name.
        roi: the second stage.
        mean: of R, G and B in 0..1.
        std: of R, G and B in 0..1.
        shared: the backbone sees each image once, and all regions share its maps. False is R-CNN:
            `roi` has the backbone look at every region by itself.
    """

    def __init__(
        self,
        backbone: nn.Module,
        neck: nn.Module | None,
        rpn: Proposer,
        roi: RoIHead | CascadeHead,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        shared: bool = True,
    ) -> None:
        super().__init__(mean=mean, std=std)
        self.backbone = backbone
        self.neck = neck
        self.rpn = rpn
        self.roi = roi
        self.shared = shared

    @property
    def roi_stages(self) -> list[RoIHead]:
        """The second stage, or all of them."""
        return list(self.roi) if isinstance(self.roi, CascadeHead) else [self.roi]

    def features(self, batch: Batch) -> list[Tensor]:
        """Maps of backbone and neck, finest first; of R-CNN the normalised images themselves."""
        images = self.normalize(batch)
        if not self.shared:
            return [images]
        maps = self.backbone(images)
        return maps if self.neck is None else self.neck(maps)

    def losses(self, features: list[Tensor], batch: Batch) -> Losses:
        """Losses of both stages; the second learns from what the first proposes now."""
        proposals, losses = self.rpn.learn(features, batch)
        return losses | self.roi.loss(features, proposals, batch)

    def detections(self, features: list[Tensor], batch: Batch) -> list[Detections]:
        """Propose, judge, report."""
        return self.roi.detect(features, self.rpn.find(features, batch), batch)
