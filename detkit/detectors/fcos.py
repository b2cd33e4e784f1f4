"""FCOS (arXiv 2006.09214): every cell inside a box predicts the box; no anchors.

B images, L levels, N_l cells of a level and N of all, M truths, C classes, D channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detkit.detectors.base import Losses, MapGeometry
from detkit.detectors.one_stage import DenseHead, cell_truths, class_losses, rows_of
from detkit.detectors.towers import last_conv
from detkit.ops import boxes_around, giou_loss, grid_points, side_distances
from detkit.ops.matching import Match
from detkit.structures import Batch, Size, Target


class FCOSOutput(NamedTuple):
    """Maps of each level.

    Attributes:
        logits: `[B, C, H, W]`.
        distances: `[B, 4, H, W]` to the left, top, right and bottom side, in strides.
        centerness: `[B, 1, H, W]` logits of how central the cell is in its box.
    """

    logits: list[Tensor]
    distances: list[Tensor]
    centerness: list[Tensor]


class Cells(NamedTuple):
    """Cells of several levels in one list.

    Attributes:
        points: `[N, 2]` centres (x, y) in pixels.
        strides: `[N]` of their levels.
        limits: `[N, 2]` pixels; a box is for the cells where its farthest side lies between.
    """

    points: Tensor
    strides: Tensor
    limits: Tensor


def assign_cells(cells: Cells, target: Target, *, center_radius: float) -> Match:
    """Which box each cell predicts (section 3.1, with centre sampling).

    A cell learns from the smallest of the boxes that it lies in, near whose centre it is, and that
    are of its level's size. Cells in a crowd region are ignored unless they learn from another box.

    Args:
        cells: N of them.
        target: M truths.
        center_radius: strides from the centre of the box, to either side.
    """
    if len(target) == 0:
        nothing = torch.zeros_like(cells.strides, dtype=torch.bool)
        return Match(nothing.long(), nothing, ~nothing)
    sides = side_distances(cells.points[:, None], target.boxes)  # [N, M, 4]
    inside = sides.amin(dim=2) > 0
    centre = (target.boxes[:, :2] + target.boxes[:, 2:]) / 2
    off = (cells.points[:, None] - centre).abs().amax(dim=2)  # [N, M]
    lower, upper = cells.limits[:, None].unbind(dim=2)  # [N, 1]
    farthest = sides.amax(dim=2)
    # both strict, as in torchvision: a box at the very limit is for neither level
    candidate = inside & (lower < farthest) & (farthest < upper) & ~target.crowd
    candidate &= off < center_radius * cells.strides[:, None]
    width, height = (target.boxes[:, 2:] - target.boxes[:, :2]).unbind(dim=1)
    area = (width * height).expand_as(candidate).masked_fill(~candidate, math.inf)
    smallest, truth = area.min(dim=1)
    positive = smallest < math.inf
    in_crowd = (inside & target.crowd).any(dim=1)
    return Match(truth, positive, ~positive & ~in_crowd)


def centerness(distances: Tensor) -> Tensor:
    """1 in the centre of a box and 0 at its border, `[...]` of `distances` `[..., 4]` (eq. 3)."""
    nearer = torch.minimum(distances[..., :2], distances[..., 2:])
    farther = torch.maximum(distances[..., :2], distances[..., 2:])
    return (nearer / farther).prod(dim=-1).sqrt()


class FCOSHead(DenseHead):
    """A tower for classes and a tower for boxes and centerness, the same for all levels.

    Args:
        tower: makes maps `[B, D, H, W]` of those of the pyramid; called for each of both.
        levels: where the cells of each level are.
        channels: D of the towers.
        num_classes: C.
        prior: probability that the untrained head gives each class.
        size_limits: L - 1 distances in pixels, ascending. A cell of the first level is for boxes
            whose farthest side is nearer than the first, of the last level farther than the last.
        center_radius: strides from the centre of a box within which its cells are.
        focal_loss: of logits and targets, element by element.
    """

    def __init__(
        self,
        tower: Callable[[], nn.Module],
        levels: Sequence[MapGeometry],
        *,
        channels: int,
        num_classes: int,
        prior: float,
        size_limits: Sequence[float],
        center_radius: float,
        focal_loss: Callable[[Tensor, Tensor], Tensor],
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.cls_tower, self.box_tower = tower(), tower()
        self.cls_logits = last_conv(channels, num_classes, prior=prior)
        self.bbox_pred = last_conv(channels, 4)
        self.centerness = last_conv(channels, 1)
        self.levels = tuple(levels)
        self.size_limits = (0.0, *size_limits, math.inf)
        self.center_radius = center_radius
        self.focal_loss = focal_loss

    def forward(self, maps: list[Tensor]) -> FCOSOutput:
        """Logits, distances and centerness of all levels."""
        boxes = [self.box_tower(each) for each in maps]
        return FCOSOutput(
            [self.cls_logits(self.cls_tower(each)) for each in maps],
            [F.relu(self.bbox_pred(each)) for each in boxes],
            [self.centerness(each) for each in boxes],
        )

    def cells(self, output: FCOSOutput, padded: Size) -> list[Cells]:
        """The cells of each level for images padded to (height, width)."""
        limits = zip(self.size_limits, self.size_limits[1:], strict=False)
        cells = []
        for level, limit, logits in zip(self.levels, limits, output.logits, strict=True):
            shape = (logits.shape[-2], logits.shape[-1])
            spacing = level.spacing(padded, shape)
            points = grid_points(shape, spacing, first=level.center, device=logits.device)
            strides = torch.full_like(points[:, 0], level.stride)
            # each limit on its own: a tensor of both would have to travel to the GPU
            limits_of_all = torch.stack([torch.full_like(strides, each) for each in limit], dim=1)
            cells.append(Cells(points, strides, limits_of_all))
        return cells

    def loss(self, output: FCOSOutput, padded: Size, batch: Batch) -> Losses:
        """Focal loss, GIoU and centerness (binary cross entropy), each a mean a positive."""
        assert batch.targets is not None
        cells = Cells(*map(torch.cat, zip(*self.cells(output, padded), strict=True)))
        logits, distances, central = (
            torch.cat([rows_of(each, width) for each in maps], dim=1)
            for maps, width in zip(output, (self.num_classes, 4, 1), strict=True)
        )  # [B, N, C], [B, N, 4], [B, N, 1]
        with torch.no_grad():
            matches = [
                assign_cells(cells, each, center_radius=self.center_radius)
                for each in batch.targets
            ]
            truths = cell_truths(matches, batch.targets, distances)
        positive = truths.positive
        # where there is no truth a box of two strides is compared to itself, and masked below
        own = boxes_around(cells.points, cells.strides[:, None].expand(-1, 4))
        wanted = torch.where(positive[..., None], truths.boxes, own)  # [B, N, 4]
        found = boxes_around(cells.points, distances * cells.strides[:, None])
        boxes = giou_loss(found.flatten(0, 1), wanted.flatten(0, 1)).view_as(positive)
        centers = F.binary_cross_entropy_with_logits(
            central[..., 0], centerness(side_distances(cells.points, wanted)), reduction="none"
        )
        count = positive.sum().clamp(min=1)
        return {
            "fcos/class": class_losses(logits, truths, self.focal_loss).sum() / count,
            "fcos/box": (boxes * positive).sum() / count,
            "fcos/centerness": (centers * positive).sum() / count,
        }

    def candidates(self, output: FCOSOutput, padded: Size) -> list[tuple[Tensor, Tensor]]:
        """Boxes `[B, N_l, 4]` and scores `[B, N_l, C]` of each level."""
        found = []
        for level, logits, distances, central in zip(
            self.cells(output, padded), *output, strict=True
        ):
            boxes = boxes_around(level.points, rows_of(distances, 4) * level.strides[:, None])
            scores = rows_of(logits, self.num_classes).sigmoid()
            found.append((boxes, (scores * rows_of(central, 1).sigmoid()).sqrt()))
        return found
