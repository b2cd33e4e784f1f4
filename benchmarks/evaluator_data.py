"""Seeded ground truth and detections of the size of known data sets, as COCO JSON and as arrays.

    python benchmarks/evaluator_data.py coco_s lvis --data /tmp/evaluator

Images hold few classes, popular ones more often. Of the detections some find a truth, some are
worse boxes around one, some show the wrong class, the rest is background, more than half of it in
classes that the image lacks: moved truths alone would be easier than what a detector gives.

I images, K categories, M truths, N detections.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

VERSION = 1  # part of the folders' names: raise it with every change of what is written
SIZES = np.array([[640, 480], [640, 427], [480, 640], [500, 375], [640, 640], [427, 640]])
COCO_GAPS = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)  # ids that COCO's 80 categories leave out
HUNDREDTHS = np.array([repr(i / 100) for i in range(64001)], object)  # 0.0 .. 640.0 as text
THOUSANDTHS = np.array([repr(i / 1000) for i in range(1001)], object)
POINTS = (6, 35)  # of a polygon, least and most


@dataclass(frozen=True)
class Preset:
    """How much of everything.

    Attributes:
        images: I.
        categories: K.
        objects: truths of an image on average.
        classes: drawn for an image on average, some of them twice.
        detections: of every image.
        rounded: coordinates have 2 decimals and scores 3; otherwise they are all of a float32.
    """

    images: int
    categories: int = 80
    objects: float = 7.0
    classes: float = 4.2
    detections: int = 100
    rounded: bool = True


def _objects365(images: int) -> Preset:
    return Preset(images, categories=365, objects=14.9, classes=6.5, detections=20)


SCALES = (1000, 2000, 5000, 10000, 20000, 40000, 80000)  # images
PRESETS = {
    "coco": Preset(5000),
    "coco_f32": Preset(5000, rounded=False),
    "coco_s": Preset(500),
    "lvis": Preset(2000, categories=1203, objects=11.8, classes=5.0, detections=300),
    "o365_20k": _objects365(20000),
    "o365": _objects365(80000),
    **{f"scale_{images}": _objects365(images) for images in SCALES},
}


@dataclass(frozen=True, eq=False)
class Workload:
    """A data set and what a detector found, in the order of the files.

    Attributes:
        image_ids: `[I]`, unsorted, with gaps.
        sizes: `[I, 2]` width and height of the images.
        category_ids: `[K]`, ascending, with COCO's gaps if there are 80.
        ids: `[M]` of the annotations, unsorted, with gaps.
        image: `[M]` index into `image_ids`.
        category: `[M]` index into `category_ids`.
        boxes: `[M, 4]` xywh.
        area: `[M]`, less than w * h as that of a mask is.
        crowd: `[M]` bool.
        detections: `[N, 7]` image id, x, y, w, h, score, category id.
    """

    image_ids: Ints
    sizes: Ints
    category_ids: Ints
    ids: Ints
    image: Ints
    category: Ints
    boxes: Floats
    area: Floats
    crowd: NDArray[np.bool_]
    detections: Floats


def make_workload(name: str) -> Workload:
    """The arrays of a preset, always the same."""
    preset = PRESETS[name]
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    image_ids = rng.permutation(np.cumsum(rng.integers(1, 200, preset.images)))
    sizes = SIZES[rng.choice(len(SIZES), preset.images, p=[0.4, 0.2, 0.15, 0.1, 0.1, 0.05])]
    category_ids = np.arange(1, preset.categories + 1)
    if preset.categories == 80:
        category_ids = np.setdiff1d(np.arange(1, 91), COCO_GAPS)
    popularity = _popularity(preset.categories, rng)
    classes, num_classes = _image_classes(preset, popularity, rng)

    rate = rng.gamma(1.2, preset.objects / 1.2, preset.images)
    image = np.repeat(np.arange(preset.images), rng.poisson(rate).clip(0, 90))
    category = _one_of(classes[image], num_classes[image], rng)
    boxes = _random_boxes(sizes[image], rng)
    area = np.round(boxes[:, 2] * boxes[:, 3] * rng.uniform(0.45, 0.8, len(image)), 4)
    ids = rng.permutation(np.cumsum(rng.integers(1, 40, len(image))))
    crowd = rng.random(len(image)) < 0.0115

    scene = _Scene(sizes, classes, num_classes, popularity, image, category, boxes)
    found_in, found_class, found_boxes, scores = _detect(scene, preset, rng)
    columns = [image_ids[found_in], found_boxes, scores, category_ids[found_class]]
    detections = np.column_stack(columns)
    return Workload(
        image_ids, sizes, category_ids, ids, image, category, boxes, area, crowd, detections
    )


def _popularity(categories: int, rng: np.random.Generator) -> Floats:
    """How often each class is seen, `[K]`: few are everywhere, many are rare."""
    weights = 1 / (np.arange(categories) + 4.0)
    return rng.permutation(weights / weights.sum())


def _image_classes(
    preset: Preset, popularity: Floats, rng: np.random.Generator
) -> tuple[Ints, Ints]:
    """The classes of every image, `[I, 16]`, and how many of these it has, `[I]`."""
    count = (1 + rng.poisson(preset.classes - 1, preset.images)).clip(1, 16)
    classes = rng.choice(preset.categories, (preset.images, 16), p=popularity)
    return classes, count


def _one_of(classes: Ints, count: Ints, rng: np.random.Generator) -> Ints:
    """One class of the first `count` in each row of `[n, 16]`; the first ones more often."""
    place = (count * rng.random(len(count)) ** 1.5).astype(np.int64)
    return classes[np.arange(len(count)), place]


def _random_boxes(sizes: Ints, rng: np.random.Generator) -> Floats:
    """Boxes in images of these sizes, `[n, 4]` xywh; 4 of 10 are small in COCO's sense."""
    log_area, log_ratio = rng.normal(8.05, 2.1, len(sizes)), rng.normal(0, 0.4, len(sizes))
    extent = np.exp(0.5 * log_area[:, None] + log_ratio[:, None] * [0.5, -0.5])
    extent = extent.clip(3, 0.98 * sizes)
    corner = rng.random((len(sizes), 2)) * (sizes - extent)
    return _round_boxes(np.concatenate([corner, extent], axis=1), sizes)


