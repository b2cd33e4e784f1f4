"""The built-in data set: digits on busy pictures, generated from a seed, nothing to download.

Ten classes, the digits "0".."9", in 21 typefaces and a hand-drawn one, turned, sheared, filled in
several ways, overlapping and cut off by the border, over textures and blurred scenes, among letters
and shapes that are not annotated. Written as JPEG files and one COCO JSON file, so that it is read
like any other data set.

An image is a pure function of (seed, split, index, size): any image can be drawn again alone, and
a set of 100 images is the beginning of a set of 1000. Pictures are BGR uint8 as in OpenCV; a shape
is an alpha mask `[h, w]` in 0..1 whose ink is where alpha is at least one half. H and W are the
size of the image, M the number of digits in it.
"""

from __future__ import annotations

import functools
import json
import math
import os
import shutil
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import matplotlib
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from detkit.structures import Size

VERSION = 1  # part of the folder name: raise it with every change that alters a picture or a box
CLASS_NAMES = tuple("0123456789")
SPLITS = ("train", "val", "test")  # the position seeds the split: append only
MIN_SIDE = 64  # below it the smallest readable digit would already be a large one

EMPTY_SHARE = 0.03  # of the images, background and distractors only
MAX_DIGITS = 12
DIGIT_HEIGHT = (0.08, 0.5)  # of the short side, before the digit is turned
MIN_DIGIT_PIXELS = 14  # a person still reads it after JPEG
MAX_TURN = 30.0  # degrees; 6 and 9, 1 and 7 stay what they are
HAND_DRAWN_SHARE = 0.25
MIN_INSIDE = 0.8  # of the ink, at the border of the image; an 8 cut deeper is a 3
MAX_HIDDEN = 0.25  # of the ink, by digits drawn later
MAX_OVERLAP = 0.3  # IoU of two boxes
CONTRAST = (32.0, 80.0)  # distance to the surroundings in CIELAB, a* and b* weighing less

# Left out, because turned or blurred they are digits to a person: BCDGIJLOQSZ bcdfgijlopqsyz <>.
DISTRACTORS = "AEFHKMNPRTUVWXYaehkmnrtuvwx#+*="
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

# OpenCV's stubs promise no dtype, so these two names are for the reader.
Pixels = NDArray[Any]  # uint8
Floats = NDArray[Any]  # float32
Truth = tuple[list[list[int]], list[int]]  # boxes xyxy and labels of one image


class SyntheticPaths(NamedTuple):
    """Where a written split lies."""

    annotations_json_path: Path
    images_folder: Path


@dataclass(frozen=True, slots=True)
class Scene:
    """One picture and its truth.

    Attributes:
        image: `[H, W, 3]` BGR.
        boxes: `[M, 4]` xyxy in whole pixels, tight around the ink inside the image.
        labels: `[M]` in 0..9.
    """

    image: Pixels
    boxes: NDArray[np.int64]
    labels: NDArray[np.int64]


def default_cache() -> Path:
    """The folder for generated data: $DETKIT_CACHE, else detkit in the user's cache folder."""
    if given := os.environ.get("DETKIT_CACHE"):
        return Path(given).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "detkit"


# ---------------------------------------------------------------------------------------------
# Files


def write_synthetic(
    root: Path, *, split: str, num_images: int, seed: int, image_size: Size = (256, 256)
) -> SyntheticPaths:
    """Write one split below `root`, unless it is already there.

    Several processes may call this at once: each writes a private folder and the first to finish
    renames it into place, so a folder with the final name and its JSON file is complete.

    Args:
        root: folder that holds the generated sets; created when missing.
        split: "train", "val" or "test"; splits of one seed share no image.
        num_images: how many images, at least 1.
        seed: any integer from 0.
        image_size: (height, width) in pixels, each at least 64.

    Raises:
        ValueError: a parameter is out of its range.
    """
    _check_parameters(split, num_images, seed, image_size)
    height, width = image_size
    name = f"digits-v{VERSION}-{split}-{num_images}-seed{seed}-{height}x{width}"
    folder = Path(root) / name
    paths = SyntheticPaths(folder / "annotations.json", folder / "images")
    if paths.annotations_json_path.is_file():
        return paths
    private = Path(root) / f".{name}.{uuid.uuid4().hex}"
    (private / "images").mkdir(parents=True)
    try:
        _write_split(private, split=split, num_images=num_images, seed=seed, image_size=image_size)
        _publish(private, folder)
    finally:
        shutil.rmtree(private, ignore_errors=True)
    return paths


