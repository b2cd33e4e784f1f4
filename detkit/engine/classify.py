"""Train a classifier of windows: the boxes of a data set, cut out, each with its class.

All crops lie in memory, so that an epoch reads no file. B crops in a batch, K classes.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from detkit.backbones import create_backbone, create_classifier, list_backbones
from detkit.backbones.base import published_settings
from detkit.backbones.weights import load_into
from detkit.config import (
    ClassifierConfig,
    ClassifierRecipe,
    ConfigError,
    CropConfig,
    Source,
    build_recipe_as,
    recipe_to_yaml,
)
from detkit.data import CocoDataset
from detkit.data.crops import Crops, crop_boxes, place_on_canvas
from detkit.engine.checkpoint import FORMAT, read_checkpoint
from detkit.engine.data import build_dataset, check_same_classes
from detkit.engine.glimpses import draw_glimpses
from detkit.engine.log import RunLog
from detkit.engine.optim import RateSchedule, build_optimizer
from detkit.evaluation.classification import ClassificationResult, evaluate_classifier
from detkit.files import open_atomically, remove_leftovers, write_atomically
from detkit.nn.attention.recurrent import RecurrentAttention, reinforce_loss
from detkit.nn.heads import classifier_head
from detkit.registry import backbones, suggest

logger = logging.getLogger(__name__)

PICTURES = 16  # of glimpses, on one sheet


@dataclass(frozen=True)
class ClassifierRun:
    """All that stays as it is while a classifier trains.

    Attributes:
        recipe: what to do.
        folder: where files go.
        device: where to compute.
        class_names: of labels `0..K-1`.
        category_ids: of labels `0..K-1` in the data set.
        train: to learn from.
        val: to choose the best epoch by, or None.
        test: to measure the result on, or None.
    """

    recipe: ClassifierRecipe
    folder: Path
    device: torch.device
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    train: Crops
    val: Crops | None
    test: Crops | None


def train_classifier(
    recipe: ClassifierRecipe, *, folder: Path, device: torch.device
) -> float | None:
    """Train; write `best.pt`, `recipe.yaml`, `metrics.jsonl` and, of glimpses, a picture.

    The last record of `metrics.jsonl` holds what `ClassificationResult.numbers` gives of the test
    data.

    Returns:
        Accuracy of the best epoch on the test data; None where the recipe names none.

    Raises:
        ValueError: a recipe or data set that cannot be used.
        FloatingPointError: a loss or an output that is not finite.
    """
    _rehearse(recipe)
    run = _read(recipe, folder, device)
    torch.manual_seed(recipe.seed)
    model = build_classifier(recipe, num_classes=len(run.class_names)).to(device)
    log = _open_run(run)
    start = time.perf_counter()
    with contextlib.closing(log):
        best = _train(model, run, log)
        logger.info("trained in %.1f minutes", (time.perf_counter() - start) / 60)
        load_into(model, read_checkpoint(folder / "best.pt")["model"], source="of the best epoch")
        result = measure(model, run.test, run)
        if result is not None:
            log.write("test", best, _record("test", result))
            logger.info("%s", result.table())
    if isinstance(model, RecurrentAttention) and run.test is not None:
        _draw(model, run.test, run)
    return None if result is None else result.accuracy


@torch.no_grad()
def _rehearse(recipe: ClassifierRecipe) -> None:
    """Look at an empty picture: mistakes show before data is read or an earlier run replaced."""
    model = build_classifier(recipe, num_classes=2).eval()
    crop = recipe.data.crop
    side = crop.size if crop.canvas is None else crop.canvas
    model(torch.zeros(1, 1 if crop.grey else 3, side, side))


def build_classifier(recipe: ClassifierRecipe, *, num_classes: int) -> nn.Module:
    """The network of a recipe, images `[B, C, H, W]` -> logits `[B, K]`, with its first weights.

    Raises:
        ValueError: an unknown name or setting.
    """
    config = recipe.model
    channels = 1 if recipe.data.crop.grey else 3
    if config.name == "ram":
        settings = config.ram.model_dump()
        return RecurrentAttention(num_classes, in_channels=channels, **settings)
    if config.name not in backbones:
        choices = suggest(config.name, ["ram", *list_backbones()])
        raise ValueError(f"unknown classifier {config.name!r}; {choices}")
    settings = {"in_channels": channels, "weights": config.weights, **config.settings}
    if config.head is None:
        return create_classifier(config.name, num_classes=num_classes, **settings)
    body = create_backbone(config.name, out_indices=(-1,), **settings)
    (info,) = body.feature_info
    return nn.Sequential(body, classifier_head(config.head, info.channels, num_classes))


def losses_of(model: nn.Module, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Named scalars whose sum training minimises, from images `[B, C, H, W]` and labels `[B]`."""
    if isinstance(model, RecurrentAttention):
        return reinforce_loss(model.look(images, sample=True), labels)
    return {"class": F.cross_entropy(model(images), labels)}


