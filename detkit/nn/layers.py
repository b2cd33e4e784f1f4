"""Normalisation layers by name, and batch norm frozen at its statistics.

B batch, C channels, H, W height and width.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
import torchvision
from torch import Tensor, nn

from detkit.registry import suggest

NormLayer = Callable[[int], nn.Module]  # channels -> module


class FrozenBatchNorm2d(torchvision.ops.FrozenBatchNorm2d):
    """Batch norm whose statistics and affine parameters are buffers, so that nothing learns.

    Torchvision's class (same four buffers; a batch norm's state_dict loads, its
    `num_batches_tracked` is dropped) with a forward pass that keeps the dtype of its input:
    torchvision's float32 buffers turn the half-precision maps of autocast back into float32.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Scale and shift `[B, C, H, W]` by the fixed statistics."""
        scale = self.weight * (self.running_var + self.eps).rsqrt()  # [C]
        shift = self.bias - self.running_mean * scale  # [C]
        scale = scale.to(x.dtype).view(1, -1, 1, 1)
        # one pass over the map instead of two
        return torch.addcmul(shift.to(x.dtype).view(1, -1, 1, 1), x, scale)


def _group_norm(channels: int, *, eps: float) -> nn.GroupNorm:
    # 32 groups (Group Normalization, section 4.1), fewer where 32 does not divide a narrow net
    return nn.GroupNorm(math.gcd(32, channels), channels, eps=eps)


_NORMS: dict[str, Callable[..., nn.Module]] = {
    "batch": nn.BatchNorm2d,
    "frozen_batch": FrozenBatchNorm2d,
    "group": _group_norm,
}


def norm_layer(name: str, *, eps: float = 1e-5) -> NormLayer:
    """A builder of normalisation layers.

    Args:
        name: "batch", "frozen_batch" or "group" (32 groups).
        eps: added to the variance.

    Returns:
        A function from a number of channels to a module.

    Raises:
        ValueError: unknown name.
    """
    if name not in _NORMS:
        raise ValueError(f"unknown norm {name!r}; {suggest(name, _NORMS)}")
    return partial(_NORMS[name], eps=eps)
