"""Starting weights by name (Glorot and Bengio 2010; He et al. 2015)."""

from __future__ import annotations

import math

from torch import nn
from torch.nn.modules.conv import _ConvNd

from detkit.nn.convolution import DeformableConv2d
from detkit.registry import suggest

_SCHEMES = ("xavier_uniform", "xavier_normal", "he_uniform", "he_normal")
_FANS = ("fan_in", "fan_out")


def initialise(module: nn.Module, scheme: str, *, mode: str = "fan_in", slope: float = 0.0) -> None:
    """Draw the weights of every convolution and linear layer anew and set their biases to 0.

    The variance keeps the size of activations and gradients from layer to layer. Xavier, for
    layers that are near the identity: `2 / (fan_in + fan_out)` (Glorot and Bengio 2010, equations
    12 and 16). He, for rectifiers: `2 / ((1 + slope^2) fan)` (He et al. 2015, section 2.2).
    A fan counts the connections of one cell within its group of channels, also in transposed and
    grouped convolutions, where torch's own functions take another number.

    Norms and bare parameters stay as they are, and moving taps start unmoved. Call it before
    whatever sets single layers apart, such as the prior of a detection head.

    Args:
        module: whose layers to fill, itself included.
        scheme: "xavier_uniform", "xavier_normal", "he_uniform" or "he_normal".
        mode: which fan "he" takes: "fan_in" keeps activations, "fan_out" gradients.
        slope: of the rectifier at negative inputs, for "he": 0 is ReLU, 1 is linear.

    Raises:
        ValueError: unknown scheme or mode.
    """
    if scheme not in _SCHEMES:
        raise ValueError(f"unknown initialisation {scheme!r}; {suggest(scheme, _SCHEMES)}")
    if mode not in _FANS:
        raise ValueError(f"unknown mode {mode!r}; {suggest(mode, _FANS)}")
    for layer in module.modules():
        if not isinstance(layer, _ConvNd | nn.Linear):
            continue
        fan_in, fan_out = _fans(layer)
        if scheme.startswith("xavier"):
            variance = 2 / (fan_in + fan_out)
        else:
            variance = 2 / ((1 + slope**2) * (fan_in if mode == "fan_in" else fan_out))
        if scheme.endswith("normal"):
            nn.init.normal_(layer.weight, std=math.sqrt(variance))
        else:
            bound = math.sqrt(3 * variance)  # the variance of U(-a, a) is a^2 / 3
            nn.init.uniform_(layer.weight, -bound, bound)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
    for layer in module.modules():
        if isinstance(layer, DeformableConv2d):
            layer.reset_offsets()


def _fans(layer: _ConvNd | nn.Linear) -> tuple[int, int]:
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features
    taps = math.prod(layer.kernel_size)
    return taps * layer.in_channels // layer.groups, taps * layer.out_channels // layer.groups
