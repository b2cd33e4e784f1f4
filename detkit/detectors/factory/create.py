"""From settings to a detector; the only place below the engine that sees the config."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from detkit.backbones.base import published_settings
from detkit.backbones.weights import load_what_fits, read_weights
from detkit.config import ModelConfig, build_recipe, load_recipe
from detkit.detectors.base import Detector
from detkit.detectors.factory.image_pyramid import build_image_pyramid
from detkit.detectors.factory.one_stage import (
    build_fcos,
    build_retinanet,
    build_task_aligned,
)
from detkit.detectors.factory.region_proposal import build_region_proposal
from detkit.detectors.factory.sliding_window import build_sliding_window
from detkit.detectors.torchvision_weights import (
    PUBLISHED,
    convert,
    is_torchvision,
    published_name,
)
from detkit.registry import suggest

logger = logging.getLogger(__name__)

_BUILDERS: dict[str, Callable[[ModelConfig, int], Detector]] = {
    "sliding_window": build_sliding_window,
    "region_proposal": build_region_proposal,
    "retinanet": build_retinanet,
    "fcos": build_fcos,
    "task_aligned": build_task_aligned,
}


def create_detector(
    model: ModelConfig | dict[str, Any] | str | Path, *, num_classes: int
) -> Detector:
    """Build a detector.

    Args:
        model: settings; or the same as plain values; or a recipe file, or the name of a published
            model ("fasterrcnn_resnet50_fpn").
        num_classes: C, without background.

    Raises:
        ValueError: settings that do not fit together, an unknown name, weights that do not fit.
    """
    config = _model_config(model)
    weights = config.weights
    if num_classes < 1:
        raise ValueError(
            f"num_classes must be at least 1 (background not counted), got {num_classes}"
        )
    if weights is not None:
        config = without_weights(config)  # of the backbone: those of the whole detector follow
    detector = _BUILDERS[config.detector](config, num_classes)
    if weights is not None:
        load_detector_weights(detector, weights, config)
    if config.image_pyramid is not None:
        return build_image_pyramid(config, detector)
    return detector


def load_detector_weights(detector: Detector, weights: str, config: ModelConfig) -> None:
    """Load what fits of "coco" (torchvision's published file) or a file, ours or torchvision's.

    Where the file has another number of classes, the layers that name classes stay as they are, so
    that a detector can start from one that was trained on other things. So does every other layer
    whose weights are missing or of another shape; warnings say which.

    Args:
        detector: changed in place.
        weights: "coco" or a path.
        config: what the detector was built from.

    Raises:
        ValueError: no such weights, or less than half of the backbone fits.
    """
    state = read_weights(published_name(config), weights)
    if is_torchvision(state):
        state = convert(state)
    own = detector.state_dict()
    if any(key in state and state[key].shape != own[key].shape for key in own):
        rows = _class_rows(config)
        given, wanted = (_num_classes(each, rows) for each in (state, own))
        if given is not None and given != wanted:
            anew = ", ".join(dict.fromkeys(key.rpartition(".")[0] for key in rows))
            logger.warning(
                "%s was trained on %d classes, not %d: its last layers start anew (%s)",
                weights, given, wanted, anew,
            )  # fmt: skip
            state |= {key: own[key] for key in rows}
    load_what_fits(detector, state, source=weights, core="backbone.")


class _Rows(NamedTuple):
    """How many rows a weight of a layer that names classes has."""

    each: int  # class
    beside: int  # the classes


def _class_rows(config: ModelConfig) -> dict[str, _Rows]:
    """The weights whose size follows the number of classes: what differs between one and two."""
    config = without_weights(config)
    if config.roi is not None:  # weights of the loss are of one number of classes only
        roi = config.roi.model_copy(update={"class_weights": None})
        config = config.model_copy(update={"roi": roi})
    with torch.device("meta"):
        one, two = (_BUILDERS[config.detector](config, count).state_dict() for count in (1, 2))
    return {
        key: _Rows(len(two[key]) - len(one[key]), 2 * len(one[key]) - len(two[key]))
        for key in one
        if one[key].shape != two[key].shape
    }


def _num_classes(state: Mapping[str, Tensor], rows: Mapping[str, _Rows]) -> int | None:
    """How many classes a state names; None where its layers do not agree on it."""
    counts = {
        divmod(len(state[key]) - beside, each)
        for key, (each, beside) in rows.items()
        if key in state and state[key].ndim > 0
    }
    if len(counts) != 1:
        return None
    (count, rest) = counts.pop()
    return count if rest == 0 else None


def without_weights(config: ModelConfig) -> ModelConfig:
    """The same settings, to be filled with other weights: nothing is read or downloaded."""
    backbone = config.backbone
    settings = published_settings(backbone.name, backbone.weights) | (backbone.settings or {})
    backbone = backbone.model_copy(update={"weights": None, "settings": settings or None})
    return config.model_copy(update={"weights": None, "backbone": backbone})


def _model_config(model: ModelConfig | dict[str, Any] | str | Path) -> ModelConfig:
    if isinstance(model, ModelConfig):
        return model
    if isinstance(model, dict):
        return build_recipe({"name": "model", "model": model}, where="create_detector").model
    if model in PUBLISHED:
        return PUBLISHED[str(model)]
    if str(model).endswith((".yaml", ".yml")):
        return load_recipe(model).model
    raise ValueError(
        f"unknown detector {str(model)!r}; {suggest(str(model), PUBLISHED)}; or a recipe"
    )
