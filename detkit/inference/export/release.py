"""From a checkpoint to files that have passed the parity gate.

A file is made aside, compared with the detector it was made from, and only then takes its name.
One that fails keeps for study under its name with `.rejected` added; what had the name stays.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from detkit.config import ConfigError, Recipe, SyntheticSource
from detkit.data import CocoDataset
from detkit.data.loader import read_batches
from detkit.detectors import Detector
from detkit.engine.checkpoint import Checkpoint
from detkit.engine.data import build_dataset, check_same_classes, eval_loader, share_cores
from detkit.engine.latency import conditions
from detkit.engine.stop import stop_requests
from detkit.engine.views import Preparation
from detkit.files import check_writable
from detkit.inference.export.exported import ExportedDetector
from detkit.inference.export.formats import export_onnx, export_torch, export_torchscript
from detkit.inference.export.gate import LEGEND, Row, compare, faults, look, table
from detkit.inference.export.graph import exportable
from detkit.inference.export.metadata import PRECISIONS, SUFFIXES, Metadata
from detkit.inference.export.precision import to_float16, to_int8
from detkit.registry import suggest

REJECTED = ".rejected"
GENERATED = 16  # pictures, where there are no data
CALIBRATION = 64  # pictures

_WRITERS = {"onnx": export_onnx, "torchscript": export_torchscript, "torch_export": export_torch}


@dataclass(frozen=True)
class Order:
    """What to export, and how to judge it.

    Attributes:
        format: one of `SUFFIXES`.
        out: the file in the first of the precisions; the name of others has theirs in it.
        precisions: of `PRECISIONS`, at least one.
        tolerance: largest difference of AP to the detector's, in percent points.
        limit: pictures of the validation set to look at; None: all.
    """

    format: str
    out: Path
    precisions: tuple[str, ...] = ("fp32",)
    tolerance: float = 0.1
    limit: int | None = None

    def __post_init__(self) -> None:
        if self.format not in SUFFIXES:
            raise ValueError(f"unknown format {self.format!r}; {suggest(self.format, SUFFIXES)}")
        for each in self.precisions:
            if each not in PRECISIONS:
                raise ValueError(f"unknown precision {each!r}; {suggest(each, PRECISIONS)}")
        if self.format != "onnx" and self.precisions != ("fp32",):
            raise ValueError(
                f"{self.format} is exported in fp32 alone; fp16 and int8 go with --format onnx"
            )
        if self.out.suffix != SUFFIXES[self.format]:
            raise ValueError(
                f"{self.out} does not end in {SUFFIXES[self.format]}, by which {self.format} files "
                "are known; rename it"
            )
        for path in self.paths().values():
            check_writable(path)

    def paths(self) -> dict[str, Path]:
        """Where each precision goes: `model.onnx`, `model.fp16.onnx`; alone it has the name."""
        return {
            each: self.out
            if i == 0 or len(self.precisions) == 1
            else self.out.with_suffix(f".{each}{self.out.suffix}")
            for i, each in enumerate(self.precisions)
        }


@dataclass(frozen=True)
class Outcome:
    """What came of an order.

    Attributes:
        rows: of the gate: torch, fp32, and the other precisions asked for.
        pictures: that were looked at.
        measured: whether AP was.
        conditions: that times depend on.
        written: files that passed.
        rejected: why, by where the file lies that did not pass.
    """

    rows: list[Row]
    pictures: int
    measured: bool
    conditions: str
    written: list[Path]
    rejected: dict[Path, str]

    def __str__(self) -> str:
        what = f"{self.pictures} pictures of the validation set"
        if not self.measured:
            what = f"{self.pictures} generated pictures; AP was not measured: name data by --data"
        return f"{table(self.rows)}\n{LEGEND}\n{what}, {self.conditions}"


def release(checkpoint: Checkpoint, order: Order, *, device: torch.device) -> Outcome:
    """Export, compare, and put what passes in its place.

    Args:
        checkpoint: to export; its recipe says on which data it is judged.
        order: what to make.
        device: where to compare.

    Raises:
        ValueError: data that cannot be read or has other classes; a detector that cannot be
            exported; no pictures to calibrate int8 with.
    """
    _check_installed(order.format)
    test = checkpoint.recipe.test.model_copy(update={"amp": "off"})  # the yardstick is float32
    recipe = checkpoint.recipe.model_copy(update={"test": test})
    measured = (recipe.data.val or recipe.data.test) is not None
    dataset = _pictures(recipe, checkpoint.class_names, order.limit)
    calibration = None
    if "int8" in order.precisions:
        calibration = _calibration(recipe, checkpoint.class_names, measured=measured)
    share_cores(recipe)
    order.out.parent.mkdir(parents=True, exist_ok=True)
    aside = tempfile.TemporaryDirectory(dir=order.out.parent, prefix=f".{order.out.name}.")
    with stop_requests(), aside as folder:
        detector = checkpoint.detector()
        files = _make(
            Path(folder), detector, replace(checkpoint, recipe=recipe), order, calibration
        )
        contestants: dict[str, Detector] = {"torch": detector.to(device)}
        contestants |= {name: ExportedDetector(path, device) for name, path in files.items()}
        looks = look(contestants, recipe, dataset, device=device)
        megabytes = {name: path.stat().st_size / 1e6 for name, path in files.items()}
        rows = compare(looks, dataset if measured else None, megabytes=megabytes)
        bad = faults(rows, tolerance=order.tolerance)
        written, rejected = _put(files, order.paths(), bad)
    how = f"in batches of {recipe.test.batch_size} on {conditions(device)}"
    return Outcome(rows, len(dataset), measured, how, written, rejected)


def _check_installed(format: str) -> None:
    needed = ("onnx", "onnxscript", "onnxruntime") if format == "onnx" else ()
    if missing := [name for name in needed if find_spec(name) is None]:
        raise ValueError(
            f"--format {format} needs {', '.join(missing)}: pip install {' '.join(missing)}, or "
            "take --format torchscript or torch_export"
        )


def _pictures(recipe: Recipe, class_names: tuple[str, ...], limit: int | None) -> CocoDataset:
    """The validation set, or generated pictures where the recipe names none."""
    role, source = ("val", recipe.data.val) if recipe.data.val else ("test", recipe.data.test)
    if source is None:
        side = recipe.data.resize.shortest or recipe.data.resize.longest or 256
        generated = SyntheticSource(
            split="val", num_images=limit or GENERATED, image_size=(side, side + side // 4)
        )
        return build_dataset(generated, role="val")
    try:
        dataset = build_dataset(source, role=role, class_names=class_names)
    except (ValueError, OSError) as error:
        raise ValueError(
            f"{error}; the exported file is judged on data.{role}: name it by --data, or set "
            f"data.val=null data.test=null to compare on generated pictures"
        ) from None
    check_same_classes(dataset, class_names, role)
    return dataset if limit is None else dataset.subset(limit)


def _calibration(recipe: Recipe, class_names: tuple[str, ...], *, measured: bool) -> CocoDataset:
    """Pictures of the training set, spread over all of it."""
    if not measured:
        raise ConfigError("int8 is judged by its AP, which needs data.val; name it by --data")
    if recipe.data.train is None:
        raise ConfigError(
            "int8 needs pictures to calibrate with, and the recipe names no data.train; set it"
        )
    dataset = build_dataset(recipe.data.train, role="train", class_names=class_names)
    spread = np.linspace(0, len(dataset) - 1, min(CALIBRATION, len(dataset)))
    return dataset.select(spread.astype(np.int64))


def _make(
    folder: Path,
    detector: Detector,
    checkpoint: Checkpoint,
    order: Order,
    calibration: CocoDataset | None,
) -> dict[str, Path]:
    """The files by precision; fp32, from which the others are made, is always there."""
    recipe = checkpoint.recipe
    metadata = Metadata(recipe, checkpoint.class_names, checkpoint.category_ids)
    files = {"fp32": folder / f"fp32{order.out.suffix}"}
    with _step(f"export to {order.format}"):
        module = exportable(detector, divisor=recipe.model.size_divisor)
        _WRITERS[order.format](module, files["fp32"], metadata.as_dict())
    if "fp16" in order.precisions:
        files["fp16"] = folder / "fp16.onnx"
        with _step("convert to fp16"):
            to_float16(files["fp32"], files["fp16"])
    if calibration is not None:
        files["int8"] = folder / "int8.onnx"
        inputs = calibration_inputs(ExportedDetector(files["fp32"]), recipe, calibration)
        to_int8(files["fp32"], files["int8"], inputs)
    return files


def calibration_inputs(
    exported: ExportedDetector, recipe: Recipe, dataset: CocoDataset
) -> Iterator[dict[str, np.ndarray]]:
    """Batches of one picture as a graph takes them."""
    preparation = Preparation.of(recipe)
    loader = eval_loader(
        recipe, dataset, pin_memory=False, transform=preparation.transform, batch_size=1
    )
    for batch in tqdm(
        read_batches(loader), "calibrate int8", len(loader), leave=False, disable=None
    ):
        yield {name: each.numpy() for name, each in exported.inputs(batch).items()}


def _put(
    files: Mapping[str, Path], places: Mapping[str, Path], bad: Mapping[str, str]
) -> tuple[list[Path], dict[Path, str]]:
    """Give the files their names, or where they are bad, names that say so."""
    written, rejected = [], {}
    for precision, place in places.items():
        aside = place.with_name(place.name + REJECTED)
        if precision in bad:
            os.replace(files[precision], aside)
            rejected[aside] = f"{precision}: {bad[precision]}"
        else:
            os.replace(files[precision], place)
            aside.unlink(missing_ok=True)
            written.append(place)
    return written, rejected


@contextmanager
def _step(what: str) -> Iterator[None]:
    """Say what is under way, where a person is watching."""
    with tqdm(desc=what, leave=False, disable=None, bar_format="{desc} ..."):
        yield
