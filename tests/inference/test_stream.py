"""Order, dropping, coming back and ending of streams, on sources whose every move is known."""

from __future__ import annotations

import gc
import http.server
import logging
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

import detkit
from detkit.inference.sources import ImageFiles, open_source
from detkit.inference.stream import Channel, Room, Stream, class_labels, open_stream
from detkit.inference.track import Tracker
from detkit.inference.video import EndedEarlyError, Reconnect, Video
from detkit.structures import Detections

SOON = Reconnect(first=0.02, factor=2, longest=0.1, limit=0.5)


@pytest.fixture(autouse=True)
def _no_thread_left() -> Iterator[None]:
    """Whatever a test does to a stream, its threads are gone afterwards."""
    yield
    limit = time.monotonic() + 5
    while any(thread.name.startswith("detkit") for thread in threading.enumerate()):
        assert time.monotonic() < limit, threading.enumerate()
        gc.collect()
        time.sleep(0.01)


def frame_of(number: int) -> np.ndarray:
    """A frame that holds its number."""
    return np.full((8, 8, 3), number, np.uint8)


class FakeCapture:
    """A camera: gives `frames`, then nothing; `pause` seconds each, as a clock would."""

    def __init__(
        self, frames: list[np.ndarray], *, pause: float = 0.0, opened: bool = True
    ) -> None:
        self.frames, self.pause, self.opened = iter(frames), pause, opened
        self.released = False

    def isOpened(self) -> bool:
        return self.opened

    def get(self, key: int, /) -> float:
        return 0.0

    def set(self, key: int, value: float, /) -> bool:
        return True

    def read(self) -> tuple[bool, Any]:
        assert not self.released
        time.sleep(self.pause)
        image = next(self.frames, None)
        return image is not None, image

    def release(self) -> None:
        self.released = True


def camera(*captures: FakeCapture, reconnect: Reconnect = SOON) -> Video:
    """A camera that opens as these captures, one after the other, and then not at all."""
    ready = iter(captures)
    closed = FakeCapture([], opened=False)
    return Video(
        0, name="camera-0", reconnect=reconnect, open_capture=lambda _: next(ready, closed)
    )


def write_video(path: Path, frames: int) -> Path:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 12.5, (64, 48))
    for index in range(frames):
        writer.write(np.full((48, 64, 3), 8 * index, np.uint8))
    writer.release()
    return path


def bright(image: np.ndarray) -> Detections:
    """One detection, whose score is the brightness."""
    score = torch.tensor([float(image.mean()) / 255])
    return Detections(torch.tensor([[0.0, 0, 4, 4]]), score, torch.tensor([1]))


# ---------------------------------------------------------------------------------- files, in order


def test_file_drops_nothing_and_keeps_the_order(tmp_path: Path) -> None:
    source = open_source(write_video(tmp_path / "clip.mp4", 30))
    with Stream(bright, source) as stream:
        results = []
        for result in stream:
            time.sleep(0.002)  # slower than both threads
            results.append(result)
    assert [result.frame.index for result in results] == list(range(30))
    scores = [float(result.detections.scores) for result in results]
    own = [float(result.frame.image.mean()) / 255 for result in results]
    assert scores == pytest.approx(own) and scores == sorted(set(scores))
    assert stream.dropped == 0 and stream.meter.runs == 30
    assert all(result.fresh and result.ids is None for result in results)
    assert list(stream) == []  # it is over


