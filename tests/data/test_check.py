"""Every fault planted in a small data set is named, counted and, where it can be, repaired."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from detkit import cli
from detkit.config import Recipe, recipe_to_yaml
from detkit.data import read_coco
from detkit.data.check import CHECKS, DataReport, Finding, check_data
from detkit.data.check.boxes import clip, look_like_corners, repeats, resized_sides, turn
from detkit.data.check.pictures import find_pictures, read_pictures

ROOT = Path(__file__).resolve().parent.parent.parent
HEIGHT, WIDTH = 60, 80
Content = dict[str, Any]


class Data(NamedTuple):
    """A COCO JSON file and the folder of its pictures."""

    file: Path
    images: Path


def write(folder: Path, content: Content) -> Path:
    file = folder / "train.json"
    file.write_text(json.dumps(content), encoding="utf-8")
    return file


def clean_content(folder: Path) -> Content:
    """Five pictures of noise with three boxes each, ids from 1, two classes."""
    rng = np.random.default_rng(0)
    (folder / "images").mkdir()
    images, annotations = [], []
    for index in range(5):
        name = f"{index}.png"
        cv2.imwrite(
            str(folder / "images" / name), rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        )
        images.append({"id": index + 1, "file_name": name, "width": WIDTH, "height": HEIGHT})
        for x, y, w, h in ((5, 5, 20, 10), (30, 20, 40.5, 30.25), (70, 50, 10, 10)):
            number = len(annotations) + 1
            annotations.append(
                {
                    "id": number,
                    "image_id": index + 1,
                    "category_id": number % 2 + 1,
                    "bbox": [x, y, w, h],
                    "area": w * h,
                    "iscrowd": 0,
                }
            )
    categories = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    return {
        "images": images,
        "annotations": annotations,
        "categories": categories,
        "info": {"a": 1},
    }


@pytest.fixture
def content(tmp_path: Path) -> Content:
    return clean_content(tmp_path)


def serious(report: DataReport) -> dict[str, int]:
    """Errors and warnings with their counts."""
    found = [each for each in report.findings if each.check.level != "info"]
    return {each.code: len(each) for each in found}


def count(report: DataReport, code: str) -> int:
    return len(report.indices(code))


# ---------------------------------------------------------------- faults in the annotations


def box(index: int, **fields: Any) -> Callable[[Content, Path], None]:
    """Other fields of an annotation; the area is that of the box unless given."""
    fields = {"area": None, **fields} if "bbox" in fields else fields
    return lambda content, _: content["annotations"][index].update(fields)


def image(index: int, **fields: Any) -> Callable[[Content, Path], None]:
    return lambda content, _: content["images"][index].update(fields)


def again(section: str, index: int, **fields: Any) -> Callable[[Content, Path], None]:
    """A record once more, with other fields."""
    return lambda content, _: content[section].append({**content[section][index], **fields})


def corners(content: Content, _: Path) -> None:
    for item in content["annotations"]:
        x, y, w, h = item["bbox"]
        item["bbox"] = [x, y, x + w, y + h]


def fractions(content: Content, _: Path) -> None:
    size_of = {item["id"]: [item["width"], item["height"]] * 2 for item in content["images"]}
    for item in content["annotations"]:
        sides = size_of[item["image_id"]]
        item["bbox"] = [value / side for value, side in zip(item["bbox"], sides, strict=True)]
        item["area"] = None


def no_boxes(content: Content, _: Path) -> None:
    content["annotations"] = []


def capitals(content: Content, _: Path) -> None:
    content["categories"][1]["name"] = " Cat"


def ids_from_0(content: Content, _: Path) -> None:
    for item in content["annotations"]:
        item["category_id"] -= 1


def restart_ids(content: Content, _: Path) -> None:
    """As some exporters count: anew in each image."""
    for index, item in enumerate(content["annotations"]):
        item["id"] = index % 3 + 1


def no_ids(content: Content, _: Path) -> None:
    for item in content["annotations"]:
        del item["id"]


def text_ids(content: Content, _: Path) -> None:
    for item in content["images"]:
        item["id"] = f"p{item['id']}"
    for item in content["annotations"]:
        item["image_id"] = f"p{item['image_id']}"


def same_name(content: Content, _: Path) -> None:
    content["categories"].append({"id": 9, "name": "cat"})
    content["annotations"][0]["category_id"] = 9


def delete(content: Content, folder: Path) -> None:
    (folder / "images" / "1.png").unlink()


def truncate(content: Content, folder: Path) -> None:
    """A JPEG that ends in the middle, which OpenCV reads as if nothing were missing."""
    file = folder / "images" / "1.jpg"
    cv2.imwrite(str(file), np.random.default_rng(1).integers(0, 256, (60, 80, 3), dtype=np.uint8))
    file.write_bytes(file.read_bytes()[:-500])
    (folder / "images" / "1.png").unlink()
    content["images"][1]["file_name"] = "1.jpg"


def no_picture(content: Content, folder: Path) -> None:
    (folder / "images" / "1.png").write_bytes(b"not a picture")


def copy_file(content: Content, folder: Path) -> None:
    shutil.copy(folder / "images" / "0.png", folder / "images" / "copy.png")
    content["images"].append({**content["images"][0], "id": 99, "file_name": "copy.png"})


def copy_pixels(content: Content, folder: Path) -> None:
    """The same picture in a file of another format."""
    pixels = cv2.imread(str(folder / "images" / "0.png"))
    cv2.imwrite(str(folder / "images" / "copy.bmp"), pixels)
    content["images"].append({**content["images"][0], "id": 99, "file_name": "copy.bmp"})


# fault, what is found, images and boxes of the repaired copy, what it still has
PLANTED: dict[str, tuple[Callable[[Content, Path], None], dict[str, int], tuple[int, int], set]] = {
    "nothing": (lambda content, folder: None, {}, (5, 15), set()),
    "width 0": (box(3, bbox=[5, 5, 0, 10]), {"box_degenerate": 1}, (5, 14), set()),
    "height -3": (box(3, bbox=[5, 5, 4, -3]), {"box_negative": 1}, (5, 14), set()),
    "outside": (box(3, bbox=[80, 5, 10, 10]), {"box_outside": 1}, (5, 14), set()),
    "partly outside": (box(4, bbox=[70, 5, 20, 10]), {"box_clipped": 1}, (5, 15), set()),
    "above": (box(4, bbox=[70, -4, 9, 10]), {"box_clipped": 1}, (5, 15), set()),
    "rounded": (box(4, bbox=[70, 5, 10.005, 10]), {}, (5, 15), set()),
    "thin": (box(4, bbox=[70, 5, 0.5, 10], area=5), {"box_tiny": 1}, (5, 15), {"box_tiny"}),
    "twice": (again("annotations", 0, id=99), {"box_duplicate": 1}, (5, 15), set()),
    "two classes": (
        again("annotations", 0, id=99, category_id=1),
        {"box_two_classes": 1},
        (5, 16),
        {"box_two_classes"},
    ),
    "corners": (corners, {"boxes_are_corners": 15}, (5, 15), set()),
    "fractions": (fractions, {"boxes_are_fractions": 15}, (5, 15), set()),
    "none": (no_boxes, {"boxes_none": 1}, (5, 0), {"boxes_none"}),
    "capitals": (capitals, {"classes_alike": 2}, (5, 15), {"classes_alike"}),
    "large area": (box(2, area=1000), {"area_wrong": 1}, (5, 15), set()),
    "text in box": (box(2, bbox=[1, 2, "3", 4]), {"record_malformed": 1}, (5, 14), set()),
    "NaN in box": (box(2, bbox=[1, 2, float("nan"), 4]), {"record_malformed": 1}, (5, 14), set()),
    "no box": (box(2, bbox=None), {"record_malformed": 1}, (5, 14), set()),
    "category 7": (box(2, category_id=7), {"unknown_category": 1}, (5, 14), set()),
    "image 7": (box(2, image_id=7), {"unknown_image": 1}, (5, 14), set()),
    "from 0": (ids_from_0, {"categories_shifted": 15}, (5, 15), set()),
    "id twice": (box(2, id=1), {"annotation_id_duplicate": 1}, (5, 15), set()),
    "ids anew": (restart_ids, {"annotation_id_duplicate": 12}, (5, 15), set()),
    "no ids": (no_ids, {"annotation_id_missing": 15}, (5, 15), set()),
    "id 0": (box(2, id=0), {"annotation_id_zero": 1}, (5, 15), set()),
    "category twice": (
        again("categories", 0, name="cow"), {"category_duplicate": 1}, (5, 15), set(),
    ),
    "name twice": (same_name, {"category_duplicate": 1}, (5, 15), set()),
    "image id twice": (
        image(1, id=1), {"image_id_duplicate": 1, "unknown_image": 3}, (4, 12), set(),
    ),
    "text ids": (text_ids, {"image_id_text": 5}, (5, 15), set()),
    "file twice": (again("images", 0, id=99), {"image_twice": 1}, (5, 15), set()),
    "no file name": (
        image(1, file_name=None), {"record_malformed": 1, "unknown_image": 3}, (4, 12), set(),
    ),
    "missing": (delete, {"image_missing": 1}, (4, 12), set()),
    "truncated": (truncate, {"image_unreadable": 1}, (4, 12), set()),
    "no picture": (no_picture, {"image_unreadable": 1}, (4, 12), set()),
    "copied": (copy_file, {"image_duplicate": 1}, (6, 15), {"image_duplicate"}),
    "converted": (copy_pixels, {"image_duplicate": 1}, (6, 15), {"image_duplicate"}),
    "other size": (image(1, width=90), {"image_size": 1}, (5, 15), set()),
    "width is 0": (image(1, width=0), {"image_size": 1}, (5, 15), set()),
    "no size": (image(1, width=None, height=None), {}, (5, 15), set()),
}  # fmt: skip


@pytest.mark.parametrize("name", PLANTED)
def test_a_fault_is_named_counted_and_repaired(content: Content, tmp_path: Path, name: str) -> None:
    plant, expected, (images, boxes), left = PLANTED[name]
    plant(content, tmp_path)
    file = write(tmp_path, content)
    before = file.read_bytes()

    data = check_data(file)
    assert serious(data.report) == expected
    assert data.report.failed == any(CHECKS[code].level == "error" for code in expected)

    fixed = tmp_path / "fixed.json"
    fixed.write_text(json.dumps(data.repair()), encoding="utf-8")
    assert file.read_bytes() == before
    assert bool(data.report.changes) == bool(set(expected) - left or name == "no size")
    again = check_data(fixed)
    assert set(serious(again.report)) == left
    assert (len(again.records.images), len(again.records.boxes)) == (images, boxes)
    read_coco(fixed, tmp_path / "images")  # strictly
    known = COCO(str(fixed))  # which keeps one record of each id
    assert (len(known.getImgIds()), len(known.getAnnIds())) == (images, boxes)


def test_a_repaired_box_is_where_it_was(content: Content, tmp_path: Path) -> None:
    right = [item["bbox"] for item in content["annotations"]]
    corners(content, tmp_path)
    repaired = check_data(write(tmp_path, content)).repair()
    assert [item["bbox"] for item in repaired["annotations"]] == right
    assert repaired["info"] == {"a": 1}  # what is not checked stays


def test_what_is_clipped_keeps_its_part_inside(content: Content, tmp_path: Path) -> None:
    box(0, bbox=[-5, 50, 20, 20], area=400)(content, tmp_path)
    data = check_data(write(tmp_path, content))
    assert data.repair()["annotations"][0]["bbox"] == [0, 50, 15, 10]
    assert data.report.changes == [
        "annotation 1, 0.png: dog [-5, 50, 20, 20]: clipped to its picture",
        "annotation 1, 0.png: dog [0, 50, 15, 10]: area of the box",
    ]


def test_ids_that_were_right_stay(content: Content, tmp_path: Path) -> None:
    box(2, id=1)(content, tmp_path)
    repaired = check_data(write(tmp_path, content)).repair()
    ids = [item["id"] for item in repaired["annotations"]]
    assert ids == [1, 2, 16, *range(4, 16)]


def test_a_text_that_is_a_number_becomes_it(content: Content, tmp_path: Path) -> None:
    for item in content["images"]:
        item["id"] = str(11 + item["id"])  # 12..16
    for item in content["annotations"][:6]:
        item["image_id"] = 11 + item["image_id"]  # not a text
    for item in content["annotations"][6:]:
        item["image_id"] = str(11 + item["image_id"])
    repaired = check_data(write(tmp_path, content)).repair()
    assert [item["id"] for item in repaired["images"]] == [12, 13, 14, 15, 16]
    of_boxes = [item["image_id"] for item in repaired["annotations"]]
    assert of_boxes == [each for each in (12, 13, 14, 15, 16) for _ in range(3)]


def test_a_box_of_no_picture_is_not_given_to_one_that_gets_a_number(
    content: Content, tmp_path: Path
) -> None:
    text_ids(content, tmp_path)
    box(0, image_id=2)(content, tmp_path)
    data = check_data(write(tmp_path, content))
    repaired = data.repair()
    assert [item["id"] for item in repaired["images"]] == [3, 4, 5, 6, 7]
    assert len(repaired["annotations"]) == 14
    assert data.report.changes[-1].endswith("dropped, its image is unknown")


def test_the_first_of_a_file_gets_all_its_boxes(content: Content, tmp_path: Path) -> None:
    again("images", 0, id=99)(content, tmp_path)
    box(0, image_id=99)(content, tmp_path)
    repaired = check_data(write(tmp_path, content)).repair()
    assert [item["image_id"] for item in repaired["annotations"]][:3] == [1, 1, 1]


def test_numbers_and_infos(content: Content, tmp_path: Path) -> None:
    content["categories"] += [{"id": 90, "name": "cow"}]
    content["annotations"] = content["annotations"][:12]
    content["annotations"][0]["iscrowd"] = 1
    box(5, bbox=[0, 0, WIDTH, HEIGHT], area=None)(content, tmp_path)
    cv2.imwrite(str(tmp_path / "images" / "other.png"), np.zeros((4, 4, 3), np.uint8))
    report = check_data(write(tmp_path, content)).report
    assert not serious(report)
    assert report.numbers["images"] == 5 and report.numbers["boxes"] == 12
    assert report.numbers["category_ids"] == "1..90 with 87 gaps"
    assert report.numbers["image_ids"] == "1..5"
    assert report.numbers["classes"] == {"cat": 6, "dog": 5, "cow": 0}
    assert report.numbers["imbalance"] == 1.2
    assert report.numbers["picture_sizes"] == {"80x60": 5}
    infos = {each.code: each.examples() for each in report.findings}
    assert infos["images_empty"] == ["image 5 (4.png)"]
    assert infos["classes_unused"] == ["cow"]
    assert infos["classes_rare"] == ["cat: 6", "dog: 5"]
    assert infos["pictures_unlisted"] == ["other.png"]
    assert len(infos["box_whole_image"]) == 1


def test_an_empty_data_set(tmp_path: Path) -> None:
    file = write(tmp_path, {"images": [], "annotations": [], "categories": []})
    data = check_data(file)
    assert not data.report.findings
    assert data.repair() == {"images": [], "annotations": [], "categories": []}
    assert "0 images" in str(data.report)


def test_leaks_into_another_split(content: Content, tmp_path: Path) -> None:
    file = write(tmp_path, content)
    (tmp_path / "val").mkdir()
    other = tmp_path / "val" / "val.json"
    pixels = cv2.imread(str(tmp_path / "images" / "2.png"))
    cv2.imwrite(str(tmp_path / "val" / "renamed.bmp"), pixels)
    cv2.imwrite(str(tmp_path / "val" / "own.bmp"), 255 - pixels)
    images = [{"id": 1, "file_name": "renamed.bmp"}, {"id": 2, "file_name": "own.bmp"}]
    other.write_text(json.dumps({**content, "images": images, "annotations": []}), encoding="utf-8")
    report = check_data(file, against=[other]).report
    assert serious(report) == {"image_leaked": 1}
    (text,) = report.findings[0].examples()
    assert text.startswith("image 3 (2.png) is ") and text.endswith(f"renamed.bmp of {other}")
    (tmp_path / "val" / "renamed.bmp").unlink()
    (tmp_path / "val" / "own.bmp").unlink()
    with pytest.raises(ValueError, match=r"no picture of .*val\.json can be found"):
        check_data(file, against=[other])


# ------------------------------------------------------------------------------- EXIF rotation

ORIENTATIONS = range(1, 9)


def oriented(file: Path, orientation: int) -> np.ndarray:
    """Write a picture with a white box, stored unrotated; give what OpenCV shows of it."""
    pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    pixels[10:20, 8:40] = 255  # x 8, y 10, w 32, h 10
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(file, exif=exif, quality=95)
    shown = cv2.imread(str(file))
    assert shown is not None
    return shown


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_boxes_turn_as_opencv_turns_pictures(tmp_path: Path, orientation: int) -> None:
    shown = oriented(tmp_path / "a.jpg", orientation)
    rows, columns = np.nonzero(shown[..., 0] > 127)
    expected = [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
    turned = turn(np.array([[8.0, 10, 32, 10]]), (HEIGHT, WIDTH), orientation)
    assert turned.tolist() == [expected]


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_a_size_without_the_rotation(content: Content, tmp_path: Path, orientation: int) -> None:
    content["images"] = content["images"][:1]
    content["images"][0]["file_name"] = "0.jpg"
    content["annotations"] = content["annotations"][:1]
    content["annotations"][0].update(bbox=[8, 10, 32, 10], area=320, segmentation=[[1, 2, 3, 4]])
    oriented(tmp_path / "images" / "0.jpg", orientation)
    data = check_data(write(tmp_path, content))
    sideways = orientation >= 5
    assert serious(data.report) == ({"image_unrotated": 1} if sideways else {})
    assert count(data.report, "images_turned") == (orientation != 1)
    (item,), (image,) = data.repair()["annotations"], data.repair()["images"]
    assert (image["width"], image["height"]) == ((60, 80) if sideways else (80, 60))
    stored = np.array([[8.0, 10, 32, 10]])
    expected = turn(stored, (HEIGHT, WIDTH), orientation) if sideways else stored
    assert item["bbox"] == expected[0].tolist()
    assert ("segmentation" in item) == (not sideways)  # it would no longer fit


def test_boxes_drawn_upright_are_not_turned(content: Content, tmp_path: Path) -> None:
    content["images"] = [{**content["images"][0], "file_name": "0.jpg"}]
    content["annotations"] = [{**content["annotations"][0], "bbox": [5, 62, 10, 10], "area": 100}]
    oriented(tmp_path / "images" / "0.jpg", 6)
    data = check_data(write(tmp_path, content))
    repaired = data.repair()
    assert repaired["annotations"][0]["bbox"] == [5, 62, 10, 10]
    assert data.report.changes == ["image 1 (0.jpg): size 60x80"]


# ------------------------------------------------------------------------------ pure functions


def test_repeats_are_the_later_ones() -> None:
    rows = np.array([[1, 2], [3, 4], [1, 2], [3, 5], [1, 2], [3, 4]], dtype=np.float64)
    assert repeats(rows).tolist() == [False, False, True, False, True, True]
    assert repeats(np.zeros((0, 5))).tolist() == []


def test_clipping() -> None:
    boxes = np.array([[-5.0, 2, 10, 10], [70, 50, 20, 20], [1, 2, 3, 4]])
    sizes = np.array([[60, 80]] * 3)
    assert clip(boxes, sizes).tolist() == [[0, 2, 5, 10], [70, 50, 10, 10], [1, 2, 3, 4]]


def test_sides_after_resizing() -> None:
    boxes, sizes = np.array([[0.0, 0, 10, 20], [0, 0, 8, 4]]), np.array([[100, 200], [50, 50]])
    assert resized_sides(boxes, sizes, (None, 100)).tolist() == [[10, 5], [8, 16]]
    assert resized_sides(boxes, sizes, (None, None)).tolist() == [[20, 10], [4, 8]]


def test_boxes_of_the_usual_kind_do_not_look_like_corners() -> None:
    rng = np.random.default_rng(0)
    limits = np.tile([80.0, 60.0], (1000, 1))
    start = rng.uniform(0, 0.9, (1000, 2)) * limits
    sides = rng.uniform(0.05, 1, (1000, 2)) * (limits - start)
    sizes = np.tile([60, 80], (1000, 1))
    assert not look_like_corners(np.concatenate([start, sides], 1), sizes)
    assert look_like_corners(np.concatenate([start, start + sides], 1), sizes)
    # half of the boxes leave their pictures, but they are no corners
    assert not look_like_corners(np.concatenate([start, 3 * sides], 1), sizes)
    assert not look_like_corners(np.zeros((0, 4)), np.zeros((0, 2), np.int64))


def test_pictures_are_read_in_their_order(tmp_path: Path) -> None:
    paths: list[Path | None] = []
    for index in range(20):
        paths.append(tmp_path / f"{index}.png")
        cv2.imwrite(str(paths[-1]), np.full((index + 1, 5, 3), index, np.uint8))
    found = list(read_pictures([*paths, None, tmp_path / "no.png"], workers=4))
    assert [each.size for each in found] == [(i + 1, 5) for i in range(20)] + [None, None]
    assert len({each.digest for each in found}) == 21
    assert "No such file" in found[-1].problem


def test_pictures_of_one_colour_but_other_shapes_differ(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((4, 6, 3), np.uint8))
    cv2.imwrite(str(tmp_path / "b.png"), np.zeros((6, 4, 3), np.uint8))
    a, b = read_pictures([tmp_path / "a.png", tmp_path / "b.png"], workers=1)
    assert a.digest != b.digest


def test_a_name_that_two_files_have_is_not_found(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.png").touch()
    (tmp_path / "b" / "y.png").touch()
    names = ["x.png", "b/x.png", "y.png", "C:\\old\\y.png"]
    b = tmp_path / "b"
    assert find_pictures(names, tmp_path) == [None, b / "x.png", b / "y.png", b / "y.png"]


def test_a_report_counts_all_and_shows_some() -> None:
    report = DataReport("here")
    report.add([Finding.of_texts("image_missing", [f"image {i}" for i in range(2000)])])
    report.add([Finding.of_texts("image_size", [])])
    (finding,) = report.as_dict()["findings"]
    assert finding["count"] == 2000 and len(finding["examples"]) == 1000
    assert "... and 1997 more" in str(report)
    assert report.failed


# ---------------------------------------------------------------------------------- the command


@pytest.fixture
def command(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Run tools/check_data.py: its exit code, what it printed, and the line of its mistake."""
    path = ROOT / "tools" / "check_data.py"
    spec = importlib.util.spec_from_file_location("tools_check_data", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["check_data.py", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as caught:
            cli.run(module.main)
        out, err = capfd.readouterr()
        lines = [line for line in err.splitlines() if line.startswith("error: ")]
        return int(caught.value.code or 0), out, "\n".join(lines)

    return call


def test_a_clean_set_passes(command: Any, content: Content, tmp_path: Path) -> None:
    code, out, err = command(write(tmp_path, content))
    assert (code, err) == (0, "")
    assert out.endswith("train.json: 0 kinds of errors, 0 of warnings\n")


def test_warnings_alone_pass(command: Any, content: Content, tmp_path: Path) -> None:
    box(2, id=0)(content, tmp_path)
    code, out, _ = command(write(tmp_path, content))
    assert code == 0
    assert "warning: 1 boxes with the id 0 [annotation_id_zero]" in out


def test_errors_fail_and_are_repaired(command: Any, content: Content, tmp_path: Path) -> None:
    delete(content, tmp_path)
    box(0, bbox=[5, 5, 0, 10])(content, tmp_path)
    file, fixed, report = write(tmp_path, content), tmp_path / "new" / "f.json", tmp_path / "r.json"
    code, out, err = command(file, "--fix", fixed, "--json", report)
    assert (code, err) == (1, "")
    assert (
        "error: 1 boxes of width or height 0 [box_degenerate]\n    annotation 1, 0.png: dog" in out
    )
    assert "5 changes\n    image 2 (1.png): dropped, its picture is missing\n" in out
    assert f"written to {fixed}" in out
    told = json.loads(report.read_text("utf-8"))
    assert told["errors"] == 2
    assert {
        each["code"]: each["count"] for each in told["findings"] if each["level"] == "error"
    } == {
        "image_missing": 1,
        "box_degenerate": 1,
    }
    assert len(told["changes"]) == 5
    code, out, _ = command(fixed, "--images", tmp_path / "images")
    assert code == 0, out


def test_annotations_that_cannot_be_read(command: Any, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"images": [', encoding="utf-8")
    code, out, err = command(tmp_path / "a.json", "--fix", tmp_path / "fixed.json")
    assert (code, err) == (1, "")
    assert "is not valid JSON" in out
    assert not (tmp_path / "fixed.json").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no.json"], "no.json does not exist"),
        (["train.json", "--images", "no"], "no is no folder"),
        (["train.json", "--against", "no.json"], "no.json does not exist"),
        (["train.json", "--recipe", "no.yaml"], "no recipe at no.yaml"),
        (["train.json", "--json", "images"], "images: it is a folder"),
        (["train.json", "--fix", "train.json"], "train.json is what is checked"),
        (["train.json", "--json", "train.json"], "train.json is what is checked"),
        (["train.json@val"], "which has no 'split'"),
        (["images"], "nothing known in images"),
    ],
)
def test_mistakes_are_one_line(
    command: Any, content: Content, tmp_path: Path, monkeypatch: Any, arguments: Any, message: str
) -> None:
    before = write(tmp_path, content).read_bytes()
    monkeypatch.chdir(tmp_path)
    code, _, err = command(*arguments)
    assert code == 2
    assert message in err and err.count("\n") == 0
    assert (tmp_path / "train.json").read_bytes() == before


def test_a_recipe_says_what_its_detector_can_see(
    command: Any, content: Content, tmp_path: Path, tiny_recipe: Callable[..., Recipe]
) -> None:
    recipe = tmp_path / "tiny.yaml"
    # strides 8 and 16, anchors of 12 and 24; 80 pixels become 40: sides 7.1, 17.5 and 5
    recipe.write_text(recipe_to_yaml(tiny_recipe("data.resize.longest=40")), encoding="utf-8")
    report = tmp_path / "r.json"
    code, out, err = command(write(tmp_path, content), "--recipe", recipe, "--json", report)
    assert (code, err) == (0, "")
    told = json.loads(report.read_text("utf-8"))
    fit = told["fit"]
    assert fit["strides"] == [8, 16]
    assert fit["anchors"] == [[11, 12], [23, 24]]
    assert fit["share_below_a_cell"] == round(10 / 15, 4)
    found = {each["code"]: each["count"] for each in told["findings"]}
    assert found["box_below_cell"] == 10
    assert found["box_without_anchor"] == 10
    assert "strides [8, 16], 66.7% of the boxes are below a cell" in out


def test_boxes_that_resizing_makes_too_small(
    command: Any, content: Content, tmp_path: Path, tiny_recipe: Callable[..., Recipe]
) -> None:
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(recipe_to_yaml(tiny_recipe("data.resize.longest=40")), encoding="utf-8")
    box(0, bbox=[5, 5, 1.9, 10], area=19)(content, tmp_path)
    file = write(tmp_path, content)
    assert "box_tiny" not in command(file)[1]
    assert "warning: 1 boxes narrower" in command(file, "--recipe", recipe)[1]


# ---------------------------------------------------------------------- other formats, real data


def test_pascal_voc(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((60, 80, 3), np.uint8))
    corners = "<xmin>70</xmin><ymin>5</ymin><xmax>90</xmax><ymax>20</ymax>"
    (tmp_path / "a.xml").write_text(
        "<annotation><filename>a.png</filename><size><width>80</width><height>70</height></size>"
        f"<object><name>cat</name><bndbox>{corners}</bndbox></object></annotation>"
    )
    data = check_data(tmp_path)
    assert serious(data.report) == {"image_size": 1, "box_clipped": 1}
    (item,) = data.repair()["annotations"]
    assert item["bbox"] == [70, 5, 10, 15]


def test_a_root_of_pascal_voc_that_its_reader_refuses(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((60, 80, 3), np.uint8))
    box = "<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>11</xmax><ymax>22</ymax></bndbox>"
    good = f"<object><name>cat</name>{box}</object>"
    bad = f"<object><name>cat</name>{box.replace('11', 'wide')}</object>"
    zero = f"<object><name>dog</name>{box.replace('11', '1')}</object>"
    (tmp_path / "a.xml").write_text(f"<annotation>{good}{bad}{zero}</annotation>")
    (tmp_path / "b.xml").write_text("<annotation>", encoding="utf-8")
    (tmp_path / "c.xml").write_text("<annotation><filename>c.jpg</filename></annotation>")
    data = check_data(tmp_path, format="voc")
    assert serious(data.report) == {
        "annotations_refused": 1,
        "record_malformed": 2,  # b.xml and the second object of a.xml
        "image_missing": 1,
        "box_degenerate": 1,
    }
    repaired = data.repair()
    assert [item["bbox"] for item in repaired["annotations"]] == [[1, 2, 10, 20]]
    assert repaired["images"] == [{"id": 1, "file_name": "a.png", "width": 80, "height": 60}]
    assert len(repaired["categories"]) == 2


def test_yolo_that_its_reader_refuses(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    for name in ("a", "b"):
        pixels = np.random.default_rng(ord(name)).integers(0, 256, (60, 80, 3), dtype=np.uint8)
        cv2.imwrite(str(tmp_path / "images" / f"{name}.png"), pixels)
    (tmp_path / "images" / "c.png").write_bytes(b"no picture")
    lines = ["0 0.5 0.5 0.25 0.5", "0 40 30 20 10", "7 0.5 0.5 0.5 0.5", "0 0.5 0.5", ""]
    (tmp_path / "labels" / "a.txt").write_text("\n".join(lines), encoding="utf-8")
    (tmp_path / "data.yaml").write_text("train: images\nnames: [cat]\n", encoding="utf-8")
    data = check_data(tmp_path / "data.yaml")
    assert serious(data.report) == {
        "annotations_refused": 1,
        "record_malformed": 2,  # pixels, and three columns
        "image_unreadable": 1,
        "unknown_category": 1,
    }
    repaired = data.repair()
    assert [item["bbox"] for item in repaired["annotations"]] == [[30, 15, 20, 30]]
    assert [image["file_name"] for image in repaired["images"]] == ["images/a.png", "images/b.png"]


def test_yolo_with_splits_asks_for_one(tmp_path: Path) -> None:
    (tmp_path / "data.yaml").write_text("train: a\nval: b\nnames: [cat]\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"has the splits train, val; name one, as in .*@train"):
        check_data(tmp_path / "data.yaml")


def test_a_table_that_its_reader_refuses(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("image,class,xmin,ymin,xmax,ymax\na.png,cat,1,2,x,4\n")
    data = check_data(tmp_path / "a.csv")
    assert serious(data.report) == {"annotations_refused": 1}
    with pytest.raises(ValueError, match="cannot be read, and so not be repaired"):
        data.repair()


def test_blood_cells(shared_data: Path) -> None:
    report = check_data(shared_data / "bccd", format="voc").report
    assert serious(report) == {"box_degenerate": 2}
    named = [each.split(":")[0] for each in report.findings[0].examples()]
    assert [name.split(", ")[1] for name in named] == [
        "BloodImage_00338.jpg",
        "BloodImage_00343.jpg",
    ]
    assert report.numbers["classes"] == {"Platelets": 361, "RBC": 4155, "WBC": 372}


def test_splits_of_blood_cells_share_no_picture(shared_data: Path) -> None:
    folder = shared_data / "bccd"
    file = folder / "coco_train.json"
    others = [folder / "coco_val.json", folder / "coco_test.json"]
    assert serious(check_data(file, against=others, workers=2).report) == {}
    report = check_data(file, against=[folder / "coco_all.json"]).report
    assert serious(report) == {"image_leaked": 205}


@pytest.mark.parametrize("source", ["coco.json", "data.yaml@train"])
def test_coco128(shared_data: Path, source: str) -> None:
    report = check_data(f"{shared_data / 'coco128'}/{source}").report
    assert serious(report) == {}
    assert count(report, "images_empty") == 2
    assert report.numbers["images"] == 128 and report.numbers["boxes"] == 929


BROKEN = {
    "truncated.jpg", "truncated.png", "broken_80_bytes.png", "broken_data_stream.png", "bomb.gif",
    "zero_width.gif", "rle8_overflow.bmp",
}  # fmt: skip


def test_odd_pictures(shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "odd"
    names = sorted(path.name for path in folder.iterdir() if path.suffix not in (".md", ".json"))
    images = [{"id": i + 1, "file_name": name} for i, name in enumerate(names)]
    images[names.index("exif_orientation_6.jpg")].update(width=1200, height=1800)
    file = write(tmp_path, {"images": images, "annotations": [], "categories": []})
    data = check_data(file, images=folder, workers=2)
    broken = {names[index] for index in data.report.indices("image_unreadable").tolist()}
    assert broken == BROKEN
    turned = [names[index] for index in data.report.indices("image_unrotated").tolist()]
    assert turned == ["exif_orientation_6.jpg"]
    expected = {"image_unreadable": len(BROKEN), "image_unrotated": 1, "boxes_none": 1}
    assert serious(data.report) == expected
    assert len(data.repair()["images"]) == len(names) - len(BROKEN)
