"""Attention to channels and places at once.

B batch, C channels, H, W height and width. The result has the dtype of the map. Convolutions over
maps start as in the residual networks of the papers (He initialisation by fan out, no bias); layers
that see pooled vectors keep torch's own, unless a class says otherwise.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detkit.nn.attention.gates import (
    PlaneGate,
    PooledBatchNorm,
    check_positive,
    hidden_channels,
    initialise_convolutions,
    laid_out_as,
    mean_along,
    peak,
    peak_along,
    squared_deviations,
    unbiased_variance,
)
from detkit.registry import attentions, suggest


@attentions.register("cbam")
class CBAM(nn.Module):
    """Scale channels, then places, by means and maxima (Woo et al. 2018, equations 1-3).

    x' = x sigmoid(M(mean(x)) + M(max(x))) with one shared M = W2 relu(W1 . + b1) + b2, and
    y = x' sigmoid(norm(conv7x7([max; mean] over the channels))).

    As in the authors' released code the convolution sees the maximum first (timm and the paper
    have the mean first), a batch norm of momentum 0.01 follows it (not in the equations), and that
    norm's scale starts at 0, so that every place is gated by 1/2. timm's `CbamModule` is the form
    without `mlp_bias` whose convolution has its two input channels swapped.

    Args:
        channels: C.
        reduction: r; the hidden layer has C // r channels.
        kernel_size: odd.
        mlp_bias: whether M has b1 and b2.

    Raises:
        ValueError: the reduction is below 1 or the kernel even.
    """

    def __init__(
        self, channels: int, *, reduction: int = 16, kernel_size: int = 7, mlp_bias: bool = True
    ) -> None:
        super().__init__()
        hidden = hidden_channels(channels, reduction)
        self.fc1 = nn.Conv2d(channels, hidden, 1, bias=mlp_bias)
        self.fc2 = nn.Conv2d(hidden, channels, 1, bias=mlp_bias)
        self.spatial = PlaneGate(kernel_size)
        nn.init.zeros_(self.spatial.norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` to the same shape."""
        pooled = x.mean((2, 3), keepdim=True), peak(x)  # [B, C, 1, 1] each
        logits = [self.fc2(F.relu(self.fc1(each))) for each in pooled]
        scaled = x * (logits[0] + logits[1]).sigmoid().to(x.dtype)
        gate = self.spatial(peak_along(scaled, 1), mean_along(scaled, 1))
        return scaled * gate.to(x.dtype)  # [B, 1, H, W]


@attentions.register("bam")
class BAM(nn.Module):
    """Add a share of the map, by channel and place at once (Park et al. 2018, section 3).

    y = x (1 + sigmoid(Mc Ms)), as in the authors' released code, where the paper has a sum of the
    two. Mc `[B, C]` comes from the means by linear, norm, ReLU, linear; Ms `[B, 1, H, W]` from the
    map by a 1x1 convolution to C // r channels, two dilated 3x3 ones, each with norm and ReLU, and
    a 1x1 one. The mean is over all of the map, also where H is not W.

    Args:
        channels: C.
        reduction: r; both branches have C // r channels within.
        dilation: of the 3x3 convolutions.

    Raises:
        ValueError: the reduction or dilation is below 1.
    """

    def __init__(self, channels: int, *, reduction: int = 16, dilation: int = 4) -> None:
        super().__init__()
        check_positive(dilation=dilation)
        hidden = hidden_channels(channels, reduction)
        self.fc1 = nn.Linear(channels, hidden)
        self.fc_norm = PooledBatchNorm(hidden)
        self.fc2 = nn.Linear(hidden, channels)
        layers: list[nn.Module] = [nn.Conv2d(channels, hidden, 1)]
        for _ in range(2):
            layers += [nn.BatchNorm2d(hidden), nn.ReLU(inplace=True)]
            layers += [nn.Conv2d(hidden, hidden, 3, padding=dilation, dilation=dilation)]
        layers += [nn.BatchNorm2d(hidden), nn.ReLU(inplace=True), nn.Conv2d(hidden, 1, 1)]
        self.spatial = nn.Sequential(*layers)
        initialise_convolutions(self.spatial)
        nn.init.zeros_(self.fc1.bias)
        nn.init.zeros_(self.fc2.bias)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` to the same shape."""
        pooled = x.mean((2, 3))  # [B, C]
        channel = self.fc2(F.relu(self.fc_norm(self.fc1(pooled))))
        gate = (channel[:, :, None, None] * self.spatial(x)).sigmoid_()  # [B, C, H, W]
        return torch.addcmul(x, x, gate.to(x.dtype))


@attentions.register("scse")
class SpatialChannelSqueezeExcitation(nn.Module):
    """Gate channels and places side by side (Roy et al. 2018, section 2).

    With gc = sigmoid(W2 relu(W1 mean(x) + b1) + b2) per channel and gs = sigmoid(conv1x1(x)) per
    place: y = max(x gc, x gs) as in the authors' released code, or the sum x gc + x gs.

    Args:
        channels: C.
        reduction: r; the hidden layer has C // r channels. The authors' code has 2, other
            libraries 16.
        combine: "max" or "sum".

    Raises:
        ValueError: the reduction is below 1, or an unknown way to combine.
    """

    def __init__(self, channels: int, *, reduction: int = 2, combine: str = "max") -> None:
        super().__init__()
        if combine not in ("max", "sum"):
            raise ValueError(f"unknown combine {combine!r}; {suggest(combine, ('max', 'sum'))}")
        hidden = hidden_channels(channels, reduction)
        self.combine = combine
        self.fc1 = nn.Linear(channels, hidden)
        self.fc2 = nn.Linear(hidden, channels)
        self.spatial = nn.Conv2d(channels, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` to the same shape."""
        logits = self.fc2(F.relu(self.fc1(x.mean((2, 3)))))  # [B, C]
        by_channel = x * logits.sigmoid()[:, :, None, None].to(x.dtype)
        place = self.spatial(x).sigmoid().to(x.dtype)  # [B, 1, H, W]
        if self.combine == "sum":
            return by_channel.addcmul_(x, place)
        return torch.maximum(by_channel, x * place)


@attentions.register("triplet")
class TripletAttention(nn.Module):
    """Gate each pair of axes by what the third one holds (Misra et al. 2021, section 3).

    y = x (g(C, W) + g(H, C) + g(H, W)) / 3: each gate is a convolution of the maximum and mean over
    the axis that it lacks, norm, sigmoid. The paper turns the map to bring every pair of axes to
    the front; here only the small planes are turned.

    Args:
        channels: C; the parameters do not depend on it.
        kernel_size: odd; 7, or the paper's smaller 3.

    Raises:
        ValueError: an even kernel.
    """

    def __init__(self, channels: int, *, kernel_size: int = 7) -> None:
        super().__init__()
        self.channel_width = PlaneGate(kernel_size)
        self.height_channel = PlaneGate(kernel_size)
        self.height_width = PlaneGate(kernel_size)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` to the same shape."""
        over_height = (each(x, 2).transpose(1, 2) for each in (peak_along, mean_along))
        channel_width = self.channel_width(*over_height).transpose(1, 2)  # [B, C, 1, W]
        over_width = (each(x, 3).transpose(1, 3) for each in (peak_along, mean_along))
        height_channel = self.height_channel(*over_width).transpose(1, 3)  # [B, C, H, 1]
        place = self.height_width(peak_along(x, 1), mean_along(x, 1))  # [B, 1, H, W]
        thirds = [laid_out_as(x, gate / 3) for gate in (channel_width, height_channel, place)]
        return x * (thirds[0] + thirds[1]).add_(thirds[2])