def test_predictor_has_a_stream_of_any_source(tiny_checkpoint: Path, tmp_path: Path) -> None:
    predictor = detkit.load(tiny_checkpoint, device="cpu")
    rng = np.random.default_rng(0)
    for name in ("b.png", "a.png", "below/c.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        cv2.imwrite(str(tmp_path / name), rng.integers(0, 256, (60, 90, 3), dtype=np.uint8))
    names = [frame.name for frame, *_ in predictor.stream(tmp_path)]
    below = [frame.name for frame, *_ in predictor.stream(str(tmp_path / "**" / "*.png"))]
    assert names == ["a.png", "b.png"] and below == ["a.png", "b.png", "c.png"]
    everything = predictor(tmp_path / "a.png", score_threshold=0.3)
    label = int(everything.labels[0])
    ((_, found, ids, _),) = predictor.stream(
        tmp_path / "a.png", score_threshold=0.3, classes=[predictor.class_names[label]], track=True
    )
    expected = everything[everything.labels == label]
    assert 0 < len(found) < len(everything) and torch.equal(found.boxes, expected.boxes)
    assert ids is not None and ids.tolist() == list(range(1, len(found) + 1))
    with pytest.raises(ValueError, match=r"unknown class 'dgo'; did you mean 'dog'\?"):
        predictor.stream(tmp_path, classes=["dgo"])
    with pytest.raises(ValueError, match="no file or folder no/such"):
        predictor.stream("no/such")


def test_detections_between_looks_are_those_of_the_last_look(tmp_path: Path) -> None:
    source = open_source(write_video(tmp_path / "clip.mp4", 8))
    results = list(Stream(bright, source, every=3, tracker=Tracker()))
    assert [result.fresh for result in results] == [index % 3 == 0 for index in range(8)]
    scores = [round(float(result.detections.scores) * 255 / 8) for result in results]
    assert scores == [0, 0, 0, 3, 3, 3, 6, 6]
    assert [result.ids.tolist() for result in results if result.ids is not None] == [[1]] * 8


def test_settings_that_make_no_sense_are_refused(tmp_path: Path) -> None:
    for every, message in ((0, "every is 0"), (2, "every is 2 and the source is pictures")):
        with pytest.raises(ValueError, match=message):
            open_stream(bright, ImageFiles([tmp_path]), class_names=(), every=every)


def test_names_of_classes_to_labels() -> None:
    names = ("cat", "dog", "cat")
    assert class_labels(["cat"], names) == [0, 2] and class_labels([], names) == []


# ------------------------------------------------------------------------------------------- ending


def endless() -> Video:
    return camera(FakeCapture([frame_of(1)] * 100_000, pause=0.001))


def test_break_ends_everything() -> None:
    source = endless()
    for result in open_stream(bright, source, class_names=()):
        if result.frame.index > 3:
            break
    del result
    assert source._capture.released  # type: ignore[attr-defined]


@pytest.mark.parametrize("error", [ValueError("of the consumer"), KeyboardInterrupt()])
def test_error_in_the_consumer_ends_everything(error: BaseException) -> None:
    source = endless()
    with pytest.raises(type(error)), open_stream(bright, source, class_names=()) as stream:
        for _ in stream:
            raise error
    assert source._capture.released  # type: ignore[attr-defined]


def test_close_wakes_who_waits() -> None:
    source = endless()
    stream = Stream(bright, source)
    next(stream)
    stream.close()
    stream.close()  # again: nothing to do
    with pytest.raises(StopIteration):
        next(stream)


def test_error_in_the_detector_comes_after_what_was_found_before(tmp_path: Path) -> None:
    def fail(image: np.ndarray) -> Detections:
        if image.mean() > 20:  # the fourth
            raise FloatingPointError("boxes")
        return bright(image)

    taken = []
    with pytest.raises(FloatingPointError, match="boxes"):
        for result in Stream(fail, open_source(write_video(tmp_path / "clip.mp4", 30))):
            taken.append(result.frame.index)
    assert taken == [0, 1, 2]


def test_error_in_the_decoder_comes_after_what_was_found_before() -> None:
    class Broken(FakeCapture):
        def read(self) -> tuple[bool, Any]:
            image = next(self.frames, None)
            if image is None:
                raise cv2.error("the driver")
            return True, image

    taken = []
    with pytest.raises(cv2.error, match="the driver"):
        for result in Stream(bright, camera(Broken([frame_of(1)]))):
            taken.append(result.frame.index)
    assert taken == [0]


def test_ctrl_c_while_waiting_ends_everything() -> None:
    slow = threading.Event()

    def wait(image: np.ndarray) -> Detections:
        slow.wait(0.3)
        return bright(image)

    stream = Stream(wait, endless())
    import _thread

    timer = threading.Timer(0.1, _thread.interrupt_main)
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        next(stream)
        time.sleep(5)
    slow.set()
    stream.close()


def test_stream_that_nobody_asks_ends_with_its_owner() -> None:
    stream = Stream(bright, endless())
    del stream  # what the fixture looks for is gone


# ------------------------------------------------------------------------ dropping, lost, back


def test_live_frames_that_come_too_fast_are_dropped_and_the_newest_counts() -> None:
    source = camera(FakeCapture([frame_of(i) for i in range(100)], pause=0.004))
    indices = []
    with pytest.raises(EndedEarlyError), Stream(bright, source) as stream:
        for result in stream:
            time.sleep(0.04)  # ten come meanwhile
            indices.append(result.frame.index)
    assert indices == sorted(set(indices)) and 4 <= len(indices) <= 30
    assert len(indices) + stream.dropped == 100 and indices[-1] == 99
    gaps = np.diff(indices)
    assert gaps.max() < 40  # what is shown is never much older than now


def test_lost_camera_is_found_again(caplog: pytest.LogCaptureFixture) -> None:
    first, empty = FakeCapture([frame_of(1)] * 3), FakeCapture([], opened=False)
    source = camera(first, empty, FakeCapture([frame_of(2)] * 2))
    taken = []
    with caplog.at_level(logging.WARNING), pytest.raises(EndedEarlyError, match="camera 0 is lost"):
        for frame in source:
            taken.append((frame.index, int(frame.image[0, 0, 0])))
    assert taken == [(0, 1), (1, 1), (2, 1), (3, 2), (4, 2)]
    assert first.released and source.reconnected == 1
    assert caplog.messages[0] == "camera 0 is lost; attempt 1 in 0.0 s"
    assert caplog.messages[1] == "camera 0 is lost; attempt 2 in 0.0 s"
    assert caplog.messages[2].startswith("camera 0 is back after 0.")


def test_camera_that_never_comes_back_is_an_error_after_the_limit() -> None:
    source = camera(FakeCapture([frame_of(1)]), reconnect=Reconnect(0.02, 2, 0.1, limit=0.3))
    start = time.monotonic()
    with pytest.raises(EndedEarlyError) as caught:
        list(source)
    assert 0.25 < time.monotonic() - start < 3
    assert str(caught.value).startswith("camera 0 is lost: no frame in 0.3 s and ")
    once = camera(FakeCapture([frame_of(1)]), reconnect=Reconnect(limit=0))
    with pytest.raises(EndedEarlyError, match="no frame in 0 s and 0 attempts"):
        list(once)


def test_waits_grow_up_to_the_longest() -> None:
    waits = Reconnect(first=1, factor=3, longest=5).waits()
    assert [next(waits) for _ in range(4)] == [1, 3, 5, 5]


def test_close_ends_the_search() -> None:
    patient = Reconnect(first=30, limit=300)
    stream = Stream(bright, camera(FakeCapture([frame_of(1)]), reconnect=patient))
    next(stream)
    time.sleep(0.05)  # now it waits for the first attempt
    start = time.monotonic()
    stream.close()
    assert time.monotonic() - start < 2


# --------------------------------------------------------------------------------------- a real one


class MotionJpeg:
    """A server of a camera that shows how many frames it has sent, on a port that it keeps."""

    def __init__(self) -> None:
        self.sent, self.port = 0, 0
        self._server: http.server.ThreadingHTTPServer | None = None

    def start(self) -> None:
        """Begin, or begin again."""
        camera = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
                self.end_headers()
                while camera._server is self.server:
                    data = cv2.imencode(".jpg", frame_of(camera.sent))[1].tobytes()
                    head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(data)}"
                    try:
                        self.wfile.write(f"{head}\r\n\r\n".encode() + data + b"\r\n")
                    except OSError:
                        return
                    camera.sent = min(camera.sent + 1, 255)
                    time.sleep(0.02)

            def log_message(self, *arguments: object) -> None: ...

        http.server.ThreadingHTTPServer.allow_reuse_address = True
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        """Cut every connection and refuse new ones."""
        server, self._server = self._server, None
        if server is not None:
            server.shutdown()
            server.server_close()


