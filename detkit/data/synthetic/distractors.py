"""What is drawn and not annotated: letters and shapes that no person takes for a digit."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.random import Generator

from detkit.data.synthetic.canvas import Canvas
from detkit.data.synthetic.colors import paint
from detkit.data.synthetic.digits import propose_corner, random_height
from detkit.data.synthetic.glyphs import TYPEFACES, outline, printed, spline, warp

# Left out, because turned or blurred they are digits to a person: BCDGIJLOQSZ bcdfgijlopqsyz <>.
DISTRACTORS = "AEFHKMNPRTUVWXYaehkmnrtuvwx#+*="


def draw_distractors(rng: Generator, canvas: Canvas) -> None:
    """Letters and shapes below the digits, none of them annotated."""
    for _ in range(rng.integers(0, 7)):
        if rng.random() < 0.6:
            _draw_letter(rng, canvas)
        else:
            _draw_shape(rng, canvas)


def _draw_letter(rng: Generator, canvas: Canvas) -> None:
    character = DISTRACTORS[rng.integers(len(DISTRACTORS))]
    master = printed(character, TYPEFACES[rng.integers(len(TYPEFACES))])
    height = random_height(rng, min(canvas.owner.shape))
    height = max(6, round(height * min(1, 1.5 * master.shape[0] / master.shape[1])))
    alpha, inner = outline(rng, warp(rng, master, height), height)
    x, y = propose_corner(rng, canvas, alpha.shape)
    color, _ = paint(rng, canvas, alpha, inner, x, y)
    canvas.blend(alpha, color, x, y)


def _draw_shape(rng: Generator, canvas: Canvas) -> None:
    """A scribble, frame, disc, triangle, long line or arc; no ring, which would be a 0."""
    height, width = canvas.owner.shape
    short = min(height, width)
    layer = canvas.pixels.copy()
    color = rng.integers(0, 256, 3).tolist()
    pen = max(1, round(short * rng.uniform(0.004, 0.02)))
    x, y = rng.uniform(0, width), rng.uniform(0, height)
    middle = (round(x), round(y))
    reach = short * rng.uniform(0.05, 0.2)
    kind = ("scribble", "frame", "disc", "triangle", "line", "arc")[rng.integers(6)]
    if kind == "scribble":
        points = np.array([x, y]) + np.cumsum(rng.normal(0, reach / 2, (9, 2)), 0)
        path = np.round(spline(points)).astype(np.int32)
        cv2.polylines(layer, [path], False, color, pen, cv2.LINE_AA)
    elif kind == "frame":
        corners = cv2.boxPoints(((x, y), (reach, reach * rng.uniform(1, 3)), rng.uniform(0, 180)))
        cv2.polylines(layer, [np.round(corners).astype(np.int32)], True, color, pen, cv2.LINE_AA)
    elif kind == "disc":
        cv2.circle(layer, middle, round(reach / 2), color, -1, cv2.LINE_AA)
    elif kind == "triangle":
        corners = np.array([x, y]) + rng.normal(0, reach, (3, 2))
        cv2.fillPoly(layer, [np.round(corners).astype(np.int32)], color, cv2.LINE_AA)
    elif kind == "line":
        ends = rng.uniform(0, 1, (2, 2)) * (width, height)
        ends[1] += (ends[1] - ends[0]) * 2  # through the border: a short line would be a 1
        cv2.polylines(layer, [np.round(ends).astype(np.int32)], False, color, pen, cv2.LINE_AA)
    else:
        begin = rng.uniform(0, 360)
        axes = np.round([reach, reach * rng.uniform(0.4, 1)]).astype(int).tolist()
        end = begin + rng.uniform(60, 170)
        cv2.ellipse(layer, middle, axes, rng.uniform(0, 180), begin, end, color, pen, cv2.LINE_AA)
    weight = rng.uniform(0.5, 1)
    canvas.pixels = cv2.addWeighted(layer, weight, canvas.pixels, 1 - weight, 0)
