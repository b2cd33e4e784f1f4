"""What docs/inference.md shows runs, block by block, in a folder with the files that it names."""

from __future__ import annotations

import json
import os
import re
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pytest
import torch

from detkit.config import Recipe
from detkit.detectors import create_detector
from detkit.engine.checkpoint import Checkpoint, save_checkpoint

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "inference.md"
NAMES = ("cat", "dog", "horse")
FCOS = {
    "detector": "fcos",
    "backbone": {"name": "resnet18", "width": 8, "out_indices": [2, 3]},
    "fpn": {"channels": 16, "extra": None},
    "fcos": {"convs": 1, "norm": None, "prior": 0.3},
    "select": {"score_threshold": 0.1, "max_detections": 20},
}


class Block(NamedTuple):
    """A fenced block: its language, what follows that word, and its text."""

    language: str
    note: str
    text: str


BLOCKS = [
    Block(*found)
    for found in re.findall(
        r"^```(python|sh) ?([^\n]*)\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.M | re.S
    )
]


@pytest.fixture
def place(
    tiny_data: tuple[Path, Path],
    tiny_recipe: Callable[..., Recipe],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """The working folder that the page speaks of."""
    content = json.loads(tiny_data[0].read_text())
    for category, name in zip(content["categories"], NAMES, strict=True):
        category["name"] = name
    (tmp_path / "cats.json").write_text(json.dumps(content))
    source = {
        "format": "coco",
        "annotations": str(tmp_path / "cats.json"),
        "images": str(tiny_data[1]),
    }
    recipe = tiny_recipe(f"model={json.dumps(FCOS)}", f"data.val={json.dumps(source)}")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        detector = create_detector(recipe.model, num_classes=3)
        for name, parameter in detector.named_parameters():
            if "head" in name and parameter.ndim > 1:
                parameter.data *= 20  # an untrained head says the same everywhere
    (tmp_path / "runs" / "cats").mkdir(parents=True)
    save_checkpoint(
        tmp_path / "runs" / "cats" / "best.pt",
        Checkpoint(recipe, NAMES, (7, 90, 300), detector.state_dict(), 1, {}, training=None),
    )
    (tmp_path / "photos").mkdir()
    for index, path in enumerate(sorted(tiny_data[1].iterdir())[:3]):
        cv2.imwrite(str(tmp_path / "photos" / f"{index}.jpg"), cv2.imread(str(path)))
    shutil.copy(tmp_path / "photos" / "0.jpg", tmp_path / "photo.jpg")
    film = cv2.VideoWriter(
        str(tmp_path / "clip.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), 25, (96, 64)
    )
    rng = np.random.default_rng(0)
    for _ in range(8):
        film.write(rng.integers(0, 255, (64, 96, 3), dtype=np.uint8))
    film.release()
    for name in ("demo", "tools", "examples"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(line: str, monkeypatch: pytest.MonkeyPatch) -> int:
    """Exit code of a command, without the seconds that a process of its own takes to start."""
    program, *arguments = shlex.split(line)
    assert program == "python", line
    monkeypatch.setattr(sys, "argv", arguments)
    try:
        runpy.run_path(arguments[0], run_name="__main__")
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def serve(line: str) -> None:
    """Start it, see that it serves, end it."""
    process = subprocess.Popen(
        [sys.executable, *shlex.split(line)[1:], "--port", "0"],
        env={**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    said = process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=60)
    assert "http://127.0.0.1:" in said, error
    assert process.returncode == 143, error


@pytest.mark.skipif(sys.platform == "win32", reason="other signals and links")
def test_every_block_runs(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("aiohttp")
    pytest.importorskip("onnxruntime")
    assert len(BLOCKS) > 10
    names: dict[str, object] = {}
    printed = ""
    for block in BLOCKS:
        if block.language == "python":
            exec(compile(block.text, str(PAGE), "exec"), names)
            printed += capsys.readouterr().out
            continue
        for line in block.text.splitlines():
            if block.note == "serves":
                serve(line)
                continue
            code = run(line, monkeypatch)
            error = capsys.readouterr().err
            if block.note:
                assert (code, error.count("\n")) == (2, 1), error
                assert block.note in error
            else:
                assert code == 0, f"{line}\n{error}"
    assert any(name in printed for name in NAMES)
    written = {"drawn.png", "photo.xml", "film.mp4", "sheet.jpg", "results.json", "found.json"}
    assert written <= {path.name for path in place.iterdir()}
    assert sorted(path.name for path in Path("labels").iterdir()) == ["0.json", "1.json", "2.json"]
