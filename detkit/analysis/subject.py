"""What is to be analysed: a backbone with its classifier, or the detector of a recipe."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from detkit.backbones import (
    Backbone,
    Classifier,
    create_backbone,
    create_classifier,
    list_backbones,
)
from detkit.config import Recipe, SyntheticSource, load_recipe, parse_yaml
from detkit.data import resized_shape
from detkit.data.synthetic import CLASS_NAMES
from detkit.detectors import ImagePyramid, create_detector
from detkit.detectors.factory import without_weights
from detkit.registry import backbones, suggest
from detkit.structures import Size

COCO_CLASSES = 80
_IMAGENET_SIDE = 224
_PUBLISHED_SIDES = {  # of the networks whose heads take one size of images only
    "lenet*": 32,
    "alexnet_original*": 227,
    "overfeat_fast*": 231,
    "overfeat_accurate*": 221,
}


@dataclass(frozen=True)
class Subject:
    """A network that can be built, and the images to look at it with.

    Attributes:
        name: of the backbone or the recipe.
        size: (height, width) of the images.
        recipe: of a detector; None for a backbone.
        settings: of a backbone, as `create_classifier` takes them.
        num_classes: of a detector.
    """

    name: str
    size: Size
    recipe: Recipe | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    num_classes: int = COCO_CLASSES

    def build(self, device: torch.device | str = "meta") -> nn.Module:
        """A detector or a classifier without trained weights, in evaluation mode.

        Another library's classifier has no stages to tell apart: of it the backbone is built.

        Raises:
            ValueError: settings that it does not have or that do not fit together.
        """
        with torch.device(device):
            if self.recipe is not None:
                model = without_weights(self.recipe.model)
                return create_detector(model, num_classes=self.num_classes).eval()
            try:
                net = create_classifier(self.name, **self.settings)
                if not isinstance(net, Classifier):
                    net = create_backbone(self.name, **self.settings)
                return net.eval()
            except TypeError as error:  # a setting of the wrong type meets arithmetic
                raise ValueError(f"settings {self.settings} of {self.name}: {error}") from None


def without_pyramid(net: nn.Module) -> nn.Module:
    """The detector that an image pyramid asks for every copy; anything else as it is."""
    return net.detector if isinstance(net, ImagePyramid) else net


def backbone_of(net: nn.Module) -> Backbone:
    """The backbone that a network is or has.

    Raises:
        ValueError: the detector has none.
    """
    net = without_pyramid(net)
    if isinstance(net, Backbone):
        return net
    body = net.body if isinstance(net, Classifier) else getattr(net, "backbone", None)
    if not isinstance(body, Backbone):
        raise ValueError(f"{type(net).__name__} has no backbone of its own to describe")
    return body


def find_subject(
    target: str,
    overrides: Sequence[str] = (),
    *,
    size: Size | None = None,
    num_classes: int | None = None,
) -> Subject:
    """The backbone of that name, or the detector of that recipe file.

    Args:
        target: see `list_backbones`; or a YAML file.
        overrides: `key=value`, settings of a backbone ("width=32", "attention=se") or changes to a
            recipe ("model.fpn=null").
        size: (height, width) of the images. None: as published for a backbone; as the recipe
            resizes them for a detector, padding included.
        num_classes: of a detector. None: 10 for the built-in data, else COCO's 80.

    Raises:
        ValueError: neither a backbone nor a recipe, a wrong override, or a size below 1.
    """
    if size is not None and min(size) < 1:
        raise ValueError(f"size must be at least 1 pixel, got {size[0]}x{size[1]}")
    if target.endswith((".yaml", ".yml")):
        recipe = load_recipe(target, overrides)
        classes = _classes_of(recipe) if num_classes is None else num_classes
        return Subject(recipe.name, size or _size_of(recipe), recipe, num_classes=classes)
    if target.endswith(".pt"):
        near = Path(target).with_name("recipe.yaml")
        raise ValueError(f"{target} is a checkpoint; give its recipe, {near}")
    if target not in backbones:
        recipes = sorted(str(path) for path in Path("configs").glob("*.yaml"))
        raise ValueError(
            f"unknown backbone or recipe {target!r}; {suggest(target, list_backbones() + recipes)}"
        )
    return Subject(target, size or published_size(target), settings=_settings(target, overrides))


def published_size(name: str) -> Size:
    """(height, width) of the images that a backbone's classifier was published for."""
    for pattern, side in _PUBLISHED_SIDES.items():
        if fnmatch.fnmatch(name, pattern):
            return side, side
    return _IMAGENET_SIDE, _IMAGENET_SIDE


def parse_size(text: str) -> Size:
    """(height, width) from "224" or "480x640".

    Raises:
        ValueError: it is neither.
    """
    match = re.fullmatch(r"(\d+)(?:x(\d+))?", text)
    if match is None:
        raise ValueError(f"size {text!r} is neither a side nor HEIGHTxWIDTH, e.g. 224 or 480x640")
    return int(match[1]), int(match[2] or match[1])


def _settings(name: str, overrides: Sequence[str]) -> dict[str, Any]:
    settings = {}
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise ValueError(f"setting {override!r} is not of the form key=value, e.g. width=32")
        if key == "weights":
            raise ValueError(f"weights change nothing that is counted; leave {override!r} out")
        settings[key] = parse_yaml(text, f"setting {override!r}")
    return settings


def _classes_of(recipe: Recipe) -> int:
    built_in = isinstance(recipe.data.train, SyntheticSource)
    return len(CLASS_NAMES) if built_in else COCO_CLASSES


def _size_of(recipe: Recipe) -> Size:
    """The largest images that the recipe makes: landscape of both limits, or a square of one."""
    shortest, longest = recipe.data.resize.shortest, recipe.data.resize.longest
    sides = [side for side in (shortest, longest) if side is not None]
    source = recipe.data.train
    if isinstance(source, SyntheticSource):
        sides = list(resized_shape(*source.image_size, shortest=shortest, longest=longest))
    divisor = recipe.model.size_divisor
    height, width = (-(-side // divisor) * divisor for side in (min(sides), max(sides)))
    return height, width
