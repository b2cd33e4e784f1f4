"""Detectors, each a composition of the same few pieces."""

from detkit.detectors.base import Detector
from detkit.detectors.factory import create_detector
from detkit.detectors.from_classifier import from_classifier
from detkit.detectors.image_pyramid import ImagePyramid
from detkit.detectors.one_stage import OneStage
from detkit.detectors.region_proposal import RegionProposal
from detkit.detectors.sliding_window import SlidingWindow
from detkit.detectors.tiled import Tiled

__all__ = [
    "Detector",
    "ImagePyramid",
    "OneStage",
    "RegionProposal",
    "SlidingWindow",
    "Tiled",
    "create_detector",
    "from_classifier",
]
