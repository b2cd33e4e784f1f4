"""A split on disk: JPEG files and one COCO JSON file, written once and shared by all processes."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import cv2

from detkit.data.synthetic.digits import CLASS_NAMES
from detkit.data.synthetic.scene import check_parameters, draw_scene, generator_of
from detkit.structures import Size

VERSION = 1  # part of the folder name: raise it with every change that alters a picture or a box

Truth = tuple[list[list[int]], list[int]]  # boxes xyxy and labels of one image


class SyntheticPaths(NamedTuple):
    """Where a written split lies."""

    annotations_json_path: Path
    images_folder: Path


def default_cache() -> Path:
    """The folder for generated data: $DETKIT_CACHE, else detkit in the user's cache folder."""
    if given := os.environ.get("DETKIT_CACHE"):
        return Path(given).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "detkit"


def write_synthetic(
    root: Path, *, split: str, num_images: int, seed: int, image_size: Size = (256, 256)
) -> SyntheticPaths:
    """Write one split below `root`, unless it is already there.

    Several processes may call this at once: each writes a private folder and the first to finish
    renames it into place, so a folder with the final name and its JSON file is complete.

    Args:
        root: folder that holds the generated sets; created when missing.
        split: "train", "val" or "test"; splits of one seed share no image.
        num_images: how many images, at least 1.
        seed: any integer from 0.
        image_size: (height, width) in pixels, each at least 64.

    Raises:
        ValueError: a parameter is out of its range.
    """
    check_parameters(split, num_images, seed, image_size)
    height, width = image_size
    name = f"digits-v{VERSION}-{split}-{num_images}-seed{seed}-{height}x{width}"
    folder = Path(root) / name
    paths = SyntheticPaths(folder / "annotations.json", folder / "images")
    if paths.annotations_json_path.is_file():
        return paths
    private = Path(root) / f".{name}.{uuid.uuid4().hex}"
    (private / "images").mkdir(parents=True)
    try:
        _write_split(private, split=split, num_images=num_images, seed=seed, image_size=image_size)
        _publish(private, folder)
    finally:
        shutil.rmtree(private, ignore_errors=True)
    return paths


def _write_split(folder: Path, *, split: str, num_images: int, seed: int, image_size: Size) -> None:
    def write_image(index: int) -> Truth:
        rng = generator_of(seed, split, index)
        scene = draw_scene(rng, image_size)
        quality = int(rng.integers(70, 96))
        encoded = cv2.imencode(".jpg", scene.image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
        (folder / "images" / _file_name(index)).write_bytes(encoded.tobytes())
        return scene.boxes.tolist(), scene.labels.tolist()

    # Threads, not processes: OpenCV works outside the interpreter lock, and a caller who holds
    # locks or a GPU must not be forked.
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        truths = list(pool.map(write_image, range(num_images)))
    document = _coco_document(truths, image_size)
    document["info"] = {"description": "detkit digits", "version": str(VERSION), "seed": seed}
    (folder / "annotations.json").write_text(json.dumps(document))


def _publish(private: Path, folder: Path) -> None:
    try:
        os.rename(private, folder)
    except OSError:
        if (folder / "annotations.json").is_file():
            return  # another process was first, with the same bytes
        if not folder.is_dir():
            raise
        # An incomplete folder bears the name. File by file, the JSON last, so that nothing a
        # third process might read is ever missing or half written.
        (folder / "images").mkdir(exist_ok=True)
        for path in sorted((private / "images").iterdir()):
            os.replace(path, folder / "images" / path.name)
        os.replace(private / "annotations.json", folder / "annotations.json")


def _file_name(index: int) -> str:
    return f"{index + 1:06d}.jpg"


def _coco_document(truths: list[Truth], image_size: Size) -> dict[str, Any]:
    """COCO's annotation file as a dictionary: all ids from 1, category id = digit + 1."""
    height, width = image_size
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index, (boxes, labels) in enumerate(truths):
        name = _file_name(index)
        images.append({"id": index + 1, "file_name": name, "width": width, "height": height})
        for (x1, y1, x2, y2), label in zip(boxes, labels, strict=True):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": index + 1,
                    "category_id": label + 1,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": (x2 - x1) * (y2 - y1),
                    "iscrowd": 0,
                }
            )
    categories = [{"id": label + 1, "name": name} for label, name in enumerate(CLASS_NAMES)]
    return {"images": images, "annotations": annotations, "categories": categories}
