"""Layers that drop things while training: activations, blocks of a map, branches, weights.

All scale what they keep so that its expected value is what comes out in evaluation.
B batch, C channels, H, W height and width, I and O features in and out.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from detkit.registry import suggest


class DropConnectLinear(nn.Linear):
    """Linear layer that drops single weights and biases (Wan et al. 2013, section 3).

    Every example has its own mask; a weight is kept with probability 1 - p and then divided by
    it. In evaluation the weights act whole, which is their mean (the paper approximates further:
    it draws the layer's outputs from the normal distribution of the same mean and variance).
    What EfficientNet's code calls "drop connect" is another thing: stochastic depth.

    Args:
        in_features: I.
        out_features: O.
        p: probability of dropping a weight.
        bias: whether to have one.
        per_example: a mask for each example as in the paper, which takes memory for B x O x I
            numbers; False shares one mask in the batch.

    Raises:
        ValueError: p is not in [0, 1).
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        p: float = 0.5,
        bias: bool = True,
        per_example: bool = True,
    ) -> None:
        super().__init__(in_features, out_features, bias=bias)
        _check_probability(p)
        self.p = p
        self.per_example = per_example

    def forward(self, x: Tensor) -> Tensor:
        """From `[..., I]` to `[..., O]`."""
        if not self.training or self.p == 0:
            return super().forward(x)
        weight, bias = self.weight, self.bias
        if not self.per_example:
            return F.linear(x, self._drop(weight), None if bias is None else self._drop(bias))
        weight = self._drop(weight.expand(*x.shape[:-1], -1, -1))  # [..., O, I]
        out = (weight @ x.unsqueeze(-1)).squeeze(-1)  # [..., O]
        return out if bias is None else out + self._drop(bias.to(out.dtype).expand_as(out))

    def _drop(self, parameter: Tensor) -> Tensor:
        return F.dropout(parameter, self.p, training=True)

    def extra_repr(self) -> str:
        """The linear layer's sizes, then what is dropped."""
        return f"{super().extra_repr()}, p={self.p}, per_example={self.per_example}"


class DropBlock2d(torchvision.ops.DropBlock2d):
    """Drop squares of a map, in each channel others (Ghiasi et al. 2018, algorithm 1).

    Torchvision's class, without two of its traps: on a map smaller than the block it fails if the
    map's side is even, and in float16 a map of more than 65504 numbers comes out as zeros.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Drop from `[B, C, H, W]` while training."""
        if not self.training or self.p == 0:
            return x
        side = min(self.block_size, *x.shape[-2:])
        side -= 1 - side % 2  # torchvision wants it odd
        ones = torch.ones_like(x, dtype=torch.promote_types(x.dtype, torch.float32))
        return x * torchvision.ops.drop_block2d(ones, self.p, side, eps=self.eps).to(x.dtype)


_REGULARIZERS: dict[str, Callable[..., nn.Module]] = {
    "dropout": lambda p, _: nn.Dropout(p),
    "dropblock": DropBlock2d,
    "stochastic_depth": lambda p, _: torchvision.ops.StochasticDepth(p, "row"),
}


def regularizer(name: str, p: float, *, block_size: int = 7) -> nn.Module:
    """A layer that drops things while training and is the identity in evaluation.

    Args:
        name: "dropout" (single numbers; Srivastava et al. 2014), "dropblock" (squares of a map;
            Ghiasi et al. 2018), or "stochastic_depth" (all of an image's map, which makes sense at
            the end of a residual branch; Huang et al. 2016).
        p: probability that a number is dropped.
        block_size: side of the squares of "dropblock", odd; smaller maps have smaller ones.

    Raises:
        ValueError: unknown name, p is not in [0, 1), or the block size is even.
    """
    if name not in _REGULARIZERS:
        raise ValueError(f"unknown regularizer {name!r}; {suggest(name, _REGULARIZERS)}")
    _check_probability(p)
    if block_size < 1 or block_size % 2 == 0:
        raise ValueError(f"block_size must be odd and at least 1, got {block_size}; 7 is usual")
    return _REGULARIZERS[name](p, block_size)


def _check_probability(p: float) -> None:
    if not 0 <= p < 1:
        raise ValueError(f"the probability to drop must be at least 0 and below 1, got {p}")
