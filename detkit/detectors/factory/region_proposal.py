"""R-CNN and its descendants from the config."""

from __future__ import annotations

from detkit.config import ModelConfig, RoIConfig, RPNConfig
from detkit.detectors.base import MapGeometry
from detkit.detectors.factory.parts import build_body, build_selection
from detkit.detectors.region_proposal import RegionProposal
from detkit.detectors.roi import BoxHead, BoxLoss, ClassLoss, RoIAlign, RoIHead
from detkit.detectors.rpn import RPN, AnchorGrid, ProposalLimits, RPNHead
from detkit.detectors.towers import conv_tower
from detkit.nn.init import initialise
from detkit.ops import Assigner, Selection


def build_region_proposal(config: ModelConfig, num_classes: int) -> RegionProposal:
    """Proposals, then a look at each."""
    assert config.rpn is not None and config.roi is not None  # the schema fills them in
    body = build_body(config)
    return RegionProposal(
        body.backbone,
        body.neck,
        _rpn(config.rpn, body.channels, body.levels),
        _roi(
            config.roi,
            body.channels,
            body.maps,
            num_classes=num_classes,
            selection=build_selection(config.select),
        ),
        mean=config.mean,
        std=config.std,
    )


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
        RPNHead(channels, anchors.num_anchors, convs=config.convs),
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


def _roi(
    config: RoIConfig,
    channels: int,
    maps: list[MapGeometry],
    *,
    num_classes: int,
    selection: Selection,
) -> RoIHead:
    return RoIHead(
        RoIAlign(
            maps,
            resolution=config.resolution,
            sampling_ratio=config.sampling_ratio,
            aligned=config.aligned,
            canonical_size=config.canonical_size,
            canonical_level=config.canonical_level,
        ),
        _box_head(config, channels, num_classes),
        assigner=Assigner(
            positive_iou=config.positive_iou,
            negative_iou=config.negative_iou,
            samples=config.samples,
            positive_fraction=config.positive_fraction,
        ),
        box_weights=config.box_weights,
        class_loss=ClassLoss(),
        box_loss=BoxLoss(config.box_loss, config.box_loss_weight, config.smooth_l1_beta),
        selection=selection,
    )


def _box_head(config: RoIConfig, channels: int, num_classes: int) -> BoxHead:
    convs = None
    if config.convs:
        convs = conv_tower(channels, config.conv_channels, config.convs, norm=config.conv_norm)
        initialise(convs, "he_normal", mode="fan_out")
        channels = config.conv_channels
    return BoxHead(
        channels * config.resolution**2,
        config.hidden,
        num_classes,
        class_agnostic=config.class_agnostic,
        fcs=config.fcs,
        convs=convs,
    )
