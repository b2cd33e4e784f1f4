"""The Pascal VOC metric: average precision of each class at one overlap.

Everingham et al., "The Pascal Visual Object Classes (VOC) Challenge", IJCV 2010, section 4.2, and
`VOCevaldet.m` and `VOCap.m` of the development kits of 2007 and 2012. Unlike in the COCO metric, a
detection cannot turn to its second-best truth: it looks at the one of largest overlap, and if a
better detection took that, it is wrong.

N detections, M truths, K categories, P pairs of a detection and a truth.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from detkit.evaluation.coco_json import load_json, read_detections, read_truths
from detkit.evaluation.columns import describe
from detkit.evaluation.inputs import Bools, CocoTruths, FlatDetections, FlatTruths, Floats, Ints
from detkit.evaluation.matching import (
    RankedDetections,
    find_candidates,
    run_lengths,
    run_starts,
    stable_argsort,
)
from detkit.evaluation.tables import known, number, plain

INTERPOLATIONS = ("area", "11-point")
PIXEL = np.array([0.0, 0.0, 1.0, 1.0])  # of a box xywh


@dataclass(frozen=True)
class VocSettings:
    """What counts, and how a curve becomes a number.

    Attributes:
        iou_threshold: least overlap of a match, above 0, at most 1.
        interpolation: "area" under the curve (VOC 2010 and later), or "11-point": the mean of the
            precision at the recalls 0, 0.1 .. 1 (until VOC 2009).
        legacy_pixels: corners are whole pixels that belong to the box, so that it is one pixel
            wider and higher than their difference, as in VOC's annotations and development kit.
    """

    iou_threshold: float = 0.5
    interpolation: str = "area"
    legacy_pixels: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.iou_threshold <= 1:
            raise ValueError(f"iou_threshold must lie in 0..1, above 0, got {self.iou_threshold}")
        if self.interpolation not in INTERPOLATIONS:
            raise ValueError(
                f"interpolation must be {' or '.join(INTERPOLATIONS)}, got {self.interpolation!r}"
            )


@dataclass(frozen=True, eq=False)
class VocClass:
    """The numbers of one class.

    Attributes:
        category_id: as in the ground truth.
        name: of the class.
        AP: average precision, NaN without truths.
        truths: that count (not difficult).
        recall: `[N]` of the detections so far, best first, NaN without truths; those that took a
            difficult truth are left out.
        precision: `[N]` of the detections so far.
        scores: `[N]`.
    """

    category_id: int
    name: str
    AP: float
    truths: int
    recall: Floats = field(repr=False)
    precision: Floats = field(repr=False)
    scores: Floats = field(repr=False)


@dataclass(frozen=True, eq=False)
class VocResult:
    """Result of the VOC metric.

    Attributes:
        classes: in the order of the category ids.
        settings: what counted.
    """

    classes: tuple[VocClass, ...]
    settings: VocSettings

    @property
    def mAP(self) -> float:
        """Mean over the classes that have truths, NaN if none has."""
        values = [each.AP for each in self.classes if each.truths]
        return float(np.mean(values)) if values else float("nan")

    def table(self) -> str:
        """AP of the classes and their mean."""
        settings = self.settings
        rule = ", pixels belong to boxes" if settings.legacy_pixels else ""
        head = f"VOC AP at IoU {settings.iou_threshold:.2f}, {settings.interpolation}{rule}"
        rows = [("class", "truths", "AP")]
        rows += [(each.name, str(each.truths), number(each.AP)) for each in self.classes]
        rows.append(("mAP", str(sum(each.truths for each in self.classes)), number(self.mAP)))
        return f"{head}\n{plain(rows)}"

    def as_dict(self) -> dict[str, Any]:
        """mAP, AP of the classes under `per_class`, and the settings, ready for JSON."""
        rows = [
            {
                "category_id": each.category_id,
                "name": each.name,
                "AP": known(each.AP),
                "truths": each.truths,
            }
            for each in self.classes
        ]
        return {"mAP": known(self.mAP), "per_class": rows, **asdict(self.settings)}


def evaluate_voc_files(
    gt_json: str | Path | Mapping[str, Any],
    dt_json: str | Path | Sequence[Mapping[str, Any]],
    settings: VocSettings | None = None,
) -> VocResult:
    """The VOC metric of COCO files, or of what was read from them.

    Args:
        gt_json: ground truth; an annotation whose `difficult` or `iscrowd` is 1 does not count, and
            a detection that takes it is neither right nor wrong.
        dt_json: detections: a list of image_id, category_id, bbox (xywh) and score.
        settings: default an overlap of 0.5 and the area under the curve.

    Raises:
        ValueError: malformed JSON, a missing or wrong field (the file, the index and the field).
        OSError: a file cannot be read.
    """
    truths = read_voc_truths(gt_json)
    return evaluate_voc(truths, read_detections(dt_json, truths), settings)


def read_voc_truths(gt_json: str | Path | Mapping[str, Any]) -> CocoTruths:
    """Ground truth in which crowds stand for what is difficult; see `evaluate_voc_files`."""
    data, name = (gt_json, "ground truth") if isinstance(gt_json, Mapping) else load_json(gt_json)
    return read_truths(_difficult_as_crowd(data, name), name=name)


def evaluate_voc(
    truths: CocoTruths, detections: FlatDetections, settings: VocSettings | None = None
) -> VocResult:
    """The VOC metric of flat arrays.

    Args:
        truths: those marked as `crowd` are the difficult ones.
        detections: in any order; equal scores rank in the order given.
        settings: default an overlap of 0.5 and the area under the curve.
    """
    settings = settings or VocSettings()
    ranked, flat = _rank(detections), truths.truths
    flat = flat[stable_argsort(flat.image * len(truths.category_ids) + flat.category)]
    right, ignored = _judge(ranked, flat, len(truths.category_ids), settings)
    counts = np.bincount(flat.category[~flat.crowd], minlength=len(truths.category_ids))
    judged = np.flatnonzero(~ignored)
    found, right = ranked.detections[judged], right[judged]
    ends = np.searchsorted(found.category, np.arange(len(truths.category_ids) + 1))
    classes = []
    for index, category_id in enumerate(truths.category_ids.tolist()):
        own = slice(ends[index], ends[index + 1])
        total = int(counts[index])
        recall, precision = _curve(right[own], total)
        value = _average(recall, precision, settings.interpolation) if total else float("nan")
        name, scores = truths.class_names[index], found.scores[own]
        classes.append(VocClass(category_id, name, value, total, recall, precision, scores))
    return VocResult(tuple(classes), settings)


def _difficult_as_crowd(data: Any, name: str) -> Mapping[str, Any]:
    """The ground truth with the difficult annotations marked as crowds."""
    if not isinstance(data, Mapping):
        raise ValueError(f"{name}: ground truth must be a JSON object, got {describe(data)}")
    annotations = data.get("annotations")
    if not isinstance(annotations, list):
        return data  # what is wrong is named by the one who reads it
    records = []
    for index, record in enumerate(annotations):
        difficult = record.get("difficult", 0) if isinstance(record, Mapping) else 0
        if difficult not in (0, 1):
            raise ValueError(
                f"{name}: annotations[{index}]: 'difficult' must be 0 or 1, got {difficult!r}"
            )
        records.append({**record, "iscrowd": 1} if difficult else record)
    return {**data, "annotations": records}


def _rank(detections: FlatDetections) -> RankedDetections:
    """By category, best first; equal scores in the order given, whatever their images."""
    order = np.argsort(-detections.scores, kind="stable")
    order = order[stable_argsort(detections.category[order])]
    ranked = detections[order]
    by_cell = stable_argsort(ranked.image)
    first = run_starts(ranked.image[by_cell], ranked.category[by_cell])
    rank = np.empty(len(ranked), np.int64)
    rank[by_cell] = np.arange(len(ranked)) - np.repeat(first, run_lengths(first, len(ranked)))
    return RankedDetections(ranked, rank, by_cell)


def _judge(
    ranked: RankedDetections, truths: FlatTruths, num_categories: int, settings: VocSettings
) -> tuple[Bools, Bools]:
    """Which detections are right, and which are neither right nor wrong, `[N]` each."""
    found = ranked.detections
    if settings.legacy_pixels:
        ranked = replace(ranked, detections=replace(found, boxes=found.boxes + PIXEL))
        truths = replace(truths, boxes=truths.boxes + PIXEL)
    pairs = find_candidates(
        ranked,
        replace(truths, crowd=np.zeros(len(truths), bool)),  # IoU also with the difficult ones
        num_categories=num_categories,
        lowest_iou=settings.iou_threshold,
        max_rank=len(found),
    )
    right, ignored = np.zeros(len(found), bool), np.zeros(len(found), bool)
    detection, truth = _best_of_each(pairs.detection, pairs.truth, pairs.iou)
    difficult = truths.crowd[truth]
    ignored[detection[difficult]] = True
    detection, truth = detection[~difficult], truth[~difficult]
    order = np.lexsort((detection, truth))  # the best detection of a truth takes it
    right[detection[order[run_starts(truth[order])]]] = True
    return right, ignored


def _best_of_each(detection: Ints, truth: Ints, iou: Floats) -> tuple[Ints, Ints]:
    """For each detection the truth of the largest overlap, of equal ones the first.

    Args:
        detection: `[P]`, pairs of one detection in a row.
        truth: `[P]`, in order within a detection.
        iou: `[P]`.
    """
    first = run_starts(detection)
    if not len(first):
        return detection, truth
    best = np.repeat(np.maximum.reduceat(iou, first), run_lengths(first, len(iou)))
    row = np.flatnonzero(iou == best)
    row = row[run_starts(detection[row])]
    return detection[row], truth[row]


def _curve(right: Bools, truths: int) -> tuple[Floats, Floats]:
    """Recall and precision of the detections so far, `[N]` each."""
    true = np.cumsum(right)
    recall = true / truths if truths else np.full(len(right), np.nan)
    return recall, true / np.arange(1, len(right) + 1)


def _average(recall: Floats, precision: Floats, interpolation: str) -> float:
    """Average of the highest precision at each recall or more (`VOCap.m`)."""
    highest = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
    if interpolation == "11-point":
        levels = np.arange(11) / 10
        return float(np.mean(highest[np.searchsorted(recall, levels)]))
    steps = np.diff(recall, prepend=0.0, append=1.0)
    return float(np.sum(steps * highest))
