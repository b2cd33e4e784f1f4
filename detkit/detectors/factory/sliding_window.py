"""Sliding windows from the config."""

from __future__ import annotations

from detkit.config import ModelConfig, SlidingWindowConfig
from detkit.detectors.factory.parts import build_backbone, build_selection
from detkit.detectors.roi import BoxLoss
from detkit.detectors.sliding_window import SlidingWindow, WindowLearning, map_of
from detkit.detectors.window_head import SlidingHead
from detkit.detectors.windows import WindowGrid
from detkit.ops import Assigner


def build_sliding_window(config: ModelConfig, num_classes: int) -> SlidingWindow:
    """A classifier of windows, slid over the image.

    Raises:
        ValueError: a backbone with several maps, or too small windows.
    """
    settings = config.sliding_window
    assert settings is not None  # the schema fills it in
    backbone = build_backbone(config)
    if len(backbone.out_indices) != 1:
        raise ValueError(
            f"model.backbone.out_indices {backbone.out_indices}: a window has one map; give one "
            "entry, e.g. [-1]"
        )
    grid = WindowGrid(settings.sizes, settings.stride, settings.input_size or settings.sizes[0])
    channels, *cells = map_of(backbone, grid.input_size)
    head = SlidingHead(
        channels,
        (cells[0], cells[1]),
        num_classes,
        pooled=settings.pooled,
        hidden=settings.hidden,
        box_regression=settings.box_regression,
        class_agnostic=settings.class_agnostic,
    )
    return SlidingWindow(
        backbone,
        head,
        grid,
        learning=_learning(settings),
        selection=build_selection(config.select),
        mode=settings.mode,
        mean=config.mean,
        std=config.std,
    )


def _learning(config: SlidingWindowConfig) -> WindowLearning:
    return WindowLearning(
        assigner=Assigner(
            positive_iou=config.positive_iou,
            negative_iou=config.negative_iou,
            samples=config.samples,
            positive_fraction=config.positive_fraction,
        ),
        hard_negatives=config.hard_negatives,
        copies=config.copies,
        jitter=config.jitter,
        box_weights=config.box_weights,
        box_loss=BoxLoss(config.box_loss, config.box_loss_weight, config.smooth_l1_beta),
    )
