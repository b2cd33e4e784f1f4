"""Detectors in one stage: every cell of every map says what is there, and where.

What differs between RetinaNet, FCOS and their successors is the head: which cells learn from which
object, by which loss, and how its output becomes a box. B images, L levels, N_l candidates of a
level, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from detkit.detectors.base import Detector, Losses, MapGeometry, at_least_float32
from detkit.ops import Selection
from detkit.ops.matching import Match
from detkit.structures import Batch, Detections, Size, Target


def rows_of(output: Tensor, width: int) -> Tensor:
    """A map `[B, A * width, H, W]` as `[B, H*W*A, width]`, in the order of anchors."""
    return at_least_float32(output.permute(0, 2, 3, 1).flatten(1).unflatten(1, (-1, width)))


class CellTruths(NamedTuple):
    """What N cells or anchors of B images learn.

    Attributes:
        positive: `[B, N]` bool.
        negative: `[B, N]` bool; neither positive nor negative: ignored.
        labels: `[B, N]`, meaningful where positive.
        boxes: `[B, N, 4]`, meaningful where positive.
    """

    positive: Tensor
    negative: Tensor
    labels: Tensor
    boxes: Tensor


def cell_truths(
    matches: Sequence[Match], targets: Sequence[Target], predicted: Tensor
) -> CellTruths:
    """Look up the truth that each cell stands for.

    Args:
        matches: of each image.
        targets: of each image.
        predicted: `[B, N, 4]` boxes or offsets; the truths are as many, and of its precision.
    """
    positive = torch.zeros(predicted.shape[:2], dtype=torch.bool, device=predicted.device)
    negative, labels = torch.zeros_like(positive), torch.zeros_like(positive, dtype=torch.int64)
    boxes = torch.zeros_like(predicted)
    for image, (match, target) in enumerate(zip(matches, targets, strict=True)):
        positive[image], negative[image] = match.positive, match.negative
        if len(target) > 0:
            labels[image], boxes[image] = target.labels[match.truth], target.boxes[match.truth]
    return CellTruths(positive, negative, labels, boxes)


def class_losses(
    logits: Tensor, truths: CellTruths, loss: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """Sums `[B]` of a loss over the classes of all cells that are not ignored.

    Args:
        logits: `[B, N, C]`.
        truths: of the same cells.
        loss: of logits and targets in 0..1, element by element.
    """
    positive = truths.positive[..., None]
    wanted = torch.zeros_like(logits).scatter_(2, truths.labels[..., None], positive.to(logits))
    counts = truths.positive | truths.negative
    return (loss(logits, wanted).sum(dim=2) * counts).sum(dim=1)


class DenseHead(nn.Module):
    """What a head of a one-stage detector does.

    What `forward` returns is its own affair, but that it has `logits`.

    Attributes:
        levels: where the cells of each level are.
    """

    levels: tuple[MapGeometry, ...]

    def forward(self, maps: list[Tensor]) -> Any:
        """Raw output of all levels from maps `[B, D, H, W]`, finest first."""
        raise NotImplementedError

    def loss(self, output: Any, padded: Size, batch: Batch) -> Losses:
        """Weighted scalars, from the output for images padded to (height, width)."""
        raise NotImplementedError

    def candidates(self, output: Any, padded: Size) -> list[tuple[Tensor, Tensor]]:
        """Boxes `[B, N_l, 4]` and scores `[B, N_l, C]` of each level."""
        raise NotImplementedError


class OneStage(Detector):
    """Backbone, pyramid and one head.

    Args:
        backbone: images to a list of maps, finest first.
        neck: maps to maps, or None.
        head: judges every cell.
        selection: what is reported.
        mean: of R, G and B in 0..1.
        std: of R, G and B in 0..1.
    """

    def __init__(
        self,
        backbone: nn.Module,
        neck: nn.Module | None,
        head: DenseHead,
        *,
        selection: Selection,
        mean: Sequence[float],
        std: Sequence[float],
    ) -> None:
        super().__init__(mean=mean, std=std)
        self.backbone = backbone
        self.neck = neck
        self.head = head
        self.selection = selection

    def features(self, batch: Batch) -> list[Tensor]:
        """Maps of backbone and neck, finest first."""
        maps = self.backbone(self.normalize(batch))
        return maps if self.neck is None else self.neck(maps)

    def losses(self, features: list[Tensor], batch: Batch) -> Losses:
        """Losses of the head."""
        padded = (batch.images.shape[-2], batch.images.shape[-1])
        return self.head.loss(self.head(features), padded, batch)

    def detections(self, features: list[Tensor], batch: Batch) -> list[Detections]:
        """Select among the candidates of all levels."""
        padded = (batch.images.shape[-2], batch.images.shape[-1])
        levels = self.head.candidates(self.head(features), padded)
        return [
            self.selection.of_levels(
                [(boxes[image, :, None], scores[image]) for boxes, scores in levels],
                size,
                original,
            )
            for image, (size, original) in enumerate(
                zip(batch.sizes, batch.original_sizes, strict=True)
            )
        ]