def _check_parameters(split: str, num_images: int, seed: int, image_size: Size) -> None:
    if split not in SPLITS:
        raise ValueError(f"split {split!r} is not one of {', '.join(SPLITS)}")
    if num_images < 1:
        raise ValueError(f"num_images is {num_images}, give at least 1")
    if seed < 0:
        raise ValueError(f"seed is {seed}, give an integer from 0")
    if len(image_size) != 2 or min(image_size) < MIN_SIDE:
        raise ValueError(
            f"image_size is {tuple(image_size)}, give (height, width) of at least {MIN_SIDE} each"
        )


def _write_split(folder: Path, *, split: str, num_images: int, seed: int, image_size: Size) -> None:
    def write_image(index: int) -> Truth:
        rng = _generator(seed, split, index)
        scene = _draw_scene(rng, image_size)
        quality = int(rng.integers(70, 96))
        encoded = cv2.imencode(".jpg", scene.image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
        (folder / "images" / _file_name(index)).write_bytes(encoded.tobytes())
        return scene.boxes.tolist(), scene.labels.tolist()

    # Threads, not processes: OpenCV works outside the interpreter lock, and a caller who holds
    # locks or a GPU must not be forked.
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        truths = list(pool.map(write_image, range(num_images)))
    document = _coco_document(truths, image_size)
    document["info"] = {"description": "detkit digits", "version": str(VERSION), "seed": seed}
    (folder / "annotations.json").write_text(json.dumps(document))


def _publish(private: Path, folder: Path) -> None:
    try:
        os.rename(private, folder)
    except OSError:
        if (folder / "annotations.json").is_file():
            return  # another process was first, with the same bytes
        if not folder.is_dir():
            raise
        # An incomplete folder bears the name. File by file, the JSON last, so that nothing a
        # third process might read is ever missing or half written.
        (folder / "images").mkdir(exist_ok=True)
        for path in sorted((private / "images").iterdir()):
            os.replace(path, folder / "images" / path.name)
        os.replace(private / "annotations.json", folder / "annotations.json")


def _file_name(index: int) -> str:
    return f"{index + 1:06d}.jpg"


def _coco_document(truths: list[Truth], image_size: Size) -> dict[str, Any]:
    """COCO's annotation file as a dictionary: all ids from 1, category id = digit + 1."""
    height, width = image_size
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index, (boxes, labels) in enumerate(truths):
        name = _file_name(index)
        images.append({"id": index + 1, "file_name": name, "width": width, "height": height})
        for (x1, y1, x2, y2), label in zip(boxes, labels, strict=True):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": index + 1,
                    "category_id": label + 1,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": (x2 - x1) * (y2 - y1),
                    "iscrowd": 0,
                }
            )
    categories = [{"id": label + 1, "name": name} for label, name in enumerate(CLASS_NAMES)]
    return {"images": images, "annotations": annotations, "categories": categories}


# ---------------------------------------------------------------------------------------------
# The scene


def render_scene(*, split: str, index: int, seed: int, image_size: Size = (256, 256)) -> Scene:
    """Draw one image of a split, as it is before JPEG compression.

    Args:
        split: "train", "val" or "test".
        index: position in the split, from 0 (its image id less one).
        seed: any integer from 0.
        image_size: (height, width) in pixels, each at least 64.

    Raises:
        ValueError: a parameter is out of its range.
    """
    _check_parameters(split, index + 1, seed, image_size)
    return _draw_scene(_generator(seed, split, index), image_size)


def _generator(seed: int, split: str, index: int) -> Generator:
    return np.random.default_rng(np.random.SeedSequence([seed, SPLITS.index(split), index]))


def _draw_scene(rng: Generator, image_size: Size) -> Scene:
    canvas = Canvas(_background(rng, image_size))
    _draw_distractors(rng, canvas)
    if rng.random() >= EMPTY_SHARE:
        # Squared, so that few digits are more frequent than many.
        count = 1 + int(MAX_DIGITS * rng.random() ** 2)
        for _ in range(count):
            _draw_digit(rng, canvas)
    return Scene(
        _photograph(rng, canvas.pixels),
        np.array(canvas.boxes, np.int64).reshape(-1, 4),
        np.array(canvas.labels, np.int64),
    )


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
        box = _ink_box(inside, here[1].start, here[0].start)
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
        self.boxes.append(_ink_box(inside, here[1].start, here[0].start))
        self.ink.append(int(inside.sum()))
        self.owner[here][inside] = len(self.labels)


