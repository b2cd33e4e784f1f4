"""An exported file in place of the detector: what it finds, and what is no exported file."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import detkit
from detkit.inference.export.exported import ExportedDetector
from detkit.inference.export.metadata import Metadata
from detkit.structures import Batch, Detections

pytest.importorskip("onnxruntime")
MakeToy = Callable[..., Path]


@pytest.fixture
def toy(toy_onnx: MakeToy, tmp_path: Path) -> Path:
    return toy_onnx(tmp_path / "toy.onnx")


def red(height: int, width: int, value: int = 204) -> np.ndarray:
    picture = np.zeros((height, width, 3), np.uint8)
    picture[..., 0] = value
    return picture


def check(found: Detections, box: list[float], score: float) -> None:
    torch.testing.assert_close(found.boxes, torch.tensor([box]), atol=1e-4, rtol=0)
    torch.testing.assert_close(found.scores, torch.tensor([score]), atol=1e-6, rtol=0)
    assert found.labels.tolist() == [1]


def test_rows_become_detections_in_pixels_of_the_original(toy: Path) -> None:
    # c1 = (0.8, 0.4); the sum with the residual (1.6, 0.8); best = (0.5 * 1.6 + 0.8) / 1000
    images = torch.from_numpy(red(32, 64)).permute(2, 0, 1)[None].repeat(2, 1, 1, 1)
    batch = Batch(images, sizes=((32, 64), (20, 40)), original_sizes=((32, 64), (40, 120)))
    first, second = ExportedDetector(toy).predict(batch)
    check(first, [1.6, 0, 33.6, 16], 1.6e-3)
    check(second, [1.6 * 3, 0, 21.6 * 3, 20], 1.6e-3)


def test_resized_copies_and_no_images(toy: Path) -> None:
    detector = ExportedDetector(toy)
    images = torch.full((1, 3, 32, 32), 203.6)
    (found,) = detector.predict(Batch(images, ((32, 32),), ((32, 32),)))  # rounded to 204
    check(found, [1.6, 0, 17.6, 16], 1.6e-3)
    assert detector.predict(Batch(images[:0], (), ())) == []


def test_load_takes_an_exported_file(toy: Path) -> None:
    predictor = detkit.load(toy, device="cpu")
    assert predictor.class_names == ("blue", "green", "red")
    assert predictor.category_ids == (7, 90, 300)
    found = predictor([red(100, 200), red(64, 32, 102)])  # resized to 32 x 64 and 64 x 32
    check(found[0], [1.6 * 3.125, 0, 33.6 * 3.125, 50], 1.6e-3)
    check(found[1], [0.8, 0, 16.8, 32], 0.8e-3)
    assert len(predictor(red(64, 64), score_threshold=0.5)) == 0


def test_what_the_recipe_says_of_looks_holds(toy: Path) -> None:
    predictor = detkit.load(toy, device="cpu", overrides=["test.flip=true", "test.fusion.nms=nmm"])
    found = predictor(red(64, 64))
    # the left part, and from the mirror image the right one
    assert found.boxes[:, 0].min() < 2 and found.boxes[:, 2].max() > 60


def test_what_is_in_the_graph_cannot_be_changed(toy: Path) -> None:
    with pytest.raises(ValueError, match=r"toy\.onnx is exported: settings under model are fixed"):
        detkit.load(toy, device="cpu", overrides=["model.select.iou_threshold=0.3"])
    with pytest.raises(ValueError, match="did you mean"):
        detkit.load(toy, device="cpu", overrides=["test.flipp=true"])


def refusal(path: Path) -> str:
    with pytest.raises(ValueError) as caught:
        detkit.load(path, device="cpu")
    line = str(caught.value)
    assert path.name in line and "\n" not in line
    return line


def test_files_that_are_no_exported_detectors(toy: Path, toy_onnx: MakeToy, tmp_path: Path) -> None:
    other = toy_onnx(tmp_path / "other.onnx", key="yolo")
    assert "was not exported by detkit" in refusal(other)
    renamed = toy_onnx(tmp_path / "renamed.onnx", inputs=("pixels", "sizes"))
    assert "pixels tensor(uint8)" in refusal(renamed)
    later = toy_onnx(tmp_path / "later.onnx", metadata='{"version": 99}')
    assert "metadata version 99" in refusal(later)
    data = toy.read_bytes()
    for damage in (data[: len(data) // 2], b"", b"text", bytes(1000)):
        (tmp_path / "broken.onnx").write_bytes(damage)
        refusal(tmp_path / "broken.onnx")
    assert "no exported file at" in refusal(tmp_path / "missing.onnx")


@pytest.mark.parametrize("suffix", [".torchscript", ".pt2"])
def test_archives_that_are_no_exported_detectors(
    toy_metadata: Metadata, tmp_path: Path, suffix: str
) -> None:
    path = tmp_path / f"model{suffix}"
    path.write_bytes(b"no archive")
    assert "damaged" in refusal(path)
    for member, complaint in (("extra/other", "was not exported"), ("extra/detkit", "be loaded")):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(member, json.dumps(toy_metadata.as_dict()))
            archive.writestr("data.pkl", b"cos\nsystem\n(S'touch executed'\ntR.")
        assert complaint in refusal(path)
    assert not (tmp_path / "executed").exists() and not Path("executed").exists()


def test_a_device_that_there_is_not(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(ValueError, match="onnxruntime-gpu"):
        ExportedDetector(toy, "cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert detkit.load(toy).device.type == "cpu"  # torch's GPU is no use to this onnxruntime


def test_without_onnxruntime_one_line_says_what_to_install(toy: Path) -> None:
    code = f"""
import sys
sys.modules["onnxruntime"] = None
import detkit
try:
    detkit.load({str(toy)!r})
except ValueError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert "pip install onnxruntime" in done.stdout, done.stderr
    assert done.stdout.count("\n") == 1


class Doubling(torch.nn.Module):
    """The upper left quarter of each image, with the mean of its pixels as the score."""

    def forward(self, images: Any, sizes: Any) -> Any:
        half = sizes.float() / 2
        zero = torch.zeros_like(half)
        boxes = torch.cat([zero, half.flip(1)], dim=1)[:, None]
        scores = images.float().mean(dim=(1, 2, 3))[:, None] / 255
        return boxes, scores, torch.zeros_like(sizes[:, :1])


@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")
@pytest.mark.parametrize("kind", ["torchscript", "pt2"])
def test_formats_of_torch(toy_metadata: Metadata, tmp_path: Path, kind: str) -> None:
    path, extra = tmp_path / f"model.{kind}", {"detkit": json.dumps(toy_metadata.as_dict())}
    example = (torch.zeros(2, 3, 32, 64, dtype=torch.uint8), torch.ones(2, 2, dtype=torch.int64))
    if kind == "torchscript":
        torch.jit.trace(Doubling(), example).save(str(path), _extra_files=extra)
    else:
        torch.export.save(torch.export.export(Doubling(), example), str(path), extra_files=extra)
    images = torch.full((2, 3, 32, 64), 51, dtype=torch.uint8)
    batch = Batch(images, sizes=((32, 64), (16, 32)), original_sizes=((64, 128), (16, 32)))
    first, second = ExportedDetector(path).predict(batch)
    assert first.boxes.tolist() == [[0, 0, 64, 32]] and second.boxes.tolist() == [[0, 0, 16, 8]]
    assert first.scores.tolist() == pytest.approx([0.2])
