"""Boxes stay on their objects through every transform, and a seed is a result."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from detkit.data import EvalTransform, Sample, TrainTransform, resized_shape

GREY = 128
OBJECTS = [  # colour and box; far apart, none symmetric in the picture
    ((255, 0, 0), (10, 20, 60, 50)),
    ((0, 255, 0), (120, 15, 150, 75)),
    ((0, 0, 255), (30, 90, 130, 140)),
    ((255, 255, 0), (200, 100, 232, 148)),
]
COLORS = np.array([color for color, _ in OBJECTS])


def canvas() -> Sample:
    """Coloured rectangles on grey, 240 x 160; the label is the place in OBJECTS."""
    image = np.full((160, 240, 3), GREY, np.uint8)
    for color, (x1, y1, x2, y2) in OBJECTS:
        image[y1:y2, x1:x2] = color
    boxes = np.array([box for _, box in OBJECTS], np.float32)
    return Sample(
        image=image,
        boxes=boxes,
        labels=np.arange(len(OBJECTS)),
        crowd=np.array([False, False, True, False]),
        area=((boxes[:, 2:] - boxes[:, :2]).prod(axis=1) / 2).astype(np.float32),  # half filled
        image_id=5,
        original_size=(160, 240),
    )


def find(image: np.ndarray, label: int) -> list[int] | None:
    """The box of a colour in the picture."""
    near = np.abs(image.astype(int) - COLORS[label]).max(axis=2) < 64
    if not near.any():
        return None
    y, x = np.nonzero(near)
    return [x.min(), y.min(), x.max() + 1, y.max() + 1]


def check(sample: Sample) -> None:
    """Every box lies where its colour is; crowd and area belong to their box."""
    before = canvas()
    for box, label, crowd, area in zip(
        sample.boxes, sample.labels, sample.crowd, sample.area, strict=True
    ):
        assert find(sample.image, label) == pytest.approx(box.tolist(), abs=1.01)
        assert crowd == before.crowd[label]
        assert area == pytest.approx((box[2:] - box[:2]).prod() / 2, rel=1e-3)
    assert len(sample) + sample.dropped == len(OBJECTS)
    height, width = sample.image.shape[:2]
    assert (sample.boxes >= 0).all()
    assert (sample.boxes <= [width, height, width, height]).all()
    assert sample.image.dtype == np.uint8
    assert sample.boxes.dtype == sample.area.dtype == np.float32
    assert (sample.image_id, sample.original_size) == (5, (160, 240))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"horizontal_flip": 1.0},
        {"vertical_flip": 1.0},
        {"rotate90": 1.0},
        {"crop": 1.0},
        {"scale_jitter": (0.5, 2.0)},
        {"shortest": 300},
        {"shortest": 97, "longest": 120},
        {
            "horizontal_flip": 0.5,
            "vertical_flip": 0.5,
            "rotate90": 0.5,
            "crop": 0.5,
            "scale_jitter": (0.7, 1.5),
        },
    ],
    ids=str,
)
def test_boxes_stay_on_their_objects(settings: dict):
    settings = {"shortest": None, "longest": None, "horizontal_flip": 0.0, **settings}
    transform = TrainTransform(**settings)
    for seed in range(30):
        check(transform(canvas(), seed))


def test_flips_by_hand():
    image = canvas()
    flip = TrainTransform(shortest=None, longest=None, horizontal_flip=1, vertical_flip=1)
    result = flip(image, 0)
    np.testing.assert_array_equal(result.image, image.image[::-1, ::-1])
    np.testing.assert_allclose(result.boxes[0], [240 - 60, 160 - 50, 240 - 10, 160 - 20], atol=1e-3)


def test_no_augmentation_is_the_evaluation_path():
    plain = TrainTransform(shortest=100, longest=140, horizontal_flip=0)(canvas(), 3)
    resized = EvalTransform(shortest=100, longest=140)(canvas(), 3)
    check(resized)
    assert resized.image.shape == (93, 140, 3)
    np.testing.assert_array_equal(plain.image, resized.image)
    np.testing.assert_allclose(plain.boxes, resized.boxes, atol=1e-3)
    np.testing.assert_allclose(plain.area, resized.area, rtol=1e-4)


def test_flips_and_turns_are_drawn_independently():
    transform = TrainTransform(
        shortest=None, longest=None, horizontal_flip=0.5, vertical_flip=0.5, scale_jitter=(0.5, 2)
    )
    seen = []
    for seed in range(400):
        result = transform(canvas(), seed)
        height, width = result.image.shape[:2]
        (x1, y1, x2, y2) = result.boxes[0]
        seen.append(((x1 + x2) / 2 > width / 2, (y1 + y2) / 2 > height / 2, height > 200))
    share = np.array(seen, float)
    np.testing.assert_allclose(share[:, :2].mean(axis=0), 0.5, atol=0.1)
    np.testing.assert_allclose(np.corrcoef(share.T), np.eye(3), atol=0.2)


def test_crop_keeps_what_it_centres_on():
    transform = TrainTransform(shortest=None, longest=None, horizontal_flip=0, crop=1.0)
    shapes, cut, lost = set(), 0, 0
    for seed in range(100):
        result = transform(canvas(), seed)
        assert len(result) >= 1
        height, width = result.image.shape[:2]
        assert (height >= 80) and (width >= 120)
        shapes.add((height, width))
        before = canvas().area[result.labels]
        kept = result.area / before
        assert (kept > 0.19).all()
        assert ((kept < 0.51) | (kept > 0.999)).all()  # a centre inside: the box is whole
        cut += int((kept < 0.51).sum())
        lost += result.dropped
    assert len(shapes) > 50
    assert cut > 3
    assert lost > 20


def test_min_visible_decides_which_cut_boxes_go():
    settings = {"shortest": None, "longest": None, "horizontal_flip": 0, "crop": 1.0}
    strict = TrainTransform(**settings, min_visible=1.0)
    loose = TrainTransform(**settings, min_visible=0.0)
    pairs = [(strict(canvas(), seed), loose(canvas(), seed)) for seed in range(60)]
    assert sum(a.dropped for a, _ in pairs) > sum(b.dropped for _, b in pairs)
    for result, _ in pairs:
        np.testing.assert_allclose(result.area, canvas().area[result.labels], rtol=1e-3)


def test_boxes_below_one_pixel_are_dropped_and_counted():
    sample = canvas()
    sample.boxes[1] = (5, 5, 8, 25)  # three pixels wide, 0.75 after resizing
    result = TrainTransform(shortest=40, longest=None)(sample, 0)
    assert (result.labels.tolist(), result.dropped) == ([0, 2, 3], 1)
    assert result.crowd.tolist() == [False, True, False]


@pytest.mark.parametrize("kept", [0, 1])
def test_pictures_without_boxes(kept: int):
    sample = canvas()
    part = slice(0, kept)
    sample = Sample(
        image=sample.image,
        boxes=sample.boxes[part],
        labels=sample.labels[part],
        crowd=sample.crowd[part],
        area=sample.area[part],
        image_id=1,
        original_size=(160, 240),
    )
    for transform in (
        EvalTransform(shortest=80, longest=None),
        TrainTransform(shortest=80, longest=None, crop=1, color=1, rotate90=1, vertical_flip=1),
    ):
        for seed in range(5):
            result = transform(sample, seed)
            assert result.boxes.shape == (kept, 4)
            assert result.labels.shape == result.crowd.shape == result.area.shape == (kept,)


def test_all_boxes_lost():
    sample = canvas()
    sample.boxes[:] = (5, 5, 8, 8)
    result = TrainTransform(shortest=16, longest=None)(sample, 0)
    assert (result.boxes.shape, result.labels.shape, result.dropped) == ((0, 4), (0,), 4)


def test_a_seed_is_a_result():
    settings = {
        "shortest": 100,
        "longest": 200,
        "vertical_flip": 0.5,
        "rotate90": 0.5,
        "crop": 0.5,
        "color": 1.0,
        "scale_jitter": (0.5, 2.0),
    }
    first = TrainTransform(**settings)
    results = [first(canvas(), seed) for seed in (1, 2, 3)]
    again = pickle.loads(pickle.dumps(TrainTransform(**settings)))  # as a spawned worker gets it
    for seed, expected in zip((3, 1), (results[2], results[0]), strict=True):
        result = again(canvas(), seed)
        np.testing.assert_array_equal(result.image, expected.image)
        np.testing.assert_array_equal(result.boxes, expected.boxes)
    assert len({result.image.tobytes() for result in results}) == 3


def test_global_random_state_is_left_alone():
    transform = TrainTransform(shortest=100, longest=200, crop=1, color=1, rotate90=1)
    torch.manual_seed(0)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    transform(canvas(), 0)
    assert torch.equal(before[0], torch.get_rng_state())
    np.testing.assert_array_equal(before[1], np.random.get_state()[1])


def test_color_changes_pixels_but_not_boxes():
    plain = TrainTransform(shortest=None, longest=None, horizontal_flip=0)
    color = TrainTransform(shortest=None, longest=None, horizontal_flip=0, color=1.0)
    changed = 0
    for seed in range(20):
        result = color(canvas(), seed)
        np.testing.assert_allclose(result.boxes, plain(canvas(), seed).boxes, atol=1e-4)
        changed += not np.array_equal(result.image, canvas().image)
    assert 10 <= changed <= 20


@pytest.mark.parametrize(("shortest", "longest"), [(800, 1333), (320, 448), (97, 99), (64, 1000)])
def test_resized_shape_equals_torchvisions(shortest: int, longest: int):
    reference = GeneralizedRCNNTransform(shortest, longest, [0.0] * 3, [1.0] * 3)
    rng = np.random.default_rng(0)
    sides = [(427, 640), (480, 640), (1, 1), (7, 7), (1200, 31), *rng.integers(8, 1500, (60, 2))]
    for height, width in sides:
        height, width = int(height), int(width)
        expected = reference.resize(torch.zeros(1, height, width), None)[0].shape[1:]
        given = resized_shape(height, width, shortest=shortest, longest=longest)
        assert given == tuple(expected), (height, width)


@pytest.mark.parametrize(
    ("size", "shortest", "longest", "expected"),
    [
        ((100, 200), 50, None, (50, 100)),
        ((100, 200), None, 50, (25, 50)),
        ((100, 200), None, None, (100, 200)),
        ((100, 200), 50, 80, (40, 80)),
        ((100, 200), 50, 120, (50, 100)),
        ((1, 1000), None, 100, (1, 100)),  # not below one pixel
    ],
)
def test_resized_shape_by_hand(size, shortest, longest, expected):
    assert resized_shape(*size, shortest=shortest, longest=longest) == expected


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"horizontal_flip": 1.5}, r"horizontal_flip must be in 0\.\.1, got 1\.5"),
        ({"color": -1}, r"color must be in 0\.\.1, got -1"),
        ({"scale_jitter": (2, 1)}, r"scale_jitter must be 0 < low <= high, got \(2, 1\)"),
        ({"shortest": 0}, "shortest must be at least 1 pixel or None, got 0"),
        ({"longest": -3}, "longest must be at least 1 pixel or None, got -3"),
    ],
)
def test_settings_out_of_range(settings: dict, message: str):
    with pytest.raises(ValueError, match=message):
        TrainTransform(**{"shortest": 100, "longest": 100, **settings})


def test_importing_asks_no_server():
    """albumentations looks for a newer version of itself unless it is told not to."""
    watch = (
        "import socket\n"
        "def refuse(*args, **settings):\n"
        "    print('network', *args)\n"
        "    raise OSError('no network here')\n"
        "socket.getaddrinfo = socket.create_connection = socket.socket.connect = refuse\n"
    )
    environment = {k: v for k, v in os.environ.items() if k != "NO_ALBUMENTATIONS_UPDATE"}
    environment["PYTHONPATH"] = str(Path(__file__).resolve().parents[2])
    # the second line shows that a request would have been seen
    lines = "import detkit.data; print('imported')\n"
    lines += "from albumentations.check_version import check_for_updates; check_for_updates()\n"
    result = subprocess.run(
        [sys.executable, "-c", watch + lines],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    before, after = result.stdout.split("imported\n")
    assert before == ""
    assert after.startswith("network")
