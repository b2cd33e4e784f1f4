"""Look again at what was refined, each time more strictly (Cascade R-CNN, arXiv 1712.00726).

T stages, R regions of all images together, C classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from detkit.detectors.base import Losses
from detkit.detectors.roi import RoIHead
from detkit.structures import Batch, Detections


class CascadeHead(nn.Module):
    """Second stages in a row: the boxes that one refines are the proposals of the next.

    A box that a stage has refined lies better than the proposal did, so that the next can ask for
    more overlap and still find positives enough (section 4.2).

    Args:
        stages: T heads, class-agnostic, the least strict first. They cut out patches alike, and the
            last one's selection is used.
        loss_weights: of each stage.
    """

    def __init__(self, stages: Sequence[RoIHead], *, loss_weights: Sequence[float]) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.loss_weights = tuple(loss_weights)

    def __iter__(self) -> Iterator[RoIHead]:
        return iter(self.stages)  # type: ignore[arg-type]

    def loss(self, features: list[Tensor], proposals: list[Tensor], batch: Batch) -> Losses:
        """Losses of all stages as "roi1/class", "roi1/box", "roi2/class" and so on."""
        losses = {}
        for number, (stage, weight) in enumerate(zip(self, self.loss_weights, strict=True), 1):
            chosen, drawn = stage.draw(features, proposals, batch)
            logits, offsets = stage(features, chosen)
            for kind, loss in stage.loss_of(logits, offsets, torch.cat(chosen), drawn).items():
                losses[f"roi{number}/{kind.removeprefix('roi/')}"] = weight * loss
            proposals = stage.refine(offsets, chosen, batch.sizes)
        return losses

    def detect(
        self, features: list[Tensor], proposals: list[Tensor], batch: Batch
    ) -> list[Detections]:
        """Refine T - 1 times; what is left there all T heads judge together, the last one refines.

        The scores are the mean over the heads, all of which look at the last stage's proposals
        ("1 ~ 3" in the tables of the paper).
        """
        *earlier, last = self
        for stage in earlier:
            _, offsets = stage(features, proposals)
            proposals = stage.refine(offsets, proposals, batch.sizes)
        patches = last.pool(features, proposals)
        judged = [stage.head(patches) for stage in self]
        scores = torch.stack([logits.softmax(dim=1) for logits, _ in judged]).mean(dim=0)
        return last.report(scores, judged[-1][1], proposals, batch)
