"""LeNet-5, as it is built today and as published (LeCun et al. 1998, Proceedings of the IEEE 86).

`lenet5`: max-pools, ReLU, a C3 that sees all maps, a linear output layer.
`lenet5_original` (section II.B): subsampling with trainable coefficients, a scaled tanh, the
connections of table I, and an output of distances to drawings of the digits.
Both take grey images of 32 pixels, a digit of MNIST with a border of 2, or larger ones.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detkit.backbones.placement import Placement, outside_attention
from detkit.backbones.plain import (
    Conv,
    PlainNetwork,
    Pool,
    Table,
    WindowHead,
    WindowLinear,
    relu,
)
from detkit.nn import NormLayer
from detkit.registry import backbones

# The maps of S2 that each map of C3 reads (table I)
C3_INPUTS = (
    (0, 1, 2),
    (1, 2, 3),
    (2, 3, 4),
    (3, 4, 5),
    (0, 4, 5),
    (0, 1, 5),
    (0, 1, 2, 3),
    (1, 2, 3, 4),
    (2, 3, 4, 5),
    (0, 3, 4, 5),
    (0, 1, 4, 5),
    (0, 1, 2, 5),
    (0, 1, 3, 4),
    (1, 2, 4, 5),
    (0, 2, 3, 5),
    (0, 1, 2, 3, 4, 5),
)

# The code of a class is a drawing of it, 12 rows of 7 (figure 3 has the authors' ones)
DIGITS = """
..###..  ...#...  .#####.  .#####.  ....##.  #######  ..####.  #######  .#####.  .#####.
.##.##.  ..##...  ##...##  ##...##  ...###.  ##.....  .##....  #.....#  ##...##  ##...##
##...##  .###...  .....##  .....##  ...###.  ##.....  ##.....  .....##  ##...##  ##...##
##...##  ...#...  .....##  .....##  ..#.##.  ##.....  ##.....  .....##  ##...##  ##...##
##...##  ...#...  .....##  .....##  ..#.##.  ##.....  ##.....  ....##.  ##...##  ##...##
##...##  ...#...  ....##.  ..####.  .#..##.  ######.  ##.###.  ....##.  .#####.  .######
##...##  ...#...  ...##..  .....##  .#..##.  .....##  ###..##  ...##..  ##...##  .....##
##...##  ...#...  ..##...  .....##  #######  .....##  ##...##  ...##..  ##...##  .....##
##...##  ...#...  .##....  .....##  ....##.  .....##  ##...##  ..##...  ##...##  .....##
##...##  ...#...  ##.....  .....##  ....##.  .....##  ##...##  ..##...  ##...##  .....##
.##.##.  ...#...  ##.....  ##...##  ....##.  ##...##  .##..##  ..##...  ##...##  ....##.
..###..  .#####.  #######  .#####.  ....##.  .#####.  ..####.  ..##...  .#####.  .####..
"""


class ScaledTanh(nn.Module):
    """The squashing function 1.7159 tanh(2 a / 3), which maps 1 to 1 (appendix A)."""

    def forward(self, x: Tensor) -> Tensor:
        """Squash each value."""
        return 1.7159 * torch.tanh(x * (2 / 3))


class Subsampling(nn.Module):
    """The sum of each 2x2 window, times a trainable coefficient of its map, plus a bias.

    Args:
        channels: C.
    """

    kernel_size, stride, padding = 2, 2, 0

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """From `[B, C, H, W]` to `[B, C, H / 2, W / 2]`."""
        total = 4 * F.avg_pool2d(x, 2)
        return total * self.weight.view(-1, 1, 1) + self.bias.view(-1, 1, 1)


@dataclass(frozen=True)
class Subsample:
    """Subsampling and its activation, as a row of the table."""

    stride: int = 2

    def modules(
        self, in_channels: int, *, stride: int, dilation: int, norm: NormLayer | None
    ) -> list[nn.Module]:
        """Subsampling, squashing."""
        assert (stride, dilation) == (2, 1), "LeNet has no output stride"
        return [Subsampling(in_channels), ScaledTanh()]


class TableConv2d(nn.Module):
    """A convolution of which each output map reads the input maps of its row of table I.

    Rows of the same length make one convolution in groups: 1,516 parameters.

    Args:
        in_channels: 6.
        out_channels: 16.
        kernel_size: side of the kernel.
        stride: of the kernel.
        padding: cells of zeros at each border.
        dilation: cells from one tap of the kernel to the next.
        groups: 1.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        stride: int,
        padding: int,
        dilation: int,
        groups: int,
    ) -> None:
        super().__init__()
        assert (in_channels, out_channels, groups) == (6, len(C3_INPUTS), 1)
        self.out_channels = out_channels
        self.inputs: list[list[int]] = []  # of each part, as its groups follow each other
        self.parts = nn.ModuleList()
        for length, rows in groupby(C3_INPUTS, key=len):
            maps = list(rows)
            self.inputs.append([index for row in maps for index in row])
            self.parts.append(
                nn.Conv2d(
                    length * len(maps),
                    len(maps),
                    kernel_size,
                    stride=stride,
                    padding=padding,
                    dilation=dilation,
                    groups=len(maps),
                )
            )

    def main_path(self) -> tuple[nn.Module, ...]:
        """All parts see the same of the image."""
        return (self.parts[0],)

    def forward(self, x: Tensor) -> Tensor:
        """From `[B, 6, H, W]` to `[B, 16, H', W']`."""
        parts = zip(self.parts, self.inputs, strict=True)
        return torch.cat([part(x[:, inputs]) for part, inputs in parts], dim=1)


