"""Convolutions beyond the plain one: with holes, with moving taps, by name.

B batch, C channels in, D channels out, H, W height and width of the input, H', W' of the output,
K taps of a kernel, G groups of channels whose taps move together.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, overload

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from detkit.registry import suggest

ConvLayer = Callable[[int, int], nn.Module]  # in_channels, out_channels -> module


def partial_conv2d(
    x: Tensor,
    mask: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
) -> tuple[Tensor, Tensor]:
    """Convolve what is valid, and scale by how much of each window that is.

    Partial convolution (Liu et al. 2018, equations 1 and 2): `W (x * m) sum(1) / sum(m) + b` where
    the window holds anything valid, otherwise 0. Padding is a hole too, so that at the borders of
    an image without holes the scale is above 1.

    Args:
        x: `[B, C, H, W]`; what it holds in the holes does not matter, NaN included.
        mask: `[B or 1, 1 or C, H, W]`, nonzero where `x` is valid; C channels where the holes
            differ between the channels.
        weight: `[D, C / groups, kh, kw]`.
        bias: `[D]`.
        stride: as in `torch.nn.functional.conv2d`, like the rest.
        padding: zeros at each border.
        dilation: between taps.
        groups: of channels.

    Returns:
        `[B, D, H', W']`, and the new mask, bool `[B or 1, 1 or D, H', W']`: true where the window
        holds anything valid. D channels only where `mask` has C and the groups differ.

    Raises:
        ValueError: the mask does not fit the input.
    """
    _check_mask(x, mask)
    valid = mask != 0
    # where, not a product: a hole may hold NaN
    out = F.conv2d(torch.where(valid, x, 0), weight, None, stride, padding, dilation, groups)
    mask_groups = groups if valid.shape[1] > 1 else 1
    density = valid.to(x.dtype).unflatten(1, (mask_groups, -1)).mean(dim=2)  # one map per group
    ones = density.new_ones(mask_groups, 1, *weight.shape[2:])
    count = F.conv2d(density, ones, None, stride, padding, dilation, mask_groups)
    if mask_groups > 1:
        count = count.repeat_interleave(weight.shape[0] // groups, dim=1)  # [B, D, H', W']
    taps = weight.shape[2] * weight.shape[3]
    # not > 0: a fast convolution algorithm may round nothing to nearly nothing
    seen = count > 0.5 * mask_groups / valid.shape[1]
    out = out / torch.where(seen, count / taps, 1)
    if bias is not None:
        out = out + bias.to(out.dtype).view(-1, 1, 1)
    return torch.where(seen, out, 0), seen


def _check_mask(x: Tensor, mask: Tensor) -> None:
    batch, channels, *size = x.shape
    if (
        mask.dim() != 4
        or mask.shape[0] not in (1, batch)
        or mask.shape[1] not in (1, channels)
        or list(mask.shape[2:]) != size
    ):
        raise ValueError(
            f"mask {list(mask.shape)} does not fit the input {list(x.shape)}; allowed: "
            f"[{batch} or 1, 1 or {channels}, {size[0]}, {size[1]}]"
        )


class PartialConv2d(nn.Conv2d):
    """Convolution that looks past holes (Liu et al. 2018, section 3.1); see `partial_conv2d`.

    Parameters and their names are those of `nn.Conv2d`, whose weights load. Called with an image
    alone it takes the place of a plain convolution, with the padding as the only hole (Liu et al.
    2018, "Partial Convolution based Padding"); called with a mask it returns the next mask too.

    Args:
        in_channels: C.
        out_channels: D.
        kernel_size: side of the kernel.
        stride: between windows.
        padding: zeros at each border, which count as holes.
        dilation: between taps.
        groups: of channels.
        bias: whether to add one where anything is valid.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int = 0,
        dilation: int = 1,
        groups: int = 1,
        bias: bool = True,
    ) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias
        )

    @overload
    def forward(self, x: Tensor, mask: None = None) -> Tensor: ...

    @overload
    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]: ...

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """From `[B, C, H, W]` to `[B, D, H', W']`; with a mask, the new mask as well."""
        out, seen = partial_conv2d(
            x,
            x.new_ones(1, 1, *x.shape[2:], dtype=torch.bool) if mask is None else mask,
            self.weight,
            self.bias,
            stride=self.stride,  # type: ignore[arg-type]
            padding=self.padding,  # type: ignore[arg-type]
            dilation=self.dilation,  # type: ignore[arg-type]
            groups=self.groups,
        )
        return out if mask is None else (out, seen)


