"""Pictures in any form become the same pixels as their file."""

from __future__ import annotations

import io
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from detkit.data import ImageReadError, read_image
from detkit.inference import pictures
from detkit.inference.pictures import each_picture, list_pictures, stands_for_several, to_rgb

GREY = np.array([[0, 128], [255, 7], [9, 30]], np.uint8)  # H 3, W 2
RGB = np.dstack([GREY, GREY + 1, 2 * GREY])


@pytest.mark.parametrize(
    "form",
    [
        RGB,
        np.asfortranarray(RGB),
        RGB[::-1][::-1],
        torch.tensor(RGB).permute(2, 0, 1),
        Image.fromarray(RGB),
        Image.fromarray(np.dstack([RGB, GREY])),  # RGBA: alpha is dropped
    ],
)
def test_colour(form: object) -> None:
    assert np.array_equal(to_rgb(form), RGB)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "form",
    [
        GREY,
        GREY[..., None],
        torch.tensor(GREY),
        torch.tensor(GREY)[None],
        Image.fromarray(GREY),
        Image.fromarray(GREY).convert("P"),
        Image.fromarray(GREY).convert("LA"),
        Image.fromarray(GREY.astype(np.uint16) * 256 + 255),  # 16 bits: the upper 8 count
        Image.fromarray(GREY.astype(np.int32) * 256 + 255),  # mode I, as Pillow 10 opens those
    ],
)
def test_grey_is_repeated(form: object) -> None:
    assert np.array_equal(to_rgb(form), np.dstack([GREY] * 3))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "mode",
    [
        *("1", "L", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV", "I", "LA", "PA"),
        *("RGBX", "RGBa", "La", "I;16", "I;16L", "I;16B"),
    ],
)
def test_every_mode_of_pillow(mode: str) -> None:
    image = to_rgb(Image.new(mode, (4, 3)))
    assert image.shape == (3, 4, 3) and image.dtype == np.uint8


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (Image.new("F", (4, 3)), "cannot use the Pillow image of mode F as a picture: .* scale"),
        (Image.new("RGB", (0, 3)), "the Pillow image is 0 x 3; a picture has 1 to"),
    ],
)
def test_pillow_images_without_a_picture(picture: Image.Image, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        to_rgb(picture)


def test_pillow_images_have_the_limit_of_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "MAX_IMAGE_PIXELS", 11)
    with pytest.raises(ValueError, match="the Pillow image is 4 x 3; a picture has 1 to 11 pixels"):
        to_rgb(Image.new("RGB", (4, 3)))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["jpeg", "png", "tiff", "webp"])
def test_exif_orientation_as_in_files(tmp_path: Path, kind: str, orientation: int) -> None:
    rng = np.random.default_rng(0)
    pixels = np.kron(rng.integers(0, 256, (2, 3, 3)), np.ones((16, 16, 1))).astype(np.uint8)
    path = tmp_path / f"photo.{kind}"
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(path, exif=exif, quality=100)
    expected = read_image(path)
    assert expected.shape[:2] == ((32, 48) if orientation < 5 else (48, 32))
    with Image.open(path) as picture:
        assert np.abs(to_rgb(picture).astype(int) - expected).max() <= 2  # two decoders
        turned = to_rgb(picture.convert("L"))  # not the pixels alone know it
    assert turned.shape == expected.shape


def test_truncated_file_in_pillow() -> None:
    data = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(data, "jpeg")
    picture = Image.open(io.BytesIO(data.getvalue()[:2000]))
    with pytest.raises(
        ImageReadError, match="cannot use the Pillow image of mode RGB as a picture"
    ):
        to_rgb(picture)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Pictures b.png, a.JPG, [1].png and below/c.png among other things."""
    for name in ("b.png", "a.JPG", "[1].png", ".hidden.png", "below/c.png"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        cv2.imwrite(str(path), RGB)
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "folder.png").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("", ["[1].png", "a.JPG", "b.png"]),
        ("*", ["[1].png", "a.JPG", "b.png"]),
        ("*.png", ["[1].png", "b.png"]),
        ("?.*", ["a.JPG", "b.png"]),
        ("**/*.png", ["[1].png", "b.png", "below/c.png"]),
        ("[ab].*", ["a.JPG", "b.png"]),
    ],
)
def test_folders_and_patterns(folder: Path, pattern: str, names: list[str]) -> None:
    for path in (folder / pattern, str(folder / pattern)):
        assert stands_for_several(path)
        assert list_pictures(path) == [folder / name for name in names]


def test_a_file_is_itself_though_its_name_looks_like_a_pattern(folder: Path) -> None:
    assert not stands_for_several(folder / "[1].png")
    assert not stands_for_several(folder / "no.png")
    given = [folder / "[1].png", RGB, str(folder / "*.png")]
    assert list(each_picture(given))[2:] == [folder / "[1].png", folder / "b.png"]
    assert list(each_picture(given))[1] is RGB


def test_a_folder_whose_name_looks_like_a_pattern(tmp_path: Path) -> None:
    folder = tmp_path / "[x] *"
    folder.mkdir()
    cv2.imwrite(str(folder / "a.png"), RGB)
    assert stands_for_several(folder) and list_pictures(folder) == [folder / "a.png"]


def test_nothing_to_list(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"no pictures directly in folder .*; known are .*\.jp"):
        list_pictures(folder / "folder.png")
    with pytest.raises(ValueError, match=r"no picture fits the pattern .*txt; known are"):
        list_pictures(folder / "*.txt")


def test_what_is_no_picture_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "film.mp4").write_bytes(b"film")
    with pytest.raises(ValueError, match=r"film\.mp4 is a video; use predictor\.stream\('"):
        to_rgb(tmp_path / "film.mp4")
    with pytest.raises(ImageReadError, match="the file is empty"):
        (tmp_path / "empty.jpg").touch()
        to_rgb(tmp_path / "empty.jpg")


def test_odd_files_in_pillow_are_as_read(shared_data: Path) -> None:
    """Where both decoders take a file, they agree."""
    same = 0
    for path in sorted((shared_data / "odd").glob("*.*")):
        try:
            expected = read_image(path)
            image = to_rgb(Image.open(path))
        except (ValueError, OSError, Image.DecompressionBombError):
            continue
        # 16 bits of colour are 8 in Pillow; alpha of palettes and CMYK have a rounding each
        if path.name != "rgba16_animated.png":
            assert np.abs(image.astype(int) - expected).max() <= 2, path.name
        same += 1
    assert same >= 15
