"""A finished detector made faster, and what that costs.

Batch norm goes into the convolutions, maps are laid out channels_last, and layers compute in
bfloat16 where the hardware does. What is found then differs a little: how much is measured on
pictures, never assumed.
"""

from __future__ import annotations

import copy
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import nn

from detkit.config import Recipe
from detkit.data import CocoDataset, Sample, collate
from detkit.data.synthetic.scene import render_scene
from detkit.detectors import Detector
from detkit.engine.data import build_dataset, check_same_classes
from detkit.engine.device import cpu_has_bf16
from detkit.engine.evaluate import measure
from detkit.inference.export.exported import ExportedDetector
from detkit.inference.export.gate import SAME_IOU, SAME_SCORE, Agreement, agree
from detkit.inference.folding import fold_batch_norm
from detkit.inference.pictures import Picture, each_picture
from detkit.registry import suggest
from detkit.structures import Batch, Detections, Size

PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
DEFAULT_LIMIT = 64  # pictures to measure on
_GENERATED = 8
_ONE_PICTURE = (str, os.PathLike, np.ndarray, torch.Tensor)


@dataclass(frozen=True)
class Cost:
    """How what an optimised detector finds differs from what it found before.

    Attributes:
        where: the pictures that it was measured on, for people.
        pictures: how many.
        agreement: of the detections themselves.
        ap_before: AP in 0..1 before; None without truths.
        ap_after: AP after.
    """

    where: str
    pictures: int
    agreement: Agreement
    ap_before: float | None = None
    ap_after: float | None = None

    def __str__(self) -> str:
        on = f"on {self.pictures} pictures ({self.where})"
        if self.agreement.count == 0:
            return f"nothing can be said about accuracy: nothing was found {on}"
        same = (
            f"{100 * self.agreement.share:.2f} % of {self.agreement.count} detections are the same "
            f"(class, IoU {SAME_IOU}, score within {SAME_SCORE})"
        )
        if self.ap_before is None or self.ap_after is None:
            return f"AP not measured (no truths); {same} {on}"
        before, after = 100 * self.ap_before, 100 * self.ap_after
        return f"AP {before:.2f} -> {after:.2f} ({after - before:+.2f} points), {same} {on}"


@dataclass(frozen=True)
class Changes:
    """What was done to a detector.

    Attributes:
        folded: batch norms that went into convolutions.
        left: batch norms that could not.
        precision: one of `PRECISIONS`.
        compiled: the network goes through torch.compile.
    """

    folded: int
    left: int
    precision: str
    compiled: bool = False

    def __str__(self) -> str:
        norms = f"{self.folded} batch norms folded"
        if self.left:
            norms += f" ({self.left} left)"
        parts = [norms, "channels_last", self.precision]
        if self.compiled:
            parts.append("compiled")
        return ", ".join(parts)


class Finder(Protocol):
    """What is needed here of a `Predictor`, which itself needs this module."""

    detector: Detector
    recipe: Recipe
    class_names: tuple[str, ...]
    device: torch.device
    cost: Cost | None

    def __call__(self, pictures: list[Any]) -> list[Detections]:
        """Detections in each picture."""
        ...

    def prepare(self, picture: Picture) -> Sample:
        """A picture as testing prepares it."""
        ...

    def with_detector(self: P, detector: Detector) -> P:
        """The same with another detector."""
        ...


P = TypeVar("P", bound=Finder)


class OptimizedDetector(Detector):
    """A detector whose layers compute in a precision of their own; for prediction only.

    Args:
        detector: optimised already.
        dtype: of convolutions and matrices; None as they are.
        device: where it is.

    Attributes:
        changes: what was done to it.
    """

    def __init__(
        self,
        detector: Detector,
        changes: Changes,
        *,
        dtype: torch.dtype | None,
        device: torch.device,
    ) -> None:
        super().__init__(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
        self.mean, self.std = detector.mean, detector.std
        self.detector = detector
        self.changes = changes
        self.dtype = dtype
        self.device = device

    @torch.no_grad()
    def predict(self, batch: Batch) -> list[Detections]:
        """Detections of each image in pixels of the original image, best first."""
        with torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype is not None):
            return self.detector.predict(batch)


def optimize(
    predictor: P,
    pictures: Picture | Iterable[Picture] | None = None,
    *,
    precision: str | None = None,
    compile: bool = False,
    limit: int = DEFAULT_LIMIT,
) -> P:
    """A faster predictor; what it finds differently is measured and told on standard error.

    Args:
        predictor: stays as it is.
        pictures: what to measure on: paths, folders, patterns or arrays. None takes the first
            pictures of the recipe's data.val (or data.test) with their truths, which give AP; where
            they are not to be had, generated ones.
        precision: "fp32", "bf16" or, on a GPU, "fp16"; None is bf16 where the hardware computes in
            it (AVX512-BF16, AMX, compute capability 8), else fp32.
        compile: have torch.compile translate backbone and neck, for pictures of any size. Off: on a
            core of an AMD EPYC (Zen 5) the first picture took 42 s (9 s for the next detector), and
            the others 0 to 6 % less time (Faster R-CNN, RetinaNet, FCOS, task-aligned; bf16).
        limit: at most so many pictures are looked at to measure.

    Returns:
        A predictor whose attribute `cost` says what was measured.

    Raises:
        ValueError: an unknown precision, one that the device has not, a limit below 1, an exported
            file (which is what it is), or an optimised predictor.
    """
    if any(isinstance(each, ExportedDetector) for each in predictor.detector.modules()):
        raise ValueError("an exported file cannot be optimised; optimise the checkpoint, or export")
    if isinstance(predictor.detector, OptimizedDetector):
        raise ValueError("the predictor is optimised already; load the checkpoint again")
    if limit < 1:
        raise ValueError(f"limit must be at least 1 picture, got {limit}")
    quick = optimize_detector(predictor, precision=precision, compile=compile)
    faster = predictor.with_detector(quick)
    faster.cost = measure_cost(predictor, faster, pictures, limit=limit)
    sys.stderr.write(f"optimised: {quick.changes}\n  {faster.cost}\n")
    return faster


