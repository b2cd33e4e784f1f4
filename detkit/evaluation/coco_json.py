"""Read COCO JSON, ground truth and results, into flat arrays, and say exactly what is wrong."""

from __future__ import annotations

import contextlib
import itertools
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from detkit.evaluation.differences import take_by_id
from detkit.evaluation.inputs import (
    Bools,
    CocoTruths,
    FlatDetections,
    FlatTruths,
    Floats,
    Ints,
    TruthsById,
    index_of,
)

_KEYS = ("images", "categories", "annotations")
_INT64 = 2**63


def read_truths(
    source: Mapping[str, Any] | str | Path, *, strict: bool = False, use_categories: bool = True
) -> CocoTruths:
    """Read ground truth from a COCO file or the dict that was read from one.

    `area` defaults to w * h and `iscrowd` to 0.

    Args:
        source: path or dict.
        strict: take annotations by their ids, as pycocotools does, and numbers that are not finite.
        use_categories: as in CocoSettings, of interest to ids that repeat.

    Raises:
        ValueError: malformed JSON; a field is missing or wrong (the file, the index and the field).
        OSError: the file cannot be read.
    """
    data, name = (source, "ground truth") if isinstance(source, Mapping) else load_json(source)
    if not isinstance(data, Mapping):
        raise ValueError(
            f"{name}: ground truth must be a JSON object with images, categories and annotations, "
            f"got {_describe(data)}"
        )
    images = _Table.of(data, "images", name)
    categories = _Table.of(data, "categories", name)
    image_ids = np.unique(images.integers("id"))
    category_ids = np.unique(categories.integers("id"))
    names = {
        int(record["id"]): str(record.get("name", record["id"])) for record in categories.records
    }
    annotations = _Table.of(data, "annotations", name, finite=not strict)
    truths, by_id = _read_annotations(
        annotations, image_ids, category_ids, strict=strict, use_categories=use_categories
    )
    class_names = tuple(names[int(category)] for category in category_ids)
    return CocoTruths(image_ids, category_ids, class_names, truths, name, by_id)


def _read_annotations(
    table: _Table, image_ids: Ints, category_ids: Ints, *, strict: bool, use_categories: bool
) -> tuple[FlatTruths, TruthsById | None]:
    """The annotations of the listed images and categories, and as pycocotools takes them."""
    image, image_known = index_of(image_ids, table.integers("image_id"))
    category, category_known = index_of(category_ids, table.integers("category_id"))
    boxes = table.boxes("bbox")
    with np.errstate(over="ignore", invalid="ignore"):
        area = boxes[:, 2] * boxes[:, 3]
    truths = FlatTruths(
        image,
        category,
        boxes,
        area=table.floats("area", area.tolist()),
        crowd=table.flags("iscrowd"),
        id_is_zero=np.zeros(len(boxes), bool),
    )
    listed = image_known & category_known
    try:
        ids = table.integers("id")
    except ValueError:
        if strict:
            raise
        return truths[listed], None  # ids that are none do not matter but to pycocotools
    collected = listed if use_categories else image_known
    by_id = take_by_id(truths, ids, collected=collected, listed=listed)
    if strict and by_id is not None:
        return by_id.truths, by_id
    return truths[listed], by_id


def read_detections(
    source: Sequence[Mapping[str, Any]] | str | Path, truths: CocoTruths, *, strict: bool = False
) -> FlatDetections:
    """Read detections in COCO's results format: a list of image_id, category_id, bbox and score.

    Detections of categories that the ground truth does not list are left out, as in pycocotools.

    Args:
        source: path or list.
        truths: the ground truth.
        strict: take numbers that are not finite.

    Raises:
        ValueError: malformed JSON; a field is missing or wrong, or an image is not in the ground
            truth (the file, the index and the field).
        OSError: the file cannot be read.
    """
    data, name = load_json(source) if isinstance(source, str | Path) else (source, "detections")
    if not isinstance(data, Sequence) or isinstance(data, str):
        raise ValueError(
            f"{name}: detections must be a JSON array of objects with image_id, category_id, bbox "
            f"and score, got {_describe(data)}"
        )
    table = _Table(data, f"{name}: ", finite=not strict)
    ids = table.integers("image_id")
    image, known = index_of(truths.image_ids, ids)
    if not known.all():
        index = int(np.argmin(known))
        raise ValueError(
            f"{name}: [{index}]: image_id {ids[index]} is not among the {len(truths.image_ids)} "
            f"images of {truths.source}"
        )
    category, listed = index_of(truths.category_ids, table.integers("category_id"))
    found = FlatDetections(image, category, table.boxes("bbox"), table.floats("score"))
    return found[np.flatnonzero(listed)]


