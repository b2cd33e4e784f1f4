"""Read COCO JSON, ground truth and results, into flat arrays, and say exactly what is wrong.

Compiled code reads ordinary files (`scan`). All others, and all where there is none, are parsed by
Python's json and taken apart by `columns`, with the same outcome.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from detkit.evaluation.columns import (
    DetectionColumns,
    Records,
    Table,
    TruthColumns,
    describe,
    detection_columns,
    truth_columns,
)
from detkit.evaluation.differences import take_by_id
from detkit.evaluation.inputs import (
    CocoTruths,
    FlatDetections,
    FlatTruths,
    Floats,
    Ids,
    Ints,
    LoadRecords,
    TruthsById,
    index_of,
)
from detkit.evaluation.scan import Span, read_span, scan_detections, scan_truths


def read_truths(
    source: Mapping[str, Any] | str | Path,
    *,
    strict: bool = False,
    use_categories: bool = True,
    name: str = "ground truth",
) -> CocoTruths:
    """Read ground truth from a COCO file or the dict that was read from one.

    Image ids are whole numbers or strings, but not both; `area` defaults to w * h and `iscrowd`
    to 0.

    Args:
        source: path or dict.
        strict: take annotations by their ids, as pycocotools does, and numbers that are not finite
            or are negative sizes.
        use_categories: as in CocoSettings, of interest to ids that repeat.
        name: of a dict, for error messages.

    Raises:
        ValueError: malformed JSON; a field is missing or wrong (the file, the index and the field).
        OSError: the file cannot be read.
    """
    load_images: LoadRecords
    if isinstance(source, Mapping):
        columns = truth_columns(source, name, strict=strict)
        load_images = partial(list, source["images"])
    else:
        name = str(source)
        columns, load_images = _read_truth_file(source, strict=strict)
    image_ids: Ids = np.unique(columns.images)
    category_ids, class_names, listed = _sort_categories(
        Table(columns.categories, f"{name}: categories")
    )
    _check_kind(columns.image_id, image_ids, f"{name}: annotations[0]")
    if not strict:
        _check_sizes(columns.bbox, f"{name}: annotations")
        _check_areas(columns.area, f"{name}: annotations")
    truths, by_id = _place_truths(
        columns, image_ids, category_ids, strict=strict, use_categories=use_categories
    )
    return CocoTruths(
        image_ids, category_ids, class_names, truths, name, by_id, load_images, listed
    )


def read_detections(
    source: Sequence[Mapping[str, Any]] | str | Path,
    truths: CocoTruths,
    *,
    strict: bool = False,
    keep_unlisted: bool = False,
) -> FlatDetections:
    """Read detections in COCO's results format: a list of image_id, category_id, bbox and score.

    Detections of categories that the ground truth does not list are left out, as in pycocotools.

    Args:
        source: path or list.
        truths: the ground truth.
        strict: take numbers that are not finite or are negative sizes.
        keep_unlisted: keep detections of other categories, with -1 as the index of the category.

    Raises:
        ValueError: malformed JSON; a field is missing or wrong, or an image is not in the ground
            truth (the file, the index and the field).
        OSError: the file cannot be read.
    """
    if isinstance(source, str | Path):
        name = str(source)
        columns = scan_detections(source) or _parse_detections(source, strict=strict)
    else:
        name = "detections"
        columns = detection_columns(source, name, strict=strict)
    _check_kind(columns.image_id, truths.image_ids, f"{name}: [0]", truths.source)
    image, known = index_of(truths.image_ids, columns.image_id)
    if not known.all():
        index = int(np.argmin(known))
        (image_id,) = columns.image_id[[index]].tolist()
        raise ValueError(
            f"{name}: [{index}]: image_id {image_id!r} is not among the {len(truths.image_ids)} "
            f"images of {truths.source}"
        )
    if not strict:
        _check_sizes(columns.bbox, f"{name}: ")
    category, listed = index_of(truths.category_ids, columns.category_id)
    category[~listed] = -1
    found = FlatDetections(image, category, columns.bbox, columns.score)
    return found if keep_unlisted or listed.all() else found[np.flatnonzero(listed)]


def load_json(path: str | Path) -> tuple[Any, str]:
    """What the file holds, and its name for error messages.

    Raises:
        ValueError: malformed JSON.
        OSError: the file cannot be read.
    """
    try:
        with _collector_paused():
            return json.loads(Path(path).read_bytes()), str(path)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not valid JSON: {error}") from None


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Millions of new objects, none of them in a circle, are not searched for circles meanwhile."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _read_truth_file(path: str | Path, *, strict: bool) -> tuple[TruthColumns, LoadRecords]:
    scanned = scan_truths(path)
    if scanned is not None and not (strict and scanned[0].ids is None):
        columns, span = scanned
        return columns, partial(_load_images, path, span)
    data, name = load_json(path)
    return truth_columns(data, name, strict=strict), partial(_load_images, path)


def _parse_detections(path: str | Path, *, strict: bool) -> DetectionColumns:
    data, name = load_json(path)
    return detection_columns(data, name, strict=strict)


def _load_images(path: str | Path, span: Span | None = None) -> Records:
    """The records of the images, read again."""
    return load_json(path)[0]["images"] if span is None else read_span(path, span)


def _sort_categories(table: Table) -> tuple[Ints, tuple[str, ...], Ints | None]:
    """The ids in order, the names (of a repeated id the last one), and how often each repeats."""
    ids = table.integers("id")
    names = [str(record.get("name", record["id"])) for record in table.records]
    name_of = dict(zip(ids.tolist(), names, strict=True))
    unique, listed = np.unique(ids, return_counts=True)
    class_names = tuple(name_of[category] for category in unique.tolist())
    return unique, class_names, listed if len(unique) < len(ids) else None


def _check_kind(ids: Ids, known: Ids, place: str, source: str = "") -> None:
    """Numbers are looked for among numbers, and strings among strings."""
    if len(ids) and len(known) and ids.dtype != known.dtype:
        wanted = "a string" if known.dtype == object else "a whole number"
        raise ValueError(
            f"{place}: 'image_id' must be {wanted}, as those of the images{source and ' of '}"
            f"{source} are, got {describe(ids[[0]].tolist()[0])}"
        )


def _check_sizes(boxes: Floats, place: str) -> None:
    if len(boxes) and min(boxes[:, 2].min(), boxes[:, 3].min()) < 0:
        index = int(np.argmax((boxes[:, 2:] < 0).any(axis=1)))
        raise ValueError(
            f"{place}[{index}]: 'bbox' must be [x, y, width, height] without a negative size, "
            f"got {boxes[index].tolist()}"
        )


def _check_areas(area: Floats, place: str) -> None:
    if len(area) and area.min() < 0:
        index = int(np.argmax(area < 0))
        raise ValueError(f"{place}[{index}]: 'area' must not be negative, got {area[index]}")


def _place_truths(
    columns: TruthColumns,
    image_ids: Ids,
    category_ids: Ints,
    *,
    strict: bool,
    use_categories: bool,
) -> tuple[FlatTruths, TruthsById | None]:
    """The annotations of the listed images and categories, and as pycocotools takes them."""
    image, image_known = index_of(image_ids, columns.image_id)
    category, category_known = index_of(category_ids, columns.category_id)
    id_is_zero = np.zeros(len(image), bool)
    truths = FlatTruths(image, category, columns.bbox, columns.area, columns.iscrowd, id_is_zero)
    listed = image_known & category_known
    by_id = None
    if columns.ids is not None:  # otherwise pycocotools takes nothing
        collected = listed if use_categories else image_known
        by_id = take_by_id(truths, columns.ids, collected=collected, listed=listed)
    if strict and by_id is not None:
        return by_id.truths, by_id
    return truths if listed.all() else truths[listed], by_id
