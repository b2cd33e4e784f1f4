"""BoTNet: a ResNet whose last layer looks at the whole map by self-attention.

Srinivas et al. 2021, "Bottleneck transformers for visual recognition" (arXiv 2101.11605, figure 3
and table 1): in the blocks of the last layer relative self-attention stands where the 3x3
convolution was, and its stride is an average pooling behind it.
B batch, C channels, H, W height and width.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import Tensor, nn

from detkit.backbones.placement import Placement
from detkit.backbones.resnet import (
    Architecture,
    Block,
    BlockSettings,
    Bottleneck,
    ResNet,
    conv1x1,
    drop_path,
    shortcut,
)
from detkit.nn.attention.pairwise import RelativeSelfAttention, map_size
from detkit.registry import backbones

HEADS = 4


class AttentionBottleneck(Block):
    """Self-attention between two 1x1 convolutions, beside a shortcut (figure 3, right).

    Args:
        in_channels: channels of the input.
        channels: of the attention; four times as many come out.
        settings: everything else.
        image_size: (height, width) of the images whose maps the tables of relative positions are
            made for; for others they are interpolated.
    """

    expansion = 4

    def __init__(
        self,
        in_channels: int,
        channels: int,
        settings: BlockSettings,
        *,
        image_size: tuple[int, int] = (224, 224),
    ) -> None:
        super().__init__(in_channels, channels, settings)
        out_channels = channels * self.expansion
        size = tuple(max(1, side // settings.map_stride) for side in image_size)
        self.conv1 = settings.conv(conv1x1(in_channels, channels), map_stride=settings.map_stride)
        self.bn1 = settings.norm(channels)
        self.mhsa = RelativeSelfAttention(channels, heads=HEADS, size=size)
        self.pool = pool(settings.stride)
        self.bn2 = settings.norm(channels)
        self.after_bn2 = settings.at("after_bn2", channels=channels)
        self.conv3 = settings.conv(conv1x1(channels, out_channels), map_stride=settings.out_stride)
        self.bn3 = settings.norm(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = shortcut(in_channels, out_channels, settings)
        self.after_bn3 = settings.at("after_bn3", channels=out_channels)
        self.drop_path = drop_path(settings.drop_path)
        self.after_block = settings.at("after_block", channels=out_channels)

    def main_path(self) -> tuple[nn.Module, ...]:
        """The residual branch; the self-attention in it sees the whole map."""
        return self.conv1, self.pool, self.conv3

    def last_norm(self) -> nn.Module:
        """The norm that ends the residual branch."""
        return self.bn3

    def forward(self, x: Tensor) -> Tensor:
        """From `[B, in_channels, H, W]` to `[B, 4 * channels, H / stride, W / stride]`."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.pool(self.mhsa(out))))
        out = self.after_bn3(self.bn3(self.conv3(self.after_bn2(out))))
        out = self.drop_path(out)
        out += x if self.downsample is None else self.downsample(x)
        return self.after_block(self.relu(out))


def pool(stride: int) -> nn.Module:
    """Average pooling by the stride; an odd border is pooled alone, as the shortcut has it too."""
    if stride == 1:
        return nn.Identity()
    return nn.AvgPool2d(stride, stride=stride, ceil_mode=True, count_include_pad=False)


class BoTNet(ResNet):
    """A ResNet with self-attention in its last layer.

    Its `feature_info` leaves the self-attention out: with it every cell of the last layer depends
    on the whole image.

    Args:
        architecture: the kinds of block and how many.
        image_size: side, or (height, width), of the images that the tables of relative positions
            are made for; for others they are interpolated.
        out_indices: as of `ResNet`.
        in_channels: channels of the images.
        attention: where other attention stands.
        norm: a name of `detkit.nn.norm_layer`.
        norm_eps: added to the variance by the norm.
        width: channels of the stem; 64 in the published network.
        zero_init_residual: start every block as the identity.
        drop_path: as of `ResNet`.
        output_stride: as of `ResNet`; self-attention has nothing to dilate.

    Raises:
        ValueError: a setting is out of its range.
    """

    attention_positions = ("after_bn3", "after_bn2", "before_conv", "after_block", "after_stage")

    def __init__(  # noqa: PLR0913  one keyword for each setting of a recipe
        self,
        architecture: Architecture,
        *,
        image_size: int | Sequence[int] = 224,
        out_indices: Sequence[int] | None = None,
        in_channels: int = 3,
        attention: Placement | None = None,
        norm: str = "batch",
        norm_eps: float = 1e-5,
        width: int = 64,
        zero_init_residual: bool = False,
        drop_path: float = 0.0,
        output_stride: int = 32,
    ) -> None:
        last = partial(AttentionBottleneck, image_size=map_size(image_size))
        super().__init__(
            architecture._replace(blocks=(*architecture.blocks[:3], last)),
            out_indices=out_indices,
            in_channels=in_channels,
            attention=attention,
            norm=norm,
            norm_eps=norm_eps,
            width=width,
            zero_init_residual=zero_init_residual,
            drop_path=drop_path,
            output_stride=output_stride,
        )


_BLOCKS = (Bottleneck, Bottleneck, Bottleneck, AttentionBottleneck)

backbones.register("botnet50")(partial(BoTNet, Architecture("botnet50", _BLOCKS, (3, 4, 6, 3))))
