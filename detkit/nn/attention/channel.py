"""Attention to channels, from statistics over the whole map.

B batch, C channels, H, W height and width. Statistics of squares are float32 or wider whatever the
map is; the result has the dtype of the map. Layers that see pooled vectors keep torch's own
initialisation, unless a class says otherwise.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detkit.nn.attention.gates import (
    PooledBatchNorm,
    check_odd,
    check_positive,
    hidden_channels,
    mean_and_variance,
    statistics_dtype,
)
from detkit.registry import attentions, suggest


@attentions.register("se")
class SqueezeExcitation(nn.Module):
    """Scale channels by what all their means say (Hu et al. 2018, equations 2-4).

    y = x sigmoid(W2 relu(W1 mean(x) + b1) + b2). With biases, which the published parameter counts
    contain. Weights have the names and shapes of `torchvision.ops.SqueezeExcitation` and of timm's
    `SEModule`.

    Args:
        channels: C.
        reduction: r; the hidden layer has C // r channels.

    Raises:
        ValueError: the reduction is below 1.
    """

    def __init__(self, channels: int, *, reduction: int = 16) -> None:
        super().__init__()
        hidden = hidden_channels(channels, reduction)
        self.fc1 = nn.Conv2d(channels, hidden, 1)
        self.fc2 = nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` to the same shape."""
        pooled = x.mean((2, 3), keepdim=True)  # [B, C, 1, 1]
        gate = self.fc2(F.relu(self.fc1(pooled))).sigmoid()
        return x * gate.to(x.dtype)