def load_json(path: str | Path) -> tuple[Any, str]:
    """What the file holds, and its name for error messages.

    Raises:
        ValueError: malformed JSON.
        OSError: the file cannot be read.
    """
    try:
        return json.loads(Path(path).read_bytes()), str(path)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not valid JSON: {error}") from None


def _describe(value: object) -> str:
    """A value for an error message: short, with its type."""
    text = repr(value)
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({type(value).__name__})"


@dataclass(frozen=True, slots=True)
class _Table:
    """A list of records read by columns.

    A column is checked by the set of its types; only one that looks odd is gone through value by
    value, to convert what is harmless (3.0 as an id, numpy's numbers) and to name what is not.

    Attributes:
        records: JSON objects.
        place: prefix of `[index]` in error messages.
        finite: NaN and infinite numbers are wrong.
    """

    records: Sequence[Mapping[str, Any]]
    place: str
    finite: bool = True

    @classmethod
    def of(cls, data: Mapping[str, Any], key: str, name: str, *, finite: bool = True) -> _Table:
        """The list under a key of the file's object."""
        if key not in data:
            raise ValueError(f"{name}: {key!r} is missing; ground truth needs {', '.join(_KEYS)}")
        records = data[key]
        if not isinstance(records, Sequence) or isinstance(records, str):
            raise ValueError(f"{name}: {key!r} must be a list, got {_describe(records)}")
        return cls(records, f"{name}: {key}", finite)

    def integers(self, field: str) -> Ints:
        """A column of ids, `[n]`."""
        values = self._values(field)
        if set(map(type, values)) <= {int}:
            with contextlib.suppress(OverflowError):
                return np.array(values, np.int64)
        self._check(field, values, _is_integer, "a whole number")
        return np.array([int(value) for value in values], np.int64)

    def flags(self, field: str) -> Bools:
        """A column of 0 or 1 where a missing value is 0, `[n]`."""
        values = self._values(field, itertools.repeat(0))
        if not set(map(type, values)) <= {int, bool}:
            self._check(field, values, _is_flag, "0 or 1")
        return np.array([bool(value) for value in values], bool)

    def floats(self, field: str, defaults: Iterable[float] | None = None) -> Floats:
        """A column of finite numbers, `[n]`."""
        values = self._values(field, defaults)
        if set(map(type, values)) <= {int, float}:
            with contextlib.suppress(OverflowError):
                column = np.array(values, np.float64)
                if not self.finite or np.isfinite(column).all():
                    return column
        self._check(field, values, self._is_number, "a finite number")
        return np.array(values, np.float64)

    def boxes(self, field: str) -> Floats:
        """A column of xywh boxes, `[n, 4]`."""
        values = self._values(field)
        if set(map(type, values)) <= {list} and set(map(len, values)) <= {4}:
            flat = list(itertools.chain.from_iterable(values))
            if set(map(type, flat)) <= {int, float}:
                with contextlib.suppress(OverflowError):
                    column = np.array(flat, np.float64).reshape(-1, 4)
                    if not self.finite or np.isfinite(column).all():
                        return column
        self._check(field, values, self._is_box, "[x, y, width, height] in finite numbers")
        return np.array([list(value) for value in values], np.float64).reshape(-1, 4)

    def _values(self, field: str, defaults: Iterable[Any] | None = None) -> list[Any]:
        try:
            if defaults is None:
                return [record[field] for record in self.records]
            pairs = zip(self.records, defaults, strict=False)  # the defaults may be endless
            return [record.get(field, default) for record, default in pairs]
        except (KeyError, TypeError, AttributeError):
            for index, record in enumerate(self.records):
                if not isinstance(record, Mapping):
                    raise ValueError(
                        f"{self.place}[{index}] must be an object, got {_describe(record)}"
                    ) from None
                if defaults is None and field not in record:
                    raise ValueError(f"{self.place}[{index}]: {field!r} is missing") from None
            raise

    def _is_number(self, value: Any) -> bool:
        if not self.finite and isinstance(value, float | np.floating):
            return True
        return _is_finite(value)

    def _is_box(self, value: object) -> bool:
        if not isinstance(value, list | tuple | np.ndarray) or len(value) != 4:
            return False
        return all(self._is_number(number) for number in value)

    def _check(
        self, field: str, values: list[Any], accepts: Callable[[Any], bool], wanted: str
    ) -> None:
        for index, value in enumerate(values):
            if not accepts(value):
                raise ValueError(
                    f"{self.place}[{index}]: {field!r} must be {wanted}, got {_describe(value)}"
                )


def _is_finite(value: Any) -> bool:
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) <= sys.float_info.max  # also false for NaN, and for whole numbers beyond


def _is_integer(value: Any) -> bool:
    return _is_finite(value) and int(value) == value and -_INT64 <= int(value) < _INT64


def _is_flag(value: object) -> bool:
    return isinstance(value, bool | np.bool_ | int | np.integer)
