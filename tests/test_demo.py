"""The demo from end to end, on a detector that has learnt nothing."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import pytest

import detkit
from detkit.inference import video

ROOT = Path(__file__).resolve().parent.parent
DEMO = ROOT / "demo" / "demo.py"
LOW = ["--threshold", "0.3", "--device", "cpu"]  # it is never sure


@pytest.fixture(scope="module")
def demo() -> ModuleType:
    spec = importlib.util.spec_from_file_location("demo", DEMO)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["demo"] = module  # where its dataclass looks for its annotations
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def checkpoint(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """In a folder of its own, which the demo writes to."""
    return Path(shutil.copy(tiny_checkpoint, tmp_path / "best.pt"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three pictures and a broken one."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index in range(3):
        picture = rng.integers(0, 256, (60, 90, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / f"{index}.png"), picture)
    (folder / "broken.jpg").write_bytes(b"no picture")
    return folder


def write_video(path: Path, frames: int) -> Path:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 12.5, (64, 48))
    rng = np.random.default_rng(0)
    for _ in range(frames):
        writer.write(rng.integers(0, 256, (48, 64, 3), dtype=np.uint8))
    writer.release()
    return path


def length(path: Path) -> int:
    capture, count = cv2.VideoCapture(str(path)), 0
    while capture.read()[0]:
        count += 1
    return count


def test_picture_goes_beside_the_checkpoint(
    demo: ModuleType, checkpoint: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = folder / "0.png"
    before = source.read_bytes()
    demo.main([str(checkpoint), str(source), *LOW])
    written = checkpoint.parent / "demo" / "0.png"
    found = detkit.load(checkpoint, device="cpu")(source, score_threshold=0.3)
    picture = cv2.imread(str(written))
    assert len(found) and picture.shape == (60, 90, 3)
    assert not np.array_equal(picture, cv2.imread(str(source))) and source.read_bytes() == before
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"pictures: 1, detections of score 0.3 or more: {len(found)}"
    assert re.fullmatch(
        r"pictures per second on cpu: \d+\.\d\d detector alone, "
        r"\d+\.\d\d with reading, drawing and writing", lines[1],
    )  # fmt: skip
    assert lines[2:] == [f"written: {checkpoint.parent / 'demo'}"]


def test_threshold_of_each_class_from_a_file(
    demo: ModuleType, checkpoint: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    predictor = detkit.load(checkpoint, device="cpu")
    everything = predictor(folder / "0.png")
    file = folder.parent / "it's 1e3.yaml"  # a path that YAML would take for something else
    limit = float(everything.scores.median())
    file.write_text(f"cat: {limit!r}\nFüße: 1\n", encoding="utf-8")
    demo.main([str(checkpoint), str(folder / "0.png"), "--threshold", str(file), "--device", "cpu"])
    found = predictor(folder / "0.png", score_threshold=file)
    assert 0 < len(found) < len(everything)
    assert (
        f"pictures: 1, detections that reach the scores of {file}: {len(found)}"
        in capsys.readouterr().out
    )


def test_recipe_can_be_changed(
    demo: ModuleType, checkpoint: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change = "model.select.max_detections=2"
    demo.main([str(checkpoint), str(folder / "0.png"), change, "--threshold", "0"])
    assert "detections of score 0 or more: 2\n" in capsys.readouterr().out


def test_folder_with_json_and_sheet(
    demo: ModuleType,
    checkpoint: Path,
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    results, sheet = tmp_path / "json" / "found.json", tmp_path / "sheet.jpg"
    options = ["--out", str(tmp_path / "out"), "--save-json", str(results), "--sheet", str(sheet)]
    demo.main([str(checkpoint), str(folder), *LOW, *options])
    assert sorted(os.listdir(tmp_path / "out")) == ["0.png", "1.png", "2.png"]
    assert cv2.imread(str(sheet)).shape == (240 + 16, 3 * 368 + 8, 3)

    predictor = detkit.load(checkpoint, device="cpu")
    records = json.loads(results.read_text(encoding="utf-8"))
    expected = []
    for index in range(3):
        found = predictor(folder / f"{index}.png", score_threshold=0.3)
        x1, y1, x2, y2 = found.boxes.double().unbind(1)
        boxes = np.stack([x1, y1, x2 - x1, y2 - y1], axis=1).tolist()
        for box, label, score in zip(boxes, found.labels, found.scores, strict=True):
            expected.append(
                {
                    "file_name": f"{index}.png",
                    "category_id": {0: 2, 1: 5, 2: 9}[int(label)],
                    "category": ("cat", "Füße", "dog")[int(label)],
                    "bbox": box,
                    "score": float(score),
                }
            )
    assert records == expected and len(records) > 3
    output = capsys.readouterr().out
    assert output.startswith(f"pictures: 3, detections of score 0.3 or more: {len(records)}, ")
    assert "pictures that cannot be read: 1" in output
    assert all(f"written: {path}" in output for path in (tmp_path / "out", results, sheet))


def test_video_stays_a_video(
    demo: ModuleType, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, results = write_video(tmp_path / "clip.avi", 6), tmp_path / "found.json"
    demo.main(
        [str(checkpoint), str(source), *LOW, "--max-frames", "4", "--save-json", str(results)]
    )
    written = tmp_path / "demo" / "clip.mp4"
    assert length(written) == 4
    assert cv2.VideoCapture(str(written)).get(cv2.CAP_PROP_FPS) == 12.5
    records = json.loads(results.read_text(encoding="utf-8"))
    assert {(record["file_name"], record["frame"]) for record in records} == {
        ("clip.avi", index) for index in range(4)
    }
    assert capsys.readouterr().out.startswith("frames: 4, ")


class FakeWindow:
    """Shows two frames and is closed."""

    shown = 0

    def __init__(self, *, wait: bool) -> None:
        self.wait = wait

    def show(self, picture: np.ndarray) -> bool:
        FakeWindow.shown += 1
        return FakeWindow.shown < 2

    def __enter__(self) -> FakeWindow:
        return self

    def __exit__(self, *arguments: object) -> None: ...


@pytest.mark.parametrize("out", [False, True])
def test_window_ends_the_run_and_replaces_files(
    demo: ModuleType, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: bool
) -> None:
    monkeypatch.setattr(demo, "Window", FakeWindow)
    monkeypatch.setattr(FakeWindow, "shown", 0)
    source = write_video(tmp_path / "clip.avi", 6)
    options = ["--out", str(tmp_path / "out.mp4")] if out else []
    demo.main([str(checkpoint), str(source), *LOW, "--show", *options])
    assert FakeWindow.shown == 2
    assert sorted(os.listdir(tmp_path)) == ["best.pt", "clip.avi", *["out.mp4"] * out]
    if out:
        assert length(tmp_path / "out.mp4") == 2


def test_classes_every_and_track(
    demo: ModuleType, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, results = write_video(tmp_path / "clip.avi", 5), tmp_path / "found.json"
    options = ["--classes", "cat, dog", "--every", "2", "--track", "--save-json", str(results)]
    demo.main([str(checkpoint), str(source), *LOW, *options])
    records = json.loads(results.read_text(encoding="utf-8"))
    assert {record["category"] for record in records} <= {"cat", "dog"}
    assert {record["frame"] for record in records} == {0, 2, 4}  # where the detector looked
    first = [record["track_id"] for record in records if record["frame"] == 0]
    assert first == list(range(1, len(first) + 1))
    assert length(tmp_path / "demo" / "clip.mp4") == 5
    assert capsys.readouterr().out.startswith("frames: 5, ")


def test_pattern_with_coco_results_and_labelme_files(
    demo: ModuleType, checkpoint: Path, folder: Path, tmp_path: Path
) -> None:
    coco, labelme = tmp_path / "coco.json", tmp_path / "labelme"
    options = ["--save-coco", str(coco), "--save-labelme", str(labelme)]
    demo.main([str(checkpoint), f"{folder}/[12].png", *LOW, *options])
    assert sorted(os.listdir(tmp_path / "demo")) == ["1.png", "2.png"]
    assert sorted(os.listdir(labelme)) == ["1.json", "2.json"]
    records = json.loads(coco.read_text(encoding="utf-8"))
    assert {record["image_id"] for record in records} == {1, 2}
    document = json.loads((labelme / "2.json").read_text(encoding="utf-8"))
    assert (labelme / document["imagePath"]).samefile(folder / "2.png")
    boxes = [[*points[0], *points[1]] for points in (s["points"] for s in document["shapes"])]
    found = detkit.load(checkpoint, device="cpu")(folder / "2.png", score_threshold=0.3)
    assert len(found) and np.allclose(boxes, found.boxes, atol=1e-3)


def test_film_of_a_telephone_stays_upright_and_as_fast(
    demo: ModuleType, checkpoint: Path, tmp_path: Path
) -> None:
    source = tmp_path / "clip.mp4"
    writer = cv2.VideoWriter(str(source), cv2.VideoWriter.fourcc(*"mp4v"), 30000 / 1001, (64, 48))
    frame = np.zeros((48, 64, 3), np.uint8)
    frame[:, :32] = 255  # the left half, which is the upper one after a quarter turn to the right
    for _ in range(3):
        writer.write(frame)
    writer.release()
    data = bytearray(source.read_bytes())
    matrix = data.index(b"tkhd") + 44  # ISO/IEC 14496-12, section 8.3.2
    data[matrix : matrix + 20] = struct.pack(">5i", 0, 1 << 16, 0, -1 << 16, 0)
    source.write_bytes(data)
    demo.main([str(checkpoint), str(source), "--threshold", "1", "--device", "cpu"])
    capture = cv2.VideoCapture(str(tmp_path / "demo" / "clip.mp4"))
    assert capture.get(cv2.CAP_PROP_FPS) == pytest.approx(30000 / 1001, abs=1e-3)
    picture = capture.read()[1]
    assert picture.shape == (64, 48, 3)
    assert picture[:28].mean() > 200 and picture[36:].mean() < 55


def lose(frames: int) -> Callable[[str | int], Any]:
    """What opens a camera that gives so many frames, and cannot be opened again."""

    class Camera:
        left = frames

        def isOpened(self) -> bool:
            return self.left > 0

        def get(self, key: int) -> float:
            return 0.0

        def set(self, key: int, value: float) -> bool:
            return False

        def read(self) -> tuple[bool, np.ndarray]:
            self.left -= 1
            time.sleep(0.02)
            return self.left >= 0, np.full((48, 64, 3), 90, np.uint8)

        def release(self) -> None: ...

    camera = Camera()
    return lambda address: camera


def test_lost_camera_keeps_what_was_done(
    demo: ModuleType,
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(video, "_open_capture", lose(10))
    results = tmp_path / "found.json"
    options = ["--save-json", str(results), "--out", str(tmp_path / "out.mp4")]
    with pytest.raises(OSError, match=r"^camera 0 is lost: no frame in 0\.2 s and \d attempts"):
        demo.main([str(checkpoint), "0", *LOW, *options, "--reconnect", "0.2"])
    assert sorted(os.listdir(tmp_path)) == ["best.pt", "found.json", "out.mp4"]
    assert length(tmp_path / "out.mp4") > 0
    frames = {record["frame"] for record in json.loads(results.read_text())}
    assert frames and max(frames) <= 9
    assert capsys.readouterr().out.startswith("frames: ")


def test_interrupt_keeps_what_was_done(
    demo: ModuleType,
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    draw, calls = demo.draw_detections, []

    def interrupt(*arguments: object, **options: object) -> np.ndarray:
        calls.append(arguments)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return draw(*arguments, **options)

    monkeypatch.setattr(demo, "draw_detections", interrupt)
    source, results = write_video(tmp_path / "clip.avi", 6), tmp_path / "found.json"
    with pytest.raises(KeyboardInterrupt):
        demo.main([str(checkpoint), str(source), *LOW, "--save-json", str(results)])
    assert length(tmp_path / "demo" / "clip.mp4") == 3
    assert {record["frame"] for record in json.loads(results.read_text())} == {0, 1, 2}
    assert capsys.readouterr().out.startswith("frames: 3, ")


def test_failure_leaves_no_file(
    demo: ModuleType,
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*arguments: object, **options: object) -> np.ndarray:
        raise ValueError("boxes")

    monkeypatch.setattr(demo, "draw_detections", fail)
    source, results = write_video(tmp_path / "clip.avi", 3), tmp_path / "found.json"
    with pytest.raises(ValueError, match="boxes"):
        demo.main([str(checkpoint), str(source), *LOW, "--save-json", str(results)])
    assert sorted(os.listdir(tmp_path)) == ["best.pt", "clip.avi"]
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["no/such.jpg"], "no file or folder no/such.jpg"),
        (["{folder}", "--out", "{folder}"], "0.png is the source itself"),
        (["{folder}/0.png", "--save-json", "{folder}/0.png"], "0.png is the source itself"),
        (["{folder}/0.png", "--sheet", "{folder}/0.png"], "0.png is the source itself"),
        (["{folder}/0.png", "--save-json", "{folder}"], "pictures is a folder; name a file"),
        (["{folder}", "--out", "{folder}/0.png/x"], "0.png is a file, not a folder"),
        (["{folder}/0.png", "--save-coco", "{checkpoint}"], "best.pt is the source itself"),
        (["{folder}/0.png", "--save-json", "a", "--save-coco", "a"], "two results go to one file"),
        (["{folder}/0.png", "--classes", "cat,dgo"], "unknown class 'dgo'; did you mean 'dog'?"),
        (["{folder}", "--every", "2"], "every is 2 and the source is pictures"),
        (["{folder}/*.jpeg"], "no picture fits the pattern"),
        (["{folder}/0.png", "--sheet", "sheet.txt"], "cannot write a picture as sheet.txt"),
        (["{folder}/0.png", "--weights", "coco"], "has its own"),
        (["{folder}/0.png", "test.tile=0"], "test.tile: got 0; should be greater"),
        (["{folder}/0.png", "{folder}/1.png"], "is not of the form key.path=value"),
        (["{folder}/broken.jpg"], "broken.jpg: broken, truncated or not an image"),
    ],
)
def test_mistakes_are_named_and_write_nothing(
    demo: ModuleType, checkpoint: Path, folder: Path, options: list[str], message: str
) -> None:
    def content() -> dict[str, bytes]:
        return {str(p): p.read_bytes() for p in checkpoint.parent.rglob("*") if p.is_file()}

    before = content()
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        demo.main(
            [
                str(checkpoint),
                *(option.format(folder=folder, checkpoint=checkpoint) for option in options),
            ]
        )
    assert "\n" not in str(caught.value) and content() == before


@pytest.mark.parametrize(
    "options", [["--threshold", "1.5"], ["--threshold", "x"], ["--max-frames", "0"]]
)
def test_numbers_out_of_range_are_usage_errors(
    demo: ModuleType, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        demo.main(["best.pt", "a.jpg", *options])
    assert caught.value.code == 2 and options[0] in capsys.readouterr().err


def start(*arguments: str | Path) -> subprocess.Popen[str]:
    command = [sys.executable, str(DEMO), *map(str, arguments)]
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "DETKIT_DEBUG": "",
    }
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_command(checkpoint: Path, folder: Path) -> None:
    process = start(checkpoint, folder / "1.png", *LOW)
    output, errors = process.communicate(timeout=240)
    assert (process.returncode, errors) == (0, "")
    assert f"written: {checkpoint.parent / 'demo'}" in output
    assert (checkpoint.parent / "demo" / "1.png").is_file()


def test_command_says_one_line_of_a_mistake(checkpoint: Path, tmp_path: Path) -> None:
    """Whatever OpenCV and FFmpeg would like to add."""
    notes = tmp_path / "notes.mp4"
    notes.write_bytes(b"\0\0\0\x20ftypisom no video")
    sources = {"99": "error: cannot open camera 99: ", notes: "error: cannot read "}
    processes = [start(checkpoint, source) for source in sources]  # together: starting takes long
    for process, message in zip(processes, sources.values(), strict=True):
        output, errors = process.communicate(timeout=240)
        assert (process.returncode, output) == (2, "")
        assert errors.startswith(message) and errors.count("\n") == 1


@pytest.mark.parametrize(
    ("number", "code", "word"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")],
)
def test_command_finishes_its_film_when_asked_to_end(
    checkpoint: Path, tmp_path: Path, number: int, code: int, word: str
) -> None:
    source = write_video(tmp_path / "clip.avi", 3000)  # minutes of work
    process = start(checkpoint, source, *LOW)
    written = tmp_path / "demo" / "clip.mp4"
    limit = time.monotonic() + 240
    while not list(tmp_path.glob("demo/.clip.*.mp4")) and time.monotonic() < limit:
        assert process.poll() is None
        time.sleep(0.05)
    time.sleep(0.5)  # some frames
    process.send_signal(number)
    output, errors = process.communicate(timeout=120)
    assert (process.returncode, errors) == (code, f"{word}\n")
    frames = int(output.split(":")[1].split(",")[0])
    assert output.startswith("frames: ") and 0 < frames < 3000
    assert length(written) == frames
    assert os.listdir(tmp_path / "demo") == ["clip.mp4"]