@pytest.fixture
def motion_jpeg() -> Iterator[MotionJpeg]:
    server = MotionJpeg()
    server.start()
    yield server
    server.stop()


def test_stream_that_is_cut_comes_back_and_loses_only_what_was_sent_meanwhile(
    motion_jpeg: MotionJpeg, caplog: pytest.LogCaptureFixture
) -> None:
    url = f"http://user:secret@127.0.0.1:{motion_jpeg.port}/camera"
    source = open_source(url, reconnect=Reconnect(first=0.1, limit=10))
    assert isinstance(source, Video) and source.live and source.announced is None
    seen: list[int] = []
    cut_at, back_at = 0, 0
    with Stream(bright, source) as stream:
        for result in stream:
            seen.append(round(float(result.detections.scores) * 255))
            if len(seen) == 10:
                motion_jpeg.stop()
                cut_at = motion_jpeg.sent
                motion_jpeg.sent = back_at = cut_at + 50  # sent to nobody
                threading.Timer(0.5, motion_jpeg.start).start()
            if cut_at and seen[-1] >= back_at + 10:
                break
    del result
    assert source.reconnected == 1
    steps = np.diff(seen)
    assert (steps > -2).all()  # JPEG may be off by one
    after = [value for value in seen if value >= back_at - 1]
    assert after[0] <= back_at + 5 and max(value for value in seen if value < back_at - 1) < cut_at
    assert any("is back after" in message for message in caplog.messages)
    assert "secret" not in caplog.text and "user:***@" in caplog.text


