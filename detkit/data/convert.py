"""Convert annotations between formats, and say what the new one cannot hold.

N images, C classes, G truths.
"""

from __future__ import annotations

import glob
import itertools
import os
import shutil
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import yaml
from tqdm import tqdm

from detkit.data.annotations import AnnotationError, Annotations
from detkit.data.auto import Recognised, recognise_splits
from detkit.data.dataset import clip_truth
from detkit.data.writers import WRITERS, fits_yolo, has_own_area
from detkit.files import check_writable
from detkit.registry import suggest

PLACEMENTS = ("reference", "link", "copy")
_RECORD = "conversion.txt"  # in every folder that a conversion wrote, and only there


@dataclass(frozen=True, slots=True)
class Conversion:
    """What was written.

    Attributes:
        folder: where to.
        splits: what each split has, in words.
        lost: what the new format does not hold.
        recipes: for each split, what to say in a recipe.
    """

    folder: str
    splits: dict[str, str]
    lost: tuple[str, ...]
    recipes: dict[str, str]

    def __str__(self) -> str:
        lines = [f"{split}: {what}" for split, what in self.splits.items()]
        lines += ["", "lost:" if self.lost else "nothing is lost"]
        lines += [f"  {what}" for what in self.lost]
        lines += ["", f"written to {self.folder}; in a recipe:"]
        lines += [f"  {split}: {recipe}" for split, recipe in self.recipes.items()]
        return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class SourceOptions:
    """How sources are to be read; None: as their format has it.

    Attributes:
        format: "coco", "voc", "yolo" or "csv"; None recognises it.
        splits: those to take of sources with several.
        images: folder of the pictures of COCO JSON and CSV.
        classes: of VOC and CSV, in the order of their labels.
        one_based: whether corners of VOC are pixels counted from 1.
    """

    format: str | None = None
    splits: tuple[str, ...] | None = None
    images: str | None = None
    classes: tuple[str, ...] | None = None
    one_based: bool | None = None


def convert(
    sources: Sequence[str],
    folder: str | Path,
    *,
    to: str,
    options: SourceOptions | None = None,
    placement: str | None = None,
    overwrite: bool = False,
) -> Conversion:
    """Write annotations in another format.

    Args:
        sources: paths of any format, each of one split or of several; "train=PATH" names the split
            of what has no splits of its own.
        folder: to write to; complete or not there.
        to: "coco", "voc", "yolo" or "csv".
        options: how to read the sources.
        placement: what becomes of the pictures: "reference" leaves them where they are, "link"
            makes symbolic links, "copy" copies them. Default: "reference" for COCO and CSV, and
            for VOC and YOLO, which find pictures by their place, "link".
        overwrite: replace the folder if an earlier conversion wrote it.

    Raises:
        AnnotationError: sources that cannot be read or do not go together.
        ValueError: an unknown format or placement, a folder that may not be replaced.
        OSError: something cannot be written.
    """
    folder = Path(folder)
    if to not in WRITERS:
        raise ValueError(f"no format {to!r} to write; {suggest(to, WRITERS)}")
    by_place = to in ("voc", "yolo")
    placement = placement or ("link" if by_place else "reference")
    if placement not in PLACEMENTS or (by_place and placement == "reference"):
        allowed = PLACEMENTS[1:] if by_place else PLACEMENTS
        raise ValueError(f"pictures of {to} cannot be {placement!r}; {suggest(placement, allowed)}")
    check_replaceable(folder, overwrite=overwrite)
    splits = read_splits(sources, options or SourceOptions())
    origins = [_name_and_path(text)[1] for text in sources]
    for origin in [*origins, *(source.images for source in splits.values())]:
        if folder.resolve() in (origin.resolve(), *origin.resolve().parents):
            raise ValueError(f"{folder} holds what is converted ({origin}); name another folder")
    stay = placement == "reference"
    below = "JPEGImages" if to == "voc" else "images"
    images, names = _shared_names(splits) if stay else (folder / below, _new_names(splits, to))
    if to in ("voc", "csv"):
        _check_texts(itertools.chain(*(each.class_names for each in splits.values())), "class", to)
        _check_texts(itertools.chain(*names.values()), "picture", to)
    result = Conversion(
        str(folder),
        {split: _words(source) for split, source in splits.items()},
        tuple(losses(splits, to)),
        {split: _recipe(splits, split, folder, to=to, images=images) for split in splits},
    )
    with new_folder(folder) as aside:
        WRITERS[to](splits, aside, names)
        if not stay:
            _place_pictures(splits, names, aside / below, copy=placement == "copy")
        (aside / _RECORD).write_text(f"{result}\n", encoding="utf-8")
    return result


