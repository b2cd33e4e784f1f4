"""The columns of ordinary COCO files from compiled code, many times faster than parsed JSON.

The compiled code takes a file only if all of it is well-formed and usual (see native/scan.c); for
any other the functions here return None, and `columns` takes it or says what is wrong with it.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from detkit.evaluation.backend import native_module
from detkit.evaluation.columns import DetectionColumns, TruthColumns, box_area

ID_IS_MISSING = 1  # the bit of the first field


class Span(NamedTuple):
    """Part of a file, in bytes."""

    start: int
    end: int


def scan_truths(path: str | Path) -> tuple[TruthColumns, Span] | None:
    """Ground truth from a file, and where the list of its images stands in it.

    Raises:
        OSError: the file cannot be read.
    """
    tables = _scan(path, "scan_truths")
    if tables is None:
        return None
    images, categories, annotations = tables
    records = read_span(path, Span(*categories[:2]))
    ids, image_id, category_id, bbox, area, iscrowd = map(np.asarray, annotations[3:])
    columns = TruthColumns(
        images=np.asarray(images[3]),
        categories=records,
        ids=None if annotations[2] & ID_IS_MISSING else ids,
        image_id=image_id,
        category_id=category_id,
        bbox=bbox,
        area=np.where(np.isnan(area), box_area(bbox), area),
        iscrowd=iscrowd,
    )
    return columns, Span(*images[:2])


def scan_detections(path: str | Path) -> DetectionColumns | None:
    """Detections from a file.

    Raises:
        OSError: the file cannot be read.
    """
    tables = _scan(path, "scan_detections")
    return None if tables is None else DetectionColumns(*map(np.asarray, tables[0][3:]))


def read_span(path: str | Path, span: Span) -> Any:
    """What the JSON in a part of a file holds.

    Raises:
        ValueError: it is not valid JSON: the file was changed.
        OSError: the file cannot be read.
    """
    with open(path, "rb") as file:
        file.seek(span.start)
        text = file.read(span.end - span.start)
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(f"{path}: changed since it was read: {error}") from None


def _scan(path: str | Path, function: str) -> tuple[Any, ...] | None:
    module = native_module()
    if module is None or not os.path.isfile(path):
        return None  # what comes through a pipe can be read but once
    with open(path, "rb", buffering=0) as file:
        return getattr(module, function)(file.fileno(), os.path.getsize(path))
