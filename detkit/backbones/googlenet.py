"""GoogLeNet: branches of 1x1, 3x3 and 5x5 convolutions and a max-pool, side by side.

Szegedy et al. 2014 (arXiv 1409.4842, table 1 and figures 2 and 3). `googlenet` is torchvision's,
and all names are torchvision's, so that its weights load as they are; it has batch norm, and 3x3
convolutions where the paper has 5x5 (pytorch/vision issue 906). `googlenet_original` has the 5x5,
biases and local response normalisation, and no batch norm.
B batch, C channels, H, W height and width, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import GoogLeNetOutputs

from detkit.backbones.base import Backbone
from detkit.backbones.placement import Placement, outside_attention
from detkit.backbones.weights import StateDict
from detkit.nn import NormLayer, norm_layer
from detkit.registry import backbones


class Version(NamedTuple):
    """In what the two networks differ.

    Attributes:
        name: in the registry.
        norm: behind each convolution, whose bias it replaces; None for none.
        largest_kernel: of the third branch.
        last_pool: kernel of the max-pool before the last stage.
        response_norm: local response normalisation around the first convolutions.
        dropout: before the classifier.
        aux_pool: before an auxiliary classifier, a map -> `[B, C, 4, 4]`.
    """

    name: str
    norm: str | None
    largest_kernel: int
    last_pool: int
    response_norm: bool
    dropout: float
    aux_pool: Callable[[Tensor], Tensor]


class Widths(NamedTuple):
    """Channels of an Inception module, in the order of table 1.

    Attributes:
        one: of the 1x1 branch.
        three_reduce: of the 1x1 before the 3x3.
        three: of the 3x3.
        five_reduce: of the 1x1 before the 5x5.
        five: of the 5x5.
        pool: of the 1x1 behind the max-pool.
    """

    one: int
    three_reduce: int
    three: int
    five_reduce: int
    five: int
    pool: int

    @property
    def out_channels(self) -> int:
        """Channels of the four branches side by side."""
        return self.one + self.three + self.five + self.pool


_INCEPTIONS = {
    "inception3a": Widths(64, 96, 128, 16, 32, 32),
    "inception3b": Widths(128, 128, 192, 32, 96, 64),
    "inception4a": Widths(192, 96, 208, 16, 48, 64),
    "inception4b": Widths(160, 112, 224, 24, 64, 64),
    "inception4c": Widths(128, 128, 256, 24, 64, 64),
    "inception4d": Widths(112, 144, 288, 32, 64, 64),
    "inception4e": Widths(256, 160, 320, 32, 128, 128),
    "inception5a": Widths(256, 160, 320, 32, 128, 128),
    "inception5b": Widths(384, 192, 384, 48, 128, 128),
}
# of each stage its modules; those between two others are attributes of the network
_STAGES = {
    "conv1": ("transform", "conv1"),
    "conv3": ("maxpool1", "norm1", "conv2", "conv3"),
    "inception3b": ("norm2", "maxpool2", "inception3a", "inception3b"),
    "inception4a": ("maxpool3", "inception4a"),
    "inception4d": ("inception4b", "inception4c", "inception4d"),
    "inception4e": ("inception4e",),
    "inception5b": ("maxpool4", "inception5a", "inception5b"),
}


class InputTransform(nn.Module):
    """From ImageNet's mean and deviation to a mean and deviation of 0.5 in every channel.

    The published weights were learnt with such images. Other numbers of channels repeat R, G, B
    in turn, as their kernels do; a single one gets the mean, which is near, but not what the
    colour network gives.

    Args:
        channels: of the images.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        scales = [deviation / 0.5 for deviation in (0.229, 0.224, 0.225)]
        shifts = [(mean - 0.5) / 0.5 for mean in (0.485, 0.456, 0.406)]
        if channels == 1:
            scales, shifts = [sum(scales) / 3], [sum(shifts) / 3]
        pairs = list(zip(scales, shifts, strict=True))
        self.pairs = [pairs[channel % len(pairs)] for channel in range(channels)]

    def forward(self, images: Tensor) -> Tensor:
        """Scale and shift `[B, channels, H, W]`."""
        channels = images.split(1, dim=1)
        moved = [x * scale + shift for x, (scale, shift) in zip(channels, self.pairs, strict=True)]
        return torch.cat(moved, dim=1)


