"""Smaller numbers in an ONNX file: the layers in float16 or int8, boxes and NMS in float32.

A coordinate of 1333 pixels has no float16 nearer than half a pixel, and as int8 it would be one of
256. So only the body is changed: convolutions and matrix products, and what lies between two of
them. What comes after the last of them decodes boxes and selects, and stays as it is.
"""

from __future__ import annotations

import json
import logging
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from detkit.files import open_atomically
from detkit.inference.export.exported import require_onnxruntime
from detkit.inference.export.metadata import KEY

LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
# What may lie between layers: none of it needs more than their numbers
BETWEEN = frozenset(
    {
        *("Add", "AveragePool", "BatchNormalization", "Clip", "Concat", "Flatten", "Identity"),
        *("GlobalAveragePool", "HardSigmoid", "HardSwish", "LeakyRelu", "MaxPool", "Mul", "Pad"),
        *("PRelu", "Relu", "Reshape", "Resize", "Sigmoid", "Squeeze", "Tanh", "Transpose"),
    }
)
# Their other inputs are shapes and the like; Clip and Pad also have values
_SHAPED = {"Clip": (0, 1, 2), "Pad": (0, 2), "Reshape": (0,), "Resize": (0,), "Squeeze": (0,)}
_INT8 = ("Add", "Concat", "Conv", "Gemm", "GlobalAveragePool", "MatMul", "MaxPool", "Relu")


def to_float16(source: Path, target: Path) -> None:
    """Write an ONNX file whose body computes in float16 and whose weights take half the room.

    Args:
        source: in float32.
        target: to write; inputs and outputs stay as they are.
    """
    model = _folded(source)
    _halve(model.graph)
    _set_precision(model, "fp16")
    save(model, target)


