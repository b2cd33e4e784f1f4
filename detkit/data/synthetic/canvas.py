"""The picture in the making: what is drawn, which digits it shows, and whether another one fits.

A shape is an alpha mask `[h, w]` in 0..1 whose ink is where alpha is at least one half; H and W
are the size of the picture. Boxes are xyxy in whole pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detkit.structures import Size

# OpenCV's stubs promise no dtype, so these two names are for the reader.
Pixels = NDArray[Any]  # uint8
Floats = NDArray[Any]  # float32

MIN_INSIDE = 0.8  # of the ink, at the border of the image; an 8 cut deeper is a 3
MAX_HIDDEN = 0.25  # of the ink, by digits drawn later
MAX_OVERLAP = 0.3  # IoU of two boxes


@dataclass(slots=True)
class Canvas:
    """A picture in the making, and which digit is on top of each pixel.

    Attributes:
        pixels: `[H, W, 3]` BGR.
        owner: `[H, W]` one more than the index of the topmost digit, 0 where there is none.
        boxes: xyxy of each digit, tight around its ink inside the picture, hidden or not.
        labels: 0..9 of each digit.
        ink: pixels of each digit inside the picture, hidden or not.
    """

    pixels: Pixels
    owner: NDArray[np.int32] = field(init=False)
    boxes: list[tuple[int, int, int, int]] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    ink: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.owner = np.zeros(self.pixels.shape[:2], np.int32)

    def clip(self, shape: Size, x: int, y: int) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
        """Where a patch cornered at (x, y) meets the picture: in the picture, in the patch."""
        height, width = self.owner.shape
        y1, y2 = (min(max(edge, 0), height) for edge in (y, y + shape[0]))
        x1, x2 = (min(max(edge, 0), width) for edge in (x, x + shape[1]))
        return (slice(y1, y2), slice(x1, x2)), (slice(y1 - y, y2 - y), slice(x1 - x, x2 - x))

    def blend(self, alpha: Floats, color: Floats, x: int, y: int) -> None:
        """Lay colours `[h, w, 3]` over the picture, the corner of alpha `[h, w]` at (x, y)."""
        here, there = self.clip(alpha.shape, x, y)
        weight = alpha[there][..., None]
        mixed = self.pixels[here] * (1 - weight) + color[there] * weight
        self.pixels[here] = np.clip(mixed + 0.5, 0, 255).astype(np.uint8)

    def has_room(self, ink: NDArray[np.bool_], x: int, y: int) -> bool:
        """Whether a digit there shows enough of itself and leaves enough of those below it."""
        here, there = self.clip(ink.shape, x, y)
        inside = ink[there]
        if inside.sum() < MIN_INSIDE * ink.sum():
            return False
        box = ink_box(inside, here[1].start, here[0].start)
        if any(_iou(box, other) > MAX_OVERLAP for other in self.boxes):
            return False
        covered = np.bincount(self.owner[here][inside], minlength=len(self.ink) + 1)[1:]
        for index in np.flatnonzero(covered):
            visible = np.count_nonzero(self.owner == index + 1) - covered[index]
            if visible < (1 - MAX_HIDDEN) * self.ink[index]:
                return False
        return True

    def add_digit(self, label: int, alpha: Floats, color: Floats, x: int, y: int) -> None:
        """Draw a digit and note its truth."""
        here, there = self.clip(alpha.shape, x, y)
        inside = alpha[there] >= 0.5
        self.blend(alpha, color, x, y)
        self.labels.append(label)
        self.boxes.append(ink_box(inside, here[1].start, here[0].start))
        self.ink.append(int(inside.sum()))
        self.owner[here][inside] = len(self.labels)


def ink_box(ink: NDArray[np.bool_], left: int, top: int) -> tuple[int, int, int, int]:
    """Tight box around the ink of a patch `[h, w]` whose corner lies at (left, top)."""
    columns, rows = np.flatnonzero(ink.any(0)), np.flatnonzero(ink.any(1))
    return (
        left + int(columns[0]),
        top + int(rows[0]),
        left + int(columns[-1]) + 1,
        top + int(rows[-1]) + 1,
    )


def _iou(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    both = width * height
    return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)
