"""Use a detector: on pictures from Python, on folders, videos and cameras from the demo."""

from __future__ import annotations

from detkit.inference.pictures import list_pictures
from detkit.inference.predictor import Predictor, load

__all__ = ["Predictor", "list_pictures", "load"]