@attentions.register("eca")
class EfficientChannelAttention(nn.Module):
    """Scale channels by what the means of their neighbours say (Wang et al. 2020, equation 9).

    y = x sigmoid(conv1d(mean(x))) over the channels in their order, zero-padded, no bias. With the
    sigmoid of the equation, which the paper's listing omits. The kernel follows the paper's rule,
    without a lower limit: 5, 5, 5, 7 in the stages of a ResNet-50, where the networks that the
    authors released have 3, 5, 5, 7.

    Args:
        channels: C.
        kernel_size: odd; None for (log2(C) + 1) / 2 cut to an integer, plus 1 if that is even.

    Raises:
        ValueError: an even kernel.
    """

    def __init__(self, channels: int, *, kernel_size: int | None = None) -> None:
        super().__init__()
        if kernel_size is None:
            kernel_size = int((math.log2(channels) + 1) / 2)
            kernel_size += 1 - kernel_size % 2
        check_odd(kernel_size)
        self.conv = nn.Conv1d(1, 1, kernel_size, padding=kernel_size // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` to the same shape."""
        pooled = x.mean((2, 3)).unsqueeze(1)  # [B, 1, C]
        gate = self.conv(pooled).sigmoid()
        return x * gate.transpose(1, 2).unsqueeze(3).to(x.dtype)  # [B, C, 1, 1]


@attentions.register("srm")
class StyleRecalibration(nn.Module):
    """Scale each channel by its own mean and spread (Lee et al. 2019, section 3).

    y = x sigmoid(norm(w1 mean + w2 sqrt(variance + eps))), the variance unbiased (over H W - 1).
    On a map of one place it counts as 0, so that the spread is sqrt(eps). The gate is 1/2 at first,
    `weight` being 0; the authors train it and the norm without weight decay.

    Args:
        channels: C.
        eps: added to the variance.

    Raises:
        ValueError: eps is not positive.
    """

    def __init__(self, channels: int, *, eps: float = 1e-5) -> None:
        super().__init__()
        check_positive(eps=eps)
        self.eps = eps
        self.weight = nn.Parameter(torch.zeros(channels, 2))  # of mean and spread
        self.norm = PooledBatchNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` to the same shape."""
        mean, variance = mean_and_variance(x)
        style = torch.cat([mean, (variance + self.eps).sqrt()], dim=2).squeeze(3)  # [B, C, 2]
        encoded = (style * self.weight).sum(2)  # [B, C]
        gate = self.norm(encoded.to(x.dtype)).sigmoid()
        return x * gate[:, :, None, None].to(x.dtype)


@attentions.register("gct")
class GatedChannelTransformation(nn.Module):
    """Let channels compete or cooperate by their norms (Yang et al. 2020, section 3).

    With e = alpha |x| per channel, y = x (1 + tanh(gamma e / norm(e) + beta)). As in the authors'
    code norm(e) is the root of the *mean* square over the channels (or the mean absolute value), so
    that gamma takes up the sqrt(C) of the paper's form. The identity at first: alpha is 1,
    gamma and beta are 0. The authors train `beta` without weight decay.

    Args:
        channels: C.
        norm: "l2", or "l1" for sums of absolute values.
        eps: added under the roots (l2) or to the denominator (l1).

    Raises:
        ValueError: an unknown norm, or eps is not positive.
    """

    def __init__(self, channels: int, *, norm: str = "l2", eps: float = 1e-5) -> None:
        super().__init__()
        if norm not in ("l1", "l2"):
            raise ValueError(f"unknown norm {norm!r}; {suggest(norm, ('l1', 'l2'))}")
        check_positive(eps=eps)
        self.norm = norm
        self.eps = eps
        self.alpha = nn.Parameter(torch.ones(1, channels, 1, 1))
        self.gamma = nn.Parameter(torch.zeros(1, channels, 1, 1))
        self.beta = nn.Parameter(torch.zeros(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` to the same shape."""
        wide = x.to(statistics_dtype(x))
        if self.norm == "l2":
            # squares, not vector_norm: that is ten times slower on a channels_last map
            size = (wide.square().sum((2, 3), keepdim=True) + self.eps).sqrt()
            embedding = self.alpha * size  # [B, C, 1, 1]
            scale = (embedding.square().mean(1, keepdim=True) + self.eps).rsqrt()
        else:
            embedding = self.alpha * wide.abs().sum((2, 3), keepdim=True)
            scale = 1 / (embedding.abs().mean(1, keepdim=True) + self.eps)
        gate = 1 + torch.tanh(self.gamma * embedding * scale + self.beta)
        return x * gate.to(x.dtype)


@attentions.register("gaussian_gct")
class GaussianContextTransformer(nn.Module):
    """Damp channels whose mean is unusual (Ruan et al., CVPR 2021).

    The means are normalised over the channels (population standard deviation, eps added to it) to
    z, and y = x exp(-z^2 / (2 c^2)). Fixed c is the paper's B0, learnt c its B1:
    c = 3 sigmoid(theta) + 1, theta one number that starts at 0. There is no released code; slope
    3 and offset 1 are those in common use. Some ports compute exp(-c z^2 / 2) instead.

    Args:
        channels: C; the fixed form has no parameters.
        c: width of the Gaussian, None to learn it.
        eps: added to the standard deviation.

    Raises:
        ValueError: c or eps is not positive.
    """

    def __init__(self, channels: int, *, c: float | None = 2.0, eps: float = 1e-5) -> None:
        super().__init__()
        check_positive(eps=eps, **({} if c is None else {"c": c}))
        self.eps = eps
        self.c = c
        if c is None:
            self.theta = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` to the same shape."""
        pooled = x.mean((2, 3)).to(statistics_dtype(x))  # [B, C]
        centred = pooled - pooled.mean(1, keepdim=True)
        # a norm has a gradient where all means are equal, a root of their variance has not
        spread = torch.linalg.vector_norm(centred, dim=1, keepdim=True) / math.sqrt(x.shape[1])
        z = centred / (spread + self.eps)
        c = 3 * self.theta.sigmoid() + 1 if self.c is None else self.c
        gate = torch.exp(-(z**2) / (2 * c**2))
        return x * gate[:, :, None, None].to(x.dtype)
