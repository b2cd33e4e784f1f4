"""Recognise the format of annotations from what a path holds."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from detkit.data.annotations import AnnotationError, Annotations
from detkit.data.coco import parse_coco
from detkit.data.csv_boxes import parse_csv, read_layout
from detkit.data.voc import annotation_folder, parse_voc
from detkit.data.voc import list_splits as list_voc_splits
from detkit.data.yolo import SPLITS, load_data_yaml, parse_yolo
from detkit.data.yolo import list_splits as list_yolo_splits
from detkit.registry import suggest

PARSERS: dict[str, Callable[..., Annotations]] = {
    "coco": parse_coco,
    "voc": parse_voc,
    "yolo": parse_yolo,
    "csv": parse_csv,
}
PATH_OF = {"coco": "annotations", "voc": "root", "yolo": "data", "csv": "annotations"}
_NAMES = {"coco": "COCO JSON", "voc": "Pascal VOC XML", "yolo": "YOLO text files", "csv": "CSV"}
_SPELLINGS = {"val": ("val", "valid", "validation")}  # of splits in names of files and folders
_PEEK = 65536  # bytes in which a COCO file names one of its sections
_LOOKED_FOR = (
    "a COCO .json (also in annotations/), a data.yaml with names, an Annotations/ folder or .xml "
    "files of Pascal VOC, a .csv with boxes"
)


@dataclass(frozen=True, slots=True)
class Recognised:
    """What annotations were taken for.

    Attributes:
        format: its name in a recipe.
        settings: of that format in a recipe.
    """

    format: str
    settings: dict[str, Any]

    def __str__(self) -> str:
        told = [f"{key} {value}" for key, value in self.settings.items() if value is not None]
        return f"{_NAMES[self.format]} ({', '.join(told)})"

    def parse(self) -> Annotations:
        """Read them."""
        return PARSERS[self.format](**self.settings)


def recognise(
    path: str | Path,
    *,
    split: str | None = None,
    images: str | Path | None = None,
    classes: Sequence[str] | None = None,
    known_format: str | None = None,
) -> Recognised:
    """Say in which format the annotations at a path are.

    Args:
        path: a COCO JSON file, a data.yaml, a CSV table, a root of Pascal VOC, or a folder that
            holds exactly one of these (for the split).
        split: of VOC and YOLO; in a folder of files named after splits it picks the file, and a
            folder named after it.
        images: the folder of the pictures of COCO JSON or CSV, default: one of the usual places.
        classes: of VOC and CSV, see `read_voc`.
        known_format: nothing else is looked for.

    Raises:
        AnnotationError: nothing known is there, or several things are.
        ValueError: a setting that the format does not have.
    """
    path = Path(path)
    if not path.exists():
        raise AnnotationError(f"{path} does not exist; give {_LOOKED_FOR}")
    if path.is_file():
        name = known_format or format_of(path)
        return describe(name, path, split=split, images=images, classes=classes)
    found = [each for each in _candidates(path) if known_format in (None, each[0])]
    if split is not None:
        named = [each for each in found if split_in_name(each[1]) == split]
        with_splits = [each for each in found if each[0] in ("voc", "yolo")]
        found = named or with_splits
        inside = _split_folders(path).get(split)
        if not found and inside:
            return recognise(inside, images=images, classes=classes)
    if not found:
        of_split = f" for the split {split!r}" if split is not None else ""
        raise AnnotationError(f"nothing known in {path}{of_split}; looked for {_LOOKED_FOR}")
    if len(found) > 1:
        listed = ", ".join(f"{_NAMES[name]} {_shown(file, path)}" for name, file in found)
        raise AnnotationError(
            f"{path} holds several: {listed}; give the path of one of them, its format, or the "
            f"split that it is named after; looked for {_LOOKED_FOR}"
        )
    name, file = found[0]
    if name in ("coco", "csv"):
        split = None  # its name has the split
    return describe(name, file, split=split, images=images, classes=classes)


def describe(
    name: str,
    path: Path,
    *,
    split: str | None = None,
    images: str | Path | None = None,
    classes: Sequence[str] | None = None,
) -> Recognised:
    """The settings of a known format for a path.

    Raises:
        ValueError: a setting that the format does not have.
    """
    given = {"split": split, "images": images, "classes": classes}
    own = {"coco": ("images",), "voc": ("split", "classes"), "yolo": ("split",)}
    allowed = own.get(name, ("images", "classes"))
    for key, value in given.items():
        if value is not None and key not in allowed:
            raise ValueError(f"{path} is {_NAMES[name]}, which has no {key!r}; leave it out")
    return Recognised(name, {PATH_OF[name]: str(path), **{key: given[key] for key in allowed}})


def recognise_splits(
    path: str | Path,
    *,
    images: str | Path | None = None,
    classes: Sequence[str] | None = None,
    known_format: str | None = None,
) -> dict[str | None, Recognised]:
    """Say in which format the annotations of all splits at a path are.

    Besides what `recognise` takes, that is a folder of COCO JSON files or CSV tables named after
    splits, or with a folder for each split.

    Returns:
        Split to annotations; the split is None where nothing names one.
    """
    path = Path(path)
    settings: dict[str, Any] = {"images": images, "classes": classes}
    found = _candidates(path) if path.is_dir() else ()
    files = [(name, file) for name, file in found if known_format in (None, name)]
    named = {split_in_name(file): file for _, file in files}
    formats = {name for name, _ in files}
    if len(files) > 1 and len(named) == len(files) and None not in named and len(formats) == 1:
        (name,) = formats
        return {split: describe(name, file, **settings) for split, file in _in_order(named)}
    inside = {} if files or not path.is_dir() else _split_folders(path)
    if inside:
        return {
            split: recognise(folder, known_format=known_format, **settings)
            for split, folder in _in_order(inside)
        }
    one = recognise(path, known_format=known_format, **settings)
    own = splits_of(one)
    if not own:
        read_from = Path(one.settings[PATH_OF[one.format]])
        return {split_in_name(read_from) or split_in_name(path): one}
    return {split: replace(one, settings={**one.settings, "split": split}) for split in own}


def _in_order(places: Mapping[str | None, Path]) -> list[tuple[str | None, Path]]:
    return sorted(places.items(), key=lambda item: (*SPLITS, item[0]).index(item[0]))


def _split_folders(folder: Path) -> dict[str | None, Path]:
    """Folders named after splits."""
    return {
        split: folder / spelling
        for split in SPLITS
        for spelling in _SPELLINGS.get(split, (split,))
        if (folder / spelling).is_dir()
    }


def splits_of(found: Recognised) -> list[str]:
    """The splits that annotations name themselves, without unions of others; often none."""
    path = found.settings[PATH_OF[found.format]]
    if found.format == "yolo":
        return list_yolo_splits(load_data_yaml(Path(path)))
    splits = list_voc_splits(path) if found.format == "voc" else []
    parts = [split for split in splits if not (split == "trainval" and "train" in splits)]
    return sorted(parts, key=lambda split: (*SPLITS, split).index(split))


def split_in_name(path: Path) -> str | None:
    """The split that a name speaks of: train of `instances_train2017.json`."""
    words = re.findall(r"[a-z]+", path.stem.lower())
    for split in SPLITS:
        if any(spelling in words for spelling in _SPELLINGS.get(split, (split,))):
            return split
    return None


def format_of(file: Path) -> str:
    """The format of a file.

    Raises:
        AnnotationError: none that is known.
    """
    by_suffix = {".json": "coco", ".yaml": "yolo", ".yml": "yolo", ".csv": "csv", ".tsv": "csv"}
    suffix = file.suffix.lower()
    if suffix == ".xml":
        raise AnnotationError(f"{file} is one XML file; for Pascal VOC give the folder")
    if suffix not in by_suffix:
        raise AnnotationError(f"{file} is of no known format; {suggest(suffix, by_suffix)}")
    return by_suffix[suffix]


def _candidates(folder: Path) -> Iterator[tuple[str, Path]]:
    """Every (format, path) that a folder holds."""
    pages = annotation_folder(folder)
    if any(pages.glob("*.xml")) or (pages != folder and any(pages.glob("*/*.xml"))):
        yield "voc", folder
    files = sorted(file for file in folder.iterdir() if file.is_file())
    for file in files:
        if file.suffix.lower() in (".yaml", ".yml") and _is_data_yaml(file):
            yield "yolo", file
        if file.suffix.lower() in (".csv", ".tsv") and _is_table(file):
            yield "csv", file
    for file in [*files, *sorted((folder / "annotations").glob("*.json"))]:
        if file.suffix.lower() == ".json" and _is_coco(file):
            yield "coco", file


def _is_data_yaml(file: Path) -> bool:
    try:
        content = load_data_yaml(file)
    except AnnotationError:
        return False
    return "names" in content and bool(list_yolo_splits(content))


def _is_table(file: Path) -> bool:
    lines = _head(file).splitlines()
    return bool(lines) and read_layout(lines[0]) is not None


def _is_coco(file: Path) -> bool:
    head = _head(file).lstrip()
    return head.startswith("{") and bool(re.search(r'"(images|annotations|categories)"\s*:', head))


def _head(file: Path) -> str:
    try:
        with file.open("rb") as handle:
            return handle.read(_PEEK).decode("utf-8-sig", errors="replace")
    except OSError:
        return ""


def _shown(file: Path, folder: Path) -> str:
    return "in Annotations/" if file == folder else str(file.relative_to(folder))