class RadialBasis(nn.Module):
    """Minus the squared distance to the code of each class, so that the nearest is the largest.

    The paper's units output the distance and the smallest wins. The sign makes logits of it:
    cross-entropy on them is the paper's criterion (equation 9) without its rubbish class.
    The codes are -1 or 1 and do not learn: a drawing of each digit, and random ones from the
    eleventh class on.

    Args:
        num_classes: K.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        draw = random.Random(0)
        more = [[draw.choice((-1.0, 1.0)) for _ in range(84)] for _ in range(num_classes - 10)]
        codes = [*(_code(digit) for digit in range(min(10, num_classes))), *more]
        self.codes: Tensor
        self.register_buffer("codes", torch.tensor(codes))

    def forward(self, x: Tensor) -> Tensor:
        """From `[..., 84]` to `[..., K]`."""
        return -(x.unsqueeze(-2) - self.codes).square().sum(dim=-1)


def _code(digit: int) -> list[float]:
    rows = [line.split()[digit] for line in DIGITS.split("\n") if line]
    return [1.0 if cell == "#" else -1.0 for cell in "".join(rows)]


class Architecture(NamedTuple):
    """A network.

    Attributes:
        name: in the registry.
        table: the layers of each stage.
        original: it has the head and the starting weights of 1998.
    """

    name: str
    table: Table
    original: bool


_MODERN: Table = {
    "c1": [Conv(6, 5)],
    "c3": [Pool(2, 2), Conv(16, 5)],
    "c5": [Pool(2, 2), Conv(120, 5)],
}
_ORIGINAL: Table = {
    "c1": [Conv(6, 5, activation=ScaledTanh)],
    "c3": [Subsample(), Conv(16, 5, kind=TableConv2d, activation=ScaledTanh)],
    "c5": [Subsample(), Conv(120, 5, activation=ScaledTanh)],
}


class LeNet(PlainNetwork):
    """Three convolutions and two pools.

    Args:
        architecture: today's or the published one.
        out_indices: maps to return; 0 is `c1`, 1 `c3` and 2 `c5`.
        in_channels: channels of the images.
        attention: where attention stands.
        norm: a name of `detkit.nn.norm_layer`; None for none.
        norm_eps: added to the variance by the norm.

    Raises:
        ValueError: a setting is out of its range.
    """

    stage_names = ("c1", "c3", "c5")
    default_out_indices = (2,)
    num_classes = 10

    def __init__(
        self,
        architecture: Architecture,
        *,
        out_indices: Sequence[int] | None = None,
        in_channels: int = 1,
        attention: Placement | None = None,
        norm: str | None = None,
        norm_eps: float = 1e-5,
    ) -> None:
        super().__init__(
            architecture.name,
            architecture.table,
            out_indices=out_indices,
            in_channels=in_channels,
            attention=attention,
            norm=norm,
            norm_eps=norm_eps,
        )
        self.original = architecture.original
        if self.original:
            _initialise(self)

    def head(self, num_classes: int) -> nn.Module:
        """F6 and the output layer, at each cell of C5: one for images of 32 pixels."""
        f6 = WindowLinear(120, 1, 84)
        if not self.original:
            layers = nn.Sequential(f6, relu(), nn.Linear(84, num_classes))
        else:
            layers = nn.Sequential(f6, ScaledTanh(), RadialBasis(num_classes))
            _initialise(layers)
        return WindowHead(self.name, layers, self.least_side)


def _initialise(net: nn.Module) -> None:
    """Uniform in -2.4 / F .. 2.4 / F with F inputs of a unit, as published (appendix A)."""
    for module in outside_attention(net):
        if isinstance(module, nn.Conv2d | nn.Linear):
            inputs = module.weight[0].numel()
        elif isinstance(module, Subsampling):
            inputs = 4
        else:
            continue
        nn.init.uniform_(module.weight, -2.4 / inputs, 2.4 / inputs)
        assert module.bias is not None
        nn.init.zeros_(module.bias)


for _architecture in (
    Architecture("lenet5", _MODERN, original=False),
    Architecture("lenet5_original", _ORIGINAL, original=True),
):
    backbones.register(_architecture.name)(partial(LeNet, _architecture))
