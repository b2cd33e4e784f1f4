"""What is on the disk after a sink, and what is not after a failure."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from detkit.inference import sinks
from detkit.inference.sinks import (
    PictureSink,
    SheetSink,
    Sink,
    VideoSink,
    check_output_files,
    picture_or_video_sink,
)
from detkit.inference.sources import ImageFiles, open_source
from detkit.inference.stream import Result
from detkit.inference.video import EndedEarlyError, Frame, Video
from detkit.signals import Terminated
from detkit.structures import Detections

NAMES = ("cat", "Füße")
ROOT = Path(__file__).resolve().parents[2]


def frame_of(value: int, *, index: int = 0, size: tuple[int, int] = (48, 64)) -> Frame:
    """A frame of a video, of one grey."""
    return Frame(np.full((*size, 3), value, np.uint8), "clip.mp4", index)


def feed(sink: Sink, frames: list[Frame], error: BaseException | None = None) -> None:
    """Write frames into a sink and leave its block, by an error if there is one."""
    with sink:
        for frame in frames:
            sink.write(Result(frame, Detections.empty()), frame.image)
        if error is not None:
            raise error


def frames_in(path: Path) -> list[np.ndarray]:
    capture = cv2.VideoCapture(str(path))
    frames = []
    while (result := capture.read())[0]:
        frames.append(result[1])
    return frames


# ---------------------------------------------------------------------------------------- pictures


@pytest.mark.parametrize(
    ("name", "written"),
    [("a.png", "a.png"), ("a.JPG", "a.JPG"), ("a.webp", "a.webp"), ("a.gif", "a.gif.jpg"),
     ("photo", "photo.jpg")],
)  # fmt: skip
def test_pictures_keep_their_names(tmp_path: Path, name: str, written: str) -> None:
    picture = np.zeros((40, 50, 3), np.uint8)
    picture[...] = (250, 20, 10)
    source = tmp_path / "in" / name
    source.parent.mkdir()
    source.write_bytes(b"the source")
    sink = PictureSink(tmp_path / "out" / "below")
    with sink:
        sink.write(Result(Frame(picture, name, 0, source), Detections.empty()), picture)
    assert os.listdir(sink.path) == [written] and sink.count == 1
    read = cv2.imread(str(sink.path / written))[..., ::-1]
    assert read.shape == (40, 50, 3) and np.abs(read.astype(int) - picture).max() < 8


def test_a_source_is_never_overwritten(tmp_path: Path) -> None:
    source = tmp_path / "a.png"
    source.write_bytes(b"the source")
    (tmp_path / "link").symlink_to(tmp_path)
    frame = Frame(np.zeros((4, 4, 3), np.uint8), "a.png", 0, source)
    for sink in (
        PictureSink(tmp_path),
        PictureSink(tmp_path / "link"),
        PictureSink(tmp_path / "." / "a.png", single=True),
    ):
        with pytest.raises(ValueError, match="is the source itself"), sink:
            sink.write(Result(frame, Detections.empty()), frame.image)
    assert source.read_bytes() == b"the source"
    with pytest.raises(ValueError, match="is the source itself"):
        check_output_files([source], ImageFiles([tmp_path / "b.png", source]))
    other = ImageFiles([tmp_path / "b.png"])
    with pytest.raises(ValueError, match="is the source itself"):
        check_output_files([source], other, source)
    with pytest.raises(ValueError, match="is a folder; name a file"):
        check_output_files([tmp_path], other)
    with pytest.raises(ValueError, match="two results go to one file"):
        check_output_files([tmp_path / "new.json"] * 2, other)
    with pytest.raises(ValueError, match="is a file, not a folder"):
        check_output_files([source / "new.json"], other)
    check_output_files([tmp_path / "new.json"], other)


# ------------------------------------------------------------------------------------------- video


def test_video_keeps_frames_size_and_pace(tmp_path: Path) -> None:
    path = tmp_path / "out" / "clip.mp4"
    frames = [frame_of(20 * index, index=index) for index in range(10)]
    feed(VideoSink(path, fps=12.5), frames)
    assert os.listdir(path.parent) == ["clip.mp4"]
    assert cv2.VideoCapture(str(path)).get(cv2.CAP_PROP_FPS) == 12.5
    read = frames_in(path)
    assert len(read) == 10 and read[0].shape == (48, 64, 3)
    assert [round(frame.mean() / 20) for frame in read] == list(range(10))


def test_video_is_rgb(tmp_path: Path) -> None:
    red = np.zeros((48, 64, 3), np.uint8)
    red[..., 0] = 255
    feed(VideoSink(tmp_path / "a.mp4", fps=5), [Frame(red, "clip.mp4", 0)])
    blue_green_red = frames_in(tmp_path / "a.mp4")[0][24, 32]
    assert blue_green_red[2] > 200 and blue_green_red[0] < 60


@pytest.mark.parametrize(
    ("size", "written"), [((47, 63), (48, 64)), ((48, 63), (48, 64)), ((1, 1), (2, 2))]
)
def test_odd_sides_lose_nothing(
    tmp_path: Path, size: tuple[int, int], written: tuple[int, int]
) -> None:
    feed(VideoSink(tmp_path / "a.mp4", fps=5), [frame_of(200, size=size)])
    (frame,) = frames_in(tmp_path / "a.mp4")
    assert frame.shape[:2] == written and abs(frame[-1, -1].mean() - 200) < 8  # no black edge


def test_frames_of_another_size_are_fitted(tmp_path: Path) -> None:
    feed(VideoSink(tmp_path / "a.mp4", fps=5), [frame_of(90), frame_of(90, size=(96, 128))])
    assert [frame.shape for frame in frames_in(tmp_path / "a.mp4")] == [(48, 64, 3)] * 2


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), Terminated(), EndedEarlyError("camera 0 is lost")]
)
def test_interrupted_video_is_finished(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "a.mp4"
    with pytest.raises(type(error)):
        feed(VideoSink(path, fps=5), [frame_of(90)] * 3, error)
    assert len(frames_in(path)) == 3 and os.listdir(tmp_path) == ["a.mp4"]


def test_failed_video_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(b"old")
    with pytest.raises(ValueError, match="boxes"):
        feed(VideoSink(path, fps=5), [frame_of(90)] * 3, ValueError("boxes"))
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["a.mp4"]
    feed(VideoSink(path, fps=5), [])  # nothing came: nothing to replace it with
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["a.mp4"]


FULL_DISK = """
import resource, sys
import numpy as np
from pathlib import Path
from detkit.inference.sinks import VideoSink
from detkit.inference.stream import Result
from detkit.inference.video import Frame
from detkit.structures import Detections
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
rng = np.random.default_rng(0)
try:
    with VideoSink(Path(sys.argv[1]), fps=25) as sink:
        for index in range(int(sys.argv[2])):
            image = rng.integers(0, 256, (240, 320, 3), dtype=np.uint8)
            sink.write(Result(Frame(image, "a", index), Detections.empty()), image)
