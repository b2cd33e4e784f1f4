"""What a path holds is recognised; what is ambiguous or unknown is said in one line."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import cv2
import numpy as np
import pytest

from detkit.config import AutoSource, CsvSource
from detkit.data import AnnotationError
from detkit.data.auto import recognise, recognise_splits
from detkit.engine.data import build_dataset
from detkit.registry import datasets

COCO = {
    "images": [{"id": 4, "file_name": "a.png", "width": 40, "height": 30}],
    "annotations": [{"id": 1, "image_id": 4, "category_id": 7, "bbox": [1, 2, 10, 20]}],
    "categories": [{"id": 7, "name": "cat"}],
}
PAGE = (
    "<annotation><object><name>cat</name><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>11</xmax>"
    "<ymax>22</ymax></bndbox></object></annotation>"
)
FILES = {
    "coco.json": json.dumps(COCO),
    "boxes.csv": "image,xmin,ymin,xmax,ymax,class\na.png,1,2,11,22,cat\n",
    "a.xml": PAGE,
    "data.yaml": "train: images\nnames: [cat]\n",
    "labels/a.txt": "0 0.15 0.4 0.25 0.6666666667\n",
}
KINDS = {
    "coco": ["coco.json"],
    "csv": ["boxes.csv"],
    "voc": ["a.xml"],
    "yolo": ["data.yaml", "labels/a.txt"],
}


def write(folder: Path, *names: str, under: str = "", pictures: str = "images") -> Path:
    """Some of FILES below a folder, and their picture."""
    for name in names:
        (folder / under / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / under / name).write_text(FILES[name])
    (folder / pictures).mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(folder / pictures / "a.png"), np.zeros((30, 40, 3), np.uint8))
    return folder


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("as_file", [True, False])
def test_each_format_as_file_and_as_folder(tmp_path: Path, kind: str, as_file: bool):
    write(tmp_path, *KINDS[kind])
    path = tmp_path / KINDS[kind][0] if as_file and kind != "voc" else tmp_path
    assert recognise(path).format == kind
    dataset = datasets["auto"](path=path)
    assert dataset.class_names == ("cat",)
    np.testing.assert_allclose(dataset[0].boxes, [[1, 2, 11, 22]], atol=1e-4)


def test_it_says_what_it_took_a_path_for(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    write(tmp_path, *KINDS["yolo"])
    with caplog.at_level(logging.INFO):
        build_dataset(AutoSource(path=str(tmp_path)), role="train")
    assert caplog.messages[0] == f"train: taken for YOLO text files (data {tmp_path}/data.yaml)"


@pytest.mark.parametrize("folder", ["annotations", "."])
def test_files_named_after_splits(tmp_path: Path, folder: str):
    write(tmp_path, "coco.json", under=folder, pictures="val2017")
    file = tmp_path / folder / "coco.json"
    (tmp_path / folder / "instances_train2017.json").write_text(file.read_text())
    val = file.rename(tmp_path / folder / "instances_val2017.json")
    found = recognise(tmp_path, split="val")
    assert (found.format, found.settings["annotations"]) == ("coco", str(val))
    assert found.parse().file_names == ["a.png"]
    with pytest.raises(AnnotationError, match=r"nothing known in .* for the split 'test'"):
        recognise(tmp_path, split="test")
    with pytest.raises(AnnotationError, match=r"several: .*train2017\.json, .*val2017\.json; give"):
        recognise(tmp_path)
    assert list(recognise_splits(tmp_path)) == ["train", "val"]


def test_folders_named_after_splits(tmp_path: Path):
    for split in ("train", "valid"):
        write(tmp_path / split, "a.xml", pictures=".")
    assert recognise(tmp_path, split="val").settings["root"] == str(tmp_path / "valid")
    assert list(recognise_splits(tmp_path)) == ["train", "val"]


def test_splits_of_voc_and_yolo(tmp_path: Path):
    write(tmp_path / "voc", "a.xml", under="Annotations", pictures="JPEGImages")
    for split in ("val", "train", "trainval", "cat_train"):
        lists = tmp_path / "voc/ImageSets/Main"
        lists.mkdir(parents=True, exist_ok=True)
        (lists / f"{split}.txt").write_text("a\n")
    assert recognise(tmp_path / "voc", split="trainval").settings["split"] == "trainval"
    assert list(recognise_splits(tmp_path / "voc")) == ["train", "val"]
    write(tmp_path / "yolo", *KINDS["yolo"])
    assert recognise(tmp_path / "yolo", split="train").settings["split"] == "train"
    assert list(recognise_splits(tmp_path / "yolo")) == ["train"]
    with pytest.raises(AnnotationError, match=r"no split 'val'; allowed: train"):
        recognise(tmp_path / "yolo", split="val").parse()


def test_settings_go_where_they_belong(tmp_path: Path):
    write(tmp_path, "boxes.csv", pictures="elsewhere")
    settings = {"images": str(tmp_path / "elsewhere"), "classes": ("dog", "cat")}
    dataset = datasets["auto"](path=tmp_path, **settings)
    assert dataset.class_names == ("dog", "cat")
    write(tmp_path, "coco.json")
    with pytest.raises(ValueError, match=r"coco\.json is COCO JSON, which has no 'classes'; leave"):
        recognise(tmp_path / "coco.json", classes=["cat"])
    with pytest.raises(ValueError, match=r"boxes\.csv is CSV, which has no 'split'"):
        recognise(tmp_path / "boxes.csv", split="train")


def test_several_formats_in_one_folder(tmp_path: Path):
    write(tmp_path, "coco.json", "boxes.csv", "a.xml", *KINDS["yolo"])
    with pytest.raises(AnnotationError) as caught:
        recognise(tmp_path)
    for known in ("Pascal VOC XML", "YOLO text files data.yaml", "CSV boxes.csv", "COCO JSON coco"):
        assert known in str(caught.value)
    assert "\n" not in str(caught.value)
    assert recognise(tmp_path, known_format="csv").format == "csv"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("results.json", '[{"image_id": 1}]'),
        ("settings.json", '{"a": 1}'),
        ("recipe.yaml", "name: a"),
        ("broken.yaml", "["),
        ("numbers.csv", "a,b\n1,2\n"),
        ("empty.csv", ""),
        ("picture.jpg", "x"),
    ],
)
def test_nothing_known(tmp_path: Path, name: str, text: str):
    (tmp_path / name).write_text(text)
    with pytest.raises(AnnotationError) as caught:
        recognise(tmp_path)
    assert f"nothing known in {tmp_path}; looked for a COCO .json" in str(caught.value)
    assert "data.yaml" in str(caught.value) and "Pascal VOC" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere", "nowhere does not exist; give a COCO .json"),
        ("a.xml", "a.xml is one XML file; for Pascal VOC give the folder"),
        ("a.txt", "a.txt is of no known format; allowed: .json, .yaml"),
    ],
)
def test_a_path_that_is_no_data_set(tmp_path: Path, name: str, message: str):
    for existing in ("a.xml", "a.txt"):
        (tmp_path / existing).touch()
    with pytest.raises(AnnotationError, match=message):
        recognise(tmp_path / name)


def test_what_else_lies_about_does_no_harm(tmp_path: Path):
    write(tmp_path, "coco.json")
    (tmp_path / "results.json").write_text("[]")
    (tmp_path / "recipe.yaml").write_text("name: a")
    (tmp_path / "README.txt").write_text("hello")
    assert recognise(tmp_path).format == "coco"


def test_the_classes_of_the_detector_hold_where_a_format_lists_none(tmp_path: Path):
    write(tmp_path, "boxes.csv")
    source = CsvSource(annotations=str(tmp_path / "boxes.csv"))
    assert build_dataset(source, role="train").class_names == ("cat",)
    names = ("bird", "cat")  # of training, where birds occur
    val = build_dataset(source, role="val", class_names=names)
    assert (val.class_names, val[0].labels.tolist()) == (names, [1])
    auto = build_dataset(AutoSource(path=str(tmp_path)), role="val", class_names=names)
    assert auto.class_names == names
    own = source.model_copy(update={"classes": ("cat", "fish")})
    assert build_dataset(own, role="val", class_names=names).class_names == ("cat", "fish")


def test_real_folders(shared_data: Path):
    with pytest.raises(
        AnnotationError, match=r"several: Pascal VOC XML .*COCO JSON coco_val\.json"
    ):
        recognise(shared_data / "bccd")
    named = {
        each.format for each in recognise_splits(shared_data / "bccd", known_format="voc").values()
    }
    assert named == {"voc"}
    assert recognise(shared_data / "coco128/coco.json").format == "coco"
    assert len(datasets["auto"](path=shared_data / "bccd/coco_test.json")) == 72
