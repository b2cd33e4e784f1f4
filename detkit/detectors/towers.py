"""Towers: the convolutions that a head has before its last layers.

B batch, D channels, H, W height and width.
"""

from __future__ import annotations

from torch import nn

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
            block.append(norm_layer(norm)(channels))
        tower.append(block.append(nn.ReLU(inplace=True)))
        in_channels = channels
    return tower
