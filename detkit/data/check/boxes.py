"""Whether boxes can be meant: pure functions on arrays, and what they find.

G boxes, xywh in pixels; the size of a picture is (height, width), 0 where it is not known.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from detkit.data.check.findings import Finding
from detkit.data.check.records import NOWHERE, Records
from detkit.data.transforms import resized_shape
from detkit.structures import Size

TOLERANCE = 0.01  # pixels; what leaves a picture by less is rounding in the file
_MANY = 0.1  # of the boxes leave their pictures when corners are mistaken for sides
_MOST = 0.99  # of boxes that are corners look like some


def box_faults(boxes: np.ndarray, sizes: np.ndarray) -> dict[str, np.ndarray]:
    """Masks `[G]` by the code of the finding; a box has at most one of these faults.

    Args:
        boxes: `[G, 4]` float64 xywh.
        sizes: `[G, 2]` int64 (height, width) of the picture of each.
    """
    sides = boxes[:, 2:]
    negative = (sides < 0).any(axis=1)
    degenerate = (sides == 0).any(axis=1) & ~negative
    valid = ~negative & ~degenerate
    known = (sizes > 0).all(axis=1) & valid
    limits = sizes[:, ::-1]  # width, height
    start, end = boxes[:, :2], boxes[:, :2] + sides
    outside = known & ((start >= limits) | (end <= 0)).any(axis=1)
    leaves = ((start < -TOLERANCE) | (end > limits + TOLERANCE)).any(axis=1)
    return {
        "box_negative": negative,
        "box_degenerate": degenerate,
        "box_outside": outside,
        "box_clipped": known & leaves & ~outside,
    }


def look_like_corners(boxes: np.ndarray, sizes: np.ndarray) -> bool:
    """Whether boxes are x1, y1, x2, y2 rather than x, y, width, height.

    Many leave their pictures, nearly all would lie inside as corners, and in nearly all the third
    number is larger than the first and the fourth than the second, which chance does not bring.
    """
    known = (sizes > 0).all(axis=1)
    boxes, limits = boxes[known], sizes[known][:, ::-1]
    if not len(boxes):
        return False
    leaves = (boxes[:, :2] + boxes[:, 2:] > limits + 1).any(axis=1)
    ordered = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
    fits = ordered & (boxes[:, 2:] <= limits + 1).all(axis=1)
    return bool(leaves.mean() > _MANY and leaves.sum() > 1 and fits.mean() >= _MOST)


def look_like_fractions(boxes: np.ndarray, sizes: np.ndarray) -> bool:
    """Whether boxes are in 0..1, parts of the sides of their pictures, and not in pixels."""
    known = (sizes > 1).all(axis=1)
    return bool(known.sum() > 1 and (np.abs(boxes[known]) <= 1).all())


def fractions_as_pixels(boxes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Parts of the sides of pictures (height, width) `[G, 2]` to pixels, `[G, 4]` xywh."""
    return boxes * np.tile(sizes[:, ::-1], 2)


def corners_as_sides(boxes: np.ndarray) -> np.ndarray:
    """x1, y1, x2, y2 to x, y, width, height, `[G, 4]`."""
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)


def repeats(columns: np.ndarray) -> np.ndarray:
    """Mask `[G]` of the rows that an earlier row equals.

    Args:
        columns: `[G, K]` float64.
    """
    order = np.lexsort(columns.T[::-1])  # stable: equal rows stay in their order
    ordered = columns[order]
    repeated = np.zeros(len(columns), dtype=bool)
    repeated[order[1:]] = (ordered[1:] == ordered[:-1]).all(axis=1)
    return repeated


def resized_sides(
    boxes: np.ndarray, sizes: np.ndarray, resize: tuple[int | None, int | None]
) -> np.ndarray:
    """(height, width) `[G, 2]` of boxes in pixels of the resized pictures.

    Args:
        boxes: `[G, 4]` xywh.
        sizes: `[G, 2]` (height, width) of the picture of each, above 0.
        resize: limits of the shortest and of the longest side, see `resized_shape`.
    """
    shortest, longest = resize
    kinds, kind_of = np.unique(sizes, axis=0, return_inverse=True)
    resized = np.array(
        [resized_shape(h, w, shortest=shortest, longest=longest) for h, w in kinds.tolist()]
    ).reshape(-1, 2)
    growth = (resized / np.maximum(kinds, 1))[kind_of.reshape(-1)]
    return boxes[:, :1:-1] * growth


