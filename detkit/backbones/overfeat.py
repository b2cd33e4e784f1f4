"""OverFeat, the fast and the accurate network (Sermanet et al. 2013, arXiv 1312.6229).

Tables 1 and 3 of the paper; there is no response normalisation and no pool overlaps. The strides
of the classifier are 32 and 36; with the offsets of the last pool (section 3.3) 16 and 12.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

from torch import nn

from detkit.backbones.placement import Placement, outside_attention
from detkit.backbones.plain import Conv, PlainNetwork, Pool, Table, shorten, window_head
from detkit.registry import backbones


class Architecture(NamedTuple):
    """A published network.

    Attributes:
        name: in the registry.
        table: the layers of each stage.
        window: side of the windows of the classifier's first layer.
        hidden: what comes out of its first layer and of its second.
        dense_stride: of the network when the last pool has stride 1.
    """

    name: str
    table: Table
    window: int
    hidden: tuple[int, int]
    dense_stride: int


_FAST = Architecture(
    "overfeat_fast",
    {
        "conv1": [Conv(96, 11, stride=4)],
        "conv2": [Pool(2, 2), Conv(256, 5)],
        "conv5": [
            Pool(2, 2),
            Conv(512, 3, padding=1),
            Conv(1024, 3, padding=1),
            Conv(1024, 3, padding=1),
        ],
        "pool5": [Pool(2, 2)],
    },
    window=6,
    hidden=(3072, 4096),
    dense_stride=16,
)
_ACCURATE = Architecture(
    "overfeat_accurate",
    {
        "conv1": [Conv(96, 7, stride=2)],
        "conv2": [Pool(3, 3), Conv(256, 7)],
        "conv6": [
            Pool(2, 2),
            Conv(512, 3, padding=1),
            Conv(512, 3, padding=1),
            Conv(1024, 3, padding=1),
            Conv(1024, 3, padding=1),
        ],
        "pool6": [Pool(3, 3)],
    },
    window=5,
    hidden=(4096, 4096),
    dense_stride=12,
)


class OverFeat(PlainNetwork):
    """Five or six convolutions and three max-pools; a classifier that slides over the last map.

    Args:
        architecture: the fast or the accurate one.
        out_indices: maps to return; 0 is `conv1`, 1 `conv2`, 2 the last convolution and 3 the
            last pool.
        in_channels: channels of the images.
        attention: where attention stands.
        norm: a name of `detkit.nn.norm_layer`; None for none.
        norm_eps: added to the variance by the norm.
        dense: pool last at every offset (section 3.3). The maps of all offsets, interleaved, are
            the map of the same pool with stride 1; the classifier then reads every second or third
            cell of it, and gives two or three times as many places in each direction.
        last_pool: False leaves out the last pool.

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
        dense: bool = False,
        last_pool: bool = True,
    ) -> None:
        super().__init__(
            architecture.name,
            shorten(architecture.table, last_pool=last_pool),
            out_indices=out_indices,
            in_channels=in_channels,
            attention=attention,
            norm=norm,
            norm_eps=norm_eps,
            output_stride=architecture.dense_stride if dense else None,
        )
        self.architecture = architecture
        _initialise(self)

    def head(self, num_classes: int) -> nn.Module:
        """Three fully connected layers, on each window of the map."""
        settings = self.architecture
        head = window_head(
            self, 1024, kernel=settings.window, hidden=settings.hidden, num_classes=num_classes
        )
        _initialise(head)
        return head


def _initialise(net: nn.Module) -> None:
    """Small weights (section 3.1)."""
    for layer in outside_attention(net):
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.normal_(layer.weight, std=0.01)
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)


for _architecture in (_FAST, _ACCURATE):
    backbones.register(_architecture.name)(partial(OverFeat, _architecture))
