"""From settings to a detector; the only place below the engine that sees the config."""

from detkit.detectors.factory.create import (
    create_detector,
    load_detector_weights,
    without_weights,
)
from detkit.detectors.factory.image_pyramid import build_fuse

__all__ = ["build_fuse", "create_detector", "load_detector_weights", "without_weights"]
