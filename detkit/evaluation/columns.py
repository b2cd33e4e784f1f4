"""COCO's records by columns: images, categories, annotations and detections from parsed JSON.

A value that is wrong is an error that names the file, the index and the field. `scan` gives the
same columns straight from a file.

I images, K categories, M annotations, N detections.
"""

from __future__ import annotations

import contextlib
import itertools
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from detkit.evaluation.inputs import Bools, Floats, Ids, Ints

Records = Sequence[Mapping[str, Any]]

_KEYS = ("images", "categories", "annotations")
_INT64 = 2**63


class TruthColumns(NamedTuple):
    """Ground truth, in the order of the file.

    Attributes:
        images: `[I]` ids of the images.
        categories: K records.
        ids: `[M]` of the annotations, or None where some have none that is a whole number.
        image_id: `[M]`.
        category_id: `[M]`.
        bbox: `[M, 4]` xywh.
        area: `[M]`, w * h where it is missing.
        iscrowd: `[M]`.
    """

    images: Ids
    categories: Records
    ids: Ints | None
    image_id: Ids
    category_id: Ints
    bbox: Floats
    area: Floats
    iscrowd: Bools


class DetectionColumns(NamedTuple):
    """Detections, in the order of the file.

    Attributes:
        image_id: `[N]`.
        category_id: `[N]`.
        bbox: `[N, 4]` xywh.
        score: `[N]`.
    """

    image_id: Ids
    category_id: Ints
    bbox: Floats
    score: Floats


def truth_columns(data: Any, name: str, *, strict: bool) -> TruthColumns:
    """Ground truth from what its JSON holds.

    Args:
        data: object with images, categories and annotations.
        name: of the file, for error messages.
        strict: annotations need an id, and numbers need not be finite.

    Raises:
        ValueError: a part or a field is missing or wrong.
    """
    if not isinstance(data, Mapping):
        raise ValueError(
            f"{name}: ground truth must be a JSON object with images, categories and annotations, "
            f"got {describe(data)}"
        )
    images = Table.of(data, "images", name)
    categories = Table.of(data, "categories", name)
    annotations = Table.of(data, "annotations", name, finite=not strict)
    image_ids, image_id = images.ids("id"), annotations.ids("image_id")
    category_id, bbox = annotations.integers("category_id"), annotations.boxes("bbox")
    area = annotations.floats("area", box_area(bbox).tolist())
    iscrowd = annotations.flags("iscrowd")
    try:
        ids = annotations.integers("id")
    except ValueError:
        if strict:
            raise
        ids = None
    return TruthColumns(
        image_ids, categories.records, ids, image_id, category_id, bbox, area, iscrowd
    )


def detection_columns(data: Any, name: str, *, strict: bool) -> DetectionColumns:
    """Detections from what their JSON holds.

    Args:
        data: list of objects with image_id, category_id, bbox and score.
        name: of the file, for error messages.
        strict: numbers need not be finite.

    Raises:
        ValueError: it is no such list, or a field is missing or wrong.
    """
    if not isinstance(data, Sequence) or isinstance(data, str):
        raise ValueError(
            f"{name}: detections must be a JSON array of objects with image_id, category_id, bbox "
            f"and score, got {describe(data)}"
        )
    table = Table(data, f"{name}: ", finite=not strict)
    return DetectionColumns(
        table.ids("image_id"),
        table.integers("category_id"),
        table.boxes("bbox"),
        table.floats("score"),
    )


def box_area(boxes: Floats) -> Floats:
    """Width times height of xywh boxes, whatever the numbers are."""
    with np.errstate(over="ignore", invalid="ignore"):
        return boxes[:, 2] * boxes[:, 3]


def describe(value: object) -> str:
    """A value for an error message: short, with its type."""
    text = repr(value)
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({type(value).__name__})"


@dataclass(frozen=True, slots=True)
class Table:
    """A list of records read by columns.

    A column is checked by the set of its types; only one that looks odd is gone through value by
    value, to convert what is harmless (3.0 as an id, numpy's numbers) and to name what is not.

    Attributes:
        records: JSON objects.
        place: prefix of `[index]` in error messages.
        finite: NaN and infinite numbers are wrong.
    """

    records: Records
    place: str
    finite: bool = True

    @classmethod
    def of(cls, data: Mapping[str, Any], key: str, name: str, *, finite: bool = True) -> Table:
        """The list under a key of the file's object."""
        if key not in data:
            raise ValueError(f"{name}: {key!r} is missing; ground truth needs {', '.join(_KEYS)}")
        records = data[key]
        if not isinstance(records, Sequence) or isinstance(records, str):
            raise ValueError(f"{name}: {key!r} must be a list, got {describe(records)}")
        return cls(records, f"{name}: {key}", finite)

    def ids(self, field: str) -> Ids:
        """A column of ids, `[n]`: whole numbers, or strings if the first one is a string."""
        values = self._values(field)
        if not values or not isinstance(values[0], str):
            return self._integers(field, values)
        if not set(map(type, values)) <= {str}:
            self._check(field, values, _is_string, "a string as before")
        column = np.empty(len(values), object)
        column[:] = [str(value) for value in values]
        return column

    def integers(self, field: str) -> Ints:
        """A column of whole numbers, `[n]`."""
        return self._integers(field, self._values(field))

    def _integers(self, field: str, values: list[Any]) -> Ints:
        if set(map(type, values)) <= {int}:
            with contextlib.suppress(OverflowError):
                return np.fromiter(values, np.int64, len(values))  # sooner than np.array
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
                column = np.fromiter(values, np.float64, len(values))
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
                    column = np.fromiter(flat, np.float64, len(flat)).reshape(-1, 4)
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
                        f"{self.place}[{index}] must be an object, got {describe(record)}"
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
                    f"{self.place}[{index}]: {field!r} must be {wanted}, got {describe(value)}"
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


def _is_string(value: object) -> bool:
    return isinstance(value, str)
