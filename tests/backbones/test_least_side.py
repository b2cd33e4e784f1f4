"""The smallest image that a chain of layers can take, beside trying all of them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from detkit.backbones.feature_info import least_side


@pytest.mark.parametrize("cells", [1, 2, 5])
@pytest.mark.parametrize(
    "layers",
    [
        [nn.Conv2d(1, 1, 11, stride=4, padding=2), nn.MaxPool2d(3, stride=2)],
        [nn.Conv2d(1, 1, 7), nn.MaxPool2d(3, stride=3), nn.Conv2d(1, 1, 3, dilation=2)],
        [nn.MaxPool2d(3, stride=2, ceil_mode=True), nn.MaxPool2d(2, stride=2, ceil_mode=True)],
        [nn.Conv2d(1, 1, 3, padding="same"), nn.MaxPool2d(2, stride=2)],
        [nn.Conv2d(1, 1, 3, stride=2, padding=1), nn.Conv2d(1, 1, 3, stride=2, padding=1)],
    ],
    ids=["alexnet", "overfeat", "rounding up", "same", "resnet"],
)
def test_least_side(layers, cells):
    def fits(side: int) -> bool:
        try:
            made = nn.Sequential(*layers).to("meta")(torch.empty(1, 1, side, side, device="meta"))
        except RuntimeError:
            return False
        return made.shape[2] >= cells

    assert least_side(layers, cells=cells) == next(side for side in range(1, 200) if fits(side))
