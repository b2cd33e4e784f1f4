"""Draw boxes with class and score on pictures.

H and W are the height and width of a picture, K the number of boxes on it.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import matplotlib
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from detkit.structures import Detections, Size, Target

Color = tuple[int, int, int]  # R, G and B in 0..255

_GOLDEN_RATIO = (math.sqrt(5) - 1) / 2
_BLACK, _WHITE = (0, 0, 0), (255, 255, 255)


def draw_detections(
    image: np.ndarray,
    detections: Detections,
    class_names: Sequence[str],
    *,
    threshold: float = 0.0,
    ids: Tensor | None = None,
) -> np.ndarray:
    """A copy of a picture with each detection's box, class and score; the best lie on top.

    Args:
        image: `[H, W, 3]` uint8, RGB; not changed.
        detections: in pixels of `image`.
        class_names: of labels `0..C-1`.
        threshold: only detections whose score is at least this.
        ids: `[K]`, which object each detection is; shown before its class, and in the colour.

    Returns:
        `[H, W, 3]` uint8, RGB.

    Raises:
        ValueError: `image` is something else.
    """
    visible = detections.scores >= threshold
    shown = detections[visible].to("cpu")
    captions = [
        f"{_class_name(class_names, label)} {score:.2f}"
        for label, score in zip(shown.labels.tolist(), shown.scores.tolist(), strict=True)
    ]
    if ids is None:
        return _draw_boxes(image, shown.boxes, shown.labels, captions)
    numbers = ids[visible].cpu()
    captions = [f"#{id} {text}" for id, text in zip(numbers.tolist(), captions, strict=True)]
    return _draw_boxes(image, shown.boxes, numbers, captions)


def draw_targets(image: np.ndarray, target: Target, class_names: Sequence[str]) -> np.ndarray:
    """A copy of a picture with the box and class of each truth.

    Args:
        image: `[H, W, 3]` uint8, RGB; not changed.
        target: in pixels of `image`.
        class_names: of labels `0..C-1`.

    Returns:
        `[H, W, 3]` uint8, RGB.

    Raises:
        ValueError: `image` is something else.
    """
    target = target.to("cpu")
    captions = [
        _class_name(class_names, label) + (" (crowd)" if crowd else "")
        for label, crowd in zip(target.labels.tolist(), target.crowd.tolist(), strict=True)
    ]
    return _draw_boxes(image, target.boxes, target.labels, captions)


def contact_sheet(
    images: Sequence[np.ndarray], columns: int = 4, *, gap: int = 8, background: Color = _WHITE
) -> np.ndarray:
    """Pictures in rows on one sheet, each centred in a cell as large as the largest of them.

    Args:
        images: `[H, W, 3]` uint8, RGB, of any sizes.
        columns: pictures in a row.
        gap: pixels between cells and around them.
        background: what shows between the pictures.

    Returns:
        `[H, W, 3]` uint8, RGB.

    Raises:
        ValueError: no picture, or less than one column.
    """
    if not images or columns < 1:
        raise ValueError(
            f"a contact sheet needs a picture and a column, got {len(images)} and {columns}"
        )
    columns = min(columns, len(images))
    height = max(image.shape[0] for image in images) + gap
    width = max(image.shape[1] for image in images) + gap
    rows = -(-len(images) // columns)
    sheet = np.full((rows * height + gap, columns * width + gap, 3), background, dtype=np.uint8)
    for index, image in enumerate(images):
        row, column = divmod(index, columns)
        top = row * height + gap + (height - gap - image.shape[0]) // 2
        left = column * width + gap + (width - gap - image.shape[1]) // 2
        sheet[top : top + image.shape[0], left : left + image.shape[1]] = image
    return sheet


def class_color(label: int) -> Color:
    """The colour of a class: always the same, and far from those of its neighbours.

    Hues step by the golden ratio, which never repeats and fills the circle evenly.
    """
    hue = (label * _GOLDEN_RATIO) % 1.0
    value = (1.0, 0.75)[label // 8 % 2]  # after eight hues they come close
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.85, value)
    return round(red * 255), round(green * 255), round(blue * 255)


def text_color(background: Color) -> Color:
    """Black or white, whichever has the higher contrast (WCAG 2.1, relative luminance)."""
    linear = [
        channel / 12.92 if channel <= 0.04045 else ((channel + 0.055) / 1.055) ** 2.4
        for channel in (value / 255 for value in background)
    ]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    # the contrasts (1.05 / (L + 0.05)) and ((L + 0.05) / 0.05) are equal at L = 0.179
    return _BLACK if luminance > 0.179 else _WHITE


def _draw_boxes(
    image: np.ndarray, boxes: Tensor, labels: Tensor, captions: Sequence[str]
) -> np.ndarray:
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(
            f"can draw on [H, W, 3] uint8 RGB, got {list(image.shape)} {image.dtype}; "
            "convert it first"
        )
    size = (image.shape[0], image.shape[1])
    clipped, visible = _inside(boxes, size)
    if not visible:
        return image.copy()
    line_width, font = _line_width(size), _font(_font_size(size))
    picture = Image.fromarray(image)  # a copy
    draw = ImageDraw.Draw(picture)
    colors = [class_color(label) for label in labels.tolist()]
    for index in reversed(visible):
        draw.rectangle(clipped[index], outline=colors[index], width=line_width)
    for index in reversed(visible):  # after all boxes: no line crosses a text
        _draw_caption(draw, captions[index], clipped[index], colors[index], font)
    return np.array(picture)


def _inside(boxes: Tensor, size: Size) -> tuple[list[tuple[int, ...]], list[int]]:
    """Boxes as pixel indices clipped to the picture, and which of them have a part in it."""
    height, width = size
    limits = torch.tensor([width, height, width, height])
    x1, y1, x2, y2 = boxes.unbind(1)
    visible = (
        boxes.isfinite().all(dim=1)
        & (x2 >= x1) & (y2 >= y1) & (x2 > 0) & (y2 > 0) & (x1 < width) & (y1 < height)
    )  # fmt: skip
    pixels = torch.minimum(boxes.nan_to_num().clamp(min=0), limits)
    pixels[:, 2:] -= 1  # x2 = W is the edge of the last pixel, whose index is W - 1
    pixels = pixels.round().long()
    pixels[:, 2:] = torch.maximum(pixels[:, 2:], pixels[:, :2])
    pixels = torch.minimum(pixels, limits - 1)
    return [tuple(box) for box in pixels.tolist()], visible.nonzero().flatten().tolist()


def _draw_caption(
    draw: ImageDraw.ImageDraw,
    caption: str,
    box: tuple[int, ...],
    color: Color,
    font: ImageFont.FreeTypeFont,
) -> None:
    """Text on a filled box above the detection, or inside it where there is no room above."""
    width, height = draw.im.size
    ascent, descent = font.getmetrics()
    margin = max(1, ascent // 6)
    text_width, text_height = math.ceil(font.getlength(caption)), ascent + descent
    if 2 * text_height > min(width, height):
        return  # it would hide the picture
    x, y = box[0], box[1] - text_height
    if y < 0:
        y = box[1]
    x = max(0, min(x, width - text_width - 2 * margin))
    y = max(0, min(y, height - text_height))
    draw.rectangle((x, y, x + text_width + 2 * margin - 1, y + text_height - 1), fill=color)
    draw.text((x + margin, y), caption, fill=text_color(color), font=font)


def _class_name(class_names: Sequence[str], label: int) -> str:
    """The name where the font has all its characters: a number tells more than empty squares."""
    if 0 <= label < len(class_names) and all(map(_has_glyph, class_names[label])):
        return class_names[label]
    return f"class {label}"


@lru_cache(maxsize=4096)
def _has_glyph(character: str) -> bool:
    if character.isascii():
        return True
    font = _font(16)
    missing = "\U0010ffff"  # never a character
    return bytes(font.getmask(character)) != bytes(font.getmask(missing))


def _line_width(size: Size) -> int:
    return max(1, round(sum(size) / 2 * 0.005))


def _font_size(size: Size) -> int:
    return max(9, round(sum(size) / 2 * 0.024))  # smaller ones cannot be read


@lru_cache(maxsize=16)
def _font(size: int) -> ImageFont.FreeTypeFont:
    # Comes with matplotlib everywhere, and knows far more scripts than OpenCV's fonts
    path = Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
    return ImageFont.truetype(str(path), size)
