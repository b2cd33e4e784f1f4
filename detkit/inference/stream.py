"""Detections in every frame of a source, while the next frames are read and the last ones used.

A thread reads and another detects, each a few frames ahead of whoever asks for results. What a
camera or network stream sends meanwhile is dropped, so that results never lag behind the world; of
files nothing is dropped, and the threads wait.

K detections in a frame.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from detkit.inference.sources import ImageFiles, Source, open_source
from detkit.inference.track import Tracker
from detkit.inference.video import Frame
from detkit.registry import suggest
from detkit.structures import Detections

T = TypeVar("T")

AHEAD = 4  # frames of a file that are read before they are needed
MAX_BYTES = 2**28  # of frames under way; a single larger picture goes alone
_PATIENCE = 20  # seconds for a driver that does not return; its thread then ends with the process


class Result(NamedTuple):
    """A frame and what was found in it.

    Attributes:
        frame: as it came from its source.
        detections: in pixels of the frame; where `fresh` is False those of an earlier frame.
        ids: `[K]` int64, which object each detection is; None without a tracker.
        fresh: whether the detector looked at this very frame.
    """

    frame: Frame
    detections: Detections
    ids: Tensor | None = None
    fresh: bool = True


@dataclass
class Meter:
    """How often the detector ran, and how long.

    Attributes:
        runs: how often.
        seconds: of all of them.
        first: seconds of the first, which also allocates and warms up.
    """

    runs: int = 0
    seconds: float = 0.0
    first: float = 0.0

    def add(self, seconds: float) -> None:
        """Count one run."""
        self.first = self.first or seconds
        self.runs += 1
        self.seconds += seconds

    @property
    def rate(self) -> float:
        """Runs per second, without the first one where there are others; 0 before any."""
        if self.runs > 1:
            return (self.runs - 1) / max(self.seconds - self.first, 1e-9)
        return 1 / self.seconds if self.seconds else 0.0


class Stream:
    """An iterator of `Result`; `detkit.load(...).stream(source)` makes one.

    It ends with its source, by `close`, at the end of a `with` block, or when nobody holds it any
    more, as after a `break` out of `for ... in predictor.stream(...)`. An error of the source or
    of the detector reaches whoever iterates, after the results of the frames before.

    Args:
        predict: `[H, W, 3]` uint8 RGB to detections.
        source: read in a thread from now on, and closed at the end.
        every: the detector looks at every so many frames of the source; between them its last
            detections are given again.
        tracker: numbers the objects.

    Attributes:
        source: as given.
        meter: how often the detector ran.

    Raises:
        ValueError: `every` is less than 1, or more than that for pictures.
    """

    def __init__(
        self,
        predict: Callable[[np.ndarray], Detections],
        source: Source,
        *,
        every: int = 1,
        tracker: Tracker | None = None,
    ) -> None:
        if every < 1:
            raise ValueError(f"every is {every}; the detector looks at every 1st, 2nd, ... frame")
        if every > 1 and isinstance(source, ImageFiles):
            raise ValueError(
                f"every is {every} and the source is pictures; one of them does not show what was "
                "found in another: leave it out, or give a video"
            )
        self.source, self.meter = source, Meter()
        live = not isinstance(source, ImageFiles) and source.live
        self._room = Room(None if live else MAX_BYTES)
        self._frames: Channel[Frame] = Channel(1 if live else AHEAD, newest=live)
        self._results: Channel[Result] = Channel(1 if live else AHEAD)
        detect = _Detector(predict, every, tracker, self.meter)
        # The threads must not know this object: they end when nobody else does
        threads = (
            _start(_read_frames, source, self._room, self._frames),
            _start(_detect_in, self._frames, self._results, detect),
        )
        self._stop = weakref.finalize(
            self, _stop, source, self._room, self._frames, self._results, threads
        )
        self._taken = 0  # bytes of the frame that the caller has now

    @property
    def dropped(self) -> int:
        """Frames of a camera or network stream that came too fast to be looked at."""
        return self._frames.dropped

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> Result:
        self._room.leave(self._taken)
        self._taken = 0
        try:
            result = self._results.take()
        except BaseException:
            self.close()
            raise
        if result is None:
            self.close()
            raise StopIteration
        self._taken = result.frame.image.nbytes
        return result

    def close(self) -> None:
        """End both threads and close the source; a network stream may take seconds to notice."""
        self._stop()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class Channel(Generic[T]):
    """A few things on their way from one thread to another.

    Args:
        size: how many wait at most.
        newest: let go of the oldest where there is no room, instead of waiting.

    Attributes:
        dropped: how many were let go.
    """

    def __init__(self, size: int, *, newest: bool = False) -> None:
        self.dropped = 0
        self._newest = newest
        self._size = size
        self._waiting: deque[T] = deque()
        self._changed = threading.Condition()
        self._ended = self._abandoned = False
        self._error: BaseException | None = None

    def put(self, item: T) -> bool:
        """Hand over; False when the receiver wants no more."""
        with self._changed:
            if self._newest and len(self._waiting) >= self._size:
                self._waiting.popleft()
                self.dropped += 1
            self._changed.wait_for(lambda: len(self._waiting) < self._size or self._abandoned)
            if not self._abandoned:
                self._waiting.append(item)
                self._changed.notify_all()
            return not self._abandoned

    def take(self) -> T | None:
        """The next one, None at the end.

        Raises:
            BaseException: what ended the sender, after everything that it had sent.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._ended or self._abandoned)
            if self._waiting and not self._abandoned:
                self._changed.notify_all()
                return self._waiting.popleft()
            error, self._error = self._error, None
        if error is None or self._abandoned:
            return None
        try:
            raise error
        finally:
            del error  # its traceback holds this frame: a circle that would keep frames alive

    @contextmanager
    def sending(self) -> Iterator[None]:
        """A block in which things are put; how it ends, the receiver is told."""
        try:
            yield
        except BaseException as error:
            self._error = error
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def abandon(self) -> None:
        """Take no more: what waits is forgotten, and a sender that waits goes on."""
        with self._changed:
            self._abandoned = True
            self._waiting.clear()
            self._changed.notify_all()


