"""From settings to a detector; the only place below the engine that sees the config."""

from detkit.detectors.factory.create import (
    create_detector,
    load_detector_weights,
    without_weights,
)

__all__ = ["create_detector", "load_detector_weights", "without_weights"]
