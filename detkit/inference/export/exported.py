"""Use an exported file as the detector it was made from.

What loading may execute: an ONNX file holds numbers and operators of onnxruntime, no code. Files of
TorchScript and of torch.export are programs: load those of people you trust alone. A file without
detkit's metadata is refused before any of it is loaded.

B images in a batch, H and W their padded size, P proposals, K detections.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from detkit.config import Recipe
from detkit.detectors import Detector
from detkit.engine.device import pick_device
from detkit.inference.export.metadata import (
    KEY,
    SUFFIXES,
    Metadata,
    archive_metadata,
    format_of,
    parse_metadata,
)
from detkit.ops import scale_boxes
from detkit.structures import Batch, Detections

Outputs = tuple[Tensor, Tensor, Tensor]  # boxes [B, K, 4], scores [B, K], labels [B, K]
Run = Callable[[Mapping[str, Tensor]], Outputs]

OUTPUTS = ("boxes", "scores", "labels")
_TYPES = {
    "images": "tensor(uint8)",
    "sizes": "tensor(int64)",
    "proposals": "tensor(float)",
    "boxes": "tensor(float)",
    "scores": "tensor(float)",
    "labels": "tensor(int64)",
}


class ExportedDetector(Detector):
    """A detector that looks by an exported file; it predicts, and does not learn.

    Args:
        path: of a file that tools/export.py wrote; its suffix says the format.
        device: where to compute.

    Attributes:
        path: of the file.
        metadata: what the file says of itself.
        device: where it computes.

    Raises:
        ValueError: no such file, a damaged one, one of another program; a device that there is not.
    """

    def __init__(self, path: str | Path, device: torch.device | str = "cpu") -> None:
        self.path = Path(path)
        run, metadata = _open(self.path, torch.device(device))
        super().__init__(mean=metadata.recipe.model.mean, std=metadata.recipe.model.std)
        self.metadata = metadata
        self.device = torch.device(device)
        self._run = run

    @torch.no_grad()
    def predict(self, batch: Batch) -> list[Detections]:
        """Detections of each image in pixels of the original image, best first."""
        if len(batch) == 0:
            return []
        # What is in the file says in which precision it computes
        with torch.autocast(self.device.type, enabled=False):
            outputs = self._run(self.inputs(batch))
        rows = zip(*outputs, batch.sizes, batch.original_sizes, strict=True)
        return [_of_image(*each) for each in rows]

    def inputs(self, batch: Batch) -> dict[str, Tensor]:
        """What goes into the file for a batch, by name."""
        images = batch.images
        if images.is_floating_point():  # a resized copy of a picture, see ImagePyramid
            images = images.round().clamp(0, 255).to(torch.uint8)
        inputs = {"images": images.contiguous(), "sizes": torch.tensor(batch.sizes)}
        if "proposals" in self.metadata.inputs:
            inputs["proposals"] = _padded(batch)
        return {name: tensor.to(self.device) for name, tensor in inputs.items()}


def load_exported(
    path: str | Path, device: str | None = None, overrides: Sequence[str] = ()
) -> tuple[ExportedDetector, Recipe]:
    """An exported detector, and its recipe with `key.path=value` changes.

    Args:
        path: of the file.
        device: "cpu" or "cuda"; None takes the GPU where the file can be run on it.
        overrides: changes to all but the section `model`, which the file holds as it is.

    Raises:
        ValueError: see `ExportedDetector`; a setting that is none, or one of the model.
    """
    target = pick_device(device)
    if device is None and format_of(path) == "onnx" and "CUDA" not in " ".join(_providers()):
        target = torch.device("cpu")
    detector = ExportedDetector(path, target)
    recipe = detector.metadata.with_overrides(overrides)
    if recipe.model != detector.metadata.recipe.model:
        raise ValueError(
            f"{path} is exported: settings under model are fixed in it; change them in "
            "tools/export.py, which takes key.path=value too"
        )
    return detector, recipe


def _open(path: Path, device: torch.device) -> tuple[Run, Metadata]:
    kind = format_of(path)
    if kind is None:
        raise ValueError(f"{path} is no exported file by its name; known: {suffixes_text()}")
    if not path.is_file():
        raise ValueError(f"no exported file at {path}; tools/export.py writes one")
    return _OPENERS[kind](path, device)


def suffixes_text() -> str:
    """The formats and their suffixes, for messages."""
    return ", ".join(f"{suffix} ({name})" for name, suffix in SUFFIXES.items())


# ------------------------------------------------------------------------------------------ ONNX


def require_onnxruntime() -> Any:
    """The optional package.

    Raises:
        ValueError: it is not installed.
    """
    try:
        import onnxruntime
    except ImportError:
        raise ValueError(
            "ONNX files need onnxruntime: pip install onnxruntime (or onnxruntime-gpu)"
        ) from None
    return onnxruntime


def _providers() -> list[str]:
    return list(require_onnxruntime().get_available_providers())


def _open_onnx(path: Path, device: torch.device) -> tuple[Run, Metadata]:
    runtime = require_onnxruntime()
    wanted = ["CPUExecutionProvider"]
    if device.type == "cuda":
        wanted.insert(0, "CUDAExecutionProvider")
        if wanted[0] not in _providers():
            raise ValueError(
                "device 'cuda': this onnxruntime computes on the CPU alone; pip install "
                "onnxruntime-gpu, or use --device cpu"
            )
    options = runtime.SessionOptions()
    options.log_severity_level = 3  # errors; warnings are of optimisations
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        session = runtime.InferenceSession(str(path), options, providers=wanted)
    except Exception as error:  # each kind of damage has its own class, which is not public
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{path} is damaged or no ONNX file ({reason})") from None
    metadata = parse_metadata(session.get_modelmeta().custom_metadata_map.get(KEY), path)
    _check_ends(path, session.get_inputs(), metadata.inputs, "inputs")
    _check_ends(path, session.get_outputs(), OUTPUTS, "outputs")

    def run(inputs: Mapping[str, Tensor]) -> Outputs:
        arrays = {name: tensor.cpu().numpy() for name, tensor in inputs.items()}
        boxes, scores, labels = session.run(list(OUTPUTS), arrays)
        return torch.from_numpy(boxes), torch.from_numpy(scores), torch.from_numpy(labels)

    return run, metadata


def _check_ends(path: Path, given: Sequence[Any], names: Sequence[str], what: str) -> None:
    """Raise unless a graph has exactly these inputs or outputs, in their types."""
    found = {each.name: each.type for each in given}
    if found != {name: _TYPES[name] for name in names}:
        have = ", ".join(f"{name} {type_}" for name, type_ in found.items())
        want = ", ".join(f"{name} {_TYPES[name]}" for name in names)
        raise ValueError(
            f"{path} has the {what} {have}; detkit's are {want}: export it with tools/export.py"
        )


# ---------------------------------------------------------------------- TorchScript, torch.export


def _open_torchscript(path: Path, device: torch.device) -> tuple[Run, Metadata]:
    metadata = parse_metadata(archive_metadata(path), path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch.export is the format to come
            module = torch.jit.load(str(path), map_location=device).eval()
    except Exception as error:  # whatever its interpreter meets
        raise ValueError(f"{path} cannot be loaded as TorchScript ({_first_line(error)})") from None
    return _call_by_position(module, metadata), metadata


def _open_torch_export(path: Path, device: torch.device) -> tuple[Run, Metadata]:
    metadata = parse_metadata(archive_metadata(path), path)
    try:
        program = torch.export.load(str(path))
    except Exception as error:
        raise ValueError(
            f"{path} cannot be loaded by torch.export of torch {torch.__version__} "
            f"({_first_line(error)}); export it again with this version"
        ) from None
    if device.type != "cpu":
        raise ValueError(f"{path}: files of torch.export are run on the CPU; use --device cpu")
    return _call_by_position(program.module(), metadata), metadata


def _call_by_position(module: Callable[..., Outputs], metadata: Metadata) -> Run:
    """What was traced knows its arguments by their place."""

    def run(inputs: Mapping[str, Tensor]) -> Outputs:
        boxes, scores, labels = module(*(inputs[name] for name in metadata.inputs))
        return boxes, scores, labels

    return run


def _first_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line), type(error).__name__)[:160]


_OPENERS: dict[str, Callable[[Path, torch.device], tuple[Run, Metadata]]] = {
    "onnx": _open_onnx,
    "torchscript": _open_torchscript,
    "torch_export": _open_torch_export,
}


# -------------------------------------------------------------------------------- in and out of it


def _padded(batch: Batch) -> Tensor:
    """The proposals of all images, `[B, P, 4]` float32; rows of zeros are none."""
    if batch.proposals is None:
        raise ValueError("this detector looks at regions from outside, and the batch has none")
    most = max(1, *(len(each) for each in batch.proposals))
    padded = torch.zeros(len(batch), most, 4)
    for rows, proposals in zip(padded, batch.proposals, strict=True):
        rows[: len(proposals)] = proposals
    return padded


def _of_image(
    boxes: Tensor, scores: Tensor, labels: Tensor, size: tuple[int, int], original: tuple[int, int]
) -> Detections:
    """The rows of one image that are detections, in pixels of the original."""
    found = labels >= 0
    return Detections(scale_boxes(boxes[found], size, original), scores[found], labels[found])
