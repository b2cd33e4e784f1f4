"""Detections in the formats of other programs, and back.

Each `to_*` gives what the format holds, as records, text or a container; each `from_*` reads it,
best first. What a format cannot hold is said there. For whole folders in the layout of a data set
see `to_annotations`.

K detections, N pictures, C classes; H and W the height and width of a picture as it is shown.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import torch
from torch import Tensor

from detkit.data.annotations import (
    AnnotationError,
    Annotations,
    box_truth,
    corners_to_xywh,
    name_classes,
    raise_first,
    read_text,
    to_numbers,
)
from detkit.data.voc import read_page
from detkit.data.writers import fits_yolo, voc_page, yolo_lines
from detkit.engine.evaluate import coco_results
from detkit.evaluation.coco_json import load_json
from detkit.evaluation.columns import detection_columns
from detkit.structures import Detections, Size

Records = list[dict[str, Any]]

_CORNERS = ("xmin", "ymin", "xmax", "ymax")
_YOLO = ("class", "x centre", "y centre", "width", "height", "score")
_LABELME_VERSION = "5.5.0"  # whose fields these are; later ones read them alike


# ------------------------------------------------------------------------------------------ COCO


def to_coco(found: Detections, image_id: int, category_ids: Sequence[int]) -> Records:
    """COCO results records: image_id, category_id, bbox (x, y, width, height) and score.

    Nothing is rounded. The format has ids for names, and pictures without detections are not in it.

    Args:
        found: in one picture; the records of several are joined to one list.
        image_id: of the picture.
        category_ids: of labels `0..C-1`, as `Predictor.category_ids`.
    """
    return coco_results({image_id: found}, category_ids)


def from_coco(
    records: Sequence[Mapping[str, Any]] | str | Path,
    category_ids: Sequence[int],
    *,
    class_names: Sequence[str] = (),
) -> dict[int | str, Detections]:
    """Detections by image id, of the images that have any.

    Args:
        records: COCO results, or the path of their JSON file.
        category_ids: of labels `0..C-1`.
        class_names: of labels `0..C-1`.

    Raises:
        ValueError: a field is missing or wrong, or a category id is not among those given.
        OSError: the file cannot be read.
    """
    content, where = records, "detections"
    if isinstance(records, str | Path):
        content, where = load_json(records)
    columns = detection_columns(content, where, strict=False)
    label_of = {category: label for label, category in enumerate(category_ids)}
    for index, category in enumerate(columns.category_id.tolist()):
        if category not in label_of:
            raise ValueError(
                f"{where}: [{index}]: category_id {category} is not among the "
                f"{len(label_of)} given: {', '.join(map(str, list(label_of)[:9]))}"
            )
    labels = np.array([label_of[each] for each in columns.category_id.tolist()], dtype=np.int64)
    corners = np.concatenate([columns.bbox[:, :2], columns.bbox[:, :2] + columns.bbox[:, 2:]], 1)
    image_ids, of_image = np.unique(columns.image_id, return_inverse=True)
    order = np.argsort(of_image, kind="stable")
    parts = np.split(order, np.cumsum(np.bincount(of_image))[:-1])  # records of each image
    return {
        image_id: _detections(corners[mine], labels[mine], class_names, columns.score[mine])
        for image_id, mine in zip(image_ids.tolist(), parts, strict=False)  # of no image one part
    }


# ------------------------------------------------------------------------------------ annotations


def to_annotations(
    found: Mapping[str, Detections],
    sizes: Sequence[Size],
    *,
    category_ids: Sequence[int] | None = None,
) -> Annotations:
    """Detections as if a person had drawn them, for the writers of `detkit.data.writers`.

    `WRITERS["voc"]({"train": annotations}, folder, {"train": list(found)})` writes a data set to
    correct and to train on; likewise "yolo", "coco" and "csv". Scores are lost.

    Args:
        found: by the names of the N pictures, with the same class_names.
        sizes: N (height, width).
        category_ids: of labels `0..C-1`, ascending. Default: 1..C.

    Raises:
        ValueError: the names of the classes are missing or differ; not one size a picture.
    """
    class_names = Detections.cat([each[:0] for each in found.values()]).class_names
    if not class_names:
        raise ValueError("no class_names in these detections; those of a predictor have them")
    if len(sizes) != len(found):
        raise ValueError(f"{len(sizes)} sizes for {len(found)} pictures; give one each")
    if category_ids is None:
        category_ids = range(1, len(class_names) + 1)
    parts = list(found.values())
    truth = box_truth(
        np.repeat(np.arange(len(parts)), [len(each) for each in parts]),
        torch.cat([each.labels for each in parts]).cpu().numpy(),
        corners_to_xywh(torch.cat([each.boxes for each in parts]).cpu().double().numpy()),
        num_images=len(parts),
        category_ids=np.asarray(category_ids, dtype=np.int64),
    )
    shape = np.array(sizes, dtype=np.int64).reshape(-1, 2)
    return Annotations(Path(), list(found), shape, truth, class_names)


def to_voc(found: Detections, name: str, size: Size) -> str:
    """The text of a Pascal VOC XML file, boxes to 1e-6 px.

    The format has names for labels and no scores. Corners are edges of boxes, as `from_voc` and
    most tools take them; programs that follow the challenge count pixels from 1, and move such a
    box by one.

    Args:
        found: in one picture, with class_names.
        name: of the file of the picture.
        size: (height, width) of the picture.
    """
    source = to_annotations({name: found}, [size])
    page = voc_page(source, 0, np.arange(len(found)), name=name)
    return ElementTree.tostring(page, encoding="unicode") + "\n"


def from_voc(
    file: str | Path, *, class_names: Sequence[str] | None = None, one_based: bool | None = None
) -> Detections:
    """The objects of a Pascal VOC XML file, each with a score of 1.

    Args:
        file: its path.
        class_names: of labels `0..C-1`. Default: the names in the file, sorted.
        one_based: whether corners are pixels counted from 1. Default: as for `read_voc`.

    Raises:
        AnnotationError: unreadable or malformed, or an object of another class.
    """
    page = read_page(Path(file))

    def place(index: int) -> str:
        return f"{file}: object {index + 1}"

    corners = to_numbers([item.corners for item in page.objects], _CORNERS, place)
    corners[:, :2] -= page.of_challenge if one_based is None else one_based
    names = [item.name or "" for item in page.objects]
    return _named(corners, names, class_names, place)


# ------------------------------------------------------------------------------------------ YOLO


def to_yolo(found: Detections, size: Size, *, scores: bool = False) -> str:
    """The text of a YOLO label file: a line `class x_centre y_centre width height` for each box.

    The format has numbers for names, and no size of the picture: keep both. Boxes are cut off at
    the edge of the picture, and those without area left out, to 1e-10 of its sides.

    Args:
        found: in one picture, with class_names.
        size: (height, width) of the picture.
        scores: add each score as a sixth column, as programs write it that predict. Those that
            train take five.
    """
    source = to_annotations({"": found}, [size])
    lines = yolo_lines(source)
    if scores:
        lines = [
            f"{line} {score:.9g}" for line, score in zip(lines, found.scores.tolist(), strict=True)
        ]
    return "".join(
        f"{line}\n" for line, fits in zip(lines, fits_yolo(source).tolist(), strict=True) if fits
    )


def from_yolo(file: str | Path, size: Size, *, class_names: Sequence[str] = ()) -> Detections:
    """The boxes of a YOLO label file of five columns, scores of 1, or of six, the last the score.

    Args:
        file: its path.
        size: (height, width) of the picture.
        class_names: of labels `0..C-1`.

    Raises:
        AnnotationError: unreadable, other columns (polygons, say), no numbers, unknown classes.
    """
    text = read_text(Path(file))
    lines = [(n, words) for n, line in enumerate(text.splitlines(), 1) if (words := line.split())]

    def place(index: int) -> str:
        return f"{file}, line {lines[index][0]}"

    raise_first(
        f"{place(index)}: {len(words)} columns; a box has 5, with its score 6: {', '.join(_YOLO)}"
        for index, (_, words) in enumerate(lines)
        if len(words) not in (5, 6)
    )
    numbers = to_numbers([[*words, "1"][:6] for _, words in lines], _YOLO, place)
    labels = numbers[:, 0].astype(np.int64)
    raise_first(
        f"{place(index)}: class {words[0]} is not a whole number in 0..{len(class_names) - 1}"
        if class_names
        else f"{place(index)}: class {words[0]} is not a whole number from 0 on"
        for index, (_, words) in enumerate(lines)
        if labels[index] != numbers[index, 0]
        or labels[index] < 0
        or (class_names and labels[index] >= len(class_names))
    )
    height, width = size
    centres, sides = numbers[:, 1:3] * (width, height), numbers[:, 3:5] * (width, height)
    corners = np.concatenate([centres - sides / 2, centres + sides / 2], axis=1)
    return _detections(corners, labels, class_names, numbers[:, 5])


# --------------------------------------------------------------------------------------- LabelMe


def to_labelme(found: Detections, name: str, size: Size) -> dict[str, Any]:
    """The content of a LabelMe file, to be written as JSON beside the picture and corrected there.

    Every box is a rectangle. The format has names for labels; its description shows the score, and
    the exact one stands under "score", which is no field of LabelMe's own, but which it keeps.

    Args:
        found: in one picture, with class_names.
        name: of the file of the picture, relative to that of the JSON file.
        size: (height, width) of the picture.
    """
    height, width = size
    shapes = [
        {
            "label": label,
            "points": [box[:2], box[2:]],
            "group_id": None,
            "description": f"{score:.3f}",
            "shape_type": "rectangle",
            "flags": {},
            "score": score,
        }
        for label, box, score in zip(
            found.names, found.boxes.tolist(), found.scores.tolist(), strict=True
        )
    ]
    return {
        "version": _LABELME_VERSION,
        "flags": {},
        "shapes": shapes,
        "imagePath": name,
        "imageData": None,
        "imageHeight": height,
        "imageWidth": width,
    }


def from_labelme(file: str | Path, *, class_names: Sequence[str] | None = None) -> Detections:
    """The rectangles of a LabelMe file, and the boxes around its polygons.

    Args:
        file: its path.
        class_names: of labels `0..C-1`. Default: the names in the file, sorted.

    Raises:
        AnnotationError: unreadable, another shape or class, a field that is missing or wrong.
    """
    shapes = _labelme_shapes(file)

    def place(index: int) -> str:
        return f"{file}: shape {index + 1}"

    numbers = np.ones((len(shapes), 5))  # corners, score
    for index, shape in enumerate(shapes):
        try:
            points = np.array(shape["points"], dtype=np.float64).reshape(-1, 2)
            numbers[index, :4] = *points.min(axis=0), *points.max(axis=0)
            if shape.get("score") is not None:
                numbers[index, 4] = shape["score"]
        except (KeyError, TypeError, ValueError):
            numbers[index] = np.nan
    raise_first(
        f"{place(index)} has no points [[x, y], ...], or a score that is no number"
        for index in np.flatnonzero(~np.isfinite(numbers).all(axis=1)).tolist()
    )
    names = [str(shape.get("label", "")) for shape in shapes]
    return _named(numbers[:, :4], names, class_names, place, scores=numbers[:, 4])


def _labelme_shapes(file: str | Path) -> Records:
    try:
        content = json.loads(read_text(Path(file)))
    except ValueError as error:
        if isinstance(error, AnnotationError):
            raise
        raise AnnotationError(f"{file} is not valid JSON: {error}") from None
    shapes = content.get("shapes") if isinstance(content, dict) else None
    if not isinstance(shapes, list) or not all(isinstance(shape, dict) for shape in shapes):
        raise AnnotationError(f"{file} has no list of shapes; is it a LabelMe file?")
    raise_first(
        f"{file}: shape {index} is a {shape.get('shape_type')}; only rectangles and polygons have "
        "boxes here"
        for index, shape in enumerate(shapes, start=1)
        if shape.get("shape_type", "polygon") not in ("rectangle", "polygon")
    )
    return shapes


# ------------------------------------------------------------------------------------- containers


def to_supervision(found: Detections) -> Any:
    """`supervision.Detections`, with the names under data["class_name"].

    Raises:
        ValueError: supervision is not installed.
    """
    names = {"class_name": np.array(found.names, dtype=str)} if found.class_names else {}
    return _supervision().Detections(
        xyxy=found.boxes.cpu().numpy(),
        confidence=found.scores.cpu().numpy(),
        class_id=found.labels.cpu().numpy(),
        data=names,
    )


def from_supervision(given: Any, *, class_names: Sequence[str] = ()) -> Detections:
    """Boxes, scores and labels of a `supervision.Detections`; masks and tracks are left out.

    Args:
        given: with class ids; without scores they are 1.
        class_names: of labels `0..C-1`: the container has only those of its own boxes.

    Raises:
        ValueError: it has no class ids.
    """
    if given.class_id is None and len(given):
        raise ValueError("these supervision.Detections have no class_id; set it, e.g. to zeros")
    labels = np.zeros(0) if given.class_id is None else given.class_id
    return _detections(np.asarray(given.xyxy), labels, class_names, given.confidence)


def _supervision() -> Any:
    try:
        import supervision
    except ImportError:
        raise ValueError(
            "supervision is not installed; pip install supervision, or take boxes, scores and "
            "labels from the detections"
        ) from None
    return supervision


def to_torchvision(found: Detections, *, first: int = 1) -> dict[str, Tensor]:
    """What torchvision's detectors give for a picture: boxes, scores and labels, xyxy in pixels.

    Args:
        found: whose names are lost.
        first: the number of label 0. Torchvision's own is 1, as its 0 is the background.
    """
    return {"boxes": found.boxes, "scores": found.scores, "labels": found.labels + first}


def from_torchvision(
    given: Mapping[str, Tensor], *, class_names: Sequence[str] = (), first: int = 1
) -> Detections:
    """Detections from torchvision's dict; without scores, as in its targets, they are 1.

    Args:
        given: boxes `[K, 4]`, labels `[K]`, and maybe scores `[K]`.
        class_names: of labels `0..C-1`.
        first: as for `to_torchvision`.

    Raises:
        ValueError: boxes or labels are missing, or a label is less than `first`.
    """
    if missing := {"boxes", "labels"} - given.keys():
        raise ValueError(f"no {' and no '.join(sorted(missing))} in {', '.join(given) or 'it'}")
    labels, scores = given["labels"].cpu() - first, given.get("scores")
    if len(labels) and int(labels.min()) < 0:
        raise ValueError(f"label {int(labels.min()) + first} is less than first={first}")
    boxes = given["boxes"].detach().cpu().numpy()
    if scores is not None:
        scores = scores.detach().cpu()
    return _detections(boxes, labels.numpy(), class_names, scores)


# ----------------------------------------------------------------------------------------- common


def _named(
    corners: np.ndarray,
    names: Sequence[str],
    class_names: Sequence[str] | None,
    place: Callable[[int], str],
    *,
    scores: Any = None,
) -> Detections:
    """Detections of a format that has only the names of classes."""
    if class_names is None and not names:
        return Detections.empty()
    known, labels = name_classes(names, class_names, place)
    return _detections(corners, labels, known, scores)


def _detections(
    corners: np.ndarray, labels: np.ndarray, class_names: Sequence[str], scores: Any
) -> Detections:
    """Detections on the CPU, best first; scores that are not given are 1."""
    given = np.ones(len(labels)) if scores is None else np.asarray(scores)
    order = np.argsort(-given, kind="stable")
    return Detections(
        torch.tensor(np.reshape(corners, (-1, 4))[order], dtype=torch.float32),
        torch.tensor(given[order], dtype=torch.float32),
        torch.tensor(np.asarray(labels)[order], dtype=torch.int64),
        tuple(class_names),
    )
