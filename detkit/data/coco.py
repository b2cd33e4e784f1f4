"""Read COCO JSON (https://cocodataset.org/#format-data) into packed arrays, and make it of them.

N images, C classes, G annotations.
"""

from __future__ import annotations

import json
import math
import reprlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from detkit.data.annotations import FLAGS, AnnotationError, Annotations, raise_first
from detkit.data.dataset import CocoDataset, CocoGroundTruth
from detkit.data.pictures import find_images, guess_folder, picture_size

_KNOWN_KEYS = {  # of a record; what else stands there is counted and left out
    "images": {"id", "file_name", "width", "height"},
    "annotations": {"id", "image_id", "category_id", "bbox", "area", "iscrowd"},
    "categories": {"id", "name"},
}


def read_coco(annotations: str | Path, images: str | Path | None = None) -> CocoDataset:
    """Read a COCO JSON file and find its pictures.

    Category ids of any numbering become labels `0..C-1` in ascending order. Images without
    annotations and crowd regions are kept; boxes are clipped to their picture and those without
    area dropped, both counted in the data set's report. Where `area` is absent it is `w * h`;
    where width or height is absent the size is read from the picture.

    Args:
        annotations: the JSON file.
        images: the folder that `file_name` is relative to, default: that of the JSON file, or one
            of the usual places around it. A name that is not there is looked up by its last part
            anywhere below the folder.

    Raises:
        AnnotationError: unreadable JSON, missing or wrong fields, or missing pictures.
        ImageReadError: a picture that had to be read for its size cannot be.
    """
    return parse_coco(annotations, images).dataset()


def parse_coco(annotations: str | Path, images: str | Path | None = None) -> Annotations:
    """What `read_coco` reads, still to be converted."""
    annotations = Path(annotations)
    content = _load(annotations)
    class_names, category_ids = _read_categories(content["categories"], annotations)
    image_ids = _read_images(content["images"], annotations)
    truth = _read_truth(content["annotations"], image_ids, category_ids, annotations)
    names = [image["file_name"] for image in content["images"]]
    images = guess_folder(annotations, names) if images is None else Path(images)
    found = find_images(names, images, annotations)
    sizes = np.array(
        [_size(image, images / name) for image, name in zip(content["images"], found, strict=True)],
        dtype=np.int64,
    ).reshape(-1, 2)
    flags = _read_flags(content["annotations"])
    unread = _count_unread(content, flags)
    return Annotations(images, found, sizes, truth, class_names, flags, unread)


def coco_content(annotations: Annotations, *, names: Sequence[str]) -> dict[str, Any]:
    """Annotations as COCO JSON has them.

    Flags of Pascal VOC become keys of the annotations that have them; annotations without ids are
    numbered from 1.

    Args:
        annotations: of any format.
        names: N values of `file_name`.
    """
    truth = annotations.truth
    records = _annotation_records(truth)
    for flag, values in annotations.flags.items():
        for index in np.flatnonzero(values).tolist():
            records[index][flag] = 1
    images = zip(truth.image_ids.tolist(), names, annotations.sizes.tolist(), strict=True)
    categories = zip(truth.category_ids.tolist(), annotations.class_names, strict=True)
    return {
        "images": [
            {"id": image_id, "file_name": name, "width": width, "height": height}
            for image_id, name, (height, width) in images
        ],
        "annotations": records,
        "categories": [{"id": category_id, "name": name} for category_id, name in categories],
    }


def _annotation_records(truth: CocoGroundTruth) -> list[dict[str, Any]]:
    ids = np.arange(1, len(truth.gt_label) + 1) if truth.gt_ids is None else truth.gt_ids
    columns = {
        "id": ids,
        "image_id": truth.image_ids[truth.gt_image_index],
        "category_id": truth.category_ids[truth.gt_label],
        "bbox": truth.gt_boxes_xywh,
        "area": truth.gt_area,
        "iscrowd": truth.gt_crowd.astype(int),
    }
    rows = zip(*(column.tolist() for column in columns.values()), strict=True)
    return [dict(zip(columns, row, strict=True)) for row in rows]


