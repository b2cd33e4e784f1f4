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
        center: pixel, counted from 0, that the receptive field of the first cell is centred at;
            that of cell i is centred at `center + i * stride`. Not a whole number where the
            receptive field is even.
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
        shift: how far the first cell moves, in cells of the output.
    """

    factor: int
    shift: float

    def cells(self, count: int) -> int:
        """Cells of the input that so many adjacent ones of the output depend on, at most."""
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
    (d (k - 1) / 2 - p) j, and its own stride s multiplies j. The receptive field is followed from
    the map back to the image: n adjacent cells depend on (n - 1) s + d (k - 1) + 1.

    Args:
        name: of the map.
        in_channels: of the image.
        modules: from the image on.
    """
    layers = [layer for module in modules for layer in layers_along(module)]
    channels, stride, center = in_channels, 1, 0.0
    for layer in layers:
        channels = getattr(layer, "out_channels", channels)
        if isinstance(layer, Upsampling):
            stride //= layer.factor
            center += layer.shift * stride
        elif hasattr(layer, "kernel_size"):
            reach = _reach(layer)
            padding: Any = layer.padding
            center += (reach / 2 if padding == "same" else reach / 2 - _largest(padding)) * stride
            stride *= _largest(layer.stride)
    cells = 1
    for layer in reversed(layers):
        if isinstance(layer, Upsampling):
            cells = layer.cells(cells)
        elif hasattr(layer, "kernel_size"):
            cells = (cells - 1) * _largest(layer.stride) + _reach(layer) + 1
    return FeatureInfo(name, channels, stride, receptive_field=cells, center=center)


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
        elif hasattr(layer, "kernel_size") and layer.padding != "same":
            stride = _largest(layer.stride)
            # rounding up, a window may hang over the border, but for its first cell
            hanging = stride - 1 if getattr(layer, "ceil_mode", False) else 0
            cells = (cells - 1) * stride + _reach(layer) + 1 - 2 * _largest(layer.padding) - hanging
            cells = max(1, cells)
    return cells


def _reach(layer: Any) -> int:
    return _largest(getattr(layer, "dilation", 1)) * (_largest(layer.kernel_size) - 1)


def _largest(size: Any) -> int:
    return int(max(size)) if isinstance(size, tuple) else int(size)
