"""What a map is like, read off the layers that make it: stride, receptive field, centre."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from torch import nn

from detkit.backbones.placement import is_attention


@dataclass(frozen=True, slots=True)
class FeatureInfo:
    """A map that a backbone hands out.

    Attributes:
        name: the stage it comes from ("layer1").
        channels: its channels.
        stride: pixels of the image from one cell to the next.
        receptive_field: side in pixels of the square of the image that one cell depends on, the
            largest where cells differ; None where nobody knows.
        center: pixel, counted from 0, that the first cell stands on, cell i standing on `center +
            i * stride`. It is the centre of the receptive field, unless the way through coarser
            maps reaches further to one side. Not a whole number where the receptive field is even.
    """

    name: str
    channels: int
    stride: int
    receptive_field: int | None
    center: float


@runtime_checkable
class Branching(Protocol):
    """A module with several ways through it; `out_channels` where they are put side by side."""

    def main_path(self) -> tuple[nn.Module, ...]:
        """The layers along the way that sees most of the image, in order."""
        ...


class Upsampling(nn.Module):
    """A layer with more cells at its output than at its input.

    Attributes:
        factor: how many times as many.
        shift: where the first cell of the output stands beside that of the input, in its cells.
    """

    factor: int
    shift: float

    def source(self, first: int, last: int) -> tuple[int, int]:
        """First and last cell of the input that those cells of the output depend on."""
        raise NotImplementedError


def layers_along(module: nn.Module) -> Iterator[nn.Module]:
    """The layers that move or widen what a cell sees, along the way that sees most, in order.

    Attention is left out: with it nearly every cell depends on the whole image.

    Raises:
        TypeError: the module has parts but does not say in which order they run.
    """
    if is_attention(module):
        return
    if isinstance(module, Upsampling) or hasattr(module, "kernel_size"):
        yield module
    elif isinstance(module, Branching):
        for part in module.main_path():
            yield from layers_along(part)
        if hasattr(module, "out_channels"):
            yield module
    elif isinstance(module, nn.Sequential):
        for part in module:
            yield from layers_along(part)
    elif any(True for _ in module.children()):
        raise TypeError(f"{type(module).__name__} needs a main_path() to be described")


def describe(name: str, in_channels: int, modules: Iterable[nn.Module]) -> FeatureInfo:
    """Describe the map that modules make of an image, one after the other.

    A layer of kernel k, dilation d and padding p on a map of stride j moves the centre by
    (d (k - 1) / 2 - p) j, and its own stride s multiplies j. What a cell depends on is followed
    back to the image: cells i to j of a layer's output depend on i s - p to j s - p + d (k - 1) of
    its input. The borders of the image are taken to be far away.

    Args:
        name: of the map.
        in_channels: of the image.
        modules: from the image on.
    """
    layers = [layer for module in modules for layer in layers_along(module)]
    channels, stride, coarsest, center = in_channels, 1, 1, 0.0
    for layer in layers:
        channels = getattr(layer, "out_channels", channels)
        if isinstance(layer, Upsampling):
            stride //= layer.factor
            center += layer.shift * stride
        elif hasattr(layer, "kernel_size"):
            first, last = _source(layer, 0, 0)
            center += (first + last) / 2 * stride
            stride *= _largest(layer.stride)
        coarsest = max(coarsest, stride)
    # cells differ where maps inside were coarser than the one that comes out
    cells = range(max(1, coarsest // stride))
    seen = [_pixels_behind(cell, layers) for cell in cells]
    widest = max(last - first + 1 for first, last in seen)
    return FeatureInfo(name, channels, stride, receptive_field=widest, center=center)


def _pixels_behind(cell: int, layers: list[nn.Module]) -> tuple[int, int]:
    """First and last pixel that a cell behind the layers depends on, along one axis."""
    first = last = cell
    for layer in reversed(layers):
        if isinstance(layer, Upsampling):
            first, last = layer.source(first, last)
        elif hasattr(layer, "kernel_size"):
            first, last = _source(layer, first, last)
    return first, last


def least_side(modules: Iterable[nn.Module], *, cells: int = 1) -> int:
    """Side in pixels of the smallest image whose map has so many cells.

    Args:
        modules: from the image to the map.
        cells: along a side of the map.
    """
    layers = [layer for module in modules for layer in layers_along(module)]
    for layer in reversed(layers):
        if isinstance(layer, Upsampling):
            cells = -(-cells // layer.factor)
        elif hasattr(layer, "kernel_size"):
            first, last = _source(layer, 0, cells - 1)  # the padding comes for free: -first cells
            # rounding up, a window may hang over the border, but for its first cell
            hanging = _largest(layer.stride) - 1 if getattr(layer, "ceil_mode", False) else 0
            cells = max(1, last + 1 + first - hanging)
    return cells


def _source(layer: Any, first: int, last: int) -> tuple[int, int]:
    reach = _reach(layer)
    padding = reach // 2 if layer.padding == "same" else _largest(layer.padding)
    stride = _largest(layer.stride)
    return first * stride - padding, last * stride - padding + reach


def _reach(layer: Any) -> int:
    return _largest(getattr(layer, "dilation", 1)) * (_largest(layer.kernel_size) - 1)


def _largest(size: Any) -> int:
    return int(max(size)) if isinstance(size, tuple) else int(size)