def read_splits(sources: Sequence[str], options: SourceOptions) -> dict[str, Annotations]:
    """Every split of some sources, with the same classes in all.

    Raises:
        AnnotationError: sources that cannot be read, a split twice, other classes.
    """
    splits: dict[str, Recognised] = {}
    for text in sources:
        name, path = _name_and_path(text)
        for split, found in _recognise_splits(path, name, options).items():
            if split in splits:
                raise AnnotationError(
                    f"{path} is of the split {split!r}, and so is an earlier source; name the "
                    f"splits, as in train={path}"
                )
            splits[split] = found
    read = {split: found.parse() for split, found in splits.items()}
    derived = all("classes" in found.settings for found in splits.values())
    return _with_same_classes(read, derived=derived and options.classes is None)


def _name_and_path(source: str) -> tuple[str, Path]:
    """A source without and with the name of its split: "a.json", "train=a.json"."""
    name, _, path = ("", "", source) if Path(source).exists() else source.rpartition("=")
    return name, Path(path)


def _recognise_splits(path: Path, name: str, options: SourceOptions) -> dict[str, Recognised]:
    """What is to be read for each split of a source."""
    found = recognise_splits(
        path, images=options.images, classes=options.classes, known_format=options.format
    )
    named = [split for split in found if split is not None]
    if name and len(found) > 1:
        raise AnnotationError(f"{path} has the splits {', '.join(named)}; leave {name}= out")
    unknown = [split for split in options.splits or () if split not in named]
    if unknown:
        raise AnnotationError(f"{path} has no split {unknown[0]!r}; {suggest(unknown[0], named)}")
    return {
        name or split or "train": _with_one_based(each, options.one_based)
        for split, each in found.items()
        if options.splits is None or split in options.splits
    }


def _with_one_based(found: Recognised, one_based: bool | None) -> Recognised:
    if one_based is None:
        return found
    if found.format != "voc":
        raise ValueError(f"{found} is no Pascal VOC: nothing there can be one-based")
    return replace(found, settings={**found.settings, "one_based": one_based})


def _with_same_classes(splits: dict[str, Annotations], *, derived: bool) -> dict[str, Annotations]:
    """The splits, if they have the same classes, or those that occur in any of them.

    Args:
        splits: by name.
        derived: whether classes were those that occur in a split.
    """
    first_name, first = next(iter(splits.items()))
    if derived:
        union = tuple(sorted({name for source in splits.values() for name in source.class_names}))
        return {split: _relabelled(source, union) for split, source in splits.items()}
    for split, source in splits.items():
        same_ids = np.array_equal(source.truth.category_ids, first.truth.category_ids)
        if source.class_names != first.class_names or not same_ids:
            raise AnnotationError(
                f"{split} has other classes than {first_name} (names, ids or order): "
                f"{', '.join(source.class_names[:5])} and {', '.join(first.class_names[:5])}"
            )
    return splits


