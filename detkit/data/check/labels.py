"""Ids that point nowhere or twice, and how boxes spread over images and classes.

N images, C categories, G annotations.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np

from detkit.data.check.findings import Finding
from detkit.data.check.records import NOWHERE, Records, is_whole

RARE = 10  # boxes of a class, below which its AP is mostly chance


def check_ids(records: Records) -> Iterator[Finding]:
    """Ids of images, categories and annotations."""
    yield Finding.of_texts("record_malformed", records.dropped)
    ids = [image["id"] for image in records.images]
    texts = np.array([isinstance(each, str) for each in ids], dtype=bool)
    yield records.of_images("image_id_text", np.flatnonzero(texts), lambda _: "")
    yield records.of_images("image_id_duplicate", np.flatnonzero(repeated(ids)), lambda _: "")
    yield records.of_boxes("unknown_image", records.image_index == NOWHERE)
    unknown = records.category_index == NOWHERE
    shifted = category_shift(records) != 0
    yield records.of_boxes("categories_shifted", np.full(len(unknown), shifted))
    yield records.of_boxes("unknown_category", unknown & (not shifted))
    yield from _check_categories(records)
    own = [item.get("id") for item in records.annotations]
    whole = np.array([is_whole(each) for each in own], dtype=bool)
    yield records.of_boxes("annotation_id_missing", ~whole)
    yield records.of_boxes("annotation_id_duplicate", whole & repeated(own))
    yield records.of_boxes("annotation_id_zero", np.array([each == 0 for each in own], bool))


def repeated(values: list[Any]) -> np.ndarray:
    """Mask of the values that stood before."""
    seen: set[str] = set()
    mask = np.zeros(len(values), dtype=bool)
    for index, key in enumerate(map(repr, values)):  # not the values: 1 == True, lists have no hash
        mask[index] = key in seen
        seen.add(key)
    return mask


def _check_categories(records: Records) -> Iterator[Finding]:
    ids = [category["id"] for category in records.categories]
    names = [category["name"] for category in records.categories]
    twice = np.flatnonzero(repeated(ids) | repeated(names))
    yield Finding(
        "category_duplicate", twice, lambda index: f"category {ids[index]} ({names[index]})"
    )


def category_shift(records: Records) -> int:
    """What to add to the category ids of all boxes so that they are those of the categories.

    0 unless they are off by one: some are unknown, and shifted by one all are known, so that the
    boxes count from 0 where the categories count from 1, or the other way round.
    """
    known = {category["id"] for category in records.categories}
    used = {item["category_id"] for item in records.annotations}
    if not used or used <= known or len(known) < 2:
        return 0
    return next((shift for shift in (1, -1) if {each + shift for each in used} <= known), 0)


def check_balance(records: Records) -> Iterator[Finding]:
    """Images without boxes, classes without or with few."""
    counts = np.bincount(records.image_index + 1, minlength=len(records.images) + 1)[1:]
    empty = np.flatnonzero(counts == 0)
    none = len(records.images) > 0 and len(empty) == len(records.images)
    yield Finding.of_texts("boxes_none", [records.source] if none else [])
    yield records.of_images("images_empty", empty, lambda _: "")
    boxes = class_counts(records)
    names = [category["name"] for category in records.categories]
    plain = {name: " ".join(name.casefold().split()) for name in names}  # of each name once
    forms = Counter(plain.values())
    alike = [index for index, name in enumerate(names) if forms[plain[name]] > 1]
    yield Finding("classes_alike", np.array(alike, np.int64), lambda index: repr(names[index]))
    unused = np.flatnonzero(boxes == 0)
    yield Finding("classes_unused", unused, lambda index: names[index])
    rare = np.flatnonzero((boxes > 0) & (boxes < RARE))
    yield Finding("classes_rare", rare, lambda index: f"{names[index]}: {boxes[index]}")


def class_counts(records: Records) -> np.ndarray:
    """`[C]` boxes of each category; crowds do not count."""
    index = records.category_index[~records.crowd]
    counts: np.ndarray = np.bincount(index + 1, minlength=len(records.categories) + 1)[1:]
    return counts


def numbering(ids: np.ndarray) -> str:
    """How ids are numbered: "1..80 with 10 gaps"."""
    if not len(ids):
        return "none"
    low, high = int(ids.min()), int(ids.max())
    gaps = high - low + 1 - len(np.unique(ids))
    return f"{low}..{high}" + (f" with {gaps} gaps" if gaps else "")


def describe(records: Records, sizes: np.ndarray) -> dict[str, Any]:
    """Counts, numbering and sizes, ready for JSON.

    Args:
        records: of what.
        sizes: `[N, 2]` (height, width) of the pictures.
    """
    counts, crowd = class_counts(records), records.crowd
    sides = np.sqrt(np.maximum(records.boxes[:, 2:], 0).prod(axis=1))[~crowd]
    image_ids = [image["id"] for image in records.images if is_whole(image["id"])]
    names = [category["name"] for category in records.categories]
    used = counts[counts > 0]
    return {
        "images": len(records.images),
        "boxes": len(records.boxes),
        "crowds": int(crowd.sum()),
        "picture_sizes": _sizes(sizes),
        "image_ids": numbering(np.array(image_ids, dtype=np.int64)),
        "category_ids": numbering(
            np.array([category["id"] for category in records.categories], dtype=np.int64)
        ),
        "classes": dict(zip(names, counts.tolist(), strict=True)),
        "imbalance": round(float(used.max() / used.min()), 1) if len(used) else None,
        "box_sides": quantiles(sides),
    }


def _sizes(sizes: np.ndarray) -> dict[str, int]:
    """The most frequent sizes as WIDTHxHEIGHT, with how many pictures have them."""
    kinds, counts = np.unique(sizes, axis=0, return_counts=True)
    order = np.argsort(-counts, kind="stable")[:5]
    return {f"{kinds[i][1]}x{kinds[i][0]}": int(counts[i]) for i in order.tolist()}


def quantiles(values: np.ndarray) -> dict[str, float]:
    """Smallest, 10 %, middle, 90 % and largest; empty of no values."""
    if not len(values):
        return {}
    names = ("min", "10%", "median", "90%", "max")
    shares = np.quantile(values, (0, 0.1, 0.5, 0.9, 1))
    return {name: round(float(value), 1) for name, value in zip(names, shares, strict=True)}