def to_int8(source: Path, target: Path, pictures: Iterator[Mapping[str, np.ndarray]]) -> None:
    """Write an ONNX file whose body computes in int8, with ranges as these pictures have them.

    Static quantisation with a scale for each output channel of the weights. The last layers, which
    give scores and offsets of boxes, stay in float32: their numbers are reported.

    Args:
        source: in float32.
        target: to write; inputs and outputs stay as they are.
        pictures: batches to calibrate with, as the graph takes them.
    """
    from onnxruntime import quantization

    onnx = _onnx()
    model = _folded(source)
    for place, node in enumerate(model.graph.node):
        node.name = f"{place}_{node.op_type}"  # by which the quantiser knows them
    inside, users = body(model.graph), _users(model.graph)
    chosen = [
        node.name
        for place, node in enumerate(model.graph.node)
        if place in inside and any(users[name] & inside for name in node.output)
    ]

    class Reader(quantization.CalibrationDataReader):
        def get_next(self) -> Mapping[str, np.ndarray] | None:
            return next(pictures, None)

    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".int8.") as folder, _quiet():
        made = Path(folder, "int8.onnx")
        quantization.quantize_static(
            model,
            str(made),
            Reader(),
            nodes_to_quantize=chosen,
            op_types_to_quantize=list(_INT8),
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
        )
        quantised = onnx.load(str(made))
    _set_precision(quantised, "int8")
    save(quantised, target)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the quantiser's advice on the root logger, and numpy's on maps that are all 0."""
    logging.disable(logging.WARNING)
    try:
        with np.errstate(divide="ignore", invalid="ignore"):
            yield
    finally:
        logging.disable(logging.NOTSET)


def _folded(source: Path) -> Any:
    """The model with batch norms folded into the layers before them, which rounds once, not twice.

    onnxruntime does so anyway when it loads a file; here only what stays in operators of ONNX.
    """
    runtime, onnx = require_onnxruntime(), _onnx()
    with tempfile.TemporaryDirectory() as folder:
        options = runtime.SessionOptions()
        options.log_severity_level = 3
        options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(Path(folder, "folded.onnx"))
        runtime.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])
        model = onnx.load(options.optimized_model_filepath)
    used = {node.domain for node in model.graph.node}
    needed = [each for each in model.opset_import if each.domain in used]
    del model.opset_import[:]
    model.opset_import.extend(needed)
    return model


def body(graph: Any) -> set[int]:
    """Which nodes of a graph are its layers, and what lies between them: their places in it.

    Args:
        graph: an `onnx.GraphProto`; its nodes stand in an order in which they can be computed.
    """
    makers = {
        name: place
        for place, node in enumerate(graph.node)
        for name in node.output
        if node.op_type != "Constant"
    }
    vectors = {each.name for each in graph.initializer if len([n for n in each.dims if n > 1]) < 2}
    inside: set[int] = set()
    for place, node in enumerate(graph.node):
        # a product with a vector is the mean of a distribution over distances: decoding
        layer = node.op_type in LAYERS and not (
            node.op_type == "MatMul" and {*node.input} & vectors
        )
        before = [makers[node.input[i]] in inside for i in _values(node) if node.input[i] in makers]
        if layer or (node.op_type in BETWEEN and before and all(before)):
            inside.add(place)
    users, ends = _users(graph), {output.name for output in graph.output}
    while True:  # what no layer comes after belongs to decoding
        loose = {
            place
            for place in inside
            if graph.node[place].op_type not in LAYERS
            and any(name in ends or not users[name] <= inside for name in graph.node[place].output)
        }
        if not loose:
            return inside
        inside -= loose


def _halve(graph: Any) -> None:
    """Let the body of a graph compute in float16, with casts where numbers enter and leave it."""
    onnx = _onnx()
    half, full = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT
    inside, users = body(graph), _users(graph)
    ends = {output.name for output in graph.output}
    weights = {each.name: each for each in graph.initializer}
    made_inside = {name for place in inside for name in graph.node[place].output}
    halves: dict[str, str] = {}  # of what comes from outside the body, by its name
    nodes: list[Any] = []
    for place, node in enumerate(graph.node):
        if place not in inside:
            nodes.append(node)
            continue
        for i in _values(node):
            name = node.input[i]
            if name in made_inside:
                node.input[i] = halves.get(name, name)
                continue
            if name not in halves:
                halves[name] = f"{name}_half"
                if name in weights:
                    values = onnx.numpy_helper.to_array(weights[name]).astype(np.float16)
                    graph.initializer.append(onnx.numpy_helper.from_array(values, halves[name]))
                else:
                    nodes.append(onnx.helper.make_node("Cast", [name], [halves[name]], to=half))
            node.input[i] = halves[name]
        nodes.append(node)
        for i, name in enumerate(node.output):
            if name in ends or not users[name] <= inside:
                halves[name] = node.output[i] = f"{name}_half"
                nodes.append(onnx.helper.make_node("Cast", [halves[name]], [name], to=full))
    del graph.node[:]
    graph.node.extend(nodes)
    del graph.value_info[:]  # tells types, which have changed
    used = set(_users(graph)) | ends
    kept = [each for each in graph.initializer if each.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def _values(node: Any) -> list[int]:
    """Which inputs of a node of the body are numbers of its precision."""
    places = _SHAPED.get(node.op_type, range(len(node.input)))
    return [i for i in places if i < len(node.input) and node.input[i]]


def _users(graph: Any) -> dict[str, set[int]]:
    """Which nodes use a value, also from inside the graphs of loops and branches."""
    users: dict[str, set[int]] = defaultdict(set)
    for place, node in enumerate(graph.node):
        for name in _used_by(node):
            users[name].add(place)
    return users


def _used_by(node: Any) -> Iterator[str]:
    yield from node.input
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            for inner in graph.node:
                yield from _used_by(inner)


def _onnx() -> Any:
    try:
        import onnx
        import onnx.numpy_helper
    except ImportError:
        raise ValueError("precisions fp16 and int8 need onnx: pip install onnx") from None
    return onnx


def _set_precision(model: Any, precision: str) -> None:
    """Say in the metadata what an `onnx.ModelProto` computes in."""
    for entry in model.metadata_props:
        if entry.key == KEY:
            entry.value = json.dumps({**json.loads(entry.value), "precision": precision})


def save(model: Any, path: Path) -> None:
    """Write an `onnx.ModelProto`."""
    with open_atomically(path) as handle:
        handle.write(model.SerializeToString())
