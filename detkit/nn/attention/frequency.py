"""Attention to channels, from frequencies of the map (FcaNet, Qin et al. 2021).

B batch, C channels, H, W height and width, L side that a map is pooled to.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detkit.nn.attention.gates import hidden_channels, pooling_matrix
from detkit.registry import attentions

# The 16 frequencies that did best alone, the best first, in units of a 7x7 map ("top16")
_ROWS = (0, 0, 6, 0, 0, 1, 1, 4, 5, 1, 3, 0, 0, 0, 3, 2)
_COLUMNS = (0, 1, 0, 5, 2, 0, 2, 0, 0, 6, 0, 4, 6, 3, 5, 2)
_UNIT = 7
_GROUPS = len(_ROWS)


@attentions.register("fca")
class FrequencyChannelAttention(nn.Module):
    """Squeeze and excitation from one frequency per channel (section 3).

    The channels fall into 16 equal groups in their order; group i is described by coefficient i of
    an orthonormal two-dimensional cosine transform of its pooled map, and
    y = x sigmoid(W2 relu(W1 f)), no biases. The first group's frequency is zero: sqrt(H W) times
    its mean on a map that needs no pooling.

    Maps of another side than `size` are pooled to it first, as in the authors' code for detection.
    Both steps are linear: here the pooling is applied to the cosines, and the map is read once.
    The cosines follow from the settings, so they are not in the state_dict.

    Args:
        channels: C, a multiple of 16.
        size: L; at 224 pixels the stages of a ResNet have 56, 28, 14 and 7. The 16 frequencies are
            multiples of L // 7, and a side below 7, which cannot hold them, counts as 7.
        reduction: r; the hidden layer has C // r channels.

    Raises:
        ValueError: 16 does not divide C, or size or reduction is below 1.
    """

    rows: Tensor  # [16, L], and the same for the columns
    columns: Tensor

    def __init__(self, channels: int, *, size: int = 7, reduction: int = 16) -> None:
        super().__init__()
        if channels % _GROUPS:
            raise ValueError(
                f"fca needs channels in {_GROUPS} equal groups, got {channels}: "
                f"give a multiple of {_GROUPS}, or use attention se"
            )
        if size < 1:
            raise ValueError(f"size must be at least 1, got {size}")
        hidden = hidden_channels(channels, reduction)
        size = max(size, _UNIT)
        self.register_buffer("rows", _cosines(_ROWS, size), persistent=False)
        self.register_buffer("columns", _cosines(_COLUMNS, size), persistent=False)
        self.fc1 = nn.Linear(channels, hidden, bias=False)
        self.fc2 = nn.Linear(hidden, channels, bias=False)

    def filters(self, height: int, width: int) -> Tensor:
        """What the 16 groups weigh a map of this size with, `[16, H, W]`: pooling, then cosine."""
        size = self.rows.shape[1]
        rows = self.rows @ pooling_matrix(height, size, like=self.rows)  # [16, H]
        columns = self.columns @ pooling_matrix(width, size, like=self.columns)  # [16, W]
        return rows[:, :, None] * columns[:, None, :]

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` to the same shape."""
        filters = self.filters(*x.shape[-2:]).flatten(1).to(x.dtype)  # [16, HW]
        # All 16 numbers of every channel, though one is used: one matrix product that reads the
        # map in either layout is faster than any way to give each channel only its own.
        every = (x.flatten(2) @ filters.T).unflatten(1, (_GROUPS, -1))  # [B, 16, C/16, 16]
        own = every.diagonal(dim1=1, dim2=3)  # [B, C/16, 16]
        frequencies = own.transpose(1, 2).flatten(1)  # [B, C]
        gate = self.fc2(F.relu(self.fc1(frequencies))).sigmoid()
        return x * gate[:, :, None, None].to(x.dtype)


def _cosines(frequencies: tuple[int, ...], size: int) -> Tensor:
    """Orthonormal cosines cos(pi u (t + 1/2) / L), `[frequencies, L]`."""
    units = torch.tensor(frequencies, dtype=torch.float64).unsqueeze(1) * (size // _UNIT)
    places = torch.arange(size, dtype=torch.float64) + 0.5
    scale = torch.where(units == 0, 1.0, math.sqrt(2.0)) / math.sqrt(size)
    return (scale * torch.cos(math.pi * units * places / size)).to(torch.get_default_dtype())
