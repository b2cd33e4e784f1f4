"""Detectors, each a composition of the same few pieces."""

from detkit.detectors.base import Detector
from detkit.detectors.factory import create_detector
from detkit.detectors.region_proposal import RegionProposal

__all__ = ["Detector", "RegionProposal", "create_detector"]
