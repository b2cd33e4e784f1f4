"""The COCO metric beside pycocotools: every array and number to the last bit."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch

from detkit.evaluation import CocoEvaluator, CocoResult, evaluate_files, matching

Record = dict[str, Any]
UNIT = [0, 0, 10, 10]

pytestmark = pytest.mark.usefixtures("each_backend")


def truth(box=UNIT, image=1, category=1, **fields) -> Record:
    record = {"image_id": image, "category_id": category, "bbox": list(box), "iscrowd": 0}
    return {**record, "area": box[2] * box[3], **fields}


def detection(box=UNIT, score=0.5, image=1, category=1) -> Record:
    return {"image_id": image, "category_id": category, "bbox": list(box), "score": score}


def dataset(*truths: Record, images=(1,), categories=(1,)) -> Record:
    return {
        "images": [{"id": image} for image in images],
        "categories": [{"id": k, "name": f"class {k}"} for k in categories],
        "annotations": [{"id": i, **record} for i, record in enumerate(truths, 1)],
    }


def evaluate(folder, data: Record, detections: list[Record], **options) -> CocoResult:
    (folder / "gt.json").write_text(json.dumps(data))
    (folder / "dt.json").write_text(json.dumps(detections))
    return evaluate_files(folder / "gt.json", folder / "dt.json", **options)


# ------------------------------------------------------------------------------- checked by hand


def test_two_truths_three_detections(tmp_path):
    """Right, wrong, right: precision 1 up to recall 0.5, then 2 of 3."""
    left, right, nowhere = [0, 0, 50, 50], [200, 0, 50, 50], [0, 200, 50, 50]
    data = dataset(truth(left), truth(right))
    found = [detection(left, 0.9), detection(nowhere, 0.8), detection(right, 0.7)]
    result = evaluate(tmp_path, data, found)

    expected = [1.0] * 51 + [2 / 3] * 50  # recall 0.00 .. 0.50 and 0.51 .. 1.00
    np.testing.assert_allclose(result.precision[0, :, 0, 0, 2], expected, atol=1e-15)
    assert result.scores[0, :, 0, 0, 2].tolist() == [0.9] * 51 + [0.7] * 50
    assert result.recall[0, 0, 0].tolist() == [0.5, 1.0, 1.0]  # one detection; ten; a hundred
    assert result.stats[0] == pytest.approx((51 + 50 * 2 / 3) / 101)
    # 50 x 50 pixels is medium: nothing to find among the small and the large
    assert result.stats[3] == -1 and result.stats[5] == -1
    assert result.stats[4] == pytest.approx(result.stats[0])


def test_overlap_counts_at_every_threshold_that_it_reaches(tmp_path):
    """8 of 10 pixels: found at 0.50 .. 0.80, missed at 0.85, 0.90 and 0.95."""
    result = evaluate(tmp_path, dataset(truth([0, 0, 10, 10])), [detection([0, 0, 8, 10])])
    assert result.recall[:, 0, 0, 2].tolist() == [1.0] * 7 + [0.0] * 3
    assert result.stats[0] == pytest.approx(0.7)


# --------------------------------------------------------------------------- beside pycocotools


def crowded_scene(seed: int, truths: int, detections: int) -> tuple[Record, list[Record]]:
    """Two images full of boxes of two classes that overlap each other, often equally."""
    rng = np.random.default_rng(seed)
    boxes = np.concatenate([rng.integers(0, 5, (truths, 2)), rng.integers(2, 5, (truths, 2))], 1)
    boxes = 10 * boxes
    records = [
        truth(box, int(rng.integers(1, 3)), int(rng.integers(1, 3)), iscrowd=int(i % 9 == 0))
        for i, box in enumerate(boxes.tolist())
    ]
    found = []
    for _ in range(detections):
        near = records[rng.integers(truths)]
        box = (np.array(near["bbox"]) + 5 * rng.integers(-1, 2, 4)).tolist()
        score = round(float(rng.random()), 2)
        found.append(detection(box, score, near["image_id"], near["category_id"]))
    return dataset(*records, images=(1, 2), categories=(1, 2)), found


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"max_dets": (1, 500, 2000)},
        {"iou_thresholds": np.linspace(0.1, 0.95, 35).tolist()},  # 140 curves: three words of bits
    ],
)
def test_more_than_a_thousand_detections(options, tmp_path, monkeypatch, pycocotools, assert_same):
    monkeypatch.setattr(matching, "PAIRS_PER_CHUNK", 1000)
    data, found = crowded_scene(0, truths=40, detections=2400)
    result = evaluate(tmp_path, data, found, strict=True, **options)
    assert_same(result, pycocotools(data, found, **options))


def test_published_reference(shared_data, pycocotools, assert_same):
    folder = shared_data / "coco_eval_reference"
    gt_json = folder / "instances_val2014_100.json"
    dt_json = folder / "instances_val2014_fakebbox100_results.json"
    expected = json.loads((folder / "expected.json").read_text())
    result = evaluate_files(gt_json, dt_json)
    numbers = result.as_dict()
    for name, value in expected["pycocotools_6_digits"].items():
        assert numbers[name] == pytest.approx(value, abs=5e-7), name
    classes = {row.name: round(row.AP, 6) for row in result.per_class() if row.truths}
    assert classes == expected["per_class_AP"]
    assert_same(result, pycocotools(*(json.loads(p.read_text()) for p in (gt_json, dt_json))))


# ------------------------------------------------------------- where pycocotools is wrong or fails


@pytest.mark.parametrize(("strict", "expected"), [(False, 1.0), (True, 0.0)])
def test_annotation_id_zero(strict, expected, tmp_path, pycocotools, assert_same):
    data = dataset(truth(id=0))
    result = evaluate(tmp_path, data, [detection()], strict=strict)
    assert result.stats[0] == pytest.approx(expected)
    if strict:
        assert_same(result, pycocotools(data, [detection()]))


@pytest.mark.parametrize("strict", [False, True])
def test_repeated_annotation_ids(strict, tmp_path, pycocotools, assert_same):
    data = dataset(
        truth(id=5, image=2),
        truth([50, 0, 10, 10], id=5),
        truth([50, 50, 10, 10], id=6),
        truth([70, 70, 10, 10], id=6, category=3),  # of a category that is not listed
        images=(1, 2),
    )
    found = [detection(image=2), detection([50, 0, 10, 10]), detection([50, 50, 10, 10])]
    result = evaluate(tmp_path, data, found, strict=strict)
    if strict:
        assert_same(result, pycocotools(data, found))
    else:  # each annotation is what it says
        assert result.per_class()[0].truths == 3
        assert result.stats[0] == pytest.approx(1)


def test_repeated_annotation_ids_keep_the_order_of_their_images(tmp_path, pycocotools, assert_same):
    """The truths of image 1 become: right, left, left again; the order decides equal overlaps."""
    left, middle, right = [0, 0, 10, 10], [2, 0, 10, 10], [4, 0, 10, 10]
    data = dataset(
        truth(id=5, image=2), truth(right, id=6), truth(left, id=5), images=(1, 2), categories=(1,)
    )
    found = [detection(middle, 0.9), detection(middle, 0.8), detection(right, 0.7)]
    assert_same(evaluate(tmp_path, data, found, strict=True), pycocotools(data, found))


def test_negative_sizes(tmp_path, pycocotools, assert_same):
    data = dataset(truth(), truth([9, 9, -4, -4]), truth([5, 5, -2, 3]))
    found = [detection([9, 9, -4, -4]), detection([5, 5, -2, 3], 0.4), detection()]
    assert_same(evaluate(tmp_path, data, found, strict=True), pycocotools(data, found))
    with pytest.raises(ValueError, match=r"gt\.json: annotations\[1\]: 'bbox' .* negative size"):
        evaluate(tmp_path, data, found)


def test_area_and_crowd_have_defaults(tmp_path, pycocotools, assert_same):
    data = dataset(truth([0, 0, 40, 40]))
    full = pycocotools(data, [detection([0, 0, 40, 40])])
    for field in ("area", "iscrowd", "id"):
        del data["annotations"][0][field]
    assert_same(evaluate(tmp_path, data, [detection([0, 0, 40, 40])]), full)


@pytest.mark.filterwarnings("error")
def test_areas_too_small_for_float64_do_not_overlap(tmp_path):
    speck = [0, 0, 1e-200, 1e-200]  # its area is 0, its overlap with itself 0 / 0
    assert evaluate(tmp_path, dataset(truth(speck)), [detection(speck)]).stats[0] == 0


# ----------------------------------------------------------------------------- streaming, shards


def as_arrays(found: list[Record], image: int | str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    own = [d for d in found if d["image_id"] == image]
    xywh = np.array([d["bbox"] for d in own], float).reshape(-1, 4)
    corners = np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1)
    return corners, np.array([d["score"] for d in own]), np.array([d["category_id"] for d in own])


def many_images(count: int) -> tuple[Record, list[Record]]:
    rng = np.random.default_rng(1)
    truths, found = [], []
    for image in range(count):
        for _ in range(4):
            box = [*rng.integers(0, 60, 2).tolist(), *rng.integers(8, 60, 2).tolist()]
            category = int(rng.integers(1, 4))
            truths.append(truth(box, image, category))
            near = (np.array(box) + rng.integers(-3, 4, 4)).tolist()
            found.append(detection(near, round(float(rng.random()), 1), image, category))
    return dataset(*truths, images=range(count), categories=(1, 2, 3)), found


def test_streaming_equals_files(tmp_path, pycocotools, assert_same):
    data, found = many_images(20)
    reference = pycocotools(data, found)
    evaluator = CocoEvaluator.from_coco(data)
    for image in reversed(range(20)):  # the order of arrival does not matter
        boxes, scores, categories = as_arrays(found, image)
        tensors = torch.tensor(boxes), torch.tensor(scores), torch.tensor(categories)
        evaluator.update(image, *(tensors if image % 2 else (boxes, scores, categories)))
    assert_same(evaluator.compute(), reference)
    assert_same(evaluate(tmp_path, data, found), reference)


def test_merged_shards_equal_the_whole(pycocotools, assert_same):
    data, found = many_images(11)
    shards = [[0, 3, 6, 9], [1, 4, 7, 10], [2, 5, 8, 0]]  # padded with the first image
    evaluators = [CocoEvaluator.from_coco(data) for _ in shards]
    for evaluator, images in zip(evaluators, shards, strict=True):
        for image in images:
            evaluator.update(image, *as_arrays(found, image))
    states = [evaluator.state() for evaluator in evaluators]
    for evaluator in evaluators:
        evaluator.reset()
        evaluator.merge(states)
        assert len(evaluator) == 11
        assert_same(evaluator.compute(), pycocotools(data, found))


def test_string_image_ids(tmp_path, pycocotools, assert_same):
    """They rank as strings do: "10" is before "9", which decides between equal scores."""
    data, found = many_images(12)
    for record in [*data["annotations"], *found]:
        record["image_id"] = str(record["image_id"])
    data["images"] = [{"id": str(image)} for image in range(12)]
    reference = pycocotools(data, found)
    assert_same(evaluate(tmp_path, data, found), reference)

    evaluators = [CocoEvaluator.from_coco(data) for _ in range(2)]
    for image in range(12):
        evaluators[image % 2].update(str(image), *as_arrays(found, str(image)))
    state = evaluators[1].state()
    assert state["image_ids"].tolist() == ["1", "3", "5", "7", "9", "11"]
    evaluators[0].merge([state])
    assert_same(evaluators[0].compute(), reference)
    with pytest.raises(ValueError, match="image_id 9 is not among the 12 images"):
        evaluators[0].update(9, [], [], [])

    truths = data["annotations"]
    evaluator = CocoEvaluator.from_arrays(
        image_ids=[str(image) for image in range(12)],
        category_ids=[1, 2, 3],
        gt_image_index=[int(t["image_id"]) for t in truths],
        gt_category_index=[t["category_id"] - 1 for t in truths],
        gt_boxes=[t["bbox"] for t in truths],
    )
    evaluator.merge([evaluators[0].state()])
    assert_same(evaluator.compute(), reference)


def test_first_result_of_an_image_counts():
    evaluator, other = (CocoEvaluator.from_coco(dataset(truth())) for _ in range(2))
    evaluator.update(1, [[0, 0, 10, 10]], [0.5], [1])
    evaluator.update(1, [[70, 70, 90, 90]], [0.9], [1])
    other.update(1, [[70, 70, 90, 90]], [0.9], [1])
    evaluator.merge([other.state()])
    assert evaluator.compute().stats[0] == pytest.approx(1)


def test_later_changes_of_the_callers_arrays_do_not_matter():
    boxes, scores, categories = np.array([[0.0, 0, 10, 10]]), np.array([0.5]), np.array([1])
    evaluator = CocoEvaluator.from_coco(dataset(truth()))
    evaluator.update(1, boxes, scores, categories)
    boxes[:], scores[:], categories[:] = 0, 0, 0
    assert evaluator.compute().scores.max() == 0.5
    assert evaluator.compute().stats[0] == pytest.approx(1)


def test_empty_updates_states_and_reset():
    evaluator = CocoEvaluator.from_coco(dataset(truth()))
    assert evaluator.compute().stats[0] == 0
    evaluator.merge([evaluator.state()])
    evaluator.update(1, [], [], [])
    evaluator.merge([evaluator.state()])
    assert len(evaluator) == 1 and evaluator.compute().stats[0] == 0
    evaluator.reset()
    evaluator.update(1, [[0, 0, 10, 10]], [0.5], [1])
    assert evaluator.compute().stats[0] == pytest.approx(1)


def test_flat_arrays_equal_the_dict(pycocotools, assert_same):
    data, found = many_images(6)
    for i, record in enumerate(data["annotations"]):
        record.update(area=record["area"] / 2, iscrowd=int(i % 5 == 0))
    truths = data["annotations"]
    image_ids, category_ids = [4, 2, 0, 1, 3, 5], [2, 3, 1]  # unsorted
    evaluator = CocoEvaluator.from_arrays(
        image_ids=image_ids,
        category_ids=category_ids,
        gt_image_index=[image_ids.index(t["image_id"]) for t in truths],
        gt_category_index=[category_ids.index(t["category_id"]) for t in truths],
        gt_boxes=[t["bbox"] for t in truths],
        gt_area=[t["area"] for t in truths],
        gt_crowd=[t["iscrowd"] for t in truths],
        class_names=["two", "three", "one"],
    )
    for image in range(6):
        evaluator.update(image, *as_arrays(found, image))
    result = evaluator.compute()
    assert_same(result, pycocotools(data, found))
    assert result.category_ids == (1, 2, 3)
    assert result.class_names == ("one", "two", "three")


def test_flat_arrays_may_be_empty():
    evaluator = CocoEvaluator.from_arrays(
        image_ids=[], category_ids=[], gt_image_index=[], gt_category_index=[], gt_boxes=[]
    )
    assert evaluator.compute().stats.tolist() == [-1] * 12