class Room:
    """How many bytes of pictures are under way at once.

    Args:
        limit: bytes; one picture always has room. None for any number.
    """

    def __init__(self, limit: int | None) -> None:
        self._limit = limit
        self._taken = 0
        self._closed = False
        self._changed = threading.Condition()

    def enter(self, size: int) -> None:
        """Wait until there is room, or nobody cares any more."""
        if self._limit is None:
            return
        limit = self._limit
        with self._changed:
            self._changed.wait_for(
                lambda: self._closed or not self._taken or self._taken + size <= limit
            )
            self._taken += size

    def leave(self, size: int) -> None:
        """Make room for others."""
        with self._changed:
            self._taken -= size
            self._changed.notify_all()

    def close(self) -> None:
        """Let in whoever waits."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()


class _Detector:
    """What happens to a frame: it is looked at, or what was found before is found again."""

    def __init__(
        self,
        predict: Callable[[np.ndarray], Detections],
        every: int,
        tracker: Tracker | None,
        meter: Meter,
    ) -> None:
        self.predict, self.every, self.tracker, self.meter = predict, every, tracker, meter
        self._last: Result | None = None

    def __call__(self, frame: Frame) -> Result:
        last = self._last
        if last is not None and frame.index < last.frame.index + self.every:
            return Result(frame, last.detections, last.ids, fresh=False)
        start = time.perf_counter()
        found = self.predict(frame.image)
        self.meter.add(time.perf_counter() - start)
        ids = None
        if self.tracker is not None:
            passed = 1 if last is None else frame.index - last.frame.index
            ids = self.tracker.update(found, frames=passed)
        self._last = Result(frame, found, ids)
        return self._last


def open_stream(
    predict: Callable[[np.ndarray], Detections],
    source: Source | str | os.PathLike[str] | int,
    *,
    class_names: Sequence[str],
    every: int = 1,
    track: bool = False,
    classes: Sequence[str] | None = None,
) -> Stream:
    """What `Predictor.stream` does, for anything that finds objects.

    Args:
        predict: `[H, W, 3]` uint8 RGB to detections.
        source: as for `open_source`, or what that returned.
        class_names: of labels `0..C-1`.
        every: see `Stream`.
        track: number the objects.
        classes: names of the only classes to report.

    Raises:
        ValueError: a source that cannot be used, or another setting that is none.
    """
    detect = predict
    if classes is not None:
        labels = torch.tensor(class_labels(classes, class_names), dtype=torch.int64)

        def detect(image: np.ndarray) -> Detections:
            found = predict(image)
            return found[torch.isin(found.labels, labels)]

    opened = source if isinstance(source, Source) else open_source(source)
    try:
        return Stream(detect, opened, every=every, tracker=Tracker() if track else None)
    except ValueError:
        opened.close()
        raise


def class_labels(names: Sequence[str], class_names: Sequence[str]) -> list[int]:
    """Labels of the classes of these names.

    Raises:
        ValueError: there is no such class; the message has close matches and all names.
    """
    for name in names:
        if name not in class_names:
            raise ValueError(f"unknown class {name!r}; {suggest(name, class_names)}")
    return [label for label, name in enumerate(class_names) if name in names]


def _start(target: Callable[..., None], *arguments: object) -> threading.Thread:
    thread = threading.Thread(
        target=target, args=arguments, name=f"detkit{target.__name__}", daemon=True
    )
    thread.start()
    return thread


def _read_frames(source: Source, room: Room, frames: Channel[Frame]) -> None:
    with frames.sending():
        for frame in source:
            room.enter(frame.image.nbytes)
            if not frames.put(frame):
                break


def _detect_in(frames: Channel[Frame], results: Channel[Result], detect: _Detector) -> None:
    with results.sending():
        try:
            while (frame := frames.take()) is not None:
                if not results.put(detect(frame)):
                    break
        finally:
            frames.abandon()  # nobody takes them any more: the reader ends


def _stop(
    source: Source,
    room: Room,
    frames: Channel[Frame],
    results: Channel[Result],
    threads: Sequence[threading.Thread],
) -> None:
    results.abandon()
    frames.abandon()
    room.close()
    source.close()
    for thread in threads:
        if thread is not threading.current_thread():  # where the garbage was collected
            thread.join(_PATIENCE)
