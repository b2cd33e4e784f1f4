"""Which detections in successive frames are the same object.

Boxes are associated by overlap with where each object is expected, as in SORT (Bewley et al., 2016,
sections 3.2 to 3.4), with two simplifications: objects move on by a running mean of their steps
instead of a Kalman filter, and the pairs of largest overlap are taken one after the other instead
of by the Hungarian method.

K detections in a frame, T objects known.
"""

from __future__ import annotations

import torch
from torch import Tensor

from detkit.ops import box_iou
from detkit.structures import Detections


class Tracker:
    """Numbers objects from 1; an id is never given to another object.

    Args:
        iou_threshold: least overlap of a detection with where its object is expected.
        max_lost: an object that is not found in more frames than this has gone; what comes after
            is a new one.
        momentum: share of the step so far in the running mean of an object's steps.

    Raises:
        ValueError: a setting is out of its range.

    Example:
        >>> tracker = Tracker()
        >>> box = torch.tensor([[0.0, 0.0, 10.0, 10.0]])
        >>> found = Detections(box, torch.ones(1), torch.zeros(1, dtype=torch.int64))
        >>> tracker.update(found).tolist()
        [1]
    """

    def __init__(
        self, *, iou_threshold: float = 0.3, max_lost: int = 30, momentum: float = 0.5
    ) -> None:
        if not 0 < iou_threshold <= 1 or max_lost < 0 or not 0 <= momentum < 1:
            raise ValueError(
                f"iou_threshold {iou_threshold} is above 0 and at most 1, max_lost {max_lost} at "
                f"least 0, momentum {momentum} in 0..1 and less than 1"
            )
        self.iou_threshold, self.max_lost, self.momentum = iou_threshold, max_lost, momentum
        self._next_id = 1
        self._boxes = torch.zeros(0, 4)  # [T, 4], where each was found last
        self._steps = torch.zeros(0, 2)  # [T, 2] pixels per frame, right and down
        self._labels = torch.zeros(0, dtype=torch.int64)
        self._ids = torch.zeros(0, dtype=torch.int64)
        self._lost = torch.zeros(0, dtype=torch.int64)  # [T] frames since then

    def update(self, found: Detections, *, frames: int = 1) -> Tensor:
        """Take the detections of the next frame.

        Args:
            found: in any order.
            frames: how many frames lie between this one and the last, this one included.

        Returns:
            `[K]` int64, the id of each detection.
        """
        boxes, labels = found.boxes.detach().float().cpu(), found.labels.cpu()
        self._lost += frames
        self._keep(self._lost <= self.max_lost + 1)
        expected = self._boxes + (self._steps * self._lost[:, None]).repeat(1, 2)  # [T, 4]
        overlap = box_iou(expected, boxes).nan_to_num()  # [T, K]
        overlap *= self._labels[:, None] == labels  # an object keeps its class
        known, matched = greedy_pairs(overlap, self.iou_threshold)
        self._follow(known, boxes[matched])
        ids = torch.zeros(len(boxes), dtype=torch.int64)
        ids[matched] = self._ids[known]
        new = ids == 0
        ids[new] = self._begin(boxes[new], labels[new])
        return ids

    def _keep(self, index: Tensor) -> None:
        for name in ("_boxes", "_steps", "_labels", "_ids", "_lost"):
            setattr(self, name, getattr(self, name)[index])

    def _follow(self, known: Tensor, boxes: Tensor) -> None:
        """Objects that were found again."""
        moved = (boxes - self._boxes[known]).view(-1, 2, 2).mean(dim=1)  # of the centres
        step = moved / self._lost[known][:, None]
        first = ~self._steps[known].any(dim=1, keepdim=True)  # nothing to take the mean with
        mean = self.momentum * self._steps[known] + (1 - self.momentum) * step
        self._steps[known] = torch.where(first, step, mean)
        self._boxes[known] = boxes
        self._lost[known] = 0

    def _begin(self, boxes: Tensor, labels: Tensor) -> Tensor:
        """Objects that were not known: their ids."""
        ids = torch.arange(self._next_id, self._next_id + len(boxes))
        self._next_id += len(boxes)
        self._boxes = torch.cat([self._boxes, boxes])
        self._steps = torch.cat([self._steps, boxes.new_zeros(len(boxes), 2)])
        self._labels = torch.cat([self._labels, labels])
        self._ids = torch.cat([self._ids, ids])
        self._lost = torch.cat([self._lost, torch.zeros_like(ids)])
        return ids


def greedy_pairs(overlap: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """Rows and columns of a matrix paired by the largest value, each at most once.

    The largest value of all makes a pair, then the largest of the other rows and columns, and so
    on. Every value that is the largest of its row and of its column is found at once, which gives
    the same pairs in as many rounds as they hinder each other.

    Args:
        overlap: `[T, K]`, not negative.
        threshold: least value of a pair, above 0.

    Returns:
        Indices of rows and of columns, both `[P]`.
    """
    rows, columns = overlap.shape
    left = overlap.where(overlap >= threshold, torch.zeros(()))
    pairs = torch.zeros(rows, columns, dtype=torch.bool)
    while left.any():
        best = left.argmax(dim=1)  # [T]
        row = torch.arange(rows)
        mutual = (left.argmax(dim=0)[best] == row) & (left[row, best] > 0)
        row, column = row[mutual], best[mutual]
        pairs[row, column] = True
        left[row], left[:, column] = 0, 0
    chosen = pairs.nonzero()
    return chosen[:, 0], chosen[:, 1]
