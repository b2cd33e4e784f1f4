"""Detections survive the way to other formats and back, and other programs read them alike."""

from __future__ import annotations

import contextlib
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO

from detkit.data import AnnotationError, read_voc, read_yolo
from detkit.data.writers import WRITERS
from detkit.inference import interchange as ic
from detkit.structures import Detections

NAMES = ("cat", "Füße", "a b")
SIZE = (300, 400)  # height, width


def make(
    boxes: list[list[float]], scores: list[float], labels: list[int], names: Any = NAMES
) -> Detections:
    return Detections(
        torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        torch.tensor(scores, dtype=torch.float32),
        torch.tensor(labels, dtype=torch.int64),
        tuple(names),
    )


FOUND = make([[10.25, 20, 110.5, 220], [0, 0, 400, 300]], [0.875, 0.1], [1, 2])
NONE = make([], [], [])


@st.composite
def detections(draw: st.DrawFn) -> Detections:
    """Boxes inside the picture, of at least a thousandth of a pixel, best first."""
    count = draw(st.integers(0, 6))
    sides = np.array(SIZE[::-1], np.float64)

    def unit() -> float:
        return draw(st.floats(0, 1))

    boxes = []
    for _ in range(count):
        low = np.array([unit(), unit()]) * (sides - 1)
        high = low + 1e-3 + np.array([unit(), unit()]) * (sides - low - 1e-3)
        boxes.append([*low.tolist(), *np.minimum(high, sides).tolist()])
    scores = sorted((draw(st.floats(0, 1, width=32)) for _ in range(count)), reverse=True)
    return make(boxes, scores, [draw(st.integers(0, 2)) for _ in range(count)])


def check_same(
    one: Detections, other: Detections, *, pixels: float = 0, scores: bool = True
) -> None:
    torch.testing.assert_close(one.boxes, other.boxes, rtol=0, atol=pixels)
    assert one.labels.dtype == other.labels.dtype and torch.equal(one.labels, other.labels)
    expected = other.scores if scores else torch.ones(len(other))
    assert torch.equal(one.scores, expected)
    assert one.class_names == other.class_names


def through(write: Callable[[Path], None], name: str, tmp_path_factory: Any) -> Path:
    path = Path(tmp_path_factory.mktemp("trip"), name)
    write(path)
    return path


# ------------------------------------------------------------------------------- there and back


@given(detections())
def test_coco_is_exact(found: Detections) -> None:
    records = json.loads(json.dumps(ic.to_coco(found, 7, (2, 5, 9))))
    back = ic.from_coco(records, (2, 5, 9), class_names=NAMES)
    if len(found):
        check_same(back[7], found)
    else:
        assert back == {}


@settings(deadline=None, max_examples=50)
@given(detections())
def test_voc_to_a_millionth_of_a_pixel(tmp_path_factory: Any, found: Detections) -> None:
    text = ic.to_voc(found, "a.jpg", SIZE)
    path = through(lambda file: file.write_text(text, encoding="utf-8"), "a.xml", tmp_path_factory)
    # float32 has steps of 3e-5 at 400
    check_same(ic.from_voc(path, class_names=NAMES), found, pixels=4e-5, scores=False)


@settings(deadline=None, max_examples=50)
@given(detections())
def test_yolo(tmp_path_factory: Any, found: Detections) -> None:
    for scores in (False, True):
        text = ic.to_yolo(found, SIZE, scores=scores)
        path = through(lambda file, text=text: file.write_text(text), "a.txt", tmp_path_factory)
        back = ic.from_yolo(path, SIZE, class_names=NAMES)
        check_same(back, found, pixels=4e-5, scores=scores)


@settings(deadline=None, max_examples=50)
@given(detections())
def test_labelme_is_exact(tmp_path_factory: Any, found: Detections) -> None:
    text = json.dumps(ic.to_labelme(found, "a.jpg", SIZE))
    path = through(lambda file: file.write_text(text), "a.json", tmp_path_factory)
    check_same(ic.from_labelme(path, class_names=NAMES), found)


@settings(deadline=None)
@given(detections())
def test_containers_are_exact(found: Detections) -> None:
    check_same(ic.from_supervision(ic.to_supervision(found), class_names=NAMES), found)
    for first in (0, 1):
        back = ic.from_torchvision(
            ic.to_torchvision(found, first=first), class_names=NAMES, first=first
        )
        check_same(back, found)


# ------------------------------------------------------------------------------- by hand