def _load(file: Path) -> dict[str, list[Any]]:
    """The file's three lists."""
    try:
        content = json.loads(file.read_bytes())
    except OSError as error:
        raise AnnotationError(f"cannot read annotations {file}: {error.strerror}") from None
    except ValueError as error:  # JSON and UTF-8 errors alike
        raise AnnotationError(f"{file} is not valid JSON: {error}") from None
    keys = ("images", "annotations", "categories")
    if not isinstance(content, dict):
        raise AnnotationError(
            f"{file} holds a {type(content).__name__}, not an object with {', '.join(keys)}"
        )
    for key in keys:
        if key not in content:
            raise AnnotationError(f"{file} has no {key!r}; COCO JSON needs {', '.join(keys)}")
        if not isinstance(content[key], list):
            kind = type(content[key]).__name__
            raise AnnotationError(f"{file}: {key!r} must be a list of objects, got a {kind}")
    return content


def _is_id(value: object) -> bool:
    """Whether it is a whole number that fits into the arrays."""
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63


def _is_number(value: object) -> bool:
    """Whether it is a finite number; JSON has integers of any length, floats end at 1.8e308."""
    if isinstance(value, int):
        return not isinstance(value, bool) and abs(value) < 2**1023
    return isinstance(value, float) and math.isfinite(value)


def _read_categories(categories: list[Any], file: Path) -> tuple[tuple[str, ...], np.ndarray]:
    """Class names and category ids in ascending order of the ids."""
    raise_first(f"{file}: {problem}" for problem in _category_problems(categories))
    ordered = sorted(categories, key=lambda category: category["id"])
    ids = np.array([category["id"] for category in ordered], dtype=np.int64)
    return tuple(category["name"] for category in ordered), ids


def _category_problems(categories: list[Any]) -> Iterator[str]:
    if not categories:
        yield "'categories' is empty; list at least one class"
    ids: set[int] = set()
    names: set[str] = set()
    for position, category in enumerate(categories):
        place = f"category at position {position}"
        if not isinstance(category, dict):
            yield f"{place} must be an object, got {reprlib.repr(category)}"
        elif not _is_id(category.get("id")):
            yield f"{place}: {_given(category, 'id')}, it must be an integer"
        elif not isinstance(category.get("name"), str):
            yield f"category {category['id']}: {_given(category, 'name')}, it must be a string"
        elif category["id"] in ids:
            yield f"category id {category['id']} is used twice"
        elif category["name"] in names:
            yield f"category name {category['name']!r} is used twice"
        else:
            ids.add(category["id"])
            names.add(category["name"])


def _given(item: dict[str, Any], key: str) -> str:
    return f"{key} is {reprlib.repr(item[key])}" if key in item else f"{key} is missing"


def _read_images(images: list[Any], file: Path) -> np.ndarray:
    """Image ids `[N]` in the file's order."""
    raise_first(f"{file}: {problem}" for problem in _image_problems(images))
    return np.array([image["id"] for image in images], dtype=np.int64)


def _image_problems(images: list[Any]) -> Iterator[str]:
    ids: set[int] = set()
    for position, image in enumerate(images):
        if not isinstance(image, dict):
            yield f"image at position {position} must be an object, got {reprlib.repr(image)}"
        elif not _is_id(image.get("id")):
            yield f"image at position {position}: {_given(image, 'id')}, it must be an integer"
        elif image["id"] in ids:
            yield f"image id {image['id']} is used twice"
        elif not isinstance(image.get("file_name"), str) or not image["file_name"]:
            yield f"image {image['id']}: {_given(image, 'file_name')}, it must be a string"
        else:
            ids.add(image["id"])
            for side in ("width", "height"):
                if image.get(side) is not None and not (_is_id(image[side]) and image[side] > 0):
                    given = _given(image, side)
                    yield f"image {image['id']}: {given}, it must be a positive integer"


