"""AlexNet, as torchvision has it and as first published.

`alexnet`: Krizhevsky 2014 (arXiv 1404.5997), the tower of "One weird trick"; all names are
torchvision's, so that its weights load as they are.
`alexnet_original`: Krizhevsky et al. 2012 (NeurIPS), two groups and local response normalisation.
Its first convolution has no padding, so that its classifier needs images of 227 pixels, not 224.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

from torch import nn

from detkit.backbones.placement import Placement, outside_attention
from detkit.backbones.plain import (
    Conv,
    PlainNetwork,
    Pool,
    PooledHead,
    Table,
    check_output_stride,
    relu,
    shorten,
    window_head,
)
from detkit.registry import backbones


class Architecture(NamedTuple):
    """A published network.

    Attributes:
        name: in the registry.
        table: the layers of each stage.
        original: it has the head and the starting weights of 2012.
    """

    name: str
    table: Table
    original: bool


_TORCHVISION: Table = {
    "conv1": [Conv(64, 11, stride=4, padding=2)],
    "conv2": [Pool(3, 2), Conv(192, 5, padding=2)],
    "conv5": [
        Pool(3, 2),
        Conv(384, 3, padding=1),
        Conv(256, 3, padding=1),
        Conv(256, 3, padding=1),
    ],
    "pool5": [Pool(3, 2)],
}
_ORIGINAL: Table = {
    "conv1": [Conv(96, 11, stride=4, response_norm=True)],
    "conv2": [Pool(3, 2), Conv(256, 5, padding=2, groups=2, response_norm=True)],
    "conv5": [
        Pool(3, 2),
        Conv(384, 3, padding=1),
        Conv(384, 3, padding=1, groups=2),
        Conv(256, 3, padding=1, groups=2),
    ],
    "pool5": [Pool(3, 2)],
}


class AlexNet(PlainNetwork):
    """Five convolutions and three max-pools that overlap.

    Args:
        architecture: torchvision's or the published one.
        out_indices: maps to return; 0 is `conv1`, 1 `conv2`, 2 `conv5` and 3 `pool5`.
        in_channels: channels of the images.
        attention: where attention stands.
        norm: a name of `detkit.nn.norm_layer`; None for none.
        norm_eps: added to the variance by the norm.
        output_stride: 32 as published; 16 or 8 dilate the last layers instead of striding.
        last_pool: False leaves out `pool5`, so that the network ends with stride 16.

    Raises:
        ValueError: a setting is out of its range.
    """

    stage_names = ("conv1", "conv2", "conv5", "pool5")
    default_out_indices = (0, 1, 2, 3)

    def __init__(
        self,
        architecture: Architecture,
        *,
        out_indices: Sequence[int] | None = None,
        in_channels: int = 3,
        attention: Placement | None = None,
        norm: str | None = None,
        norm_eps: float = 1e-5,
        output_stride: int = 32,
        last_pool: bool = True,
    ) -> None:
        check_output_stride(output_stride)
        super().__init__(
            architecture.name,
            shorten(architecture.table, last_pool=last_pool),
            out_indices=out_indices,
            in_channels=in_channels,
            attention=attention,
            norm=norm,
            norm_eps=norm_eps,
            output_stride=output_stride,
        )
        self.original = architecture.original
        if self.original:
            _initialise(self, ones=(1, 3, 4))

    def head(self, num_classes: int) -> nn.Module:
        """Three fully connected layers: on a 6x6 average, or in 2012 on each 6x6 window."""
        if self.original:
            hidden = (4096, 4096)
            head = window_head(self, 256, kernel=6, hidden=hidden, num_classes=num_classes)
            _initialise(head, ones=(0, 1))
            return head
        layers = nn.Sequential(
            nn.Dropout(0.5),
            nn.Linear(256 * 6 * 6, 4096),
            relu(),
            nn.Dropout(0.5),
            nn.Linear(4096, 4096),
            relu(),
            nn.Linear(4096, num_classes),
        )
        return PooledHead(6, layers)


def _initialise(net: nn.Module, *, ones: Sequence[int]) -> None:
    """As published (section 5): small weights, and biases of 1 at the layers of these numbers.

    The ones give the ReLUs behind them positive inputs from the start.
    """
    layers = (each for each in outside_attention(net) if isinstance(each, nn.Conv2d | nn.Linear))
    for number, layer in enumerate(layers):
        nn.init.normal_(layer.weight, std=0.01)
        assert layer.bias is not None
        nn.init.constant_(layer.bias, 1.0 if number in ones else 0.0)


for _architecture in (
    Architecture("alexnet", _TORCHVISION, original=False),
    Architecture("alexnet_original", _ORIGINAL, original=True),
):
    backbones.register(_architecture.name)(partial(AlexNet, _architecture))
