"""Sliding windows from the config."""

from __future__ import annotations

from detkit.config import ModelConfig
from detkit.detectors.base import Detector


def build_sliding_window(config: ModelConfig, num_classes: int) -> Detector:
    """A classifier of windows, slid over the image."""
    raise NotImplementedError
