"""AP of parts of a data set: objects of some size or shape, images of some kind.

Objects are sliced by a measure of theirs, as COCO does it for small, medium and large ones: truths
outside of the range need not be found, and detections outside that match nothing are not held
against the detector. COCO measures size by the area, that of the mask where a truth has one. For
the aspect ratio, height / width of the box takes the place of the area, of truths and detections
alike; everything else is as there.

Ranges here begin with their lower end and end before their upper one, so that each truth lies in
one slice. (COCO's include both ends: an object of 32 x 32 pixels is small and medium.)

Images are sliced into groups. The numbers of a group are those of a file of these images alone.

Every number is a mean over the categories that have truths in the slice, and slices differ in which
these are.

I images, N detections, M truths, K categories, S slices.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from detkit.evaluation.accumulation import CurveArrays, accumulate, evaluate_arrays
from detkit.evaluation.inputs import (
    CocoSettings,
    CocoTruths,
    FlatDetections,
    FlatTruths,
    Floats,
    Ints,
)
from detkit.evaluation.matching import candidates_for, rank_detections, stable_argsort
from detkit.evaluation.tables import known, number, plain
from detkit.registry import suggest

Record = Mapping[str, Any]  # of an image, as in the file

SIDES = tuple(float(2 ** (half / 2)) for half in range(6, 19))  # 8, 11.3, 16 .. 512 pixels
ASPECT_RATIOS = (0.25, 0.5, 0.8, 1.25, 2.0, 4.0)
OBJECTS = (1, 2, 4, 8, 16, 32)
MOST_VALUES = 50  # of an attribute
MOST_NUMBERS = 12  # of a numeric attribute; more are grouped


@dataclass(frozen=True)
class Slice:
    """The numbers of one part; NaN where it has no truths.

    Attributes:
        label: which part.
        images: those of the group; those with a truth, where objects are sliced.
        truths: that count.
        detections: in the images of the group; in the range, where objects are sliced.
        AP: mean over the overlaps and categories.
        AP50: at an overlap of 0.5; NaN too if that is not among the overlaps.
        AR: mean of the highest recall.
    """

    label: str
    images: int
    truths: int
    detections: int
    AP: float
    AP50: float
    AR: float


@dataclass(frozen=True)
class Slices:
    """The parts of a data set.

    Attributes:
        by: what tells them apart.
        slices: S of them.
    """

    by: str
    slices: tuple[Slice, ...]

    def table(self) -> str:
        """A line for each part."""
        rows: list[tuple[str, ...]] = [
            (self.by, "images", "truths", "detections", "AP", "AP50", "AR")
        ]
        rows += [
            (
                part.label,
                str(part.images),
                str(part.truths),
                str(part.detections),
                *(number(value) for value in (part.AP, part.AP50, part.AR)),
            )
            for part in self.slices
        ]
        return plain(rows)

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON; None where nothing is known."""
        parts = [
            {**asdict(part), "AP": known(part.AP), "AP50": known(part.AP50), "AR": known(part.AR)}
            for part in self.slices
        ]
        return {"by": self.by, "slices": parts}


def slice_by_size(
    truths: CocoTruths,
    detections: FlatDetections,
    settings: CocoSettings,
    *,
    edges: Sequence[float] = SIDES,
) -> Slices:
    """Objects by the square root of their area, by default in ranges that double the area.

    Args:
        truths: what was to be found.
        detections: what was found.
        settings: overlaps and limits; its ranges play no part.
        edges: between the slices, in pixels, ascending.

    Raises:
        ValueError: edges that do not ascend.
    """
    spans = [(low**2, high**2) for low, high in _spans(edges)]
    settings = _settings_for(settings, spans)
    flat, num_categories = truths.truths, len(truths.category_ids)
    curves = evaluate_arrays(flat, detections, num_categories=num_categories, settings=settings)
    area = detections.boxes[:, 2] * detections.boxes[:, 3]
    return Slices("size in pixels", _of_objects(_labels(edges), flat, area, curves, settings))