class BasicConv2d(nn.Module):
    """Convolution, norm, ReLU; where there is no norm the convolution has a bias.

    Args:
        in_channels: channels of the input.
        channels: channels of the output.
        kernel: side of the kernel; the borders are padded so that the map keeps its size.
        norm: builds the norm; None for none.
        stride: of the convolution.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        kernel: int,
        *,
        norm: NormLayer | None,
        stride: int = 1,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            in_channels, channels, kernel, stride=stride, padding=kernel // 2, bias=norm is None
        )
        self.bn = norm(channels) if norm else nn.Identity()

    def main_path(self) -> tuple[nn.Module, ...]:
        """The convolution."""
        return (self.conv,)

    def forward(self, x: Tensor) -> Tensor:
        """From `[B, in_channels, H, W]` to `[B, channels, H / stride, W / stride]`."""
        return F.relu(self.bn(self.conv(x)), inplace=True)


class Inception(nn.Module):
    """Four branches side by side (GoogLeNet, figure 2 b).

    Args:
        in_channels: channels of the input.
        widths: channels of the branches.
        kernel: of the third branch.
        norm: builds the norms; None for none.
        after: attention to the output, or None.
    """

    def __init__(
        self,
        in_channels: int,
        widths: Widths,
        *,
        kernel: int,
        norm: NormLayer | None,
        after: nn.Module | None = None,
    ) -> None:
        super().__init__()
        conv = partial(BasicConv2d, norm=norm)
        self.out_channels = widths.out_channels
        self.branch1 = conv(in_channels, widths.one, 1)
        self.branch2 = nn.Sequential(
            conv(in_channels, widths.three_reduce, 1), conv(widths.three_reduce, widths.three, 3)
        )
        self.branch3 = nn.Sequential(
            conv(in_channels, widths.five_reduce, 1), conv(widths.five_reduce, widths.five, kernel)
        )
        self.branch4 = nn.Sequential(
            nn.MaxPool2d(3, stride=1, padding=1, ceil_mode=True), conv(in_channels, widths.pool, 1)
        )
        self.after_block = nn.Identity() if after is None else after

    def main_path(self) -> tuple[nn.Module, ...]:
        """The branch with the largest kernel; its channels are not all that come out."""
        return (self.branch3,)

    def forward(self, x: Tensor) -> Tensor:
        """From `[B, in_channels, H, W]` to `[B, out_channels, H, W]`."""
        branches = [self.branch1(x), self.branch2(x), self.branch3(x), self.branch4(x)]
        return self.after_block(torch.cat(branches, dim=1))


class AuxiliaryClassifier(nn.Module):
    """A classifier on a map in the middle, which helps the first layers learn (section 5).

    Args:
        in_channels: channels of the map.
        num_classes: K.
        norm: builds the norm; None for none.
        pool: map -> `[B, in_channels, 4, 4]`.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        *,
        norm: NormLayer | None,
        pool: Callable[[Tensor], Tensor],
    ) -> None:
        super().__init__()
        self.pool = pool
        self.conv = BasicConv2d(in_channels, 128, 1, norm=norm)
        self.fc1 = nn.Linear(128 * 4 * 4, 1024)
        self.fc2 = nn.Linear(1024, num_classes)
        self.dropout = nn.Dropout(0.7)

    def forward(self, x: Tensor) -> Tensor:
        """From `[B, in_channels, H, W]` to logits `[B, K]`."""
        x = self.conv(self.pool(x)).flatten(1)  # [B, 2048]
        return self.fc2(self.dropout(F.relu(self.fc1(x), inplace=True)))


