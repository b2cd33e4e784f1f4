"""Data sets and loaders from the config."""

from __future__ import annotations

import logging
from dataclasses import fields

import numpy as np
import torch
from torch.utils.data import DataLoader

from detkit.config import AutoSource, Recipe, Source
from detkit.data import (
    CocoDataset,
    EvalTransform,
    TrainTransform,
    create_loader,
    read_proposals,
)
from detkit.data.auto import recognise
from detkit.data.mixing import MixTransform, TransformPlan
from detkit.data.reading import Reader
from detkit.data.sampling import class_balanced, repeat_factors
from detkit.data.transforms import Transform
from detkit.engine import distributed
from detkit.engine.device import leave_cores_to, usable_cores
from detkit.engine.proposals import with_proposals
from detkit.registry import datasets
from detkit.structures import Batch

logger = logging.getLogger(__name__)

MANY = 0.3  # of the boxes leave their pictures: they hardly mean what they are read as


def build_dataset(
    source: Source, *, role: str, class_names: tuple[str, ...] | None = None
) -> CocoDataset:
    """Read a data set.

    Args:
        source: of any format.
        role: "train", "val" or "test", its name in the log.
        class_names: of the detector: a format that has no list of classes takes these and not
            those that happen to occur, unless the source lists its own.
    """
    name: str = source.format
    settings = source.model_dump(exclude={"format", "proposals"})
    if isinstance(source, AutoSource):
        found = recognise(**settings)
        name, settings = found.format, found.settings
        if distributed.is_main():
            logger.info("%s: taken for %s", role, found)
    if "classes" in settings and settings["classes"] is None:
        settings["classes"] = class_names
    dataset: CocoDataset = datasets[name](**settings)
    if distributed.is_main():
        logger.info("%s: %s", role, dataset.report)
    if len(dataset) == 0:
        raise ValueError(f"data.{role} has no images; check {settings}")
    if role == "train" and dataset.report.boxes == 0:
        raise ValueError("data.train has no boxes, and so nothing to learn from; check its labels")
    if distributed.is_main() and dataset.report.clipped > MANY * dataset.report.boxes:
        logger.warning(
            "%s: %d of %d boxes leave their pictures: are they x1, y1, x2, y2, or for pictures of "
            "another size? See python tools/check_data.py",
            *(role, dataset.report.clipped, dataset.report.boxes),
        )
    if source.proposals is not None:
        return dataset.with_proposals(read_proposals(source.proposals, dataset))
    return dataset


def check_same_classes(dataset: CocoDataset, class_names: tuple[str, ...], role: str) -> None:
    """Raise unless a data set has the classes that the detector was built for.

    Raises:
        ValueError: other classes, or another order.
    """
    if tuple(dataset.class_names) != tuple(class_names):
        own = short_list(tuple(dataset.class_names))
        raise ValueError(
            f"data.{role} has the classes {own}, the detector knows "
            f"{short_list(tuple(class_names))}; use annotations with the same categories"
        )


def train_loader(recipe: Recipe, dataset: CocoDataset, *, pin_memory: bool) -> DataLoader[Batch]:
    """Shuffled, augmented batches of this process."""
    world = distributed.world_size()
    if recipe.train.batch_size % world:
        raise ValueError(
            f"train.batch_size {recipe.train.batch_size} is over all processes and does not divide "
            f"into {world}; use a multiple of {world}"
        )
    dataset = with_proposals(recipe.model, dataset, role="data.train")
    return create_loader(
        dataset,
        train_plan(recipe, dataset),
        batch_size=recipe.train.batch_size // world,
        seed=recipe.seed,
        shuffle=True,
        workers=_workers(recipe),
        divisor=recipe.model.size_divisor,
        rank=distributed.rank(),
        world_size=world,
        pin_memory=pin_memory,
        often=_how_often(recipe, dataset),
        skip_unreadable=recipe.data.unreadable == "skip",
    )


def train_plan(recipe: Recipe, dataset: CocoDataset) -> TransformPlan:
    """Which augmentation and resizing each batch of training pictures gets.

    Raises:
        ValueError: pictures would be mixed that have proposals.
    """
    data, augment = recipe.data, recipe.data.augment
    single = augment.model_dump(include={field.name for field in fields(TrainTransform)})
    closing = []
    for factor in augment.multi_scale or (1.0,):
        limits = {  # one that is not scaled stays the whole number that it is
            name: limit if limit is None or factor == 1 else max(1.0, limit * factor)
            for name, limit in data.resize.model_dump().items()
        }
        closing.append(TrainTransform(**limits, **single))
    usual: list[Transform] = list(closing)
    close_at = recipe.train.epochs
    if augment.mixes:
        mixing = augment.model_dump(include={"mosaic", "copy_paste", "mixup"})
        reader = Reader(dataset, skip=recipe.data.unreadable == "skip")
        usual = [MixTransform(transform=each, reader=reader, **mixing) for each in closing]
        last = augment.close_mosaic
        close_at -= round(close_at / 10) if last is None else last
        if close_at < 1 and distributed.is_main():
            logger.warning(
                "data.augment.close_mosaic %s leaves none of the %d epochs with mosaic, copy_paste "
                "and mixup",
                *(last, recipe.train.epochs),
            )
    return TransformPlan(
        usual=tuple(usual), closing=tuple(closing), close_at=close_at, seed=recipe.seed
    )


def _how_often(recipe: Recipe, dataset: CocoDataset) -> np.ndarray | None:
    """How often each picture is seen in an epoch; None is once."""
    sampling = recipe.data.sampling
    if sampling.name == "repeat_factor":
        return repeat_factors(dataset, threshold=sampling.threshold)
    return class_balanced(dataset) if sampling.name == "class_balanced" else None


def eval_loader(
    recipe: Recipe,
    dataset: CocoDataset,
    *,
    pin_memory: bool,
    transform: Transform | None = None,
    batch_size: int | None = None,
) -> DataLoader[Batch]:
    """Every image once over all processes, resized only.

    Args:
        recipe: how.
        dataset: of what.
        pin_memory: for the way to a GPU.
        transform: instead of resizing as the recipe says.
        batch_size: instead of the recipe's test.batch_size.
    """
    return create_loader(
        with_proposals(recipe.model, dataset, role="data.val (or data.test)"),
        transform or EvalTransform(**recipe.data.resize.model_dump()),
        batch_size=batch_size or recipe.test.batch_size,
        seed=recipe.seed,
        shuffle=False,
        workers=_workers(recipe),
        divisor=recipe.model.size_divisor,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
        pin_memory=pin_memory,
    )


def share_cores(recipe: Recipe) -> None:
    """Divide this machine's cores between computing and the workers that read ahead."""
    leave_cores_to(_workers(recipe))


def _workers(recipe: Recipe) -> int:
    if recipe.data.workers is not None:
        return recipe.data.workers
    # Loading is quick beside a training step on the CPU, and there processes compete for cores
    limit = 8 if torch.cuda.is_available() else 1
    return min((usable_cores() - 1) // distributed.local_world_size(), limit)


def short_list(names: tuple[str, ...]) -> str:
    """The first names, and how many there are, for a message."""
    return ", ".join(names[:5]) + (f", ... ({len(names)})" if len(names) > 5 else "")
