"""Where the pictures of annotations are, and how large, without decoding them.

H and W are the height and width of a picture as it is shown, after its EXIF orientation.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import ExifTags, Image

from detkit.data.annotations import AnnotationError
from detkit.data.images import ImageReadError, read_image
from detkit.structures import Size

IMAGE_SUFFIXES = (
    *(".avif", ".bmp", ".dib", ".gif", ".jp2", ".jpe", ".jpeg", ".jpg", ".mpo"),
    *(".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"),
)
_TURNED = (5, 6, 7, 8)  # EXIF orientations that exchange height and width
_HEADERS = ("JPEG", "MPO", "PNG", "WEBP", "BMP")  # whose headers say what `read_image` will return


def picture_sizes(paths: Iterable[Path]) -> np.ndarray:
    """Sizes of pictures from their headers, `[N, 2]` int64 (height, width), upright.

    Raises:
        ImageReadError: a file cannot be read or is not a picture.
    """
    return np.array([picture_size(path) for path in paths], dtype=np.int64).reshape(-1, 2)


def picture_size(path: Path) -> Size:
    """(H, W) of a picture from its header; of the rarer formats from its pixels.

    Raises:
        ImageReadError: the file cannot be read or is not a picture.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of large pictures; nothing is decoded here
            with Image.open(path) as picture:
                if picture.format in _HEADERS:
                    return _upright(picture)
    except FileNotFoundError:
        raise ImageReadError(f"cannot read image {path}: No such file or directory") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        pass  # Pillow cannot, OpenCV may, and says why where it cannot either
    height, width = read_image(path).shape[:2]
    return height, width


def _upright(picture: Image.Image) -> Size:
    """(H, W) of an opened picture, turned as its EXIF block says."""
    width, height = picture.size
    if "exif" in picture.info:
        block = Image.Exif()  # not getexif(), which may decode the pixels and believes XMP too
        try:
            block.load(picture.info["exif"])
            turned = block.get(ExifTags.Base.Orientation) in _TURNED
        except (SyntaxError, ValueError, OSError):
            turned = False  # a damaged block turns nothing
        if turned:
            return width, height
    return height, width


def list_files(folder: Path, suffixes: tuple[str, ...]) -> list[str]:
    """Files with these suffixes anywhere below a folder: paths relative to it, sorted.

    Hidden files and folders are left out.
    """
    found = []
    for parent, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if name.lower().endswith(suffixes) and not name.startswith("."):
                found.append(PurePosixPath(os.path.relpath(parent, folder), name).as_posix())
    return sorted(found)


def guess_folder(annotations: Path, names: list[str]) -> Path:
    """The folder of the pictures that an annotation file names, where nobody says it.

    It is that of the file, or one of the usual places beside or above it where the first and the
    last picture are.
    """
    beside, above = annotations.parent, annotations.parent.parent
    part = annotations.stem.rpartition("_")[2]  # train2017 of instances_train2017
    usual = [beside, beside / "images", beside / annotations.stem, beside / part]
    usual += [above / "images", above / annotations.stem, above / part, above]
    ends = [*names[:1], *names[-1:]]
    fitting = (folder for folder in usual if all((folder / name).is_file() for name in ends))
    return next(fitting, above if beside.name.lower() == "annotations" else beside)


def find_images(names: list[str], folder: Path, annotations: Path) -> list[str]:
    """Paths below the folder for the file names of the annotations.

    Folders are listed instead of asking for each file, which is slow on network disks.

    Raises:
        AnnotationError: files are missing (how many, and the first three) or a name stands for
            several files.
    """
    if not folder.is_dir():
        raise AnnotationError(f"images folder {folder} does not exist (annotations: {annotations})")
    listed: dict[str, set[str]] = {}
    found: list[str] = []
    missing: list[str] = []
    below: dict[str, list[str]] | None = None
    for name in names:
        parent, base = os.path.split(name)
        if parent not in listed:
            listed[parent] = _list_names(folder / parent)
        if base in listed[parent]:
            found.append(name)
            continue
        below = _index_by_name(folder) if below is None else below
        base = PurePosixPath(name.replace("\\", "/")).name  # written on Windows
        candidates = below.get(base, [])
        if len(candidates) > 1:
            raise AnnotationError(
                f"{annotations}: {name!r} is not in {folder} and {len(candidates)} files below it "
                f"have that name: {', '.join(sorted(candidates)[:2])}; make file_name a path"
            )
        if candidates:
            found.append(candidates[0])
        else:
            missing.append(name)
    if missing:
        raise AnnotationError(
            f"{annotations}: {len(missing)} of {len(names)} image files are not in {folder}: "
            f"{', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}"
        )
    return found


def _list_names(folder: Path) -> set[str]:
    try:
        return set(os.listdir(folder))
    except OSError:
        return set()


def _index_by_name(folder: Path) -> dict[str, list[str]]:
    """Every file below a folder: last part of its name to paths relative to the folder."""
    below: dict[str, list[str]] = {}
    for parent, _, files in os.walk(folder, followlinks=True):
        for file in files:
            below.setdefault(file, []).append(os.path.relpath(os.path.join(parent, file), folder))
    return below