def adaptive_pool(x: Tensor) -> Tensor:
    """From `[B, C, H, W]` to `[B, C, 4, 4]`, as torchvision does it."""
    return F.adaptive_avg_pool2d(x, (4, 4))


def window_pool(x: Tensor) -> Tensor:
    """From `[B, C, H, W]` to `[B, C, 4, 4]`: windows of 5x5 at stride 3, made for 14x14 maps."""
    if min(x.shape[-2:]) >= 5:
        x = F.avg_pool2d(x, 5, stride=3)
    return F.adaptive_avg_pool2d(x, (4, 4))  # nothing to do if it was 14x14


class Head(nn.Module):
    """Global average pooling, dropout, and one linear layer; in training the auxiliary ones too.

    Args:
        num_classes: K.
        version: which network it belongs to.
        norm: builds the norms of the auxiliary classifiers; None for none.
        auxiliary: whether there are any.
    """

    def __init__(
        self, num_classes: int, version: Version, *, norm: NormLayer | None, auxiliary: bool
    ) -> None:
        super().__init__()
        self.auxiliary = auxiliary
        if auxiliary:
            build = partial(AuxiliaryClassifier, norm=norm, pool=version.aux_pool)
            self.aux1 = build(_INCEPTIONS["inception4a"].out_channels, num_classes)
            self.aux2 = build(_INCEPTIONS["inception4d"].out_channels, num_classes)
        self.dropout = nn.Dropout(version.dropout)
        self.fc = nn.Linear(_INCEPTIONS["inception5b"].out_channels, num_classes)
        _initialise(self, normed=norm is not None)

    def forward(self, maps: Sequence[Tensor]) -> Tensor | GoogLeNetOutputs:
        """From the last of the maps, `[B, 1024, H, W]`, to logits `[B, K]`.

        Args:
            maps: of "inception4a", "inception4d" and "inception5b" with auxiliary classifiers.

        Returns:
            The logits; with auxiliary classifiers in training torchvision's named tuple of
            `logits`, `aux_logits2` and `aux_logits1`.
        """
        logits = self.fc(self.dropout(maps[-1].mean(dim=(2, 3))))
        if not (self.auxiliary and self.training):
            return logits
        return GoogLeNetOutputs(logits, self.aux2(maps[1]), self.aux1(maps[0]))


