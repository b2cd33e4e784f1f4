"""Read YOLO's text files: a line for each box, fractions of the picture, and a data.yaml.

The layout is that of the Ultralytics documentation, "Object detection datasets".

N images, C classes, G boxes.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import yaml

from detkit.data.annotations import (
    AnnotationError,
    Annotations,
    box_truth,
    raise_first,
    read_text,
    to_numbers,
)
from detkit.data.dataset import CocoDataset
from detkit.data.pictures import IMAGE_SUFFIXES, list_files, picture_sizes
from detkit.registry import suggest

SPLITS = ("train", "val", "test")
_BOX = ("class", "x centre", "y centre", "width", "height")
_TRIANGLE = 7  # words of the smallest polygon
_LARGEST = 2.0  # fraction of a picture: a little over 1 is a box that leaves it, more are pixels


def read_yolo(data: str | Path, *, split: str | None = None) -> CocoDataset:
    """Read the labels of one split of a data.yaml and find its pictures.

    The yaml has `names` (a list, or a mapping from class to name) and for each split a folder, a
    text file that lists pictures, or a list of those, relative to its `path` (default: its own
    folder). The labels of `.../images/.../a.jpg` are in `.../labels/.../a.txt`, or beside the
    picture if its path has no folder `images`. An empty or missing file is a picture without boxes.
    A line is `class x_centre y_centre width height`; of a polygon, `class x1 y1 x2 y2 x3 y3 ...`,
    the box around it is taken. Image ids are 1..N in the order of paths, or of the list, category
    ids the classes as they stand in the files.

    Args:
        data: the data.yaml.
        split: "train", "val" or "test", as the yaml has them; None where it has only one.

    Raises:
        AnnotationError: missing or malformed files and fields, unknown classes, missing pictures,
            no label file for any picture.
        ImageReadError: a picture whose size cannot be read.
    """
    return parse_yolo(data, split=split).dataset()


def parse_yolo(data: str | Path, *, split: str | None = None) -> Annotations:
    """What `read_yolo` reads, still to be converted."""
    data = Path(data)
    content = load_data_yaml(data)
    names = read_names(content, data)
    split = _choose(content, split, data)
    paths = find_pictures(content, split, data)
    existing = {index: Path(label_file(path)) for index, path in enumerate(paths)}
    existing = {index: file for index, file in existing.items() if file.is_file()}
    if paths and not existing:
        raise AnnotationError(
            f"{data}: none of the {len(paths)} pictures of the split {split!r} has a label file; "
            f"that of the first would be {label_file(paths[0])}"
        )
    read = [_read_labels(file, names) for file in existing.values()]
    numbers = np.concatenate([np.zeros((0, len(_BOX))), *(rows for rows, _ in read)])
    image_index = np.repeat(list(existing), [len(rows) for rows, _ in read]).astype(np.int64)
    sizes = picture_sizes(Path(path) for path in paths)
    scale = sizes[image_index][:, ::-1]  # [G, 2] width, height
    wh = numbers[:, 3:] * scale
    xy = numbers[:, 1:3] * scale - wh / 2
    category_ids = np.array(sorted(names), dtype=np.int64)
    truth = box_truth(
        image_index,
        np.searchsorted(category_ids, numbers[:, 0].astype(np.int64)),
        np.concatenate([xy, wh], axis=1),
        num_images=len(paths),
        category_ids=category_ids,
    )
    folder = _common_folder(paths, data.parent)
    polygons = sum(count for _, count in read)
    return Annotations(
        images=folder,
        file_names=[os.path.relpath(path, folder) for path in paths],
        sizes=sizes,
        truth=truth,
        class_names=tuple(names[category] for category in category_ids.tolist()),
        unread={"polygons, of which the boxes are kept": polygons} if polygons else {},
    )


def label_file(picture: str) -> str:
    """Where the labels of a picture are: the last folder `images` of its path becomes `labels`."""
    *folders, name = PurePath(picture).with_suffix(".txt").parts
    if "images" in folders:
        last = len(folders) - 1 - folders[::-1].index("images")
        folders[last] = "labels"
    return str(PurePath(*folders, name))


def load_data_yaml(data: Path) -> dict[str, Any]:
    """The mapping in a data.yaml.

    Raises:
        AnnotationError: unreadable, not YAML, no mapping.
    """
    try:
        content = yaml.safe_load(read_text(data))
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise AnnotationError(f"{data} is not valid YAML: {reason}") from None
    if not isinstance(content, dict):
        raise AnnotationError(f"{data} must be a mapping with names, train and val")
    return content


def list_splits(content: dict[str, Any]) -> list[str]:
    """The splits that a data.yaml names."""
    return [split for split in SPLITS if content.get(split)]


def read_names(content: dict[str, Any], data: Path) -> dict[int, str]:
    """Class to name.

    Raises:
        AnnotationError: `names` is missing or wrong, holds a name twice, or is not `nc` long.
    """
    names = content.get("names")
    if isinstance(names, list):
        names = dict(enumerate(names))
    if not isinstance(names, dict) or not names:
        raise AnnotationError(
            f"{data}: names must be a list, or a mapping from class to name, got {names!r}"
        )
    for key, name in names.items():
        if isinstance(key, bool) or not isinstance(key, int) or key < 0:
            raise AnnotationError(f"{data}: names has the class {key!r}, it must be 0 or more")
        if isinstance(name, bool) or not isinstance(name, str | int | float):
            raise AnnotationError(f"{data}: the name of class {key} is {name!r}, put it in quotes")
    named = {key: str(name) for key, name in names.items()}
    twice = [name for name, count in Counter(named.values()).items() if count > 1]
    raise_first(f"{data}: class name {name!r} is used twice" for name in twice)
    count = content.get("nc", len(named))
    if count != len(named):
        raise AnnotationError(f"{data}: nc is {count!r}, but names has {len(named)} classes")
    return named


def _choose(content: dict[str, Any], split: str | None, data: Path) -> str:
    """The split, or the only one there is."""
    splits = list_splits(content)
    if not splits:
        raise AnnotationError(f"{data} has none of {', '.join(SPLITS)}; name a folder of pictures")
    if split is None and len(splits) > 1:
        raise AnnotationError(f"{data} has the splits {', '.join(splits)}: set split to one")
    if split is not None and split not in splits:
        raise AnnotationError(f"{data} has no split {split!r}; {suggest(split, splits)}")
    return split or splits[0]


def find_pictures(content: dict[str, Any], split: str, data: Path) -> list[str]:
    """Paths of the pictures of a split.

    Raises:
        AnnotationError: missing folders, lists or pictures, one listed twice.
    """
    places = content[split]
    root = data.parent / str(content.get("path") or "")
    paths: list[str] = []
    for place in places if isinstance(places, list) else [places]:
        if not isinstance(place, str):
            raise AnnotationError(
                f"{data}: {split} must be a path or a list of paths, got {place!r}"
            )
        found = _existing(root, place, data)
        if found.is_dir():
            paths += [str(found / name) for name in list_files(found, IMAGE_SUFFIXES)]
        else:
            paths += _read_list(found, root)
    twice = [path for path, count in Counter(paths).items() if count > 1]
    raise_first(f"{data}: {split} has the picture {path} twice" for path in twice)
    return paths


def _existing(root: Path, place: str, data: Path) -> Path:
    """The folder or list of a split."""
    tried = [root / place]
    if place.startswith("../"):
        tried.append(root / place.removeprefix("../"))  # as Roboflow writes what is beside the yaml
    for path in tried:
        if path.exists():
            return Path(os.path.normpath(path))
    raise AnnotationError(
        f"{data}: {place!r} does not exist, looked for {' and '.join(map(str, tried))}; a path is "
        "relative to 'path', and that to the folder of the yaml"
    )


def _read_list(file: Path, root: Path) -> list[str]:
    """The pictures that a text file lists, relative to its folder or the root of the data."""
    names = [line.strip() for line in read_text(file).splitlines()]
    found, missing = [], []
    for name in filter(None, names):
        spellings = dict.fromkeys((name, name.replace("\\", "/")))  # the other is of Windows
        tried = [os.path.normpath(f / each) for each in spellings for f in (file.parent, root)]
        path = next((path for path in tried if os.path.isfile(path)), None)
        found += [path] if path else []
        missing += [] if path else [name]
    if missing:
        raise AnnotationError(
            f"{file}: {len(missing)} of {len(names)} pictures do not exist: "
            f"{', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}"
        )
    return found


def _common_folder(paths: Sequence[str], default: Path) -> Path:
    """The deepest folder that holds all pictures."""
    if not paths:
        return default
    return Path(os.path.commonpath([os.path.dirname(os.path.abspath(path)) for path in paths]))


def _read_labels(file: Path, names: Mapping[int, str]) -> tuple[np.ndarray, int]:
    """The lines of a label file as `[G, 5]` float64, and how many of them were polygons.

    Raises:
        AnnotationError: another number of columns, no numbers, unknown classes, no fractions.
    """
    lines = [
        (number, words)
        for number, line in enumerate(read_text(file).splitlines(), start=1)
        if (words := line.split())
    ]

    def place(index: int) -> str:
        return f"{file}, line {lines[index][0]}"

    raise_first(
        f"{place(index)}: {len(words)} columns; a box has 5 ({', '.join(_BOX)}), a polygon 7, 9, "
        f"11 ...{'; is it a detection with its score?' if len(words) == 6 else ''}"
        for index, (_, words) in enumerate(lines)
        if len(words) != len(_BOX) and (len(words) < _TRIANGLE or len(words) % 2 == 0)
    )
    polygons = [index for index, (_, words) in enumerate(lines) if len(words) > len(_BOX)]
    rows = [words for _, words in lines]
    for index in polygons:
        rows[index] = _around(rows[index], place(index))
    numbers = to_numbers(rows, _BOX, place)
    raise_first(
        f"{place(index)}: class {rows[index][0]} is not among the {len(names)} classes of the yaml"
        for index, label in enumerate(numbers[:, 0].tolist())
        if label not in names
    )
    raise_first(
        f"{place(index)}: {' '.join(rows[index][1:])} are not fractions of the picture (0..1); "
        "are they pixels?"
        for index in np.flatnonzero((np.abs(numbers[:, 1:]) > _LARGEST).any(axis=1)).tolist()
    )
    return numbers, len(polygons)


def _around(words: Sequence[str], place: str) -> list[str]:
    """The box around a polygon, as a line of five words."""
    axes = ["x", "y"] * (len(words) // 2)
    points = to_numbers([words[1:]], axes, lambda _: place).reshape(-1, 2)
    low, high = points.min(axis=0), points.max(axis=0)
    return [words[0], *map(repr, ((low + high) / 2).tolist()), *map(repr, (high - low).tolist())]
