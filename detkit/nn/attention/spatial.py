"""Attention to places: strip pooling, and the spatial transformer.

B batch, C channels, H, W height and width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detkit.nn.attention.gates import adaptive_mean
from detkit.registry import attentions, suggest

_PADDINGS = ("zeros", "border", "reflection")


@attentions.register("strip_pooling")
class StripPooling(nn.Module):
    """Strip pooling module (Hou et al. 2020, section 3.1): y = x * gate.

    gate = sigmoid(conv1x1(ReLU(a + b))): a is BN(conv 3x1) of the means of the rows, b is
    BN(conv 1x3) of the means of the columns, both spread over the map. Only the 1x1 convolution has
    a bias.

    Args:
        channels: C.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.rows = _conv_norm(channels, channels, (3, 1))
        self.columns = _conv_norm(channels, channels, (1, 3))
        self.mix = nn.Conv2d(channels, channels, kernel_size=1)

    def gate(self, x: Tensor) -> Tensor:
        """Weights from 0 to 1 of the shape of x."""
        rows = self.rows(x.mean(dim=3, keepdim=True))  # [B, C, H, 1]
        columns = self.columns(x.mean(dim=2, keepdim=True))  # [B, C, 1, W]
        logits: Tensor = self.mix(F.relu(rows + columns))  # [B, C, H, W]
        return logits.sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        """From `[B, C, H, W]` to the same shape."""
        return x * self.gate(x)


