"""What a training is made of and does not change while it lasts."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from detkit.config import ConfigError, Recipe
from detkit.data import CocoDataset
from detkit.engine import distributed
from detkit.engine.data import build_dataset, check_same_classes, eval_loader, train_loader
from detkit.engine.device import amp_dtype
from detkit.signals import Terminated
from detkit.structures import Batch

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """All that stays as it is while training.

    Attributes:
        recipe: what to do.
        folder: where files go.
        device: where to compute.
        dtype: for autocast, or None.
        train_set: to learn from.
        loader: its batches.
        val_set: to validate on, or None.
        val_loader: its batches, or None.
    """

    recipe: Recipe
    folder: Path
    device: torch.device
    dtype: torch.dtype | None
    train_set: CocoDataset
    loader: DataLoader[Batch]
    val_set: CocoDataset | None
    val_loader: DataLoader[Batch] | None


def prepare_run(recipe: Recipe, folder: Path, device: torch.device) -> Run:
    """Read the data sets.

    Raises:
        ValueError: a recipe or data set that cannot be used.
    """
    if recipe.data.train is None:
        raise ConfigError("data.train is missing; name the annotations to train on")
    schedule = recipe.train.schedule
    late = [epoch for epoch in schedule.milestones if epoch >= recipe.train.epochs]
    if schedule.name == "multistep" and late and distributed.is_main():
        logger.warning(
            "train.schedule.milestones %s are not below train.epochs %d: no fall of the rate there",
            late,
            recipe.train.epochs,
        )
    dtype = amp_dtype(recipe.train.amp, device)
    pin_memory = device.type == "cuda"
    train_set = build_dataset(recipe.data.train, role="train")
    loader = train_loader(recipe, train_set, pin_memory=pin_memory)
    val_set = val_loader = None
    if recipe.data.val is not None:
        names = train_set.class_names
        val_set = build_dataset(recipe.data.val, role="val", class_names=names)
        check_same_classes(val_set, names, "val")
        val_loader = eval_loader(recipe, val_set, pin_memory=pin_memory)
    return Run(recipe, folder, device, dtype, train_set, loader, val_set, val_loader)


RESUME_AUTO = "auto"


def goes_on(folder: Path, resume: str | None, *, overwrite: bool) -> bool:
    """Whether a command goes on with the run in a folder, or starts it.

    Args:
        folder: of the run.
        resume: None; the folder; or "auto": whichever of the two is possible.
        overwrite: a new run may replace an earlier one.

    Raises:
        ConfigError: a new run would replace another unasked.
    """
    exists = (folder / "last.pt").exists()
    if resume is None and exists and not overwrite:
        raise ConfigError(
            f"{folder} holds a run already; go on with --resume {folder}, start a new one with "
            "name=other_name, or replace it with --overwrite"
        )
    return exists if resume == RESUME_AUTO else resume is not None


@contextlib.contextmanager
def advice_to_go_on(folder: Path) -> Iterator[None]:
    """Let who stops a training within the block know how it goes on."""
    try:
        yield
    except (KeyboardInterrupt, Terminated) as stopped:
        if (folder / "last.pt").exists():
            raise type(stopped)(f"go on with --resume {folder}") from None
        raise
