"""Slices are what pycocotools gives for an area range, for other areas, and for some images."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detkit.evaluation import CocoEvaluator, CocoResult
from detkit.evaluation.inputs import CocoSettings, CocoTruths, FlatDetections, FlatTruths
from detkit.evaluation.slices import (
    SIDES,
    Slice,
    Slices,
    slice_by_aspect_ratio,
    slice_by_attribute,
    slice_by_density,
    slice_by_size,
)

IMAGES = 12
SETTINGS = CocoSettings()


def random_data(seed: int) -> tuple[CocoTruths, FlatDetections]:
    """Boxes of all sizes and shapes in 12 images, three of them without truths; crowds, ties."""
    rng = np.random.default_rng(seed)
    image = np.sort(rng.integers(0, IMAGES - 3, 60) ** 2 // (IMAGES - 3))
    boxes = np.round(
        np.concatenate([rng.uniform(0, 60, (60, 2)), 2 ** rng.uniform(2, 8, (60, 2))], 1)
    )
    category = rng.integers(0, 3, 60)
    area = np.round(boxes[:, 2] * boxes[:, 3] * rng.uniform(0.5, 1, 60))
    truths = FlatTruths.of(image, category, boxes, area=area, crowd=rng.random(60) < 0.1)
    row = rng.integers(0, 60, 300)
    near = np.round(boxes[row] * rng.uniform(0.85, 1.15, (300, 4)))
    near[:, 2:] = near[:, 2:].clip(1)
    stray = rng.random(300) < 0.3
    near[stray] = rng.permutation(near[stray])
    scores = rng.integers(0, 30, 300) / 30
    found_in = np.where(stray, rng.integers(0, IMAGES, 300), image[row])
    found = FlatDetections(
        found_in, np.where(stray, rng.integers(0, 4, 300), category[row]), near, scores
    )
    ids = np.arange(IMAGES) * 3 + 5
    return CocoTruths(ids, np.array([1, 2, 5, 6]), ("a", "b", "c", "d"), truths), found


def with_pycocotools(
    truths: CocoTruths,
    found: FlatDetections,
    *,
    area_ranges: list[tuple[float, float]] | None = None,
    areas: tuple[np.ndarray, np.ndarray] | None = None,
    images: np.ndarray | None = None,
) -> COCOeval:
    """Evaluated; on some images only, or with other areas of truths and detections."""
    flat = truths.truths
    area_of_truth, area_of_found = areas or (flat.area, found.boxes[:, 2] * found.boxes[:, 3])
    data = {
        "images": [{"id": i} for i in truths.image_ids.tolist()],
        "categories": [{"id": k} for k in truths.category_ids.tolist()],
        "annotations": [
            {
                "id": i + 1,
                "image_id": int(truths.image_ids[flat.image[i]]),
                "category_id": int(truths.category_ids[flat.category[i]]),
                "bbox": flat.boxes[i].tolist(),
                "area": float(area_of_truth[i]),
                "iscrowd": int(flat.crowd[i]),
            }
            for i in range(len(flat))
        ],
    }
    rows = [
        {
            "image_id": int(truths.image_ids[found.image[i]]),
            "category_id": int(truths.category_ids[found.category[i]]),
            "bbox": found.boxes[i].tolist(),
            "score": float(found.scores[i]),
        }
        for i in range(len(found))
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = data
        truth.createIndex()
        results = truth.loadRes(rows)
        for annotation, area in zip(results.dataset["annotations"], area_of_found, strict=True):
            annotation["area"] = area  # of the same objects as in its index
        evaluation = COCOeval(truth, results, "bbox")
        if images is not None:
            evaluation.params.imgIds = truths.image_ids[images].tolist()
        if area_ranges is not None:
            evaluation.params.areaRng = area_ranges
            evaluation.params.areaRngLbl = [str(i) for i in range(len(area_ranges))]
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation


def numbers(evaluation: COCOeval, area: int = 0) -> list[float]:
    """AP, AP50 and AR as pycocotools' summarize takes them, NaN for -1."""
    precision = evaluation.eval["precision"][:, :, :, area, -1]
    recall = evaluation.eval["recall"][:, :, area, -1]
    values = [table[table > -1] for table in (precision, precision[:1], recall)]
    return [float(np.mean(value)) if len(value) else math.nan for value in values]


