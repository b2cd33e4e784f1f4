"""Read the files of Pascal VOC and YOLO that their readers refuse, as far as they can be read.

What cannot is left out and named, and everything else becomes COCO JSON for the checks.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from detkit.data.annotations import AnnotationError, read_text
from detkit.data.check.records import Records, make_records
from detkit.data.images import ImageReadError
from detkit.data.pictures import IMAGE_SUFFIXES, list_files, picture_size
from detkit.data.voc import ALL, Page, annotation_folder, list_splits, read_page
from detkit.data.yolo import find_pictures, label_file, load_data_yaml, read_names
from detkit.structures import Size

_TRUE = ("1", "true", "yes")


class _Content:
    """COCO JSON that grows record by record."""

    def __init__(self) -> None:
        self.images: list[dict[str, Any]] = []
        self.annotations: list[dict[str, Any]] = []
        self.dropped: list[str] = []

    def add_image(self, name: str, size: Size | None) -> None:
        """An image; the boxes that follow are its."""
        height, width = size or (None, None)
        image = {"id": len(self.images) + 1, "file_name": name, "width": width, "height": height}
        self.images.append(image)

    def add_box(self, category: Any, xywh: Sequence[float], *, crowd: bool = False) -> None:
        """A box of the last image."""
        self.annotations.append(
            {
                "id": len(self.annotations) + 1,
                "image_id": len(self.images),
                "category_id": category,
                "bbox": list(xywh),
                "iscrowd": int(crowd),
            }
        )

    def records(self, source: str, folder: Path, categories: dict[int, str]) -> Records:
        """All of it for the checks."""
        content = {
            "images": self.images,
            "annotations": self.annotations,
            "categories": [{"id": each, "name": name} for each, name in categories.items()],
        }
        return make_records(source, folder, content, tuple(self.dropped))


def _numbers(texts: Sequence[str | None]) -> list[float] | None:
    """Finite numbers; None unless all are."""
    try:
        numbers = [float(text or "") for text in texts]
    except ValueError:
        return None
    return numbers if all(map(math.isfinite, numbers)) else None


def loose_voc(source: str, root: Path, split: str | None) -> Records:
    """Every XML file of a split that can be read, whether or not its picture is there."""
    folder = annotation_folder(root)
    names = [name.removesuffix(".xml") for name in list_files(folder, (".xml",))]
    if split is not None and (split != ALL or split in list_splits(root)):
        lines = read_text(root / "ImageSets" / "Main" / f"{split}.txt").splitlines()
        names = list(dict.fromkeys(re.sub(r"\s+(-1|0|1)$", "", line.strip()) for line in lines))
    inside = (root / name for name in ("JPEGImages", "images"))
    pictures = next((each for each in inside if each.is_dir()), root)
    picture_of = {
        str(PurePosixPath(name).with_suffix("")): name
        for name in list_files(pictures, IMAGE_SUFFIXES)
    }
    content = _Content()
    classes: dict[str, int] = {}
    for name in filter(None, names):
        try:
            page = read_page(folder / f"{name}.xml")
        except AnnotationError as error:
            content.dropped.append(str(error))
            continue
        content.add_image(picture_of.get(name) or page.filename or f"{name}.jpg", page.size)
        _add_objects(content, page, classes)
    return content.records(source, pictures, {number: name for name, number in classes.items()})


def _add_objects(content: _Content, page: Page, classes: dict[str, int]) -> None:
    for index, item in enumerate(page.objects, start=1):
        corners = _numbers(item.corners)
        if corners is None or not item.name:
            told = f"{page.file}: object {index}: {item.name or 'no name'}, corners {item.corners}"
            content.dropped.append(told)
            continue
        x1, y1 = corners[0] - page.of_challenge, corners[1] - page.of_challenge
        xywh = [x1, y1, corners[2] - x1, corners[3] - y1]
        category = classes.setdefault(item.name, len(classes) + 1)
        content.add_box(category, xywh, crowd=(item.flags[0] or "").lower() in _TRUE)


def loose_yolo(source: str, data: Path, split: str) -> Records:
    """Every line that can be read; of polygons nothing.

    Raises:
        AnnotationError: the yaml itself, or its folders, cannot be used.
    """
    yaml = load_data_yaml(data)
    names = read_names(yaml, data)
    content = _Content()
    paths = find_pictures(yaml, split, data)
    for path in paths:
        try:
            size = picture_size(Path(path))
        except ImageReadError:
            size = None  # its boxes are fractions of it; reading it finds what is wrong
        content.add_image(os.path.relpath(path, data.parent), size)
        labels = Path(label_file(path))
        if size is not None and labels.is_file():
            _add_lines(content, labels, size)
    return content.records(source, data.parent, names)


def _add_lines(content: _Content, labels: Path, size: Size) -> None:
    try:
        lines = read_text(labels).splitlines()
    except AnnotationError as error:
        content.dropped.append(str(error))
        return
    height, width = size
    for number, line in enumerate(lines, start=1):
        words = line.split()
        numbers = _numbers(words)
        if not words:
            continue
        if numbers is None or len(numbers) != 5 or max(map(abs, numbers[1:])) > 2:
            content.dropped.append(f"{labels}, line {number}: {line.strip()[:80]}")
            continue
        category, x, y, w, h = numbers
        xywh = [(x - w / 2) * width, (y - h / 2) * height, w * width, h * height]
        content.add_box(int(category), xywh)
