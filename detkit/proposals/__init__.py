"""Regions that may hold an object, found without learning: numpy in, numpy out."""

from detkit.proposals.color_spaces import COLOR_SPACES
from detkit.proposals.segmentation import segment
from detkit.proposals.selective_search import (
    MODES,
    SearchSettings,
    Strategies,
    selective_search,
    strategies_of,
)

__all__ = [
    "COLOR_SPACES",
    "MODES",
    "SearchSettings",
    "Strategies",
    "segment",
    "selective_search",
    "strategies_of",
]
