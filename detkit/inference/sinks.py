"""Where results go: pictures, a video, a contact sheet; and how a file is completed or dropped.

A sink is a context manager that is given every frame. A video, list or sheet takes its name when
the block ends, also when it ends by Ctrl-C, SIGTERM or because a camera is lost, so that what was
done until then can be used. After any other error there is no such file.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from detkit.files import check_writable, write_atomically
from detkit.inference.sources import (
    DEFAULT_FPS,
    IMAGE_SUFFIXES,
    VIDEO_SUFFIXES,
    ImageFiles,
    Source,
)
from detkit.inference.stream import Result
from detkit.inference.video import EndedEarlyError, Video, mp4_boxes
from detkit.signals import Terminated
from detkit.structures import Detections
from detkit.visualize import contact_sheet, draw_detections

WRITABLE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
RESERVE = 2**24  # bytes of the disk that a film leaves free, to be completed with
_CHECK_EVERY = 32  # frames
KEEPING = (KeyboardInterrupt, Terminated, EndedEarlyError)  # what was done until then counts


class Sink:
    """Takes frames in a `with` block, and completes its file at the end of it.

    Attributes:
        path: the file or folder written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, result: Result, picture: np.ndarray) -> None:
        """Take one frame.

        Args:
            result: the frame and what was found in it.
            picture: `[H, W, 3]` uint8 RGB, with the detections drawn.
        """
        raise NotImplementedError

    def complete(self) -> None:
        """Put the finished file in its place."""

    def discard(self) -> None:
        """Leave nothing behind."""

    def __enter__(self) -> Sink:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        if kind is None or issubclass(kind, KEEPING):
            self.complete()
        else:
            self.discard()


class PictureSink(Sink):
    """Pictures under the names of their sources in a folder, or one picture under a given name.

    Args:
        path: the folder, or with `single` the file.
        single: whether `path` is the file.

    Attributes:
        count: pictures written.
    """

    def __init__(self, path: Path, *, single: bool = False) -> None:
        super().__init__(path)
        self.single = single
        self.count = 0

    def write(self, result: Result, picture: np.ndarray) -> None:
        """Write a picture; a format that cannot be written becomes JPEG.

        Raises:
            ValueError: it would take the place of its source.
        """
        frame = result.frame
        path = self.path if self.single else self.path / frame.name
        if path.suffix.lower() not in WRITABLE_SUFFIXES:
            path = path.with_name(f"{path.name}.jpg")
        if frame.path is not None:
            refuse_source(path, frame.path)
        write_atomically(path, encode(picture, path.suffix))
        self.count += 1


class VideoSink(Sink):
    """An mp4 file.

    Args:
        path: ends in .mp4.
        fps: frames per second.
        live: the frames come at the pace of a clock; each is repeated until the next one is there,
            so that the film plays as fast as the world went.
    """

    def __init__(self, path: Path, *, fps: float, live: bool = False) -> None:
        super().__init__(path)
        self.fps, self.live = fps, live
        self.count = 0
        self._checked = -_CHECK_EVERY
        self._writer: cv2.VideoWriter | None = None
        self._aside: Path | None = None
        self._size = (0, 0)
        self._start = 0.0

    def write(self, result: Result, picture: np.ndarray) -> None:
        """Add a frame; the first one sets the size, whose sides become even (the format's rule).

        Raises:
            EndedEarlyError: the disk is nearly full.
        """
        height, width = picture.shape[:2]
        writer = self._writer or self._open((width, height))
        if self.count >= self._checked + _CHECK_EVERY:
            self._check_disk()
        if (width, height) != self._size:
            picture = cv2.resize(picture, self._size, interpolation=cv2.INTER_AREA)
        picture = cv2.copyMakeBorder(
            picture, 0, self._size[1] % 2, 0, self._size[0] % 2, cv2.BORDER_REPLICATE
        )
        picture = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
        due = int((time.monotonic() - self._start) * self.fps) + 1 if self.live else self.count + 1
        while self.count < due:
            writer.write(picture)
            self.count += 1

    def _open(self, size: tuple[int, int]) -> cv2.VideoWriter:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # OpenCV chooses the format by the ending, so that it must stay
        self._aside = self.path.with_name(f".{self.path.stem}.{os.getpid()}.mp4")
        self._size, self._start = size, time.monotonic()
        even = (size[0] + size[0] % 2, size[1] + size[1] % 2)
        self._writer = cv2.VideoWriter(
            str(self._aside), cv2.VideoWriter.fourcc(*"mp4v"), self.fps, even
        )
        if not self._writer.isOpened():
            raise OSError(
                f"this OpenCV cannot write {self.path} ({even[0]}x{even[1]}, mp4v); write pictures "
                "or JSON instead, or install opencv-python from PyPI"
            )
        return self._writer

    def _check_disk(self) -> None:
        """OpenCV does not say that nothing arrives on the disk, and then the film has no end."""
        self._checked = self.count
        if shutil.disk_usage(self.path.parent).free < RESERVE:
            raise EndedEarlyError(
                f"{self.path}: the disk is nearly full; the film ends here and is whole"
            )

    def complete(self) -> None:
        """Finish the film, so that players can open it.

        Raises:
            OSError: not all of it is on the disk; nothing is left then.
        """
        if self._writer is None or self._aside is None:
            return
        try:
            self._writer.release()
            if not _is_whole(self._aside):
                raise OSError(f"{self.path} could not be written to its end; is the disk full?")
            with self._aside.open("rb+") as handle:
                os.fsync(handle.fileno())
            os.replace(self._aside, self.path)
        except BaseException:
            self.discard()
            raise

    def discard(self) -> None:
        """Drop the part that was written."""
        if self._writer is not None:
            self._writer.release()
        if self._aside is not None:
            self._aside.unlink(missing_ok=True)


