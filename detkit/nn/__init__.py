"""Small modules that backbones and detectors are made of."""

from detkit.nn.convolution import (
    ConvLayer,
    DeformableConv2d,
    PartialConv2d,
    conv_layer,
    partial_conv2d,
)
from detkit.nn.fpn import FPN
from detkit.nn.heads import LogisticHead, MLPHead, classifier_head
from detkit.nn.init import initialise
from detkit.nn.layers import (
    ActivationLayer,
    FrozenBatchNorm2d,
    NormLayer,
    activation_layer,
    norm_layer,
)
from detkit.nn.normalize import MeanSubtraction
from detkit.nn.pooling import FractionalMaxPool2d
from detkit.nn.regularization import DropBlock2d, DropConnectLinear, regularizer

__all__ = [
    "FPN",
    "ActivationLayer",
    "ConvLayer",
    "DeformableConv2d",
    "DropBlock2d",
    "DropConnectLinear",
    "FractionalMaxPool2d",
    "FrozenBatchNorm2d",
    "LogisticHead",
    "MLPHead",
    "MeanSubtraction",
    "NormLayer",
    "PartialConv2d",
    "activation_layer",
    "classifier_head",
    "conv_layer",
    "initialise",
    "norm_layer",
    "partial_conv2d",
    "regularizer",
]
