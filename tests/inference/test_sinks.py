"""What is on the disk after a sink, and what is not after a failure."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from detkit.inference import sinks
from detkit.inference.sinks import (
    JsonSink,
    PictureSink,
    SheetSink,
    Sink,
    VideoSink,
    Window,
    check_output_file,
    picture_or_video_sink,
    window_problem,
)
from detkit.inference.sources import Frame, ImageFiles, Video, open_source
from detkit.structures import Detections

NAMES, IDS = ("cat", "Füße"), (2, 9)


def frame_of(value: int, *, index: int = 0, size: tuple[int, int] = (48, 64)) -> Frame:
    """A frame of a video, of one grey."""
    return Frame(np.full((*size, 3), value, np.uint8), "clip.mp4", index)


def feed(sink: Sink, frames: list[Frame], error: BaseException | None = None) -> None:
    """Write frames into a sink and leave its block, by an error if there is one."""
    with sink:
        for frame in frames:
            sink.write(frame, frame.image, Detections.empty())
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
        sink.write(Frame(picture, name, 0, source), picture, Detections.empty())
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
            sink.write(frame, frame.image, Detections.empty())
    assert source.read_bytes() == b"the source"
    with pytest.raises(ValueError, match="is the source itself"):
        check_output_file(source, ImageFiles([tmp_path / "b.png", source]))
    with pytest.raises(ValueError, match="is a folder; name a file"):
        check_output_file(tmp_path, ImageFiles([source]))
    check_output_file(tmp_path / "new.json", ImageFiles([source]))


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


def test_interrupted_video_is_finished(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    with pytest.raises(KeyboardInterrupt):
        feed(VideoSink(path, fps=5), [frame_of(90)] * 3, KeyboardInterrupt())
    assert len(frames_in(path)) == 3 and os.listdir(tmp_path) == ["a.mp4"]


def test_failed_video_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(b"old")
    with pytest.raises(ValueError, match="boxes"):
        feed(VideoSink(path, fps=5), [frame_of(90)] * 3, ValueError("boxes"))
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["a.mp4"]
    feed(VideoSink(path, fps=5), [])  # nothing came: nothing to replace it with
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["a.mp4"]


def test_video_that_cannot_be_written_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sinks, "encode", None)
    sink = VideoSink(tmp_path / "a.mp4", fps=5)
    with pytest.raises(OSError, match="is the disk full"), sink:
        sink.write(frame_of(90), frame_of(90).image, Detections.empty())
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


# --------------------------------------------------------------------------------------------- json


def detections() -> Detections:
    return Detections(
        torch.tensor([[1.0, 2.0, 11.0, 22.5], [0.0, 0.0, 3.0, 4.0]]),
        torch.tensor([0.75, 0.5]),
        torch.tensor([1, 0]),
    )


def test_json_has_a_record_for_each_detection(tmp_path: Path) -> None:
    path = tmp_path / "out" / "found.json"
    picture = Frame(np.zeros((30, 30, 3), np.uint8), "a.png", 4, tmp_path / "a.png")
    with JsonSink(path, class_names=NAMES, category_ids=IDS) as sink:
        sink.write(picture, picture.image, detections())
        sink.write(frame_of(0, index=7), picture.image, detections()[[1]])
        sink.write(frame_of(0, index=8), picture.image, Detections.empty())
        assert not path.exists()
    first = {"category_id": 9, "category": "Füße", "bbox": [1, 2, 10, 20.5], "score": 0.75}
    second = {"category_id": 2, "category": "cat", "bbox": [0, 0, 3, 4], "score": 0.5}
    assert json.loads(path.read_text(encoding="utf-8")) == [
        {"file_name": "a.png", **first},
        {"file_name": "a.png", **second},
        {"file_name": "clip.mp4", "frame": 7, **second},
    ]


def test_json_without_detections_is_an_empty_list(tmp_path: Path) -> None:
    feed(JsonSink(tmp_path / "a.json", class_names=NAMES, category_ids=IDS), [])
    assert json.loads((tmp_path / "a.json").read_text()) == []


def test_json_after_an_interrupt_and_after_a_failure(tmp_path: Path) -> None:
    for error, expected in ((KeyboardInterrupt(), True), (ValueError("boxes"), False)):
        path = tmp_path / f"{expected}.json"
        sink = JsonSink(path, class_names=NAMES, category_ids=IDS)
        with pytest.raises(type(error)):
            feed(sink, [frame_of(0)], error)
        assert path.exists() == expected


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
        sink.write(frame_of(0), frame_of(0).image, found)
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
        self.name, self.path, self.fps = "camera-0", path, fps


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


# ------------------------------------------------------------------------------------------- window


def test_window_needs_an_opencv_with_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cv2, "getBuildInformation", lambda: "x\n  GUI:                  NONE\n")
    problem = window_problem()
    assert problem and "pip install --force-reinstall --no-deps opencv-python" in problem
    with pytest.raises(ValueError, match="built without windows"):
        Window(wait=False)


def test_window_needs_a_display(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cv2, "getBuildInformation", lambda: "x\n  GUI:                  QT5\n")
    monkeypatch.setattr(sinks, "_PROBE_WINDOW", "import os; os.abort()")  # so Qt does it
    problem = window_problem()
    assert problem and "no display?" in problem and "--out" in problem
    monkeypatch.setattr(sinks, "_PROBE_WINDOW", "pass")
    assert window_problem() is None


class Screen:
    """Stands in for OpenCV's windows: keys come from a list, then the window is closed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, keys: list[int]) -> None:
        self.keys, self.shown = keys, list[np.ndarray]()
        monkeypatch.setattr(sinks, "window_problem", lambda: None)
        monkeypatch.setattr(cv2, "namedWindow", lambda *arguments: None, raising=False)
        monkeypatch.setattr(cv2, "destroyAllWindows", lambda: None, raising=False)
        monkeypatch.setattr(
            cv2, "imshow", lambda name, image: self.shown.append(image), raising=False
        )
        monkeypatch.setattr(cv2, "waitKey", self.wait_key, raising=False)
        monkeypatch.setattr(cv2, "getWindowProperty", self.visible, raising=False)

    def wait_key(self, milliseconds: int) -> int:
        return self.keys.pop(0) if self.keys else -1

    def visible(self, name: str, key: int) -> float:
        return 1.0 if self.keys else 0.0


