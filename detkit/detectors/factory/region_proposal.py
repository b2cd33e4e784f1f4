"""R-CNN and its descendants from the config."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from detkit.backbones import Backbone
from detkit.config import ModelConfig, RoIConfig, RPNConfig
from detkit.detectors.base import MapGeometry
from detkit.detectors.cascade import CascadeHead
from detkit.detectors.crop import RoICrop
from detkit.detectors.factory.parts import Body, build_body, build_selection
from detkit.detectors.proposals import GivenProposals, GridProposals, Proposer
from detkit.detectors.region_proposal import RegionProposal
from detkit.detectors.roi import BoxHead, BoxLoss, ClassLoss, RoIAlign, RoIHead, RoIPool
from detkit.detectors.rpn import RPN, AnchorGrid, ProposalLimits, RPNHead
from detkit.detectors.towers import conv_tower
from detkit.nn.init import initialise
from detkit.nn.modes import evaluating
from detkit.ops import Assigner
from detkit.ops.box_coder import Weights

_STRICTER = 0.1  # IoU, from one stage of a cascade to the next


def build_region_proposal(config: ModelConfig, num_classes: int) -> RegionProposal:
    """Proposals, then a look at each."""
    assert config.roi is not None  # the schema fills it in
    body = build_body(config)
    return RegionProposal(
        body.backbone,
        body.neck,
        _proposer(config, body),
        _roi(config, body, num_classes),
        mean=config.mean,
        std=config.std,
        shared=config.roi.pool != "crop",
    )


def _proposer(config: ModelConfig, body: Body) -> Proposer:
    if config.rpn is not None:
        return _rpn(config.rpn, body.channels, body.levels)
    if config.grid is not None:
        return GridProposals(
            config.grid.sizes, config.grid.aspect_ratios, stride=config.grid.stride
        )
    assert config.roi is not None
    return GivenProposals(str(config.proposals), limit=config.roi.max_regions)


def _rpn(config: RPNConfig, channels: int, levels: list[MapGeometry]) -> RPN:
    anchors = _anchors(config, levels)

    def limits(pre_nms: int, post_nms: int) -> ProposalLimits:
        return ProposalLimits(
            pre_nms, post_nms, config.nms_iou, config.min_size, config.score_threshold
        )

    return RPN(
        RPNHead(channels, anchors.num_anchors, convs=config.convs),
        anchors,
        assigner=Assigner(
            positive_iou=config.positive_iou,
            negative_iou=config.negative_iou,
            samples=config.samples,
            positive_fraction=config.positive_fraction,
            allow_low_quality=True,
            sampler=config.sampler,
        ),
        train_limits=limits(config.pre_nms_train, config.post_nms_train),
        test_limits=limits(config.pre_nms_test, config.post_nms_test),
        smooth_l1_beta=config.smooth_l1_beta,
    )


def _anchors(config: RPNConfig, levels: list[MapGeometry]) -> AnchorGrid:
    what, ratios = "boxes", None
    given: Sequence[Sequence[float | tuple[float, float]]] | None = config.anchor_boxes
    if given is None:
        what, ratios = "sizes", config.aspect_ratios
        given = config.anchor_sizes or tuple((8.0 * level.stride,) for level in levels)
    if len(given) != len(levels):
        raise ValueError(
            f"model.rpn.anchor_{what} has {len(given)} entries for {len(levels)} "
            f"feature maps; give one list of {what} a map, finest first"
        )
    return AnchorGrid(given, ratios, levels)


def _roi(config: ModelConfig, body: Body, num_classes: int) -> RoIHead | CascadeHead:
    """The second stage, or several of them that look at the same maps."""
    settings = config.roi
    assert settings is not None
    weights = settings.class_weights
    if weights is not None and len(weights) != num_classes + 1:
        raise ValueError(
            f"model.roi.class_weights has {len(weights)} entries for {num_classes} classes and the "
            f"background; give {num_classes + 1}, the background's last"
        )
    pool: nn.Module
    if settings.pool == "crop":
        pool, shape = _crop(settings, body.backbone)
    else:
        pool, shape = _region_pool(settings, body.maps), (body.channels, *_square(settings))
    selection = build_selection(config.select)
    stages = [
        RoIHead(
            pool,
            _box_head(settings, shape, num_classes),
            assigner=_assigner(settings, number),
            box_weights=_scaled(settings.box_weights, number + 1),
            class_loss=ClassLoss(
                focusing=settings.focal_gamma if settings.class_loss == "focal" else 0.0,
                label_smoothing=settings.label_smoothing,
                class_weights=weights,
            ),
            box_loss=BoxLoss(settings.box_loss, settings.box_loss_weight, settings.smooth_l1_beta),
            selection=selection,
            hard_iou=settings.hard_iou if settings.sampler == "ohem" else None,
        )
        for number in range(settings.stages)
    ]
    if len(stages) == 1:
        return stages[0]
    halves = [0.5**number for number in range(len(stages))]
    return CascadeHead(stages, loss_weights=settings.stage_loss_weights or halves)


def _region_pool(config: RoIConfig, maps: list[MapGeometry]) -> RoIAlign | RoIPool:
    """What cuts patches out of the maps."""
    resolution, _ = _square(config)
    if config.pool == "pool":
        return RoIPool(
            maps,
            resolution=resolution,
            canonical_size=config.canonical_size,
            canonical_level=config.canonical_level,
        )
    return RoIAlign(
        maps,
        resolution=resolution,
        sampling_ratio=config.sampling_ratio,
        aligned=config.aligned,
        canonical_size=config.canonical_size,
        canonical_level=config.canonical_level,
    )


def _crop(config: RoIConfig, backbone: Backbone) -> tuple[RoICrop, tuple[int, int, int]]:
    """What has the backbone look at each region, and the (D, h, w) of what comes out."""
    size = config.crop_size
    if size < backbone.least_side:
        raise ValueError(
            f"model.roi.crop_size {size} is too small for {backbone.name}; give at least "
            f"{backbone.least_side}"
        )
    pool = RoICrop(
        backbone.__call__,  # a function: its weights are the detector's
        size=size,
        context=config.context,
        resolution=config.resolution,
        sampling_ratio=config.sampling_ratio,
        chunk=config.chunk,
    )
    with torch.no_grad(), evaluating(backbone):  # or batch norm would note an empty picture
        _, channels, height, width = pool([torch.zeros(1, 3, 1, 1)], [torch.zeros(1, 4)]).shape
    return pool, (channels, height, width)


def _square(config: RoIConfig) -> tuple[int, int]:
    assert config.resolution is not None  # the schema says where it may be
    return config.resolution, config.resolution


def _assigner(config: RoIConfig, number: int) -> Assigner:
    """Which proposals the stage of that number, from 0 on, learns from."""
    positive, negative = config.positive_iou, config.negative_iou
    if number or config.stage_ious:
        higher = min(positive + _STRICTER * number, 1.0)
        wanted = config.stage_ious[number] if config.stage_ious else higher
        positive, negative = wanted, max(0.0, wanted - (positive - negative))
    return Assigner(
        positive_iou=positive,
        negative_iou=negative,
        samples=config.samples,
        positive_fraction=config.positive_fraction,
        sampler="balanced" if config.sampler == "ohem" else config.sampler,
    )


def _scaled(weights: Weights, factor: int) -> Weights:
    x, y, w, h = weights
    return factor * x, factor * y, factor * w, factor * h


def _box_head(config: RoIConfig, shape: tuple[int, int, int], num_classes: int) -> BoxHead:
    """The head of one stage, for patches of (D, h, w)."""
    channels, height, width = shape
    convs = None
    if config.convs:
        convs = conv_tower(channels, config.conv_channels, config.convs, norm=config.conv_norm)
        initialise(convs, "he_normal", mode="fan_out")
        channels = config.conv_channels
    return BoxHead(
        channels * height * width,
        config.hidden,
        num_classes,
        class_agnostic=config.class_agnostic,
        fcs=config.fcs,
        convs=convs,
    )
