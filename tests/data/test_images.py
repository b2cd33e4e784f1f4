"""Pictures of every kind come out RGB, uint8 and upright; the others say which file and why."""

from __future__ import annotations

import io
import pickle
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from detkit.data import images
from detkit.data.images import (
    MAX_IMAGE_PIXELS,
    ImageReadError,
    claimed_pixels,
    is_truncated_jpeg,
    read_image,
)
from detkit.data.pictures import picture_size

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
        ("huge.png", png_header(60000, 60000), "claims 3600000000 pixels in"),
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


def save(path: Path, picture: Image.Image, **settings: object) -> np.ndarray:
    """Write with Pillow, read with ours."""
    picture.save(path, **settings)
    image = read_image(path)
    assert picture_size(path) == image.shape[:2]
    assert claimed_pixels(path.read_bytes()) == image.shape[0] * image.shape[1]
    return image


def halves(left: object, right: object, mode: str = "RGB") -> Image.Image:
    """20 x 10, two colours."""
    picture = Image.new(mode, (20, 10), left)
    picture.paste(right, (10, 0, 20, 10))
    return picture


def check_halves(image: np.ndarray, left: object, right: object, *, atol: int = 0) -> None:
    assert (image.shape, image.dtype) == ((10, 20, 3), np.uint8)
    np.testing.assert_allclose(image[2:8, 2:8], np.broadcast_to(left, (6, 6, 3)), atol=atol)
    np.testing.assert_allclose(image[2:8, 12:18], np.broadcast_to(right, (6, 6, 3)), atol=atol)


BLUE = (20, 10, 250)


@pytest.mark.parametrize(
    ("name", "settings", "atol"),
    [
        ("a.webp", {"lossless": True}, 0),
        ("a.webp", {"quality": 90}, 12),
        ("a.tif", {"compression": "tiff_lzw"}, 0),
        ("a.tif", {"compression": "tiff_deflate"}, 0),
        ("a.tif", {"compression": "packbits"}, 0),
        ("a.tif", {"compression": "jpeg", "quality": 95}, 12),
        ("a.tif", {"big_tiff": True}, 0),
        ("a.png", {"interlace": 1}, 0),
        ("a.jpg", {"quality": 95, "progressive": True}, 12),
        ("a.jp2", {}, 1),
        ("a.ppm", {}, 0),
        ("a.mpo", {"quality": 95}, 12),
    ],
    ids=str,
)
def test_formats_and_compressions(tmp_path: Path, name: str, settings: dict, atol: int):
    check_halves(save(tmp_path / name, halves(RED, BLUE), **settings), RED, BLUE, atol=atol)


def test_palettes(tmp_path: Path):
    flat = halves(RED, BLUE).quantize(4)
    for name in ("a.png", "a.gif", "a.bmp", "a.tif"):
        check_halves(save(tmp_path / name, flat), RED, BLUE)
    # a transparent colour of the palette is shown as what it is
    seen = flat.getpixel((0, 0))
    check_halves(save(tmp_path / "b.png", flat, transparency=seen), RED, BLUE)
    two = halves(0, 1, "1")
    check_halves(save(tmp_path / "c.png", two), 0, 255)
    check_halves(save(tmp_path / "c.tif", two), 0, 255)


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("channels", [3, 4])
def test_sixteen_bit_color(tmp_path: Path, suffix: str, channels: int):
    """The high byte is kept: 257 v becomes v, and noise in the low byte goes."""
    image = np.zeros((10, 20, channels), np.uint16)
    image[:, :10, :3], image[:, 10:, :3] = np.array(RED[::-1]) * 257, np.array(BLUE[::-1]) * 257
    path = tmp_path / f"a.{suffix}"
    assert cv2.imwrite(str(path), image)
    check_halves(read_image(path), RED, BLUE, atol=1)
    assert picture_size(path) == (10, 20)


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.png", "a.tif", "a.mpo"])
def test_of_several_pictures_the_first_is_taken(tmp_path: Path, name: str):
    settings: dict = {"save_all": True, "append_images": [halves(BLUE, RED)] * 2}
    settings |= {"lossless": True} if name == "a.webp" else {}
    settings |= {"quality": 95} if name == "a.mpo" else {}
    image = save(tmp_path / name, halves(RED, BLUE), **settings)
    check_halves(image, RED, BLUE, atol=12 if name == "a.mpo" else 0)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
