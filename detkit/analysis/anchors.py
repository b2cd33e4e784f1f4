"""How well anchors fit the objects of a data set, and which would fit better.

G objects, K anchors in all, L levels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from detkit.analysis.scales import box_shapes
from detkit.analysis.subject import Subject, without_pyramid
from detkit.detectors import RegionProposal
from detkit.detectors.rpn import RPN, AnchorGrid
from detkit.engine.data import build_dataset
from detkit.ops import cluster_boxes, shape_iou


@dataclass(frozen=True)
class AnchorFit:
    """Anchors of a recipe beside those that its training data ask for.

    Attributes:
        objects: G, how many there are.
        given: how many anchors the recipe has, all levels together.
        given_iou: mean over the objects of the IoU with the anchor that fits best, both centred.
        clustered: (height, width) of the clusters, a list for each level, finest first.
        clustered_iou: the same mean for them.
    """

    objects: int
    given: int
    given_iou: float
    clustered: list[list[list[float]]]
    clustered_iou: float

    def __str__(self) -> str:
        count = sum(map(len, self.clustered))
        boxes = str(self.clustered).replace(" ", "")
        return (
            f"{self.objects} objects; mean IoU with the anchor that fits best:\n"
            f"  {self.given_iou:.3f} for the recipe's {self.given}\n"
            f"  {self.clustered_iou:.3f} for {count} clusters\n"
            f"model.rpn.anchor_sizes=null 'model.rpn.anchor_boxes={boxes}'"
        )


def fit_anchors(subject: Subject, *, k: int | None = None, seed: int = 0) -> AnchorFit:
    """Cluster the boxes of a recipe's training data, as it resizes them.

    Args:
        subject: of a recipe whose detector has a region proposal network.
        k: how many clusters, a multiple of L; None for as many as the recipe has anchors.
        seed: see `cluster_boxes`.

    Raises:
        ValueError: another subject, a k that does not fit, too few objects, or the data cannot be
            read.
    """
    recipe = subject.recipe
    net = None if recipe is None else without_pyramid(subject.build("cpu"))
    if recipe is None or not (isinstance(net, RegionProposal) and isinstance(net.rpn, RPN)):
        raise ValueError(
            f"{subject.name} has no anchors that model.rpn.anchor_boxes could set; give a recipe "
            "of detector=region_proposal with proposals=rpn"
        )
    if recipe.data.train is None:
        raise ValueError(f"{subject.name} has no data.train whose boxes could be clustered; set it")
    given = shapes_of(net.rpn.anchors)
    levels = len(net.rpn.anchors.levels)
    k = len(given) if k is None else k
    if k < 1:
        raise ValueError(f"k {k} is not a number of clusters; give a multiple of {levels}")
    if k % levels:
        raise ValueError(f"k {k} does not divide into {levels} levels; give a multiple of {levels}")
    dataset = build_dataset(recipe.data.train, role="train")
    shapes = torch.from_numpy(box_shapes(dataset, recipe.data.resize)).float()
    if len(shapes) < k:
        raise ValueError(f"data.train has {len(shapes)} objects for {k} clusters; give a smaller k")
    clusters = cluster_boxes(shapes, k, seed=seed)[0].round(decimals=1)
    return AnchorFit(
        len(shapes),
        len(given),
        _mean_best_iou(shapes, given),
        # ascending by area, so that the smallest are on the finest level
        [
            [[round(side, 1) for side in box] for box in level.tolist()]
            for level in clusters.chunk(levels)
        ],
        _mean_best_iou(shapes, clusters),
    )


def shapes_of(grid: AnchorGrid) -> Tensor:
    """(height, width) `[K, 2]` of the anchors of all levels."""
    cells = torch.cat([grid.get_buffer(f"cell{index}") for index in range(len(grid.levels))])
    return (cells[:, 2:] - cells[:, :2]).flip(1)


def _mean_best_iou(shapes: Tensor, anchors: Tensor) -> float:
    return float(shape_iou(shapes, anchors).amax(dim=1).mean())
