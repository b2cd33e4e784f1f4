"""Group regions into larger ones, the most similar neighbours first.

Uijlings et al., "Selective Search for Object Recognition", IJCV 2013, sections 3.1 and 3.2.

N pixels, R regions, C channels, D bins of a histogram, Q pairs of neighbours.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

COLOR_BINS = 25
TEXTURE_BINS = 10
ORIENTATIONS = 8
TEXTURE_SIGMA = 1.0  # of the Gaussian that is derived, in pixels


class Weights(NamedTuple):
    """How much each similarity counts (equation 6; the paper has 0 or 1)."""

    color: float
    texture: float
    size: float
    fill: float


@dataclass(slots=True)
class Regions:
    """What the similarities need to know of each region.

    Attributes:
        color: `[R, C * 25]` histogram of the colours, its sum is 1.
        texture: `[R, C * 8 * 10]` histogram of the derivatives, its sum is 1.
        size: `[R]` in pixels.
        boxes: `[R, 4]` xyxy in pixels, x2 and y2 exclusive.
        pixels: of the whole picture.
    """

    color: Floats
    texture: Floats
    size: Ints
    boxes: Ints
    pixels: int


class Levels(NamedTuple):
    """What falls into which bin, of each pixel; the same for every segmentation.

    Attributes:
        color: `[C, N]` in `0..24`.
        texture: `[C * 8, N]` in `0..9`.
    """

    color: NDArray[np.uint8]
    texture: NDArray[np.uint8]


def quantize(image: np.ndarray) -> Levels:
    """Colours and Gaussian derivatives in eight directions as bins.

    A derivative is counted where it rises in its direction; where it falls, it rises in the
    opposite one. Its bins reach up to the steepest place of its channel.

    Args:
        image: `[H, W, C]` in 0..255.
    """
    pixels = image.reshape(-1, image.shape[2]).T.astype(np.float32)  # [C, N]
    color = np.minimum(pixels * (COLOR_BINS / 256), COLOR_BINS - 1).astype(np.uint8)
    texture = [level for channel in range(image.shape[2]) for level in _rises(image[..., channel])]
    return Levels(color, np.stack(texture))


def _rises(channel: np.ndarray) -> list[NDArray[np.uint8]]:
    """Bins `[N]` of the derivative in each of the eight directions."""
    side = 2 * round(4 * TEXTURE_SIGMA) + 1
    smooth = cv2.GaussianBlur(
        channel.astype(np.float32), (side, side), TEXTURE_SIGMA, borderType=cv2.BORDER_REPLICATE
    )
    padded = cv2.copyMakeBorder(smooth, 1, 1, 1, 1, cv2.BORDER_REPLICATE)
    right = (padded[1:-1, 2:] - padded[1:-1, :-2]).ravel()
    down = (padded[2:, 1:-1] - padded[:-2, 1:-1]).ravel()
    steepest = float(np.sqrt((right**2 + down**2).max()))
    scale = np.float32(TEXTURE_BINS / max(steepest, 1e-6))
    halves = []
    for turn in range(ORIENTATIONS // 2):
        angle = 2 * np.pi * turn / ORIENTATIONS
        rise = (np.float32(np.cos(angle)) * right + np.float32(np.sin(angle)) * down) * scale
        halves.append(rise)
    return [
        np.clip(rise, 0, TEXTURE_BINS - 1).astype(np.uint8)
        for rise in (*halves, *(-half for half in halves))
    ]


def describe(labels: NDArray[np.int32], levels: Levels) -> Regions:
    """Sizes, boxes and histograms of the regions of a segmentation.

    Args:
        labels: `[H, W]` in `0..R-1`, every one of them somewhere.
        levels: of the same picture.
    """
    flat = labels.ravel()
    size = np.bincount(flat)
    return Regions(
        color=_histograms(flat, size, levels.color, COLOR_BINS),
        texture=_histograms(flat, size, levels.texture, TEXTURE_BINS),
        size=size,
        boxes=bounding_boxes(labels, len(size)),
        pixels=len(flat),
    )


def _histograms(flat: np.ndarray, size: Ints, levels: NDArray[np.uint8], bins: int) -> Floats:
    """`[R, C * bins]`, each row of sum 1."""
    first = flat * np.int32(bins)
    counts = [
        np.bincount(first + level, minlength=len(size) * bins).reshape(-1, bins) for level in levels
    ]
    total = size[:, None] * len(levels)
    return (np.concatenate(counts, axis=1) / total).astype(np.float32)


def bounding_boxes(labels: NDArray[np.int32], count: int) -> Ints:
    """`[R, 4]` xyxy of each label, x2 and y2 exclusive."""
    boxes = np.empty((count, 4), np.int64)
    for axis, lines in ((1, labels), (0, labels.T)):
        flat = lines.ravel()
        line = np.repeat(np.arange(len(lines)), lines.shape[1])
        # of repeated indices the last assignment stays: backwards, that of the first pixel
        boxes[flat[::-1], axis] = line[::-1]
        boxes[flat, axis + 2] = line + 1
    return boxes


def neighbours(labels: NDArray[np.int32]) -> Ints:
    """`[Q, 2]` pairs of regions with pixels side by side or one above the other; first < second."""
    sides = [(labels[:, :-1], labels[:, 1:]), (labels[:-1], labels[1:])]
    one = np.concatenate([side[0].ravel() for side in sides]).astype(np.int64)
    other = np.concatenate([side[1].ravel() for side in sides]).astype(np.int64)
    apart = one != other
    one, other = one[apart], other[apart]
    count = int(labels.max()) + 1
    keys = np.unique(np.minimum(one, other) * count + np.maximum(one, other))
    return np.stack([keys // count, keys % count], axis=1)


def similarity(regions: Regions, one: Ints, other: Ints, weights: Weights) -> NDArray[np.float64]:
    """Similarity `[Q]` of pairs of regions (equations 2 to 6); colour and texture by intersection.

    Args:
        regions: of one picture.
        one: `[Q]` indices, or `[1]` for the same region in all pairs.
        other: `[Q]` indices.
        weights: of the four parts.
    """
    size = regions.size[one] + regions.size[other]
    total = np.zeros(size.shape)
    if weights.color:
        common = np.minimum(regions.color[one], regions.color[other])
        total += weights.color * common.sum(axis=-1)
    if weights.texture:
        common = np.minimum(regions.texture[one], regions.texture[other])
        total += weights.texture * common.sum(axis=-1)
    if weights.size:
        total += weights.size * (1 - size / regions.pixels)
    if weights.fill:
        low = np.minimum(regions.boxes[one, :2], regions.boxes[other, :2])
        high = np.maximum(regions.boxes[one, 2:], regions.boxes[other, 2:])
        total += weights.fill * (1 - ((high - low).prod(axis=-1) - size) / regions.pixels)
    return total


def group(regions: Regions, pairs: Ints, weights: Weights) -> Regions:
    """Join the two most similar neighbours until one region is left (algorithm 1).

    Args:
        regions: R of them, all connected.
        pairs: `[Q, 2]` neighbours.
        weights: of the similarities.

    Returns:
        `2R - 1` regions: first those given, then each that was made, in this order; the last one is
        the whole picture.
    """
    count = len(regions.size)
    tree = _with_room(regions, 2 * count - 1)
    near: list[set[int]] = [set() for _ in range(2 * count - 1)]
    for a, b in pairs.tolist():
        near[a].add(b)
        near[b].add(a)
    scores = similarity(tree, pairs[:, 0], pairs[:, 1], weights)
    heap = [(-score, a, b) for score, (a, b) in zip(scores.tolist(), pairs.tolist(), strict=True)]
    heapq.heapify(heap)
    gone = [False] * (2 * count - 1)
    for new in range(count, 2 * count - 1):
        _, a, b = heapq.heappop(heap)
        while gone[a] or gone[b]:  # a pair whose regions went into others
            _, a, b = heapq.heappop(heap)
        gone[a] = gone[b] = True
        _merge(tree, a, b, new)
        around = sorted((near[a] | near[b]) - {a, b})
        for each in around:
            near[each] -= {a, b}
            near[each].add(new)
        near[new] = set(around)
        others = np.array(around, np.int64)
        scores = similarity(tree, np.array([new]), others, weights)
        for score, each in zip(scores.tolist(), around, strict=True):
            heapq.heappush(heap, (-score, each, new))
    return tree


def _with_room(regions: Regions, count: int) -> Regions:
    """The same regions in arrays of that length."""
    return Regions(
        color=np.resize(regions.color, (count, regions.color.shape[1])),
        texture=np.resize(regions.texture, (count, regions.texture.shape[1])),
        size=np.resize(regions.size, count),
        boxes=np.resize(regions.boxes, (count, 4)),
        pixels=regions.pixels,
    )


def _merge(tree: Regions, a: int, b: int, new: int) -> None:
    """Describe the union of two regions without its pixels."""
    one, other = int(tree.size[a]), int(tree.size[b])
    for histogram in (tree.color, tree.texture):
        histogram[new] = (one * histogram[a] + other * histogram[b]) / (one + other)
    tree.size[new] = one + other
    np.minimum(tree.boxes[a, :2], tree.boxes[b, :2], out=tree.boxes[new, :2])
    np.maximum(tree.boxes[a, 2:], tree.boxes[b, 2:], out=tree.boxes[new, 2:])
