"""Frames of a video file, a camera or a network stream, which comes back after it was cut.

H and W are the height and width of a frame as it is shown: a film that a telephone took upright is
upright here.
"""

from __future__ import annotations

import logging
import math
import re
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np

logger = logging.getLogger(__name__)

SILENCE_SECONDS = 5  # of a network stream, after which it counts as cut; OpenCV waits 30
_MP4_SUFFIXES = (".m4v", ".mov", ".mp4")


class EndedEarlyError(OSError):
    """The work cannot go on, and what was done until then is whole and is kept."""


@dataclass(frozen=True, slots=True)
class Frame:
    """One picture of a source.

    Attributes:
        image: `[H, W, 3]` uint8, RGB.
        name: of its file, or of the video or camera it is from.
        index: its place in the source, from 0; of a camera also those count that nobody took.
        path: of its file, None for frames of a video or camera.
    """

    image: np.ndarray
    name: str
    index: int
    path: Path | None = None


class Capture(Protocol):
    """What is asked of `cv2.VideoCapture`."""

    def isOpened(self) -> bool: ...  # noqa: D102
    def get(self, key: int, /) -> float: ...  # noqa: D102
    def set(self, key: int, value: float, /) -> bool: ...  # noqa: D102
    def read(self) -> tuple[bool, Any]: ...  # noqa: D102
    def release(self) -> None: ...  # noqa: D102


OpenCapture = Callable[[str | int], Capture]


@dataclass(frozen=True, slots=True)
class Reconnect:
    """How a lost camera or stream is sought: at first soon, then less and less often.

    Attributes:
        first: seconds before the first attempt.
        factor: by which every wait is longer than the one before.
        longest: seconds that a wait lasts at most.
        limit: seconds without a frame after which it is gone for good; 0 for no attempt.
    """

    first: float = 0.5
    factor: float = 2.0
    longest: float = 2.0
    limit: float = 60.0

    def waits(self) -> Iterator[float]:
        """Seconds before each attempt, without end."""
        wait = self.first
        while True:
            yield min(wait, self.longest)
            wait *= self.factor


class Video:
    """Frames that OpenCV decodes. It is open from construction until `close`; iterate once.

    A file ends where it ends. A camera or stream that gives nothing more is opened again, with a
    line in the log for every attempt. `close` may be called from another thread.

    Args:
        address: the path of a file, a URL, or the index of a camera.
        name: for people and for files made from it.
        path: of the file, None for cameras and streams.
        reconnect: how long a lost camera or stream is sought.
        open_capture: what opens the address, `cv2.VideoCapture` unless told otherwise.

    Attributes:
        fps: frames per second as the source says, None where it says nothing sensible.
        announced: frames that a file says it has, None where unknown; it may be wrong.
        live: whether frames pass at their own pace, whether or not somebody reads them.
        reconnected: how often it was lost and found again.

    Raises:
        ValueError: it cannot be opened, or not one frame comes out of it.
    """

    def __init__(
        self,
        address: str | int,
        *,
        name: str,
        path: Path | None = None,
        reconnect: Reconnect | None = None,
        open_capture: OpenCapture | None = None,
    ) -> None:
        self.address, self.name, self.path = address, name, path
        self.reconnect = reconnect or Reconnect()
        self.reconnected = 0
        self._open_capture = open_capture or _open_capture
        self._busy, self._closed = threading.Lock(), threading.Event()
        self._capture = self._open()
        if not self._capture.isOpened() or self._is_text():
            self.close()
            raise ValueError(_cannot_open(address))
        fps = self._capture.get(cv2.CAP_PROP_FPS)
        self.fps = fps if math.isfinite(fps) and 0 < fps <= 1000 else None
        count = self._capture.get(cv2.CAP_PROP_FRAME_COUNT)
        recorded = path is not None or str(address).startswith(("http://", "https://"))
        self.announced = int(count) if recorded and 0 < count < 1e9 else None
        self.live = path is None and self.announced is None
        self._first = self._read()  # whoever opens a source hears of a broken one at once
        if self._first is None:
            self.close()
            raise ValueError(f"{name} opens, but gives no frame; check that it plays elsewhere")

    def __iter__(self) -> Iterator[Frame]:
        image, index = self._first, 0
        self._first = None
        while image is not None:
            yield Frame(image, self.name, index)
            image, index = self._read(), index + 1
            if image is None and self.live and not self._closed.is_set():
                image = self._find_again()
        if self.announced is not None and index < self.announced and not self._closed.is_set():
            logger.warning("%s ends after %d of %d frames", self.name, index, self.announced)

    def _open(self) -> Capture:
        capture = self._open_capture(self.address)
        if isinstance(self.address, int):
            capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)  # the newest frame, not the oldest waiting
        capture.set(cv2.CAP_PROP_ORIENTATION_AUTO, 1)
        return capture

    def _read(self) -> np.ndarray | None:
        with self._busy:
            if self._closed.is_set():
                return None
            ok, image = self._capture.read()
            if self._closed.is_set():  # `close` did not wait for us
                self._capture.release()
                return None
        return cv2.cvtColor(image, cv2.COLOR_BGR2RGB) if ok and image is not None else None

    def _find_again(self) -> np.ndarray | None:
        """The first frame after a loss; None where the source was closed meanwhile.

        Raises:
            EndedEarlyError: nothing came before the limit.
        """
        lost, where = time.monotonic(), shown_address(self.address)
        limit = self.reconnect.limit
        for attempt, wait in enumerate(self.reconnect.waits(), start=1):
            left = lost + limit - time.monotonic()
            if left <= 0:
                raise EndedEarlyError(
                    f"{where} is lost: no frame in {limit:g} s and {attempt - 1} attempts; "
                    "what came before is kept"
                )
            wait = min(wait, left)
            logger.warning("%s is lost; attempt %d in %.1f s", where, attempt, wait)
            if self._closed.wait(wait):
                return None
            with self._busy:
                self._capture.release()
                self._capture = self._open()
            if self._capture.isOpened() and (image := self._read()) is not None:
                self.reconnected += 1
                logger.warning("%s is back after %.1f s", where, time.monotonic() - lost)
                return image
        raise AssertionError("the waits never end")

    def _is_text(self) -> bool:
        """Whether FFmpeg plays a text file as a film of a terminal."""
        return self._capture.get(cv2.CAP_PROP_FOURCC) == cv2.VideoWriter.fourcc(*"ansi")

    def close(self) -> None:
        """Let go of the file or camera; where a frame is being read, when that is over."""
        self._closed.set()
        if self._busy.acquire(blocking=False):
            try:
                self._capture.release()
            finally:
                self._busy.release()

    def __enter__(self) -> Video:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def shown_address(address: str | int) -> str:
    """An address for people, without the password that it may hold."""
    if isinstance(address, int):
        return f"camera {address}"
    return re.sub(r"(://[^/@:]*):[^/@]*@", r"\1:***@", address)


