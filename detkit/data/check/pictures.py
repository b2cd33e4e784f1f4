"""Read every picture of a data set once, and compare what is there with the annotations.

N images.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image

from detkit.data.check.findings import Finding
from detkit.data.check.records import Records
from detkit.data.images import ImageReadError, read_image
from detkit.data.pictures import IMAGE_SUFFIXES, list_files
from detkit.structures import Size

UPRIGHT = 1  # EXIF orientation
SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations that exchange height and width


class Picture(NamedTuple):
    """What is known of a picture once it has been read.

    Attributes:
        path: None where there is no such file.
        size: (height, width), upright; None where it cannot be read.
        digest: of its pixels, so that a copy in another file is known; None as above.
        orientation: of the EXIF block, 1..8.
        problem: why it cannot be read, or "".
    """

    path: Path | None
    size: Size | None = None
    digest: bytes | None = None
    orientation: int = UPRIGHT
    problem: str = ""


def find_pictures(names: Sequence[str], folder: Path) -> list[Path | None]:
    """The file of each name below a folder; None where there is none, or several could be meant.

    A name that is not there is looked up by its last part, as the readers do.
    """
    paths: list[Path | None] = [folder / name for name in names]
    absent = [index for index, path in enumerate(paths) if path is None or not path.is_file()]
    below: dict[str, list[Path]] = {}
    if absent:
        for parent, _, files in os.walk(folder, followlinks=True):
            for file in files:
                below.setdefault(file, []).append(Path(parent, file))
    for index in absent:
        candidates = below.get(PurePosixPath(names[index].replace("\\", "/")).name, [])
        paths[index] = candidates[0] if len(candidates) == 1 else None
    return paths


def read_pictures(paths: Sequence[Path | None], *, workers: int) -> Iterator[Picture]:
    """Read pictures side by side, in their order; of each only its facts are kept.

    Threads are enough: OpenCV and hashlib do their work without Python's lock.
    """
    with ThreadPoolExecutor(max(1, workers)) as pool:
        try:
            yield from pool.map(_read, paths)
        finally:  # interrupted: those not begun are not waited for
            pool.shutdown(wait=False, cancel_futures=True)


def _read(path: Path | None) -> Picture:
    if path is None:
        return Picture(None)
    try:
        image = read_image(path)
    except ImageReadError as error:
        return Picture(path, problem=str(error))
    digest = hashlib.blake2b(image.data, digest_size=16, key=str(image.shape).encode()).digest()
    height, width = image.shape[:2]
    return Picture(path, (height, width), digest, _orientation(path))


def _orientation(path: Path) -> int:
    """What the EXIF block says; upright where there is none that can be read."""
    try:
        with warnings.catch_warnings(), Image.open(path) as picture:
            warnings.simplefilter("ignore")
            if "exif" not in picture.info:  # nor believed from elsewhere, as OpenCV does not
                return UPRIGHT
            block = Image.Exif()
            block.load(picture.info["exif"])
            orientation = block.get(ExifTags.Base.Orientation, UPRIGHT)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return UPRIGHT
    return orientation if orientation in range(1, 9) else UPRIGHT


def true_sizes(records: Records, pictures: Sequence[Picture]) -> np.ndarray:
    """`[N, 2]` (height, width) of the files, or as annotated where they cannot be read."""
    sizes = [
        tuple(annotated) if picture.size is None else picture.size
        for picture, annotated in zip(pictures, records.sizes.tolist(), strict=True)
    ]
    return np.array(sizes, dtype=np.int64).reshape(-1, 2)


def check_pictures(records: Records, pictures: Sequence[Picture]) -> Iterator[Finding]:
    """Missing, unreadable, of another size, turned, repeated pictures."""
    missing = _where(picture.path is None for picture in pictures)
    yield records.of_images("image_missing", missing, lambda _: f": not in {records.folder}")
    broken = _where(bool(picture.problem) for picture in pictures)
    yield records.of_images("image_unreadable", broken, lambda i: f": {pictures[i].problem}")

    true, annotated = true_sizes(records, pictures), records.sizes
    sideways = np.array([picture.orientation in SIDEWAYS for picture in pictures], dtype=bool)
    unlike = ((annotated != true) & (annotated != 0)).any(axis=1)
    unrotated = unlike & sideways & (annotated == true[:, ::-1]).all(axis=1)

    def sizes(index: int) -> str:
        (height, width), (h, w) = true[index].tolist(), annotated[index].tolist()
        return f": annotated {w}x{h}, the file is {width}x{height}"

    yield records.of_images("image_unrotated", np.flatnonzero(unrotated), sizes)
    yield records.of_images("image_size", np.flatnonzero(unlike & ~unrotated), sizes)
    turned = _where(picture.orientation != UPRIGHT for picture in pictures)
    yield records.of_images(
        "images_turned", turned, lambda i: f": orientation {pictures[i].orientation}"
    )
    yield from _repeated(records, pictures)
    yield _unlisted(records, pictures)


def _where(flags: Iterable[bool]) -> np.ndarray:
    return np.flatnonzero(np.fromiter(flags, dtype=bool))


def _repeated(records: Records, pictures: Sequence[Picture]) -> Iterator[Finding]:
    """The same file under two records, and the same pixels in two files."""
    first_of_path: dict[Path, int] = {}
    first_of_pixels: dict[bytes, int] = {}
    same_file: dict[int, int] = {}
    same_pixels: dict[int, int] = {}
    for index, picture in enumerate(pictures):
        if picture.path is None:
            continue
        if first_of_path.setdefault(picture.path, index) != index:
            same_file[index] = first_of_path[picture.path]
        elif picture.digest and first_of_pixels.setdefault(picture.digest, index) != index:
            same_pixels[index] = first_of_pixels[picture.digest]
    for code, same in (("image_twice", same_file), ("image_duplicate", same_pixels)):
        texts = [
            f"{records.image_name(index)} is {records.image_name(first)}"
            for index, first in same.items()
        ]
        name = dict(zip(same, texts, strict=True)).__getitem__
        yield Finding(code, np.array(list(same), dtype=np.int64), name)


def _unlisted(records: Records, pictures: Sequence[Picture]) -> Finding:
    known = {picture.path for picture in pictures}
    names = list_files(records.folder, IMAGE_SUFFIXES)
    return Finding.of_texts(
        "pictures_unlisted", [name for name in names if records.folder / name not in known]
    )


def check_leaks(
    records: Records, pictures: Sequence[Picture], other: str, others: Sequence[Picture]
) -> Finding:
    """Pictures whose pixels another data set has too."""
    path_of = {picture.digest: picture.path for picture in others if picture.digest}
    twin = {
        index: path_of[picture.digest]
        for index, picture in enumerate(pictures)
        if picture.digest in path_of
    }
    indices = np.array(list(twin), dtype=np.int64)
    return records.of_images("image_leaked", indices, lambda i: f" is {twin[i]} of {other}")