def test_every_orientation(tmp_path: Path, orientation: int, suffix: str):
    """What Pillow turns a picture into is what is read; sizes from headers agree."""
    pixels = np.zeros((16, 32, 3), np.uint8)
    pixels[:8, :8], pixels[8:, :8], pixels[:8, 24:] = RED, BLUE, 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{suffix}"
    exact = {"jpg": {"quality": 100, "subsampling": 0}, "webp": {"lossless": True}}
    Image.fromarray(pixels).save(path, exif=exif, **exact.get(suffix, {}))
    image = read_image(path)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(path)).convert("RGB"))
    np.testing.assert_allclose(image, expected, atol=8)
    assert picture_size(path) == image.shape[:2]


def gif_header(width: int, height: int) -> bytes:
    """A small GIF whose only frame claims a size."""
    start = b"GIF89a" + struct.pack("<HH", 32, 32) + bytes((0xF1, 0, 0)) + bytes(12)
    return start + b"," + struct.pack("<HHHH", 0, 0, width, height) + bytes((0, 2, 0, 0x3B))


def jpeg_claiming(width: int, height: int) -> bytes:
    data = bytearray(jpeg_bytes())
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def saved_claiming(suffix: str, width: int, height: int) -> bytes:
    """A picture of 300 x 200 in whose header these numbers are replaced."""
    stream = io.BytesIO()
    Image.new("RGB", (300, 200)).save(stream, suffix)
    data = stream.getvalue()
    code = "<i" if suffix == "bmp" else "<H"
    start = 18 if suffix == "bmp" else 0
    for old, new in ((300, width), (200, height)):
        data = data[:start] + data[start:].replace(
            struct.pack(code, old), struct.pack(code, new), 1
        )
    return data


@pytest.mark.parametrize(
    ("name", "data", "pixels"),
    [
        ("a.png", png_header(60000, 60000), 60000**2),
        ("a.png", png_header(MAX_IMAGE_PIXELS // 2**10 + 1, 2**10), MAX_IMAGE_PIXELS + 2**10),
        ("a.jpg", jpeg_claiming(65500, 65500), 65500**2),
        ("a.gif", gif_header(65535, 65535), 65535**2),
        ("a.bmp", saved_claiming("bmp", 60000, 50000), 60000 * 50000),
        ("a.tif", saved_claiming("tiff", 60000, 50000), 60000 * 50000),
    ],
)
def test_absurd_sizes_are_refused_before_decoding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, data: bytes, pixels: int
):
    def decode(*args: object) -> None:
        raise AssertionError("the decoder must not see it")

    monkeypatch.setattr(images.cv2, "imdecode", decode)
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ImageReadError, match=rf"{name}: its header claims {pixels} pixels"):
        read_image(tmp_path / name)


def test_large_but_possible_sizes_reach_the_decoder(tmp_path: Path):
    """Above what Pillow allows by default, below our limit: the decoder says what is wrong."""
    data = gif_header(20000, 20000)
    assert 2 * Image.MAX_IMAGE_PIXELS < claimed_pixels(data) == 20000**2 < MAX_IMAGE_PIXELS
    assert claimed_pixels(b"not a picture") == claimed_pixels(jpeg_bytes()[:30]) == 0
    assert claimed_pixels(jpeg_bytes()) == claimed_pixels(jpeg_bytes(progressive=True)) == 160 * 120


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


REASONS = {  # of those that cannot be read
    "bomb.gif": "claims 4364696535 pixels in 44 bytes, MAX_IMAGE_PIXELS",
    "truncated.jpg": "truncated JPEG",
}


@pytest.mark.parametrize("name", ODD)
def test_odd_files(shared_data: Path, name: str):
    path = shared_data / "odd" / name
    size = ODD[name]
    if size is None:
        reason = REASONS.get(name, "broken, truncated or not an image")
        with pytest.raises(ImageReadError, match=f"{name}.*{reason}"):
            read_image(path)
        return
    image = read_image(path)
    assert image.shape == (*size, 3)
    assert picture_size(path) == size


def test_no_odd_file_is_left_out(shared_data: Path):
    notes = {"README.md", "observed.json"}
    assert {path.name for path in (shared_data / "odd").iterdir()} - notes == set(ODD)


@pytest.mark.parametrize("name", ["rgba.png", "photo.webp", "two_pictures.mpo", "gray.jpg"])
def test_odd_files_as_pillow_shows_them(shared_data: Path, name: str):
    path = shared_data / "odd" / name
    picture = Image.open(path).convert("RGBA").convert("RGB")
    difference = np.abs(read_image(path).astype(int) - np.asarray(picture))
    assert difference.mean() < 1.5
