"""Divide a picture into regions by a graph of its pixels.

Felzenszwalb and Huttenlocher, "Efficient Graph-Based Image Segmentation", IJCV 2004. Pixels are the
nodes, each joined to its eight neighbours by an edge that weighs as much as their colours differ.
Edges are taken from the lightest to the heaviest; one joins two components if it weighs no more
than each of them has inside, plus k over its size.

N pixels, E edges, R regions.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int32]

# Weights are in steps of 1 / WEIGHT_STEPS of a grey level: 16 bits hold black to white of three
# channels, and are sorted digit by digit
WEIGHT_STEPS = 128
_PARTS = 12  # of the edges, taken in their order: what one part joins, the next need not look at
_FEW_EDGES = 1000  # so many are quicker one by one
_LEAST_PROGRESS = 0.2  # share of the edges that a round must settle to be worth it
_COMPLETE = -1.0  # the limit of a component that has refused an edge: it refuses all heavier ones


class Edges(NamedTuple):
    """A graph on pixels `0..N-1`, lightest edges first; order is part of the definition.

    Attributes:
        first: `[E]` one end.
        second: `[E]` the other end.
        weight: `[E]` uint16 in steps of `1 / WEIGHT_STEPS` of a grey level.
    """

    first: Ints
    second: Ints
    weight: NDArray[np.uint16]


def segment(
    image: np.ndarray, *, k: float, sigma: float = 0.8, min_size: int | None = None
) -> Ints:
    """Divide a picture into regions of similar pixels.

    Args:
        image: `[H, W]` or `[H, W, C]` in 0..255, up to three channels.
        k: scale; larger values prefer larger regions.
        sigma: of the Gaussian that smooths the picture first, in pixels; 0 leaves it as it is.
        min_size: smaller regions are joined to a neighbour; None is `k`, rounded.

    Returns:
        `[H, W]` int32 in `0..R-1`, numbered in the order of their first pixels.

    Raises:
        ValueError: a number is out of its range, or a picture without pixels.
    """
    min_size = round(k) if min_size is None else min_size
    return segment_graph(pixel_graph(smooth(image, sigma)), image.shape[:2], k=k, min_size=min_size)


def smooth(image: np.ndarray, sigma: float) -> NDArray[np.float32]:
    """Blur a picture with a Gaussian; `[H, W, C]` float32.

    Raises:
        ValueError: a picture without pixels, or a negative sigma.
    """
    if image.ndim not in (2, 3) or 0 in image.shape:
        raise ValueError(f"image must be [H, W] or [H, W, C] with pixels, got {list(image.shape)}")
    if sigma < 0:
        raise ValueError(f"sigma must be at least 0 pixels, got {sigma}")
    pixels: np.ndarray = image.astype(np.float32)
    if sigma > 0:
        side = 2 * max(1, round(4 * sigma)) + 1
        pixels = cv2.GaussianBlur(pixels, (side, side), sigma, borderType=cv2.BORDER_REPLICATE)
    return pixels.reshape(*image.shape[:2], -1)


def pixel_graph(image: NDArray[np.float32]) -> Edges:
    """Join each pixel to its eight neighbours; a weight is the distance of two colours.

    Args:
        image: `[H, W, C]` in 0..255, up to three channels.
    """
    height, width = image.shape[:2]
    index = np.arange(height * width, dtype=np.int32).reshape(height, width)
    ends, weights = [], []
    # right, down, down and right, down and left
    for one, other in (
        (np.s_[:, :-1], np.s_[:, 1:]),
        (np.s_[:-1], np.s_[1:]),
        (np.s_[:-1, :-1], np.s_[1:, 1:]),
        (np.s_[:-1, 1:], np.s_[1:, :-1]),
    ):
        difference = image[one] - image[other]
        distance = np.sqrt(np.einsum("hwc,hwc->hw", difference, difference))
        weights.append(np.rint(distance * WEIGHT_STEPS).astype(np.uint16).ravel())
        ends.append(np.stack([index[one].ravel(), index[other].ravel()]))
    weight, (first, second) = np.concatenate(weights), np.concatenate(ends, axis=1)
    # Of equal weights a random one comes first: in the order of pixels a plain area would join one
    # pixel after the other, at random it is joined by halves
    shuffled = np.random.default_rng(0).permutation(len(weight))
    order = shuffled[np.argsort(weight[shuffled], kind="stable")]
    return Edges(first[order], second[order], weight[order])


def segment_graph(edges: Edges, shape: tuple[int, int], *, k: float, min_size: int) -> Ints:
    """Divide the pixels of a graph into regions.

    Args:
        edges: of all pixels.
        shape: (height, width) of the picture.
        k: scale, in grey levels.
        min_size: smaller regions are joined to the neighbour of the lightest edge.

    Returns:
        `[H, W]` int32 in `0..R-1`, numbered in the order of their first pixels.

    Raises:
        ValueError: a number is out of its range.
    """
    if k < 0 or min_size < 0:
        raise ValueError(f"k {k} and min_size {min_size} must be at least 0")
    forest = _Forest(shape[0] * shape[1], k * WEIGHT_STEPS)
    for part in _parts(len(edges.weight)):
        forest.take(edges.first[part], edges.second[part], edges.weight[part])
    forest.join_small(edges, min_size)
    _, first_pixel, label = np.unique(forest.roots(), return_index=True, return_inverse=True)
    number = np.empty(len(first_pixel), np.int32)
    number[np.argsort(first_pixel)] = np.arange(len(first_pixel), dtype=np.int32)
    return number[label.ravel()].reshape(shape)


class _Forest:
    """Components of pixels; each is known by one of them, its root.

    Args:
        pixels: N.
        scale: k in steps of weight.
    """

    def __init__(self, pixels: int, scale: float) -> None:
        self.parent = np.arange(pixels, dtype=np.int32)
        self.size = np.ones(pixels, np.int32)
        # The heaviest edge that a component takes: its heaviest inside plus scale / size
        self.limit = np.full(pixels, float(scale))
        self.scale = scale

    def roots(self) -> Ints:
        """`[N]` the root of each pixel."""
        root = self.parent
        while True:
            above = root[root]
            if np.array_equal(above, root):
                return root
            root = above

    def take(self, first: Ints, second: Ints, weight: NDArray[np.uint16]) -> None:
        """Take the next edges, in their order; ends are pixels `[E]`."""
        roots = self.roots()
        first, second, weight = self._between(roots[first], roots[second], weight)
        self._take_one_by_one(*self._take_rounds(first, second, weight))

    def _between(
        self, first: Ints, second: Ints, weight: NDArray[np.uint16]
    ) -> tuple[Ints, Ints, NDArray[np.uint16]]:
        """The edges between two components that still grow."""
        left = np.flatnonzero(
            (first != second) & (self.limit[first] >= 0) & (self.limit[second] >= 0)
        )
        return first[left], second[left], weight[left]

    def _take_rounds(
        self, first: Ints, second: Ints, weight: NDArray[np.uint16]
    ) -> tuple[Ints, Ints, NDArray[np.uint16]]:
        """Take many edges at once, in the sense of the definition; returns those left to take.

        An edge that is the next one for both its components can be decided now: the definition
        would find them just as they are. And a component that refuses its next edge refuses all
        others, which are heavier: it is complete.
        """
        following = np.empty(len(self.parent), np.int32)
        while len(weight) > _FEW_EDGES:
            count = len(weight)
            number = np.arange(count, dtype=np.int32)
            # of repeated indices the last assignment stays: backwards, the first edge
            ends = np.stack([first, second], axis=1).ravel()[::-1]
            following[ends] = np.repeat(number, 2)[::-1]
            next_first = following[first] == number
            next_second = following[second] == number
            takes_first = weight <= self.limit[first]
            takes_second = weight <= self.limit[second]
            self.limit[first[next_first & ~takes_first]] = _COMPLETE
            self.limit[second[next_second & ~takes_second]] = _COMPLETE
            now = np.flatnonzero(next_first & next_second & takes_first & takes_second)
            self._join(first[now], second[now], weight[now])
            first, second, weight = self._between(self.parent[first], self.parent[second], weight)
            if count - len(weight) < _LEAST_PROGRESS * count:
                break
        return first, second, weight

    def _join(self, first: Ints, second: Ints, weight: NDArray[np.uint16]) -> None:
        """Join pairs of roots; none is in two pairs."""
        self.parent[second] = first
        self.size[first] += self.size[second]
        self.limit[first] = weight + self.scale / self.size[first]

    def _take_one_by_one(self, first: Ints, second: Ints, weight: NDArray[np.uint16]) -> None:
        nodes, ends = np.unique(np.concatenate([first, second]), return_inverse=True)
        size, limit = self.size[nodes].tolist(), self.limit[nodes].tolist()
        parent = list(range(len(nodes)))
        pairs = ends.ravel().reshape(2, -1).tolist()
        for one, other, heavy in zip(*pairs, weight.tolist(), strict=True):
            a, b = _find(parent, one), _find(parent, other)
            if a == b:
                continue
            if heavy <= limit[a] and heavy <= limit[b]:
                parent[b] = a
                size[a] += size[b]
                limit[a] = heavy + self.scale / size[a]
                continue
            for refusing in (a, b):
                if heavy > limit[refusing]:
                    limit[refusing] = _COMPLETE
        self._adopt(nodes, parent, size)
        self.limit[nodes] = limit

    def join_small(self, edges: Edges, min_size: int) -> None:
        """Join components below a size along the lightest edges, as the authors' program does."""
        roots = self.roots()
        first, second = roots[edges.first], roots[edges.second]
        small = self.size < min_size
        between = np.flatnonzero((first != second) & (small[first] | small[second]))
        first, second = first[between], second[between]
        # the others decide nothing: two components that an edge leaves apart are both large enough
        kept = _first_of_pairs(first, second, len(roots))
        nodes, ends = np.unique(np.concatenate([first[kept], second[kept]]), return_inverse=True)
        size, parent = self.size[nodes].tolist(), list(range(len(nodes)))
        for one, other in zip(*ends.ravel().reshape(2, -1).tolist(), strict=True):
            a, b = _find(parent, one), _find(parent, other)
            if a != b and (size[a] < min_size or size[b] < min_size):
                parent[b] = a
                size[a] += size[b]
        self._adopt(nodes, parent, size)

    def _adopt(self, nodes: Ints, parent: list[int], size: list[int]) -> None:
        """Take over what became of some of the roots."""
        self.parent[nodes] = nodes[np.array(parent, np.int64)]
        self.size[nodes] = size


def _parts(edges: int) -> list[slice]:
    bounds = np.linspace(0, edges, _PARTS + 1).astype(int).tolist()
    return [slice(*pair) for pair in itertools.pairwise(bounds)]


def _find(parent: list[int], node: int) -> int:
    """The root of a node; halves the way to it."""
    while parent[node] != node:
        parent[node] = node = parent[parent[node]]
    return node


def _first_of_pairs(first: Ints, second: Ints, pixels: int) -> NDArray[np.int64]:
    """Positions of the edges that are the first between their components, ascending."""
    key = np.minimum(first, second).astype(np.int64) * pixels + np.maximum(first, second)
    return np.sort(np.unique(key, return_index=True)[1])
