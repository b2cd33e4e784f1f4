"""Conversions: round trips, what is said to be lost, and nothing half-written."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from detkit.data import AnnotationError, coco_ground_truth
from detkit.data.annotations import Annotations
from detkit.data.auto import PARSERS, recognise
from detkit.data.convert import Conversion, SourceOptions, convert
from detkit.engine.evaluate import measure
from detkit.registry import datasets
from detkit.structures import Detections

FORMATS = ("coco", "voc", "yolo", "csv")
ROOT = Path(__file__).resolve().parents[2]


def coco_content() -> dict[str, Any]:
    """Pictures of 40 x 30: two with boxes, one without; ids with gaps; 'bird' never occurs."""
    boxes = [[1.08, 2.5, 10.37, 20.123456], [5, 6, 7, 8], [0, 0, 40, 30]]
    return {
        "images": [
            {"id": 7, "file_name": "b.png", "width": 40, "height": 30},
            {"id": 3, "file_name": "a.png", "width": 40, "height": 30},
            {"id": 9, "file_name": "Füße 1.png", "width": 40, "height": 30},
        ],
        "categories": [
            {"id": 2, "name": "dog"},
            {"id": 9, "name": "cat, black"},
            {"id": 90, "name": "bird"},
        ],
        "annotations": [
            {"id": 5, "image_id": 7, "category_id": 9, "bbox": boxes[0]},
            {"id": 6, "image_id": 9, "category_id": 2, "bbox": boxes[1]},
            {"id": 8, "image_id": 7, "category_id": 2, "bbox": boxes[2]},
        ],
    }


def write(folder: Path, content: dict[str, Any] | None = None, name: str = "train.json") -> Path:
    """The JSON file, and its pictures in folder/images."""
    content = coco_content() if content is None else content
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for index, image in enumerate(content["images"]):
        path = folder / "images" / image["file_name"]
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.full((image["height"], image["width"], 3), index, np.uint8)
        path.write_bytes(cv2.imencode(".png", pixels)[1].tobytes())
    (folder / name).write_text(json.dumps(content))
    return folder / name


def read(conversion: Conversion, split: str = "train") -> Annotations:
    """As the recipe that the conversion names reads it."""
    settings = yaml.safe_load(conversion.recipes[split])
    return PARSERS[settings.pop("format")](**settings)


def truths(source: Annotations) -> dict[str, list[tuple[str, list[float]]]]:
    """For each picture, by its content, the names and boxes of its objects."""
    found: dict[str, list[tuple[str, list[float]]]] = {}
    for index, name in enumerate(source.file_names):
        mine = np.flatnonzero(source.truth.gt_image_index == index)
        pixels = (source.images / name).read_bytes()
        found[pixels.hex()] = [
            (source.class_names[source.truth.gt_label[i]], source.truth.gt_boxes_xywh[i].tolist())
            for i in mine.tolist()
        ]
    return found


def assert_same_truths(found: Annotations, expected: Annotations, *, atol: float) -> None:
    """Same pictures, classes, objects in the same order, boxes to a tolerance in pixels."""
    assert found.class_names == expected.class_names
    one, other = truths(found), truths(expected)
    assert one.keys() == other.keys()
    for picture, objects in other.items():
        assert [name for name, _ in one[picture]] == [name for name, _ in objects]
        boxes = [np.array([box for _, box in each]) for each in (one[picture], objects)]
        np.testing.assert_allclose(boxes[0], boxes[1], rtol=0, atol=atol)


TOLERANCE = {"coco": 0.0, "csv": 2e-6, "voc": 2e-6, "yolo": 1e-3}


@pytest.mark.parametrize(("first", "second"), list(itertools.product(FORMATS, FORMATS)))
def test_round_trips_of_all_pairs(tmp_path: Path, first: str, second: str):
    """COCO -> first -> second -> COCO."""
    path = write(tmp_path / "source")
    expected = PARSERS["coco"](path)
    folder, options = tmp_path / "0", None
    conversion = convert([str(path)], folder, to=first)
    for index, target in enumerate((second, "coco"), start=1):
        settings = yaml.safe_load(conversion.recipes["train"])
        options = SourceOptions(
            format=settings["format"],
            images=settings.get("images"),
            classes=None if "classes" not in settings else tuple(settings["classes"]),
        )
        source = settings.get("annotations") or settings.get("data") or settings["root"]
        conversion = convert([source], tmp_path / str(index), to=target, options=options)
    tolerance = max(TOLERANCE[first], TOLERANCE[second])
    assert_same_truths(read(conversion), expected, atol=3 * tolerance)


@pytest.mark.parametrize("to", FORMATS)
@pytest.mark.parametrize("size", [(40, 30), (4999, 3337), (12345, 7)])
def test_precision_of_a_conversion(tmp_path: Path, to: str, size: tuple[int, int]):
    rng = np.random.default_rng(0)
    content = coco_content()
    content["images"] = [{"id": 1, "file_name": "a.png", "width": size[0], "height": size[1]}]
    corners = np.sort(rng.uniform(0, 1, (50, 2, 2)), axis=1) * size
    boxes = np.concatenate([corners[:, 0], corners[:, 1] - corners[:, 0]], axis=1)
    content["annotations"] = [
        {"id": i + 1, "image_id": 1, "category_id": 2, "bbox": box}
        for i, box in enumerate(boxes.tolist())
    ]
    conversion = convert([str(write(tmp_path, content))], tmp_path / "out", to=to)
    found = read(conversion).truth.gt_boxes_xywh
    np.testing.assert_allclose(found, boxes, rtol=0, atol=TOLERANCE[to])
    if to == "coco":
        np.testing.assert_array_equal(found, boxes)


def test_coco_keeps_everything_of_a_data_set(tmp_path: Path):
    content = coco_content()
    content["annotations"][0].update(iscrowd=1, area=123.25)
    source = PARSERS["coco"](write(tmp_path, content))
    conversion = convert([str(tmp_path / "train.json")], tmp_path / "out", to="coco")
    found = read(conversion)
    assert conversion.lost == ()
    for name in ("image_ids", "category_ids", "gt_ids", "gt_area", "gt_crowd", "gt_boxes_xywh"):
        np.testing.assert_array_equal(getattr(found.truth, name), getattr(source.truth, name), name)
    assert found.file_names == source.file_names


# --- what is lost ----------------------------------------------------------------------------


def lossy_content() -> dict[str, Any]:
    content = coco_content()
    content["info"] = {}
    first, second, third = content["annotations"]
    first.update(iscrowd=1, segmentation=[[0, 0, 1, 1, 2, 0]])
    second.update(area=12.5, truncated=1)
    third.update(bbox=[30, 20, 20, 20])
    content["annotations"] += [
        {"id": 20, "image_id": 3, "category_id": 2, "bbox": [3, 3, 0, 5]},
        {"id": 21, "image_id": 3, "category_id": 2, "bbox": [3, 3, 4, 5]},
    ]
    return content


LOST = {
    "coco": ["segmentation of annotations: 1"],
    "csv": ["segmentation of annotations: 1", "image ids, category ids, annotation ids: counted"],
    "voc": [
        "segmentation of annotations: 1",
        "area of objects, other than that of their box: 1",
        "crowds, which become difficult objects: 1",
        "image ids, category ids, annotation ids: counted anew",
    ],
    "yolo": [
        "segmentation of annotations: 1",
        "area of objects, other than that of their box: 1",
        "truncated flags: 1",
        "crowds and ignored objects, left out: 1",
        "boxes without area, left out: 1",
        "boxes that leave their picture, cut off: 1",
        "image ids, category ids, annotation ids: counted anew",
    ],
}


@pytest.mark.parametrize("to", FORMATS)
def test_what_is_lost_is_said_and_nothing_else(tmp_path: Path, to: str):
    path = write(tmp_path, lossy_content())
    conversion = convert([str(path)], tmp_path / "out", to=to)
    assert len(conversion.lost) == len(LOST[to])
    for line, expected in zip(conversion.lost, LOST[to], strict=True):
        assert line.startswith(expected)
    for line in conversion.lost:
        assert line in str(conversion)
    truth, kept = PARSERS["coco"](path).truth, read(conversion)
    if to == "yolo":
        expected = [[5, 6, 7, 8], [3, 3, 4, 5], [30, 20, 10, 10]]  # in the order of file names
        np.testing.assert_allclose(kept.truth.gt_boxes_xywh, expected, atol=1e-6)
        return
    order = np.argsort(truth.gt_image_index, kind="stable") if to != "coco" else slice(None)
    assert kept.truth.gt_crowd.tolist() == truth.gt_crowd[order].tolist()
    assert kept.flags["truncated"].sum() == 1
    if to == "csv":
        np.testing.assert_allclose(kept.truth.gt_area, truth.gt_area[order])


def test_flags_of_voc_survive_coco_and_csv(tmp_path: Path):
    content = coco_content()
    content["annotations"][0].update(difficult=1, iscrowd=1)
    content["annotations"][2].update(truncated=1)
    convert([str(write(tmp_path, content))], tmp_path / "voc", to="voc")
    options = SourceOptions(classes=("dog", "cat, black", "bird"))
    for to in ("coco", "csv", "voc"):
        conversion = convert([str(tmp_path / "voc")], tmp_path / f"to_{to}", to=to, options=options)
        assert conversion.lost == ()
        found = read(conversion)
        assert found.flags["difficult"].tolist() == [True, False, False]
        assert found.flags["truncated"].tolist() == [False, True, False]
        assert found.truth.gt_crowd.tolist() == [True, False, False]
    json_file = json.loads((tmp_path / "to_coco/train.json").read_text())
    assert json_file["annotations"][0]["difficult"] == 1


def test_voc_of_the_challenge_is_written_with_edges(tmp_path: Path):
    write(tmp_path)
    convert([str(tmp_path / "train.json")], tmp_path / "voc", to="voc")
    page = tmp_path / "voc/Annotations/Füße 1.xml"
    page.write_text(page.read_text("utf-8").replace("Unknown", "The VOC2007 Database"), "utf-8")
    for one_based, left in ((None, 4), (False, 5)):
        out = tmp_path / f"{one_based}"
        convert([str(tmp_path / "voc")], out, to="voc", options=SourceOptions(one_based=one_based))
        assert f"<xmin>{left}</xmin>" in (out / "Annotations/Füße 1.xml").read_text("utf-8")
    with pytest.raises(ValueError, match="is no Pascal VOC: nothing there can be one-based"):
        convert(
            [str(tmp_path / "train.json")],
            tmp_path / "x",
            to="coco",
            options=SourceOptions(one_based=True),
        )


def test_sizes_are_upright(tmp_path: Path):
    """A fraction of a turned photo is of the picture as it is seen."""
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "images").mkdir()
    Image.fromarray(np.zeros((30, 40, 3), np.uint8)).save(tmp_path / "images/a.jpg", exif=exif)
    text = "image,x,y,w,h,class\na.jpg,0,0,15,40,cat\n"
    (tmp_path / "train.csv").write_text(text)
    conversion = convert([str(tmp_path / "train.csv")], tmp_path / "out", to="yolo")
    assert (tmp_path / "out/labels/train/a.txt").read_text().split()[1:] == [
        "0.2500000000",
        "0.5000000000",
        "0.5000000000",
        "1.0000000000",
    ]
    settings = yaml.safe_load(conversion.recipes["train"])
    dataset = datasets[settings.pop("format")](**settings)
    assert dataset[0].boxes.tolist() == [[0, 0, 15, 40]]


# --- splits and classes ----------------------------------------------------------------------


def two_splits(folder: Path) -> list[str]:
    val = coco_content()
    val["images"] = [{"id": 1, "file_name": "c.png", "width": 40, "height": 30}]
    val["annotations"] = [{"id": 1, "image_id": 1, "category_id": 90, "bbox": [1, 1, 2, 2]}]
    return [str(write(folder)), str(write(folder, val, "val.json"))]


@pytest.mark.parametrize("to", FORMATS)
def test_several_splits_become_one_data_set(tmp_path: Path, to: str):
    sources = two_splits(tmp_path)
    conversion = convert(sources, tmp_path / "out", to=to)
    assert list(conversion.splits) == ["train", "val"]
    for split, path in zip(("train", "val"), sources, strict=True):
        assert_same_truths(read(conversion, split), PARSERS["coco"](path), atol=1e-3)
    again = convert(
        [str(tmp_path / "out")],
        tmp_path / "again",
        to="coco",
        options=SourceOptions(
            images=str(tmp_path / "images") if to in ("coco", "csv") else None,
            classes=("dog", "cat, black", "bird") if to in ("voc", "csv") else None,
        ),
    )
    assert again.splits == conversion.splits
    assert_same_truths(read(again, "val"), PARSERS["coco"](sources[1]), atol=2e-3)


def test_some_splits_only(tmp_path: Path):
    convert(two_splits(tmp_path), tmp_path / "yolo", to="yolo")
    options = SourceOptions(splits=("val",))
    conversion = convert([str(tmp_path / "yolo")], tmp_path / "out", to="csv", options=options)
    assert list(conversion.splits) == ["val"]
    with pytest.raises(AnnotationError, match=r"has no split 'test'; .*allowed: train, val"):
        options = SourceOptions(splits=("test",))
        convert([str(tmp_path / "yolo")], tmp_path / "x", to="csv", options=options)


def test_names_of_splits(tmp_path: Path):
    one, other = two_splits(tmp_path)
    shutil.copy(one, tmp_path / "one.json")
    conversion = convert([str(tmp_path / "one.json")], tmp_path / "a", to="csv")
    assert list(conversion.splits) == ["train"]
    sources = [f"big={tmp_path / 'one.json'}", other]
    assert list(convert(sources, tmp_path / "b", to="csv").splits) == ["big", "val"]
    with pytest.raises(AnnotationError, match="is of the split 'train', and so is an earlier"):
        convert([str(tmp_path / "one.json"), one], tmp_path / "c", to="csv")
    convert([one, other], tmp_path / "yolo", to="yolo")
    with pytest.raises(AnnotationError, match="has the splits train, val; leave big= out"):
        convert([f"big={tmp_path / 'yolo'}"], tmp_path / "c", to="csv")


def test_classes_that_occur_are_gathered_over_all_splits(tmp_path: Path):
    write(tmp_path)
    for split, name in (("train", "dog"), ("val", "cat")):
        text = f"image,xmin,ymin,xmax,ymax,class\na.png,1,2,3,4,{name}\n"
        (tmp_path / f"{split}.csv").write_text(text)
    conversion = convert(
        [str(tmp_path / f"{s}.csv") for s in ("train", "val")], tmp_path / "out", to="yolo"
    )
    for split, label in (("train", 1), ("val", 0)):
        assert read(conversion, split).class_names == ("cat", "dog")
        assert read(conversion, split).truth.gt_label.tolist() == [label]


@pytest.mark.parametrize("change", [{"name": "wolf"}, {"id": 3}])
def test_splits_with_other_classes_are_refused(tmp_path: Path, change: dict[str, Any]):
    sources = two_splits(tmp_path)
    content = json.loads(Path(sources[1]).read_text())
    content["categories"][0].update(change)
    write(tmp_path, content, "val.json")
    with pytest.raises(AnnotationError, match="val has other classes than train"):
        convert(sources, tmp_path / "out", to="yolo")
    assert not (tmp_path / "out").exists()


# --- pictures --------------------------------------------------------------------------------


@pytest.mark.parametrize("to", FORMATS)
@pytest.mark.parametrize("placement", [None, "link", "copy"])
def test_pictures_stay_or_are_linked_or_copied(tmp_path: Path, to: str, placement: str | None):
    path = write(tmp_path)
    conversion = convert([str(path)], tmp_path / "out", to=to, placement=placement)
    pictures = [p for p in (tmp_path / "out").rglob("*.png")]
    stay = placement is None and to in ("coco", "csv")
    assert len(pictures) == (0 if stay else 3)
    assert all(picture.is_symlink() == (placement != "copy") for picture in pictures)
    assert all(picture.is_file() for picture in pictures)
    assert_same_truths(read(conversion), PARSERS["coco"](path), atol=1e-3)
    if not stay and to != "csv":
        assert recognise(tmp_path / "out", split="train").parse().images  # found without being told


@pytest.mark.parametrize("to", ["voc", "yolo"])
def test_formats_that_find_pictures_by_place_cannot_leave_them(tmp_path: Path, to: str):
    with pytest.raises(ValueError, match=f"pictures of {to} cannot be 'reference'; .*link, copy"):
        convert([str(write(tmp_path))], tmp_path / "out", to=to, placement="reference")


@pytest.mark.parametrize("to", FORMATS)
def test_pictures_of_one_name_in_two_splits(tmp_path: Path, to: str):
    sources = [str(write(tmp_path / "train")), str(write(tmp_path / "val", name="val.json"))]
    cv2.imwrite(str(tmp_path / "val/images/a.png"), np.full((30, 40, 3), 99, np.uint8))
    conversion = convert(sources, tmp_path / "out", to=to, placement="copy")
    for split in ("train", "val"):
        expected = PARSERS["coco"](tmp_path / split / f"{split}.json")
        assert_same_truths(read(conversion, split), expected, atol=1e-3)


@pytest.mark.parametrize("to", ["voc", "yolo"])
def test_pictures_that_would_share_a_file_of_annotations(tmp_path: Path, to: str):
    content = coco_content()
    content["images"][0]["file_name"] = "a.bmp"
    with pytest.raises(AnnotationError, match=r"a\.bmp and .*a\.png would share one file"):
        convert([str(write(tmp_path, content))], tmp_path / "out", to=to)


@pytest.mark.parametrize("to", FORMATS)
def test_names_never_lead_out_of_the_new_folder(tmp_path: Path, to: str):
    content = coco_content()
    write(tmp_path / "in", content)
    (tmp_path / "in/images/a.png").rename(tmp_path / "a.png")
    content["images"][1]["file_name"] = "../../a.png"
    (tmp_path / "in/train.json").write_text(json.dumps(content))
    before = sorted(tmp_path.rglob("*"))
    conversion = convert(
        [str(tmp_path / "in/train.json")], tmp_path / "out", to=to, placement="copy"
    )
    outside = [p for p in tmp_path.rglob("*") if tmp_path / "out" not in (p, *p.parents)]
    assert sorted(outside) == before
    assert_same_truths(read(conversion), PARSERS["coco"](tmp_path / "in/train.json"), atol=1e-3)


# --- the folder ------------------------------------------------------------------------------


def test_a_folder_is_replaced_only_if_asked_and_of_a_conversion(tmp_path: Path):
    path = str(write(tmp_path))
    out = tmp_path / "out"
    convert([path], out, to="coco")
    with pytest.raises(ValueError, match=r"out has an earlier conversion; give --overwrite"):
        convert([path], out, to="csv")
    convert([path], out, to="csv", overwrite=True)
    assert sorted(p.name for p in out.iterdir()) == ["conversion.txt", "train.csv"]
    (tmp_path / "mine").mkdir()
    convert([path], tmp_path / "mine", to="csv")  # empty
    for folder in (tmp_path / "images", tmp_path):
        with pytest.raises(ValueError, match="not empty and no conversion wrote it"):
            convert([path], folder, to="csv", overwrite=True)
    with pytest.raises(ValueError, match=r"train\.json is a file"):
        convert([path], path, to="csv", overwrite=True)


def test_what_is_converted_is_not_replaced(tmp_path: Path):
    convert([str(write(tmp_path))], tmp_path / "out", to="yolo", placement="copy")
    with pytest.raises(ValueError, match="out holds what is converted"):
        convert([str(tmp_path / "out")], tmp_path / "out", to="coco", overwrite=True)
    with pytest.raises(ValueError, match="out holds what is converted"):
        source = str(tmp_path / "out/data.yaml")
        convert([source], tmp_path / "out", to="coco", overwrite=True)


def test_a_failure_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = str(write(tmp_path))
    convert([path], tmp_path / "out", to="coco")
    before = sorted(tmp_path.rglob("*"))

    def fails(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", fails)
    for out in (tmp_path / "out", tmp_path / "new"):
        with pytest.raises(OSError, match="No space left"):
            convert([path], out, to="yolo", placement="copy", overwrite=True)
    assert sorted(tmp_path.rglob("*")) == before


def test_what_a_killed_conversion_left_is_removed_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """And nothing else: neither what is of another target nor what somebody named alike."""
    path = str(write(tmp_path))
    out = tmp_path / "[out]"  # brackets mean something to glob
    others = [tmp_path / name for name in (".[out].mine.part", f".o.{'0' * 32}.part", "[out]2")]
    for other in others:
        other.mkdir()

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda *_, **__: None)  # a kill leaves no time for it
        patch.setattr(Path, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            convert([path], out, to="yolo", placement="copy")
    (left,) = set(tmp_path.glob(".*.part")) - set(others)
    assert any(left.rglob("*.txt"))
    convert([path], out, to="yolo", placement="copy")
    assert not left.exists()
    assert out.is_dir()
    assert all(other.is_dir() for other in others)


def test_what_was_there_comes_back_if_the_new_folder_cannot_take_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = str(write(tmp_path))
    convert([path], tmp_path / "out", to="coco")
    before = sorted(tmp_path.rglob("*"))
    rename, places = Path.rename, []

    def fails_once(self: Path, target: Path) -> Path:
        places.append(target)
        if len(places) == 2:  # the old folder is out of the way, the new one is to come
            raise PermissionError(13, "Permission denied")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fails_once)
    with pytest.raises(PermissionError):
        convert([path], tmp_path / "out", to="yolo", overwrite=True)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_class_name_that_a_format_cannot_keep(tmp_path: Path):
    content = coco_content()
    content["categories"][0]["name"] = " dog"
    path = str(write(tmp_path, content))
    for to in ("voc", "csv"):
        with pytest.raises(AnnotationError, match=f"class ' dog' is .*: {to} cannot"):
            convert([path], tmp_path / "out", to=to)
    assert read(convert([path], tmp_path / "out", to="yolo")).class_names[0] == " dog"


def test_an_unknown_format(tmp_path: Path):
    with pytest.raises(ValueError, match="no format 'yolov8' to write; did you mean 'yolo'"):
        convert([str(write(tmp_path))], tmp_path / "out", to="yolov8")


def command(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "tools/convert_data.py"), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def test_the_command(tmp_path: Path):
    sources = two_splits(tmp_path)
    done = command(*sources, "--to", "yolo", tmp_path / "out", "--copy")
    assert (done.returncode, done.stderr) == (0, "")
    assert "train: 3 images, 3 boxes, 3 classes" in done.stdout
    assert "image ids, category ids, annotation ids: counted anew" in done.stdout
    recipe = f"{{format: yolo, data: {tmp_path}/out/data.yaml, split: val}}"
    assert recipe in done.stdout
    done = command(tmp_path / "nowhere", "--to", "coco", tmp_path / "x")
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


# --- the same numbers ------------------------------------------------------------------------


@pytest.mark.parametrize("to", FORMATS)
def test_real_data_give_the_same_ap_in_every_format(tmp_path: Path, shared_data: Path, to: str):
    """BCCD, all of whose corners are whole pixels: exactly the same 12 numbers."""
    root = shared_data / "bccd"
    options = SourceOptions(images=str(root / "JPEGImages"))
    conversion = convert([str(root / "coco_test.json")], tmp_path / "out", to=to, options=options)
    settings = yaml.safe_load(conversion.recipes["test"])
    dataset = datasets[settings.pop("format")](**settings)
    original = datasets["coco"](annotations=root / "coco_test.json", images=root / "JPEGImages")
    assert dataset.class_names == original.class_names
    found, expected = (measure(disturbed(each), each).stats for each in (dataset, original))
    np.testing.assert_array_equal(found, expected)
    assert 0.2 < expected[0] < 0.8


def test_voc_and_coco_of_the_same_real_data_give_the_same_ap(shared_data: Path):
    root = shared_data / "bccd"
    classes = ["RBC", "WBC", "Platelets"]
    voc = datasets["voc"](root=root, split="test", classes=classes)
    coco = datasets["coco"](annotations=root / "coco_test.json", images=root / "JPEGImages")
    found, expected = (measure(disturbed(coco), each).stats for each in (voc, coco))
    np.testing.assert_array_equal(found, expected)


def disturbed(dataset) -> dict[int, Detections]:
    """Detections near the truths, the same for the same picture, whatever its place."""
    truth = coco_ground_truth(dataset)
    detections = {}
    for index in range(len(dataset)):
        xywh = truth.gt_boxes_xywh[truth.gt_image_index == index]
        rng = np.random.default_rng(list(dataset.path(index).name.encode()))
        xyxy = np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1).round(3)
        xyxy += rng.normal(0, 0.08, xyxy.shape) * np.tile(xywh[:, 2:].round(3), 2)
        detections[int(dataset.image_ids[index])] = Detections(
            boxes=torch.tensor(xyxy, dtype=torch.float32),
            scores=torch.tensor(rng.uniform(size=len(xyxy)), dtype=torch.float32),
            labels=torch.tensor(truth.gt_label[truth.gt_image_index == index]),
        )
    return detections
