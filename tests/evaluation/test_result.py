"""What a result says: dictionary, classes, table; and the command around it."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from detkit.evaluation import CocoEvaluator

ROOT = Path(__file__).resolve().parents[2]
KEYS = ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl"]
DATA = {
    "images": [{"id": 1}],
    "categories": [{"id": 4, "name": "cat"}, {"id": 2, "name": "giraffe"}, {"id": 9}],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 4, "bbox": [0, 0, 10, 10]},
        {"id": 2, "image_id": 1, "category_id": 4, "bbox": [50, 0, 10, 10]},
        {"id": 3, "image_id": 1, "category_id": 4, "bbox": [90, 0, 10, 10], "iscrowd": 1},
        {"id": 4, "image_id": 1, "category_id": 2, "bbox": [0, 50, 10, 10]},
    ],
}
FOUND = [
    {"image_id": 1, "category_id": 4, "bbox": [0, 0, 10, 10], "score": 0.9},
    {"image_id": 1, "category_id": 2, "bbox": [0, 50, 10, 7], "score": 0.8},
]


@pytest.fixture
def result():
    evaluator = CocoEvaluator.from_coco(DATA)
    boxes = np.array([d["bbox"] for d in FOUND], float)
    boxes[:, 2:] += boxes[:, :2]
    evaluator.update(1, boxes, [d["score"] for d in FOUND], [d["category_id"] for d in FOUND])
    return evaluator.compute()


def test_classes(result):
    giraffe, cat, unnamed = result.per_class()  # by category id
    assert (giraffe.category_id, giraffe.name, giraffe.truths) == (2, "giraffe", 1)
    numbers = [giraffe.AP, giraffe.AP50, giraffe.AP75, giraffe.AR]
    np.testing.assert_allclose(numbers, [0.5, 1, 0, 0.5])  # 0.7 reaches half of the thresholds
    assert (cat.name, cat.truths) == ("cat", 2)  # the crowd does not count
    np.testing.assert_allclose([cat.AP, cat.AR], [51 / 101, 0.5])
    assert (unnamed.name, unnamed.truths, unnamed.AP, unnamed.AR) == ("9", 0, -1, -1)
    assert [(row.images, row.detections) for row in result.per_class()] == [(1, 1), (1, 1), (0, 0)]


def test_images_and_detections_of_classes():
    evaluator = CocoEvaluator.from_arrays(
        image_ids=[1, 2, 3, 4],
        category_ids=[1, 2],
        class_names=['cat, "small"', "dog"],
        gt_image_index=[0, 0, 1, 2, 3],
        gt_category_index=[0, 0, 0, 0, 1],
        gt_boxes=[[0, 0, 9, 9]] * 5,
        gt_crowd=[False, False, False, True, False],
    )
    evaluator.update(4, [[0, 0, 9, 9]] * 3, [0.9, 0.8, 0.7], [1, 1, 2])
    result = evaluator.compute()
    cat, dog = result.per_class()
    assert (cat.truths, cat.images, cat.detections) == (3, 2, 2)  # an image of a crowd is none
    assert (dog.truths, dog.images, dog.detections) == (1, 1, 1)
    head, first, second = csv.reader(io.StringIO(result.csv()))
    assert head[:3] + head[6:] == ["category_id", "name", "AP", "truths", "images", "detections"]
    assert first == ["1", 'cat, "small"', "0.0", "0.0", "0.0", "0.0", "3", "2", "2"]
    assert [float(value) for value in second[2:6]] == [dog.AP, dog.AP50, dog.AP75, dog.AR]


def test_unknown_is_empty_in_csv(result):
    assert result.csv().splitlines()[-1] == "9,9,,,,,0,0,0"


def test_dictionary_is_json(result):
    numbers = result.as_dict()
    assert list(numbers) == [*KEYS, "per_class"]
    assert [numbers[key] for key in KEYS] == result.stats.tolist()
    assert numbers["per_class"][1]["name"] == "cat"
    assert json.loads(json.dumps(numbers)) == numbers


def test_table(result):
    assert result.table().splitlines() == [
        "class    truths     AP   AP50   AP75     AR",
        "giraffe       1  0.500  1.000  0.000  0.500",
        "cat           2  0.505  0.505  0.505  0.500",
        "9             0      -      -      -      -",
    ]


def test_evaluation_prints_nothing(result, capsys):
    result.stats, result.summary(), result.table()
    assert capsys.readouterr() == ("", "")


def run_tool(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, ROOT / "tools" / "evaluate.py", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


@pytest.fixture
def files(tmp_path):
    (tmp_path / "gt.json").write_text(json.dumps(DATA))
    (tmp_path / "dt.json").write_text(json.dumps(FOUND))
    return tmp_path


def test_tool_prints_and_writes(files, result):
    arguments = ("--out", files / "metrics.json", "--resamples", "0")
    done = run_tool(files / "gt.json", files / "dt.json", *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{result.summary()}\n\n{result.table()}\n"
    numbers = json.loads((files / "metrics.json").read_text())
    assert {name: numbers[name] for name in result.as_dict()} == result.as_dict()


def test_tool_says_a_mistake_in_one_line_and_leaves_no_file(files):
    (files / "dt.json").write_text(json.dumps([{**FOUND[0], "image_id": 5}]))
    done = run_tool(files / "gt.json", files / "dt.json", "--out", files / "metrics.json")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1 and "image_id 5 is not among the 1 images" in done.stderr
    assert sorted(path.name for path in files.iterdir()) == ["dt.json", "gt.json"]


def test_tool_names_a_file_that_is_missing(files):
    done = run_tool(files / "nowhere.json", files / "dt.json")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and "nowhere.json" in done.stderr
