"""The COCO reader: ids of any numbering, nothing lost, every mistake named."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from pycocotools.coco import COCO

from detkit.data import AnnotationError, ImageReadError, coco_ground_truth, read_coco

MISSING = object()


def content() -> dict[str, Any]:
    """Two pictures of 40 x 30, three boxes in the first, none in the second."""
    return {
        "images": [
            {"id": 7, "file_name": "a.png", "width": 40, "height": 30},
            {"id": 3, "file_name": "b.png", "width": 40, "height": 30},
        ],
        "categories": [{"id": 9, "name": "dog"}, {"id": 2, "name": "cat"}],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 9, "bbox": [1, 2, 10, 20]},
            {"id": 2, "image_id": 7, "category_id": 2, "bbox": [5.5, 6, 7, 8], "area": 33.25},
            {"id": 3, "image_id": 7, "category_id": 2, "bbox": [0, 0, 40, 30], "iscrowd": 1},
        ],
    }


def write(folder: Path, data: Any) -> Path:
    """The JSON file, and its pictures in folder/images."""
    (folder / "images").mkdir(exist_ok=True)
    for name in ("a.png", "b.png"):
        cv2.imwrite(str(folder / "images" / name), np.zeros((30, 40, 3), np.uint8))
    path = folder / "annotations.json"
    path.write_text(data if isinstance(data, str) else json.dumps(data))
    return path


def read(folder: Path, data: Any):
    return read_coco(write(folder, data), folder / "images")


def test_a_small_file_by_hand(tmp_path: Path):
    dataset = read(tmp_path, content())
    assert len(dataset) == 2
    assert dataset.class_names == ("cat", "dog")
    assert dataset.category_ids.tolist() == [2, 9]
    assert dataset.image_ids.tolist() == [7, 3]
    assert dataset.sizes().tolist() == [[30, 40], [30, 40]]
    sample = dataset[0]
    assert sample.image.shape == (30, 40, 3)
    assert sample.boxes.tolist() == [[1, 2, 11, 22], [5.5, 6, 12.5, 14], [0, 0, 40, 30]]
    assert sample.labels.tolist() == [1, 0, 0]
    assert sample.crowd.tolist() == [False, False, True]
    assert sample.area.tolist() == [200, 33.25, 1200]
    assert (sample.image_id, sample.original_size) == (7, (30, 40))
    dtypes = [array.dtype for array in (sample.boxes, sample.labels, sample.crowd, sample.area)]
    assert dtypes == [np.float32, np.int64, np.bool_, np.float32]


def test_an_image_without_boxes_is_kept(tmp_path: Path):
    sample = read(tmp_path, content())[1]
    assert (sample.boxes.shape, sample.labels.shape) == ((0, 4), (0,))


def test_no_images_and_no_annotations(tmp_path: Path):
    data = content()
    data["images"] = data["annotations"] = []
    dataset = read(tmp_path, data)
    assert (len(dataset), dataset.sizes().shape) == (0, (0, 2))
    assert coco_ground_truth(dataset).gt_boxes_xywh.shape == (0, 4)


@pytest.mark.parametrize(
    "ids", [{"cat": 0, "dog": 1}, {"cat": 1, "dog": 2}, {"cat": 13, "dog": 90}]
)
@pytest.mark.parametrize("image_ids", [(0, 1), (1, 2), (139, 500_000_000_000)])
def test_any_numbering_gives_the_same_labels(tmp_path: Path, ids: dict[str, int], image_ids):
    data = content()
    for category in data["categories"]:
        category["id"] = ids[category["name"]]
    for annotation in data["annotations"]:
        annotation["category_id"] = {9: ids["dog"], 2: ids["cat"]}[annotation["category_id"]]
        annotation["image_id"] = image_ids[0]
    for image, image_id in zip(data["images"], image_ids, strict=True):
        image["id"] = image_id
    dataset = read(tmp_path, data)
    assert dataset[0].labels.tolist() == [1, 0, 0]
    assert dataset[1].image_id == image_ids[1]
    assert [len(dataset[index]) for index in range(2)] == [3, 0]
    assert coco_ground_truth(dataset).category_ids.tolist() == sorted(ids.values())


def test_annotations_of_several_images_in_any_order(tmp_path: Path):
    data = content()
    data["annotations"] = [
        {"id": n, "image_id": image_id, "category_id": 2, "bbox": [n, 0, 1, 1]}
        for n, image_id in enumerate((3, 7) * 18)
    ]
    dataset = read(tmp_path, data)
    assert dataset[0].boxes[:, 0].tolist() == list(range(1, 36, 2))
    assert dataset[1].boxes[:, 0].tolist() == list(range(0, 36, 2))
    assert coco_ground_truth(dataset).gt_image_index.tolist() == [1, 0] * 18


@pytest.mark.parametrize(
    ("bbox", "expected", "clipped", "degenerate"),
    [
        ([0, 0, 40, 30], [0, 0, 40, 30], 0, 0),
        ([30, 20, 20, 20], [30, 20, 40, 30], 1, 0),
        ([-5, -5, 10, 10], [0, 0, 5, 5], 1, 0),
        ([30, 20, 10.001, 10], [30, 20, 40, 30], 0, 0),  # rounding in the file
        ([3, 3, 0, 5], None, 0, 1),
        ([3, 3, 5, -1], None, 0, 1),
        ([40, 3, 5, 5], None, 0, 1),  # outside
        ([-9, 3, 5, 5], None, 0, 1),
    ],
)
def test_boxes_are_clipped_or_dropped_and_counted(
    tmp_path: Path, bbox: list[float], expected: list[float] | None, clipped: int, degenerate: int
):
    data = content()
    data["annotations"][1]["bbox"] = bbox
    dataset = read(tmp_path, data)
    boxes = dataset[0].boxes.tolist()
    assert boxes == [[1, 2, 11, 22], *([expected] if expected else []), [0, 0, 40, 30]]
    report = dataset.report
    assert (report.clipped, report.degenerate) == (clipped, degenerate)
    assert (report.images, report.empty, report.crowd) == (2, 1, 1)
    assert report.boxes == len(boxes)
    assert f"{degenerate} degenerate boxes dropped" in str(report)
    # evaluation sees the file as it is
    assert coco_ground_truth(dataset).gt_boxes_xywh[1].tolist() == bbox


def test_ground_truth_is_what_pycocotools_reads(tmp_path: Path):
    data = content()
    rng = np.random.default_rng(0)
    data["annotations"] = [
        {
            "id": n + 1,
            "image_id": int(rng.choice([3, 7])),
            "category_id": int(rng.choice([2, 9])),
            "bbox": rng.uniform(0, 20, 4).tolist(),
            "area": rng.uniform(0, 400),
            "iscrowd": int(rng.integers(2)),
        }
        for n in range(20)
    ]
    path = write(tmp_path, data)
    reference = COCO(str(path)).anns.values()
    truth = coco_ground_truth(read_coco(path, tmp_path / "images"))
    assert truth.image_ids[truth.gt_image_index].tolist() == [a["image_id"] for a in reference]
    assert truth.category_ids[truth.gt_label].tolist() == [a["category_id"] for a in reference]
    assert truth.gt_boxes_xywh.tolist() == [a["bbox"] for a in reference]  # to the last bit
    assert truth.gt_area.tolist() == [a["area"] for a in reference]
    assert truth.gt_crowd.tolist() == [bool(a["iscrowd"]) for a in reference]


MISTAKES = [  # where in the file, the wrong value, what the message says
    ("annotations.1.bbox", MISSING, "annotation 2 (image 7): bbox is missing"),
    ("annotations.1.bbox", [1, 2, 3], "annotation 2 (image 7): bbox is [1, 2, 3]"),
    ("annotations.1.bbox", [1, 2, "3", 4], "bbox is [1, 2, '3', 4], it must be four finite"),
    ("annotations.1.bbox", [1, 2, float("nan"), 4], "bbox is [1, 2, nan, 4]"),
    ("annotations.1.bbox", [1, 2, float("inf"), 4], "bbox is [1, 2, inf, 4]"),
    ("annotations.1.bbox", {"x": 1}, "bbox is {'x': 1}"),
    ("annotations.1.category_id", MISSING, "annotation 2 (image 7): category_id is missing"),
    ("annotations.1.category_id", "2", "category_id is '2', it must be an integer"),
    ("annotations.1.category_id", 5, "category_id 5 is not among the 2 ids of 'categories'"),
    ("annotations.1.image_id", MISSING, "annotation 2 (image unknown): image_id is missing"),
    ("annotations.1.image_id", 4, "annotation 2 (image 4): image_id 4 is not among the 2 ids"),
    ("annotations.1.image_id", True, "image_id is True, it must be an integer"),
    ("annotations.1.area", "big", "area is 'big', it must be a number"),
    ("annotations.1.iscrowd", "no", "iscrowd is 'no', it must be 0 or 1"),
    ("annotations.1", [1, 2], "annotation at position 1 must be an object, got [1, 2]"),
    (
        "annotations.1",
        {"image_id": 7, "category_id": 2, "bbox": [0] * 999},
        "annotation at position 1 (image 7): bbox is [0, 0, 0, 0, 0, 0, ...], it must",
    ),
    ("annotations", MISSING, "has no 'annotations'; COCO JSON needs"),
    ("annotations", {}, "'annotations' must be a list of objects, got a dict"),
    ("images", MISSING, "has no 'images'"),
    ("images.1.id", MISSING, "image at position 1: id is missing"),
    ("images.1.id", 7, "image id 7 is used twice"),
    ("images.1.file_name", MISSING, "image 3: file_name is missing"),
    ("images.1.width", -40, "image 3: width is -40, it must be a positive integer"),
    ("images.1.height", "30", "image 3: height is '30', it must be a positive integer"),
    ("images.1.file_name", "c.png", "1 of 2 image files are not in"),
    ("categories", MISSING, "has no 'categories'"),
    ("categories", [], "'categories' is empty"),
    ("categories.1.id", 9, "category id 9 is used twice"),
    ("categories.1.id", None, "category at position 1: id is None, it must be an integer"),
    ("categories.1.name", "dog", "category name 'dog' is used twice"),
    ("categories.1.name", MISSING, "category 2: name is missing"),
]


@pytest.mark.parametrize(("place", "value", "message"), MISTAKES)
def test_mistakes_are_named_in_one_line(tmp_path: Path, place: str, value: Any, message: str):
    data = content()
    item: Any = data
    *parents, last = [int(key) if key.isdigit() else key for key in place.split(".")]
    for key in parents:
        item = item[key]
    if value is MISSING:
        del item[last]
    else:
        item[last] = value
    with pytest.raises(AnnotationError) as caught:
        read(tmp_path, data)
    assert message in str(caught.value)
    assert "annotations.json" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "is not valid JSON"), ("[1]", "holds a list"), ("\udcff", "is not valid JSON")],
)
def test_a_file_that_is_not_coco(tmp_path: Path, text: str, message: str):
    path = write(tmp_path, "")
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(AnnotationError, match=message):
        read_coco(path, tmp_path / "images")


def test_no_annotation_file_and_no_folder(tmp_path: Path):
    path = write(tmp_path, content())
    with pytest.raises(AnnotationError, match=r"cannot read annotations .*no\.json: No such file"):
        read_coco(tmp_path / "no.json", tmp_path / "images")
    with pytest.raises(AnnotationError, match=r"images folder .*elsewhere does not exist"):
        read_coco(path, tmp_path / "elsewhere")


def test_further_mistakes_are_counted(tmp_path: Path):
    data = content()
    for annotation in data["annotations"]:
        del annotation["bbox"]
    with pytest.raises(AnnotationError, match=r"annotation 1 .*\(and 2 more such problems\)"):
        read(tmp_path, data)


def test_missing_files_are_counted_and_the_first_three_named(tmp_path: Path):
    data = content()
    data["images"] += [
        {"id": 100 + n, "file_name": f"gone{n}.png", "width": 4, "height": 3} for n in range(5)
    ]
    with pytest.raises(AnnotationError) as caught:
        read(tmp_path, data)
    assert "5 of 7 image files are not in" in str(caught.value)
    assert "gone0.png, gone1.png, gone2.png, ..." in str(caught.value)
    assert "gone3" not in str(caught.value)


@pytest.mark.parametrize(
    "file_name", ["train/a.png", "elsewhere/train/a.png", "a.png", "C:\\pictures\\a.png"]
)
def test_images_are_found_below_the_folder(tmp_path: Path, file_name: str):
    data = content()
    data["images"][0]["file_name"] = file_name
    path = write(tmp_path, data)
    (tmp_path / "images" / "train").mkdir()
    (tmp_path / "images" / "a.png").rename(tmp_path / "images" / "train" / "a.png")
    dataset = read_coco(path, tmp_path / "images")
    assert dataset.path(0) == tmp_path / "images" / "train" / "a.png"
    assert dataset[0].image.shape == (30, 40, 3)


def test_an_ambiguous_name_is_an_error(tmp_path: Path):
    path = write(tmp_path, content())
    for folder in ("x", "y"):
        (tmp_path / "images" / folder).mkdir()
        (tmp_path / "images" / folder / "a.png").write_bytes(b"")
    (tmp_path / "images" / "a.png").unlink()
    with pytest.raises(AnnotationError, match=r"2 files below .*x/a\.png, y/a\.png"):
        read_coco(path, tmp_path / "images")


def test_names_that_are_not_ascii(tmp_path: Path):
    data = content()
    data["images"][0]["file_name"] = "Größe 图.png"
    path = write(tmp_path, data)
    (tmp_path / "images" / "a.png").rename(tmp_path / "images" / "Größe 图.png")
    assert read_coco(path, tmp_path / "images")[0].image.shape == (30, 40, 3)


def test_a_picture_of_another_size_is_an_error(tmp_path: Path):
    data = content()
    data["images"][1].update(width=30, height=40)  # as if its EXIF turn had been ignored
    dataset = read(tmp_path, data)
    assert dataset[0].image.shape == (30, 40, 3)
    with pytest.raises(ImageReadError, match=r"b\.png is 40x30 .* say 30x40"):
        dataset[1]


def test_absent_sizes_are_read_from_the_pictures(tmp_path: Path):
    data = content()
    for image in data["images"]:
        del image["width"]
    data["annotations"][0]["bbox"] = [30, 20, 20, 20]
    dataset = read(tmp_path, data)
    assert dataset.sizes().tolist() == [[30, 40], [30, 40]]
    assert dataset[0].boxes[0].tolist() == [30, 20, 40, 30]


def test_a_subset_keeps_the_classes(tmp_path: Path):
    data = content()
    data["annotations"].append({"id": 4, "image_id": 3, "category_id": 9, "bbox": [1, 1, 2, 2]})
    dataset = read(tmp_path, data)
    part = dataset.subset(1)
    assert (len(part), part.report.boxes, part.class_names) == (1, 3, ("cat", "dog"))
    np.testing.assert_array_equal(part[0].boxes, dataset[0].boxes)
    truth = coco_ground_truth(part)
    assert len(truth.gt_label) == 3
    assert truth.gt_ids is not None
    assert len(truth.gt_ids) == 3
    other = dataset.select(np.array([1]))  # the rest: no truth is in both
    assert (len(other), len(coco_ground_truth(other).gt_label)) == (1, 1)
    np.testing.assert_array_equal(other[0].boxes, dataset[1].boxes)
    assert len(dataset.subset(10)) == 2
    with pytest.raises(ValueError, match="at least 1"):
        dataset.subset(0)
    with pytest.raises(IndexError, match=r"image index 1 not in 0\.\.0"):
        part[1]


def test_a_sample_is_not_a_window_into_the_data_set(tmp_path: Path):
    dataset = read(tmp_path, content())
    before = copy.deepcopy(dataset[0])
    sample = dataset[0]
    sample.boxes[:] = sample.labels[:] = sample.area[:] = -1
    np.testing.assert_array_equal(dataset[0].boxes, before.boxes)
    np.testing.assert_array_equal(dataset[0].labels, before.labels)


def test_real_files(shared_data: Path):
    bccd = read_coco(shared_data / "bccd/coco_all.json", shared_data / "bccd/JPEGImages")
    assert bccd.class_names == ("RBC", "WBC", "Platelets")
    assert (len(bccd), bccd.report.boxes) == (364, 4886)
    coco = read_coco(shared_data / "coco128/coco.json", shared_data / "coco128")
    assert (len(coco), coco.report.boxes, coco.report.empty) == (128, 929, 2)
    assert (len(coco.class_names), coco.category_ids[-1]) == (80, 90)
    for dataset in (bccd, coco):
        sample = dataset[len(dataset) - 1]
        assert sample.image.shape[:2] == sample.original_size
        assert len(sample.boxes)
