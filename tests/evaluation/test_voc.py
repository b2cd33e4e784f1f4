"""The VOC metric: tables by hand, a slow reference, and numbers of another implementation."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detkit.evaluation.voc import VocSettings, evaluate_voc_files

Record = dict[str, Any]
LEFT, RIGHT, NOWHERE = [0, 0, 10, 10], [50, 0, 10, 10], [0, 80, 10, 10]


def truth(box: list[float], image=1, category=1, **fields) -> Record:
    return {"image_id": image, "category_id": category, "bbox": box, **fields}


def detection(box: list[float], score: float, image=1, category=1) -> Record:
    return {"image_id": image, "category_id": category, "bbox": box, "score": score}


def dataset(truths: list[Record], images=(1,), categories=(1,)) -> Record:
    return {
        "images": [{"id": image} for image in images],
        "categories": [{"id": k, "name": f"class {k}"} for k in categories],
        "annotations": truths,
    }


def ap(truths: list[Record], found: list[Record], **options) -> float:
    return evaluate_voc_files(dataset(truths), found, VocSettings(**options)).mAP


# ------------------------------------------------------------------------------- checked by hand


def test_right_wrong_right():
    """Precision 1, 1/2, 2/3 at the recalls 1/2, 1/2, 1."""
    truths = [truth(LEFT), truth(RIGHT)]
    found = [detection(LEFT, 0.9), detection(NOWHERE, 0.8), detection(RIGHT, 0.7)]
    assert ap(truths, found) == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    # recalls 0 .. 0.5 are six of the eleven
    assert ap(truths, found, interpolation="11-point") == pytest.approx((6 + 5 * 2 / 3) / 11)
    (row,) = evaluate_voc_files(dataset(truths), found).classes
    assert row.recall.tolist() == [0.5, 0.5, 1]
    assert row.precision.tolist() == [1, 0.5, 2 / 3]
    assert row.scores.tolist() == [0.9, 0.8, 0.7]


def test_recall_that_is_not_reached_counts_as_zero():
    found = [detection(LEFT, 0.9)]
    assert ap([truth(LEFT), truth(RIGHT)], found) == 0.5
    assert ap([truth(LEFT), truth(RIGHT)], found, interpolation="11-point") == pytest.approx(6 / 11)


def test_recall_of_three_tenths_reaches_the_level_of_three_tenths():
    truths = [truth([20 * i, 0, 10, 10]) for i in range(10)]
    found = [detection([20 * i, 0, 10, 10], 1 - i / 10) for i in range(3)]
    assert ap(truths, found, interpolation="11-point") == pytest.approx(4 / 11)


def test_a_detection_does_not_turn_to_its_second_best_truth():
    """Both overlap the left truth most; the second one reaches the other truth as well, in vain."""
    truths = [truth([0, 0, 10, 10]), truth([3, 0, 10, 10])]
    found = [detection([0, 0, 10, 10], 0.9), detection([1, 0, 10, 10], 0.8)]
    result = evaluate_voc_files(dataset(truths), found)
    assert result.classes[0].recall.tolist() == [0.5, 0.5]


def test_of_equal_overlaps_the_first_truth():
    """The first detection lies between both and takes the first, so that the second has its own."""
    truths = [truth([0, 0, 10, 10]), truth([4, 0, 10, 10])]
    found = [detection([2, 0, 10, 10], 0.9), detection([4, 0, 10, 10], 0.8)]
    assert ap(truths, found) == 1
    assert ap(truths[::-1], found) == 0.5


@pytest.mark.parametrize("mark", ["difficult", "iscrowd"])
def test_difficult_truths_count_neither_way(mark):
    truths = [truth(LEFT), truth(RIGHT, **{mark: 1})]
    found = [detection(RIGHT, score) for score in (0.9, 0.8)] + [detection(LEFT, 0.7)]
    assert ap(truths, found) == 1
    (row,) = evaluate_voc_files(dataset(truths), found).classes
    assert row.truths == 1 and row.scores.tolist() == [0.7]


def test_a_difficult_truth_hides_the_other_one_of_less_overlap():
    truths = [truth([0, 0, 10, 10], difficult=1), truth([2, 0, 10, 10], difficult=0)]
    assert ap(truths, [detection([0, 0, 10, 10], 0.9)]) == 0  # ignored, and nothing is found


def test_overlap_exactly_on_the_threshold_is_enough():
    assert ap([truth([0, 0, 10, 10])], [detection([0, 0, 10, 5], 0.9)]) == 1
    assert ap([truth([0, 0, 10, 10])], [detection([0, 0, 10, 4.99], 0.9)]) == 0


def test_pixels_belong_to_boxes():
    """Columns 0..3 and 0..1: 2 of 4 pixels with the last column, 1 of 3 without it."""
    truths, found = [truth([0, 0, 3, 3])], [detection([0, 0, 1, 3], 0.9)]
    assert ap(truths, found) == 0
    assert ap(truths, found, legacy_pixels=True) == 1
    assert ap(truths, found, legacy_pixels=True, iou_threshold=0.51) == 0


def test_equal_scores_rank_as_given_over_images():
    data = dataset([truth(LEFT, image=1)], images=(1, 2))
    wrong, right = detection(LEFT, 0.5, image=2), detection(LEFT, 0.5, image=1)
    assert evaluate_voc_files(data, [wrong, right]).mAP == 0.5
    assert evaluate_voc_files(data, [right, wrong]).mAP == 1


def test_classes_without_truths_are_unknown():
    data = dataset([truth(LEFT, category=2)], categories=(1, 2, 3))
    result = evaluate_voc_files(data, [detection(LEFT, 0.9, category=k) for k in (1, 2)])
    assert [row.AP for row in result.classes] == pytest.approx([math.nan, 1, math.nan], nan_ok=True)
    assert result.mAP == 1
    numbers = json.loads(json.dumps(result.as_dict()))
    assert [row["AP"] for row in numbers["per_class"]] == [None, 1, None]
    assert result.table().splitlines() == [
        "VOC AP at IoU 0.50, area",
        "class    truths     AP",
        "class 1       0      -",
        "class 2       1  1.000",
        "class 3       0      -",
        "mAP           1  1.000",
    ]


@pytest.mark.parametrize("interpolation", ["area", "11-point"])
def test_empty(interpolation):
    settings_ = VocSettings(interpolation=interpolation)
    assert math.isnan(evaluate_voc_files(dataset([], (), ()), [], settings_).mAP)
    assert math.isnan(evaluate_voc_files(dataset([]), [detection(LEFT, 0.5)], settings_).mAP)
    assert evaluate_voc_files(dataset([truth(LEFT)]), [], settings_).mAP == 0


# ------------------------------------------------------------------------------- other references


def slow_best(each: Record, truths: list[Record], pixel: int) -> tuple[int | None, float]:
    """The truth of largest overlap, of equal ones the first, and the overlap."""
    best, overlap = None, -1.0
    x, y, w, h = each["bbox"]
    for index, record in enumerate(truths):
        tx, ty, tw, th = record["bbox"]
        width = min(x + w, tx + tw) - max(x, tx) + pixel
        height = min(y + h, ty + th) - max(y, ty) + pixel
        if record["image_id"] == each["image_id"] and width > 0 and height > 0:
            areas = (w + pixel) * (h + pixel) + (tw + pixel) * (th + pixel)
            iou = width * height / (areas - width * height)
            if iou > overlap:
                best, overlap = index, iou
    return best, overlap


def slow_curve(truths: list[Record], found: list[Record], options: Record) -> list[Any]:
    """(recall, precision) after each detection that counts, as the development kit defines them."""
    total = sum(not record.get("difficult") for record in truths)
    taken: set[int] = set()
    true, false, curve = 0, 0, []
    for each in sorted(found, key=lambda record: -record["score"]):
        best, overlap = slow_best(each, truths, int(options["legacy_pixels"]))
        hit = False
        if best is not None and overlap >= options["iou_threshold"]:
            if truths[best].get("difficult"):
                continue
            hit = best not in taken
            taken.add(best)
        true, false = true + hit, false + (not hit)
        curve.append((true / total if total else 0, true / (true + false)))
    return curve


def slow_ap(truths: list[Record], found: list[Record], options: Record) -> float:
    curve = slow_curve(truths, found, options)
    if all(record.get("difficult") for record in truths):
        return math.nan
    if options["interpolation"] == "11-point":
        levels = [max([p for r, p in curve if r >= k / 10], default=0) for k in range(11)]
        return sum(levels) / 11
    area, before = 0.0, 0.0
    for recall in sorted({r for r, _ in curve}):
        area += (recall - before) * max(p for r, p in curve if r >= recall)
        before = recall
    return area


SIDE = st.sampled_from([5, 10, 15, 20, 0])
BOX = st.tuples(st.sampled_from([0, 5, 10]), st.sampled_from([0, 5]), SIDE, SIDE).map(list)
IMAGE = st.sampled_from([1, 2])
TRUTHS = st.lists(st.builds(truth, BOX, IMAGE, difficult=st.sampled_from([0, 0, 1])), max_size=8)
FOUND = st.lists(st.builds(detection, BOX, st.sampled_from([0.2, 0.5, 0.7]), IMAGE), max_size=12)
OPTIONS = st.fixed_dictionaries(
    {
        "legacy_pixels": st.booleans(),
        "iou_threshold": st.sampled_from([0.1, 0.5, 0.75, 1.0]),
        "interpolation": st.sampled_from(["area", "11-point"]),
    }
)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(TRUTHS, FOUND, OPTIONS)
def test_random_cases_equal_the_definition(truths, found, options):
    # of another class in between, which must not matter
    other = [truth(LEFT, category=2), truth(RIGHT, category=2)]
    data = dataset(other[:1] + truths + other[1:], images=(1, 2), categories=(2, 1))
    found_all = [detection(LEFT, 0.6, category=2), *found, detection(RIGHT, 0.9, category=3)]
    value = evaluate_voc_files(data, found_all, VocSettings(**options)).classes[0].AP
    assert value == pytest.approx(slow_ap(truths, found, options), nan_ok=True)


def test_numbers_of_another_implementation():
    """Those of `mean_average_precision` 2024.1.5 (float32), which counts the last pixel in."""
    rng = np.random.default_rng(5)
    truths, found = [], []
    for image in range(12):
        for _ in range(rng.integers(0, 6)):
            corner, size = rng.integers(0, 60, 2), rng.integers(5, 40, 2)
            category = int(rng.integers(0, 3))
            truths.append((image, category, np.concatenate([corner, size])))
    order = rng.permutation(120)
    for k in range(120):
        image, category, box = truths[rng.integers(len(truths))]
        shift = rng.integers(-4, 5, 4) if rng.random() < 0.5 else rng.integers(-15, 16, 4)
        category = category if rng.random() < 0.85 else int(rng.integers(0, 3))
        moved = np.concatenate([(box + shift)[:2], np.maximum(1, (box + shift)[2:])])
        found.append(detection(moved.tolist(), (int(order[k]) + 1) / 128, image, category))
    records = [truth(box.tolist(), image, category) for image, category, box in truths]
    data = dataset(records, images=range(12), categories=range(3))
    expected = {
        "area": [0.46666667, 0.31369248, 0.26049784],
        "11-point": [0.5151515, 0.30211204, 0.25668043],
    }
    for interpolation, values in expected.items():
        options = VocSettings(interpolation=interpolation, legacy_pixels=True)
        result = evaluate_voc_files(data, found, options)
        assert [row.AP for row in result.classes] == pytest.approx(values, abs=1e-7)


# -------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ([], "gt.json: ground truth must be a JSON object, got [] (list)"),
        ({"images": []}, "gt.json: 'categories' is missing"),
        (dataset([truth(LEFT, difficult="0")]), "annotations[0]: 'difficult' must be 0 or 1"),
        (dataset([truth([0, 0, 1])]), "gt.json: annotations[0]: 'bbox' must be [x, y, width"),
        (dataset([truth(LEFT, difficult=1), 7]), "gt.json: annotations[1] must be an object"),
    ],
)
def test_wrong_ground_truth_is_named(data, expected, tmp_path):
    (tmp_path / "gt.json").write_text(json.dumps(data))
    with pytest.raises(ValueError) as error:
        evaluate_voc_files(tmp_path / "gt.json", [])
    assert expected in str(error.value).replace(f"{tmp_path}/", "")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"iou_threshold": 0}, "iou_threshold must lie in 0..1, above 0, got 0"),
        ({"iou_threshold": math.nan}, "iou_threshold must lie in 0..1, above 0, got nan"),
        ({"interpolation": "12"}, "interpolation must be area or 11-point, got '12'"),
    ],
)
def test_wrong_setting_is_named(options, expected):
    with pytest.raises(ValueError, match=expected):
        VocSettings(**options)
