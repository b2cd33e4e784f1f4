"""Looking up ids, and the records behind the images."""

from __future__ import annotations

import gc
import json
import pickle

import numpy as np
import pytest

from detkit.evaluation import CocoEvaluator
from detkit.evaluation.backend import native_module, using
from detkit.evaluation.coco_json import load_json, read_truths
from detkit.evaluation.inputs import index_of

BACKENDS = ["numpy", *(["compiled"] if native_module() else [])]
IMAGES = [
    {"id": 12, "file_name": "b.jpg", "weather": "rain"},
    {"id": 7, "file_name": "ä.jpg", "height": 4},
]
DATA = {"images": IMAGES, "annotations": [], "categories": []}
EDGE = 2**63 - 1


@pytest.mark.parametrize(
    ("ids", "values"),
    [
        ([], []),
        ([], [3]),
        ([3], []),
        ([3, 5, 9], [3, 4, 5, 9, 9, 9, 9, 9, 8, 3]),  # so many that a table is made
        ([3, 5, 9], [2, 3, 9, 10, 3, 3, 3, 3, 3, 3]),  # some are outside of it
        ([-3, 0], [-3, -2, -1, 0, 0, 0]),
        ([5], [5, 5, 5]),
        ([0, 1_000_000], [1_000_000, 5, 0]),
        ([-EDGE, 0, EDGE], [EDGE, -EDGE, 0, 1, EDGE - 1]),
        ([EDGE - 2, EDGE], [EDGE, EDGE - 1, EDGE - 2, EDGE]),
        (["", "10", "9", "é"], ["9", "10", "a", "é", "", "9"]),
        (["a"], []),
        ([], ["a"]),
    ],
)
def test_ids_are_found(ids, values):
    dtype = object if any(isinstance(each, str) for each in ids + values) else np.int64
    index, known = index_of(np.array(ids, dtype), np.array(values, dtype))
    assert known.tolist() == [value in ids for value in values]
    assert index[known].tolist() == [ids.index(value) for value in values if value in ids]


@pytest.mark.parametrize("ids", [[12, 7], ["b", "a"]])
@pytest.mark.parametrize("backend", BACKENDS)
def test_records_of_images_are_read_when_asked_for(backend, ids, tmp_path):
    path = tmp_path / "gt.json"
    images = [{**record, "id": image_id} for record, image_id in zip(IMAGES, ids, strict=True)]
    path.write_text(json.dumps({**DATA, "images": images}, ensure_ascii=False), encoding="utf-8")
    with using(backend):
        truths = read_truths(path)
    assert truths.image_ids.tolist() == sorted(ids)
    assert truths.image_records() == images[::-1]
    assert pickle.loads(pickle.dumps(truths)).image_records() == images[::-1]

    for content in ("[1]", json.dumps({**DATA, "images": [{"id": 1}]}), "x" * 5000):
        path.write_text(content)
        with pytest.raises(ValueError, match=r"gt\.json: (changed since|not valid)"):
            truths.image_records()
    path.unlink()
    with pytest.raises(FileNotFoundError):
        truths.image_records()


def test_records_of_images_in_memory():
    truths = CocoEvaluator.from_coco(DATA).truths
    assert truths.image_records() == IMAGES[::-1]
    doubled = {**DATA, "images": [*IMAGES, {"id": 7, "file_name": "c.jpg"}]}
    records = read_truths(doubled).image_records()  # of a repeated id the last one, as of names
    assert [record["file_name"] for record in records] == ["c.jpg", "b.jpg"]
    arrays = CocoEvaluator.from_arrays(
        image_ids=[1], category_ids=[], gt_image_index=[], gt_category_index=[], gt_boxes=[]
    )
    assert arrays.truths.image_records() is None


@pytest.mark.parametrize("enabled", [True, False])
@pytest.mark.parametrize("content", ["[]", "["])
def test_collector_of_garbage_is_left_as_it_was(enabled, content, tmp_path):
    (tmp_path / "a.json").write_text(content)
    before = gc.isenabled()
    try:
        (gc.enable if enabled else gc.disable)()
        if content == "[":
            with pytest.raises(ValueError, match="not valid JSON"):
                load_json(tmp_path / "a.json")
        else:
            assert load_json(tmp_path / "a.json")[0] == []
        assert gc.isenabled() == enabled
    finally:
        (gc.enable if before else gc.disable)()
