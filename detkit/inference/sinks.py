"""Where results go: pictures, a video, a JSON file, a contact sheet, a window.

A sink is a context manager that is given every frame. A video, JSON or sheet takes its name when
the block ends, also when it ends by Ctrl-C, so that what was done until then can be used. After any
other error there is no such file.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from detkit.files import write_atomically
from detkit.inference.sources import (
    DEFAULT_FPS,
    IMAGE_SUFFIXES,
    VIDEO_SUFFIXES,
    Frame,
    ImageFiles,
    Source,
    Video,
)
from detkit.structures import Detections
from detkit.visualize import contact_sheet, draw_detections

WRITABLE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
_PROBE_WINDOW = "import cv2; cv2.namedWindow('detkit'); cv2.waitKey(1); cv2.destroyAllWindows()"


class Sink:
    """Takes frames in a `with` block, and completes its file at the end of it.

    Attributes:
        path: the file or folder written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, frame: Frame, picture: np.ndarray, found: Detections) -> None:
        """Take one frame.

        Args:
            frame: as it came from its source.
            picture: `[H, W, 3]` uint8 RGB, with the detections drawn.
            found: the detections.
        """
        raise NotImplementedError

    def complete(self) -> None:
        """Put the finished file in its place."""

    def discard(self) -> None:
        """Leave nothing behind."""

    def __enter__(self) -> Sink:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        if kind is None or issubclass(kind, KeyboardInterrupt):
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

    def write(self, frame: Frame, picture: np.ndarray, found: Detections) -> None:
        """Write a picture; a format that cannot be written becomes JPEG.

        Raises:
            ValueError: it would take the place of its source.
        """
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
        self._writer: cv2.VideoWriter | None = None
        self._aside: Path | None = None
        self._size = (0, 0)
        self._start = 0.0

    def write(self, frame: Frame, picture: np.ndarray, found: Detections) -> None:
        """Add a frame; the first one sets the size, whose sides become even (the format's rule)."""
        height, width = picture.shape[:2]
        writer = self._writer or self._open((width, height))
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

    def complete(self) -> None:
        """Finish the film, so that players can open it."""
        if self._writer is None or self._aside is None:
            return
        self._writer.release()
        if not self._aside.is_file() or self._aside.stat().st_size == 0:  # OpenCV says nothing
            self.discard()
            raise OSError(f"nothing of {self.path} could be written; is the disk full?")
        with self._aside.open("rb+") as handle:
            os.fsync(handle.fileno())
        os.replace(self._aside, self.path)

    def discard(self) -> None:
        """Drop the part that was written."""
        if self._writer is not None:
            self._writer.release()
        if self._aside is not None:
            self._aside.unlink(missing_ok=True)


class JsonSink(Sink):
    """All detections as one JSON list, a record each, like COCO results with names.

    A record has "file_name", for videos and cameras "frame" (from 0), "category_id", "category",
    "bbox" (x, y, width, height in pixels) and "score".

    Args:
        path: of the file.
        class_names: of labels `0..C-1`.
        category_ids: of labels `0..C-1`.
    """

    def __init__(
        self, path: Path, *, class_names: Sequence[str], category_ids: Sequence[int]
    ) -> None:
        super().__init__(path)
        self.class_names, self.category_ids = class_names, category_ids
        self._records: list[dict[str, Any]] = []

    def write(self, frame: Frame, picture: np.ndarray, found: Detections) -> None:
        """Keep the detections of a frame."""
        origin: dict[str, Any] = {"file_name": frame.name}
        if frame.path is None:
            origin["frame"] = frame.index
        boxes = found.boxes.double()
        xywh = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1).tolist()
        for box, label, score in zip(
            xywh, found.labels.tolist(), found.scores.tolist(), strict=True
        ):
            self._records.append(
                {
                    **origin,
                    "category_id": int(self.category_ids[label]),
                    "category": self.class_names[label],
                    "bbox": box,
                    "score": score,
                }
            )

    def complete(self) -> None:
        """Write the list."""
        lines = ",\n".join(json.dumps(record, ensure_ascii=False) for record in self._records)
        write_atomically(self.path, f"[\n{lines}\n]\n")


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

    def write(self, frame: Frame, picture: np.ndarray, found: Detections) -> None:
        """Keep a frame if it is its turn."""
        if self._seen in self._wanted:
            self._pictures.append(self._tile(frame.image, found))
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


