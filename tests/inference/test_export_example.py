"""The stand-alone example finds what the predictor finds, where neither torch nor detkit is."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pytest
from PIL import Image

import detkit
from detkit.inference.export.metadata import Metadata

pytest.importorskip("onnxruntime")
EXAMPLE = Path(__file__).resolve().parent.parent.parent / "examples" / "infer_onnx.py"
# what an environment without them would do, and nothing of this checkout on the path (-I)
ALONE = f"""
import runpy, sys
class Without:
    def find_spec(self, name, *_):
        if name.split(".")[0] in ("torch", "torchvision", "detkit", "PIL", "onnx"):
            raise ImportError(f"the example must not need {{name}}")
sys.meta_path.insert(0, Without())
sys.argv = [{str(EXAMPLE)!r}, *sys.argv[1:]]
runpy.run_path({str(EXAMPLE)!r}, run_name="__main__")
"""


class Done(NamedTuple):
    code: int
    out: str
    err: str


def run(*arguments: object) -> Done:
    done = subprocess.run(
        [sys.executable, "-I", "-c", ALONE, *map(str, arguments)],
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=300,
    )
    return Done(done.returncode, done.stdout, done.stderr)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """To be enlarged and shrunk, grey, turned by its EXIF orientation, with a name in Greek."""
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    paths = []
    for name, shape in (("a.png", (50, 37, 3)), ("grey.png", (120, 200)), ("φ.png", (64, 64, 3))):
        small = rng.integers(0, 256, (shape[0] // 8, shape[1] // 8, *shape[2:]), np.uint8)
        pixels = cv2.resize(small, shape[1::-1])
        Image.fromarray(pixels).save(folder / name)
        paths.append(folder / name)
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(cv2.resize(small, (90, 60))).save(folder / "turned.jpg", exif=exif)
    return [*paths, folder / "turned.jpg"]


def test_it_finds_what_the_predictor_finds(
    exported: tuple[Path, Path], pictures: list[Path], tmp_path: Path
) -> None:
    done = run(exported[1], *pictures, "--threshold", 0.15, "--out", tmp_path)
    assert done.code == 0, done.err
    results = json.loads(done.out)
    predictor = detkit.load(exported[0], device="cpu")
    assert [each["file"] for each in results] == [str(path) for path in pictures]
    for path, result in zip(pictures, results, strict=True):
        expected = predictor(path, score_threshold=0.15)
        found = result["detections"]
        assert len(found) == len(expected) > 0
        boxes = np.array([each["box"] for each in found])
        np.testing.assert_allclose(boxes, expected.boxes.numpy(), atol=1e-3)
        scores = [each["score"] for each in found]
        np.testing.assert_allclose(scores, expected.scores.numpy(), atol=1e-5)
        labels = expected.labels.tolist()
        assert [each["class"] for each in found] == [predictor.class_names[i] for i in labels]
        assert [each["category_id"] for each in found] == [(7, 90, 300)[i] for i in labels]
        drawn = cv2.imdecode(np.fromfile(tmp_path / f"{path.stem}.jpg", np.uint8), 1)
        assert drawn.shape[:2] == cv2.imdecode(np.fromfile(path, np.uint8), 1).shape[:2]


def test_mistakes_are_said_in_one_line(
    toy_onnx: Callable[..., Path], toy_metadata: Metadata, pictures: list[Path], tmp_path: Path
) -> None:
    foreign = toy_onnx(tmp_path / "foreign.onnx", key="yolo")
    outside = toy_metadata.as_dict() | {"inputs": ["images", "sizes", "proposals"]}
    regions = toy_onnx(tmp_path / "regions.onnx", metadata=outside)
    good = toy_onnx(tmp_path / "good.onnx")
    (tmp_path / "text.png").write_text("no picture")
    for arguments, complaint in (
        ((foreign, pictures[0]), "no detkit metadata"),
        ((regions, pictures[0]), "regions that another program proposes"),
        ((tmp_path / "missing.onnx", pictures[0]), "cannot be loaded"),
        ((good, tmp_path / "missing.png"), "cannot read"),
        ((good, tmp_path / "text.png"), "is no picture"),
    ):
        done = run(*arguments)
        assert (done.code, done.out) == (1, ""), done.err
        assert done.err.startswith("error: ") and done.err.count("\n") == 1
        assert complaint in done.err


def test_it_is_short_and_needs_little() -> None:
    text = EXAMPLE.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 150
    assert "import torch" not in text and "import detkit" not in text
