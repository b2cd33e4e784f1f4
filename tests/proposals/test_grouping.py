"""Similarities are those of the paper, and a merged region is described as its pixels would be."""

from __future__ import annotations

import numpy as np
import pytest

from detkit.proposals.grouping import (
    Levels,
    Regions,
    Weights,
    describe,
    group,
    neighbours,
    quantize,
    similarity,
)
from detkit.proposals.segmentation import segment

ALL = Weights(1, 1, 1, 1)


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 60, (30, 40, 3), np.uint8)
    image[5:20, 8:22] += 120
    image[10:28, 25:36, 0] += 190
    return image


@pytest.fixture(scope="module")
def labels(image: np.ndarray) -> np.ndarray:
    labels = segment(image, k=60, min_size=15)
    assert 8 < labels.max() < 80
    return labels


def pairs_of(labels: np.ndarray) -> set[tuple[int, int]]:
    """Neighbours pixel by pixel."""
    height, width = labels.shape
    found = set()
    for y in range(height):
        for x in range(width):
            for other in ((y + 1, x), (y, x + 1)):
                if other[0] < height and other[1] < width and labels[y, x] != labels[other]:
                    a, b = int(labels[y, x]), int(labels[other])
                    found.add((min(a, b), max(a, b)))
    return found


def histogram(levels: np.ndarray, mask: np.ndarray, bins: int) -> np.ndarray:
    """Share of each bin of each channel, of the pixels in the mask."""
    rows = [np.histogram(level[mask.ravel()], bins=bins, range=(0, bins))[0] for level in levels]
    counts = np.concatenate(rows)
    return counts / counts.sum()


def box_of(mask: np.ndarray) -> list[int]:
    y, x = np.nonzero(mask)
    return [x.min(), y.min(), x.max() + 1, y.max() + 1]


def test_neighbours(labels: np.ndarray) -> None:
    found = neighbours(labels)
    assert {tuple(pair) for pair in found.tolist()} == pairs_of(labels)
    assert len(found) == len(pairs_of(labels))


def test_regions_and_what_is_made_of_them(image: np.ndarray, labels: np.ndarray) -> None:
    levels = quantize(image)
    count = int(labels.max()) + 1
    parents: dict[int, tuple[int, int]] = {}
    tree = group(describe(labels, levels), neighbours(labels), ALL)
    assert len(tree.size) == 2 * count - 1
    masks = [labels == label for label in range(count)]
    for new in range(count, 2 * count - 1):  # which two were joined: by their sizes and boxes
        free = [i for i in range(new) if not any(i in pair for pair in parents.values())]
        scores = {
            (a, b): direct_similarity(levels, masks[a], masks[b])
            for a in free
            for b in free
            if a < b and touching(masks[a], masks[b])
        }
        best = max(scores.values())
        (a, b), *rest = [pair for pair, score in scores.items() if score > best - 1e-6]
        assert not rest
        parents[new] = (a, b)
        masks.append(masks[a] | masks[b])
    for index, mask in enumerate(masks):
        assert tree.size[index] == mask.sum()
        assert tree.boxes[index].tolist() == box_of(mask)
        assert tree.color[index] == pytest.approx(histogram(levels.color, mask, 25), abs=1e-5)
        assert tree.texture[index] == pytest.approx(histogram(levels.texture, mask, 10), abs=1e-5)
    assert masks[-1].all()


def touching(one: np.ndarray, other: np.ndarray) -> bool:
    return bool(
        (one[:, :-1] & other[:, 1:]).any()
        or (one[:, 1:] & other[:, :-1]).any()
        or (one[:-1] & other[1:]).any()
        or (one[1:] & other[:-1]).any()
    )


def direct_similarity(
    levels: Levels, one: np.ndarray, other: np.ndarray, weights: Weights = ALL
) -> float:
    """Equations 2 to 6, from the pixels."""
    pixels = one.size
    color = np.minimum(histogram(levels.color, one, 25), histogram(levels.color, other, 25)).sum()
    texture = np.minimum(
        histogram(levels.texture, one, 10), histogram(levels.texture, other, 10)
    ).sum()
    both = one.sum() + other.sum()
    x1, y1, x2, y2 = box_of(one | other)
    fill = 1 - ((x2 - x1) * (y2 - y1) - both) / pixels
    return float(np.dot(weights, [color, texture, 1 - both / pixels, fill]))


@pytest.mark.parametrize("weights", [ALL, *(Weights(*row) for row in np.eye(4) * 1.0)])
def test_similarity(image: np.ndarray, labels: np.ndarray, weights: Weights) -> None:
    levels = quantize(image)
    pairs = neighbours(labels)[::3]
    found = similarity(describe(labels, levels), pairs[:, 0], pairs[:, 1], weights)
    for (a, b), value in zip(pairs.tolist(), found.tolist(), strict=True):
        expected = direct_similarity(levels, labels == a, labels == b, weights)
        assert value == pytest.approx(expected, abs=1e-5)


def test_similarity_by_hand() -> None:
    regions = Regions(
        color=np.array([[0.5, 0.5, 0], [0.25, 0, 0.75]], np.float32),
        texture=np.array([[1, 0], [0.1, 0.9]], np.float32),
        size=np.array([10, 20]),
        boxes=np.array([[0, 0, 5, 2], [3, 0, 8, 5]]),
        pixels=100,
    )
    one, other = np.array([0]), np.array([1])
    for weights, expected in (
        (Weights(1, 0, 0, 0), 0.25),
        (Weights(0, 1, 0, 0), 0.1),
        (Weights(0, 0, 1, 0), 0.7),  # 30 of 100 pixels
        (Weights(0, 0, 0, 1), 0.9),  # 8 x 5 around both, of which 30 are theirs
        (Weights(1, 1, 1, 1), 1.95),
    ):
        assert similarity(regions, one, other, weights) == pytest.approx([expected])


def test_levels_of_colours_and_edges() -> None:
    image = np.zeros((9, 12, 1), np.uint8)
    image[:, 6:] = 255  # rises to the right only
    levels = quantize(image)
    assert levels.color.shape == (1, 108)
    assert set(levels.color.ravel().tolist()) == {0, 24}
    at_edge = levels.texture.reshape(8, 9, 12)[:, 4, 5]  # right, then turning by 45 degrees
    assert at_edge.tolist() == [9, 7, 0, 0, 0, 0, 0, 7]
    assert not levels.texture.reshape(8, 9, 12)[:, 4, 0].any()
    down = quantize(image.transpose(1, 0, 2)).texture.reshape(8, 12, 9)[:, 5, 4]
    assert down.tolist() == [0, 7, 9, 7, 0, 0, 0, 0]
    assert not quantize(np.full((4, 4, 3), 9, np.uint8)).texture.any()


def test_one_region_has_nothing_to_join() -> None:
    labels = np.zeros((3, 4), np.int32)
    regions = describe(labels, quantize(np.zeros((3, 4, 3), np.uint8)))
    tree = group(regions, neighbours(labels), ALL)
    assert tree.boxes.tolist() == [[0, 0, 4, 3]]
