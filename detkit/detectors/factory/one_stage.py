"""Detectors in one stage from the config."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from detkit.config import ModelConfig
from detkit.detectors.base import MapGeometry
from detkit.detectors.factory.parts import Body, build_body, build_selection
from detkit.detectors.fcos import FCOSHead
from detkit.detectors.one_stage import DenseHead, OneStage
from detkit.detectors.retinanet import RetinaNetHead
from detkit.detectors.roi import BoxLoss
from detkit.detectors.rpn import AnchorGrid
from detkit.detectors.task_aligned import LossWeights, TaskAlignedHead
from detkit.detectors.towers import LevelTower, head_tower
from detkit.ops import BOX_LOSSES, focal_loss, match, task_aligned_match


def build_retinanet(config: ModelConfig, num_classes: int) -> OneStage:
    """Anchors and the focal loss.

    Raises:
        ValueError: another number of lists of anchor sizes than of maps.
    """
    section = config.retinanet
    assert section is not None  # the schema fills it in
    body = build_body(config, finest=8)
    sizes = section.anchor_sizes or _octave_sizes(body.levels, section.octave_scales)
    if len(sizes) != len(body.levels):
        raise ValueError(
            f"model.retinanet.anchor_sizes has {len(sizes)} entries for {len(body.levels)} "
            "feature maps; give one list of sizes a map, finest first"
        )
    head = RetinaNetHead(
        partial(head_tower, body.channels, section.convs, norm=section.norm),
        AnchorGrid(sizes, section.aspect_ratios, body.levels),
        channels=body.channels,
        num_classes=num_classes,
        prior=section.prior,
        match=partial(
            match,
            positive_iou=section.positive_iou,
            negative_iou=section.negative_iou,
            allow_low_quality=True,
        ),
        focal_loss=partial(focal_loss, alpha=section.focal_alpha, gamma=section.focal_gamma),
        box_loss=BoxLoss(section.box_loss, section.box_loss_weight, section.smooth_l1_beta),
    )
    return _one_stage(config, body, head)


def _octave_sizes(levels: Sequence[MapGeometry], count: int) -> list[list[float]]:
    """As many sizes of each level, evenly spread from 4 strides to twice as much.

    Whole pixels as in torchvision: 32, 40 and 50 for a stride of 8.
    """
    return [[int(4 * each.stride * 2 ** (i / count)) for i in range(count)] for each in levels]


def build_fcos(config: ModelConfig, num_classes: int) -> OneStage:
    """Cells instead of anchors.

    Raises:
        ValueError: limits that do not ascend, or are not one fewer than the maps.
    """
    section = config.fcos
    assert section is not None  # the schema fills it in
    body = build_body(config, finest=8)
    limits = section.size_limits
    if limits is None:
        limits = tuple(8.0 * level.stride for level in body.levels[:-1])
    if len(limits) != len(body.levels) - 1 or list(limits) != sorted(limits):
        raise ValueError(
            f"model.fcos.size_limits {limits} for {len(body.levels)} feature maps; "
            f"give {len(body.levels) - 1}, ascending"
        )
    head = FCOSHead(
        partial(head_tower, body.channels, section.convs, norm=section.norm, bias=True),
        body.levels,
        channels=body.channels,
        num_classes=num_classes,
        prior=section.prior,
        size_limits=limits,
        center_radius=section.center_radius,
        focal_loss=partial(focal_loss, alpha=section.focal_alpha, gamma=section.focal_gamma),
    )
    return _one_stage(config, body, head)


def build_task_aligned(config: ModelConfig, num_classes: int) -> OneStage:
    """Cells that learn from the objects they serve best."""
    section = config.task_aligned
    assert section is not None  # the schema fills it in
    body = build_body(config, finest=8)
    tower = partial(
        LevelTower,
        body.channels,
        section.channels or body.channels,
        section.convs,
        levels=len(body.levels),
        norm=section.norm,
    )
    head = TaskAlignedHead(
        tower,
        body.levels,
        num_classes=num_classes,
        bins=section.bins,
        match=partial(
            task_aligned_match, top_k=section.top_k, alpha=section.alpha, beta=section.beta
        ),
        box_loss=BOX_LOSSES[section.box_loss],
        weights=LossWeights(section.class_weight, section.box_weight, section.distance_weight),
    )
    return _one_stage(config, body, head)


def _one_stage(config: ModelConfig, body: Body, head: DenseHead) -> OneStage:
    return OneStage(
        body.backbone,
        body.neck,
        head,
        selection=build_selection(config.select),
        mean=config.mean,
        std=config.std,
    )
