"""The shapes of characters: printed in a typeface or drawn by hand, then bent and outlined.

A shape is an alpha mask `[h, w]` in 0..1, trimmed to its ink when it is made; h and w change with
every step. P counts the points of a pen stroke.
"""

from __future__ import annotations

import functools
import math
from pathlib import Path

import cv2
import matplotlib
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from detkit.data.synthetic.canvas import Floats, ink_box

MAX_TURN = 30.0  # degrees; 6 and 9, 1 and 7 stay what they are
TYPEFACES = (
    *("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSans-BoldOblique"),
    *("DejaVuSansMono", "DejaVuSansMono-Bold"),
    *("DejaVuSansMono-Oblique", "DejaVuSansMono-BoldOblique"),
    *("DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic", "DejaVuSerif-BoldItalic"),
    *("STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic", "STIXGeneralBolIta"),
    *("cmr10", "cmb10", "cmss10", "cmtt10", "cmti10"),
)

# Pen strokes in a unit square, y down: (is a smooth curve, points). The 1 has a foot and the 7 a
# bar, because a plain 7 turned by 30 degrees is a 1.
_STROKES: dict[str, tuple[tuple[bool, list[tuple[float, float]]], ...]] = {
    "0": (
        (True, [(0.5, 0), (0.12, 0.18), (0, 0.5), (0.12, 0.82), (0.5, 1), (0.88, 0.82), (1, 0.5),
                (0.88, 0.18), (0.5, 0)]),
    ),
    "1": ((False, [(0.25, 0.22), (0.6, 0), (0.6, 1)]), (False, [(0.25, 1), (0.95, 1)])),
    "2": (
        (True, [(0.02, 0.25), (0.2, 0.05), (0.5, 0), (0.85, 0.09), (0.95, 0.3), (0.72, 0.58),
                (0.35, 0.82), (0, 1)]),
        (False, [(0, 1), (1, 1)]),
    ),
    "3": (
        (True, [(0.04, 0.12), (0.45, 0), (0.86, 0.11), (0.85, 0.35), (0.38, 0.47)]),
        (True, [(0.38, 0.47), (0.9, 0.58), (0.95, 0.84), (0.5, 1), (0, 0.88)]),
    ),
    "4": ((False, [(0.7, 1), (0.7, 0), (0, 0.68), (1, 0.68)]),),
    "5": (
        (False, [(0.92, 0), (0.15, 0), (0.1, 0.45)]),
        (True, [(0.1, 0.45), (0.5, 0.37), (0.93, 0.52), (0.92, 0.84), (0.5, 1), (0.02, 0.9)]),
    ),
    "6": (
        (True, [(0.85, 0.02), (0.4, 0.2), (0.08, 0.55), (0.1, 0.86), (0.5, 1), (0.9, 0.86),
                (0.9, 0.6), (0.5, 0.48), (0.1, 0.68)]),
    ),
    "7": ((False, [(0, 0), (1, 0), (0.35, 1)]), (False, [(0.4, 0.5), (0.95, 0.5)])),
    "8": (
        (True, [(0.5, 0.47), (0.1, 0.3), (0.15, 0.07), (0.5, 0), (0.85, 0.07), (0.9, 0.3),
                (0.5, 0.47), (0.05, 0.66), (0.08, 0.9), (0.5, 1), (0.92, 0.9), (0.95, 0.66),
                (0.5, 0.47)]),
    ),
    "9": (
        (True, [(0.92, 0.3), (0.52, 0.52), (0.12, 0.4), (0.1, 0.13), (0.5, 0), (0.9, 0.13),
                (0.93, 0.4), (0.85, 0.72), (0.6, 1)]),
    ),
}  # fmt: skip


@functools.lru_cache(maxsize=1024)
def printed(character: str, typeface: str) -> Floats:
    """A glyph about 140 pixels high, trimmed to its ink."""
    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{typeface}.ttf"
    font = ImageFont.truetype(str(path), 192, layout_engine=ImageFont.Layout.BASIC)
    left, top, right, bottom = (round(edge) for edge in font.getbbox(character))
    page = Image.new("L", (right - left + 8, bottom - top + 8))
    ImageDraw.Draw(page).text((4 - left, 4 - top), character, fill=255, font=font)
    alpha = np.asarray(page, np.float32) / 255
    x1, y1, x2, y2 = ink_box(alpha >= 0.5, 0, 0)
    glyph = alpha[y1:y2, x1:x2].copy()
    glyph.setflags(write=False)  # shared by every picture
    return glyph


