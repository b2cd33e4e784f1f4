"""Annotations as their files have them, right or wrong, in arrays that checks can ask.

N images, C categories, G annotations.
"""

from __future__ import annotations

import json
import reprlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from detkit.data.annotations import AnnotationError, Annotations
from detkit.data.check.findings import Finding
from detkit.data.coco import coco_content

SECTIONS = ("images", "annotations", "categories")
NOWHERE = -1  # index of an image or a category that does not exist
WRONG = -1  # side of a picture that is no whole number above 0


@dataclass(frozen=True)
class Records:
    """The records of a data set whose fields can be used, whether or not they make sense.

    Attributes:
        source: where they are from, for messages.
        folder: of the pictures.
        content: as COCO JSON has it; each array below has the order of its lists.
        sizes: `[N, 2]` int64 (height, width) as annotated, 0 where absent, `WRONG` where no side.
        image_index: `[G]` int64 into the images; `NOWHERE` for an unknown image id.
        category_index: `[G]` int64 into the categories; `NOWHERE` for an unknown category id.
        boxes: `[G, 4]` float64 xywh.
        crowd: `[G]` bool.
        dropped: records that cannot be used at all, and are left out above.
    """

    source: str
    folder: Path
    content: Mapping[str, Any]
    sizes: np.ndarray
    image_index: np.ndarray
    category_index: np.ndarray
    boxes: np.ndarray
    crowd: np.ndarray
    dropped: tuple[str, ...] = ()

    @property
    def images(self) -> list[dict[str, Any]]:
        """N records."""
        return self.content["images"]

    @property
    def annotations(self) -> list[dict[str, Any]]:
        """G records."""
        return self.content["annotations"]

    @property
    def categories(self) -> list[dict[str, Any]]:
        """C records."""
        return self.content["categories"]

    def image_name(self, index: int) -> str:
        """An image, for a message."""
        image = self.images[index]
        return f"image {image['id']} ({image['file_name']})"

    def box_name(self, index: int) -> str:
        """An annotation, for a message."""
        item = self.annotations[index]
        image, category = self.image_index[index], self.category_index[index]
        where = (
            f"image id {item['image_id']}" if image == NOWHERE else self.images[image]["file_name"]
        )
        what = (
            f"category id {item['category_id']}"
            if category == NOWHERE
            else self.categories[category]["name"]
        )
        numbers = ", ".join(f"{value:g}" for value in item["bbox"])
        return f"annotation {item.get('id', f'at {index}')}, {where}: {what} [{numbers}]"

    def of_images(self, code: str, indices: np.ndarray, note: Callable[[int], str]) -> Finding:
        """A finding about images; the note stands behind the name of each."""
        return Finding(code, indices, lambda index: f"{self.image_name(index)}{note(index)}")

    def of_boxes(self, code: str, found: np.ndarray) -> Finding:
        """A finding about annotations, by a mask `[G]`."""
        return Finding(code, np.flatnonzero(found), self.box_name)


def make_records(
    source: str, folder: Path, content: Mapping[str, Any], dropped: tuple[str, ...] = ()
) -> Records:
    """Look up ids and pack the numbers of usable records."""
    images, annotations, categories = (content[section] for section in SECTIONS)
    index_of = _first_index(image["id"] for image in images)
    category_of = _first_index(category["id"] for category in categories)
    sides = [[_side(image.get("height")), _side(image.get("width"))] for image in images]
    return Records(
        source=source,
        folder=folder,
        content=content,
        sizes=np.array(sides, dtype=np.int64).reshape(-1, 2),
        image_index=np.array(
            [index_of.get(item["image_id"], NOWHERE) for item in annotations], dtype=np.int64
        ),
        category_index=np.array(
            [category_of.get(item["category_id"], NOWHERE) for item in annotations], dtype=np.int64
        ),
        boxes=np.array([item["bbox"] for item in annotations], dtype=np.float64).reshape(-1, 4),
        crowd=np.array([bool(item.get("iscrowd")) for item in annotations], dtype=bool),
        dropped=dropped,
    )


def _side(value: object) -> int:
    if value is None:
        return 0
    return value if is_whole(value) and value > 0 else WRONG


def _first_index(ids: Iterator[Any]) -> dict[Any, int]:
    found: dict[Any, int] = {}
    for index, each in enumerate(ids):
        found.setdefault(each, index)
    return found


def records_of(annotations: Annotations, source: str) -> Records:
    """Annotations of any format."""
    content = coco_content(annotations, names=annotations.file_names)
    return make_records(source, annotations.images, content)


def load_coco(file: Path) -> tuple[dict[str, Any], tuple[str, ...]]:
    """A COCO JSON file without the records that cannot be used, and these for messages.

    Raises:
        AnnotationError: the file is no JSON, or lacks the three lists.
    """
    try:
        content = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise AnnotationError(f"{file} is not valid JSON: {error}") from None
    if not isinstance(content, dict) or any(
        not isinstance(content.get(section), list) for section in SECTIONS
    ):
        raise AnnotationError(f"{file} is no COCO JSON, which has the lists {', '.join(SECTIONS)}")
    usable, dropped = dict(content), []
    for section, problem_of in zip(
        SECTIONS, (_image_problem, _annotation_problem, _category_problem), strict=True
    ):
        usable[section] = []
        for position, item in enumerate(content[section]):
            problem = problem_of(item) if isinstance(item, dict) else "is no object"
            if problem:
                known = f" (id {reprlib.repr(item['id'])})" if _has_id(item) else ""
                dropped.append(f"{section}[{position}]{known}: {problem}")
            else:
                usable[section].append(item)
    return usable, tuple(dropped)


def _has_id(item: Any) -> bool:
    return isinstance(item, dict) and "id" in item


def is_id(value: object) -> bool:
    """Whether images can be told apart by it: a whole number, or a text (which --fix numbers)."""
    return isinstance(value, str) or is_whole(value)


def is_whole(value: object) -> TypeGuard[int]:
    """Whether it is a whole number that fits into the arrays."""
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63


def _says(item: dict[str, Any], key: str) -> str:
    return f"{key} is {reprlib.repr(item[key])}" if key in item else f"{key} is missing"


def _image_problem(image: dict[str, Any]) -> str | None:
    if not is_id(image.get("id")):
        return f"{_says(image, 'id')}, it must be a whole number"
    if not isinstance(image.get("file_name"), str) or not image["file_name"]:
        return f"{_says(image, 'file_name')}, it must be a text"
    return None


def _category_problem(category: dict[str, Any]) -> str | None:
    if not is_whole(category.get("id")):
        return f"{_says(category, 'id')}, it must be a whole number"
    if not isinstance(category.get("name"), str):
        return f"{_says(category, 'name')}, it must be a text"
    return None


def _annotation_problem(item: dict[str, Any]) -> str | None:
    if not is_id(item.get("image_id")):
        return f"{_says(item, 'image_id')}, it must be a whole number"
    if not is_whole(item.get("category_id")):
        return f"{_says(item, 'category_id')}, it must be a whole number"
    bbox = item.get("bbox")
    if not isinstance(bbox, list) or len(bbox) != 4 or not all(map(_is_number, bbox)):
        return f"{_says(item, 'bbox')}, it must be four finite numbers"
    if item.get("area") is not None and not _is_number(item["area"]):
        return f"{_says(item, 'area')}, it must be a number"
    if item.get("iscrowd") not in (None, 0, 1):
        return f"{_says(item, 'iscrowd')}, it must be 0 or 1"
    return None


def _is_number(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) < 1e300  # false for NaN
