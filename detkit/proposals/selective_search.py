"""Selective search: boxes that may hold an object, from many groupings of a picture's regions.

Uijlings et al., "Selective Search for Object Recognition", IJCV 2013.

P boxes, R regions of a segmentation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from detkit.proposals.color_spaces import COLOR_SPACES
from detkit.proposals.grouping import Weights, describe, group, neighbours, quantize
from detkit.proposals.segmentation import pixel_graph, segment_graph, smooth
from detkit.registry import suggest

SIMILARITIES = "CTSF"  # colour, texture, size, fill
VERSION = 1  # raise it with every change that alters a box: results are kept on disk
_USUAL_PIXELS = 500 * 375  # of the pictures that the paper's scales were chosen on


@dataclass(frozen=True)
class Strategies:
    """Every combination of these is a grouping of its own (section 3.2).

    Attributes:
        color_spaces: of `COLOR_SPACES`.
        scales: k of the initial segmentation, see `segment`.
        similarities: which ones are added, by their initials: "CTSF", "TSF", "F", "S".

    Raises:
        ValueError: an unknown name, or nothing to combine.
    """

    color_spaces: tuple[str, ...]
    scales: tuple[float, ...]
    similarities: tuple[str, ...]

    def __post_init__(self) -> None:
        if not (self.color_spaces and self.scales and self.similarities):
            raise ValueError("selective search needs a colour space, a scale and a similarity")
        for name in self.color_spaces:
            if name not in COLOR_SPACES:
                raise ValueError(f"unknown color space {name!r}; {suggest(name, COLOR_SPACES)}")
        for letters in self.similarities:
            if not letters or set(letters) - set(SIMILARITIES):
                raise ValueError(
                    f"similarities {letters!r} must be letters of {SIMILARITIES} "
                    "(colour, texture, size, fill), like 'CTSF' or 'TSF'"
                )


MODES = {
    "single": Strategies(("hsv",), (100,), ("CTSF",)),
    "fast": Strategies(("hsv", "lab"), (50, 100), ("CTSF", "TSF")),
    "quality": Strategies(
        ("hsv", "lab", "rgi", "hue", "intensity"), (50, 100, 150, 300), ("CTSF", "TSF", "F", "S")
    ),
}
"""The paper's: 1, 8 and 80 groupings (section 5.3, table 5)."""


def strategies_of(
    mode: str,
    *,
    color_spaces: Sequence[str] | None = None,
    scales: Sequence[float] | None = None,
    similarities: Sequence[str] | None = None,
) -> Strategies:
    """Those of a mode, with what is given in place of its own.

    Raises:
        ValueError: an unknown mode or name, or nothing to combine.
    """
    if mode not in MODES:
        raise ValueError(f"unknown mode {mode!r} of selective search; {suggest(mode, MODES)}")
    own = MODES[mode]
    return Strategies(
        own.color_spaces if color_spaces is None else tuple(color_spaces),
        own.scales if scales is None else tuple(scales),
        own.similarities if similarities is None else tuple(similarities),
    )


@dataclass(frozen=True)
class SearchSettings:
    """How a picture is searched.

    Attributes:
        strategies: the groupings; `MODES` has the paper's.
        sigma: smoothing before the segmentation, in pixels.
        min_size: of an initial region, in pixels; None is its k in pictures of 500 x 375 and
            larger, in smaller ones in proportion to their area, but at least 10.
        min_side: boxes with a shorter side are left out, in pixels of the picture searched.
        longest: larger pictures are scaled down to this side first; None searches all pixels.
        seed: of the order.

    Raises:
        ValueError: a number is out of its range.
    """

    strategies: Strategies = MODES["fast"]
    sigma: float = 0.8
    min_size: int | None = None
    min_side: int = 8
    longest: int | None = 500
    seed: int = 0

    def __post_init__(self) -> None:
        least = {"sigma": 0, "min_size": 0, "min_side": 0, "longest": 1, "seed": 0}
        for name, low in least.items():
            value = getattr(self, name)
            if value is not None and value < low:
                raise ValueError(f"{name} of selective search must be at least {low}, got {value}")


def selective_search(
    image: np.ndarray,
    settings: SearchSettings = SearchSettings(),
) -> np.ndarray:
    """Propose boxes, the most promising first.

    The order is the paper's (section 4.3): the place of a region in its hierarchy, counted from the
    top, times a random number, so that large regions tend to come first and no grouping dominates.

    Args:
        image: `[H, W, 3]` uint8 RGB.
        settings: how.

    Returns:
        `[P, 4]` float32 xyxy in pixels of `image`, x2 and y2 exclusive; none twice. The whole
        picture is among them.

    Raises:
        ValueError: not a picture.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
        raise ValueError(
            f"image must be [H, W, 3] uint8 RGB with pixels, got {list(image.shape)} {image.dtype}"
        )
    small = _at_most(image, settings.longest)
    boxes = _rank(_hierarchies(small, settings), np.random.default_rng(settings.seed))
    height, width = small.shape[:2]
    wide_enough = (boxes[:, 2:] - boxes[:, :2] >= settings.min_side).all(axis=1)
    boxes = boxes[wide_enough | (boxes == [0, 0, width, height]).all(axis=1)]
    ratio = np.array([image.shape[1] / width, image.shape[0] / height] * 2)
    return (boxes * ratio).astype(np.float32)


def _at_most(image: np.ndarray, longest: int | None) -> np.ndarray:
    if longest is None or max(image.shape[:2]) <= longest:
        return image
    ratio = longest / max(image.shape[:2])
    height, width = (max(1, round(side * ratio)) for side in image.shape[:2])
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)


def _hierarchies(image: np.ndarray, settings: SearchSettings) -> list[np.ndarray]:
    """Boxes `[2R - 1, 4]` of each grouping, the whole picture first."""
    found = []
    for name in settings.strategies.color_spaces:
        pixels = COLOR_SPACES[name](image)
        graph, levels = pixel_graph(smooth(pixels, settings.sigma)), quantize(pixels)
        for scale in settings.strategies.scales:
            least = settings.min_size
            if least is None:
                share = image.shape[0] * image.shape[1] / _USUAL_PIXELS
                least = max(10, round(scale * min(1.0, share)))
            labels = segment_graph(graph, image.shape[:2], k=scale, min_size=least)
            regions, pairs = describe(labels, levels), neighbours(labels)
            found += [
                group(regions, pairs, _weights(letters)).boxes[::-1]
                for letters in settings.strategies.similarities
            ]
    return found


def _weights(letters: str) -> Weights:
    return Weights(*(float(letter in letters) for letter in SIMILARITIES))


def _rank(hierarchies: Sequence[np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """Every box once, by its place in the hierarchy times a random number; `[P, 4]`."""
    boxes = np.concatenate(hierarchies)
    place = np.concatenate([np.arange(1, len(each) + 1) for each in hierarchies])
    boxes = boxes[np.argsort(place * rng.random(len(place)), kind="stable")]
    first = np.unique(boxes, axis=0, return_index=True)[1]
    return boxes[np.sort(first)]