def hand_drawn(rng: Generator, digit: str, height: int) -> Floats:
    """A digit of that height in pixels, written with a round pen and an unsteady hand."""
    pen = rng.uniform(0.07, 0.18) * height
    reach = np.array([height * rng.uniform(0.45, 0.7) - pen, height - pen])
    fixed_point = 16  # OpenCV takes fractions of a pixel as integers: 4 bits
    page = np.zeros((height + 8, height + 8), np.uint8)
    for smooth, points in _STROKES[digit]:
        stroke = np.array(points) + rng.normal(0, 0.025, (len(points), 2))
        if smooth:
            stroke = spline(stroke)
        corners = np.clip(stroke * reach + pen / 2 + 4, 0, height + 8)
        cv2.polylines(
            page,
            [np.round(corners * fixed_point).astype(np.int32)],
            isClosed=False,
            color=255,
            thickness=max(1, round(pen)),
            lineType=cv2.LINE_AA,
            shift=4,
        )
    x1, y1, x2, y2 = ink_box(page >= 128, 0, 0)
    return page[y1:y2, x1:x2].astype(np.float32) / 255


def spline(points: NDArray[np.float64], steps: int = 8) -> NDArray[np.float64]:
    """Catmull-Rom curve through points `[P, 2]`."""
    padded = np.concatenate([points[:1], points, points[-1:]])
    before, start, end, after = padded[:-3], padded[1:-2], padded[2:-1], padded[3:]
    t = np.linspace(0, 1, steps)[:, None, None]
    curve = 0.5 * (
        2 * start
        + (end - before) * t
        + (2 * before - 5 * start + 4 * end - after) * t**2
        + (3 * start - 3 * end + after - before) * t**3
    )  # [steps, P-1, 2]
    return curve.transpose(1, 0, 2).reshape(-1, 2)


def warp(rng: Generator, master: Floats, height: int) -> Floats:
    """Scale a glyph to a height in pixels, then stretch, shear, tilt and turn it."""
    ratio = 2 * height / master.shape[0]
    if ratio < 1:  # average first: the warp itself reads only four pixels
        size = (max(2, round(master.shape[1] * ratio)), 2 * height)
        master = cv2.resize(master, size, interpolation=cv2.INTER_AREA)
    rows, columns = master.shape
    scale = height / rows
    turn = math.radians(rng.uniform(-MAX_TURN, MAX_TURN))
    cos, sin = math.cos(turn), math.sin(turn)
    stretch, shear = rng.uniform(0.85, 1.15), rng.uniform(-0.2, 0.2)
    tilt_x, tilt_y = rng.uniform(-0.15, 0.15, 2) / max(rows, columns)
    center = np.array([[1, 0, -columns / 2], [0, 1, -rows / 2], [0, 0, 1]])
    shape = np.array([[scale * stretch, scale * shear, 0], [0, scale, 0], [tilt_x, tilt_y, 1]])
    rotate = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])
    matrix = rotate @ shape @ center
    corners = np.array([[0, 0, 1], [columns, 0, 1], [columns, rows, 1], [0, rows, 1]]) @ matrix.T
    corners = corners[:, :2] / corners[:, 2:]
    low = corners.min(0) - 1 - rng.random(2)  # a random fraction: not all edges on the grid
    width_out, height_out = np.ceil(corners.max(0) - low + 1).astype(int)
    move = np.array([[1, 0, -low[0]], [0, 1, -low[1]], [0, 0, 1]])
    return cv2.warpPerspective(master, move @ matrix, (int(width_out), int(height_out)))


def outline(rng: Generator, inner: Floats, height: int) -> tuple[Floats, Floats]:
    """Give some shapes an edge: (alpha of shape and edge, alpha of the shape's own fill)."""
    kind = rng.random()
    if kind < 0.75 or height < 24:
        return inner, np.ones_like(inner)
    pen = max(2, round(height * rng.uniform(0.03, 0.06)))
    inner = cv2.copyMakeBorder(inner, pen, pen, pen, pen, cv2.BORDER_CONSTANT, value=0)
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * pen + 1, 2 * pen + 1))
    outer = cv2.dilate(inner, disc)
    if kind > 0.95 and height >= 40:  # hollow: the edge alone
        return outer * (1 - inner), np.ones_like(inner)
    return outer, inner
