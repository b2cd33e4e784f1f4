"""What a check of a data set can find, how bad it is, and what to do about it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np

Level = Literal["error", "warning", "info"]

_SHOWN, _LISTED = 3, 1000  # examples in the summary, and in the report
_CHANGES, _BARS = 20, 20  # changes and classes in the summary


class Check(NamedTuple):
    """One question that is asked of a data set.

    Attributes:
        level: an error spoils training or its number, a warning may, an info is to be known.
        title: what is counted.
        advice: what to do.
    """

    level: Level
    title: str
    advice: str


_DROPPED = "correct them; --fix drops them"

CHECKS = {
    "annotations_refused": Check(
        "error",
        "annotations at which training would stop",
        "correct what is named; what else can be read is checked all the same",
    ),
    "record_malformed": Check(
        "error", "records or files that cannot be used", "correct them; --fix leaves them out"
    ),
    "image_missing": Check(
        "error",
        "pictures that are not there",
        "name their folder with --images, or restore them; --fix drops their records",
    ),
    "image_unreadable": Check(
        "error",
        "pictures that are truncated, broken or too large",
        "fetch them again; --fix drops their records",
    ),
    "image_size": Check(
        "error",
        "pictures of another size than annotated",
        "correct width and height, and the boxes if the pictures were resized after the "
        "annotation; --fix takes the size of the file and leaves the boxes",
    ),
    "image_unrotated": Check(
        "error",
        "pictures annotated in the size they have without their EXIF rotation",
        "detkit shows them upright; --fix turns boxes that fit the unrotated picture with it",
    ),
    "image_id_duplicate": Check(
        "error",
        "images whose id another image has",
        "their boxes cannot be told apart; --fix keeps the first image of an id",
    ),
    "image_id_text": Check(
        "error",
        "images whose id is a text",
        "detkit and most tools need whole numbers; --fix numbers them",
    ),
    "image_twice": Check(
        "error",
        "images whose file another image names",
        "each would be trained on with the other's boxes missing; --fix joins them",
    ),
    "image_duplicate": Check(
        "warning",
        "pictures with the pixels of another picture",
        "remove the copies, or all boxes but one set count twice; --fix leaves them",
    ),
    "image_leaked": Check(
        "error",
        "pictures that another split has too",
        "scores on such pictures say nothing; remove them from one split (--fix leaves them)",
    ),
    "unknown_image": Check("error", "boxes of an image id that no image has", _DROPPED),
    "unknown_category": Check("error", "boxes of a category id that no category has", _DROPPED),
    "categories_shifted": Check(
        "error",
        "boxes whose category ids are all off by one from those of the categories",
        "the file mixes counting from 0 and from 1; --fix shifts the ids of the boxes",
    ),
    "category_duplicate": Check(
        "error",
        "categories whose id or name another has",
        "give each its own; --fix joins those of one name and keeps the first of an id",
    ),
    "annotation_id_duplicate": Check(
        "error",
        "boxes whose id another box has",
        "pycocotools loses all but one of them; --fix gives new ids",
    ),
    "annotation_id_missing": Check(
        "warning",
        "boxes without a whole number as id",
        "pycocotools cannot load them; --fix gives ids",
    ),
    "annotation_id_zero": Check(
        "warning",
        "boxes with the id 0",
        "pycocotools takes a match with id 0 for no match; --fix gives another id",
    ),
    "boxes_are_corners": Check(
        "error",
        "boxes that look like x1, y1, x2, y2 where x, y, width, height belong",
        "what follows is of the corners; --fix converts them",
    ),
    "boxes_are_fractions": Check(
        "error",
        "boxes in fractions of their picture where pixels belong",
        "what follows is of pixels; --fix converts them",
    ),
    "box_negative": Check("error", "boxes of negative width or height", _DROPPED),
    "box_degenerate": Check("error", "boxes of width or height 0", _DROPPED),
    "box_outside": Check("error", "boxes entirely outside their picture", _DROPPED),
    "box_clipped": Check(
        "warning", "boxes partly outside their picture", "training clips them, and so does --fix"
    ),
    "box_tiny": Check(
        "warning",
        "boxes narrower or lower than one pixel after resizing",
        "training drops them; enlarge data.resize, or train on tiles",
    ),
    "box_duplicate": Check(
        "warning",
        "boxes that repeat one of the same class",
        "all but one count as missed; --fix drops the repetitions",
    ),
    "box_two_classes": Check(
        "warning",
        "boxes that repeat one of another class",
        "one of both is wrong most often; --fix leaves them",
    ),
    "box_whole_image": Check("info", "boxes that are the whole picture", "look whether they mean"),
    "area_wrong": Check(
        "warning",
        "boxes with a negative area, or one larger than the box",
        "small, medium and large are told apart by it; --fix takes that of the box",
    ),
    "boxes_none": Check(
        "error", "no picture has a box", "nothing can be learnt or measured; is it the right file?"
    ),
    "images_empty": Check(
        "info", "images without boxes", "they train as background; remove them if boxes are missing"
    ),
    "images_turned": Check(
        "info",
        "pictures that their EXIF block rotates",
        "tools that ignore it see boxes in other places",
    ),
    "pictures_unlisted": Check(
        "info", "pictures in the folder that no record names", "other splits may have them"
    ),
    "classes_alike": Check(
        "warning",
        "classes whose names differ in capitals or spaces alone",
        "if they are one class, give them one name: a detector learns them apart",
    ),
    "classes_unused": Check("info", "classes without a box", "nothing to learn or measure there"),
    "classes_rare": Check(
        "info", "classes with fewer than 10 boxes", "expect little of their AP; annotate more"
    ),
    "box_below_cell": Check(
        "warning",
        "boxes smaller than a cell of the finest map",
        "neighbours fall into one cell; enlarge data.resize or use a finer map",
    ),
    "box_without_anchor": Check(
        "warning",
        "boxes with an IoU below 0.5 with every anchor, centred",
        "fit the anchors: python tools/cluster_anchors.py RECIPE",
    ),
}


@dataclass(frozen=True)
class Finding:
    """The answer to one check.

    Attributes:
        code: of `CHECKS`.
        indices: of the records concerned, in the order of the file.
        name: index to the place and the particulars, for a person.
    """

    code: str
    indices: np.ndarray
    name: Callable[[int], str]

    @classmethod
    def of_texts(cls, code: str, texts: Sequence[str]) -> Finding:
        """A finding whose places are known as texts."""
        return cls(code, np.arange(len(texts)), lambda index: texts[index])

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def check(self) -> Check:
        """What was asked."""
        return CHECKS[self.code]

    def examples(self, limit: int = _SHOWN) -> list[str]:
        """The first places."""
        return [self.name(index) for index in self.indices[:limit].tolist()]

    def as_dict(self) -> dict[str, Any]:
        """For JSON; of very many places the first 1,000."""
        return {
            "code": self.code,
            **self.check._asdict(),
            "count": len(self),
            "examples": self.examples(_LISTED),
        }

    def __str__(self) -> str:
        lines = [f"{self.check.level}: {len(self)} {self.check.title} [{self.code}]"]
        lines += [f"    {example}" for example in self.examples()]
        if len(self) > _SHOWN:
            lines.append(f"    ... and {len(self) - _SHOWN} more")
        return "\n".join([*lines, f"    -> {self.check.advice}"])


@dataclass
class DataReport:
    """All that was found in a data set.

    Attributes:
        source: what was checked.
        numbers: counts and statistics, ready for JSON.
        findings: those that found something.
        changes: what a repaired copy has otherwise; empty without one.
    """

    source: str
    numbers: dict[str, Any] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    changes: list[str] = field(default_factory=list)

    def add(self, findings: Iterable[Finding]) -> None:
        """Keep the findings that found something."""
        self.findings += [finding for finding in findings if len(finding)]

    def indices(self, code: str) -> np.ndarray:
        """The records of a finding, `[n]` int64; none where there is no such finding."""
        found = [finding.indices for finding in self.findings if finding.code == code]
        return np.concatenate([np.zeros(0, np.int64), *found])

    def count(self, level: Level) -> int:
        """How many findings there are of a level."""
        return sum(finding.check.level == level for finding in self.findings)

    @property
    def failed(self) -> bool:
        """Whether there is an error."""
        return self.count("error") > 0

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "source": self.source,
            **self.numbers,
            "errors": self.count("error"),
            "warnings": self.count("warning"),
            "findings": [finding.as_dict() for finding in self._ordered()],
            "changes": self.changes,
        }

    def __str__(self) -> str:
        kinds = f"{self.count('error')} kinds of errors, {self.count('warning')} of warnings"
        parts = [*summary_lines(self.numbers), *map(str, self._ordered())]
        return "\n".join([*parts, f"{self.source}: {kinds}"])

    def changes_text(self) -> str:
        """The first changes of a repaired copy, and how many there are."""
        more = len(self.changes) - _CHANGES
        rest = [f"    ... and {more} more (all of them are in --json FILE)"] if more > 0 else []
        lines = [f"    {change}" for change in self.changes[:_CHANGES]]
        return "\n".join([f"{len(self.changes)} changes", *lines, *rest])

    def _ordered(self) -> list[Finding]:
        levels = ("error", "warning", "info")
        return sorted(self.findings, key=lambda finding: levels.index(finding.check.level))


def summary_lines(numbers: Mapping[str, Any]) -> list[str]:
    """The numbers of a report for a person; a line for each of the most frequent classes."""
    if not numbers:
        return []
    sizes = ", ".join(f"{size} ({count})" for size, count in numbers["picture_sizes"].items())
    lines = [
        f"{numbers['images']} images, most of them {sizes or 'none'}; ids {numbers['image_ids']}",
        f"{numbers['boxes']} boxes, {numbers['crowds']} of crowds; sides in pixels (square root "
        f"of the area): {_quantiles_text(numbers['box_sides'])}",
        f"{len(numbers['classes'])} classes; ids {numbers['category_ids']}; the most frequent has "
        f"{numbers['imbalance']} times the boxes of the rarest",
        *_histogram(numbers["classes"]),
    ]
    if fit := numbers.get("fit"):
        lines.append(
            f"resized as in {fit['recipe']}: {_quantiles_text(fit['resized_sides'])}; strides "
            f"{fit['strides']}, {fit['share_below_a_cell']:.1%} of the boxes are below a cell"
        )
        if "anchors" in fit:
            lines.append(
                f"anchors {fit['anchors']}: the best has an IoU of {fit['mean_best_iou']} in the "
                f"mean, {fit['share_without_an_anchor']:.1%} of the boxes have none of 0.5"
            )
    return lines


def _quantiles_text(values: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in values.items()) or "none"


def _histogram(counts: Mapping[str, int]) -> list[str]:
    """The classes with most boxes, with bars."""
    ordered = sorted(counts.items(), key=lambda item: -item[1])
    shown = ordered[:_BARS]
    width = max((len(name) for name, _ in shown), default=0)
    most = max(counts.values(), default=0) or 1
    lines = [
        f"    {name:{width}} {count:8} {'#' * round(40 * count / most)}" for name, count in shown
    ]
    rest = len(ordered) - len(shown)
    return [*lines, f"    ... and {rest} more"] if rest > 0 else lines