# ------------------------------------------------------------------------------ between the threads


def run(target: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=target, daemon=True)
    thread.start()
    return thread


def test_channel_holds_back_a_fast_sender() -> None:
    channel: Channel[int] = Channel(2)
    sent: list[int] = []

    def send() -> None:
        with channel.sending():
            for number in range(5):
                channel.put(number)
                sent.append(number)

    thread = run(send)
    time.sleep(0.1)
    assert sent == [0, 1] and channel.dropped == 0
    assert [channel.take() for _ in range(6)] == [0, 1, 2, 3, 4, None]
    thread.join(5)


def test_channel_of_the_newest_never_waits() -> None:
    channel: Channel[int] = Channel(1, newest=True)
    assert all(channel.put(number) for number in range(5))
    assert channel.dropped == 4 and channel.take() == 4


def test_channel_that_nobody_takes_from_lets_its_sender_go() -> None:
    channel: Channel[int] = Channel(1)
    answers: list[bool] = []
    thread = run(lambda: answers.extend(channel.put(number) for number in range(2)))
    time.sleep(0.05)
    channel.abandon()
    thread.join(5)
    assert answers == [True, False] and channel.take() is None


def test_room_is_for_many_small_pictures_or_one_large() -> None:
    room = Room(100)
    room.enter(60)
    entered = threading.Event()
    thread = run(lambda: (room.enter(1000), entered.set()))
    assert not entered.wait(0.05)
    room.leave(60)
    assert entered.wait(5)
    thread.join(5)
    waiting = run(lambda: room.enter(1))
    room.close()
    waiting.join(5)
    assert not waiting.is_alive()
