"""The LVIS metric: average precision where no image is annotated for all categories.

Gupta et al., "LVIS: A Dataset for Large Vocabulary Instance Segmentation", CVPR 2019, section 3.1
(federated data sets), with the numbers of lvis 0.5.3, the package of its authors. An image tells of
the categories of its truths and of those that it is known not to hold; detections of others are
left out. Of some of its categories not every object is annotated: there, what is found beyond the
truths is neither right nor wrong. The 300 best detections of an image count, over all categories;
what has no area is left out, and there are no crowds.

I images, K categories, M truths, N detections, T thresholds, R recall levels, A area ranges.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from detkit.evaluation.accumulation import evaluate_arrays
from detkit.evaluation.coco_json import load_json, read_detections, read_truths
from detkit.evaluation.columns import describe
from detkit.evaluation.inputs import (
    Bools,
    CocoSettings,
    CocoTruths,
    FlatDetections,
    FlatTruths,
    Floats,
    Ints,
    index_of,
)
from detkit.evaluation.matching import run_lengths, run_starts, stable_argsort
from detkit.evaluation.tables import plain

FREQUENCIES = ("r", "c", "f")  # of a category in training: rare, common, frequent
MAX_DETS = 300
EVERYWHERE = np.array([-1e100, -1e100, 2e100, 2e100])  # a box xywh


@dataclass(frozen=True, slots=True)
class Federation:
    """What the images of a federated data set tell of.

    Attributes:
        absent: `[n, 2]` (image, category) indices: known not to be there.
        not_exhaustive: `[n, 2]` (image, category) indices: not every object is annotated.
        frequency: of each category "r", "c" or "f", `[K]`.
    """

    absent: Ints
    not_exhaustive: Ints
    frequency: tuple[str, ...]


@dataclass(frozen=True)
class LvisClass:
    """The numbers of one class; -1 where there is nothing to average.

    Attributes:
        category_id: as in the ground truth.
        name: of the class.
        frequency: "r", "c" or "f".
        AP: mean over the thresholds.
        AR: mean over the thresholds of the highest recall.
        truths: that count.
    """

    category_id: int
    name: str
    frequency: str
    AP: float
    AR: float
    truths: int


@dataclass(frozen=True, eq=False)
class LvisResult:
    """Result of the LVIS metric.

    Attributes:
        precision: `[T, R, K, A]` highest precision at this recall or more.
        recall: `[T, K, A]` highest recall. Both are -1 where a category has no truth in the range.
        num_truths: `[A, K]`.
        category_ids: sorted.
        class_names: in the order of the ids.
        frequency: of each category, in the order of the ids.
        settings: thresholds and area ranges; the limit is that of an image.
    """

    precision: Floats = field(repr=False)
    recall: Floats = field(repr=False)
    num_truths: Ints = field(repr=False)
    category_ids: tuple[int, ...]
    class_names: tuple[str, ...]
    frequency: tuple[str, ...]
    settings: CocoSettings

    @cached_property
    def stats(self) -> dict[str, float]:
        """The 13 numbers by the names of the lvis package; -1 where there is nothing to average."""
        thresholds, (limit,) = self.settings.iou_thresholds, self.settings.max_dets
        whole = self.precision[..., 0]
        numbers = {
            "AP": _mean_of_known(whole),
            "AP50": _mean_of_known(whole[thresholds == 0.5]),
            "AP75": _mean_of_known(whole[thresholds == 0.75]),
        }
        sizes = list(zip("sml", (1, 2, 3), strict=True))
        numbers |= {f"AP{size}": _mean_of_known(self.precision[..., i]) for size, i in sizes}
        for group in FREQUENCIES:
            own = np.flatnonzero(np.array(self.frequency) == group)
            numbers[f"AP{group}"] = _mean_of_known(whole[:, :, own])
        numbers[f"AR@{limit}"] = _mean_of_known(self.recall[..., 0])
        return numbers | {f"AR{s}@{limit}": _mean_of_known(self.recall[..., i]) for s, i in sizes}

    def summary(self) -> str:
        """The 13 numbers as text, one line each."""
        return plain([(name, _cell(value)) for name, value in self.stats.items()])

    def per_class(self) -> list[LvisClass]:
        """The numbers of each class, in the order of `category_ids`."""
        columns = zip(self.category_ids, self.class_names, self.frequency, strict=True)
        return [
            LvisClass(
                category_id,
                name,
                frequency,
                AP=_mean_of_known(self.precision[:, :, index, 0]),
                AR=_mean_of_known(self.recall[:, index, 0]),
                truths=int(self.num_truths[0, index]),
            )
            for index, (category_id, name, frequency) in enumerate(columns)
        ]

    def table(self) -> str:
        """The classes as text, one line each."""
        rows = [("class", "frequency", "truths", "AP", "AR")]
        rows += [
            (row.name, row.frequency, str(row.truths), _cell(row.AP), _cell(row.AR))
            for row in self.per_class()
        ]
        return plain(rows, names=2)

    def as_dict(self) -> dict[str, Any]:
        """The 13 numbers by name, and the classes under `per_class`, ready for JSON."""
        return {**self.stats, "per_class": [asdict(row) for row in self.per_class()]}


def evaluate_lvis_files(
    gt_json: str | Path | Mapping[str, Any],
    dt_json: str | Path | Sequence[Mapping[str, Any]],
    *,
    max_dets: int = MAX_DETS,
) -> LvisResult:
    """The LVIS metric of boxes, from files or what was read from them.

    As in `evaluate_files`, an annotation with id 0 counts like any other.

    Args:
        gt_json: ground truth: COCO's, with `neg_category_ids` and `not_exhaustive_category_ids` of
            the images and `frequency` of the categories. A truth whose `ignore` is 1 does not
            count, and a detection that takes it is neither right nor wrong.
        dt_json: detections: a list of image_id, category_id, bbox (xywh) and score.
        max_dets: how many detections of an image count, the best ones of all categories.

    Raises:
        ValueError: malformed JSON, a missing or wrong field (the file, the index and the field), or
            a wrong limit.
        OSError: a file cannot be read.
    """
    data, name = (gt_json, "ground truth") if isinstance(gt_json, Mapping) else load_json(gt_json)
    if not isinstance(data, Mapping):
        raise ValueError(f"{name}: ground truth must be a JSON object, got {describe(data)}")
    truths = read_truths(_ignored_as_crowd(data, name), name=name)
    federation = read_federation(data, truths)
    detections = read_detections(dt_json, truths, keep_unlisted=True)
    return evaluate_lvis(truths, detections, federation, max_dets=max_dets)


def read_federation(data: Mapping[str, Any], truths: CocoTruths) -> Federation:
    """What the records of images and categories say.

    Args:
        data: ground truth.
        truths: read from it.

    Raises:
        ValueError: a field is missing or wrong.
    """
    frequency: dict[int, str] = {}
    for index, record in enumerate(data["categories"]):
        frequency[int(record["id"])] = str(record.get("frequency"))
        if record.get("frequency") not in FREQUENCIES:
            raise ValueError(
                f"{truths.source}: categories[{index}]: 'frequency' must be one of "
                f"{', '.join(FREQUENCIES)}, got {describe(record.get('frequency'))}"
            )
    return Federation(
        _read_cells(data["images"], "neg_category_ids", truths),
        _read_cells(data["images"], "not_exhaustive_category_ids", truths),
        tuple(frequency[category] for category in truths.category_ids.tolist()),
    )


def _read_cells(images: Sequence[Mapping[str, Any]], key: str, truths: CocoTruths) -> Ints:
    """(image, category) indices of the listed categories under a key of the images, `[n, 2]`."""
    ids: dict[Any, list[int]] = {}
    for index, record in enumerate(images):
        values = record.get(key)
        if not isinstance(values, list) or not all(type(value) is int for value in values):
            raise ValueError(
                f"{truths.source}: images[{index}]: {key!r} must be a list of category ids, "
                f"got {describe(values)}"
            )
        ids[record["id"]] = values
    place = {image_id: index for index, image_id in enumerate(truths.image_ids.tolist())}
    image = np.repeat([place[image_id] for image_id in ids], [len(v) for v in ids.values()])
    flat = np.array([category for values in ids.values() for category in values], np.int64)
    category, listed = index_of(truths.category_ids, flat)
    return np.stack([image.astype(np.int64), category], axis=1)[listed]


def _ignored_as_crowd(data: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """The ground truth with those annotations alone marked as crowds that are to be ignored."""
    annotations = data.get("annotations")
    if not isinstance(annotations, list):
        return data  # what is wrong is named by the one who reads it
    records = []
    for index, record in enumerate(annotations):
        ignore = record.get("ignore", 0) if isinstance(record, Mapping) else 0
        if ignore not in (0, 1):
            raise ValueError(
                f"{name}: annotations[{index}]: 'ignore' must be 0 or 1, got {describe(ignore)}"
            )
        records.append({**record, "iscrowd": ignore} if isinstance(record, Mapping) else record)
    return {**data, "annotations": records}


def evaluate_lvis(
    truths: CocoTruths,
    detections: FlatDetections,
    federation: Federation,
    *,
    max_dets: int = MAX_DETS,
) -> LvisResult:
    """The LVIS metric of flat arrays.

    Args:
        truths: those marked as `crowd` are to be ignored.
        detections: in any order; those with a negative category are of none that is listed.
        federation: what the images tell of.
        max_dets: how many detections of an image count.

    Raises:
        ValueError: the limit is no positive number.
    """
    settings = CocoSettings.of(max_dets=(max_dets,))
    num_categories = len(truths.category_ids)
    flat = truths.truths[truths.truths.area > 0]
    kept = _best_of_images(detections, max_dets) & (detections.category >= 0)
    kept &= detections.boxes[:, 2] * detections.boxes[:, 3] > 0
    found = detections[np.flatnonzero(kept)]
    told = np.concatenate([federation.absent, np.stack([flat.image, flat.category], axis=1)])
    inside = np.isin(
        found.image * num_categories + found.category, told[:, 0] * num_categories + told[:, 1]
    )
    arrays = evaluate_arrays(
        _with_crowds(flat, federation.not_exhaustive),
        found[np.flatnonzero(inside)],
        num_categories=num_categories,
        settings=settings,
    )
    return LvisResult(
        arrays.precision[..., 0],
        arrays.recall[..., 0],
        arrays.num_truths,
        tuple(truths.category_ids.tolist()),
        truths.class_names,
        federation.frequency,
        settings,
    )


def _best_of_images(detections: FlatDetections, limit: int) -> Bools:
    """Which are among the best of their image, `[N]`; equal scores rank in the order given."""
    order = np.argsort(-detections.scores, kind="stable")
    order = order[stable_argsort(detections.image[order])]
    first = run_starts(detections.image[order])
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order)) - np.repeat(first, run_lengths(first, len(order)))
    return rank < limit


def _with_crowds(truths: FlatTruths, cells: Ints) -> FlatTruths:
    """A crowd over everything in each cell: it takes what is found beyond the truths there.

    A crowd is taken only where no truth that counts can be, and then the detection is ignored.
    Truths that are to be ignored become ones out of all ranges, which are taken only once.

    Args:
        truths: M, with crowds for those to be ignored.
        cells: `[n, 2]` (image, category) indices.
    """
    count = len(cells)
    return FlatTruths.of(
        np.concatenate([truths.image, cells[:, 0]]),
        np.concatenate([truths.category, cells[:, 1]]),
        np.concatenate([truths.boxes, np.tile(EVERYWHERE, (count, 1))]),
        area=np.concatenate([np.where(truths.crowd, -1.0, truths.area), np.ones(count)]),
        crowd=np.arange(len(truths) + count) >= len(truths),
    )


def _mean_of_known(values: Floats) -> float:
    known = values[values > -1]
    return float(np.mean(known)) if len(known) else -1.0


def _cell(value: float) -> str:
    return f"{value:.3f}" if value > -1 else "-"