class GoogLeNet(Backbone):
    """Three convolutions, then nine Inception modules.

    Args:
        version: torchvision's or the published one.
        out_indices: maps to return; 0 is `conv1`, 1 `conv3`, the others the Inception modules
            3b, 4a, 4d, 4e and 5b.
        in_channels: channels of the images.
        attention: where attention stands.
        norm: a name of `detkit.nn.norm_layer`; None for that of the version.
        norm_eps: added to the variance by the norm.
        aux_logits: give the classifier two auxiliary classifiers, which take part in training.
        transform_input: the images are normalised by ImageNet's mean and deviation, but the
            weights want 0.5 for both. Torchvision's published weights do, and switch it on.
    """

    stage_names = tuple(_STAGES)
    default_out_indices = (1, 2, 5, 6)
    attention_positions = ("after_block", "after_stage")
    published_settings: Mapping[str, Any] = MappingProxyType({"transform_input": True})

    def __init__(
        self,
        version: Version,
        *,
        out_indices: Sequence[int] | None = None,
        in_channels: int = 3,
        attention: Placement | None = None,
        norm: str | None = None,
        norm_eps: float = 1e-3,
        aux_logits: bool = False,
        transform_input: bool = False,
    ) -> None:
        super().__init__(version.name, in_channels, out_indices, attention)
        name = norm or version.norm
        self.version = version
        self.norm = norm_layer(name, eps=norm_eps) if name else None
        self.aux_logits = aux_logits
        if aux_logits:
            self.head_indices = (3, 4, 6)
        self.transform = InputTransform(in_channels) if transform_input else nn.Identity()
        self.num_stages = max(self.out_indices) + 1
        self._build_stem()
        self._build_inceptions()
        _initialise(self, normed=self.norm is not None)

    def _build_stem(self) -> None:
        conv = partial(BasicConv2d, norm=self.norm)
        self.conv1 = conv(self.in_channels, 64, 7, stride=2)
        if self.num_stages < 2:
            return
        self.maxpool1 = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        self.norm1 = _response_norm(self.version)
        self.conv2 = conv(64, 64, 1)
        self.conv3 = conv(64, 192, 3)
        if self.num_stages > 2:
            self.norm2 = _response_norm(self.version)
            self.maxpool2 = nn.MaxPool2d(3, stride=2, ceil_mode=True)

    def _build_inceptions(self) -> None:
        channels, stride = 192, 8
        stages = list(_STAGES.values())[: self.num_stages]
        for index, names in enumerate(stages):
            blocks = [name for name in names if name in _INCEPTIONS]
            if "maxpool3" in names:
                self.maxpool3 = nn.MaxPool2d(3, stride=2, ceil_mode=True)
                stride *= 2
            if "maxpool4" in names:
                self.maxpool4 = nn.MaxPool2d(self.version.last_pool, stride=2, ceil_mode=True)
                stride *= 2
            for position, name in enumerate(blocks):
                widths = _INCEPTIONS[name]
                after = self.attention.module(
                    "after_block",
                    stage=index,
                    channels=widths.out_channels,
                    stride=stride,
                    block=position,
                    blocks=len(blocks),
                )
                kernel = self.version.largest_kernel
                block = Inception(channels, widths, kernel=kernel, norm=self.norm, after=after)
                self.add_module(name, block)
                channels = widths.out_channels

    def stages(self) -> list[tuple[nn.Module, ...]]:
        """The stages that were built; a max-pool belongs to the stage behind it."""
        built = list(_STAGES.values())[: self.num_stages]
        return [tuple(getattr(self, name) for name in names) for names in built]

    def head(self, num_classes: int) -> nn.Module:
        """Global average pooling and `fc`, and `aux1` and `aux2` if they were asked for."""
        return Head(num_classes, self.version, norm=self.norm, auxiliary=self.aux_logits)

    def unused_weights(self) -> tuple[str, ...]:
        """The classifier, and what lies beyond the last out index."""
        beyond = list(_STAGES.values())[self.num_stages :]
        return ("fc.", "aux1.", "aux2.", *(f"{name}." for names in beyond for name in names))

    def read_weights(self, weights: str | Path, *, whole: bool) -> StateDict:
        """Read what `weights=` stands for, without the auxiliary classifiers if there are none."""
        state = super().read_weights(weights, whole=whole)
        if self.aux_logits:
            return state
        return {
            key: value for key, value in state.items() if not key.startswith(("aux1.", "aux2."))
        }


def _response_norm(version: Version) -> nn.Module:
    # figure 3 shows where; the paper gives no constants: these are those of Caffe's model
    return nn.LocalResponseNorm(5, alpha=1e-4) if version.response_norm else nn.Identity()


def _initialise(net: nn.Module, *, normed: bool) -> None:
    for module in outside_attention(net):
        if not isinstance(module, (nn.Conv2d, nn.Linear)):
            continue
        if normed:  # torchvision's choice
            nn.init.trunc_normal_(module.weight, std=0.01, a=-2, b=2)
        else:  # 22 layers without a norm need weights that keep the size of the activations
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            nn.init.zeros_(module.bias)  # type: ignore[arg-type]


_TORCHVISION = Version("googlenet", "batch", 3, 2, False, 0.2, adaptive_pool)
_ORIGINAL = Version("googlenet_original", None, 5, 3, True, 0.4, window_pool)

backbones.register("googlenet")(partial(GoogLeNet, _TORCHVISION))
backbones.register("googlenet_original")(partial(GoogLeNet, _ORIGINAL))
