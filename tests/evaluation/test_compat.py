"""The drop-in beside pycocotools itself: the same script with either import gives the same bits."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import pickle
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import coco, cocoeval

from detkit.evaluation import compat
from detkit.evaluation.backend import using

Record = dict[str, Any]
CURVES = ("precision", "recall", "scores")


@dataclass(frozen=True)
class Library:
    """Either of the two imports."""

    COCO: Any
    COCOeval: Any


THEIRS = Library(coco.COCO, cocoeval.COCOeval)
OURS = Library(compat.COCO, compat.COCOeval)


def make_data(seed: int = 0, *, images: int = 6, categories: int = 3) -> tuple[Record, list]:
    """Whole numbers: overlaps on the thresholds, ties, crowds, sizes on the limits of ranges."""
    rng = np.random.default_rng(seed)
    image_ids = rng.permutation(np.arange(1, images + 1) * 7).tolist()
    category_ids = (np.arange(categories) * 3 + 1).tolist()
    sides = np.array([4, 8, 16, 32, 96])

    def box() -> list[float]:
        w, h = rng.choice(sides, 2)
        return [float(v) for v in (*rng.integers(0, 4, 2) * 4, w, h)]

    def draw(count: int) -> list[Record]:
        return [
            {
                "image_id": image_ids[rng.integers(images)],
                "category_id": category_ids[rng.integers(categories)],
                "bbox": box(),
            }
            for _ in range(count)
        ]

    truths = draw(int(rng.integers(0, 8 * images)))
    for id_, record in zip(rng.permutation(len(truths)) + 1, truths, strict=True):
        area = record["bbox"][2] * record["bbox"][3] * rng.choice([0.5, 1])
        record |= {"id": int(id_), "area": area, "iscrowd": int(rng.random() < 0.15)}
    found = draw(int(rng.integers(1, 20 * images)))
    for record in found:
        record["score"] = int(rng.integers(0, 10)) / 10
    data = {
        "info": {"year": 2017},
        "images": [{"id": id_, "file_name": f"{id_}.jpg"} for id_ in image_ids],
        "categories": [
            {"id": id_, "name": f"c{id_}", "supercategory": "s"} for id_ in category_ids
        ],
        "annotations": truths,
    }
    return data, found


@contextlib.contextmanager
def alone(yes: bool = True) -> Iterator[None]:
    """Within it, detkit's class may not fall back on the code of pycocotools."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("evaluate", "accumulate", "evaluateImg") if yes else ():
            patch.setattr(THEIRS.COCOeval, name, lambda *_: pytest.fail("left to pycocotools"))
        yield


def index(library: Library, data: Record) -> Any:
    truths = library.COCO()
    truths.dataset = copy.deepcopy(data)
    truths.createIndex()
    return truths


Judge = Callable[[Any], None]


def run(library: Library, truths: Any, found: Any, change: Judge = lambda judge: None) -> Any:
    """What a script does; its output is kept in `judge.printed`."""
    judge = library.COCOeval(truths, found, "bbox")
    change(judge)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        judge.evaluate()
        judge.accumulate()
        if len(judge.params.maxDets) >= 3:
            judge.summarize()
    judge.printed = re.sub(r"\(t=.*?s\)", "", printed.getvalue())
    return judge


def assert_same_curves(mine: Any, theirs: Any) -> None:
    assert mine.eval["counts"] == theirs.eval["counts"]
    for key in CURVES:
        assert mine.eval[key].shape == theirs.eval[key].shape, key
        assert mine.eval[key].tobytes() == theirs.eval[key].tobytes(), key
    assert np.asarray(mine.stats).tobytes() == np.asarray(theirs.stats).tobytes()
    assert mine.printed == theirs.printed


def assert_same_cells(mine: list, theirs: list) -> None:
    assert len(mine) == len(theirs)
    for ours, record in zip(mine, theirs, strict=True):
        if ours is None or record is None:
            assert ours is record
            continue
        assert list(ours) == list(record)
        for key, value in record.items():
            assert type(ours[key]) is type(value), key
            if isinstance(value, np.ndarray):
                assert (ours[key].shape, ours[key].dtype) == (value.shape, value.dtype), key
            assert np.array_equal(ours[key], value), key


