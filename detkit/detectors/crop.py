"""Cut regions out of the image itself and show each to the network (R-CNN, arXiv 1311.2524).

R regions of all images together, S side of a crop, D channels.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import roi_align

from detkit.detectors.roi import with_image

_BORDER = 1  # pixels of the mean colour around the images, for what reaches over their edge


class RoICrop(nn.Module):
    """Warp each region to a square of pixels, with context, and run a network on it.

    The network is the detector's backbone, which owns its weights; here it is a function only. In
    training it sees all regions at once, for batch norm and because the graph is kept anyway.

    Args:
        network: crops `[R, 3, S, S]` to a list of maps, of which the last is used.
        size: S.
        context: pixels of the crop on each side that show what is around the region (appendix A).
        resolution: side of the patches, averaged from the map; None for the map as it is.
        sampling_ratio: points a pixel of the crop and direction, averaged; 0 for as many as keep
            any pixel of the image from being skipped.
        chunk: regions at a time when not in training, so that memory stays bounded.
    """

    def __init__(
        self,
        network: Callable[[Tensor], list[Tensor]],
        *,
        size: int,
        context: float,
        resolution: int | None,
        sampling_ratio: int,
        chunk: int,
    ) -> None:
        super().__init__()
        self.network = network
        self.size = size
        self.context = context
        self.resolution = resolution
        self.sampling_ratio = sampling_ratio
        self.chunk = chunk

    def forward(self, features: list[Tensor], regions: list[Tensor]) -> Tensor:
        """Patches `[R, D, h, w]` of the regions `[R_i, 4]` of each of `features[0]`, the images."""
        images = F.pad(features[0], (_BORDER,) * 4)
        rois = with_image([self.surround(boxes) + _BORDER for boxes in regions])  # [R, 5]
        # Two grey crops at least, taken off again: batch norm knows no fewer, and a network that
        # saw nothing would have no gradients, for which the other processes wait
        count = len(rois)
        rois = torch.cat([rois, rois.new_zeros(max(0, 2 - count), 5)])
        chunk = len(rois) if self.training else self.chunk
        return torch.cat([self._look(images, part) for part in rois.split(chunk)])[:count]

    def surround(self, boxes: Tensor) -> Tensor:
        """Boxes `[R, 4]` grown so that in the crop `context` pixels lie around each region."""
        share = self.context / (self.size - 2 * self.context)
        side = boxes[:, 2:] - boxes[:, :2]
        return boxes + share * torch.cat([-side, side], dim=1)

    def crop(self, images: Tensor, rois: Tensor) -> Tensor:
        """Pixels `[R, 3, S, S]` of regions `[R, 5]`, 0 outside of the images."""
        whole = images.to(rois.dtype, memory_format=torch.contiguous_format)
        crops = roi_align(whole, rois, self.size, 1.0, self.sampling_ratio, aligned=True)
        return crops.to(images.dtype)

    def _look(self, images: Tensor, rois: Tensor) -> Tensor:
        patches = self.network(self.crop(images, rois))[-1]
        return (
            patches if self.resolution is None else F.adaptive_avg_pool2d(patches, self.resolution)
        )
