"""SCNet: a ResNet whose bottlenecks calibrate half of their channels by a coarser view.

Liu et al. 2020, "Improving convolutional networks with self-calibrated convolutions" (CVPR, section
3 and figure 2). Names are those of the authors' released code (MCG-NKU/SCNet).
B batch, C channels, H, W height and width, r pooling rate.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detkit.backbones.feature_info import Upsampling
from detkit.backbones.resnet import (
    Architecture,
    Block,
    BlockSettings,
    ResNet,
    conv1x1,
    conv3x3,
    drop_path,
    shortcut,
)
from detkit.nn import NormLayer
from detkit.registry import backbones


class CoarseView(nn.AvgPool2d):
    """Average pooling without overlap; a map smaller than the window is pooled whole.

    Args:
        side: of the window.
    """

    def __init__(self, side: int) -> None:
        super().__init__(side, stride=side)
        self.side = side
        self.ceil_mode = True  # any map has a first window; `forward` leaves out unfilled others

    def forward(self, x: Tensor) -> Tensor:
        """From `[B, C, H, W]` to `[B, C, H / side, W / side]`, rounded down, at least 1."""
        height, width = (min(self.side, side) for side in x.shape[-2:])
        return F.avg_pool2d(x, (height, width))


class NearestUpsampling(Upsampling):
    """Repeat cells up to the size of another map.

    Args:
        factor: how many times as large that is.
    """

    def __init__(self, factor: int) -> None:
        super().__init__()
        self.factor = factor
        self.shift = -(factor - 1) / 2  # the first of those that repeat a cell

    def source(self, first: int, last: int) -> tuple[int, int]:
        """The cells that were repeated."""
        return first // self.factor, last // self.factor

    def forward(self, x: Tensor, like: Tensor) -> Tensor:
        """From `[B, C, h, w]` to `[B, C, H, W]`, the size of `like`."""
        return F.interpolate(x, size=like.shape[-2:])


class SCConv(nn.Module):
    """Self-calibrated convolution (section 3.2, equations 2 to 5).

    y = k4(k3(x) * sigmoid(x + up(k2(pool(x))))), each k a 3x3 convolution and a norm.

    Args:
        channels: C.
        norm: builds the norms.
        stride: of the last convolution.
        dilation: of all convolutions.
        pooling: r.
    """

    def __init__(
        self,
        channels: int,
        *,
        norm: NormLayer = nn.BatchNorm2d,
        stride: int = 1,
        dilation: int = 1,
        pooling: int = 4,
    ) -> None:
        super().__init__()
        conv = partial(conv3x3, channels, channels, dilation=dilation)
        self.k2 = nn.Sequential(CoarseView(pooling), conv(), norm(channels))
        self.k3 = nn.Sequential(conv(), norm(channels))
        self.k4 = nn.Sequential(conv(stride=stride), norm(channels))
        self.upsample = NearestUpsampling(pooling)

    def main_path(self) -> tuple[nn.Module, ...]:
        """Through the coarse view, which sees more than k3."""
        return self.k2, self.upsample, self.k4

    def forward(self, x: Tensor) -> Tensor:
        """From `[B, C, H, W]` to `[B, C, H / stride, W / stride]`."""
        gate = torch.sigmoid(x + self.upsample(self.k2(x), like=x))
        return self.k4(self.k3(x) * gate)


class SCBottleneck(Block):
    """A bottleneck of two halves: a 3x3 convolution, and a self-calibrated one (figure 2).

    Args:
        in_channels: channels of the input.
        channels: of both halves together; four times as many come out.
        settings: everything else.
    """

    expansion = 4

    def __init__(self, in_channels: int, channels: int, settings: BlockSettings) -> None:
        super().__init__(in_channels, channels, settings)
        half, out_channels = channels // 2, channels * self.expansion
        spacing = {"stride": settings.stride, "dilation": settings.dilation}
        self.conv1_a = conv1x1(in_channels, half)
        self.bn1_a = settings.norm(half)
        self.k1 = nn.Sequential(conv3x3(half, half, **spacing), settings.norm(half))
        self.conv1_b = conv1x1(in_channels, half)
        self.bn1_b = settings.norm(half)
        self.scconv = SCConv(half, norm=settings.norm, **spacing)
        self.after_bn2 = settings.at("after_bn2", channels=2 * half)
        self.conv3 = conv1x1(2 * half, out_channels)
        self.bn3 = settings.norm(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = shortcut(in_channels, out_channels, settings)
        self.after_bn3 = settings.at("after_bn3", channels=out_channels)
        self.drop_path = drop_path(settings.drop_path)
        self.after_block = settings.at("after_block", channels=out_channels)

    def main_path(self) -> tuple[nn.Module, ...]:
        """Through the self-calibrated half, which sees more than the other."""
        return self.conv1_b, self.scconv, self.conv3

    def last_norm(self) -> nn.Module:
        """The norm that ends the residual branch."""
        return self.bn3

    def forward(self, x: Tensor) -> Tensor:
        """From `[B, in_channels, H, W]` to `[B, 4 * channels, H / stride, W / stride]`."""
        plain = self.k1(self.relu(self.bn1_a(self.conv1_a(x))))
        calibrated = self.scconv(self.relu(self.bn1_b(self.conv1_b(x))))
        out = self.relu(torch.cat([plain, calibrated], dim=1))
        out = self.after_bn3(self.bn3(self.conv3(self.after_bn2(out))))
        out = self.drop_path(out)
        out += x if self.downsample is None else self.downsample(x)
        return self.after_block(self.relu(out))


class SCNet(ResNet):
    """A ResNet of `SCBottleneck`s, which have no single second convolution to attend to."""

    attention_positions = ("after_bn3", "after_bn2", "after_block", "after_stage")
    least_width = 2  # for a channel in each half


_SC = (SCBottleneck, SCBottleneck, SCBottleneck, SCBottleneck)

for _architecture in (
    Architecture("scnet50", _SC, (3, 4, 6, 3)),
    Architecture("scnet101", _SC, (3, 4, 23, 3)),
):
    backbones.register(_architecture.name)(partial(SCNet, _architecture))
