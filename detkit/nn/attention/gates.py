"""Parts that the gates of attention modules share.

B batch, C channels, H, W height and width.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def hidden_channels(channels: int, reduction: int) -> int:
    """Width C // r of a gate's hidden layer; at least 1, so that narrow networks have a gate too.

    Raises:
        ValueError: the reduction is below 1.
    """
    if reduction < 1:
        raise ValueError(f"reduction must be at least 1, got {reduction}")
    return max(1, channels // reduction)


def check_odd(kernel_size: int) -> None:
    """Refuse a kernel that has no middle.

    Raises:
        ValueError: the size is even or below 1.
    """
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(
            f"kernel_size {kernel_size} has no middle: the gate keeps its size only with an odd "
            "one, such as 3 or 7"
        )


def check_positive(**values: float) -> None:
    """Refuse settings that have to be above zero.

    Raises:
        ValueError: one is not.
    """
    for name, value in values.items():
        if not value > 0:
            raise ValueError(f"{name} must be above 0, got {value}")


def statistics_dtype(x: Tensor) -> torch.dtype:
    """Float32, or wider if the map is: squares of half-precision numbers overflow or round."""
    return torch.promote_types(x.dtype, torch.float32)


def squared_deviations(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean over a map, `[B, C, 1, 1]`, and each place's squared distance from it, `[B, C, H, W]`.

    Both in `statistics_dtype`.
    """
    x = x.to(statistics_dtype(x))
    mean = x.mean((2, 3), keepdim=True)
    return mean, (x - mean).square()


def unbiased_variance(squares: Tensor) -> Tensor:
    """Variance over a map from its `squared_deviations`, `[B, C, 1, 1]`.

    A map of one place has no spread: its variance is 0 here, where dividing by H W - 1 gives NaN.
    """
    height, width = squares.shape[-2:]
    return squares.sum((2, 3), keepdim=True) / max(height * width - 1, 1)


def mean_and_variance(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and unbiased variance over a map, `[B, C, 1, 1]` each, in `statistics_dtype`.

    Written out because `torch.var_mean` takes about twenty times as long on a CPU.
    """
    mean, squares = squared_deviations(x)
    return mean, unbiased_variance(squares)


def laid_out_as(x: Tensor, gate: Tensor) -> Tensor:
    """The gate in the memory format of the map: otherwise every product with it is far slower."""
    channels_last = x.is_contiguous(memory_format=torch.channels_last)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    return gate.to(x.dtype).contiguous(memory_format=memory_format)


def mean_along(x: Tensor, dim: int) -> Tensor:
    """Mean of `[B, C, H, W]` along C (1), H (2) or W (3), which stays as a side of 1."""
    return _along(x, dim, lambda y, axis: y.mean(axis, keepdim=True))


def peak_along(x: Tensor, dim: int) -> Tensor:
    """Maximum of `[B, C, H, W]` along C (1), H (2) or W (3), which stays as a side of 1."""
    if _differentiates_eagerly(x):
        return _along(x, dim, lambda y, axis: y.max(axis, keepdim=True).values)
    return _along(x, dim, lambda y, axis: y.amax(axis, keepdim=True))


def peak(x: Tensor) -> Tensor:
    """Maximum over a map, `[B, C, 1, 1]`."""
    if _differentiates_eagerly(x):
        return F.adaptive_max_pool2d(x, 1)
    return x.amax((2, 3), keepdim=True)


def _along(x: Tensor, dim: int, reduction: Callable[[Tensor, int], Tensor]) -> Tensor:
    if x.is_contiguous(memory_format=torch.channels_last):
        # as [B, H, W, C] the result has the layout of its input: thirty times as fast on a CPU
        axis = {1: 3, 2: 1, 3: 2}[dim]
        return reduction(x.permute(0, 2, 3, 1), axis).permute(0, 3, 1, 2)
    return reduction(x, dim)


def _differentiates_eagerly(x: Tensor) -> bool:
    # The gradient of amax compares the whole map with the maximum, several passes that only a
    # compiler fuses: a maximum that remembers its place trains three to thirty times as fast, and
    # takes ten times as long where no gradient is asked for.
    return x.requires_grad and torch.is_grad_enabled() and not torch.compiler.is_compiling()


def pooling_matrix(size: int, pooled: int, like: Tensor) -> Tensor:
    """Adaptive average pooling of one axis as a matrix, `[pooled, size]`.

    Bin i is the mean of the places floor(i size / pooled) to ceil((i + 1) size / pooled) - 1, as
    in `torch.nn.AdaptiveAvgPool1d`; `pooled` may be the larger one. Exported to ONNX, torch's
    pooling keeps the bins of the example's size and is wrong for any other; this is not.

    Args:
        size: of the axis.
        pooled: how many bins.
        like: gives dtype and device.
    """
    bins = torch.arange(pooled, device=like.device).unsqueeze(1)  # [pooled, 1]
    start = bins * size // pooled
    end = ((bins + 1) * size + pooled - 1) // pooled
    place = torch.arange(size, device=like.device)
    inside = (place >= start) & (place < end)  # [pooled, size]
    return inside.to(like.dtype) / (end - start)


def adaptive_mean(x: Tensor, height: int, width: int) -> Tensor:
    """Adaptive average pooling of `[B, C, H, W]` to `[B, C, height, width]`, also to a larger map.

    By `pooling_matrix`, so that it also holds for other sizes than that of an export's example.
    """
    rows = pooling_matrix(x.shape[2], height, like=x)
    columns = pooling_matrix(x.shape[3], width, like=x)
    return rows @ (x @ columns.T)


def initialise_convolutions(module: nn.Module) -> None:
    """He initialisation by fan out and no bias, as the residual networks around attention have."""
    for each in module.modules():
        if isinstance(each, nn.Conv2d):
            nn.init.kaiming_normal_(each.weight, mode="fan_out", nonlinearity="relu")
            if each.bias is not None:
                nn.init.zeros_(each.bias)


class PooledBatchNorm(nn.BatchNorm1d):
    """Batch norm of one vector per image, `[B, C]`.

    One image alone has no spread to be normalised by: in training, too, it then gets the running
    statistics, where torch raises an error.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalise each channel over the batch."""
        if self.training and x.shape[0] == 1:
            state = self.running_mean, self.running_var, self.weight, self.bias
            return F.batch_norm(x, *state, eps=self.eps)
        return super().forward(x)


class PlaneGate(nn.Module):
    """A gate for every place of a plane: convolution of its maximum and mean, norm, sigmoid.

    The spatial half of CBAM and each branch of triplet attention.

    Args:
        kernel_size: odd.

    Raises:
        ValueError: an even kernel.
    """

    def __init__(self, kernel_size: int) -> None:
        super().__init__()
        check_odd(kernel_size)
        self.conv = nn.Conv2d(2, 1, kernel_size, padding=kernel_size // 2, bias=False)
        self.norm = nn.BatchNorm2d(1, momentum=0.01)
        initialise_convolutions(self)

    def forward(self, peak: Tensor, mean: Tensor) -> Tensor:
        """Maximum and mean, `[B, 1, H, W]` each, to factors in (0, 1) of that shape."""
        return self.norm(self.conv(torch.cat([peak, mean], dim=1))).sigmoid()
