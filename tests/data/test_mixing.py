"""Mosaic, copy-paste and mixup: every truth is found again where its colour is."""

from __future__ import annotations

import pickle
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from detkit.data import Sample, TrainTransform
from detkit.data.images import ImageReadError
from detkit.data.mixing import (
    GREY,
    MIXUP_SHARE,
    MixTransform,
    TransformPlan,
    blend,
    cut,
    join_at,
    paste_boxes,
)
from detkit.data.reading import Reader

# Corners of the colour cube, far from grey: each stays itself when it is mixed with grey
COLORS = np.array(
    [(r, g, b) for r in (0, 255) for g in (0, 255) for b in (0, 255)][1:7], np.float64
)
HEIGHT, WIDTH = 120, 160
# two boxes of each picture touch its border; none overlap
BOXES = ([(0, 0, 40, 30), (70, 20, 110, 60)], [(120, 80, 160, 120), (20, 70, 60, 100)], [])
AREA_SHARE = 0.5  # of its box that an object is said to fill


def picture(index: int, *, size: tuple[int, int] = (HEIGHT, WIDTH)) -> Sample:
    """Coloured rectangles on grey; labels are rows of COLORS, crowd is label 1."""
    image = np.full((*size, 3), GREY, np.uint8)
    boxes = np.array(BOXES[index % 3], np.float32).reshape(-1, 4)
    labels = np.arange(len(boxes)) + 2 * (index % 3)
    for (x1, y1, x2, y2), label in zip(boxes.astype(int), labels, strict=True):
        image[y1:y2, x1:x2] = COLORS[label]
    return Sample(
        image=image,
        boxes=boxes,
        labels=labels,
        crowd=labels == 1,
        area=(boxes[:, 2:] - boxes[:, :2]).prod(axis=1) * np.float32(AREA_SHARE),
        image_id=10 + index,
        original_size=size,
    )


class Pictures:
    """A data set of three pictures; reading one may fail."""

    def __init__(self, *, broken: tuple[int, ...] = (), proposals: object = None) -> None:
        self.broken, self.proposals = broken, proposals

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> Sample:
        if index in self.broken:
            raise ImageReadError(f"cannot read image {self.path(index)}")
        return picture(index)

    def path(self, index: int) -> str:
        return f"{index}.jpg"


def transform(mix: dict[str, float], *, pictures: Pictures | None = None, **single: Any):
    single = {"shortest": 120, "longest": None, "horizontal_flip": 0.0, **single}
    reader: Any = Reader(pictures or Pictures(), skip=True)  # type: ignore[arg-type]
    return MixTransform(transform=TrainTransform(**single), reader=reader, **mix)


def has_color(image: np.ndarray, label: int) -> np.ndarray:
    """Which pixels have a colour, or its mixture with grey of at least a third."""
    offset = image.astype(np.float64) - GREY
    direction = COLORS[label] - GREY
    strength = (offset @ direction) / (direction @ direction)
    rest = np.abs(offset - strength[..., None] * direction).max(axis=2)
    return (strength > 0.33) & (rest < 25)


def check(sample: Sample, *, tolerance: float = 1.01) -> int:
    """Every truth has its colour within and none of it beside; returns how many there were."""
    height, width = sample.image.shape[:2]
    assert sample.image.dtype == np.uint8
    assert sample.boxes.dtype == sample.area.dtype == np.float32
    assert len(sample.boxes) == len(sample.labels) == len(sample.crowd) == len(sample.area)
    assert (sample.boxes >= 0).all()
    assert (sample.boxes <= [width, height, width, height]).all()
    np.testing.assert_array_equal(sample.crowd, sample.labels == 1)
    sides = sample.boxes[:, 2:] - sample.boxes[:, :2]
    np.testing.assert_allclose(sample.area, sides.prod(axis=1) * AREA_SHARE, rtol=2e-3)
    for label in range(len(COLORS)):
        pixels = has_color(sample.image, label)
        for box in sample.boxes[sample.labels == label]:
            (x1, y1), (x2, y2) = np.floor(box[:2]).astype(int), np.ceil(box[2:]).astype(int)
            y, x = np.nonzero(pixels[y1:y2, x1:x2])
            found = [x1 + x.min(), y1 + y.min(), x1 + x.max() + 1, y1 + y.max() + 1]
            assert found == pytest.approx(box.tolist(), abs=tolerance)
            pixels[max(0, y1 - 1) : y2 + 1, max(0, x1 - 1) : x2 + 1] = False
        assert pixels.sum() <= max_fragment(sample)
    return len(sample)


