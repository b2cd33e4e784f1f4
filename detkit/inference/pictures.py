"""Pictures in every form that a person has them in: files, arrays, tensors, Pillow images.

H and W are the height and width of a picture as it is shown, after its EXIF orientation.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps
from torch import Tensor

from detkit.data import ImageReadError, read_image
from detkit.data.images import MAX_IMAGE_PIXELS
from detkit.data.pictures import IMAGE_SUFFIXES

Picture = str | os.PathLike[str] | np.ndarray | Tensor | Image.Image

VIDEO_SUFFIXES = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpg", ".webm")
_FORMS = (
    "a path, a folder, a pattern ('photos/*.jpg'), an array [H, W, 3] uint8 RGB, a tensor "
    "[3, H, W] uint8 RGB, a Pillow image, or a list or generator of these"
)


def to_rgb(picture: Picture) -> np.ndarray:
    """A picture in any accepted form as `[H, W, 3]` uint8 RGB.

    Args:
        picture: the path of a file; an array `[H, W, 3]` or a tensor `[3, H, W]`, uint8 RGB; a grey
            one, `[H, W]`, `[H, W, 1]` or `[1, H, W]`; or a Pillow image of any mode, which is
            treated as `read_image` treats its file: EXIF orientation applied, alpha dropped, 16
            bits made 8.

    Raises:
        ValueError: a file that is no picture, or an array of another type or shape.
    """
    if isinstance(picture, str | os.PathLike):
        return _read(picture)
    if isinstance(picture, Tensor):
        _check_pixels(picture, "tensor", "[3, H, W]", channels=0)
        image = picture.cpu().numpy()
        return _colored(image if image.ndim == 2 else image.transpose(1, 2, 0))
    if isinstance(picture, np.ndarray):
        _check_pixels(picture, "array", "[H, W, 3]", channels=2)
        return _colored(picture)
    if isinstance(picture, Image.Image):
        return _from_pillow(picture)
    hint = " (cv2.imread returns None for a file that it cannot read)" if picture is None else ""
    raise ValueError(f"cannot take a {type(picture).__name__} for a picture{hint}; give {_FORMS}")


def each_picture(pictures: Iterable[Picture]) -> Iterator[Picture]:
    """The pictures one by one; folders and patterns become the files that they stand for.

    Raises:
        ValueError: there is no picture in a folder, or none that a pattern fits.
    """
    for picture in pictures:
        if isinstance(picture, str | os.PathLike) and stands_for_several(picture):
            yield from list_pictures(picture)
        else:
            yield picture


def stands_for_several(path: str | os.PathLike[str]) -> bool:
    """Whether a path is a folder or, where there is no such file, a pattern."""
    return os.path.isdir(path) or (glob.has_magic(os.fspath(path)) and not os.path.exists(path))


def list_pictures(path: str | os.PathLike[str]) -> list[Path]:
    """The pictures that a folder or a pattern stands for, in the order of their names.

    Args:
        path: a folder, for the pictures directly in it; or a pattern as of `glob`
            ("photos/*.jpg", "photos/**/*" for folders below, too). Hidden files and those without
            the suffix of a picture are left out.

    Raises:
        ValueError: there is none.
    """
    folder = os.path.isdir(path)
    pattern = os.path.join(glob.escape(os.fspath(path)), "*") if folder else os.fspath(path)
    found = sorted(
        Path(file)
        for file in glob.iglob(pattern, recursive=True)
        if file.lower().endswith(IMAGE_SUFFIXES) and os.path.isfile(file)
    )
    known = f"known are {' '.join(IMAGE_SUFFIXES)}"
    if not found and folder:
        raise ValueError(
            f"no pictures directly in folder {path}; {known}, and '{path}/**/*' takes those in "
            "folders below too"
        )
    if not found:
        raise ValueError(f"no picture fits the pattern {path}; {known}")
    return found


def _read(path: str | os.PathLike[str]) -> np.ndarray:
    text = os.fspath(path)
    if "://" in text:
        raise ValueError(f"{text} is a URL; download the picture, or use predictor.stream for film")
    if text.lower().endswith(VIDEO_SUFFIXES) and os.path.isfile(path):
        raise ValueError(f"{text} is a video; use predictor.stream({text!r})")
    return read_image(path)


def _check_pixels(image: np.ndarray | Tensor, kind: str, wanted: str, *, channels: int) -> None:
    shape = list(image.shape)
    given = f"the {kind} is {shape} {str(image.dtype).removeprefix('torch.')}"
    if len(shape) == 4:
        raise ValueError(f"{given}, a picture is {wanted} uint8; give several as list({kind})")
    if len(shape) not in (2, 3) or (len(shape) == 3 and shape[channels] not in (1, 3)):
        raise ValueError(f"{given}, a picture is {wanted} uint8, RGB, or grey; convert it first")
    if str(image.dtype).removeprefix("torch.") != "uint8":
        raise ValueError(
            f"{given}, a picture is {wanted} uint8 in 0..255; scale and convert it first"
        )
    if 0 in shape:
        raise ValueError(f"{given}, it has no pixels; a picture has at least one")


def _colored(image: np.ndarray) -> np.ndarray:
    """`[H, W]`, `[H, W, 1]` or `[H, W, 3]` as `[H, W, 3]`; grey is repeated."""
    image = image if image.ndim == 3 else image[..., None]
    return image if image.shape[2] == 3 else np.repeat(image, 3, axis=2)


def _from_pillow(picture: Image.Image) -> np.ndarray:
    width, height = picture.size
    if not 0 < width * height <= MAX_IMAGE_PIXELS:
        raise ValueError(
            f"the Pillow image is {width} x {height}; a picture has 1 to {MAX_IMAGE_PIXELS} pixels"
        )
    try:
        turned = _upright(picture)
        if turned.mode == "F":  # no scale is known: 0..1, 0..255 and metres are all in use
            raise ValueError("mode F says nothing of its scale")
        if turned.mode.startswith("I"):  # 16 bits, of which the upper ones count, as in OpenCV
            pixels = np.asarray(turned).astype(np.int64)
            return _colored((pixels.clip(0, 2**16 - 1) >> 8).astype(np.uint8))
        # not every mode goes straight to RGB: these have colours multiplied by alpha, or may
        through = {"La": "LA", "RGBa": "RGBA", "P": "RGBA"}.get(turned.mode, turned.mode)
        return np.asarray(turned.convert(through).convert("RGB"))
    except (OSError, ValueError, SyntaxError) as error:
        name = getattr(picture, "filename", "") or "the Pillow image"
        raise ImageReadError(
            f"cannot use {name} of mode {picture.mode} as a picture: {error}"
        ) from None


def _upright(picture: Image.Image) -> Image.Image:
    """Turned as its EXIF block says, and as nothing else does (XMP, say); TIFF comes upright."""
    exif = Image.Exif()
    try:
        exif.load(picture.info.get("exif", b""))
        orientation = exif.get(ExifTags.Base.Orientation, 1)
    except (SyntaxError, ValueError, OSError):
        return picture  # a damaged block turns nothing
    return picture if orientation == 1 else ImageOps.exif_transpose(picture)
