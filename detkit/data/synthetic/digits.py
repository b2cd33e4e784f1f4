"""One digit: its height and place at random, drawn where it leaves the others readable."""

from __future__ import annotations

from numpy.random import Generator

from detkit.data.synthetic.canvas import Canvas
from detkit.data.synthetic.colors import CONTRAST, paint
from detkit.data.synthetic.glyphs import TYPEFACES, hand_drawn, outline, printed, warp
from detkit.structures import Size

CLASS_NAMES = tuple("0123456789")
HAND_DRAWN_SHARE = 0.25
DIGIT_HEIGHT = (0.08, 0.5)  # of the short side, before the digit is turned
MIN_DIGIT_PIXELS = 14  # a person still reads it after JPEG


def draw_digit(rng: Generator, canvas: Canvas) -> None:
    """Add one digit, or none when no free place turns up."""
    label = int(rng.integers(len(CLASS_NAMES)))
    height = random_height(rng, min(canvas.owner.shape))
    if rng.random() < HAND_DRAWN_SHARE:
        master = hand_drawn(rng, CLASS_NAMES[label], 2 * height)
    else:
        master = printed(CLASS_NAMES[label], TYPEFACES[rng.integers(len(TYPEFACES))])
    inner = warp(rng, master, height)
    alpha, inner = outline(rng, inner, height)
    ink = alpha >= 0.5
    for _ in range(12):
        x, y = propose_corner(rng, canvas, alpha.shape)
        if not canvas.has_room(ink, x, y):
            continue
        color, contrast = paint(rng, canvas, alpha, inner, x, y)
        if contrast >= CONTRAST[0]:
            canvas.add_digit(label, alpha, color, x, y)
            return


def random_height(rng: Generator, short_side: int) -> int:
    """Log-uniform: as many digits between 20 and 40 pixels as between 40 and 80."""
    low = max(DIGIT_HEIGHT[0] * short_side, MIN_DIGIT_PIXELS)
    high = DIGIT_HEIGHT[1] * short_side
    return round(low * (high / low) ** rng.random())


def propose_corner(rng: Generator, canvas: Canvas, shape: Size) -> tuple[int, int]:
    """A corner for a patch: mostly anywhere, sometimes side by side with an earlier digit."""
    height, width = canvas.owner.shape
    if canvas.boxes and rng.random() < 0.25:
        x1, y1, x2, y2 = canvas.boxes[rng.integers(len(canvas.boxes))]
        gap = rng.uniform(-0.25, 0.1) * shape[1]
        x = x2 + gap if rng.random() < 0.5 else x1 - shape[1] - gap
        return round(x), round((y1 + y2 - shape[0]) / 2 + rng.normal(0, 0.15) * shape[0])
    # A fifth of the digit may reach over the border; has_room decides on the ink.
    over = 0.2
    return (
        round(rng.uniform(-over * shape[1], width - (1 - over) * shape[1])),
        round(rng.uniform(-over * shape[0], height - (1 - over) * shape[0])),
    )