def sizes_of_boxes(records: Records, sizes: np.ndarray) -> np.ndarray:
    """`[G, 2]` (height, width) of the picture of each box; 0 where there is none."""
    padded = np.concatenate([sizes, np.zeros((1, 2), np.int64)])  # NOWHERE is the last
    return np.maximum(padded[records.image_index], 0)


def check_boxes(
    records: Records,
    sizes: np.ndarray,
    *,
    resize: tuple[int | None, int | None] = (None, None),
) -> Iterator[Finding]:
    """Boxes without area, outside, repeated, tiny, the whole picture, of corners or fractions.

    Args:
        records: whose boxes.
        sizes: `[N, 2]` (height, width) of the pictures.
        resize: limits of the shortest and of the longest side in training.
    """
    boxes, of_boxes = records.boxes, sizes_of_boxes(records, sizes)
    fractions = look_like_fractions(boxes, of_boxes)
    yield records.of_boxes("boxes_are_fractions", np.full(len(boxes), fractions))
    if fractions:
        boxes = fractions_as_pixels(boxes, of_boxes)
    corners = look_like_corners(boxes, of_boxes)
    yield records.of_boxes("boxes_are_corners", np.full(len(boxes), corners))
    if corners:
        boxes = corners_as_sides(boxes)
    faults = box_faults(boxes, of_boxes)
    for code, found in faults.items():
        yield records.of_boxes(code, found)
    sound = (boxes[:, 2:] > 0).all(axis=1) & (of_boxes > 0).all(axis=1) & ~faults["box_outside"]
    tiny = np.zeros(len(boxes), dtype=bool)
    tiny[sound] = (resized_sides(boxes[sound], of_boxes[sound], resize) < 1).any(axis=1)
    yield records.of_boxes("box_tiny", tiny & ~records.crowd)
    whole = (boxes[:, :2] <= 1).all(axis=1)
    whole &= (boxes[:, :2] + boxes[:, 2:] >= of_boxes[:, ::-1] - 1).all(axis=1)
    yield records.of_boxes("box_whole_image", whole & sound)
    yield from _repeated(records, boxes)
    yield records.of_boxes("area_wrong", wrong_areas(records, boxes) & sound)


def _repeated(records: Records, boxes: np.ndarray) -> Iterator[Finding]:
    place = np.concatenate([records.image_index[:, None], boxes], axis=1)
    placed = (records.image_index != NOWHERE) & (records.category_index != NOWHERE)
    same = repeats(np.concatenate([place, records.category_index[:, None]], axis=1))
    yield records.of_boxes("box_duplicate", same & placed)
    yield records.of_boxes("box_two_classes", repeats(place) & ~same & placed)


def wrong_areas(records: Records, boxes: np.ndarray) -> np.ndarray:
    """Mask `[G]` of annotated areas that no object in the box can have."""
    area = np.array([item.get("area") for item in records.annotations], dtype=np.float64)
    largest: np.ndarray = boxes[:, 2:].prod(axis=1)
    return (area < 0) | (area > largest * 1.01 + 1)


def clip(boxes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """The part of boxes inside their pictures, `[G, 4]` xywh.

    Args:
        boxes: `[G, 4]` xywh.
        sizes: `[G, 2]` (height, width) of the picture of each.
    """
    limits = sizes[:, ::-1]
    start = np.clip(boxes[:, :2], 0, limits)
    end = np.clip(boxes[:, :2] + boxes[:, 2:], 0, limits)
    return np.concatenate([start, end - start], axis=1)


def turn(box: np.ndarray, size: Size, orientation: int) -> np.ndarray:
    """Boxes of a picture as it is stored to those of the picture as it is shown.

    Orientations as in the EXIF standard (CIPA DC-008, tag 274): 2 to 4 mirror or turn by 180
    degrees, 5 to 8 exchange rows and columns as well.

    Args:
        box: `[M, 4]` xywh.
        size: (height, width) as stored.
        orientation: 1..8.
    """
    height, width = size
    x1, y1 = box[:, 0], box[:, 1]
    x2, y2 = x1 + box[:, 2], y1 + box[:, 3]
    if orientation in (2, 3, 7, 8):
        # the left edge of what is stored lies right (2, 3) or below (7, 8)
        x1, x2 = width - x2, width - x1
    if orientation in (3, 4, 6, 7):
        y1, y2 = height - y2, height - y1
    if orientation in (5, 6, 7, 8):
        x1, y1, x2, y2 = y1, x1, y2, x2
    return np.stack([x1, y1, x2 - x1, y2 - y1], axis=1)
