"""What comes out of pictures, folders and videos, good and bad."""

from __future__ import annotations

import logging
import socket
import struct
from pathlib import Path

import cv2
import numpy as np
import pytest

from detkit.inference.sources import ImageFiles, open_source
from detkit.inference.video import Video, mp4_boxes, shown_address

SIZE = (64, 48)  # width, height
RED = np.full((SIZE[1], SIZE[0], 3), (0, 0, 255), np.uint8)  # as OpenCV writes it: BGR


def write_video(path: Path, frames: int) -> Path:
    """Red frames; the n-th has 4 n green columns."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 12.5, SIZE)
    for index in range(frames):
        frame = RED.copy()
        frame[:, : 4 * index] = (0, 255, 0)
        writer.write(frame)
    writer.release()
    return path


def test_single_picture(tmp_path: Path) -> None:
    path = tmp_path / "a.PNG"
    cv2.imwrite(str(path), RED)
    with open_source(str(path)) as source:
        (frame,) = source
    assert (frame.name, frame.index, frame.path) == ("a.PNG", 0, path)
    assert frame.image[0, 0].tolist() == [255, 0, 0]


def test_picture_is_told_by_its_content_too(tmp_path: Path) -> None:
    path = tmp_path / "photo"
    path.write_bytes(cv2.imencode(".jpg", RED)[1].tobytes())
    assert [frame.name for frame in open_source(str(path))] == ["photo"]


def test_single_broken_picture_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"a\.jpg: broken, truncated or not an image"):
        list(open_source(str(path)))


def test_folder_gives_the_pictures_directly_in_it_by_name(tmp_path: Path) -> None:
    (tmp_path / "below.png").mkdir()
    names = ["C.JPEG", *(f"{letter}.png" for letter in "abcdefgh")]
    for name in (*reversed(names), ".hidden.png", "below.png/d.png"):
        (tmp_path / name).write_bytes(cv2.imencode(".png", RED)[1].tobytes())
    (tmp_path / "notes.txt").write_text("no picture")
    source = open_source(str(tmp_path))
    assert isinstance(source, ImageFiles) and len(source) == 9
    assert [(frame.index, frame.name) for frame in source] == list(enumerate(names))


def test_unreadable_pictures_in_a_folder_are_skipped_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("a.png", "c.png"):
        cv2.imwrite(str(tmp_path / name), RED)
    (tmp_path / "b.png").write_bytes(b"")
    source = open_source(str(tmp_path))
    assert isinstance(source, ImageFiles)
    assert [frame.name for frame in source] == ["a.png", "c.png"]
    assert source.skipped == 1
    assert [record.getMessage() for record in caplog.records] == [
        f"skipped: cannot read image {tmp_path / 'b.png'}: the file is empty"
    ]


def test_folder_without_a_readable_picture_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no pictures directly in folder .*known are .*\.jpg"):
        open_source(str(tmp_path))
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(ValueError, match="none of the 2 pictures can be read"):
        list(open_source(str(tmp_path)))


def test_video(tmp_path: Path) -> None:
    path = write_video(tmp_path / "clip.mp4", 6)
    with open_source(str(path)) as source:
        assert isinstance(source, Video)
        frames = list(source)
        assert list(source) == []  # it is over
    assert (source.name, source.path, source.live) == ("clip.mp4", path, False)
    assert (source.fps, source.announced) == (12.5, 6)
    assert [(frame.name, frame.index, frame.path) for frame in frames] == [
        ("clip.mp4", index, None) for index in range(6)
    ]
    for frame in frames:  # each once, in order, RGB
        assert frame.image.shape == (48, 64, 3)
        is_green = frame.image[24, :, 1] > 128
        assert int(is_green.sum()) == pytest.approx(4 * frame.index, abs=1)
        assert frame.image[24, 40:, 0].min() > 200


def test_truncated_video_ends_where_it_ends(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 12.5, SIZE)
    for _ in range(40):  # long enough for a header at the start
        writer.write(np.random.default_rng(0).integers(0, 256, RED.shape, dtype=np.uint8))
    writer.release()
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with open_source(str(path)) as source, caplog.at_level(logging.WARNING):
        assert isinstance(source, Video)
        count = len(list(source))
    assert 15 <= count <= 25
    assert caplog.messages == [f"clip.avi ends after {count} of 40 frames"]


@pytest.mark.parametrize("content", [b"", b"This is no video.\n" * 100, b"\0" * 5000])
@pytest.mark.parametrize("name", ["clip.mp4", "notes.txt", "1.avi"])
def test_other_files_are_refused(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    reason = "neither a picture nor a video" if content else "the file is empty"
    with pytest.raises(ValueError, match=reason) as caught:
        open_source(str(path))
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_video_without_frames_is_refused(tmp_path: Path) -> None:
    path = write_video(tmp_path / "clip.mp4", 0)
    with pytest.raises(ValueError, match=r"clip\.mp4"):
        open_source(str(path))


class EmptyCapture:
    """Opens, and has nothing to give."""

    def __init__(self, address: object, *options: object) -> None:
        self.released = False

    def isOpened(self) -> bool:
        return True

    def get(self, key: int) -> float:
        return float("nan")

    def set(self, key: int, value: float) -> bool:
        return False

    def read(self) -> tuple[bool, None]:
        return False, None

    def release(self) -> None:
        self.released = True


def test_camera_without_a_frame_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cv2, "VideoCapture", EmptyCapture)
    with pytest.raises(ValueError, match="camera-0 opens, but gives no frame"):
        open_source("0")


class EndlessCapture(EmptyCapture):
    """A camera that says nothing sensible about its pace."""

    def read(self) -> tuple[bool, np.ndarray]:  # type: ignore[override]
        return True, RED


@pytest.mark.parametrize(
    ("address", "pace"), [("0", float("nan")), ("0", 0.0), ("rtsp://camera/1", 90000.0)]
)
def test_camera_and_stream_are_live(
    address: str, pace: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cv2, "VideoCapture", EndlessCapture)
    monkeypatch.setattr(EndlessCapture, "get", lambda self, key: pace)
    with open_source(address) as source:
        assert isinstance(source, Video)
        assert source.live and source.fps is None and source.announced is None
        frames = iter(source)
        assert [next(frames).index for _ in range(3)] == [0, 1, 2]
    assert source._capture.released  # type: ignore[attr-defined]


def test_pattern_gives_the_pictures_that_fit(tmp_path: Path) -> None:
    for name in ("a/1.png", "b/1.png", "b/2.png", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(cv2.imencode(".png", RED)[1].tobytes())
    source = open_source(f"{tmp_path}/**/*")
    assert [frame.name for frame in source] == ["a/1.png", "b/1.png", "b/2.png"]  # told apart
    assert [frame.name for frame in open_source(f"{tmp_path}/b/?.png")] == ["1.png", "2.png"]
    assert [frame.name for frame in open_source(tmp_path / "a")] == ["1.png"]
    with pytest.raises(ValueError, match=r"no picture fits the pattern .*/\*\.jpg; known are"):
        open_source(f"{tmp_path}/*.jpg")
    brackets = tmp_path / "[x].png"  # a file whose name looks like a pattern
    brackets.write_bytes((tmp_path / "a/1.png").read_bytes())
    assert [frame.name for frame in open_source(brackets)] == ["[x].png"]


TURNS = {  # matrix of ISO/IEC 14496-12, section 8.3.2, and where the upper left corner goes
    0: ((1, 0, 0, 1), (0, 0)),
    90: ((0, 1, -1, 0), (0, 1)),
    180: ((-1, 0, 0, -1), (1, 1)),
    270: ((0, -1, 1, 0), (1, 0)),
}


@pytest.mark.parametrize("degrees", TURNS)
def test_film_of_a_telephone_is_upright(tmp_path: Path, degrees: int) -> None:
    path = tmp_path / "clip.mp4"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 30000 / 1001, SIZE)
    frame = np.zeros((SIZE[1], SIZE[0], 3), np.uint8)
    frame[: SIZE[1] // 2, : SIZE[0] // 2] = 255  # the upper left quarter
    for _ in range(3):
        writer.write(frame)
    writer.release()
    (a, b, c, d), (row, column) = TURNS[degrees]
    data = bytearray(path.read_bytes())
    matrix = data.index(b"tkhd") + 4 + 40
    one = 1 << 16
    data[matrix : matrix + 36] = struct.pack(
        ">9i", a * one, b * one, 0, c * one, d * one, 0, 0, 0, 1 << 30
    )
    path.write_bytes(data)
    with open_source(path) as source:
        assert isinstance(source, Video) and source.fps == pytest.approx(30000 / 1001, abs=1e-3)
        frames = list(source)
    height, width = SIZE if degrees in (90, 270) else SIZE[::-1]
    assert [each.image.shape for each in frames] == [(height, width, 3)] * 3
    bright = frames[0].image[..., 0] > 128
    quarter = bright.reshape(2, height // 2, 2, width // 2).mean(axis=(1, 3)).round()
    expected = np.zeros((2, 2))
    expected[row, column] = 1
    assert (quarter == expected).all()


def test_cut_off_mp4_says_so(tmp_path: Path) -> None:
    data = write_video(tmp_path / "whole.mp4", 30).read_bytes()
    path = tmp_path / "clip.mp4"
    for share in (0.1, 0.5, 0.9):  # its table of frames is at the end
        path.write_bytes(data[: int(share * data.index(b"moov"))])
        with pytest.raises(ValueError, match=r"clip\.mp4: it is cut off, its end .* is missing"):
            open_source(path)


def test_cut_off_mp4_that_begins_with_its_table_gives_what_it_has(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = table_first(write_video(tmp_path / "whole.mp4", 30).read_bytes())
    whole, path = tmp_path / "again.mp4", tmp_path / "clip.mp4"
    whole.write_bytes(data)
    assert len(list(open_source(whole))) == 30 and not caplog.messages
    frames = data.index(b"mdat") + 4
    path.write_bytes(data[: (frames + len(data)) // 2])
    with open_source(path) as source, caplog.at_level(logging.WARNING):
        count = len(list(source))
    assert 3 < count < 30 and caplog.messages == [f"clip.mp4 ends after {count} of 30 frames"]
    path.write_bytes(data[: frames + 4])
    with pytest.raises(ValueError, match=r"clip\.mp4"):
        open_source(path)


def table_first(data: bytes) -> bytes:
    """An MP4 with its table (moov) before the frames (mdat), as phones and web pages have it."""
    boxes, position = {}, 0
    while position < len(data):
        size = int.from_bytes(data[position : position + 4], "big")
        boxes[data[position + 4 : position + 8]] = data[position : position + size]
        position += size
    moov = bytearray(boxes[b"moov"])
    start = moov.index(b"stco") + 8  # version, then how many, then where each chunk of frames is
    for chunk in range(int.from_bytes(moov[start : start + 4], "big")):
        place = slice(start + 4 + 4 * chunk, start + 8 + 4 * chunk)
        moov[place] = (int.from_bytes(moov[place], "big") + len(moov)).to_bytes(4, "big")
    rest = b"".join(box for kind, box in boxes.items() if kind not in (b"moov", b"ftyp"))
    return boxes[b"ftyp"] + bytes(moov) + rest


def test_boxes_of_an_mp4(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    huge = struct.pack(">I4sQ", 1, b"mdat", 20) + b"abcd"
    path.write_bytes(
        struct.pack(">I4s", 12, b"ftyp") + b"isom" + huge + struct.pack(">I4s", 0, b"moov")
    )
    assert list(mp4_boxes(path)) == [(b"ftyp", 12), (b"mdat", 20), (b"moov", 8)]
    for content, message in ((b"abc", "3 bytes at its end"), (b"\0\0\0\7mdat", "claims 7 of 8"),
                             (b"\0\0\0\x0amdat", "claims 10 of 8")):  # fmt: skip
        path.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            list(mp4_boxes(path))


def test_password_is_not_shown() -> None:
    shown = shown_address("rtsp://me:secret@host:554/live?x=a:b@c")
    assert shown == "rtsp://me:***@host:554/live?x=a:b@c"
    assert (
        shown_address("rtsp://host/live") == "rtsp://host/live" and shown_address(2) == "camera 2"
    )


def test_absent_sources_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no file or folder no/such\.jpg; give"):
        open_source("no/such.jpg")
    with pytest.raises(ValueError, match="cannot open camera 99: there is none"):
        open_source("99")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/clip.mp4"
        with pytest.raises(ValueError, match=f"cannot open stream {url}"):
            open_source(url)


def test_real_video(shared_data: Path) -> None:
    with open_source(str(shared_data / "video" / "plant_short.mp4")) as source:
        assert isinstance(source, Video)
        assert source.fps == pytest.approx(30.02, abs=0.01)
        frames = list(source)
    assert len(frames) == 36 and frames[-1].image.shape == (240, 320, 3)


def test_odd_pictures_are_read_or_skipped(shared_data: Path) -> None:
    source = open_source(str(shared_data / "odd"))
    assert isinstance(source, ImageFiles)
    names = {frame.name for frame in source}
    assert len(names) + source.skipped == len(source) == 25
    assert {"cmyk.jpg", "gray16.png", "two_pictures.mpo", "animated.gif"} <= names
    assert "truncated.jpg" not in names