class SheetSink(Sink):
    """A contact sheet of some of the pictures, each scaled to one size before boxes are drawn.

    Args:
        path: of the picture file.
        class_names: of labels `0..C-1`.
        total: how many frames will come, None if unknown; the sheet shows frames from all over.
        tiles: most pictures on the sheet.
        tile_size: longest side of each in pixels.

    Raises:
        ValueError: the file name ends in a format that cannot be written.
    """

    def __init__(
        self,
        path: Path,
        *,
        class_names: Sequence[str],
        total: int | None,
        tiles: int = 16,
        tile_size: int = 360,
    ) -> None:
        super().__init__(path)
        check_picture_name(path)
        self.class_names, self.tile_size = class_names, tile_size
        many = max(total or 0, tiles)
        self._wanted = {tile * many // tiles for tile in range(tiles)}
        self._seen = 0
        self._pictures: list[np.ndarray] = []

    def write(self, result: Result, picture: np.ndarray) -> None:
        """Keep a frame if it is its turn."""
        if self._seen in self._wanted:
            self._pictures.append(self._tile(result.frame.image, result.detections))
        self._seen += 1

    def _tile(self, image: np.ndarray, found: Detections) -> np.ndarray:
        """Drawn after scaling, so that captions are legible whatever the picture's size."""
        height, width = image.shape[:2]
        scale = self.tile_size / max(height, width)
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
        factors = found.boxes.new_tensor([size[0] / width, size[1] / height]).repeat(2)
        scaled = Detections(found.boxes * factors, found.scores, found.labels)
        small = cv2.resize(image, size, interpolation=interpolation)
        return draw_detections(small, scaled, self.class_names)

    def complete(self) -> None:
        """Write the sheet, if there is a picture to show."""
        if self._pictures:
            write_atomically(self.path, encode(contact_sheet(self._pictures), self.path.suffix))


def picture_or_video_sink(source: Source, out: Path) -> PictureSink | VideoSink:
    """The sink that fits a source.

    Args:
        source: pictures are written as pictures, anything that moves as mp4.
        out: a folder; or a file, ending in .mp4 for a video and as pictures do for one picture.

    Raises:
        ValueError: the ending of `out` does not fit, it would take the place of the source, or may
            not be written.
    """
    suffix = "" if out.is_dir() else out.suffix.lower()
    if isinstance(source, ImageFiles):
        single = suffix in WRITABLE_SUFFIXES and not source.skip_unreadable
        if suffix in IMAGE_SUFFIXES + VIDEO_SUFFIXES and not single:
            raise ValueError(f"these results are pictures and --out is {out}; give a folder")
        check_writable(out if single else out / source.names[0])
        return PictureSink(out, single=single)
    if suffix != ".mp4" and suffix in IMAGE_SUFFIXES + VIDEO_SUFFIXES:
        raise ValueError(f"a video is written as .mp4, --out is {out}; give a folder or a .mp4")
    path = out if suffix == ".mp4" else out / f"{_film_name(source)}.mp4"
    if source.path is not None:
        refuse_source(path, source.path)
    check_writable(path)
    return VideoSink(path, fps=source.fps or DEFAULT_FPS, live=source.live)


def _is_whole(film: Path) -> bool:
    """Whether its frames and their table are there; the size of the frames is written last."""
    try:
        sizes = dict(mp4_boxes(film))
    except (OSError, ValueError):
        return False
    return b"moov" in sizes and sizes.get(b"mdat", 0) > 8


def _film_name(source: Video) -> str:
    if source.path is not None:
        return source.path.stem
    return f"{source.name}-{time.strftime('%Y%m%d-%H%M%S')}"  # no recording replaces another


def check_picture_name(path: Path) -> None:
    """Raise unless a picture can be written under that name.

    Raises:
        ValueError: it ends in something else.
    """
    if path.suffix.lower() not in WRITABLE_SUFFIXES:
        raise ValueError(
            f"cannot write a picture as {path}; its name ends in one of "
            f"{' '.join(WRITABLE_SUFFIXES)}"
        )


def check_output_files(paths: Sequence[Path], source: Source, *inputs: str | Path) -> None:
    """Raise unless these files can be written without destroying an input or one another.

    Args:
        paths: to be written.
        source: of the frames.
        inputs: other files that are read.

    Raises:
        ValueError: one is a folder, a file of the source or an input, is there twice, or may not be
            written.
    """
    read = source.paths if isinstance(source, ImageFiles) else [source.path]
    for path in paths:
        if path.is_dir():
            raise ValueError(f"{path} is a folder; name a file to write")
        check_writable(path)
        for file in [*read, *map(Path, inputs)]:
            if file is not None:
                refuse_source(path, file)
    if len({path.absolute() for path in paths}) < len(paths):
        raise ValueError(f"two results go to one file: {', '.join(map(str, paths))}; name two")


def refuse_source(path: Path, source: Path) -> None:
    """Raise if writing to `path` would destroy the source.

    Raises:
        ValueError: they are the same file.
    """
    if path.exists() and source.exists() and path.samefile(source):
        raise ValueError(f"{path} is the source itself and must not be overwritten; name another")


def encode(picture: np.ndarray, suffix: str) -> bytes:
    """`[H, W, 3]` uint8 RGB as the bytes of a picture file."""
    ok, data = cv2.imencode(suffix.lower(), cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    if not ok:
        raise ValueError(f"this OpenCV cannot write {suffix} pictures; use .jpg or .png")
    return data.tobytes()
