"""Read Pascal VOC XML: a file for each picture.

Everingham et al., "The Pascal Visual Object Classes (VOC) Challenge", IJCV 2010; files and fields
as in the development kits of 2007 and 2012, section "Ground truth annotation".

N images, C classes, G objects.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np

from detkit.data.annotations import (
    FLAGS,
    AnnotationError,
    Annotations,
    box_truth,
    corners_to_xywh,
    name_classes,
    raise_first,
    read_text,
    to_flags,
    to_numbers,
)
from detkit.data.dataset import CocoDataset
from detkit.data.pictures import IMAGE_SUFFIXES, list_files, picture_size
from detkit.registry import suggest
from detkit.structures import Size

ALL = "all"  # the split that is every annotation of a root that has lists
_CORNERS = ("xmin", "ymin", "xmax", "ymax")
_READ = {"name", "bndbox", *FLAGS}  # of an object
_SAYS_NOTHING = ("", "0", "unspecified")  # in a field that is not read
_CHALLENGE = re.compile(r"(the voc|pascal voc)\s*\d{4}", re.IGNORECASE)
_LIST_OF_A_CLASS = re.compile(r".+_(train|val|trainval|test)$")


class _Object(NamedTuple):
    """An object as its element says, still text."""

    name: str | None
    corners: tuple[str | None, ...]  # xmin, ymin, xmax, ymax
    flags: tuple[str | None, ...]  # FLAGS
    unread: tuple[str, ...]  # names of further fields


@dataclass(frozen=True, slots=True)
class Page:
    """One XML file.

    Attributes:
        file: where it lies.
        filename: of the picture as the XML says, None where it does not.
        size: of the picture as the XML says, None where it does not.
        of_challenge: its `<source>` names the VOC challenge, whose pixels count from 1.
        objects: in its order, numbers still text.
    """

    file: Path
    filename: str | None
    size: Size | None
    of_challenge: bool
    objects: tuple[_Object, ...]


def read_voc(
    root: str | Path,
    *,
    split: str | None = None,
    classes: Sequence[str] | None = None,
    difficult: str = "ignore",
    one_based: bool | None = None,
) -> CocoDataset:
    """Read Pascal VOC XML and find its pictures.

    A root has `Annotations/`, `JPEGImages/` and lists of names in `ImageSets/Main/`; or it is any
    folder of XML files with the pictures beside them. The picture of an XML file is the one of the
    same name, as in the challenge, else the one that its `filename` says.

    In the challenge corners are pixels counted from 1 that belong to the box ("the top-left pixel
    in the image has coordinates (1,1)", development kit, section "Submission of results"): 1 and
    the width span the picture, so that x1 = xmin - 1 and x2 = xmax. Most other tools write the
    edges of boxes, x1 = xmin and x2 = xmax. Which it is cannot be seen from the numbers; a file
    whose `source` names the challenge ("The VOC2007 Database") is taken to be of the first kind.

    Args:
        root: the folder.
        split: the list to read, e.g. "train"; "all": every XML file although there are lists;
            None: every XML file of a folder without lists.
        classes: names in the order of their labels, category ids 1..C. Default: those that occur
            in any XML file of the root, also outside the split, sorted.
        difficult: "ignore" marks difficult objects as crowds, which need not be found and are not
            wrong to find: exactly the rule of the VOC metric. The COCO metric then judges overlap
            with them as with crowds: by the part of the detection that lies inside. "keep" makes
            them objects as all others.
        one_based: whether corners are pixels counted from 1. Default: as the `source` says.

    Raises:
        AnnotationError: missing or malformed files and fields, unknown classes, missing pictures,
            a document type (of which entities could fill the memory).
        ImageReadError: a picture that had to be read for its size cannot be.
        ValueError: another word for difficult.
    """
    return parse_voc(
        root, split=split, classes=classes, difficult=difficult, one_based=one_based
    ).dataset()


def parse_voc(
    root: str | Path,
    *,
    split: str | None = None,
    classes: Sequence[str] | None = None,
    difficult: str = "ignore",
    one_based: bool | None = None,
) -> Annotations:
    """What `read_voc` reads, still to be converted."""
    if difficult not in ("ignore", "keep"):
        raise ValueError(f"difficult must be 'ignore' or 'keep', got {difficult!r}")
    root = Path(root)
    folder = annotation_folder(root)
    names = [name.removesuffix(".xml") for name in list_files(folder, (".xml",))]
    if not names:
        raise AnnotationError(f"no XML files in {folder}; Pascal VOC has one for each picture")
    chosen = _choose(names, root, split)
    wanted = names if classes is None else chosen  # all pages name classes, so that splits agree
    pages = {name: read_page(folder / f"{name}.xml") for name in wanted}
    if classes is None:
        found = [item for name in names for item in pages[name].objects]
        classes = sorted({item.name for item in found if item.name})
    return _annotations(
        _find_pictures(chosen, pages, root),
        [pages[name] for name in chosen],
        classes,
        ignore=difficult == "ignore",
        one_based=one_based,
    )


def annotation_folder(root: Path) -> Path:
    """Where the XML files of a root are.

    Raises:
        AnnotationError: no such root.
    """
    if not root.is_dir():
        raise AnnotationError(f"{root} is no folder; Pascal VOC is a folder of XML files")
    folders = (root / name for name in ("Annotations", "annotations"))
    return next((folder for folder in folders if folder.is_dir()), root)


def list_splits(root: str | Path) -> list[str]:
    """Names of the lists of pictures, without those of single classes (`cat_train.txt`)."""
    lists = (Path(root) / "ImageSets" / "Main").glob("*.txt")
    return sorted(file.stem for file in lists if not _LIST_OF_A_CLASS.match(file.stem))


def _choose(names: list[str], root: Path, split: str | None) -> list[str]:
    """Those of the XML files that a split has.

    Raises:
        AnnotationError: no such list, no split although there are lists, names without a file.
    """
    splits = list_splits(root)
    if split is None and splits:
        raise AnnotationError(
            f"{root} has the splits {', '.join(splits)}: set split to one of them, or to "
            f"{ALL!r} for every annotation"
        )
    if split is None or (split == ALL and ALL not in splits):
        return names
    file = root / "ImageSets" / "Main" / f"{split}.txt"
    if not file.is_file():
        choices = suggest(split, [*splits, ALL]) if splits else "there are no lists at all"
        raise AnnotationError(f"no list {file} of the split {split!r}; {choices}")
    existing = set(names)
    lines = [line.strip() for line in read_text(file).splitlines() if line.strip()]
    # A list of one class says 1, -1 or 0 behind each name; other names may end in a number, too
    listed = [line if line in existing else re.sub(r"\s+(-1|0|1)$", "", line) for line in lines]
    twice = [name for name, count in Counter(listed).items() if count > 1]
    raise_first(f"{file}: {name!r} is listed twice" for name in twice)
    missing = [name for name in listed if name not in existing]
    if missing:
        raise AnnotationError(
            f"{file}: {len(missing)} of {len(listed)} names have no XML file in "
            f"{annotation_folder(root)}: {', '.join(missing[:3])}{', ...' * (len(missing) > 3)}"
        )
    return listed


class _Builder(ElementTree.TreeBuilder):
    """Refuses a document type before its entities are defined, let alone expanded."""

    def doctype(self, name: str, *_: str | None) -> None:
        raise AnnotationError(f"it has a document type (<!DOCTYPE {name} ...>), which is refused")


def read_page(file: Path) -> Page:
    """One XML file, still text.

    Raises:
        AnnotationError: unreadable, not XML, another root element, or a document type.
    """
    parser = ElementTree.XMLParser(target=_Builder())
    try:
        parser.feed(file.read_bytes())
        page = parser.close()
    except OSError as error:
        raise AnnotationError(f"cannot read annotations {file}: {error.strerror}") from None
    except AnnotationError as error:
        raise AnnotationError(f"{file}: {error}") from None
    except (ElementTree.ParseError, LookupError, ValueError) as error:  # also unknown encodings
        raise AnnotationError(f"{file} is not valid XML: {error}") from None
    if page.tag != "annotation":
        raise AnnotationError(f"{file} holds <{page.tag}>; Pascal VOC holds <annotation>")
    source = f"{_text(page, 'source/database')} {_text(page, 'source/annotation')}"
    return Page(
        file=file,
        filename=_text(page, "filename"),
        size=_size(page),
        of_challenge=_CHALLENGE.search(source) is not None,
        objects=tuple(_read_object(element) for element in page.findall("object")),
    )


def _text(element: ElementTree.Element, path: str) -> str | None:
    """The text of a child without the spaces around it; None where there is none."""
    text = (element.findtext(path) or "").strip()
    return text or None


def _size(page: ElementTree.Element) -> Size | None:
    """(height, width) as written; None where it is absent or 0, as some tools write it."""
    try:
        sides = (_text(page, f"size/{side}") for side in ("height", "width"))
        height, width = (round(float(text or 0)) for text in sides)
    except (ValueError, OverflowError):
        return None
    return (height, width) if height > 0 and width > 0 else None


def _read_object(element: ElementTree.Element) -> _Object:
    rest = [child for child in element if child.tag not in _READ]
    return _Object(
        name=_text(element, "name"),
        corners=tuple(_text(element, f"bndbox/{corner}") for corner in _CORNERS),
        flags=tuple(_text(element, flag) for flag in FLAGS),
        unread=tuple(
            child.tag
            for child in rest
            if len(child) or (child.text or "").strip().lower() not in _SAYS_NOTHING
        ),
    )


def _find_pictures(
    chosen: Sequence[str], pages: Mapping[str, Page], root: Path
) -> tuple[Path, list[str]]:
    """The folder of the pictures, and below it the one of each page.

    Raises:
        AnnotationError: a page has none, or there are several.
    """
    folders = (root / name for name in ("JPEGImages", "images"))
    folder = next((folder for folder in folders if folder.is_dir()), root)
    same_path: dict[str, list[str]] = defaultdict(list)  # all without suffix
    same_name: dict[str, list[str]] = defaultdict(list)
    for picture in map(PurePosixPath, list_files(folder, IMAGE_SUFFIXES)):
        same_path[str(picture.with_suffix(""))].append(str(picture))
        same_name[picture.stem].append(str(picture))
    found, missing = [], []
    for name in chosen:
        said = PurePosixPath((pages[name].filename or "").replace("\\", "/"))
        known = same_path.get(name) or same_name.get(PurePosixPath(name).name) or []
        others = known or same_name.get(said.stem, [])
        known = [each for each in others if PurePosixPath(each).name == said.name] or known
        if len(known) > 1:
            raise AnnotationError(
                f"{pages[name].file}: {len(known)} pictures in {folder} could be meant: "
                f"{', '.join(known[:2])}; give one of them in <filename>, or remove the others"
            )
        found += known
        missing += [] if known else [name]
    if missing:
        raise AnnotationError(
            f"{len(missing)} of {len(chosen)} XML files have no picture in {folder}: "
            f"{', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}"
        )
    return folder, found


def _annotations(
    pictures: tuple[Path, list[str]],
    pages: Sequence[Page],
    classes: Sequence[str],
    *,
    ignore: bool,
    one_based: bool | None,
) -> Annotations:
    """Pages and their pictures to arrays."""
    folder, file_names = pictures
    objects = [item for page in pages for item in page.objects]
    counts = np.array([len(page.objects) for page in pages], dtype=np.int64)
    image_index = np.repeat(np.arange(len(pages)), counts)
    first = np.cumsum(counts) - counts  # object of each page

    def place(index: int) -> str:
        page = image_index[index]
        return f"{pages[page].file}: object {index - first[page] + 1}"

    raise_first(
        f"{place(index)}: name is missing" for index, item in enumerate(objects) if not item.name
    )
    corners = to_numbers([item.corners for item in objects], _CORNERS, place)
    of_pixels = [page.of_challenge if one_based is None else one_based for page in pages]
    corners[np.array(of_pixels, dtype=bool)[image_index], :2] -= 1
    flags = {
        flag: to_flags([item.flags[position] for item in objects], flag, place)
        for position, flag in enumerate(FLAGS)
    }
    class_names, labels = name_classes([str(item.name) for item in objects], classes, place)
    truth = box_truth(
        image_index,
        labels,
        corners_to_xywh(corners),
        num_images=len(pages),
        category_ids=np.arange(1, len(class_names) + 1),
        crowd=flags["difficult"] if ignore else None,
    )
    sizes = [
        page.size or picture_size(folder / name)
        for page, name in zip(pages, file_names, strict=True)
    ]
    shape = np.array(sizes, dtype=np.int64).reshape(-1, 2)
    unread = Counter(f"{tag} of objects" for item in objects for tag in item.unread)
    return Annotations(folder, file_names, shape, truth, class_names, flags, unread)