def optimize_detector(
    predictor: Finder,
    *,
    precision: str | None = None,
    compile: bool = False,
) -> OptimizedDetector:
    """The faster form of a predictor's detector; nothing is measured. See `optimize`."""
    device = predictor.device
    name = pick_precision(precision, device)
    detector = copy.deepcopy(predictor.detector)
    # not by a call of the predictor: autocast would hand copies of the weights to convolutions
    samples = [predictor.prepare(picture) for picture in _generated(1, (256, 320))]
    batch = collate(samples, divisor=predictor.recipe.model.size_divisor).without_targets()
    folded, left = fold_batch_norm(detector, lambda: detector.predict(batch.to(device)))
    detector = detector.to(memory_format=torch.channels_last)
    dtype = PRECISIONS[name]
    if dtype is not None:
        store_weights(detector, dtype)
    if compile:
        _compile(detector)
    changes = Changes(folded, left, name, compile)
    return OptimizedDetector(detector, changes, dtype=dtype, device=device).eval()


def in_precision(detector: Detector, precision: str, device: torch.device) -> OptimizedDetector:
    """The detector as it is, whose layers compute in one of `PRECISIONS`."""
    changes = Changes(0, 0, precision)
    return OptimizedDetector(detector, changes, dtype=PRECISIONS[precision], device=device).eval()


def pick_precision(name: str | None, device: torch.device) -> str:
    """The precision to compute in; None takes bf16 where the hardware has it.

    Raises:
        ValueError: it is unknown, or the device has it not.
    """
    if name is None:
        return "bf16" if has_bf16(device) else "fp32"
    if name not in PRECISIONS:
        raise ValueError(f"unknown precision {name!r}; {suggest(name, PRECISIONS)}")
    if name == "fp16" and device.type == "cpu":
        raise ValueError("precision 'fp16' needs a GPU; use 'bf16' or 'fp32' on a CPU")
    return name


def has_bf16(device: torch.device) -> bool:
    """Whether a device computes in bfloat16 in hardware."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return cpu_has_bf16()


def store_weights(detector: nn.Module, dtype: torch.dtype) -> None:
    """Keep the weights of layers in the type that autocast gives them at every call anyway."""
    for module in detector.modules():
        if type(module) in (nn.Conv2d, nn.ConvTranspose2d, nn.Linear):
            module.to(dtype)


def _compile(detector: nn.Module) -> None:
    """Compile what turns pixels into maps: the rest depends on what is found."""
    for module in list(detector.modules()):
        for name in ("backbone", "neck"):
            part = getattr(module, name, None)
            if isinstance(part, nn.Module):
                part.compile(dynamic=True)


# ----------------------------------------------------------------------------------- what it costs


def measure_cost(
    before: Finder,
    after: Finder,
    pictures: Picture | Iterable[Picture] | None = None,
    *,
    limit: int = DEFAULT_LIMIT,
) -> Cost:
    """Compare what two predictors find; see `optimize` for the pictures."""
    if pictures is not None:
        several = isinstance(pictures, Iterable) and not isinstance(pictures, _ONE_PICTURE)
        given = each_picture(pictures if several else [pictures])  # type: ignore[list-item,arg-type]
        return _compare(before, after, list(islice(given, limit)), "as named")
    try:
        dataset, role = _truths(before)
    except (OSError, ValueError) as error:
        why = f"generated, as the recipe's data is not to be had: {str(error)[:100]}"
        return _compare(before, after, _generated(_GENERATED, (480, 640)), why)
    dataset = dataset.subset(limit)
    paths = [dataset.path(index) for index in range(len(dataset))]
    return _compare(before, after, paths, role, dataset)


def _truths(predictor: Finder) -> tuple[CocoDataset, str]:
    """Data of the recipe to measure on.

    Raises:
        ValueError: there is none, or it is of other classes.
        OSError: its files are not there.
    """
    data = predictor.recipe.data
    source, role = (data.val, "val") if data.val is not None else (data.test, "test")
    if source is None:
        raise ValueError("it names no data.val")
    dataset = build_dataset(source, role=role, class_names=predictor.class_names)
    check_same_classes(dataset, predictor.class_names, role)
    return dataset, f"data.{role}"


def _compare(
    before: Finder,
    after: Finder,
    pictures: list[Any],
    where: str,
    dataset: CocoDataset | None = None,
) -> Cost:
    ids = range(len(pictures)) if dataset is None else dataset.image_ids.tolist()
    one, other = (dict(zip(ids, each(pictures), strict=True)) for each in (before, after))
    cost = Cost(where, len(pictures), agree(one, other))
    if dataset is None:
        return cost
    aps = [float(measure(each, dataset).stats[0]) for each in (one, other)]
    return replace(cost, ap_before=aps[0], ap_after=aps[1])


def _generated(count: int, size: Size) -> list[np.ndarray]:
    """Pictures `[H, W, 3]` of the built-in set, RGB, none of them from training."""
    scenes = (render_scene(split="test", index=i, seed=0, image_size=size) for i in range(count))
    return [np.ascontiguousarray(scene.image[..., ::-1]) for scene in scenes]
