"""Networks that turn images into feature maps, by name."""

from detkit.backbones import googlenet, resnet  # noqa: F401  registers its networks
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
