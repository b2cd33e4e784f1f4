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
        dt_ids = [inputs.dts[index]["id"] for index in self.detection.tolist()]
        scores = [inputs.dts[index]["score"] for index in self.detection.tolist()]
        gt_ids = [inputs.gts[index]["id"] for index in self.truth.tolist()]
        for cell, *ends in zip(filled.tolist(), *sides, strict=True):
            found, wanted = slice(*ends[:2]), slice(*ends[2:])
            yield (
                cell,
                {
                    "dtIds": dt_ids[found],
                    "gtIds": gt_ids[wanted],
                    "dtMatches": self.dt_matches[:, found],
                    "gtMatches": self.gt_matches[:, wanted],
                    "dtScores": scores[found],
                    "gtIgnore": self.gt_ignore[wanted] if ends[2] < ends[3] else np.array([]),
                    "dtIgnore": self.dt_ignore[:, found],
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


def accumulate_cells(
    records: Sequence[Record | None], p: Any, evaluated: Any
) -> tuple[Floats, Floats, Floats]:
    """Curves from the records of cells (pycocotools, `COCOeval.accumulate`).

    Args:
        records: by category, area range, image, of the evaluation.
        p: parameters of the curves, whose `catIds` are [-1] if categories are not told apart.
        evaluated: parameters of the evaluation.

    Returns:
        Precision `[T, R, K, A, L]`, recall `[T, K, A, L]` and scores `[T, R, K, A, L]` for L limits
        on detections; -1 without truths.

    Raises:
        ValueError: a limit below 1.
    """
    if min(p.maxDets) < 1:
        raise ValueError("limits must be above 0")
    ranges = [tuple(each) for each in evaluated.areaRng]
    categories = evaluated.catIds if evaluated.useCats else [-1]
    chosen = (
        _among(p.catIds, categories),
        _among([tuple(each) for each in p.areaRng], ranges),
        _among(p.maxDets, evaluated.maxDets),
    )
    images, num_images = _among(p.imgIds, evaluated.imgIds), len(evaluated.imgIds)
    shape = (len(p.catIds), len(p.areaRng), len(p.maxDets))
    recall = np.full((len(p.iouThrs), *shape), -1.0)
    precision = np.full((len(p.iouThrs), len(p.recThrs), *shape), -1.0)
    scores = precision.copy()
    for k, category in enumerate(chosen[0]):
        for a, area_range in enumerate(chosen[1]):
            first = (category * len(ranges) + area_range) * num_images
            cells = [cell for i in images if (cell := records[first + i]) is not None]
            for m, curves in enumerate(_draw(cells, [p.maxDets[i] for i in chosen[2]], p.recThrs)):
                precision[:, :, k, a, m], recall[:, k, a, m], scores[:, :, k, a, m] = curves
    return precision, recall, scores


def _among(values: Sequence[Any], allowed: Sequence[Any]) -> list[int]:
    """Places of the values that are allowed; pycocotools looks there whatever `allowed` holds."""
    known = set(allowed)
    return [place for place, value in enumerate(values) if value in known]


def _draw(
    cells: Sequence[Record], limits: Sequence[int], levels: Floats
) -> Iterator[tuple[Floats, Floats, Floats]]:
    """Precision `[T, R]`, highest recall `[T]` and scores `[T, R]` of a category for each limit."""
    num_truths = sum(int(np.count_nonzero(cell["gtIgnore"] == 0)) for cell in cells)
    if not num_truths:
        return
    confidence = np.concatenate([cell["dtScores"] for cell in cells])
    rank = np.concatenate([np.arange(len(cell["dtScores"])) for cell in cells])
    matched = np.concatenate([cell["dtMatches"] for cell in cells], axis=1) != 0  # [T, N]
    counted = ~np.concatenate([cell["dtIgnore"] for cell in cells], axis=1).astype(bool)
    order = np.argsort(-confidence, kind="stable")
    for limit in limits:
        kept = order[rank[order] < limit]
        right = np.cumsum(matched[:, kept] & counted[:, kept], axis=1).astype(float)
        wrong = np.cumsum(~matched[:, kept] & counted[:, kept], axis=1).astype(float)
        yield _read_levels(right, wrong, confidence[kept], num_truths, levels)


def _read_levels(
    right: Floats, wrong: Floats, confidence: Floats, num_truths: int, levels: Floats
) -> tuple[Floats, Floats, Floats]:
    """Precision, recall and scores from counts so far, `[T, N]`, best first."""
    precision, scores = np.zeros((2, len(right), len(levels)))
    if not len(confidence):
        return precision, np.zeros(len(right)), scores
    recall = right / num_truths
    heights = right / (wrong + right + np.spacing(1))
    heights = np.maximum.accumulate(heights[:, ::-1], axis=1)[:, ::-1]
    for t, reached in enumerate(recall):
        first = np.searchsorted(reached, levels, side="left")
        # from the first level on that is not reached, pycocotools leaves all at 0
        first = first[: np.argmax(np.append(first, len(reached)) == len(reached))]
        precision[t, : len(first)], scores[t, : len(first)] = heights[t, first], confidence[first]
    return precision, recall[:, -1], scores