def of_slice(part: Slice) -> list[float]:
    return [part.AP, part.AP50, part.AR]


def half_open(edges: list[float]) -> list[tuple[float, float]]:
    ends = [0.0, *edges, 1e99]
    return [(low, np.nextafter(high, 0)) for low, high in itertools.pairwise(ends)]


def assert_same(slices: Slices, evaluation: COCOeval) -> None:
    for index, part in enumerate(slices.slices):
        np.testing.assert_array_equal(of_slice(part), numbers(evaluation, index), part.label)


# ------------------------------------------------------------------------------------ pycocotools


@pytest.mark.parametrize("seed", range(5))
def test_by_size_is_an_area_range(seed: int) -> None:
    truths, found = random_data(seed)
    slices = slice_by_size(truths, found, SETTINGS)
    assert len(slices.slices) == 14  # 140 curves
    ranges = half_open([side**2 for side in SIDES])
    assert_same(slices, with_pycocotools(truths, found, area_ranges=ranges))
    assert sum(part.truths for part in slices.slices) == (~truths.truths.crowd).sum()
    assert sum(part.detections for part in slices.slices) == len(found)
    assert sum(not math.isnan(part.AP) for part in slices.slices) > 5


@pytest.mark.parametrize("seed", range(5))
def test_by_aspect_ratio_is_a_range_of_another_area(seed: int) -> None:
    truths, found = random_data(seed)
    slices = slice_by_aspect_ratio(truths, found, SETTINGS, edges=(0.5, 1, 2))
    ratios = tuple(flat.boxes[:, 3] / flat.boxes[:, 2] for flat in (truths.truths, found))
    ranges = half_open([0.5, 1, 2])
    assert_same(slices, with_pycocotools(truths, found, area_ranges=ranges, areas=ratios))
    assert sum(part.truths for part in slices.slices) == (~truths.truths.crowd).sum()
    assert [part.detections for part in slices.slices] == [
        ((ratios[1] >= low) & (ratios[1] <= high)).sum() for low, high in ranges
    ]


@pytest.mark.parametrize("seed", range(5))
def test_groups_of_images_are_files_of_these_images(seed: int) -> None:
    truths, found = random_data(seed)
    rng = np.random.default_rng(seed)
    weather = rng.choice(["rain", "sun", "fog"], IMAGES)
    records = [{"weather": value} for value in weather.tolist()]
    slices = slice_by_attribute(truths, found, SETTINGS, records=records, name="weather")
    assert [part.label for part in slices.slices] == ["fog", "rain", "sun"]
    for part in slices.slices:
        images = np.flatnonzero(weather == part.label)
        evaluation = with_pycocotools(truths, found, images=images)
        np.testing.assert_array_equal(of_slice(part), numbers(evaluation))
        assert part.images == len(images)
        assert part.detections == np.isin(found.image, images).sum()


@pytest.mark.parametrize("seed", range(5))
def test_by_density_groups_by_the_truths_that_count(seed: int) -> None:
    truths, found = random_data(seed)
    slices = slice_by_density(truths, found, SETTINGS, edges=(1, 3, 6))
    assert [part.label for part in slices.slices] == ["0", "1-2", "3-5", "6 or more"]
    flat = truths.truths
    objects = np.bincount(flat.image[~flat.crowd], minlength=IMAGES)
    for part, low, high in zip(slices.slices, (0, 1, 3, 6), (1, 3, 6, 99), strict=True):
        images = np.flatnonzero((objects >= low) & (objects < high))
        assert part.images == len(images)
        assert part.truths == objects[images].sum()
        if part.images:
            evaluation = with_pycocotools(truths, found, images=images)
            np.testing.assert_array_equal(of_slice(part), numbers(evaluation))
    assert math.isnan(slices.slices[0].AP) and slices.slices[0].images >= 3


