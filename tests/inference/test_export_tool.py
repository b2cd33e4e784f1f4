"""tools/export.py: what it writes, what it refuses, and that the gate holds."""

from __future__ import annotations

import importlib.util
import logging
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

import detkit
from detkit import cli
from detkit.inference.export import release

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
TOOL = Path(__file__).resolve().parent.parent.parent / "tools" / "export.py"


class Done(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def line(self) -> str:
        """The one line in which it says what is wrong."""
        lines = [line for line in self.err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1 and self.err.endswith(lines[0] + "\n"), self.err
        return lines[0]


@pytest.fixture
def export(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Any:
    """Run the tool in this process as from the command line."""
    spec = importlib.util.spec_from_file_location("tools_export", TOOL)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def call(*arguments: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["tools/export.py", *map(str, arguments)])
        monkeypatch.setattr(logging.root, "handlers", [])
        capfd.readouterr()
        with pytest.raises(SystemExit) as caught:
            cli.run(module.main)
        return Done(int(caught.value.code or 0), *capfd.readouterr())

    return call


@pytest.fixture
def checkpoint(exported: tuple[Path, Path], tmp_path: Path) -> Path:
    """In a folder of its own, where the tool writes."""
    return Path(shutil.copy(exported[0], tmp_path / "best.pt"))


@pytest.fixture
def ready_made(exported: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`ready_made(weights=1.0)`: instead of tracing again, the file is there, right or wrong."""

    def use(weights: float = 1.0) -> None:
        def write(module: object, path: Path, metadata: dict[str, Any]) -> None:
            model = onnx.load(str(exported[1]))
            for each in model.graph.initializer:
                if len(each.dims) == 4:
                    values = onnx.numpy_helper.to_array(each) * np.float32(weights)
                    each.CopyFrom(onnx.numpy_helper.from_array(values, each.name))
            path.write_bytes(model.SerializeToString())

        monkeypatch.setitem(release._WRITERS, "onnx", write)

    return use


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_good_file_is_written_and_finds_the_same(export: Any, checkpoint: Path) -> None:
    done = export(checkpoint, "--format", "onnx")
    assert done.code == 0, done.err
    assert names(checkpoint.parent) == ["best.onnx", "best.pt"]
    head, torch_row, row, *_ = done.out.splitlines()
    assert head.split()[:3] == ["AP", "AP50", "same"]
    assert torch_row.startswith("torch") and row.startswith("fp32") and "100.00 %" in row
    assert torch_row.split()[1:3] == row.split()[1:3]
    assert "9 pictures of the validation set" in done.out and "written to" in done.out
    rng = np.random.default_rng(0)
    pictures = [
        rng.integers(0, 256, (*shape, 3), np.uint8) for shape in ((64, 64), (50, 90), (130, 41))
    ]
    expected = detkit.load(checkpoint, device="cpu")(pictures)
    found = detkit.load(checkpoint.with_suffix(".onnx"), device="cpu")(pictures)
    for one, other in zip(expected, found, strict=True):
        assert len(one) > 3
        torch.testing.assert_close(other.boxes, one.boxes, atol=1e-3, rtol=0)
        torch.testing.assert_close(other.scores, one.scores, atol=1e-5, rtol=0)
        assert torch.equal(other.labels, one.labels) and other.class_names == one.class_names


def test_a_wrong_file_does_not_get_its_name(
    export: Any, checkpoint: Path, ready_made: Callable[..., None]
) -> None:
    earlier = checkpoint.with_suffix(".onnx")
    earlier.write_bytes(b"of last week")
    ready_made(weights=1.1)
    done = export(checkpoint)
    assert done.code == 1
    assert "not as good as the checkpoint" in done.line and "best.onnx.rejected" in done.line
    assert earlier.read_bytes() == b"of last week"
    assert names(checkpoint.parent) == ["best.onnx", "best.onnx.rejected", "best.pt"]
    ready_made()
    assert export(checkpoint).code == 0
    assert names(checkpoint.parent) == [
        "best.onnx",
        "best.pt",
    ]  # the rejected one has its successor
    assert len(earlier.read_bytes()) > 1000


def test_precisions_stand_beside_each_other(
    export: Any, checkpoint: Path, ready_made: Callable[..., None]
) -> None:
    ready_made()
    done = export(checkpoint, "--precision", "fp32,fp16,int8", "--tolerance", 100)
    assert done.code == 0, done.err
    assert names(checkpoint.parent) == ["best.fp16.onnx", "best.int8.onnx", "best.onnx", "best.pt"]
    rows = [line.split()[0] for line in done.out.splitlines()[1:5]]
    assert rows == ["torch", "fp32", "fp16", "int8"]
    for precision in ("fp16", "int8"):
        predictor = detkit.load(checkpoint.with_suffix(f".{precision}.onnx"), device="cpu")
        assert predictor.detector.metadata.precision == precision


def test_one_precision_has_the_name_asked_for(
    export: Any, checkpoint: Path, ready_made: Callable[..., None]
) -> None:
    ready_made()
    out = checkpoint.parent / "deep" / "small.onnx"
    done = export(checkpoint, "--precision", "fp16", "--out", out, "--limit", 4)
    assert done.code == 0, done.err
    assert names(out.parent) == ["small.onnx"]
    assert "4 pictures" in done.out


def test_without_data_detections_are_compared(
    export: Any, checkpoint: Path, ready_made: Callable[..., None]
) -> None:
    nowhere = ("data.val=null", "data.test=null")
    ready_made()
    done = export(checkpoint, *nowhere)
    assert done.code == 0, done.err
    assert "generated pictures; AP was not measured" in done.out
    ready_made(weights=1.1)
    done = export(checkpoint, *nowhere)
    assert done.code == 1 and "of the detections agree" in done.line


def test_where_nothing_is_found_nothing_passes(
    export: Any, checkpoint: Path, ready_made: Callable[..., None]
) -> None:
    ready_made()
    done = export(checkpoint, "model.select.score_threshold=0.999")
    assert done.code == 1 and "nothing can be compared" in done.line


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--precision", "fp8"], "unknown precision 'fp8'"),
        (["--precision", ""], "unknown precision ''"),
        (["--format", "torchscript", "--precision", "fp32,fp16"], "in fp32 alone"),
        (["--out", "model.pt"], "does not end in .onnx"),
        (["--out", "{folder}"], "does not end in .onnx"),
        (["--data", "missing.json"], "missing.json"),
        (["--limit", "0"], "at least 1"),
        (["--precision", "int8", "data.train=null"], "no data.train"),
        (["--precision", "int8", "data.val=null", "data.test=null"], "needs data.val"),
        (["model.select.nms=wbf"], "wbf"),
        (["modle.x=1"], "modle"),
    ],
)
def test_mistakes_are_said_in_one_line(
    export: Any, checkpoint: Path, arguments: list[str], complaint: str
) -> None:
    folder = str(checkpoint.parent)
    done = export(checkpoint, *(each.format(folder=folder) for each in arguments))
    assert done.code == 2, done.err
    assert complaint in done.line
    assert names(checkpoint.parent) == ["best.pt"]


def test_what_is_not_installed_is_named(
    export: Any, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    done = export(checkpoint)
    assert done.code == 2 and "needs onnxscript: pip install onnxscript" in done.line


def test_ctrl_c_leaves_nothing(
    export: Any,
    checkpoint: Path,
    ready_made: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupt(*arguments: object, **settings: object) -> None:
        assert any(name.startswith(".best.onnx") for name in names(checkpoint.parent))
        raise KeyboardInterrupt

    ready_made()
    monkeypatch.setattr(release, "look", interrupt)
    assert export(checkpoint).code == 130
    assert names(checkpoint.parent) == ["best.pt"]
