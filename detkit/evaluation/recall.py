"""How many objects proposals find, whatever their class.

It is the recall of the COCO metric with all classes taken as one (pycocotools with `useCats=0`): of
the best proposals of an image, each finds at most one object, and each object counts once.

I images, P proposals and M truths of an image, T overlap thresholds, L limits on proposals.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from detkit.evaluation.accumulation import evaluate_arrays
from detkit.evaluation.inputs import AREA_RANGES, CocoSettings, FlatDetections, FlatTruths, Floats

LIMITS = (100, 300, 1000, 2000)


@dataclass(frozen=True, eq=False)
class ProposalRecall:
    """Recall of the best proposals of each image; -1 where there is no truth.

    Attributes:
        recall: `[T, L]`.
        iou_thresholds: `[T]` 0.50, 0.55 .. 0.95.
        limits: L numbers of proposals an image, ascending.
        truths: how many count (no crowds).
        proposals: mean number an image, of which the limits take the best.
    """

    recall: Floats
    iou_thresholds: Floats
    limits: tuple[int, ...]
    truths: int
    proposals: float

    def at(self, iou: float, limit: int) -> float:
        """Recall at one overlap with that many proposals."""
        (row,) = np.flatnonzero(np.isclose(self.iou_thresholds, iou))
        return float(self.recall[row, self.limits.index(limit)])

    def average(self, limit: int) -> float:
        """Mean over the overlaps 0.50 to 0.95 with that many proposals, COCO's AR."""
        return float(self.recall[:, self.limits.index(limit)].mean())

    def table(self) -> str:
        """A line for each limit."""
        lines = ["proposals  recall@0.5  recall@0.7  recall@0.5:0.95"]
        lines += [
            f"{limit:9d}  {self.at(0.5, limit):10.3f}  {self.at(0.7, limit):10.3f}  "
            f"{self.average(limit):15.3f}"
            for limit in self.limits
        ]
        return "\n".join(lines)


def proposal_recall(
    proposals: Sequence[np.ndarray],
    truths: Sequence[np.ndarray],
    *,
    crowd: Sequence[np.ndarray] | None = None,
    limits: Sequence[int] = LIMITS,
) -> ProposalRecall:
    """Compare proposals with truths, image by image.

    Args:
        proposals: of each image `[P, 4]` xyxy in pixels, best first.
        truths: of each image `[M, 4]` xyxy in pixels.
        crowd: of each image `[M]` bool: regions that need not be found; None has no such.
        limits: L numbers of proposals.

    Raises:
        ValueError: lists of different length, or a limit below 1.
    """
    if len(proposals) != len(truths) or (crowd is not None and len(crowd) != len(truths)):
        raise ValueError(
            f"proposals, truths and crowd must be of the same images, got {len(proposals)}, "
            f"{len(truths)} and {None if crowd is None else len(crowd)}"
        )
    settings = CocoSettings.of(None, {"all": AREA_RANGES["all"]}, limits)
    image, boxes, _ = _flatten(truths)
    crowds = None if crowd is None else np.concatenate([np.zeros(0, bool), *crowd])
    flat_truths = FlatTruths.of(image, np.zeros_like(image), boxes, crowd=crowds)
    image, boxes, place = _flatten(proposals)
    found = FlatDetections(image, np.zeros_like(image), boxes, -place.astype(np.float64))
    arrays = evaluate_arrays(flat_truths, found, num_categories=1, settings=settings)
    return ProposalRecall(
        recall=arrays.recall[:, 0, 0],
        iou_thresholds=settings.iou_thresholds,
        limits=settings.max_dets,
        truths=int(arrays.num_truths[0, 0]),
        proposals=len(found) / max(len(proposals), 1),
    )


def _flatten(boxes: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Image `[N]`, boxes xywh `[N, 4]` and place in its image `[N]` of every box."""
    counts = np.array([len(each) for each in boxes], np.int64)
    image = np.repeat(np.arange(len(boxes)), counts)
    place = np.arange(len(image)) - np.repeat(np.cumsum(counts) - counts, counts)
    xyxy = np.concatenate([np.zeros((0, 4)), *boxes]).astype(np.float64)
    return image, np.concatenate([xyxy[:, :2], xyxy[:, 2:] - xyxy[:, :2]], axis=1), place