def _ink_box(ink: NDArray[np.bool_], left: int, top: int) -> tuple[int, int, int, int]:
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


def _draw_digit(rng: Generator, canvas: Canvas) -> None:
    """Add one digit, or none when no free place turns up."""
    label = int(rng.integers(len(CLASS_NAMES)))
    height = _digit_height(rng, min(canvas.owner.shape))
    if rng.random() < HAND_DRAWN_SHARE:
        master = _hand_drawn(rng, CLASS_NAMES[label], 2 * height)
    else:
        master = _printed(CLASS_NAMES[label], TYPEFACES[rng.integers(len(TYPEFACES))])
    inner = _warp(rng, master, height)
    alpha, inner = _outline(rng, inner, height)
    ink = alpha >= 0.5
    for _ in range(12):
        x, y = _propose_corner(rng, canvas, alpha.shape)
        if not canvas.has_room(ink, x, y):
            continue
        color, contrast = _paint(rng, canvas, alpha, inner, x, y)
        if contrast >= CONTRAST[0]:
            canvas.add_digit(label, alpha, color, x, y)
            return


def _digit_height(rng: Generator, short_side: int) -> int:
    """Log-uniform: as many digits between 20 and 40 pixels as between 40 and 80."""
    low = max(DIGIT_HEIGHT[0] * short_side, MIN_DIGIT_PIXELS)
    high = DIGIT_HEIGHT[1] * short_side
    return round(low * (high / low) ** rng.random())


def _propose_corner(rng: Generator, canvas: Canvas, shape: Size) -> tuple[int, int]:
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


# ---------------------------------------------------------------------------------------------
# Glyphs


@functools.lru_cache(maxsize=1024)
def _printed(character: str, typeface: str) -> Floats:
    """A glyph about 140 pixels high, trimmed to its ink."""
    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{typeface}.ttf"
    font = ImageFont.truetype(str(path), 192, layout_engine=ImageFont.Layout.BASIC)
    left, top, right, bottom = (round(edge) for edge in font.getbbox(character))
    page = Image.new("L", (right - left + 8, bottom - top + 8))
    ImageDraw.Draw(page).text((4 - left, 4 - top), character, fill=255, font=font)
    alpha = np.asarray(page, np.float32) / 255
    x1, y1, x2, y2 = _ink_box(alpha >= 0.5, 0, 0)
    glyph = alpha[y1:y2, x1:x2].copy()
    glyph.setflags(write=False)  # shared by every picture
    return glyph


def _hand_drawn(rng: Generator, digit: str, height: int) -> Floats:
    """A digit of that height in pixels, written with a round pen and an unsteady hand."""
    pen = rng.uniform(0.07, 0.18) * height
    reach = np.array([height * rng.uniform(0.45, 0.7) - pen, height - pen])
    fixed_point = 16  # OpenCV takes fractions of a pixel as integers: 4 bits
    page = np.zeros((height + 8, height + 8), np.uint8)
    for smooth, points in _STROKES[digit]:
        stroke = np.array(points) + rng.normal(0, 0.025, (len(points), 2))
        if smooth:
            stroke = _spline(stroke)
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
    x1, y1, x2, y2 = _ink_box(page >= 128, 0, 0)
    return page[y1:y2, x1:x2].astype(np.float32) / 255


def _spline(points: NDArray[np.float64], steps: int = 8) -> NDArray[np.float64]:
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


def _warp(rng: Generator, master: Floats, height: int) -> Floats:
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


def _outline(rng: Generator, inner: Floats, height: int) -> tuple[Floats, Floats]:
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


# ---------------------------------------------------------------------------------------------
# Colour


