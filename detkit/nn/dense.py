"""A network of windows run on a whole image: every window in one pass (OverFeat, section 3).

A convolution without padding gives of a large image all that it gives of the windows in it, a
stride apart. Windows less than a stride apart need more: OverFeat pools its last map at every
offset (section 3.3). Here any module with a stride runs on its input at every offset, all of them
side by side in the batch.
B images, F offsets in all, C channels, D features, H and W height and width, h, w of a map.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detkit.structures import Size


class SlidingLinear(nn.Linear):
    """A linear layer on the flattened cells of a window, at every window of a map.

    Args:
        channels: C of the map.
        cells: (rows, columns) of a window.
        out_features: D.
    """

    def __init__(self, channels: int, cells: Size, out_features: int) -> None:
        super().__init__(channels * prod(cells), out_features)
        self.cells = cells

    def forward(self, x: Tensor) -> Tensor:
        """From `[B, C, H, W]` to `[B, H - rows + 1, W - columns + 1, D]`."""
        kernel = self.weight.unflatten(1, (-1, *self.cells))  # [D, C, rows, columns]
        return F.conv2d(x, kernel, self.bias).permute(0, 2, 3, 1)


@dataclass(frozen=True)
class OffsetPlan:
    """At how many offsets to a side each module of a chain runs.

    Attributes:
        strides: of each module.
        offsets: of each module; 1 where it runs as it is.
        skip: of the cells that come out only every `skip`th is wanted.
    """

    strides: tuple[int, ...]
    offsets: tuple[int, ...]
    skip: int

    def run(self, modules: Sequence[Callable[[Tensor], Tensor]], images: Tensor) -> Tensor:
        """Maps `[B * F, C, h, w]` of images `[B, C, H, W]`, all offsets of an image together."""
        x = images
        for module, stride, count in zip(modules, self.strides, self.offsets, strict=True):
            x = module(x if count == 1 else _at_offsets(x, count, stride // count))
        return x

    def part(self, start: int, count: int) -> OffsetPlan:
        """The same for some of the modules, of which it can only `run`."""
        kept = slice(start, start + count)
        return OffsetPlan(self.strides[kept], self.offsets[kept], 1)

    def interleave(self, x: Tensor, batch: int) -> Tensor:
        """Put what was made of the maps, `[B * F, h, w, ...]`, in its order in the image.

        Returns:
            `[B, H', W', ...]`, the cells at the distance that was asked for.
        """
        counts = [count for count in self.offsets if count > 1]
        down = list(range(1, 2 * len(counts), 2))  # dimensions of the offsets, coarsest last
        right = [each + 1 for each in down]
        cells = 2 * len(counts) + 1
        offsets = [count for count in counts for _ in range(2)]
        rows, columns = (side * prod(counts) for side in x.shape[1:3])
        rest = range(cells + 2, cells + x.ndim - 1)
        shape = (batch, rows, columns, *x.shape[3:])
        x = x.unflatten(0, (batch, *offsets))  # [B, down, right, down, right, ..., h, w, ...]
        x = x.permute(0, cells, *reversed(down), cells + 1, *reversed(right), *rest)
        return x.reshape(shape)[:, :: self.skip, :: self.skip]


def plan_offsets(strides: Sequence[int], stride: int) -> OffsetPlan:
    """How to get cells `stride` pixels apart from modules with these strides.

    The last modules run at offsets first, so that those before them do their work once.

    Raises:
        ValueError: there is no such way.
    """
    whole = prod(strides)
    if stride % whole == 0:
        return OffsetPlan(tuple(strides), (1,) * len(strides), stride // whole)
    missing, offsets = whole // stride, []
    for each in reversed(strides):
        count = each if missing % each == 0 else missing
        if whole % stride or each % count:
            raise ValueError(
                f"windows cannot be {stride} pixels of the classifier's input apart in one pass: "
                f"the strides of its layers allow {_allowed(strides)} and multiples of {whole}; "
                "give such a stride, or mode 'crop'"
            )
        offsets.append(count)
        missing //= count
    return OffsetPlan(tuple(strides), tuple(reversed(offsets)), 1)


def _allowed(strides: Sequence[int]) -> str:
    """The distances that offsets of the last modules can give."""
    found, reached = set(), prod(strides)
    for each in reversed(strides):
        found |= {reached // count for count in range(1, each + 1) if each % count == 0}
        reached //= each
    return ", ".join(str(each) for each in sorted(found))


def _at_offsets(x: Tensor, count: int, step: int) -> Tensor:
    """A map `[B, C, H, W]` moved by 0 to count - 1 steps up and left: `[B * count * count, ...]`.

    What moves in is zero. It belongs to windows beyond the border, of which nobody asks.
    """
    height, width = x.shape[-2:]
    reach = (count - 1) * step
    x = F.pad(x, (0, reach, 0, reach))
    starts = range(0, reach + 1, step)
    moved = [x[..., i : i + height, j : j + width] for i in starts for j in starts]
    return torch.stack(moved, dim=1).flatten(0, 1)