class DeformableConv2d(nn.Module):
    """A convolution whose taps move, each by its own learned offset at each place.

    Deformable convolution (Dai et al. 2017, section 2.1), and with `modulated` its second version
    (Zhu et al. 2019, section 3.2), which also weighs each tap. A second convolution of the same
    geometry, `offset`, computes the moves. It starts at zero, so that the whole starts as exactly
    the convolution it was made of: wrap one that has its weights already. A tap's weight is twice
    a sigmoid, as in the authors' released code, and so starts at 1 (a sigmoid alone at 1/2).
    The papers train `offset` at a tenth of the learning rate.

    Args:
        conv: what to make deformable.
        modulated: weigh the taps too (version 2).
        offset_groups: G, groups of input channels that share their moves.

    Raises:
        ValueError: the convolution does not pad with a number of zeros, or G does not divide C.
    """

    def __init__(self, conv: nn.Conv2d, *, modulated: bool = False, offset_groups: int = 1) -> None:
        super().__init__()
        if conv.padding_mode != "zeros" or isinstance(conv.padding, str):
            raise ValueError(
                f"DeformableConv2d needs a convolution that pads with a number of zeros, got "
                f"padding {conv.padding!r} of mode {conv.padding_mode!r}"
            )
        if offset_groups < 1 or conv.in_channels % offset_groups:
            raise ValueError(
                f"offset_groups {offset_groups} does not divide the {conv.in_channels} input "
                "channels; 1 is the usual choice"
            )
        self.conv = conv
        self.modulated = modulated
        self.num_moves = offset_groups * conv.kernel_size[0] * conv.kernel_size[1]  # G * K
        self.offset = nn.Conv2d(
            conv.in_channels,
            self.num_moves * (3 if modulated else 2),
            conv.kernel_size,  # type: ignore[arg-type]
            stride=conv.stride,  # type: ignore[arg-type]
            padding=conv.padding,  # type: ignore[arg-type]
            dilation=conv.dilation,  # type: ignore[arg-type]
        )
        self.reset_offsets()

    def reset_offsets(self) -> None:
        """Put the taps back to where, and as heavy as, the plain convolution has them."""
        nn.init.zeros_(self.offset.weight)
        nn.init.zeros_(self.offset.get_parameter("bias"))

    def main_path(self) -> tuple[nn.Module, ...]:
        """The convolution: its geometry is that of the output, wherever the taps go."""
        return (self.conv,)

    def forward(self, x: Tensor) -> Tensor:
        """From `[B, C, H, W]` to `[B, D, H', W']`."""
        moves = self.offset(x)  # [B, 2GK, H', W'], dy before dx; if modulated 3GK, the weights last
        # torchvision's kernel knows no bfloat16; and places are too fine for half precision
        dtype = torch.promote_types(moves.dtype, torch.float32)
        weights = None
        if self.modulated:
            weights = 2 * moves[:, 2 * self.num_moves :].to(dtype).sigmoid()
        bias = self.conv.bias
        out = torchvision.ops.deform_conv2d(
            x.to(dtype),
            moves[:, : 2 * self.num_moves].to(dtype),
            self.conv.weight.to(dtype),
            None if bias is None else bias.to(dtype),
            stride=self.conv.stride,
            padding=self.conv.padding,
            dilation=self.conv.dilation,
            mask=weights,
        )
        return out.to(moves.dtype)


def _deformable(
    in_channels: int, out_channels: int, *, modulated: bool, **geometry: Any
) -> DeformableConv2d:
    conv = nn.Conv2d(in_channels, out_channels, **geometry)
    return DeformableConv2d(conv, modulated=modulated)


_CONVOLUTIONS: dict[str, Callable[..., nn.Module]] = {
    "plain": nn.Conv2d,
    "dilated": nn.Conv2d,
    "transposed": nn.ConvTranspose2d,
    "partial": PartialConv2d,
    "deformable": partial(_deformable, modulated=False),
    "modulated_deformable": partial(_deformable, modulated=True),
}


def conv_layer(
    name: str,
    *,
    kernel_size: int = 3,
    stride: int = 1,
    dilation: int | None = None,
    groups: int = 1,
    bias: bool = True,
) -> ConvLayer:
    """A builder of convolutions of which one can take the place of the other.

    All pad so that only the stride changes the size: `ceil(H / stride)` rows come out, or
    `H * stride` of "transposed".

    Args:
        name: "plain", "dilated", "transposed", "partial", "deformable" or "modulated_deformable".
        kernel_size: side of the kernel, odd unless "transposed" with a stride.
        stride: between windows; between the cells that are spread out if "transposed".
        dilation: between taps; None is 2 for "dilated" and 1 for the others.
        groups: of channels.
        bias: whether to have one; a norm that follows makes it useless.

    Returns:
        A function from channels in and channels out to a module.

    Raises:
        ValueError: unknown name, a number below 1, or a kernel without a middle.
    """
    if name not in _CONVOLUTIONS:
        raise ValueError(f"unknown convolution {name!r}; {suggest(name, _CONVOLUTIONS)}")
    if dilation is None:
        dilation = 2 if name == "dilated" else 1
    if min(kernel_size, stride, dilation, groups) < 1:
        raise ValueError(
            f"kernel_size {kernel_size}, stride {stride}, dilation {dilation} and groups {groups} "
            "must be at least 1"
        )
    reach = dilation * (kernel_size - 1)  # from the first tap to the last
    shape = {"kernel_size": kernel_size, "stride": stride, "dilation": dilation}
    shape["padding"] = reach // 2
    if name == "transposed":
        # (H - 1) stride - 2 padding + reach + output_padding + 1 rows shall be H * stride
        shape["padding"] = max(0, reach + 2 - stride) // 2
        shape["output_padding"] = stride - 1 - reach + 2 * shape["padding"]
    if reach % 2 and (name != "transposed" or stride == 1):
        raise ValueError(
            f"a {name} convolution of kernel_size {kernel_size} and stride {stride} has no middle "
            "and so would shift the map; use an odd kernel_size"
        )
    return partial(_CONVOLUTIONS[name], **shape, groups=groups, bias=bias)
