"""Boxes of one object become a new one: weighted boxes fusion, and non-maximum merging.

K boxes of all sources together, N sources (models, scales or tiles), M fused boxes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from detkit.ops.greedy import greedy_nms
from detkit.ops.neighbours import Neighbours, overlap, overlap_of_smaller

_MEASURES = {"iou": overlap, "ios": overlap_of_smaller}
_FEWEST, _MOST = 8, 64  # boxes that are fused in one step


# ---------------------------------------------------------------------- non-maximum merging


def non_maximum_merging(
    boxes: Tensor,
    scores: Tensor,
    groups: Tensor | None = None,
    *,
    iou_threshold: float = 0.5,
    metric: str = "ios",
) -> tuple[Tensor, Tensor]:
    """Greedy NMS whose winner grows over the boxes that it suppresses.

    So the parts of an object that the borders of tiles cut become the object (the greedy NMM of
    sliced inference, arXiv 2202.06934). Overlap is measured with the winner as it was.

    Args:
        boxes: `[K, 4]`.
        scores: `[K]`.
        groups: `[K]` int64; boxes of different groups are never merged. None for one.
        iou_threshold: boxes that overlap a better one by more than this are merged into it.
        metric: "iou", or "ios" for the intersection over the smaller of the two.

    Returns:
        `[M, 4]` boxes around the winner and all that it suppresses, best first; `[M]` indices of
        the winners, whose scores and labels are those of the merged boxes.

    Raises:
        ValueError: an unknown metric.
    """
    if metric not in _MEASURES:
        raise ValueError(f"unknown metric {metric!r}; choose iou or ios")
    measure = _MEASURES[metric]

    def same(first: Tensor, second: Tensor) -> Tensor:
        return measure(first, second) > iou_threshold

    winners = greedy_nms(boxes, scores, groups, same)
    neighbours = Neighbours(boxes, groups)
    place = torch.empty_like(neighbours.order)
    place[neighbours.order] = torch.arange(len(boxes), device=boxes.device)
    rank = torch.zeros_like(place)  # of the winners, 0 the best
    rank[place[winners]] = torch.arange(len(winners), device=boxes.device)
    owner = torch.full_like(place, len(winners))  # [K] best winner that suppresses a box
    columns = neighbours.columns
    for some in place[winners].split(_MOST):
        winner, other = neighbours.pairs(some)
        hit = neighbours.measure(same, winner, other).nonzero()[:, 0]
        owner.scatter_reduce_(0, other[hit], rank[winner[hit]], "amin")
    # a winner suppresses nobody better, and so not another winner's own box
    merged = (owner < len(winners)).nonzero()[:, 0]
    row = owner[merged].expand(2, -1)
    low = boxes[winners, :2].t().scatter_reduce(1, row, columns[:2, merged], "amin")
    high = boxes[winners, 2:].t().scatter_reduce(1, row, columns[2:, merged], "amax")
    return torch.cat([low, high]).t(), winners


# ------------------------------------------------------------------------- weighted boxes fusion


def weighted_boxes_fusion(
    boxes: Tensor,
    scores: Tensor,
    groups: Tensor | None = None,
    source: Tensor | None = None,
    *,
    iou_threshold: float = 0.55,
    num_sources: int = 1,
    weights: Sequence[float] | None = None,
    conf_type: str = "avg",
) -> tuple[Tensor, Tensor, Tensor]:
    """Average the boxes of one object, weighted by their scores (arXiv 1910.13302, section 3).

    Boxes come in turn, the best one first. One that overlaps a fused box by more than the threshold
    joins it, the one that it overlaps most, which then is the mean of all that joined; one that
    overlaps none starts a new one. With T boxes in a fused box its score is

        avg: mean of their scores * min(T, N) / N, so that what few sources saw counts less
        max: the highest of their scores

    Args:
        boxes: `[K, 4]`.
        scores: `[K]`, above 0.
        groups: `[K]` int64; boxes of different groups are never fused. None for one.
        source: `[K]` int64 in 0..N - 1, which `weights` are for. None without weights.
        iou_threshold: see above.
        num_sources: N, also counting those that found nothing here.
        weights: N factors of the scores; N in the formula becomes their sum, and max is divided by
            the largest of them.
        conf_type: "avg" or "max".

    Returns:
        `[M, 4]` boxes, `[M]` scores, both best first, and `[M]` indices of the best box of each,
        whose label is that of the fused box.

    Raises:
        ValueError: an unknown conf_type; weights that are not one a source, or without `source`.
    """
    if conf_type not in ("avg", "max"):
        raise ValueError(f"unknown conf_type {conf_type!r}; choose avg or max")
    if weights is not None:
        if source is None or len(weights) != num_sources:
            raise ValueError(
                f"{len(weights)} weights for {num_sources} sources; give a weight for each, and "
                "the source of each box"
            )
        scores = scores * scores.new_tensor(weights)[source]
    order = scores.argsort(descending=True, stable=True)
    group = torch.zeros_like(order) if groups is None else groups.unique(return_inverse=True)[1]
    clusters = _Clusters(boxes[order].t().contiguous(), scores[order], group[order])
    clusters.join_all(iou_threshold)
    fused, founder, mean, count = clusters.result()
    if conf_type == "max":
        score = scores[order[founder]] / (max(weights) if weights else 1)
    else:
        score = mean * count.clamp(max=num_sources) / (sum(weights) if weights else num_sources)
    score, by_score = score.to(scores.dtype).sort(descending=True, stable=True)
    return fused[by_score], score, order[founder[by_score]]


class _Clusters:
    """Fused boxes that grow.

    Boxes join in steps of as many as do not touch each other's choice, so that all choose at once.

    Args:
        boxes: `[4, K]` columns, best first.
        scores: `[K]`.
        groups: `[K]` small integers.
    """

    def __init__(self, boxes: Tensor, scores: Tensor, groups: Tensor) -> None:
        room = boxes.shape[1] + 1
        self.boxes, self.scores, self.groups = boxes, scores, groups.to(boxes.dtype)
        self.fused = boxes.new_zeros(4, room)
        self.group = boxes.new_zeros(room)
        self.founder = groups.new_zeros(room)
        self.count = groups.new_zeros(room)
        self.total = boxes.new_zeros(5, room, dtype=torch.float64)  # score * box, and score
        self.size = 1  # the first is a point, which nothing overlaps: there always is a best one

    def join_all(self, iou_threshold: float) -> None:
        """Let all boxes join or found a cluster, in their order."""
        start, width = 0, _FEWEST
        while start < len(self.scores):
            joined = self._join(start, start + width, iou_threshold)
            start += joined
            width = min(max(2 * joined, _FEWEST), _MOST)

    def _join(self, start: int, stop: int, iou_threshold: float) -> int:
        """Let boxes from `start` on join; returns how many did, at least one."""
        boxes, group = self.boxes[:, start:stop], self.groups[start:stop]
        iou = overlap(boxes[:, :, None], self.fused[:, None, : self.size])  # [B, clusters]
        # 1 in the same group, else 0: a mask of bools takes four times as long
        iou *= (1 - (group[:, None] - self.group[: self.size]).abs_()).clamp_(min=0)
        value, cluster = iou.max(dim=1)
        joins = value > iou_threshold

        score = self.scores[start:stop].double().clamp(min=torch.finfo(torch.float32).tiny)
        own = torch.cat([boxes * score, score[None]])  # [5, B]
        total = torch.where(joins, self.total[:, cluster], 0) + own
        fused = (total[:4] / total[4]).to(boxes.dtype)
        # A box must wait for one before it that changes the cluster of its choice, or becomes it
        rival = overlap(boxes[:, :, None], fused[:, None, :])  # [B, B] the row looks at the column
        disturbs = (rival > iou_threshold) & (rival >= value[:, None])
        disturbs &= group[:, None] == group
        disturbs |= joins & joins[:, None] & (cluster == cluster[:, None])
        settled = disturbs.tril_(-1).any(dim=1).cumsum(0) == 0
        founds = settled & ~joins
        done, founded = (int(each) for each in torch.stack([settled.sum(), founds.sum()]).tolist())

        place = torch.where(joins, cluster, self.size - 1 + founds.cumsum(0))[:done]
        self.total[:, place] = total[:, :done]
        self.fused[:, place] = fused[:, :done]
        self.count[place] += 1
        new = founds.nonzero()[:, 0]
        self.founder[place[new]] = new + start
        self.group[place[new]] = group[new]
        self.size += founded
        return done

    def result(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Boxes `[M, 4]`, places of the best box, mean scores, and counts, each `[M]`."""
        used = slice(1, self.size)
        count = self.count[used]
        return self.fused[:, used].t(), self.founder[used], self.total[4, used] / count, count
