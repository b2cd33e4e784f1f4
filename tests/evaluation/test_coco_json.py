"""Files that are wrong: one clear line with the file, the index and the field."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import pytest

from detkit.evaluation import CocoEvaluator, evaluate_files

Record = dict[str, Any]
BOX = [0, 0, 10, 10]
GOOD_TRUTH = {"id": 1, "image_id": 1, "category_id": 1, "bbox": BOX, "area": 100, "iscrowd": 0}
GOOD_DETECTION = {"image_id": 1, "category_id": 1, "bbox": BOX, "score": 0.5}
GOOD_DATA = {
    "images": [{"id": 1}],
    "categories": [{"id": 1, "name": "cat"}],
    "annotations": [GOOD_TRUTH],
}


def without(record: Record, field: str) -> Record:
    return {key: value for key, value in record.items() if key != field}


@pytest.fixture
def message(tmp_path):
    """The message for a ground truth and detections, as values or as text."""

    def evaluate(data: Any = GOOD_DATA, found: Any = (GOOD_DETECTION,), **options) -> str:
        for name, content in (("gt.json", data), ("dt.json", found)):
            text = content if isinstance(content, str) else json.dumps(content)
            (tmp_path / name).write_text(text)
        with pytest.raises(ValueError) as error:
            evaluate_files(tmp_path / "gt.json", tmp_path / "dt.json", **options)
        text = str(error.value)
        assert "\n" not in text
        return text.replace(f"{tmp_path}/", "")

    return evaluate


DETECTIONS = {
    "missing image": (without(GOOD_DETECTION, "image_id"), "'image_id' is missing"),
    "missing category": (without(GOOD_DETECTION, "category_id"), "'category_id' is missing"),
    "missing box": (without(GOOD_DETECTION, "bbox"), "'bbox' is missing"),
    "missing score": (without(GOOD_DETECTION, "score"), "'score' is missing"),
    "not an object": ([1, 2], "must be an object, got [1, 2] (list)"),
    "null": (None, "must be an object, got None (NoneType)"),
    "text as id": ({"image_id": "1"}, "'image_id' must be a whole number, got '1' (str)"),
    "fraction as id": ({"category_id": 1.5}, "'category_id' must be a whole number, got 1.5"),
    "bool as id": ({"category_id": True}, "'category_id' must be a whole number, got True"),
    "huge id": ({"image_id": 2**63}, "'image_id' must be a whole number"),
    "text as score": ({"score": "0.5"}, "'score' must be a finite number, got '0.5' (str)"),
    "null score": ({"score": None}, "'score' must be a finite number, got None (NoneType)"),
    "NaN score": ({"score": float("nan")}, "'score' must be a finite number, got nan (float)"),
    "infinite score": ({"score": float("inf")}, "'score' must be a finite number, got inf"),
    "huge score": ({"score": 10**400}, "'score' must be a finite number, got 10000"),
    "three numbers": ({"bbox": [0, 0, 1]}, "'bbox' must be [x, y, width, height]"),
    "null box": ({"bbox": None}, "'bbox' must be [x, y, width, height]"),
    "text in box": ({"bbox": [0, 0, "1", 1]}, "'bbox' must be [x, y, width, height]"),
    "box as text": ({"bbox": "0123"}, "'bbox' must be [x, y, width, height]"),
    "NaN in box": ({"bbox": [0, 0, float("nan"), 1]}, "'bbox' must be [x, y, width, height]"),
    "huge box": ({"bbox": [0, 0, 10**400, 1]}, "'bbox' must be [x, y, width, height]"),
}


@pytest.mark.parametrize("case", DETECTIONS)
def test_wrong_detection_is_named(case, message):
    change, expected = DETECTIONS[case]
    complete = case.startswith(("missing", "not", "null")) and not case.startswith("null ")
    wrong = change if complete else {**GOOD_DETECTION, **change}
    assert f"dt.json: [2]{'' if 'object' in expected else ':'} {expected}" in message(
        found=[GOOD_DETECTION, GOOD_DETECTION, wrong]
    )


def test_kinds_of_image_ids_do_not_mix(message):
    text = {"image_id": "1"}
    data = {
        **GOOD_DATA,
        "images": [{"id": "1"}, {"id": "b"}],
        "annotations": [{**GOOD_TRUTH, **text}],
    }
    found = {**GOOD_DETECTION, **text}
    wrong = "'image_id' must be a string as before, got 1 (int)"
    assert message(data, [found, GOOD_DETECTION]) == f"dt.json: [1]: {wrong}"
    wrong = "'image_id' must be a string, as those of the images of gt.json are, got 1 (int)"
    assert message(data, [GOOD_DETECTION]) == f"dt.json: [0]: {wrong}"
    wrong = (
        "'image_id' must be a whole number, as those of the images of gt.json are, got '1' (str)"
    )
    assert message(GOOD_DATA, [found]) == f"dt.json: [0]: {wrong}"
    assert message(data, [{**found, "image_id": "c"}]) == (
        "dt.json: [0]: image_id 'c' is not among the 2 images of gt.json"
    )
    wrong = "'image_id' must be a string, as those of the images are, got 1 (int)"
    assert message({**data, "annotations": [GOOD_TRUTH]}) == f"gt.json: annotations[0]: {wrong}"
    wrong = "'id' must be a string as before, got 2 (int)"
    assert message({**data, "images": [{"id": "1"}, {"id": 2}]}) == f"gt.json: images[1]: {wrong}"
    wrong = "'id' must be a whole number, got '1' (str)"
    assert message({**data, "images": [{"id": 2}, {"id": "1"}]}) == f"gt.json: images[1]: {wrong}"


def test_negative_sizes_are_named(message):
    wrong = "without a negative size, got [1.0, 2.0, 3.0, -4.0]"
    box = {"bbox": [1, 2, 3, -4]}
    text = message(found=[GOOD_DETECTION, {**GOOD_DETECTION, **box}])
    assert text == f"dt.json: [1]: 'bbox' must be [x, y, width, height] {wrong}"
    text = message({**GOOD_DATA, "annotations": [GOOD_TRUTH, {**GOOD_TRUTH, **box}]})
    assert text == f"gt.json: annotations[1]: 'bbox' must be [x, y, width, height] {wrong}"
    text = message({**GOOD_DATA, "annotations": [GOOD_TRUTH, {**GOOD_TRUTH, "area": -1}]})
    assert text == "gt.json: annotations[1]: 'area' must not be negative, got -1.0"


TRUTHS = {
    "missing image": (without(GOOD_TRUTH, "image_id"), "'image_id' is missing"),
    "missing category": (without(GOOD_TRUTH, "category_id"), "'category_id' is missing"),
    "missing box": (without(GOOD_TRUTH, "bbox"), "'bbox' is missing"),
    "null area": ({**GOOD_TRUTH, "area": None}, "'area' must be a finite number, got None"),
    "NaN area": ({**GOOD_TRUTH, "area": float("nan")}, "'area' must be a finite number, got nan"),
    "text as crowd": ({**GOOD_TRUTH, "iscrowd": "0"}, "'iscrowd' must be 0 or 1, got '0' (str)"),
    "empty box": ({**GOOD_TRUTH, "bbox": []}, "'bbox' must be [x, y, width, height]"),
}


@pytest.mark.parametrize("case", TRUTHS)
def test_wrong_annotation_is_named(case, message):
    wrong, expected = TRUTHS[case]
    text = message({**GOOD_DATA, "annotations": [GOOD_TRUTH, wrong]})
    assert text.startswith(f"gt.json: annotations[1]: {expected}")


def test_strict_needs_annotation_ids(message):
    data = {**GOOD_DATA, "annotations": [without(GOOD_TRUTH, "id")]}
    assert message(data, strict=True) == "gt.json: annotations[0]: 'id' is missing"


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ("", "gt.json: not valid JSON: "),
        ('{"images": [', "gt.json: not valid JSON: "),
        ("[" * 100_000, "gt.json: not valid JSON: "),
        ([GOOD_TRUTH], "gt.json: ground truth must be a JSON object with images, categories"),
        (without(GOOD_DATA, "images"), "gt.json: 'images' is missing; ground truth needs images"),
        (without(GOOD_DATA, "annotations"), "gt.json: 'annotations' is missing"),
        ({**GOOD_DATA, "categories": {}}, "gt.json: 'categories' must be a list, got {} (dict)"),
        (
            {**GOOD_DATA, "images": [{"id": None}]},
            "gt.json: images[0]: 'id' must be a whole number",
        ),
        ({**GOOD_DATA, "categories": [{}]}, "gt.json: categories[0]: 'id' is missing"),
    ],
)
def test_wrong_ground_truth_file_is_named(data, expected, message):
    assert message(data).startswith(expected)


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ("[{]", "dt.json: not valid JSON: "),
        ({"annotations": []}, "dt.json: detections must be a JSON array of objects with image_id"),
        ('"text"', "dt.json: detections must be a JSON array"),
        (
            [GOOD_DETECTION, {**GOOD_DETECTION, "image_id": 99}],
            "dt.json: [1]: image_id 99 is not among the 1 images of gt.json",
        ),
    ],
)
def test_wrong_detections_file_is_named(found, expected, message):
    assert message(found=found).startswith(expected)


def test_bytes_that_are_no_text(tmp_path):
    (tmp_path / "gt.json").write_bytes(b'{"images": "\xff"}')
    with pytest.raises(ValueError, match=r"gt\.json: not valid JSON"):
        evaluate_files(tmp_path / "gt.json", tmp_path / "gt.json")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"iou_thresholds": []}, "iou_thresholds must be a list of numbers"),
        ({"iou_thresholds": [0.5, 1.5]}, "iou_thresholds must lie in 0..1, got [0.5, 1.5]"),
        ({"iou_thresholds": [float("nan")]}, "iou_thresholds must lie in 0..1"),
        ({"area_ranges": {}}, "area_ranges must be name: (least, largest)"),
        ({"area_ranges": {"all": (9, 1)}}, "area_ranges must be name: (least, largest)"),
        ({"max_dets": ()}, "max_dets must be positive whole numbers"),
        ({"max_dets": (0, 10)}, "max_dets must be positive whole numbers, got (0, 10)"),
        ({"max_dets": 100}, "max_dets must be positive whole numbers, got 100"),
        ({"max_dets": (1, 2.5)}, "max_dets must be positive whole numbers, got (1, 2.5)"),
        ({"max_dets": ("1", 10)}, "max_dets must be positive whole numbers, got ('1', 10)"),
        ({"max_dets": (float("inf"),)}, "max_dets must be positive whole numbers, got (inf,)"),
        ({"iou_thresholds": 0.5}, "iou_thresholds must be a list of numbers, got 0.5"),
        ({"iou_thresholds": ["a"]}, "iou_thresholds must be a list of numbers, got ['a']"),
        ({"area_ranges": {"all": 5}}, "area_ranges must be name: (least, largest), got {'all': 5}"),
        ({"area_ranges": [(0, 1)]}, "area_ranges must be name: (least, largest), got [(0, 1)]"),
    ],
)
def test_wrong_setting_is_named(options, expected, message):
    assert message(**options).startswith(expected)


def test_numpy_values_in_memory_are_fine():
    truth = {
        "image_id": np.int64(1),
        "category_id": np.int32(1),
        "bbox": np.array([0, 0, 10, 10], np.float32),
        "area": np.float32(100),
        "iscrowd": np.bool_(False),
    }
    evaluator = CocoEvaluator.from_coco({**GOOD_DATA, "annotations": [truth]})
    evaluator.update(np.int64(1), np.array([[0, 0, 10, 10]], np.float32), [1], [1])
    assert evaluator.compute().stats[0] == pytest.approx(1)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((5, [BOX], [0.5], [1]), "image_id 5 is not among the 1 images of ground truth"),
        ((1, [BOX], [0.5, 0.6], [1]), "boxes, scores and category_ids must be [K, 4], [K] and [K]"),
        ((1, [BOX], [0.5], [1, 1]), "image_id 1: boxes, scores and category_ids must be [K, 4]"),
        ((1, BOX, [0.5], [1]), "got [4], [1] and [1]"),
        ((1, [BOX], 0.5, 1), "got [1, 4], [] and []"),
        ((1, [BOX, [0, 0, np.nan, 1]], [0.5, 0.5], [1, 1]), "image_id 1: boxes[1] must be finite"),
        ((1, [BOX], [np.inf], [1]), "image_id 1: scores[0] must be finite, got inf"),
        ((1.5, [BOX], [0.5], [1]), "image_id must be a whole number or a string, got 1.5"),
        ((None, [BOX], [0.5], [1]), "image_id must be a whole number or a string, got None"),
        ((True, [BOX], [0.5], [1]), "image_id must be a whole number or a string, got True"),
        ((np.nan, [BOX], [0.5], [1]), "image_id must be a whole number or a string, got nan"),
        (
            (1, [BOX], [0.5], [1.5]),
            "image_id 1: category_ids must be whole numbers of 64 bits, got",
        ),
        ((1, [BOX], [0.5], [np.nan]), "category_ids must be whole numbers of 64 bits, got nan"),
        ((1, [BOX], [0.5], [2**63]), "category_ids must be whole numbers of 64 bits, got 9.2"),
        ((1, [BOX], [0.5], ["1"]), "image_id 1: category_ids must be numbers, got <U1 values"),
        ((1, [BOX], ["0.5"], [1]), "image_id 1: scores must be numbers, got <U3 values"),
        ((1, [BOX], [None], [1]), "image_id 1: scores must be numbers, got object values"),
        ((1, [BOX], [True], [1]), "image_id 1: scores must be numbers, got bool values"),
        ((1, [BOX, [1]], [0.5, 0.5], [1, 1]), "image_id 1: boxes: setting an array element"),
        ((1, [[5, 5, 4, 9]], [0.5], [1]), "boxes[0] must not have a negative size, got -1.0 x 4.0"),
    ],
)
def test_wrong_update_is_named(arguments, expected):
    evaluator = CocoEvaluator.from_coco(GOOD_DATA)
    with pytest.raises(ValueError, match=re.escape(expected)):
        evaluator.update(*arguments)
    assert len(evaluator) == 0


def test_merge_of_another_data_set_is_an_error():
    other = CocoEvaluator.from_coco({**GOOD_DATA, "images": [{"id": 7}]})
    other.update(7, [], [], [])
    with pytest.raises(ValueError, match="image_id 7 of a merged state is not among the 1 images"):
        CocoEvaluator.from_coco(GOOD_DATA).merge([other.state()])


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"image_ids": [3, 3]}, "image_ids must be given once each, 3 repeats"),
        ({"category_ids": [1, 1]}, "category_ids must be given once each, 1 repeats"),
        ({"gt_image_index": [2]}, "gt_image_index must lie in 0..1, got 2"),
        ({"gt_category_index": [-1]}, "gt_category_index must lie in 0..1, got -1"),
        ({"gt_area": [1, 2]}, "must have one length, got [1, 1, 1, 2, 1]"),
        ({"gt_boxes": [[0, 0, np.nan, 1]]}, "boxes and areas of the truths must be finite"),
        ({"class_names": ["one"]}, "2 category_ids have 1 class_names"),
    ],
)
def test_wrong_flat_arrays_are_named(change, expected):
    arrays = {
        "image_ids": [3, 4],
        "category_ids": [1, 2],
        "gt_image_index": [0],
        "gt_category_index": [0],
        "gt_boxes": [BOX],
    }
    with pytest.raises(ValueError, match=re.escape(expected)):
        CocoEvaluator.from_arrays(**{**arrays, **change})
