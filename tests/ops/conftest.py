"""What the tests of suppression share: random candidates, and the overlap of two plain lists."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

Scene = tuple[Tensor, Tensor, Tensor]


@pytest.fixture
def scene() -> Callable[..., Scene]:
    """Boxes `[K, 4]` in clusters, scores `[K]` all different, labels `[K]`; in float64."""

    def make(count: int, classes: int = 1, *, seed: int = 0, spread: float = 0.2) -> Scene:
        generator = torch.Generator().manual_seed(seed)

        def rand(*shape: int) -> Tensor:
            return torch.rand(*shape, generator=generator, dtype=torch.float64)

        objects = max(count // 6, 1)
        corner, size = rand(objects, 2) * 80 - 20, rand(objects, 2) * 40 + 5
        which = torch.randint(objects, (count,), generator=generator)
        shift = (rand(count, 2) - 0.5) * 2 * spread * size[which]
        grown = size[which] * (1 + spread * (rand(count, 2) - 0.5))
        low = corner[which] + shift
        scores = (torch.randperm(count, generator=generator) + 1).double() / (count + 1)
        labels = torch.randint(classes, (count,), generator=generator)
        return torch.cat([low, low + grown], dim=1), scores, labels

    return make


@pytest.fixture
def plain_iou() -> Callable[[list[float], list[float]], float]:
    """Of two boxes as lists, with no tensor in it."""

    def iou(a: list[float], b: list[float]) -> float:
        width = min(a[2], b[2]) - max(a[0], b[0])
        height = min(a[3], b[3]) - max(a[1], b[1])
        shared = max(width, 0.0) * max(height, 0.0)
        areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
        return shared / (sum(areas) - shared)

    return iou
