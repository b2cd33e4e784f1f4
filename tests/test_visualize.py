"""What drawing does to pixels."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch

from detkit.structures import Detections, Target
from detkit.visualize import (
    class_color,
    contact_sheet,
    draw_detections,
    draw_targets,
    text_color,
)

NAMES = ("cat", "dog", "Füße", "\ue000")  # the last one is a character that no font has


def found(
    *boxes: tuple[float, ...], labels: tuple[int, ...] = (), score: float = 0.9
) -> Detections:
    count = len(boxes)
    return Detections(
        torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        torch.full((count,), score),
        torch.tensor(labels or (0,) * count, dtype=torch.int64),
    )


def black(height: int = 100, width: int = 120) -> np.ndarray:
    return np.zeros((height, width, 3), np.uint8)


def colored(picture: np.ndarray, label: int = 0) -> np.ndarray:
    """`[H, W]` bool: where a picture has a class' colour exactly."""
    return (picture == class_color(label)).all(axis=2)


def drawn(picture: np.ndarray) -> np.ndarray:
    return picture.any(axis=2)


def test_box_covers_the_pixels_inside_its_edges() -> None:
    picture = draw_detections(black(), found((10, 40, 50, 70)), NAMES)
    edge = colored(picture)
    assert edge[40, 10:50].all() and edge[69, 10:50].all()
    assert edge[40:70, 10].all() and edge[40:70, 49].all()
    assert not drawn(picture)[41:69, 11:49].any()  # the inside stays visible
    assert not drawn(picture)[70:].any() and not drawn(picture)[40:, 50:].any()


def test_caption_stands_above_its_box() -> None:
    picture = draw_detections(black(), found((10, 40, 50, 70)), NAMES)
    rows = np.flatnonzero(drawn(picture)[:40].any(axis=1))
    assert len(rows) >= 9 and rows[-1] == 39  # down to the box
    assert drawn(picture)[:40, :10].sum() == 0
    band = picture[rows[0] : 40][drawn(picture)[rows[0] : 40]]
    assert (band < 60).all(axis=1).any()  # dark text on the light colour of class 0


def test_caption_without_room_above_stands_inside_its_box() -> None:
    picture = draw_detections(black(), found((10, 5, 90, 70)), NAMES)
    assert not drawn(picture)[:5].any() and drawn(picture)[5:14, 15].all()


@pytest.mark.parametrize(
    "box",
    [(0, 0, 30, 30), (90, 0, 120, 30), (0, 80, 30, 100), (100, 90, 120, 100), (-50, -50, 200, 200)],
)
def test_caption_is_whole_wherever_the_box_is(box: tuple[float, ...]) -> None:
    with_caption = colored(draw_detections(black(), found(box), NAMES))
    elsewhere = colored(draw_detections(black(), found((30, 40, 90, 70)), NAMES))
    caption = elsewhere[:40].sum()  # the same text in the middle of the picture
    assert with_caption.sum() >= caption


@pytest.mark.parametrize(
    ("box", "visible"),
    [
        ((-10, -10, 30, 30), [(29, 5), (25, 29)]),
        ((100, 80, 500, 500), [(90, 100), (99, 110), (90, 119)]),
        ((20.4, 40.4, 60.4, 70.4), [(50, 20), (50, 59), (69, 30)]),
        ((0, 50, 120, 51), [(50, 0), (50, 119)]),
        ((60, 50, 60, 50), [(50, 60)]),  # without area
    ],
)
def test_part_of_a_box_inside_the_picture(
    box: tuple[float, ...], visible: list[tuple[int, int]]
) -> None:
    edge = colored(draw_detections(black(), found(box), NAMES))
    assert all(edge[pixel] for pixel in visible)


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    "box",
    [
        (130, 10, 150, 30),
        (10, -30, 30, -10),
        (-30, 10, -10, 30),
        (10, 110, 30, 130),
        (NAN, 0, 9, 9),
        (0, 0, INF, 9),
        (50, 10, 20, 30),
    ],
)
def test_nothing_to_draw(box: tuple[float, ...]) -> None:
    assert not draw_detections(black(), found(box), NAMES).any()


def test_empty_detections_leave_the_picture_equal_and_not_the_same() -> None:
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    picture = draw_detections(image, Detections.empty(), NAMES)
    assert np.array_equal(picture, image) and not np.shares_memory(picture, image)


def test_input_stays_as_it_is() -> None:
    image = black()
    image.flags.writeable = False
    picture = draw_detections(image[:, ::-1], found((10, 40, 50, 70)), NAMES)
    assert not image.any() and picture.any() and picture.flags.writeable


@pytest.mark.parametrize("size", [(1, 1), (8, 8), (3, 200), (200, 3)])
def test_tiny_pictures_show_their_box_and_themselves(size: tuple[int, int]) -> None:
    height, width = size
    picture = draw_detections(black(*size), found((0, 0, width, height)), NAMES)
    assert picture.shape == (*size, 3)
    assert colored(picture)[0].all()
    if min(size) > 2:
        assert not picture[1:-1, 1:-1].any()  # a caption would hide all of it


