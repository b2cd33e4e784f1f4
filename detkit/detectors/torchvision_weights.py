"""Load torchvision's detectors: whose weights are whose, and where the published files are.

Two things differ besides names. Torchvision's background is class 0, ours is the last; and
torchvision predicts a box for the background, which nothing ever reads.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor

from detkit.config import BackboneConfig, ModelConfig

FASTER_RCNN_KEYS = (
    (r"^backbone\.body\.", "backbone."),
    # files from before torchvision 0.14 lack the ".0" of the layers
    (r"^backbone\.fpn\.(inner|layer)_blocks\.(\d+)\.(weight|bias)$", r"neck.\1_blocks.\2.0.\3"),
    (r"^backbone\.fpn\.", "neck."),
    (r"^rpn\.head\.conv\.0\.0\.", "rpn.head.conv."),
    (r"^roi_heads\.box_(head|predictor)\.", "roi.head."),
)

# As torchvision builds it to load its published file: frozen batch norm with an eps of 0
PUBLISHED = {
    "fasterrcnn_resnet50_fpn": ModelConfig(
        backbone=BackboneConfig(norm="frozen_batch", norm_eps=0.0, frozen_stages=2)
    ),
}


def convert_faster_rcnn(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Torchvision's Faster R-CNN state as RegionProposal's.

    Args:
        state: of `fasterrcnn_resnet50_fpn` or of a `FasterRCNN` with another ResNet; C + 1 classes.

    Returns:
        The same tensors under our names, for C classes.
    """
    converted = {}
    for key, value in state.items():
        for pattern, replacement in FASTER_RCNN_KEYS:
            key, count = re.subn(pattern, replacement, key)
            if count:
                break
        if key.startswith("roi.head.cls_score."):
            value = torch.cat([value[1:], value[:1]])  # background last
        elif key.startswith("roi.head.bbox_pred."):
            value = value[4:]  # no box for the background
        converted[key] = value
    return converted


def is_torchvision(state: dict[str, Tensor]) -> bool:
    """Whether a state has torchvision's names."""
    return any(key.startswith("roi_heads.") for key in state)
