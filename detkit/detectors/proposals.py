"""Where the regions come from that the second stage looks at.

Here are those that nothing is learnt for: a grid, and those that come with the batch. The learnt
ones are in rpn.py. P regions of an image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn

from detkit.detectors.base import Losses
from detkit.ops import cell_anchors, clip_boxes, grid_anchors
from detkit.structures import Batch, Size


class Proposer(nn.Module):
    """Finds regions, and where it learns to, says how well."""

    def find(self, features: list[Tensor], batch: Batch) -> list[Tensor]:
        """Regions `[P, 4]` of each image, clipped to it, best first if they are ranked."""
        raise NotImplementedError

    def learn(self, features: list[Tensor], batch: Batch) -> tuple[list[Tensor], Losses]:
        """Regions for the second stage to learn from, and the losses of finding them."""
        return self.find(features, batch), {}

    def most(self, size: Size) -> int:
        """How many regions an image of (height, width) has at most."""
        raise NotImplementedError


class GivenProposals(Proposer):
    """Regions that come with the batch.

    Args:
        source: what the recipe calls them ("selective_search", "file"), for messages.
        limit: only so many of an image, the first.
    """

    def __init__(self, source: str, *, limit: int) -> None:
        super().__init__()
        self.source = source
        self.limit = limit

    def find(self, features: list[Tensor], batch: Batch) -> list[Tensor]:
        """The first regions of each image.

        Raises:
            ValueError: the batch has none, or not one set for each image.
        """
        if batch.proposals is None:
            raise ValueError(
                f"model.proposals={self.source} looks at regions that come with the images, and "
                "this batch has none; give Batch.proposals, one [P, 4] for each image"
            )
        if len(batch.proposals) != len(batch):
            raise ValueError(
                f"{len(batch.proposals)} sets of proposals for {len(batch)} images; give "
                "Batch.proposals one [P, 4] for each image"
            )
        # whoever made them may have rounded outwards
        return [
            clip_boxes(boxes[: self.limit], size)
            for boxes, size in zip(batch.proposals, batch.sizes, strict=True)
        ]

    def most(self, size: Size) -> int:
        """The limit, whatever the size."""
        return self.limit


class GridProposals(Proposer):
    """Boxes of the same sizes and shapes everywhere: what proposals have to be better than.

    Args:
        sizes: square roots of the areas, in pixels.
        aspect_ratios: height / width, each with every size.
        stride: pixels from one centre to the next, right and down.
    """

    def __init__(
        self, sizes: Sequence[float], aspect_ratios: Sequence[float], *, stride: int
    ) -> None:
        super().__init__()
        self.stride = stride
        cell = cell_anchors(sizes, aspect_ratios, rounded=False) + stride / 2
        self.register_buffer("cell", cell, persistent=False)  # [A, 4]

    def find(self, features: list[Tensor], batch: Batch) -> list[Tensor]:
        """The same boxes for all images of a size."""
        spacing = (self.stride, self.stride)
        return [
            clip_boxes(grid_anchors(self.get_buffer("cell"), self._cells(size), spacing), size)
            for size in batch.sizes
        ]

    def most(self, size: Size) -> int:
        """How many there are."""
        rows, columns = self._cells(size)
        return rows * columns * len(self.get_buffer("cell"))

    def _cells(self, size: Size) -> tuple[int, int]:
        """(rows, columns), enough to leave nothing out."""
        return math.ceil(size[0] / self.stride), math.ceil(size[1] / self.stride)
