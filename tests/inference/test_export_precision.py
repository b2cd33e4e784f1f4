"""float16 and int8 where they do no harm: layers change, boxes do not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from detkit.inference.export.precision import body, to_float16, to_int8

onnx = pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")


@pytest.fixture
def toy(toy_onnx: Callable[..., Path], tmp_path: Path) -> Path:
    return toy_onnx(tmp_path / "toy.onnx")


def run(path: Path, images: np.ndarray, sizes: list[list[int]]) -> list[np.ndarray]:
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {"images": images, "sizes": np.array(sizes, np.int64)})


def pictures(count: int = 2) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 3, 32, 32), dtype=np.uint8)


def kinds(path: Path) -> dict[str, str]:
    """The type of each value that a layer makes, as shape inference sees it."""
    model = onnx.shape_inference.infer_shapes(onnx.load(str(path)))
    found = {}
    for value in [*model.graph.value_info, *model.graph.output]:
        found[value.name] = onnx.TensorProto.DataType.Name(value.type.tensor_type.elem_type)
    return found


def test_the_body_is_the_layers_and_what_lies_between_them(toy: Path) -> None:
    graph = onnx.load(str(toy)).graph
    inside = [graph.node[place].output[0] for place in sorted(body(graph))]
    assert inside == ["c1", "r1", "c2", "r2", "sum", "c3"]  # neither `normal` nor `best` and on


def test_float16_changes_the_body_alone(toy: Path, tmp_path: Path) -> None:
    half = tmp_path / "half.onnx"
    to_float16(toy, half)
    onnx.checker.check_model(onnx.load(str(half)))
    types = kinds(half)
    assert {types[name] for name in ("c1", "r1", "c2", "r2", "sum", "c3_half")} == {"FLOAT16"}
    assert {types[name] for name in ("normal", "c3", "best", "shift", "boxes")} == {"FLOAT"}
    stored = {each.name: each.data_type for each in onnx.load(str(half)).graph.initializer}
    assert stored["w1_half"] == onnx.TensorProto.FLOAT16 and "w1" not in stored
    assert stored["thousand"] == onnx.TensorProto.FLOAT


def test_float16_gives_nearly_the_same(toy: Path, tmp_path: Path) -> None:
    half, images = tmp_path / "half.onnx", pictures()
    to_float16(toy, half)
    sizes = [[32, 1333], [17, 31]]  # as float16, half of 1333 would be 666 or 667
    for exact, close in zip(run(toy, images, sizes), run(half, images, sizes), strict=True):
        np.testing.assert_allclose(close, exact, rtol=2e-3, atol=2e-3)
        assert exact.dtype == close.dtype
    assert run(half, images, sizes)[0][0, 0, 3] == 16


def test_int8_keeps_the_last_layer_and_gives_about_the_same(toy: Path, tmp_path: Path) -> None:
    small, images = tmp_path / "small.onnx", pictures(8)
    batches = iter([{"images": images, "sizes": np.array([[32, 32]] * 8, np.int64)}])
    to_int8(toy, small, batches)
    model = onnx.load(str(small))
    types = [node.op_type for node in model.graph.node]
    assert types.count("QuantizeLinear") >= 2
    stored = {each.name: each.data_type for each in model.graph.initializer}
    assert onnx.TensorProto.INT8 in stored.values()
    assert stored["w3"] == onnx.TensorProto.FLOAT  # it makes the score
    exact, close = run(toy, images, [[32, 32]] * 8), run(small, images, [[32, 32]] * 8)
    np.testing.assert_allclose(close[1], exact[1], atol=0.02 * exact[1].max())
    assert not np.array_equal(close[1], exact[1])


def test_the_metadata_says_the_precision(toy: Path, tmp_path: Path) -> None:
    half = tmp_path / "half.onnx"
    to_float16(toy, half)
    (entry,) = onnx.load(str(half)).metadata_props
    assert json.loads(entry.value)["precision"] == "fp16"
    (entry,) = onnx.load(str(toy)).metadata_props
    assert json.loads(entry.value)["precision"] == "fp32"
