"""Selective search: what comes out, for pictures of every kind."""

from __future__ import annotations

import numpy as np
import pytest

from detkit.proposals import MODES, SearchSettings, Strategies, selective_search, strategies_of
from detkit.proposals.color_spaces import COLOR_SPACES
from detkit.proposals.selective_search import _rank

OBJECTS = [(10, 12, 40, 34), (60, 8, 84, 50), (20, 50, 70, 74)]


def scene() -> np.ndarray:
    """Three plain rectangles on noise, 96 x 80."""
    image = np.random.default_rng(0).integers(90, 130, (80, 96, 3), np.uint8)
    for (x1, y1, x2, y2), color in zip(
        OBJECTS, ((220, 30, 30), (30, 200, 60), (40, 40, 230)), strict=True
    ):
        image[y1:y2, x1:x2] = color
    return image


def best_iou(boxes: np.ndarray, target: tuple[int, ...]) -> float:
    low, high = np.maximum(boxes[:, :2], target[:2]), np.minimum(boxes[:, 2:], target[2:])
    common = np.clip(high - low, 0, None).prod(axis=1)
    own = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    area = (target[2] - target[0]) * (target[3] - target[1])
    return float((common / (own + area - common)).max())


def test_objects_are_found_among_the_first() -> None:
    boxes = selective_search(scene())
    assert boxes.dtype == np.float32
    for target in OBJECTS:
        assert best_iou(boxes[:100], target) > 0.85


def test_boxes_are_unique_inside_whole_and_the_picture_is_one() -> None:
    boxes = selective_search(scene())
    assert len(np.unique(boxes, axis=0)) == len(boxes) > 50
    assert (boxes[:, :2] >= 0).all() and (boxes[:, 2:] <= [96, 80]).all()
    assert (boxes[:, 2:] - boxes[:, :2] >= 8).all()
    assert np.array_equal(boxes, np.round(boxes))
    assert [0, 0, 96, 80] in boxes.tolist()


def test_same_picture_same_boxes_and_another_seed_another_order() -> None:
    first, again = selective_search(scene()), selective_search(scene())
    assert np.array_equal(first, again)
    other = selective_search(scene(), SearchSettings(seed=1))
    assert not np.array_equal(first, other)
    assert set(map(tuple, first.tolist())) == set(map(tuple, other.tolist()))


def test_rank_is_the_place_in_the_hierarchy_times_a_random_number() -> None:
    class Half:
        def random(self, count: int) -> np.ndarray:
            return np.full(count, 0.5)

    one = np.array([[0, 0, 9, 9], [0, 0, 5, 9], [5, 0, 9, 9]])
    other = np.array([[0, 0, 9, 9], [1, 1, 5, 9]])
    ranked = _rank([one, other], Half())  # type: ignore[arg-type]
    assert ranked.tolist() == [[0, 0, 9, 9], [0, 0, 5, 9], [1, 1, 5, 9], [5, 0, 9, 9]]


def test_more_groupings_find_more() -> None:
    counts = [
        len(selective_search(scene(), SearchSettings(strategies=MODES[mode])))
        for mode in ("single", "fast", "quality")
    ]
    assert counts[0] < counts[1] < counts[2]
    sizes = [
        len(s.color_spaces) * len(s.scales) * len(s.similarities)
        for s in (MODES["single"], MODES["fast"], MODES["quality"])
    ]
    assert sizes == [1, 8, 80]


def test_large_pictures_are_searched_small_and_boxes_come_back_large() -> None:
    large = np.repeat(np.repeat(scene(), 4, axis=0), 4, axis=1)
    boxes = selective_search(large, SearchSettings(longest=96))
    assert [0, 0, 384, 320] in boxes.tolist()
    assert best_iou(boxes, tuple(4 * side for side in OBJECTS[2])) > 0.85
    assert (boxes[:, 2:] - boxes[:, :2] >= 4 * 8 - 1e-3).all()


@pytest.mark.parametrize(
    "image",
    [
        np.full((40, 30, 3), 128, np.uint8),
        np.zeros((1, 1, 3), np.uint8),
        np.random.default_rng(0).integers(0, 256, (1, 50, 3), np.uint8),
        np.random.default_rng(0).integers(0, 256, (50, 1, 3), np.uint8),
        np.zeros((700, 2, 3), np.uint8),  # scaled down to less than two pixels wide
    ],
    ids=["plain", "one pixel", "row", "column", "narrow"],
)
def test_pictures_with_nothing_in_them(image: np.ndarray) -> None:
    boxes = selective_search(image)
    whole = [0, 0, image.shape[1], image.shape[0]]
    assert whole in boxes.tolist()
    assert (boxes[:, 2:] > boxes[:, :2]).all()


def test_grey_pictures() -> None:
    grey = np.repeat(scene().mean(axis=2, keepdims=True).astype(np.uint8), 3, axis=2)
    boxes = selective_search(grey, SearchSettings(strategies=MODES["quality"]))
    assert np.isfinite(boxes).all()
    assert [0, 0, 96, 80] in boxes.tolist()


@pytest.mark.parametrize("name", COLOR_SPACES)
def test_color_spaces_are_in_range(name: str) -> None:
    corners = np.array(np.meshgrid(*[[0, 1, 128, 255]] * 3), np.uint8).reshape(3, 8, 8)
    converted = COLOR_SPACES[name](corners.transpose(1, 2, 0).copy())
    assert converted.shape[:2] == (8, 8) and converted.ndim == 3
    assert np.isfinite(converted).all()
    assert converted.min() >= 0 and converted.max() <= 255
    assert converted.max() > 200  # the range is used


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 3), np.float32),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros((3, 4, 4), np.uint8),
    ],
)
def test_what_is_no_picture_is_refused(image: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"image must be \[H, W, 3\] uint8 RGB"):
        selective_search(image)


def test_strategies_are_checked() -> None:
    assert strategies_of("fast", scales=[30]) == Strategies(("hsv", "lab"), (30,), ("CTSF", "TSF"))
    with pytest.raises(ValueError, match="unknown mode 'quick'"):
        strategies_of("quick")
    with pytest.raises(ValueError, match=r"unknown color space 'lob'.*lab"):
        strategies_of("fast", color_spaces=["lob"])
    for letters in ("", "CX"):
        with pytest.raises(ValueError, match="letters of CTSF"):
            strategies_of("fast", similarities=[letters])
    with pytest.raises(ValueError, match="needs a colour space, a scale"):
        strategies_of("fast", scales=[])
    with pytest.raises(ValueError, match="longest of selective search must be at least 1"):
        SearchSettings(longest=0)