def views(crops: Tensor, recipe: ClassifierRecipe, generator: torch.Generator) -> Tensor:
    """What the network sees of crops `[B, C, s, s]`: on the canvas, if there is one, normalised."""
    crop: CropConfig = recipe.data.crop
    if crop.canvas is not None:
        crops = place_on_canvas(crops, crop.canvas, clutter=crop.clutter, generator=generator)
    return normalized(crops, recipe.model)


def normalized(images: Tensor, config: ClassifierConfig) -> Tensor:
    """From pixels 0..255 to numbers around zero."""
    return (images.float() / 255 - config.mean) / config.std


def measure(
    model: nn.Module, crops: Crops | None, run: ClassifierRun
) -> ClassificationResult | None:
    """Answers beside truths, at the same places of the canvas each time; None of no crops.

    Raises:
        FloatingPointError: outputs that are not finite.
    """
    if crops is None or not len(crops):
        return None
    logits = _logits_of(model, crops, run)
    if not torch.isfinite(logits).all():
        raise FloatingPointError(
            "outputs of the network are not finite; lower train.optimizer.lr or set train.clip_norm"
        )
    return evaluate_classifier(
        logits.numpy(), crops.labels.numpy(), class_names=run.class_names, logits=True
    )


@torch.no_grad()
def _logits_of(model: nn.Module, crops: Crops, run: ClassifierRun) -> Tensor:
    """What the network says of every crop, `[N, K]`, on the CPU."""
    model.eval()
    generator = torch.Generator().manual_seed(run.recipe.seed)
    with torch.random.fork_rng(devices=[run.device] if run.device.type == "cuda" else []):
        torch.manual_seed(run.recipe.seed)  # of locations that are not learnt
        batches = crops.images.split(run.recipe.train.batch_size)
        outputs = [
            model(views(images, run.recipe, generator).to(run.device)).float().cpu()
            for images in batches
        ]
    return torch.cat(outputs)


def load_classifier(path: str | Path) -> tuple[nn.Module, ClassifierRecipe, tuple[str, ...]]:
    """A trained network in evaluation mode, its recipe and the names of its classes.

    Raises:
        ValueError: no such file, or not the checkpoint of a classifier.
    """
    content = read_checkpoint(path)
    if content.get("kind") != "classifier":
        raise ValueError(f"{path} is of a detector; give one that tools/train_classifier.py wrote")
    recipe = build_recipe_as(ClassifierRecipe, content["recipe"], where=str(path))
    model = build_classifier(_without_weights(recipe), num_classes=len(content["class_names"]))
    load_into(model, content["model"], source="of the checkpoint")
    return model.eval(), recipe, tuple(content["class_names"])


def _without_weights(recipe: ClassifierRecipe) -> ClassifierRecipe:
    """Its own weights follow; those that it once started from may be gone."""
    model = recipe.model
    settings = published_settings(model.name, model.weights) | model.settings
    model = model.model_copy(update={"weights": None, "settings": settings})
    return recipe.model_copy(update={"model": model})


def _read(recipe: ClassifierRecipe, folder: Path, device: torch.device) -> ClassifierRun:
    """Read the data sets and cut out their boxes."""
    data = recipe.data
    if data.train is None:
        raise ConfigError("data.train is missing; name the annotations to train on")
    train_set = build_dataset(data.train, role="train")
    names = tuple(train_set.class_names)

    def crops_of(dataset: CocoDataset, role: str) -> Crops:
        check_same_classes(dataset, names, role)
        settings = data.crop.model_dump(include={"size", "context", "grey"})
        return crop_boxes(dataset, **settings)

    def read(source: Source, role: str) -> CocoDataset:
        return build_dataset(source, role=role, class_names=names)

    train_crops = crops_of(train_set, "train")
    if not len(train_crops):
        raise ValueError("data.train has no boxes to cut out")
    val = None if data.val is None else crops_of(read(data.val, "val"), "val")
    test = val if data.test is None else crops_of(read(data.test, "test"), "test")
    ids = tuple(int(category) for category in train_set.category_ids)
    return ClassifierRun(recipe, folder, device, names, ids, train_crops, val, test)


