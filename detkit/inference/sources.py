"""Where pictures come from: a picture, a folder or pattern of them, a video, a camera, a stream."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2

from detkit.data import ImageReadError, read_image
from detkit.data.pictures import IMAGE_SUFFIXES
from detkit.inference.pictures import VIDEO_SUFFIXES, list_pictures, stands_for_several
from detkit.inference.video import Frame, OpenCapture, Reconnect, Video

logger = logging.getLogger(__name__)

DEFAULT_FPS = 25.0  # of cameras and files that do not say


class ImageFiles:
    """Picture files, one after the other.

    Args:
        paths: of the files.
        skip_unreadable: log a warning and go on where one cannot be read, unless none can; else
            raise.

    Attributes:
        names: of the files; where two of them have the same, with the folders that tell them apart.
        skipped: how many could not be read so far.
    """

    def __init__(self, paths: Sequence[Path], *, skip_unreadable: bool = False) -> None:
        self.paths = list(paths)
        self.names = _distinct_names(self.paths)
        self.skip_unreadable = skip_unreadable
        self.skipped = 0

    def __len__(self) -> int:
        return len(self.paths)

    def __iter__(self) -> Iterator[Frame]:
        for index, (path, name) in enumerate(zip(self.paths, self.names, strict=True)):
            try:
                image = read_image(path)
            except ImageReadError as error:
                if not self.skip_unreadable:
                    raise
                self.skipped += 1
                logger.warning("skipped: %s", error)
                if self.skipped == len(self.paths):
                    raise ImageReadError(
                        f"none of the {len(self.paths)} pictures can be read"
                    ) from None
                continue
            yield Frame(image, name, index, path)

    def close(self) -> None:
        """Nothing stays open."""

    def __enter__(self) -> ImageFiles:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


Source = ImageFiles | Video


def open_source(
    address: str | os.PathLike[str] | int,
    *,
    reconnect: Reconnect | None = None,
    open_capture: OpenCapture | None = None,
) -> Source:
    """The source that a word on the command line stands for.

    Args:
        address: a picture, a folder of pictures (those directly in it, by name), a pattern
            ("photos/*.jpg", "photos/**/*.jpg"), a video file, the index of a camera (0 or "0"), or
            a URL ("rtsp://...", "http://...").
        reconnect: how long a lost camera or stream is sought.
        open_capture: what opens a video, camera or stream, instead of `cv2.VideoCapture`.

    Raises:
        ValueError: there is no such thing, or it cannot be used.
    """
    address = str(address)
    if address.isascii() and address.isdigit():
        name, camera = f"camera-{address}", int(address)
        return Video(camera, name=name, reconnect=reconnect, open_capture=open_capture)
    if "://" in address:
        return Video(address, name="stream", reconnect=reconnect, open_capture=open_capture)
    path = Path(address)
    if stands_for_several(address):
        return ImageFiles(list_pictures(address), skip_unreadable=True)
    if not path.is_file():
        raise ValueError(
            f"no file or folder {address}; give a picture, a folder, a pattern, a video, a camera "
            "(0) or a URL"
        )
    if _is_picture(path):
        return ImageFiles([path])
    return Video(address, name=path.name, path=path, open_capture=open_capture)


def _distinct_names(paths: Sequence[Path]) -> list[str]:
    if len({path.name for path in paths}) == len(paths):
        return [path.name for path in paths]
    common = os.path.commonpath([path.absolute().parent for path in paths])
    return [path.absolute().relative_to(common).as_posix() for path in paths]


def _is_picture(path: Path) -> bool:
    """By its name, and where that says nothing by its first bytes."""
    suffix = path.suffix.lower()
    if suffix in IMAGE_SUFFIXES + VIDEO_SUFFIXES:
        return suffix in IMAGE_SUFFIXES
    return bool(cv2.haveImageReader(str(path)))
