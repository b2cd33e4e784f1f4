"""Which truth each candidate box learns from, and which candidates are in the minibatch.

Balanced as in Faster R-CNN (arXiv 1506.01497, section 3.1.3), as they come, or the hardest (OHEM,
arXiv 1604.03540; SSD, arXiv 1512.02325). N candidates, S drawn, M truths. The results have a fixed
size, so that drawing does not wait for a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from detkit.ops.matching import Match, match
from detkit.structures import Target


class Sample(NamedTuple):
    """The drawn candidates: positives first, then negatives, then unused places."""

    index: Tensor  # type: ignore[assignment]  # [S] int64 into the candidates; not tuple.index
    positive: Tensor  # [S] bool
    valid: Tensor  # [S] bool; False where there were too few candidates


def sample_balanced(
    positive: Tensor, negative: Tensor, *, count: int, positive_fraction: float
) -> Sample:
    """Draw `count` candidates at random, at most `positive_fraction` of them positive.

    Args:
        positive: `[N]` bool.
        negative: `[N]` bool, exclusive with `positive`.
        count: how many to draw; S = min(count, N).
        positive_fraction: upper limit of the share of positives; negatives fill up.
    """
    size = min(count, len(positive))
    max_positive = int(count * positive_fraction)
    key = torch.rand(len(positive), device=positive.device)  # [N] in 0..1
    # A second draw among the positives alone demotes those beyond the limit.
    best = torch.where(positive, key, -1.0).topk(min(max_positive, size)).indices
    chosen = torch.zeros_like(positive).index_fill_(0, best, True) & positive
    rank = torch.where(chosen, key + 1, torch.where(negative, key, -1.0))
    value, index = rank.topk(size)
    return Sample(index, value >= 1, value >= 0)


def sample_random(positive: Tensor, negative: Tensor, *, count: int) -> Sample:
    """Draw `count` candidates at random, positives and negatives as they come.

    Args:
        positive: `[N]` bool.
        negative: `[N]` bool, exclusive with `positive`.
        count: how many to draw; S = min(count, N).
    """
    key = torch.rand(len(positive), device=positive.device)
    return _best(key, positive, negative, count)


def sample_hard(loss: Tensor, positive: Tensor, negative: Tensor, *, count: int) -> Sample:
    """Take the `count` candidates with the highest loss (OHEM, arXiv 1604.03540, section 4).

    The paper first suppresses candidates that lie on one of a higher loss, which learn the same:
    leave such out of both masks for that.

    Args:
        loss: `[N]`, finite; no gradient flows through the choice.
        positive: `[N]` bool.
        negative: `[N]` bool, exclusive with `positive`.
        count: how many to take; S = min(count, N).
    """
    return _best(loss.detach(), positive, negative, count)


def sample_hard_negatives(
    loss: Tensor, positive: Tensor, negative: Tensor, *, ratio: float = 3.0, at_least: int = 0
) -> Sample:
    """Take all positives, and the negatives with the highest loss (SSD, arXiv 1512.02325, 2.2).

    Args:
        loss: `[N]`, finite; no gradient flows through the choice.
        positive: `[N]` bool.
        negative: `[N]` bool, exclusive with `positive`.
        ratio: negatives taken for each positive.
        at_least: as many negatives also where there are few positives, such as in an image
            without an object.

    Returns:
        All N candidates, S = N, with those that are not taken at the end.
    """
    hardness = loss.detach().masked_fill(~negative, -torch.inf)
    order = hardness.argsort(descending=True, stable=True)
    rank = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
    wanted = (positive.sum() * ratio).clamp(min=at_least)
    return _best(loss.detach(), positive, negative & (rank < wanted), len(positive))


def _best(key: Tensor, positive: Tensor, negative: Tensor, count: int) -> Sample:
    """The candidates with the highest keys, positives first."""
    size = min(count, len(positive))
    chosen = key.masked_fill(~(positive | negative), -torch.inf).topk(size).indices
    # 2 positives, 1 negatives, 0 unused; a stable sort leaves the highest key in front
    kind, order = (positive[chosen] * 2 + negative[chosen] * 1).sort(descending=True, stable=True)
    return Sample(chosen[order], kind == 2, kind > 0)


@dataclass(frozen=True)
class Assigned:
    """S drawn candidates of one image.

    Attributes:
        index: `[S]` into the candidates.
        positive: `[S]` bool.
        valid: `[S]` bool; False where there were too few candidates.
        boxes: `[S, 4]` of the truth, meaningful where positive.
        labels: `[S]` of the truth, meaningful where positive.
    """

    index: Tensor
    positive: Tensor
    valid: Tensor
    boxes: Tensor
    labels: Tensor


SAMPLERS = ("balanced", "random")


@dataclass(frozen=True)
class Assigner:
    """Match by overlap, then draw a minibatch.

    A head that learns from its hardest candidates has no use for a draw, as the losses come first:

        every = assigner.every(boxes, target)
        with torch.no_grad():
            loss = ...                                      # [N], of all candidates
        drawn = hardest(every, loss, count=assigner.samples)

    Attributes:
        positive_iou: at least this overlap is an object.
        negative_iou: less than this overlap is background; between the two is ignored.
        samples: how many candidates of an image are drawn.
        positive_fraction: at most this share of them is positive, if balanced.
        allow_low_quality: every truth gets its best candidates, however low their overlap.
        sampler: "balanced", or "random" for positives and negatives as they come.

    Raises:
        ValueError: an unknown sampler.
    """

    positive_iou: float
    negative_iou: float
    samples: int
    positive_fraction: float
    allow_low_quality: bool = False
    sampler: str = "balanced"

    def __post_init__(self) -> None:
        if self.sampler not in SAMPLERS:
            raise ValueError(f"unknown sampler {self.sampler!r}; choose one of {SAMPLERS}")

    @torch.no_grad()
    def __call__(self, candidates: Tensor, target: Target) -> Assigned:
        """Assign the truths of one image to `candidates` `[N, 4]` and draw `samples` of them."""
        matched = self._match(candidates, target)
        masks = matched.positive, matched.negative
        if self.sampler == "random":
            sample = sample_random(*masks, count=self.samples)
        else:
            sample = sample_balanced(
                *masks, count=self.samples, positive_fraction=self.positive_fraction
            )
        truth = matched.truth[sample.index]
        return _assigned(sample, truth, candidates, target)

    @torch.no_grad()
    def every(self, candidates: Tensor, target: Target) -> Assigned:
        """Assign the truths of one image to all `candidates` `[N, 4]`, in their order, S = N.

        Those that are neither positive nor negative are not valid.
        """
        matched = self._match(candidates, target)
        index = torch.arange(len(candidates), device=candidates.device)
        sample = Sample(index, matched.positive, matched.positive | matched.negative)
        return _assigned(sample, matched.truth, candidates, target)

    def _match(self, candidates: Tensor, target: Target) -> Match:
        return match(
            candidates,
            target.boxes,
            target.crowd,
            positive_iou=self.positive_iou,
            negative_iou=self.negative_iou,
            allow_low_quality=self.allow_low_quality,
        )


def _assigned(sample: Sample, truth: Tensor, candidates: Tensor, target: Target) -> Assigned:
    index, positive, valid = sample
    if len(target.boxes) == 0:
        return Assigned(index, positive, valid, candidates[index], torch.zeros_like(index))
    return Assigned(index, positive, valid, target.boxes[truth], target.labels[truth])


def hardest(assigned: Assigned, loss: Tensor, *, count: int) -> Assigned:
    """The `count` candidates with the highest loss among those that were assigned (OHEM).

    Args:
        assigned: N candidates of one image, such as `Assigner.every` gives them.
        loss: `[N]` of each of them.
        count: how many to take; S = min(count, N).
    """
    negative = assigned.valid & ~assigned.positive
    place, positive, valid = sample_hard(loss, assigned.positive, negative, count=count)
    return Assigned(
        assigned.index[place], positive, valid, assigned.boxes[place], assigned.labels[place]
    )
