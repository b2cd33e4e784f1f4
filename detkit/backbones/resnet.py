"""ResNet and its next of kin: v1 and v1.5, ResNet-D, ResNeXt, Wide ResNet.

He et al. 2015 (arXiv 1512.03385, sections 3.3 and 4.1), Xie et al. 2016 (arXiv 1611.05431),
Zagoruyko and Komodakis 2016 (arXiv 1605.07146), He et al. 2018 (arXiv 1812.01187, section 4, model
D). All names are torchvision's, those of the D networks timm's, so that their weights load as they
are.
B batch, C channels, H, W height and width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple, Protocol

from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from detkit.backbones.base import Backbone
from detkit.backbones.placement import Placement, attended, outside_attention
from detkit.nn import LogisticHead, NormLayer, norm_layer
from detkit.registry import backbones


class Attend(Protocol):
    """Makes the attention module of one position in one block, None where none stands."""

    def __call__(self, at: str, *, channels: int, stride: int) -> nn.Module | None:
        """The position, and the channels and stride of the map there."""
        ...


def nowhere(at: str, *, channels: int, stride: int) -> None:
    """No attention."""


@dataclass(frozen=True)
class BlockSettings:
    """What a block is told beside its channels.

    Attributes:
        norm: builds the norms.
        attend: makes the attention modules.
        stride: of the block.
        dilation: of its 3x3 convolutions.
        map_stride: pixels of the image from one cell of its input to the next.
        drop_path: probability that an image skips the residual branch in training.
        groups: of the 3x3 convolution of a bottleneck (ResNeXt's cardinality).
        group_width: channels of such a group for every 64 channels of the block.
        stride_first: the stride is on the first convolution of a bottleneck (v1), not on its 3x3.
        pool_shortcut: the shortcut's stride is an average pooling (ResNet-D).
    """

    norm: NormLayer
    attend: Attend = nowhere
    stride: int = 1
    dilation: int = 1
    map_stride: int = 4
    drop_path: float = 0.0
    groups: int = 1
    group_width: int = 64
    stride_first: bool = False
    pool_shortcut: bool = False

    @property
    def out_stride(self) -> int:
        """Pixels of the image from one cell of the block's output to the next."""
        return self.map_stride * self.stride

    def conv(self, conv: nn.Conv2d, *, map_stride: int, second: bool = False) -> nn.Conv2d:
        """A convolution of the block, with the attention that stands right beside it.

        Args:
            conv: the convolution as published.
            map_stride: pixels of the image from one cell of its input to the next.
            second: it is the block's second one, which has positions of its own.
        """
        before = self.attend("before_conv", channels=conv.in_channels, stride=map_stride)
        after = None
        if second and before is None:
            before = self.attend("before_conv2", channels=conv.in_channels, stride=map_stride)
            after = self.attend("after_conv2", channels=conv.out_channels, stride=self.out_stride)
        return attended(conv, before=before, after=after)

    def at(self, *positions: str, channels: int) -> nn.Module:
        """The attention that stands at one of the positions on the block's output, or nothing."""
        for position in positions:
            module = self.attend(position, channels=channels, stride=self.out_stride)
            if module is not None:
                return module
        return nn.Identity()


class Block(nn.Module):
    """What `ResNet` builds its layers from.

    Args:
        in_channels: channels of the input.
        channels: inner channels; `expansion` times as many come out.
        settings: everything else.
    """

    expansion: int

    def __init__(self, in_channels: int, channels: int, settings: BlockSettings) -> None:
        super().__init__()

    def main_path(self) -> tuple[nn.Module, ...]:
        """The layers along the residual branch, which sees more than the shortcut."""
        raise NotImplementedError

    def last_norm(self) -> nn.Module:
        """The norm that ends the residual branch."""
        raise NotImplementedError


class BasicBlock(Block):
    """Two 3x3 convolutions beside a shortcut (ResNet, figure 5, left).

    Args:
        in_channels: channels of the input.
        channels: channels of both convolutions.
        settings: everything else.
    """

    expansion = 1  # output channels per inner channel

    def __init__(self, in_channels: int, channels: int, settings: BlockSettings) -> None:
        super().__init__(in_channels, channels, settings)
        self.conv1 = settings.conv(
            conv3x3(in_channels, channels, settings.stride, dilation=settings.dilation),
            map_stride=settings.map_stride,
        )
        self.bn1 = settings.norm(channels)
        self.conv2 = settings.conv(
            conv3x3(channels, channels, dilation=settings.dilation),
            map_stride=settings.out_stride,
            second=True,
        )
        self.bn2 = settings.norm(channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = shortcut(in_channels, channels, settings)
        self.after_bn3 = settings.at("after_bn3", "after_bn2", channels=channels)
        self.drop_path = drop_path(settings.drop_path)
        self.after_block = settings.at("after_block", channels=channels)

    def main_path(self) -> tuple[nn.Module, ...]:
        """The convolutions, which see more than the shortcut."""
        return self.conv1, self.conv2

    def last_norm(self) -> nn.Module:
        """The norm that ends the residual branch."""
        return self.bn2

    def forward(self, x: Tensor) -> Tensor:
        """From `[B, in_channels, H, W]` to `[B, channels, H / stride, W / stride]`."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.after_bn3(self.bn2(self.conv2(out)))
        out = self.drop_path(out)
        out += x if self.downsample is None else self.downsample(x)
        return self.after_block(self.relu(out))


class Bottleneck(Block):
    """A 3x3 convolution between two 1x1, beside a shortcut (ResNet, figure 5, right).

    Args:
        in_channels: channels of the input.
        channels: of the 3x3 convolution, if it has one group of 64 in 64; four times as many come
            out.
        settings: everything else.
    """

    expansion = 4

    def __init__(self, in_channels: int, channels: int, settings: BlockSettings) -> None:
        super().__init__(in_channels, channels, settings)
        inner = channels * settings.group_width // 64 * settings.groups
        out_channels = channels * self.expansion
        first, second = (settings.stride, 1) if settings.stride_first else (1, settings.stride)
        self.conv1 = settings.conv(
            conv1x1(in_channels, inner, first), map_stride=settings.map_stride
        )
        self.bn1 = settings.norm(inner)
        self.conv2 = settings.conv(
            conv3x3(inner, inner, second, dilation=settings.dilation, groups=settings.groups),
            map_stride=settings.map_stride * first,
            second=True,
        )
        self.bn2 = settings.norm(inner)
        self.after_bn2 = settings.at("after_bn2", channels=inner)
        self.conv3 = settings.conv(conv1x1(inner, out_channels), map_stride=settings.out_stride)
        self.bn3 = settings.norm(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = shortcut(in_channels, out_channels, settings)
        self.after_bn3 = settings.at("after_bn3", channels=out_channels)
        self.drop_path = drop_path(settings.drop_path)
        self.after_block = settings.at("after_block", channels=out_channels)

    def main_path(self) -> tuple[nn.Module, ...]:
        """The convolutions, which see more than the shortcut."""
        return self.conv1, self.conv2, self.conv3

    def last_norm(self) -> nn.Module:
        """The norm that ends the residual branch."""
        return self.bn3

    def forward(self, x: Tensor) -> Tensor:
        """From `[B, in_channels, H, W]` to `[B, 4 * channels, H / stride, W / stride]`."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.after_bn2(self.relu(self.bn2(self.conv2(out))))
        out = self.after_bn3(self.bn3(self.conv3(out)))
        out = self.drop_path(out)
        out += x if self.downsample is None else self.downsample(x)
        return self.after_block(self.relu(out))


def conv1x1(in_channels: int, channels: int, stride: int = 1) -> nn.Conv2d:
    """A 1x1 convolution as all blocks use it."""
    return nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False)


def conv3x3(
    in_channels: int, channels: int, stride: int = 1, *, dilation: int = 1, groups: int = 1
) -> nn.Conv2d:
    """A 3x3 convolution that keeps the size of the map, as all blocks use it."""
    return nn.Conv2d(
        in_channels,
        channels,
        3,
        stride=stride,
        padding=dilation,
        dilation=dilation,
        groups=groups,
        bias=False,
    )


def shortcut(in_channels: int, channels: int, settings: BlockSettings) -> nn.Sequential | None:
    """A projection where the shape changes (option B of ResNet's section 4.1), else None."""
    if settings.stride == 1 and in_channels == channels:
        return None
    if not settings.pool_shortcut:
        conv = conv1x1(in_channels, channels, settings.stride)
        conv = settings.conv(conv, map_stride=settings.map_stride)
        return nn.Sequential(conv, settings.norm(channels))
    pool: nn.Module = nn.Identity()
    if settings.stride > 1:
        pool = nn.AvgPool2d(2, settings.stride, ceil_mode=True, count_include_pad=False)
    conv = settings.conv(conv1x1(in_channels, channels), map_stride=settings.out_stride)
    return nn.Sequential(pool, conv, settings.norm(channels))


def drop_path(probability: float) -> nn.Module:
    """Stochastic depth (Huang et al. 2016, arXiv 1603.09382): per image, in training only."""
    return StochasticDepth(probability, "row") if probability else nn.Identity()


class Architecture(NamedTuple):
    """A published network: which blocks, how many in each layer, and how they differ.

    Attributes:
        name: in the registry.
        blocks: the kind of block of each layer.
        depths: how many of them.
        groups: of the 3x3 convolutions.
        group_width: channels of such a group for every 64 channels.
        stride_first: the stride of a bottleneck is on its first 1x1 (v1).
        deep_stem: three 3x3 convolutions instead of one 7x7.
        pool_shortcut: the stride of shortcuts is an average pooling (with the deep stem: model D).
    """

    name: str
    blocks: Sequence[Callable[[int, int, BlockSettings], Block]]
    depths: tuple[int, int, int, int]
    groups: int = 1
    group_width: int = 64
    stride_first: bool = False
    deep_stem: bool = False
    pool_shortcut: bool = False


class Spacing(NamedTuple):
    """How a layer samples the map it gets.

    Attributes:
        map_stride: pixels of the image from one cell of that map to the next.
        stride: of the first block.
        first_dilation: of the first block, which still meets the spacing of the layer before.
        dilation: of the other blocks.
    """

    map_stride: int
    stride: int
    first_dilation: int
    dilation: int


def _spacings(output_stride: int) -> list[Spacing]:
    """Of each layer: beyond the output stride layers dilate instead of striding."""
    spacings = []
    map_stride, dilation = 4, 1
    for stride in (1, 2, 2, 2):
        first = dilation
        if map_stride * stride > output_stride:
            dilation, stride = dilation * stride, 1
        spacings.append(Spacing(map_stride, stride, first, dilation))
        map_stride *= stride
    return spacings


class ResNet(Backbone):
    """Stem, then four layers of residual blocks.

    Args:
        architecture: the kinds of block and how many.
        out_indices: maps to return; 0 is the stem before the max-pool, i is `layer{i}`.
        in_channels: channels of the images.
        attention: where attention stands.
        norm: a name of `detkit.nn.norm_layer`.
        norm_eps: added to the variance by the norm.
        width: channels of the stem; 64 in the published networks, fewer for small machines.
        zero_init_residual: start every block as the identity (Goyal et al. 2017, section 5.1),
            which helps training from scratch.
        drop_path: probability that an image skips the last block in training; it grows linearly
            with the depth (arXiv 1603.09382, equation 4).
        output_stride: 32 as published; 16 or 8 dilate the last layers instead of striding.

    Raises:
        ValueError: a setting is out of its range.
    """

    stage_names = ("stem", "layer1", "layer2", "layer3", "layer4")
    default_out_indices = (1, 2, 3, 4)
    least_width = 1
    attention_positions: tuple[str, ...] = (
        "after_bn3",
        "after_bn2",
        "after_conv2",
        "before_conv2",
        "before_conv",
        "after_block",
        "after_stage",
    )

    def __init__(  # noqa: PLR0913  one keyword for each setting of a recipe
        self,
        architecture: Architecture,
        *,
        out_indices: Sequence[int] | None = None,
        in_channels: int = 3,
        attention: Placement | None = None,
        norm: str = "batch",
        norm_eps: float = 1e-5,
        width: int = 64,
        zero_init_residual: bool = False,
        drop_path: float = 0.0,
        output_stride: int = 32,
    ) -> None:
        super().__init__(architecture.name, in_channels, out_indices, attention)
        # a group keeps a channel, and so does a half
        halves = 2 if architecture.deep_stem else 1
        least = max(self.least_width, halves, 64 // min(64, architecture.group_width))
        if width < least:
            raise ValueError(
                f"width must be at least {least}, got {width}; 64 is the published one"
            )
        if not 0 <= drop_path < 1:
            raise ValueError(f"drop_path is a probability in [0, 1), got {drop_path}")
        if output_stride not in (8, 16, 32):
            raise ValueError(f"output_stride must be 8, 16 or 32, got {output_stride}")
        if zero_init_residual and norm == "frozen_batch":
            raise ValueError(
                "zero_init_residual with norm 'frozen_batch' would never learn; use norm 'batch'"
            )
        make_norm = norm_layer(norm, eps=norm_eps)
        self.architecture = architecture
        self.num_layers = max(self.out_indices)
        self._build_stem(width, make_norm)
        self.channels = width
        shared = BlockSettings(
            make_norm,
            groups=architecture.groups,
            group_width=architecture.group_width,
            stride_first=architecture.stride_first,
            pool_shortcut=architecture.pool_shortcut,
            drop_path=drop_path,
        )
        for index, spacing in enumerate(_spacings(output_stride)[: self.num_layers], start=1):
            blocks = self._layer(index, width * 2 ** (index - 1), shared, spacing)
            self.add_module(f"layer{index}", nn.Sequential(*blocks))
        _initialise(self, zero_init_residual=zero_init_residual)

    def _build_stem(self, width: int, norm: NormLayer) -> None:
        def conv(in_channels: int, channels: int, kernel: int, stride: int) -> nn.Conv2d:
            layer = nn.Conv2d(
                in_channels, channels, kernel, stride=stride, padding=kernel // 2, bias=False
            )
            at = {"stage": 0, "channels": in_channels, "stride": 2 // stride}
            return attended(layer, before=self.attention.module("before_conv", **at))

        if self.architecture.deep_stem:
            half = width // 2
            parts = [conv(self.in_channels, half, 3, 2), norm(half), nn.ReLU(inplace=True)]
            parts += [conv(half, half, 3, 1), norm(half), nn.ReLU(inplace=True)]
            self.conv1: nn.Module = nn.Sequential(*parts, conv(half, width, 3, 1))
        else:
            self.conv1 = conv(self.in_channels, width, 7, 2)
        self.bn1 = norm(width)
        self.relu = nn.ReLU(inplace=True)
        if self.num_layers:
            self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)

    def _layer(
        self, index: int, channels: int, shared: BlockSettings, spacing: Spacing
    ) -> list[nn.Module]:
        """The blocks of `layer{index}`."""
        depth = self.architecture.depths[index - 1]
        block = self.architecture.blocks[index - 1]
        before = sum(self.architecture.depths[: index - 1])
        layer: list[nn.Module] = []
        for position in range(depth):
            first = position == 0
            settings = replace(
                shared,
                attend=partial(self.attention.module, stage=index, block=position, blocks=depth),
                stride=spacing.stride if first else 1,
                dilation=spacing.first_dilation if first else spacing.dilation,
                map_stride=spacing.map_stride if first else spacing.map_stride * spacing.stride,
                # linear in the depth (arXiv 1603.09382, equation 4)
                drop_path=shared.drop_path
                * (before + position + 1)
                / sum(self.architecture.depths),
            )
            built = block(self.channels, channels, settings)
            self.channels = channels * built.expansion
            layer.append(built)
        return layer

    def stages(self) -> list[tuple[nn.Module, ...]]:
        """The stem, `layer1` after the max-pool, and the other layers that were built."""
        layers = [getattr(self, f"layer{index}") for index in range(1, self.num_layers + 1)]
        stem = (self.conv1, self.bn1, self.relu)
        if not layers:
            return [stem]
        return [stem, (self.maxpool, layers[0]), *((layer,) for layer in layers[1:])]

    def head(self, num_classes: int) -> nn.Module:
        """Global average pooling and `fc`."""
        return LogisticHead(self.channels, num_classes)

    def unused_weights(self) -> tuple[str, ...]:
        """The classifier's `fc`, and the layers beyond the last out index."""
        beyond = range(self.num_layers + 1, len(self.stage_names))
        return ("fc.", *(f"layer{index}." for index in beyond))


def _initialise(net: ResNet, *, zero_init_residual: bool) -> None:
    for module in outside_attention(net):
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif zero_init_residual and isinstance(module, Block):
            nn.init.zeros_(module.last_norm().get_parameter("weight"))


_BASIC = (BasicBlock, BasicBlock, BasicBlock, BasicBlock)
_BOTTLENECK = (Bottleneck, Bottleneck, Bottleneck, Bottleneck)

for _architecture in (
    Architecture("resnet18", _BASIC, (2, 2, 2, 2)),
    Architecture("resnet34", _BASIC, (3, 4, 6, 3)),
    Architecture("resnet50", _BOTTLENECK, (3, 4, 6, 3)),
    Architecture("resnet101", _BOTTLENECK, (3, 4, 23, 3)),
    Architecture("resnet152", _BOTTLENECK, (3, 8, 36, 3)),
    Architecture("resnet50_v1", _BOTTLENECK, (3, 4, 6, 3), stride_first=True),
    Architecture("resnet101_v1", _BOTTLENECK, (3, 4, 23, 3), stride_first=True),
    Architecture("resnet152_v1", _BOTTLENECK, (3, 8, 36, 3), stride_first=True),
    Architecture("resnet18d", _BASIC, (2, 2, 2, 2), deep_stem=True, pool_shortcut=True),
    Architecture("resnet26d", _BOTTLENECK, (2, 2, 2, 2), deep_stem=True, pool_shortcut=True),
    Architecture("resnet34d", _BASIC, (3, 4, 6, 3), deep_stem=True, pool_shortcut=True),
    Architecture("resnet50d", _BOTTLENECK, (3, 4, 6, 3), deep_stem=True, pool_shortcut=True),
    Architecture("resnet101d", _BOTTLENECK, (3, 4, 23, 3), deep_stem=True, pool_shortcut=True),
    Architecture("resnet152d", _BOTTLENECK, (3, 8, 36, 3), deep_stem=True, pool_shortcut=True),
    Architecture("resnext50_32x4d", _BOTTLENECK, (3, 4, 6, 3), groups=32, group_width=4),
    Architecture("resnext101_32x8d", _BOTTLENECK, (3, 4, 23, 3), groups=32, group_width=8),
    Architecture("wide_resnet50_2", _BOTTLENECK, (3, 4, 6, 3), group_width=128),
    Architecture("wide_resnet101_2", _BOTTLENECK, (3, 4, 23, 3), group_width=128),
):
    backbones.register(_architecture.name)(partial(ResNet, _architecture))
