"""The sizes that meet in a detector: of objects, anchors, cells and receptive fields.

G truths of a data set, N images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import nn

from detkit.backbones import FeatureInfo
from detkit.config import ResizeConfig
from detkit.data import CocoDataset, coco_ground_truth, resized_shape
from detkit.data.dataset import clip_truth
from detkit.detectors import OneStage, RegionProposal
from detkit.detectors.base import MapGeometry
from detkit.detectors.rpn import RPN, AnchorGrid


@dataclass(frozen=True)
class Level:
    """One map that detections are made from.

    Attributes:
        name: of the backbone's stage, or "P6" for one that the pyramid adds.
        stride: pixels from one cell to the next.
        receptive_field: of the backbone's map; None where it is not known or there is no such map.
        anchors: distinct square roots of the areas of a cell's anchors, rounded, ascending.
    """

    name: str
    stride: int
    receptive_field: int | None
    anchors: tuple[int, ...] = ()


@dataclass(frozen=True)
class Scales:
    """Levels, finest first, and the sizes of the objects.

    Attributes:
        levels: at least one.
        sides: `[G]` square roots of the areas of the boxes in pixels, after resizing; None without
            a data set.
    """

    levels: tuple[Level, ...]
    sides: np.ndarray | None = None

    @property
    def finest_stride(self) -> int:
        """Pixels from one cell to the next of the finest map."""
        return min(level.stride for level in self.levels)

    @property
    def largest_field(self) -> int | None:
        """The largest receptive field of a map; None where none is known."""
        return max((level.receptive_field or 0 for level in self.levels), default=0) or None

    def smaller_than(self, pixels: float) -> float:
        """Share of the objects that are smaller; 0 without any."""
        return 0.0 if self.sides is None else _share(self.sides < pixels)

    def larger_than(self, pixels: float) -> float:
        """Share of the objects that are larger; 0 without any."""
        return 0.0 if self.sides is None else _share(self.sides > pixels)


def _share(chosen: np.ndarray) -> float:
    return float(chosen.mean()) if len(chosen) else 0.0


def levels_of(maps: Sequence[FeatureInfo], net: nn.Module | None = None) -> tuple[Level, ...]:
    """Describe the maps of a backbone, with the levels and anchors of a detector that has some."""
    levels = [Level(info.name, info.stride, info.receptive_field) for info in maps]
    geometry, grid = pyramid_of(net)
    for index, each in enumerate(geometry):
        if index >= len(levels):  # the pyramid's own
            levels.append(Level(f"P{each.stride.bit_length() - 1}", each.stride, None))
        if grid is not None:
            levels[index] = replace(levels[index], anchors=_anchor_sides(grid, index))
    return tuple(levels)


def pyramid_of(net: nn.Module | None) -> tuple[Sequence[MapGeometry], AnchorGrid | None]:
    """Where the cells are that a detector judges; not every detector has anchors there."""
    if isinstance(net, RegionProposal) and isinstance(net.rpn, RPN):
        return net.rpn.anchors.levels, net.rpn.anchors
    if isinstance(net, OneStage):
        return net.head.levels, getattr(net.head, "anchors", None)
    return (), None


def _anchor_sides(grid: AnchorGrid, level: int) -> tuple[int, ...]:
    cell = grid.get_buffer(f"cell{level}")  # [A, 4]
    areas = (cell[:, 2:] - cell[:, :2]).prod(dim=1)
    return tuple(sorted({round(side) for side in areas.sqrt().tolist()}))


def box_sides(dataset: CocoDataset, resize: ResizeConfig) -> np.ndarray:
    """Square roots `[G]` of the areas of all boxes, in pixels of the resized images.

    Crowd regions and boxes without an area are left out.
    """
    sides: np.ndarray = np.sqrt(box_shapes(dataset, resize).prod(axis=1))
    return sides


def box_shapes(dataset: CocoDataset, resize: ResizeConfig) -> np.ndarray:
    """(height, width) `[G, 2]` of all boxes, in pixels of the resized images.

    Crowd regions and boxes without an area are left out.
    """
    truth, sizes = coco_ground_truth(dataset), dataset.sizes()  # [N, 2]
    boxes, _, degenerate = clip_truth(truth, sizes)
    resized = np.array(
        [
            resized_shape(int(h), int(w), shortest=resize.shortest, longest=resize.longest)
            for h, w in sizes
        ]
    )
    growth = (resized / sizes)[truth.gt_image_index]  # [G, 2]
    shapes: np.ndarray = (boxes[:, 2:] - boxes[:, :2])[:, ::-1] * growth
    return shapes[~degenerate & ~truth.gt_crowd]
