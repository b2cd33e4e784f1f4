"""Where pictures come from: a picture, a folder of them, a video, a camera, a network stream."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from detkit.data import ImageReadError, read_image
from detkit.data.pictures import IMAGE_SUFFIXES

logger = logging.getLogger(__name__)

VIDEO_SUFFIXES = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpg", ".webm")
DEFAULT_FPS = 25.0  # of cameras and files that do not say


@dataclass(frozen=True, slots=True)
class Frame:
    """One picture of a source.

    Attributes:
        image: `[H, W, 3]` uint8, RGB.
        name: of its file, or of the video or camera it is from.
        index: its place in the source, from 0.
        path: of its file, None for frames of a video or camera.
    """

    image: np.ndarray
    name: str
    index: int
    path: Path | None = None


class ImageFiles:
    """Picture files, one after the other.

    Args:
        paths: of the files.
        skip_unreadable: log a warning and go on where one cannot be read, unless none can; else
            raise.

    Attributes:
        skipped: how many could not be read so far.
    """

    def __init__(self, paths: list[Path], *, skip_unreadable: bool = False) -> None:
        self.paths = paths
        self.skip_unreadable = skip_unreadable
        self.skipped = 0

    def __len__(self) -> int:
        return len(self.paths)

    def __iter__(self) -> Iterator[Frame]:
        for index, path in enumerate(self.paths):
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
            yield Frame(image, path.name, index, path)

    def __enter__(self) -> ImageFiles:
        return self

    def __exit__(self, *exception: object) -> None:
        """Nothing stays open."""


class Video:
    """Frames that OpenCV decodes. It is open from construction until `close`; iterate once.

    Args:
        address: the path of a file, a URL, or the index of a camera.
        name: for people and for files made from it.
        path: of the file, None for cameras and streams.

    Attributes:
        fps: frames per second as the source says, None where it says nothing sensible.
        announced: frames that a file says it has, None where unknown; it may be wrong.

    Raises:
        ValueError: it cannot be opened, or not one frame comes out of it.
    """

    def __init__(self, address: str | int, *, name: str, path: Path | None = None) -> None:
        self.name, self.path = name, path
        self._capture = cv2.VideoCapture(address)
        if not self._capture.isOpened() or self._is_text():
            self.close()
            raise ValueError(_cannot_open(address))
        if path is None:
            self._capture.set(
                cv2.CAP_PROP_BUFFERSIZE, 1
            )  # the newest frame, not the oldest waiting
        fps = self._capture.get(cv2.CAP_PROP_FPS)
        self.fps = fps if math.isfinite(fps) and 0 < fps <= 1000 else None
        count = self._capture.get(cv2.CAP_PROP_FRAME_COUNT)
        self.announced = int(count) if path is not None and 0 < count < 1e9 else None
        self._first = self._read()  # whoever opens a source hears of a broken one at once
        if self._first is None:
            self.close()
            raise ValueError(f"{name} opens, but gives no frame; check that it plays elsewhere")

    @property
    def live(self) -> bool:
        """Whether frames pass at their own pace, whether or not somebody reads them."""
        return self.path is None

    def __iter__(self) -> Iterator[Frame]:
        image, index = self._first, 0
        self._first = None
        while image is not None:
            yield Frame(image, self.name, index)
            image, index = self._read(), index + 1
        if self.announced is not None and index < self.announced:
            logger.warning("%s ends after %d of %d frames", self.name, index, self.announced)

    def _read(self) -> np.ndarray | None:
        ok, image = self._capture.read()
        return cv2.cvtColor(image, cv2.COLOR_BGR2RGB) if ok and image is not None else None

    def _is_text(self) -> bool:
        """Whether FFmpeg plays a text file as a film of a terminal."""
        return self._capture.get(cv2.CAP_PROP_FOURCC) == cv2.VideoWriter.fourcc(*"ansi")

    def close(self) -> None:
        """Let go of the file or camera."""
        self._capture.release()

    def __enter__(self) -> Video:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


Source = ImageFiles | Video


def open_source(address: str) -> Source:
    """The source that a word on the command line stands for.

    Args:
        address: a picture, a folder of pictures (those directly in it, by name), a video file, the
            index of a camera ("0"), or a URL ("rtsp://...").

    Raises:
        ValueError: there is no such thing, or it cannot be used.
    """
    if address.isascii() and address.isdigit():
        return Video(int(address), name=f"camera-{address}")
    if "://" in address:
        return Video(address, name="stream")
    path = Path(address)
    if path.is_dir():
        return ImageFiles(_pictures_in(path), skip_unreadable=True)
    if not path.is_file():
        raise ValueError(
            f"no file or folder {address}; give a picture, a folder, a video, a camera (0) or a URL"
        )
    if _is_picture(path):
        return ImageFiles([path])
    return Video(address, name=path.name, path=path)


def _is_picture(path: Path) -> bool:
    """By its name, and where that says nothing by its first bytes."""
    suffix = path.suffix.lower()
    if suffix in IMAGE_SUFFIXES + VIDEO_SUFFIXES:
        return suffix in IMAGE_SUFFIXES
    return bool(cv2.haveImageReader(str(path)))


def _pictures_in(folder: Path) -> list[Path]:
    pictures = sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in IMAGE_SUFFIXES
        and not path.name.startswith(".")
        and path.is_file()
    )
    if not pictures:
        raise ValueError(
            f"no pictures directly in folder {folder}; known are {' '.join(IMAGE_SUFFIXES)}"
        )
    return pictures


def _cannot_open(address: str | int) -> str:
    if isinstance(address, int):
        return (
            f"cannot open camera {address}: there is none, another program has it, or you may not "
            "use it; try another index, or give a file"
        )
    if "://" in address:
        return f"cannot open stream {address}; check the address, the network and the password"
    return f"cannot read {address}: neither a picture nor a video that OpenCV can decode"
