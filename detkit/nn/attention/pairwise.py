"""Attention of every place, or channel, to every other: non-local, BoTNet's, DANet's.

B batch, C channels, D channels of queries and keys, H, W height and width, N = HW places.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detkit.nn.attention.gates import hidden_channels
from detkit.registry import attentions, suggest

_POOLS = ("before", "after", "none")


@attentions.register("nonlocal")
class NonLocal(nn.Module):
    """Non-local block (Wang et al. 2018): y = x + BN(out(A g)), A = softmax(theta phi^T / sqrt(D)).

    The embedded Gaussian (section 3.2) in a residual block with max-pooled keys and values
    (section 3.3). The defaults are those of the authors' released code: 2x2 max-pool of x before
    phi and g, D = C/2, logits scaled, biases, and a batch norm whose weight starts at 0, so that
    the block starts as the identity. Other libraries differ: mmcv's NonLocal2d pools after phi
    and g (`pool="after"`) or not at all, and timm's NonLocalAttn is `pool="none"`,
    `inner_channels=C // 8`, `scale=C**-0.5`.

    Args:
        channels: C.
        inner_channels: D; C/2 where None.
        pool: "before" phi and g, "after" them, or "none".
        scale: of the logits; 1/sqrt(D) where None.
        norm: end with the batch norm; without it `out` starts at 0 instead.

    Raises:
        ValueError: unknown pool, or inner_channels below 1.
    """

    def __init__(
        self,
        channels: int,
        *,
        inner_channels: int | None = None,
        pool: str = "before",
        scale: float | None = None,
        norm: bool = True,
    ) -> None:
        super().__init__()
        if pool not in _POOLS:
            raise ValueError(f"unknown pool {pool!r} of nonlocal; {suggest(pool, _POOLS)}")
        inner = max(channels // 2, 1) if inner_channels is None else inner_channels
        if inner < 1:
            raise ValueError(f"inner_channels must be at least 1, got {inner}; C/2 is the default")
        self.pool = pool
        self.scale = inner**-0.5 if scale is None else scale
        self.theta = nn.Conv2d(channels, inner, kernel_size=1)
        self.phi = nn.Conv2d(channels, inner, kernel_size=1)
        self.g = nn.Conv2d(channels, inner, kernel_size=1)
        self.out = nn.Conv2d(inner, channels, kernel_size=1)
        self.norm = nn.BatchNorm2d(channels) if norm else nn.Identity()
        for conv in (self.theta, self.phi, self.g, self.out):
            nn.init.normal_(conv.weight, std=0.01)
            nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
        nn.init.zeros_(self.norm.weight if norm else self.out.weight)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """Add to each place of `[B, C, H, W]` what it finds in all others."""
        source = _halve(x) if self.pool == "before" else x
        keys, values = self.phi(source), self.g(source)  # [B, D, H/2, W/2]
        if self.pool == "after":
            keys, values = _halve(keys), _halve(values)
        found = _attend(self.theta(x), keys, values, scale=self.scale)  # [B, D, H, W]
        y: Tensor = x + self.norm(self.out(found))
        return y


def _halve(x: Tensor) -> Tensor:
    # a side of one place has no second one to be pooled with
    return F.max_pool2d(x, kernel_size=(min(2, x.shape[-2]), min(2, x.shape[-1])))


def _attend(queries: Tensor, keys: Tensor, values: Tensor, *, scale: float) -> Tensor:
    """Softmax attention over places: `[B, D, H, W]`, `[B, D, h, w]`, `[B, E, h, w]` -> E, H, W."""
    q, k, v = (each.flatten(2).mT.unsqueeze(1) for each in (queries, keys, values))  # [B, 1, N, D]
    found = F.scaled_dot_product_attention(q, k, v, scale=scale).squeeze(1)  # [B, N, E]
    return found.mT.unflatten(2, queries.shape[-2:])


@attentions.register("mhsa")
class RelativeSelfAttention(nn.Module):
    """All-to-all self-attention with relative positions (BoTNet, Srinivas et al. 2021, figure 4).

    logits = q k^T / sqrt(D) + q r_h + q r_w, per head; r is looked up by the offset from the place
    that asks to the place that is asked, separately along both axes. No projection behind it: it
    stands where a 3x3 convolution stood. Keys and order of the state_dict are those of timm's
    BottleneckAttn.

    Args:
        channels: C; D = C / heads.
        heads: heads of attention.
        size: side, or (height, width), of the map that the tables are built for. On a map of
            another size the tables are interpolated linearly (as ViTDet's are), so that it is the
            offset relative to the map's extent that counts.

    Raises:
        ValueError: heads do not divide the channels, or a wrong size.
    """

    def __init__(self, channels: int, *, heads: int = 4, size: int | Sequence[int] = 14) -> None:
        super().__init__()
        if heads < 1 or channels % heads:
            raise ValueError(f"{heads} heads do not divide {channels} channels; change heads")
        self.heads = heads
        self.qkv = nn.Conv2d(channels, 3 * channels, kernel_size=1, bias=False)
        self.pos_embed = RelativePosition(channels // heads, map_size(size))
        nn.init.trunc_normal_(self.qkv.weight, std=channels**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        """From `[B, C, H, W]` to the same shape."""
        height, width = x.shape[-2:]
        qkv = self.qkv(x).unflatten(1, (3, self.heads, -1)).flatten(4)  # [B, 3, heads, D, N]
        q, k, v = qkv.mT.unbind(1)  # [B, heads, N, D]
        bias = self.pos_embed(q, height, width)
        found = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)  # [B, heads, N, D]
        return found.mT.flatten(1, 2).unflatten(2, (height, width))


class RelativePosition(nn.Module):
    """Logits from offsets along both axes (Shaw et al. 2018; BoTNet, figure 4).

    Args:
        channels: D of a query.
        size: (height, width) of the map; the tables have `2 * height - 1` and `2 * width - 1` rows,
            for offsets from `1 - height` to `height - 1`.
    """

    def __init__(self, channels: int, size: tuple[int, int]) -> None:
        super().__init__()
        height, width = size
        self.height_rel = nn.Parameter(torch.empty(2 * height - 1, channels))
        self.width_rel = nn.Parameter(torch.empty(2 * width - 1, channels))
        nn.init.trunc_normal_(self.height_rel, std=channels**-0.5)
        nn.init.trunc_normal_(self.width_rel, std=channels**-0.5)

    def forward(self, queries: Tensor, height: int, width: int) -> Tensor:
        """From queries `[B, heads, N, D]` of a map to logits `[B, heads, N, N]`."""
        queries = queries.unflatten(2, (height, width))  # [B, heads, H, W, D]
        rows = _by_offset(self.height_rel, height)  # [H, H, D]
        columns = _by_offset(self.width_rel, width)  # [W, W, D]
        row_logits = torch.einsum("bnhwd,hid->bnhwi", queries, rows)
        column_logits = torch.einsum("bnhwd,wjd->bnhwj", queries, columns)
        logits = row_logits.unsqueeze(-1) + column_logits.unsqueeze(-2)  # [B, heads, H, W, H, W]
        return logits.flatten(4).flatten(2, 3)


def _by_offset(table: Tensor, side: int) -> Tensor:
    """Row of the table for each pair of positions: `[side, side, D]`, who asks first."""
    if table.shape[0] != 2 * side - 1:
        table = F.interpolate(table.mT.unsqueeze(0), size=2 * side - 1, mode="linear")[0].mT
    position = torch.arange(side, device=table.device)
    return table[position - position.unsqueeze(1) + side - 1]


def map_size(size: int | Sequence[int]) -> tuple[int, int]:
    """(height, width) from a side or from both.

    Raises:
        ValueError: neither one nor two positive integers.
    """
    sides = (size, size) if isinstance(size, int) else tuple(size)
    if len(sides) != 2 or not all(isinstance(side, int) and side >= 1 for side in sides):
        raise ValueError(f"size must be a side or (height, width), at least 1 each, got {size!r}")
    return sides[0], sides[1]


class PositionAttention(nn.Module):
    """Position attention of DANet (Fu et al. 2019, section 3.2): y = gamma (A v) + x.

    A = softmax(q k^T), not divided by sqrt(D). Starts as the identity, gamma being 0.

    Args:
        channels: C.
        reduction: D = C / reduction, at least 1.

    Raises:
        ValueError: reduction below 1.
    """

    def __init__(self, channels: int, *, reduction: int = 8) -> None:
        super().__init__()
        inner = hidden_channels(channels, reduction)
        self.gamma = nn.Parameter(torch.zeros(1))
        self.query = nn.Conv2d(channels, inner, kernel_size=1)
        self.key = nn.Conv2d(channels, inner, kernel_size=1)
        self.value = nn.Conv2d(channels, channels, kernel_size=1)

    def branch(self, x: Tensor) -> Tensor:
        """What is added to x: gamma times the values of similar places."""
        found = _attend(self.query(x), self.key(x), self.value(x), scale=1.0)
        return self.gamma.to(found.dtype) * found

    def forward(self, x: Tensor) -> Tensor:
        """From `[B, C, H, W]` to the same shape."""
        return x + self.branch(x)


class ChannelAttention(nn.Module):
    """Channel attention of DANet (Fu et al. 2019, section 3.3): y = gamma (A x) + x.

    With E = X X^T over the places, A = softmax(max_j(E_ij) - E_ij): as in the authors' released
    code a channel attends to those LEAST similar to it. Starts as the identity, gamma being 0.

    Args:
        channels: C; the module's one parameter does not depend on it.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1))

    def branch(self, x: Tensor) -> Tensor:
        """What is added to x: gamma times the dissimilar channels."""
        channels = x.flatten(2).unsqueeze(1)  # [B, 1, C, N]
        # softmax does not see the maximum that is added to a row; sums of squares stay float32
        found = F.scaled_dot_product_attention(-channels, channels, channels, scale=1.0)
        return self.gamma.to(x.dtype) * found.squeeze(1).view_as(x)

    def forward(self, x: Tensor) -> Tensor:
        """From `[B, C, H, W]` to the same shape."""
        return x + self.branch(x)


@attentions.register("dual")
class DualAttention(nn.Module):
    """Dual attention of DANet (Fu et al. 2019): y = x + position branch + channel branch.

    DANet's head sums `PositionAttention` and `ChannelAttention`, each after a convolution of its
    own and each with its residual. Here both see the same x, which is counted once: as both
    gammas start at 0, the module starts as the identity and can be put into a trained network.

    Args:
        channels: C.
        reduction: channels per channel of queries and keys in the position branch.

    Raises:
        ValueError: reduction below 1.
    """

    def __init__(self, channels: int, *, reduction: int = 8) -> None:
        super().__init__()
        self.position = PositionAttention(channels, reduction=reduction)
        self.channel = ChannelAttention(channels)

    def forward(self, x: Tensor) -> Tensor:
        """From `[B, C, H, W]` to the same shape."""
        return x + self.position.branch(x) + self.channel.branch(x)