def _relabelled(source: Annotations, class_names: tuple[str, ...]) -> Annotations:
    """The same with more classes."""
    labels = np.array([class_names.index(name) for name in source.class_names], dtype=np.int64)
    truth = replace(
        source.truth,
        gt_label=labels[source.truth.gt_label],
        category_ids=np.arange(1, len(class_names) + 1),
    )
    return replace(source, truth=truth, class_names=class_names)


def losses(splits: Mapping[str, Annotations], to: str) -> list[str]:
    """What annotations say and a format does not hold, in words."""
    counts: Counter[str] = Counter()
    ids: set[str] = set()
    for source in splits.values():
        truth = source.truth
        counts.update(source.unread)
        if to == "coco":
            continue
        first_id = 0 if to == "yolo" else 1
        numbers = {
            "image": (truth.image_ids, 1),
            "category": (truth.category_ids, first_id),
            "annotation": (truth.gt_ids, 1),
        }
        for what, (values, first) in numbers.items():
            if values is not None and (values != first + np.arange(len(values))).any():
                ids.add(what)
        if to == "yolo" and source.file_names != sorted(source.file_names):
            ids.add("image")
        if truth.gt_ids is not None and (np.diff(truth.gt_image_index) < 0).any():
            ids.add("annotation")  # they will be in the order of the pictures
        if to == "csv":
            continue
        counts["area of objects, other than that of their box"] += int(has_own_area(source).sum())
        if to == "voc":
            key = "crowds, which become difficult objects"
            counts[key] += int((truth.gt_crowd & ~source.flags.get("difficult", False)).sum())
        else:
            counts += _losses_of_yolo(source)
    lines = [f"{what}: {count}" for what, count in counts.items() if count]
    told = ", ".join(f"{what} ids" for what in ("image", "category", "annotation") if what in ids)
    return [*lines, f"{told}: counted anew"] if told else lines


def _losses_of_yolo(source: Annotations) -> Counter[str]:
    ignored = source.truth.gt_crowd
    _, clipped, degenerate = clip_truth(source.truth, source.sizes)
    lost = Counter({f"{flag} flags": int(values.sum()) for flag, values in source.flags.items()})
    lost["crowds and ignored objects, left out"] = int(ignored.sum())
    lost["boxes without area, left out"] = int((degenerate & ~ignored).sum())
    lost["boxes that leave their picture, cut off"] = int((clipped & fits_yolo(source)).sum())
    return lost


def _words(source: Annotations) -> str:
    boxes, classes = len(source.truth.gt_label), len(source.class_names)
    return f"{len(source.sizes)} images, {boxes} boxes, {classes} classes"


def _recipe(
    splits: Mapping[str, Annotations], split: str, folder: Path, *, to: str, images: Path
) -> str:
    """What to say in a recipe to read a split."""
    source = splits[split]
    settings: dict[str, Any] = {
        "coco": {"annotations": str(folder / f"{split}.json"), "images": str(images)},
        "csv": {"annotations": str(folder / f"{split}.csv"), "images": str(images)},
        "voc": {"root": str(folder), "split": split},
        "yolo": {"data": str(folder / "data.yaml"), "split": split},
    }[to]
    if to in ("voc", "csv"):
        together = splits.values() if to == "voc" else [source]
        labels = {label for each in together for label in each.truth.gt_label.tolist()}
        occurring = sorted(source.class_names[label] for label in labels)
        if tuple(occurring) != source.class_names:  # else they would be read in another order
            settings["classes"] = list(source.class_names)
    text = yaml.safe_dump(
        {"format": to, **settings},
        default_flow_style=True,
        sort_keys=False,
        allow_unicode=True,
        width=10**6,
    )
    return text.strip()


def _shared_names(splits: Mapping[str, Annotations]) -> tuple[Path, dict[str, list[str]]]:
    """A folder above all pictures, and their names below it, where they stay."""
    folders = {source.images for source in splits.values()}
    if len(folders) == 1:
        return folders.pop(), {split: source.file_names for split, source in splits.items()}
    shared = os.path.commonpath([os.path.abspath(folder) for folder in folders])
    return Path(shared), {
        split: [os.path.relpath(source.images / name, shared) for name in source.file_names]
        for split, source in splits.items()
    }


