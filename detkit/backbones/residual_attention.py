"""Residual attention networks: residual units, and modules that weigh them by a soft mask.

Wang et al. 2017 (arXiv 1704.06904, figure 2 and table 2): y = (1 + M(x)) T(x), where the trunk T is
two residual units and the mask M goes down and up again like an hourglass (equation 3). Units are
pre-activated (He et al. 2016, arXiv 1603.05027), convolutions have no biases. Here the mask is
scaled up to the size of the map it joins with its corners aligned, as the max-pool below it has
them, so that odd sizes need no padding.
B batch, C channels, H, W height and width, K classes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from detkit.backbones.base import Backbone
from detkit.backbones.feature_info import Upsampling
from detkit.backbones.placement import Placement, outside_attention
from detkit.backbones.resnet import conv1x1, conv3x3, drop_path
from detkit.nn import LogisticHead, NormLayer, norm_layer
from detkit.registry import backbones


class Architecture(NamedTuple):
    """A published network.

    Attributes:
        name: in the registry.
        modules: attention modules of the first three stages.
    """

    name: str
    modules: tuple[int, int, int]


class UnitSettings(NamedTuple):
    """What a residual unit is told beside its channels.

    Attributes:
        norm: builds the norms.
        drop_path: probability that an image skips the residual branch in training.
    """

    norm: NormLayer
    drop_path: float


class ResidualUnit(nn.Module):
    """Pre-activated bottleneck (arXiv 1603.05027, figure 4 e): thrice norm, ReLU, convolution.

    Args:
        in_channels: channels of the input.
        channels: channels of the output; a quarter of them inside.
        settings: norm and drop path.
        stride: of the 3x3 convolution.
    """

    def __init__(
        self, in_channels: int, channels: int, settings: UnitSettings, *, stride: int = 1
    ) -> None:
        super().__init__()
        inner = channels // 4
        self.bn1 = settings.norm(in_channels)
        self.conv1 = conv1x1(in_channels, inner)
        self.bn2 = settings.norm(inner)
        self.conv2 = conv3x3(inner, inner, stride)
        self.bn3 = settings.norm(inner)
        self.conv3 = conv1x1(inner, channels)
        self.downsample: nn.Module | None = None
        if stride > 1 or in_channels != channels:
            self.downsample = conv1x1(in_channels, channels, stride)
        self.drop_path = drop_path(settings.drop_path)

    def main_path(self) -> tuple[nn.Module, ...]:
        """The convolutions, which see more than the shortcut."""
        return self.conv1, self.conv2, self.conv3

    def forward(self, x: Tensor) -> Tensor:
        """From `[B, in_channels, H, W]` to `[B, channels, H / stride, W / stride]`."""
        active = F.relu(self.bn1(x))
        out = self.conv1(active)
        out = self.conv2(F.relu(self.bn2(out)))
        out = self.drop_path(self.conv3(F.relu(self.bn3(out))))
        # a projection reads the activated map, the identity the map itself
        return out + (x if self.downsample is None else self.downsample(active))


class BilinearUpsampling(Upsampling):
    """Bilinear interpolation to the size of another map, about twice as large, corners aligned."""

    factor = 2
    shift = 0.0

    def source(self, first: int, last: int) -> tuple[int, int]:
        """Every second cell lies on a cell of the input, the others between two."""
        return first // 2, (last + 1) // 2

    def forward(self, x: Tensor, like: Tensor) -> Tensor:
        """From `[B, C, h, w]` to `[B, C, H, W]`, the size of `like`."""
        return F.interpolate(x, size=like.shape[-2:], mode="bilinear", align_corners=True)


class Hourglass(nn.Module):
    """Down by a max-pool, units, an hourglass within, and up again (figure 2, soft mask branch).

    Args:
        channels: C.
        depth: how many times to go down; 1 has no hourglass within.
        settings: of the units.
    """

    def __init__(self, channels: int, depth: int, settings: UnitSettings) -> None:
        super().__init__()
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        self.down = ResidualUnit(channels, channels, settings)
        self.inner: Hourglass | None = None
        if depth > 1:
            self.inner = Hourglass(channels, depth - 1, settings)
            self.skip = ResidualUnit(channels, channels, settings)
        self.up = ResidualUnit(channels, channels, settings)
        self.upsample = BilinearUpsampling()

    def main_path(self) -> tuple[nn.Module, ...]:
        """Through the innermost hourglass, which sees most."""
        within = () if self.inner is None else (self.inner,)
        return self.pool, self.down, *within, self.up, self.upsample

    def forward(self, x: Tensor) -> Tensor:
        """From `[B, C, H, W]` to the same shape."""
        out = self.down(self.pool(x))
        if self.inner is not None:
            out = self.inner(out) + self.skip(out)
        return self.upsample(self.up(out), like=x)


class AttentionModule(nn.Module):
    """One unit, a trunk beside its mask, one unit; p = 1, t = 2, r = 1 (section 3).

    Args:
        channels: C.
        depth: how many times the mask goes down.
        settings: of the units.
    """

    def __init__(self, channels: int, depth: int, settings: UnitSettings) -> None:
        super().__init__()
        unit = partial(ResidualUnit, channels, channels, settings)
        self.first = unit()
        self.trunk = nn.Sequential(unit(), unit())
        self.mask = Hourglass(channels, depth, settings)
        self.gate = nn.Sequential(
            settings.norm(channels),
            nn.ReLU(inplace=True),
            conv1x1(channels, channels),
            settings.norm(channels),
            nn.ReLU(inplace=True),
            conv1x1(channels, channels),
            nn.Sigmoid(),
        )
        self.last = unit()

    def main_path(self) -> tuple[nn.Module, ...]:
        """Through the mask, which sees more than the trunk."""
        return self.first, self.mask, self.last

    def forward(self, x: Tensor) -> Tensor:
        """From `[B, C, H, W]` to the same shape."""
        x = self.first(x)
        gate = self.gate(self.mask(x))
        return self.last((1 + gate) * self.trunk(x))


class Head(LogisticHead):
    """The norm and ReLU that end the last pre-activated stage, then global pooling and `fc`.

    Args:
        channels: C of the map.
        num_classes: K.
        norm: builds the norm.
    """

    def __init__(self, channels: int, num_classes: int, norm: NormLayer) -> None:
        super().__init__(channels, num_classes)
        self.bn = norm(channels)

    def forward(self, features: Tensor | Sequence[Tensor]) -> Tensor:
        """From the last of the maps, `[B, C, H, W]`, to logits `[B, K]`."""
        last = features if isinstance(features, Tensor) else features[-1]
        return super().forward(F.relu(self.bn(last)))


class ResidualAttentionNet(Backbone):
    """Stem, three stages of a residual unit and attention modules, and one of three units.

    The maps are those behind the sums of the units, before norm and ReLU.

    Args:
        architecture: how many attention modules.
        out_indices: maps to return; 0 is the stem before the max-pool, i is `stage{i}`.
        in_channels: channels of the images.
        attention: where other attention stands; the blocks of a stage are its units and modules.
        norm: a name of `detkit.nn.norm_layer`.
        norm_eps: added to the variance by the norm.
        width: channels of the stem; 64 in the published networks, fewer for small machines.
        drop_path: probability that an image skips the last unit's residual branch in training; it
            grows linearly with the depth of the blocks (arXiv 1603.09382, equation 4).

    Raises:
        ValueError: a setting is out of its range.
    """

    stage_names = ("stem", "stage1", "stage2", "stage3", "stage4")
    default_out_indices = (1, 2, 3, 4)
    attention_positions = ("after_block", "after_stage")

    def __init__(
        self,
        architecture: Architecture,
        *,
        out_indices: Sequence[int] | None = None,
        in_channels: int = 3,
        attention: Placement | None = None,
        norm: str = "batch",
        norm_eps: float = 1e-5,
        width: int = 64,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__(architecture.name, in_channels, out_indices, attention)
        if width < 1:
            raise ValueError(f"width must be at least 1, got {width}; 64 is the published one")
        if not 0 <= drop_path < 1:
            raise ValueError(f"drop_path is a probability in [0, 1), got {drop_path}")
        self.norm = norm_layer(norm, eps=norm_eps)
        self.num_stages = max(self.out_indices)
        self.conv1 = nn.Conv2d(in_channels, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = self.norm(width)
        self.relu = nn.ReLU(inplace=True)
        if self.num_stages:
            self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.channels = width
        depths = [1 + modules for modules in architecture.modules] + [3]
        for index, depth in enumerate(depths[: self.num_stages], start=1):
            before = sum(depths[: index - 1])
            rates = [drop_path * (before + i + 1) / sum(depths) for i in range(depth)]
            blocks = self._stage(index, width * 2 ** (index + 1), rates)
            stage = nn.Sequential(OrderedDict(blocks))
            self.add_module(f"stage{index}", stage)
        _initialise(self)

    def _stage(
        self, index: int, channels: int, drop_paths: Sequence[float]
    ) -> Iterator[tuple[str, nn.Module]]:
        """A unit that changes the shape, then attention modules, in the last stage units.

        Their names are their positions; other attention has a name of its own, so that weights
        of the plain network fit.
        """
        for position, rate in enumerate(drop_paths):
            settings = UnitSettings(self.norm, rate)
            if position == 0:
                stride = 1 if index == 1 else 2
                yield "0", ResidualUnit(self.channels, channels, settings, stride=stride)
            elif index == 4:
                yield str(position), ResidualUnit(channels, channels, settings)
            else:
                yield str(position), AttentionModule(channels, 4 - index, settings)
            after = self.attention.module(
                "after_block",
                stage=index,
                channels=channels,
                stride=2 ** (index + 1),
                block=position,
                blocks=len(drop_paths),
            )
            if after is not None:
                yield f"after_block{position}", after
        self.channels = channels

    def stages(self) -> list[tuple[nn.Module, ...]]:
        """The stem, `stage1` after the max-pool, and the other stages that were built."""
        built = [getattr(self, name) for name in self.stage_names[1 : self.num_stages + 1]]
        stem = (self.conv1, self.bn1, self.relu)
        if not built:
            return [stem]
        return [stem, (self.maxpool, built[0]), *((stage,) for stage in built[1:])]

    def head(self, num_classes: int) -> nn.Module:
        """Norm, ReLU, global average pooling and `fc`."""
        return Head(self.channels, num_classes, self.norm)

    def unused_weights(self) -> tuple[str, ...]:
        """The classifier's `bn` and `fc`, and the stages beyond the last out index."""
        beyond = self.stage_names[self.num_stages + 1 :]
        return ("bn.", "fc.", *(f"{name}." for name in beyond))


def _initialise(net: nn.Module) -> None:
    for module in outside_attention(net):
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


for _architecture in (
    Architecture("residual_attention56", (1, 1, 1)),
    Architecture("residual_attention92", (1, 2, 3)),
):
    backbones.register(_architecture.name)(partial(ResidualAttentionNet, _architecture))
