"""Partial, deformable, dilated and transposed convolution, each beside its definition."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from detkit.nn import DeformableConv2d, PartialConv2d, conv_layer, partial_conv2d

NAMES = ("plain", "dilated", "transposed", "partial", "deformable", "modulated_deformable")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def randn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def partial_window_by_window(x, mask, weight, bias, *, stride, padding, dilation, groups):
    """The paper's equations 1 and 2, one window after the other."""
    batch, channels = x.shape[:2]
    out_channels, per_group, *kernel = weight.shape
    mask = mask.to(x.dtype).expand(batch, channels, -1, -1)
    reach = [dilation * (side - 1) + 1 for side in kernel]
    x, mask = (F.pad(each, [padding] * 4) for each in (x * mask, mask))
    rows, columns = ((x.shape[2 + i] - reach[i]) // stride + 1 for i in (0, 1))
    out = x.new_zeros(batch, out_channels, rows, columns)
    seen = torch.zeros(batch, out_channels, rows, columns, dtype=torch.bool)
    for b in range(batch):
        for d in range(out_channels):
            first = d // (out_channels // groups) * per_group
            for i in range(rows):
                for j in range(columns):
                    window = (
                        b,
                        slice(first, first + per_group),
                        slice(i * stride, i * stride + reach[0], dilation),
                        slice(j * stride, j * stride + reach[1], dilation),
                    )
                    valid = mask[window].sum()
                    if valid > 0:
                        scale = mask[window].numel() / valid
                        out[b, d, i, j] = (weight[d] * x[window]).sum() * scale + bias[d]
                        seen[b, d, i, j] = True
    return out, seen


def test_partial_convolution_by_hand():
    conv = PartialConv2d(1, 1, kernel_size=3)
    nn.init.ones_(conv.weight)
    nn.init.constant_(conv.bias, 100.0)
    x = torch.arange(9.0).view(1, 1, 3, 3)
    mask = torch.tensor([[1, 1, 0], [0, 0, 0], [0, 0, 1]]).view(1, 1, 3, 3)
    out, seen = conv(x, mask)
    assert out.item() == pytest.approx((0 + 1 + 8) * 9 / 3 + 100)  # 9 taps, 3 of them valid
    assert seen.item() is True
    out, seen = conv(x, torch.zeros_like(mask))
    assert (out.item(), seen.item()) == (0, False)  # no bias either


@pytest.mark.parametrize("mask_channels", [1, 4])
@pytest.mark.parametrize("mask_batch", [1, 2])
@pytest.mark.parametrize(
    ("stride", "padding", "dilation", "groups"),
    [(1, 0, 1, 1), (2, 1, 1, 1), (1, 2, 2, 1), (1, 1, 1, 2), (2, 3, 2, 4)],
)
def test_partial_convolution_equals_its_definition(
    stride, padding, dilation, groups, mask_batch, mask_channels
):
    geometry = dict(stride=stride, padding=padding, dilation=dilation, groups=groups)
    x, weight, bias = randn(2, 4, 6, 9), randn(8, 4 // groups, 3, 3), randn(8)
    mask = torch.rand(mask_batch, mask_channels, 6, 9) < 0.15
    mask[..., :4, :5] = False  # windows without anything valid
    out, seen = partial_conv2d(x, mask, weight, bias, **geometry)
    expected, expected_seen = partial_window_by_window(x, mask, weight, bias, **geometry)
    assert expected_seen.any() and not expected_seen.all()
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(seen.expand_as(expected_seen), expected_seen)


def test_a_whole_image_is_convolved_plainly_and_scaled_up_at_the_borders():
    conv = PartialConv2d(2, 3, kernel_size=3, padding=1, bias=False).double()
    x = randn(1, 2, 5, 6)
    plain = F.conv2d(x, conv.weight, padding=1)
    out, seen = conv(x, torch.ones(1, 1, 5, 6))
    assert seen.all()
    scale = torch.ones(5, 6, dtype=torch.float64)
    scale[[0, -1]] *= 9 / 6  # padding is a hole: 6 of 9 taps at an edge, 4 in a corner
    scale[:, [0, -1]] *= 9 / 6
    assert scale[0, 0] == 9 / 4
    torch.testing.assert_close(out, plain * scale)
    assert torch.equal(out[..., 1:-1, 1:-1], plain[..., 1:-1, 1:-1])
    torch.testing.assert_close(conv(x), out)  # an image alone has no holes but the padding


def test_several_layers_close_a_hole_one_ring_at_a_time():
    conv = PartialConv2d(1, 1, kernel_size=3, padding=1)
    mask = torch.ones(1, 1, 9, 9, dtype=torch.bool)
    mask[..., 2:7, 2:7] = False
    x, left = torch.rand(1, 1, 9, 9), []
    for _ in range(3):
        x, mask = conv(x, mask)
        left.append(int((~mask).sum()))
    assert left == [9, 1, 0]


def test_what_is_in_a_hole_does_not_matter():
    conv = PartialConv2d(2, 2, kernel_size=3, padding=1)
    x, mask = torch.rand(1, 2, 6, 6), torch.rand(1, 1, 6, 6) < 0.5
    expected, _ = conv(x, mask)
    poisoned = torch.where(mask, x, float("nan")).requires_grad_()
    out, _ = conv(poisoned, mask)
    assert torch.equal(out, expected)
    out.sum().backward()
    assert torch.isfinite(conv.weight.grad).all()
    assert (poisoned.grad[:, :1][~mask] == 0).all()
    assert (poisoned.grad[:, :1][mask] != 0).all()


def test_partial_convolution_passes_the_gradient():
    mask = torch.rand(2, 2, 4, 5) < 0.5

    def only_the_output(x, weight, bias):
        return partial_conv2d(x, mask, weight, bias, padding=1)[0]

    inputs = [each.requires_grad_() for each in (randn(2, 2, 4, 5), randn(3, 2, 3, 3), randn(3))]
    assert torch.autograd.gradcheck(only_the_output, inputs)


def test_partial_convolution_takes_a_plain_ones_weights():
    plain = nn.Conv2d(2, 3, kernel_size=3)
    conv = PartialConv2d(2, 3, kernel_size=3)
    conv.load_state_dict(plain.state_dict(), strict=True)
    x = torch.rand(2, 2, 5, 5)
    torch.testing.assert_close(conv(x), plain(x))
    assert conv(x[:0]).shape == (0, 3, 3, 3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_partial_convolution_in_half_precision(dtype):
    conv = PartialConv2d(64, 4, kernel_size=7, padding=3)
    x, mask = torch.rand(1, 64, 8, 8), torch.rand(1, 64, 8, 8) < 0.3
    expected, expected_seen = conv(x, mask)
    with torch.autocast("cpu", dtype=dtype):
        out, seen = conv(x, mask)
    assert out.dtype == dtype
    assert torch.equal(seen, expected_seen)
    torch.testing.assert_close(out.float(), expected, rtol=5e-2, atol=5e-2)


@pytest.mark.parametrize("shape", [(1, 3, 5, 5), (3, 1, 5, 5), (1, 1, 5, 4), (1, 5, 5)])
def test_a_mask_of_another_shape(shape):
    with pytest.raises(ValueError, match=r"allowed: \[2 or 1, 1 or 2, 5, 5\]"):
        PartialConv2d(2, 1, kernel_size=3)(torch.rand(2, 2, 5, 5), torch.ones(shape))


@pytest.mark.parametrize("modulated", [False, True])
def test_deformable_convolution_starts_as_the_one_it_is_made_of(modulated):
    plain = nn.Conv2d(4, 6, kernel_size=3, stride=2, padding=2, dilation=2, groups=2).double()
    conv = DeformableConv2d(plain, modulated=modulated, offset_groups=2).double()
    x = randn(2, 4, 9, 7)
    torch.testing.assert_close(conv(x), plain(x), rtol=1e-12, atol=1e-12)
    conv(x).square().sum().backward()
    # both ways of moving are learnt from the start
    assert (conv.offset.weight.grad.flatten(1).abs().amax(1) > 0).all()
    assert conv(x[:0]).shape == (0, 6, *plain(x).shape[2:])
    assert conv.offset.out_channels == (54 if modulated else 36)


@pytest.mark.parametrize(("dy", "dx"), [(1, 0), (0, 1), (-2, 1)])
def test_moving_every_tap_by_whole_cells_shifts_the_map(dy, dx):
    plain = nn.Conv2d(2, 3, kernel_size=3, padding=1).double()
    conv = DeformableConv2d(plain).double()
    with torch.no_grad():
        conv.offset.bias.copy_(torch.tensor([dy, dx] * 9))  # a dy and a dx for each tap in turn
    x = randn(1, 2, 8, 8)
    shifted = x.roll((-dy, -dx), dims=(2, 3))
    inside = (..., slice(3, 5), slice(3, 5))  # untouched by what roll brings around
    torch.testing.assert_close(conv(x)[inside], plain(shifted)[inside])


def test_modulation_weighs_the_taps():
    plain = nn.Conv2d(1, 1, kernel_size=3, padding=1, bias=False).double()
    conv = DeformableConv2d(plain, modulated=True).double()
    with torch.no_grad():
        conv.offset.bias[18:] = torch.logit(torch.arange(1, 10) / 10)  # sigmoid: 0.1, ..., 0.9
        weighed = plain.weight * (2 * torch.arange(1, 10) / 10).view(1, 1, 3, 3)
    x = randn(1, 1, 5, 5)
    torch.testing.assert_close(conv(x), F.conv2d(x, weighed, padding=1), rtol=1e-6, atol=1e-6)


def test_deformable_convolution_equals_torchvisions_where_the_taps_do_move():
    plain = nn.Conv2d(4, 3, kernel_size=3, padding=1).double()
    conv = DeformableConv2d(plain, modulated=True, offset_groups=2).double()
    nn.init.normal_(conv.offset.weight)
    x = randn(2, 4, 6, 5)
    moves = F.conv2d(x, conv.offset.weight, conv.offset.bias, padding=1)
    theirs = torchvision.ops.DeformConv2d(4, 3, kernel_size=3, padding=1).double()
    theirs.load_state_dict(plain.state_dict())
    expected = theirs(x, moves[:, :36], 2 / (1 + (-moves[:, 36:]).exp()))
    torch.testing.assert_close(conv(x), expected)


@pytest.mark.parametrize("modulated", [False, True])
def test_deformable_convolution_passes_the_gradient(modulated):
    conv = DeformableConv2d(nn.Conv2d(2, 2, 3, padding=1), modulated=modulated).double()
    nn.init.normal_(conv.offset.weight, std=0.1)
    nn.init.normal_(conv.offset.bias, std=0.1)
    assert torch.autograd.gradcheck(conv, randn(1, 2, 3, 4).requires_grad_())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_deformable_convolution_in_half_precision(dtype):
    conv = DeformableConv2d(nn.Conv2d(4, 4, 3, padding=1), modulated=True)
    nn.init.normal_(conv.offset.weight, std=0.1)
    x = torch.rand(1, 4, 6, 6)
    expected = conv(x)
    with torch.autocast("cpu", dtype=dtype):
        out = conv(x)
    assert out.dtype == dtype
    torch.testing.assert_close(out.float(), expected, rtol=5e-2, atol=5e-2)
    assert conv.to(dtype)(x.to(dtype)).dtype == dtype


@pytest.mark.parametrize("settings", [{"padding": "same"}, {"padding_mode": "reflect"}])
def test_a_padding_that_does_not_deform(settings):
    with pytest.raises(ValueError, match="pads with a number of zeros"):
        DeformableConv2d(nn.Conv2d(2, 2, 3, **settings))


def test_offset_groups_that_do_not_divide():
    with pytest.raises(ValueError, match="offset_groups 3 does not divide the 4 input channels"):
        DeformableConv2d(nn.Conv2d(4, 4, 3), offset_groups=3)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("kernel_size", [1, 3, 5])
@pytest.mark.parametrize("dilation", [None, 1, 3])
def test_only_the_stride_changes_the_size(name, stride, kernel_size, dilation):
    build = conv_layer(name, kernel_size=kernel_size, stride=stride, dilation=dilation)
    rows, columns = build(2, 3)(torch.rand(1, 2, 7, 12)).shape[2:]
    if name == "transposed":
        assert (rows, columns) == (7 * stride, 12 * stride)
    else:
        assert (rows, columns) == (math.ceil(7 / stride), math.ceil(12 / stride))


@pytest.mark.parametrize(("kernel_size", "stride"), [(2, 2), (4, 2), (16, 8), (3, 4)])
def test_transposed_convolution_with_any_kernel(kernel_size, stride):
    build = conv_layer("transposed", kernel_size=kernel_size, stride=stride)
    assert build(1, 1)(torch.rand(1, 1, 5, 6)).shape == (1, 1, 5 * stride, 6 * stride)


@pytest.mark.parametrize("kernel_size", [1, 3, 5])
@pytest.mark.parametrize("stride", [1, 2])
def test_transposed_convolution_is_the_adjoint_of_the_plain_one(kernel_size, stride):
    settings = dict(kernel_size=kernel_size, stride=stride, bias=False)
    down = conv_layer("plain", **settings)(2, 3).double()
    up = conv_layer("transposed", **settings)(3, 2).double()
    up.weight = down.weight
    x, y = randn(1, 2, 8, 6), randn(1, 3, 8 // stride, 6 // stride)
    torch.testing.assert_close((down(x) * y).sum(), (x * up(y)).sum())


def test_dilation_is_a_kernel_stuffed_with_zeros():
    conv = conv_layer("dilated", groups=2)(4, 6).double()
    assert conv.dilation == (2, 2)
    stuffed = torch.zeros(6, 2, 5, 5, dtype=torch.float64)
    stuffed[..., ::2, ::2] = conv.weight.detach()
    x = randn(1, 4, 7, 8)
    torch.testing.assert_close(conv(x), F.conv2d(x, stuffed, conv.bias, padding=2, groups=2))


@pytest.mark.parametrize("name", [name for name in NAMES if name != "transposed"])
def test_every_choice_starts_from_the_same_convolution(name):
    settings = {"dilation": 1} if name == "dilated" else {}
    conv = conv_layer(name, stride=2, bias=False, groups=2, **settings)(4, 4).double()
    weight = (conv.conv if isinstance(conv, DeformableConv2d) else conv).weight
    x = randn(2, 4, 7, 6)
    expected = F.conv2d(x, weight, stride=2, padding=1, groups=2)
    inside = (..., slice(1, 3), slice(1, 3))  # where no padding is seen
    torch.testing.assert_close(conv(x)[inside], expected[inside])


@pytest.mark.parametrize("name", NAMES)
def test_every_choice_compiles_without_a_break(name):
    conv = conv_layer(name)(2, 3)
    x = torch.rand(1, 2, 6, 5)
    compiled = torch.compile(conv, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), conv(x))


def test_an_unknown_convolution():
    with pytest.raises(ValueError, match="unknown convolution 'deformabel'; did you mean 'deform"):
        conv_layer("deformabel")


@pytest.mark.parametrize(("name", "stride"), [("plain", 2), ("deformable", 1), ("transposed", 1)])
def test_a_kernel_without_a_middle(name, stride):
    with pytest.raises(ValueError, match=f"a {name} convolution of kernel_size 4 .* odd"):
        conv_layer(name, kernel_size=4, stride=stride)


@pytest.mark.parametrize("setting", ["kernel_size", "stride", "dilation", "groups"])
def test_a_geometry_below_one(setting):
    with pytest.raises(ValueError, match=f"{setting} 0.* at least 1"):
        conv_layer("plain", **{setting: 0})
