"""Exported files made by hand, so that what they find can be worked out on paper."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from detkit.config import Recipe
from detkit.detectors import create_detector
from detkit.engine.checkpoint import Checkpoint, save_checkpoint
from detkit.inference.export.formats import export_onnx
from detkit.inference.export.graph import exportable
from detkit.inference.export.metadata import KEY, Metadata

MakeToy = Callable[..., Path]


class Exported(NamedTuple):
    """A checkpoint and the ONNX file made of it."""

    checkpoint: Path
    onnx: Path


@pytest.fixture(scope="session")
def exported(
    tiny_recipe: Callable[..., Recipe], tmp_path_factory: pytest.TempPathFactory
) -> Exported:
    """A one-stage detector with random weights that finds something; never change the files."""
    pytest.importorskip("onnxscript")
    model = {
        "detector": "fcos",
        "backbone": {"name": "resnet18", "width": 8, "out_indices": [2, 3]},
        "fpn": {"channels": 16, "extra": None},
        "fcos": {"convs": 1, "norm": None, "prior": 0.3},
        "select": {"score_threshold": 0.1, "max_detections": 20},
    }
    recipe = tiny_recipe(f"model={json.dumps(model)}", "model.size_divisor=16")
    folder = tmp_path_factory.mktemp("exported")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        detector = create_detector(recipe.model, num_classes=3).eval()
        for name, parameter in detector.named_parameters():
            if "head" in name and parameter.ndim > 1:
                parameter.data *= 5  # an untrained head says the same everywhere
    names, ids = ("blue", "green", "red"), (7, 90, 300)
    save_checkpoint(
        folder / "best.pt",
        Checkpoint(recipe, names, ids, detector.state_dict(), 1, {}, training=None),
    )
    metadata = Metadata(recipe, names, ids).as_dict()
    export_onnx(exportable(detector, divisor=16), folder / "best.onnx", metadata)
    return Exported(folder / "best.pt", folder / "best.onnx")


@pytest.fixture(scope="session")
def toy_metadata(tiny_recipe: Callable[..., Recipe]) -> Metadata:
    """Of the toy below; three classes with ids 7, 90 and 300."""
    return Metadata(tiny_recipe(), ("blue", "green", "red"), (7, 90, 300))


@pytest.fixture(scope="session")
def toy_onnx(toy_metadata: Metadata) -> MakeToy:
    """`toy_onnx(path, **changes)`: write an ONNX file with a body, decoding and two rows.

    Row 0 is a detection of class 1: the upper left quarter of the image, moved right by 1000 times
    what two convolutions make of the mean of red, with the score that they make of it. Row 1 is
    empty. With weights of 1, two channels and a residual, both are `3 * red / 255 * 1e-3`.
    """
    onnx = pytest.importorskip("onnx")
    helper, types = onnx.helper, onnx.TensorProto

    def constant(name: str, values: Any, dtype: type) -> Any:
        return onnx.numpy_helper.from_array(np.asarray(values, dtype), name)

    def make(
        path: Path,
        *,
        weight: float = 1.0,
        metadata: dict[str, Any] | str | None = None,
        inputs: tuple[str, str] = ("images", "sizes"),
        key: str = KEY,
    ) -> Path:
        images, sizes = inputs
        nodes = [
            helper.make_node("Cast", [images], ["float"], to=types.FLOAT),
            helper.make_node("Mul", ["float", "scale"], ["normal"]),
            helper.make_node("Conv", ["normal", "w1"], ["c1"], name="first"),
            helper.make_node("Relu", ["c1"], ["r1"]),
            helper.make_node("Conv", ["r1", "w2"], ["c2"]),
            helper.make_node("Relu", ["c2"], ["r2"]),
            helper.make_node("Add", ["r1", "r2"], ["sum"]),
            helper.make_node("Conv", ["sum", "w3"], ["c3"], name="last"),  # [B, 1, H, W]
            helper.make_node("ReduceMax", ["c3", "hw"], ["best"], keepdims=0),  # [B, 1]
            helper.make_node("Mul", ["best", "thousand"], ["shift"]),
            helper.make_node("Cast", [sizes], ["hw_float"], to=types.FLOAT),  # [B, 2]
            helper.make_node("Mul", ["hw_float", "half"], ["half_size"]),
            helper.make_node("Split", ["half_size"], ["h", "w"], axis=1, num_outputs=2),
            helper.make_node("Mul", ["h", "zero"], ["y1"]),
            helper.make_node("Add", ["w", "shift"], ["x2"]),
            helper.make_node("Concat", ["shift", "y1", "x2", "h"], ["box"], axis=1),  # [B, 4]
            helper.make_node("Unsqueeze", ["box", "one"], ["box_row"]),
            helper.make_node("Mul", ["box_row", "row_mask"], ["boxes"]),  # [B, 2, 4]
            helper.make_node("Mul", ["best", "score_mask"], ["scores"]),  # [B, 2]
            helper.make_node("Mul", ["h", "zero_labels"], ["label_float"]),
            helper.make_node("Add", ["label_float", "label_values"], ["label_sum"]),
            helper.make_node("Cast", ["label_sum"], ["labels"], to=types.INT64),
        ]
        constants = [
            constant("scale", 1 / 255, np.float32),
            constant("w1", np.array([[1, 0, 0], [0.5, 0, 0]])[..., None, None], np.float32),
            constant("w2", np.array([[1, 0], [0, 1]])[..., None, None] * weight, np.float32),
            constant("w3", np.array([[0.5, 1.0]])[..., None, None] * 1e-3, np.float32),
            constant("hw", [2, 3], np.int64),
            constant("thousand", [1000.0], np.float32),
            constant("half", [0.5], np.float32),
            constant("zero", [0.0], np.float32),
            constant("one", [1], np.int64),
            constant("row_mask", [[[1.0], [0.0]]], np.float32),
            constant("score_mask", [[1.0, 0.0]], np.float32),
            constant("zero_labels", [[0.0, 0.0]], np.float32),
            constant("label_values", [[1.0, -1.0]], np.float32),
        ]
        graph = helper.make_graph(
            nodes,
            "toy",
            [
                helper.make_tensor_value_info(images, types.UINT8, ["B", 3, "H", "W"]),
                helper.make_tensor_value_info(sizes, types.INT64, ["B", 2]),
            ],
            [
                helper.make_tensor_value_info("boxes", types.FLOAT, ["B", 2, 4]),
                helper.make_tensor_value_info("scores", types.FLOAT, ["B", 2]),
                helper.make_tensor_value_info("labels", types.INT64, ["B", 2]),
            ],
            constants,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
        model.ir_version = 9
        entry = model.metadata_props.add()
        metadata = toy_metadata.as_dict() if metadata is None else metadata
        entry.key = key
        entry.value = metadata if isinstance(metadata, str) else json.dumps(metadata)
        onnx.checker.check_model(model)
        path.write_bytes(model.SerializeToString())
        return path

    return make
