"""Pictures with boxes drawn on them, small enough for a page that carries them all.

The pixels are a JPEG inside the page; the boxes above them stay vector graphics, so that their
lines and names are sharp and can be switched on and off. H and W are height and width in pixels.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PureWindowsPath
from typing import NamedTuple

import cv2
import numpy as np

from detkit.evaluation.inputs import CocoTruths, Floats
from detkit.evaluation.report.html import Markup, element, shorten

PICTURE_BYTES = 2_500_000  # of all JPEG files of a page; in base64 a third more
LONGEST_SIDE = 560
CROP_SIDE = 260
_QUALITY = 80
_CONTEXT = 0.6  # of the side of a box, shown around it on each side
_LEAST_CROP = 64


class Box(NamedTuple):
    """A box to draw.

    Attributes:
        xywh: in pixels of the picture.
        kind: `right`, `wrong`, `missed` or `truth`; a class of the style sheet.
        caption: beside the box, and its tooltip.
    """

    xywh: Sequence[float]
    kind: str
    caption: str


Window = tuple[int, int, int, int]  # left, top, right, bottom


def find_pictures(truths: CocoTruths, folder: str | Path | None) -> list[Path | None]:
    """The file of each image, `[I]`; None for all without a folder.

    None also where the ground truth names no file, or one that is not below the folder.
    """
    names = image_names(truths)
    if folder is None:
        return [None] * len(names)
    return [Path(folder) / name if name and _stays_inside(name) else None for name in names]


def image_names(truths: CocoTruths) -> list[str | None]:
    """The file name of each image as the ground truth has it, `[I]`; None where it has none."""
    records = truths.image_records()
    if records is None:
        return [None] * len(truths.image_ids)
    given = [record.get("file_name") for record in records]
    return [name if isinstance(name, str) else None for name in given]


def _stays_inside(name: str) -> bool:
    path = PureWindowsPath(name)  # it knows both slashes, and drives
    return not (path.drive or path.root or ".." in path.parts or "\0" in name)


@dataclass
class Album:
    """Reads pictures until the page is full, and counts what could not be shown.

    Attributes:
        files: `[I]` of the images; None where unknown.
        names: `[I]` as the page calls them.
        budget: bytes of JPEG that may still come.
        unreadable: names of the images whose files are missing or broken.
        left_out: how many pictures no longer fit.
    """

    files: Sequence[Path | None]
    names: Sequence[str]
    budget: int = PICTURE_BYTES
    unreadable: set[str] = field(default_factory=set)
    left_out: int = 0
    _shown: dict[tuple[int, Window, int], str] = field(default_factory=dict)  # their ids in a page

    def show(self, image: int, boxes: Iterable[Box], *, caption: str) -> Markup | None:
        """A whole picture with its boxes; None where it cannot be shown."""
        pixels = self._read(image)
        if pixels is None:
            return None
        height, width = pixels.shape[:2]
        return self._figure((image, (0, 0, width, height), LONGEST_SIDE), pixels, boxes, caption)

    def show_part(self, image: int, boxes: Sequence[Box], *, caption: str) -> Markup | None:
        """The part of a picture around some boxes; None where it cannot be shown."""
        pixels = self._read(image)
        if pixels is None:
            return None
        window = window_around(np.array([_drawable(box) for box in boxes]), pixels.shape[:2])
        return self._figure((image, window, CROP_SIDE), pixels, boxes, caption)

    def _read(self, image: int) -> np.ndarray | None:
        path = self.files[image]
        if path is None:
            return None
        if self.budget <= 0:
            self.left_out += 1
            return None
        pixels = read_pixels(path)
        if pixels is None:
            self.unreadable.add(self.names[image])
        return pixels

    def _figure(
        self,
        what: tuple[int, Window, int],
        pixels: np.ndarray,
        boxes: Iterable[Box],
        caption: str,
    ) -> Markup | None:
        """An image's window, with its longest side as large as the page shows it, and its boxes."""
        image, (left, top, right, bottom), longest = what
        scale = longest / max(right - left, bottom - top)
        width, height = max(1, round((right - left) * scale)), max(1, round((bottom - top) * scale))
        if what in self._shown:  # the page has it already
            picture = element("use", href=f"#{self._shown[what]}")
        else:
            # what is small is sent as it is: browsers enlarge as well
            stored = (width, height) if scale < 1 else (right - left, bottom - top)
            data = encode_jpeg(pixels[top:bottom, left:right], stored)
            if len(data) > self.budget:
                self.left_out += 1
                return None
            self.budget -= len(data)
            key = self._shown[what] = f"picture-{len(self._shown)}"
            source = f"data:image/jpeg;base64,{base64.b64encode(data).decode()}"
            picture = element("image", href=source, width=width, height=height, id=key)
        marks = [_mark(box, (left, top), scale, (width, height)) for box in boxes]
        view, name = f"0 0 {width} {height}", element("bdi", shorten(self.names[image]))
        return element(
            "figure",
            element("svg", picture, *marks, viewBox=view, class_="picture", role="img"),
            element("figcaption", element("bdi", shorten(caption)), element("br"), name),
        )