def slice_by_aspect_ratio(
    truths: CocoTruths,
    detections: FlatDetections,
    settings: CocoSettings,
    *,
    edges: Sequence[float] = ASPECT_RATIOS,
) -> Slices:
    """Objects by the height of their box over its width: below 1 wide, above 1 tall.

    Arguments and errors are those of `slice_by_size`, with edges between ratios.
    """
    settings = _settings_for(settings, _spans(edges))
    num_categories = len(truths.category_ids)
    flat = replace(truths.truths, area=_aspect_ratio(truths.truths.boxes))
    flat = flat[stable_argsort(flat.image * num_categories + flat.category)]
    ranked = rank_detections(detections)
    candidates = candidates_for(ranked, flat, num_categories=num_categories, settings=settings)
    # the overlaps are known by now, so that boxes may take their ratio for an area
    boxes = np.ones((len(detections), 4))
    boxes[:, 3] = _aspect_ratio(ranked.detections.boxes)
    ranked = replace(ranked, detections=replace(ranked.detections, boxes=boxes))
    curves = accumulate(ranked, flat, candidates, num_categories=num_categories, settings=settings)
    return Slices(
        "height / width", _of_objects(_labels(edges), flat, boxes[:, 3], curves, settings)
    )


def slice_by_density(
    truths: CocoTruths,
    detections: FlatDetections,
    settings: CocoSettings,
    *,
    edges: Sequence[int] = OBJECTS,
) -> Slices:
    """Images by how many objects they hold, crowds not counted.

    Args:
        truths: what was to be found.
        detections: what was found.
        settings: overlaps, limits and the area range "all", or the first without it.
        edges: least number of objects in each group but the first, ascending.

    Raises:
        ValueError: edges that do not ascend.
    """
    _check_edges(edges)
    flat = truths.truths
    objects = np.bincount(flat.image[~flat.crowd], minlength=len(truths.image_ids))
    ends = [0, *(int(edge) for edge in edges)]
    labels = [
        str(low) if high == low + 1 else f"{low}-{high - 1}"
        for low, high in itertools.pairwise(ends)
    ]
    labels.append(f"{ends[-1]} or more")
    group = np.searchsorted(edges, objects, side="right")
    return Slices("objects", _of_images(labels, group, truths, detections, settings))


def slice_by_attribute(
    truths: CocoTruths,
    detections: FlatDetections,
    settings: CocoSettings,
    *,
    records: Sequence[Record] | None,
    name: str,
) -> Slices:
    """Images by the value that their records in the file have under a name ("weather": "rain").

    Numbers of which there are many different ones make four groups of about equal size. Images
    without a value make a group of their own, the last.

    Args:
        truths: what was to be found.
        detections: what was found.
        settings: overlaps, limits and the area range "all", or the first without it.
        records: `[I]` of the images, in the order of their ids; None where there are none.
        name: of the attribute.

    Raises:
        ValueError: there are no records, none has the attribute, or it has too many values.
    """
    if records is None:
        raise ValueError(
            f"{truths.source} came as arrays, which say nothing of images; attributes such as "
            f"{name!r} are in the 'images' of a COCO file: evaluate one"
        )
    if not any(name in record for record in records):
        known_names = sorted({key for record in records for key in record})
        raise ValueError(
            f"no image of {truths.source} has an attribute {name!r}; {suggest(name, known_names)}"
        )
    labels, group = _group([record.get(name) for record in records])
    if len(labels) > MOST_VALUES:
        raise ValueError(
            f"attribute {name!r} has {len(labels)} different values; at most {MOST_VALUES} can be "
            "compared: write a coarser one into the file"
        )
    return Slices(name, _of_images(labels, group, truths, detections, settings))


def _check_edges(edges: Sequence[float]) -> None:
    steps = np.diff(np.asarray(edges, np.float64), prepend=0.0)
    if not len(edges) or not (steps > 0).all():
        raise ValueError(f"edges between slices must be above 0 and ascend, got {list(edges)}")


def _spans(edges: Sequence[float]) -> list[tuple[float, float]]:
    """From each edge to the next, from 0 to infinity."""
    _check_edges(edges)
    ends = [0.0, *edges, math.inf]
    return list(itertools.pairwise(ends))


def _labels(edges: Sequence[float]) -> list[str]:
    """What the spans are called."""
    names = [f"{edge:.4g}" for edge in edges]
    between = [f"{low} to {high}" for low, high in itertools.pairwise(names)]
    return [f"below {names[0]}", *between, f"{names[-1]} or more"]


def _settings_for(settings: CocoSettings, spans: Sequence[tuple[float, float]]) -> CocoSettings:
    """The largest limit, and the spans without their upper ends as ranges of the area."""
    ranges = {
        str(index): (low, math.nextafter(high, low) if high < math.inf else high)
        for index, (low, high) in enumerate(spans)
    }
    return replace(settings, area_ranges=ranges, max_dets=settings.max_dets[-1:])


