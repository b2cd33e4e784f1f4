"""The Pascal VOC reader: splits, difficult objects, both kinds of corners, every mistake named."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from detkit.data import AnnotationError, ImageReadError, coco_ground_truth, read_coco
from detkit.data.coco import coco_content
from detkit.data.voc import list_splits, parse_voc, read_voc
from detkit.evaluation import evaluate_files
from detkit.evaluation.voc import evaluate_voc_files


def thing(name: str = "cat", box: tuple = (1, 2, 11, 22), more: str = "") -> str:
    corners = zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
    texts = "".join(f"<{tag}>{value}</{tag}>" for tag, value in corners)
    return f"<object><name>{name}</name>{more}<bndbox>{texts}</bndbox></object>"


def page(*objects: str, head: str = "", size: tuple[int, int] | None = (40, 30)) -> str:
    sides = "" if size is None else f"<width>{size[0]}</width><height>{size[1]}</height>"
    return f"<annotation>{head}<size>{sides}</size>{''.join(objects)}</annotation>"


CHALLENGE = "<source><database>The VOC2007 Database</database></source>"


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.zeros((30, 40, 3), np.uint8))


def write(root: Path, pages: dict[str, str], splits: dict[str, str] | None = None) -> Path:
    """A root with a picture for each page."""
    for name, text in pages.items():
        picture(root / "JPEGImages" / f"{name}.png")
        (root / "Annotations" / f"{name}.xml").parent.mkdir(parents=True, exist_ok=True)
        (root / "Annotations" / f"{name}.xml").write_text(text, encoding="utf-8")
    for split, names in (splits or {}).items():
        (root / "ImageSets" / "Main").mkdir(parents=True, exist_ok=True)
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text(names, encoding="utf-8")
    return root


def two_pages(root: Path) -> Path:
    pages = {
        "a": page(thing("dog"), thing("cat", (5.5, 6, 12.5, 14))),
        "b": page(),
        "c": page(thing("bird")),
    }
    return write(root, pages, {"train": "b\na\n", "val": "c\n", "cat_train": "a  1\nb -1\n"})


def test_a_small_root_by_hand(tmp_path: Path):
    dataset = read_voc(two_pages(tmp_path), split="train")
    assert dataset.class_names == ("bird", "cat", "dog")  # of all pages, so that splits agree
    assert dataset.category_ids.tolist() == [1, 2, 3]
    assert dataset.image_ids.tolist() == [1, 2]
    assert [dataset.path(index).name for index in range(2)] == ["b.png", "a.png"]
    sample = dataset[1]
    assert sample.boxes.tolist() == [[1, 2, 11, 22], [5.5, 6, 12.5, 14]]
    assert sample.labels.tolist() == [2, 1]
    assert sample.area.tolist() == [200, 56]
    assert not sample.crowd.any()
    assert len(dataset[0]) == 0
    assert coco_ground_truth(dataset).gt_boxes_xywh.tolist() == [[1, 2, 10, 20], [5.5, 6, 7, 8]]


def test_splits(tmp_path: Path):
    root = two_pages(tmp_path)
    assert list_splits(root) == ["train", "val"]
    assert len(read_voc(root, split="all")) == 3
    assert len(read_voc(root, split="cat_train")) == 2  # the number behind a name is no part of it
    with pytest.raises(AnnotationError, match="has the splits train, val: set split"):
        read_voc(root)
    with pytest.raises(AnnotationError, match=r"trainn\.txt.*did you mean 'train'"):
        read_voc(root, split="trainn")
    write(root, {}, {"all": "a"})
    assert len(read_voc(root, split="all")) == 1  # a list of that name goes first


def test_names_that_end_in_a_number(tmp_path: Path):
    root = write(tmp_path, {"photo 1": page(thing()), "photo": page()}, {"train": "photo 1\n"})
    assert read_voc(root, split="train").report.boxes == 1


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("a\nx\ny\n", r"train\.txt: 2 of 3 names have no XML file in .*Annotations: x, y"),
        ("a\nb\na\n", r"train\.txt: 'a' is listed twice"),
        ("a\n../a\n", "1 of 2 names have no XML file"),
    ],
)
def test_lists_that_do_not_fit(tmp_path: Path, lines: str, message: str):
    write(two_pages(tmp_path), {}, {"train": lines})
    with pytest.raises(AnnotationError, match=message):
        read_voc(tmp_path, split="train")


def test_an_empty_list(tmp_path: Path):
    write(two_pages(tmp_path), {}, {"train": ""})
    assert len(read_voc(tmp_path, split="train")) == 0


def test_a_plain_folder(tmp_path: Path):
    for name in ("sub/b", "a"):
        picture(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.xml").write_text(page(thing()))
    dataset = read_voc(tmp_path)
    assert [dataset.path(index) for index in range(2)] == [
        tmp_path / "a.png",
        tmp_path / "sub/b.png",
    ]
    assert dataset.report.boxes == 2


def test_classes_in_an_order(tmp_path: Path):
    root = two_pages(tmp_path)
    dataset = read_voc(root, split="train", classes=["dog", "fish", "cat", "bird"])
    assert dataset.class_names == ("dog", "fish", "cat", "bird")
    assert dataset[1].labels.tolist() == [0, 2]
    assert dataset.category_ids.tolist() == [1, 2, 3, 4]
    with pytest.raises(AnnotationError, match=r"a\.xml: object 2: class 'cat' is not.*'cats'"):
        read_voc(root, split="train", classes=["dog", "cats"])
    with pytest.raises(AnnotationError, match="dog is given twice"):
        read_voc(root, split="train", classes=["dog", "dog"])


def test_no_object_at_all_needs_classes(tmp_path: Path):
    root = write(tmp_path, {"a": page()})
    with pytest.raises(AnnotationError, match="list the names in 'classes'"):
        read_voc(root)
    assert read_voc(root, classes=["cat"]).report.empty == 1


# --- difficult and truncated -----------------------------------------------------------------


def test_difficult_objects_are_neither_wrong_nor_required(tmp_path: Path):
    """As VOCevaldet.m has it, where a detection of one else would be a false alarm."""
    hard = thing("cat", (20, 2, 30, 22), "<difficult>1</difficult>")
    root = write(tmp_path, {"a": page(thing("cat"), hard)})
    assert read_voc(root)[0].crowd.tolist() == [False, True]
    both = [[20, 2, 10, 20], [1, 2, 10, 20]]
    assert average_precisions(root, both) == pytest.approx((1, 1))
    assert average_precisions(root, both[1:]) == pytest.approx((1, 1))
    assert not read_voc(root, difficult="keep")[0].crowd.any()
    assert average_precisions(root, both[1:], difficult="keep") == pytest.approx((1 / 2, 51 / 101))
    with pytest.raises(ValueError, match="difficult must be 'ignore' or 'keep', got 'drop'"):
        read_voc(root, difficult="drop")


def test_the_coco_metric_judges_overlap_with_them_as_with_crowds(tmp_path: Path):
    hard = thing("cat", (20, 2, 30, 22), "<difficult>1</difficult>")
    root = write(tmp_path, {"a": page(thing("cat"), hard)})
    part = [[20, 2, 10, 5], [1, 2, 10, 20]]  # a quarter of it, and all of it inside
    assert average_precisions(root, part) == pytest.approx((1 / 2, 1))


def average_precisions(root: Path, boxes: list, **settings: str) -> tuple[float, float]:
    """AP by the metrics of VOC and COCO at IoU 0.5, of detections xywh in the first image."""
    source = parse_voc(root, **settings)
    content = coco_content(source, names=source.file_names)
    if settings.get("difficult") == "keep":
        for item in content["annotations"]:
            item.pop("difficult", None)
    detections = [
        {"image_id": 1, "category_id": 1, "bbox": box, "score": 0.9 - 0.1 * place}
        for place, box in enumerate(boxes)
    ]
    voc = evaluate_voc_files(content, detections)
    return voc.mAP, evaluate_files(content, detections).stats[1]


@pytest.mark.parametrize(
    ("word", "value"), [("1", True), ("0", False), ("True", True), ("Unspecified", False)]
)
def test_flags(tmp_path: Path, word: str, value: bool):
    more = f"<truncated>{word}</truncated>"
    source = parse_voc(write(tmp_path, {"a": page(thing(more=more), thing())}))
    assert source.flags["truncated"].tolist() == [value, False]
    assert source.flags["difficult"].tolist() == [False, False]


def test_what_is_not_read_is_counted(tmp_path: Path):
    more = "<pose>Left</pose><part><name>head</name><bndbox/></part><occluded>0</occluded>"
    source = parse_voc(write(tmp_path, {"a": page(thing(more=more), thing())}))
    assert source.unread == {"pose of objects": 1, "part of objects": 1}
    assert len(source.truth.gt_label) == 2  # a part is no object


# --- corners ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("head", "one_based", "expected"),
    [
        ("", None, [1, 1, 39, 29]),
        (CHALLENGE, None, [0, 0, 40, 30]),  # pixels 1 to 40 are all of the picture
        ("<source><annotation>PASCAL VOC2012</annotation></source>", None, [0, 0, 40, 30]),
        ("<source><database>Unknown</database></source>", None, [1, 1, 39, 29]),
        ("", True, [0, 0, 40, 30]),
        (CHALLENGE, False, [1, 1, 39, 29]),
    ],
)
def test_corners_are_edges_or_pixels(
    tmp_path: Path, head: str, one_based: bool | None, expected: list[float]
):
    root = write(tmp_path, {"a": page(thing(box=(1, 1, 40, 30)), head=head)})
    truth = coco_ground_truth(read_voc(root, one_based=one_based))
    assert truth.gt_boxes_xywh.tolist() == [expected]


def test_files_of_both_kinds_in_one_folder(tmp_path: Path):
    box = thing(box=(1, 1, 40, 30))
    root = write(tmp_path, {"a": page(box, head=CHALLENGE), "b": page(box)})
    assert coco_ground_truth(read_voc(root)).gt_boxes_xywh[:, 0].tolist() == [0, 1]


def test_boxes_without_area_and_outside_are_counted(tmp_path: Path):
    boxes = [(5, 5, 5, 5), (9, 5, 4, 8), (30, 20, 50, 40), (0, 0, 40, 30)]
    dataset = read_voc(write(tmp_path, {"a": page(*(thing(box=box) for box in boxes))}))
    report = dataset.report
    assert (report.boxes, report.degenerate, report.clipped) == (2, 2, 1)


# --- pictures and sizes ----------------------------------------------------------------------


@pytest.mark.parametrize("size", [None, (0, 0)])
def test_an_absent_size_is_that_of_the_picture(tmp_path: Path, size: tuple[int, int] | None):
    assert read_voc(write(tmp_path, {"a": page(size=size)}), classes=["cat"]).sizes().tolist() == [
        [30, 40]
    ]


def test_a_wrong_size_is_an_error_on_reading_the_picture(tmp_path: Path):
    dataset = read_voc(write(tmp_path, {"a": page(thing(), size=(30, 40))}))
    with pytest.raises(ImageReadError, match="its annotations say 30x40"):
        dataset[0]


def test_the_picture_has_the_name_of_the_file_or_the_one_it_says(tmp_path: Path):
    pages = {
        "a": page(thing(), head="<filename>b.png</filename>"),  # renamed with its picture
        "b": page(thing(), head="<filename>b.png</filename>"),
        "c": page(thing(), head="<filename>C:\\old\\other.png</filename>"),
    }
    root = write(tmp_path, pages)
    (root / "JPEGImages" / "c.png").rename(root / "JPEGImages" / "other.png")
    dataset = read_voc(root)
    assert [dataset.path(index).name for index in range(3)] == ["a.png", "b.png", "other.png"]


def test_pictures_of_one_name_in_several_folders(tmp_path: Path):
    root = write(tmp_path, {"a": page(thing()), "deep/a": page(thing()), "z/a": page(thing())})
    dataset = read_voc(root)
    expected = [root / "JPEGImages" / f"{name}.png" for name in ("a", "deep/a", "z/a")]
    assert [dataset.path(index) for index in range(3)] == expected


def test_two_pictures_of_one_name(tmp_path: Path):
    root = write(tmp_path, {"a": page(thing(), head="<filename>a.jpg</filename>")})
    picture(root / "JPEGImages" / "a.bmp")
    with pytest.raises(AnnotationError, match=r"a\.xml: 2 pictures .* a\.bmp, a\.png; give one"):
        read_voc(root)
    (root / "Annotations" / "a.xml").write_text(page(thing(), head="<filename>a.bmp</filename>"))
    assert read_voc(root).path(0).name == "a.bmp"


def test_missing_pictures(tmp_path: Path):
    root = two_pages(tmp_path)
    (root / "JPEGImages" / "a.png").unlink()
    with pytest.raises(AnnotationError, match=r"1 of 2 XML files have no picture in .*Images: a$"):
        read_voc(root, split="train")
    assert len(read_voc(root, split="val")) == 1


# --- mistakes --------------------------------------------------------------------------------

MISTAKES = [
    ("", "a.xml is not valid XML: no element found"),
    ("<annotation>", "a.xml is not valid XML: no element found"),
    ("<annotation><object></annotation>", "a.xml is not valid XML: mismatched tag"),
    ("<labels/>", "a.xml holds <labels>; Pascal VOC holds <annotation>"),
    (page(thing(""), thing("")), "a.xml: object 1: name is missing (and 1 more such problem)"),
    (page("<object><name>cat</name></object>"), "object 1: xmin is missing, it must be a finite"),
    (page(thing(), thing(box=(1, 2, "x", 4))), "a.xml: object 2: xmax is 'x', it must be a finite"),
    (page(thing(box=(1, "nan", 3, 4))), "object 1: ymin is 'nan', it must be a finite number"),
    (page(thing(box=(1, 2, 3, ""))), "object 1: ymax is missing"),
    (page(thing(more="<difficult>2</difficult>")), "object 1: difficult is '2', it must be 0 or 1"),
    ('<?xml version="1.0" encoding="klingon"?><annotation/>', "a.xml is not valid XML"),
]


@pytest.mark.parametrize(("text", "message"), MISTAKES)
def test_mistakes_are_named_in_one_line(tmp_path: Path, text: str, message: str):
    with pytest.raises(AnnotationError) as caught:
        read_voc(write(tmp_path, {"a": text}), classes=["cat"])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


LAUGHS = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10 if n else "ha" * 100}">' for n in range(12))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
@pytest.mark.parametrize(
    "doctype",
    [
        "<!DOCTYPE annotation>",
        f"<!DOCTYPE annotation [{LAUGHS}]>",
        '<!DOCTYPE annotation [<!ENTITY x SYSTEM "file:///etc/passwd">]>',
    ],
)
def test_a_document_type_is_refused(tmp_path: Path, doctype: str, encoding: str):
    """Entities, of which a few lines can fill the memory, need one."""
    root = write(tmp_path, {"a": ""})
    text = f'<?xml version="1.0" encoding="{encoding}"?>{doctype}{page(thing("&l11;"))}'
    (root / "Annotations" / "a.xml").write_bytes(text.encode(encoding))
    with pytest.raises(AnnotationError, match=r"a\.xml: it has a document type .*refused"):
        read_voc(root)


def test_no_folder_and_no_files(tmp_path: Path):
    with pytest.raises(AnnotationError, match="nowhere is no folder"):
        read_voc(tmp_path / "nowhere")
    with pytest.raises(AnnotationError, match="no XML files in"):
        read_voc(tmp_path)


# --- real data -------------------------------------------------------------------------------

BCCD = ("RBC", "WBC", "Platelets")  # the order of the ids in its COCO JSON


@pytest.mark.parametrize("split", ["train", "val", "test", "all"])
def test_real_annotations_equal_those_of_the_same_data_in_coco(shared_data: Path, split: str):
    """Another converter wrote the JSON files; it left out two boxes without area."""
    root = shared_data / "bccd"
    voc = read_voc(root, split=split, classes=BCCD)
    coco = read_coco(root / f"coco_{split}.json", root / "JPEGImages")
    assert voc.class_names == coco.class_names
    assert [voc.path(i).name for i in range(len(voc))] == [
        coco.path(i).name for i in range(len(coco))
    ]
    assert voc.image_ids.tolist() == coco.image_ids.tolist()
    found, expected = coco_ground_truth(voc), coco_ground_truth(coco)
    whole = (found.gt_boxes_xywh[:, 2:] > 0).all(axis=1)
    dropped = json.loads((root / f"coco_{split}.json").read_text())["info"]
    assert (~whole).sum() == len(dropped["dropped_degenerate_boxes"])
    for name in ("gt_image_index", "gt_label", "gt_boxes_xywh", "gt_area", "gt_crowd"):
        np.testing.assert_array_equal(getattr(found, name)[whole], getattr(expected, name), name)
    for index in (0, len(voc) - 1):
        np.testing.assert_array_equal(voc[index].boxes, coco[index].boxes)
        np.testing.assert_array_equal(voc[index].labels, coco[index].labels)


def test_lists_of_classes_agree_between_splits(shared_data: Path):
    names = {read_voc(shared_data / "bccd", split=s).class_names for s in ("train", "val", "test")}
    assert names == {("Platelets", "RBC", "WBC")}
