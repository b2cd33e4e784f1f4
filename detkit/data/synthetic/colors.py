"""Colours: of a shape that must stand off from what is around it, and of a background.

BGR in 0..255 as float32. P counts colours; `[h, w]` is the size of a shape.
"""

from __future__ import annotations

import math
from typing import Any

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from detkit.data.synthetic.canvas import Canvas, Floats
from detkit.structures import Size

CONTRAST = (32.0, 80.0)  # distance to the surroundings in CIELAB, a* and b* weighing less


def paint(
    rng: Generator, canvas: Canvas, alpha: Floats, inner: Floats, x: int, y: int
) -> tuple[Floats, float]:
    """Colours `[h, w, 3]` for a shape at (x, y), and their contrast to what is around it."""
    here, there = canvas.clip(alpha.shape, x, y)
    step = max(1, math.isqrt(alpha.size // 400))  # a few hundred pixels are enough
    free = alpha[there][::step, ::step] < 0.5
    around = canvas.pixels[here][::step, ::step][free].astype(np.float32)
    digits = around[canvas.owner[here][::step, ::step][free] > 0]
    fill, contrast = _standing_off(rng, around, digits)
    color = np.empty((*alpha.shape, 3), np.float32)
    color[:] = fill
    kind = rng.random()
    if kind > 0.5:
        color += _shading(rng, alpha.shape, textured=kind > 0.75)[..., None]
    if inner.min() < 1:
        # The edge is what meets the surroundings, and what makes the fill readable.
        edge, contrast = _standing_off(rng, fill[None], around, digits)
        color = color * inner[..., None] + edge * (1 - inner[..., None])
    return color, contrast


def _standing_off(rng: Generator, *groups: Floats) -> tuple[Floats, float]:
    """A colour `[3]` and its contrast to groups of colours `[P, 3]`: random, or the best there is.

    Each group counts alone: a digit that barely touches another must still not melt into it.
    """
    candidates = rng.uniform(0, 255, (16, 3)).astype(np.float32)
    candidates[::2] = 0.4 * candidates[::2] + 0.6 * candidates[::2].mean(1, keepdims=True)  # muted
    candidates[:2] = [[10] * 3, [245] * 3]
    contrast = np.full(len(candidates), np.inf)
    for group in groups:
        if len(group):
            # The fifth percentile: a few speckles of the same colour do not hide a digit.
            apart = _lab(candidates)[:, None] - _lab(group)  # [16, P, 3]
            squared = np.einsum("cpk,cpk->cp", apart, apart)
            fifth = np.partition(squared, len(group) // 20, axis=1)[:, len(group) // 20]
            contrast = np.minimum(contrast, np.sqrt(fifth))
    enough = contrast >= rng.uniform(*CONTRAST)
    best = np.where(enough, contrast, np.inf).argmin() if enough.any() else contrast.argmax()
    return candidates[best], float(contrast[best])


def _lab(colors: Floats) -> Floats:
    """CIELAB of BGR colours `[P, 3]`, the hue pulled in: JPEG and the eye blur it first."""
    lab = cv2.cvtColor(colors[None] / np.float32(255), cv2.COLOR_BGR2LAB)[0]
    return lab * np.array([1, 0.4, 0.4], np.float32)


def _shading(rng: Generator, shape: Size, *, textured: bool) -> Floats:
    """Light and dark `[h, w]` within a shape."""
    if textured:
        cells = (max(2, shape[0] // 4), max(2, shape[1] // 4))
        value = enlarge(rng.uniform(-1, 1, cells), shape)
    else:
        angle = rng.uniform(0, 2 * math.pi)
        rows = np.linspace(-1, 1, shape[0], dtype=np.float32)[:, None]
        columns = np.linspace(-1, 1, shape[1], dtype=np.float32)
        value = rows * np.float32(math.sin(angle)) + columns * np.float32(math.cos(angle))
    return value * np.float32(rng.uniform(10, 35))


def enlarge(grid: NDArray[Any], size: Size) -> Floats:
    """A smooth surface through the values of a coarse grid, channels kept."""
    return cv2.resize(grid.astype(np.float32), (size[1], size[0]), interpolation=cv2.INTER_CUBIC)


def palette(rng: Generator, count: int) -> Floats:
    """Colours `[count, 3]` that belong together: related hues, mostly muted."""
    hues = (rng.uniform(0, 180) + rng.normal(0, rng.choice([8, 25, 60]), count)) % 180
    saturation = np.clip(rng.uniform(10, 200) + rng.normal(0, 30, count), 0, 255)
    values = np.clip(rng.uniform(70, 200) + rng.normal(0, rng.uniform(10, 60), count), 15, 250)
    hsv = np.stack([hues, saturation, values], 1).astype(np.uint8)
    return cv2.cvtColor(hsv[None], cv2.COLOR_HSV2BGR)[0].astype(np.float32)
