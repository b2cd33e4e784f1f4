"""Read a CSV table: a row for each box, with or without a line of column names.

N images, C classes, R rows, G boxes.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from detkit.data.annotations import (
    FLAGS,
    AnnotationError,
    Annotations,
    box_truth,
    corners_to_xywh,
    is_number,
    name_classes,
    raise_first,
    read_text,
    to_flags,
    to_numbers,
)
from detkit.data.dataset import CocoDataset
from detkit.data.pictures import find_images, guess_folder, picture_size

_IMAGE = ("image", "filename", "imagepath", "path", "imagename", "file")
_CLASS = ("class", "label", "classname", "category", "name")
_CORNERS = (("xmin", "ymin", "xmax", "ymax"), ("x1", "y1", "x2", "y2"))
_XYWH = ("x", "y", "w", "h")
_SIZE = ("width", "height")  # of the picture
_FLAGS = ("iscrowd", *FLAGS)
_BARE = ("image", "x1", "y1", "x2", "y2", "class")  # a table without names
_EXPECTED = (
    "needs columns named image, class and xmin, ymin, xmax, ymax (or x, y, w, h), or no names and "
    "the six columns path, x1, y1, x2, y2, class; separated by comma, semicolon or tab"
)


@dataclass(frozen=True, slots=True)
class _Table:
    """The rows of a file below the names of its columns.

    Attributes:
        file: where they are from.
        columns: name to position; the names are those of this module.
        ignored: names of the columns that nothing here reads.
        rows: R lists of cells.
        lines: R numbers of lines, from 1.
    """

    file: Path
    columns: dict[str, int]
    ignored: tuple[str, ...]
    rows: list[list[str]]
    lines: list[int]

    def place(self, row: int) -> str:
        return f"{self.file}, line {self.lines[row]}"

    def cells(self, name: str, rows: Sequence[int]) -> list[str]:
        """A column of some rows; empty texts where there is no such column."""
        position = self.columns.get(name)
        return ["" if position is None else self.rows[row][position] for row in rows]


def read_csv(
    annotations: str | Path,
    *,
    images: str | Path | None = None,
    classes: Sequence[str] | None = None,
) -> CocoDataset:
    """Read a table of boxes and find its pictures.

    With names in the first line: `image` (or filename, image_path, path), `class` (or label) and
    the corners `xmin, ymin, xmax, ymax` (or x1, y1, x2, y2) or `x, y, w, h`, in pixels; where
    present also `width` and `height` of the picture, `area`, `iscrowd`, `difficult` and
    `truncated`. Without names: `path, x1, y1, x2, y2, class`, the table of keras-retinanet. Case
    and underscores in names do not matter. A row with a picture and neither box nor class is a
    picture without boxes. Image ids are 1..N in the order of their first rows.

    Args:
        annotations: the file; comma, semicolon or tab between the columns.
        images: the folder that pictures are relative to, default: that of the file, or `images`
            beside it. A picture that is not there is looked up by the last part of its name
            anywhere below.
        classes: names in the order of their labels, category ids 1..C. Default: those that occur,
            sorted.

    Raises:
        AnnotationError: unreadable file, missing columns, wrong values, unknown classes, missing
            pictures.
        ImageReadError: a picture that had to be read for its size cannot be.
    """
    return parse_csv(annotations, images=images, classes=classes).dataset()


def parse_csv(
    annotations: str | Path,
    *,
    images: str | Path | None = None,
    classes: Sequence[str] | None = None,
) -> Annotations:
    """What `read_csv` reads, still to be converted."""
    file = Path(annotations)
    table = _read_table(file)
    pictures = table.cells("image", range(len(table.rows)))
    raise_first(
        f"{table.place(row)}: image is missing" for row, name in enumerate(pictures) if not name
    )
    index_of = {name: index for index, name in enumerate(dict.fromkeys(pictures))}
    box_columns = next(names for names in (*_CORNERS, _XYWH) if names[0] in table.columns)
    boxed = [
        row
        for row, cells in enumerate(table.rows)
        if any(cells[table.columns[name]] for name in (*box_columns, "class"))
    ]

    def place(index: int) -> str:
        return table.place(boxed[index])

    texts = [table.cells(name, boxed) for name in box_columns]
    boxes = to_numbers(list(zip(*texts, strict=True)), box_columns, place)
    xywh = boxes if box_columns == _XYWH else corners_to_xywh(boxes)
    names = table.cells("class", boxed)
    raise_first(f"{place(index)}: class is missing" for index, name in enumerate(names) if not name)
    class_names, labels = name_classes(names, classes, place)
    flags = {
        name: to_flags(table.cells(name, boxed), name, place)
        for name in _FLAGS
        if name in table.columns
    }
    folder = guess_folder(file, list(index_of)) if images is None else Path(images)
    found = find_images(list(index_of), folder, file)
    truth = box_truth(
        np.array([index_of[pictures[row]] for row in boxed], dtype=np.int64),
        labels,
        xywh,
        num_images=len(found),
        category_ids=np.arange(1, len(class_names) + 1),
        crowd=flags.pop("iscrowd", None),
        area=_read_area(table, boxed, xywh),
    )
    sizes = _read_sizes(table, index_of, [folder / name for name in found])
    unread = {f"column {name}": len(table.rows) for name in table.ignored}
    return Annotations(folder, found, sizes, truth, class_names, flags, unread)


class Layout(NamedTuple):
    """What the first line of a table says.

    Attributes:
        delimiter: between the columns.
        columns: positions by the names of this module.
        has_names: whether the line is one of names, not yet of a box.
    """

    delimiter: str
    columns: dict[str, int]
    has_names: bool


def read_layout(line: str) -> Layout | None:
    """The layout of a table from its first line; None: it is no table of boxes."""
    for delimiter in ",;\t":
        cells = [cell.strip() for cell in next(csv.reader([line], delimiter=delimiter), [])]
        if columns := _named_columns(cells):
            return Layout(delimiter, columns, has_names=True)
        if len(cells) == len(_BARE) and all(not cell or is_number(cell) for cell in cells[1:5]):
            return Layout(delimiter, {name: i for i, name in enumerate(_BARE)}, has_names=False)
    return None


def _named_columns(cells: Sequence[str]) -> dict[str, int] | None:
    """Positions by name; None where picture, class or box is missing."""
    names = [cell.lower().replace("_", "").replace(" ", "") for cell in cells]
    positions = {name: names.index(name) for name in (*_SIZE, *_FLAGS, "area") if name in names}
    for name, spellings in (("image", _IMAGE), ("class", _CLASS)):
        known = [spelling for spelling in spellings if spelling in names]
        if not known:
            return None
        positions[name] = names.index(known[0])
    boxes = [box for box in (*_CORNERS, _XYWH) if set(box) <= set(names)]
    return {**positions, **{name: names.index(name) for name in boxes[0]}} if boxes else None


def _read_table(file: Path) -> _Table:
    """Delimiter, names and rows of a file.

    Raises:
        AnnotationError: unreadable, no table of boxes, a row of another length.
    """
    text = read_text(file)
    first = next((line for line in text.splitlines() if line.strip()), "")
    layout = read_layout(first)
    if layout is None:
        raise AnnotationError(f"{file}: line 1 is {first[:60]!r}; a table of boxes {_EXPECTED}")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=layout.delimiter)
    rows, lines = [], []
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                rows.append([cell.strip() for cell in cells])
                lines.append(reader.line_num)
    except csv.Error as error:
        raise AnnotationError(f"{file}, line {reader.line_num}: {error}") from None
    raise_first(
        f"{file}, line {line}: {len(row)} columns, the first line has {len(rows[0])}"
        for row, line in zip(rows, lines, strict=True)
        if len(row) != len(rows[0])
    )
    if not layout.has_names:
        return _Table(file, layout.columns, (), rows, lines)
    known = layout.columns.values()
    ignored = tuple(name for position, name in enumerate(rows[0]) if position not in known)
    return _Table(file, layout.columns, ignored, rows[1:], lines[1:])


def _read_area(table: _Table, boxed: Sequence[int], xywh: np.ndarray) -> np.ndarray:
    """`[G]` float64: the column, or that of the box where it is empty."""
    area = xywh[:, 2] * xywh[:, 3]
    cells = table.cells("area", boxed)
    told = [index for index, cell in enumerate(cells) if cell]
    texts = [[cells[index]] for index in told]
    area[told] = to_numbers(texts, ["area"], lambda i: table.place(boxed[told[i]]))[:, 0]
    return area


def _read_sizes(table: _Table, index_of: dict[str, int], paths: Sequence[Path]) -> np.ndarray:
    """`[N, 2]` int64 (height, width): of the columns, else of the picture."""
    sizes: list[tuple[int, int] | None] = [None] * len(paths)
    every = range(len(table.rows))
    columns = (table.cells(name, every) for name in ("image", "width", "height"))
    for row, (name, width, height) in enumerate(zip(*columns, strict=True)):
        if not (width and height):
            continue
        if not (_is_side(width) and _is_side(height)):
            raise AnnotationError(
                f"{table.place(row)}: width and height are {width!r} and {height!r}, they must be "
                "positive integers"
            )
        index, size = index_of[name], (int(float(height)), int(float(width)))
        if sizes[index] not in (None, size):
            raise AnnotationError(
                f"{table.place(row)}: {name} is {width}x{height}, in an earlier line "
                f"{sizes[index][1]}x{sizes[index][0]}"  # type: ignore[index]
            )
        sizes[index] = size
    known = [size or picture_size(path) for size, path in zip(sizes, paths, strict=True)]
    return np.array(known, dtype=np.int64).reshape(-1, 2)


def _is_side(text: str) -> bool:
    """Whether it is a length in pixels; other tools write 640 as 640.0."""
    return is_number(text) and float(text) > 0 and float(text).is_integer()
