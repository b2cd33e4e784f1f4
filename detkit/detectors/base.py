"""The contract of every detector.

B images in a batch, H and W their padded size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from detkit.structures import Batch, Detections, Size

Losses = dict[str, Tensor]


class MapGeometry(NamedTuple):
    """Where the cells of a feature map are in the image.

    Attributes:
        stride: pixels from one cell to the next.
        center: pixel, counted from 0, that the first cell is centred at.
    """

    stride: int
    center: float

    def spacing(self, padded: Size, cells: Size) -> tuple[float, float]:
        """Pixels from one cell to the next (down, right) on a map of that many cells.

        Networks that pad every border have their first cell at pixel 0; for them it is what the
        map really spans, as in torchvision: at 800 px a stride of 64 has 13 cells, 61 apart.
        Others lose their borders, and what remains is spaced by the stride.
        """
        if self.center:
            return self.stride, self.stride
        return padded[0] // cells[0], padded[1] // cells[1]

    def roi_offset(self, *, aligned: bool) -> float:
        """What to take off the coordinates of a region, so that RoI align finds its cells.

        RoI align has the first cell centred at 0, or where `aligned` at half a stride. Networks
        that pad every border are taken as centred there either way, as everyone takes them.
        """
        if self.center and aligned:
            return self.center - (self.stride - 1) / 2
        return self.center


class Detector(nn.Module):
    """Pixels in, losses or detections out.

    The presence of targets decides which, not `self.training`, which steers batch norm and dropout
    only: so a validation loss is one call. `forward` dispatches because DDP syncs gradients only
    through it. A detector implements `features`, `losses` and `detections`.

    Args:
        mean: of R, G and B in 0..1.
        std: of R, G and B in 0..1.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, *, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        # Not part of the state: they come from the recipe, like all other settings.
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    def forward(self, batch: Batch) -> list[Detections] | Losses:
        """`predict` without targets, `loss` with them."""
        return self.predict(batch) if batch.targets is None else self.loss(batch)

    def loss(self, batch: Batch) -> Losses:
        """Weighted scalars under keys like "rpn/box"; the total is their sum."""
        return self.losses(self.features(batch), batch)

    def predict(self, batch: Batch) -> list[Detections]:
        """Detections of each image in pixels of the original image, best first."""
        if len(batch) == 0:
            return []
        return self.detections(self.features(batch), batch)

    def features(self, batch: Batch) -> list[Tensor]:
        """Feature maps, finest first."""
        raise NotImplementedError

    def losses(self, features: list[Tensor], batch: Batch) -> Losses:
        """`loss` from feature maps that are there already."""
        raise NotImplementedError

    def detections(self, features: list[Tensor], batch: Batch) -> list[Detections]:
        """`predict` from feature maps that are there already."""
        raise NotImplementedError

    def normalize(self, batch: Batch) -> Tensor:
        """Pixels `[B, 3, H, W]` in 0..255 to zero mean and unit variance; the padding becomes 0."""
        images = batch.images
        if not images.is_floating_point():
            images = images.to(self.mean.dtype)
        images = (images - 255 * self.mean) / (255 * self.std)
        height, width = images.shape[-2:]
        for image, (h, w) in zip(images, batch.sizes, strict=True):
            if h < height:
                image[:, h:] = 0
            if w < width:
                image[:, :, w:] = 0
        return images


def at_least_float32(output: Tensor) -> Tensor:
    """Half precision, which is for layers and too coarse for boxes and losses, as float32."""
    return output.to(torch.promote_types(output.dtype, torch.float32))