def _new_names(splits: Mapping[str, Annotations], to: str) -> dict[str, list[str]]:
    """The names of all pictures in the new folder.

    Raises:
        AnnotationError: pictures whose annotations would have the same name.
    """
    names = {split: _names_inside(source) for split, source in splits.items()}
    places: dict[str, set[str]] = {}
    for split, source in splits.items():
        for name, path in zip(names[split], source.file_names, strict=True):
            places.setdefault(name, set()).add(os.path.realpath(source.images / path))
    if to != "voc" or any(len(paths) > 1 for paths in places.values()):
        names = {split: [f"{split}/{name}" for name in names[split]] for split in splits}
    if to in ("voc", "yolo"):
        stems: dict[PurePosixPath, str] = {}
        for name in dict.fromkeys(itertools.chain.from_iterable(names.values())):
            stem = PurePosixPath(name).with_suffix("")
            if stem in stems:
                raise AnnotationError(
                    f"{stems[stem]} and {name} would share one file of annotations; rename one"
                )
            stems[stem] = name
    return names


def _names_inside(source: Annotations) -> list[str]:
    """Names of the pictures below the deepest folder that holds them all."""
    paths = [os.path.abspath(source.images / name) for name in source.file_names]
    shared = os.path.commonpath([os.path.dirname(path) for path in paths]) if paths else ""
    return [PurePosixPath(os.path.relpath(path, shared)).as_posix() for path in paths]


def _check_texts(texts: Iterable[str], what: str, to: str) -> None:
    """Raise where a text would not be read back as it is."""
    for text in texts:
        if text != text.strip() or not text or not text.isprintable():
            raise AnnotationError(
                f"{what} {text!r} is empty, begins or ends with a space, or has characters that "
                f"are no text: {to} cannot hold that; rename it"
            )


def _place_pictures(
    splits: Mapping[str, Annotations], names: Mapping[str, list[str]], folder: Path, *, copy: bool
) -> None:
    """Copy or link every picture to its name."""
    pairs = {
        folder / name: os.path.realpath(source.images / path)
        for split, source in splits.items()
        for name, path in zip(names[split], source.file_names, strict=True)
    }
    for target, picture in tqdm(pairs.items(), desc="pictures", unit="", disable=None):
        target.parent.mkdir(parents=True, exist_ok=True)
        if copy:
            shutil.copyfile(picture, target)
        else:
            target.symlink_to(picture)


def check_replaceable(folder: Path, *, overwrite: bool) -> None:
    """Raise unless a conversion may write a folder: it is new, empty, or of an earlier one.

    Raises:
        ValueError: it may not.
    """
    check_writable(folder / _RECORD)
    if not folder.exists() or not any(folder.iterdir()):
        return
    if not (folder / _RECORD).is_file():
        raise ValueError(f"{folder} is not empty and no conversion wrote it; name a new folder")
    if not overwrite:
        raise ValueError(f"{folder} has an earlier conversion; give --overwrite to replace it")


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder to fill that takes the place of `folder` once the block is done.

    If the block fails, `folder` stays as it was. What killed processes left beside it is removed.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    for leftover in folder.parent.glob(f".{glob.escape(folder.name)}.{'[0-9a-f]' * 32}.part"):
        shutil.rmtree(leftover, ignore_errors=True)
    aside, old = (folder.parent / f".{folder.name}.{uuid.uuid4().hex}.part" for _ in range(2))
    aside.mkdir()
    try:
        yield aside
        if folder.exists():
            folder.rename(old)
        aside.rename(folder)
    finally:
        if old.exists() and not folder.exists():
            old.rename(folder)
        for leftover in (aside, old):
            shutil.rmtree(leftover, ignore_errors=True)
