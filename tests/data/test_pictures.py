"""Sizes from headers are those of the pictures that are read; folders are listed in order."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from detkit.data import ImageReadError, read_image
from detkit.data.pictures import guess_folder, list_files, picture_size, picture_sizes


def save(path: Path, *, orientation: int | None = None) -> None:
    """A picture of 40 x 30 as it is stored, turned by its EXIF block."""
    pixels = np.random.default_rng(0).integers(0, 255, (30, 40, 3), np.uint8)
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    Image.fromarray(pixels).save(path, exif=exif)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tiff"])
@pytest.mark.parametrize("orientation", [None, *range(1, 9)])
def test_the_size_is_that_of_the_picture_as_read(
    tmp_path: Path, suffix: str, orientation: int | None
):
    path = tmp_path / f"a.{suffix}"
    save(path, orientation=orientation)
    assert picture_size(path) == read_image(path).shape[:2]
    assert picture_size(path) == ((40, 30) if orientation and orientation >= 5 else (30, 40))


@pytest.mark.parametrize("suffix", ["bmp", "gif", "ppm", "jp2", "avif"])
def test_rarer_formats(tmp_path: Path, suffix: str):
    path = tmp_path / f"a.{suffix}"
    try:
        save(path, orientation=6)
    except (KeyError, OSError):
        pytest.skip(f"this Pillow writes no {suffix}")
    assert picture_size(path) == read_image(path).shape[:2]


def test_nothing_is_decoded(tmp_path: Path):
    path = tmp_path / "a.jpg"
    save(path)
    path.write_bytes(path.read_bytes()[:700])  # most of the pixels are gone
    with pytest.raises(ImageReadError, match="truncated"):
        read_image(path)
    assert picture_size(path) == (30, 40)


@pytest.mark.parametrize(
    ("content", "message"), [(None, "No such file"), (b"", "empty"), (b"text", "not an image")]
)
def test_what_is_no_picture(tmp_path: Path, content: bytes | None, message: str):
    path = tmp_path / "a.jpg"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ImageReadError, match=rf"a\.jpg.*{message}"):
        picture_size(path)


def test_no_pictures_have_sizes_too():
    assert picture_sizes([]).shape == (0, 2)


def test_files_are_listed_in_order_without_hidden_ones(tmp_path: Path):
    for name in ("b.JPG", "a/z.png", "a/y.txt", ".c.jpg", ".hidden/d.jpg", "a.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert list_files(tmp_path, (".jpg", ".png")) == ["a.jpg", "a/z.png", "b.JPG"]


@pytest.mark.parametrize(
    ("annotations", "picture", "expected"),
    [
        ("a.json", "x.jpg", "."),
        ("a.json", "images/x.jpg", "images"),
        ("train.json", "train/x.jpg", "train"),
        ("annotations/a.json", "images/x.jpg", "images"),
        ("annotations/instances_val2017.json", "val2017/x.jpg", "val2017"),
        ("annotations/a.json", "anywhere/x.jpg", "."),  # searched below
        ("deep/a.json", "anywhere/x.jpg", "deep"),
    ],
)
def test_the_folder_of_pictures_is_guessed(
    tmp_path: Path, annotations: str, picture: str, expected: str
):
    (tmp_path / picture).parent.mkdir(exist_ok=True)
    (tmp_path / picture).touch()
    folder = guess_folder(tmp_path / annotations, ["x.jpg"])
    assert folder == tmp_path / expected


def test_odd_files(shared_data: Path):
    for path in sorted((shared_data / "odd").iterdir()):
        try:
            size = read_image(path).shape[:2]
        except ImageReadError:
            continue
        assert picture_size(path) == size, path.name


def test_photos_of_real_sizes(shared_data: Path):
    paths = sorted((shared_data / "coco128/images/train2017").glob("*.jpg"))[:20]
    expected = [cv2.imread(str(path)).shape[:2] for path in paths]
    assert picture_sizes(paths).tolist() == [list(size) for size in expected]