def test_what_is_written() -> None:
    assert ic.to_coco(FOUND, 7, (2, 5, 9))[0] == {
        "image_id": 7,
        "category_id": 5,
        "bbox": [10.25, 20, 100.25, 200],
        "score": 0.875,
    }
    # centre 60.375 of 400 and 120 of 300, sides 100.25 of 400 and 200 of 300
    lines = ic.to_yolo(FOUND, SIZE, scores=True).splitlines()
    assert lines[0] == "1 0.1509375000 0.4000000000 0.2506250000 0.6666666667 0.875"
    assert ic.to_yolo(FOUND, SIZE).splitlines()[1] == " ".join(
        ["2", *["0.5000000000"] * 2, *["1.0000000000"] * 2]
    )
    page = ic.to_voc(FOUND, "sub/a.jpg", SIZE)
    assert "<filename>a.jpg</filename>" in page and "<name>Füße</name>" in page
    assert "<xmin>10.25</xmin>" in page and "<ymax>220</ymax>" in page
    assert "<width>400</width>" in page and "<height>300</height>" in page
    plain = ic.to_torchvision(FOUND)
    assert plain["labels"].tolist() == [2, 3] and plain["boxes"] is FOUND.boxes
    assert ic.to_torchvision(FOUND, first=0)["labels"].tolist() == [1, 2]


def test_labelme_has_the_fields_that_it_asks_for() -> None:
    """As its label files are read: names and types of https://github.com/wkentaro/labelme."""
    content = json.loads(json.dumps(ic.to_labelme(FOUND, "a.jpg", SIZE)))
    assert content.keys() == {
        *("version", "flags", "shapes", "imagePath", "imageData", "imageHeight", "imageWidth")
    }
    assert (content["imagePath"], content["imageData"]) == ("a.jpg", None)
    assert (content["imageHeight"], content["imageWidth"]) == SIZE
    shape = content["shapes"][0]
    assert shape["label"] == "Füße" and shape["shape_type"] == "rectangle"
    assert shape["points"] == [[10.25, 20], [110.5, 220]]
    assert shape["flags"] == {} and shape["group_id"] is None
    assert shape["description"] == "0.875" and shape["score"] == 0.875


def test_boxes_that_yolo_cannot_hold() -> None:
    beyond = make([[-4, -3, 40, 30], [10, 10, 10, 20], [500, 0, 600, 9]], [0.9, 0.8, 0.7], [0] * 3)
    (line,) = ic.to_yolo(beyond, SIZE).splitlines()
    assert line == "0 0.0500000000 0.0500000000 0.1000000000 0.1000000000"  # 0, 0, 40, 30


def test_results_are_best_first_whatever_the_order_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("0 0.5 0.5 1 1 0.25\n\n1 0.5 0.5 0.5 0.5 0.75\n")
    assert ic.from_yolo(path, SIZE).labels.tolist() == [1, 0]
    records = ic.to_coco(FOUND, 1, (1, 2, 3))[::-1]
    check_same(ic.from_coco(records, (1, 2, 3), class_names=NAMES)[1], FOUND)


def test_names_come_from_the_file_where_nobody_gives_them(tmp_path: Path) -> None:
    (tmp_path / "a.xml").write_text(ic.to_voc(FOUND, "a.jpg", SIZE), encoding="utf-8")
    (tmp_path / "a.json").write_text(json.dumps(ic.to_labelme(FOUND, "a.jpg", SIZE)))
    for back in (ic.from_voc(tmp_path / "a.xml"), ic.from_labelme(tmp_path / "a.json")):
        assert back.names == ["Füße", "a b"] and back.class_names == ("Füße", "a b")
    (tmp_path / "none.xml").write_text(ic.to_voc(NONE, "a.jpg", SIZE), encoding="utf-8")
    assert len(ic.from_voc(tmp_path / "none.xml")) == 0


def test_pixels_of_the_challenge(tmp_path: Path) -> None:
    path = tmp_path / "a.xml"
    path.write_text(ic.to_voc(FOUND[1:], "a.jpg", SIZE), encoding="utf-8")
    assert ic.from_voc(path, one_based=True).boxes.tolist() == [[-1, -1, 400, 300]]
    text = path.read_text(encoding="utf-8").replace("Unknown", "The VOC2007 Database")
    path.write_text(text, encoding="utf-8")
    assert ic.from_voc(path).boxes.tolist() == [[-1, -1, 400, 300]]
    assert ic.from_voc(path, one_based=False).boxes.tolist() == [[0, 0, 400, 300]]


