"""The task-aligned detector from the config."""

from __future__ import annotations

from functools import partial

from detkit.config import ModelConfig
from detkit.detectors.factory.parts import build_body, build_selection
from detkit.detectors.one_stage import OneStage
from detkit.detectors.task_aligned import LevelTower, LossWeights, TaskAlignedHead
from detkit.ops import task_aligned_match


def build_task_aligned(config: ModelConfig, num_classes: int) -> OneStage:
    """Cells that learn from the objects they serve best."""
    section = config.task_aligned
    assert section is not None  # the schema fills it in
    body = build_body(config, finest=8)
    head = TaskAlignedHead(
        partial(
            LevelTower,
            body.channels,
            section.channels or body.channels,
            section.convs,
            levels=len(body.levels),
            norm=section.norm,
        ),
        num_classes,
        body.levels,
        bins=section.bins,
        match=partial(
            task_aligned_match, top_k=section.top_k, alpha=section.alpha, beta=section.beta
        ),
        box_loss=section.box_loss,
        weights=LossWeights(section.class_weight, section.box_weight, section.distance_weight),
    )
    return OneStage(
        body.backbone,
        body.neck,
        head,
        selection=build_selection(config.select),
        mean=config.mean,
        std=config.std,
    )
