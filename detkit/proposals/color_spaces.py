"""Pictures in the colour spaces of selective search, all channels in 0..255."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

_EPSILON = 1e-6  # black has no chromaticity


def _share_of_sum(image: np.ndarray) -> np.ndarray:
    """Red, green and blue as shares of their sum, which shadows leave as it is."""
    pixels = image.astype(np.float32)
    return 255 * pixels / np.maximum(pixels.sum(axis=2, keepdims=True), _EPSILON)


def _rg_intensity(image: np.ndarray) -> np.ndarray:
    mean = image.mean(axis=2, dtype=np.float32, keepdims=True)
    return np.concatenate([_share_of_sum(image)[..., :2], mean], axis=2)


COLOR_SPACES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "rgb": lambda image: image,
    "intensity": lambda image: cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None],
    "lab": lambda image: cv2.cvtColor(image, cv2.COLOR_RGB2LAB),
    "hsv": lambda image: cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL),
    "hue": lambda image: cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL)[..., :1],
    "rgi": _rg_intensity,
    "normalized_rgb": _share_of_sum,
}
"""Name to a function from `[H, W, 3]` uint8 RGB to `[H, W, C]` in 0..255."""
