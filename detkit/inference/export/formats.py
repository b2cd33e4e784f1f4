"""Write an exportable detector to a file: ONNX, TorchScript or torch.export.

All of them take the same inputs and give the same outputs, under the same names, see
`ExportableDetector.forward`. B images, H and W their padded size, P regions.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.export import Dim

from detkit.files import open_atomically, write_atomically
from detkit.inference.export.graph import ExportableDetector
from detkit.inference.export.places import NOTHING
from detkit.inference.export.suppression import onnx_operators
from detkit.structures import Size

KEY = "detkit"  # of the metadata in the file
OPSET = 18
_BOOL, _INT32 = 9, 6  # types of ONNX
INPUTS = ("images", "sizes", "proposals")
OUTPUTS = ("boxes", "scores", "labels")


def export_onnx(
    module: ExportableDetector,
    path: str | Path,
    metadata: dict[str, Any],
    *,
    opset: int = OPSET,
    dynamic: bool = True,
    example: Size | None = None,
) -> None:
    """Write an ONNX file.

    Args:
        module: on the CPU.
        path: of the file.
        metadata: plain values, kept as JSON under `KEY`.
        opset: of the operators, at least 18.
        dynamic: whether B, H, W and P may differ from one call to the next; else they are those of
            the example, of one image.
        example: (height, width) of the images to trace with, multiples of the divisor; None for
            some.

    Raises:
        ValueError: an older opset.
    """
    if opset < OPSET:
        raise ValueError(f"opset {opset} is older than {OPSET}, the first whose operators suffice")
    inputs = example_inputs(module, batch=2 if dynamic else 1, size=example)
    with quietly(), onnx_operators(), torch.no_grad():
        program = torch.onnx.export(
            module,
            inputs,
            dynamo=True,
            verbose=False,
            input_names=INPUTS[: len(inputs)],
            output_names=OUTPUTS,
            opset_version=opset,
            dynamic_shapes=_dynamic_shapes(module) if dynamic else None,
            custom_translation_table=_translations(),
        )
    assert program is not None
    model = program.model_proto
    entry = model.metadata_props.add()
    entry.key, entry.value = KEY, json.dumps(metadata)
    write_atomically(path, model.SerializeToString())


def _translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """What the exporter does not know, or knows wrongly, in operators of ONNX."""
    from onnxscript import opset18

    op: Any = opset18  # takes numbers for tensors, which its annotations do not say

    def keep(boxes: Any, scores: Any, groups: Any, num_groups: int, iou_threshold: float) -> Any:
        """`suppression.keep`: one run of `NonMaxSuppression` for all groups of all images."""
        group = op.Constant(value=_array(np.arange(num_groups)[:, None]))  # [G, 1]
        own = op.Equal(op.Unsqueeze(groups, [1]), group)  # [B, G, M]
        apart = op.Where(own, op.Unsqueeze(scores, [1]), op.Constant(value_float=NOTHING))
        most = op.Shape(boxes, start=1, end=2)
        kept = op.NonMaxSuppression(boxes, apart, most, iou_threshold, NOTHING / 2)  # [n, 3]
        places = op.Gather(kept, [0, 2], axis=1)  # [n, 2] of image and box
        zeros = op.Expand(0.0, op.Shape(scores))
        ones = op.Expand(1.0, op.Shape(kept, start=0, end=1))
        return op.Cast(op.ScatterND(zeros, places, ones), to=_BOOL)

    def roi_pool(image: Any, rois: Any, scale: float, height: int, width: int) -> Any:
        """Of torchvision; the second result, where each maximum stood, nobody asks for."""
        pooled = op.MaxRoiPool(image, rois, pooled_shape=[height, width], spatial_scale=scale)
        return pooled, op.Cast(pooled, to=_INT32)

    return {
        torch.ops.detkit.keep.default: keep,
        torch.ops.torchvision.roi_pool.default: roi_pool,
    }


def _array(values: np.ndarray) -> Any:
    from onnx.numpy_helper import from_array

    return from_array(values)


def example_inputs(
    module: ExportableDetector, *, batch: int = 2, size: Size | None = None
) -> tuple[Tensor, ...]:
    """Grey images, of two different sides where none are given."""
    height, width = size or (8 * module.divisor, 10 * module.divisor)
    images = torch.full((batch, 3, height, width), 127, dtype=torch.uint8)
    sizes = torch.tensor([[height, width]] * batch)
    if not module.takes_proposals:
        return images, sizes
    regions = torch.tensor([[0.0, 0.0, width / 2, height / 2]] * 3).expand(batch, -1, -1)
    return images, sizes, regions.contiguous()


def _dynamic_shapes(module: ExportableDetector) -> tuple[dict[int, Any], ...]:
    batch = Dim("batch", min=1)
    height, width = (module.divisor * Dim(name, min=1, max=512) for name in ("rows", "columns"))
    shapes = ({0: batch, 2: height, 3: width}, {0: batch})
    if not module.takes_proposals:
        return shapes
    return (*shapes, {0: batch, 1: Dim("regions", min=1, max=module.most_proposals)})


def export_torchscript(
    module: ExportableDetector, path: str | Path, metadata: dict[str, Any]
) -> None:
    """Write a TorchScript file; whoever loads it imports torchvision, too, for its operators."""
    example = example_inputs(module)
    with quietly(), torch.no_grad():
        traced = torch.jit.trace(module, example, check_trace=False)
    with open_atomically(path) as handle, quietly():
        torch.jit.save(traced, handle, _extra_files={KEY: json.dumps(metadata)})


def export_torch(module: ExportableDetector, path: str | Path, metadata: dict[str, Any]) -> None:
    """Write a file of torch.export (.pt2); whoever loads it imports torchvision, too."""
    example = example_inputs(module)
    with quietly(), torch.no_grad():
        program = torch.export.export(
            module, example, dynamic_shapes=_dynamic_shapes(module), strict=False
        )
    with open_atomically(path) as handle, quietly():
        torch.export.save(program, handle, extra_files={KEY: json.dumps(metadata)})


@contextmanager
def quietly() -> Iterator[None]:
    """Without the exporters' chatter."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before = logging.root.manager.disable
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(before)