def max_fragment(sample: Sample) -> float:
    """Pixels of a colour without a truth: what remains of dropped truths, below a fifth of each."""
    return 40 * 40 * 1.6**2 * 0.2 * sample.dropped


def total(*samples: Sample) -> int:
    return sum(len(each) for each in samples)


def test_the_check_sees_a_box_that_is_off() -> None:
    good = picture(0)
    assert check(good) == 2
    for shift in ([2, 0, 2, 0], [0, 0, 2, 0], [0, 0, 0, -2]):
        with pytest.raises(AssertionError):
            check(replace(good, boxes=good.boxes + np.array([[0] * 4, shift], np.float32)))
    with pytest.raises(AssertionError):  # a truth is missing
        check(replace(good, **{n: getattr(good, n)[:1] for n in ("boxes", "labels", "crowd")}))


def test_cut_by_hand() -> None:
    sample = picture(0)  # (0, 0, 40, 30) and (70, 20, 110, 60), crowd
    left = cut(sample, (10, 5, 72, 60), min_visible=0.2)
    assert left.boxes.tolist() == [[0, 0, 30, 25]]
    assert left.area.tolist() == [30 * 25 * AREA_SHARE]
    assert (left.image.shape, left.dropped, left.labels.tolist()) == ((55, 62, 3), 1, [0])
    assert cut(sample, (10, 5, 78, 60), min_visible=0.2).labels.tolist() == [0, 1]  # a fifth of 40
    assert cut(sample, (10, 5, 71, 60), min_visible=0.0).labels.tolist() == [0, 1]  # a pixel
    assert len(cut(sample, (41, 70, 50, 80), min_visible=0.0)) == 0


def test_mosaic_by_hand() -> None:
    """Four pictures of 160 x 120 meet at (100, 50) of 200 x 150; their inner corners are there."""
    parts = [picture(0), picture(1), picture(2), picture(0)]
    result = join_at(parts, size=(150, 200), center=(100, 50), min_visible=0.2)
    # top left shows (60..160, 70..120) of picture 0, whose boxes end above that: both are dropped
    # top right (0..100, 70..120) of picture 1: (20, 70, 60, 100) whole, the other outside
    # bottom right (0..100, 0..100) of picture 0: the first whole, of the other three quarters
    assert result.boxes.tolist() == [
        [120, 0, 160, 30],
        [100, 50, 140, 80],
        [170, 70, 200, 110],
    ]
    assert (result.labels.tolist(), result.dropped) == ([3, 0, 1], 3)
    assert check(result) == 3
    small = [replace(picture(2, size=(20, 30)), image_id=5) for _ in range(4)]
    image = join_at(small, size=(60, 80), center=(40, 30), min_visible=0.2).image
    assert (image == GREY).all()


def test_copy_paste_covers_nothing_and_crowds_stay() -> None:
    pasted, sizes = 0, set()
    for seed in range(60):
        rng = np.random.default_rng(seed)
        before = picture(1)
        result = paste_boxes(before, picture(0), rng, min_visible=0.2)
        np.testing.assert_array_equal(before.image, picture(1).image)  # not changed
        np.testing.assert_array_equal(result.boxes[:2], before.boxes)
        assert set(result.labels[2:].tolist()) <= {0}  # label 1 is the crowd
        check(result)
        pasted += len(result) - 2
        sizes |= {tuple(box[2:] - box[:2]) for box in result.boxes[2:].round()}
    assert pasted > 50
    assert len(sizes) > 20


