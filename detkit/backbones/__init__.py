"""Networks that turn images into feature maps, by name."""

from detkit.backbones import (  # noqa: F401  they register themselves
    alexnet,
    botnet,
    googlenet,
    lenet,
    overfeat,
    residual_attention,
    resnet,
    scnet,
    timm_adapter,
    vgg,
)
from detkit.backbones.base import (
    Backbone,
    Classifier,
    FeatureInfo,
    create_backbone,
    create_classifier,
    list_backbones,
)

__all__ = [
    "Backbone",
    "Classifier",
    "FeatureInfo",
    "create_backbone",
    "create_classifier",
    "list_backbones",
]
