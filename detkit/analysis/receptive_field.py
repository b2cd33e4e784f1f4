"""The receptive field measured: which pixels a gradient from one cell reaches.

The network is made linear, without attention and with equal positive weights, so that no path
cancels another, none is cut by a zero, and a maximum does not pick one way only. What is left is
its geometry: kernels, strides, paddings, dilations and the order of its layers as it really runs.
Araujo et al. 2019 (doi 10.23915/distill.00021) derive the formulas that this is compared to.
H, W height and width of a map.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode
from torchvision.ops import FrozenBatchNorm2d

from detkit.backbones import Backbone, FeatureInfo
from detkit.backbones.feature_info import Upsampling
from detkit.backbones.placement import is_attention
from detkit.registry import attentions

_FIRST_HEIGHT, _LAST_HEIGHT = 128, 8192
_WIDTH = 33  # a narrow strip costs less; more where networks lose their borders
_LONGEST_CYCLE = 32  # cells after which, at the latest, the same is seen again
_EXACT: Any = {"dtype": torch.float64, "device": "cpu"}  # whatever the defaults are
_NORMS = (_BatchNorm, FrozenBatchNorm2d, nn.GroupNorm, nn.LayerNorm, nn.LocalResponseNorm)
_ACTIVATIONS = (nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.SiLU, nn.GELU, nn.Hardswish)


def measure_receptive_fields(net: Backbone) -> list[FeatureInfo]:
    """What `net.stage_info()` derives, found by gradients instead.

    A picture too low for the largest receptive field is doubled in height until it holds it.

    Args:
        net: a backbone on any device; it is left as it is.

    Returns:
        One for each stage that was built. Strides and receptive fields are vertical ones. Where
        cells differ, as behind an upsampling, the field is the largest of them and the centre the
        mean of what they see.

    Raises:
        ValueError: a receptive field is larger than 8192 pixels, as with attention that the
            network is built of; or the network runs in one piece.
    """
    if not all(net.stages()):
        raise ValueError(f"{net.name} runs as one piece: its stages cannot be told apart")
    names = [info.name for info in net.stage_info()]
    twin = linear_twin(net)
    width = max(_WIDTH, net.least_side)
    measured: dict[str, FeatureInfo] = {}
    for height in _heights(net):
        strip = torch.ones(1, net.in_channels, height, width, requires_grad=True, **_EXACT)
        for name, level in zip(names, _maps_of(twin, strip), strict=False):
            found = None if name in measured else _measure(strip, level, name)
            if found is not None:
                measured[name] = found
        if len(measured) == len(names):
            return [measured[name] for name in names]
    raise ValueError(
        f"a cell of {net.name} sees more than {_LAST_HEIGHT} pixels, as with attention to the "
        "whole image; only a network of local layers has a receptive field to measure"
    )


def _heights(net: Backbone) -> Iterator[int]:
    """Of the strips: odd ones, and even ones too if an upsampling may need them."""
    upsampled = any(isinstance(module, Upsampling) for module in net.modules())
    height = _FIRST_HEIGHT
    while height <= _LAST_HEIGHT:
        yield height + 1
        if upsampled:
            yield height
        height *= 2


def _maps_of(twin: nn.Module, strip: Tensor) -> list[Tensor]:
    """The map of each stage; none where an upsampling stretches its cells, so that they differ.

    It takes n cells to n times its factor, or with corners aligned all but the last one.
    """
    assert isinstance(twin, Backbone)
    stretched = []

    def watch(layer: nn.Module, given: Sequence[Tensor], made: Tensor) -> None:
        assert isinstance(layer, Upsampling)
        before, after = given[0].shape[2], made.shape[2]
        if after != before * layer.factor and after - 1 != (before - 1) * layer.factor:
            stretched.append(layer)

    hooks = [
        module.register_forward_hook(watch)
        for module in twin.modules()
        if isinstance(module, Upsampling)
    ]
    maps, x = [], strip
    with _LinearFunctions():
        for stage in twin.stages():
            for module in stage:
                x = module(x)
            maps.append(x)
    for hook in hooks:
        hook.remove()
    return [] if stretched else maps


def linear_twin(net: nn.Module) -> nn.Module:
    """A copy in float64 with equal positive weights, mean for max, and nothing that is not linear.

    Attention, norms and activations become the identity. Positive weights that sum to one are a
    mean over the channels followed by a mean over the kernel, which takes one channel instead of
    all: a network of any width costs next to nothing.
    """
    return _linear(copy.deepcopy(net)).eval()


def _linear(module: nn.Module) -> nn.Module:
    if isinstance(module, _NORMS + _ACTIVATIONS) or attends(module):
        return nn.Identity()
    if isinstance(module, nn.Conv2d):
        return _Mean(module)
    if isinstance(module, nn.MaxPool2d):
        return nn.AvgPool2d(
            module.kernel_size, module.stride, module.padding, ceil_mode=module.ceil_mode
        )
    for name, parameter in module.named_parameters(recurse=False):
        ones = torch.ones(parameter.shape, **_EXACT)
        setattr(module, name, nn.Parameter(ones, requires_grad=False))
    for name, child in module.named_children():
        setattr(module, name, _linear(child))
    return module


def attends(module: nn.Module) -> bool:
    """Whether it is attention, put in by a setting or built in as in BoTNet."""
    return is_attention(module) or type(module) in [attentions[name] for name in attentions.names()]


class _Mean(nn.Module):
    """A convolution whose weights all are 1 / their number.

    Args:
        conv: the convolution.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.out_channels = conv.out_channels
        self.kernel = nn.Conv2d(
            1,
            1,
            conv.kernel_size,  # type: ignore[arg-type]
            stride=conv.stride,  # type: ignore[arg-type]
            padding=conv.padding,  # type: ignore[arg-type]
            dilation=conv.dilation,  # type: ignore[arg-type]
            bias=False,
            **_EXACT,
        ).requires_grad_(False)
        nn.init.constant_(self.kernel.weight, 1 / self.kernel.weight.numel())

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` to `[B, out_channels, H', W']`, all channels alike."""
        return self.kernel(x.mean(dim=1, keepdim=True)).repeat(1, self.out_channels, 1, 1)


class _OpenGate(torch.autograd.Function):
    """A gate that is always half open and lets every gradient pass: a sigmoid saturates."""

    @staticmethod
    def forward(_: Any, x: Tensor) -> Tensor:
        return torch.full_like(x, 0.5)

    @staticmethod
    def backward(_: Any, gradient: Tensor) -> Tensor:
        return gradient


class _LinearFunctions(TorchFunctionMode):
    """Calls of functions that squash what they are given, wherever a network makes them."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call something linear instead of a sigmoid or tanh."""
        name = getattr(func, "__name__", "")
        if name in ("sigmoid", "hardsigmoid"):
            return _OpenGate.apply(args[0])
        if name == "tanh":
            return args[0]
        return func(*args, **(kwargs or {}))


def _measure(strip: Tensor, level: Tensor, name: str) -> FeatureInfo | None:
    """How the middle cells of a map see the strip; None if they see its border."""
    rows = level.shape[2]
    spans: list[tuple[int, int]] = []
    for row in range(rows // 2, min(rows, rows // 2 + 2 * _LONGEST_CYCLE + 1)):
        first, last = _span(strip, level, row)
        if first == 0 or last == strip.shape[2] - 1:
            return None
        spans.append((first, last))
        cycle = (len(spans) - 1) // 2
        if len(spans) % 2 and cycle and _repeats(spans, cycle):
            stride = (spans[cycle][0] - spans[0][0]) // cycle
            centers = [
                (first + last) / 2 - cell * stride
                for cell, (first, last) in enumerate(spans[:cycle], rows // 2)
            ]
            field = max(last - first for first, last in spans) + 1
            return FeatureInfo(name, level.shape[1], stride, field, sum(centers) / cycle)
    return None


def _repeats(spans: Sequence[tuple[int, int]], cycle: int) -> bool:
    """Whether so many cells further the same is seen, moved by the same distance everywhere."""
    moves = {
        (later[0] - span[0], later[1] - span[1])
        for span, later in zip(spans, spans[cycle:], strict=False)
    }
    return len(moves) == 1 and all(first == last > 0 for first, last in moves)


def _span(strip: Tensor, level: Tensor, row: int) -> tuple[int, int]:
    """First and last row of the strip that a row of the map depends on."""
    (gradient,) = torch.autograd.grad(level[0, :, row].sum(), strip, retain_graph=True)
    rows = gradient[0].abs().sum(dim=(0, 2)).nonzero().flatten()
    return int(rows[0]), int(rows[-1])