def _round_boxes(boxes: Floats, sizes: Ints) -> Floats:
    """Cut to the image and round to hundredths, as whole numbers of them divided by 100."""
    corner = (boxes[:, :2] * 100).round().clip(0, 100 * sizes - 100)
    far = ((boxes[:, :2] + boxes[:, 2:]) * 100).round().clip(corner + 100, 100 * sizes)
    return np.concatenate([corner, far - corner], axis=1) / 100


@dataclass(frozen=True, eq=False)
class _Scene:
    """What is to be detected; attributes as in `Workload` and from `_image_classes`."""

    sizes: Ints
    classes: Ints
    num_classes: Ints
    popularity: Floats
    image: Ints
    category: Ints
    boxes: Floats


def _detect(
    scene: _Scene, preset: Preset, rng: np.random.Generator
) -> tuple[Ints, Ints, Floats, Floats]:
    """Image, class, box and score of all detections, in an image best first."""
    truths = np.bincount(scene.image, minlength=preset.images)
    image = np.repeat(np.arange(preset.images), preset.detections)
    slot = np.tile(np.arange(preset.detections), preset.images)
    total = len(image)
    lot = rng.random(total)
    finds = (slot < truths[image]) & (lot < 0.7)  # the only one that is meant for this truth
    around = ~finds & (lot < 0.45)
    confused = ~finds & (lot > 0.9)  # a truth in sight, another class
    own_class = ~(finds | around | confused) & (lot < 0.58)

    first = np.cumsum(truths) - truths
    any_truth = (truths[image] * rng.random(total)).astype(np.int64)
    truth = first[image] + np.where(finds, slot, any_truth)
    truth = np.where(truths[image] > 0, truth, -1)
    seen = (finds | around | confused) & (truth >= 0)
    category = rng.choice(preset.categories, total, p=scene.popularity)
    category[own_class] = _one_of(
        scene.classes[image[own_class]], scene.num_classes[image[own_class]], rng
    )
    same = seen & ~confused
    category[same] = scene.category[truth[same]]

    boxes = _random_boxes(scene.sizes[image], rng)
    wobble = np.where(finds, rng.gamma(1.4, 0.065, total), rng.uniform(0.05, 0.6, total))
    boxes[seen] = _move(scene.boxes[truth[seen]], wobble[seen], rng)
    boxes = _round_boxes(boxes, scene.sizes[image])
    middle = np.select([finds, around, confused], [0.4 - 8 * wobble, -2.8, -2.7], -3.2)
    spread = np.where(finds, 1.2, 0.9)
    scores = 1 / (1 + np.exp(-rng.normal(middle, spread)))
    order = np.lexsort((-scores, image))
    boxes, scores = boxes[order], scores[order]
    if preset.rounded:
        scores = (scores * 1000).round().clip(1, 999) / 1000
    else:
        shift = rng.uniform(0, 0.01, boxes.shape)
        boxes, scores = ((v.astype(np.float32)).astype(float) for v in (boxes + shift, scores))
    return image[order], category[order], boxes, scores


def _move(boxes: Floats, wobble: Floats, rng: np.random.Generator) -> Floats:
    """Shift and stretch boxes, `[n, 4]` xywh, by about this part of their size."""
    extent = boxes[:, 2:] * np.exp(wobble[:, None] * rng.normal(size=(len(boxes), 2)))
    centre = boxes[:, :2] + 0.5 * boxes[:, 2:]
    centre = centre + wobble[:, None] * boxes[:, 2:] * rng.normal(size=(len(boxes), 2))
    return np.concatenate([centre - 0.5 * extent, extent], axis=1)


