"""The records that pycocotools keeps of every cell, one image and category, in `COCOeval.evalImgs`.

M truths, N detections within the limit, T thresholds, K categories, A area ranges, I images.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from detkit.evaluation.inputs import Bools, CocoSettings, FlatDetections, FlatTruths, Floats, Ints
from detkit.evaluation.matching import run_lengths, run_starts, stable_argsort
from detkit.evaluation.outcomes import NONE, find_outcomes

Record = dict[str, Any]


@dataclass(frozen=True, slots=True, eq=False)
class Inputs:
    """What was evaluated.

    Attributes:
        truths: of the images and categories that were asked for.
        gts: records of these.
        detections: likewise.
        dts: records of these.
        params: of pycocotools.
        settings: the same.
    """

    truths: FlatTruths
    gts: Sequence[Record]
    detections: FlatDetections
    dts: Sequence[Record]
    params: Any
    settings: CocoSettings


def evaluate_cells(inputs: Inputs) -> list[Record | None]:
    """What `COCOeval.evaluateImg` gives, by category, area range, image, `[K * A * I]`.

    Cells without truths and detections are None.
    """
    params = inputs.params
    categories = params.catIds if params.useCats else [-1]
    num_images, num_ranges = len(params.imgIds), len(params.areaRng)
    records: list[Record | None] = [None] * (len(categories) * num_ranges * num_images)
    rows = _rows(inputs, len(categories))
    for number, area_range in enumerate(params.areaRng):
        for cell, fields in _judge(inputs, rows, number, len(categories)).cells(inputs):
            category, image = divmod(cell, num_images)
            records[(category * num_ranges + number) * num_images + image] = {
                "image_id": params.imgIds[image],
                "category_id": categories[category],
                "aRng": area_range,
                "maxDet": params.maxDets[-1],
                **fields,
            }
    return records


@dataclass(frozen=True, slots=True, eq=False)
class _Rows:
    """What the rows of `find_outcomes` are.

    Attributes:
        truth: `[M]` index of the truth.
        truth_cell: `[M]` category * I + image.
        detection: `[N]` index of the detection.
        cell: `[N]` category * I + image.
    """

    truth: Ints
    truth_cell: Ints
    detection: Ints
    cell: Ints


def _rows(inputs: Inputs, num_categories: int) -> _Rows:
    truths, found, num_images = inputs.truths, inputs.detections, len(inputs.params.imgIds)
    truth = stable_argsort(truths.image * num_categories + truths.category)
    truth_cell = (truths.category * num_images + truths.image)[truth]
    order = np.lexsort((found.image, -found.scores, found.category))
    cell = (found.category * num_images + found.image)[order]
    by_cell = stable_argsort(cell)
    first = run_starts(cell[by_cell])
    rank = np.empty(len(order), np.int64)
    rank[by_cell] = np.arange(len(order)) - np.repeat(first, run_lengths(first, len(order)))
    kept = rank < inputs.settings.max_dets[-1]
    return _Rows(truth, truth_cell, order[kept], cell[kept])


@dataclass(frozen=True, slots=True, eq=False)
class _Judged:
    """Matches in one area range; truths and detections stand cell by cell.

    Attributes:
        truth: `[M]` index of the truth; in a cell those that count come first.
        truth_cell: `[M]` category * I + image.
        gt_matches: `[T, M]` id of the detection that took it, 0 for none.
        gt_ignore: `[M]` it does not count.
        detection: `[N]` index of the detection; in a cell best first.
        cell: `[N]` category * I + image.
        dt_matches: `[T, N]` id of the truth that it took, 0 for none.
        dt_ignore: `[T, N]` it does not count.
    """

    truth: Ints
    truth_cell: Ints
    gt_matches: Floats
    gt_ignore: Ints
    detection: Ints
    cell: Ints
    dt_matches: Floats
    dt_ignore: Bools

    def cells(self, inputs: Inputs) -> Iterator[tuple[int, Record]]:
        """The cells that hold anything, with what pycocotools notes of them."""
        filled = np.union1d(self.cell, self.truth_cell)
        sides = [
            np.searchsorted(cells, filled, side=side).tolist()
            for cells in (self.cell, self.truth_cell)
            for side in ("left", "right")
        ]
        detection, truth = self.detection.tolist(), self.truth.tolist()
        for cell, *ends in zip(filled.tolist(), *sides, strict=True):
            found, wanted = slice(*ends[:2]), slice(*ends[2:])
            dts = [inputs.dts[index] for index in detection[found]]
            gts = [inputs.gts[index] for index in truth[wanted]]
            yield (
                cell,
                {
                    "dtIds": [record["id"] for record in dts],
                    "gtIds": [record["id"] for record in gts],
                    "dtMatches": self.dt_matches[:, found].copy(),
                    "gtMatches": self.gt_matches[:, wanted].copy(),
                    "dtScores": [record["score"] for record in dts],
                    "gtIgnore": self.gt_ignore[wanted].copy() if gts else np.array([]),
                    "dtIgnore": self.dt_ignore[:, found].copy(),
                },
            )


def _judge(inputs: Inputs, rows: _Rows, number: int, num_categories: int) -> _Judged:
    """Match within the area range of this number."""
    outcomes = find_outcomes(
        inputs.truths,
        inputs.detections,
        num_categories=num_categories,
        iou_thresholds=inputs.settings.iou_thresholds,
        area_range=list(inputs.settings.area_ranges.values())[number],
        limit=inputs.settings.max_dets[-1],
    )
    by_cell = stable_argsort(rows.cell)
    by_truth_cell = np.lexsort((~outcomes.counts, rows.truth_cell))
    gt_ids, dt_ids = _ids(inputs.gts)[rows.truth], _ids(inputs.dts)[rows.detection]
    dt_matches = np.append(gt_ids, 0.0)[outcomes.truth_of]
    gt_matches = np.zeros((len(dt_matches), len(gt_ids)))
    for taker, taken in zip(gt_matches, outcomes.truth_of[:, by_cell], strict=True):
        took = np.flatnonzero(taken != NONE)
        taker[taken[took]] = dt_ids[by_cell][took]  # of several that took a crowd, the last
    area = inputs.detections.boxes[rows.detection]
    low, high = list(inputs.settings.area_ranges.values())[number]
    area = area[:, 2] * area[:, 3]
    # a match with annotation id 0 is none, so that the area decides again
    ignore = outcomes.ignored | ((dt_matches == 0) & ((area < low) | (area > high)))
    return _Judged(
        rows.truth[by_truth_cell],
        rows.truth_cell[by_truth_cell],
        gt_matches[:, by_truth_cell],
        (~outcomes.counts[by_truth_cell]).astype(np.int64),
        rows.detection[by_cell],
        rows.cell[by_cell],
        dt_matches[:, by_cell],
        ignore[:, by_cell],
    )


def _ids(records: Sequence[Record]) -> Floats:
    return np.array([record["id"] for record in records], np.float64)