def test_groups_of_images_take_the_range_called_all() -> None:
    truths, found = random_data(0)
    ranges = {"small": (0.0, 1024.0), "all": (0.0, 1e10)}
    settings = CocoSettings.of(None, ranges, (10, 100))
    expected = slice_by_density(truths, found, SETTINGS)
    assert slice_by_density(truths, found, settings).table() == expected.table()


# ------------------------------------------------------------------------------- checked by hand


def two_images() -> CocoResult:
    """A small square found in the first image, a large tall one missed in the second."""
    evaluator = CocoEvaluator.from_arrays(
        image_ids=[1, 2],
        category_ids=[1],
        gt_image_index=[0, 1],
        gt_category_index=[0, 0],
        gt_boxes=[[0, 0, 10, 10], [0, 0, 50, 200]],
    )
    evaluator.update(1, [[0, 0, 10, 10]], [0.9], [1])
    evaluator.update(2, [[100, 100, 110, 110]], [0.8], [1])
    return evaluator.compute()


def test_a_miss_and_a_hit() -> None:
    result = two_images()
    arguments = (result.truths, result.detections, result.settings)
    small, large = slice_by_size(*arguments, edges=[32]).slices
    # the wrong box is small and scores below the right one: nothing is lost among small ones
    one = pytest.approx(1.0)  # pycocotools divides by a hair more than the detections
    assert small == Slice("below 32", images=1, truths=1, detections=2, AP=one, AP50=one, AR=1.0)
    assert large == Slice("32 or more", images=1, truths=1, detections=0, AP=0.0, AP50=0.0, AR=0.0)
    square, tall = slice_by_aspect_ratio(*arguments, edges=[2]).slices
    assert (square.AP, square.detections, tall.AP, tall.detections) == (one, 2, 0.0, 0)
    records = [{"night": False}, {"night": True}]
    day, night = slice_by_attribute(*arguments, records=records, name="night").slices
    assert (day.label, day.AP, night.label, night.AP) == ("false", one, "true", 0.0)


def test_an_object_on_an_edge_is_in_the_upper_slice() -> None:
    assert [part.truths for part in two_images().by_size([5, 10, 20]).slices] == [0, 0, 1, 1]
    assert [part.truths for part in two_images().by_aspect_ratio([1, 4]).slices] == [0, 1, 1]
    assert [part.images for part in two_images().by_density([1, 2]).slices] == [0, 2, 0]


def test_boxes_without_width_or_height() -> None:
    truths = FlatTruths.of([0, 0, 0], [0, 0, 0], [[0, 0, 0, 5], [0, 0, 5, 0], [0, 0, 0, 0]])
    data = CocoTruths(np.array([1]), np.array([1]), ("a",), truths)
    found = FlatDetections(truths.image, truths.category, truths.boxes, np.ones(3))
    slices = slice_by_aspect_ratio(data, found, SETTINGS, edges=[0.5, 2])
    assert [part.truths for part in slices.slices] == [1, 1, 1]  # flat, a point, upright
    assert [part.detections for part in slices.slices] == [1, 1, 1]


def test_table_and_json() -> None:
    result = two_images()
    slices = slice_by_density(result.truths, result.detections, result.settings)
    assert slices.table().splitlines()[:3] == [
        "objects     images  truths  detections     AP   AP50     AR",
        "0                0       0           0      -      -      -",
        "1                2       2           2  0.505  0.505  0.500",
    ]
    first = json.loads(json.dumps(slices.as_dict()))["slices"][0]
    assert (first["label"], first["AP"], first["truths"]) == ("0", None, 0)