def read_pixels(path: Path) -> np.ndarray | None:
    """A picture as `[H, W, 3]` uint8 in BGR, upright; None where it is missing or broken."""
    try:
        data = np.fromfile(path, np.uint8) if path.is_file() else np.zeros(0, np.uint8)
        return cv2.imdecode(data, cv2.IMREAD_COLOR) if len(data) else None
    except (OSError, ValueError, cv2.error):
        return None


def encode_jpeg(pixels: np.ndarray, size: tuple[int, int]) -> bytes:
    """JPEG of `[H, W, 3]` BGR pixels, resized to (width, height)."""
    if size != (pixels.shape[1], pixels.shape[0]):
        pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    _, data = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
    return data.tobytes()


def window_around(boxes: np.ndarray, size: tuple[int, ...]) -> Window:
    """The square of a picture that shows some boxes and what is around them.

    Args:
        boxes: `[n, 4]` xywh, perhaps beyond the picture.
        size: (height, width) of the picture; what the square lacks there it has elsewhere.
    """
    limits = np.array(size[::-1])
    low, high = boxes[:, :2].min(axis=0), (boxes[:, :2] + boxes[:, 2:]).max(axis=0)
    side = max(_LEAST_CROP, (1 + 2 * _CONTEXT) * float((high - low).max()))
    sides = np.minimum(side, limits).round()
    start = np.clip((low + high - sides) / 2, 0, limits - sides).round()
    left, top, right, bottom = np.concatenate([start, start + sides]).astype(int).tolist()
    return left, top, right, bottom


def _mark(box: Box, origin: tuple[int, int], scale: float, size: tuple[int, int]) -> Markup:
    """A box in the drawing; of one that leaves it, what is inside and a little more."""
    x, y, w, h = _drawable(box)
    corners = (np.array([[x, y], [x + w, y + h]], float) - origin) * scale
    corners = np.clip(corners, -4, np.array(size) + 4).round(1)
    (x, y), (width, height) = corners[0].tolist(), np.ptp(corners, axis=0).round(1).tolist()
    text_x = min(max(x, 2.0), size[0] * 0.8)
    # what a truth is called stands below it: its detections carry theirs above
    text_y = y + height + 12 if box.kind == "truth" else y - 4 if y > 14 else y + 13
    text_y = min(max(text_y, 12.0), size[1] - 3.0)
    rectangle = element("rect", x=x, y=y, width=max(width, 1), height=max(height, 1))
    text = element("text", shorten(box.caption, 28), x=_short(text_x), y=_short(text_y))
    tooltip = element("title", shorten(box.caption))
    return element("g", tooltip, rectangle, text, class_=f"box {box.kind}")


def _drawable(box: Box) -> Floats:
    """The box with numbers that can be reckoned with, whatever the file says."""
    return np.clip(np.nan_to_num(np.asarray(box.xywh, float)), -1e6, 1e6)


def _short(value: float) -> str:
    return f"{value:.1f}"