def compare(
    data: Record, found: Any, change: Judge = lambda judge: None, fast: bool = True
) -> None:
    """From dicts, with either library.

    Args:
        data: ground truth.
        found: what `loadRes` takes.
        change: changes the parameters.
        fast: it is not for pycocotools to evaluate.
    """
    judges = []
    for library in (OURS, THEIRS):
        truths = index(library, data)
        results = truths.loadRes(copy.deepcopy(found))
        with alone(fast and library is OURS):
            judges.append(run(library, truths, results, change))
    mine, theirs = judges
    assert_same_curves(mine, theirs)
    with alone(fast):
        assert_same_cells(mine.evalImgs, theirs.evalImgs)
        mine.accumulate()  # from the records, now that they are there
    assert_same_curves(mine, theirs)
    assert mine.ious.keys() == theirs.ious.keys()
    assert all(np.array_equal(mine.ious[cell], theirs.ious[cell]) for cell in theirs.ious)


# ---------------------------------------------------------------------------------- evaluation


@pytest.mark.parametrize("backend", ["numpy", "default"])
@pytest.mark.parametrize("seed", range(8))
def test_evaluation(seed: int, backend: str) -> None:
    with using("numpy") if backend == "numpy" else contextlib.nullcontext():
        compare(*make_data(seed))


def set_params(**values: Any) -> Judge:
    def change(judge: Any) -> None:
        for name, value in values.items():
            setattr(judge.params, name, copy.deepcopy(value))

    return change


PARAMS: dict[str, Record] = {
    "images in disorder, repeated": {"imgIds": [21, 7, 42, 7]},
    "an image that is not there": {"imgIds": [7, 8]},
    "one category": {"catIds": [4]},
    "categories in disorder, one not there": {"catIds": [7, 5, 1]},
    "no categories told apart": {"useCats": 0},
    "some categories, not told apart": {"useCats": 0, "catIds": [7, 1]},
    "one threshold": {"iouThrs": np.array([0.5])},
    "thresholds of 0 and 1": {"iouThrs": np.array([0.0, 0.25, 1.0])},
    "thresholds in disorder": {"iouThrs": np.array([0.75, 0.5])},
    "levels of float32": {"recThrs": np.linspace(0, 1, 101, dtype=np.float32)},
    "11 levels": {"recThrs": np.linspace(0, 1, 11)},
    "levels without 0": {"recThrs": np.array([0.3, 0.35, 0.9])},
    "levels in disorder": {"recThrs": np.array([0.5, 0.9, 0.1, -1, 0.5])},
    "levels that are none": {"recThrs": np.array([0.1, np.nan, 0.0, 2.0])},
    "limits": {"maxDets": [3, 1, 2]},
    "limits with 100": {"maxDets": [1, 2, 100]},
    "two limits": {"maxDets": [1, 5]},
    "ranges": {"areaRng": [[0, 1e10], [0, 64], [64, float("inf")]], "areaRngLbl": list("abc")},
    "a range twice": {"areaRng": [[0, 1e10], [0, 1e10]], "areaRngLbl": ["all", "small"]},
}


@pytest.mark.parametrize("params", PARAMS.values(), ids=PARAMS)
def test_params(params: Record) -> None:
    for seed in range(3):
        data, found = make_data(seed)
        compare(data, found, set_params(**params))


def drop(name: str) -> Callable[[Record], None]:
    return lambda record: record.pop(name)


def put(name: str, value: Any) -> Callable[[Record], None]:
    return lambda record: record.update({name: value})


ODD: dict[str, tuple[Callable[[Record], None], Callable[[Record], None]]] = {
    "truth that is NaN": (put("bbox", [0, 0, float("nan"), 9]), lambda record: None),
    "truth that repeats an id": (put("id", 3), lambda record: None),
    "truth with a negative area": (put("area", -1), lambda record: None),
    "detection that is NaN": (lambda record: None, put("bbox", [0, 0, float("nan"), 9])),
    "detection without end": (lambda record: None, put("bbox", [0, 0, float("inf"), 9])),
    "score that is NaN": (lambda record: None, put("score", float("nan"))),
    "sizes below 0": (put("bbox", [9, 9, -5, -5]), put("bbox", [9, 9, -5, -5])),
}


