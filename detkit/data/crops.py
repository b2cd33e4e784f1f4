"""The boxes of a data set as small pictures to classify.

N crops, B of them in a batch, C channels, s and S sides in pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from detkit.data.dataset import CocoDataset

GREY = 128  # of what lies beside a crop


@dataclass(frozen=True, slots=True)
class Crops:
    """Crops that lie in memory.

    Attributes:
        images: `[N, C, s, s]` uint8; RGB, or one channel of grey.
        labels: `[N]` int64 in `0..K-1`.
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


def crop_boxes(
    dataset: CocoDataset, *, size: int, context: float = 0.0, grey: bool = False
) -> Crops:
    """Cut every box out of its picture as a square; regions that mark a crowd are left out.

    Args:
        dataset: whose pictures are read one after the other.
        size: s.
        context: margin on each side, as a share of the longer side of the box.
        grey: one channel in place of three.

    Raises:
        ImageReadError: a picture cannot be used.
        ValueError: a number is out of its range.
    """
    if size < 1 or context < 0:
        raise ValueError(f"size {size} must be at least 1 and context {context} at least 0")
    channels = 1 if grey else 3
    images, labels = [np.zeros((0, size, size, channels), np.uint8)], [np.zeros(0, np.int64)]
    for index in range(len(dataset)):
        sample = dataset[index]
        picture = sample.image
        if grey:
            picture = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)[..., None]
        kept = ~sample.crowd
        cut = [_cut(picture, box, size=size, context=context) for box in sample.boxes[kept]]
        images.append(np.array(cut, np.uint8).reshape(-1, size, size, channels))
        labels.append(sample.labels[kept])
    stacked = torch.from_numpy(np.concatenate(images)).permute(0, 3, 1, 2).contiguous()
    return Crops(stacked, torch.from_numpy(np.concatenate(labels)))


def _cut(picture: np.ndarray, box: np.ndarray, *, size: int, context: float) -> np.ndarray:
    """The square around a box in whole pixels, grey where it leaves the picture."""
    width, height = box[2:] - box[:2]
    side = max(round(float(max(width, height)) * (1 + 2 * context)), 1)
    left, top = (int(corner) for corner in np.round((box[:2] + box[2:] - side) / 2))
    square = np.full((side, side, picture.shape[2]), GREY, np.uint8)
    x1, y1 = max(left, 0), max(top, 0)
    inside = picture[y1 : max(top + side, 0), x1 : max(left + side, 0)]
    square[y1 - top :, x1 - left :][: inside.shape[0], : inside.shape[1]] = inside
    method = cv2.INTER_AREA if side > size else cv2.INTER_LINEAR
    return cv2.resize(square, (size, size), interpolation=method)


def place_on_canvas(
    crops: Tensor, size: int, *, clutter: int, generator: torch.Generator
) -> Tensor:
    """Put each crop at a random place of a grey canvas, among pieces of other crops.

    Translated and cluttered digits as in "Recurrent models of visual attention" (section 4.1;
    there 28 pixels on a canvas of 60, with four pieces of 8 by 8), to be found before being read.

    Args:
        crops: `[B, C, s, s]`.
        size: S, at least s.
        clutter: how many pieces, of side 2s / 7, lie under each crop.
        generator: of places and pieces, on the CPU.

    Returns:
        `[B, C, S, S]` of the crops' type.

    Raises:
        ValueError: the canvas is smaller than a crop.
    """
    batch, channels, side, _ = crops.shape
    if size < side:
        raise ValueError(f"a canvas of {size} pixels is too small for crops of {side}")
    canvas = crops.new_full((batch, channels, size, size), GREY)
    piece = max(side * 2 // 7, 1)
    others = torch.randint(max(batch, 1), (batch, clutter), generator=generator).tolist()
    sources = _corners((batch, clutter), side - piece, generator)
    places = _corners((batch, clutter), size - piece, generator)
    for row, picture in enumerate(canvas):
        for other, (x, y), (left, top) in zip(others[row], sources[row], places[row], strict=True):
            cut = crops[other, :, y : y + piece, x : x + piece]
            picture[:, top : top + piece, left : left + piece] = cut
    for picture, crop, (left, top) in zip(
        canvas, crops, _corners((batch,), size - side, generator), strict=True
    ):
        picture[:, top : top + side, left : left + side] = crop
    return canvas


def _corners(shape: tuple[int, ...], largest: int, generator: torch.Generator) -> Any:
    """(x, y) for each place of `shape`, each from 0 to `largest`."""
    return torch.randint(largest + 1, (*shape, 2), generator=generator).tolist()