class MixedPooling(nn.Module):
    """Mixed pooling module of a segmentation head (Hou et al. 2020, section 3.2).

    y = ReLU(x + BN(conv1x1([short; long]))). short adds to a 3x3 convolution those of the map
    pooled to two grids (pyramid pooling); long adds the convolved strips of rows and columns; both
    work on C/4 channels. Grids are resized bilinearly with align_corners=True, as in the authors'
    released code.

    Args:
        channels: C, at least 4.
        pools: sides of the two grids.

    Raises:
        ValueError: fewer than 4 channels, or pools that are no two sides.
    """

    def __init__(self, channels: int, *, pools: Sequence[int] = (20, 12)) -> None:
        super().__init__()
        if channels < 4:
            raise ValueError(
                f"MixedPooling works on C/4 channels; C must be at least 4: {channels}"
            )
        if len(pools) != 2 or min(pools) < 1:
            raise ValueError(f"pools must be two sides of at least 1, got {tuple(pools)}")
        self.pools = tuple(pools)
        inner = channels // 4
        self.short_in = _conv_norm(channels, inner, (1, 1))
        self.long_in = _conv_norm(channels, inner, (1, 1))
        self.near = _conv_norm(inner, inner, (3, 3))
        self.grids = nn.ModuleList(_conv_norm(inner, inner, (3, 3)) for _ in self.pools)
        self.columns = _conv_norm(inner, inner, (1, 3))
        self.rows = _conv_norm(inner, inner, (3, 1))
        self.short_out = _conv_norm(inner, inner, (3, 3))
        self.long_out = _conv_norm(inner, inner, (3, 3))
        self.merge = _conv_norm(2 * inner, channels, (1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """From `[B, C, H, W]` to the same shape."""
        branches = torch.cat([self._short(x), self._long(x)], dim=1)
        return F.relu(x + self.merge(branches))

    def _short(self, x: Tensor) -> Tensor:
        x = F.relu(self.short_in(x))
        total = self.near(x)
        for side, conv in zip(self.pools, self.grids, strict=True):
            grid = conv(adaptive_mean(x, side, side))
            total = total + F.interpolate(
                grid, size=x.shape[-2:], mode="bilinear", align_corners=True
            )
        return F.relu(self.short_out(F.relu(total)))

    def _long(self, x: Tensor) -> Tensor:
        x = F.relu(self.long_in(x))
        columns = self.columns(x.mean(dim=2, keepdim=True))  # [B, C/4, 1, W]
        rows = self.rows(x.mean(dim=3, keepdim=True))  # [B, C/4, H, 1]
        return F.relu(self.long_out(F.relu(columns + rows)))


def _conv_norm(in_channels: int, channels: int, kernel: tuple[int, int]) -> nn.Sequential:
    padding = (kernel[0] // 2, kernel[1] // 2)
    conv = nn.Conv2d(in_channels, channels, kernel, padding=padding, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(channels))


@attentions.register("stn")
class SpatialTransformer(nn.Module):
    """Spatial transformer (Jaderberg et al. 2015): the map sampled along an affine grid.

    A localisation network predicts theta `[B, 2, 3]` (section 3.1); output place (x, y) takes the
    input at theta (x, y, 1) (equation 1), bilinearly (equation 5). The paper leaves the network
    open; here it is two 3x3 convolutions of stride 2, a 4x4 average pool and two linear layers, of
    which the last starts at the identity transform (zero weights, bias 1, 0, 0, 0, 1, 0).

    Args:
        channels: C.
        hidden: channels of the localisation network.
        align_corners: whether -1 and 1 are the centres of the outermost places, as in the paper's
            sampler of 2015, or their outer edges, which does not depend on the resolution.
        padding: what lies outside of the map: "zeros", "border" or "reflection".

    Raises:
        ValueError: hidden below 1, or unknown padding.
    """

    def __init__(
        self,
        channels: int,
        *,
        hidden: int = 32,
        align_corners: bool = False,
        padding: str = "zeros",
    ) -> None:
        super().__init__()
        if hidden < 1:
            raise ValueError(f"hidden must be at least 1, got {hidden}")
        if padding not in _PADDINGS:
            raise ValueError(f"unknown padding {padding!r} of stn; {suggest(padding, _PADDINGS)}")
        self.align_corners = align_corners
        self.padding = padding
        self.locate = nn.Sequential(
            nn.Conv2d(channels, hidden, 3, stride=2, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(hidden, hidden, 3, stride=2, padding=1),
            nn.ReLU(inplace=True),
            _AdaptiveMean(4),  # not 1: theta depends on where things are
            nn.Flatten(),
            nn.Linear(16 * hidden, hidden),
            nn.ReLU(inplace=True),
        )
        self.theta = nn.Linear(hidden, 6)
        nn.init.zeros_(self.theta.weight)
        with torch.no_grad():
            self.theta.bias.copy_(torch.tensor([1.0, 0.0, 0.0, 0.0, 1.0, 0.0]))

    def forward(self, x: Tensor) -> Tensor:
        """Transform `[B, C, H, W]` by what the localisation network sees in it."""
        theta = self.theta(self.locate(x)).unflatten(1, (2, 3))
        return transform(x, theta, align_corners=self.align_corners, padding=self.padding)


class _AdaptiveMean(nn.Module):
    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side

    def forward(self, x: Tensor) -> Tensor:
        return adaptive_mean(x, self.side, self.side)


def transform(
    x: Tensor, theta: Tensor, *, align_corners: bool = False, padding: str = "zeros"
) -> Tensor:
    """Sample a map along an affine grid (Jaderberg et al. 2015, equations 1 and 5).

    Args:
        x: `[B, C, H, W]`.
        theta: `[B, 2, 3]`, from places of the output to places of the input, both as (x, y) from
            -1 to 1.
        align_corners: see `SpatialTransformer`.
        padding: see `SpatialTransformer`.

    Returns:
        `[B, C, H, W]` in the dtype of x. Half precision cannot tell apart the places of a map of
        some hundred pixels, so the sampling itself is done in float32 at least.
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    grid = affine_grid(theta.to(dtype), *x.shape[-2:], align_corners=align_corners)
    sampled = F.grid_sample(
        x.to(dtype), grid, mode="bilinear", padding_mode=padding, align_corners=align_corners
    )
    return sampled.to(x.dtype)


def affine_grid(theta: Tensor, height: int, width: int, *, align_corners: bool) -> Tensor:
    """Where each place of the output samples: `[B, H, W, 2]` as (x, y).

    `F.affine_grid`, but B = 0 is allowed, and autocast does not make it half precision.
    """
    y, x = (
        # the centres of the places: (2i + 1 - n) / n, or over n - 1 if the outermost are -1 and 1
        (2 * torch.arange(n, dtype=theta.dtype, device=theta.device) + 1 - n)
        / (max(n - 1, 1) if align_corners else n)
        for n in (height, width)
    )
    x, y = x.expand(height, width), y.unsqueeze(1).expand(height, width)
    places = torch.stack([x, y, torch.ones_like(x)], dim=-1)  # [H, W, 3]
    return (theta[:, None, None] * places[:, :, None]).sum(dim=-1)