def _aspect_ratio(boxes: Floats) -> Floats:
    """Height / width, `[n]`; infinite without width, 1 for a point."""
    width, height = boxes[:, 2], boxes[:, 3]
    ratio = np.where(height > 0, np.inf, 1.0)
    return np.divide(height, width, out=ratio, where=width > 0)


def _of_objects(
    labels: Sequence[str],
    flat: FlatTruths,
    measure: Floats,
    curves: CurveArrays,
    settings: CocoSettings,
) -> tuple[Slice, ...]:
    """A slice for each area range.

    Args:
        labels: `[S]`.
        flat: truths, with the measure for their area.
        measure: `[N]` of the detections.
        curves: of the ranges.
        settings: with the ranges.
    """
    slices = []
    for index, (label, (low, high)) in enumerate(
        zip(labels, settings.area_ranges.values(), strict=True)
    ):
        inside = (flat.area >= low) & (flat.area <= high) & ~flat.crowd
        slices.append(
            Slice(
                label,
                images=len(np.unique(flat.image[inside])),
                truths=int(inside.sum()),
                detections=int(((measure >= low) & (measure <= high)).sum()),
                **_numbers(curves, index, settings),
            )
        )
    return tuple(slices)


def _of_images(
    labels: Sequence[str],
    group: Ints,
    truths: CocoTruths,
    detections: FlatDetections,
    settings: CocoSettings,
) -> tuple[Slice, ...]:
    """A slice for each group of images; `group` is `[I]`, an index into the labels."""
    ranges = settings.area_ranges
    everything = {"all": ranges.get("all", next(iter(ranges.values())))}
    settings = replace(settings, area_ranges=everything, max_dets=settings.max_dets[-1:])
    group_of_truth, group_of_detection = group[truths.truths.image], group[detections.image]
    slices = []
    for index, label in enumerate(labels):
        found = detections[np.flatnonzero(group_of_detection == index)]
        curves = evaluate_arrays(
            truths.truths[group_of_truth == index],
            found,
            num_categories=len(truths.category_ids),
            settings=settings,
        )
        slices.append(
            Slice(
                label,
                images=int((group == index).sum()),
                truths=int(curves.num_truths.sum()),
                detections=len(found),
                **_numbers(curves, 0, settings),
            )
        )
    return tuple(slices)


def _numbers(curves: CurveArrays, index: int, settings: CocoSettings) -> dict[str, float]:
    """AP, AP50 and AR of an area range."""
    precision, recall = curves.precision[:, :, :, index], curves.recall[:, :, index]
    at_half = settings.iou_thresholds == 0.5
    values = {"AP": precision, "AP50": precision[at_half], "AR": recall}
    return {name: _mean_of_known(value) for name, value in values.items()}


def _mean_of_known(values: Floats) -> float:
    """Mean of what is not -1, in the order of the axes, as the last bit depends on it."""
    is_known = values[values > -1]
    return float(np.mean(is_known)) if len(is_known) else math.nan


def _group(values: Sequence[Any]) -> tuple[list[str], Ints]:
    """Names of the groups, and the group of each value."""
    given = [value for value in values if not _is_none(value)]
    if given and all(isinstance(value, int | float) for value in given):
        if len(set(given)) > MOST_NUMBERS:
            return _group_numbers(values)
        given = sorted(given)
    else:
        given = sorted(given, key=_label)
    labels = list(dict.fromkeys(map(_label, given)))
    place = {label: index for index, label in enumerate(labels)}
    group = [len(labels) if _is_none(value) else place[_label(value)] for value in values]
    return _with_none(labels, np.array(group, np.int64))


def _group_numbers(values: Sequence[Any]) -> tuple[list[str], Ints]:
    """Four groups of about equal size."""
    missing = np.array([_is_none(value) for value in values])
    numbers = np.array([0 if _is_none(value) else value for value in values], np.float64)
    edges = np.unique(np.quantile(numbers[~missing], [0.25, 0.5, 0.75]))
    labels = _labels(edges.tolist())
    group = np.searchsorted(edges, numbers, side="right")
    return _with_none(labels, np.where(missing, len(labels), group))


def _with_none(labels: list[str], group: Ints) -> tuple[list[str], Ints]:
    """With a group for images without a value, if there are any."""
    return ([*labels, "(none)"] if (group == len(labels)).any() else labels), group


def _is_none(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _label(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
