"""Boxes in a fixed number of places, so that no shape depends on what a picture shows.

A place that holds nothing has the score `NOTHING`. B images, N values, M places.
"""

from __future__ import annotations

from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

Number = TypeVar("Number", int, Tensor)

NOTHING = -1.0  # below every threshold


class Found(NamedTuple):
    """Boxes of B images in M places each.

    Attributes:
        boxes: `[B, M, 4]`.
        scores: `[B, M]`, `NOTHING` where there is no box.
        labels: `[B, M]` int64.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor


def top(values: Tensor, count: int, *, filling: float = NOTHING) -> tuple[Tensor, Tensor]:
    """The best of each row of `[B, N]`, `count` of them also where there are fewer.

    Returns:
        values `[B, count]`, descending, filled up with `filling`; where they stood, `[B, count]`, 0
        of those that fill up.
    """
    more = values.new_full((1, count), filling).expand(values.shape[0], count)
    best, index = torch.cat([values, more], dim=1).topk(count, dim=1)
    return best, index * (index < values.shape[1])


def rows_at(values: Tensor, index: Tensor) -> Tensor:
    """Rows `[B, M, ...]` of `[B, N, ...]` at `[B, M]`."""
    places = index.reshape(*index.shape, *[1] * (values.ndim - 2))
    return values.gather(1, places.expand(-1, -1, *values.shape[2:]))


def best_of(found: Found, count: int) -> Found:
    """The best so many of each image, best first."""
    scores, index = top(found.scores, count)
    return Found(rows_at(found.boxes, index), scores, found.labels.gather(1, index))


def joined(parts: list[Found]) -> Found:
    """All places of several in a row."""
    return Found(*(torch.cat(part, dim=1) for part in zip(*parts, strict=True)))


def clip_to(boxes: Tensor, sizes: Tensor) -> Tensor:
    """Move corners of boxes `[B, ..., 4]` onto the border of images of (height, width) `[B, 2]`."""
    height, width = sizes.to(boxes.dtype).unbind(dim=1)
    limits = torch.stack([width, height, width, height], dim=1)  # [B, 4]
    limits = limits.reshape(-1, *[1] * (boxes.ndim - 2), 4)
    return torch.minimum(boxes.clamp(min=0), limits)


def scale_by(boxes: Tensor, factors: Tensor) -> Tensor:
    """Boxes `[B, M, 4]` multiplied by factors (down, right) `[B, 2]`."""
    return boxes * factors.flip(1).repeat(1, 2)[:, None]


def quotient_up(number: Number, divisor: int) -> Number:
    """Rounded up; without negative numbers, of whose quotients torch.export proves nothing."""
    return (number + divisor - 1) // divisor
