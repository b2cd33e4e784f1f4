"""Write annotations in each format, without their pictures.

N images, C classes, G truths.
"""

from __future__ import annotations

import csv
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any
from xml.etree import ElementTree

import numpy as np
import yaml

from detkit.data.annotations import FLAGS, Annotations, plain_number, xywh_to_corners
from detkit.data.coco import coco_content
from detkit.data.dataset import clip_truth
from detkit.data.yolo import label_file

# (split to annotations, folder to write to, split to the N names of its pictures: below images/
# of that folder, or JPEGImages/ of VOC, or wherever they stay; those of YOLO begin with the split)
Writer = Callable[[Mapping[str, Annotations], Path, Mapping[str, Sequence[str]]], None]

_CORNERS = ("xmin", "ymin", "xmax", "ymax")
# Of a fraction: a corner is wrong by at most 0.75e-10 of the picture, 1e-6 px of 10,000, so that
# whole pixels come back as such
_DIGITS = 10


def write_coco(
    splits: Mapping[str, Annotations], folder: Path, names: Mapping[str, Sequence[str]]
) -> None:
    """A COCO JSON file for each split, everything exact."""
    for split, source in splits.items():
        content = coco_content(source, names=names[split])
        (folder / f"{split}.json").write_text(json.dumps(content), encoding="utf-8")


def write_csv(
    splits: Mapping[str, Annotations], folder: Path, names: Mapping[str, Sequence[str]]
) -> None:
    """A table with column names for each split, boxes to 1e-6 px.

    The columns `iscrowd`, `difficult`, `truncated` and `area` are there if they say something.
    """
    for split, source in splits.items():
        truth, optional = source.truth, {}
        flags = {"iscrowd": truth.gt_crowd, **source.flags}
        for flag, values in flags.items():
            if values.any():
                optional[flag] = values.astype(int).tolist()
        if has_own_area(source).any():
            optional["area"] = truth.gt_area.tolist()
        with (folder / f"{split}.csv").open("w", encoding="utf-8", newline="") as handle:
            writer = csv.writer(handle)
            writer.writerow(["image", *_CORNERS, "class", "width", "height", *optional])
            for name, (height, width), objects in zip(
                names[split], source.sizes.tolist(), _objects_of_images(source), strict=True
            ):
                for index, corners in zip(objects.tolist(), _corners(source, objects), strict=True):
                    class_name = source.class_names[truth.gt_label[index]]
                    extra = [values[index] for values in optional.values()]
                    writer.writerow([name, *corners, class_name, width, height, *extra])
                if not len(objects):
                    writer.writerow([name, *[""] * 5, width, height, *[""] * len(optional)])


def write_voc(
    splits: Mapping[str, Annotations], folder: Path, names: Mapping[str, Sequence[str]]
) -> None:
    """A root of Pascal VOC, boxes to 1e-6 px.

    Corners are edges of boxes, as most tools have them and `read_voc` takes them; crowds become
    difficult objects.
    """
    for split, source in splits.items():
        pages = [str(PurePosixPath(name).with_suffix("")) for name in names[split]]
        file = folder / "ImageSets" / "Main" / f"{split}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(f"{page}\n" for page in pages), encoding="utf-8")
        for index, objects in enumerate(_objects_of_images(source)):
            file = folder / "Annotations" / f"{pages[index]}.xml"
            file.parent.mkdir(parents=True, exist_ok=True)
            page = voc_page(source, index, objects, name=names[split][index])
            ElementTree.ElementTree(page).write(file, encoding="utf-8")


def voc_page(
    source: Annotations, index: int, objects: np.ndarray, *, name: str
) -> ElementTree.Element:
    """The XML of one picture.

    Args:
        source: with its truths.
        index: of the picture.
        objects: indices of its truths.
        name: of its file.
    """
    page = _page_element(name, source.sizes[index].tolist())
    page.extend(_object_elements(source, objects))
    ElementTree.indent(page)
    return page