@pytest.mark.parametrize("odd", ODD.values(), ids=ODD)
def test_what_pycocotools_treats_in_its_own_way(odd: Any) -> None:
    data, found = make_data(1)
    for change, records in zip(odd, (data["annotations"], found), strict=True):
        change(records[1])
    with np.errstate(invalid="ignore"):
        judges = [
            run(library, truths, truths.loadRes(copy.deepcopy(found)))
            for library in (OURS, THEIRS)
            for truths in [index(library, data)]
        ]
    assert_same_curves(*judges)


def test_annotation_with_id_0_is_no_match() -> None:
    data, found = make_data(2)
    for number, record in enumerate(data["annotations"]):
        record["id"] = number
    compare(data, found)


@given(
    seed=st.integers(0, 2**32),
    images=st.integers(1, 5),
    categories=st.integers(1, 3),
    params=st.fixed_dictionaries(
        {},
        optional={
            "imgIds": st.lists(st.sampled_from([7, 14, 21, 99]), min_size=1, max_size=4),
            "catIds": st.lists(st.sampled_from([1, 4, 5]), min_size=1, unique=True),
            "useCats": st.sampled_from([0, 1]),
            "iouThrs": st.lists(st.floats(0, 1), min_size=1, max_size=70).map(np.array),
            "recThrs": st.lists(st.floats(-0.1, 1.1), min_size=1, max_size=8).map(np.array),
            "maxDets": st.lists(st.integers(1, 9), min_size=3, max_size=3),
        },
    ),
)
@settings(max_examples=60, deadline=None)
def test_anything(seed: int, images: int, categories: int, params: Record) -> None:
    data, found = make_data(seed, images=images, categories=categories)
    compare(data, found, set_params(**params))


def test_names_as_image_ids() -> None:
    data, found = make_data(6)
    for record in [*data["annotations"], *found]:
        record["image_id"] = f"image {record['image_id']}"
    for record in data["images"]:
        record["id"] = f"image {record['id']}"
    compare(data, found)
    compare(data, found, set_params(imgIds=["image 7", "image 21", "image 8"]))


def test_other_parameters_for_the_curves_than_for_the_matches() -> None:
    data, found = make_data(4)
    judges = []
    for library in (OURS, THEIRS):
        truths = index(library, data)
        judge = run(library, truths, truths.loadRes(copy.deepcopy(found)))
        other = copy.deepcopy(judge.params)
        other.maxDets, other.catIds, other.areaRng = [1, 100], [4], other.areaRng[:2]
        judge.accumulate(other)
        judges.append(judge)
    assert_same_curves(*judges)


# ------------------------------------------------------------------------------ files and arrays


@pytest.fixture
def files(tmp_path: Any) -> tuple[str, str]:
    data, found = make_data(5)
    for name, content in (("gt.json", data), ("dt.json", found)):
        (tmp_path / name).write_text(json.dumps(content), encoding="utf-8")
    return str(tmp_path / "gt.json"), str(tmp_path / "dt.json")


def rows_of(found: list[Record], dtype: Any = np.float64) -> np.ndarray:
    rows = [[r["image_id"], *r["bbox"], r["score"], r["category_id"]] for r in found]
    return np.array(rows, dtype).reshape(-1, 7)


def test_files(files: tuple[str, str], capsys: Any) -> None:
    printed, judges = [], []
    for library in (OURS, THEIRS):
        truths = library.COCO(files[0])
        found = truths.loadRes(files[1])
        printed.append(re.sub(r"\(t=.*?s\)", "", capsys.readouterr().out))
        judges.append(run(library, truths, found))
    mine, theirs = judges
    assert printed[0] == printed[1]
    assert mine.cocoGt._arrays is not None and mine.cocoDt._arrays is not None  # no dict was made
    assert_same_curves(mine, theirs)
    assert_same_cells(mine.evalImgs, theirs.evalImgs)
    truths = THEIRS.COCO(files[0])  # without the notes that the evaluation leaves in the records
    for ours, original in ((mine.cocoGt, truths), (mine.cocoDt, truths.loadRes(files[1]))):
        for name in ("dataset", "imgs", "cats", "catToImgs"):
            assert getattr(ours, name) == getattr(original, name)
        assert ours.getAnnIds(catIds=[4]) == original.getAnnIds(catIds=[4])


