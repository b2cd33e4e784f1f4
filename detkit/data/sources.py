"""The data set formats that a recipe can name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from detkit.data.auto import recognise
from detkit.data.coco import read_coco
from detkit.data.csv_boxes import read_csv
from detkit.data.dataset import CocoDataset
from detkit.data.synthetic import default_cache, write_synthetic
from detkit.data.voc import read_voc
from detkit.data.yolo import read_yolo
from detkit.registry import datasets
from detkit.structures import Size


@datasets.register("coco")
def coco(*, annotations: str | Path, images: str | Path | None = None) -> CocoDataset:
    """COCO JSON and a folder of pictures."""
    return read_coco(annotations, images)


datasets.register("voc")(read_voc)
datasets.register("yolo")(read_yolo)
datasets.register("csv")(read_csv)


@datasets.register("auto")
def auto(
    *,
    path: str | Path,
    split: str | None = None,
    images: str | Path | None = None,
    classes: Sequence[str] | None = None,
) -> CocoDataset:
    """Whatever the path holds, see `recognise`."""
    return recognise(path, split=split, images=images, classes=classes).parse().dataset()


@datasets.register("synthetic")
def synthetic(
    *,
    split: str = "train",
    num_images: int = 1000,
    seed: int = 0,
    image_size: Size = (256, 256),
    cache: str | Path | None = None,
) -> CocoDataset:
    """The built-in data set: written to the cache folder once, then read like any other."""
    root = default_cache() if cache is None else Path(cache)
    return read_coco(
        *write_synthetic(root, split=split, num_images=num_images, seed=seed, image_size=image_size)
    )
