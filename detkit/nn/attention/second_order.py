"""Attention from covariances (GSoP, Gao et al. 2019).

B batch, C channels, D reduced channels, H, W height and width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detkit.nn.attention.gates import adaptive_mean, check_positive, initialise_convolutions
from detkit.registry import attentions, suggest

_MODES = ("channel", "position")
_SIDE = 8  # of the grid whose places "position" compares
_ROWS = 4  # numbers that the row-wise convolution makes of each row of a covariance


@attentions.register("gsop")
class GlobalSecondOrderPooling(nn.Module):
    """Scale channels, or places, by how they vary together (section 3).

    The map is reduced to D channels; each row of a covariance matrix becomes four numbers (norm,
    then a convolution with one group per row), and one layer and a sigmoid turn all of them into
    the gate. In mode "channel" the covariance is D x D over the places, and y = x gate. In mode
    "position" it is 64 x 64 over the D channels, between the places of the map pooled to 8x8; the
    gate is pooled back to H x W, and y = relu(x gate).

    As in the authors' released code, channel mode has no activation behind the row-wise
    convolution, where the paper has a leaky ReLU; position mode has a ReLU there.

    Args:
        channels: C.
        reduced: D.
        stride: of the reduction, to save work on large maps: 2 in the first stage of the authors'
            networks, 1 elsewhere.
        mode: "channel" or "position".

    Raises:
        ValueError: an unknown mode, or a number below 1.
    """

    def __init__(
        self, channels: int, *, reduced: int = 128, stride: int = 1, mode: str = "channel"
    ) -> None:
        super().__init__()
        if mode not in _MODES:
            raise ValueError(f"unknown mode {mode!r}; {suggest(mode, _MODES)}")
        check_positive(reduced=reduced, stride=stride)
        self.mode = mode
        nodes, outputs = (reduced, channels) if mode == "channel" else (_SIDE**2, _SIDE**2)
        self.reduce = nn.Conv2d(channels, reduced, 1, stride=stride)
        self.reduce_norm = nn.BatchNorm2d(reduced)
        self.row_norm = nn.BatchNorm2d(nodes)
        self.row_conv = nn.Conv2d(nodes, _ROWS * nodes, (nodes, 1), groups=nodes)
        self.expand = nn.Conv2d(_ROWS * nodes, outputs, 1)
        initialise_convolutions(self)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` to the same shape."""
        reduced = self.reduce_norm(self.reduce(F.relu(x)))  # [B, D, H', W']
        if self.mode == "channel":
            rows = self._rows(torch.relu_(reduced).flatten(2))  # [B, 4D, 1, 1]
            return x * self.expand(rows).sigmoid().to(x.dtype)
        grid = adaptive_mean(reduced, _SIDE, _SIDE)
        rows = self._rows(grid.flatten(2).transpose(1, 2))  # [B, 4*64, 1, 1]
        gate = self.expand(torch.relu_(rows)).sigmoid().view(-1, 1, _SIDE, _SIDE)
        return torch.relu_(x * adaptive_mean(gate, *x.shape[-2:]).to(x.dtype))

    def _rows(self, vectors: Tensor) -> Tensor:
        """Four numbers for each of the N vectors `[B, N, M]`, `[B, 4N, 1, 1]`."""
        centred = vectors - vectors.mean(2, keepdim=True)
        centred.mul_(vectors.shape[2] ** -0.5)  # before the product: half precision overflows
        covariance = _saturated(centred @ centred.transpose(1, 2))  # [B, N, N]
        normed = _saturated(self.row_norm(covariance.unsqueeze(3)))
        return _saturated(self.row_conv(normed))


def _saturated(x: Tensor) -> Tensor:
    """The largest number of half precision instead of infinity, which would end as NaN."""
    if x.dtype != torch.float16:  # no other type is too narrow for a covariance
        return x
    limit = torch.finfo(x.dtype).max
    return x.clamp(-limit, limit)