class Window:
    """A window that shows pictures; q or Esc closes it.

    Args:
        wait: keep each picture until a key is pressed, else go on at once.

    Raises:
        ValueError: no window can be opened here; the message says why and what to do.
    """

    def __init__(self, *, wait: bool) -> None:
        problem = window_problem()
        if problem:
            raise ValueError(problem)
        self.wait = wait
        self.name = "detkit (q to quit)"
        cv2.namedWindow(self.name, cv2.WINDOW_NORMAL | cv2.WINDOW_KEEPRATIO)

    def show(self, picture: np.ndarray) -> bool:
        """Show `[H, W, 3]` uint8 RGB; False when the user wants no more."""
        cv2.imshow(self.name, cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
        while True:
            key = cv2.waitKey(50 if self.wait else 1)
            if key >= 0:
                return key & 0xFF not in (ord("q"), 27)
            if cv2.getWindowProperty(self.name, cv2.WND_PROP_VISIBLE) < 1:  # closed by mouse
                return False
            if not self.wait:
                return True

    def __enter__(self) -> Window:
        return self

    def __exit__(self, *exception: object) -> None:
        cv2.destroyAllWindows()


def picture_or_video_sink(source: Source, out: Path) -> PictureSink | VideoSink:
    """The sink that fits a source.

    Args:
        source: pictures are written as pictures, anything that moves as mp4.
        out: a folder; or a file, ending in .mp4 for a video and as pictures do for one picture.

    Raises:
        ValueError: the ending of `out` does not fit, or it would take the place of the source.
    """
    suffix = "" if out.is_dir() else out.suffix.lower()
    if isinstance(source, ImageFiles):
        single = suffix in WRITABLE_SUFFIXES and not source.skip_unreadable
        if suffix in IMAGE_SUFFIXES + VIDEO_SUFFIXES and not single:
            raise ValueError(f"these results are pictures and --out is {out}; give a folder")
        return PictureSink(out, single=single)
    if suffix != ".mp4" and suffix in IMAGE_SUFFIXES + VIDEO_SUFFIXES:
        raise ValueError(f"a video is written as .mp4, --out is {out}; give a folder or a .mp4")
    path = out if suffix == ".mp4" else out / f"{_film_name(source)}.mp4"
    if source.path is not None:
        refuse_source(path, source.path)
    return VideoSink(path, fps=source.fps or DEFAULT_FPS, live=source.live)


def _film_name(source: Video) -> str:
    if source.path is not None:
        return source.path.stem
    return f"{source.name}-{time.strftime('%Y%m%d-%H%M%S')}"  # no recording replaces another


def window_problem() -> str | None:
    """Why OpenCV cannot open a window here and what to do about it, None where it can.

    Tried in another process: where there is no display, Qt does not raise but ends its process.
    """
    gui = [
        line for line in cv2.getBuildInformation().splitlines() if line.strip().startswith("GUI:")
    ]
    if gui and "NONE" in gui[0]:
        return (
            "--show: this OpenCV was built without windows (opencv-python-headless took the place "
            "of opencv-python); run: pip install --force-reinstall --no-deps opencv-python"
        )
    try:
        probe = subprocess.run(
            [sys.executable, "-c", _PROBE_WINDOW], capture_output=True, timeout=60, check=False
        )
    except subprocess.TimeoutExpired:
        return "--show: opening a window takes too long here; leave out --show and give --out"
    if probe.returncode == 0:
        return None
    return (
        "--show: no window can be opened here (no display?); run it on a desktop, or leave out "
        "--show and give --out"
    )


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


def check_output_file(path: Path, source: Source) -> None:
    """Raise unless a file can be written there without destroying the source.

    Raises:
        ValueError: it is a folder, or a file of the source.
    """
    if path.is_dir():
        raise ValueError(f"{path} is a folder; name a file to write")
    files = source.paths if isinstance(source, ImageFiles) else [source.path]
    for file in files:
        if file is not None:
            refuse_source(path, file)


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
