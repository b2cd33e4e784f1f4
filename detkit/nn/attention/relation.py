"""Relation-aware global attention: a gate from how all places, or channels, relate.

B batch, C channels, H, W height and width; N nodes of F features each: the HW places with C
features, or the C channels with HW features.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detkit.nn.attention.gates import adaptive_mean, hidden_channels
from detkit.nn.attention.pairwise import map_size
from detkit.registry import attentions, suggest

_PARTS = {"sc": ("spatial", "channel"), "s": ("spatial",), "c": ("channel",)}


@attentions.register("rga")
class RelationAwareAttention(nn.Module):
    """Relation-aware global attention (Zhang et al. 2020, section 3): RGA-SC, RGA-S or RGA-C.

    Per part, with theta, phi, g and J each a 1x1 convolution without bias, BN and ReLU:
    G = theta^T phi, `[N, N]`; the gate of a node is sigmoid(W [mean(g); J([G^T; G])]), W being
    two such layers without the last ReLU; y = gate * x. In "sc" the channels' gate is computed
    from the map that the places' gate has left. Order of the state_dict: g, J, W of both parts
    (places first), then theta and phi of the places, then of the channels.

    The weights depend on the number of places, so the module is built for one `size`. It is exact
    on maps of that size; any other map is averaged down (or up) to `size` adaptively before the
    relations, and the places' gate is resized bilinearly to the map.

    Args:
        channels: C.
        size: side, or (height, width), of the map that it is built for. The default is that of
            the paper's last two stages (pictures of 256x128).
        parts: "sc", "s" or "c".
        reduction: of channels, of places, and inside W; at least 1.

    Raises:
        ValueError: a wrong size, unknown parts or a reduction below 1.
    """

    def __init__(
        self,
        channels: int,
        *,
        size: int | Sequence[int] = (16, 8),
        parts: str = "sc",
        reduction: int = 8,
    ) -> None:
        super().__init__()
        if parts not in _PARTS:
            raise ValueError(f"unknown parts {parts!r} of rga; {suggest(parts, _PARTS)}")
        self.size = map_size(size)
        self.parts = _PARTS[parts]
        places = self.size[0] * self.size[1]
        features = {"spatial": channels, "channel": places}
        nodes = {"spatial": places, "channel": channels}
        self.g, self.joint, self.weigh, self.relate = (nn.ModuleDict() for _ in range(4))
        for part in self.parts:
            inner, wide = (hidden_channels(n, reduction) for n in (features[part], nodes[part]))
            narrow = hidden_channels(1 + wide, reduction)
            self.g[part] = _layer(features[part], inner)
            self.joint[part] = _layer(2 * nodes[part], wide)
            self.weigh[part] = nn.ModuleList([_layer(1 + wide, narrow), _layer(narrow, 1)])
            self.relate[part] = nn.ModuleList([_layer(features[part], inner) for _ in range(2)])

    def forward(self, x: Tensor) -> Tensor:
        """Weigh the places, then the channels, of `[B, C, H, W]`."""
        if "spatial" in self.parts:
            gate = self._gate("spatial", self._pooled(x)).unflatten(2, self.size)  # [B, 1, h, w]
            x = x * _resized(gate, x.shape[-2:])
        if "channel" in self.parts:
            gate = self._gate("channel", self._pooled(x).mT)  # [B, 1, C]
            x = x * gate.view(-1, x.shape[1], 1, 1)
        return x

    def _pooled(self, x: Tensor) -> Tensor:
        """The map at the size that the weights are for: `[B, C, N]`."""
        if tuple(x.shape[-2:]) != self.size:
            x = adaptive_mean(x, *self.size)
        return x.flatten(2)

    def _gate(self, part: str, x: Tensor) -> Tensor:
        """From nodes `[B, F, N]` to their gates `[B, 1, N]`."""
        theta, phi = (_relu(layer(x)) for layer in cast("nn.ModuleList", self.relate[part]))
        relations = _finite(theta.mT @ phi)  # [B, N, N]
        joint = _relu(self.joint[part](torch.cat([relations.mT, relations], dim=1)))
        own = _relu(self.g[part](x)).mean(dim=1, keepdim=True)  # [B, 1, N]
        narrow, last = cast("nn.ModuleList", self.weigh[part])
        logits: Tensor = last(_relu(narrow(torch.cat([own, joint], dim=1))))
        return logits.sigmoid()


def _layer(in_channels: int, channels: int) -> nn.Sequential:
    conv = nn.Conv1d(in_channels, channels, kernel_size=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm1d(channels))


def _relu(x: Tensor) -> Tensor:
    return _finite(F.relu(x))


def _finite(x: Tensor) -> Tensor:
    # products of features overflow float16, and a sum of infinities is no number
    return x.clamp(max=torch.finfo(x.dtype).max) if x.dtype == torch.float16 else x


def _resized(gate: Tensor, size: Sequence[int]) -> Tensor:
    if gate.shape[-2:] == tuple(size):
        return gate
    return F.interpolate(gate, size=tuple(size), mode="bilinear", align_corners=False)