def test_file_with_names_as_image_ids(tmp_path: Any) -> None:
    data, found = make_data(6)
    for record in [*data["annotations"], *found]:
        record["image_id"] = f"image {record['image_id']}"
    for record in data["images"]:
        record["id"] = f"image {record['id']}"
    (tmp_path / "gt.json").write_text(json.dumps(data))
    (tmp_path / "dt.json").write_text(json.dumps(found))
    judges = []
    for library in (OURS, THEIRS):
        truths = library.COCO(str(tmp_path / "gt.json"))
        judges.append(run(library, truths, truths.loadRes(str(tmp_path / "dt.json"))))
    assert judges[0].cocoDt._arrays is not None
    assert_same_curves(*judges)


def test_file_without_area_and_iscrowd(tmp_path: Any) -> None:
    data, found = make_data(6)
    whole = copy.deepcopy(data)
    for bare, record in zip(data["annotations"], whole["annotations"], strict=True):
        del bare["area"], bare["iscrowd"]
        record |= {"area": record["bbox"][2] * record["bbox"][3], "iscrowd": 0}
    (tmp_path / "gt.json").write_text(json.dumps(data))
    truths, theirs = OURS.COCO(str(tmp_path / "gt.json")), index(THEIRS, whole)
    mine = run(OURS, truths, truths.loadRes(rows_of(found)))
    assert_same_curves(mine, run(THEIRS, theirs, theirs.loadRes(copy.deepcopy(found))))


@pytest.mark.parametrize("ids", ["0 ..", "the first again"])
@pytest.mark.parametrize("subset", [{}, {"catIds": [4]}, {"imgIds": [7, 14]}, {"useCats": 0}])
def test_file_with_odd_annotation_ids(tmp_path: Any, ids: str, subset: Record) -> None:
    data, found = make_data(10)
    for number, record in enumerate(data["annotations"]):
        record["id"] = number if ids == "0 .." else max(1, number - 1)
    (tmp_path / "gt.json").write_text(json.dumps(data))
    judges = []
    for library in (OURS, THEIRS):
        truths = library.COCO(str(tmp_path / "gt.json"))
        found_here = truths.loadRes(copy.deepcopy(found))
        judges.append(run(library, truths, found_here, set_params(**subset)))
    assert_same_curves(*judges)
    assert_same_cells(judges[0].evalImgs, judges[1].evalImgs)


@pytest.mark.parametrize("params", PARAMS.values(), ids=PARAMS)
def test_params_with_files(files: tuple[str, str], params: Record) -> None:
    judges = []
    for library in (OURS, THEIRS):
        truths = library.COCO(files[0])
        judges.append(run(library, truths, truths.loadRes(files[1]), set_params(**params)))
    assert judges[0].cocoGt._arrays is not None
    assert_same_curves(*judges)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("touched", [False, True])
def test_arrays(files: tuple[str, str], dtype: Any, touched: bool, capsys: Any) -> None:
    rows = rows_of(make_data(5)[1], dtype)
    rows[:, 1:5] += 1 / 3  # not the same in float32
    printed, judges = [], []
    for library in (OURS, THEIRS):
        truths = library.COCO(files[0])
        if touched:
            assert truths.anns
        found = truths.loadRes(rows)
        printed.append(re.sub(r"\(t=.*?s\)", "", capsys.readouterr().out))
        judges.append(run(library, truths, found))
    mine, theirs = judges
    assert printed[0] == printed[1]
    assert mine.cocoDt._arrays is not None
    assert_same_curves(mine, theirs)
    assert_same_cells(mine.evalImgs, theirs.evalImgs)


def test_area_that_float32_moves_over_the_limit() -> None:
    """The product of 1/3 and 3072 is 1024 in float32, and above it in float64: small no more."""
    data, _ = make_data(0)
    truth = {"id": 1, "image_id": 7, "category_id": 1, "bbox": [0, 0, 9, 9], "area": 81}
    data["annotations"] = [{**truth, "iscrowd": 0}]
    rows = np.array([[7, 50, 50, 1 / 3, 3072, 0.5, 1]], np.float32)
    assert rows[0, 3] * rows[0, 4] == 1024 < float(rows[0, 3]) * float(rows[0, 4])
    compare(data, rows, fast=False)


def test_dicts_that_were_handed_out_count(files: tuple[str, str]) -> None:
    judges = []
    for library in (OURS, THEIRS):
        truths = library.COCO(files[0])
        found = truths.loadRes(files[1])
        for record in found.anns.values():
            record["score"] = 1 - record["score"]
        for record in truths.loadAnns(truths.getAnnIds())[::2]:
            record["iscrowd"] = 1
        judges.append(run(library, truths, found))
    assert_same_curves(*judges)


