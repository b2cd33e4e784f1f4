"""The YOLO reader: places of pictures and labels, boxes and polygons, every mistake named."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from detkit.data import (
    AnnotationError,
    CocoDataset,
    ImageReadError,
    coco_ground_truth,
    read_coco,
)
from detkit.data.yolo import label_file, parse_yolo, read_yolo
from detkit.engine.evaluate import measure
from detkit.structures import Detections

YAML = "train: images/train\nval: images/val\nnames: {0: cat, 1: dog}\n"


def picture(path: Path, *, orientation: int | None = None) -> None:
    """40 x 30 as stored."""
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    Image.fromarray(np.zeros((30, 40, 3), np.uint8)).save(path, exif=exif)


def write(root: Path, labels: dict[str, str | None], yaml: str = YAML) -> Path:
    """A data.yaml, and pictures with their labels: "train/a" to text, None for no file."""
    (root / "data.yaml").write_text(yaml, encoding="utf-8")
    for name, text in labels.items():
        picture(root / "images" / f"{name}.jpg")
        (root / "labels" / name).parent.mkdir(parents=True, exist_ok=True)
        if text is not None:
            (root / "labels" / f"{name}.txt").write_text(text, encoding="utf-8")
    return root / "data.yaml"


LABELS = {
    "train/b": "1 0.5 0.5 0.25 0.2\n0 0.1 0.1 0.2 0.2\n",
    "train/a": "",
    "train/c": None,
    "val/a": "0 0.5 0.5 1 1",
}


def test_a_small_set_by_hand(tmp_path: Path):
    dataset = read_yolo(write(tmp_path, LABELS), split="train")
    assert [dataset.path(index).name for index in range(3)] == ["a.jpg", "b.jpg", "c.jpg"]
    assert dataset.image_ids.tolist() == [1, 2, 3]
    assert dataset.category_ids.tolist() == [0, 1]
    assert dataset.class_names == ("cat", "dog")
    assert dataset.sizes().tolist() == [[30, 40]] * 3
    assert [len(dataset[index]) for index in range(3)] == [0, 2, 0]
    sample = dataset[1]
    np.testing.assert_allclose(sample.boxes, [[15, 12, 25, 18], [0, 0, 8, 6]], atol=1e-6)
    assert sample.labels.tolist() == [1, 0]
    np.testing.assert_allclose(sample.area, [60, 48], rtol=1e-6)
    assert read_yolo(tmp_path / "data.yaml", split="val")[0].boxes.tolist() == [[0, 0, 40, 30]]


def test_boxes_are_of_the_upright_picture(tmp_path: Path):
    data = write(tmp_path, LABELS)
    picture(tmp_path / "images/val/a.jpg", orientation=6)
    sample = read_yolo(data, split="val")[0]
    assert sample.image.shape == (40, 30, 3)
    assert sample.boxes.tolist() == [[0, 0, 30, 40]]


def test_a_polygon_gives_the_box_around_it(tmp_path: Path):
    lines = "0 0.1 0.2 0.5 0.4 0.3 0.9\n1 0.5 0.5 0.5 0.5\n1 0 0 1 0 1 1 0 1\n"
    source = parse_yolo(write(tmp_path, {"train/a": lines, "val/a": ""}), split="train")
    expected = [[4, 6, 16, 21], [10, 7.5, 20, 15], [0, 0, 40, 30]]
    np.testing.assert_allclose(source.truth.gt_boxes_xywh, expected, atol=1e-9)
    assert source.unread == {"polygons, of which the boxes are kept": 2}


def test_boxes_that_leave_the_picture_are_cut_off_not_thrown_away(tmp_path: Path):
    lines = "0 1 0.5 0.5 0.5\n0 0.5 0.5 0 0.1\n1 0.5 0.5 0.1 0.1\n"
    dataset = read_yolo(write(tmp_path, {"train/a": lines, "val/a": ""}), split="train")
    assert (dataset.report.boxes, dataset.report.clipped, dataset.report.degenerate) == (2, 1, 1)
    assert dataset[0].boxes[0].tolist() == [30, 7.5, 40, 22.5]


@pytest.mark.parametrize("line", ["./images/train/b.jpg", "images\\train\\b.jpg"])
def test_a_list_of_pictures_as_windows_writes_it(tmp_path: Path, line: str):
    data = write(tmp_path, LABELS, YAML.replace("images/train", "train.txt"))
    (tmp_path / "train.txt").write_bytes(f"\ufeff{line}\r\n".encode())
    dataset = read_yolo(data, split="train")
    assert [dataset.path(index).name for index in range(len(dataset))] == ["b.jpg"]
    assert dataset[0].labels.tolist() == [1, 0]


@pytest.mark.parametrize("names", ["[cat, dog]", "\n  0: cat\n  1: dog", "[cat, dog]\nnc: 2"])
def test_names_as_list_or_mapping(tmp_path: Path, names: str):
    data = write(tmp_path, LABELS, f"train: images/train\nnames: {names}\n")
    assert read_yolo(data, split="train").class_names == ("cat", "dog")


def test_classes_with_gaps_and_numbers_as_names(tmp_path: Path):
    yaml = "train: images/train\nnames: {7: 12, 3: 'no'}\n"
    data = write(tmp_path, {"train/a": "7 0.5 0.5 1 1\n3 0.5 0.5 1 1"}, yaml)
    dataset = read_yolo(data)
    assert (dataset.class_names, dataset.category_ids.tolist()) == (("no", "12"), [3, 7])
    assert dataset[0].labels.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("place", "found"),
    [
        ("path: .\ntrain: images/train", ["a", "b", "c"]),
        ("path: images\ntrain: train", ["a", "b", "c"]),
        ("train: ../images/train", ["a", "b", "c"]),  # as Roboflow writes it
        ("train: images", ["a", "b", "c", "a"]),  # with all that is below
        ("train: [images/val, images/train]", ["a", "a", "b", "c"]),
        ("train: list.txt", ["c", "a"]),
        ("train: lists/deep.txt", ["b"]),
    ],
)
def test_where_pictures_are(tmp_path: Path, place: str, found: list[str]):
    root = tmp_path / "set"
    root.mkdir()
    data = write(root, LABELS, f"{place}\nnames: [cat, dog]\n")
    (root / "list.txt").write_text("./images/train/c.jpg\n\nimages/train/a.jpg\n")
    (root / "lists").mkdir()
    (root / "lists/deep.txt").write_text(f"{root}/images/train/b.jpg\n")
    dataset = read_yolo(data, split="train")
    assert [dataset.path(index).stem for index in range(len(dataset))] == found
    assert dataset.report.boxes == 2 * ("b" in found) + (found.count("a") == 2)


def test_a_yaml_in_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write(tmp_path, LABELS)
    monkeypatch.chdir(tmp_path)
    dataset = read_yolo("data.yaml", split="train")
    assert dataset.report.boxes == 2
    assert dataset.path(1) == tmp_path / "images/train/b.jpg"


def test_an_absolute_path(tmp_path: Path):
    data = write(tmp_path, LABELS, f"path: {tmp_path}\ntrain: images/train\nnames: [cat, dog]\n")
    elsewhere = tmp_path / "yaml" / "my.yaml"
    elsewhere.parent.mkdir()
    data.rename(elsewhere)
    assert len(read_yolo(elsewhere)) == 3


@pytest.mark.parametrize(
    ("picture_path", "expected"),
    [
        ("a/images/b/c.jpg", "a/labels/b/c.txt"),
        ("/a/images/x/images/c.d.png", "/a/images/x/labels/c.d.txt"),  # the last one
        ("images/c.jpg", "labels/c.txt"),
        ("/images/c.jpg", "/labels/c.txt"),
        ("a/my_images/c.jpg", "a/my_images/c.txt"),  # beside it
    ],
)
def test_where_labels_are(picture_path: str, expected: str):
    path = picture_path.replace("/", os.sep)
    assert label_file(path) == expected.replace("/", os.sep)


def test_labels_beside_pictures(tmp_path: Path):
    (tmp_path / "data.yaml").write_text("train: all\nnames: [cat]\n")
    picture(tmp_path / "all/a.jpg")
    (tmp_path / "all/a.txt").write_text("0 0.5 0.5 1 1\n")
    assert read_yolo(tmp_path / "data.yaml").report.boxes == 1


# --- mistakes --------------------------------------------------------------------------------

LINES = [
    ("0 0.5 0.5 1", "line 2: 4 columns; a box has 5 (class, x centre, y centre, width, height)"),
    ("0 0.5 0.5 1 1 0.9", "line 2: 6 columns; a box has 5"),
    ("0 0.5 0.5 1 1 0.9", "is it a detection with its score?"),
    ("0 .1 .1 .2 .2 .3 .3 .4", "line 2: 8 columns; a box has 5"),
    ("0 0.5 x 1 1", "line 2: y centre is 'x', it must be a finite number"),
    ("0 0.5 nan 1 1", "line 2: y centre is 'nan', it must be a finite number"),
    ("0 .1 .1 .2 .2 .3 x", "line 2: y is 'x', it must be a finite number"),
    ("cat 0.5 0.5 1 1", "line 2: class is 'cat', it must be a finite number"),
    ("2 0.5 0.5 1 1", "line 2: class 2 is not among the 2 classes of the yaml"),
    ("-1 0.5 0.5 1 1", "line 2: class -1 is not among"),
    ("0.5 0.5 0.5 1 1", "line 2: class 0.5 is not among"),
    ("0 320 240 64 48", "line 2: 320 240 64 48 are not fractions of the picture (0..1); are they"),
    ("0 0.5 0.5 1 x\n0 0.5 y 1 1", "height is 'x', it must be a finite number (and 1 more such"),
]


@pytest.mark.parametrize(("line", "message"), LINES)
def test_a_wrong_line_is_named(tmp_path: Path, line: str, message: str):
    data = write(tmp_path, {"train/a": f"0 0.5 0.5 1 1\n{line}\n", "val/a": ""})
    with pytest.raises(AnnotationError) as caught:
        read_yolo(data, split="train")
    assert message in str(caught.value)
    assert str(tmp_path / "labels/train/a.txt") in str(caught.value)
    assert "\n" not in str(caught.value)


YAMLS = [
    ("[", "is not valid YAML"),
    ("- a", "must be a mapping with names, train and val"),
    ("train: images/train", "names must be a list, or a mapping from class to name, got None"),
    ("train: images/train\nnames: []", "names must be a list"),
    ("train: images/train\nnames: {cat: 0}", "names has the class 'cat', it must be 0 or more"),
    ("train: images/train\nnames: {-1: cat}", "names has the class -1, it must be 0 or more"),
    ("train: images/train\nnames: [yes, maybe]", "the name of class 0 is True, put it in quotes"),
    ("train: images/train\nnames: [a, b, a]", "class name 'a' is used twice"),
    ("train: images/train\nnames: [cat, dog]\nnc: 3", "nc is 3, but names has 2 classes"),
    ("names: [cat, dog]", "has none of train, val, test; name a folder"),
    ("val: images/val\nnames: [cat, dog]", "has no split 'train'; allowed: val"),
    ("train: {a: b}\nnames: [cat, dog]", "train must be a path or a list of paths, got {'a': 'b'}"),
    ("train: image/train\nnames: [cat, dog]", "'image/train' does not exist, looked for"),
    ("train: list.txt\nnames: [cat, dog]", "list.txt: 2 of 3 pictures do not exist: x.jpg, y.jpg"),
    ("train: [images, images/val]\nnames: [cat, dog]", "has the picture"),
]


@pytest.mark.parametrize(("yaml", "message"), YAMLS)
def test_a_wrong_yaml_is_named(tmp_path: Path, yaml: str, message: str):
    data = write(tmp_path, LABELS, yaml)
    (tmp_path / "list.txt").write_text("images/train/a.jpg\nx.jpg\ny.jpg\n")
    with pytest.raises(AnnotationError) as caught:
        read_yolo(data, split="train")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_split_has_to_be_chosen(tmp_path: Path):
    with pytest.raises(AnnotationError, match="has the splits train, val: set split to one"):
        read_yolo(write(tmp_path, LABELS))


def test_no_label_file_at_all_is_a_mistake(tmp_path: Path):
    """One among others is a picture without boxes; none for any picture is a wrong folder."""
    data = write(tmp_path, {"train/a": None, "train/b": None})
    with pytest.raises(AnnotationError, match=r"none of the 2 pictures .*labels/train/a\.txt"):
        read_yolo(data, split="train")


def test_no_yaml_and_no_pictures(tmp_path: Path):
    with pytest.raises(AnnotationError, match=r"cannot read annotations .*data\.yaml: No such"):
        read_yolo(tmp_path / "data.yaml")
    data = write(tmp_path, {"train/a": ""})
    (tmp_path / "images/train/a.jpg").unlink()
    assert len(read_yolo(data, split="train")) == 0


def test_a_broken_picture_is_named(tmp_path: Path):
    data = write(tmp_path, LABELS)
    (tmp_path / "images/train/b.jpg").write_bytes(b"nothing")
    with pytest.raises(ImageReadError, match=r"train/b\.jpg"):
        read_yolo(data, split="train")


# --- real data -------------------------------------------------------------------------------


def test_real_labels_equal_those_of_the_same_data_in_coco(shared_data: Path):
    """The labels have six digits, which are 0.0005 px of 640."""
    root = shared_data / "coco128"
    yolo = read_yolo(root / "data.yaml", split="train")
    coco = read_coco(root / "coco.json", root)
    assert yolo.class_names == coco.class_names
    assert (yolo.category_ids[-1], coco.category_ids[-1]) == (79, 90)
    assert [yolo.path(index) for index in range(128)] == [coco.path(index) for index in range(128)]
    np.testing.assert_array_equal(yolo.sizes(), coco.sizes())
    found, expected = coco_ground_truth(yolo), coco_ground_truth(coco)
    for name in ("image_ids", "gt_image_index", "gt_label", "gt_crowd"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), name)
    assert np.abs(found.gt_boxes_xywh - expected.gt_boxes_xywh).max() < 0.0006
    assert [len(yolo[index]) for index in range(3)] == [len(coco[index]) for index in range(3)]


def test_real_labels_give_the_same_ap(shared_data: Path):
    root = shared_data / "coco128"
    yolo = read_yolo(root / "data.yaml", split="train")
    coco = read_coco(root / "coco.json", root)
    detections = disturbed(coco)
    found, expected = (measure(detections, dataset).stats for dataset in (yolo, coco))
    np.testing.assert_array_equal(found, expected)
    assert 0.2 < found[0] < 0.8  # so that it could differ


def disturbed(dataset: CocoDataset) -> dict[int, Detections]:
    """Detections near the truths, by image id."""
    rng = np.random.default_rng(0)
    detections = {}
    for index in range(len(dataset)):
        sample = dataset[index]
        sides = np.tile(sample.boxes[:, 2:] - sample.boxes[:, :2], 2)
        boxes = sample.boxes + rng.normal(0, 0.08, sample.boxes.shape) * sides
        detections[sample.image_id] = Detections(
            boxes=torch.tensor(boxes, dtype=torch.float32),
            scores=torch.tensor(rng.uniform(size=len(boxes)), dtype=torch.float32),
            labels=torch.tensor(sample.labels),
        )
    return detections
