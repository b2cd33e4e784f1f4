"""Where attention stands in a network.

Positions in a residual block, by what runs just before or after the attention:

    before_conv      every convolution, of stem and shortcut too (gated channel transformation)
    before_conv2     the block's second convolution (temporal adaptive module)
    after_conv2      the block's second convolution, before its norm (SimAM)
    after_bn2        the activation behind the block's second norm (strip pooling)
    after_bn3        the last norm of the residual branch, before the sum (SE and most others)
    after_block      the activation behind the sum (non-local block)

and in every network `after_stage` (BAM). A block of two convolutions ends its residual branch with
the second norm: there `after_bn2` and `after_bn3` are the same place.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from detkit.nn.attention import attention_settings, create_attention
from detkit.nn.attention.pairwise import RelativeSelfAttention
from detkit.registry import suggest

Stages = Sequence[int] | Mapping[int, Sequence[int]]


@dataclass(frozen=True)
class Placement:
    """Which attention module stands where.

    Attributes:
        name: of the module, None for no attention anywhere.
        at: a position.
        stages: indices of the stages that get it, or for each of them the indices of its blocks
            (negative ones count from the last); None for all that have blocks.
        settings: of the module.
        image_size: (height, width) of the images that a module with a map of fixed size (Fca, RGA,
            self-attention) is made for; it serves others by interpolation.
    """

    name: str | None = None
    at: str = "after_bn3"
    stages: Stages | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    image_size: tuple[int, int] = (224, 224)

    def module(
        self, at: str, *, stage: int, channels: int, stride: int, block: int = 0, blocks: int = 1
    ) -> nn.Module | None:
        """The attention module of one place, or None where none stands.

        Args:
            at: the position asked for.
            stage: index of the stage.
            channels: of the map there.
            stride: pixels of the image from one cell of that map to the next.
            block: index of the block in its stage.
            blocks: how many there are.
        """
        if self.name is None or at != self.at or not self._chosen(stage, block, blocks):
            return None
        settings = dict(self.settings)
        allowed = attention_settings(self.name)
        taken = {"name", "channels"}.intersection(settings).difference(allowed)
        if taken:  # what `create_attention` is given by its place
            raise ValueError(
                f"attention {self.name} has no setting {min(taken)!r}; "
                f"{suggest(min(taken), allowed) if allowed else 'it takes none'}"
            )
        if "size" in allowed:
            height, width = (max(1, side // stride) for side in self.image_size)
            settings.setdefault("size", height if height == width else (height, width))
        module = create_attention(self.name, channels=channels, **settings)
        module.is_attention = True  # type: ignore[assignment]
        return module

    def _chosen(self, stage: int, block: int, blocks: int) -> bool:
        if self.stages is None:
            return True
        if stage not in self.stages:
            return False
        if not isinstance(self.stages, Mapping):
            return True
        wanted = self.stages[stage]
        wrong = [index for index in wanted if not -blocks <= index < blocks]
        if wrong:
            raise ValueError(
                f"attention_stages names block {wrong[0]} of stage {stage}, which has {blocks}: "
                f"give indices in {-blocks}..{blocks - 1}"
            )
        return any(index % blocks == block for index in wanted)


def is_attention(module: nn.Module) -> bool:
    """Whether a module was put into its network by a `Placement`."""
    return getattr(module, "is_attention", False) is True


def outside_attention(module: nn.Module) -> Iterator[nn.Module]:
    """The module and its parts without attention, which initialises itself."""
    if not (is_attention(module) or isinstance(module, RelativeSelfAttention)):
        yield module
        for child in module.children():
            yield from outside_attention(child)


class AttendedConv2d(nn.Conv2d):
    """A convolution with attention to its input or its output.

    It keeps the convolution's own names in the state_dict, so that published weights fit.

    Args:
        conv: the convolution; its parameters are taken over.
        before: attention to the input, or None.
        after: attention to the output, or None.
    """

    def __init__(self, conv: nn.Conv2d, before: nn.Module | None, after: nn.Module | None) -> None:
        super().__init__(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,  # type: ignore[arg-type]
            stride=conv.stride,  # type: ignore[arg-type]
            padding=conv.padding,  # type: ignore[arg-type]
            dilation=conv.dilation,  # type: ignore[arg-type]
            groups=conv.groups,
            bias=conv.bias is not None,
            device="meta",  # its own parameters are not needed
        )
        self.weight, self.bias = conv.weight, conv.bias
        self.before, self.after = before, after

    def forward(self, x: Tensor) -> Tensor:
        """Attend, convolve, attend."""
        if self.before is not None:
            x = self.before(x)
        x = super().forward(x)
        return x if self.after is None else self.after(x)


def attended(
    conv: nn.Conv2d, *, before: nn.Module | None = None, after: nn.Module | None = None
) -> nn.Conv2d:
    """The convolution with attention around it, or itself where there is none."""
    return conv if before is None and after is None else AttendedConv2d(conv, before, after)
