"""Fractional max pooling that is random in training only (Graham 2014).

B batch, C channels, H, W height and width.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class FractionalMaxPool2d(nn.FractionalMaxPool2d):
    """Max pooling that shrinks a map by any factor, with windows at random distances.

    Torch draws new windows in evaluation too. Here they are fixed then: for n windows of side k
    along H cells, with a = (H - k) / (n - 1), window i starts at floor((i + u) a) - floor(u a),
    the last one at H - k. In training u is drawn from U(0, 1) for each map and direction
    (pseudorandom, overlapping regions; section 2.1), in evaluation it is the mean, 1/2.

    Args:
        kernel_size: k, side of the windows.
        output_size: rows and columns that come out; or instead of it
        output_ratio: rows and columns that come out per row and column of the input, below 1.
    """

    def __init__(
        self,
        kernel_size: int,
        *,
        output_size: int | tuple[int, int] | None = None,
        output_ratio: float | tuple[float, float] | None = None,
    ) -> None:
        super().__init__(kernel_size, output_size, output_ratio)

    def forward(self, x: Tensor) -> Tensor:
        """From `[B, C, H, W]` to `[B, C, *output_size]`."""
        samples = None if self.training else x.new_full((*x.shape[:2], 2), 0.5)  # u: [B, C, 2]
        return F.fractional_max_pool2d(
            x, self.kernel_size, self.output_size, self.output_ratio, _random_samples=samples
        )