def test_lines_grow_with_the_picture() -> None:
    widths = []
    for side in (200, 1000, 4000):
        picture = draw_detections(black(side, side), found((0, side / 2, side, side)), NAMES)
        widths.append(int(colored(picture)[side // 2 :, side // 2].sum()) // 2)
    assert widths == [1, 5, 20]


def test_threshold_keeps_scores_that_reach_it() -> None:
    detections = found((10, 40, 50, 70), score=0.5)
    assert draw_detections(black(), detections, NAMES, threshold=0.5).any()
    assert not draw_detections(black(), detections, NAMES, threshold=0.51).any()


def test_best_lies_on_top() -> None:
    box = (10.0, 40.0, 50.0, 70.0)
    picture = draw_detections(black(), found(box, box, labels=(1, 0)), NAMES)
    assert colored(picture, 1)[69, 10:50].all() and not colored(picture, 0).any()


def test_thousand_boxes_are_quick() -> None:
    corners = np.random.default_rng(0).uniform(0, 600, (1000, 2))
    boxes = [(x, y, x + 40, y + 40) for x, y in corners]
    detections = found(*boxes, labels=tuple(range(1000)))
    draw_detections(black(), detections[:1], NAMES)  # opens the font
    start = time.process_time()
    draw_detections(black(640, 640), detections, NAMES)
    assert time.process_time() - start < 3


def caption_of(names: tuple[str, ...], label: int) -> np.ndarray:
    return draw_detections(black(), found((10, 40, 50, 70), labels=(label,)), names)


def test_names_beyond_ascii_are_drawn() -> None:
    drawn_name = caption_of(NAMES, 2)
    for other in ("Fuße", "F??e", "F  e"):
        assert not np.array_equal(drawn_name, caption_of(("", "", other), 2))


def test_names_that_no_font_has_become_numbers() -> None:
    assert np.array_equal(caption_of(NAMES, 3), caption_of(("", "", "", "class 3"), 3))
    assert np.array_equal(caption_of(NAMES, 7), caption_of(("class 7",) * 8, 7))  # no such name


def test_targets_are_drawn_alike() -> None:
    target = Target(
        boxes=torch.tensor([[10.0, 40.0, 50.0, 70.0]]),
        labels=torch.tensor([1]),
        image_id=3,
        crowd=torch.tensor([False]),
        area=torch.tensor([1200.0]),
    )
    picture = draw_targets(black(), target, NAMES)
    assert colored(picture, 1)[40, 10:50].all() and colored(picture, 1)[40:70, 49].all()
    crowd = Target(target.boxes, target.labels, 3, torch.tensor([True]), target.area)
    assert drawn(draw_targets(black(), crowd, NAMES)).sum() > drawn(picture).sum()  # "(crowd)"


@pytest.mark.parametrize(
    "image",
    [np.zeros((9, 9), np.uint8), np.zeros((9, 9, 4), np.uint8), np.zeros((9, 9, 3), np.float32)],
)
def test_other_arrays_are_refused(image: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"\[H, W, 3\] uint8 RGB, got \[9, 9"):
        draw_detections(image, Detections.empty(), NAMES)


def test_classes_have_their_own_lasting_colors() -> None:
    assert class_color(0) == (255, 38, 38)
    colors = np.array([class_color(label) for label in range(100)])
    assert len(np.unique(colors, axis=0)) == 100
    first = np.abs(colors[:16, None] - colors[None, :16]).sum(axis=2)
    assert first[~np.eye(16, dtype=bool)].min() > 80  # told apart by eye


@pytest.mark.parametrize(
    ("background", "text"),
    [
        ((255, 255, 255), (0, 0, 0)),
        ((0, 0, 0), (255, 255, 255)),
        ((255, 255, 0), (0, 0, 0)),
        ((0, 0, 255), (255, 255, 255)),
        ((117, 117, 117), (255, 255, 255)),  # luminance 0.178
        ((118, 118, 118), (0, 0, 0)),  # luminance 0.181
    ],
)
def test_text_has_the_higher_contrast(
    background: tuple[int, int, int], text: tuple[int, int, int]
) -> None:
    assert text_color(background) == text


def test_contact_sheet_centres_pictures_in_equal_cells() -> None:
    pictures = [np.full((2, 3, 3), 1, np.uint8), np.full((4, 1, 3), 2, np.uint8)]
    pictures.append(np.full((4, 3, 3), 3, np.uint8))
    sheet = contact_sheet(pictures, columns=2, gap=1, background=(0, 0, 0))[..., 0]
    assert sheet.tolist() == [
        [0, 0, 0, 0, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 0, 2, 0, 0],
        [0, 1, 1, 1, 0, 0, 2, 0, 0],
        [0, 1, 1, 1, 0, 0, 2, 0, 0],
        [0, 0, 0, 0, 0, 0, 2, 0, 0],
        [0, 0, 0, 0, 0, 0, 0, 0, 0],
        [0, 3, 3, 3, 0, 0, 0, 0, 0],
        [0, 3, 3, 3, 0, 0, 0, 0, 0],
        [0, 3, 3, 3, 0, 0, 0, 0, 0],
        [0, 3, 3, 3, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 0, 0, 0, 0],
    ]
    assert contact_sheet(pictures[:1], columns=4, gap=0).shape == (2, 3, 3)  # no empty columns


@pytest.mark.parametrize(("count", "columns"), [(0, 4), (1, 0)])
def test_contact_sheet_needs_something(count: int, columns: int) -> None:
    with pytest.raises(ValueError, match=f"got {count} and {columns}"):
        contact_sheet([black()] * count, columns)
