"""Towers: the convolutions that a head has before its last layers.

B batch, D channels, L levels, H, W height and width.
"""

from __future__ import annotations

import itertools
import math

from torch import Tensor, nn
from torch.nn import functional as F

from detkit.nn.layers import norm_layer


def conv_tower(
    in_channels: int,
    channels: int,
    count: int,
    *,
    norm: str | None = None,
    bias: bool | None = None,
) -> nn.Sequential:
    """Convolutions of 3x3, each followed by a norm (if any) and ReLU.

    Args:
        in_channels: of the maps `[B, in_channels, H, W]` that go in.
        channels: D of the maps `[B, D, H, W]` that come out.
        count: how many; of none the maps come out as they went in.
        norm: a name of `detkit.nn.norm_layer`, or None.
        bias: whether the convolutions have one; None: where there is no norm.

    Raises:
        ValueError: an unknown norm.
    """
    tower = nn.Sequential()
    for _ in range(count):
        conv = nn.Conv2d(
            in_channels, channels, 3, padding=1, bias=norm is None if bias is None else bias
        )
        block = nn.Sequential(conv)
        if norm is not None:
            block.append(_norm(norm, channels))
        tower.append(block.append(nn.ReLU(inplace=True)))
        in_channels = channels
    return tower


def _norm(name: str, channels: int) -> nn.Module:
    if name == "group":
        # 32 groups, but never of a single channel: on a map of one cell nothing of it would remain
        return nn.GroupNorm(max(math.gcd(64, channels) // 2, 1), channels)
    return norm_layer(name)(channels)


def head_tower(
    channels: int, count: int, *, norm: str | None, bias: bool | None = None
) -> nn.Sequential:
    """A tower of a one-stage head: `conv_tower` as wide as its input, with small weights."""
    tower = conv_tower(channels, channels, count, norm=norm, bias=bias)
    for layer in tower.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.normal_(layer.weight, std=0.01)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return tower


class LevelConv(nn.Module):
    """A 3x3 convolution that all levels share, with a norm of each level's own, and ReLU.

    Levels see objects of like sizes in cells, so that the same filters fit; the statistics of their
    maps differ.

    Args:
        in_channels: of the maps that go in.
        channels: D of those that come out.
        levels: L.
        norm: a name of `detkit.nn.norm_layer`.
    """

    def __init__(self, in_channels: int, channels: int, *, levels: int, norm: str) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
        self.norms = nn.ModuleList(_norm(norm, channels) for _ in range(levels))
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, level: int, x: Tensor) -> Tensor:
        """From `[B, in_channels, H, W]` of a level to `[B, D, H, W]`."""
        return F.relu(self.norms[level](self.conv(x)), inplace=True)


class LevelTower(nn.Module):
    """Several of `LevelConv` (RTMDet, arXiv 2212.07784, section 3.2).

    Args:
        in_channels: of the maps that go in.
        channels: D of those that come out.
        count: of convolutions; of none the maps come out as they went in.
        levels: L.
        norm: a name of `detkit.nn.norm_layer`.
    """

    def __init__(
        self, in_channels: int, channels: int, count: int, *, levels: int, norm: str
    ) -> None:
        super().__init__()
        self.out_channels = channels if count else in_channels
        widths = [in_channels] + [channels] * count
        self.convs = nn.ModuleList(
            LevelConv(*pair, levels=levels, norm=norm) for pair in itertools.pairwise(widths)
        )

    def forward(self, level: int, x: Tensor) -> Tensor:
        """From `[B, in_channels, H, W]` of a level to `[B, D, H, W]`."""
        for conv in self.convs:
            x = conv(level, x)
        return x


def last_conv(channels: int, out_channels: int, *, prior: float = 0.5) -> nn.Conv2d:
    """The 3x3 convolution that says something about each cell.

    Args:
        channels: of the map that goes in.
        out_channels: numbers a cell.
        prior: probability that the untrained layer gives as logits. With a small one the many cells
            that show nothing do not drown the others in the beginning (arXiv 1708.02002, 4.1).
    """
    conv = nn.Conv2d(channels, out_channels, 3, padding=1)
    nn.init.normal_(conv.weight, std=0.01)
    assert conv.bias is not None
    nn.init.constant_(conv.bias, math.log(prior / (1 - prior)))
    return conv
