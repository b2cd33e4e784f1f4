"""From settings to a detector; the only place below the engine that sees the config."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from torch import nn

from detkit.backbones import Backbone, create_backbone
from detkit.backbones.base import published_settings
from detkit.backbones.weights import load_into, read_weights
from detkit.config import (
    FPNConfig,
    ModelConfig,
    RoIConfig,
    RPNConfig,
    build_recipe,
    load_recipe,
)
from detkit.detectors.base import Detector, MapGeometry
from detkit.detectors.region_proposal import RegionProposal
from detkit.detectors.roi import BoxHead, BoxLoss, DetectionLimits, RoIAlign, RoIHead
from detkit.detectors.rpn import RPN, AnchorGrid, ProposalLimits, RPNHead
from detkit.detectors.torchvision_weights import PUBLISHED, convert_faster_rcnn, is_torchvision
from detkit.nn.fpn import FPN
from detkit.ops import Assigner
from detkit.registry import suggest

logger = logging.getLogger(__name__)


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
    detector = _region_proposal(config, num_classes)
    if weights is not None:
        load_detector_weights(detector, weights)
    return detector


def load_detector_weights(detector: Detector, weights: str) -> None:
    """Load "coco" (torchvision's published file) or a file, ours or torchvision's.

    Where the file has another number of classes, the layers that name classes stay as they are, so
    that a detector can start from one that was trained on other things.

    Raises:
        ValueError: no such weights, or they do not fit.
    """
    state = read_weights("fasterrcnn_resnet50_fpn", weights)
    if is_torchvision(state):
        state = convert_faster_rcnn(state)
    own = detector.state_dict()
    if "roi.head.cls_score.weight" in state:
        given, wanted = (s["roi.head.cls_score.weight"].shape[0] - 1 for s in (state, own))
        if given != wanted:
            logger.warning(
                "%s was trained on %d classes, not %d: its last layers start anew",
                weights, given, wanted,
            )  # fmt: skip
            for key in own:
                if key.startswith(("roi.head.cls_score.", "roi.head.bbox_pred.")):
                    state[key] = own[key]
    load_into(detector, state, source=weights)


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


def _region_proposal(config: ModelConfig, num_classes: int) -> RegionProposal:
    backbone = _backbone(config)
    maps = [MapGeometry(info.stride, info.center) for info in backbone.feature_info]
    strides = [each.stride for each in maps]
    if strides != sorted(strides):
        raise ValueError(
            f"model.backbone.out_indices {backbone.out_indices} give maps of strides {strides}; "
            "name the finest first"
        )
    channels = [info.channels for info in backbone.feature_info]
    neck, levels = _fpn(config.fpn, channels, maps)
    width = config.fpn.channels if config.fpn else channels[-1]
    return RegionProposal(
        backbone,
        neck,
        _rpn(config.rpn, width, levels),
        _roi(config.roi, width, maps, num_classes=num_classes),
        mean=config.mean,
        std=config.std,
    )


def _backbone(config: ModelConfig) -> Backbone:
    settings = {k: v for k, v in config.backbone.model_dump().items() if v is not None}
    settings |= settings.pop("settings", {})
    if config.fpn is None and "out_indices" not in settings:
        settings["out_indices"] = (-1,)  # maps of several widths would need the pyramid
    try:
        return create_backbone(**settings, in_channels=3)
    except ValueError as error:
        raise ValueError(f"model.backbone: {error}") from None


def _fpn(
    config: FPNConfig | None, channels: list[int], maps: list[MapGeometry]
) -> tuple[nn.Module | None, list[MapGeometry]]:
    """The neck, and where the cells of the maps that come out of it are."""
    if config is None:
        if len(set(channels)) != 1:
            raise ValueError(
                f"without model.fpn all maps need the same number of channels, got {channels}; "
                "give model.backbone.out_indices one entry, e.g. [3]"
            )
        return None, maps
    neck = FPN(channels, config.channels, extra=config.extra, norm=config.norm)
    strides = neck.out_strides([each.stride for each in maps])
    # a coarser level keeps every second cell of the one before, from the first on
    centers = [each.center for each in maps] + [maps[-1].center] * (len(strides) - len(maps))
    return neck, [MapGeometry(*each) for each in zip(strides, centers, strict=True)]


def _rpn(config: RPNConfig, channels: int, levels: list[MapGeometry]) -> RPN:
    sizes = config.anchor_sizes or tuple((8.0 * level.stride,) for level in levels)
    if len(sizes) != len(levels):
        raise ValueError(
            f"model.rpn.anchor_sizes has {len(sizes)} entries for {len(levels)} "
            "feature maps; give one list of sizes a map, finest first"
        )
    anchors = AnchorGrid(sizes, config.aspect_ratios, levels)

    def limits(pre_nms: int, post_nms: int) -> ProposalLimits:
        return ProposalLimits(
            pre_nms, post_nms, config.nms_iou, config.min_size, config.score_threshold
        )

    return RPN(
        RPNHead(channels, anchors.num_anchors),
        anchors,
        assigner=Assigner(
            positive_iou=config.positive_iou,
            negative_iou=config.negative_iou,
            samples=config.samples,
            positive_fraction=config.positive_fraction,
            allow_low_quality=True,
        ),
        train_limits=limits(config.pre_nms_train, config.post_nms_train),
        test_limits=limits(config.pre_nms_test, config.post_nms_test),
        smooth_l1_beta=config.smooth_l1_beta,
    )


def _roi(config: RoIConfig, channels: int, maps: list[MapGeometry], *, num_classes: int) -> RoIHead:
    return RoIHead(
        RoIAlign(
            maps,
            resolution=config.resolution,
            sampling_ratio=config.sampling_ratio,
            aligned=config.aligned,
            canonical_size=config.canonical_size,
            canonical_level=config.canonical_level,
        ),
        BoxHead(
            channels * config.resolution**2,
            config.hidden,
            num_classes,
            class_agnostic=config.class_agnostic,
        ),
        assigner=Assigner(
            positive_iou=config.positive_iou,
            negative_iou=config.negative_iou,
            samples=config.samples,
            positive_fraction=config.positive_fraction,
        ),
        box_weights=config.box_weights,
        box_loss=BoxLoss(config.box_loss, config.box_loss_weight, config.smooth_l1_beta),
        limits=DetectionLimits(
            score_threshold=config.score_threshold,
            nms_iou=config.nms_iou,
            max_detections=config.max_detections,
            min_size=config.min_size,
        ),
    )
