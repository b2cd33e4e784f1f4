"""Detectors in one stage from the config."""

from __future__ import annotations

from detkit.config import ModelConfig
from detkit.detectors.one_stage import OneStage


def build_retinanet(config: ModelConfig, num_classes: int) -> OneStage:
    """Anchors and the focal loss."""
    raise NotImplementedError


def build_fcos(config: ModelConfig, num_classes: int) -> OneStage:
    """Cells instead of anchors."""
    raise NotImplementedError


def build_task_aligned(config: ModelConfig, num_classes: int) -> OneStage:
    """Cells that learn from the objects they serve best."""
    raise NotImplementedError
