"""What all formats of annotations share: from the words in their files to a data set.

N images, C classes, G truths.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from detkit.data.dataset import CocoDataset, CocoGroundTruth, PackedStrings
from detkit.registry import suggest

FLAGS = ("truncated", "difficult")  # of an object, as Pascal VOC has them
_TRUE, _FALSE = ("1", "true", "yes"), ("0", "false", "no", "unspecified", "")


class AnnotationError(ValueError):
    """Annotations that cannot be used; one line with the file, the place and the reason."""


@dataclass(frozen=True, slots=True)
class Annotations:
    """What the files of a data set say, whatever their format.

    Attributes:
        images: the folder of the pictures.
        file_names: N paths below it, or absolute ones.
        sizes: `[N, 2]` int64 (height, width), upright.
        truth: every object in the order of the files, exact.
        class_names: one for each of `truth.category_ids`.
        flags: of `FLAGS` those that the files tell, each `[G]` bool.
        unread: what else they tell and nothing here holds, with how often they do.
    """

    images: Path
    file_names: list[str]
    sizes: np.ndarray
    truth: CocoGroundTruth
    class_names: tuple[str, ...]
    flags: Mapping[str, np.ndarray] = field(default_factory=dict)
    unread: Mapping[str, int] = field(default_factory=dict)

    def dataset(self) -> CocoDataset:
        """The same, to train and to evaluate on."""
        names = PackedStrings.pack(self.file_names)
        return CocoDataset(self.images, names, self.sizes, self.truth, self.class_names)


def box_truth(
    image_index: np.ndarray,
    labels: np.ndarray,
    xywh: np.ndarray,
    *,
    num_images: int,
    category_ids: np.ndarray,
    crowd: np.ndarray | None = None,
    area: np.ndarray | None = None,
) -> CocoGroundTruth:
    """Truths of a format that has no ids of images: they become 1..N.

    Args:
        image_index: `[G]` int64 in `0..N-1`.
        labels: `[G]` int64 in `0..C-1`.
        xywh: `[G, 4]` float64 in pixels.
        num_images: N.
        category_ids: `[C]` int64, ascending.
        crowd: `[G]` bool of those neither to be found nor wrong to find; default: none.
        area: `[G]` float64, default: of the boxes.
    """
    return CocoGroundTruth(
        image_ids=np.arange(1, num_images + 1),
        category_ids=category_ids,
        gt_image_index=image_index,
        gt_label=labels,
        gt_boxes_xywh=xywh,
        gt_area=xywh[:, 2] * xywh[:, 3] if area is None else area,
        gt_crowd=np.zeros(len(xywh), dtype=bool) if crowd is None else crowd,
    )


def corners_to_xywh(corners: np.ndarray) -> np.ndarray:
    """x1, y1, x2, y2 to x, y, width, height, `[G, 4]` float64 both."""
    return np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)


def xywh_to_corners(xywh: np.ndarray) -> np.ndarray:
    """x, y, width, height to x1, y1, x2, y2, `[G, 4]` float64 both."""
    return np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1)


def name_classes(
    names: Sequence[str], classes: Sequence[str] | None, place: Callable[[int], str]
) -> tuple[tuple[str, ...], np.ndarray]:
    """Classes of a format that has only their names, and the label of each object.

    Args:
        names: `[G]` of the objects.
        classes: all there are, in the order of their labels; None: the names that occur, sorted.
        place: says where an object stands, for the message.

    Returns:
        C class names, and labels `[G]` int64.

    Raises:
        AnnotationError: an object of no such class, a class given twice, no class at all.
    """
    known = tuple(sorted(set(names))) if classes is None else tuple(classes)
    label_of = {name: label for label, name in enumerate(known)}
    if len(label_of) < len(known):
        twins = sorted({name for name in known if known.count(name) > 1})
        raise AnnotationError(f"classes: {', '.join(twins)} is given twice; give each class once")
    if not known:
        raise AnnotationError("no object and so no class is annotated; list the names in 'classes'")
    unknown = [index for index, name in enumerate(names) if name not in label_of]
    choices = suggest(names[unknown[0]], known) if unknown else ""
    raise_first(
        f"{place(index)}: class {names[index]!r} is not among 'classes'; {choices}"
        for index in unknown
    )
    return known, np.array([label_of[name] for name in names], dtype=np.int64)


def to_numbers(
    rows: Sequence[Sequence[str | None]], fields: Sequence[str], place: Callable[[int], str]
) -> np.ndarray:
    """Texts to finite numbers, `[G, F]` float64.

    Args:
        rows: G times F texts.
        fields: the F names of the columns.
        place: says where a row stands, for the message.

    Raises:
        AnnotationError: a text is missing or no finite number.
    """
    try:
        numbers = np.array(rows, dtype=np.float64).reshape(-1, len(fields))
    except ValueError:
        numbers = np.full((1, len(fields)), np.nan)
    if not np.isfinite(numbers).all():
        raise_first(
            f"{place(index)}: {given(name, text)}, it must be a finite number"
            for index, row in enumerate(rows)
            for name, text in zip(fields, row, strict=True)
            if not is_number(text)
        )
    return numbers


def to_flags(texts: Sequence[str | None], name: str, place: Callable[[int], str]) -> np.ndarray:
    """Texts to `[G]` bool; an absent or empty one is no.

    Raises:
        AnnotationError: another text than 0, 1, true, false, yes, no.
    """
    words = [(text or "").lower() for text in texts]
    raise_first(
        f"{place(index)}: {given(name, texts[index])}, it must be 0 or 1"
        for index, word in enumerate(words)
        if word not in (*_TRUE, *_FALSE)
    )
    return np.array([word in _TRUE for word in words], dtype=bool)


def is_number(text: str | None) -> bool:
    """Whether a text is a finite number."""
    try:
        return text is not None and math.isfinite(float(text))
    except ValueError:
        return False


def plain_number(value: float) -> str:
    """A number to 1e-6, as short as it goes: "12", "0.5"."""
    return f"{round(value, 6) + 0.0:.6f}".rstrip("0").rstrip(".")


def given(name: str, text: str | None) -> str:
    """What stands in a field, for a message."""
    return f"{name} is missing" if text is None or text == "" else f"{name} is {text!r}"


def raise_first(problems: Iterable[str]) -> None:
    """Raise the first problem, if there is one, with the number of the others.

    Raises:
        AnnotationError: there is one.
    """
    iterator: Iterator[str] = iter(problems)
    first = next(iterator, None)
    if first is None:
        return
    more = sum(1 for _ in iterator)
    rest = f" (and {more} more such problem{'s' if more > 1 else ''})" if more else ""
    raise AnnotationError(f"{first}{rest}")


def read_text(file: Path) -> str:
    """The text of an annotation file, UTF-8 with or without its mark.

    Raises:
        AnnotationError: it cannot be read.
    """
    try:
        return file.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise AnnotationError(f"cannot read annotations {file}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise AnnotationError(f"{file} is not text in UTF-8: {error}") from None
