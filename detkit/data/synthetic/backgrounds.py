"""What the digits lie on: textures, mosaics and something like blurred photographs.

Each kind takes (rng, (height, width)) and gives `[H, W, 3]` BGR float32 in about 0..255;
`draw_background` picks one and lights it.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import cv2
import numpy as np
from numpy.random import Generator

from detkit.data.synthetic.canvas import Floats, Pixels
from detkit.data.synthetic.colors import enlarge, palette
from detkit.structures import Size


def draw_background(rng: Generator, size: Size) -> Pixels:
    """One background `[H, W, 3]` as uint8, unevenly lit."""
    kind = _BACKGROUNDS[rng.integers(len(_BACKGROUNDS))]
    picture = kind(rng, size)
    light = _gradient(rng, size) if rng.random() < 0.5 else _clouds(rng, size, octaves=2)
    darkest = rng.uniform(0.5, 1)
    picture = picture * (darkest + (1.1 - darkest) * light)[..., None]
    return np.clip(picture, 0, 255).astype(np.uint8)


def _normalize(value: Floats) -> Floats:
    low, high = float(value.min()), float(value.max())
    return (value - low) / max(high - low, 1e-6)


def _gradient(rng: Generator, size: Size) -> Floats:
    """Scalars 0..1 `[H, W]`, along a line or away from a point."""
    rows = np.linspace(0, 1, size[0], dtype=np.float32)[:, None]
    columns = np.linspace(0, 1, size[1], dtype=np.float32)
    if rng.random() < 0.5:
        angle = rng.uniform(0, 2 * math.pi)
        return _normalize(
            rows * np.float32(math.sin(angle)) + columns * np.float32(math.cos(angle))
        )
    row, column = rng.uniform(0, 1, 2).astype(np.float32)
    return 1 - _normalize(np.hypot(rows - row, columns - column))


def _clouds(rng: Generator, size: Size, *, octaves: int = 6) -> Floats:
    """Noise 0..1 `[H, W]` whose amplitude falls with frequency, as in photographs (1/f)."""
    decay, stretch = rng.uniform(0.4, 0.65), int(rng.choice([1, 1, 1, 4]))
    value: Floats = np.zeros((1, 1), np.float32)
    for octave in range(1, octaves + 1):
        cells = (min(2**octave * stretch, size[0]), min(2**octave, size[1]))
        value = enlarge(value, cells) + decay**octave * rng.uniform(-1, 1, cells)
    return _normalize(enlarge(value, size))


def _colorize(rng: Generator, value: Floats) -> Floats:
    """Map scalars 0..1 `[H, W]` through a ramp of colours."""
    colors = palette(rng, int(rng.integers(2, 5)))
    stops = np.linspace(0, 255, len(colors))
    ramp = [np.interp(np.arange(256), stops, channel) for channel in colors.T]
    table = np.stack(ramp, 1).astype(np.float32)  # [256, 3]
    return table[(np.clip(value, 0, 1) * 255).astype(np.uint8)]


def _smooth(rng: Generator, size: Size) -> Floats:
    return _colorize(rng, _gradient(rng, size))


def _marble(rng: Generator, size: Size) -> Floats:
    value = _clouds(rng, size)
    if rng.random() < 0.4:
        value = np.abs(2 * value - 1)  # folded: veins
    return _colorize(rng, value)


def _fabric(rng: Generator, size: Size) -> Floats:
    """Stripes, checks or a weave, turned and slightly bent."""
    angle = rng.uniform(0, math.pi)
    rows = np.arange(size[0], dtype=np.float32)[:, None]
    columns = np.arange(size[1], dtype=np.float32)
    frequency = np.float32(2 * math.pi / rng.uniform(6, 0.3 * min(size)))
    bend = np.float32(rng.choice([0, 3])) * _clouds(rng, size, octaves=2)
    along = np.float32(math.cos(angle)) * columns + np.float32(math.sin(angle)) * rows
    across = np.float32(math.cos(angle)) * rows - np.float32(math.sin(angle)) * columns
    warp, weft = np.sin(along * frequency + bend), np.sin(across * frequency + bend)
    pattern = (warp, warp * weft, np.where(warp * weft > 0, np.abs(warp), -np.abs(weft)))
    value = pattern[rng.integers(3)] * np.float32(rng.choice([1, 1, 8]))  # 8: hard edges
    value = 0.5 + np.clip(value, -1, 1) * np.float32(rng.uniform(0.15, 0.5))
    return _colorize(rng, value)


def _cells(rng: Generator, size: Size) -> Floats:
    """A Voronoi mosaic."""
    count = int(rng.integers(6, 40))
    seeds = np.full(size, 255, np.uint8)
    seeds[rng.integers(0, size[0], count), rng.integers(0, size[1], count)] = 0
    labels = cv2.distanceTransformWithLabels(seeds, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)[
        1
    ]
    picture = palette(rng, count + 1)[labels]
    return picture + 30 * (_clouds(rng, size)[..., None] - 0.5)


def _room(rng: Generator, size: Size) -> Floats:
    """Large overlapping planes with texture, partly out of focus: something like a photograph."""
    height, width = size
    picture = _marble(rng, size)
    colors = palette(rng, 12)
    for color in colors[: rng.integers(4, 13)]:
        center = rng.uniform(0, 1, 2) * (width, height)
        angles = np.sort(rng.uniform(0, 2 * math.pi, rng.integers(3, 7)))
        reach = rng.uniform(0.15, 0.7) * min(size)
        corners = center + reach * np.stack([np.cos(angles), np.sin(angles)], 1)
        cv2.fillPoly(picture, [np.round(corners).astype(np.int32)], color.tolist())
    sigma = rng.choice([0, 1.5, 4]) * min(size) / 256
    if sigma > 0:
        picture = cv2.GaussianBlur(picture, (0, 0), sigma)
    return picture + rng.uniform(20, 60) * (_clouds(rng, size)[..., None] - 0.5)


def _bokeh(rng: Generator, size: Size) -> Floats:
    """Out-of-focus lights over a gradient, drawn at a quarter of the size because it is blurred."""
    small = (size[0] // 4, size[1] // 4)
    picture = _smooth(rng, small)
    for color in palette(rng, int(rng.integers(8, 30))):
        lights = picture.copy()
        center = (int(rng.integers(small[1])), int(rng.integers(small[0])))
        cv2.circle(
            lights, center, max(2, int(rng.uniform(0.03, 0.2) * min(small))), color.tolist(), -1
        )
        picture = cv2.addWeighted(picture, 0.4, lights, 0.6, 0)
    return enlarge(cv2.GaussianBlur(picture, (0, 0), rng.uniform(0.7, 2)), size)


_BACKGROUNDS: tuple[Callable[[Generator, Size], Floats], ...] = (
    _smooth, _marble, _marble, _fabric, _cells, _room, _room, _bokeh,
)  # fmt: skip
