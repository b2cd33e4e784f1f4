"""Torchvision's published detectors under our names and with our settings.

Their keys differ by prefixes only. Of their C + 1 classes the first is none: the background of
Faster R-CNN, which is last here and has no box; a class that nothing ever is of RetinaNet and FCOS,
which is left out here.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import torch
from torch import Tensor

from detkit.config import (
    BackboneConfig,
    FPNConfig,
    ModelConfig,
    RetinaNetConfig,
    RoIConfig,
    RPNConfig,
)

State = dict[str, Tensor]
# What a pattern becomes; the first one that is found counts
_Keys = tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...]

_BODY_KEYS: _Keys = (
    (r"^backbone\.body\.", "backbone."),
    # files from before torchvision 0.14 lack the ".0" of the layers
    (r"^backbone\.fpn\.(inner|layer)_blocks\.(\d+)\.(weight|bias)$", r"neck.\1_blocks.\2.0.\3"),
    (r"^backbone\.fpn\.", "neck."),
)
FASTER_RCNN_KEYS: _Keys = (
    *_BODY_KEYS,
    (r"^rpn\.head\.conv\.0\.0\.", "rpn.head.conv."),
    (r"^rpn\.head\.conv\.1\.0\.", "rpn.head.more_convs.0."),
    (r"^roi_heads\.box_head\.\d+\.(weight|bias)$", r"roi.head.fc6.\1"),  # behind convolutions
    (r"^roi_heads\.box_head\.(\d+)\.", r"roi.head.convs.\1."),
    (r"^roi_heads\.box_(head|predictor)\.", "roi.head."),
)


def _every(count: int) -> Callable[[re.Match[str]], str]:
    """Layers in one row, `count` a block, as blocks of layers."""

    def renamed(match: re.Match[str]) -> str:
        block, layer = divmod(int(match[2]), count)
        return f"head.{_TOWERS[match[1]]}.{block}.{layer}.{match[3]}"

    return renamed


_TOWERS = {"classification": "cls_tower", "regression": "box_tower"}
_DENSE_KEYS: _Keys = (
    (r"^head\.classification_head\.conv\.", "head.cls_tower."),
    (r"^head\.regression_head\.conv\.", "head.box_tower."),
    (r"^head\.classification_head\.", "head."),
    (r"^head\.regression_head\.bbox_reg\.", "head.bbox_pred."),
    (r"^head\.regression_head\.bbox_ctrness\.", "head.centerness."),
)
_ROW = r"^head\.(classification|regression)_head\.conv\.(\d+)\.(weight|bias)$"
# files from before torchvision 0.14 have convolutions and activations in one row
RETINANET_KEYS: _Keys = (*_BODY_KEYS, (_ROW, _every(2)), *_DENSE_KEYS)
# convolutions, norms and activations in one row
FCOS_KEYS: _Keys = (*_BODY_KEYS, (_ROW, _every(3)), *_DENSE_KEYS)

# As torchvision builds them to load their published files. Those of the first versions have frozen
# batch norm, with an eps of 0 where torchvision sets it so.
PUBLISHED = {
    "fasterrcnn_resnet50_fpn": ModelConfig(
        backbone=BackboneConfig(norm="frozen_batch", norm_eps=0.0, frozen_stages=2)
    ),
    "fasterrcnn_resnet50_fpn_v2": ModelConfig(
        backbone=BackboneConfig(frozen_stages=2),
        fpn=FPNConfig(norm="batch"),
        rpn=RPNConfig(convs=2),
        roi=RoIConfig(convs=4, fcs=1),
    ),
    "retinanet_resnet50_fpn": ModelConfig(
        detector="retinanet",
        backbone=BackboneConfig(norm="frozen_batch", norm_eps=0.0, frozen_stages=2),
    ),
    "retinanet_resnet50_fpn_v2": ModelConfig(
        detector="retinanet",
        backbone=BackboneConfig(frozen_stages=2),
        fpn=FPNConfig(p6_source="c5"),
        retinanet=RetinaNetConfig(norm="group", box_loss="giou"),
    ),
    "fcos_resnet50_fpn": ModelConfig(
        detector="fcos",
        backbone=BackboneConfig(norm="frozen_batch", frozen_stages=2),
    ),
}


def published_name(config: ModelConfig) -> str:
    """The published model that these settings are a variant of; of other detectors their name."""
    match config.detector:
        case "region_proposal":
            deeper = config.roi is not None and config.roi.convs > 0
            return "fasterrcnn_resnet50_fpn" + ("_v2" if deeper else "")
        case "retinanet":
            normed = config.retinanet is not None and config.retinanet.norm is not None
            return "retinanet_resnet50_fpn" + ("_v2" if normed else "")
        case "fcos":
            return "fcos_resnet50_fpn"
    return config.detector


def is_torchvision(state: State) -> bool:
    """Whether a state has torchvision's names."""
    return any(key.startswith(("roi_heads.", "head.classification_head.")) for key in state)


def convert(state: State) -> State:
    """Torchvision's state of any of the published detectors, or of a variant, as ours."""
    if any(key.startswith("roi_heads.") for key in state):
        return convert_faster_rcnn(state)
    return convert_dense(state)


def convert_faster_rcnn(state: State) -> State:
    """Torchvision's Faster R-CNN state as RegionProposal's.

    Args:
        state: of `fasterrcnn_resnet50_fpn`, its second version, or a `FasterRCNN` with another
            ResNet; C + 1 classes.

    Returns:
        The same tensors under our names, for C classes.
    """
    converted = {}
    for key, value in state.items():
        key = _renamed(key, FASTER_RCNN_KEYS)
        if key.startswith("roi.head.cls_score."):
            value = torch.cat([value[1:], value[:1]])  # background last
        elif key.startswith("roi.head.bbox_pred."):
            value = value[4:]  # no box for the background
        converted[key] = value
    return converted


def convert_dense(state: State) -> State:
    """Torchvision's RetinaNet or FCOS state as OneStage's.

    Args:
        state: of `retinanet_resnet50_fpn`, its second version, `fcos_resnet50_fpn`, or a
            `RetinaNet` or `FCOS` with another ResNet; C + 1 classes.

    Returns:
        The same tensors under our names, for C classes.
    """
    keys = FCOS_KEYS if "head.regression_head.bbox_ctrness.weight" in state else RETINANET_KEYS
    converted = {}
    for key, value in state.items():
        key = _renamed(key, keys)
        if key.startswith("head.cls_logits."):
            anchors = len(state["head.regression_head.bbox_reg.bias"]) // 4
            value = value.unflatten(0, (anchors, -1))[:, 1:].flatten(0, 1)  # [A * C, ...]
        converted[key] = value
    return converted


def _renamed(key: str, keys: _Keys) -> str:
    for pattern, replacement in keys:
        renamed, count = re.subn(pattern, replacement, key)
        if count:
            return renamed
    return key
