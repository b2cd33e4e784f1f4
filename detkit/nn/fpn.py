"""Feature pyramid network (Lin et al. 2017, section 3), with P6 and P7 (RetinaNet, section 4).

The modules carry torchvision's names, so that its detectors' weights load as they are.
B batch, C channels of a backbone map, D channels of the pyramid, H, W height and width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from detkit.nn.layers import norm_layer
from detkit.registry import suggest

_EXTRA_LEVELS = {"none": 0, "pool": 1, "p6p7": 2}
_P6_SOURCES = ("p5", "c5")


class FPN(nn.Module):
    """Give every level of a backbone the meaning of its coarsest one.

    Args:
        in_channels: channels of each backbone map, finest first.
        channels: D, channels of every output map.
        extra: None; "pool", one more level that takes every second cell of the last one (Faster
            R-CNN with FPN); or "p6p7", two more levels by strided convolutions (RetinaNet, FCOS).
        norm: None (convolutions with bias), or a name of `detkit.nn.norm_layer`.
        norm_eps: added to the variance by the norm.
        p6_source: what P6 of "p6p7" is computed from: "p5", the coarsest output, or "c5", the
            coarsest input.

    Raises:
        ValueError: no input level, or an unknown choice.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        channels: int = 256,
        *,
        extra: str | None = None,
        norm: str | None = None,
        norm_eps: float = 1e-5,
        p6_source: str = "p5",
    ) -> None:
        super().__init__()
        if not in_channels:
            raise ValueError("FPN needs the channels of at least one backbone map, got none")
        if extra is not None and extra not in _EXTRA_LEVELS:
            raise ValueError(f"unknown FPN extra {extra!r}; {suggest(extra, _EXTRA_LEVELS)}")
        if p6_source not in _P6_SOURCES:
            raise ValueError(f"unknown p6_source {p6_source!r}; {suggest(p6_source, _P6_SOURCES)}")
        self.channels = channels
        self.extra = extra or "none"
        self.inner_blocks = nn.ModuleList(
            _conv(width, channels, kernel_size=1, norm=norm, norm_eps=norm_eps)
            for width in in_channels
        )
        self.layer_blocks = nn.ModuleList(
            _conv(channels, channels, kernel_size=3, norm=norm, norm_eps=norm_eps)
            for _ in in_channels
        )
        self.extra_blocks: P6P7 | None = None
        if extra == "p6p7":
            source_channels = channels if p6_source == "p5" else in_channels[-1]
            self.extra_blocks = P6P7(source_channels, channels)
        self.p6_source = p6_source
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight, a=1)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    @property
    def num_levels(self) -> int:
        """How many maps come out."""
        return len(self.inner_blocks) + _EXTRA_LEVELS[self.extra]

    def out_strides(self, strides: Sequence[int]) -> list[int]:
        """Strides of the output maps in pixels, given those of the backbone maps."""
        result = list(strides)
        for _ in range(_EXTRA_LEVELS[self.extra]):
            result.append(2 * result[-1])
        return result

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Merge top-down.

        Args:
            maps: one `[B, C, H, W]` per backbone level, finest first.

        Returns:
            One `[B, D, H, W]` per level, of the same sizes, then the extra levels.

        Raises:
            ValueError: not one map per level.
        """
        if len(maps) != len(self.inner_blocks):
            raise ValueError(f"FPN was built for {len(self.inner_blocks)} maps, got {len(maps)}")
        merged = [block(level) for block, level in zip(self.inner_blocks, maps, strict=True)]
        for fine in range(len(merged) - 2, -1, -1):
            # to the exact size of the finer map: odd sizes are not a factor of two apart
            size = merged[fine].shape[-2:]
            merged[fine] = merged[fine] + F.interpolate(merged[fine + 1], size=size, mode="nearest")
        outputs = [block(level) for block, level in zip(self.layer_blocks, merged, strict=True)]
        if self.extra == "pool":
            outputs.append(F.max_pool2d(outputs[-1], kernel_size=1, stride=2))
        elif self.extra_blocks is not None:
            source = outputs[-1] if self.p6_source == "p5" else maps[-1]
            outputs.extend(self.extra_blocks(source))
        return outputs


class P6P7(nn.Module):
    """Two coarser levels, each by a 3x3 convolution of stride 2 (RetinaNet, section 4).

    Args:
        in_channels: channels of the map they start from.
        channels: D, channels of both outputs.
    """

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.p6 = nn.Conv2d(in_channels, channels, kernel_size=3, stride=2, padding=1)
        self.p7 = nn.Conv2d(channels, channels, kernel_size=3, stride=2, padding=1)

    def forward(self, source: Tensor) -> tuple[Tensor, Tensor]:
        """P6 at half and P7 at a quarter of the size of `source`."""
        p6 = self.p6(source)
        return p6, self.p7(F.relu(p6))


def _conv(
    in_channels: int, channels: int, *, kernel_size: int, norm: str | None, norm_eps: float
) -> nn.Sequential:
    padding = kernel_size // 2
    conv = nn.Conv2d(in_channels, channels, kernel_size, padding=padding, bias=norm is None)
    if norm is None:
        return nn.Sequential(conv)
    return nn.Sequential(conv, norm_layer(norm, eps=norm_eps)(channels))
