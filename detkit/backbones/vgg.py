"""VGG: 3x3 convolutions only (Simonyan and Zisserman 2014, arXiv 1409.1556, table 1).

All names are torchvision's, so that its weights load as they are.
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
    fully_connected,
    shorten,
)
from detkit.registry import backbones


class Architecture(NamedTuple):
    """A column of table 1.

    Attributes:
        name: in the registry.
        depths: convolutions of each stage.
    """

    name: str
    depths: tuple[int, int, int, int, int]

    def table(self) -> Table:
        """The layers of each stage."""
        stages: dict[str, list[Conv | Pool]] = {}
        channels = (64, 128, 256, 512, 512)
        for number, (depth, width) in enumerate(zip(self.depths, channels, strict=True), start=1):
            pools = [Pool(2, 2)] if number > 1 else []
            stages[f"conv{number}"] = [*pools, *[Conv(width, 3, padding=1)] * depth]
        return {**stages, "pool5": [Pool(2, 2)]}


class VGG(PlainNetwork):
    """Five groups of 3x3 convolutions with a max-pool behind each.

    Args:
        architecture: how many convolutions.
        out_indices: maps to return; 0 to 4 are `conv1` to `conv5`, 5 is `pool5`.
        in_channels: channels of the images.
        attention: where attention stands.
        norm: a name of `detkit.nn.norm_layer`; None for none.
        norm_eps: added to the variance by the norm.
        output_stride: 32 as published; 16 or 8 dilate the last layers instead of striding.
        last_pool: False leaves out `pool5`, so that the network ends with stride 16.

    Raises:
        ValueError: a setting is out of its range.
    """

    stage_names = ("conv1", "conv2", "conv3", "conv4", "conv5", "pool5")
    default_out_indices = (2, 3, 4, 5)

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
            shorten(architecture.table(), last_pool=last_pool),
            out_indices=out_indices,
            in_channels=in_channels,
            attention=attention,
            norm=norm,
            norm_eps=norm_eps,
            output_stride=output_stride,
        )
        _initialise(self)

    def head(self, num_classes: int) -> nn.Module:
        """Average pooling to 7x7 and three fully connected layers."""
        first = nn.Linear(512 * 7 * 7, 4096)
        head = PooledHead(
            7, fully_connected(first, nn.Linear(4096, 4096), nn.Linear(4096, num_classes))
        )
        _initialise(head)
        return head


def _initialise(net: nn.Module) -> None:
    for module in outside_attention(net):
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.01)
        if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)


for _name, _depths in {
    "vgg11": (1, 1, 2, 2, 2),
    "vgg13": (2, 2, 2, 2, 2),
    "vgg16": (2, 2, 3, 3, 3),
    "vgg19": (2, 2, 4, 4, 4),
}.items():
    backbones.register(_name)(partial(VGG, Architecture(_name, _depths)))
    _normed = Architecture(f"{_name}_bn", _depths)
    backbones.register(_normed.name)(partial(VGG, _normed, norm="batch"))