def _open_run(run: ClassifierRun) -> RunLog:
    run.folder.mkdir(parents=True, exist_ok=True)
    for name in ("best.pt", "glimpses.png", "recipe.yaml", "metrics.jsonl"):
        remove_leftovers(run.folder / name)
    # what an earlier run left here would pass for a result of this one
    results = [run.folder / "best.pt", run.folder / "glimpses.png"]
    for path in (*results, *run.folder.glob("events.out.tfevents.*")):
        path.unlink(missing_ok=True)
    write_atomically(run.folder / "recipe.yaml", recipe_to_yaml(run.recipe))
    return RunLog(run.folder, resume_step=0)


def _train(model: nn.Module, run: ClassifierRun, log: RunLog) -> int:
    """All epochs; the step of the best one, whose weights are in `best.pt`."""
    config = run.recipe.train
    steps = -(-len(run.train) // config.batch_size)
    optimizer = build_optimizer(model, config.optimizer)
    schedule = RateSchedule(optimizer, config.schedule, steps_per_epoch=steps, epochs=config.epochs)
    generator = torch.Generator().manual_seed(run.recipe.seed)
    best, best_step = -1.0, 0
    for epoch in tqdm(range(1, config.epochs + 1), run.recipe.name, dynamic_ncols=True):
        means = _train_epoch(model, optimizer, schedule, run, generator)
        measured = measure(model, run.val, run)
        record: dict[str, Any] = {"epoch": epoch, **means}
        if measured is not None:
            record["val/accuracy"] = measured.accuracy
        log.write("epoch", epoch * steps, record)
        tqdm.write("  ".join(f"{name} {value:.4g}" for name, value in record.items()))
        score = record.get("val/accuracy", best)
        if measured is None or score > best:  # without validation the last epoch is kept
            best, best_step = score, epoch * steps
            _save(model, run, epoch, record)
    return best_step


def _train_epoch(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    run: ClassifierRun,
    generator: torch.Generator,
) -> dict[str, float]:
    """One pass over the crops in a new order; the means of the losses."""
    config = run.recipe.train
    model.train()
    sums: dict[str, float] = {}
    order = torch.randperm(len(run.train), generator=generator)
    batches = order.split(config.batch_size)
    if len(batches) > 1 and len(batches[-1]) == 1:
        batches = batches[:-1]  # batch norm cannot learn from one
    for index in batches:
        images = views(run.train.images[index], run.recipe, generator).to(run.device)
        losses = losses_of(model, images, run.train.labels[index].to(run.device))
        total = torch.stack(list(losses.values())).sum()
        if not torch.isfinite(total):
            raise FloatingPointError(
                f"loss is {total.item()}; lower train.optimizer.lr or set train.clip_norm"
            )
        optimizer.zero_grad(set_to_none=True)
        total.backward()
        if config.clip_norm is not None:
            nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
        optimizer.step()
        schedule.step()
        for name, value in losses.items():
            sums[f"loss/{name}"] = sums.get(f"loss/{name}", 0.0) + value.item() * len(index)
    seen = sum(map(len, batches))
    return {name: value / seen for name, value in sums.items()}


def _save(model: nn.Module, run: ClassifierRun, epoch: int, metrics: dict[str, Any]) -> None:
    content = {
        "format": FORMAT,
        "kind": "classifier",
        "recipe": run.recipe.model_dump(mode="json"),
        "class_names": list(run.class_names),
        "category_ids": list(run.category_ids),
        "model": model.state_dict(),
        "epoch": epoch,
        "metrics": metrics,
    }
    with open_atomically(run.folder / "best.pt") as handle:
        torch.save(content, handle)


def _record(role: str, result: ClassificationResult) -> dict[str, float]:
    """What is known of the result, by name."""
    return {f"{role}/{name}": v for name, v in result.numbers().items() if not math.isnan(v)}


@torch.no_grad()
def _draw(model: RecurrentAttention, crops: Crops, run: ClassifierRun) -> None:
    """Where the model looks on the first crops, into `glimpses.png`."""
    model.eval()
    generator = torch.Generator().manual_seed(run.recipe.seed)
    images = views(crops.images[:PICTURES], run.recipe, generator).to(run.device)
    episode = model.look(images, sample=False)
    answers = episode.logits.argmax(dim=1).tolist()
    titles = [
        f"{run.class_names[answer]}"
        + ("" if answer == label else f", not {run.class_names[label]}")
        for answer, label in zip(answers, crops.labels[:PICTURES].tolist(), strict=True)
    ]
    pixels = (images * run.recipe.model.std + run.recipe.model.mean).clamp(0, 1)
    sheet = draw_glimpses(pixels, episode.locations, titles=titles, patches=model.patches)
    write_atomically(run.folder / "glimpses.png", sheet)
