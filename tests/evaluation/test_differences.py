"""What is said of pycocotools' numbers: ids that it loses, and notes with both numbers."""

from __future__ import annotations

import numpy as np
import pytest

from detkit.evaluation import CocoEvaluator, CocoResult
from detkit.evaluation.differences import take_by_id, with_ids
from detkit.evaluation.inputs import FlatTruths

UNIT = [0, 0, 10, 10]


def flat(images: list[int]) -> FlatTruths:
    """Truths whose x is their place in the file."""
    boxes = [[place, 0, 10, 10] for place in range(len(images))]
    return FlatTruths.of(images, np.zeros(len(images), int), boxes)


def taken(images: list[int], ids: list[int], listed: list[bool] | None = None) -> list[int]:
    """Places of the truths that pycocotools takes."""
    flags = np.array(listed or [True] * len(ids), bool)
    by_id = take_by_id(flat(images), np.array(ids), collected=flags, listed=flags)
    assert by_id is not None
    assert by_id.truths.id_is_zero.tolist() == [ids[int(x)] == 0 for x in by_id.truths.boxes[:, 0]]
    return by_id.truths.boxes[:, 0].astype(int).tolist()


@pytest.mark.parametrize(
    ("images", "ids", "expected"),
    [
        ([0, 0], [0, 1], [0, 1]),
        ([1, 0], [0, 1], [1, 0]),  # image by image
        ([0, 0, 0], [5, 6, 5], [2, 1, 2]),  # the last of that id, each time
        ([1, 0, 0], [5, 6, 5], [1, 2, 2]),  # the one of image 1 has gone to image 0
        ([0, 0, 0], [0, 0, 0], [2, 2, 2]),
    ],
)
def test_annotations_are_looked_up_by_id(images, ids, expected):
    assert taken(images, ids) == expected


def test_the_last_of_an_id_may_be_one_that_is_not_listed():
    assert taken([0, 0, 0], [5, 5, 0], [True, False, True]) == [2]


def test_other_ids_make_no_difference():
    every = np.ones(3, bool)
    for ids in ([1, 2, 3], [-1, 7, 2**62], [9, 8, 7]):
        assert take_by_id(flat([0, 1, 0]), np.array(ids), collected=every, listed=every) is None
    # an id 0 that is not listed is lost anyway
    others = np.array([False, True, True])
    assert take_by_id(flat([0, 1, 0]), np.array([0, 1, 2]), collected=others, listed=others) is None
    nothing = np.zeros(0, bool)
    assert take_by_id(flat([]), np.zeros(0, int), collected=nothing, listed=nothing) is None


def result_of(ids: list[int], boxes: list[list[float]], **settings) -> CocoResult:
    """Truths at x = 0, 100, 200 .., and perfect detections of them but for the last."""
    data = {
        "images": [{"id": 1}],
        "categories": [{"id": 1, "name": "a"}],
        "annotations": [
            {"id": i, "image_id": 1, "category_id": 1, "bbox": box}
            for i, box in zip(ids, boxes, strict=True)
        ],
    }
    evaluator = CocoEvaluator.from_coco(data, **settings)
    own = boxes[:-1]
    evaluator.update(1, own, np.linspace(1, 0.5, len(own)), [1] * len(own), box_format="xywh")
    return evaluator.compute()


def row(count: int) -> list[list[float]]:
    return [[100.0 * i, 0, 50, 50] for i in range(count)]


def test_both_numbers_and_the_reason():
    result = result_of([0, 1], row(2))
    assert result.notes == (
        "AP 0.505 (pycocotools: 0.000), AP50 0.505 (pycocotools: 0.000), AP75 0.505 (pycocotools: "
        "0.000), APm 0.505 (pycocotools: 0.000), AR1 0.500 (pycocotools: 0.000), AR10 0.500 "
        "(pycocotools: 0.000), AR100 0.500 (pycocotools: 0.000), ARm 0.500 (pycocotools: 0.000): "
        "pycocotools counts a match with annotation id 0 as a miss",
    )
    assert result_of([0, 1], row(2), strict=True).notes == ()
    assert result_of([2, 1], row(2)).notes == ()


def test_as_many_digits_as_it_takes():
    """One of 3,000 truths in as many images has the id 0: its miss costs a third of 0.001 of AR."""
    images, count = np.arange(3000), 3000
    evaluator = CocoEvaluator.from_arrays(
        image_ids=images,
        category_ids=[1],
        gt_image_index=images,
        gt_category_index=np.zeros(count, int),
        gt_boxes=np.tile([0, 0, 50, 50], (count, 1)),
    )
    evaluator.truths = with_ids(evaluator.truths, images)
    for image in images:
        evaluator.update(image, [[0, 0, 50, 50]], [1 - image / 6000], [1])
    (note,) = evaluator.compute().notes
    assert "AR100 1.000000 (pycocotools: 0.999667)" in note


def test_two_reasons_and_a_limit():
    notes = result_of([0, 5, 5, 7], row(4), max_dets=(1, 2, 3)).notes
    assert notes[0] == (
        "AP 0.752 (pycocotools: -1.000): it is that of the limit 3, pycocotools wants a limit of "
        "exactly 100"
    )
    assert notes[1].startswith("AP50 ") and notes[1].endswith(
        "pycocotools counts a match with annotation id 0 as a miss and takes the last annotation "
        "of a repeated id each time (as of 5)"
    )
    assert len(notes) == 2


def test_truths_from_arrays_may_have_ids():
    evaluator = CocoEvaluator.from_arrays(
        image_ids=[4],
        category_ids=[1],
        gt_image_index=[0, 0],
        gt_category_index=[0, 0],
        gt_boxes=row(2),
    )
    evaluator.update(4, row(1), [0.5], [1], box_format="xywh")
    assert evaluator.compute().notes == ()
    evaluator.truths = with_ids(evaluator.truths, np.array([0, 1]))
    assert len(evaluator.compute().notes) == 1
    evaluator.truths = with_ids(evaluator.truths, np.array([3, 1]))
    assert evaluator.compute().notes == ()


def test_nothing_found_is_spoken_of_where_something_was_to_be_found():
    (note,) = result_of([1], row(1)).notes
    assert (
        note == "no detection in these categories: an empty list fails in pycocotools (IndexError)"
    )
    assert (
        CocoEvaluator.from_coco({"images": [], "categories": [], "annotations": []}).compute().notes
        == ()
    )