@pytest.mark.parametrize(
    ("wait", "keys", "goes_on", "left"),
    [
        (False, [-1, -1], True, 1),  # a video does not wait
        (False, [ord("q")], False, 0),
        (False, [27], False, 0),
        (False, [ord("x")], True, 0),
        (False, [-1], False, 0),  # closed by mouse
        (True, [-1, -1, ord(" ")], True, 0),  # a picture waits for a key
        (True, [-1, ord("q") | 0x100000], False, 0),  # GTK sets bits above the key
        (True, [-1], False, 0),
    ],
)
def test_window(
    monkeypatch: pytest.MonkeyPatch, wait: bool, keys: list[int], goes_on: bool, left: int
) -> None:
    screen = Screen(monkeypatch, keys)
    with Window(wait=wait) as window:
        assert window.show(np.full((2, 2, 3), (1, 2, 3), np.uint8)) == goes_on
    assert len(keys) == left
    assert screen.shown[0][0, 0].tolist() == [3, 2, 1]  # OpenCV shows BGR


def test_sink_and_source_of_a_real_video(tmp_path: Path, shared_data: Path) -> None:
    with open_source(str(shared_data / "video" / "plant_short.mp4")) as source:
        sink = picture_or_video_sink(source, tmp_path)
        with sink:
            for frame in source:
                sink.write(frame, frame.image, Detections.empty())
    read = cv2.VideoCapture(str(tmp_path / "plant_short.mp4"))
    assert read.get(cv2.CAP_PROP_FPS) == pytest.approx(30.02, abs=0.01)
    assert len(frames_in(tmp_path / "plant_short.mp4")) == 36