def write_yolo(
    splits: Mapping[str, Annotations], folder: Path, names: Mapping[str, Sequence[str]]
) -> None:
    """A data.yaml and label files.

    Boxes are cut off at the edge of their picture; crowds and boxes without area are left out,
    because a line can only say that there is an object.
    """
    for split, source in splits.items():
        kept, lines = fits_yolo(source), yolo_lines(source)
        for name, objects in zip(names[split], _objects_of_images(source), strict=True):
            file = Path(label_file(str(folder / "images" / name)))
            file.parent.mkdir(parents=True, exist_ok=True)
            text = "".join(f"{lines[index]}\n" for index in objects.tolist() if kept[index])
            file.write_text(text, encoding="utf-8")
    class_names = next(iter(splits.values())).class_names
    # no path: the folder of the yaml then is the root, wherever it is moved to
    content: dict[str, Any] = {split: f"images/{split}" for split in splits}
    content["names"] = dict(enumerate(class_names))
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    (folder / "data.yaml").write_text(text, encoding="utf-8")


def yolo_lines(source: Annotations) -> list[str]:
    """The line of each truth, also of those that do not fit (`fits_yolo`); cut off at the edge."""
    corners, _, _ = clip_truth(source.truth, source.sizes)
    sizes = source.sizes[source.truth.gt_image_index][:, ::-1]  # [G, 2] width, height
    centres = (corners[:, :2] + corners[:, 2:]) / 2 / sizes
    sides = (corners[:, 2:] - corners[:, :2]) / sizes
    return [
        " ".join([str(label), *(f"{value:.{_DIGITS}f}" for value in fractions)])
        for label, fractions in zip(
            source.truth.gt_label.tolist(), np.hstack([centres, sides]).tolist(), strict=True
        )
    ]


WRITERS: dict[str, Writer] = {
    "coco": write_coco,
    "voc": write_voc,
    "yolo": write_yolo,
    "csv": write_csv,
}


def has_own_area(source: Annotations) -> np.ndarray:
    """`[G]` bool: truths whose area is not that of their box, but e.g. of the object's outline."""
    boxes = source.truth.gt_boxes_xywh
    return ~np.isclose(source.truth.gt_area, boxes[:, 2] * boxes[:, 3], rtol=1e-6, atol=1e-3)


def fits_yolo(source: Annotations) -> np.ndarray:
    """`[G]` bool: truths that a line of YOLO can express: no crowds, and with an area."""
    return ~source.truth.gt_crowd & ~clip_truth(source.truth, source.sizes)[2]


def _objects_of_images(source: Annotations) -> list[np.ndarray]:
    """For each picture the indices of its truths, in their order."""
    index = source.truth.gt_image_index
    order = np.argsort(index, kind="stable")
    ends = np.searchsorted(index[order], np.arange(len(source.sizes) + 1))
    return [order[start:end] for start, end in itertools.pairwise(ends)]


def _corners(source: Annotations, objects: np.ndarray) -> list[list[str]]:
    """Texts of x1, y1, x2, y2 of some truths."""
    corners = xywh_to_corners(source.truth.gt_boxes_xywh[objects])
    return [[plain_number(value) for value in row] for row in corners.tolist()]


def _page_element(name: str, size: Sequence[int]) -> ElementTree.Element:
    """The XML of a picture, still without objects; `size` is (height, width)."""
    path = PurePosixPath("JPEGImages", name)
    page = ElementTree.Element("annotation")
    _add(page, {"folder": path.parent, "filename": path.name})
    _add(ElementTree.SubElement(page, "source"), {"database": "Unknown"})
    _add(ElementTree.SubElement(page, "size"), {"width": size[1], "height": size[0], "depth": 3})
    return page


def _object_elements(source: Annotations, objects: np.ndarray) -> Iterator[ElementTree.Element]:
    """An element for each of some truths."""
    none = np.zeros(len(source.truth.gt_label), dtype=bool)
    flags = {flag: source.flags.get(flag, none) for flag in FLAGS}
    flags["difficult"] = flags["difficult"] | source.truth.gt_crowd
    for index, corners in zip(objects.tolist(), _corners(source, objects), strict=True):
        element = ElementTree.Element("object")
        name = source.class_names[source.truth.gt_label[index]]
        values = {flag: int(flags[flag][index]) for flag in FLAGS}
        _add(element, {"name": name, "pose": "Unspecified", **values})
        _add(ElementTree.SubElement(element, "bndbox"), dict(zip(_CORNERS, corners, strict=True)))
        yield element


def _add(element: ElementTree.Element, fields: Mapping[str, object]) -> None:
    for tag, value in fields.items():
        ElementTree.SubElement(element, tag).text = str(value)