@attentions.register("coord")
class CoordinateAttention(nn.Module):
    """Gate rows and columns by their means (Hou et al. 2021, equations 4-9).

    f = hardswish(norm(conv1x1([means over W; means over H]))) with one convolution for both, and
    y = x sigmoid(conv_h(f_h)) sigmoid(conv_w(f_w)); all convolutions have biases. The weights have
    the names of the authors' `coordatt.py` and of timm's `CoordAttn` (with `bias=True`; timm's own
    default for the width differs).

    Args:
        channels: C.
        reduction: r; the convolution has C // r channels.
        min_hidden: but at least so many.

    Raises:
        ValueError: the reduction or min_hidden is below 1.
    """

    def __init__(self, channels: int, *, reduction: int = 32, min_hidden: int = 8) -> None:
        super().__init__()
        check_positive(min_hidden=min_hidden)
        hidden = max(min_hidden, hidden_channels(channels, reduction))
        self.conv1 = nn.Conv2d(channels, hidden, 1)
        self.bn1 = nn.BatchNorm2d(hidden)
        self.conv_h = nn.Conv2d(hidden, channels, 1)
        self.conv_w = nn.Conv2d(hidden, channels, 1)
        initialise_convolutions(self)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` to the same shape."""
        height, width = x.shape[-2:]
        rows, columns = mean_along(x, 3), mean_along(x, 2).transpose(2, 3)
        pooled = torch.cat([rows, columns], dim=2)  # [B, C, H + W, 1]
        shared = F.hardswish(self.bn1(self.conv1(pooled)))
        of_rows, of_columns = shared.split([height, width], dim=2)
        gate_h = self.conv_h(of_rows).sigmoid()  # [B, C, H, 1]
        gate_w = self.conv_w(of_columns.transpose(2, 3)).sigmoid()  # [B, C, 1, W]
        return x * laid_out_as(x, gate_h) * laid_out_as(x, gate_w)


@attentions.register("simam")
class SimAM(nn.Module):
    """Stress places that differ from the rest of their channel (Yang et al. 2021, section 3).

    y = x sigmoid(d / (4 (v + lambda)) + 1/2), d the squared distance from the channel's mean and v
    its variance over H W - 1. On a map of one place the variance counts as 0: y = x sigmoid(1/2).
    Nothing is learnt. In the authors' networks it stands between a convolution and its norm.

    Args:
        channels: C; nothing depends on it.
        regularization: lambda. The authors' training commands have 0.1.

    Raises:
        ValueError: the regularization is not positive.
    """

    def __init__(self, channels: int, *, regularization: float = 1e-4) -> None:
        super().__init__()
        check_positive(regularization=regularization)
        self.regularization = regularization

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` to the same shape."""
        _, squares = squared_deviations(x)
        variance = unbiased_variance(squares)
        importance = (squares / (4 * (variance + self.regularization))).add_(0.5)
        return x * importance.sigmoid_().to(x.dtype)