def test_records_that_were_handed_out_count() -> None:
    data, found = make_data(3)
    judges = []
    for library in (OURS, THEIRS):
        truths = index(library, data)
        judge = run(library, truths, truths.loadRes(copy.deepcopy(found)))
        for record in filter(None, judge.evalImgs):
            record["gtIgnore"][:] = 0
        judge.accumulate()
        judges.append(judge)
    assert_same_curves(*judges)


def test_dataset_set_by_hand_takes_the_place_of_the_file(files: tuple[str, str]) -> None:
    other, found = make_data(6)
    judges = []
    for library in (OURS, THEIRS):
        truths = library.COCO(files[0])
        truths.dataset = copy.deepcopy(other)
        truths.createIndex()
        judges.append(run(library, truths, truths.loadRes(copy.deepcopy(found))))
    assert_same_curves(*judges)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies(files: tuple[str, str], duplicate: Any) -> None:
    truths = OURS.COCO(files[0])
    expected = run(OURS, truths, truths.loadRes(files[1]))
    copied = duplicate(OURS.COCO(files[0]))
    found = duplicate(copied.loadRes(files[1]))
    assert copied._arrays is not None
    assert_same_curves(run(OURS, copied, found), expected)
    assert found.dataset == expected.cocoDt.dataset


def test_ground_truth_of_pycocotools_itself(files: tuple[str, str]) -> None:
    truths = THEIRS.COCO(files[0])
    found = truths.loadRes(files[1])
    with alone():
        mine = run(OURS, truths, found)
    theirs = run(THEIRS, truths, found)
    assert_same_curves(mine, theirs)


# ----------------------------------------------------------------------------------- nothing


@pytest.mark.parametrize("nothing", ["list", "array", "file"])
def test_no_detections(files: tuple[str, str], tmp_path: Any, nothing: str) -> None:
    (tmp_path / "none.json").write_text("[]")
    given = {"list": [], "array": np.zeros((0, 7)), "file": str(tmp_path / "none.json")}[nothing]
    truths = OURS.COCO(files[0])
    found = truths.loadRes(given)
    judge = run(OURS, truths, found)
    assert judge.stats[0] == 0
    assert found.getAnnIds() == [] and len(found.dataset["categories"]) == 3
    with pytest.raises(IndexError):
        THEIRS.COCO(files[0]).loadRes([])


def test_no_ground_truth() -> None:
    data, found = make_data(0)
    data["annotations"] = []
    compare(data, found)


# ----------------------------------------------------------------------------------- errors


def test_image_that_the_ground_truth_does_not_have(files: tuple[str, str], tmp_path: Any) -> None:
    record = {"image_id": 1234, "category_id": 1, "bbox": [0, 0, 1, 1], "score": 0.5}
    (tmp_path / "dt.json").write_text(json.dumps([record]))
    for found in (str(tmp_path / "dt.json"), [record], rows_of([record])):
        with pytest.raises(AssertionError, match="do not correspond"):
            OURS.COCO(files[0]).loadRes(found)


def test_missing_file() -> None:
    with pytest.raises(FileNotFoundError):
        OURS.COCO("nowhere.json")


def test_accumulate_before_evaluate(files: tuple[str, str]) -> None:
    truths = OURS.COCO(files[0])
    with pytest.raises(AttributeError):
        OURS.COCOeval(truths, truths.loadRes(files[1]), "bbox").accumulate()


def test_unknown_attributes(files: tuple[str, str]) -> None:
    truths = OURS.COCO(files[0])
    for each in (truths, OURS.COCOeval(truths, None, "bbox")):
        with pytest.raises(AttributeError, match="nothing_of_the_kind"):
            each.nothing_of_the_kind  # noqa: B018


# ------------------------------------------------------------------------------ masks, as they are


