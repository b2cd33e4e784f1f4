"""The Penn-Fudan pedestrians as COCO JSON.

Wang, Shi, Song and Shen, "Object Detection Combining Recognition and Segmentation", ACCV 2007;
files as in the readme.txt of the archive: `PNGImages/NAME.png`, and `PedMasks/NAME_mask.png` whose
pixels are 0 for background and otherwise the number of a pedestrian.

G pedestrians, H height, W width.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from detkit.files import write_atomically

VAL_SHARE = 5  # one picture of so many


def write_penn_fudan(root: Path) -> None:
    """Write `train.json` and `val.json` beside the pictures of an unpacked archive.

    Boxes are those of the masks, which hold every labelled pedestrian; the text files of
    `Annotation/` are not read. The data set has no split of its own: here the last fifth of each
    of its two places is for validation, so that neighbours are seldom on both sides.

    Args:
        root: the folder `PennFudanPed`.

    Raises:
        ValueError: pictures or masks are missing.
        OSError: one cannot be read, or the files not be written.
    """
    pictures = sorted((root / "PNGImages").glob("*.png"))
    if not pictures:
        raise ValueError(f"no pictures in {root / 'PNGImages'}; remove {root} and download again")
    train: list[Path] = []
    val: list[Path] = []
    for _, group in groupby(pictures, key=lambda picture: picture.stem.rstrip("0123456789")):
        place = list(group)
        first = len(place) - len(place) // VAL_SHARE
        train += place[:first]
        val += place[first:]
    for name, chosen in (("train", train), ("val", val)):
        write_atomically(root / f"{name}.json", json.dumps(_coco(root, chosen)))


def _coco(root: Path, pictures: Sequence[Path]) -> dict[str, Any]:
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id, picture in enumerate(pictures, start=1):
        file = root / "PedMasks" / f"{picture.stem}_mask.png"
        if not file.is_file():
            raise ValueError(f"no mask {file}; remove {root} and download again")
        with Image.open(file) as image:
            mask = np.asarray(image)
        height, width = mask.shape
        images.append({"id": image_id, "file_name": picture.name, "width": width, "height": height})
        boxes, areas = boxes_of_mask(mask)
        for box, area in zip(boxes.tolist(), areas.tolist(), strict=True):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": 1,
                    "bbox": box,
                    "area": area,
                    "iscrowd": 0,
                }
            )
    categories = [{"id": 1, "name": "pedestrian"}]
    return {"images": images, "annotations": annotations, "categories": categories}


def boxes_of_mask(mask: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The box around each number of a mask, and how many pixels it has.

    Args:
        mask: [H, W], 0 for background.

    Returns:
        Boxes [G, 4] x, y, w, h in pixels; areas [G]; both in the order of the numbers.
    """
    numbers = np.unique(mask)
    masks = mask == numbers[numbers > 0][:, None, None]  # [G, H, W]
    columns, rows = masks.any(axis=1), masks.any(axis=2)  # [G, W], [G, H]
    x1, y1 = columns.argmax(axis=1), rows.argmax(axis=1)
    x2 = columns.shape[1] - columns[:, ::-1].argmax(axis=1)
    y2 = rows.shape[1] - rows[:, ::-1].argmax(axis=1)
    return np.stack([x1, y1, x2 - x1, y2 - y1], axis=1), masks.sum(axis=(1, 2))