def test_polygons_of_labelme_become_the_boxes_around_them(tmp_path: Path) -> None:
    shapes = [
        {"label": "cat", "points": [[5, 9], [1, 2], [3, 30]], "shape_type": "polygon"},
        {"label": "cat", "points": [[8, 9], [1, 2]], "shape_type": "rectangle", "score": None},
    ]
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"shapes": shapes}))
    found = ic.from_labelme(path)
    assert found.boxes.tolist() == [[1, 2, 5, 30], [1, 2, 8, 9]]
    assert found.scores.tolist() == [1, 1]


def test_coco_of_several_pictures_and_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "found.json"
    records = ic.to_coco(FOUND, 4, (1, 2, 3)) + ic.to_coco(FOUND[:1], 2, (1, 2, 3))
    path.write_text(json.dumps(records))
    back = ic.from_coco(path, (1, 2, 3), class_names=NAMES)
    assert list(back) == [2, 4]
    check_same(back[4], FOUND)
    check_same(back[2], FOUND[:1])
    assert ic.from_coco([], (1, 2, 3)) == {}


# ------------------------------------------------------------------------------- as data sets


def test_a_folder_to_correct_and_to_train_on(tmp_path: Path) -> None:
    found = {"a.png": FOUND, "b.png": NONE}
    annotations = ic.to_annotations(found, [SIZE, (30, 40)], category_ids=(2, 5, 9))
    for kind, folder in (("voc", "JPEGImages"), ("yolo", "images/train")):
        WRITERS[kind](
            {"train": annotations},
            tmp_path / kind,
            {"train": [name if kind == "voc" else f"train/{name}" for name in found]},
        )
        for name, size in zip(found, (SIZE, (30, 40)), strict=True):
            file = tmp_path / kind / folder / name
            file.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(file), np.zeros((*size, 3), np.uint8))
    voc = read_voc(tmp_path / "voc", split="train", classes=NAMES)
    yolo = read_yolo(tmp_path / "yolo" / "data.yaml")
    for dataset in (voc, yolo):
        assert dataset.class_names == NAMES and len(dataset) == 2
        np.testing.assert_allclose(dataset[0].boxes, FOUND.boxes, atol=4e-5)
        assert dataset[0].labels.tolist() == [1, 2] and len(dataset[1].boxes) == 0


# ------------------------------------------------------------------------------- other programs


