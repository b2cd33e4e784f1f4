"""Detectors, each a composition of the same few pieces."""

from detkit.detectors.base import Detector
from detkit.detectors.factory import create_detector
from detkit.detectors.image_pyramid import ImagePyramid
from detkit.detectors.region_proposal import RegionProposal
from detkit.detectors.tiled import Tiled

__all__ = ["Detector", "ImagePyramid", "RegionProposal", "Tiled", "create_detector"]
