"""Samples of a data set on a sheet: what the annotations say, and what training sees of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch

from detkit.config import AutoSource, DataConfig, Recipe, load_recipe, parse_yaml
from detkit.data import EvalTransform, Sample
from detkit.data.loader import sample_seed
from detkit.engine.data import build_dataset, train_plan
from detkit.files import write_atomically
from detkit.registry import suggest
from detkit.structures import Target
from detkit.visualize import contact_sheet, draw_targets

FORMATS = (".jpg", ".jpeg", ".png", ".webp")  # of sheets
SPLITS = ("train", "val", "test")
FIRST_EPOCH = 0  # as the sampler counts them


class Sheet(NamedTuple):
    """Pictures with their boxes.

    Attributes:
        image: `[H, W, 3]` uint8, RGB.
        files: of the pictures, in their order on the sheet.
        report: what was found on reading the data set.
    """

    image: np.ndarray
    files: list[Path]
    report: str


def find_recipe(target: str, *, images: str | None = None, split: str | None = None) -> Recipe:
    """A recipe whose `data.train` is what is to be drawn.

    Args:
        target: YAML file of a recipe, or annotations, see `recognise`.
        images: the folder of the pictures, where annotations do not say.
        split: of the recipe ("train", "val", "test"; default: train), or of the annotations.

    Raises:
        ValueError: no such recipe, or it has no such data.
    """
    if not _is_recipe(target):
        source = AutoSource(path=target, images=images, split=split)
        return Recipe(name="data", data=DataConfig(train=source))
    if images is not None:
        raise ValueError(f"{target} is a recipe, which says where its pictures are; omit --images")
    recipe = load_recipe(target)
    sources = {name: getattr(recipe.data, name) for name in SPLITS}
    split = split or "train"
    if sources.get(split) is None:
        there = [name for name, source in sources.items() if source is not None]
        raise ValueError(f"{target} has no data.{split}; {suggest(split, there)}")
    data = recipe.data.model_copy(update={"train": sources[split]})
    return recipe.model_copy(update={"data": data})


def _is_recipe(target: str) -> bool:
    """Whether a path is that of a recipe; a YAML file of YOLO has names of classes."""
    path = Path(target)
    if path.suffix.lower() not in (".yaml", ".yml"):
        return False
    content = parse_yaml(path.read_text(encoding="utf-8"), target) if path.is_file() else None
    return not (isinstance(content, dict) and "names" in content)


def draw_sheet(
    recipe: Recipe,
    *,
    count: int = 16,
    augmented: bool = False,
    seed: int = 0,
    side: int = 400,
) -> Sheet:
    """Draw random samples of a recipe's training data with their boxes and classes.

    Args:
        recipe: whose data, and whose augmentation.
        count: pictures on the sheet, fewer if there are fewer.
        augmented: each beside what training sees of it in the first epoch with this seed.
        seed: of which samples, and of their augmentation.
        side: pixels of the longer side of each picture.

    Raises:
        ValueError: no such data, or numbers below 1.
        ImageReadError: a picture cannot be used.
    """
    if count < 1 or side < 1:
        raise ValueError(f"count and side must be at least 1, got {count} and {side}")
    if recipe.data.train is None:
        raise ValueError(f"{recipe.name} has no data.train to draw; set it")
    dataset = build_dataset(recipe.data.train, role="train")
    chosen = np.sort(np.random.default_rng(seed).permutation(len(dataset))[:count]).tolist()
    plan, shrink = train_plan(recipe, dataset), EvalTransform(shortest=None, longest=side)
    cells: list[np.ndarray] = []
    for index in chosen:
        sample = dataset[index]
        views = [shrink(sample)]
        if augmented:
            transform = plan.at(FIRST_EPOCH, len(cells))
            views.append(shrink(transform(sample, sample_seed(seed, FIRST_EPOCH, index))))
        drawn = [_draw(view, dataset.class_names) for view in views]
        cells.append(contact_sheet(drawn, columns=2, gap=2) if augmented else drawn[0])
    columns = max(1, round(math.sqrt(len(cells) / len(views))))  # about as wide as high
    files = [dataset.path(index) for index in chosen]
    return Sheet(contact_sheet(cells, columns=columns), files, str(dataset.report))


def _draw(sample: Sample, class_names: Sequence[str]) -> np.ndarray:
    target = Target(
        boxes=torch.from_numpy(sample.boxes),
        labels=torch.from_numpy(sample.labels),
        image_id=sample.image_id,
        crowd=torch.from_numpy(sample.crowd),
        area=torch.from_numpy(sample.area),
    )
    return draw_targets(sample.image, target, class_names)


def check_sheet_name(path: str | Path) -> None:
    """Raise unless a sheet can be written in the format that the name asks for.

    Raises:
        ValueError: another ending.
    """
    ending = Path(path).suffix.lower()
    if ending not in FORMATS:
        raise ValueError(f"{path}: unknown kind of picture {ending!r}; {suggest(ending, FORMATS)}")


def save_sheet(sheet: Sheet, path: str | Path) -> None:
    """Write a sheet, complete or not at all; its ending says the format."""
    pixels = cv2.cvtColor(sheet.image, cv2.COLOR_RGB2BGR)
    write_atomically(path, cv2.imencode(Path(path).suffix.lower(), pixels)[1].tobytes())