def test_pycocotools_takes_the_records() -> None:
    truth = COCO()
    truth.dataset = {
        "images": [{"id": 7, "height": 300, "width": 400}],
        "categories": [{"id": each} for each in (2, 5, 9)],
        "annotations": [],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        results = truth.loadRes(ic.to_coco(FOUND, 7, (2, 5, 9)))
    taken = results.loadAnns(results.getAnnIds(imgIds=[7]))
    assert [each["category_id"] for each in taken] == [5, 9]
    assert taken[0]["bbox"] == [10.25, 20, 100.25, 200] and taken[0]["area"] == 100.25 * 200


def picture_of(folder: Path) -> None:
    (folder / "images").mkdir()
    (folder / "labels").mkdir()
    cv2.imwrite(str(folder / "images" / "a.png"), np.zeros((*SIZE, 3), np.uint8))


def check_supervision(dataset: Any, names: list[str], *, shift: int = 0) -> None:
    (_, _, theirs) = next(iter(dataset))
    expected = FOUND.boxes.numpy() - [shift, shift, 0, 0]
    np.testing.assert_allclose(theirs.xyxy, expected, atol=1e-4)
    assert [dataset.classes[each] for each in theirs.class_id] == names


def test_supervision_reads_yolo(tmp_path: Path) -> None:
    supervision = pytest.importorskip("supervision")
    picture_of(tmp_path)
    (tmp_path / "data.yaml").write_text(json.dumps({"names": NAMES}))
    (tmp_path / "labels" / "a.txt").write_text(ic.to_yolo(FOUND, SIZE))
    folders = (str(tmp_path / "images"), str(tmp_path / "labels"), str(tmp_path / "data.yaml"))
    check_supervision(supervision.DetectionDataset.from_yolo(*folders), ["Füße", "a b"])


def test_supervision_reads_voc_with_pixels_counted_from_one(tmp_path: Path) -> None:
    supervision = pytest.importorskip("supervision")
    picture_of(tmp_path)
    text = ic.to_voc(FOUND, "a.png", SIZE)
    (tmp_path / "labels" / "a.xml").write_text(text, encoding="utf-8")
    folders = (str(tmp_path / "images"), str(tmp_path / "labels"))
    dataset = supervision.DetectionDataset.from_pascal_voc(*folders)
    check_supervision(dataset, ["Füße", "a b"], shift=1)


def test_supervision_reads_labelme(tmp_path: Path) -> None:
    supervision = pytest.importorskip("supervision")
    if not hasattr(supervision.DetectionDataset, "from_labelme"):
        pytest.skip("this supervision has no reader of LabelMe")
    picture_of(tmp_path)
    text = json.dumps(ic.to_labelme(FOUND, "a.png", SIZE))
    (tmp_path / "labels" / "a.json").write_text(text, encoding="utf-8")
    folders = (str(tmp_path / "images"), str(tmp_path / "labels"))
    check_supervision(supervision.DetectionDataset.from_labelme(*folders), ["Füße", "a b"])


def test_supervision_container() -> None:
    supervision = pytest.importorskip("supervision")
    theirs = ic.to_supervision(FOUND)
    assert isinstance(theirs, supervision.Detections) and len(theirs) == 2
    assert theirs.data["class_name"].tolist() == ["Füße", "a b"]
    assert theirs[theirs.confidence > 0.5].class_id.tolist() == [1]
    assert len(ic.to_supervision(NONE)) == len(ic.from_supervision(ic.to_supervision(NONE))) == 0
    bare = supervision.Detections(xyxy=np.ones((2, 4)), class_id=np.array([0, 1]))
    assert ic.from_supervision(bare).scores.tolist() == [1, 1]
    with pytest.raises(ValueError, match="no class_id"):
        ic.from_supervision(supervision.Detections(xyxy=np.ones((2, 4))))


def test_without_supervision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(ValueError, match="pip install supervision"):
        ic.to_supervision(FOUND)


# ------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0 .5 .5", "line 1: 3 columns; a box has 5, with its score 6"),
        ("0 .5 .5 1 1\n0 .1 .2 .3 .4 .5 .6", "line 2: 7 columns"),
        ("0 .5 x 1 1", "line 1: y centre is 'x', it must be a finite number"),
        ("3 .5 .5 1 1", "line 1: class 3 is not a whole number in 0..2"),
        ("0.5 .5 .5 1 1", "line 1: class 0.5 is not a whole number"),
        ("-1 .5 .5 1 1", "line 1: class -1 is not"),
    ],
)
def test_yolo_mistakes(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.txt").write_text(text)
    with pytest.raises(AnnotationError, match=message):
        ic.from_yolo(tmp_path / "a.txt", SIZE, class_names=NAMES)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not valid JSON"),
        ("[1]", "has no list of shapes; is it a LabelMe file"),
        ('{"shapes": [1]}', "has no list of shapes"),
        ('{"shapes": [{"label": "cat", "shape_type": "circle"}]}', "shape 1 is a circle; only"),
        ('{"shapes": [{"label": "cat"}]}', "shape 1 has no points"),
        ('{"shapes": [{"label": "cat", "points": [[1, NaN]]}]}', "shape 1 has no points"),
        ('{"shapes": [{"label": "cat", "points": [[1, 2, 3]]}]}', "shape 1 has no points"),
        ('{"shapes": [{"label": "cow", "points": [[1, 2]]}]}', "class 'cow' is not among"),
    ],
)
def test_labelme_mistakes(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(AnnotationError, match=message):
        ic.from_labelme(tmp_path / "a.json", class_names=NAMES)


def test_other_mistakes(tmp_path: Path) -> None:
    with pytest.raises(AnnotationError, match=r"cannot read annotations .*no\.xml"):
        ic.from_voc(tmp_path / "no.xml")
    with pytest.raises(ValueError, match=r"detections: \[1\]: category_id 9 is not among the 2"):
        ic.from_coco(ic.to_coco(FOUND, 7, (2, 5, 9)), (2, 5))
    with pytest.raises(ValueError, match="no boxes and no labels in scores"):
        ic.from_torchvision({"scores": torch.ones(1)})
    with pytest.raises(ValueError, match="label 0 is less than first=1"):
        ic.from_torchvision({"boxes": torch.ones(1, 4), "labels": torch.zeros(1)})
    unnamed = Detections(FOUND.boxes, FOUND.scores, FOUND.labels)
    with pytest.raises(ValueError, match="no class_names"):
        ic.to_voc(unnamed, "a.jpg", SIZE)
    with pytest.raises(ValueError, match="labels without names"):
        ic.to_labelme(unnamed, "a.jpg", SIZE)
    with pytest.raises(ValueError, match="1 sizes for 2 pictures"):
        ic.to_annotations({"a": FOUND, "b": NONE}, [SIZE])
