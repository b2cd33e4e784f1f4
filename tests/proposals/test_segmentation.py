"""The segmentation is that of the paper, edge by edge, however many edges are taken at once."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from detkit.proposals import segmentation
from detkit.proposals.segmentation import (
    WEIGHT_STEPS,
    Edges,
    pixel_graph,
    segment,
    segment_graph,
    smooth,
)


def reference(edges: Edges, pixels: int, *, k: float, min_size: int) -> np.ndarray:
    """Algorithm 1 of the paper with sets of pixels, then small components; a label for each pixel.

    Two components join if the edge weighs no more than the heaviest edge inside either, plus k over
    its size.
    """
    members = {pixel: {pixel} for pixel in range(pixels)}
    component = list(range(pixels))
    heaviest = dict.fromkeys(range(pixels), 0.0)
    ordered = list(zip(*(column.tolist() for column in edges), strict=True))

    def join(a: int, b: int, weight: float) -> None:
        for pixel in members[b]:
            component[pixel] = a
        members[a] |= members.pop(b)
        heaviest[a] = weight

    for one, other, weight in ordered:
        a, b = component[one], component[other]
        if a != b and all(
            weight <= heaviest[c] + k * WEIGHT_STEPS / len(members[c]) for c in (a, b)
        ):
            join(a, b, weight)
    for one, other, weight in ordered:
        a, b = component[one], component[other]
        if a != b and min(len(members[a]), len(members[b])) < min_size:
            join(a, b, weight)
    return np.array(component)


def in_order_of_pixels(labels: np.ndarray) -> np.ndarray:
    """The same regions, numbered by their first pixels."""
    numbers: dict[int, int] = {}
    return np.array([numbers.setdefault(label, len(numbers)) for label in labels.ravel().tolist()])


def picture(kind: str, height: int, width: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    if kind == "noise":
        return rng.integers(0, 256, (height, width, 3), np.uint8)
    if kind == "few colours":  # many edges of the same weight
        return rng.integers(0, 4, (height, width, 3), np.uint8) * 64
    if kind == "ramp":  # each edge is the next one for few components
        row = np.cumsum(np.arange(width) % 7).astype(np.uint8)
        return np.broadcast_to(row[None, :, None], (height, width, 3)).copy()
    if kind == "grey":
        return rng.integers(0, 256, (height, width), np.uint8)
    if kind == "plain":
        return np.full((height, width, 3), 77, np.uint8)
    coarse = rng.integers(0, 256, (4, 4, 3), np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR)


@pytest.mark.parametrize("kind", ["noise", "few colours", "ramp", "grey", "plain", "smooth"])
@pytest.mark.parametrize(
    ("shape", "k", "min_size"),
    [((23, 31), 20.0, 0), ((23, 31), 300.0, 5), ((17, 9), 5.0, 30), ((40, 24), 100.0, 1)],
)
def test_same_partition_as_the_definition(
    monkeypatch: pytest.MonkeyPatch, kind: str, shape: tuple[int, int], k: float, min_size: int
) -> None:
    monkeypatch.setattr(segmentation, "_FEW_EDGES", 10)  # small pictures go through the rounds too
    edges = pixel_graph(smooth(picture(kind, *shape, seed=shape[0]), 0.8))
    expected = reference(edges, shape[0] * shape[1], k=k, min_size=min_size)
    labels = segment_graph(edges, shape, k=k, min_size=min_size)
    assert labels.dtype == np.int32
    assert np.array_equal(labels.ravel(), in_order_of_pixels(expected))


def test_rounds_and_single_edges_are_one(monkeypatch: pytest.MonkeyPatch) -> None:
    image = picture("smooth", 96, 80, seed=3)
    image[20:50, 30:60] = picture("noise", 30, 30, seed=4)
    expected = segment(image, k=50)
    assert expected.max() > 3
    for few, parts in ((10**9, 1), (10**9, 7), (0, 1), (100, 40)):
        monkeypatch.setattr(segmentation, "_FEW_EDGES", few)
        monkeypatch.setattr(segmentation, "_PARTS", parts)
        assert np.array_equal(segment(image, k=50), expected)


def test_graph_joins_eight_neighbours_by_the_distance_of_their_colours() -> None:
    image = np.array([[[0, 0, 0], [3, 4, 0]], [[0, 0, 1], [0, 0, 1]]], np.float32)
    edges = pixel_graph(image)
    found = {
        (first, second): weight / WEIGHT_STEPS
        for first, second, weight in zip(*(column.tolist() for column in edges), strict=True)
    }
    assert found == {
        (0, 1): 5.0,
        (2, 3): 0.0,
        (0, 2): 1.0,
        (1, 3): pytest.approx(26**0.5, abs=1 / WEIGHT_STEPS),
        (0, 3): 1.0,
        (1, 2): pytest.approx(26**0.5, abs=1 / WEIGHT_STEPS),
    }
    assert (np.diff(edges.weight.astype(int)) >= 0).all()
    many = pixel_graph(picture("noise", 7, 5, seed=0).astype(np.float32))
    assert len(many.weight) == 7 * 4 + 6 * 5 + 2 * 6 * 4
    assert many.weight.max() <= np.hypot(np.hypot(255, 255), 255) * WEIGHT_STEPS < 2**16


def test_two_halves_are_two_regions() -> None:
    image = np.zeros((10, 12, 3), np.uint8)
    image[:, 6:] = 200
    expected = np.repeat([[0] * 6 + [1] * 6], 10, axis=0)
    assert np.array_equal(segment(image, k=50, sigma=0, min_size=1), expected)
    assert segment(image, k=50, sigma=0, min_size=61).max() == 0  # each half has 60 pixels


def test_k_prefers_larger_regions() -> None:
    image = picture("noise", 40, 40, seed=1)
    counts = [segment(image, k=k, min_size=0).max() + 1 for k in (10, 100, 1000)]
    assert counts[0] > counts[1] > counts[2]


def test_no_region_is_smaller_than_asked_for() -> None:
    labels = segment(picture("noise", 40, 50, seed=2), k=10, min_size=25)
    sizes = np.bincount(labels.ravel())
    assert sizes.min() >= 25
    assert len(sizes) > 5


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (2, 2)])
def test_smallest_pictures(shape: tuple[int, int]) -> None:
    assert np.array_equal(segment(np.zeros((*shape, 3), np.uint8), k=10), np.zeros(shape))


@pytest.mark.parametrize(
    ("image", "settings", "message"),
    [
        (np.zeros((0, 5, 3), np.uint8), {"k": 1}, r"got \[0, 5, 3\]"),
        (np.zeros((5,), np.uint8), {"k": 1}, r"got \[5\]"),
        (np.zeros((5, 5, 3), np.uint8), {"k": -1}, "k -1"),
        (np.zeros((5, 5, 3), np.uint8), {"k": 1, "min_size": -2}, "min_size -2"),
        (np.zeros((5, 5, 3), np.uint8), {"k": 1, "sigma": -0.5}, "sigma must be .* -0.5"),
    ],
)
def test_mistakes(image: np.ndarray, settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        segment(image, **settings)