def test_copy_paste_brings_what_stands_in_front() -> None:
    """A small object in a large one travels with it; of a neighbour less than a fifth does not."""
    source = picture(2)
    boxes = np.array([(10, 10, 90, 90), (30, 30, 50, 60), (85, 20, 125, 40)], np.float32)
    for label, (x1, y1, x2, y2) in enumerate(boxes.astype(int)):
        source.image[y1:y2, x1:x2] = COLORS[2 * label]
    area = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1) * np.float32(AREA_SHARE)
    source = replace(source, boxes=boxes, labels=np.array([0, 2, 4]), area=area)
    source = replace(source, crowd=np.array([False, True, True]))  # only the first is chosen
    came = []
    for seed in range(20):
        result = paste_boxes(
            picture(2, size=(240, 320)), source, np.random.default_rng(seed), min_visible=0.2
        )
        came.append(result.labels.tolist())
        for box, other in zip(result.boxes[:1], result.boxes[1:2], strict=False):
            factor = (box[2] - box[0]) / 80
            np.testing.assert_allclose(other[:2] - box[:2], 20 * factor, atol=0.5)
    assert came.count([0, 2]) > 10
    assert all(labels in ([], [0, 2]) for labels in came)


def test_no_room_to_paste() -> None:
    full = picture(0)
    full = replace(full, boxes=np.array([[0, 0, 160, 120]] * 2, np.float32))
    result = paste_boxes(full, picture(1), np.random.default_rng(0), min_visible=0.2)
    assert result.labels.tolist() == full.labels.tolist()
    assert len(paste_boxes(full, picture(2), np.random.default_rng(0), min_visible=0.2)) == 2


def test_blend_by_hand() -> None:
    first, second = picture(0), picture(1)
    result = blend(first, second, share=0.4)
    assert result.labels.tolist() == [0, 1, 2, 3]
    np.testing.assert_array_equal(result.boxes, np.concatenate([first.boxes, second.boxes]))
    expected = 0.4 * first.image.astype(float) + 0.6 * second.image
    np.testing.assert_allclose(result.image, expected, atol=0.51)
    check(result)
    # a picture of another shape is fitted in: half as large, the right half stays as it was
    tall = blend(first, picture(1, size=(240, 160)), share=0.5)
    assert tall.boxes[2:].tolist() == (second.boxes / 2).tolist()
    np.testing.assert_array_equal(tall.image[:, 80:], first.image[:, 80:])
    assert (tall.image_id, tall.original_size) == (10, (HEIGHT, WIDTH))


@pytest.mark.parametrize(
    ("mix", "single"),
    [
        ({"mosaic": 1.0}, {}),
        ({"mosaic": 1.0}, {"shortest": None, "longest": None}),
        ({"mosaic": 1.0}, {"horizontal_flip": 1.0, "shortest": None, "longest": 200}),
        ({"mosaic": 1.0}, {"crop": 1.0, "scale_jitter": (0.7, 1.3)}),
        ({"copy_paste": 1.0}, {}),
        ({"copy_paste": 1.0}, {"vertical_flip": 0.5, "rotate90": 0.5}),
        ({"mosaic": 0.5, "copy_paste": 0.5}, {"crop": 0.5, "rotate90": 0.5}),
    ],
    ids=str,
)
def test_truths_are_found_again_by_color(mix: dict[str, float], single: dict[str, Any]) -> None:
    augment, seen = transform(mix, **single), 0
    for seed in range(40):
        result = augment(picture(seed), seed)
        seen += check(result, tolerance=1.6 if "scale_jitter" in single else 1.3)
        assert result.image_id == 10 + seed
    assert seen > 40


def found_in_mixture(image: np.ndarray, label: int, box: np.ndarray) -> bool:
    """Whether the edges of a box are where its colour begins, whatever shines through."""
    (x1, y1), (x2, y2) = box[:2].round().astype(int), box[2:].round().astype(int)
    height, width = image.shape[:2]
    pixels = image.astype(np.float64) @ (COLORS[label] - GREY)
    weight = np.linalg.norm(COLORS[label] - GREY) ** 2
    inside = pixels[y1 + 2 : y2 - 2, x1 + 2 : x2 - 2].mean()
    edges = [
        pixels[y1 + 2 : y2 - 2, x1 - 3 : x1 - 1] if x1 > 3 else None,
        pixels[y1 + 2 : y2 - 2, x2 + 1 : x2 + 3] if x2 < width - 3 else None,
        pixels[y1 - 3 : y1 - 1, x1 + 2 : x2 - 2] if y1 > 3 else None,
        pixels[y2 + 1 : y2 + 3, x1 + 2 : x2 - 2] if y2 < height - 3 else None,
    ]
    return all(inside - edge.mean() > 0.15 * weight for edge in edges if edge is not None)


