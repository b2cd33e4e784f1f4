"""Plain networks: one chain of convolutions, activations and pools, cut into stages.

Such a network is a table: the layers of each stage, in order, a pool first. This file turns the
table into modules, which are numbered through in `features` as torchvision numbers them.
B batch, C, D channels, H, W height and width, k side of a window, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from math import prod
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detkit.backbones.base import Backbone
from detkit.backbones.feature_info import least_side
from detkit.backbones.placement import Placement
from detkit.nn import NormLayer, norm_layer


class Layer(Protocol):
    """A row of the table."""

    @property
    def stride(self) -> int:
        """As published."""
        ...

    def modules(
        self, in_channels: int, *, stride: int, dilation: int, norm: NormLayer | None
    ) -> list[nn.Module]:
        """What runs one after the other.

        Args:
            in_channels: channels of the map it reads.
            stride: the published one, or 1 where the map is kept dense.
            dilation: cells of that map from one tap of its kernel to the next.
            norm: builds the norm behind a convolution, None for none.
        """
        ...


def relu() -> nn.Module:
    """The activation of nearly all of them."""
    return nn.ReLU(inplace=True)


@dataclass(frozen=True)
class Conv:
    """A convolution, the norm that was asked for, and an activation.

    Attributes:
        channels: that come out.
        kernel: side of the kernel.
        stride: of the kernel.
        padding: cells of zeros at each border.
        groups: of channels that do not see each other.
        kind: the class of the convolution.
        activation: builds the activation.
        response_norm: local response normalisation behind it (AlexNet, section 3.3).
    """

    channels: int
    kernel: int
    stride: int = 1
    padding: int = 0
    groups: int = 1
    kind: Callable[..., nn.Module] = nn.Conv2d
    activation: Callable[[], nn.Module] = relu
    response_norm: bool = False

    def modules(
        self, in_channels: int, *, stride: int, dilation: int, norm: NormLayer | None
    ) -> list[nn.Module]:
        """Convolution, norm, activation, response norm."""
        conv = self.kind(
            in_channels,
            self.channels,
            self.kernel,
            stride=stride,
            padding=self.padding * dilation,
            dilation=dilation,
            groups=self.groups,
        )
        norms = [] if norm is None else [norm(self.channels)]
        # torch divides alpha by the size, the paper does not: 5 x 1e-4
        response = [nn.LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=2.0)]
        return [conv, *norms, self.activation(), *(response if self.response_norm else [])]


@dataclass(frozen=True)
class Pool:
    """The maximum of a window.

    Attributes:
        kernel: side of the window.
        stride: of the window.
    """

    kernel: int
    stride: int

    def modules(
        self, in_channels: int, *, stride: int, dilation: int, norm: NormLayer | None
    ) -> list[nn.Module]:
        """One max-pool."""
        return [nn.MaxPool2d(self.kernel, stride=stride, dilation=dilation)]


Table = Mapping[str, Sequence[Layer]]  # name of a stage -> its layers


class _Place(NamedTuple):
    """A layer in its network.

    Attributes:
        layer: the row of the table.
        stage: index of its stage.
        block: how many convolutions of the stage come before it.
        in_channels: channels of the map it reads.
        channels: of the map it makes.
        stride: of the layer.
        dilation: of the layer.
        map_stride: pixels of the image from one cell of the map it makes to the next.
    """

    layer: Layer
    stage: int
    block: int
    in_channels: int
    channels: int
    stride: int
    dilation: int
    map_stride: int

    def modules(self, norm: NormLayer | None) -> list[nn.Module]:
        return self.layer.modules(
            self.in_channels, stride=self.stride, dilation=self.dilation, norm=norm
        )


def _places(table: Table, in_channels: int, output_stride: int | None) -> Iterator[_Place]:
    """All layers in order; beyond the output stride they dilate instead of striding.

    The strided map is every second cell of the dense one, and a layer that dilates by two reads
    just these (the algorithme a trous).
    """
    channels, map_stride, dilation = in_channels, 1, 1
    for stage, layers in enumerate(table.values()):
        block = 0
        for layer in layers:
            dense = output_stride is not None and map_stride * layer.stride > output_stride
            stride, skipped = (1, layer.stride) if dense else (layer.stride, 1)
            map_stride *= stride
            made = layer.channels if isinstance(layer, Conv) else channels
            yield _Place(layer, stage, block, channels, made, stride, dilation, map_stride)
            block += isinstance(layer, Conv)
            channels, dilation = made, dilation * skipped


class PlainNetwork(Backbone):
    """A chain of layers in stages, from a table.

    Args:
        name: what to call it in messages.
        table: the layers of each stage.
        out_indices: maps to return.
        in_channels: channels of the images.
        attention: where attention stands; a block is a convolution with its activation.
        norm: a name of `detkit.nn.norm_layer`, behind each convolution; None for none.
        norm_eps: added to the variance by the norm.
        output_stride: beyond it layers dilate instead of striding; None for as published.

    Raises:
        ValueError: a setting is out of its range.
    """

    attention_positions = ("after_stage", "after_block")

    def __init__(
        self,
        name: str,
        table: Table,
        *,
        out_indices: Sequence[int] | None,
        in_channels: int,
        attention: Placement | None,
        norm: str | None,
        norm_eps: float,
        output_stride: int | None = None,
    ) -> None:
        # without its last pool a network has a stage less than its class says
        self.stage_names = tuple(table)
        self.default_out_indices = tuple(
            index for index in self.default_out_indices if index < len(table)
        )
        blocks = [sum(isinstance(layer, Conv) for layer in layers) for layers in table.values()]
        self.stages_without_blocks = tuple(
            stage for stage, count in zip(table, blocks, strict=True) if not count
        )
        super().__init__(name, in_channels, out_indices, attention)
        self.norm = norm_layer(norm, eps=norm_eps) if norm else None
        self.features = nn.Sequential()
        self.after_block = nn.ModuleDict()  # by the number of the feature that it stands behind
        self.published_stride = prod(layer.stride for layers in table.values() for layer in layers)
        places = list(_places(table, in_channels, output_stride))
        num_stages = max(self.out_indices) + 1
        self._beyond = [place for place in places if place.stage >= num_stages]
        self._ends = [0] * num_stages  # of the stages, in `features`
        for place in places[: len(places) - len(self._beyond)]:
            self.features.extend(place.modules(self.norm))
            self._ends[place.stage] = len(self.features)
            if isinstance(place.layer, Conv):
                self._attend_behind(place, blocks[place.stage])

    def _attend_behind(self, place: _Place, blocks: int) -> None:
        module = self.attention.module(
            "after_block",
            stage=place.stage,
            channels=place.channels,
            stride=place.map_stride,
            block=place.block,
            blocks=blocks,
        )
        if module is not None:
            self.after_block[str(len(self.features) - 1)] = module

    def stages(self) -> list[tuple[nn.Module, ...]]:
        """The stages that were built; a pool belongs to the stage behind it."""
        attended = [
            (layer, self.after_block[str(index)]) if str(index) in self.after_block else (layer,)
            for index, layer in enumerate(self.features)
        ]
        return [
            tuple(chain.from_iterable(attended[start:end]))
            for start, end in pairwise((0, *self._ends))
        ]

    def unused_weights(self) -> tuple[str, ...]:
        """The classifier, and the layers beyond the last out index."""
        with torch.device("meta"):  # only to count them
            beyond = sum(len(place.modules(self.norm)) for place in self._beyond)
        numbers = range(len(self.features), len(self.features) + beyond)
        return ("classifier.", *(f"features.{number}." for number in numbers))


class PooledHead(nn.Module):
    """Average pooling to the published size, then fully connected layers `classifier`.

    Args:
        side: of the map that the layers were made for.
        layers: flattened map -> logits.
    """

    def __init__(self, side: int, layers: nn.Sequential) -> None:
        super().__init__()
        self.avgpool = nn.AdaptiveAvgPool2d(side)
        self.classifier = layers

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """From the last of the maps, `[B, C, H, W]`, to logits `[B, K]`."""
        return self.classifier(self.avgpool(maps[-1]).flatten(1))


class WindowLinear(nn.Linear):
    """A linear layer that reads each k x k window of a map (OverFeat, section 3.5).

    Its weight has the shape of the fully connected layer that it is, `[D, C * k * k]`.

    Args:
        channels: C of the map.
        kernel: k.
        out_features: D.
        dilation: cells of the map from one that it reads to the next.
    """

    def __init__(self, channels: int, kernel: int, out_features: int, dilation: int = 1) -> None:
        super().__init__(channels * kernel * kernel, out_features)
        self.kernel = kernel
        self.dilation = dilation
        self.reach = dilation * (kernel - 1)  # cells from the first that it reads to the last

    def forward(self, x: Tensor) -> Tensor:
        """From `[B, C, H, W]` to `[B, H - reach, W - reach, D]`."""
        kernels = self.weight.unflatten(1, (-1, self.kernel, self.kernel))  # [D, C, k, k]
        return F.conv2d(x, kernels, self.bias, dilation=self.dilation).permute(0, 2, 3, 1)


class WindowHead(nn.Module):
    """Fully connected layers `classifier` that slide over the map; their logits are averaged.

    Args:
        name: of the network, for messages.
        layers: the first reads windows, the others the last dimension.
        least_side: of the images, in pixels.
    """

    def __init__(self, name: str, layers: nn.Sequential, least_side: int) -> None:
        super().__init__()
        self.name = name
        self.classifier = layers
        self.least_side = least_side

    def places(self, maps: Sequence[Tensor]) -> Tensor:
        """Logits `[B, K, H', W']` of each window of the last map, `[B, C, H, W]`.

        Raises:
            ValueError: the map has no window.
        """
        x, first = maps[-1], self.classifier[0]
        assert isinstance(first, WindowLinear)
        # a program that is being traced need not hold the question
        if not torch.compiler.is_compiling() and min(x.shape[2:]) <= first.reach:
            raise ValueError(
                f"the classifier {self.name} needs images of at least {self.least_side}x"
                f"{self.least_side} pixels; give larger ones, or take the backbone alone"
            )
        return self.classifier(x).permute(0, 3, 1, 2)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """From the last of the maps to logits `[B, K]`."""
        return self.places(maps).mean(dim=(2, 3))


def window_head(
    net: PlainNetwork, channels: int, *, kernel: int, hidden: tuple[int, int], num_classes: int
) -> WindowHead:
    """Three fully connected layers, the first of them on windows of the last map.

    Args:
        net: where the map comes from; if it is denser than published, the windows dilate.
        channels: C of the map.
        kernel: k of the windows.
        hidden: what comes out of the first layer and of the second.
        num_classes: K.

    Raises:
        ValueError: the network lacks its last pool.
    """
    if len(net.stage_names) < len(type(net).stage_names):
        raise ValueError(f"the classifier {net.name} reads its last pool; leave last_pool at True")
    dilation = net.published_stride // net.stage_info()[-1].stride
    first = WindowLinear(channels, kernel, hidden[0], dilation)
    layers = fully_connected(first, nn.Linear(*hidden), nn.Linear(hidden[1], num_classes))
    modules = chain.from_iterable(net.stages())
    return WindowHead(net.name, layers, least_side(modules, cells=first.reach + 1))


def fully_connected(*layers: nn.Linear, dropout: float = 0.5) -> nn.Sequential:
    """Linear layers with ReLU and dropout in between."""
    *hidden, last = layers
    parts = [(layer, relu(), nn.Dropout(dropout)) for layer in hidden]
    return nn.Sequential(*chain.from_iterable(parts), last)


def check_output_stride(output_stride: int) -> None:
    """Whether a network with five halvings can have this output stride.

    Raises:
        ValueError: it cannot.
    """
    if output_stride not in (8, 16, 32):
        raise ValueError(f"output_stride must be 8, 16 or 32, got {output_stride}")


def shorten(table: Table, *, last_pool: bool) -> Table:
    """The table, or without its last stage, a lone pool."""
    return table if last_pool else dict(list(table.items())[:-1])
