"""ResNet (He et al. 2015, sections 3.3 and 4.1), with the stride of a bottleneck on its 3x3.

That place of the stride ("v1.5") and all names are torchvision's, so that its weights load as
they are. B batch, C channels, H, W height and width.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import ClassVar, NamedTuple

from torch import Tensor, nn

from detkit.backbones.base import Backbone, PooledLinear
from detkit.nn import NormLayer, norm_layer
from detkit.registry import backbones


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut (figure 5, left).

    Args:
        in_channels: channels of the input.
        channels: channels of both convolutions.
        stride: of the first convolution.
        norm: builds the norms.
    """

    expansion = 1  # output channels per inner channel

    def __init__(self, in_channels: int, channels: int, *, stride: int, norm: NormLayer) -> None:
        super().__init__()
        self.conv1 = _conv3x3(in_channels, channels, stride=stride)
        self.bn1 = norm(channels)
        self.conv2 = _conv3x3(channels, channels)
        self.bn2 = norm(channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(in_channels, channels, stride=stride, norm=norm)

    def main_path(self) -> tuple[nn.Module, ...]:
        """The convolutions, which see more than the shortcut."""
        return self.conv1, self.conv2

    def forward(self, x: Tensor) -> Tensor:
        """From `[B, in_channels, H, W]` to `[B, channels, H / stride, W / stride]`."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += x if self.downsample is None else self.downsample(x)
        return self.relu(out)


class Bottleneck(nn.Module):
    """A 3x3 convolution between two 1x1, beside a shortcut (figure 5, right).

    Args:
        in_channels: channels of the input.
        channels: channels of the 3x3 convolution; four times as many come out.
        stride: of the 3x3 convolution.
        norm: builds the norms.
    """

    expansion = 4

    def __init__(self, in_channels: int, channels: int, *, stride: int, norm: NormLayer) -> None:
        super().__init__()
        out_channels = channels * self.expansion
        self.conv1 = nn.Conv2d(in_channels, channels, kernel_size=1, bias=False)
        self.bn1 = norm(channels)
        self.conv2 = _conv3x3(channels, channels, stride=stride)
        self.bn2 = norm(channels)
        self.conv3 = nn.Conv2d(channels, out_channels, kernel_size=1, bias=False)
        self.bn3 = norm(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(in_channels, out_channels, stride=stride, norm=norm)

    def main_path(self) -> tuple[nn.Module, ...]:
        """The convolutions, which see more than the shortcut."""
        return self.conv1, self.conv2, self.conv3

    def forward(self, x: Tensor) -> Tensor:
        """From `[B, in_channels, H, W]` to `[B, 4 * channels, H / stride, W / stride]`."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        out += x if self.downsample is None else self.downsample(x)
        return self.relu(out)


def _conv3x3(in_channels: int, channels: int, *, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)


def _shortcut(
    in_channels: int, channels: int, *, stride: int, norm: NormLayer
) -> nn.Sequential | None:
    """A projection where the shape changes (option B of section 4.1), otherwise the identity."""
    if stride == 1 and in_channels == channels:
        return None
    conv = nn.Conv2d(in_channels, channels, kernel_size=1, stride=stride, bias=False)
    return nn.Sequential(conv, norm(channels))


class Architecture(NamedTuple):
    """A row of the paper's table 1: the kind of block, and how many in each layer."""

    name: str
    block: type[BasicBlock] | type[Bottleneck]
    depths: tuple[int, int, int, int]


class ResNet(Backbone):
    """Stem, then four layers of residual blocks.

    Args:
        architecture: the kind of block and how many.
        out_indices: maps to return; 0 is the stem before the max-pool, i is `layer{i}`.
        in_channels: channels of the images.
        norm: "batch", "frozen_batch" or "group".
        norm_eps: added to the variance by the norm.
        width: channels of the stem; 64 in the published networks, fewer for small machines.
        zero_init_residual: start every block as the identity (Goyal et al. 2017, section 5.1),
            which helps training from scratch.

    Raises:
        ValueError: a setting is out of its range.
    """

    stage_names: ClassVar[tuple[str, ...]] = ("stem", "layer1", "layer2", "layer3", "layer4")

    def __init__(
        self,
        architecture: Architecture,
        *,
        out_indices: Sequence[int] = (1, 2, 3, 4),
        in_channels: int = 3,
        norm: str = "batch",
        norm_eps: float = 1e-5,
        width: int = 64,
        zero_init_residual: bool = False,
    ) -> None:
        super().__init__(architecture.name, in_channels, out_indices)
        if width < 1:
            raise ValueError(f"width must be at least 1, got {width}; 64 is the published one")
        if zero_init_residual and norm == "frozen_batch":
            raise ValueError(
                "zero_init_residual with norm 'frozen_batch' would never learn; use norm 'batch'"
            )
        make_norm = norm_layer(norm, eps=norm_eps)
        self.conv1 = nn.Conv2d(in_channels, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = make_norm(width)
        self.relu = nn.ReLU(inplace=True)
        self.num_layers = max(self.out_indices)
        if self.num_layers:
            self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        block = architecture.block
        self.channels = width
        for index in range(1, self.num_layers + 1):
            blocks = []
            for position in range(architecture.depths[index - 1]):
                stride = 2 if index > 1 and position == 0 else 1
                inner = width * 2 ** (index - 1)
                blocks.append(block(self.channels, inner, stride=stride, norm=make_norm))
                self.channels = inner * block.expansion
            self.add_module(f"layer{index}", nn.Sequential(*blocks))
        _initialise(self, zero_init_residual=zero_init_residual)

    def stages(self) -> list[tuple[nn.Module, ...]]:
        """The stem, `layer1` after the max-pool, and the other layers that were built."""
        layers = [getattr(self, f"layer{index}") for index in range(1, self.num_layers + 1)]
        stem = (self.conv1, self.bn1, self.relu)
        if not layers:
            return [stem]
        return [stem, (self.maxpool, layers[0]), *((layer,) for layer in layers[1:])]

    def head(self, num_classes: int) -> nn.Module:
        """Global average pooling and `fc`."""
        return PooledLinear(self.channels, num_classes)

    def unused_weights(self) -> tuple[str, ...]:
        """The classifier's `fc`, and the layers beyond the last out index."""
        beyond = range(self.num_layers + 1, len(self.stage_names))
        return ("fc.", *(f"layer{index}." for index in beyond))


def _initialise(net: nn.Module, *, zero_init_residual: bool) -> None:
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif zero_init_residual and isinstance(module, BasicBlock | Bottleneck):
            last = module.bn3 if isinstance(module, Bottleneck) else module.bn2
            nn.init.zeros_(last.get_parameter("weight"))


for _architecture in (
    Architecture("resnet18", BasicBlock, (2, 2, 2, 2)),
    Architecture("resnet34", BasicBlock, (3, 4, 6, 3)),
    Architecture("resnet50", Bottleneck, (3, 4, 6, 3)),
    Architecture("resnet101", Bottleneck, (3, 4, 23, 3)),
    Architecture("resnet152", Bottleneck, (3, 8, 36, 3)),
):
    backbones.register(_architecture.name)(partial(ResNet, _architecture))
