"""The reader of tables: columns by name or by place, every mistake named."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from detkit.data import AnnotationError, ImageReadError, coco_ground_truth
from detkit.data.csv_boxes import parse_csv, read_csv

NAMED = """image,xmin,ymin,xmax,ymax,class
b.png,1,2,11,22,dog
a.png,,,,,
b.png,5.5,6,12.5,14,cat
"""
BARE = """b.png,1,2,11,22,dog
a.png,,,,,
b.png,5.5,6,12.5,14,cat
"""


def write(folder: Path, text: str | bytes, name: str = "boxes.csv") -> Path:
    """The table, and two pictures beside it."""
    for picture in ("a.png", "b.png"):
        cv2.imwrite(str(folder / picture), np.zeros((30, 40, 3), np.uint8))
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder / name


def variant(text: str, delimiter: str) -> str:
    return text.replace(",", delimiter)


@pytest.mark.parametrize("text", [NAMED, BARE], ids=["named", "bare"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_a_small_table_by_hand(tmp_path: Path, text: str, delimiter: str, end: str, mark: str):
    text = mark + variant(text, delimiter).replace("\n", end)
    dataset = read_csv(write(tmp_path, text))
    assert dataset.class_names == ("cat", "dog")
    assert dataset.category_ids.tolist() == [1, 2]
    assert dataset.image_ids.tolist() == [1, 2]
    assert [dataset.path(index).name for index in range(2)] == ["b.png", "a.png"]
    assert dataset.sizes().tolist() == [[30, 40], [30, 40]]
    assert dataset[0].boxes.tolist() == [[1, 2, 11, 22], [5.5, 6, 12.5, 14]]
    assert dataset[0].labels.tolist() == [1, 0]
    assert dataset[0].area.tolist() == [200, 56]
    assert len(dataset[1]) == 0


@pytest.mark.parametrize(
    ("head", "row"),
    [
        ("image,xmin,ymin,xmax,ymax,class", "b.png,1,2,11,22,dog"),
        ("filename,width,height,class,xmin,ymin,xmax,ymax", "b.png,40,30,dog,1,2,11,22"),
        ("Image_Path, Class_Name, X_Min, Y_Min, X_Max, Y_Max", "b.png, dog, 1, 2, 11, 22"),
        ("path,x1,y1,x2,y2,label", "b.png,1,2,11,22,dog"),
        ("label,x,y,w,h,image", "dog,1,2,10,20,b.png"),
        ("label,x,y,w,h,image,width,height", "dog,1,2,10,20,b.png,40.0,30.0"),
        ("file_name,category,score,xmin,ymin,xmax,ymax", '"b.png","dog",x,1,2,11,22'),
    ],
)
def test_columns_have_many_names(tmp_path: Path, head: str, row: str):
    dataset = read_csv(write(tmp_path, f"{head}\n{row}\n"))
    assert coco_ground_truth(dataset).gt_boxes_xywh.tolist() == [[1, 2, 10, 20]]
    assert dataset.class_names == ("dog",)


def test_optional_columns(tmp_path: Path):
    text = (
        "image,xmin,ymin,xmax,ymax,class,iscrowd,truncated,difficult,area,colour\n"
        "a.png,1,2,11,22,cat,1,0,,33.5,red\n"
        "a.png,1,2,11,22,cat,0,1,true,,red\n"
    )
    source = parse_csv(write(tmp_path, text))
    assert source.truth.gt_crowd.tolist() == [True, False]
    assert source.truth.gt_area.tolist() == [33.5, 200]
    assert source.flags["truncated"].tolist() == [False, True]
    assert source.flags["difficult"].tolist() == [False, True]
    assert source.unread == {"column colour": 2}


def test_sizes_of_columns_are_believed_until_the_picture_is_read(tmp_path: Path):
    text = "image,xmin,ymin,xmax,ymax,class,width,height\na.png,1,2,11,22,cat,80,60\n"
    dataset = read_csv(write(tmp_path, f"{text}a.png,1,2,11,22,cat,,\n"))
    assert dataset.sizes().tolist() == [[60, 80]]
    with pytest.raises(ImageReadError, match="its annotations say 80x60"):
        dataset[0]


def test_classes_in_an_order(tmp_path: Path):
    dataset = read_csv(write(tmp_path, NAMED), classes=["dog", "fish", "cat"])
    assert dataset[0].labels.tolist() == [0, 2]
    assert dataset.category_ids.tolist() == [1, 2, 3]
    with pytest.raises(AnnotationError, match=r"line 4: class 'cat' is not among 'classes'; did"):
        read_csv(write(tmp_path, NAMED), classes=["dog", "cats"])


def test_only_pictures_without_boxes(tmp_path: Path):
    path = write(tmp_path, "image,xmin,ymin,xmax,ymax,class\na.png,,,,,\n")
    assert read_csv(path, classes=["cat"]).report.empty == 1
    with pytest.raises(AnnotationError, match="list the names in 'classes'"):
        read_csv(path)


def test_only_a_head(tmp_path: Path):
    path = write(tmp_path, "image,xmin,ymin,xmax,ymax,class\n")
    assert len(read_csv(path, classes=["cat"])) == 0


def test_pictures_in_another_folder_and_below_it(tmp_path: Path):
    path = write(tmp_path, NAMED)
    (tmp_path / "pictures" / "deep").mkdir(parents=True)
    for name in ("a.png", "b.png"):
        (tmp_path / name).rename(tmp_path / "pictures" / "deep" / name)
    dataset = read_csv(path, images=tmp_path / "pictures")
    assert dataset.path(0) == tmp_path / "pictures/deep/b.png"
    (tmp_path / "pictures/deep/b.png").unlink()
    with pytest.raises(AnnotationError, match=r"boxes\.csv: 1 of 2 image files are not in .*: b"):
        read_csv(path, images=tmp_path / "pictures")


def test_names_with_delimiters_and_line_breaks(tmp_path: Path):
    text = 'image,xmin,ymin,xmax,ymax,class\na.png,1,2,11,22,"cat, black"\n"a.png",x,1,1,1,c\n'
    with pytest.raises(AnnotationError, match="line 3: xmin is 'x'"):
        read_csv(write(tmp_path, text))
    text = 'image,xmin,ymin,xmax,ymax,class\na.png,1,2,11,22,"cat, black"\n'
    assert read_csv(write(tmp_path, text)).class_names == ("cat, black",)


HEAD = "image,xmin,ymin,xmax,ymax,class\na.png,1,2,11,22,cat\n"
SIZED = "image,xmin,ymin,xmax,ymax,class,width,height\na.png,1,2,11,22,cat,40,30\n"
MISTAKES = [
    ("", "line 1 is ''; a table of boxes needs columns named image, class and xmin"),
    ("image,class\na.png,cat\n", "line 1 is 'image,class'; a table of boxes needs columns"),
    ("image,xmin,ymin,width,height,class\n", "a table of boxes needs columns named"),
    ("a.png 1 2 3 4 cat\n", "line 1 is 'a.png 1 2 3 4 cat'; a table"),
    (HEAD + "a.png,1,2,3,4\n", "line 3: 5 columns, the first line has 6"),
    (HEAD + "\na.png,1,2,3,four,cat\n", "line 4: ymax is 'four', it must be a finite number"),
    (HEAD + "a.png,1,2,,4,cat\n", "line 3: xmax is missing, it must be a finite number"),
    (HEAD + "a.png,1,2,inf,4,cat\n", "line 3: xmax is 'inf', it must be a finite number"),
    (HEAD + "a.png,,,,,cat\n", "line 3: xmin is missing"),
    (HEAD + "a.png,1,2,3,4,\n", "line 3: class is missing"),
    (HEAD + ",1,2,3,4,cat\n", "line 3: image is missing"),
    (SIZED + "b.png,1,2,3,4,cat,0,30\n", "line 3: width and height are '0' and '30', they must"),
    (SIZED + "b.png,1,2,3,4,cat,a,30\n", "line 3: width and height are 'a' and '30'"),
    (SIZED + "a.png,1,2,3,4,cat,30,40\n", "line 3: a.png is 30x40, in an earlier line 40x30"),
    (SIZED.replace("width,height", "iscrowd,area"), "line 2: iscrowd is '40', it must be 0 or 1"),
    (SIZED.replace("width,height", "colour,area").replace("30", "x"), "line 2: area is 'x'"),
    ("a.png,1,2,11,22,cat\na.png,1,2,11,22\n", "line 2: 5 columns, the first line has 6"),
    ("a.png,1,2,11,22,cat\na.png,1,z,11,22,cat\n", "line 2: y1 is 'z', it must be a finite"),
    (b"image,xmin,ymin,xmax,ymax,class\n\xff,1,2,3,4,a\n", "is not text in UTF-8"),
]


@pytest.mark.parametrize(("text", "message"), MISTAKES)
def test_mistakes_are_named_in_one_line(tmp_path: Path, text: str | bytes, message: str):
    with pytest.raises(AnnotationError) as caught:
        read_csv(write(tmp_path, text))
    assert message in str(caught.value)
    assert str(tmp_path / "boxes.csv") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_further_mistakes_are_counted(tmp_path: Path):
    text = HEAD + "a.png,1,2,x,4,cat\n" * 3
    with pytest.raises(AnnotationError, match=r"line 3: .*\(and 2 more such problems\)"):
        read_csv(write(tmp_path, text))


def test_no_file(tmp_path: Path):
    with pytest.raises(AnnotationError, match=r"cannot read annotations .*no\.csv: No such file"):
        read_csv(tmp_path / "no.csv")