except OSError as error:
    print(error)
"""


@pytest.mark.parametrize(("frames", "whole"), [(1, True), (40, False)])
def test_film_that_does_not_fit_on_the_disk_is_an_error(
    tmp_path: Path, frames: int, whole: bool
) -> None:
    """OpenCV writes on into the void and says nothing."""
    pytest.importorskip("resource")
    path = tmp_path / "a.mp4"
    path.write_bytes(b"old")
    process = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(path), str(frames)],
        capture_output=True, text=True, timeout=120, check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert os.listdir(tmp_path) == ["a.mp4"]
    if whole:
        assert process.stdout == "" and len(frames_in(path)) == 1
    else:
        assert process.stdout == f"{path} could not be written to its end; is the disk full?\n"
        assert path.read_bytes() == b"old"


def test_film_ends_before_the_disk_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = iter([10**9, sinks.RESERVE, sinks.RESERVE - 1])
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=next(free)))
    with pytest.raises(EndedEarlyError, match=r"a\.mp4: the disk is nearly full"):
        feed(VideoSink(tmp_path / "a.mp4", fps=5), [frame_of(90)] * 200)
    assert len(frames_in(tmp_path / "a.mp4")) == 64 and os.listdir(tmp_path) == ["a.mp4"]


def test_film_that_vanishes_is_an_error(tmp_path: Path) -> None:
    with (
        pytest.raises(OSError, match="is the disk full"),
        VideoSink(tmp_path / "a.mp4", fps=5) as sink,
    ):
        sink.write(Result(frame_of(90), Detections.empty()), frame_of(90).image)
        (tmp_path / f".a.{os.getpid()}.mp4").unlink()
    assert os.listdir(tmp_path) == []


def test_live_frames_last_until_the_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # at 10 frames per second; the third comes late, the last two come together
    clock = iter([100.0, 100.0, 100.15, 100.55, 100.56])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    frames = [frame_of(60 * index, index=index) for index in range(4)]
    feed(VideoSink(tmp_path / "a.mp4", fps=10, live=True), frames)
    shown = [round(frame.mean() / 60) for frame in frames_in(tmp_path / "a.mp4")]
    assert shown == [0, 1, 2, 2, 2, 2]


# -------------------------------------------------------------------------------------------- sheet


@pytest.mark.parametrize(
    ("total", "count", "shown"),
    [(None, 6, [0, 1, 2, 3]), (8, 8, [0, 2, 4, 6]), (10, 10, [0, 2, 5, 7]), (3, 3, [0, 1, 2]),
     (8, 5, [0, 2, 4])],
)  # fmt: skip
def test_sheet_shows_frames_from_all_over(
    tmp_path: Path, total: int | None, count: int, shown: list[int]
) -> None:
    path = tmp_path / "sheet.png"
    sink = SheetSink(path, class_names=NAMES, total=total, tiles=4, tile_size=20)
    feed(sink, [frame_of(20 * index, index=index) for index in range(count)])
    sheet = cv2.imread(str(path))
    tiles = [sheet[15, 8 + 28 * place + 10, 0] // 20 for place in range(len(shown))]
    assert tiles == shown
    assert sheet.shape == (15 + 16, 28 * len(shown) + 8, 3)  # 64x48 scaled to 20x15


def test_sheet_draws_scaled_boxes(tmp_path: Path) -> None:
    sink = SheetSink(tmp_path / "a.png", class_names=NAMES, total=1, tile_size=320)
    found = Detections(torch.tensor([[16.0, 24, 32, 36]]), torch.ones(1), torch.tensor([0]))
    with sink:
        sink.write(Result(frame_of(0), found), frame_of(0).image)
    sheet = cv2.imread(str(tmp_path / "a.png"))[8:-8, 8:-8]  # 64x48 scaled to 320x240
    rows, columns = np.nonzero(sheet[120:].any(axis=2))
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (0, 59, 80, 159)


def test_empty_sheet_is_not_written(tmp_path: Path) -> None:
    feed(SheetSink(tmp_path / "a.jpg", class_names=NAMES, total=None), [])
    assert os.listdir(tmp_path) == []


def test_sheet_has_the_name_of_a_picture(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cannot write a picture as .*sheet\.pdf; its name ends"):
        SheetSink(tmp_path / "sheet.pdf", class_names=NAMES, total=None)


# -------------------------------------------------------------------------------- which sink where


class StillVideo(Video):
    """What a sink asks of a video, without one."""

    def __init__(self, path: Path | None, fps: float | None) -> None:
        self.name, self.path, self.fps, self.live = "camera-0", path, fps, path is None


@pytest.mark.parametrize(
    ("out", "path", "single"),
    [("out", "out", False), ("out.png", "out.png", True), ("out.v2", "out.v2", False)],
)
def test_output_of_one_picture(out: str, path: str, single: bool) -> None:
    sink = picture_or_video_sink(ImageFiles([Path("a.png")]), Path(out))
    assert isinstance(sink, PictureSink)
    assert (sink.path, sink.single) == (Path(path), single)


@pytest.mark.parametrize(
    ("out", "path"), [("out", "out/a.mp4"), ("b.mp4", "b.mp4"), ("v.2", "v.2/a.mp4")]
)
def test_output_of_a_video(out: str, path: str) -> None:
    sink = picture_or_video_sink(StillVideo(Path("a.avi"), 12.0), Path(out))
    assert isinstance(sink, VideoSink)
    assert (sink.path, sink.fps, sink.live) == (Path(path), 12.0, False)


def test_output_of_a_camera_never_replaces_another() -> None:
    sink = picture_or_video_sink(StillVideo(None, None), Path("out"))
    assert isinstance(sink, VideoSink) and sink.live and sink.fps == 25
    assert sink.path.match(f"out/camera-0-{time.strftime('%Y')}*-*.mp4")


def test_output_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    folder = ImageFiles([Path("a.png")], skip_unreadable=True)
    for source, out in (
        (folder, "x.png"),
        (folder, "x.mp4"),
        (ImageFiles([Path("a.png")]), "x.mp4"),
    ):
        with pytest.raises(ValueError, match="results are pictures and --out is x"):
            picture_or_video_sink(source, Path(out))
    for out in ("x.avi", "x.jpg"):
        with pytest.raises(ValueError, match=r"written as \.mp4, --out is x"):
            picture_or_video_sink(StillVideo(Path("a.avi"), 12.0), Path(out))
    video = tmp_path / "a.mp4"
    video.write_bytes(b"the source")
    for place in (tmp_path, video):
        with pytest.raises(ValueError, match="is the source itself"):
            picture_or_video_sink(StillVideo(video, 12.0), place)
    (tmp_path / "folder.png").mkdir()  # it is there, so it is meant
    assert picture_or_video_sink(folder, tmp_path / "folder.png").path == tmp_path / "folder.png"


def test_sink_and_source_of_a_real_video(tmp_path: Path, shared_data: Path) -> None:
    with open_source(str(shared_data / "video" / "plant_short.mp4")) as source:
        sink = picture_or_video_sink(source, tmp_path)
        with sink:
            for frame in source:
                sink.write(Result(frame, Detections.empty()), frame.image)
    read = cv2.VideoCapture(str(tmp_path / "plant_short.mp4"))
    assert read.get(cv2.CAP_PROP_FPS) == pytest.approx(30.02, abs=0.01)
    assert len(frames_in(tmp_path / "plant_short.mp4")) == 36