def _open_capture(address: str | int) -> Capture:
    if isinstance(address, str) and "://" in address and _has_ffmpeg():
        patience = 1000 * SILENCE_SECONDS
        limits = [
            cv2.CAP_PROP_OPEN_TIMEOUT_MSEC,
            patience,
            cv2.CAP_PROP_READ_TIMEOUT_MSEC,
            patience,
        ]
        return cv2.VideoCapture(address, cv2.CAP_FFMPEG, limits)
    return cv2.VideoCapture(address)


def _has_ffmpeg() -> bool:
    return bool(cv2.videoio_registry.hasBackend(cv2.CAP_FFMPEG))


def _cannot_open(address: str | int) -> str:
    if isinstance(address, int):
        return (
            f"cannot open camera {address}: there is none, another program has it, or you may not "
            "use it; try another index, or give a file"
        )
    if "://" in address:
        return (
            f"cannot open stream {shown_address(address)}; check the address, the network and the "
            "password"
        )
    path = Path(address)
    if path.stat().st_size == 0:
        return f"cannot read {address}: the file is empty"
    if path.suffix.lower() in _MP4_SUFFIXES and _is_cut_off(path):
        return (
            f"cannot read {address}: it is cut off, its end with the table of frames is missing; "
            "copy it again"
        )
    return f"cannot read {address}: neither a picture nor a video that OpenCV can decode"


def mp4_boxes(path: Path) -> Iterator[tuple[bytes, int]]:
    """Type and size of the outermost boxes of an MP4 file (ISO/IEC 14496-12, section 4.2).

    Raises:
        ValueError: a box claims more than the file holds, or less than its own header.
    """
    end, position = path.stat().st_size, 0
    with path.open("rb") as handle:
        while position < end:
            handle.seek(position)
            header = handle.read(16)
            if len(header) < 8:
                raise ValueError(f"{path}: {len(header)} bytes at its end are no box")
            size, kind = struct.unpack(">I4s", header[:8])
            if size == 1 and len(header) == 16:  # too large for 32 bits
                (size,) = struct.unpack(">Q", header[8:])
            elif size == 0:  # up to the end
                size = end - position
            if size < 8 or position + size > end:
                raise ValueError(f"{path}: {kind!r} claims {size} of {end - position} bytes")
            yield kind, size
            position += size


def _is_cut_off(path: Path) -> bool:
    """Whether an MP4 begins as one and has no table of frames."""
    kinds = []
    try:
        for kind, _ in mp4_boxes(path):
            kinds.append(kind)
    except ValueError:
        pass
    return kinds[:1] == [b"ftyp"] and b"moov" not in kinds
