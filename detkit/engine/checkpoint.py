"""What is kept of a run: files that hold everything needed to go on, or to use the detector.

A checkpoint is a dict of plain values and tensors, so that it loads with `weights_only=True`:
"recipe", "class_names", "category_ids", "model" (the weights to use: the average, where one is
kept), "epoch", "metrics", "seconds"; and in `last.pt` also "training", from which training
continues.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from detkit.backbones.weights import load_into
from detkit.config import Recipe, build_recipe
from detkit.detectors import Detector, create_detector
from detkit.detectors.factory import without_weights
from detkit.files import damaged_member, open_atomically

FORMAT = 1
_KEYS = ("recipe", "class_names", "category_ids", "model", "epoch", "metrics")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that has been read.

    Attributes:
        recipe: of the run.
        class_names: of labels `0..C-1`.
        category_ids: of labels `0..C-1` in the data set.
        weights: state_dict of the detector.
        epoch: how many epochs were complete.
        metrics: of the last validation.
        training: what `last.pt` holds beside, or None.
        seconds: how long it was trained, validation included; None where it is not known.
    """

    recipe: Recipe
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    weights: dict[str, Tensor]
    epoch: int
    metrics: dict[str, Any]
    training: dict[str, Any] | None
    seconds: float | None = None

    def detector(self) -> Detector:
        """The detector with these weights, ready to predict.

        Raises:
            ValueError: the settings under `model` are not those that the weights were trained with.
        """
        # Its own weights follow; those that it once started from may be gone
        config = without_weights(self.recipe.model)
        detector = create_detector(config, num_classes=len(self.class_names))
        try:
            load_into(detector, self.weights, source="of the checkpoint")
        except ValueError as error:
            raise ValueError(
                f"{error}; leave the settings under model that shape the network as they were"
            ) from None
        if self.recipe.train.channels_last:  # as batches are: else every layer reorders its input
            detector = detector.to(memory_format=torch.channels_last)
        return detector.eval()


def save_checkpoint(path: str | Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint; the old file stays until the new one is complete."""
    content = {
        "format": FORMAT,
        "recipe": checkpoint.recipe.model_dump(mode="json"),
        "class_names": list(checkpoint.class_names),
        "category_ids": list(checkpoint.category_ids),
        "model": checkpoint.weights,
        "epoch": checkpoint.epoch,
        "metrics": checkpoint.metrics,
        "seconds": checkpoint.seconds,
    }
    if checkpoint.training is not None:
        content["training"] = checkpoint.training
    with open_atomically(path) as handle:
        torch.save(content, handle)


def load_checkpoint(path: str | Path, overrides: list[str] | None = None) -> Checkpoint:
    """Read a detector's checkpoint, with `key.path=value` changes to its recipe.

    Raises:
        ValueError: no such file, not a checkpoint, a broken one, or weights that are not finite.
    """
    content = read_checkpoint(path)
    if "kind" in content:
        raise ValueError(f"{path} is of a {content['kind']}; give one that tools/train.py wrote")
    if missing := [key for key in _KEYS if key not in content]:
        raise ValueError(f"{path} lacks {', '.join(missing)}; give one that tools/train.py wrote")
    broken = [name for name, each in content["model"].items() if not each.isfinite().all()]
    if broken:
        raise ValueError(
            f"{path}: {len(broken)} weights are not finite (the first: {broken[0]}); "
            "the training diverged: take an earlier checkpoint, or lower train.optimizer.lr"
        )
    return Checkpoint(
        recipe=build_recipe(content["recipe"], overrides or (), where=str(path)),
        class_names=tuple(content["class_names"]),
        category_ids=tuple(content["category_ids"]),
        weights=content["model"],
        epoch=content["epoch"],
        metrics=content["metrics"],
        training=content.get("training"),
        seconds=content.get("seconds"),
    )


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """The plain content of a checkpoint, of a detector or (with "kind") of something else.

    Raises:
        ValueError: no such file, not a checkpoint, or a broken one.
    """
    path = Path(path)
    if not path.is_file():
        folder = path if path.is_dir() else path.parent
        near = sorted(str(p) for p in folder.glob("*.pt")) if folder.is_dir() else []
        hint = f"; there is {', '.join(near)}" if near else ""
        raise ValueError(f"no checkpoint at {path}{hint}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file makes the unpickler raise nearly anything
        raise ValueError(
            f"{path} is damaged or no checkpoint ({_reason(path, error)}); give the best.pt or "
            "last.pt of a run"
        ) from None
    if (member := damaged_member(path)) is not None:
        raise ValueError(
            f"{path} is damaged (wrong checksum of {member}); give the best.pt or last.pt of a run"
        )
    if not isinstance(content, dict) or not {"format", "recipe", "model"} <= content.keys():
        raise ValueError(
            f"{path} is not a detkit checkpoint; train one with tools/train.py, or give a file of "
            "weights alone as weights= beside the name of its model"
        )
    if content["format"] != FORMAT:
        raise ValueError(
            f"{path} has checkpoint format {content['format']}, this version reads {FORMAT}; "
            "use the version of detkit that wrote it"
        )
    return content


def _reason(path: Path, error: Exception) -> str:
    """Why torch does not load a file, whose own words are advice to run the code in it."""
    if path.stat().st_size == 0:
        return "the file is empty"
    if foreign := re.search(r"GLOBAL (\S+)", str(error)):
        return f"it holds objects of another program, {foreign[1]}, whose code is not run"
    if "TorchScript" in str(error):
        return "it is TorchScript; where tools/export.py wrote it, it ends in .torchscript"
    with path.open("rb") as handle:
        start = handle.read(2)
    if start not in (b"PK", b"\x80\x02"):  # a zip archive, or the pickle of torch before 1.6
        return "it is no file that torch.save wrote"
    if isinstance(error, (RuntimeError, OSError)):
        return str(error).partition("\n")[0].partition(". ")[0][:120]
    return type(error).__name__