def _read_truth(
    annotations: list[Any], image_ids: np.ndarray, category_ids: np.ndarray, file: Path
) -> CocoGroundTruth:
    """All annotations in the file's order."""
    index_of = {int(image_id): index for index, image_id in enumerate(image_ids)}
    label_of = {int(category_id): label for label, category_id in enumerate(category_ids)}
    raise_first(
        f"{file}: {problem}" for problem in _annotation_problems(annotations, index_of, label_of)
    )
    boxes = np.array([item["bbox"] for item in annotations], dtype=np.float64).reshape(-1, 4)
    area = np.array([item.get("area") for item in annotations], dtype=np.float64)  # None: NaN
    ids = [item.get("id") for item in annotations]
    return CocoGroundTruth(
        image_ids=image_ids,
        category_ids=category_ids,
        gt_image_index=np.array([index_of[item["image_id"]] for item in annotations], np.int64),
        gt_label=np.array([label_of[item["category_id"]] for item in annotations], np.int64),
        gt_boxes_xywh=boxes,
        gt_area=np.where(np.isnan(area), boxes[:, 2] * boxes[:, 3], area),
        gt_crowd=np.array([bool(item.get("iscrowd")) for item in annotations], dtype=bool),
        gt_ids=np.array(ids, np.int64) if all(map(_is_id, ids)) else None,
    )


def _annotation_problems(
    annotations: list[Any], index_of: dict[int, int], label_of: dict[int, int]
) -> Iterator[str]:
    for position, item in enumerate(annotations):
        if not isinstance(item, dict):
            yield f"annotation at position {position} must be an object, got {reprlib.repr(item)}"
            continue
        problem = _annotation_problem(item, index_of, label_of)
        if problem:
            name = (
                f"annotation {item['id']}" if "id" in item else f"annotation at position {position}"
            )
            yield f"{name} (image {item.get('image_id', 'unknown')}): {problem}"


def _annotation_problem(
    item: dict[str, Any], index_of: dict[int, int], label_of: dict[int, int]
) -> str | None:
    """What is wrong with one annotation, if anything."""
    for key, known in (("image_id", index_of), ("category_id", label_of)):
        if not _is_id(item.get(key)):
            return f"{_given(item, key)}, it must be an integer"
        if item[key] not in known:
            section = "images" if key == "image_id" else "categories"
            return f"{key} {item[key]} is not among the {len(known)} ids of {section!r}"
    bbox = item.get("bbox")
    if not isinstance(bbox, list) or len(bbox) != 4 or not all(map(_is_number, bbox)):
        return f"{_given(item, 'bbox')}, it must be four finite numbers [x, y, width, height]"
    if item.get("area") is not None and not _is_number(item["area"]):
        return f"{_given(item, 'area')}, it must be a number"
    if item.get("iscrowd") not in (None, 0, 1):
        return f"{_given(item, 'iscrowd')}, it must be 0 or 1"
    return None


def _read_flags(annotations: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    """The flags of Pascal VOC, which its converters keep as keys, where they are 0 or 1."""
    flags = {}
    for flag in FLAGS:
        values = [item.get(flag) for item in annotations]
        if any(values) and all(value in (None, 0, 1) for value in values):
            flags[flag] = np.array([bool(value) for value in values], dtype=bool)
    return flags


def _count_unread(content: dict[str, list[Any]], flags: Mapping[str, np.ndarray]) -> dict[str, int]:
    """How many records have which other keys."""
    counts: Counter[str] = Counter()
    for section, known in _KNOWN_KEYS.items():
        keys = Counter(key for item in content[section] for key in item if key not in known)
        counts.update({f"{key} of {section}": keys[key] for key in keys if key not in flags})
    return dict(counts)


def _size(image: dict[str, Any], path: Path) -> tuple[int, int]:
    """(height, width) as annotated, or of the picture where that is absent."""
    if image.get("height") is None or image.get("width") is None:
        return picture_size(path)
    return image["height"], image["width"]