def write_workload(name: str, data: Path) -> Path:
    """The folder of a preset with gt.json, dt.json, truths.npz and detections.npy.

    It is written when it is not there yet; an interrupted run leaves none.
    """
    folder = data / f"{name}-{VERSION}"
    if folder.is_dir():
        return folder
    data.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{name}.", dir=data))
    try:
        workload = make_workload(name)
        with open(aside / "gt.json", "w", encoding="ascii") as handle:
            _write_truths(workload, handle)
        with open(aside / "dt.json", "w", encoding="ascii") as handle:
            _write_detections(workload.detections, PRESETS[name].rounded, handle)
        truths = {key: value for key, value in vars(workload).items() if key != "detections"}
        np.savez(aside / "truths.npz", **truths)
        np.save(aside / "detections.npy", workload.detections)
        aside.chmod(0o755)  # mkdtemp makes it private
        os.rename(aside, folder)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    return folder


def _write_truths(workload: Workload, handle: IO[str]) -> None:
    images = [
        {"license": 4, "file_name": f"{i:012d}.jpg", "height": h, "width": w, "id": i}
        for i, (w, h) in zip(workload.image_ids.tolist(), workload.sizes.tolist(), strict=True)
    ]
    categories = [
        {"supercategory": "thing", "id": k, "name": f"class {k}"}
        for k in workload.category_ids.tolist()
    ]
    head = {"info": {"description": "synthetic"}, "images": images, "categories": categories}
    handle.write(json.dumps(head)[:-1] + ', "annotations": [')
    rng = np.random.default_rng(1)
    separator = ""
    for start in range(0, len(workload.ids), 20000):
        part = slice(start, start + 20000)
        records = _annotations(workload, part, _segmentations(workload, part, rng))
        handle.write(separator + ", ".join(records))
        separator = ", "
    handle.write("]}")


def _annotations(workload: Workload, part: slice, segmentations: list[str]) -> Iterator[str]:
    """Records as JSON, with the keys in COCO's order."""
    boxes = HUNDREDTHS[(workload.boxes[part] * 100).round().astype(int)].tolist()
    columns = (
        workload.area[part],
        workload.crowd[part].astype(int),
        workload.image_ids[workload.image[part]],
        workload.category_ids[workload.category[part]],
        workload.ids[part],
    )
    lists = (column.tolist() for column in columns)
    for mask, box, area, crowd, image, category, id_ in zip(
        segmentations, boxes, *lists, strict=True
    ):
        yield (
            f'{{"segmentation": {mask}, "area": {area!r}, "iscrowd": {crowd}, "image_id": {image}, '
            f'"bbox": [{", ".join(box)}], "category_id": {category}, "id": {id_}}}'
        )


def _segmentations(workload: Workload, part: slice, rng: np.random.Generator) -> list[str]:
    """A polygon within each box or, for a crowd, runs of pixels, as JSON."""
    boxes, crowd = workload.boxes[part], workload.crowd[part]
    count = rng.integers(POINTS[0], POINTS[1] + 1, len(boxes))
    angle = np.linspace(0, 2 * np.pi, POINTS[1], endpoint=False)
    shape = np.stack([np.cos(angle), np.sin(angle)], axis=1)  # [P, 2]
    reach = rng.uniform(0.3, 0.5, (len(boxes), POINTS[1], 1))
    points = boxes[:, None, :2] + boxes[:, None, 2:] * (0.5 + reach * shape)  # [m, P, 2]
    texts = HUNDREDTHS[(points * 100).round().astype(int)].reshape(len(boxes), -1).tolist()
    masks = [f"[[{', '.join(text[: 2 * n])}]]" for text, n in zip(texts, count, strict=True)]
    for index in np.flatnonzero(crowd).tolist():
        width, height = workload.sizes[workload.image[part][index]].tolist()
        runs = rng.integers(1, 300, rng.integers(40, 300)).tolist()
        masks[index] = json.dumps({"counts": runs, "size": [height, width]})
    return masks


def _write_detections(detections: Floats, rounded: bool, handle: IO[str]) -> None:
    separator = "["
    for start in range(0, len(detections), 100000):
        rows = detections[start : start + 100000]
        images, categories = (rows[:, k].astype(np.int64).tolist() for k in (0, 6))
        if rounded:
            boxes = HUNDREDTHS[(rows[:, 1:5] * 100).round().astype(int)].tolist()
            scores = THOUSANDTHS[(rows[:, 5] * 1000).round().astype(int)].tolist()
        else:
            boxes = [list(map(repr, box)) for box in rows[:, 1:5].tolist()]
            scores = list(map(repr, rows[:, 5].tolist()))
        records = (
            f'{{"image_id": {image}, "category_id": {category}, "bbox": [{", ".join(box)}], '
            f'"score": {score}}}'
            for image, category, box, score in zip(images, categories, boxes, scores, strict=True)
        )
        handle.write(separator + ", ".join(records))
        separator = ", "
    handle.write("]")


def main() -> None:
    """Write the workloads that are named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("workloads", nargs="*", default=["coco_s"], metavar="NAME")
    parser.add_argument("--data", type=Path, default=Path(tempfile.gettempdir()) / "evaluator")
    options = parser.parse_args()
    for name in options.workloads:
        if name not in PRESETS:
            parser.error(f"unknown workload {name!r}; allowed: {', '.join(PRESETS)}")
        print(write_workload(name, options.data))


if __name__ == "__main__":
    main()