def test_mixup_of_apart_objects_is_found_again_by_color() -> None:
    """Pictures 0 and 1 have their objects at different places: their mixture hides none."""
    augment = transform({"mixup": 1.0})
    both = 0
    for seed in range(40):
        result = augment(picture(seed % 2), seed)
        if len(set(result.labels.tolist())) < len(result):
            continue  # mixed with itself
        assert result.labels[:2].tolist() == picture(seed % 2).labels.tolist()
        check(result)
        both += len(result) == 4
    assert both > 8


def test_everything_together_keeps_boxes_on_their_edges() -> None:
    mix = {"mosaic": 0.7, "copy_paste": 0.5, "mixup": 0.5}
    augment = transform(mix, crop=0.5, horizontal_flip=0.5, vertical_flip=0.5)
    good = seen = 0
    for seed in range(150):
        result = augment(picture(seed), seed)
        for box, label in zip(result.boxes, result.labels, strict=True):
            if (box[2:] - box[:2]).min() < 12:
                continue
            seen += 1
            good += found_in_mixture(result.image, label, box)
    assert seen > 300
    assert good > 0.9 * seen  # others lie under or over a truth of another colour


def test_a_seed_is_a_result() -> None:
    augment = transform({"mosaic": 0.5, "copy_paste": 0.5, "mixup": 0.5}, crop=0.5, color=1.0)
    copy = pickle.loads(pickle.dumps(augment))
    results = [augment(picture(0), seed) for seed in range(6)]
    for seed in reversed(range(6)):
        again = copy(picture(0), seed)
        np.testing.assert_array_equal(again.image, results[seed].image)
        np.testing.assert_array_equal(again.boxes, results[seed].boxes)
    assert len({result.image.tobytes() for result in results}) == 6


def test_zero_probabilities_change_nothing() -> None:
    augment = transform({}, crop=0.5, color=0.5, scale_jitter=(0.5, 1.5))
    for seed in range(10):
        alone, mixed = augment.transform(picture(0), seed), augment(picture(0), seed)
        np.testing.assert_array_equal(alone.image, mixed.image)
        np.testing.assert_array_equal(alone.boxes, mixed.boxes)


def test_unreadable_pictures_are_replaced_in_mixtures_too() -> None:
    augment = transform({"mosaic": 1.0}, pictures=Pictures(broken=(1,)))
    results = [augment(picture(0), seed) for seed in range(20)]
    skipped = [path for result in results for path in result.skipped]
    assert set(skipped) == {"1.jpg"}
    assert 10 < len(skipped) < 60  # of three draws each a third, and some again
    assert not {2, 3} & {int(label) for result in results for label in result.labels}


def test_settings_that_cannot_be() -> None:
    with pytest.raises(ValueError, match=r"mixup must be in 0\.\.1, got 2"):
        transform({"mixup": 2})
    with pytest.raises(ValueError, match=r"mosaic, copy_paste and mixup .* proposals"):
        transform({"mosaic": 1}, pictures=Pictures(proposals=object()))


def test_a_plan_draws_for_each_batch_and_closes() -> None:
    names: Any = ("small", "large")
    plan = TransformPlan(usual=names, closing=("last",), close_at=3, seed=7)  # type: ignore[arg-type]
    drawn = [plan.at(epoch, turn) for epoch in range(3) for turn in range(50)]
    assert 50 < drawn.count("small") < 100
    assert drawn == [plan.at(epoch, turn) for epoch in range(3) for turn in range(50)]
    assert {plan.at(epoch, turn) for epoch in (3, 4) for turn in range(5)} == {"last"}
    other = TransformPlan(usual=names, closing=names, close_at=3, seed=8)
    assert drawn != [other.at(epoch, turn) for epoch in range(3) for turn in range(50)]


def test_mixup_shows_both() -> None:
    low, high = MIXUP_SHARE
    assert 0.33 < low < high < 0.67  # what `has_color` asks for
