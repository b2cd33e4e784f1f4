"""Draw a balanced minibatch of candidates (Faster R-CNN, arXiv 1506.01497, section 3.1.3).

N candidates, S drawn. The result has a fixed size, so that nothing waits for the GPU.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


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