def _paint(
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
        value = _enlarge(rng.uniform(-1, 1, cells), shape)
    else:
        angle = rng.uniform(0, 2 * math.pi)
        rows = np.linspace(-1, 1, shape[0], dtype=np.float32)[:, None]
        columns = np.linspace(-1, 1, shape[1], dtype=np.float32)
        value = rows * np.float32(math.sin(angle)) + columns * np.float32(math.cos(angle))
    return value * np.float32(rng.uniform(10, 35))


def _palette(rng: Generator, count: int) -> Floats:
    """Colours `[count, 3]` that belong together: related hues, mostly muted."""
    hues = (rng.uniform(0, 180) + rng.normal(0, rng.choice([8, 25, 60]), count)) % 180
    saturation = np.clip(rng.uniform(10, 200) + rng.normal(0, 30, count), 0, 255)
    values = np.clip(rng.uniform(70, 200) + rng.normal(0, rng.uniform(10, 60), count), 15, 250)
    hsv = np.stack([hues, saturation, values], 1).astype(np.uint8)
    return cv2.cvtColor(hsv[None], cv2.COLOR_HSV2BGR)[0].astype(np.float32)


# ---------------------------------------------------------------------------------------------
# Backgrounds: each takes (rng, (height, width)) and gives [H, W, 3] float32 in about 0..255


def _background(rng: Generator, size: Size) -> Pixels:
    kind = _BACKGROUNDS[rng.integers(len(_BACKGROUNDS))]
    picture = kind(rng, size)
    light = _gradient(rng, size) if rng.random() < 0.5 else _clouds(rng, size, octaves=2)
    darkest = rng.uniform(0.5, 1)
    picture = picture * (darkest + (1.1 - darkest) * light)[..., None]
    return np.clip(picture, 0, 255).astype(np.uint8)


def _enlarge(grid: NDArray[Any], size: Size) -> Floats:
    return cv2.resize(grid.astype(np.float32), (size[1], size[0]), interpolation=cv2.INTER_CUBIC)


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
        value = _enlarge(value, cells) + decay**octave * rng.uniform(-1, 1, cells)
    return _normalize(_enlarge(value, size))


def _colorize(rng: Generator, value: Floats) -> Floats:
    """Map scalars 0..1 `[H, W]` through a ramp of colours."""
    colors = _palette(rng, int(rng.integers(2, 5)))
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
    picture = _palette(rng, count + 1)[labels]
    return picture + 30 * (_clouds(rng, size)[..., None] - 0.5)


def _room(rng: Generator, size: Size) -> Floats:
    """Large overlapping planes with texture, partly out of focus: something like a photograph."""
    height, width = size
    picture = _marble(rng, size)
    colors = _palette(rng, 12)
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
    for color in _palette(rng, int(rng.integers(8, 30))):
        lights = picture.copy()
        center = (int(rng.integers(small[1])), int(rng.integers(small[0])))
        cv2.circle(
            lights, center, max(2, int(rng.uniform(0.03, 0.2) * min(small))), color.tolist(), -1
        )
        picture = cv2.addWeighted(picture, 0.4, lights, 0.6, 0)
    return _enlarge(cv2.GaussianBlur(picture, (0, 0), rng.uniform(0.7, 2)), size)


_BACKGROUNDS: tuple[Callable[[Generator, Size], Floats], ...] = (
    _smooth, _marble, _marble, _fabric, _cells, _room, _room, _bokeh,
)  # fmt: skip


# ---------------------------------------------------------------------------------------------
# Distractors and camera


def _draw_distractors(rng: Generator, canvas: Canvas) -> None:
    """Letters and shapes below the digits, none of them annotated."""
    for _ in range(rng.integers(0, 7)):
        if rng.random() < 0.6:
            _draw_letter(rng, canvas)
        else:
            _draw_shape(rng, canvas)


def _draw_letter(rng: Generator, canvas: Canvas) -> None:
    character = DISTRACTORS[rng.integers(len(DISTRACTORS))]
    master = _printed(character, TYPEFACES[rng.integers(len(TYPEFACES))])
    height = _digit_height(rng, min(canvas.owner.shape))
    height = max(6, round(height * min(1, 1.5 * master.shape[0] / master.shape[1])))
    alpha, inner = _outline(rng, _warp(rng, master, height), height)
    x, y = _propose_corner(rng, canvas, alpha.shape)
    color, _ = _paint(rng, canvas, alpha, inner, x, y)
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
        path = np.round(_spline(points)).astype(np.int32)
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


def _photograph(rng: Generator, pixels: Pixels) -> Pixels:
    """A camera's faults: slight blur, grain, exposure."""
    sigma = rng.uniform(0, 0.8)
    if sigma > 0.3:  # a narrower one changes nothing
        pixels = cv2.GaussianBlur(pixels, (0, 0), sigma)
    # The difference of two random bytes: much faster than a normal number, standard deviation 104.
    noise = np.frombuffer(rng.bytes(2 * pixels.size), np.uint8).reshape(2, *pixels.shape)
    grain = cv2.subtract(noise[0], noise[1], dtype=cv2.CV_16S)
    gain, offset, strength = rng.uniform(0.8, 1.15), rng.uniform(-12, 12), rng.uniform(0, 9)
    return cv2.addWeighted(pixels, gain, grain, strength / 104, offset, dtype=cv2.CV_8U)
