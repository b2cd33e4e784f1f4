"""Normalisation and activation layers by name, and batch norm frozen at its statistics.

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
ActivationLayer = Callable[[], nn.Module]


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
    "sync_batch": nn.SyncBatchNorm,
}


def norm_layer(name: str, *, eps: float = 1e-5) -> NormLayer:
    """A builder of normalisation layers.

    Args:
        name: "batch", "frozen_batch", "group" (32 groups), or "sync_batch": batch norm over the
            images of all GPUs of a run, and plain batch norm where there is one process.
        eps: added to the variance.

    Returns:
        A function from a number of channels to a module.

    Raises:
        ValueError: unknown name.
    """
    if name not in _NORMS:
        raise ValueError(f"unknown norm {name!r}; {suggest(name, _NORMS)}")
    return partial(_NORMS[name], eps=eps)


_ACTIVATIONS: dict[str, Callable[..., nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "prelu": nn.PReLU,
    "elu": nn.ELU,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "hardswish": nn.Hardswish,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "identity": nn.Identity,
}
_SLOPES = {"leaky_relu": "negative_slope", "prelu": "init", "elu": "alpha"}


def activation_layer(name: str, *, slope: float | None = None) -> ActivationLayer:
    """A builder of activations; each module it builds has its own parameters, if any.

    Args:
        name: "relu", "leaky_relu", "prelu", "elu", "silu", "gelu", "hardswish", "sigmoid", "tanh"
            or "identity".
        slope: what multiplies negative inputs in "leaky_relu" (torch's default is 0.01), where
            "prelu" starts (0.25), or the alpha of "elu" (1.0); None takes these defaults.

    Returns:
        A function without arguments that returns a module.

    Raises:
        ValueError: unknown name, or a slope for an activation that has none.
    """
    if name not in _ACTIVATIONS:
        raise ValueError(f"unknown activation {name!r}; {suggest(name, _ACTIVATIONS)}")
    if slope is None:
        return _ACTIVATIONS[name]
    if name not in _SLOPES:
        raise ValueError(f"activation {name!r} has no slope, got {slope}; {', '.join(_SLOPES)} do")
    return partial(_ACTIVATIONS[name], **{_SLOPES[name]: slope})
