"""A dense detector whose cells learn from the objects they serve best.

Put together from: cells instead of anchors, a box as its distances to the four sides (FCOS, arXiv
1904.01355, section 3.1); each distance as a distribution over bins, and one score that stands for
class and overlap together, so that there is neither an objectness nor a centerness (generalized
focal loss, arXiv 2006.04388, section 3); task-aligned assignment (TOOD, arXiv 2108.07755, section
3.2); convolutions that all levels share, with a norm of each level's own (RTMDet, arXiv 2212.07784,
section 3.2).

B images, L levels, N cells of all levels, N_l of one, P positive cells, D channels, C classes, R
bins of a distance, which stand for 0 to R - 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from detkit.detectors.base import Losses, MapGeometry, at_least_float32
from detkit.detectors.one_stage import DenseHead
from detkit.detectors.towers import LevelTower
from detkit.ops import (
    Alignment,
    boxes_around,
    cells_inside,
    distribution_expectation,
    distribution_focal_loss,
    grid_points,
    pad_truths,
    quality_focal_loss,
    side_distances,
)
from detkit.structures import Batch, Size

_PRIOR = 0.01  # score of every class at first
_FIRST_DISTANCE = 4  # in strides, of the boxes at first


@dataclass(frozen=True)
class TaskAlignedOutput:
    """Raw output for all cells, level after level, finest first."""

    points: Tensor  # [N, 2] x and y in pixels
    strides: Tensor  # [N] pixels to the next cell
    logits: Tensor  # [B, N, C]
    distances: Tensor  # [B, N, 4, R] logits of the bins of left, top, right, bottom
    counts: tuple[int, ...]  # N_l of each level


@dataclass(frozen=True)
class LossWeights:
    """How much each part of the loss counts.

    Attributes:
        classes: quality focal loss of the scores.
        box: loss of the boxes by their overlap.
        distance: distribution focal loss of the four distances.
    """

    classes: float = 1.0
    box: float = 2.0
    distance: float = 0.5


class TaskAlignedHead(DenseHead):
    """Classes and distances of every cell.

    Args:
        tower: builds a tower; there is one for classes and one for boxes.
        levels: where the cells of each level are.
        num_classes: C.
        bins: R; a side of a box is at most R - 1 strides away from its cell.
        match: which cells learn from which truth, as `ops.task_aligned_match` says.
        box_loss: of the positives, one of `detkit.ops.BOX_LOSSES`.
        weights: of the losses.
    """

    def __init__(
        self,
        tower: Callable[[], LevelTower],
        levels: Sequence[MapGeometry],
        *,
        num_classes: int,
        bins: int,
        match: Callable[..., Alignment],
        box_loss: Callable[[Tensor, Tensor], Tensor],
        weights: LossWeights,
    ) -> None:
        super().__init__()
        self.levels = tuple(levels)
        self.bins = bins
        self.match = match
        self.box_loss = box_loss
        self.weights = weights
        self.class_tower, self.box_tower = tower(), tower()
        width = self.class_tower.out_channels
        self.class_logits = nn.Conv2d(width, num_classes, 1)
        self.distances = nn.Conv2d(width, 4 * bins, 1)
        self._initialise()

    def _initialise(self) -> None:
        """Start with few objects (focal loss, arXiv 1708.02002, section 3.3) of a fair size.

        Where the published detectors warm up with another assignment, as boxes of no sense say
        nothing about alignment, the first boxes here are anchors: squares of 8 strides, those of
        ATSS (arXiv 1912.02424), around their cells. So levels share objects out by size at once.
        """
        for layer in (self.class_logits, self.distances):
            nn.init.normal_(layer.weight, std=0.01)
        assert self.class_logits.bias is not None and self.distances.bias is not None
        nn.init.constant_(self.class_logits.bias, -math.log((1 - _PRIOR) / _PRIOR))
        bins = torch.arange(self.bins)
        with torch.no_grad():
            self.distances.bias.copy_((-((bins - _FIRST_DISTANCE) ** 2) / 8).repeat(4))

    def forward(self, maps: list[Tensor]) -> TaskAlignedOutput:
        """Judge every cell of all maps.

        Raises:
            ValueError: another number of maps than of levels.
        """
        if len(maps) != len(self.levels):
            raise ValueError(f"the head was built for {len(self.levels)} maps, got {len(maps)}")
        logits, distances = [], []
        for level, x in enumerate(maps):
            logit = self.class_logits(self.class_tower(level, x))  # [B, C, H, W]
            distance = self.distances(self.box_tower(level, x))  # [B, 4*R, H, W]
            logits.append(logit.flatten(2).transpose(1, 2))  # [B, N_l, C]
            distances.append(distance.flatten(2).transpose(1, 2))  # [B, N_l, 4*R]
        points, strides = self._cells(maps)
        return TaskAlignedOutput(
            points,
            strides,
            at_least_float32(torch.cat(logits, dim=1)),
            torch.cat(distances, dim=1).unflatten(2, (4, self.bins)),
            tuple(each.shape[1] for each in logits),
        )

    def _cells(self, maps: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Points `[N, 2]` (x, y) and strides `[N]` of the cells of all levels."""
        points, strides = [], []
        for level, x in zip(self.levels, maps, strict=True):
            shape, spacing = (x.shape[-2], x.shape[-1]), (level.stride, level.stride)
            points.append(grid_points(shape, spacing, first=first_point(level), device=x.device))
            strides.append(torch.full_like(points[-1][:, 0], level.stride))
        return torch.cat(points), torch.cat(strides)

    def loss(self, output: TaskAlignedOutput, padded: Size, batch: Batch) -> Losses:
        """Losses of classes, boxes and distances, over the sum of all qualities."""
        assert batch.targets is not None
        truths = pad_truths(batch.targets)
        inside = cells_inside(output.points, output.strides, truths)  # [B, M, N]
        boxes = self._boxes_where(inside.any(dim=1), output)
        matched = self.match(output.logits.sigmoid(), boxes, inside, truths)
        total = matched.quality.sum().clamp(min=1)

        # Few cells are positive: worth waiting for their number, as all others cost far more
        image, cell = matched.positive.nonzero(as_tuple=True)  # [P]
        number = matched.truth[image, cell]
        truth, quality = truths.boxes[image, number], matched.quality[image, cell]
        wanted = torch.zeros_like(output.logits)  # [B, N, C]
        wanted[image, cell, truths.labels[image, number]] = quality
        classes = quality_focal_loss(output.logits, wanted) * ~matched.ignored[..., None]

        points, strides = output.points[cell], output.strides[cell]
        distances = at_least_float32(output.distances[image, cell])  # [P, 4, R]
        box = self.box_loss(decode_distances(distances, points, strides), truth)
        sides = encode_distances(truth, points, strides)  # [P, 4]
        distance = distribution_focal_loss(distances, sides).mean(dim=1)
        return {
            "task_aligned/class": self.weights.classes * classes.sum() / total,
            "task_aligned/box": self.weights.box * (box * quality).sum() / total,
            "task_aligned/distance": self.weights.distance * (distance * quality).sum() / total,
        }

    def candidates(self, output: TaskAlignedOutput, padded: Size) -> list[tuple[Tensor, Tensor]]:
        """Boxes `[B, N_l, 4]` and scores `[B, N_l, C]` of each level."""
        boxes = decode_distances(output.distances, output.points, output.strides)
        boxes = boxes.split(output.counts, dim=1)
        scores = output.logits.sigmoid().split(output.counts, dim=1)
        return list(zip(boxes, scores, strict=True))

    @torch.no_grad()
    def _boxes_where(self, mask: Tensor, output: TaskAlignedOutput) -> Tensor:
        """Boxes `[B, N, 4]` of the cells in `mask` `[B, N]`; others are 0, and cost nothing."""
        image, cell = mask.nonzero(as_tuple=True)
        boxes = output.logits.new_zeros(*mask.shape, 4)
        boxes[image, cell] = decode_distances(
            output.distances[image, cell], output.points[cell], output.strides[cell]
        )
        return boxes


def first_point(level: MapGeometry) -> float:
    """Where in the image the first cell of a map stands, in coordinates of boxes.

    Networks that pad every border have it on the image's first pixel by their layers, and the last
    one nearly a stride away from the other border; they are taken to share the image out evenly, as
    everyone does: half a stride from the border. Others stand where they stand; the middle of pixel
    0 is at 0.5.
    """
    return level.center + 0.5 if level.center else level.stride / 2


def decode_distances(distances: Tensor, points: Tensor, strides: Tensor) -> Tensor:
    """Boxes `[..., N, 4]` from logits of the bins of their four distances `[..., N, 4, R]`.

    A distance is the mean of the distribution (generalized focal loss, equation 4), in strides.

    Args:
        distances: left, top, right, bottom.
        points: `[N, 2]` x and y that they are measured from.
        strides: `[N]`.
    """
    sides = distribution_expectation(at_least_float32(distances)) * strides[:, None]  # [..., N, 4]
    return boxes_around(points, sides)


def encode_distances(boxes: Tensor, points: Tensor, strides: Tensor) -> Tensor:
    """Distances `[N, 4]` in strides from points `[N, 2]` to the sides of boxes `[N, 4]`."""
    return side_distances(points, boxes) / strides[:, None]