# ------------------------------------------------------------------------------------ attributes


def labels(values: list[Any]) -> list[tuple[str, int]]:
    """Names and images of the groups of images with these values; 'absent' has no value."""
    none = np.zeros(0, int)
    flat = FlatTruths.of(none, none, np.zeros((0, 4)))
    truths = CocoTruths(np.arange(len(values)), np.array([1]), ("a",), flat)
    found = FlatDetections(none, none, np.zeros((0, 4)), np.zeros(0))
    records = [{} if value == "absent" else {"it": value} for value in values]
    slices = slice_by_attribute(truths, found, SETTINGS, records=records, name="it")
    return [(part.label, part.images) for part in slices.slices]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["b", "a", "b"], [("a", 1), ("b", 2)]),
        (["b", None, "absent", math.nan], [("b", 1), ("(none)", 3)]),
        ([10, 9, 10.5, 9], [("9", 2), ("10", 1), ("10.5", 1)]),
        ([True, False, True], [("false", 1), ("true", 2)]),
        ([1, "x", [2, 3]], [("1", 1), ("[2, 3]", 1), ("x", 1)]),
        ([None, "absent"], [("(none)", 2)]),
        (
            list(range(100, 140)),
            [(name, 10) for name in ("below 109.8", "109.8 to 119.5", "119.5 to 129.2")]
            + [("129.2 or more", 10)],
        ),
    ],
)
def test_values(values: list[Any], expected: list[tuple[str, int]]) -> None:
    assert labels(values) == expected


def test_many_numbers_and_none() -> None:
    assert labels([*range(100, 140), None])[-1] == ("(none)", 1)


def test_unknown_attribute() -> None:
    result = two_images()
    records = [{"id": 1, "weather": "sun"}, {"id": 2}]
    with pytest.raises(
        ValueError, match=r"'wether'; did you mean 'weather'\? allowed: id, weather"
    ):
        slice_by_attribute(
            result.truths, result.detections, SETTINGS, records=records, name="wether"
        )


def test_attributes_of_a_file_and_of_arrays() -> None:
    data = {
        "images": [{"id": 1, "weather": "rain"}, {"id": 2, "weather": "sun"}],
        "categories": [{"id": 1, "name": "a"}],
        "annotations": [{"id": 1, "image_id": 2, "category_id": 1, "bbox": [0, 0, 9, 9]}],
    }
    evaluator = CocoEvaluator.from_coco(data)
    evaluator.update(2, [[0, 0, 9, 9]], [0.5], [1])
    rain, sun = evaluator.compute().by_attribute("weather").slices
    assert (rain.label, rain.truths, sun.label, sun.AR) == ("rain", 0, "sun", 1.0)
    with pytest.raises(ValueError, match="came as arrays, which say nothing of images"):
        two_images().by_attribute("weather")


def test_too_many_values() -> None:
    with pytest.raises(ValueError, match="'it' has 60 different values; at most 50"):
        labels([f"{i}.jpg" for i in range(60)])


@pytest.mark.parametrize("edges", [[], [0, 1], [2, 1], [math.nan]])
def test_wrong_edges(edges: list[float]) -> None:
    truths, found = random_data(0)
    for function in (slice_by_size, slice_by_aspect_ratio, slice_by_density):
        with pytest.raises(ValueError, match="above 0 and ascend"):
            function(truths, found, SETTINGS, edges=edges)


@pytest.mark.parametrize("images", [0, 2])
def test_empty(images: int) -> None:
    truths, found = random_data(0)
    none = np.zeros(0, int)
    truths = replace(truths, image_ids=np.arange(images), truths=truths.truths[none])
    for function in (slice_by_size, slice_by_aspect_ratio, slice_by_density):
        slices = function(truths, found[none], SETTINGS)
        assert all(math.isnan(part.AP) and part.truths == 0 for part in slices.slices)
        assert len(slices.table().splitlines()) == len(slices.slices) + 1
