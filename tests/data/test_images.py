"""Pictures of every kind come out RGB, uint8 and upright; the others say which file and why."""

from __future__ import annotations

import pickle
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from detkit.data.images import ImageReadError, is_truncated_jpeg, read_image

RED = (250, 10, 20)


def jpeg_bytes(*, progressive: bool = False) -> bytes:
    rng = np.random.default_rng(0)
    pixels = cv2.resize(rng.integers(0, 255, (12, 16, 3), np.uint8), (160, 120))
    flags = [cv2.IMWRITE_JPEG_PROGRESSIVE, int(progressive)]
    return cv2.imencode(".jpg", pixels, flags)[1].tobytes()


def png_header(width: int, height: int) -> bytes:
    """A well-formed PNG that claims a size and holds next to nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + check

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress(bytes(100)))
    return b"\x89PNG\r\n\x1a\n" + header + data + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("mode", "color", "suffix", "expected"),
    [
        ("RGB", RED, "png", RED),
        ("RGBA", (*RED, 0), "png", RED),
        ("L", 90, "png", (90, 90, 90)),
        ("LA", (90, 5), "png", (90, 90, 90)),
        ("1", 1, "png", (255, 255, 255)),
        ("I;16", 90 * 257, "png", (90, 90, 90)),
        ("CMYK", (0, 255, 255, 0), "jpg", (254, 0, 0)),
        ("L", 90, "jpg", (90, 90, 90)),
        ("RGB", RED, "bmp", RED),
        ("RGB", RED, "tiff", RED),
    ],
)
def test_every_color_model_becomes_rgb(
    tmp_path: Path, mode: str, color: int, suffix: str, expected: tuple[int, int, int]
):
    Image.new(mode, (6, 4), color).save(tmp_path / f"a.{suffix}")
    image = read_image(tmp_path / f"a.{suffix}")
    assert image.shape == (4, 6, 3)
    assert image.dtype == np.uint8
    np.testing.assert_allclose(image, np.broadcast_to(expected, image.shape), atol=2)


def test_exif_orientation_is_applied(tmp_path: Path):
    picture = Image.new("RGB", (60, 40))
    picture.paste(RED, (0, 0, 20, 40))  # the left third
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise for viewing: left becomes top
    picture.save(tmp_path / "a.jpg", exif=exif, quality=100)
    image = read_image(tmp_path / "a.jpg")
    assert image.shape == (60, 40, 3)
    assert image[5, 20, 0] > 200
    assert image[40, 20, 0] < 50


def with_preview(data: bytes) -> bytes:
    """The JPEG with another whole one in its APP1 segment, as cameras write them."""
    preview = b"Exif\0\0" + jpeg_bytes()[:20000]
    return data[:2] + b"\xff\xe1" + struct.pack(">H", len(preview) + 2) + preview + data[2:]


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("preview", [False, True])
def test_truncation_is_seen_in_the_picture_and_not_in_its_preview(progressive: bool, preview: bool):
    data = jpeg_bytes(progressive=progressive)
    if preview:
        data = with_preview(data)
        assert data.count(b"\xff\xd9") == 2
    assert not is_truncated_jpeg(data)
    assert not is_truncated_jpeg(data + bytes(100))  # padded by a camera
    assert is_truncated_jpeg(data[:-2])
    assert is_truncated_jpeg(data[:-500])
    assert is_truncated_jpeg(data[:150])  # within the header


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("none.jpg", None, "No such file"),
        ("empty.jpg", b"", "the file is empty"),
        ("text.png", b"not a picture", "not an image"),
        ("cut.jpg", jpeg_bytes()[:-500], "truncated JPEG"),
        ("huge.png", png_header(60000, 60000), "MAX_IMAGE_PIXELS"),
        ("cut.png", png_header(60, 60), "broken, truncated or not an image"),
    ],
)
def test_a_file_that_cannot_be_used_is_named_in_one_line(
    tmp_path: Path, name: str, data: bytes | None, reason: str
):
    if data is not None:
        (tmp_path / name).write_bytes(data)
    with pytest.raises(ImageReadError) as caught:
        read_image(tmp_path / name)
    message = str(caught.value)
    assert str(tmp_path / name) in message
    assert reason in message
    assert "\n" not in message
    assert str(pickle.loads(pickle.dumps(caught.value))) == message  # as a worker sends it


ODD = {  # height and width as a viewer shows it, None where there is nothing to show
    "animated.gif": (240, 320),
    "animated.webp": (245, 245),
    "bad_exif.jpg": (500, 500),
    "cmyk.jpg": (100, 100),
    "exif_orientation_6.jpg": (1200, 1800),
    "gray.jpg": (128, 128),
    "gray16.png": (64, 64),
    "gray16.tif": (64, 64),
    "gray_alpha.png": (128, 128),
    "junk_header.jpg": (768, 1024),
    "multipage.tiff": (10, 10),
    "one_pixel.png": (1, 1),
    "palette.png": (150, 162),
    "photo.webp": (128, 128),
    "rgba.png": (150, 200),
    "rgba16_animated.png": (64, 128),
    "two_pictures.mpo": (480, 640),
    "xmp_orientation_3.png": (268, 326),
    "bomb.gif": None,
    "broken_80_bytes.png": None,
    "broken_data_stream.png": None,
    "rle8_overflow.bmp": None,
    "truncated.jpg": None,
    "truncated.png": None,
    "zero_width.gif": None,
}


@pytest.mark.parametrize("name", ODD)
def test_odd_files(shared_data: Path, name: str):
    path = shared_data / "odd" / name
    size = ODD[name]
    if size is None:
        with pytest.raises(ImageReadError, match=name):
            read_image(path)
    else:
        assert read_image(path).shape == (*size, 3)