def test_masks_run_the_code_of_pycocotools(files: tuple[str, str]) -> None:
    data, found = make_data(7)
    for image in data["images"]:
        image |= {"height": 120, "width": 120}
    for record in data["annotations"]:
        x, y, w, h = record["bbox"]
        record["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
    judges = []
    for library in (OURS, THEIRS):
        truths = index(library, data)
        results = truths.loadRes(copy.deepcopy(found))
        assert truths.annToRLE(data["annotations"][0])["size"] == [120, 120]
        judge = library.COCOeval(truths, results, "segm")
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            judge.evaluate()
            judge.accumulate()
            judge.summarize()
        judge.printed = re.sub(r"\(t=.*?s\)", "", printed.getvalue())
        judges.append(judge)
    assert_same_curves(*judges)


# ------------------------------------------------------------------------ how others use it


def evaluate_by_batches(library: Library, path: str, found: list[Record]) -> Any:
    """As the reference scripts of torchvision do: image after image, merged before the curves."""
    truths = copy.deepcopy(library.COCO(path))
    judge = library.COCOeval(truths, iouType="bbox")
    ids, records = [], []
    image_ids = sorted(truths.getImgIds(), reverse=True)
    for batch in (image_ids[:2], image_ids[2:3], image_ids[3:]):
        mine = [copy.deepcopy(r) for r in found if r["image_id"] in batch]
        judge.cocoDt = truths.loadRes(mine) if mine else library.COCO()
        judge.params.imgIds = list(batch)
        with contextlib.redirect_stdout(io.StringIO()):
            judge.evaluate()
        ids.append(judge.params.imgIds)
        ranges = len(judge.params.areaRng)
        records.append(np.asarray(judge.evalImgs).reshape(-1, ranges, len(judge.params.imgIds)))
    merged_ids, first = np.unique(np.concatenate(ids), return_index=True)
    merged = np.concatenate(records, axis=2)[..., first]
    judge.evalImgs = list(merged.flatten())
    judge.params.imgIds = list(merged_ids)
    judge._paramsEval = copy.deepcopy(judge.params)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        judge.accumulate()
        judge.summarize()
    judge.printed = re.sub(r"\(t=.*?s\)", "", printed.getvalue())
    return judge


@pytest.mark.parametrize("missing", [None, 7])
def test_batch_by_batch(files: tuple[str, str], missing: int | None) -> None:
    found = [record for record in make_data(5)[1] if record["image_id"] != missing]
    with alone():
        mine = evaluate_by_batches(OURS, files[0], found)
    assert_same_curves(mine, evaluate_by_batches(THEIRS, files[0], found))
    truths = THEIRS.COCO(files[0])
    at_once = run(THEIRS, truths, truths.loadRes(copy.deepcopy(found)))
    assert np.array_equal(mine.stats, at_once.stats)


def evaluate_as_metric(library: Library, per_class: bool) -> list[Any]:
    """As torchmetrics does: data sets made by hand, grids of float32, class after class."""
    data, found = make_data(9)
    rng = np.random.default_rng(0)
    for id_, record in enumerate(data["annotations"] + found, 1):
        box = (np.array(record["bbox"], np.float32) + np.float32(rng.random() / 7)).tolist()
        area = np.float32(box[2]) * np.float32(box[3])
        record |= {"id": id_, "bbox": box, "area": float(area), "iscrowd": record.get("iscrowd", 0)}
    images = [{"id": image["id"]} for image in data["images"]]
    categories = [{"id": k, "name": str(k)} for k in (1, 4, 7)]
    sides = []
    for records in (data["annotations"], found):
        side = library.COCO()
        side.dataset = {"images": images, "annotations": records, "categories": categories}
        with contextlib.redirect_stdout(io.StringIO()):
            side.createIndex()
        sides.append(side)
    grid = np.linspace(0.5, 0.95, 10, dtype=np.float32).astype(np.float64)
    levels = np.linspace(0, 1, 101, dtype=np.float32).astype(np.float64)
    change = set_params(iouThrs=grid, recThrs=levels, maxDets=[1, 10, 100])
    judges = [run(library, *sides, change)]
    for category in (1, 4, 7) if per_class else ():
        judge = library.COCOeval(*sides, iouType="bbox")
        change(judge)
        judge.params.catIds = [category]
        judges.append(run(library, *sides, lambda new, old=judge: new.__dict__.update(vars(old))))
    return judges


@pytest.mark.parametrize("per_class", [False, True])
def test_as_a_metric(per_class: bool) -> None:
    with alone():
        mine = evaluate_as_metric(OURS, per_class)
    theirs = evaluate_as_metric(THEIRS, per_class)
    for ours, original in zip(mine, theirs, strict=True):
        assert_same_curves(ours, original)
        assert_same_cells(ours.evalImgs, original.evalImgs)
