"""Small modules that backbones and detectors are made of."""

from detkit.nn.fpn import FPN
from detkit.nn.layers import FrozenBatchNorm2d, NormLayer, norm_layer

__all__ = ["FPN", "FrozenBatchNorm2d", "NormLayer", "norm_layer"]
